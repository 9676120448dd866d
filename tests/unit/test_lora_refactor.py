"""Means of products: against the full decomposition, the covariance identity, and noise drawn and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from testbed.core.adapter import Factor, Layout
from testbed.core.specs import LoraSpec
from testbed.lora.aggregate import weighted_mean
from testbed.lora.llama_layout import llama_layout
from testbed.lora.refactor import (
    alternate,
    mean_product,
    mean_product_with,
    merged,
    noisy_product_mse,
    places,
    trains_both,
)

OPEN_LLAMA_3B_V2 = {
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_attention_heads": 32,
    "num_hidden_layers": 26,
    "vocab_size": 32000,
}

Shapes = Sequence[tuple[int, int]]


def layout_of(shapes: Shapes, rank: int, kinds: str = "AB") -> Layout:
    """Modules of weights [out, in], A before B."""
    factors = []
    for index, (num_out, num_in) in enumerate(shapes):
        shape = {"A": (rank, num_in), "B": (num_out, rank)}
        for kind in kinds:
            name = f"m{index}.lora_{kind}.weight"
            factors.append(Factor(name=name, shape=shape[kind], kind=kind, module=f"m{index}"))  # type: ignore[arg-type]
    return Layout(factors=tuple(factors))


def drawn(layout: Layout, num_nodes: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    rng = np.random.default_rng(seed)
    adapters = {f"node-{index}": rng.standard_normal(layout.size).astype(np.float32) for index in range(num_nodes)}
    return adapters, {name: float(rng.integers(1, 50)) for name in adapters}


def products(layout: Layout, vector: np.ndarray) -> list[np.ndarray]:
    """B A of every module, formed in full."""
    values = layout.unpack(np.asarray(vector, np.float64))
    modules = dict.fromkeys(factor.module for factor in layout.factors)
    return [values[f"{module}.lora_B.weight"] @ values[f"{module}.lora_A.weight"] for module in modules]


def full_mean(layout: Layout, adapters: dict[str, np.ndarray], weights: dict[str, float]) -> list[np.ndarray]:
    total = sum(weights.values())
    each = [[weights[name] / total * one for one in products(layout, adapters[name])] for name in adapters]
    return [sum(parts[1:], parts[0]) for parts in zip(*each, strict=True)]


CASES: list[tuple[Shapes, int, int]] = [
    ([(24, 20), (24, 20), (12, 20)], 3, 4),
    ([(9, 30)], 4, 5),  # fewer outputs than ranks of all nodes together
    ([(6, 5)], 2, 8),  # the core is as large as the weight
    ([(4, 5)], 6, 3),  # a rank above the weight's own
    ([(5, 4), (16, 8)], 6, 1),
]


@pytest.mark.parametrize("factors", ["A", "B"])
@pytest.mark.parametrize(("shapes", "rank", "num_nodes"), CASES)
def test_one_factor_is_fitted_by_least_squares(shapes: Shapes, rank: int, num_nodes: int, factors: Any) -> None:
    layout = layout_of(shapes, rank)
    adapters, weights = drawn(layout, num_nodes, 3)
    before = np.random.default_rng(9).standard_normal(layout.size).astype(np.float32)
    found = mean_product_with(layout, before, adapters, weights, factors)
    resting = ~places(layout, factors)
    np.testing.assert_array_equal(found.adapter[resting], before[resting])
    old, new = layout.unpack(before), layout.unpack(found.adapter)
    residual = 0.0
    for index, mean in enumerate(full_mean(layout, adapters, weights)):
        a, b = (old[f"m{index}.lora_{kind}.weight"].astype(np.float64) for kind in "AB")
        # the minimum-norm step is what lstsq gives for the residual of the old factors
        if factors == "B":
            expected = b + np.linalg.lstsq(a.T, (mean - b @ a).T, rcond=None)[0].T
        else:
            expected = a + np.linalg.lstsq(b, mean - b @ a, rcond=None)[0]
        ours = new[f"m{index}.lora_{factors}.weight"]
        np.testing.assert_allclose(ours, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
        fitted = expected @ a if factors == "B" else b @ expected
        residual += np.sum((mean - fitted) ** 2)
    norm = sum(np.sum(mean**2) for mean in full_mean(layout, adapters, weights)) ** 0.5
    assert found.norm == pytest.approx(norm, rel=1e-10)
    assert found.residual == pytest.approx(residual**0.5, rel=1e-6, abs=1e-9 * norm)


def test_a_factor_without_effect_stays_as_it_was() -> None:
    layout = layout_of([(8, 6)], 3)
    adapters, weights = drawn(layout, 3, 1)
    before = drawn(layout, 1, 2)[0]["node-0"]
    before[places(layout, "B")] = 0.0
    found = mean_product_with(layout, before, adapters, weights, "A")
    np.testing.assert_array_equal(found.adapter, before)


@pytest.mark.parametrize(("shapes", "rank", "num_nodes"), CASES)
@pytest.mark.parametrize("seed", range(6))
def test_the_core_equals_the_full_decomposition(shapes: Shapes, rank: int, num_nodes: int, seed: int) -> None:
    layout = layout_of(shapes, rank)
    adapters, weights = drawn(layout, num_nodes, seed)
    found = mean_product(layout, adapters, weights)
    residual = norm = 0.0
    for mean, ours in zip(full_mean(layout, adapters, weights), products(layout, found.adapter), strict=True):
        u, s, vt = np.linalg.svd(mean)
        kept = min(rank, len(s))
        best = (u[:, :kept] * s[:kept]) @ vt[:kept]
        np.testing.assert_allclose(ours, best, atol=3e-6 * s[0])
        residual, norm = residual + np.sum(s[kept:] ** 2), norm + np.sum(s**2)
    assert found.norm == pytest.approx(norm**0.5, rel=1e-10)
    assert found.residual == pytest.approx(residual**0.5, rel=1e-10, abs=1e-10 * norm**0.5)


def test_one_set_of_factors_comes_back_whole_and_with_orthonormal_rows() -> None:
    layout = layout_of([(20, 30), (8, 12)], 4)
    adapters, _ = drawn(layout, 1, 3)
    same = {f"node-{index}": adapters["node-0"] for index in range(3)}
    found = mean_product(layout, same, {"node-0": 1.0, "node-1": 5.0, "node-2": 2.0})
    assert found.residual < 1e-12 * found.norm
    for ours, theirs in zip(products(layout, found.adapter), products(layout, adapters["node-0"]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for name, values in layout.unpack(found.adapter).items():
        gram = values @ values.T if "lora_A" in name else values.T @ values
        expected = np.eye(4) if "lora_A" in name else np.diag(np.diag(gram))
        np.testing.assert_allclose(gram, expected, atol=1e-5 * np.abs(gram).max())


def test_a_rank_without_product_can_still_learn() -> None:
    """B = 0 everywhere, as at the start: A has to keep rows of unit length, else no gradient is left."""
    layout = layout_of([(10, 12)], 3)
    adapters, weights = drawn(layout, 2, 4)
    still = {name: np.where(places(layout, "B"), 0, vector).astype(np.float32) for name, vector in adapters.items()}
    found = mean_product(layout, still, weights)
    a, b = (layout.unpack(found.adapter)[f"m0.lora_{kind}.weight"] for kind in "AB")
    assert found.norm == found.residual == 0.0
    np.testing.assert_array_equal(b, 0)
    np.testing.assert_allclose(a @ a.T, np.eye(3), atol=1e-6)


def test_the_order_of_arrival_changes_no_bit() -> None:
    layout = layout_of([(10, 12)], 3)
    adapters, weights = drawn(layout, 5, 1)
    turned = {name: adapters[name] for name in reversed(adapters)}
    first, again = mean_product(layout, adapters, weights), mean_product(layout, turned, weights)
    np.testing.assert_array_equal(first.adapter, again.adapter)


@pytest.mark.parametrize("seed", range(6))
def test_what_averaging_factors_misses_is_their_covariance(seed: int) -> None:
    """At a rank that holds everything, the mean product less that of the mean factors is sum p (B - Bbar)(A - Abar)."""
    layout = layout_of([(6, 5)], 6)
    adapters, weights = drawn(layout, 4, seed)
    shares = np.array(list(weights.values())) / sum(weights.values())
    found = mean_product(layout, adapters, weights)
    assert found.residual < 1e-12 * found.norm
    a = np.stack([layout.unpack(vector)["m0.lora_A.weight"] for vector in adapters.values()]).astype(np.float64)
    b = np.stack([layout.unpack(vector)["m0.lora_B.weight"] for vector in adapters.values()]).astype(np.float64)
    apart_a, apart_b = (one - np.tensordot(shares, one, 1) for one in (a, b))
    covariance = np.einsum("m,mor,mri->oi", shares, apart_b, apart_a)
    centre = weighted_mean(adapters, weights)
    gap = products(layout, found.adapter)[0] - products(layout, centre)[0]
    np.testing.assert_allclose(gap, covariance, atol=2e-6 * found.norm)
    assert np.linalg.norm(covariance) > 0.2 * found.norm


@pytest.mark.parametrize("kind", ["A", "B"])
def test_one_factor_at_a_time_averages_exactly(kind: str) -> None:
    layout = layout_of([(20, 30), (8, 12)], 4)
    adapters, weights = drawn(layout, 4, 2)
    published = adapters["node-0"]
    trained = places(layout, kind)  # type: ignore[arg-type]
    local = {name: np.where(trained, vector, published) for name, vector in adapters.items()}
    mean = weighted_mean({name: vector - published for name, vector in local.items()}, weights)
    adapter = merged(layout, published, mean, kind)  # type: ignore[arg-type]
    for ours, exact in zip(products(layout, adapter), full_mean(layout, local, weights), strict=True):
        np.testing.assert_allclose(ours, exact, atol=2e-5)
    noisy = mean + np.float32(1.0)
    np.testing.assert_array_equal(merged(layout, published, noisy, kind)[~trained], published[~trained])  # type: ignore[arg-type]
    np.testing.assert_array_equal(merged(layout, published, noisy, "both"), published + noisy)


def test_turns_begin_with_b() -> None:
    assert [alternate(index) for index in range(4)] == ["B", "A", "B", "A"]
    layout = layout_of([(5, 7)], 2)
    assert (places(layout, "A").sum(), places(layout, "B").sum(), places(layout, "both").sum()) == (14, 10, 24)


def test_noise_on_both_factors() -> None:
    """Mean of 20000 draws against the closed form, within four standard errors; the second order is seen."""
    layout, rng = layout_of([(6, 9), (4, 5)], 2), np.random.default_rng(7)
    adapter = rng.standard_normal(layout.size)
    variances = {"A": 0.3, "B": 0.7}
    errors = np.zeros(20000)
    for module, product in enumerate(products(layout, adapter)):
        a, b = (layout.unpack(adapter)[f"m{module}.lora_{kind}.weight"] for kind in "AB")
        noisy_a = a + np.sqrt(variances["A"]) * rng.standard_normal((len(errors), *a.shape))
        noisy_b = b + np.sqrt(variances["B"]) * rng.standard_normal((len(errors), *b.shape))
        errors += np.sum((noisy_b @ noisy_a - product) ** 2, axis=(1, 2))
    predicted = noisy_product_mse(layout, adapter, variances["A"], variances["B"])
    error = errors.std() / len(errors) ** 0.5
    assert abs(errors.mean() - predicted) < 4 * error
    first_order = noisy_product_mse(layout, adapter, variances["A"], 0.0)
    first_order += noisy_product_mse(layout, adapter, 0.0, variances["B"])
    assert predicted - first_order == pytest.approx(0.3 * 0.7 * 2 * (54 + 20))
    assert predicted - first_order > 40 * error


def test_the_published_sizes_of_open_llama_3b() -> None:
    for rank, targets, size in (
        (8, ("q_proj", "v_proj"), 2_662_400),
        (16, ("q_proj", "v_proj"), 5_324_800),
        (16, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 25_425_920),
    ):
        assert llama_layout(OPEN_LLAMA_3B_V2, LoraSpec(rank=rank, targets=targets)).size == size


def test_what_is_refused() -> None:
    half = layout_of([(5, 7)], 2, kinds="B")
    assert not trains_both(half)
    assert trains_both(layout_of([(5, 7)], 2))
    with pytest.raises(ValueError, match="an A and a B of every module"):
        mean_product(half, {"a": np.zeros(half.size, np.float32)}, {"a": 1.0})
    with pytest.raises(ValueError, match="at least one adapter"):
        mean_product(layout_of([(5, 7)], 2), {}, {})
    with pytest.raises(ValueError, match="positive weights"):
        mean_product(layout_of([(5, 7)], 2), {"a": np.zeros(24, np.float32)}, {"a": 0.0})
    with pytest.raises(ValueError, match="cannot be negative"):
        noisy_product_mse(layout_of([(5, 7)], 2), np.zeros(24), -1.0, 0.0)
