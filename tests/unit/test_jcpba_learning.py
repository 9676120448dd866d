"""The convergence bound holds where its constants are known, and the whole time is shortest where it is said to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from testbed.problems.jcpba.joint import joint_optima, solve_joint
from testbed.problems.jcpba.learning import Learning, solve_total
from testbed.problems.jcpba.uplink import Shannon
from tests.jcpba_cases import BAND_HZ, drawn


@pytest.mark.parametrize("ratios", [(0.0, 0.0, 0.0), (0.3, 0.5, 0.1), (0.8, 0.9, 0.6)])
def test_bound_holds_for_quadratics(ratios: tuple[float, ...]) -> None:
    """F_k = (w - a_k)^T Q (w - a_k) / 2, L the largest eigenvalue; gradients at magnitude-pruned weights, sigma 0."""
    rng = np.random.default_rng(0)
    dimension, num_rounds, weight = 40, 60, np.array([0.5, 0.3, 0.2])
    curvature = np.diag(rng.uniform(0.1, 2.0, dimension))
    centres = rng.standard_normal((3, dimension))
    smoothness = float(curvature.max())
    step = 1.0 / smoothness

    def gradient(w: np.ndarray) -> np.ndarray:
        return curvature @ (w - weight @ centres)

    def loss(w: np.ndarray) -> float:
        return float(sum(p * (w - a) @ curvature @ (w - a) / 2 for p, a in zip(weight, centres, strict=True)))

    w, squares, penalties = 3 * rng.standard_normal(dimension), [], []
    gap = loss(w) - loss(weight @ centres)
    for _ in range(num_rounds):
        squares.append(float(gradient(w) @ gradient(w)))
        update, penalty = np.zeros(dimension), 0.0
        for p, a, ratio in zip(weight, centres, ratios, strict=True):
            kept = w.copy()
            kept[np.argsort(np.abs(w))[: int(ratio * dimension)]] = 0.0
            update += p * curvature @ (kept - a)
            penalty += p * float((w - kept) @ (w - kept))
        w = w - step * update
        penalties.append(penalty)
    learning = Learning(gap, step, smoothness)
    assert np.mean(squares) <= learning.bound(weight, float(np.mean(penalties)), num_rounds)
    if ratios[0] > 0:
        assert np.mean(squares) > learning.bound(weight, 0.0, num_rounds) - 2 * gap / (step * num_rounds)


def test_rounds_and_budget_invert_the_bound() -> None:
    learning, weight = Learning(2.0, 0.5, 1.5, 0.3, cross_smoothness=0.7), np.array([0.25, 0.25, 0.5])
    rounds = learning.num_rounds(weight, 0.4, 1.0)
    assert learning.bound(weight, 0.4, rounds) == pytest.approx(1.0)
    assert learning.penalty_budget(weight, 1.0, rounds) == pytest.approx(0.4)
    # 2 x 2 / (0.5 x 8) + 0.49 x 0.4 + 1.5 x 0.5 x 0.3 x 0.375
    assert learning.bound(weight, 0.4, 8) == pytest.approx(1.0 + 0.196 + 0.084375)
    assert np.isinf(learning.num_rounds(weight, 10.0, 1.0))
    assert learning.penalty_budget(weight, 0.01, 10) < 0


def test_bad_constants_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 1/L"):
        Learning(1.0, 1.1, 1.0)
    with pytest.raises(ValueError, match="must be positive"):
        Learning(0.0, 1.0, 1.0)


@pytest.mark.parametrize("kind", [{"fixed": True}, {"fixed": True, "curved": True}, {"fixed": True, "linear": True}])
def test_total_time_equals_a_search_over_budgets(kind: dict) -> None:
    for seed in (0, 2):
        costs = drawn(seed, 4, **kind)
        learning = Learning(1.0, 1.0, 1.0, 0.05)
        found = solve_total(costs, BAND_HZ, learning, 1.0)
        reserve = 1.0 - 0.05 * np.sum(costs.weight**2)

        def total_s(budget: float, costs=costs, reserve: float = float(reserve)) -> float:
            return 2.0 / (reserve - budget) * solve_joint(costs, BAND_HZ, budget).value

        coarse = np.linspace(0, 0.85, 9)
        best = coarse[int(np.argmin([total_s(budget) for budget in coarse]))]
        ends = (max(best - 0.11, 0.0), best + 0.11)
        fine = minimize_scalar(total_s, bounds=ends, method="bounded", options={"xatol": 1e-5})
        assert found.status == "stationary"
        assert found.value >= fine.fun * (1 - 1e-5)
        assert found.value <= fine.fun * (1 + 1e-9)
        assert found.kkt_residual < 1e-4
        assert found.value == pytest.approx(found.point.num_rounds * found.point.allocation.round_s, rel=1e-9)


def test_pruning_that_never_pays_is_not_done() -> None:
    costs = drawn(0, 4, fixed=True)
    dear = replace(costs, fixed_s=costs.fixed_s + 1e4)
    found = solve_total(dear, BAND_HZ, Learning(1.0, 1.0, 1.0), 1.0)
    assert found.point.penalty_budget == 0.0
    np.testing.assert_array_equal(found.point.allocation.pruning, 0.0)


def test_several_budgets_at_once_equal_one_at_a_time() -> None:
    costs, budgets = drawn(2, 6, fixed=True, curved=True), np.array([0.0, 0.01, 0.1, 0.4, 0.9])
    together = joint_optima(costs, BAND_HZ, budgets)
    alone = [solve_joint(costs, BAND_HZ, budget).value for budget in budgets]
    np.testing.assert_allclose(together.round_s, alone, rtol=1e-10)
    assert np.all(np.diff(together.round_s) <= 0)


def test_targets_out_of_reach_are_named() -> None:
    costs = drawn(0, 3)
    noisy = solve_total(costs, BAND_HZ, Learning(1.0, 1.0, 1.0, 3.0), 0.5)
    assert noisy.status == "infeasible"
    assert "noise" in noisy.message
    # 3 / 3 - 0.5
    assert "0.5 above" in noisy.message
    deaf = solve_total(replace(costs, uplink=Shannon(np.zeros(3))), BAND_HZ, Learning(1.0, 1.0, 1.0), 1.0)
    assert deaf.status == "infeasible"
    assert "rate 0" in deaf.message
