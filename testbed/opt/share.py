"""One divisible resource among many tasks, where a task's rate is concave in its share.

A share b gives a task of reach g the rate

    phi(b; g) = b log2(1 + g / b),                                                                         (1)

the perspective of a logarithm: concave and increasing in b, 0 at b = 0, below g / ln 2 however large b is. With
u = g / b the rate r is reached where ln(1 + u) = y u, y = r ln 2 / g: the inverse is g / u(y), by Newton's method on a
concave function from the right, which is monotone, or by Lambert's W,

    phi^-1(r; g) = g / (-W_-1(-y exp(-y)) / y - 1).                                                        (2)

Tasks with offsets o_k and works a_k that are to finish as early as possible together,

    minimise over b, tau: tau    s.t.  o_k + a_k / phi(b_k; g_k) <= tau,    sum_k b_k <= B,                 (3)

all finish at tau with S(tau) = sum_k phi^-1(a_k / (tau - o_k); g_k) = B. S falls and is convex in tau. The root is
found by Newton's method on 1 / S(tau) = 1 / B, which is close to a line, together with all u_k: one logarithm a task
and step. Where that does not close, a bracket and exact inverses do.

Shares may have bounds, least_k <= b_k, and a rate that no longer grows beyond most_k: phi(min(b, most_k); g_k) is as
concave as phi. Then sum_k clip(phi^-1(a_k / (tau - o_k); g_k), least_k, most_k) = B, and the last of the ends counts:
whoever has the most may end later than the others, and whoever has the least earlier.

Every function takes a batch of instances in leading axes.

Reference: S. Boyd, L. Vandenberghe, "Convex Optimization", 2004, sections 3.2.6 (perspective) and 5.5 (prices);
R. M. Corless et al., "On the Lambert W function", Adv. Comput. Math. 5, 1996.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from testbed.opt.bounded_share import bounded_ends
from testbed.opt.roots import falling_root

_LN2 = math.log(2.0)
_BLOCK = 8192
"""Numbers of one block of instances: what a step touches stays in cache."""

_CLOSE = 1e-8
"""Where Newton's method stops: its step is taken, and its error is the square."""

_LEAST_LEFT = 1e-15
"""Least time that a task has after its offset, relative to the offset: less than that cannot be told from none."""

_NEARLY_ONE = 1.0 - 2.0**-50
"""Highest y that has a root u: beyond it, rounding decides."""


@dataclass(frozen=True)
class MinMax:
    """The earliest common end of tasks that share a resource.

    Attributes:
        value: tau, shape [...]; infinite where no share makes every task end.
        share: b, shape [..., num_tasks], sums to the total, or to less where everybody has the most that is of use;
            NaN where the value is infinite.
        iterations: Newton steps of the slowest instance.
    """

    value: np.ndarray
    share: np.ndarray
    iterations: int


def concave_rate(share: np.ndarray | float, reach: np.ndarray | float) -> np.ndarray:
    """What a share gives, equation (1).

    Args:
        share: b, at least 0; any shape.
        reach: g, at least 0; any shape.

    Returns:
        phi(b; g), broadcast shape; 0 at share 0.
    """
    share, reach = np.asarray(share, np.float64), np.asarray(reach, np.float64)
    positive = share > 0
    return np.where(positive, share * np.log1p(reach / np.where(positive, share, 1.0)), 0.0) / _LN2


def concave_rate_slope(share: np.ndarray | float, reach: np.ndarray | float) -> np.ndarray:
    """Derivative of `concave_rate` by the share, (ln(1 + u) - u / (1 + u)) / ln 2 with u = g / b.

    Args:
        share: b, positive; any shape.
        reach: g, at least 0; any shape.

    Returns:
        broadcast shape.
    """
    return excess(np.asarray(reach, np.float64) / np.asarray(share, np.float64)) / _LN2


def excess(ratio: np.ndarray) -> np.ndarray:
    """E(u) = ln(1 + u) - u / (1 + u), without cancellation at small u. Any shape, u at least 0."""
    small = ratio < 1e-3
    direct = np.log1p(ratio) - ratio / (1.0 + ratio)
    if not small.any():
        return direct
    # E(u) = sum over n >= 2 of (-1)^n (n - 1) / n u^n
    series = ratio**2 * (1 / 2 - ratio * (2 / 3 - ratio * (3 / 4 - ratio * (4 / 5 - ratio * (5 / 6)))))
    return np.where(small, series, direct)


def share_for(rate: np.ndarray | float, reach: np.ndarray | float) -> np.ndarray:
    """Smallest share that gives a rate, equation (2).

    Args:
        rate: r, at least 0; any shape.
        reach: g, at least 0; any shape.

    Returns:
        phi^-1(r; g), broadcast shape; infinite where the rate is out of reach, r >= g / ln 2.
    """
    rate, reach = np.broadcast_arrays(np.asarray(rate, np.float64), np.asarray(reach, np.float64))
    wanted = rate > 0
    level = np.divide(rate * _LN2, reach, out=np.where(wanted, np.inf, 0.0), where=wanted & (reach > 0))
    within = wanted & (level < 1.0)
    ratio = ratio_at(np.where(within, level, 0.5))
    return np.where(within, reach / ratio, np.where(wanted, np.inf, 0.0))


def ratio_at(level: np.ndarray) -> np.ndarray:
    """The positive root u of ln(1 + u) = y u.

    Newton's method from a lower bound of the root; after one step it comes down on it monotonically.

    Args:
        level: y, inside (0, 1); any shape.

    Returns:
        u, the shape of y.
    """
    ratio = _first_ratio(level)
    for _ in range(12):
        step = (np.log1p(ratio) - level * ratio) / (1.0 / (1.0 + ratio) - level)
        ratio = ratio - step
        # what rounding leaves of ln(1 + u) - y u, over its slope, is the best that can be had
        if np.all(np.abs(step) <= 1e-9 * ratio + 1e-15):
            break
    return ratio


def min_max_share(
    work: np.ndarray,
    offset: np.ndarray,
    reach: np.ndarray,
    total: np.ndarray | float,
    *,
    least: np.ndarray | float | None = None,
    most: np.ndarray | float | None = None,
    max_steps: int = 40,
) -> MinMax:
    """Divide a resource such that the last task ends as early as it can, problem (3).

    A task without work takes no share and ends at its offset.

    Args:
        work: a, at least 0, shape [..., num_tasks].
        offset: o, the shape of `work`.
        reach: g, at least 0, the shape of `work`.
        total: B, positive, shape [...] or a scalar.
        least: smallest shares, at least 0, a scalar or of a shape that broadcasts to that of `work`; none if absent.
        most: shares beyond which more is of no use, not below the least; likewise.
        max_steps: of Newton's method, before bisection takes over.

    Returns:
        value [...], share [..., num_tasks]. Tasks with work end together, at the value; where a task without work ends
        last, together and not after it. With bounds those between them end together, as early as the others leave it to
        them.

    Raises:
        ValueError: shapes differ, no task, or a number out of range.
    """
    if least is not None or most is not None:

        def divide(*rows: np.ndarray) -> tuple[np.ndarray, int]:
            found = min_max_share(*rows, max_steps=max_steps)
            return found.share, found.iterations

        given = _checked(work, offset, reach, total)
        return MinMax(*bounded_ends(divide, concave_rate, *given, least, most))
    work, offset, reach, total = _checked(work, offset, reach, total)
    shape, num_tasks = work.shape[:-1], work.shape[-1]
    work, offset, reach = (item.reshape(-1, num_tasks) for item in (work, offset, reach))
    total = total.reshape(-1, 1)
    value, share = np.empty((len(work), 1)), np.empty_like(work)
    rows, most = max(1, _BLOCK // num_tasks), 0
    for begin in range(0, len(work), rows):
        part = slice(begin, begin + rows)
        value[part], share[part], steps = _min_max(work[part], offset[part], reach[part], total[part], max_steps)
        most = max(most, steps)
    return MinMax(value.reshape(shape), share.reshape(*shape, num_tasks), most)


def min_max_linear(
    work: np.ndarray,
    offset: np.ndarray,
    efficiency: np.ndarray,
    total: np.ndarray | float,
    *,
    least: np.ndarray | float | None = None,
    most: np.ndarray | float | None = None,
    max_steps: int = 100,
) -> MinMax:
    """Problem (3) where the rate is proportional to the share, phi(b) = c b.

    sum_k a_k / (c_k (tau - o_k)) = B: the inverse of the left side is concave in tau, so Newton's method on it from the
    left is monotone.

    Args:
        work: a, at least 0, shape [..., num_tasks].
        offset: o, the shape of `work`.
        efficiency: c, at least 0, the shape of `work`.
        total: B, positive, shape [...] or a scalar.
        least, most: bounds of the shares, as of `min_max_share`.
        max_steps: of Newton's method.

    Returns:
        value [...], share [..., num_tasks].

    Raises:
        ValueError: shapes differ, no task, or a number out of range.
    """
    if least is not None or most is not None:

        def divide(*rows: np.ndarray) -> tuple[np.ndarray, int]:
            found = min_max_linear(*rows, max_steps=max_steps)
            return found.share, found.iterations

        given = _checked(work, offset, efficiency, total)
        return MinMax(*bounded_ends(divide, lambda share, pace: share * pace, *given, least, most))
    work, offset, efficiency, total = _checked(work, offset, efficiency, total)
    total = total[..., None]
    idle = work <= 0
    stuck = np.any(~idle & (efficiency <= 0), axis=-1, keepdims=True)
    weight = np.where(idle, 0.0, work / np.where(efficiency > 0, efficiency, 1.0))
    # each alone with the whole resource: no common end is earlier
    alone = np.where(weight > 0, np.maximum(weight / total, _LEAST_LEFT * np.abs(offset)), 0.0)
    value = floor = np.max(offset + alone, axis=-1, keepdims=True)
    steps = 0
    while steps < max_steps:
        steps += 1
        left = np.where(weight > 0, value - offset, 1.0)
        share = weight / left
        taken, fall = share.sum(axis=-1, keepdims=True), (share / left).sum(axis=-1, keepdims=True)
        move = np.where(fall > 0, taken * (taken / total - 1.0) / np.where(fall > 0, fall, 1.0), 0.0)
        before, value = value, np.maximum(value + move, floor)
        if np.all(np.abs(value - before) <= 4e-16 * np.abs(value)):
            break
    left = np.where(weight > 0, value - offset, 1.0)
    asleep = np.all(idle, axis=-1, keepdims=True)
    share = np.where(asleep, 1.0, weight / left)
    # what rounding of tau leaves over goes where a common move of all ends puts it
    moved = np.where(stuck, 1.0, share / left)
    share = share + (total - share.sum(axis=-1, keepdims=True)) * (moved / moved.sum(axis=-1, keepdims=True))
    share = np.where(stuck, np.nan, share)
    return MinMax(np.where(stuck, np.inf, value)[..., 0], share, steps)


def clearing_price(
    demand: Callable[[np.ndarray], np.ndarray],
    total: np.ndarray | float,
    low: np.ndarray | float,
    high: np.ndarray | float,
    *,
    tolerance: float = 1e-13,
) -> np.ndarray:
    """Price at which a demand that falls with it meets what there is: its logarithm is bracketed.

    Where even the lowest price asks for less than the total, the lowest is returned; where the highest asks for more,
    the highest.

    Args:
        demand: total demand at prices of shape [...], shape [...]; does not rise with the price.
        total: what there is, shape [...] or a scalar.
        low: lowest price, positive, shape [...] or a scalar.
        high: highest price, likewise.
        tolerance: relative, of the price.

    Returns:
        shape [...].

    Raises:
        ValueError: a price bound is not positive, or low lies above high.
    """
    shape = np.broadcast_shapes(np.shape(total), np.shape(low), np.shape(high))
    first, last = (np.broadcast_to(np.asarray(item, np.float64), shape) for item in (low, high))
    if not (np.all(first > 0) and np.all(first <= last) and np.all(np.isfinite(last))):
        raise ValueError("prices are sought between two positive, finite bounds, the lower one first")
    return np.exp(falling_root(lambda x: demand(np.exp(x)) - total, np.log(first), np.log(last), tolerance=tolerance))


def _first_ratio(level: np.ndarray) -> np.ndarray:
    """A lower bound of u(y) from which Newton's first step lands above the root: ln(1 + u) >= 2 u / (2 + u)."""
    return np.maximum(2.0 / level - 2.0, np.where(level < 0.5, -2.0 * np.log(level) / level, 0.0))


def _checked(
    work: np.ndarray, offset: np.ndarray, reach: np.ndarray, total: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    work, offset, reach = (np.asarray(item, np.float64) for item in (work, offset, reach))
    if work.ndim == 0 or not work.shape == offset.shape == reach.shape or work.shape[-1] == 0:
        raise ValueError(f"works {work.shape}, offsets {offset.shape} and reaches {reach.shape} are not of one shape")
    total = np.broadcast_to(np.asarray(total, np.float64), work.shape[:-1])
    if not (np.all(total > 0) and np.all(np.isfinite(total))):
        raise ValueError("what is divided must be positive and finite")
    if not (np.all(work >= 0) and np.all(reach >= 0) and np.isfinite(offset).all()):
        raise ValueError("works and reaches must not be negative, offsets must be finite")
    if not (np.isfinite(work).all() and np.isfinite(reach).all()):
        raise ValueError("works and reaches must be finite")
    return work, offset, reach, total


def _min_max(
    work: np.ndarray, offset: np.ndarray, reach: np.ndarray, total: np.ndarray, max_steps: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Problem (3) for instances in rows: work, offset, reach [num, num_tasks], total [num, 1]."""
    idle = (work <= 0) | (reach <= 0)
    if not idle.any():
        return _newton(work * _LN2 / reach, offset, reach, total, max_steps)
    # tasks that take nothing stand in as doubles of the row's first active one, with reach 0: their share is 0
    stuck = np.any((work > 0) & (reach <= 0), axis=-1, keepdims=True)
    floor = np.max(np.where(work <= 0, offset, -np.inf), axis=-1, keepdims=True)
    asleep = np.all(idle, axis=-1, keepdims=True)
    model = np.argmin(idle, axis=-1, keepdims=True)
    least = np.where(idle, 1.0, work * _LN2 / np.where(idle, 1.0, reach))
    least = np.where(idle, np.take_along_axis(least, model, axis=-1), least)
    offset = np.where(idle, np.take_along_axis(offset, model, axis=-1), offset)
    value, share, steps = _newton(least, offset, np.where(asleep, 1.0, np.where(idle, 0.0, reach)), total, max_steps)
    value = np.where(stuck, np.inf, np.where(asleep, floor, np.maximum(value, floor)))
    return value, np.where(stuck, np.nan, share), steps


def _newton(
    least: np.ndarray, offset: np.ndarray, reach: np.ndarray, total: np.ndarray, max_steps: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Newton's method on tau and all u_k at once.

    Args:
        least: c_k = a_k ln 2 / g_k, the time that is left even with an unlimited share, positive, [num, num_tasks].
    """
    span = np.maximum(reach / total, 1e-300)
    # each alone with the whole resource: no common end is earlier
    alone = np.maximum(least * (span / np.log1p(span)), _LEAST_LEFT * np.abs(offset))
    low = np.max(offset + alone, axis=-1, keepdims=True)
    value = _linear_guess(least * reach / np.log1p(least.shape[-1] * span), offset, total, low)
    ratio, steps = None, 0
    while steps < max_steps:
        steps += 1
        left = value - offset
        level = least / left
        ratio = _first_ratio(level) if ratio is None else np.maximum(ratio, 2.0 / level - 2.0)
        slope = 1.0 / (1.0 + ratio) - level
        change = (np.log1p(ratio) - level * ratio) / slope
        ratio = ratio - change
        # du / dtau = -u turn
        turn = level / (left * slope)
        share = reach / ratio
        taken = share.sum(axis=-1, keepdims=True)
        fall = (share * turn).sum(axis=-1, keepdims=True)
        # u is never below its root here, so a sum above the total proves that tau is too early
        low = np.where(taken > total, np.maximum(low, value), low)
        following = np.maximum(value - taken * (taken / total - 1.0) / fall, low)
        move, value = following - value, following
        open_end = (np.abs(taken / total - 1.0) > _CLOSE) & (np.abs(move) > 4e-16 * np.abs(value))
        if not open_end.any() and np.all(np.abs(change) <= _CLOSE * ratio + 1e-15):
            break
        ratio = ratio - ratio * turn * move
    else:
        value = _bisected(least, offset, reach, total, low)
        ratio = ratio_at(np.minimum(least / (value - offset), _NEARLY_ONE))
    left = value - offset
    level = np.minimum(least / left, _NEARLY_ONE)
    ratio = np.maximum(ratio, 2.0 / level - 2.0)
    slope = 1.0 / (1.0 + ratio) - level
    share = reach / (ratio - (np.log1p(ratio) - level * ratio) / slope)
    # what rounding of tau leaves over goes where a common move of all ends puts it
    moved = share * level / (left * slope)
    spare = total - share.sum(axis=-1, keepdims=True)
    return value, share + spare * (moved / moved.sum(axis=-1, keepdims=True)), steps


def _linear_guess(weight: np.ndarray, offset: np.ndarray, total: np.ndarray, low: np.ndarray) -> np.ndarray:
    """About where the tasks would end at the efficiency that equal shares have: shape [num, 1]."""
    value = low
    for _ in range(3):
        share = weight / (value - offset)
        taken = share.sum(axis=-1, keepdims=True)
        fall = (share / (value - offset)).sum(axis=-1, keepdims=True)
        value = np.maximum(value + taken * (taken / total - 1.0) / fall, low)
    return value


def _bisected(
    least: np.ndarray, offset: np.ndarray, reach: np.ndarray, total: np.ndarray, low: np.ndarray
) -> np.ndarray:
    """Tau by a bracket and exact inverses, shape [num, 1]: for instances at the edge of double precision."""

    def surplus(value: np.ndarray) -> np.ndarray:
        level = np.minimum(least / (value - offset), _NEARLY_ONE)
        return (reach / ratio_at(level)).sum(axis=-1, keepdims=True) - total

    span = np.maximum(least.shape[-1] * reach / total, 1e-300)
    equal = np.max(offset + least * (span / np.log1p(span)), axis=-1, keepdims=True)
    return falling_root(surplus, low, np.maximum(low, equal), tolerance=4e-16)
