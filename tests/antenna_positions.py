"""Where to put the antennas, found by a general solver: an oracle for gains and for optimisers.

maximise over f, r the minimum over m of |f^H h_m(r)|^2, with ||f|| <= 1, every antenna inside a square and no two of
them closer than a spacing. One nonlinear programme in (Re f, Im f, r, tau) with exact derivatives, solved by sequential
quadratic programming from several starts. Lengths are in wavelengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from testbed.phy.array import field_response
from testbed.phy.combiner import max_min_combiner

SPACING = 0.5


@dataclass(frozen=True)
class Paths:
    """Plane waves of every node.

    Attributes:
        directions: direction cosines, shape [num_nodes, num_paths, 2].
        gains: at the array origin, shape [num_nodes, num_paths]; the mean of sum |gain|^2 is 1.
    """

    directions: np.ndarray
    gains: np.ndarray


def isotropic_paths(num_nodes: int, num_paths: int, generator: np.random.Generator) -> Paths:
    """Directions uniform over the half space in front of the array, gains CN(0, 1 / num_paths).

    u = (sin theta cos phi, cos theta),   cos theta ~ U[-1, 1],   phi ~ U[0, pi]
    """
    cosine = generator.uniform(-1.0, 1.0, (num_nodes, num_paths))
    azimuth = generator.uniform(0.0, np.pi, (num_nodes, num_paths))
    directions = np.stack([np.sqrt(1.0 - cosine**2) * np.cos(azimuth), cosine], axis=-1)
    normals = generator.standard_normal((num_nodes, num_paths, 2)) @ np.array([1.0, 1.0j])
    return Paths(directions=directions, gains=normals / np.sqrt(2.0 * num_paths))


def line_of_sight(num_nodes: int, generator: np.random.Generator) -> Paths:
    """One plane wave from each node, as strong as the others'."""
    paths = isotropic_paths(num_nodes, 1, generator)
    return Paths(directions=paths.directions, gains=paths.gains / np.abs(paths.gains))


def waves(positions: np.ndarray, paths: Paths) -> np.ndarray:
    """Every plane wave at every antenna, shape [num_antennas, num_nodes, num_paths]."""
    response = field_response(positions, paths.directions.reshape(-1, 2), 1.0)
    return response.reshape(-1, *paths.gains.shape) * paths.gains


def channels(positions: np.ndarray, paths: Paths) -> np.ndarray:
    """h_m(r), shape [num_antennas, num_nodes]."""
    return waves(positions, paths).sum(axis=2)


def fixed_array(num_antennas: int) -> np.ndarray:
    """A line at half-wavelength spacing along the first axis, shape [num_antennas, 2]."""
    return np.stack([SPACING * np.arange(num_antennas), np.zeros(num_antennas)], axis=1)


def scattered(num_antennas: int, side: float, generator: np.random.Generator) -> np.ndarray:
    """Uniform positions in the square, drawn again until the spacing holds."""
    first, second = np.triu_indices(num_antennas, 1)
    while True:
        positions = generator.uniform(0.0, side, (num_antennas, 2))
        if np.all(np.linalg.norm(positions[first] - positions[second], axis=1) >= SPACING):
            return positions


class MaxMin:
    """The programme in x = (Re f [N], Im f [N], r [2N], tau), with its derivatives."""

    def __init__(self, num_antennas: int, paths: Paths) -> None:
        self.num_antennas = num_antennas
        self.paths = paths
        self.first, self.second = np.triu_indices(num_antennas, 1)

    def pack(self, positions: np.ndarray) -> np.ndarray:
        """A start: the positions, their best combiner and the gain that the weakest node then has."""
        heard = channels(positions, self.paths)
        combiner = max_min_combiner(heard)
        weakest = np.min(np.abs(combiner.conj() @ heard) ** 2)
        return np.concatenate([combiner.real, combiner.imag, positions.ravel(), [weakest]])

    def positions(self, x: np.ndarray) -> np.ndarray:
        """r, shape [num_antennas, 2]."""
        return x[2 * self.num_antennas : -1].reshape(-1, 2)

    def gain(self, x: np.ndarray) -> float:
        """min_m |f^H h_m(r)|^2 / ||f||^2."""
        combiner = x[: self.num_antennas] + 1j * x[self.num_antennas : 2 * self.num_antennas]
        heard = combiner.conj() @ channels(self.positions(x), self.paths)
        return float(np.min(np.abs(heard) ** 2) / np.vdot(combiner, combiner).real)

    def constraints(self, x: np.ndarray) -> np.ndarray:
        """|f^H h_m|^2 - tau, 1 - ||f||^2 and ||r_i - r_j||^2 - D^2; all are to be nonnegative."""
        combiner = x[: self.num_antennas] + 1j * x[self.num_antennas : 2 * self.num_antennas]
        gain = np.abs(combiner.conj() @ channels(self.positions(x), self.paths)) ** 2
        apart = self.positions(x)[self.first] - self.positions(x)[self.second]
        norm = np.sum(np.abs(combiner) ** 2)
        return np.concatenate([gain - x[-1], [1.0 - norm], np.sum(apart**2, axis=1) - SPACING**2])

    def derivatives(self, x: np.ndarray) -> np.ndarray:
        """Of `constraints`, shape [num_constraints, 4 num_antennas + 1]."""
        count, num_nodes = self.num_antennas, len(self.paths.gains)
        combiner, positions = x[:count] + 1j * x[count : 2 * count], self.positions(x)
        table = np.zeros((num_nodes + 1 + self.first.size, x.size))
        at_antenna = waves(positions, self.paths)
        heard = at_antenna.sum(axis=2)
        # 2 conj(f^H h): the derivative of |f^H h|^2 is the real part of its product with that of f^H h
        outer = 2.0 * np.conj(combiner.conj() @ heard)
        table[:num_nodes, :count] = (outer * heard).real.T
        table[:num_nodes, count : 2 * count] = (outer * heard).imag.T
        # [num_nodes, num_antennas, 2]
        slope = 2j * np.pi * np.einsum("nml,mla->mna", at_antenna, self.paths.directions)
        slope *= outer[:, None, None] * combiner.conj()[:, None]
        table[:num_nodes, 2 * count : -1] = slope.real.reshape(num_nodes, -1)
        table[:num_nodes, -1] = -1.0
        table[num_nodes, : 2 * count] = -2.0 * x[: 2 * count]
        apart = 2.0 * (positions[self.first] - positions[self.second])
        rows = num_nodes + 1 + np.arange(self.first.size)
        for axis in range(2):
            table[rows, 2 * count + 2 * self.first + axis] = apart[:, axis]
            table[rows, 2 * count + 2 * self.second + axis] = -apart[:, axis]
        return table

    def climb(self, start: np.ndarray, side: float | None) -> tuple[np.ndarray, float]:
        """Where the solver ends, and the gain of the node heard worst there, never less than at the start.

        Args:
            start: positions, shape [num_antennas, 2].
            side: of the square; None holds the antennas where they are and looks for the combiner alone.
        """
        x = self.pack(start)
        slope = np.zeros(x.size)
        slope[-1] = -1.0
        free = [(None, None)] * (2 * self.num_antennas)
        inside = [(0.0, side)] * (2 * self.num_antennas) if side else [(place, place) for place in start.ravel()]
        result = minimize(
            lambda x: -x[-1],
            x,
            jac=lambda x: slope,
            bounds=[*free, *inside, (None, None)],
            constraints={"type": "ineq", "fun": self.constraints, "jac": self.derivatives},
            method="SLSQP",
            options={"maxiter": 300, "ftol": 1e-9},
        )
        found = self.positions(result.x)
        clear = np.all(np.linalg.norm(found[self.first] - found[self.second], axis=1) >= SPACING - 1e-6)
        gain = self.gain(result.x)
        return (found, gain) if clear and gain >= self.gain(x) else (start, self.gain(x))


def weakest_gain(positions: np.ndarray, paths: Paths) -> float:
    """min_m |f^H h_m(r)|^2 with the combiner that serves the node heard worst as well as it can."""
    return MaxMin(len(positions), paths).climb(positions, None)[1]


def best_positions(
    num_antennas: int, side: float, paths: Paths, num_starts: int, generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """The best end of several starts, the fixed array among them, and the gain of the node heard worst there."""
    problem = MaxMin(num_antennas, paths)
    fixed = fixed_array(num_antennas)
    starts = [fixed, *(scattered(num_antennas, side, generator) for _ in range(num_starts - 1))]
    ends = [(fixed, weakest_gain(fixed, paths)), *(problem.climb(start, side) for start in starts)]
    return max(ends, key=lambda end: end[1])
