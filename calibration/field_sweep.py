"""Where the antennas measure the field: layouts over their travel, and visits that keep them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.frames import end_stops_m, to_array, to_stage

Layout = Literal["raster", "serpentine", "latin", "adaptive"]

_SHARES_OF_A_WAY = np.linspace(0.0, 1.0, 9)
_CANDIDATES = 400
_TOLERANCE_M = 1e-6
_NEAR = 0.7  # of the largest uncertainty: among positions as uncertain as this the nearest is taken


def movers(bench: BenchSpec, reference: int | None) -> list[int]:
    """Antennas that sweep: those with a stage, but for the reference.

    Raises:
        ConfigError: no antenna is left.
    """
    found = [
        index for index, antenna in enumerate(bench.array.antennas) if antenna.stage is not None and index != reference
    ]
    if not found:
        raise ConfigError(
            "no antenna of this bench can sweep the field: it takes one with a stage that is not the reference",
            file=bench.name,
            key="array.antennas",
            remedy="give an antenna a stage, or leave the option reference out",
        )
    return found


def areas_m(bench: BenchSpec, sweeping: Sequence[int], *, shared: bool) -> dict[int, np.ndarray]:
    """What each antenna sweeps: its travel within the array's region; where travels are alike, a strip of it.

    Args:
        bench: the bench.
        sweeping: antennas that sweep.
        shared: whether antennas with one and the same travel share it out, or each sweeps all of it.

    Returns:
        antenna -> [axis, (low, high)], array frame, metres.

    Raises:
        ConfigError: an antenna's travel does not meet the region.
    """
    areas = {antenna: _reach_m(bench, antenna) for antenna in sweeping}
    first = areas[sweeping[0]]
    if not shared or len(sweeping) == 1 or not all(np.allclose(area, first, atol=1e-6) for area in areas.values()):
        return areas
    homes_m = np.array([bench.array.antennas[antenna].home_m for antenna in sweeping])
    # side by side along the axis in which they stand side by side
    axis = int(np.argmax(np.ptp(homes_m, axis=0)))
    edges_m = np.linspace(first[axis, 0], first[axis, 1], len(sweeping) + 1)
    for place, index in enumerate(np.argsort(homes_m[:, axis], kind="stable")):
        strip = first.copy()
        strip[axis] = edges_m[place : place + 2]
        areas[sweeping[index]] = strip
    return areas


def planned_visits(
    bench: BenchSpec, layout: Layout, areas: dict[int, np.ndarray], num_visits: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Positions of all antennas, visit by visit.

    Each antenna goes through its own area on a short way. Where two would come closer than min_spacing_m, one of them
    goes somewhere else in its area.

    Args:
        bench: the bench.
        layout: pattern in each area; adaptive begins as latin.
        areas: antenna -> area, array frame.
        num_visits: how many.
        rng: of latin layouts, and of places that are taken instead.

    Returns:
        arrays of shape [num_antennas, 2], array frame; antennas that do not sweep stay at home.

    Raises:
        ConfigError: there is no room for all antennas at once.
    """
    home_m = np.array([antenna.home_m for antenna in bench.array.antennas], np.float64)
    wanted = {antenna: list(_course(layout, area, num_visits, rng)) for antenna, area in areas.items()}
    visits, here_m = [], home_m
    for _ in range(num_visits):
        target_m = home_m.copy()
        placed = [antenna for antenna in range(len(home_m)) if antenna not in areas]
        for antenna, area in areas.items():
            point_m = _next_point(bench, antenna, wanted[antenna], area, (here_m, target_m, placed), rng)
            target_m[antenna] = point_m
            placed.append(antenna)
        visits.append(target_m)
        here_m = target_m
    return visits


def uncertain_positions(
    bench: BenchSpec,
    areas: dict[int, np.ndarray],
    here_m: np.ndarray,
    uncertainty: Callable[[np.ndarray], np.ndarray],
    measured: Callable[[np.ndarray], None],
    rng: np.random.Generator,
) -> np.ndarray:
    """The next visit: each antenna goes where least is known, to the nearest of places that are about alike.

    Args:
        bench: the bench.
        areas: antenna -> area, array frame.
        here_m: where the antennas are, shape [num_antennas, 2].
        uncertainty: positions [num_positions, 2] -> what is not known there, shape [num_positions].
        measured: told of each position that is chosen, so that the next antenna goes elsewhere.
        rng: of the places that are looked at.

    Returns:
        shape [num_antennas, 2].

    Raises:
        ConfigError: there is no room for all antennas at once.
    """
    target_m = np.array([antenna.home_m for antenna in bench.array.antennas], np.float64)
    placed = [antenna for antenna in range(len(target_m)) if antenna not in areas]
    for antenna, area in areas.items():
        candidates_m = reachable_m(bench, antenna, rng.uniform(area[:, 0], area[:, 1], (_CANDIDATES, 2)))
        free = _free(bench, antenna, candidates_m, (here_m, target_m, placed))
        if not free.any():
            free = _apart(bench, candidates_m, target_m[placed])
        if not free.any():
            raise _no_room(bench, antenna)
        candidates_m = candidates_m[free]
        unknown = uncertainty(candidates_m)
        way_m = np.linalg.norm(candidates_m - here_m[antenna], axis=1)
        chosen_m = candidates_m[int(np.argmin(np.where(unknown >= _NEAR * unknown.max(), way_m, np.inf)))]
        target_m[antenna] = chosen_m
        placed.append(antenna)
        measured(chosen_m)
    return target_m


def reachable_m(bench: BenchSpec, antenna: int, points_m: np.ndarray) -> np.ndarray:
    """The nearest points that an antenna's stage can reach, array frame, shape [..., 2]."""
    spec = bench.array.antennas[antenna].stage
    assert spec is not None  # it sweeps
    stops_m = end_stops_m(spec, bench.array.region_m)
    low_m, high_m = stops_m.T.copy()
    if len(spec.device.axes) == 1:
        low_m[1] = high_m[1] = 0.0
    return to_array(np.clip(to_stage(points_m, spec), low_m, high_m), spec)


def _reach_m(bench: BenchSpec, antenna: int) -> np.ndarray:
    """The box around what an antenna can reach, within the region, [axis, (low, high)]."""
    region_m = np.array(bench.array.region_m, np.float64)
    spec = bench.array.antennas[antenna].stage
    assert spec is not None
    stops_m = end_stops_m(spec, bench.array.region_m)
    if len(spec.device.axes) == 1:
        stops_m[1] = 0.0
    corners_m = to_array(np.array([(first, second) for first in stops_m[0] for second in stops_m[1]]), spec)
    low_m = np.maximum(corners_m.min(axis=0), region_m[:, 0])
    high_m = np.minimum(corners_m.max(axis=0), region_m[:, 1])
    if np.any(low_m > high_m + _TOLERANCE_M):
        raise ConfigError(
            f"antenna {antenna} cannot reach the array's region with its stage",
            file=bench.name,
            key=f"array.antennas.{antenna}.stage",
            remedy="see to origin_m, rotation_deg and travel_m of the stage, and to array.region_m",
        )
    return np.stack([low_m, np.maximum(low_m, high_m)], axis=1)


def _course(layout: Layout, area: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points of one antenna in the order of its way, [count or a few more, 2]."""
    size_m = area[:, 1] - area[:, 0]
    if layout in ("raster", "serpentine"):
        return _grid(area, count, turning=layout == "serpentine")
    shares = np.stack([(rng.permutation(count) + rng.random(count)) / count for _ in range(2)], axis=1)
    points_m = area[:, 0] + shares * size_m
    # bands along the longer side, there and back: a short way through points that lie anyhow
    along = int(np.argmax(size_m))
    across = 1 - along
    bands = max(1, round(math.sqrt(count * size_m[across] / max(size_m[along], 1e-9) / 3)))
    band = np.minimum((shares[:, across] * bands).astype(int), bands - 1)
    way = np.where(band % 2 == 0, shares[:, along], 1 - shares[:, along])
    return points_m[np.lexsort((way, band))]


def _grid(area: np.ndarray, count: int, *, turning: bool) -> np.ndarray:
    """The middles of equal cells of the area, row by row along its longer side."""
    size_m = area[:, 1] - area[:, 0]
    along = int(np.argmax(size_m))
    rows = max(1, round(math.sqrt(count * size_m[1 - along] / max(size_m[along], 1e-9))))
    columns = math.ceil(count / rows)
    axes_m = [
        area[axis, 0] + (np.arange(number) + 0.5) / number * size_m[axis]
        for axis, number in ((along, columns), (1 - along, rows))
    ]
    points_m = []
    for row, across_m in enumerate(axes_m[1]):
        line_m = axes_m[0][::-1] if turning and row % 2 else axes_m[0]
        for along_m in line_m:
            points_m.append((along_m, across_m) if along == 0 else (across_m, along_m))
    return np.array(points_m)


def _next_point(
    bench: BenchSpec,
    antenna: int,
    wanted: list[np.ndarray],
    area: np.ndarray,
    others: tuple[np.ndarray, np.ndarray, list[int]],
    rng: np.random.Generator,
) -> np.ndarray:
    """The first of the wanted points that is free, taken off the list; else another one in the area."""
    if wanted:
        free = _free(bench, antenna, reachable_m(bench, antenna, np.array(wanted)), others)
        if free.any():
            return reachable_m(bench, antenna, wanted.pop(int(np.argmax(free))))
    _, target_m, placed = others
    candidates_m = reachable_m(bench, antenna, rng.uniform(area[:, 0], area[:, 1], (_CANDIDATES, 2)))
    for free in (_free(bench, antenna, candidates_m, others), _apart(bench, candidates_m, target_m[placed])):
        if free.any():
            first: np.ndarray = candidates_m[int(np.argmax(free))]
            return first
    raise _no_room(bench, antenna)


def _free(
    bench: BenchSpec, antenna: int, points_m: np.ndarray, others: tuple[np.ndarray, np.ndarray, list[int]]
) -> np.ndarray:
    """At which points an antenna may stand, and get there on a straight way whenever the others are on theirs."""
    here_m, target_m, placed = others
    share = _SHARES_OF_A_WAY[:, None]
    # [num_points, num_shares, 2] and [num_placed, num_shares, 2]
    own_m = here_m[antenna] + share * (points_m - here_m[antenna])[:, None]
    theirs_m = here_m[placed][:, None] + share * (target_m[placed] - here_m[placed])[:, None]
    # they may begin as close as they stand, [num_placed]
    begun_m = np.linalg.norm(here_m[placed] - here_m[antenna], axis=-1)
    least_m = np.minimum(begun_m, bench.array.min_spacing_m) - _TOLERANCE_M
    free = _apart(bench, points_m, target_m[placed])
    for way_m, least in zip(theirs_m, least_m, strict=True):
        distance_m = np.linalg.norm(own_m[:, :, None] - way_m, axis=-1)
        free &= distance_m.min(axis=(1, 2)) >= least
    return free


def _apart(bench: BenchSpec, points_m: np.ndarray, others_m: np.ndarray) -> np.ndarray:
    """Which points keep min_spacing_m from the others, [num_points]."""
    distance_m = np.linalg.norm(points_m[:, None] - others_m, axis=-1)
    apart: np.ndarray = np.all(distance_m >= bench.array.min_spacing_m - _TOLERANCE_M, axis=1)
    return apart


def _no_room(bench: BenchSpec, antenna: int) -> ConfigError:
    return ConfigError(
        f"antenna {antenna} finds no place {bench.array.min_spacing_m:g} m away from all others",
        file=bench.name,
        key="array.min_spacing_m",
        remedy="enlarge array.region_m or the stages' travel, or lower min_spacing_m if the carriages allow it",
    )
