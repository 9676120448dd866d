"""Where a stage may be moved for its own calibration while all others stand at home: two free lines that cross."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.core.bench import BenchSpec, StageSpec
from testbed.core.errors import ConfigError
from testbed.core.frames import end_stops_m, to_array, to_stage

_CANDIDATES = 13  # places along each axis that the lines may cross at
_LOOK_M = 1e-3
_ROUNDING_M = 1e-9


@dataclass(frozen=True)
class Course:
    """Of one stage, in its frame.

    Attributes:
        base_m: where the lines cross, shape [2].
        spans_m: from where to where each axis may go while the other stands at the base, shape [num_axes, 2].
        homing_free: whether homing from the base and coming back leads past no other antenna.
    """

    base_m: np.ndarray
    spans_m: np.ndarray
    homing_free: bool


def stage_of(bench: BenchSpec, index: int) -> StageSpec:
    """The stage of an antenna.

    Raises:
        ConfigError: the bench has no such antenna, or it is fixed.
    """
    antennas = bench.array.antennas
    stage = antennas[index].stage if 0 <= index < len(antennas) else None
    if stage is None:
        raise ConfigError(f"antenna {index} has no stage", key="stages", remedy="name antennas that can move")
    return stage


def num_axes(stage: StageSpec) -> int:
    """Axes that it moves along: one on a rail."""
    return len(stage.device.axes)


def plan_course(bench: BenchSpec, index: int, length_m: float, lead_m: float) -> Course:
    """The longest lines on which the antenna keeps its distance from all others, which stand at home.

    Args:
        bench: the bench.
        index: of the antenna.
        length_m: lines need not be longer.
        lead_m: free way that the base needs before and behind it.

    Returns:
        the course, reached from home on a straight way; empty lines where there is no room.

    Raises:
        ConfigError: no such stage.
    """
    stage = stage_of(bench, index)
    home_m = to_stage(np.array(bench.array.antennas[index].home_m), stage)
    stops_m, axes = end_stops_m(stage, bench.array.region_m), num_axes(stage)
    places_m = [
        np.unique([home_m[axis], *np.linspace(stops_m[axis, 0], stops_m[axis, 1], _CANDIDATES)]) for axis in range(axes)
    ]
    if axes == 1:
        places_m.append(home_m[1:])
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for first_m in places_m[0]:
        for second_m in places_m[1]:
            base_m = np.array([first_m, second_m])
            if not _is_free(bench, index, _between(home_m, base_m)):
                continue
            spans_m = np.array([_free_span(bench, index, base_m, axis, length_m) for axis in range(axes)])
            if np.min(np.abs(spans_m - base_m[:axes, None])) < lead_m:
                continue
            way_m = -float(np.linalg.norm(base_m - home_m))
            worth = (float(np.min(spans_m[:, 1] - spans_m[:, 0])).__round__(4), way_m)
            if best is None or worth > best[:2]:
                best = (*worth, base_m, spans_m)
    if best is None:
        return Course(home_m, np.stack([home_m, home_m], axis=1)[:axes], False)
    return Course(best[2], best[3], _homes_freely(bench, index, best[2], stops_m))


def _between(start_m: np.ndarray, end_m: np.ndarray) -> np.ndarray:
    """Points of a straight way, shape [num_points, 2]."""
    count = max(2, int(np.linalg.norm(end_m - start_m) / _LOOK_M) + 2)
    return start_m + np.linspace(0.0, 1.0, count)[:, None] * (end_m - start_m)


def _is_free(bench: BenchSpec, index: int, points_m: np.ndarray) -> bool:
    return bool(np.all(_free(bench, index, points_m)))


def _free(bench: BenchSpec, index: int, points_m: np.ndarray) -> np.ndarray:
    """Which stage-frame points lie in the region and far enough from all others' homes, shape [num_points]."""
    at_m = to_array(points_m, stage_of(bench, index))
    low_m, high_m = np.array(bench.array.region_m).T
    free = np.all((at_m >= low_m - _ROUNDING_M) & (at_m <= high_m + _ROUNDING_M), axis=1)
    for other, antenna in enumerate(bench.array.antennas):
        if other != index:
            distance_m = np.linalg.norm(at_m - np.array(antenna.home_m), axis=1)
            free &= distance_m >= bench.array.min_spacing_m - _ROUNDING_M
    return free


def _free_span(bench: BenchSpec, index: int, base_m: np.ndarray, axis: int, length_m: float) -> tuple[float, float]:
    """The free stretch of a line around the base, of at most that length."""
    stops_m = end_stops_m(stage_of(bench, index), bench.array.region_m)[axis]
    reach = np.arange(1, int(length_m / _LOOK_M) + 1) * _LOOK_M
    ends = []
    for sign in (-1.0, 1.0):
        points_m = np.repeat(base_m[None], len(reach), axis=0)
        points_m[:, axis] += sign * reach
        free = _free(bench, index, points_m)
        free &= (points_m[:, axis] >= stops_m[0]) & (points_m[:, axis] <= stops_m[1])
        count = len(free) if free.all() else int(np.argmin(free))
        ends.append(count * _LOOK_M)
    down_m, up_m = ends
    # as symmetric as it can be
    down_m, up_m = min(down_m, max(length_m / 2, length_m - up_m)), min(up_m, max(length_m / 2, length_m - down_m))
    return float(base_m[axis] - down_m), float(base_m[axis] + up_m)


def _homes_freely(bench: BenchSpec, index: int, base_m: np.ndarray, stops_m: np.ndarray) -> bool:
    """Whether the box between base and switches is empty; which switch is whose depends on the controller."""
    stage = stage_of(bench, index)
    if stage.device.rail is not None:
        return False
    switch_m = stops_m[:, 0] if stage.device.driver == "zaber" else stops_m[:, 1]
    box = [np.linspace(base_m[axis], switch_m[axis], 40) for axis in range(2)]
    points_m = np.stack(np.meshgrid(*box), axis=-1).reshape(-1, 2)
    at_m = to_array(points_m, stage)
    others_m = [antenna.home_m for other, antenna in enumerate(bench.array.antennas) if other != index]
    return all(
        float(np.min(np.linalg.norm(at_m - np.array(home_m), axis=1))) >= bench.array.min_spacing_m
        for home_m in others_m
    )
