"""Rounds of TSFA whose shares of the band have floors and caps equal cvxpy and brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest

from testbed.phy.rate import shared_rate_bit_s
from testbed.problems.tsfa.horizon import POLICIES, run, unmeetable
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.rank import weigh_ranks
from testbed.problems.tsfa.slot import ends, keep_by, solve_round
from tests.unit.test_tsfa import TOTAL_HZ, clients_of


def limited(clients: Clients, seed: int, floor: float = 0.6, edge: float = 1.0) -> Clients:
    """Floors as parts of an equal share, caps where the power is spread to a few decibels."""
    rng = np.random.default_rng([seed, 9])
    count = len(clients.weight)
    least_hz = floor * TOTAL_HZ / count * rng.uniform(0.5, 1.5, count)
    most_hz = TOTAL_HZ / count * edge * rng.uniform(0.8, 1.6, count)
    return replace(clients, least_hz=least_hz, most_hz=np.maximum(most_hz, least_hz))


def by_cvxpy(clients: Clients, latency_s: float) -> float:
    """The least residual energy at an end: bands beyond the cap are bought, and not used."""
    count = len(clients.weight)
    share, used, keep = cp.Variable(count), cp.Variable(count, nonneg=True), cp.Variable(count)
    rate = -cp.rel_entr(used, used + clients.gamma_hz / TOTAL_HZ) / math.log(2)
    window = (latency_s - clients.compute_s) * TOTAL_HZ / clients.payload_bit
    limits = [
        cp.multiply(window, rate) >= keep + clients.header_bit / clients.payload_bit,
        used <= share, used <= clients.most_hz / TOTAL_HZ, share >= clients.least_hz / TOTAL_HZ,
        keep <= 1, keep >= clients.least, cp.sum(share) <= 1,
    ]  # fmt: skip
    lost = 0.0
    for n in range(count):
        x, y = clients.corner_share[n], clients.corner_residual[n]
        slope = np.diff(y) / np.diff(x)
        lost += clients.weight[n] * cp.max(cp.hstack([y[j] + slope[j] * (keep[n] - x[j]) for j in range(len(slope))]))
    problem = cp.Problem(cp.Minimize(lost), limits)
    problem.solve(solver=cp.CLARABEL)
    assert problem.status == "optimal"
    return float(problem.value)


@pytest.mark.parametrize("seed", range(6))
def test_kept_pairs_with_floors_and_caps_equal_cvxpy(seed: int) -> None:
    clients = limited(clients_of(seed, num_clients=5), seed, edge=0.5 + 0.2 * seed)
    first_s, last_s = ends(clients, TOTAL_HZ)
    tried_s = first_s + np.array([0.05, 0.3, 0.7]) * (last_s - first_s)
    keep, share = keep_by(clients, TOTAL_HZ, tried_s)
    assert np.all(share.sum(axis=1) <= TOTAL_HZ * (1 + 1e-9))
    assert np.all(share >= clients.least_hz * (1 - 1e-9))
    assert np.any(share <= clients.least_hz * (1 + 1e-9)) or np.any(share >= clients.most_hz * (1 - 1e-9))
    for row, latency_s in enumerate(tried_s):
        rate = shared_rate_bit_s(np.minimum(share[row], clients.most_hz), clients.gamma_hz)
        bits = keep[row] * clients.payload_bit + clients.header_bit
        assert np.all(bits <= (latency_s - clients.compute_s) * rate * (1 + 1e-12))
        assert clients.penalty(keep)[row] == pytest.approx(by_cvxpy(clients, latency_s), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_limited_round_of_two_clients_equals_brute_force(seed: int) -> None:
    """Ends and splits on a grid; what exceeds a cap is left over."""
    clients = limited(clients_of(20 + seed, num_clients=2, rank=4), seed, floor=0.7, edge=0.9)
    backlog_s = 2.0 * 3.0**seed / 4
    first_s, last_s = ends(clients, TOTAL_HZ)
    part = np.linspace(0.0, 1.0, 1001)[1:-1]
    split = np.stack([part, 1 - part], axis=1) * TOTAL_HZ
    split = split[np.all(split >= clients.least_hz, axis=1)]
    used = np.minimum(split, clients.most_hz)
    rate = used * np.log2(1 + clients.gamma_hz / used)
    best = np.inf
    for at in np.linspace(first_s, last_s, 301):
        keep = np.minimum(((at - clients.compute_s) * rate - clients.header_bit) / clients.payload_bit, 1.0)
        fits = np.all(keep >= 0.25 - 1e-9, axis=1)
        lost = sum(
            clients.weight[n] * np.interp(keep[:, n], clients.corner_share[n], clients.corner_residual[n])
            for n in range(2)
        )
        best = min(best, float(np.min(np.where(fits, 20.0 * lost + backlog_s * at, np.inf))))
    found = solve_round(clients, TOTAL_HZ, backlog_s, 20.0)
    assert found.value <= best + 1e-9
    assert found.value == pytest.approx(best, rel=5e-3)
    whole = solve_round(clients, TOTAL_HZ, backlog_s, 20.0, whole_pairs=True).point
    assert whole.latency_s <= found.point.latency_s * (1 + 1e-6)
    assert np.all(clients.end_s(whole.share, whole.bandwidth_hz) <= whole.latency_s * (1 + 1e-9))


def test_limits_that_bind_nobody_change_nothing() -> None:
    clients = clients_of(5, num_clients=4)
    free = solve_round(clients, TOTAL_HZ, 3.0, 20.0)
    wide = solve_round(replace(clients, least_hz=1.0, most_hz=10 * TOTAL_HZ), TOTAL_HZ, 3.0, 20.0)
    assert wide.value == pytest.approx(free.value, rel=1e-9)
    assert wide.point.share == pytest.approx(free.point.share, abs=1e-5)


def test_all_rules_keep_the_limits() -> None:
    clients = limited(clients_of(8, num_clients=4), 8)
    rounds = [clients.at(clients.gamma_hz * part) for part in (1.0, 0.5)]
    for name in POLICIES:
        outcome = run(rounds, TOTAL_HZ, 12.0, 20.0, name, 3.0)
        for one, then in zip(outcome.decisions, rounds, strict=True):
            assert np.all(one.bandwidth_hz >= clients.least_hz * (1 - 1e-9)), name
            assert one.bandwidth_hz.sum() <= TOTAL_HZ * (1 + 1e-9)
            assert np.all(then.end_s(one.share, one.bandwidth_hz) <= one.latency_s * (1 + 1e-9)), name


def test_equal_shares_are_lifted_to_floors_and_cut_at_caps() -> None:
    clients = replace(clients_of(1, num_clients=4), least_hz=np.array([0.4, 0.0, 0.0, 0.0]) * TOTAL_HZ)
    assert clients.equal_shares(TOTAL_HZ) == pytest.approx(np.array([0.4, 0.2, 0.2, 0.2]) * TOTAL_HZ)
    capped = replace(clients, most_hz=np.array([1.0, 1.0, 0.1, 1.0]) * TOTAL_HZ)
    assert capped.equal_shares(TOTAL_HZ) == pytest.approx(np.array([0.4, 0.2, 0.1, 0.2]) * TOTAL_HZ)


def test_floors_that_do_not_fit_are_named_with_the_amount() -> None:
    clients = replace(clients_of(2, num_clients=4), least_hz=0.3 * TOTAL_HZ)
    found = solve_round(clients, TOTAL_HZ, 3.0, 20.0)
    assert found.status == "infeasible"
    assert found.feasibility == pytest.approx(0.2)
    assert "4 clients add up to 1.2e+06 Hz, 2e+05 Hz more than the band" in found.message
    assert unmeetable([clients], TOTAL_HZ, 100.0) == found.message


def test_a_rank_is_weighed_within_the_limits_of_shares_and_at_what_links_reach() -> None:
    """Two equal clients whose shares are capped below half of the band: their time is bits over the rate at the cap."""
    spectrum, compute_s, gamma_hz = 0.8 ** np.arange(32), np.array([1.0, 1.0]), np.full((3, 2), 4e6)
    arguments = ((8,), spectrum, [0.0], 1000, 16, 2, compute_s, gamma_hz, TOTAL_HZ, 100.0)
    free = weigh_ranks(*arguments)[0]
    capped = weigh_ranks(*arguments, most_hz=1e5, attained=0.5)[0]
    bits = 8 * 1000 * 16 + 16
    assert free.latency_s == pytest.approx(1 + bits / (5e5 * np.log2(1 + 8.0)), rel=1e-9)
    assert capped.latency_s == pytest.approx(1 + 2 * bits / (1e5 * np.log2(1 + 40.0)), rel=1e-9)
    assert np.isinf(weigh_ranks(*arguments, least_hz=0.6 * TOTAL_HZ)[0].score), "floors that do not fit"
