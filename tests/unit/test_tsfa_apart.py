"""A latency queue for each client: rounds equal brute force, gaps are true, and every client's mean is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from testbed.core.errors import ConfigError
from testbed.opt.share import excess
from testbed.phy.rate import shared_rate_bit_s
from testbed.problems.tsfa.apart import ratio_of_level, solve_apart, split_apart
from testbed.problems.tsfa.horizon import run, unmeetable
from testbed.problems.tsfa.instance import TsfaInstance
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.slot import ends
from tests.unit.test_tsfa import TOTAL_HZ, clients_of, rounds_of


def brute(clients: Clients, backlog_s: np.ndarray, tradeoff: float, split_hz: np.ndarray, late: float) -> float:
    """Every kappa at a corner over every split of the band that is given; ends may exceed the latest by a part."""
    least_hz = np.broadcast_to(clients.least_hz, clients.weight.shape)
    split_hz = split_hz[np.all(split_hz >= least_hz * (1 - late), axis=1)]
    used = np.minimum(split_hz, clients.most_hz)
    rate = used * np.log2(1 + clients.gamma_hz / used)
    most_s = ends(clients, TOTAL_HZ)[1] * (1 + late)
    best = np.inf
    for corner in itertools.product(*(range(len(one)) for one in clients.corner_share)):
        chosen = np.arange(len(corner)), np.array(corner)
        bits = clients.corner_share[chosen] * clients.payload_bit + clients.header_bit
        end_s = clients.compute_s + bits / rate
        value = tradeoff * clients.weight @ clients.corner_residual[chosen] + end_s @ backlog_s
        fits = np.all(end_s <= most_s, axis=1)
        best = min(best, float(value[fits].min(initial=np.inf)))
    return best


def queues_of(seed: int, count: int) -> np.ndarray:
    return 10 ** np.random.default_rng([seed, 4]).uniform(-1.5, 1.2, count)


@pytest.mark.parametrize("seed", range(12))
def test_two_clients_equal_brute_force(seed: int) -> None:
    clients, backlog_s = clients_of(40 + seed, num_clients=2, rank=4), queues_of(seed, 2)
    if seed % 3 == 0:
        clients = replace(clients, least_hz=0.2 * TOTAL_HZ, most_hz=np.array([0.45, 0.7]) * TOTAL_HZ)
    part = np.linspace(0, 1, 20_001)[1:-1]
    split = np.stack([part, 1 - part], axis=1) * TOTAL_HZ
    found = solve_apart(clients, TOTAL_HZ, backlog_s, 20.0)
    assert found.status == "optimal"
    # everything sent has a single split, which a grid meets only if ends may be a little late
    assert found.value <= brute(clients, backlog_s, 20.0, split, 0.0) * (1 + 1e-6)
    assert found.value >= brute(clients, backlog_s, 20.0, split, 3e-4) * (1 - 2e-3)
    end_s = clients.end_s(found.point.share, found.point.bandwidth_hz)
    assert found.value == pytest.approx(20.0 * found.point.penalty + backlog_s @ end_s, rel=1e-9)
    assert end_s.max() == pytest.approx(found.point.latency_s)
    assert end_s.max() <= found.point.latest_s * (1 + 1e-9)
    assert found.feasibility < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_three_clients_equal_brute_force(seed: int) -> None:
    clients, backlog_s = clients_of(60 + seed, num_clients=3, rank=3), queues_of(seed, 3) + 0.5
    grid = np.linspace(0, 1, 301)[1:-1]
    first, second = (one.ravel() for one in np.meshgrid(grid, grid, indexing="ij"))
    split = np.stack([first, second, 1 - first - second], axis=1)
    split = split[split[:, 2] > 1e-3] * TOTAL_HZ
    found = solve_apart(clients, TOTAL_HZ, backlog_s, 8.0)
    assert found.status == "optimal"
    assert found.value <= brute(clients, backlog_s, 8.0, split, 0.0) * (1 + 1e-6)
    assert found.value >= brute(clients, backlog_s, 8.0, split, 2e-2) * (1 - 2e-2)


def test_corners_for_many_clients_are_no_worse_than_any_neighbour_and_gaps_close() -> None:
    for seed, (count, rank) in enumerate([(6, 8), (12, 16), (30, 32)]):
        clients, backlog_s = clients_of(80 + seed, count, rank), queues_of(seed, count)
        rough = solve_apart(clients, TOTAL_HZ, backlog_s, 20.0 * count, max_branches=0)
        exact = solve_apart(clients, TOTAL_HZ, backlog_s, 20.0 * count)
        assert exact.status == "optimal"
        assert exact.value <= rough.value * (1 + 1e-12)
        assert rough.value <= exact.value * (1 + 1e-3)
        assert (rough.status == "optimal") == (rough.message == "")
        # moving a hertz from one client to another gains nothing where neither is at a limit
        point, step_hz = exact.point, 1e-5 * TOTAL_HZ
        worth = backlog_s * (
            clients.end_s(point.share, point.bandwidth_hz) - clients.end_s(point.share, point.bandwidth_hz + step_hz)
        )
        end_s = clients.end_s(point.share, point.bandwidth_hz)
        free = end_s < point.latest_s * (1 - 1e-6)
        assert np.ptp(worth[free]) <= 1e-2 * worth[free].max()


def test_limits_of_the_queues() -> None:
    clients = clients_of(3)
    empty = solve_apart(clients, TOTAL_HZ, np.zeros(3), 20.0).point
    assert np.array_equal(empty.share, np.ones(3))
    assert empty.latency_s == pytest.approx(empty.latest_s)
    long = solve_apart(clients, TOTAL_HZ, np.full(3, 1e6), 20.0).point
    assert np.array_equal(long.share, clients.least)
    one = solve_apart(clients, TOTAL_HZ, np.array([0.0, 0.0, 50.0]), 20.0).point
    ended_s = clients.end_s(one.share, one.bandwidth_hz)
    assert ended_s[:2] == pytest.approx(one.latest_s), "who has no queue takes all the time there is"
    assert ended_s[2] < 0.8 * one.latest_s
    with pytest.raises(ValueError, match="2 queues for 3 clients"):
        solve_apart(clients, TOTAL_HZ, np.ones(2), 20.0)
    with pytest.raises(ValueError, match="must not be negative"):
        solve_apart(clients, TOTAL_HZ, -np.ones(3), 20.0)
    crowded = solve_apart(replace(clients, least_hz=0.5 * TOTAL_HZ), TOTAL_HZ, np.ones(3), 20.0)
    assert crowded.status == "infeasible"
    assert "5e+05 Hz more" in crowded.message


def test_equal_shares_are_no_better() -> None:
    compared = 0
    for seed in range(6):
        clients, backlog_s = clients_of(seed, 5), queues_of(seed, 5) + 1.0
        equal = split_apart(clients, TOTAL_HZ, backlog_s, 50.0)
        assert equal.point.bandwidth_hz == pytest.approx(np.full(5, TOTAL_HZ / 5))
        best = solve_apart(clients, TOTAL_HZ, backlog_s, 50.0)
        if equal.point.latency_s <= best.point.latest_s:
            assert best.value <= equal.value
            compared += 1
    assert compared >= 2


def test_every_client_keeps_its_own_mean_as_the_queues_promise() -> None:
    rounds = rounds_of(5, 40)
    latest_s = np.mean([ends(one, TOTAL_HZ)[1] for one in rounds])
    limit_s = np.array([0.8, 0.9, 0.7, 1.0]) * latest_s
    assert unmeetable(rounds, TOTAL_HZ, limit_s, each=True) == ""
    outcome = run(rounds, TOTAL_HZ, limit_s, 20.0, each=True)
    ended_s = np.array(
        [then.end_s(one.share, one.bandwidth_hz) for one, then in zip(outcome.decisions, rounds, strict=True)]
    )
    assert outcome.queue.total == pytest.approx(ended_s.sum(axis=0))
    assert np.all(ended_s.sum(axis=0) <= 40 * limit_s + outcome.backlog_s[-1] + 1e-9)
    assert outcome.backlog_s.shape == (41, 4)
    assert np.all(outcome.queue.mean <= limit_s * 1.05)
    message = unmeetable(rounds, TOTAL_HZ, np.array([100.0, 100.0, 0.5, 100.0]), each=True)
    assert message.startswith("latency_s: client 2 takes")
    assert "more than its limit of 0.5 s" in message


def test_an_instance_with_a_queue_for_each_client_and_limits() -> None:
    text = {
        "clients": [
            {"distance_m": 150.0, "compute_s": 2.0, "latency_s": 4.0},
            {"distance_m": 400.0, "compute_s": 4.0},
        ],
        "rank": 8, "rounds": 25, "latency_s": 5.5, "queues": "each", "bandwidth_hz": 3e5,
        "least_share_hz": 3e4, "edge_snr": 2.0,
    }  # fmt: skip
    answer = TsfaInstance.model_validate(text).solve("tsfa")
    assert answer.solution.status == "optimal"
    content = answer.decisions
    assert content["client_limit_s"] == [4.0, 5.5]
    mean_s, excess_s = np.array(content["client_mean_latency_s"]), content["excess_bound_s"]
    assert np.all(mean_s <= np.array([4.0, 5.5]) + excess_s + 1e-9)
    assert np.array(content["round_bandwidth_hz"]).min() >= 3e4 * (1 - 1e-9)
    assert 0 < content["bound"]["sparsification"] < content["bound"]["total"]
    whole = TsfaInstance.model_validate({**text, "least_share_hz": 2e5}).solve("tsfa").solution
    assert whole.status == "infeasible"
    assert whole.message.startswith("least_share_hz: the narrowest shares of 2 clients")
    with pytest.raises(ConfigError, match="one queue only"):
        TsfaInstance.model_validate({**text, "rounds": 1}).solve("brute")
    with pytest.raises(ValidationError, match="needs a queue of its own"):
        TsfaInstance.model_validate({**text, "queues": "one"})


def test_levels_are_inverted() -> None:
    ratio = np.geomspace(1e-6, 1e9, 60)
    level = ratio**2 * excess(ratio) / np.log1p(ratio) ** 2
    assert ratio_of_level(level) == pytest.approx(ratio, rel=1e-9)
    # the slope of 1 / R is -ln 2 G(u) / gamma^2
    gamma_hz, share_hz = 3e6, np.geomspace(1e3, 1e7, 9)
    slope = (1 / shared_rate_bit_s(share_hz * 1.0001, np.array(gamma_hz)) - 1 / shared_rate_bit_s(
        share_hz * 0.9999, np.array(gamma_hz))) / (2e-4 * share_hz)  # fmt: skip
    u = gamma_hz / share_hz
    assert -slope == pytest.approx(np.log(2) / gamma_hz**2 * u**2 * excess(u) / np.log1p(u) ** 2, rel=1e-6)
