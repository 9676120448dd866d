"""Port selection against exhaustive search, and travel against all assignments."""

from itertools import combinations, permutations

import numpy as np
import pytest

from testbed.phy.ports import nearest_assignment, random_layout, select_ports, weakest_gain

REGION = np.array([[0.0, 1.0], [0.0, 1.0]])


def _draw(rng: np.random.Generator, ports: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    channel = rng.standard_normal((ports, nodes)) + 1j * rng.standard_normal((ports, nodes))
    return rng.uniform(0, 1, (ports, 2)), channel


def test_never_below_the_start_and_near_the_optimum() -> None:
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(20):
        positions, channel = _draw(rng, 10, 3)
        spacing = 0.05
        distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        feasible = [
            choice
            for choice in combinations(range(10), 3)
            if all(distance[one, other] >= spacing for one, other in combinations(choice, 2))
        ]
        optimum = max(weakest_gain(channel[list(choice)]) for choice in feasible)
        start = np.array(feasible[0])
        chosen = select_ports(positions, channel, spacing, start=start, movable=np.ones(3, bool))
        assert tuple(sorted(chosen)) in feasible
        gain = weakest_gain(channel[chosen])
        assert gain >= weakest_gain(channel[start]) * (1 - 1e-12)
        ratios.append(gain / optimum)
    assert np.mean(ratios) > 0.9
    assert max(ratios) <= 1 + 1e-4  # the combiner is a local search, so the order of antennas leaves a trace


def test_fixed_antennas_stay() -> None:
    positions, channel = _draw(np.random.default_rng(2), 12, 2)
    chosen = select_ports(positions, channel, 0.0, start=np.array([4, 7, 9]), movable=np.array([True, False, True]))
    assert chosen[1] == 7


def test_assignment_travels_least() -> None:
    rng = np.random.default_rng(3)
    targets, current = rng.uniform(0, 1, (5, 2)), rng.uniform(0, 1, (5, 2))
    way = np.linalg.norm(nearest_assignment(targets, current) - current, axis=1).sum()
    best = min(np.linalg.norm(targets[list(order)] - current, axis=1).sum() for order in permutations(range(5)))
    assert way == pytest.approx(best)


def test_layouts_keep_the_spacing() -> None:
    layout = random_layout(REGION, np.zeros((0, 2)), 4, 0.3, np.random.default_rng(4))
    distance = np.linalg.norm(layout[:, None] - layout[None], axis=-1)[np.triu_indices(4, 1)]
    assert distance.min() >= 0.3
    with pytest.raises(ValueError, match="do not fit"):
        random_layout(REGION, np.zeros((0, 2)), 20, 0.6, np.random.default_rng(4))


def test_layouts_keep_clear_of_fixed_antennas() -> None:
    fixed = np.array([[0.5, 0.5], [0.2, 0.8]])
    for seed in range(50):
        layout = random_layout(REGION, fixed, 3, 0.3, np.random.default_rng(seed))
        assert np.linalg.norm(layout[:, None] - fixed[None], axis=-1).min() >= 0.3
