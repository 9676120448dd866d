"""Batches against geometric programming and enumeration, and what a round takes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest

from testbed.problems.ma_ota.budget import (
    ClientCosts,
    allocate,
    choose_batches,
    downlink_rate_bit_s,
    importance,
    motion,
    transmit_powers_w,
    uplink_s,
)

REGIMES = ["frequency", "data", "client", "total", "both"]


def draw(
    rng: np.random.Generator, regime: str, num_clients: int = 4, samples: int = 200
) -> tuple[ClientCosts, float, np.ndarray, np.ndarray, float, float]:
    """Costs, tau, A, e, M, E of an instance in which that regime's limits bind."""
    held = rng.integers(samples // 10, samples, num_clients)
    cycles = 10 ** rng.uniform(8.0, 9.0, num_clients)
    capacitance, cpu_hz = 10 ** rng.uniform(-28, -27, num_clients), rng.uniform(1e9, 3e9, num_clients)
    window_s = rng.uniform(5.0, 30.0)
    if regime == "data":
        held = np.maximum(held // 20, 1)
    costs = ClientCosts(held, cycles, capacitance, cpu_hz, np.full(num_clients, math.inf))
    least_j = costs.least_j(window_s)
    full_j = least_j * np.minimum(window_s / costs.fastest_s, held) ** 3
    transmit_j = rng.uniform(0.0, 1.0, num_clients) * full_j.mean()
    energy_j = math.inf
    if regime in ("client", "both"):
        costs = replace(costs, max_energy_j=full_j * rng.uniform(0.1, 1.5, num_clients) + 2 * least_j)
    if regime in ("total", "both"):
        energy_j = full_j.sum() * rng.uniform(0.05, 0.6) + 2 * least_j.sum()
    shares = importance(held, rng.uniform(1.0, 10.0))
    return costs, window_s, shares, transmit_j, rng.uniform(0.01, 1.0) * shares.sum() / 10, energy_j


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("seed", range(4))
def test_batches_equal_geometric_programming(regime: str, seed: int) -> None:
    costs, window_s, shares, transmit_j, noise, energy_j = draw(np.random.default_rng(seed), regime)
    found = choose_batches(
        costs, window_s, importance=shares, transmit_j=transmit_j, noise=noise, energy_j=energy_j, whole=False
    )
    batch, scale = cp.Variable(4, pos=True), cp.Variable(pos=True)
    least_j = costs.least_j(window_s)
    limits = [batch >= 1, batch <= np.minimum(window_s / costs.fastest_s, costs.num_samples), scale <= 1]
    spent = [least_j[m] * batch[m] ** 3 + scale * transmit_j[m] for m in range(4)]
    limits += [spent[m] <= costs.max_energy_j[m] for m in range(4) if math.isfinite(costs.max_energy_j[m])]
    if math.isfinite(energy_j):
        limits.append(cp.sum(cp.hstack(spent)) <= energy_j)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(shares, batch**-1)) + noise / scale), limits)
    problem.solve(gp=True, solver=cp.CLARABEL)
    assert problem.status == cp.OPTIMAL
    assert found.status == "optimal"
    assert found.value == pytest.approx(problem.value, rel=1e-7)
    assert found.value == pytest.approx(np.sum(shares / found.point.batch_sizes) + noise / found.point.backoff)


@pytest.mark.parametrize("regime", REGIMES)
def test_whole_batches_keep_every_limit_and_waste_little(regime: str) -> None:
    for seed in range(25):
        costs, window_s, shares, transmit_j, noise, energy_j = draw(np.random.default_rng(seed), regime)
        given = {"importance": shares, "transmit_j": transmit_j, "noise": noise, "energy_j": energy_j}
        relaxed, found = (choose_batches(costs, window_s, **given, whole=whole) for whole in (False, True))
        plan = found.point
        assert plan.batch_sizes.dtype.kind == "i"
        assert plan.batch_sizes.min() >= 1
        assert (plan.batch_sizes <= costs.num_samples).all()
        assert (plan.cpu_hz <= costs.max_cpu_hz * (1 + 1e-9)).all()
        np.testing.assert_allclose(plan.batch_sizes * costs.cycles_per_sample / plan.cpu_hz, window_s)
        energy = costs.capacitance * plan.batch_sizes * costs.cycles_per_sample * plan.cpu_hz**2
        np.testing.assert_allclose(plan.compute_j, energy)
        spent_j = energy + plan.backoff * transmit_j
        assert (spent_j <= costs.max_energy_j * (1 + 1e-9)).all()
        assert spent_j.sum() <= energy_j * (1 + 1e-9)
        assert relaxed.value <= found.value * (1 + 1e-9)
        if plan.batch_sizes.min() >= 10:
            assert found.value <= relaxed.value * 1.02


@pytest.mark.parametrize("regime", ["frequency", "data"])
def test_rounding_down_is_the_integer_optimum_where_energy_is_plenty(regime: str) -> None:
    for seed in range(20):
        costs, window_s, shares, _, noise, _ = draw(np.random.default_rng(seed), regime, 2)
        found = choose_batches(costs, window_s, importance=shares, noise=noise)
        most = np.minimum((window_s / costs.fastest_s).astype(int), costs.num_samples)
        np.testing.assert_array_equal(found.point.batch_sizes, most)
        assert found.point.backoff == 1.0
        assert found.status == "optimal"


def test_whole_batches_are_near_the_enumerated_optimum_when_energy_binds() -> None:
    """All pairs of batches, each with its best scale; small batches, where rounding matters most."""
    gaps = []
    for seed in range(30):
        costs, window_s, shares, transmit_j, noise, energy_j = draw(np.random.default_rng(seed), "both", 2, 40)
        found = choose_batches(
            costs, window_s, importance=shares, transmit_j=transmit_j, noise=noise, energy_j=energy_j
        )
        least_j, best = costs.least_j(window_s), math.inf
        most = np.minimum(window_s / costs.fastest_s + 1e-9, costs.num_samples).astype(int)
        for pair in itertools.product(range(1, most[0] + 1), range(1, most[1] + 1)):
            left_j = costs.max_energy_j - least_j * np.array(pair) ** 3
            total_j = energy_j - float(np.sum(least_j * np.array(pair) ** 3))
            scale = min(1.0, float(np.min(left_j / transmit_j)), total_j / float(transmit_j.sum()))
            if scale > 0:
                best = min(best, float(np.sum(shares / pair)) + noise / scale)
        gaps.append(found.value / best - 1)
    assert min(gaps) > -1e-9
    assert max(gaps) < 1e-9


def test_sending_for_free_does_not_open_the_energy_limits() -> None:
    for seed in range(20):
        costs, window_s, shares, _, _, energy_j = draw(np.random.default_rng(seed), "both")
        plan = choose_batches(costs, window_s, importance=shares, energy_j=energy_j).point
        assert plan.backoff == 1.0
        assert plan.compute_j.sum() <= energy_j
        assert (plan.compute_j <= costs.max_energy_j).all()


def test_more_time_or_energy_never_hurts_the_relaxed_plan() -> None:
    costs, window_s, shares, transmit_j, noise, energy_j = draw(np.random.default_rng(3), "both")
    more = np.linspace(1.0, 4.0, 40)
    for windows_s, energies_j in ((more * window_s, 0 * more + energy_j), (0 * more + window_s, more * energy_j)):
        found = allocate(
            costs, windows_s, energies_j, importance=shares, transmit_j=transmit_j, noise=noise, whole=False
        )
        assert (np.diff(found.value) <= 1e-9 * found.value[:-1]).all()
        assert found.value[-1] < found.value[0]


def test_many_cases_at_once_are_the_single_ones() -> None:
    rng = np.random.default_rng(8)
    costs, window_s, shares, transmit_j, noise, energy_j = draw(rng, "both")
    windows_s, energies_j = window_s * 10 ** rng.uniform(-3.0, 0.3, 60), energy_j * 10 ** rng.uniform(-3.0, 0.3, 60)
    found = allocate(costs, windows_s, energies_j, importance=shares, transmit_j=transmit_j, noise=noise)
    assert 0 < np.isfinite(found.value).sum() < 60
    for row in range(60):
        single = choose_batches(
            costs, windows_s[row], importance=shares, transmit_j=transmit_j, noise=noise, energy_j=energies_j[row]
        )
        assert single.value == pytest.approx(found.value[row], rel=1e-12)
        assert single.found == bool(np.isfinite(found.value[row]))


def test_zero_forcing_sends_with_full_power_at_the_weakest_client_only() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        gains, limit_w = rng.exponential(size=5), rng.uniform(0.1, 1.0, 5)
        power_w = transmit_powers_w(limit_w, gains)
        assert np.max(power_w / limit_w) == 1.0
        assert int(np.argmax(power_w / limit_w)) == int(np.argmin(gains))
        np.testing.assert_allclose(transmit_powers_w(limit_w, gains, backoff=0.25), power_w / 4)


def test_air_time_rate_and_motion() -> None:
    # 2 662 400 values, two on each symbol, at 1 Msymbol/s and at 20
    assert uplink_s(2_662_400, 1e6) == pytest.approx(1.3312)
    assert uplink_s(2_662_400, 2e7, overhead=0.25) == pytest.approx(0.0832)
    assert downlink_rate_bit_s(1e6, 15.0) == pytest.approx(4e6)
    moved_s, moved_j = motion(
        np.array([[0.3, 0.4], [0.1, 0.0]]), np.zeros((2, 2)), speed_m_s=0.1, motor_power_w=2.0
    )  # fmt: skip
    assert moved_s == pytest.approx(5.0)
    assert moved_j == pytest.approx(12.0)


def test_what_cannot_be_met_is_named_with_its_amount() -> None:
    costs = ClientCosts(np.array([10, 10]), np.full(2, 1e9), np.full(2, 1e-28), np.full(2, 1e9), np.full(2, math.inf))
    shares = importance(np.ones(2), 1.0)
    late = choose_batches(costs, 0.5, importance=shares)
    assert late.status == "infeasible"
    assert late.message == "latency: one sample takes 1 s at the highest CPU frequency, the round leaves 0.5 s"
    assert late.feasibility == pytest.approx(0.5)
    # 1e-28 * 1e27 / 4 = 0.025 J each in 2 s
    hungry = choose_batches(costs, 2.0, importance=shares, energy_j=0.04)
    assert "one sample per client takes 0.05 J a round, 0.04 J are left" in hungry.message
    single = choose_batches(replace(costs, max_energy_j=np.array([math.inf, 0.02])), 2.0, importance=shares)
    assert "energy of one client: a sample takes 0.025 J, 0.02 J are allowed" in single.message
    assert math.isinf(single.value)
