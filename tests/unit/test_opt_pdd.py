"""Penalty dual decomposition on a problem whose optimum and multiplier are known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from testbed.opt.pdd import augmented_lagrangian, decompose


@dataclass(frozen=True)
class Pair:
    x: float
    y: float


class Tug:
    """maximise -(x - 1)^2 - 2 (y + 2)^2 subject to x - y = 0: x = y = -1, multiplier 4."""

    def objective(self, point: Pair) -> float:
        return -((point.x - 1.0) ** 2) - 2.0 * (point.y + 2.0) ** 2

    def coupling(self, point: Pair) -> np.ndarray:
        return np.array([point.x - point.y])

    def sweep(self, point: Pair, multipliers: np.ndarray, penalty: float) -> Pair:
        shift = float(penalty * multipliers[0])
        # each block in closed form, the other held
        point = replace(point, x=(2.0 + (point.y - shift) / penalty) / (2.0 + 1.0 / penalty))
        return replace(point, y=(-8.0 + (point.x + shift) / penalty) / (4.0 + 1.0 / penalty))


def test_the_blocks_meet_at_the_constrained_optimum() -> None:
    found = decompose(Tug(), Pair(5.0, 5.0), tolerance=1e-9, sweep_tolerance=1e-13, max_sweeps=400)
    assert found.status == "stationary"
    assert found.feasibility < 1e-9
    assert found.point.point.x == pytest.approx(-1.0, abs=1e-6)
    assert found.value == pytest.approx(-6.0, abs=1e-6)
    # stationarity of -f + lambda (x - y) in x: 2 (x - 1) + lambda = 0
    assert found.point.multipliers[0] == pytest.approx(4.0, abs=1e-5)


def test_a_sweep_never_raises_the_augmented_lagrangian() -> None:
    problem, point, multipliers = Tug(), Pair(3.0, -7.0), np.array([0.7])
    level = augmented_lagrangian(problem, point, multipliers, 0.5)
    for _ in range(20):
        point = problem.sweep(point, multipliers, 0.5)
        before, level = level, augmented_lagrangian(problem, point, multipliers, 0.5)
        assert level <= before + 1e-12


def test_rounds_that_run_out_say_how_far_the_blocks_are_apart() -> None:
    found = decompose(Tug(), Pair(5.0, 5.0), tolerance=1e-12, max_rounds=2)
    assert found.status == "unfinished"
    assert found.feasibility > 1e-3
    assert f"{found.feasibility:.3g}" in found.message
