"""Shares of the band with bounds: the joint optimum, descent, rules and the conditions of optimality."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest

from testbed.problems.jcpba.baselines import allocate_for, uniform_pruning
from testbed.problems.jcpba.brute import solve_brute
from testbed.problems.jcpba.conditions import kkt_residual
from testbed.problems.jcpba.descent import solve_bcd
from testbed.problems.jcpba.joint import solve_joint
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz
from testbed.problems.jcpba.uplink import Bounded, FixedEfficiency, Shannon
from tests.jcpba_cases import BAND_HZ, BUDGET, drawn


def bounded(seed: int, num_clients: int, *, caps: float = 1.0, **kind: bool) -> ClientCosts:
    """Clients of which some have a narrowest share that binds and some a widest."""
    costs = drawn(seed, num_clients, **kind)
    rng = np.random.default_rng([seed, num_clients, 7])
    equal_hz = BAND_HZ / num_clients
    least_hz = rng.uniform(0.5, 0.95, num_clients) * equal_hz * rng.choice([0.0, 1.0], num_clients)
    most_hz = np.maximum(least_hz, caps * rng.uniform(0.5, 2.5, num_clients) * equal_hz)
    free = costs.uplink
    assert isinstance(free, Shannon | FixedEfficiency)
    return replace(
        costs, uplink=Bounded(free, least_hz, np.where(rng.uniform(size=num_clients) < 0.4, np.inf, most_hz))
    )


def least_penalty(costs: ClientCosts, round_s: float) -> float:
    """The least sum of weighted penalties of a round's length, by a conic solver; infinite where it is out of reach."""
    uplink, num = costs.uplink, costs.num_clients
    assert isinstance(uplink, Bounded)
    assert isinstance(uplink.free, Shannon)
    gamma = uplink.free.gamma_hz / 1e6
    share, kept, penalty = (cp.Variable(num) for _ in range(3))
    rate = -cp.rel_entr(share, share + gamma) / np.log(2)
    alpha, work = costs.scalable_s, costs.payload_bits / 1e6
    rows = [rate >= cp.multiply(work / alpha, round_s * cp.inv_pos(round_s - cp.multiply(alpha, kept)) - 1)]
    rows += [kept >= 1 - costs.max_ratio, kept <= 1, cp.sum(share) <= BAND_HZ / 1e6, share >= uplink.least_hz / 1e6]
    limited = np.flatnonzero(np.isfinite(uplink.most_hz))
    rows.append(share[limited] <= uplink.most_hz[limited] / 1e6)
    for piece in range(costs.penalty.slopes.shape[1]):
        base, slope = costs.penalty.removed[:, piece], costs.penalty.slopes[:, piece]
        rows.append(penalty >= base + cp.multiply(slope, 1 - kept - costs.penalty.ratio[:, piece]))
    problem = cp.Problem(cp.Minimize(costs.weight @ penalty), rows)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return float(problem.value)


@pytest.mark.parametrize("curved", [False, True])
def test_the_penalty_of_the_optimal_length_equals_a_conic_solver(curved: bool) -> None:
    floors = caps = held_up = 0
    budget = 0.05 if curved else BUDGET
    for seed in range(12):
        costs = bounded(seed, 2 + seed % 5, curved=curved)
        found = solve_joint(costs, BAND_HZ, budget)
        assert found.status == "optimal", (seed, found.kkt_residual, found.feasibility)
        shares_hz, uplink = found.point.bandwidth_hz, costs.uplink
        floors += int(np.sum((shares_hz <= uplink.least_hz * (1 + 1e-9)) & (uplink.least_hz > 0)))
        caps += int(np.sum(shares_hz >= uplink.most_hz * (1 - 1e-9)))
        if found.point.penalty >= budget * (1 - 1e-9):
            assert least_penalty(costs, found.value) == pytest.approx(budget, rel=1e-6)
        else:
            # somebody pruned most, with all the band that is of use, ends last
            held_up += 1
            last = int(np.argmax(found.point.latency_s))
            assert found.point.pruning[last] == pytest.approx(costs.max_ratio[last])
            assert shares_hz[last] == pytest.approx(uplink.most_hz[last])
            assert least_penalty(costs, found.value * (1 + 1e-6)) <= budget * (1 + 1e-6)
    assert floors >= 3
    assert caps >= 3


@pytest.mark.parametrize("kind", [{}, {"curved": True}, {"linear": True}, {"curved": True, "fixed": True}])
def test_two_clients_equal_brute_force(kind: dict) -> None:
    for seed in range(5):
        for caps in (0.4, 1.0):
            costs = bounded(seed, 2, caps=caps, **kind)
            budget = 0.05 if "curved" in kind else BUDGET
            joint, brute = solve_joint(costs, BAND_HZ, budget), solve_brute(costs, BAND_HZ, budget)
            assert joint.status == "optimal", (seed, joint.kkt_residual, joint.feasibility)
            assert joint.value <= brute.value * (1 + 1e-12)
            assert brute.value <= joint.value * (1 + 1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_many_clients_keep_the_conditions_and_no_rule_is_better(linear: bool) -> None:
    for seed in range(36):
        costs = bounded(seed, 2 + seed % 11, caps=(0.5, 1.0, 3.0)[seed % 3], fixed=seed % 2 == 1, linear=linear)
        found = solve_joint(costs, BAND_HZ, BUDGET)
        assert found.status == "optimal", (seed, found.kkt_residual, found.feasibility)
        assert np.all(found.point.bandwidth_hz >= costs.uplink.least_hz * (1 - 1e-9))
        assert found.point.bandwidth_hz.sum() <= BAND_HZ * (1 + 1e-9)
        descent = solve_bcd(costs, BAND_HZ, BUDGET)
        assert np.all(np.diff(descent.trace) <= 1e-9 * np.array(descent.trace[:-1]))
        assert descent.value >= found.value * (1 - 1e-9)
        uniform = allocate_for(costs, BAND_HZ, BUDGET, uniform_pruning(costs, BUDGET))
        assert uniform.value >= found.value * (1 - 1e-9)


def test_the_conditions_notice_a_point_that_is_no_optimum() -> None:
    noticed = 0
    for seed in range(20):
        costs = bounded(seed, 5)
        point = solve_joint(costs, BAND_HZ, BUDGET).point
        for rule in (uniform_pruning(costs, BUDGET), np.zeros(5)):
            other = allocate_for(costs, BAND_HZ, BUDGET, rule)
            if other.value > point.round_s * (1 + 1e-6):
                noticed += 1
                assert kkt_residual(costs, BAND_HZ, BUDGET, other.point) > 1e-6, seed
    assert noticed > 25


def test_bounds_that_do_not_bind_change_nothing() -> None:
    costs = drawn(3, 8)
    assert isinstance(costs.uplink, Shannon)
    loose = replace(costs, uplink=Bounded(costs.uplink, np.full(8, 1.0), np.full(8, BAND_HZ)))
    plain, same = solve_joint(costs, BAND_HZ, BUDGET), solve_joint(loose, BAND_HZ, BUDGET)
    np.testing.assert_allclose(same.point.bandwidth_hz, plain.point.bandwidth_hz, rtol=1e-9)
    np.testing.assert_allclose(same.point.pruning, plain.point.pruning, atol=1e-9)


def test_band_that_is_of_no_use_stays_unused() -> None:
    costs = drawn(3, 4)
    assert isinstance(costs.uplink, Shannon)
    most_hz = np.full(4, BAND_HZ / 10)
    narrow = replace(costs, uplink=Bounded(costs.uplink, np.zeros(4), most_hz))
    found = solve_joint(narrow, BAND_HZ, BUDGET)
    assert found.status == "optimal"
    np.testing.assert_allclose(found.point.bandwidth_hz, most_hz)
    # with these shares only the ratios are left to choose
    fixed = allocate_for(costs, BAND_HZ, BUDGET, found.point.pruning, most_hz)
    assert found.value == pytest.approx(fixed.value, rel=1e-12)
    assert found.point.penalty == pytest.approx(BUDGET)


def test_equal_shares_lift_whoever_needs_more_and_cut_whom_it_does_not_help() -> None:
    costs = drawn(1, 4)
    assert isinstance(costs.uplink, Shannon)
    least_hz, most_hz = np.array([4e5, 0.0, 0.0, 0.0]), np.array([np.inf, np.inf, 1e5, np.inf])
    uplink = Bounded(costs.uplink, least_hz, most_hz)
    np.testing.assert_allclose(equal_shares_hz(replace(costs, uplink=uplink), BAND_HZ), [4e5, 2e5, 1e5, 2e5])


def test_floors_beyond_the_band_are_told_with_the_amount() -> None:
    costs = drawn(1, 4)
    assert isinstance(costs.uplink, Shannon)
    wide = replace(costs, uplink=Bounded(costs.uplink, np.full(4, 3e5), np.full(4, np.inf)))
    for found in (
        solve_joint(wide, BAND_HZ, BUDGET),
        solve_bcd(wide, BAND_HZ, BUDGET),
        allocate_for(wide, BAND_HZ, BUDGET, np.zeros(4)),
    ):
        assert found.status == "infeasible"
        assert "1.2e+06 Hz together, 200000 Hz more than the 1e+06 Hz" in found.message
    one = replace(costs, uplink=Bounded(costs.uplink, np.array([3e5, 0, 0, 0]), np.full(4, np.inf)))
    given = allocate_for(one, BAND_HZ, BUDGET, np.zeros(4), np.full(4, 2.5e5))
    assert given.status == "infeasible"
    assert "client 0 has 250000 Hz, 50000 Hz less than its narrowest share" in given.message


def test_bounds_that_contradict_each_other_are_refused() -> None:
    free = Shannon(np.array([1e6, 1e6]))
    with pytest.raises(ValueError, match="client 1: its narrowest share, 3000 Hz, is wider than its widest, 2000 Hz"):
        Bounded(free, np.array([0.0, 3e3]), np.array([1e3, 2e3]))
    with pytest.raises(ValueError, match="not of the shape"):
        Bounded(free, np.zeros(3), np.full(3, np.inf))
    with pytest.raises(ValueError, match="widest ones positive"):
        Bounded(free, np.zeros(2), np.array([0.0, 1.0]))


def test_the_point_that_a_bound_moves_is_told_as_it_is() -> None:
    """Latencies are those of the shares that count: a share beyond the widest is no faster."""
    costs = drawn(1, 2)
    assert isinstance(costs.uplink, Shannon)
    capped = replace(costs, uplink=Bounded(costs.uplink, np.zeros(2), np.array([1e5, np.inf])))
    wide = Allocation.of(capped, np.zeros(2), np.array([5e5, 5e5]))
    cut = Allocation.of(costs, np.zeros(2), np.array([1e5, 5e5]))
    np.testing.assert_allclose(wide.latency_s, cut.latency_s, rtol=1e-12)
