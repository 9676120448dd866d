"""Examples as token arrays: encoding, cutting, padding, and the mask of the tokens that count in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nodes.templates import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One example in token ids.

    Attributes:
        prompt: begin mark, prompt and cue, shape [num_prompt] int64.
        response: what is learnt, with its end mark, shape [num_response] int64.
        candidates: the label words as token ids; empty for free text.
        label: index of the right candidate.
    """

    prompt: np.ndarray
    response: np.ndarray
    candidates: tuple[np.ndarray, ...] = ()
    label: int | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to the longest one.

    Attributes:
        input_ids: shape [num_rows, length] int64.
        attention_mask: 1 for tokens, 0 for padding, shape [num_rows, length] int64.
        loss_mask: whether a token counts, as a target predicted from those before it, shape [num_rows, length] bool.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    loss_mask: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True)
class Encoder:
    """Turns examples into token ids of bounded length.

    A row that is too long loses the end of its prompt first, down to half of the length, then the end of its response;
    the cue always stays.

    Args:
        tokenizer: of the base model.
        length: most tokens of a row.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without begin and end marks."""
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def encode(self, example: Example) -> Encoded:
        """Token ids of one example."""
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        end = [self.tokenizer.eos_token_id] if example.ends and self.tokenizer.eos_token_id is not None else []
        cue = self.ids(example.cue)
        response = self.ids(example.response) + end
        prompt = begin + self.ids(example.prompt)
        longest = max([len(response), *(len(self.ids(word)) + len(end) for word in example.label_words)])
        room = max(self.length - longest, self.length // 2) - len(cue)
        prompt = prompt[: max(room, 1)] + cue
        left = max(self.length - len(prompt), 1)
        return Encoded(
            prompt=np.asarray(prompt, np.int64),
            response=np.asarray(response[:left], np.int64),
            candidates=tuple(np.asarray((self.ids(word) + end)[:left], np.int64) for word in example.label_words),
            label=example.label,
        )

    def encode_all(self, examples: Sequence[Example]) -> list[Encoded]:
        return [self.encode(example) for example in examples]


def collate(rows: Sequence[Encoded], *, pad: int, loss_on: str) -> Batch:
    """Pad rows to one batch.

    Args:
        rows: encoded examples.
        pad: token id that fills.
        loss_on: "response", or "all" for prompt and response.
    """
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad, np.int64)
    attention = np.zeros((len(rows), length), np.int64)
    loss = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.prompt)] = row.prompt
        ids[index, len(row.prompt) : len(row)] = row.response
        attention[index, : len(row)] = 1
        # the first token has nothing before it that could predict it
        loss[index, max(1, len(row.prompt) if loss_on == "response" else 1) : len(row)] = True
    return Batch(input_ids=ids, attention_mask=attention, loss_mask=loss)


@dataclass(frozen=True)
class CandidateBatch:
    """Rows in which all candidates follow one prompt, each blind to the others.

    Attributes:
        input_ids: prompt, then the candidates one after the other, shape [num_rows, length] int64.
        position_ids: every candidate starts where the prompt ends, shape [num_rows, length] int64.
        sees: whether a token (third axis) attends to another (fourth), shape [num_rows, 1, length, length] bool.
        predecessor: token from which each token is predicted, -1 for none, shape [num_rows, length] int64.
        owner: candidate a token belongs to, -1 for prompt and padding, shape [num_rows, length] int64.
        attention_mask: 1 for tokens, 0 for padding, shape [num_rows, length] int64.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    sees: np.ndarray
    predecessor: np.ndarray
    owner: np.ndarray
    attention_mask: np.ndarray


def collate_candidates(rows: Sequence[Encoded], *, pad: int) -> CandidateBatch:
    """Pad rows with all their candidates to one batch, so that one forward pass scores every label word.

    Args:
        rows: encoded examples with candidates.
        pad: token id that fills.
    """
    length = max(len(row.prompt) + sum(map(len, row.candidates)) for row in rows)
    shape = (len(rows), length)
    ids, positions = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    predecessor, owner = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    attention = np.zeros(shape, np.int64)
    sees = np.zeros((len(rows), 1, length, length), bool)
    sees[:, 0, np.arange(length), np.arange(length)] = True
    for index, row in enumerate(rows):
        start = len(row.prompt)
        ids[index, :start] = row.prompt
        positions[index, :start] = np.arange(start)
        predecessor[index, :start] = np.arange(start) - 1
        sees[index, 0, :start, :start] = np.tri(start, dtype=bool)
        for number, words in enumerate(row.candidates):
            span = slice(start, start + len(words))
            ids[index, span] = words
            positions[index, span] = len(row.prompt) + np.arange(len(words))
            predecessor[index, span] = np.arange(start, start + len(words)) - 1
            predecessor[index, start] = len(row.prompt) - 1
            owner[index, span] = number
            sees[index, 0, span, : len(row.prompt)] = True
            sees[index, 0, span, span] = np.tri(len(words), dtype=bool)
            start += len(words)
        attention[index, :start] = 1
    return CandidateBatch(ids, positions, sees, predecessor, owner, attention)
