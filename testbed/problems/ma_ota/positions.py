"""Gains of several nodes as functions of where the antennas stand: values, slopes, curvature, and a global minorant.

    q_m(r, f) = |f^H h_m(r)|^2,     h_m(r_n) = sum_l a_ml exp(j k u_ml . r_n),     k = 2 pi / lambda
    grad_n q_m = 2 Re{ c_m^* f_n^* sum_l j k u_ml a_ml exp(j k u_ml . r_n) },      c_m = f^H h_m(r)

Around places r_0 each gain is nowhere below the concave quadratic

    q_m(r_0) + sum_n [ grad_n q_m . (r_n - r_n0) - 1/2 (r_n - r_n0)^T Q_mn (r_n - r_n0) ],
    Q_mn = 2 k^2 |c_m| |f_n| sum_l |a_ml| u_ml u_ml^T,

since |c|^2 >= 2 Re(c_0^* c) - |c_0|^2 and cos(x) >= cos(x_0) - sin(x_0) (x - x_0) - (x - x_0)^2 / 2. The field-response
channel is published (arXiv 2210.05396); this minorant, with one curvature for each node and antenna, is this project's.

The paths given here are the auxiliary channels: what a node's transmit power is worth stands in their gains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.opt.least_distance import raise_least
from testbed.phy.aperture import Aperture, PathSet

_ROUNDING = 1e-10
"""Share of the spacing that rounding may take."""
_SOLVED = 1e-7
"""Share of the gain below which a further rise of the convex step counts as none; Newton's steps overshoot it."""


def gains(paths: PathSet, positions_m: np.ndarray, combiner: np.ndarray) -> np.ndarray:
    """|f^H h_m(r)|^2, shape [..., num_nodes].

    Args:
        paths: auxiliary channels.
        positions_m: array frame, shape [..., num_antennas, 2].
        combiner: f, shape [..., num_antennas].
    """
    heard = np.einsum("...n,...nm->...m", combiner.conj(), paths.channel(positions_m))
    return heard.real**2 + heard.imag**2


def gradient(paths: PathSet, positions_m: np.ndarray, combiner: np.ndarray) -> np.ndarray:
    """Slope of every gain with every position, 1/m, shape [..., num_nodes, num_antennas, 2].

    Args:
        paths: auxiliary channels.
        positions_m: array frame, shape [..., num_antennas, 2].
        combiner: f, shape [..., num_antennas].
    """
    waves = paths.waves(positions_m)
    heard = np.einsum("...n,...nml->...m", combiner.conj(), waves)
    turning = np.einsum("...n,...nml,mli->...mni", combiner.conj(), waves, paths.directions)
    wavenumber = 2.0 * np.pi / paths.wavelength_m
    return 2.0 * wavenumber * np.real(1j * heard.conj()[..., None, None] * turning)


def curvature(paths: PathSet, positions_m: np.ndarray, combiner: np.ndarray) -> np.ndarray:
    """Q_mn of the minorant, 1/m^2, shape [..., num_nodes, num_antennas, 2, 2].

    Args:
        paths: auxiliary channels.
        positions_m: where the minorant touches, shape [..., num_antennas, 2].
        combiner: f, shape [..., num_antennas].
    """
    heard = np.sqrt(gains(paths, positions_m, combiner))
    wavenumber = 2.0 * np.pi / paths.wavelength_m
    spread = np.einsum("ml,mli,mlj->mij", np.abs(paths.gains), paths.directions, paths.directions)
    return 2.0 * wavenumber**2 * np.einsum("...m,...n,mij->...mnij", heard, np.abs(combiner), spread)


@dataclass(frozen=True)
class Minorant:
    """Concave quadratics that are nowhere above the gains and touch them in value and slope.

    Attributes:
        anchor_m: r_0, shape [num_antennas, 2].
        values: q_m(r_0), shape [num_nodes].
        slopes: 1/m, shape [num_nodes, num_antennas, 2].
        curvature: Q_mn, 1/m^2, shape [num_nodes, num_antennas, 2, 2].
    """

    anchor_m: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
    curvature: np.ndarray

    def at(self, positions_m: np.ndarray) -> np.ndarray:
        """The quadratics, shape [..., num_nodes].

        Args:
            positions_m: array frame, shape [..., num_antennas, 2].
        """
        moved_m = positions_m - self.anchor_m
        rise = np.einsum("mni,...ni->...m", self.slopes, moved_m)
        return self.values + rise - 0.5 * np.einsum("...ni,mnij,...nj->...m", moved_m, self.curvature, moved_m)


def minorant(paths: PathSet, positions_m: np.ndarray, combiner: np.ndarray) -> Minorant:
    """The minorant that touches every node's gain at these positions.

    Args:
        paths: auxiliary channels.
        positions_m: r_0, shape [num_antennas, 2].
        combiner: f, shape [num_antennas].
    """
    waves, u = paths.waves(positions_m), paths.directions
    wavenumber = 2.0 * np.pi / paths.wavelength_m
    # every wave under the combiner, [num_antennas, num_nodes, num_paths]
    under = combiner.conj()[:, None, None] * waves
    heard = under.sum(axis=(0, 2))
    turning = np.matmul(under[:, :, None, :], u)[:, :, 0, :]
    slopes = (-2.0 * wavenumber) * (heard.conj()[:, None] * turning).imag
    spread = np.matmul(np.swapaxes(u, 1, 2), np.abs(paths.gains)[..., None] * u)
    size = np.abs(heard)
    weight = (2.0 * wavenumber**2) * size[:, None] * np.abs(combiner)
    return Minorant(
        anchor_m=positions_m,
        values=size**2,
        slopes=slopes.transpose(1, 0, 2),
        curvature=weight[:, :, None, None] * spread[:, None],
    )


class Freedom:
    """Which coordinates of an aperture may change, and the linear rows that keep a step inside it.

    The spacing is not convex; around places that keep it, e . (r_i - r_j) >= D with e the unit vector from j to i is
    stricter than ||r_i - r_j|| >= D, so that a step which keeps the rows keeps the spacing.
    """

    def __init__(self, aperture: Aperture) -> None:
        self.aperture = aperture
        count = aperture.num_antennas
        low, high = aperture.region_m[:, 0], aperture.region_m[:, 1]
        # [num_antennas, 2]
        self.free = aperture.movable[:, None] & (high > low)[None, :]
        self.count = int(self.free.sum())
        first, second = np.triu_indices(count, 1)
        paired = aperture.movable[first] | aperture.movable[second]
        self.first, self.second = first[paired], second[paired]
        self._low = np.broadcast_to(low, (count, 2))[self.free]
        self._high = np.broadcast_to(high, (count, 2))[self.free]
        self._eye = np.eye(self.count)
        # which column a free coordinate has; the last one collects the coordinates that are fixed
        column = np.full((count, 2), self.count)
        column[self.free] = np.arange(self.count)
        self._columns = np.stack([column[self.first], column[self.second]], axis=1)

    def rows(self, positions_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows A d >= b on a step d of the free coordinates: pairs first, then low and high edges; b <= 0.

        Args:
            positions_m: keep the aperture, shape [num_antennas, 2].

        Returns:
            A, shape [num_rows, num_free], and b in metres, shape [num_rows].
        """
        apart_m = positions_m[self.first] - positions_m[self.second]
        length_m = np.maximum(np.sqrt(apart_m[:, 0] ** 2 + apart_m[:, 1] ** 2), 1e-300)
        unit = apart_m / length_m[:, None]
        count = len(self.first)
        pairs = np.zeros((count, self.count + 1))
        index = np.arange(count)[:, None]
        pairs[index, self._columns[:, 0]] = unit
        pairs[index, self._columns[:, 1]] -= unit
        here = positions_m[self.free]
        bounds = np.concatenate([self.aperture.min_spacing_m - length_m, self._low - here, here - self._high])
        return np.concatenate([pairs[:, :-1], self._eye, -self._eye]), np.minimum(bounds, 0.0)

    def bend(self, positions_m: np.ndarray, pushes: np.ndarray) -> np.ndarray:
        """Second derivative of sum_p nu_p ||r_i - r_j|| over the free coordinates, shape [num_free, num_free].

        Args:
            positions_m: shape [num_antennas, 2].
            pushes: nu of every pair, shape [num_pairs].
        """
        count = len(positions_m)
        whole = np.zeros((count, 2, count, 2))
        for pair in np.flatnonzero(pushes):
            i, j = self.first[pair], self.second[pair]
            apart_m = positions_m[i] - positions_m[j]
            length_m = float(np.hypot(*apart_m))
            block = pushes[pair] / length_m * (np.eye(2) - np.outer(apart_m, apart_m) / length_m**2)
            whole[i, :, i] += block
            whole[j, :, j] += block
            whole[i, :, j] -= block
            whole[j, :, i] -= block
        return whole[self.free][:, self.free]

    def moved(self, positions_m: np.ndarray, step_m: np.ndarray) -> np.ndarray:
        """Positions after a step of the free coordinates, clipped to the region, shape [num_antennas, 2].

        Args:
            positions_m: shape [num_antennas, 2].
            step_m: shape [num_free].
        """
        after = positions_m.copy()
        after[self.free] = np.clip(positions_m[self.free] + step_m, self._low, self._high)
        return after

    def kept(self, positions_m: np.ndarray) -> bool:
        """Whether every pair keeps the spacing, up to rounding.

        Args:
            positions_m: shape [num_antennas, 2].
        """
        apart_m = positions_m[self.first] - positions_m[self.second]
        least = self.aperture.min_spacing_m * (1.0 - _ROUNDING)
        return bool(np.all(apart_m[:, 0] ** 2 + apart_m[:, 1] ** 2 >= least**2)) if len(apart_m) else True


def improve_positions(
    paths: PathSet,
    freedom: Freedom,
    positions_m: np.ndarray,
    combiner: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    max_steps: int = 12,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions where the least minorant is largest: the convex step of positions under a fixed combiner.

    maximise over r the minimum over m of minorant_m(r), r in the region, spacing linearised around r_0

    Solved by programmes with linear slopes and the Lagrangian's curvature sum_m mu_m Q_mn, a Newton method for it.

    Args:
        paths: auxiliary channels.
        freedom: of the aperture.
        positions_m: r_0, keep the aperture, shape [num_antennas, 2].
        combiner: f, shape [num_antennas].
        weights: mu to begin with, as a step before gave them, shape [num_nodes]; all alike if None.
        max_steps: of the Newton method.

    Returns:
        positions, shape [num_antennas, 2], where the least gain is not below that at r_0; and mu, shape [num_nodes].
    """
    touching = minorant(paths, positions_m, combiner)
    count, free = freedom.count, freedom.free
    if count == 0:
        return positions_m, np.full(len(touching.values), 1.0 / len(touching.values))
    slopes, bend = touching.slopes[:, free], _whole(touching.curvature, free)
    nodes, values, level = len(slopes), touching.values, float(touching.values.min())
    rows, bounds = freedom.rows(positions_m)
    step = np.zeros(count)
    weights = np.full(nodes, 1.0 / nodes) if weights is None else weights
    flat, diagonal = bend.reshape(nodes, -1), np.arange(count) * (count + 1)
    floor = 1e-9 * float(np.mean(flat[:, diagonal])) + 1e-300
    for _ in range(max_steps):
        bent = bend @ step
        charge = weights @ flat
        charge[diagonal] += floor
        root = np.linalg.inv(np.linalg.cholesky(charge.reshape(count, count))).T
        raised = raise_least(values, slopes - bent, root, rows, np.minimum(bounds - rows @ step, 0.0))
        if raised is None or raised.level - level <= _SOLVED * abs(level):
            break
        weights = raised.weights
        share, before = 1.0, level
        while share > 1e-3:
            tried = step + share * raised.step
            reached = touching.values + slopes @ tried - 0.5 * (bend @ tried @ tried)
            if reached.min() > level:
                step, values, level = tried, reached, float(reached.min())
                break
            share *= 0.5
        if level - before <= _SOLVED * abs(level):
            break
    after = freedom.moved(positions_m, step)
    return (after if freedom.kept(after) else positions_m), weights


def _whole(curvature: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The antennas' blocks as one matrix over the free coordinates for each node, [num_nodes, num_free, num_free]."""
    nodes, count = curvature.shape[:2]
    index = np.arange(count)
    whole = np.zeros((nodes, count, 2, count, 2))
    whole[:, index, :, index, :] = curvature.transpose(1, 0, 2, 3)
    square = whole.reshape(nodes, 2 * count, 2 * count)
    kept = np.flatnonzero(free.ravel())
    return square if free.all() else square[:, kept[:, None], kept]
