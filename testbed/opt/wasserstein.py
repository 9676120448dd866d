"""How far two laws are apart, from samples: the Wasserstein distance W1 of order one, and how well it is known.

W1(P, Q) = inf over couplings of E ||x - y||. In one dimension it is the area between the distribution functions. In
more, projections are cheap where couplings are not: with u uniform on the unit sphere of R^d and c_d = E |u_1|,

    W1(P, Q)  >=  E_u W1(u . P, u . Q) / c_d,      c_d = Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)),

since E_u |u . (x - y)| = c_d ||x - y|| for every coupling; for laws that are translates of each other both are equal.
The coupling of two samples of one size, on the other hand, is in the mean at least W1 (it is convex in both laws), and
far above it in many dimensions.

Reference: Bonneel, Rabin, Peyre, Pfister, "Sliced and Radon Wasserstein barycenters of measures", J. Math. Imaging Vis.
51, 2015; the factor c_d is the mean of a coordinate's size on the sphere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.special import gammaln

_BLOCK = 2**22
"""Numbers of one block of projections: bounds memory."""


@dataclass(frozen=True)
class Sliced:
    """A sliced distance, in the unit of the samples.

    Attributes:
        value: E_u W1(u . P, u . Q) / c_d, less what chance adds: at most W1, and W1 itself for translated laws.
        std: of `value`: resampled data, drawn directions, and half of what was taken off.
        raw: the same before anything was taken off.
        floor: what two samples of these sizes of one and the same law give in the mean; a value near it means that
            the laws cannot be told apart.
    """

    value: float
    std: float
    raw: float
    floor: float


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """W1 of two samples on a line, exactly: the area between their distribution functions.

    Args:
        x: shape [num_x].
        y: shape [num_y].

    Raises:
        ValueError: a sample is empty or not finite.
    """
    first, second = _checked(x.reshape(-1, 1), y.reshape(-1, 1))
    order, gaps = _line(np.concatenate([first, second]))
    return float(_areas(order, gaps, _mass(len(first), len(second)))[0])


def matched(x: np.ndarray, y: np.ndarray) -> float:
    """W1 of two samples of one size, exactly: the cheapest way to pair them. Time grows with the cube of the size.

    Args:
        x, y: shape [num, dimension].

    Raises:
        ValueError: sizes differ, or a sample is empty or not finite.
    """
    first, second = _checked(x, y)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} points cannot be paired with {len(second)}")
    distances = cdist(first, second)
    rows, columns = linear_sum_assignment(distances)
    return float(distances[rows, columns].mean())


def sphere_factor(dimension: int) -> float:
    """c_d, the mean of |u_1| for u uniform on the unit sphere of R^d."""
    return float(math.exp(gammaln(dimension / 2) - gammaln((dimension + 1) / 2)) / math.sqrt(math.pi))


def sliced(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, num_directions: int = 256, num_resamples: int = 40
) -> Sliced:
    """Sliced W1 of two samples, scaled so that it is W1 for translated laws.

    Resampling keeps the sorted order of every projection and draws how often each point counts, so it costs no sorting.
    A distance is never negative, so chance adds to it: a shift and what the samples differ by chance add as squares
    over all directions, and the floor is taken off in that way.

    Args:
        x: shape [num_x, dimension].
        y: shape [num_y, dimension].
        rng: draws directions, resamples and relabelled samples.
        num_directions: on the sphere; on a line one is enough and is taken.
        num_resamples: of the data, for the spread, and as many of the labels, for the floor.

    Raises:
        ValueError: a sample has fewer than two points or is not finite, or dimensions differ.
    """
    first, second = _checked(x, y)
    if min(len(first), len(second)) < 2:
        raise ValueError("a sample of one point says nothing about its law")
    num_x, num_y, dimension = len(first), len(second), first.shape[1]
    directions = _directions(dimension, 1 if dimension == 1 else num_directions, rng)
    masses = [_mass(num_x, num_y)]
    for _ in range(num_resamples):
        drawn_x = rng.multinomial(num_x, np.full(num_x, 1 / num_x)) / num_x
        drawn_y = rng.multinomial(num_y, np.full(num_y, 1 / num_y)) / num_y
        masses.append(np.concatenate([drawn_x, -drawn_y]))
    masses += [rng.permutation(masses[0]) for _ in range(num_resamples)]
    # areas: [1 + 2 num_resamples, num_directions]
    areas = _projected(np.concatenate([first, second]), directions, np.stack(masses))
    areas /= sphere_factor(dimension)
    raw, floor = float(areas[0].mean()), float(areas[1 + num_resamples :].mean())
    value = math.sqrt(max(raw**2 - floor**2, 0.0))
    by_chance = float(areas[1 : 1 + num_resamples].mean(axis=1).std(ddof=1)) if num_resamples > 1 else math.inf
    by_direction = float(areas[0].std(ddof=1)) / math.sqrt(len(directions)) if len(directions) > 1 else 0.0
    spread = math.sqrt(by_chance**2 + by_direction**2 + (raw - value) ** 2 / 4)
    return Sliced(value=value, std=spread, raw=raw, floor=floor)


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or first.shape[1] == 0:
        raise ValueError(f"samples of shapes {first.shape} and {second.shape} lie in no common space")
    if len(first) == 0 or len(second) == 0:
        raise ValueError("a sample is empty")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a sample is not finite")
    return first, second


def _directions(dimension: int, num_directions: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform on the sphere, shape [num_directions, dimension]."""
    drawn = rng.standard_normal((num_directions, dimension))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _mass(num_x: int, num_y: int) -> np.ndarray:
    """What each point adds to the difference of the distribution functions, shape [num_x + num_y]."""
    return np.concatenate([np.full(num_x, 1 / num_x), np.full(num_y, -1 / num_y)])


def _line(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order along each column, shape [num, columns], and the gaps between neighbours, shape [num - 1, columns]."""
    order = np.argsort(points, axis=0)
    return order, np.diff(np.take_along_axis(points, order, axis=0), axis=0)


def _areas(order: np.ndarray, gaps: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Area between two distribution functions on each line, shape [columns]."""
    difference = np.cumsum(mass[order], axis=0)[:-1]
    return np.einsum("ij,ij->j", np.abs(difference), gaps)


def _projected(points: np.ndarray, directions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Areas for each mass and direction, shape [num_masses, num_directions]."""
    width = max(1, _BLOCK // len(points))
    parts = []
    for begin in range(0, len(directions), width):
        order, gaps = _line(points @ directions[begin : begin + width].T)
        parts.append(np.stack([_areas(order, gaps, mass) for mass in masses]))
    return np.concatenate(parts, axis=1)
