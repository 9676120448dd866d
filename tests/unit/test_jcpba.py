"""The joint optimum equals brute force and a conic solver; block descent stalls where it must; no rule is better."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest

from testbed.problems.jcpba.baselines import allocate_for, random_pruning, uniform_pruning
from testbed.problems.jcpba.brute import solve_brute
from testbed.problems.jcpba.descent import least_pruning, solve_bcd
from testbed.problems.jcpba.joint import joint_optima, solve_joint
from testbed.problems.jcpba.model import ClientCosts, equal_shares_hz
from testbed.problems.jcpba.penalty import PenaltyCurves, chord, magnitude
from testbed.problems.jcpba.uplink import FixedEfficiency, Shannon
from tests.jcpba_cases import BAND_HZ, BUDGET, drawn, subset, two_client_optimum


@pytest.mark.parametrize("fixed", [False, True])
def test_two_clients_equal_plain_formulas(fixed: bool) -> None:
    for seed in range(10):
        costs = drawn(seed, 2, fixed=fixed)
        found = solve_joint(costs, BAND_HZ, BUDGET)
        assert found.status == "optimal"
        assert found.value == pytest.approx(two_client_optimum(costs, BAND_HZ, BUDGET), rel=1e-9)


@pytest.mark.parametrize("num_clients", [2, 3])
@pytest.mark.parametrize("kind", [{}, {"curved": True}, {"linear": True}, {"curved": True, "fixed": True}])
def test_joint_equals_brute_force(num_clients: int, kind: dict) -> None:
    for seed in range(3):
        costs = drawn(seed, num_clients, **kind)
        budget = 0.05 if "curved" in kind else BUDGET
        joint, brute = solve_joint(costs, BAND_HZ, budget), solve_brute(costs, BAND_HZ, budget)
        assert joint.value <= brute.value * (1 + 1e-12)
        # a grid that narrows on a ridge may stop beside its top
        assert brute.value <= joint.value * (1 + 1e-5)


@pytest.mark.parametrize("num_clients", [2, 5, 10])
@pytest.mark.parametrize("curved", [False, True])
def test_least_band_of_the_optimal_length_equals_a_conic_solver(num_clients: int, curved: bool) -> None:
    """min sum b at length tau* is B itself: problem (5) turned around, in its disciplined convex form."""
    costs = drawn(1, num_clients, curved=curved, fixed=False)
    budget = 0.05 if curved else BUDGET
    tau = solve_joint(costs, BAND_HZ, budget).value
    assert isinstance(costs.uplink, Shannon)
    gamma = costs.uplink.gamma_hz / 1e6
    share, kept, penalty = (cp.Variable(num_clients) for _ in range(3))
    rate = -cp.rel_entr(share, share + gamma) / np.log(2)
    alpha, work = costs.scalable_s, costs.payload_bits / 1e6
    rows = [rate >= cp.multiply(work / alpha, tau * cp.inv_pos(tau - cp.multiply(alpha, kept)) - 1)]
    rows += [kept >= 0.1, kept <= 1, cp.sum(cp.multiply(costs.weight, penalty)) <= budget]
    for piece in range(costs.penalty.slopes.shape[1]):
        base, slope = costs.penalty.removed[:, piece], costs.penalty.slopes[:, piece]
        rows.append(penalty >= base + cp.multiply(slope, 1 - kept - costs.penalty.ratio[:, piece]))
    problem = cp.Problem(cp.Minimize(cp.sum(share)), rows)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert problem.value == pytest.approx(BAND_HZ / 1e6, rel=1e-6)


@pytest.mark.parametrize(
    "kind", [{}, {"curved": True}, {"linear": True}, {"curved": True, "linear": True, "fixed": True}]
)
def test_first_order_conditions_and_equal_ends(kind: dict) -> None:
    for seed in range(12):
        costs = drawn(seed, 12, **kind)
        budget = 0.05 if "curved" in kind else BUDGET
        found = solve_joint(costs, BAND_HZ, budget)
        assert found.status == "optimal"
        assert found.kkt_residual < 1e-9
        assert found.feasibility < 1e-12
        assert np.ptp(found.point.latency_s) < 1e-9
        assert found.point.penalty == pytest.approx(budget, rel=1e-9)
        assert found.point.bandwidth_hz.sum() == pytest.approx(BAND_HZ, rel=1e-12)


def test_extreme_clients_are_solved_as_well() -> None:
    """Payloads, computing and reaches over many decades; one client may need nearly the whole band."""
    rng = np.random.default_rng(0)
    for seed in range(30):
        count = int(rng.integers(1, 20))
        costs = drawn(seed, count, curved=bool(seed % 2), fixed=bool(seed % 3))
        costs = replace(
            costs,
            payload_bits=costs.payload_bits * 10 ** rng.uniform(-3, 2),
            scalable_s=costs.scalable_s * 10 ** rng.uniform(-3, 2, count),
            uplink=Shannon(10 ** rng.uniform(3, 9, count)),
            max_ratio=rng.uniform(0, 0.95, count),
        )
        budget = float(10 ** rng.uniform(-6, 0))
        found, descent = solve_joint(costs, BAND_HZ, budget), solve_bcd(costs, BAND_HZ, budget)
        assert found.status == "optimal", f"seed {seed}: {found.kkt_residual} {found.feasibility}"
        assert descent.value >= found.value * (1 - 1e-9)
        assert np.all(np.diff(descent.trace) <= 1e-11 * np.array(descent.trace[:-1]))


def test_prices_of_interior_clients_agree() -> None:
    """db_k/ds_k / (p_k e_k') is one number inside, at most that number at the largest ratio, at least that at none."""
    costs = drawn(4, 10)
    found = solve_joint(costs, BAND_HZ, BUDGET)
    point, step = found.point, 1e-6

    def share_hz(kept: np.ndarray) -> np.ndarray:
        return costs.uplink.bandwidth_hz(kept * costs.payload_bits / (found.value - kept * costs.scalable_s))

    kept = 1 - point.pruning
    price = (share_hz(kept + step) - share_hz(kept - step)) / (2 * step) / costs.weight
    inside = (point.pruning > 1e-6) & (point.pruning < 0.9 - 1e-6)
    assert inside.sum() >= 3
    common = price[inside].mean()
    np.testing.assert_allclose(price[inside], common, rtol=1e-6)
    assert np.all(price[point.pruning <= 1e-6] <= common * (1 + 1e-6))
    assert np.all(price[point.pruning >= 0.9 - 1e-6] >= common * (1 - 1e-6))


def test_price_is_what_the_budget_is_worth() -> None:
    for kind, budget in (({}, 0.3), ({"linear": True}, 0.2)):
        costs, step = drawn(6, 8, **kind), 1e-5
        found = joint_optima(costs, BAND_HZ, np.array([budget - step, budget, budget + step]))
        assert found.price_s[1] == pytest.approx((found.round_s[0] - found.round_s[2]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("num_clients", [3, 10])
def test_block_descent_never_rises_stalls_at_once_and_is_never_better(num_clients: int) -> None:
    gaps = {"pruning": [], "bandwidth": []}
    for seed in range(15):
        costs = drawn(seed, num_clients)
        joint = solve_joint(costs, BAND_HZ, BUDGET).value
        for first in ("pruning", "bandwidth"):
            found = solve_bcd(costs, BAND_HZ, BUDGET, first=first)
            trace = np.array(found.trace)
            assert np.all(np.diff(trace) <= 1e-12 * trace[:-1])
            assert found.value >= joint * (1 - 1e-12)
            np.testing.assert_allclose(trace[2:], trace[2], rtol=1e-9, err_msg="no step after the second helps")
            assert found.status == ("stalled" if found.value > joint * (1 + 1e-4) else found.status)
            gaps[first].append(found.value / joint - 1)
    assert np.mean(gaps["pruning"]) > 0.005, "it stalls short of the optimum"
    assert np.mean(gaps["bandwidth"]) > 3 * np.mean(gaps["pruning"]), "and shorter from the other start"


def test_a_stall_shows_in_the_first_order_conditions() -> None:
    found = solve_bcd(drawn(2, 10), BAND_HZ, BUDGET)
    assert found.status == "stalled"
    assert found.kkt_residual > 1e-3
    assert "joint" in found.message


def test_least_pruning_meets_the_length_exactly() -> None:
    for kind in ({}, {"curved": True, "fixed": True}):
        costs = drawn(3, 9, **kind)
        shares_hz = equal_shares_hz(costs, BAND_HZ)
        pruning = least_pruning(costs, shares_hz, 0.1)
        latency_s = costs.latency_s(pruning, shares_hz)
        assert float(costs.total_penalty(pruning)) == pytest.approx(0.1, rel=1e-11)
        np.testing.assert_allclose(latency_s[pruning > 0], latency_s.max(), rtol=1e-12)
    free = least_pruning(costs, shares_hz, 10.0)
    stuck = costs.latency_s(costs.max_ratio, shares_hz).max()
    assert costs.latency_s(free, shares_hz).max() == pytest.approx(stuck)
    assert free.min() < 0.9, "who does not hold up the round is pruned no more than it takes"


def test_one_client_has_a_closed_form() -> None:
    costs = drawn(0, 1, fixed=True)
    rate = float(costs.uplink.rate_bit_s(np.array([BAND_HZ]))[0])
    for budget in (0.0, 0.3, 5.0):
        kept = 1 - min(budget / costs.weight[0], 0.9)
        alone = costs.fixed_s + kept * (costs.scalable_s + 16e6 / rate) + costs.fixed_payload_bits / rate
        assert solve_joint(costs, BAND_HZ, budget).value == pytest.approx(float(alone[0]), rel=1e-12)
        assert solve_bcd(costs, BAND_HZ, budget).value == pytest.approx(float(alone[0]), rel=1e-12)


def test_like_clients_are_treated_alike() -> None:
    costs = subset(drawn(0, 3), np.array([1, 1, 1, 1]))
    costs = replace(costs, weight=np.full(4, 0.25))
    found = solve_joint(costs, BAND_HZ, BUDGET)
    np.testing.assert_allclose(found.point.pruning, 0.3, rtol=1e-9)
    np.testing.assert_allclose(found.point.bandwidth_hz, BAND_HZ / 4, rtol=1e-9)
    assert solve_bcd(costs, BAND_HZ, BUDGET).value == pytest.approx(found.value, rel=1e-9)


def test_linear_rate_at_interior_ratios_has_a_closed_form() -> None:
    """s_k = (tau - sqrt(V tau / (c lambda p))) / alpha, b = (sqrt(c / worth) - V) / (alpha c): both from one price."""
    costs = drawn(7, 5, linear=True)
    found = solve_joint(costs, BAND_HZ, BUDGET)
    assert isinstance(costs.uplink, FixedEfficiency)
    point, tau, rate = found.point, found.value, costs.uplink.efficiency
    inside = (point.pruning > 1e-6) & (point.pruning < 0.9 - 1e-6)
    # lambda p = db/ds at the optimum: the same for all interior clients
    kept = 1 - point.pruning
    price = costs.payload_bits * tau / (rate * (tau - costs.scalable_s * kept) ** 2) / costs.weight
    common = price[inside].mean()
    closed = (tau - np.sqrt(costs.payload_bits * tau / (rate * common * costs.weight))) / costs.scalable_s
    np.testing.assert_allclose(kept, np.clip(closed, 0.1, 1.0), atol=1e-9)


def test_longer_scales_orders_and_more_of_everything() -> None:
    costs = drawn(5, 7)
    found = solve_joint(costs, BAND_HZ, BUDGET)
    assert isinstance(costs.uplink, Shannon)
    tripled = replace(costs, scalable_s=3 * costs.scalable_s, payload_bits=3 * costs.payload_bits)
    scaled = solve_joint(tripled, BAND_HZ, BUDGET)
    assert scaled.value == pytest.approx(3 * found.value, rel=1e-10)
    np.testing.assert_allclose(scaled.point.pruning, found.point.pruning, atol=1e-8)
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    shuffled = solve_joint(subset(costs, order), BAND_HZ, BUDGET).point
    np.testing.assert_allclose(shuffled.bandwidth_hz, found.point.bandwidth_hz[order], rtol=1e-8)
    assert solve_joint(costs, 1.01 * BAND_HZ, BUDGET).value < found.value
    assert solve_joint(costs, BAND_HZ, 1.01 * BUDGET).value < found.value
    for client in range(7):
        up = np.where(np.arange(7) == client, 1.01, 1.0)
        louder = replace(costs, uplink=Shannon(costs.uplink.gamma_hz * up))
        assert solve_joint(louder, BAND_HZ, BUDGET).value < found.value
        assert solve_joint(replace(costs, scalable_s=costs.scalable_s / up), BAND_HZ, BUDGET).value < found.value


def test_without_fixed_parts_the_length_falls_in_proportion_to_what_is_kept() -> None:
    """With e = rho and no beta, tau*(Gamma) / (1 - Gamma) is constant as long as no ratio is at an end."""
    costs = replace(drawn(5, 4), max_ratio=np.full(4, 0.999))
    budgets = np.linspace(0.0, 0.95, 200)
    found = joint_optima(costs, BAND_HZ, budgets)
    inside = np.all((found.pruning > 1e-3) & (found.pruning < 0.998), axis=1)
    assert inside.sum() > 10
    constant = (found.round_s / (1 - budgets))[inside]
    np.testing.assert_allclose(constant, constant[0], rtol=1e-10)


def test_a_budget_that_is_not_used_up_prunes_everybody_most() -> None:
    costs = drawn(1, 6)
    found = solve_joint(costs, BAND_HZ, 0.95)
    np.testing.assert_array_equal(found.point.pruning, 0.9)
    assert found.status == "optimal"
    assert found.point.price_s == 0.0
    assert found.value == pytest.approx(allocate_for(costs, BAND_HZ, 0.95, costs.max_ratio).value)


def test_no_rule_is_better() -> None:
    for seed in range(5):
        costs = drawn(seed, 10)
        joint = solve_joint(costs, BAND_HZ, BUDGET).value
        equal_hz, none = equal_shares_hz(costs, BAND_HZ), np.zeros(10)
        rules = {
            "none, equal": allocate_for(costs, BAND_HZ, BUDGET, none, equal_hz),
            "none, best": allocate_for(costs, BAND_HZ, BUDGET, none),
            "uniform, equal": allocate_for(costs, BAND_HZ, BUDGET, uniform_pruning(costs, BUDGET), equal_hz),
            "uniform, best": allocate_for(costs, BAND_HZ, BUDGET, uniform_pruning(costs, BUDGET)),
            "best, equal": allocate_for(costs, BAND_HZ, BUDGET, least_pruning(costs, equal_hz, BUDGET), equal_hz),
            "random": allocate_for(costs, BAND_HZ, BUDGET, random_pruning(costs, BUDGET, np.random.default_rng(seed))),
        }
        for name, found in rules.items():
            assert found.value > joint, name
            assert found.status == "feasible", name
            assert found.feasibility < 1e-12, name
        assert rules["none, best"].value < rules["none, equal"].value
        assert rules["uniform, best"].value < rules["none, best"].value
        assert rules["random"].point.penalty == pytest.approx(BUDGET, rel=1e-9)


def test_what_cannot_be_kept_is_named_with_its_amount() -> None:
    costs = drawn(0, 4)
    for solve in (solve_joint, solve_bcd):
        short = solve(costs, BAND_HZ, -0.125)
        assert short.status == "infeasible"
        assert "learning constraint" in short.message
        assert "0.125" in short.message
        best = solve(costs, BAND_HZ, BUDGET).value
        late = solve(costs, BAND_HZ, BUDGET, deadline_s=best - 1.5)
        assert late.status == "infeasible"
        assert "deadline" in late.message
        assert "1.5 s" in late.message
        assert late.value == best, "the shortest round is told all the same"
        assert solve(costs, BAND_HZ, BUDGET, deadline_s=best + 1e-9).status != "infeasible"
    alone = solve_joint(costs, BAND_HZ, BUDGET, deadline_s=0.1)
    assert "alone in the band" in alone.message
    deaf = replace(costs, uplink=Shannon(np.array([1e6, 0.0, 1e6, 1e6])))
    for solve in (solve_joint, solve_bcd, solve_brute if costs.num_clients <= 3 else solve_joint):
        found = solve(deaf, BAND_HZ, BUDGET)
        assert found.status == "infeasible"
        assert "client 1" in found.message
    over = allocate_for(costs, BAND_HZ, 0.1, np.full(4, 0.3))
    assert over.status == "infeasible"
    assert "0.2" in over.message


def test_bad_costs_are_refused() -> None:
    costs = drawn(0, 3)
    with pytest.raises(ValueError, match=r"inside \[0, 1\)"):
        replace(costs, max_ratio=np.array([0.5, 1.0, 0.5]))
    with pytest.raises(ValueError, match="not negative"):
        replace(costs, scalable_s=np.array([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="there are 3 clients"):
        replace(costs, weight=np.ones(2))
    with pytest.raises(ValueError, match="sends nothing"):
        replace(costs, payload_bits=np.array([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="cannot be divided"):
        solve_joint(costs, 0.0, BUDGET)
    with pytest.raises(ValueError, match="not a number"):
        solve_bcd(costs, BAND_HZ, float("nan"))
    with pytest.raises(ValueError, match="leave"):
        allocate_for(costs, BAND_HZ, BUDGET, np.full(3, 0.95))
    with pytest.raises(ValueError, match="too many"):
        solve_brute(drawn(0, 4), BAND_HZ, BUDGET)


def test_latency_is_the_sum_of_its_parts() -> None:
    costs = ClientCosts(
        np.array([1.0]), np.array([10.0]), np.array([8e6]), Shannon(np.array([3e6])), np.array([1.0]),
        chord(np.ones(1)), np.array([0.9]), np.array([2e6]),
    )  # fmt: skip
    # half is kept; 1 MHz carries 2 Mbit/s: 1 + 5 + (4 + 2) / 2
    assert costs.latency_s(np.array([0.5]), np.array([1e6]))[0] == pytest.approx(9.0)
    assert np.isinf(costs.latency_s(np.array([0.5]), np.array([0.0]))[0])


def test_energy_of_magnitude_pruning() -> None:
    weights = np.random.default_rng(0).standard_normal(200_000)
    curve = magnitude([weights / np.linalg.norm(weights)], 20)
    # normal weights: 1.5 %, 7.2 % and 56 % of the energy lie in the smallest 30, 50 and 90 %
    np.testing.assert_allclose(curve.at(np.array([[0.3], [0.5], [0.9]]))[:, 0], [0.015, 0.072, 0.56], atol=5e-3)
    few = magnitude([np.array([3.0, -1.0, 2.0, 0.0])], 4)
    np.testing.assert_allclose(few.removed[0], [0, 0, 1, 5, 14])
    np.testing.assert_allclose(few.at(np.array([[0.5], [0.625], [1.0]]))[:, 0], [1.0, 3.0, 14.0])
    coarse, ratios = magnitude([weights], 5), np.linspace(0, 1, 101)[:, None]
    smallest = np.concatenate([[0.0], np.cumsum(np.sort(weights**2))])
    exact = smallest[np.floor(ratios[:, 0] * len(weights) + 1e-9).astype(int)]
    assert np.all(coarse.at(ratios)[:, 0] >= exact - 1e-6), "it stays a bound"
    assert np.all(chord(exact[-1:]).at(ratios)[:, 0] >= coarse.at(ratios)[:, 0] - 1e-6), "and the chord a looser one"


@pytest.mark.parametrize(
    ("ratio", "energy", "words"),
    [
        ([[0.0, 0.5]], [[0.0, 1.0]], "ratio 0 to ratio 1"),
        ([[0.0, 1.0]], [[0.1, 1.0]], "begins at 0"),
        ([[0.0, 0.5, 1.0]], [[0.0, 0.8, 1.0]], "convex"),
        ([[0.0, 0.5, 0.5, 1.0]], [[0.0, 0.1, 0.3, 1.0]], "jump"),
        ([[0.0]], [[0.0]], "two knots"),
    ],
)
def test_bad_curves_are_refused(ratio: list, energy: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PenaltyCurves(np.array(ratio), np.array(energy))
    with pytest.raises(ValueError, match="no weights"):
        magnitude([np.zeros(0)])
