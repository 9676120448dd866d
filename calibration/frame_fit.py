"""Scale and rotation of stages, from the direction of each node's strongest wave as every stage counts it.

As complex numbers, a stage that moves s metres for each that it counts and is turned by theta against the bench file
sees a wave of direction cosines u in the array frame as g = s exp(-j theta) u. Hence

    ln |g_ik| = ln s_i + ln |u_k|,   arg g_ik = -theta_i + arg u_k

are linear in what is not known. Where u_k follows from a node's place it enters as a measurement with the error of that
place; where it does not, stages are compared with each other, and a scale needs an operator's reference.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.core.bench import BenchSpec
from testbed.phy.field_fit import fit_paths
from testbed.phy.field_model import Samples

_RIVAL = 0.5  # power of another wave over the strongest from which it is not clear which comes straight
_HOLLOW = 1.5  # power of all waves over that of the channel beyond which they only cancel each other
_CELL = 1.0  # waves closer than so many of the lines' resolutions count as one
_UNSEEN = 0.1  # resolutions by which as much power in other waves moves the strongest, found by trials
_LARGEST = 0.95  # waves are looked for up to 1 / 0.95, since scales may be off
_MOST_PATHS = 8
_LOOSE, _SHARPEST = 30.0, 1e-5  # standard deviations of what nothing is known of, and of what is known best
_UNKNOWN = 1.0  # from there on nothing is said


@dataclass(frozen=True)
class Direction:
    """Direction cosines along two axes as one complex number.

    Attributes:
        cosines: u_x + j u_y.
        relative_std: standard deviation of their magnitude over it.
        std_rad: of their angle.
    """

    cosines: complex
    relative_std: float
    std_rad: float


@dataclass(frozen=True)
class Frame:
    """What a stage does beyond what the bench file says; standard deviations are infinite where nothing is known.

    Attributes:
        scale: true metres for a metre that is counted.
        scale_std: its standard deviation.
        rotation_rad: beyond `rotation_deg`.
        rotation_std_rad: its standard deviation.
    """

    scale: float
    scale_std: float
    rotation_rad: float
    rotation_std_rad: float


def strongest_wave(points_m: np.ndarray, channel: np.ndarray, variance: float, wavelength_m: float) -> Direction | None:
    """Where the strongest wave comes from, with those that are too close to tell apart.

    Its covariance is the Cramer-Rao bound of the strongest, the spread of those beside it, and what waves that the fit
    does not see may do: as trials show, a tenth of the lines' resolution where others carry as much power.

    Args:
        points_m: where the antenna was, shape [num_points, 2].
        channel: one node's channel there, shape [num_points].
        variance: E|error|^2 of it.
        wavelength_m: metres.

    Returns:
        direction; None where two waves are about as strong, or cancel each other, or there are too few points.
    """
    try:
        samples = Samples.of(channel, points_m, variance)
        field = fit_paths(samples, _LARGEST * wavelength_m, max_paths=_MOST_PATHS).field
    except (ValueError, np.linalg.LinAlgError):
        return None
    directions, powers = field.directions / _LARGEST, np.abs(field.gains) ** 2
    if np.sum(powers) > _HOLLOW * np.mean(np.abs(channel) ** 2):
        return None
    first, count = int(np.argmax(powers)), len(powers)
    # waves that the lines can hardly tell apart count as one
    apart = (directions - directions[first]) * np.ptp(points_m, axis=0) / wavelength_m
    close = np.linalg.norm(apart, axis=1) < _CELL
    if np.max(powers[~close], initial=0.0) > _RIVAL * np.sum(powers[close]):
        return None
    share = powers[close] / np.sum(powers[close])
    middle = share @ directions[close]
    spread = (directions[close] - middle).T @ (share[:, None] * (directions[close] - middle))
    index = np.ix_([first, count + first], [first, count + first])
    others = float(np.sum(powers[~close]) / np.sum(powers[close]))
    unseen = np.diag((_UNSEEN * wavelength_m / np.maximum(np.ptp(points_m, axis=0), 1e-9)) ** 2) * others
    return _direction(middle, field.covariance[index] / _LARGEST**2 + spread + unseen)


def known_directions(bench: BenchSpec, nodes: Sequence[str], node_std_m: float) -> dict[int, Direction]:
    """Where nodes' straight waves come from, by their places in the bench file; by their index in `nodes`.

    A node's place is off by `node_std_m` in each coordinate. Waves are plane; over the array's region the straight
    direction turns by up to half the region over the distance, a third of which counts as an error too.

    Args:
        bench: the bench.
        nodes: names.
        node_std_m: standard deviation of each coordinate.

    Returns:
        only those whose place the file tells.
    """
    axes = np.array(bench.array.axes)
    size_m = max(high - low for low, high in bench.array.region_m)
    known = {}
    boards = {board.name: board for board in bench.boards}
    for index, name in enumerate(nodes):
        place_m = boards[name].position_m
        if place_m is None:
            continue
        towards_m = np.array(place_m) - np.array(bench.array.origin_m)
        distance_m = float(np.linalg.norm(towards_m))
        straight = towards_m / max(distance_m, 1e-9)
        # d u = axes (I - s s^T) d p / distance
        slope = axes @ (np.eye(3) - np.outer(straight, straight)) / max(distance_m, 1e-9)
        spread_m = math.hypot(node_std_m, size_m / 6)
        known[index] = _direction(axes @ straight, slope @ slope.T * spread_m**2)
    return known


def fit_frames(
    seen: Mapping[int, Mapping[int, Direction]],
    known: Mapping[int, Direction],
    references: Mapping[int, tuple[float, float]],
) -> dict[int, Frame]:
    """Weighted least squares over all stages and nodes, see the module.

    Args:
        seen: stage -> node -> g, turned into the array frame by the bench file's `rotation_deg`.
        known: node -> u.
        references: stage -> scale and its standard deviation, as an operator measured.

    Returns:
        stage -> frame.
    """
    stages, nodes = sorted(seen), sorted({node for waves in seen.values() for node in waves})
    guess = {stage: _guess_rad(seen[stage], known) for stage in stages}
    start = {node: _start_rad(node, seen, known, guess) for node in nodes}
    sizes, angles = _Equations(len(stages) + len(nodes)), _Equations(len(stages) + len(nodes))
    for row, stage in enumerate(stages):
        sizes.add({row: 1.0}, 0.0, _LOOSE)
        angles.add({row: 1.0}, 0.0, _LOOSE)
        if stage in references:
            scale, std = references[stage]
            sizes.add({row: 1.0}, math.log(scale), std / scale)
        for node, wave in seen[stage].items():
            column = len(stages) + nodes.index(node)
            sizes.add({row: 1.0, column: 1.0}, math.log(max(abs(wave.cosines), 1e-12)), wave.relative_std)
            turned_rad = cmath.phase(wave.cosines) + guess[stage] - start[node]
            angles.add({row: -1.0, column: 1.0}, math.remainder(turned_rad, 2 * math.pi), wave.std_rad)
    for node in nodes:
        column = len(stages) + nodes.index(node)
        sizes.add({column: 1.0}, 0.0, _LOOSE)
        angles.add({column: 1.0}, 0.0, _LOOSE)
        if node in known:
            sizes.add({column: 1.0}, math.log(max(abs(known[node].cosines), 1e-12)), known[node].relative_std)
            off_rad = math.remainder(cmath.phase(known[node].cosines) - start[node], 2 * math.pi)
            angles.add({column: 1.0}, off_rad, known[node].std_rad)
    frames = {}
    for row, stage in enumerate(stages):
        logarithm, relative_std = sizes.solve(row)
        turned_rad, std_rad = angles.solve(row)
        known_scale, known_rotation = relative_std < _UNKNOWN, std_rad < _UNKNOWN
        scale = math.exp(logarithm) if known_scale else 1.0
        frames[stage] = Frame(
            scale,
            scale * relative_std if known_scale else math.inf,
            math.remainder(guess[stage] + turned_rad, 2 * math.pi) if known_rotation else 0.0,
            std_rad if known_rotation else math.inf,
        )
    return frames


class _Equations:
    """Weighted linear equations, few."""

    def __init__(self, num_unknowns: int) -> None:
        self._information = np.zeros((num_unknowns, num_unknowns))
        self._weighted = np.zeros(num_unknowns)

    def add(self, factors: Mapping[int, float], value: float, std: float) -> None:
        """sum of factor times unknown = value, with that standard deviation."""
        if not math.isfinite(std):
            return
        row = np.zeros(len(self._weighted))
        row[list(factors)] = list(factors.values())
        weight = 1 / max(std, _SHARPEST) ** 2
        self._information += weight * np.outer(row, row)
        self._weighted += weight * value * row

    def solve(self, index: int) -> tuple[float, float]:
        """One unknown and its standard deviation."""
        covariance = np.linalg.inv(self._information)
        return float((covariance @ self._weighted)[index]), math.sqrt(max(float(covariance[index, index]), 0.0))


def _direction(u: np.ndarray, covariance: np.ndarray) -> Direction:
    size = float(np.linalg.norm(u))
    if size < 1e-9:
        return Direction(0j, math.inf, math.inf)
    along, across = u / size, np.array([-u[1], u[0]]) / size
    return Direction(
        complex(u[0], u[1]),
        math.sqrt(max(float(along @ covariance @ along), 0.0)) / size,
        math.sqrt(max(float(across @ covariance @ across), 0.0)) / size,
    )


def _guess_rad(waves: Mapping[int, Direction], known: Mapping[int, Direction]) -> float:
    """Rotation of a stage by the nodes whose direction is known, in the middle of the circle."""
    turned = [known[node].cosines * wave.cosines.conjugate() for node, wave in waves.items() if node in known]
    return cmath.phase(sum(turned)) if turned and sum(turned) != 0 else 0.0


def _start_rad(
    node: int,
    seen: Mapping[int, Mapping[int, Direction]],
    known: Mapping[int, Direction],
    guess: Mapping[int, float],
) -> float:
    """An angle of a node's direction near which everything is linear."""
    if node in known:
        return cmath.phase(known[node].cosines)
    turned = [waves[node].cosines * cmath.rect(1.0, guess[stage]) for stage, waves in seen.items() if node in waves]
    return cmath.phase(sum(turned)) if sum(turned) != 0 else 0.0
