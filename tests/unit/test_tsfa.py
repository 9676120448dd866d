"""A round of TSFA equals cvxpy and brute force, its queue keeps what theory promises, and the bound is one."""

from __future__ import annotations

import json
import math

import cvxpy as cp
import numpy as np
import pytest
from pydantic import ValidationError

from testbed.core.errors import ConfigError
from testbed.engine.config import load_instance
from testbed.lora.sparse_orthogonal import EnergyCurve, residual_curve
from testbed.phy.rate import shared_rate_bit_s
from testbed.problems.tsfa.bound import convergence_bound
from testbed.problems.tsfa.horizon import POLICIES, queue_bound, run, unmeetable
from testbed.problems.tsfa.instance import TsfaInstance
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.rank import weigh_ranks
from testbed.problems.tsfa.slot import ends, keep_by, ratio_of_slope, solve_round

TOTAL_HZ = 1e6


def clients_of(seed: int, num_clients: int = 3, rank: int = 8, least: float | None = None) -> Clients:
    rng = np.random.default_rng(seed)
    distance_km = rng.uniform(0.05, 0.5, num_clients)
    gain = 10 ** (-(128.1 + 37.6 * np.log10(distance_km)) / 10) * np.maximum(rng.exponential(size=num_clients), 0.1)
    return Clients.of(
        rng.uniform(0.5, 2, num_clients),
        rng.uniform(1, 6, num_clients),
        0.1 * gain / 3.98e-21,
        1.6e7,
        64.0,
        residual_curve(rng.uniform(0.5, 0.9) ** np.arange(rank), np.ones(rank)),
        1 / rank if least is None else least,
    )


def by_cvxpy(clients: Clients, latency_s: float) -> float:
    """The least residual energy at a given end: an exponential-cone program with piecewise linear objective."""
    count = len(clients.weight)
    share, keep = cp.Variable(count, nonneg=True), cp.Variable(count)
    reach = clients.gamma_hz / TOTAL_HZ
    rate = -cp.rel_entr(share, share + reach) / math.log(2)
    window = (latency_s - clients.compute_s) * TOTAL_HZ / clients.payload_bit
    limits = [
        cp.multiply(window, rate) >= keep + clients.header_bit / clients.payload_bit,
        keep <= 1,
        keep >= clients.least,
        cp.sum(share) <= 1,
    ]
    lost = 0.0
    for n in range(count):
        x, y = clients.corner_share[n], clients.corner_residual[n]
        slope = np.diff(y) / np.diff(x)
        lost += clients.weight[n] * cp.max(cp.hstack([y[j] + slope[j] * (keep[n] - x[j]) for j in range(len(slope))]))
    problem = cp.Problem(cp.Minimize(lost), limits)
    problem.solve(solver=cp.CLARABEL)
    assert problem.status == "optimal"
    return float(problem.value)


@pytest.mark.parametrize("seed", range(4))
def test_kept_pairs_at_a_given_end_equal_cvxpy(seed: int) -> None:
    clients = clients_of(seed, num_clients=4)
    first_s, last_s = ends(clients, TOTAL_HZ)
    tried_s = first_s + np.array([0.03, 0.4, 0.8]) * (last_s - first_s)
    keep, share = keep_by(clients, TOTAL_HZ, tried_s)
    for row, latency_s in enumerate(tried_s):
        assert share[row].sum() == pytest.approx(TOTAL_HZ, rel=1e-9)
        bits = keep[row] * clients.payload_bit + clients.header_bit
        arrived = (latency_s - clients.compute_s) * shared_rate_bit_s(share[row], clients.gamma_hz)
        assert np.all(bits <= arrived * (1 + 1e-12))
        assert clients.penalty(keep)[row] == pytest.approx(by_cvxpy(clients, latency_s), abs=1e-6)


@pytest.mark.parametrize("backlog_s", [0.3, 3.0, 10.0, 60.0])
def test_a_round_equals_cvxpy_over_all_ends_at_several_queues(backlog_s: float) -> None:
    clients = clients_of(7)
    found = solve_round(clients, TOTAL_HZ, backlog_s, 20.0)
    first_s, last_s = ends(clients, TOTAL_HZ)
    scanned = [20.0 * by_cvxpy(clients, at) + backlog_s * at for at in np.linspace(first_s * (1 + 1e-6), last_s, 14)]
    assert found.value <= min(scanned) + 1e-6
    at = found.point.latency_s
    if first_s * (1 + 1e-6) < at < last_s:
        assert found.value == pytest.approx(20.0 * by_cvxpy(clients, at) + backlog_s * at, abs=1e-6)
    assert found.feasibility < 1e-9
    assert found.value == pytest.approx(20.0 * found.point.penalty + backlog_s * at, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_round_of_two_clients_equals_brute_force(seed: int) -> None:
    """Every split of the band on a grid, every end on a grid; kappa from the rate, delta by interpolation."""
    clients = clients_of(20 + seed, num_clients=2, rank=4)
    backlog_s = 0.5 * 4.0**seed / 4
    first_s, last_s = ends(clients, TOTAL_HZ)
    part = np.linspace(0.002, 0.998, 999)
    split = np.stack([part, 1 - part], axis=1) * TOTAL_HZ
    rate = split * np.log2(1 + clients.gamma_hz / split)
    best = np.inf
    for at in np.linspace(first_s, last_s, 301):
        keep = np.minimum(((at - clients.compute_s) * rate - clients.header_bit) / clients.payload_bit, 1.0)
        fits = np.all(keep >= 0.25 - 1e-12, axis=1)
        lost = sum(
            clients.weight[n] * np.interp(keep[:, n], clients.corner_share[n], clients.corner_residual[n])
            for n in range(2)
        )
        best = min(best, float(np.min(np.where(fits, 20.0 * lost + backlog_s * at, np.inf))))
    found = solve_round(clients, TOTAL_HZ, backlog_s, 20.0)
    assert found.value <= best + 1e-9
    assert found.value == pytest.approx(best, rel=5e-3)


def test_limits_of_queue_and_v() -> None:
    clients = clients_of(3)
    free = solve_round(clients, TOTAL_HZ, 0.0, 20.0).point
    assert free.share == pytest.approx(np.ones(3), abs=1e-9)
    assert free.latency_s == free.latest_s
    least = solve_round(clients, TOTAL_HZ, 5.0, 0.0).point
    assert least.share == pytest.approx(clients.least, abs=1e-9)
    assert least.latency_s == least.earliest_s
    assert solve_round(clients, TOTAL_HZ, 1e7, 20.0).point.latency_s == pytest.approx(least.earliest_s, rel=1e-6)
    values = [solve_round(clients, TOTAL_HZ, q, 20.0).point.latency_s for q in (0.1, 1.0, 5.0, 20.0, 100.0)]
    assert np.all(np.diff(values) <= 1e-6)
    with pytest.raises(ValueError, match="must not be negative"):
        solve_round(clients, TOTAL_HZ, -1.0, 20.0)


def test_decisions_scale_with_v_and_follow_the_clients() -> None:
    clients = clients_of(4)
    first, scaled = solve_round(clients, TOTAL_HZ, 3.0, 20.0), solve_round(clients, TOTAL_HZ, 30.0, 200.0)
    assert scaled.value == pytest.approx(10 * first.value, rel=1e-9)
    order = np.array([2, 0, 1])
    moved = Clients(
        clients.weight[order], clients.compute_s[order], clients.gamma_hz[order], clients.payload_bit,
        clients.header_bit, clients.corner_share[order], clients.corner_residual[order],
    )  # fmt: skip
    again = solve_round(moved, TOTAL_HZ, 3.0, 20.0)
    assert again.value == pytest.approx(first.value, rel=1e-10)
    assert again.point.share == pytest.approx(first.point.share[order], abs=1e-4)


def test_whole_pairs_are_whole_and_no_slower() -> None:
    for seed in range(3):
        clients = clients_of(seed, rank=8)
        exact = solve_round(clients, TOTAL_HZ, 2.0, 20.0).point
        whole = solve_round(clients, TOTAL_HZ, 2.0, 20.0, whole_pairs=True).point
        assert whole.share * 8 == pytest.approx(np.round(whole.share * 8), abs=1e-12)
        assert np.all(whole.share <= exact.share + 1e-6)
        assert whole.latency_s <= exact.latency_s * (1 + 1e-6)
        bits = whole.share * clients.payload_bit + clients.header_bit
        end_s = clients.compute_s + bits / shared_rate_bit_s(whole.bandwidth_hz, clients.gamma_hz)
        assert np.ptp(end_s) < 1e-9 * whole.latency_s


def test_slope_is_inverted() -> None:
    ratio = np.geomspace(1e-6, 1e12, 300)
    level = np.where(ratio < 1e-3, ratio**2 * (1 / 2 - ratio * (2 / 3 - ratio * (3 / 4 - ratio * 4 / 5))),
                     np.log1p(ratio) - ratio / (1 + ratio))  # fmt: skip
    assert ratio_of_slope(level) == pytest.approx(ratio, rel=2e-5)
    assert ratio_of_slope(level[100:]) == pytest.approx(ratio[100:], rel=1e-9)


# --- many rounds ----------------------------------------------------------------------------------------------------


def rounds_of(seed: int, count: int, num_clients: int = 4) -> list[Clients]:
    rng = np.random.default_rng(seed)
    first = clients_of(seed, num_clients)
    return [first.at(first.gamma_hz * np.maximum(rng.exponential(size=num_clients), 0.1)) for _ in range(count)]


def test_latency_invariants_hold_on_the_path_and_v_trades_residual_energy_for_queue() -> None:
    rounds = rounds_of(5, 9)
    earliest = [ends(one, TOTAL_HZ) for one in rounds]
    limit_s = 0.6 * max(first for first, _ in earliest) + 0.4 * float(np.mean([last for _, last in earliest]))
    penalties, queues = [], []
    for tradeoff in (2.0, 20.0, 200.0):
        outcome = run(rounds, TOTAL_HZ, limit_s, tradeoff, whole_pairs=False)
        total_s = sum(one.latency_s for one in outcome.decisions)
        assert total_s <= 9 * limit_s + outcome.queue.backlog[0] + 1e-9
        assert outcome.backlog_s.max() <= queue_bound(outcome, rounds, tradeoff, limit_s) < np.inf
        penalties.append(np.mean([one.penalty for one in outcome.decisions]))
        queues.append(outcome.backlog_s.mean())
    assert penalties[0] > penalties[1] > penalties[2]
    assert queues[0] < queues[2]


def test_policies_do_what_they_say() -> None:
    rounds = rounds_of(6, 4)
    limit_s = 9.0
    by_name = {name: run(rounds, TOTAL_HZ, limit_s, 20.0, name, initial_s=2.0).decisions for name in POLICIES}
    for one in by_name["dense"]:
        assert np.all(one.share == 1.0)
    for one, clients in zip(by_name["least"], rounds, strict=True):
        assert np.array_equal(one.share, clients.least)
        assert one.latency_s == one.earliest_s
    for one in by_name["myopic"]:
        assert one.latency_s <= max(limit_s, one.earliest_s) * (1 + 1e-6)
    for one in by_name["equal-band"]:
        assert one.bandwidth_hz == pytest.approx(np.full(4, TOTAL_HZ / 4))
    first = {name: POLICIES[name](rounds[0], TOTAL_HZ, 2.0, 20.0, limit_s, False).value for name in POLICIES}
    assert min(first.values()) == first["tsfa"]


def test_a_limit_that_nobody_keeps_names_the_client_and_by_how_much() -> None:
    rounds = rounds_of(8, 3)
    mean_s = float(np.mean([ends(one, TOTAL_HZ)[0] for one in rounds]))
    assert unmeetable(rounds, TOTAL_HZ, mean_s * 1.001) == ""
    message = unmeetable(rounds, TOTAL_HZ, mean_s - 0.5)
    assert "0.5 s more than the limit" in message
    assert "client" in message


# --- the offline stage and the bound --------------------------------------------------------------------------------


def test_the_rank_is_weighed_as_by_hand() -> None:
    spectrum = 0.8 ** np.arange(64)
    rng = np.random.default_rng(0)
    compute_s, gamma_hz = rng.uniform(1, 3, 3), 10 ** rng.uniform(6, 7.5, (16, 3))
    arguments = (spectrum, [0.002 * r for r in (2, 8, 32)], 36_864, 16, 24, compute_s, gamma_hz, 1e6)
    found = weigh_ranks((2, 8, 32), *arguments, 5.0)
    for one in found:
        assert one.rank_residual == pytest.approx(0.64**one.rank, rel=1e-6)
    largest = found[2]
    assert largest.keep < 1
    assert largest.latency_s == pytest.approx(5.0, rel=1e-9)
    index = largest.keep * 32
    q = 0.64
    # of the whole spectrum's energy, ranks beyond 32 included
    corner = [(q**i - q**32) for i in (math.floor(index), math.floor(index) + 1)]
    between = corner[0] + (corner[1] - corner[0]) * (index - math.floor(index))
    assert largest.sparsification == pytest.approx(between, rel=1e-9)
    assert largest.score == pytest.approx(0.64**32 + between + 0.064, rel=1e-6)
    slow = weigh_ranks((2, 8, 32), *arguments, 1e-3)
    assert all(one.score == np.inf and one.excess_s > 0 for one in slow)
    tight = [one.keep for one in weigh_ranks((32,), spectrum, [0.0], *arguments[2:], 4.0)]
    assert tight[0] < largest.keep


def test_the_bound_holds_for_gradient_descent_with_errors() -> None:
    """Quadratics with known L, a missing part h of the gradient and errors eps: (13) at every horizon."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        hessian = np.diag(rng.uniform(0.05, 1.0, 6))
        point, step = rng.standard_normal(6), rng.uniform(0.3, 1.0)
        start = 0.5 * point @ hessian @ point
        squares, missing, sparse, drift = [], [], [], []
        for _ in range(30):
            gradient = hessian @ point
            squares.append(gradient @ gradient)
            h = 0.3 * rng.uniform() * gradient
            errors = 0.02 * rng.standard_normal((3, 6))
            cov = 0.02 * rng.standard_normal(6)
            missing.append(h @ h)
            sparse.append(float(np.mean(np.linalg.norm(errors, axis=1))))
            drift.append(float(np.linalg.norm(cov)))
            point = point - step * (gradient - h) - errors.mean(axis=0) - cov
            terms = convergence_bound(1.0, step, start, np.array(missing), np.array(sparse), np.array(drift))
            assert np.mean(squares) <= terms.total
    assert convergence_bound(2.0, 0.5, 1.0, np.zeros(4), np.zeros(4), np.zeros(4), 0.1).total == pytest.approx(1.1)
    with pytest.raises(ValueError, match="at most 1 / L"):
        convergence_bound(2.0, 0.6, 1.0, np.zeros(1), np.zeros(1), np.zeros(1))


# --- instances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tsfa-round", "tsfa-horizon", "tsfa-infeasible"])
def test_instances_that_ship_are_solved(name: str) -> None:
    changes = ["rounds=6"] if name == "tsfa-horizon" else []
    answer = load_instance(TsfaInstance, name, changes).solve("tsfa")
    json.dumps(answer.decisions)
    expected = {"tsfa-round": "optimal", "tsfa-horizon": "stationary", "tsfa-infeasible": "infeasible"}[name]
    assert answer.solution.status == expected
    if name == "tsfa-infeasible":
        assert "client 1" in answer.solution.message
        assert answer.solution.feasibility > 0


def test_grid_and_solver_agree_on_an_instance() -> None:
    text = {
        "clients": [{"distance_m": 150.0, "compute_s": 2.0}, {"distance_m": 400.0, "compute_s": 4.0}],
        "rank": 8,
        "backlog_s": 3.0,
        "fading": False,
        "whole_pairs": False,
        "bandwidth_hz": 3e5,
    }
    instance = TsfaInstance.model_validate(text)
    exact, grid = (instance.solve(method).solution.value for method in ("tsfa", "brute"))
    assert exact <= grid + 1e-9
    assert exact == pytest.approx(grid, rel=5e-3)
    with pytest.raises(ConfigError, match="too many for a grid"):
        instance.model_copy(update={"rounds": 2}).solve("brute")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": []}, "one of the two"),
        ({"clients": [{"compute_s": 1.0}]}, "give distance_m or gain"),
        ({"bound": {"smoothness": 2.0}}, "above 1 / L"),
        ({"update": {"least_keep": 1.5}}, "less than or equal to 1"),
        ({"update": {"spectrum": [1.0, 2.0]}}, "fall"),
        ({"offline": {"ranks": [2, 4], "covariance": [0.1]}}, "1 numbers for 2 ranks"),
        ({"draw": {"num_clients": 2, "distance_m": [9.0, 3.0]}, "clients": []}, "swap the two"),
    ],
)
def test_bad_instances_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TsfaInstance.model_validate({"clients": [{"distance_m": 100.0}], **change})


def test_bad_clients_are_refused() -> None:
    curve = EnergyCurve(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="must be positive"):
        Clients.of(np.ones(2), np.ones(2), np.array([1.0, 0.0]), 1e6, 0.0, curve, 0.1)
    with pytest.raises(ValueError, match="not of one shape"):
        Clients.of(np.ones(2), np.ones(3), np.ones(2), 1e6, 0.0, curve, 0.1)
    one = Clients.of(np.ones(1), np.zeros(1), np.full(1, 1e6), 1e6, 0.0, curve, 1.0)
    assert solve_round(one, TOTAL_HZ, 3.0, 1.0).point.share == pytest.approx([1.0])
