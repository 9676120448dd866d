"""Roots of monotone functions, many at once: each element keeps a bracket of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_PLAIN_STEPS = 12
"""Newton steps before the bracket begins to shrink."""

_FLAT = 1e-200
"""Least slope that is divided by: a flat function is left for the end of its bracket."""


def falling_root(
    function: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, *, tolerance: float = 1e-13
) -> np.ndarray:
    """Elementwise root of functions that do not rise, from values alone.

    Inverse quadratic interpolation where three points allow it, bisection elsewhere.

    Args:
        function: at x of shape [...], shape [...].
        low: below the root, shape [...].
        high: above it, the same shape.
        tolerance: width of the bracket at which to stop, relative to the larger of 1 and |x|.

    Returns:
        shape [...]: where the function is at most 0, within the tolerance above the root; an end where the root lies
        beyond it.

    Reference:
        T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm", Adv. Eng. Softw. 28, 1997.
    """
    new, old = np.array(high, np.float64), np.array(low, np.float64)
    at_new, at_old = np.asarray(function(new), np.float64), np.asarray(function(old), np.float64)
    end = np.where(at_new > 0, new, old)
    outside = (at_new > 0) | (at_old <= 0)
    place = np.full(new.shape, 0.5)
    for _ in range(200):
        following = np.where(outside, end, new + place * (old - new))
        value = np.where(outside, 0.0, function(following))
        same = (value > 0) == (at_new > 0)
        third, at_third = np.where(same, new, old), np.where(same, at_new, at_old)
        old, at_old = np.where(same, old, new), np.where(same, at_old, at_new)
        new, at_new = following, value
        width = np.abs(old - new)
        finest = tolerance * np.maximum(1.0, np.abs(new))
        if np.all(outside | (width <= finest)):
            break
        place = _place(new, old, third, at_new, at_old, at_third)
        # never closer to an end than half the tolerance, so that the bracket closes from both sides
        margin = np.minimum(0.5, 0.5 * finest / np.maximum(width, np.finfo(float).tiny))
        place = np.clip(place, margin, 1.0 - margin)
    return np.where(outside, end, np.where(at_new <= 0, new, old))


def _place(
    new: np.ndarray, old: np.ndarray, third: np.ndarray, at_new: np.ndarray, at_old: np.ndarray, at_third: np.ndarray
) -> np.ndarray:
    """Where between new (0) and old (1) to look next."""
    with np.errstate(all="ignore"):
        along = (new - old) / (third - old)
        up = (at_new - at_old) / (at_third - at_old)
        smooth = (up**2 < along) & ((1.0 - up) ** 2 < 1.0 - along)
        quadratic = at_new / (at_old - at_new) * (at_third / (at_old - at_third)) + (third - new) / (old - new) * (
            at_new / (at_third - at_new)
        ) * (at_old / (at_third - at_old))
    return np.where(smooth & np.isfinite(quadratic), quadratic, 0.5)


def rising_root(
    function: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    low: np.ndarray,
    high: np.ndarray,
    start: np.ndarray,
    *,
    tolerance: float = 1e-12,
    max_steps: int = 200,
) -> np.ndarray:
    """Elementwise root of increasing functions: Newton's method inside a bracket, which shrinks where steps go astray.

    Args:
        function: value and derivative at x of shape [...].
        low: below the root, shape [...].
        high: above it.
        start: first guess, between the two.
        tolerance: of the last step, relative to the larger of 1 and |x|.
        max_steps: bisections included.

    Returns:
        shape [...]; an end where the root lies beyond it.
    """
    low, high = np.array(low, np.float64), np.array(high, np.float64)
    point = np.minimum(np.maximum(start, low), high)
    for _ in range(_PLAIN_STEPS):
        value, slope = function(point)
        following = np.minimum(np.maximum(point - value / np.maximum(slope, _FLAT), low), high)
        move, point = np.abs(following - point), following
        if np.all(move <= tolerance * np.maximum(1.0, np.abs(point))):
            return point
    before = high - low
    for _ in range(max_steps):
        value, slope = function(point)
        over = value > 0
        low, high = np.where(over, low, point), np.where(over, point, high)
        # a flat function is halved
        step = np.divide(value, slope, out=np.full(value.shape, np.inf), where=slope > 0)
        newton, finest = point - step, tolerance * np.maximum(1.0, np.abs(point))
        # an end may be the root, and rounding may pass it
        good = (newton >= low - finest) & (newton <= high + finest) & (np.abs(step) <= 0.75 * before)
        good |= np.abs(step) <= finest
        following = np.where(good, np.clip(newton, low, high), 0.5 * (low + high))
        before, point = np.abs(following - point), following
        if np.all(before <= finest):
            break
    return point
