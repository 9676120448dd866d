"""Preference pairs: what is read and refused, how prompts are held out and dealt, and how pairs become tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.preferences import KINDS, Pair, deal, encode, hold_out, load, num_prompts, of_kind, require
from testbed.core.errors import ConfigError
from testbed.core.specs import DataSpec, PartitionSpec

GOOD = {"prompt": "\n\nHuman: why?\n\nAssistant:", "chosen": " Because.", "rejected": " No.", "kind": "helpful"}


def write(folder: Path, rows: list[dict[str, Any]], split: str = "train") -> Path:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if split == "train":
        write(folder, [GOOD], "test")
    return folder


def spec(folder: Path, **fields: str) -> DataSpec:
    return DataSpec(source=str(folder), template="preference", fields=fields)


def many(num_helpful: int = 40, num_safety: int = 20, each: int = 3) -> list[Pair]:
    return [
        Pair(f"{kind} {prompt}", f"good {index}", f"bad {index}", kind)
        for kind, count in (("helpful", num_helpful), ("safety", num_safety))
        for prompt in range(count)
        for index in range(each)
    ]


def test_pairs_are_read_as_they_stand(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "kind": "safety", "rejected": " Yes.\n", "agreement": None}]
    train, test = load(spec(write(tmp_path, rows)))
    assert train[0] == Pair(GOOD["prompt"], " Because.", " No.", "helpful")
    assert train[1].rejected == " Yes.\n"
    assert len(test) == 1
    assert [pair.kind for pair in of_kind(train, "safety")] == ["safety"]


def test_columns_may_have_other_names_and_the_kind_may_be_given(tmp_path: Path) -> None:
    rows = [{"question": "q", "better": "a", "worse": "b"}]
    folder = write(tmp_path, rows)
    write(folder, rows, "test")
    train, _ = load(spec(folder, prompt="question", chosen="better", rejected="worse"), kind="safety")
    assert train == (Pair("q", "a", "b", "safety"),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": "  \n"}, "the chosen response is empty"),
        ({"rejected": ""}, "the rejected response is empty"),
        ({"rejected": "Because. "}, "are identical"),
        ({"kind": "taste"}, "kind is 'taste'"),
        ({"kind": None}, "has no kind"),
        ({"chosen": None}, "column 'chosen'"),
    ],
)
def test_a_pair_without_a_preference_is_refused_by_file_and_line(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = write(tmp_path, [GOOD, GOOD, {**GOOD, **change}])
    with pytest.raises(ConfigError, match=said) as caught:
        load(spec(folder))
    assert f"{folder / 'train.jsonl'}, line 3" in str(caught.value)
    assert caught.value.remedy


def test_held_out_prompts_are_not_learnt_from() -> None:
    pairs = many()
    kept, held = hold_out(pairs, 0.2, np.random.default_rng(0))
    assert len(kept) + len(held) == len(pairs)
    assert not {pair.prompt for pair in kept} & {pair.prompt for pair in held}
    assert num_prompts(of_kind(held, "helpful")) == 8
    assert num_prompts(of_kind(held, "safety")) == 4
    assert held == hold_out(pairs, 0.2, np.random.default_rng(0))[1]
    assert held != hold_out(pairs, 0.2, np.random.default_rng(1))[1]


def test_a_kind_of_one_prompt_cannot_be_held_out() -> None:
    with pytest.raises(ConfigError, match="kind 'safety' have 1 prompt"):
        hold_out(many(num_safety=1), 0.2, np.random.default_rng(0))


def test_every_pair_goes_to_one_client_and_prompts_stay_together() -> None:
    pairs = many()
    nodes = ("a", "b", "c", "d")
    dealt = deal(pairs, nodes, PartitionSpec(kind="dirichlet", alpha=0.3), np.random.default_rng(4))
    assert sorted(pair.prompt + pair.chosen for own in dealt.values() for pair in own) == sorted(
        pair.prompt + pair.chosen for pair in pairs
    )
    owners: dict[str, set[str]] = {}
    for node, own in dealt.items():
        for pair in own:
            owners.setdefault(pair.prompt, set()).add(node)
    assert all(len(where) == 1 for where in owners.values())
    shares = [len(of_kind(own, "helpful")) / len(own) for own in dealt.values()]
    assert max(shares) - min(shares) > 0.3, "a small concentration makes clients differ"


def test_a_client_without_pairs_of_a_kind_is_named() -> None:
    pairs = many(num_helpful=3, num_safety=1)
    dealt = {"node-1": tuple(pairs), "node-2": of_kind(pairs, "helpful")}
    assert require(dealt, "node-1") == tuple(pairs)
    assert require(dealt, "node-2", ("helpful",)) == of_kind(pairs, "helpful")
    with pytest.raises(ConfigError, match="node-2 holds no preference pairs of kind 'safety'.*9 of kind 'helpful'"):
        require(dealt, "node-2")
    with pytest.raises(ConfigError, match="node-3 holds no preference pairs of kind 'helpful' or 'safety'.*none"):
        require(dealt, "node-3", KINDS)


class Letters:
    """A tokenizer of one token a letter."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        assert not add_special_tokens
        assert not verbose
        return [ord(letter) for letter in text]


def test_both_responses_follow_the_same_end_of_the_prompt() -> None:
    pair = encode(Pair("abcdefghij", "uvw", "xyzxyzxyz", "helpful"), Letters(), 12)  # type: ignore[arg-type]
    # the longer response needs 10 of 12 tokens; half of the row stays for the prompt with its begin mark
    assert pair.chosen.prompt.tolist() == [1, *map(ord, "fghij")]
    np.testing.assert_array_equal(pair.chosen.prompt, pair.rejected.prompt)
    assert pair.chosen.response.tolist() == [*map(ord, "uvw"), 2]
    assert pair.rejected.response.tolist() == [*map(ord, "xyzxyz")]


def test_a_pair_that_fits_is_not_cut() -> None:
    pair = encode(Pair("ab", "u", "xyz", "helpful"), Letters(), 12)  # type: ignore[arg-type]
    assert pair.rejected.prompt.tolist() == [1, ord("a"), ord("b")]
    assert pair.rejected.response.tolist() == [*map(ord, "xyz"), 2]
