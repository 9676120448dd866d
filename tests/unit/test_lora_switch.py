"""A module is a mask: it touches its slices and no other, and what is aggregated is what the rule says."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.core.adapter import Factor, Layout
from testbed.lora.aggregate import weighted_mean
from testbed.lora.switch import (
    aggregate_slices,
    gradient_shares,
    lift,
    max_rank,
    module_bit,
    module_values,
    slice_mask,
    spectrum_shares,
    truncate,
)


def layout_of(rank: int, *sizes: tuple[int, int]) -> Layout:
    factors = []
    for index, (inputs, outputs) in enumerate(sizes):
        factors.append(Factor(name=f"m{index}.A", shape=(rank, inputs), kind="A", module=f"m{index}"))
        factors.append(Factor(name=f"m{index}.B", shape=(outputs, rank), kind="B", module=f"m{index}"))
    return Layout(factors=tuple(factors))


LAYOUT = layout_of(4, (6, 5), (3, 7))


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)


def test_sizes_of_roberta_base() -> None:
    roberta = layout_of(16, *[(768, 768)] * 24)  # q and v of twelve layers
    assert module_values(roberta, 1) == 36_864
    assert module_bit(roberta, [0, 2, 8, 16], head_bit=592_130 * 32).tolist() == [
        0,
        73_728 * 32 + 592_130 * 32,
        9_437_184 + 592_130 * 32,
        589_824 * 32 + 592_130 * 32,
    ]


@pytest.mark.parametrize("rank", range(5))
def test_a_module_is_the_low_rank_product_of_its_slices(rank: int) -> None:
    whole = vector(0)
    small = truncate(LAYOUT, whole, rank)
    assert small.shape == (rank * 21,)
    back = LAYOUT.unpack(lift(LAYOUT, small, rank))
    factors = LAYOUT.unpack(whole)
    for module in ("m0", "m1"):
        product = factors[f"{module}.B"][:, :rank] @ factors[f"{module}.A"][:rank]
        assert back[f"{module}.B"] @ back[f"{module}.A"] == pytest.approx(product, abs=1e-6)
        assert not back[f"{module}.A"][rank:].any()
        assert not back[f"{module}.B"][:, rank:].any()
    assert np.array_equal(truncate(LAYOUT, lift(LAYOUT, small, rank), rank), small)


def test_masks_nest_and_add_up() -> None:
    masks = [slice_mask(LAYOUT, rank) for rank in range(5)]
    assert not masks[0].any()
    assert masks[4].all()
    for rank in range(4):
        assert np.all(masks[rank] <= masks[rank + 1])
        assert np.array_equal(slice_mask(LAYOUT, rank + 1, rank), masks[rank + 1] & ~masks[rank])


def test_bad_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks from 0 to 4"):
        slice_mask(LAYOUT, 5)
    with pytest.raises(ValueError, match="has 42 values"):
        lift(LAYOUT, np.zeros(41), 2)
    with pytest.raises(ValueError, match="without factors"):
        max_rank(Layout(factors=()))
    with pytest.raises(ValueError, match="without energy"):
        spectrum_shares([np.zeros(3)], [1])


def test_one_layer_of_smaller_rank_gives_what_it_has() -> None:
    mixed = Layout(factors=(*layout_of(4, (6, 5)).factors, Factor(name="x", shape=(9, 2), kind="B", module="x")))
    assert module_values(mixed, 3) == 3 * 11 + 18


def test_shares_of_the_gradient() -> None:
    gradient = np.zeros(LAYOUT.size, np.float32)
    views = LAYOUT.unpack(gradient)
    views["m0.A"][0, 0], views["m1.B"][0, 2], views["m1.A"][3, 1] = 3.0, 4.0, 12.0
    assert gradient_shares(LAYOUT, gradient, [0, 1, 2, 3, 4]).tolist() == pytest.approx(
        [0, 9 / 169, 9 / 169, 25 / 169, 1]
    )
    assert gradient_shares(LAYOUT, np.zeros(LAYOUT.size), [1, 4]).tolist() == [0.25, 1.0]
    shares = spectrum_shares([np.array([2.0, 1.0]), np.array([3.0, 1.0, 1.0])], [0, 1, 2, 3])
    assert shares.tolist() == pytest.approx([0, 13 / 16, 15 / 16, 1])


def test_random_slices_express_their_share_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([gradient_shares(LAYOUT, rng.standard_normal(LAYOUT.size), [1, 2, 3]) for _ in range(2000)])
    sigma = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(drawn.mean(axis=0) - [0.25, 0.5, 0.75]) < 4 * sigma)


@pytest.mark.parametrize("rule", ["zero-fill", "renormalised", "inverse-probability"])
def test_all_at_the_largest_module_and_none_lost_is_federated_averaging_bit_for_bit(rule: str) -> None:
    updates, weights = {name: vector(seed) for seed, name in enumerate("abc")}, {"a": 3.0, "b": 1.0, "c": 5.0}
    found = aggregate_slices(
        LAYOUT,
        updates,
        dict.fromkeys("abc", 4),
        weights,
        rule,  # type: ignore[arg-type]
        dict.fromkeys("abc", 1.0),
    )
    assert found.tobytes() == weighted_mean(updates, weights).tobytes()


def test_every_slice_counts_those_who_sent_it() -> None:
    weights = {"a": 2.0, "b": 3.0, "c": 5.0}
    ranks = {"a": 1, "b": 4}
    updates = {name: lift(LAYOUT, truncate(LAYOUT, vector(seed), ranks[name]), ranks[name]) for seed, name in
               enumerate(ranks)}  # fmt: skip
    first, rest = slice_mask(LAYOUT, 1), slice_mask(LAYOUT, 4, 1)
    zero = aggregate_slices(LAYOUT, updates, ranks, weights)
    assert zero[first] == pytest.approx((0.2 * updates["a"] + 0.3 * updates["b"])[first], rel=1e-5)
    assert zero[rest] == pytest.approx(0.3 * updates["b"][rest], rel=1e-5)
    renormalised = aggregate_slices(LAYOUT, updates, ranks, weights, "renormalised")
    assert renormalised[first] == pytest.approx(zero[first] / 0.5, rel=1e-5)
    assert renormalised[rest] == pytest.approx(updates["b"][rest], rel=1e-5)
    only_small = aggregate_slices(LAYOUT, {"a": updates["a"]}, {"a": 1}, weights, "renormalised")
    assert not only_small[rest].any()
    assert not aggregate_slices(LAYOUT, {}, {}, weights).any()
    with pytest.raises(ValueError, match="d: an update needs"):
        aggregate_slices(LAYOUT, {"d": updates["a"]}, {"d": 1}, weights)
    with pytest.raises(ValueError, match="needs the probability"):
        aggregate_slices(LAYOUT, updates, ranks, weights, "inverse-probability")


def test_inverse_probability_is_unbiased_over_losses_and_zero_fill_is_not() -> None:
    rng = np.random.default_rng(1)
    names, success = ("a", "b", "c"), {"a": 0.9, "b": 0.5, "c": 0.3}
    weights = dict.fromkeys(names, 1.0)
    updates, ranks = {name: np.ones(LAYOUT.size, np.float32) for name in names}, dict.fromkeys(names, 4)
    sums = np.zeros(2)
    draws = 3000
    for _ in range(draws):
        arrived = {name: updates[name] for name in names if rng.uniform() < success[name]}
        for place, rule in enumerate(("inverse-probability", "zero-fill")):
            sums[place] += aggregate_slices(LAYOUT, arrived, ranks, weights, rule, success)[0]  # type: ignore[arg-type]
    variance = sum((1 - p) / p for p in success.values()) / 9
    assert abs(sums[0] / draws - 1.0) < 4 * np.sqrt(variance / draws)
    assert sums[1] / draws == pytest.approx(1.7 / 3, abs=0.03)
