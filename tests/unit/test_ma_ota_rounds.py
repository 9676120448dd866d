"""The whole problem against enumeration, and its plan against everything written out anew."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.beams import ClientArrays, matched_beams
from testbed.problems.ma_ota.bound import Constants
from testbed.problems.ma_ota.budget import ClientCosts
from testbed.problems.ma_ota.placements import PLACERS
from testbed.problems.ma_ota.rounds import Broadcast, Deployment, Motion, Plan, solve
from testbed.problems.ma_ota.schedule import Air, Budget, Grid, Server, best_rounds

CONSTANTS = Constants(
    smoothness=10.0, pl=2.0, step_size=0.05, gradient_variance=20.0, alpha1=0.3, alpha2=0.05, initial_gap=3.0,
    pretraining_variance=5.0, data_lipschitz=1.0, wasserstein=0.5,
)  # fmt: skip
SERVER = Server(1e9, 1e-28, 3e9)


def draw_costs(rng: np.random.Generator, num_clients: int, samples: int = 60) -> ClientCosts:
    return ClientCosts(
        rng.integers(samples // 2, samples, num_clients), 10 ** rng.uniform(8, 9, num_clients),
        10 ** rng.uniform(-28, -27, num_clients), rng.uniform(1e9, 3e9, num_clients), np.full(num_clients, math.inf),
    )  # fmt: skip


def enumerated(costs: ClientCosts, left: float, air: Air, budget: Budget, grid: Grid) -> tuple[float, tuple[int, ...]]:
    """Every T, N_p, b_0 and every pair of batches: the least Psi by its recursion."""
    best, where = math.inf, (0, 0, 0)
    shares = np.asarray(costs.num_samples) / np.sum(costs.num_samples)
    for rounds, stages, first in itertools.product(grid.rounds, grid.pretraining_rounds, grid.pretraining_batches):
        start_s = stages * first * SERVER.cycles_per_sample / SERVER.cpu_hz
        start_j = SERVER.capacitance * stages * first * SERVER.cycles_per_sample * SERVER.cpu_hz**2
        window_s = (budget.latency_s - start_s) / rounds - air.uplink_s - air.downlink_s
        energy_j = (budget.energy_j - start_j) / rounds
        most = np.floor(np.minimum(window_s * costs.max_cpu_hz / costs.cycles_per_sample, costs.num_samples) + 1e-9)
        for pair in itertools.product(*(range(1, int(count) + 1) for count in most)):
            cpu_hz = np.array(pair) * costs.cycles_per_sample / window_s
            spent_j = float(np.sum(costs.capacitance * pair * costs.cycles_per_sample * cpu_hz**2))
            scale = min(1.0, (energy_j - spent_j) / float(air.transmit_j.sum()))
            if scale <= 0:
                continue
            noise = float(np.sum(shares**2 * 20.0 / pair)) + air.error / scale
            gap = (1 - 2.0 * 0.05) ** stages * 3.0 + 10.0 * 0.05 * 5.0 / (2 * 2.0 * first) + 2 * 0.5
            for _ in range(rounds):
                rho = 1 - 2.0 * 0.05 * (1 - 4 * 0.05 * left**2)
                gap = rho * gap + 2 * 0.05 * 0.3 * left**2 + 10.0 * 0.05**2 / 2 * noise
            if gap < best:
                best, where = gap, (rounds, stages, first)
    return best, where


@pytest.mark.parametrize("energy_j", [math.inf, 12.0, 3.0])
def test_grid_equals_enumeration_of_rounds_and_batches(energy_j: float) -> None:
    grid = Grid((1, 2, 5, 9), (0, 3, 6), (2, 8))
    chosen = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        costs = draw_costs(rng, 2, 14)
        air = Air(rng.uniform(0.05, 0.3), rng.uniform(0.05, 0.3, 2), rng.uniform(0.1, 2.0), rng.uniform(0.0, 0.2))
        budget = Budget(10 ** rng.uniform(0.5, 1.5), energy_j)
        found = best_rounds(
            CONSTANTS, costs, costs.num_samples, 0.3, air=air, budget=budget, grid=grid, server=SERVER
        )  # fmt: skip
        best, where = enumerated(costs, 0.3, air, budget, grid)
        assert found.value == pytest.approx(best, rel=1e-9)
        assert found.point is not None
        plan = found.point
        assert (plan.fine_tuning, plan.pre_training, plan.pretraining_batch) == where
        assert plan.bound.total == pytest.approx(found.value, rel=1e-12)
        assert plan.latency_s <= budget.latency_s * (1 + 1e-9)
        assert plan.energy_j <= budget.energy_j * (1 + 1e-9)
        chosen.add(where)
    assert len(chosen) > 1, "the budgets must not all have one answer"


def test_larger_budgets_never_hurt() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        costs = draw_costs(rng, 3)
        air = Air(rng.uniform(0.05, 0.5), rng.uniform(0.0, 0.3, 3), rng.uniform(0.0, 0.5))
        grid = Grid(tuple(range(1, 21)), (0, 5), (4,))
        for budgets in (
            [Budget(40.0 * more, 10.0) for more in np.linspace(1, 4, 5)],
            [Budget(40.0, 10.0 * more) for more in np.linspace(1, 4, 5)],
        ):
            values = [
                best_rounds(
                    CONSTANTS, costs, costs.num_samples, 0.2, air=air, budget=one, grid=grid, server=SERVER
                ).value
                for one in budgets
            ]
            assert (np.diff(values) <= 1e-9).all()
            assert values[-1] < values[0]


def test_motion_hides_behind_computing_only_where_that_takes_longer() -> None:
    costs = draw_costs(np.random.default_rng(0), 2)

    def solved(motion_s: float, every_round: bool) -> float:
        air = Air(0.1, np.zeros(2), 0.1, motion_s=motion_s, moves_every_round=every_round)
        grid = Grid((10,))
        found = best_rounds(
            CONSTANTS, costs, costs.num_samples, 0.0, air=air, budget=Budget(31.0), grid=grid, server=SERVER
        )
        if found.point is not None:
            assert found.point.latency_s == pytest.approx(31.0)
        return found.value

    # ten rounds of 3.1 s leave 3 s each
    assert solved(2.9, True) == solved(0.0, False)
    # 12 s in the first round leave 2 s in each of the others
    shorter = best_rounds(
        CONSTANTS, costs, costs.num_samples, 0.0, air=Air(0.1, np.zeros(2), 0.1), budget=Budget(21.0),
        grid=Grid((10,)), server=SERVER,
    ).value  # fmt: skip
    assert solved(12.0, False) == pytest.approx(shorter, rel=1e-12)
    assert math.isinf(solved(3.2, True))


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(300.0), "latency: 30 rounds need 393 s at the highest CPU frequency, 300 s are allowed"),
        (Budget(1000.0, 1.0), "J for one sample per client and round, 1 J are allowed"),
    ],
)
def test_a_budget_that_cannot_be_met_is_named(budget: Budget, words: str) -> None:
    costs = ClientCosts(np.array([9, 9]), np.full(2, 1e10), np.full(2, 1e-28), np.full(2, 1e9), np.full(2, math.inf))
    air = Air(3.1, np.full(2, 0.1), 0.1)
    found = best_rounds(
        CONSTANTS, costs, np.ones(2), 0.0, air=air, budget=budget, grid=Grid((30,)), server=SERVER
    )  # fmt: skip
    assert found.status == "infeasible"
    assert found.point is None
    assert words in found.message
    assert found.feasibility > 0
    if math.isinf(budget.energy_j):
        assert found.feasibility == pytest.approx(393 / 300 - 1)


def deployment(seed: int = 0, num_clients: int = 5, **changed: object) -> Deployment:
    """Four antennas on three wavelengths square."""
    rng = np.random.default_rng(seed)
    home_m = np.array([[0.08, 0.19], [0.15, 0.19], [0.22, 0.19], [0.29, 0.19]])
    aperture = Aperture(home_m, np.ones(4, bool), np.array([[0.0, 0.375]] * 2), 0.0625, 0.125)
    base = Deployment(
        PathSet.draw(rng, num_clients, 5, 0.125).scaled(np.full(num_clients, 1e-5)), aperture,
        np.full(num_clients, math.sqrt(0.3 / 1e5)), np.full(num_clients, 0.001), 100_000, 1e-12,
        draw_costs(rng, num_clients), CONSTANTS, Budget(60.0), Grid((5, 15, 30), (0, 10), (4,)), SERVER, 0.05,
        concurrency=2,
    )  # fmt: skip
    return replace(base, **changed)  # type: ignore[arg-type]


def solved(problem: Deployment, placer: str = "sca", candidates: int = 2) -> tuple[float, Plan]:
    found = solve(problem, PLACERS[placer], rng=np.random.default_rng(0), num_starts=2, candidates=candidates)
    assert found.found, found.message
    assert found.point is not None
    assert found.feasibility <= 1e-9
    return found.value, found.point


def test_a_plan_is_worth_what_it_says() -> None:
    problem = deployment(budget=Budget(60.0, 15.0))
    value, plan = solved(problem)
    members = list(plan.selected)
    channel = problem.paths.channel(plan.placement.positions_m)[:, members]
    heard = np.abs(plan.placement.combiner.conj() @ channel) ** 2
    weights = problem.weights[members]
    eta = np.min(plan.power_w * heard / (weights * problem.update_std[members]) ** 2)
    np.testing.assert_allclose(plan.power_w * heard, eta * (weights * problem.update_std[members]) ** 2)
    assert plan.schedule.error == pytest.approx(1e5 * 1e-12 / (eta * weights.sum() ** 2))
    batches, rounds = plan.schedule.batches, plan.schedule.fine_tuning
    costs = problem.costs.part(members)
    np.testing.assert_allclose(plan.power_w.max() / 0.001, batches.backoff)
    each_s = batches.batch_sizes * costs.cycles_per_sample / batches.cpu_hz
    start = plan.schedule.pre_training * plan.schedule.pretraining_batch * SERVER.cycles_per_sample
    assert plan.schedule.latency_s == pytest.approx(start / SERVER.cpu_hz + rounds * (each_s.max() + 0.05))
    each_j = costs.capacitance * batches.batch_sizes * costs.cycles_per_sample * batches.cpu_hz**2
    each_j += plan.power_w * 0.05
    spent_j = SERVER.capacitance * start * SERVER.cpu_hz**2 + rounds * each_j.sum()
    assert plan.schedule.energy_j == pytest.approx(spent_j)
    assert spent_j <= 15.0 * (1 + 1e-9)
    left = 1 - weights.sum() / problem.weights.sum()
    grid = Grid((rounds,), (plan.schedule.pre_training,), (plan.schedule.pretraining_batch,))
    psi = (1 - 0.1) ** grid.pretraining_rounds[0] * 3.0 + 10 * 0.05 * 5.0 / (2 * 2.0 * 4) + 1.0
    spread = np.sum((weights / weights.sum()) ** 2 * 20.0 / batches.batch_sizes) + plan.schedule.error
    for _ in range(rounds):
        psi = (1 - 0.1 * (1 - 0.2 * left**2)) * psi + 0.03 * left**2 + 0.0125 * spread
    assert value == pytest.approx(psi, rel=1e-9)


def test_movable_antennas_are_never_below_the_fixed_array() -> None:
    for seed in range(4):
        problem = deployment(seed, noise_w=1e-11)
        moved, fixed = (solved(problem, placer)[0] for placer in ("sca", "fixed"))
        assert moved <= fixed * (1 + 1e-9)
        assert moved < fixed, "and better where noise matters"


def test_selection_is_the_best_of_all_sets() -> None:
    problem = deployment(2, 4, noise_w=1e-11)
    value, _ = solved(problem, "fixed", candidates=6)
    alone = []
    for pair in itertools.combinations(range(4), 2):
        # whoever is not in the pair is not heard
        silent = np.array([1.0 if client in pair else 0.0 for client in range(4)])
        alone.append(solved(replace(problem, paths=problem.paths.scaled(silent)), "fixed")[0])
    assert value == pytest.approx(min(alone), rel=1e-9)
    assert len({round(one, 9) for one in alone}) > 1


def test_missed_turns_decide_when_they_are_worth_much() -> None:
    queues = np.array([0.0, 0.0, 3.0, 0.0, 2.0])
    _, plan = solved(deployment(queues=queues, fairness=10.0), "fixed")
    assert plan.selected == (2, 4)
    assert plan.credit == pytest.approx(50.0)
    value, free = solved(deployment(), "fixed")
    assert free.selected != (2, 4)
    assert value <= solved(deployment(queues=queues, fairness=10.0), "fixed")[0]


def test_the_downlink_has_a_beam_of_its_own() -> None:
    down = Broadcast(1.6e6, 1e6, 0.5, np.full(5, 1e-12))
    _, plan = solved(deployment(broadcast=down), "fixed")
    assert plan.downlink_beam is not None
    channel = deployment().paths.channel(plan.placement.positions_m)[:, list(plan.selected)]
    snr = 0.5 * np.min(np.abs(plan.downlink_beam.conj() @ channel) ** 2) / 1e-12
    assert np.linalg.norm(plan.downlink_beam) == pytest.approx(1.0)
    assert plan.downlink_rate_bit_s == pytest.approx(1e6 * math.log2(1 + snr))
    rounds = plan.schedule.fine_tuning
    without = solved(deployment(), "fixed")[1].schedule
    assert plan.schedule.batches.batch_sizes.sum() <= without.batches.batch_sizes.sum() or rounds <= without.fine_tuning


def test_clients_with_several_antennas_point_at_the_combiner() -> None:
    rng = np.random.default_rng(3)
    arrays = ClientArrays(rng.uniform(-1, 1, (5, 5)), np.array([0.0, 0.0625]))
    problem = deployment(arrays=arrays)
    _, plan = solved(problem)
    single = solved(deployment())[1]
    assert plan.client_beams is not None
    members = list(plan.selected)
    channels = arrays.part(members).channels(problem.auxiliary.part(members), plan.placement.positions_m)
    np.testing.assert_allclose(np.linalg.norm(plan.client_beams, axis=1), 1.0)
    np.testing.assert_allclose(plan.client_beams, matched_beams(channels, plan.placement.combiner), atol=1e-9)
    # for this combiner no other beams are better: q_m = ||H_m^H f||^2
    reached = np.linalg.norm(np.einsum("mna,n->ma", channels.conj(), plan.placement.combiner), axis=1) ** 2
    assert plan.placement.gain == pytest.approx(reached.min(), rel=1e-9)
    np.testing.assert_allclose(plan.gains, reached, rtol=1e-9)
    assert plan.placement.gain > single.placement.gain


def test_antennas_move_only_where_that_is_worth_its_time_and_energy() -> None:
    home_m = deployment().aperture.home_m
    noisy = {"noise_w": 1e-10, "budget": Budget(60.0, 40.0)}
    free, _ = solved(deployment(**noisy))
    cheap, moved = solved(deployment(motion=Motion(home_m, 1.0, 0.1), **noisy))
    dear, stays = solved(deployment(motion=Motion(home_m, 0.01, 100.0, every_round=True), **noisy))
    assert moved.travel_s > 0
    way_m = np.linalg.norm(moved.placement.positions_m - home_m, axis=1)
    assert moved.travel_s == pytest.approx(way_m.max())
    orders = [home_m[list(order)] for order in itertools.permutations(range(4))]
    shortest_m = min(np.linalg.norm(moved.placement.positions_m - order, axis=1).sum() for order in orders)
    assert way_m.sum() == pytest.approx(shortest_m)
    np.testing.assert_array_equal(stays.placement.positions_m, home_m)
    assert stays.travel_s == 0.0
    assert free <= cheap <= dear


def test_who_cannot_be_heard_is_left_out_or_named() -> None:
    problem = deployment()
    one_silent = replace(problem, paths=problem.paths.scaled(np.array([1.0, 0.0, 1.0, 1.0, 1.0])))
    assert 1 not in solved(one_silent, "fixed")[1].selected
    alone = replace(problem, paths=problem.paths.scaled(np.array([1.0, 0.0, 0.0, 0.0, 0.0])))
    found = solve(alone, PLACERS["fixed"], rng=np.random.default_rng(0))
    assert found.status == "infeasible"
    assert "only 1 can be heard" in found.message


def test_the_same_generator_gives_the_same_plan() -> None:
    first, second = (solved(deployment(4))[1] for _ in range(2))
    np.testing.assert_array_equal(first.placement.positions_m, second.placement.positions_m)
    assert first.selected == second.selected
