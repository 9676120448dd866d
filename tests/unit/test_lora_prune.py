"""Nested sets, ratios not above what was asked, convex energies, and means over what everybody covers."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.core.adapter import Factor, Layout
from testbed.lora.aggregate import covered_mean, weighted_mean
from testbed.lora.prune import LayerShape, kept, pruned_energy, row_removed, work_share
from testbed.lora.refactor import stack_layout, stacked

SHAPES = [
    LayerShape(3, 36864, 512, 576),
    LayerShape(1, 100, 8, 30),
    LayerShape(8, 1000, 5, 999),
    LayerShape(4, 6, 4, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_chain_is_nested_and_takes_the_most_that_is_not_above(shape: LayerShape) -> None:
    steps = np.diff(shape.chain, axis=0)
    assert ((steps == [1, 0]).all(axis=1) | (steps == [0, 1]).all(axis=1)).all()
    assert shape.chain[-1].tolist() == [shape.heads - 1, shape.channels - 1]
    before = np.array([0, 0])
    for ratio in np.linspace(0, 0.95, 400):
        now = shape.removed(float(ratio))
        assert (now >= before).all(), "a larger ratio removes a superset"
        assert shape.ratio(*now) <= ratio + 1e-9
        reachable = [shape.ratio(*step) for step in shape.chain.tolist() if shape.ratio(*step) <= ratio + 1e-9]
        assert shape.ratio(*now) == max(reachable)
        before = np.array(now)
    with pytest.raises(ValueError, match="is not in"):
        shape.removed(1.0)


def test_heads_keep_pace_with_channels() -> None:
    """The longest step that a ratio can miss by is one head."""
    shape = SHAPES[0]
    for ratio in np.linspace(0, 0.9, 100):
        heads, channels = shape.removed(float(ratio))
        assert 0 <= channels / shape.channels - heads / shape.heads < 1 / shape.heads + 1 / shape.channels or heads == 2
        assert ratio - shape.ratio(heads, channels) <= shape.head_values / shape.size + 1e-9


def test_the_least_important_go_first() -> None:
    rng = np.random.default_rng(0)
    importance = rng.normal(size=(5, 12))
    before = np.ones((5, 12), bool)
    for removed in range(13):
        mask = kept(importance, removed)
        assert (mask.sum(axis=1) == 12 - removed).all()
        assert not (mask & ~before).any()
        for row, one in zip(importance, mask, strict=True):
            if 0 < removed < 12:
                assert row[~one].max() < row[one].min()
        before = mask
    assert kept(np.zeros(4), 2).tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="cannot be taken out"):
        kept(np.zeros(4), 5)
    with pytest.raises(ValueError, match="not finite"):
        kept(np.array([1.0, np.nan]), 1)
    assert [row_removed(0.1, 30), row_removed(0.5, 3), row_removed(0.0, 9)] == [3, 1, 0]


def test_energy_of_gaussian_weights() -> None:
    """1.5 % of the energy at 0.3, 7.2 % at 0.5, 56 % at 0.9: the integral of x^2 over the middle of a normal law."""
    curve = pruned_energy(np.random.default_rng(1).normal(size=400_000), corners=1000)
    np.testing.assert_allclose(curve(np.array([0.3, 0.5, 0.9])), [0.0152, 0.0717, 0.561], atol=0.003)
    assert (np.diff(curve.slopes) >= -1e-12).all()
    assert (curve.slopes >= 0).all()
    assert (curve(np.linspace(0, 1, 50)) <= np.linspace(0, 1, 50) + 1e-12).all(), "below its chord"
    weights = np.random.default_rng(2).normal(size=10)
    exact = pruned_energy(weights, corners=1000)
    squares = np.sort(weights**2)
    np.testing.assert_allclose(exact(np.arange(11) / 10), np.concatenate([[0], np.cumsum(squares)]) / squares.sum())
    thin = pruned_energy(weights, corners=3)
    assert (thin(np.arange(11) / 10) >= exact(np.arange(11) / 10) - 1e-12).all()
    with pytest.raises(ValueError, match="without energy"):
        pruned_energy(np.zeros(3))


def test_operations() -> None:
    assert work_share(100.0, 100.0, 20.0, 5.0, 5.0) == 1.0
    assert work_share(100.0, 40.0, 0.0) == pytest.approx(0.4)
    assert work_share(100.0, 0.0, 100.0) == pytest.approx(0.5)


@pytest.mark.parametrize("rule", ["present", "all"])
def test_what_everybody_covers_is_the_mean_bit_for_bit(rule: str) -> None:
    rng = np.random.default_rng(3)
    names = [f"n{index}" for index in range(5)]
    updates = {name: rng.normal(size=301).astype(np.float32) for name in names}
    weights = {name: float(rng.uniform(0.1, 9)) for name in names}
    whole = weighted_mean(updates, weights)
    everywhere = dict.fromkeys(names, np.ones(301, bool))
    for covered in ({}, everywhere, {"n2": np.ones(301, bool)}):
        assert covered_mean(updates, covered, weights, rule).tobytes() == whole.tobytes()  # type: ignore[arg-type]
    covered = {name: rng.random(301) < 0.6 for name in names[:4]}
    covered["n4"] = np.arange(301) < 100
    mean = covered_mean(updates, covered, weights, rule)  # type: ignore[arg-type]
    for place in range(301):
        inside = [name for name in names if covered[name][place]]
        below = sum(weights[name] for name in (inside if rule == "present" else names))
        expected = sum(weights[name] * float(updates[name][place]) for name in inside) / below if inside else 0.0
        assert mean[place] == pytest.approx(expected, rel=2e-5, abs=1e-6)
        if len(inside) == 5:
            assert mean[place] == whole[place]


def test_a_mean_refuses_odd_masks() -> None:
    updates = {"a": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="mask of shape"):
        covered_mean(updates, {"a": np.ones(2, bool)}, {"a": 1.0})
    with pytest.raises(ValueError, match="no rule"):
        covered_mean(updates, {}, {"a": 1.0}, "some")  # type: ignore[arg-type]


def _layout(rank: int) -> Layout:
    factors = []
    for module, (rows, columns) in {"m": (7, 5), "n": (4, 9)}.items():
        factors.append(Factor(name=f"{module}.A", shape=(rank, columns), kind="A", module=module))
        factors.append(Factor(name=f"{module}.B", shape=(rows, rank), kind="B", module=module))
    return Layout(factors=tuple(factors))


def test_a_stack_has_the_mean_product() -> None:
    layout, rng = _layout(3), np.random.default_rng(4)
    adapters = {name: rng.normal(size=layout.size).astype(np.float32) for name in ("x", "y", "z")}
    weights, ranks = {"x": 1.0, "y": 2.0, "z": 5.0}, {"x": 3, "y": 1, "z": 2}
    for chosen, minus in ((None, None), (ranks, None), (None, weighted_mean(adapters, weights))):
        stack = stacked(layout, adapters, weights, ranks=chosen, minus=minus)
        assert stack.rank == (6 if chosen else 9 if minus is None else 12)
        views = stack_layout(layout, stack.rank).unpack(stack.vector)
        for module in ("m", "n"):
            expected = 0.0
            for name, adapter in adapters.items():
                count = chosen[name] if chosen else 3
                one = {key: value.astype(np.float64) for key, value in layout.unpack(adapter).items()}
                expected = expected + weights[name] / 8 * one[f"{module}.B"][:, :count] @ one[f"{module}.A"][:count]
            if minus is not None:
                one = layout.unpack(minus)
                expected = expected - one[f"{module}.B"] @ one[f"{module}.A"]
            np.testing.assert_allclose(views[f"{module}.B"] @ views[f"{module}.A"], expected, atol=2e-6)


def test_a_stack_refuses_what_has_no_product() -> None:
    layout = _layout(2)
    adapters = {"x": np.zeros(layout.size, np.float32)}
    with pytest.raises(ValueError, match="rank 3; the layout has ranks from 1 to 2"):
        stacked(layout, adapters, {"x": 1.0}, ranks={"x": 3})
    with pytest.raises(ValueError, match="at least rank 1"):
        stack_layout(layout, 0)
    with pytest.raises(ValueError, match="needs an A and a B"):
        stack_layout(Layout(factors=layout.factors[1:]), 2)
