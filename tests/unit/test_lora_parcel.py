"""Parts and choices of an update as bytes: both sides agree on the mask, and a value costs nothing but itself."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.core.adapter import Factor, Layout
from testbed.core.uplinks import Part, Payload
from testbed.lora import parcel
from testbed.lora.choice import part_mask
from testbed.lora.sparse_orthogonal import RankPairs, update_energies

RANK, IN, OUT = 4, 6, 10
LAYOUT = Layout(
    factors=tuple(
        Factor(name=f"l{layer}.lora_{kind}.weight", shape=shape, kind=kind, module=f"l{layer}")
        for layer in range(3)
        for kind, shape in (("A", (RANK, IN)), ("B", (OUT, RANK)))
    )
)
RNG = np.random.default_rng(0)
BEFORE = RNG.standard_normal(LAYOUT.size).astype(np.float32)
UPDATE = RNG.standard_normal(LAYOUT.size).astype(np.float32)
HEAD = 16


def travelled(payload: Payload, update: np.ndarray = UPDATE) -> tuple[np.ndarray, np.ndarray, int]:
    data = parcel.encode(LAYOUT, payload, BEFORE, update, seed=3)
    return *parcel.decode(LAYOUT, payload, data), len(data)


@pytest.mark.parametrize(
    "part",
    [Part(kinds=("B",)), Part(patterns=("l1.*",)), Part(ranks=2), Part(segment=(1, 3)), Part(("A",), (), 1, (0, 2))],
)
def test_a_part_arrives_exactly_and_nothing_else_does(part: Part) -> None:
    got, covered, length = travelled(Payload(part=part))
    mask = part_mask(LAYOUT, part)
    np.testing.assert_array_equal(covered, mask)
    np.testing.assert_array_equal(got[mask], UPDATE[mask])
    assert not got[~mask].any()
    assert length == HEAD + 4 * mask.sum() == parcel.num_bytes(LAYOUT, Payload(part=part))


def test_parts_are_what_their_words_say() -> None:
    views = LAYOUT.unpack(part_mask(LAYOUT, Part(ranks=1)))
    assert views["l0.lora_A.weight"].sum() == IN
    assert views["l0.lora_A.weight"][0].all()
    assert views["l2.lora_B.weight"][:, 0].all()
    assert views["l2.lora_B.weight"].sum() == OUT
    stretches = [part_mask(LAYOUT, Part(segment=(index, 4))) for index in range(4)]
    np.testing.assert_array_equal(np.sum(stretches, axis=0), 1)
    assert max(mask.sum() for mask in stretches) - min(mask.sum() for mask in stretches) <= 1


def test_pairs_are_those_that_changed_their_module_most() -> None:
    got, covered, length = travelled(Payload(kind="float16", keep=0.5, choice="pairs"))
    pairs = RankPairs.of(LAYOUT)
    best = np.argsort(-update_energies(pairs, BEFORE, UPDATE))[:6]
    kept = np.zeros(12, bool)
    kept[best] = True
    np.testing.assert_array_equal(covered, pairs.mask(kept))
    np.testing.assert_allclose(got[covered], UPDATE[covered], rtol=1e-3)
    assert length == 2 + HEAD + 2 * 6 * (IN + OUT)


def test_rows_and_columns_chosen_apart_come_apart() -> None:
    _, covered, length = travelled(Payload(kind="float32", keep=0.5, choice="separate"))
    views = LAYOUT.unpack(covered)
    for layer in range(3):
        rows = np.linalg.norm(LAYOUT.unpack(UPDATE)[f"l{layer}.lora_A.weight"], axis=1)
        np.testing.assert_array_equal(views[f"l{layer}.lora_A.weight"].all(axis=1), rows >= np.sort(rows)[2])
    assert length == 3 + HEAD + 4 * 6 * (IN + OUT)


def test_touched_sends_what_training_changed() -> None:
    update = UPDATE.copy()
    views = LAYOUT.unpack(update)
    views["l0.lora_B.weight"][3:] = 0
    views["l1.lora_A.weight"][:, 2] = 0
    got, covered, length = travelled(Payload(choice="touched"), update)
    np.testing.assert_array_equal(got, update)
    np.testing.assert_array_equal(covered, update != 0)
    assert length == -(-3 * (IN + OUT) // 8) + HEAD + 4 * np.count_nonzero(update)


def test_scores_weigh_a_value_by_the_other_factor() -> None:
    before = np.zeros(LAYOUT.size, np.float32)
    LAYOUT.unpack(before)["l2.lora_A.weight"][1] = 100.0
    # with A's row 1 of module 2 large, column 1 of its B counts before all else
    data = parcel.encode(LAYOUT, Payload(kind="topk", keep=OUT / LAYOUT.size, choice="scores"), before, UPDATE, seed=0)
    _, covered = parcel.decode(LAYOUT, Payload(kind="topk", keep=OUT / LAYOUT.size, choice="scores"), data)
    np.testing.assert_array_equal(covered, LAYOUT.unpack(covered)["l2.lora_B.weight"].any() & covered)
    assert LAYOUT.unpack(covered)["l2.lora_B.weight"][:, 1].all()


def test_lots_are_drawn_alike_for_one_seed_and_otherwise_for_another() -> None:
    payload = Payload(keep=0.5, choice="random")
    first = parcel.encode(LAYOUT, payload, BEFORE, UPDATE, seed=1)
    assert first == parcel.encode(LAYOUT, payload, BEFORE, UPDATE, seed=1)
    assert any(first[:2] != parcel.encode(LAYOUT, payload, BEFORE, UPDATE, seed=seed)[:2] for seed in range(2, 6))


def test_a_part_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no value of the adapter belongs"):
        part_mask(LAYOUT, Part(kinds=("down",)))
    with pytest.raises(ValueError, match="no stretch 3 of 3"):
        part_mask(LAYOUT, Part(segment=(3, 3)))


def test_a_bitmap_that_lies_is_refused() -> None:
    payload = Payload(keep=0.5, choice="pairs")
    data = bytearray(parcel.encode(LAYOUT, payload, BEFORE, UPDATE, seed=0))
    data[0] ^= 0x80
    with pytest.raises(ValueError, match="values"):
        parcel.decode(LAYOUT, payload, bytes(data))
