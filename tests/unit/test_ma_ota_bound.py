"""The bound holds where every constant is known, its terms are the recursion's, and Phi is that of the relatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from testbed.opt.wasserstein import matched
from testbed.phy.overair import aggregation_mse, mean_of, symbols_of
from testbed.phy.precoding import uniform_forcing
from testbed.problems.ma_ota.bound import (
    Constants,
    aggregation_error,
    average_gradient,
    contraction,
    final_loss,
    one_round,
    phi,
    sampling_variance,
    selection_bias,
    static_loss,
    unselected,
)


def constants(**changed: float) -> Constants:
    base = {"smoothness": 4.0, "pl": 1.0, "step_size": 0.1, "gradient_variance": 2.0, "alpha1": 0.5, "alpha2": 0.3}
    return Constants(**{**base, "initial_gap": 3.0, **changed})


class Quadratics:
    """Clients with F_m = (w - c_m)^T A (w - c_m) / 2: mu and L are the ends of A's spectrum, alpha_2 = 2."""

    def __init__(self, rng: np.random.Generator, *, flat: bool = False) -> None:
        self.curvature = np.full(20, 1.0) if flat else np.linspace(0.5, 2.0, 20)
        self.weights = rng.integers(50, 150, 6).astype(float)
        self.centres = rng.normal(0.0, 0.3, (6, 20))
        self.middle = self.weights @ self.centres / self.weights.sum()
        spread = np.sum((self.curvature * (self.centres - self.middle)) ** 2, axis=1)
        self.constants = constants(
            smoothness=self.curvature.max(), pl=self.curvature.min(), step_size=0.15, gradient_variance=3.0,
            alpha1=2.0 * spread.max(), alpha2=2.0,
        )  # fmt: skip

    def gap(self, w: np.ndarray) -> np.ndarray:
        return 0.5 * np.sum(self.curvature * (w - self.middle) ** 2, axis=-1)

    def gradient(self, w: np.ndarray, selected: list[int]) -> np.ndarray:
        chosen = self.weights[selected]
        return self.curvature * (w - chosen @ self.centres[selected] / chosen.sum())


def run(
    quadratics: Quadratics, sets: list[list[int]], errors: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gaps and squared gradients after each round, means of 2000 runs; s_t and V_t."""
    batches = np.full(6, 8)
    w = np.tile(quadratics.middle + 0.8, (2000, 1))
    gaps, squares, left, variances = [float(quadratics.gap(w).mean())], [], [], []
    for selected, error in zip(sets, errors, strict=True):
        variance = sampling_variance(quadratics.constants, selected, quadratics.weights, batches[selected])
        squares.append(float(np.mean(np.sum(quadratics.gradient(w, list(range(6))) ** 2, axis=1))))
        noise = rng.normal(0.0, math.sqrt((variance + error) / 20), w.shape)
        w = w - quadratics.constants.step_size * (quadratics.gradient(w, selected) + noise)
        gaps.append(float(quadratics.gap(w).mean()))
        left.append(unselected(selected, quadratics.weights))
        variances.append(variance)
    return np.array(gaps), np.array(squares), np.array(left), np.array(variances)


@pytest.mark.parametrize("seed", range(4))
def test_simulated_losses_stay_below_every_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quadratics = Quadratics(rng)
    light = int(np.argmin(quadratics.weights))
    sets = [[m for m in range(6) if m != light] if t % 3 else list(range(6)) for t in range(25)]
    errors = rng.uniform(0.0, 0.4, 25)
    gaps, squares, left, variances = run(quadratics, sets, errors, rng)
    known = quadratics.constants.model_copy(update={"initial_gap": gaps[0]})
    assert 4 * known.alpha2 * left.max() ** 2 < 1
    for t in range(1, 26):
        assert gaps[t] <= final_loss(known, left[:t], variances[:t], errors[:t]).total
    assert squares.mean() <= average_gradient(known, gaps[0], left, variances, errors)
    for t in range(25):
        bias = selection_bias(known, left[t], squares[t])
        assert gaps[t + 1] <= one_round(known, gaps[t], squares[t], bias, variances[t], errors[t]) * (1 + 0.01)


def test_selection_bias_is_an_identity_first_and_a_bound_then() -> None:
    rng = np.random.default_rng(9)
    for _ in range(200):
        quadratics = Quadratics(rng)
        selected = sorted(rng.choice(6, rng.integers(1, 6), replace=False).tolist())
        rest = [m for m in range(6) if m not in selected]
        w = rng.normal(0.0, 1.0, 20)
        whole, part = quadratics.gradient(w, list(range(6))), quadratics.gradient(w, selected)
        left = unselected(selected, quadratics.weights)
        np.testing.assert_allclose(part - whole, left * (part - quadratics.gradient(w, rest)), atol=1e-12)
        bound = selection_bias(quadratics.constants, left, float(whole @ whole))
        assert float(np.sum((part - whole) ** 2)) <= bound


def test_the_noise_floor_is_no_looser_than_the_step_explains() -> None:
    """One curvature: the exact floor is the bound's divided by 2 - gamma L."""
    rng = np.random.default_rng(3)
    quadratics = Quadratics(rng, flat=True)
    everybody = [list(range(6))] * 60
    gaps, _, left, variances = run(quadratics, everybody, np.full(60, 0.5), rng)
    known = quadratics.constants.model_copy(update={"initial_gap": gaps[0]})
    bound = float(np.asarray(final_loss(known, left, variances, np.full(60, 0.5)).total))
    assert gaps[-5:].mean() == pytest.approx(bound / (2.0 - known.step_size * known.smoothness), rel=0.03)


@pytest.mark.parametrize("alpha2", [0.0, 0.3, 2.0])
def test_terms_add_up_to_the_recursion(alpha2: float) -> None:
    known = constants(
        alpha2=alpha2, pretraining_step_size=0.05, pretraining_variance=1.5, data_lipschitz=2.0, wasserstein=0.2
    )
    rng = np.random.default_rng(1)
    left, variance, error = rng.uniform(0, 0.9, 17), rng.uniform(0, 1, 17), rng.uniform(0, 1, 17)
    gap = 0.95**7 * 3.0 + 4.0 * 0.05 * 1.5 / (2 * 5) + 2 * 2.0 * 0.2
    for s, v, e in zip(left, variance, error, strict=True):
        margin = 1 - 4 * alpha2 * s**2
        rho = 1 - 0.1 * margin if margin >= 0 else 1 - 4.0 * 0.1 * margin
        gap = rho * gap + 2 * 0.1 * 0.5 * s**2 + 4.0 * 0.01 / 2 * (v + e)
    found = final_loss(known, left, variance, error, pretraining_rounds=7, pretraining_batch=5)
    assert found.total == pytest.approx(gap, rel=1e-12)


@pytest.mark.parametrize("left_out", [0.0, 0.4, 0.95])
def test_rounds_all_alike_are_the_geometric_sum(left_out: float) -> None:
    known = constants(pretraining_variance=1.0, data_lipschitz=1.0, wasserstein=0.3)
    grid = static_loss(known, left_out, 0.7, 0.2, np.arange(1, 9), pretraining_rounds=3, pretraining_batch=2)
    for index, rounds in enumerate(range(1, 9)):
        ones = np.ones(rounds)
        single = final_loss(known, left_out * ones, 0.7 * ones, 0.2 * ones, pretraining_rounds=3, pretraining_batch=2)
        assert np.asarray(grid.total)[index] == pytest.approx(single.total, rel=1e-12)
        assert np.asarray(grid.noise)[index] == pytest.approx(single.noise, rel=1e-12)


def test_a_bound_that_does_not_exist_is_infinite() -> None:
    assert average_gradient(constants(alpha2=2.0), 1.0, np.array([0.1, 0.6]), np.zeros(2), np.zeros(2)) == math.inf


def test_more_pretraining_and_closer_data_help() -> None:
    near, far = (constants(data_lipschitz=1.0, wasserstein=distance) for distance in (0.1, 0.4))
    ones = np.ones(5)
    assert final_loss(near, 0 * ones, ones, ones).total < final_loss(far, 0 * ones, ones, ones).total
    late = final_loss(near, 0 * ones, ones, ones, pretraining_rounds=9).total
    assert late < final_loss(near, 0 * ones, ones, ones).total
    assert contraction(near, 0.0) == pytest.approx(0.9)


def test_translated_data_move_the_gradient_by_their_distance() -> None:
    """l = ||w - xi||^2 / 2: the gradients of the two losses differ by W_1 exactly, and L_xi = 1."""
    rng = np.random.default_rng(2)
    before, shift, w = rng.normal(size=(300, 8)), rng.normal(size=8), rng.normal(size=8)
    after = before + shift
    difference = np.linalg.norm((w - before.mean(0)) - (w - after.mean(0)))
    assert difference == pytest.approx(matched(before, after), rel=1e-9)


@pytest.mark.parametrize("convention", ["iq", "real"])
def test_expected_error_is_what_aggregation_leaves(convention: str) -> None:
    rng = np.random.default_rng(5)
    num_values, noise_w = 400_000, 2e-3
    channel = rng.normal(size=(4, 3)) + 1j * rng.normal(size=(4, 3))
    combiner = channel.sum(axis=1) / np.linalg.norm(channel.sum(axis=1))
    weights, power_w = np.array([30.0, 50.0, 20.0]), np.array([0.1, 0.2, 0.15])
    updates = rng.normal(0.2, [[0.5], [1.0], [0.7]], (3, num_values))
    means, stds = updates.mean(axis=1), updates.std(axis=1)
    gains = np.abs(combiner.conj() @ channel) ** 2 * power_w / (weights * stds) ** 2
    forced = uniform_forcing(channel, combiner, weight=weights, std=stds, max_power_w=power_w)
    assert forced.scale**2 == pytest.approx(gains.min(), rel=1e-12)
    heard = combiner.conj() @ channel * forced.precoder
    np.testing.assert_allclose(heard, forced.scale * weights * stds, rtol=1e-12)
    aim = weights @ updates / weights.sum()
    noise = rng.normal(0.0, math.sqrt(noise_w / 2), (2, num_values))
    if convention == "iq":
        sent = [symbols_of(one, mean, std) for one, mean, std in zip(updates, means, stds, strict=True)]
        received = sum(h * s for h, s in zip(heard, sent, strict=True)) + noise[0][::2] + 1j * noise[1][::2]
        estimate = mean_of(received, scale=forced.scale, weights=weights, means=means, num_values=num_values)
    else:
        normal = (updates - means[:, None]) / stds[:, None]
        estimate = ((heard @ normal).real + noise[0]) / forced.scale + weights @ means
        estimate = estimate / weights.sum()
    error = float(np.sum((estimate - aim) ** 2))
    expected = aggregation_mse(num_values, noise_w, forced.scale, weights.sum(), convention)  # type: ignore[arg-type]
    assert error == pytest.approx(expected, rel=0.01)
    half = aggregation_error(gains.min(), weights.sum(), num_values, noise_w)
    assert half == pytest.approx(expected * (1.0 if convention == "iq" else 2.0), rel=1e-9)


def test_phi_is_the_relatives_objective() -> None:
    """4 (1 - D_S / D)^2 + sigma^2 / D_S^2 max D_m^2 / (P_m |f^H h_m|^2), with nu_m^2 = G^2 / d."""
    weights, power_w = np.array([3.0, 5.0, 2.0, 4.0]), np.array([0.1, 0.2, 0.3, 0.1])
    heard, square, num_values = np.array([0.5, 0.2, 0.9, 0.4]), 2.5, 64
    gains = power_w * heard / (weights**2 * square / num_values)
    plain = 4 * (4 / 14) ** 2 + 0.01 / 100 * max(9 / (0.1 * 0.5), 25 / (0.2 * 0.2), 4 / (0.3 * 0.9))
    assert phi([0, 1, 2], weights, gains, num_values, 0.01, gradient_square=square) == pytest.approx(plain, rel=1e-12)
    assert phi([0, 1], weights, np.array([1.0, 0.0, 1.0, 1.0]), 64, 0.01) == math.inf


def test_a_selection_that_is_none_is_refused() -> None:
    for wrong in ([], [0, 0], [4], [-1]):
        with pytest.raises(ValueError, match="client"):
            phi(wrong, np.ones(4), np.ones(4), 10, 0.1)


@pytest.mark.parametrize(
    ("changed", "word"), [({"pl": 5.0}, "no loss"), ({"step_size": 0.3}, "shorten"), ({"alpha1": math.nan}, "finite")]
)
def test_constants_that_contradict_each_other_are_refused(changed: dict[str, float], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        constants(**changed)
