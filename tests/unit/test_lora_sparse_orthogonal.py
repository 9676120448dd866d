"""SOFT's quantities equal what products and decompositions say, and nothing of an update is lost or counted twice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from testbed.core.adapter import Factor, Layout
from testbed.lora.covariance import aggregation_covariance
from testbed.lora.pair_bytes import decode, encode, payload_bit
from testbed.lora.refactor import product_svd
from testbed.lora.sparse_baselines import (
    cross_scores,
    largest_values,
    random_pairs,
    separate_norms,
    spectra,
    truncated,
    update_spectra,
    values_bit,
)
from testbed.lora.sparse_orthogonal import (
    RankPairs,
    coherence,
    energies,
    keep_best,
    orthonormal_start,
    penalty,
    residual_curve,
    sparsify,
    update_energies,
)


def layout_of(*modules: tuple[int, int, int]) -> Layout:
    """Modules (rank, in, out), A before B."""
    factors = []
    for index, (rank, inputs, outputs) in enumerate(modules):
        factors.append(Factor(name=f"m{index}.A", shape=(rank, inputs), kind="A", module=f"m{index}"))
        factors.append(Factor(name=f"m{index}.B", shape=(outputs, rank), kind="B", module=f"m{index}"))
    return Layout(factors=tuple(factors))


PAIRS = RankPairs.of(layout_of((3, 7, 5), (2, 4, 9)))


def drawn(pairs: RankPairs, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(pairs.layout.size)


def orthogonal(rng: np.random.Generator, size: int, strength: np.ndarray) -> tuple[Layout, np.ndarray]:
    """One square module with B A of these singular values, balanced and orthogonal; and its flat vector."""
    layout = layout_of((len(strength), size, size))
    left, right = (np.linalg.qr(rng.standard_normal((size, len(strength))))[0] for _ in range(2))
    vector = np.concatenate([(right * np.sqrt(strength)).T.ravel(), (left * np.sqrt(strength)).ravel()])
    return layout, vector


def products(pairs: RankPairs, vector: np.ndarray) -> list[np.ndarray]:
    return [up @ down for down, up in pairs.factors(vector)]


@pytest.mark.parametrize("form", ["off-diagonal", "identity"])
def test_penalty_gradient_equals_finite_differences(form: str) -> None:
    vector = drawn(PAIRS, 0)
    value, gradient = penalty(PAIRS, vector, form)  # type: ignore[arg-type]
    step = 1e-6
    for index in range(vector.size):
        moved = [vector.copy(), vector.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        slope = (penalty(PAIRS, moved[0], form)[0] - penalty(PAIRS, moved[1], form)[0]) / (2 * step)  # type: ignore[arg-type]
        assert gradient[index] == pytest.approx(slope, rel=1e-6, abs=1e-6)
    grams = [gram for down, up in PAIRS.factors(vector) for gram in (down @ down.T, up.T @ up)]
    target = [np.diag(np.diag(gram)) if form == "off-diagonal" else np.eye(len(gram)) for gram in grams]
    assert value == pytest.approx(sum(np.sum((g - t) ** 2) for g, t in zip(grams, target, strict=True)) / 2)


def test_descent_on_the_penalty_makes_factors_orthogonal_and_keeps_their_norms_apart_from_one() -> None:
    pairs = RankPairs.of(layout_of((4, 12, 10)))
    vector = 0.4 * drawn(pairs, 3)
    for _ in range(400):
        vector -= 0.05 * penalty(pairs, vector)[1]
    assert max(coherence(pairs, vector)) < 1e-3
    norms = np.linalg.norm(pairs.factors(vector)[0][0], axis=1)
    assert np.ptp(norms) > 0.05


def test_orthonormal_start() -> None:
    pairs = RankPairs.of(layout_of((4, 12, 10), (3, 3, 5)))
    start = orthonormal_start(pairs.layout, np.random.default_rng(0))
    for down, up in pairs.factors(start):
        assert down @ down.T == pytest.approx(np.eye(len(down)), abs=1e-6)
        assert not up.any()
    with pytest.raises(ValueError, match="lower the rank"):
        orthonormal_start(layout_of((5, 4, 8)), np.random.default_rng(0))


def test_importance_is_the_singular_value_of_orthogonal_factors() -> None:
    strength = np.array([5.0, 2.0, 1.0, 0.25])
    layout, vector = orthogonal(np.random.default_rng(1), 20, strength)
    pairs = RankPairs.of(layout)
    assert np.sqrt(energies(pairs, vector)) == pytest.approx(strength, rel=1e-14)
    assert np.linalg.svd(products(pairs, vector)[0])[1][:4] == pytest.approx(strength, rel=1e-12)
    # keeping the s largest pairs is Eckart and Young's best approximation
    kept = keep_best(energies(pairs, vector), pairs.num_values, 2 * 40)
    left_out = products(pairs, np.where(pairs.mask(kept), vector, 0.0))[0] - products(pairs, vector)[0]
    assert np.linalg.norm(left_out) == pytest.approx(np.hypot(1.0, 0.25), rel=1e-12)


def test_importance_ignores_how_a_pair_is_shared_out_and_separate_norms_do_not() -> None:
    vector = drawn(PAIRS, 4)
    scaled = vector.copy()
    for down, up in PAIRS.factors(scaled):
        down[0] *= 20.0
        up[:, 0] /= 20.0
    assert energies(PAIRS, scaled) == pytest.approx(energies(PAIRS, vector), rel=1e-12)
    assert products(PAIRS, scaled)[0] == pytest.approx(products(PAIRS, vector)[0], rel=1e-12)
    assert not np.array_equal(separate_norms(PAIRS, scaled, 0.4), separate_norms(PAIRS, vector, 0.4))
    # a rotation leaves the product alone and changes the pairs: only the penalty fixes it
    turned = vector.copy()
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    down, up = PAIRS.factors(turned)[0]
    down[:], up[:] = rotation.T @ down, up @ rotation
    assert products(PAIRS, turned)[0] == pytest.approx(products(PAIRS, vector)[0], rel=1e-12)
    assert not np.allclose(energies(PAIRS, turned)[:3], energies(PAIRS, vector)[:3], rtol=0.05)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_energy_of_an_update_is_the_change_of_the_products(scale: float) -> None:
    before, update = drawn(PAIRS, 5), scale * drawn(PAIRS, 6)
    found = update_energies(PAIRS, before, update)
    after = before + update
    index = 0
    for (down, up), (new_down, new_up) in zip(PAIRS.factors(before), PAIRS.factors(after), strict=True):
        for rank in range(len(down)):
            change = np.outer(new_up[:, rank], new_down[rank]) - np.outer(up[:, rank], down[rank])
            assert found[index] == pytest.approx(np.sum(change**2), rel=1e-9)
            index += 1
    # the sheet's form, which cancels for small updates
    plain = energies(PAIRS, after) + energies(PAIRS, before)
    cross = [
        2 * (up * new_up).sum(axis=0) * (down * new_down).sum(axis=1)
        for (down, up), (new_down, new_up) in zip(PAIRS.factors(before), PAIRS.factors(after), strict=True)
    ]
    assert found == pytest.approx(plain - np.concatenate(cross), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_energy_of_dropped_pairs_is_known_up_to_the_coherences(seed: int) -> None:
    pairs = RankPairs.of(layout_of((6, 30, 25)))
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(pairs.layout.size)
    for _ in range(int(rng.integers(0, 30))):
        vector -= 2e-4 * penalty(pairs, vector)[1]
    dropped = np.array([True, True, False, True, False, False])
    lost = products(pairs, np.where(pairs.mask(dropped), vector, 0.0))[0]
    estimate = energies(pairs, vector)[dropped].sum()
    mu_a, mu_b = coherence(pairs, vector)
    assert 0 < mu_a < 1
    assert abs(np.sum(lost**2) - estimate) <= 2 * mu_a * mu_b * estimate


def test_core_decomposition_equals_the_full_one() -> None:
    rng = np.random.default_rng(2)
    up, down = rng.standard_normal((40, 6)), rng.standard_normal((6, 30))
    left, strength, right = product_svd(up, down)
    assert strength == pytest.approx(np.linalg.svd(up @ down)[1][:6], rel=1e-10)
    assert (left * strength) @ right == pytest.approx(up @ down, abs=1e-12)
    vector, update = drawn(PAIRS, 7), 0.1 * drawn(PAIRS, 8)
    for found, product in zip(spectra(PAIRS, vector), products(PAIRS, vector), strict=True):
        assert found == pytest.approx(np.linalg.svd(product)[1][: len(found)], rel=1e-10)
    changes = zip(products(PAIRS, vector + update), products(PAIRS, vector), strict=True)
    for found, (after, before) in zip(update_spectra(PAIRS, vector, update), changes, strict=True):
        full = np.linalg.svd(after - before)[1]
        assert found[: len(full)] == pytest.approx(full[: len(found)], abs=1e-12)


def test_truncation_is_the_best_of_its_rank() -> None:
    vector = drawn(PAIRS, 9)
    small = products(PAIRS, truncated(PAIRS, vector, 2))
    for whole, part in zip(products(PAIRS, vector), small, strict=True):
        strength = np.linalg.svd(whole)[1]
        assert np.linalg.norm(whole - part) == pytest.approx(np.linalg.norm(strength[2:]), abs=1e-12)


def test_the_choice_of_pairs_is_near_the_best_subset() -> None:
    rng = np.random.default_rng(0)
    exact = 0
    for _ in range(60):
        energy, sizes = rng.exponential(size=9), rng.choice([5, 8, 13], 9)
        budget = rng.uniform(13, sizes.sum())
        kept = keep_best(energy, sizes, budget)
        assert sizes[kept].sum() <= budget
        subsets = np.array(list(itertools.product([False, True], repeat=9)))
        best = (subsets @ energy)[subsets @ sizes <= budget].max()
        assert energy[kept].sum() >= best - energy.max() - 1e-12
        exact += energy[kept].sum() >= best - 1e-12
        one_size = keep_best(energy, np.full(9, 5), 23.0)
        assert set(np.flatnonzero(one_size)) == set(np.argsort(-energy)[:4])
    assert exact > 20


def test_residual_curve_is_convex_and_passes_through_what_is_left() -> None:
    energy, sizes = np.array([1.0, 8.0, 1.0, 2.0]), np.array([10, 20, 30, 40])
    curve = residual_curve(energy, sizes)
    assert curve.share == pytest.approx([0, 0.2, 0.3, 0.7, 1.0])
    assert curve.residual == pytest.approx([1, 4 / 12, 3 / 12, 1 / 12, 0])
    assert np.all(np.diff(curve.slopes) >= 0)
    assert curve(0.1) == pytest.approx(1 - 4 / 12)
    # geometric energies at whole ranks: (q^i - q^r) / (1 - q^r)
    q, rank = 0.6, 8
    geometric = residual_curve(q ** np.arange(rank), np.full(rank, 3))
    assert geometric.residual == pytest.approx((q ** np.arange(rank + 1) - q**rank) / (1 - q**rank), abs=1e-15)
    with pytest.raises(ValueError, match="not all of them 0"):
        residual_curve(np.zeros(3), np.ones(3))


def test_error_feedback_loses_nothing_over_many_rounds() -> None:
    """With values that are sums of powers of two every addition is exact: what was sent and what is left is the sum."""
    rng = np.random.default_rng(3)
    before = rng.integers(-8, 9, PAIRS.layout.size) / 4.0
    residual, sent, updates = None, np.zeros(PAIRS.layout.size), np.zeros(PAIRS.layout.size)
    for _ in range(25):
        update = rng.integers(-16, 17, PAIRS.layout.size) / 64.0
        found = sparsify(PAIRS, before, update, 0.35 * PAIRS.layout.size, residual)
        whole = update if residual is None else update + residual
        assert np.array_equal(found.sent + found.residual, whole)
        assert not found.sent[~PAIRS.mask(found.kept)].any()
        assert 0 < PAIRS.num_values[found.kept].sum() <= 0.35 * PAIRS.layout.size
        residual = found.residual
        sent += found.sent
        updates += update
    assert np.array_equal(sent + residual, updates)


def test_everything_kept_is_the_update_itself() -> None:
    update = drawn(PAIRS, 11).astype(np.float32)
    found = sparsify(PAIRS, drawn(PAIRS, 10).astype(np.float32), update, PAIRS.layout.size)
    assert found.sent.dtype == np.float32
    assert found.sent.tobytes() == update.tobytes()
    assert found.lost == 0.0
    with pytest.raises(ValueError, match="diverged"):
        sparsify(PAIRS, update, np.full_like(update, np.nan), 10)


@pytest.mark.parametrize("values", ["float32", "float16"])
@pytest.mark.parametrize("kept", [[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_bytes_on_air_are_counted_exactly(kept: list[int], values: str) -> None:
    vector, choice = drawn(PAIRS, 12).astype(np.float32), np.array(kept, bool)
    data = encode(PAIRS, vector, choice, values)  # type: ignore[arg-type]
    width = {"float32": 32, "float16": 16}[values]
    by_hand = sum(width * size for one, size in zip(kept, [12, 12, 12, 13, 13], strict=True) if one)
    assert 8 * len(data) == payload_bit(PAIRS, choice, width) == by_hand + 8  # five bits of bitmap fill one byte
    back, found = decode(PAIRS, data, values)  # type: ignore[arg-type]
    assert np.array_equal(found, choice)
    expected = np.where(PAIRS.mask(choice), vector, 0).astype(values).astype(np.float32)
    assert np.array_equal(back, expected)
    with pytest.raises(ValueError, match="cut-off"):
        decode(PAIRS, data + b"x", values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit"):
        encode(PAIRS, np.full(PAIRS.layout.size, 1e30), np.ones(5, bool), "float16")


def test_layouts_without_pairs_are_refused() -> None:
    half = Layout(factors=(Factor(name="m.B", shape=(4, 2), kind="B", module="m"),))
    with pytest.raises(ValueError, match="trains only B"):
        RankPairs.of(half)
    odd = Layout(
        factors=(
            Factor(name="m.A", shape=(3, 4), kind="A", module="m"),
            Factor(name="m.B", shape=(4, 2), kind="B", module="m"),
        )
    )
    with pytest.raises(ValueError, match="rank 3 in A and 2 in B"):
        RankPairs.of(odd)
    with pytest.raises(ValueError, match="5 pairs"):
        PAIRS.mask(np.ones(4, bool))


def test_value_baselines() -> None:
    score = np.array([3.0, 1.0, 3.0, 2.0, 3.0])
    assert largest_values(score, 2).tolist() == [True, False, True, False, False]
    assert not largest_values(score, 0).any()
    with pytest.raises(ValueError, match="cannot be kept"):
        largest_values(score, 6)
    assert values_bit(3, 10, 16) == pytest.approx(48 + np.log2(120))
    before, update = drawn(PAIRS, 13), 0.1 * drawn(PAIRS, 14)
    found = PAIRS.factors(cross_scores(PAIRS, before, update))[0]
    (down, up), (down_change, up_change) = PAIRS.factors(before)[0], PAIRS.factors(update)[0]
    assert found[1][2, 1] == pytest.approx(abs(up_change[2, 1]) * np.linalg.norm(down[1]))
    assert found[0][1, 4] == pytest.approx(abs(down_change[1, 4]) * np.linalg.norm((up + up_change)[:, 1]))
    chosen = random_pairs(PAIRS, 30, np.random.default_rng(0))
    assert PAIRS.num_values[chosen].sum() <= 30


def _lost(pairs: RankPairs, vector: np.ndarray, mask: np.ndarray) -> float:
    whole = products(pairs, vector)[0]
    return float(np.sum((products(pairs, np.where(mask, vector, 0.0))[0] - whole) ** 2) / np.sum(whole**2))


def test_whole_pairs_beat_separate_norms_and_single_values_at_equal_bits() -> None:
    """Orthogonal factors, norms shared out at random, singular values falling by 0.8, a quarter of the pairs kept."""
    rng = np.random.default_rng(0)
    rank, size = 16, 128
    layout, vector = orthogonal(rng, size, 0.8 ** np.arange(rank))
    pairs = RankPairs.of(layout)
    uneven = rng.lognormal(0, 0.8, rank)
    down, up = pairs.factors(vector)[0]
    down[:], up[:] = down * uneven[:, None], up / uneven
    kept = keep_best(energies(pairs, vector), pairs.num_values, layout.size / 4)
    bits = payload_bit(pairs, kept)
    soft = _lost(pairs, vector, pairs.mask(kept))
    assert soft == pytest.approx(0.64**4 * (1 - 0.64**12) / (1 - 0.64**16), rel=1e-9)
    most = max(count for count in range(layout.size) if values_bit(count, layout.size) <= bits)
    assert soft < 0.6 * _lost(pairs, vector, separate_norms(pairs, vector, 0.25))
    assert soft < 0.6 * _lost(pairs, vector, largest_values(np.abs(vector), most))


def test_covariance_is_what_averaging_apart_loses() -> None:
    rng = np.random.default_rng(5)
    adapters, weights = [rng.standard_normal(PAIRS.layout.size) for _ in range(4)], np.array([1.0, 2.0, 3.0, 2.0])
    found = aggregation_covariance(PAIRS, adapters, weights)
    mean = sum(weight * adapter for weight, adapter in zip(weights / 8, adapters, strict=True))
    lost = 0.0
    for index, product in enumerate(products(PAIRS, mean)):
        whole = sum(w / 8 * products(PAIRS, one)[index] for w, one in zip(weights, adapters, strict=True))
        lost += np.sum((whole - product) ** 2)
    assert found.squared == pytest.approx(lost, rel=1e-12)
    assert found.squared <= found.bound
    assert found.mean_squared == pytest.approx(sum(np.sum(one**2) for one in products(PAIRS, mean)), rel=1e-12)
    alike = aggregation_covariance(PAIRS, [adapters[0]] * 3, np.ones(3))
    assert alike.squared == pytest.approx(0.0, abs=1e-20)
    with pytest.raises(ValueError, match="as many weights"):
        aggregation_covariance(PAIRS, adapters, np.ones(3))
