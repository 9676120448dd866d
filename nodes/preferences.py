"""Preference pairs: from a data source to pairs of token rows, by kind and by client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nodes.data import read
from nodes.partition import partition
from nodes.templates import Row
from nodes.tokens import Encoded
from testbed.core.errors import ConfigError
from testbed.core.specs import DataSpec, PartitionSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("helpful", "safety")
"""What a pair may be about: the two objectives."""


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, of which people prefer one.

    Attributes:
        prompt: what both answer; ends where the response begins.
        chosen: the preferred response.
        rejected: the other one.
        kind: what was judged, one of `KINDS`.
    """

    prompt: str
    chosen: str
    rejected: str
    kind: str


@dataclass(frozen=True)
class EncodedPair:
    """A pair in token ids; both rows begin with the same prompt."""

    chosen: Encoded
    rejected: Encoded


def load(spec: DataSpec, *, kind: str | None = None) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Training and held-out pairs of a source, in file order.

    Columns `prompt`, `chosen`, `rejected` and `kind`, or those that `spec.fields` names.

    Args:
        spec: where the pairs are; the template is not looked at.
        kind: kind of every pair, where the source has no such column.

    Raises:
        ConfigError: the source is not usable, a pair lacks a response, its responses are identical, or its kind is
            unknown; names file and line.
    """
    train, test = read(spec)
    return tuple(_pair(row, kind) for row in train), tuple(_pair(row, kind) for row in test)


def of_kind(pairs: Sequence[Pair], kind: str) -> tuple[Pair, ...]:
    """The pairs of one kind, in their order.

    Args:
        pairs: of any kind.
        kind: one of `KINDS`.
    """
    return tuple(pair for pair in pairs if pair.kind == kind)


def num_prompts(pairs: Sequence[Pair]) -> int:
    """Distinct prompts: how many independent questions stand behind the pairs."""
    return len({pair.prompt for pair in pairs})


def hold_out(
    pairs: Sequence[Pair], share: float, rng: np.random.Generator
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Divide pairs by prompt, so that no prompt is on both sides.

    Args:
        pairs: of any kind.
        share: fraction of the prompts of each kind that is held out, between 0 and 1; at least one prompt.
        rng: draws which.

    Returns:
        Pairs to learn from, pairs held out, each in the order given.

    Raises:
        ConfigError: a kind has fewer than two prompts.
    """
    held: set[tuple[str, str]] = set()
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        prompts = list(dict.fromkeys(pair.prompt for pair in pairs if pair.kind == kind))
        if len(prompts) < 2:
            raise ConfigError(
                f"the pairs of kind {kind!r} have {len(prompts)} prompt, so none can be held out",
                key="data.source",
                remedy="give pairs of at least two prompts of each kind",
            )
        count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
        held.update((kind, prompts[index]) for index in rng.permutation(len(prompts))[:count])
    kept = tuple(pair for pair in pairs if (pair.kind, pair.prompt) not in held)
    return kept, tuple(pair for pair in pairs if (pair.kind, pair.prompt) in held)


def deal(
    pairs: Sequence[Pair], nodes: Sequence[str], spec: PartitionSpec, rng: np.random.Generator
) -> dict[str, tuple[Pair, ...]]:
    """Deal pairs to clients, prompt by prompt: the pairs of a prompt stay together.

    The kind is the label of the partition, so that a small Dirichlet concentration gives clients that hold mostly
    helpful or mostly safety pairs.

    Args:
        pairs: of any kind.
        nodes: the clients, in the order of the experiment.
        spec: kind of partition.
        rng: the generator all draws come from.

    Returns:
        Client -> its pairs; every pair is with exactly one client.

    Raises:
        ConfigError: fewer prompts than clients, or a partition that leaves a client without any.
    """
    prompts = list(dict.fromkeys((pair.kind, pair.prompt) for pair in pairs))
    if len(prompts) < len(nodes):
        raise ConfigError(
            f"{len(prompts)} prompts of preference pairs cannot be dealt to {len(nodes)} nodes",
            key="alignment.source",
            remedy="give at least one prompt for each node, and pairs of both kinds; or take fewer nodes",
        )
    shares = partition(spec, len(nodes), len(prompts), rng, labels=[kind for kind, _ in prompts])
    owner = {prompts[index]: node for node, share in zip(nodes, shares, strict=True) for index in share}
    dealt: dict[str, list[Pair]] = {node: [] for node in nodes}
    for pair in pairs:
        dealt[owner[pair.kind, pair.prompt]].append(pair)
    return {node: tuple(own) for node, own in dealt.items()}


def require(dealt: Mapping[str, Sequence[Pair]], node: str, kinds: Sequence[str] = KINDS) -> tuple[Pair, ...]:
    """The pairs a client aligns on.

    Args:
        dealt: client -> its pairs.
        node: the client.
        kinds: kinds it needs.

    Returns:
        Its pairs of these kinds, in their order.

    Raises:
        ConfigError: it has no pairs of a kind; says what it holds.
    """
    own = tuple(dealt.get(node, ()))
    held = Counter(pair.kind for pair in own)
    missing = [kind for kind in kinds if not held[kind]]
    if missing:
        holds = ", ".join(f"{count} of kind {kind!r}" for kind, count in held.items()) or "none at all"
        raise ConfigError(
            f"{node} holds no preference pairs of kind {' or '.join(map(repr, missing))} (it holds {holds})",
            key="data.partition",
            remedy="deal more evenly (a larger alpha), take fewer nodes, give more pairs, or set the weight of that "
            "objective to 0 for this node",
        )
    return tuple(pair for pair in own if pair.kind in kinds)


def encode(pair: Pair, tokenizer: PreTrainedTokenizerBase, length: int) -> EncodedPair:
    """Token ids of both responses behind the same prompt.

    A pair that is too long loses the beginning of its prompt first, since a dialogue ends with what is answered; half
    of the length stays for the responses, which are then cut at their end.

    Args:
        pair: the texts.
        tokenizer: of the base model.
        length: most tokens of a row.
    """
    responses = [encode_response(text, tokenizer) for text in (pair.chosen, pair.rejected)]
    prompt = encode_prompt(pair.prompt, tokenizer, max(length - max(map(len, responses)), length // 2))
    rows = [Encoded(prompt=prompt, response=response[: max(length - len(prompt), 1)]) for response in responses]
    return EncodedPair(*rows)


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> np.ndarray:
    """Token ids of a prompt with its begin mark; the beginning of a long text is cut.

    Args:
        text: the prompt.
        tokenizer: of the base model.
        length: most tokens, at least 2.

    Returns:
        Shape [num_tokens] int64, at least one token.
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = _ids(text, tokenizer)
    room = max(length - len(begin), 1)
    return np.asarray((begin + ids[-room:]) or [tokenizer.pad_token_id], np.int64)


def encode_response(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Token ids of a response with its end mark, shape [num_tokens] int64.

    Args:
        text: the response.
        tokenizer: of the base model.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return np.asarray(_ids(text, tokenizer) + end, np.int64)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose: long texts are cut by the caller
    return tokenizer.encode(text, add_special_tokens=False, verbose=False) if text else []


def _pair(row: Row, kind: str | None) -> Pair:
    prompt, chosen, rejected = (_text(row, field) for field in ("prompt", "chosen", "rejected"))
    for field, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise ConfigError(
                f"the {field} response is empty",
                file=row.place,
                key="data.source",
                remedy="delete the pair, or fill in the response",
            )
    if chosen.strip() == rejected.strip():
        raise ConfigError(
            "the chosen and the rejected response are identical, so nothing is preferred",
            file=row.place,
            key="data.source",
            remedy="delete the pair",
        )
    judged = kind or str(row.get("kind") or "")
    if judged not in KINDS:
        raise ConfigError(
            f"the pair's kind is {judged!r}" if judged else "the pair has no kind",
            file=row.place,
            key="data.fields",
            remedy=f"give a column kind with {' or '.join(KINDS)}, or name the kind of all pairs",
        )
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, kind=judged)


def _text(row: Row, field: str) -> str:
    """A column as it stands: blanks and line ends at a response's beginning are part of it."""
    value = row.get(field)
    if value is None:
        return row[field]  # raises the error that names the columns there are
    return str(value)
