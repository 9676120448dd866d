"""Power and bandwidth of one slot of LoRA switching: the two continuous steps, and both at once.

What a device k with a chosen module costs in a slot, given its share b and power p,

    J(p, b) = -A exp(-psi(b) / p) + C p,      C = Q tau,      A = V w G^2 rho + Z,

plus Q E^cp for computing. It takes part only where the sum is negative. All three steps are our reconstruction:

    power       z0 = -2 W_0(-sqrt(c) / 2), c = C psi / A:   p = min(P_max, psi / z0)                             (A10)
                at an interior optimum J = -A e^{-z0} (1 - z0): worth it only if z0 < 1, that is c < 1 / e
    bandwidth   psi(b) / p majorised at the present y = psi / p by weights omega = A e^{-y} / p:
                min sum omega psi(b), sum b = B:  b = S ln 2 / (tau (1 + W_0((lambda beta / (omega N0) - 1) / e))) (A11)
    both        f(b) = min_p J(p, b) has f' = omega psi' and, with theta = 1 / (2 - z) inside and z at full power,
                f'' = omega (psi'' - theta psi'^2 / psi). psi is log-convex, so f is convex wherever z <= 1: Newton's
                method on the shares, with omega psi'' in place of f'' where f is not convex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from scipy.special import lambertw

from testbed.phy.outage import required_power_slopes, required_power_w

_TINY = 1e-300


@dataclass(frozen=True)
class Terms:
    """What decides about power and bandwidth, one entry for each device (and module); all of one shape.

    Attributes:
        worth: A, what an update that arrives takes off the objective.
        price_per_w: C = Q tau.
        fixed_cost: Q E^cp.
        load_hz: S ln 2 / tau.
        noise_over_gain_w_hz: N0 / beta.
        max_power_w: P_max.
    """

    worth: np.ndarray
    price_per_w: np.ndarray
    fixed_cost: np.ndarray
    load_hz: np.ndarray
    noise_over_gain_w_hz: np.ndarray
    max_power_w: np.ndarray

    def of(self, modules: np.ndarray) -> Terms:
        """The entries of chosen modules.

        Args:
            modules: index of each device's module among those of these terms, shape [..., num_devices].

        Returns:
            entries of shape [..., num_devices].
        """
        devices = np.arange(modules.shape[-1])
        return Terms(*(getattr(self, one.name)[devices, modules] for one in fields(self)))

    def wide(self) -> Terms:
        """The same with an axis at the end, for several shares of each entry."""
        return Terms(*(getattr(self, one.name)[..., None] for one in fields(self)))


@dataclass(frozen=True)
class Reduced:
    """f(b) = min_p J(p, b) + Q E^cp and its derivatives, each of the shape of b.

    Attributes:
        cost: f.
        power_w: the p that attains it.
        required_w: psi(b).
        slope: f'.
        curvature: f''.
        majorant: omega psi'', the curvature of a convex bound of f from above that touches it at b.
    """

    cost: np.ndarray
    power_w: np.ndarray
    required_w: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    majorant: np.ndarray


def best_power_w(terms: Terms, required_w: np.ndarray) -> np.ndarray:
    """The power step (A10); 0 where sending costs more than it is worth.

    Args:
        terms: shape [...].
        required_w: psi, shape [...].

    Returns:
        watts, shape [...].
    """
    power_w, ratio = _stationary_power_w(terms, required_w)
    sent = terms.worth * np.exp(-np.minimum(ratio, 700.0)) > terms.price_per_w * power_w
    return np.where(sent & (terms.worth > 0), power_w, 0.0)


def _stationary_power_w(terms: Terms, required_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """min(P_max, psi / z0) and z = psi / p; z0 = 2 where no power is stationary, which is never worth it."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        level = terms.price_per_w * required_w / np.maximum(terms.worth, _TINY)
        level = np.where(np.isfinite(level), level, np.inf)
        stationary_w = required_w / stationary_ratio(level)
        power_w = np.where(stationary_w < terms.max_power_w, stationary_w, terms.max_power_w)
        return power_w, required_w / power_w


def stationary_ratio(level: np.ndarray) -> np.ndarray:
    """z0 = -2 W_0(-sqrt(c) / 2), the smaller root of z^2 e^{-z} = c; 2 from c = 4 e^-2 on.

    Newton's method on 2 ln z - z = ln c from the truncated series of W, which lies below: it rises to the root.

    Args:
        level: c, at least 0; any shape.
    """
    capped = np.minimum(level, 4.0 * math.exp(-2.0))
    half = 0.5 * np.sqrt(np.maximum(capped, _TINY))
    goal = np.log(np.maximum(capped, _TINY))
    ratio = 2.0 * half * (1.0 + half * (1.0 + half * (1.5 + half * (8.0 / 3.0))))
    for _ in range(5):
        ratio = np.minimum(ratio + (goal - 2.0 * np.log(ratio) + ratio) * ratio / np.maximum(2.0 - ratio, 1e-9), 2.0)
    return np.where(level > 0, ratio, 0.0)


def reduced(terms: Terms, bandwidth_hz: np.ndarray, *, full_power: bool = False) -> Reduced:
    """f(b), f'(b), f''(b): the objective of a device that takes part, its power chosen by (A10).

    Args:
        terms: shape [...].
        bandwidth_hz: b, positive, shape [...].
        full_power: send with P_max instead.
    """
    required_w = required_power_w(bandwidth_hz, terms.load_hz, terms.noise_over_gain_w_hz)
    slope, curvature = required_power_slopes(bandwidth_hz, terms.load_hz, terms.noise_over_gain_w_hz)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if full_power:
            power_w, ratio = np.broadcast_to(terms.max_power_w, required_w.shape), required_w / terms.max_power_w
        else:
            power_w, ratio = _stationary_power_w(terms, required_w)
        reached = terms.worth * np.exp(-np.minimum(ratio, 700.0))
        omega = reached / power_w
        cost = terms.price_per_w * power_w - reached + terms.fixed_cost
        clipped = power_w >= terms.max_power_w
        theta = np.where(clipped, ratio, 1.0 / np.maximum(2.0 - ratio, 1e-9))
        majorant = omega * curvature
        second = majorant - omega * theta * slope * slope / required_w
    sane = np.isfinite(majorant) & (ratio < 600.0)
    return Reduced(
        cost,
        power_w,
        required_w,
        np.where(sane, omega * np.where(sane, slope, 0.0), 0.0),
        np.where(sane, second, 0.0),
        np.where(sane, majorant, 0.0),
    )


def majorised_share(terms: Terms, power_w: np.ndarray, bandwidth_hz: np.ndarray, total_hz: float) -> np.ndarray:
    """The bandwidth step (A11): the best shares for weights omega taken at the present ones.

    Args:
        terms: of devices that take part, shape [num_devices].
        power_w: p, positive, shape [num_devices].
        bandwidth_hz: b at which psi / p is linearised, shape [num_devices].
        total_hz: B.

    Returns:
        hertz, adding up to B, shape [num_devices].
    """
    ratio = required_power_w(bandwidth_hz, terms.load_hz, terms.noise_over_gain_w_hz) / power_w
    # lambda beta / (omega N0), by logarithms: exp(-y) may be tiny
    weight = np.log(terms.worth * terms.noise_over_gain_w_hz / power_w) - ratio
    low, high = float(np.min(weight)) - 40.0, float(np.max(weight)) + 10.0

    def demand(price: float) -> tuple[np.ndarray, float]:
        scaled = np.exp(np.minimum(price - weight, 600.0))
        # b e^{y} (y - 1) + b = scaled b:  a = 1 + W_0((x - 1) / e);  for small x the branch point, a ~ sqrt(2 x)
        root = 1.0 + lambertw((scaled - 1.0) / math.e).real
        root = np.where(scaled < 1e-6, np.sqrt(2.0 * scaled) * (1.0 - np.sqrt(2.0 * scaled) / 3.0), root)
        share = terms.load_hz / np.maximum(root, _TINY)
        return share, float(np.sum(share))

    while demand(high)[1] > total_hz:
        high += 40.0
    while demand(low)[1] < total_hz:
        low -= 40.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if demand(middle)[1] > total_hz:
            low = middle
        else:
            high = middle
        if high - low <= 1e-15 * max(1.0, abs(high)):
            break
    share, taken = demand(high)
    return share * (total_hz / taken)


def alternate(
    terms: Terms, bandwidth_hz: np.ndarray, total_hz: float, *, tolerance: float = 1e-12, max_steps: int = 2000
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Power and bandwidth steps in turn, with devices that do not pay left out: never rises.

    Args:
        terms: of devices with a module, shape [num_devices].
        bandwidth_hz: start, positive, adding up to at most B, shape [num_devices].
        total_hz: B.
        tolerance: relative fall at which to stop.
        max_steps: of both steps together.

    Returns:
        p and b, shape [num_devices], 0 for those left out; the objective after every half step.
    """
    share = np.array(bandwidth_hz, np.float64)
    trace: list[float] = []
    power_w = np.zeros_like(share)
    for _ in range(max_steps):
        state = reduced(terms, np.maximum(share, _TINY))
        active = (share > 0) & (state.cost < 0)
        power_w = np.where(active, state.power_w, 0.0)
        trace.append(float(np.sum(state.cost[active])))
        if not active.any() or (len(trace) > 2 and trace[-3] - trace[-1] <= tolerance * abs(trace[-1])):
            share = np.where(active, share, 0.0)
            break
        part = _rows(terms, active)
        moved = majorised_share(part, power_w[active], share[active], total_hz)
        share = np.zeros_like(share)
        share[active] = moved
        ratio = required_power_w(moved, part.load_hz, part.noise_over_gain_w_hz) / power_w[active]
        cost = part.price_per_w * power_w[active] - part.worth * np.exp(-ratio) + part.fixed_cost
        trace.append(float(np.sum(cost)))
    return power_w, share, tuple(trace)


def share_band(
    terms: Terms,
    active: np.ndarray,
    start_hz: np.ndarray,
    total_hz: float,
    *,
    full_power: bool = False,
    steps: int = 60,
) -> tuple[np.ndarray, np.ndarray]:
    """Power and bandwidth at once, for many choices of modules: Newton's method on the shares, which never rises.

    Args:
        terms: shape [num_choices, num_devices].
        active: which devices take part, shape [num_choices, num_devices]; those that do not pay are left out.
        start_hz: positive where active, shape [num_choices, num_devices].
        total_hz: B.
        full_power: as of `reduced`.
        steps: at most.

    Returns:
        b, 0 where idle, adding up to B in rows that are not all idle; and the objective, shape [num_choices].
    """
    share, kept = np.zeros_like(start_hz, np.float64), np.zeros_like(active)
    # rows of like difficulty are finished together: those that are done leave
    rows, part, on = np.arange(len(active)), terms, active.copy()
    now = _scaled(np.where(active, start_hz, 0.0), total_hz)
    for step in range(steps):
        state = reduced(part, np.where(on, now, total_hz), full_power=full_power)
        cost = np.where(on, state.cost, 0.0)
        direction, fall = _newton_direction(state, on)
        settled = fall <= 1e-14 * np.sum(np.abs(cost), axis=-1) + _TINY
        small = now < 1e-4 * total_hz / now.shape[-1]
        leaving = on & (cost >= 0) & (settled[:, None] | small | (step >= 12))
        on &= ~leaving
        now = _scaled(np.where(on, now, 0.0), total_hz)
        done = settled & ~leaving.any(axis=-1)
        share[rows[done]], kept[rows[done]] = now[done], on[done]
        if done.all():
            rows = rows[:0]
            break
        moving = ~leaving.any(axis=-1) & ~settled
        if moving.any():
            chosen = _rows(part, moving)
            searched = _searched(
                chosen, on[moving], now[moving], direction[moving], fall[moving], cost[moving].sum(axis=-1), full_power
            )
            now[moving] = searched
        rows, part, on, now = rows[~done], _rows(part, ~done), on[~done], now[~done]
    share[rows], kept[rows] = now[: len(rows)], on[: len(rows)]
    for _ in range(2):
        # rounding of the objective hides the last digits of the shares; the slopes still show them
        direction, _ = _newton_direction(reduced(terms, np.where(kept, share, total_hz), full_power=full_power), kept)
        share = np.where(np.abs(direction) <= 1e-3 * share, share + direction, share)
        share = _scaled(np.where(kept, share, 0.0), total_hz)
    state = reduced(terms, np.where(kept, share, total_hz), full_power=full_power)
    kept &= state.cost < 0
    value = np.sum(np.where(kept, state.cost, 0.0), axis=-1)
    return np.where(kept, share, 0.0), value


def _rows(terms: Terms, chosen: np.ndarray) -> Terms:
    return Terms(*(getattr(terms, one.name)[chosen] for one in fields(terms)))


def _newton_direction(state: Reduced, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A direction that keeps the sum, and how steeply the objective falls along it; shape [.., num_devices], [..]."""
    curvature = np.where(state.curvature > 1e-3 * state.majorant, state.curvature, state.majorant)
    usable = active & (curvature > 0)
    inverse = np.where(usable, 1.0 / np.where(usable, curvature, 1.0), 0.0)
    weight = np.sum(inverse, axis=-1, keepdims=True)
    price = -np.sum(state.slope * inverse, axis=-1, keepdims=True) / np.maximum(weight, _TINY)
    uneven = np.where(usable, state.slope + price, 0.0)
    return -uneven * inverse, np.sum(uneven * uneven * inverse, axis=-1)


def _searched(
    terms: Terms,
    active: np.ndarray,
    share: np.ndarray,
    direction: np.ndarray,
    fall: np.ndarray,
    value: np.ndarray,
    full_power: bool,
) -> np.ndarray:
    """The longest of the steps 1, 1/2, 1/4, ... that stays positive and goes down, for each row."""
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(direction < 0, -0.9 * share / direction, np.inf)
    length = np.minimum(1.0, np.min(room, axis=-1))
    done = np.zeros(len(share), bool)
    result = share.copy()
    for _ in range(40):
        tried = share + length[:, None] * direction
        cost = reduced(terms, np.where(active, tried, 1.0), full_power=full_power).cost
        # rounding of the sum must not refuse the last steps
        slack = 1e-16 * np.sum(np.abs(np.where(active, cost, 0.0)), axis=-1)
        good = ~done & (np.sum(np.where(active, cost, 0.0), axis=-1) <= value - 1e-4 * length * fall + slack)
        result[good] = tried[good]
        done |= good
        if done.all():
            break
        length = np.where(done, length, 0.5 * length)
    return result


def _scaled(share: np.ndarray, total_hz: float) -> np.ndarray:
    taken = np.sum(share, axis=-1, keepdims=True)
    return share * np.divide(total_hz, taken, out=np.zeros_like(taken), where=taken > 0)
