"""One divisible resource among tasks that each take at least and at most so much.

Where every share b_k(t) falls with one number t, a common end or a price, shares between bounds that use up the
resource are those of

    sum_k clip(b_k(t), least_k, most_k) = B.

An unbounded division of what is left among the free tasks says on which side t lies: where its shares, clipped, exceed
B, t has to grow, and whoever is below its least stays there; otherwise whoever is above its most does. Each step fixes
somebody for good, so that it ends after at most as many steps as there are tasks.

Reference: G. R. Bitran, A. C. Hax, "Disaggregation and resource allocation using convex knapsack problems with bounded
variables", Management Science 27, 1981.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_ROUNDING = 1e-12
"""A resource is as large as all least or all most shares together where it differs from them by so little."""


def bounded_split(
    divide: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    least: np.ndarray,
    most: np.ndarray,
    total: np.ndarray,
) -> np.ndarray:
    """Shares between bounds; who is left free is divided as without bounds.

    Args:
        divide: rows [num_rows], free tasks of these rows [num_rows, num_tasks] and what is left for them [num_rows],
            positive -> their shares, adding up to that, shape [num_rows, num_tasks]; what it says of tasks that are
            not free does not count. Every free share rises with what is left.
        least: smallest shares, at least 0, shape [num, num_tasks].
        most: largest shares, at least `least`, may be infinite, the same shape.
        total: what is divided, shape [num].

    Returns:
        shape [num, num_tasks]; adds up to less than the total where everybody has the most, NaN where even the least
        shares exceed it.
    """
    share = np.where(np.isfinite(most), most, 0.0)
    scarce, ample = least.sum(axis=1) >= total * (1.0 - _ROUNDING), most.sum(axis=1) <= total * (1.0 + _ROUNDING)
    share[scarce] = least[scarce]
    share[least.sum(axis=1) > total * (1.0 + _ROUNDING)] = np.nan
    rows = np.flatnonzero(~(scarce | ample))
    free = np.ones((len(rows), least.shape[1]), dtype=bool)
    while len(rows):
        low, high, taken = least[rows], most[rows], share[rows]
        left = total[rows] - np.where(free, 0.0, taken).sum(axis=1)
        found = divide(rows, free, left)
        below, above = free & (found < low), free & (found > high)
        lack = np.where(below, low - found, 0.0).sum(axis=1)
        spare = np.where(above, found - np.where(above, high, 0.0), 0.0).sum(axis=1)
        scarce_now = (lack > spare)[:, None]
        held = np.where(scarce_now, below, above)
        bound = np.where(scarce_now, low, np.where(above, high, 0.0))
        taken = np.where(held, bound, np.where(free, found, taken))
        share[rows] = np.where(free & ~held, np.clip(taken, low, high), taken)
        free &= ~held
        # nobody beyond a bound, or nobody left: done
        going = held.any(axis=1) & free.any(axis=1)
        rows, free = rows[going], free[going]
    return share


def equal_split(least: np.ndarray, most: np.ndarray, total: float) -> np.ndarray:
    """Shares as equal as bounds allow: who needs more than an equal part gets its least, the others what remains.

    Args:
        least: smallest shares, at least 0, shape [num_tasks].
        most: shares beyond which more is of no use, not below the least; what is beyond stays unused.
        total: what is divided.

    Returns:
        shape [num_tasks]; plain equal parts, cut at the most, where even the least exceed the total.
    """
    equal = np.full(len(least), total / len(least))
    if np.any(least > equal) and least.sum() <= total:
        equal = bounded_split(
            lambda _, free, left: np.where(free, left[:, None] / free.sum(axis=1, keepdims=True), 0.0),
            least[None],
            np.full((1, len(least)), np.inf),
            np.array([total]),
        )[0]
    return np.minimum(equal, most)


def bounded_ends(
    solve: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, int]],
    rate: Callable[[np.ndarray, np.ndarray], np.ndarray],
    work: np.ndarray,
    offset: np.ndarray,
    reach: np.ndarray,
    total: np.ndarray,
    least: np.ndarray | float | None,
    most: np.ndarray | float | None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The earliest end of tasks whose shares have bounds, each ending at o_k + a_k / rate(min(b_k, most_k); reach_k).

    Args:
        solve: works, offsets, reaches [num_rows, num_tasks] and totals [num_rows] -> the shares of the earliest common
            end without bounds, and steps that it took.
        rate: of shares and reaches.
        work, offset, reach: of each task, shape [..., num_tasks].
        total: what is divided, shape [...].
        least, most: bounds that broadcast to the shape of `work`; none where absent.

    Returns:
        the last end [...], infinite where there is none; shares [..., num_tasks], NaN there; steps.

    Raises:
        ValueError: bounds that contradict each other.
    """
    shape, num_tasks, steps = work.shape, work.shape[-1], 0
    work, offset, reach = (item.reshape(-1, num_tasks) for item in (work, offset, reach))
    total = total.reshape(-1)
    low = np.broadcast_to(np.asarray(0.0 if least is None else least, np.float64), shape).reshape(-1, num_tasks)
    high = np.broadcast_to(np.asarray(np.inf if most is None else most, np.float64), shape).reshape(-1, num_tasks)
    if not (np.all(low >= 0) and np.isfinite(low).all() and np.all(low <= high)):
        raise ValueError("the least shares must be finite, not negative and not above the most")
    # a task without work takes the least
    high = np.where(work > 0, high, low)
    kept = np.flatnonzero(~np.any((work > 0) & ((reach <= 0) | (high <= 0)), axis=-1))

    def divide(places: np.ndarray, free: np.ndarray, left: np.ndarray) -> np.ndarray:
        nonlocal steps
        rows = kept[places]
        active = free & (work[rows] > 0)
        start = np.min(np.where(active, offset[rows], np.inf), axis=-1, keepdims=True)
        start = np.where(np.isfinite(start), start, 0.0)
        share, taken = solve(
            np.where(active, work[rows], 0.0), np.where(active, offset[rows], start), reach[rows], left
        )
        steps = max(steps, taken)
        return np.where(active, share, 0.0)

    share = np.full_like(work, np.nan)
    share[kept] = bounded_split(divide, low[kept], high[kept], total[kept])
    reached = rate(np.minimum(share, high), reach)
    end = offset + np.divide(work, reached, out=np.zeros_like(work), where=(work > 0) & (reached > 0))
    value = np.where(np.isnan(share).any(axis=-1), np.inf, end.max(axis=-1))
    return value.reshape(shape[:-1]), share.reshape(shape), steps
