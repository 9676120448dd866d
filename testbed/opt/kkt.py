"""First-order conditions of max-min problems: how well they hold, and Newton steps towards where they do.

maximise over x the least q_k(x) subject to g_b(x) >= 0 is stationary where weights mu >= 0 with sum 1 and multipliers
nu >= 0 exist, on what is active, with

    sum_k mu_k grad q_k + sum_b nu_b grad g_b = 0.

Reference: J. Nocedal, S. Wright, "Numerical Optimization", 2006, chapters 12 and 18.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

_SUM_WEIGHT = 1e3
"""How heavily the sum of the weights counts in the fit, beside slopes of size one."""


@dataclass(frozen=True)
class Stationarity:
    """How well the first-order conditions hold.

    Attributes:
        residual: norm of what the best weights and multipliers leave, in the slopes' unit.
        weights: mu, sum 1, shape [num_functions].
        multipliers: nu, shape [num_rows].
    """

    residual: float
    weights: np.ndarray
    multipliers: np.ndarray


def stationarity(slopes: np.ndarray, rows: np.ndarray) -> Stationarity:
    """Best weights and multipliers, and what they leave of the first-order conditions.

    minimise over mu >= 0, sum mu = 1, nu >= 0   || sum_k mu_k grad q_k + sum_b nu_b grad g_b ||

    Args:
        slopes: gradients of the active functions, shape [num_functions, num_variables].
        rows: gradients of the active constraints, shape [num_rows, num_variables].

    Raises:
        ValueError: there is no function.
    """
    num_functions, num_variables = slopes.shape
    if num_functions == 0:
        raise ValueError("a max-min problem needs at least one active function")
    size = float(np.sqrt(np.max(np.sum(slopes**2, axis=1)))) or 1.0
    length = np.maximum(np.linalg.norm(rows, axis=1), 1e-300)
    table = np.zeros((num_variables + 1, num_functions + len(rows)))
    table[:-1, :num_functions] = slopes.T / size
    table[:-1, num_functions:] = (rows / length[:, None]).T
    table[-1, :num_functions] = _SUM_WEIGHT
    target = np.zeros(num_variables + 1)
    target[-1] = _SUM_WEIGHT
    fitted, _ = nnls(table, target)
    weights = fitted[:num_functions] / fitted[:num_functions].sum()
    multipliers = fitted[num_functions:] * size / length / fitted[:num_functions].sum()
    left = weights @ slopes + multipliers @ rows
    return Stationarity(float(np.linalg.norm(left)), weights, multipliers)


def newton(
    hessian: np.ndarray, values: np.ndarray, slopes: np.ndarray, gaps: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """One Newton step on the first-order conditions with the active set held; None where they are singular.

    Solves for the step d and the new weights and multipliers

        H d + sum_k mu_k grad q_k + sum_b nu_b grad g_b = 0,   q_k + grad q_k . d = t,   g_b + grad g_b . d = 0,
        sum_k mu_k = 1

    Args:
        hessian: H of the Lagrangian sum mu q + sum nu g, shape [num_variables, num_variables].
        values: q_k of the active functions, shape [num_functions].
        slopes: their gradients, shape [num_functions, num_variables].
        gaps: g_b of the active constraints, shape [num_rows].
        rows: their gradients, shape [num_rows, num_variables].

    Returns:
        d, mu, nu.
    """
    num_variables, num_functions, num_rows = len(hessian), len(values), len(gaps)
    level, first = num_variables, num_variables + 1
    last = first + num_functions
    matrix = np.zeros((last + num_rows, last + num_rows))
    right = np.zeros(last + num_rows)
    matrix[:level, :level] = hessian
    matrix[:level, first:last] = slopes.T
    matrix[:level, last:] = rows.T
    matrix[level, first:last] = -1.0
    matrix[first:last, :level] = slopes
    matrix[first:last, level] = -1.0
    matrix[last:, :level] = rows
    right[level] = -1.0
    right[first:last] = -values
    right[last:] = -gaps
    try:
        solved = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(solved).all():
        return None
    return solved[:level], solved[first:last], solved[last:]
