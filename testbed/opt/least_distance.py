"""Convex quadratic programmes with inequalities, solved as the point nearest to the origin.

    minimise 1/2 ||z||^2   subject to  G z >= g

is solved by one nonnegative least-squares fit: with u >= 0 that fits (G, g)^T u to (0, ..., 0, 1) best and r what is
left over, z = -r_first / r_last and the multipliers are u / -r_last. Every strictly convex quadratic programme has this
form in the coordinates of a root of its inverse Hessian, and so has the maximisation of the least of several concave
functions that share one Hessian.

Reference: C. Lawson, R. Hanson, "Solving Least Squares Problems", 1974, chapter 23 (least distance programming).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

_NEAR = 0.25
"""Rows that the unconstrained centre keeps by less than this much of its own length are in the first working set."""
_LEVEL_WEIGHT = 1e-2
"""Curvature of the level's own term: small, so that the level is free, and large enough for double precision."""


@dataclass(frozen=True)
class Nearest:
    """A programme's optimum.

    Attributes:
        point: z, shape [num_variables].
        multipliers: of the rows, all >= 0, shape [num_rows]; z = G^T u.
    """

    point: np.ndarray
    multipliers: np.ndarray


def least_distance(rows: np.ndarray, bounds: np.ndarray) -> Nearest | None:
    """Point nearest to the origin that keeps all rows; None where no point does.

    minimise 1/2 ||z||^2 subject to G z >= g

    Args:
        rows: G, shape [num_rows, num_variables].
        bounds: g, shape [num_rows].
    """
    num_rows, num_variables = rows.shape
    if num_rows == 0 or bounds.max() <= 0.0:
        return Nearest(np.zeros(num_variables), np.zeros(num_rows))
    # bounds of size one keep the two parts of the fit alike
    scale = float(bounds.max())
    table = np.empty((num_variables + 1, num_rows))
    table[:-1] = rows.T
    table[-1] = bounds / scale
    target = np.zeros(num_variables + 1)
    target[-1] = 1.0
    try:
        weights, _ = nnls(table, target)
    except RuntimeError:  # the fit's iterations ran out: rows that nearly repeat one another
        return None
    left = table @ weights
    rest = 1.0 - left[-1]
    if rest <= 1e-13:
        return None
    return Nearest(left[:-1] * (scale / rest), weights * (scale / rest))


def quadratic(root: np.ndarray, gradient: np.ndarray, rows: np.ndarray, bounds: np.ndarray) -> Nearest | None:
    """Optimum of a strictly convex quadratic programme; None where no point keeps the rows.

    minimise 1/2 d^T B d + g^T d   subject to  A d >= b,     B^-1 = R R^T

    With d = R (z - R^T g) it is the point z nearest to the origin under A R z >= b + A R R^T g. Rows far from the free
    optimum are looked at only when the optimum without them breaks them, which changes no optimum.

    Args:
        root: R, shape [num_variables, num_variables].
        gradient: g, shape [num_variables].
        rows: A, shape [num_rows, num_variables].
        bounds: b, shape [num_rows].
    """
    centre = root.T @ gradient
    rooted = rows @ root
    needed = bounds + rooted @ centre
    reach = np.sqrt(np.einsum("ij,ij->i", rooted, rooted))
    active = needed > -_NEAR * reach
    while True:
        nearest = least_distance(rooted[active], needed[active])
        if nearest is None:
            return None
        broken = (rooted @ nearest.point < needed - 1e-11 * (1.0 + reach)) & ~active
        if not broken.any():
            break
        active |= broken
    multipliers = np.zeros(len(rows))
    multipliers[active] = nearest.multipliers
    return Nearest(root @ (nearest.point - centre), multipliers)


@dataclass(frozen=True)
class Raised:
    """Optimum of a step that raises the least of several functions.

    Attributes:
        step: d, shape [num_variables].
        level: what every model reaches at least, less the damping's share.
        weights: of the functions, >= 0, sum 1, shape [num_functions].
        multipliers: of the rows, on the scale of the weights, shape [num_rows].
    """

    step: np.ndarray
    level: float
    weights: np.ndarray
    multipliers: np.ndarray


def raise_least(
    values: np.ndarray, slopes: np.ndarray, root: np.ndarray, rows: np.ndarray, bounds: np.ndarray
) -> Raised | None:
    """Step that raises the least of several linear models under one quadratic charge; None where no step keeps rows.

    maximise over d, t   t - 1/2 d^T B d - w/2 (t - t_0)^2     subject to  q_k + g_k^T d >= t,  A d >= b

    The level's own charge, w = 0.01 times the scale of q, makes the programme strictly convex; it leaves the direction
    of the optimum as if B were larger by the factor 1 / (1 - w (t - t_0)), which is 1 where no step helps any more.

    Args:
        values: q_k, shape [num_functions].
        slopes: g_k, shape [num_functions, num_variables].
        root: R with B^-1 = R R^T, shape [num_variables, num_variables].
        rows: A, shape [num_rows, num_variables].
        bounds: b <= 0: standing still is allowed, shape [num_rows].
    """
    num_functions, num_variables = slopes.shape
    base = float(values.min())
    size = max(abs(base), 1e-12)
    weight = _LEVEL_WEIGHT / size
    wide = np.zeros((num_variables + 1, num_variables + 1))
    wide[:-1, :-1] = root
    wide[-1, -1] = 1.0 / np.sqrt(weight)
    gradient = np.zeros(num_variables + 1)
    gradient[-1] = -1.0
    table = np.zeros((num_functions + len(rows), num_variables + 1))
    table[:num_functions, :-1] = slopes
    table[:num_functions, -1] = -1.0
    table[num_functions:, :-1] = rows
    nearest = quadratic(wide, gradient, table, np.concatenate([base - values, bounds]))
    if nearest is None:
        return None
    weights = nearest.multipliers[:num_functions]
    total = float(weights.sum())
    if total <= 0.0:
        return None
    return Raised(
        step=nearest.point[:-1],
        level=base + float(nearest.point[-1]),
        weights=weights / total,
        multipliers=nearest.multipliers[num_functions:] / total,
    )
