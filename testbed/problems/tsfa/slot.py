"""One round of TSFA: sparsification ratios and shares of the band that weigh residual energy against latency.

For a fixed end tau, kappa_n is concave in b_n and delta convex and falling: the problem is convex and separable up to
the band. At a price mu of the band a client buys the pieces of its curve whose slope is worth it,

    w_n |delta'_j| (tau - Tc_n) R_n'(b) / S = mu        inside piece j,

in closed form: with u = gamma / b, R' ln 2 = ln(1 + u) - u / (1 + u) is inverted by Lambert's W. The price is found by
bisection. Where shares of the band are limited, the pieces are cut where they leave the limits; what nobody can use is
left over. In tau the problem need not be convex: a grid over [tau_min, tau_max] is searched first, then
finer ones around its best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import lambertw

from testbed.opt.roots import falling_root
from testbed.opt.solution import Solution
from testbed.phy.rate import bandwidth_for_hz, shared_rate_slope
from testbed.problems.tsfa.model import Clients

_LN2 = math.log(2.0)
_COARSE = 64
"""Ends that are compared first."""

_FINER = 81
"""Ends that are compared around the best of them."""

_GRIDS = 7


@dataclass(frozen=True)
class RoundDecision:
    """One round.

    Attributes:
        share: kappa_n, shape [num_clients].
        bandwidth_hz: b_n, shape [num_clients].
        latency_s: tau.
        penalty: sum_n w_n delta_n(kappa_n).
        earliest_s: tau with every client at its least share; no round ends before.
        latest_s: tau with everything sent; no round needs longer.
    """

    share: np.ndarray
    bandwidth_hz: np.ndarray
    latency_s: float
    penalty: float
    earliest_s: float
    latest_s: float


def keep_by(clients: Clients, total_hz: float, latency_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least residual energy of rounds that end at given times.

    Args:
        clients: of the round.
        total_hz: B.
        latency_s: tau, at least the earliest end, shape [num].

    Returns:
        kappa and b, each of shape [num, num_clients].
    """
    share = _allocated(clients, total_hz, latency_s)
    return _kept(clients, share, latency_s), share


def _kept(clients: Clients, share: np.ndarray, latency_s: np.ndarray) -> np.ndarray:
    return np.clip(clients.sent(share, latency_s[:, None]), clients.least, 1.0)


def _allocated(clients: Clients, total_hz: float, latency_s: np.ndarray, *, tolerance: float = 1e-13) -> np.ndarray:
    """Shares of the band at the price that fills it, its logarithm within a tolerance; shape [num, num_clients]."""
    # [num, num_clients, 1]
    window_s = (latency_s[:, None] - clients.compute_s)[..., None]
    gamma_hz, weight = clients.gamma_hz[:, None], clients.weight[:, None]
    # [num_clients, 1]
    payload_bit, header_bit = (
        np.broadcast_to(one, clients.weight.shape)[:, None] for one in (clients.payload_bit, clients.header_bit)
    )
    bits = clients.corner_share * payload_bit + header_bit
    # b at the corners, [num, num_clients, num_corners]; beyond the band is beyond reach
    corner_hz = np.minimum(bandwidth_for_hz(bits / window_s, gamma_hz), 4.0 * total_hz)
    if clients.limited:
        least_hz, most_hz = (
            np.broadcast_to(one, clients.weight.shape)[:, None] for one in (clients.least_hz, clients.most_hz)
        )
        corner_hz = np.clip(corner_hz, least_hz, most_hz)
    slope = -np.diff(clients.corner_residual) / np.maximum(np.diff(clients.corner_share), 1e-300)
    worth = weight * slope * window_s / payload_bit
    lowest_hz = np.maximum(corner_hz, 1e-9 * total_hz)
    # what a hertz is worth at both ends of each piece, falling along the pieces
    first = worth * shared_rate_slope(lowest_hz[..., :-1], gamma_hz)
    last = worth * shared_rate_slope(lowest_hz[..., 1:], gamma_hz)
    floor_hz = corner_hz[..., 0].sum(axis=-1)
    low = np.log(np.maximum(last.min(axis=(1, 2)), 1e-300)) - 1.0
    high = np.log(np.maximum(first.max(axis=(1, 2)), 1e-300)) + 1.0

    def surplus(log_price: np.ndarray) -> np.ndarray:
        return _bought(log_price, first, last, worth, corner_hz, clients.gamma_hz).sum(axis=-1) / total_hz - 1.0

    price = falling_root(surplus, low, high, tolerance=tolerance)
    share = _bought(price, first, last, worth, corner_hz, clients.gamma_hz)
    # rounding at the earliest end: everybody at the least share, which fills the band
    tight = floor_hz > total_hz
    return np.where(tight[:, None], corner_hz[..., 0] * (total_hz / floor_hz)[:, None], share)


def _bought(
    log_price: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    worth: np.ndarray,
    corner_hz: np.ndarray,
    gamma_hz: np.ndarray,
) -> np.ndarray:
    """Shares of the band that clients ask for at a price, shape [num, num_clients]."""
    price = np.exp(log_price)[:, None]
    # whole pieces that are worth more than the price to their end
    whole = np.sum(last >= price[..., None], axis=-1)
    piece = np.minimum(whole, first.shape[-1] - 1)[..., None]
    start_hz = np.take_along_axis(corner_hz, whole[..., None], axis=-1)[..., 0]
    part = (whole < first.shape[-1]) & (np.take_along_axis(first, piece, axis=-1)[..., 0] > price)
    piece_worth = np.take_along_axis(worth, piece, axis=-1)[..., 0]
    level = np.where(part, price * _LN2 / np.where(part, piece_worth, 1.0), 1.0)
    end_hz = np.take_along_axis(corner_hz, piece + 1, axis=-1)[..., 0]
    inside_hz = np.clip(gamma_hz / ratio_of_slope(level), start_hz, end_hz)
    return np.where(part, inside_hz, start_hz)


def ratio_of_slope(level: np.ndarray) -> np.ndarray:
    """The u > 0 with ln(1 + u) - u / (1 + u) = e.

    With v = 1 / (1 + u): v - ln v = 1 + e, so v = -W_0(-exp(-1 - e)); one Newton step mends the digits that W loses
    near its branch point.

    Args:
        level: e, positive; any shape.
    """
    level = np.asarray(level, np.float64)
    small = level < 1e-4
    ratio = 1.0 / -lambertw(-np.exp(-1.0 - np.where(small, 1.0, level))).real - 1.0
    # e = u^2 / 2 - 2 u^3 / 3 + 3 u^4 / 4 - ... turned around
    root = np.sqrt(2.0 * level)
    ratio = np.where(small, root * (1.0 + root * (2.0 / 3.0 + root * 11.0 / 36.0)), ratio)
    direct = np.log1p(ratio) - ratio / (1.0 + ratio)
    return np.where(small, ratio, ratio - (direct - level) * (1.0 + ratio) ** 2 / np.maximum(ratio, 1e-300))


def solve_round(
    clients: Clients, total_hz: float, backlog_s: float, tradeoff: float, *, whole_pairs: bool = False
) -> Solution[RoundDecision]:
    """Problem (14) of one round.

    Args:
        clients: of the round.
        total_hz: B.
        backlog_s: Q >= 0.
        tradeoff: V >= 0.
        whole_pairs: round kappa down to whole rank pairs and end the round as early as they allow.

    Returns:
        The decision. Status optimal: the best of a grid of ends, refined to 1e-9 of it; feasibility is by how much the
        band is overfilled. Status infeasible where the narrowest shares exceed the band.

    Raises:
        ValueError: a negative queue or V, or a band that is not positive.
    """
    if not (backlog_s >= 0 and tradeoff >= 0 and total_hz > 0):
        raise ValueError(f"queue {backlog_s:g} and V {tradeoff:g} must not be negative, the band {total_hz:g} positive")
    if message := clients.shortage(total_hz):
        return infeasible_round(clients, total_hz, message)
    earliest_s, latest_s = ends(clients, total_hz)
    if backlog_s == 0 and tradeoff > 0:
        low_s = high_s = latest_s
    elif tradeoff == 0:
        low_s = high_s = earliest_s
    else:
        low_s, high_s = earliest_s, latest_s
    trace: list[float] = []
    best_s = low_s
    if low_s < high_s:
        best_s = _best_end(clients, total_hz, backlog_s, tradeoff, low_s, high_s, trace)
    keep, band_hz = keep_by(clients, total_hz, np.array([best_s]))
    share, bandwidth_hz = keep[0], band_hz[0]
    trace.append(tradeoff * float(clients.penalty(share)) + backlog_s * best_s)
    if whole_pairs:
        share = clients.rounded_down(share)
        best_s, bandwidth_hz = clients.earliest(share, total_hz)
    decision = RoundDecision(share, bandwidth_hz, best_s, float(clients.penalty(share)), earliest_s, latest_s)
    value = tradeoff * decision.penalty + backlog_s * best_s
    over = max(float(bandwidth_hz.sum()) / total_hz - 1.0, 0.0)
    return Solution(decision, value, "optimal", feasibility=over, iterations=len(trace), trace=tuple(trace))


def infeasible_round(clients: Clients, total_hz: float, message: str) -> Solution[RoundDecision]:
    """No decision, and why: all its numbers are NaN.

    Args:
        clients: of the round.
        total_hz: B.
        message: which limit fails, and by how much.
    """
    nothing = np.full(clients.weight.shape, np.nan)
    needed_hz = float(np.broadcast_to(clients.least_hz, clients.weight.shape).sum())
    decision = RoundDecision(nothing, nothing, np.nan, np.nan, np.nan, np.nan)
    excess = max(needed_hz / total_hz - 1.0, 0.0)
    return Solution(decision, np.inf, "infeasible", feasibility=excess, message=message)


def _best_end(
    clients: Clients,
    total_hz: float,
    backlog_s: float,
    tradeoff: float,
    low_s: float,
    high_s: float,
    trace: list[float],
) -> float:
    """tau: the best of a grid, of a finer one around it, and so on: between corners there are local minima."""
    first_s, last_s, best_s = low_s, high_s, high_s
    for step in range(_GRIDS):
        # closer together near the earliest end, where residual energy falls fastest
        fraction = np.linspace(0.0, 1.0, _COARSE) ** 2 if step == 0 else np.linspace(0.0, 1.0, _FINER)
        tried_s = low_s + (high_s - low_s) * fraction
        share = _allocated(clients, total_hz, tried_s, tolerance=max(1e-6 * 40.0**-step, 1e-13))
        values = tradeoff * clients.penalty(_kept(clients, share, tried_s)) + backlog_s * tried_s
        at = int(np.argmin(values))
        best_s = float(tried_s[at])
        trace.append(float(values[at]))
        low_s, high_s = float(tried_s[max(at - 1, 0)]), float(tried_s[min(at + 1, len(tried_s) - 1)])
        if high_s - low_s <= 1e-9 * high_s:
            break
    # rough prices may have misled at the ends of the whole range
    final_s = np.array([first_s, best_s, last_s])
    share = _allocated(clients, total_hz, final_s)
    values = tradeoff * clients.penalty(_kept(clients, share, final_s)) + backlog_s * final_s
    return float(final_s[int(np.argmin(values))])


def ends(clients: Clients, total_hz: float) -> tuple[float, float]:
    """The earliest end, all at the least share, and the latest, everything sent; seconds.

    Args:
        clients: of the round.
        total_hz: B.
    """
    return clients.earliest(clients.least, total_hz)[0], clients.earliest(np.ones(len(clients.weight)), total_hz)[0]
