"""Rounds in which all begin to send together: brute force, limits that are known, rules, the descent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.problems.jcpba.baselines import uniform_pruning
from testbed.problems.jcpba.joint import solve_joint
from testbed.problems.jcpba.measured import Rule, decide, descent_gap
from testbed.problems.jcpba.model import ClientCosts, equal_shares_hz
from testbed.problems.jcpba.together import allocate_together, descend_together, solve_together
from testbed.problems.jcpba.uplink import Bounded, Shannon
from tests.jcpba_cases import BAND_HZ, BUDGET, drawn
from tests.unit.test_jcpba_bounds import bounded


def length_s(costs: ClientCosts, pruning: np.ndarray, shares_hz: np.ndarray) -> np.ndarray:
    """Slowest training and slowest sending, by plain formulas; shape [...]."""
    assert isinstance(costs.uplink, Bounded)
    assert isinstance(costs.uplink.free, Shannon)
    kept, free = 1.0 - pruning, costs.uplink.free
    useful_hz = np.minimum(shares_hz, costs.uplink.most_hz)
    rate = useful_hz * np.log2(1.0 + free.gamma_hz / useful_hz)
    sent = kept * costs.payload_bits + costs.fixed_payload_bits
    return np.max(costs.fixed_s + kept * costs.scalable_s, axis=-1) + np.max(sent / rate, axis=-1)


def brute_s(costs: ClientCosts, budget: float, num: int = 21, zooms: int = 12) -> float:
    """Two clients: both ratios and the share of the first on grids that narrow around the best point."""
    low = np.array([0.0, 0.0, costs.uplink.least_hz[0] / BAND_HZ + 1e-4])
    high = np.array([*costs.max_ratio, 1.0 - costs.uplink.least_hz[1] / BAND_HZ - 1e-4])
    centre, width, best = (low + high) / 2, (high - low) / 2, np.inf
    for _ in range(zooms):
        axes = [
            np.linspace(max(a, c - w), min(b, c + w), num) for a, b, c, w in zip(low, high, centre, width, strict=True)
        ]
        point = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        point = point[costs.total_penalty(point[:, :2]) <= budget]
        shares_hz = BAND_HZ * np.stack([point[:, 2], 1.0 - point[:, 2]], axis=-1)
        lengths = length_s(costs, point[:, :2], shares_hz)
        at = int(np.argmin(lengths))
        if lengths[at] < best:
            best, centre = float(lengths[at]), point[at]
        width = width / 1.5
    return best


@pytest.mark.parametrize("kind", [{}, {"curved": True}, {"fixed": True}])
def test_two_clients_equal_brute_force(kind: dict) -> None:
    for seed in range(2):
        costs = bounded(seed, 2, caps=0.6, **kind)
        budget = 0.05 if "curved" in kind else BUDGET
        found, brute = solve_together(costs, BAND_HZ, budget), brute_s(costs, budget)
        assert found.status == "stationary"
        assert found.feasibility <= 1e-9
        assert found.value == pytest.approx(
            float(length_s(costs, found.point.pruning, found.point.bandwidth_hz)), rel=1e-9
        )
        assert found.value <= brute * (1 + 1e-7)
        # the grid ends beside a ridge
        assert brute <= found.value * 1.01


def test_where_computing_takes_no_time_it_is_the_usual_problem() -> None:
    costs = replace(drawn(2, 5), scalable_s=np.full(5, 1e-9))
    assert solve_together(costs, BAND_HZ, BUDGET).value == pytest.approx(
        solve_joint(costs, BAND_HZ, BUDGET).value, rel=1e-6
    )


def test_where_sending_takes_no_time_only_training_counts() -> None:
    costs = replace(drawn(2, 5), payload_bits=np.full(5, 1e-3))
    found = solve_together(costs, BAND_HZ, BUDGET)
    # the least common end of training within the budget: sum_k p_k (1 - tau / alpha_k)+ = Gamma
    ends_s = np.linspace(0.1 * costs.scalable_s.max(), costs.scalable_s.max(), 200001)[:, None]
    ratios = np.clip(1.0 - ends_s / costs.scalable_s, 0.0, None)
    kept = (ratios @ costs.weight <= BUDGET) & np.all(ratios <= costs.max_ratio, axis=1)
    assert found.value == pytest.approx(float(ends_s[kept].min()), rel=1e-4)


def test_descent_never_rises_and_no_rule_is_better() -> None:
    for seed in (1,):
        costs = bounded(seed, 6)
        joint, descent = solve_together(costs, BAND_HZ, BUDGET), descend_together(costs, BAND_HZ, BUDGET)
        assert np.all(np.diff(descent.trace) <= 1e-12)
        assert descent.status == "stalled"
        assert descent.value >= joint.value * (1 - 1e-6)
        rules = [
            allocate_together(costs, BAND_HZ, BUDGET, uniform_pruning(costs, BUDGET)),
            allocate_together(costs, BAND_HZ, BUDGET, np.zeros(6)),
            allocate_together(costs, BAND_HZ, BUDGET, np.zeros(6), equal_shares_hz(costs, BAND_HZ)),
            allocate_together(costs, BAND_HZ, BUDGET, None, equal_shares_hz(costs, BAND_HZ)),
        ]
        for rule in rules:
            assert rule.status == "feasible"
            assert rule.value >= joint.value * (1 - 1e-6)
        # the best ratios for equal shares are better than none
        assert rules[3].value < rules[2].value


def test_the_round_of_a_scheme_is_planned_in_this_way() -> None:
    costs, rng = bounded(1, 3), np.random.default_rng(1)
    joint = decide(costs, BAND_HZ, BUDGET, "joint", equal=False, deadline_s=None, rng=rng, together=True)
    best_s, gap = descent_gap(costs, BAND_HZ, BUDGET, together=True)
    assert best_s == joint.value
    assert gap >= -1e-6
    rules: tuple[tuple[Rule, bool], ...] = (("bcd", True), ("uniform", False), ("none", True), ("random", False))
    for rule, equal in rules:
        found = decide(costs, BAND_HZ, BUDGET, rule, equal=equal, deadline_s=None, rng=rng, together=True)
        assert found.value >= joint.value * (1 - 1e-6), (rule, equal)


def test_what_cannot_be_kept_is_named() -> None:
    costs = drawn(1, 3)
    late = allocate_together(costs, BAND_HZ, BUDGET, np.zeros(3), deadline_s=1.0)
    assert late.status == "infeasible"
    assert "deadline: the shortest round lasts" in late.message
    none = solve_together(costs, BAND_HZ, -0.1)
    assert none.status == "infeasible"
    assert "falls short of that by 0.1" in none.message
    pruned = allocate_together(costs, BAND_HZ, 0.1, np.full(3, 0.5))
    assert "exceeds the budget 0.1 by 0.4" in pruned.message
    with pytest.raises(ValueError, match="a rule fixes the ratios, the shares or both"):
        allocate_together(costs, BAND_HZ, 0.1, None)
