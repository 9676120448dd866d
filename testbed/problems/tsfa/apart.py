"""One round of TSFA with a latency queue for each client: everybody's own finishing time counts.

    minimise over b, kappa   V sum_n w_n delta_n(kappa_n) + sum_n Q_n T_n,   T_n = Tc_n + (kappa_n S + h) / R_n(b_n)
    s.t. sum_n b_n <= B,   T_n <= tau_max                                                                      (15)

with the limits of shares of (14). tau_max is the round's end with everything sent, later than which no round need end:
it keeps clients whose queue is empty from waiting for ever. That every client has a limit of its own is a reading of
the paper's "long-term latency constraints" that is as plausible as one limit for the round; the problem, its bound on
T_n and the method are ours.

Since delta_n is piecewise linear, kappa_n lies at a corner j, and the client's cost is the least of convex curves of
its share, v_n(b) = min_j f_nj(b): not convex. At a price mu of the band each curve has its own best share: with
u = gamma / b, L = ln(1 + u) and E = L - u / (1 + u),

    Q_n (kappa_j S + h) ln 2 / gamma^2 G(u) = mu,     G(u) = u^2 E(u) / L(u)^2,                                 (16)

and the dual function sum_n min_j [f_nj(b) + mu b] - mu B bounds the optimum from below. It is largest at the clearing
price; the duality gap is at most the non-convexity of a single client, since one constraint couples them (Shapley and
Folkman). The corners found there are improved by moves of one or two clients, each with its best split of the band,
and branching on a client's corners closes what gap is left, as far as the work allowed goes. What remains is reported.

Reference: D. P. Bertsekas, "Constrained Optimization and Lagrange Multiplier Methods", 1982, section 5.6 (gap of
separable problems).
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from testbed.opt.roots import falling_root
from testbed.opt.share import excess
from testbed.opt.solution import Solution
from testbed.phy.rate import bandwidth_for_hz, shared_rate_bit_s
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.slot import RoundDecision, ends, infeasible_round

_LN2 = float(np.log(2.0))
_PASSES = 40
_MOST_PAIRS = 12
"""Clients up to which moves of two at a time are tried."""


@dataclass(frozen=True)
class _Curves:
    """f_nj: cost, least and largest share of each corner, all of shape [num_clients, num_corners]."""

    fixed: np.ndarray
    factor: np.ndarray
    gamma_hz: np.ndarray
    low_hz: np.ndarray
    high_hz: np.ndarray
    total_hz: float

    def share_at(self, log_price: np.ndarray, factor: np.ndarray, *limits: np.ndarray) -> np.ndarray:
        """The best shares at a price, (16); shapes broadcast."""
        gamma_hz, low_hz, high_hz = limits
        level = np.exp(log_price) * gamma_hz**2 / np.where(factor > 0, factor * _LN2, 1.0)
        return np.where(factor > 0, np.clip(gamma_hz / ratio_of_level(level), low_hz, high_hz), low_hz)

    def prices(self, part: np.ndarray | float) -> np.ndarray:
        """Logarithm of what a hertz is worth at a share of the band, of corners with a queue."""
        ratio = self.gamma_hz / (part * self.total_hz)
        worth = self.factor * _LN2 / self.gamma_hz**2 * ratio**2 * excess(ratio) / np.log1p(ratio) ** 2
        return np.log(np.maximum(worth[self.factor > 0], 1e-300))

    def cost(self, share_hz: np.ndarray) -> np.ndarray:
        """f_nj at shares of the band, shape [num_clients, num_corners]."""
        return self.fixed + _seconds(self.factor, share_hz, self.gamma_hz)


def _seconds(factor: np.ndarray, share_hz: np.ndarray, gamma_hz: np.ndarray) -> np.ndarray:
    rate = shared_rate_bit_s(share_hz, gamma_hz)
    return np.where(factor > 0, factor / np.where(rate > 0, rate, 1e-300), 0.0)


def ratio_of_level(level: np.ndarray) -> np.ndarray:
    """The u > 0 with G(u) = u^2 E(u) / ln(1 + u)^2 = g: Newton's method on logarithms, where G is close to a square.

    Args:
        level: g, positive; any shape.
    """
    level = np.clip(np.asarray(level, np.float64), 1e-200, 1e200)
    # u^2 / 2 at small u, u^2 / ln u at large
    log_ratio = 0.5 * np.log(level * (2.0 + 0.5 * np.log1p(level)))
    for _ in range(30):
        ratio = np.exp(log_ratio)
        rest, logarithm, inner = excess(ratio), np.log1p(ratio), ratio / (1.0 + ratio)
        slope = 2.0 + inner**2 / rest - 2.0 * inner / logarithm
        step = (2.0 * log_ratio + np.log(rest / logarithm**2) - np.log(level)) / slope
        log_ratio = log_ratio - step
        if np.all(np.abs(step) <= 1e-12 * np.maximum(1.0, np.abs(log_ratio))):
            break
    return np.exp(log_ratio)


def solve_apart(
    clients: Clients, total_hz: float, backlog_s: np.ndarray, tradeoff: float, *, max_branches: int = 200
) -> Solution[RoundDecision]:
    """Problem (15) of one round.

    Args:
        clients: of the round.
        total_hz: B.
        backlog_s: Q_n >= 0, shape [num_clients].
        tradeoff: V >= 0.
        max_branches: parts of the problem that may be bounded to close the duality gap.

    Returns:
        The decision; its kappa are corners, `latency_s` is the end of the last client. Status optimal: nothing is
        better by more than 1e-6 of the value. Status stationary: branches ran out; the message says what may be left.

    Raises:
        ValueError: a negative queue or V, another number of queues than of clients, or a band that is not positive.
    """
    backlog_s = np.asarray(backlog_s, np.float64)
    if backlog_s.shape != clients.weight.shape:
        raise ValueError(f"{backlog_s.size} queues for {clients.weight.size} clients; give one for each")
    if not (np.all(backlog_s >= 0) and tradeoff >= 0 and total_hz > 0):
        raise ValueError(f"queues {backlog_s} and V {tradeoff:g} must not be negative, the band {total_hz:g} positive")
    if message := clients.shortage(total_hz):
        return infeasible_round(clients, total_hz, message)
    earliest_s, latest_s = ends(clients, total_hz)
    curves = _curves(clients, total_hz, backlog_s, tradeoff, latest_s)
    corners, bound, trace = _searched(curves, max_branches)
    share_hz, value = _split(curves, corners[None])
    keep = np.take_along_axis(clients.corner_share, corners[:, None], axis=1)[:, 0]
    end_s = float(np.max(clients.end_s(keep, share_hz[0])))
    decision = RoundDecision(keep, share_hz[0], end_s, float(clients.penalty(keep)), earliest_s, latest_s)
    gap = max(float(value[0]) - bound, 0.0)
    closed = gap <= 1e-6 * abs(float(value[0]))
    message = "" if closed else f"the optimum lies at most {gap:.3g} below, {gap / float(value[0]):.3g} of the value"
    over = max(float(share_hz.sum()) / total_hz - 1.0, 0.0)
    status: Literal["optimal", "stationary"] = "optimal" if closed else "stationary"
    return Solution(
        decision, float(value[0]), status, feasibility=over, iterations=len(trace), trace=trace, message=message
    )


def split_apart(clients: Clients, total_hz: float, backlog_s: np.ndarray, tradeoff: float) -> Solution[RoundDecision]:
    """Shares of the band as equal as may be; each client's kappa is the best for its own queue.

    Args:
        clients, total_hz, backlog_s, tradeoff: as of `solve_apart`.
    """
    share_hz = clients.equal_shares(total_hz)
    # [num_clients, num_corners]
    end_s = clients.end_s(clients.corner_share.T, share_hz).T
    cost = tradeoff * clients.weight[:, None] * clients.corner_residual + backlog_s[:, None] * end_s
    corners = np.argmin(cost, axis=1)
    rows = np.arange(len(corners))
    keep = clients.corner_share[rows, corners]
    decision = RoundDecision(
        keep, share_hz, float(end_s[rows, corners].max()), float(clients.penalty(keep)), *ends(clients, total_hz)
    )
    return Solution(decision, float(cost[rows, corners].sum()), "feasible")


def _curves(clients: Clients, total_hz: float, backlog_s: np.ndarray, tradeoff: float, latest_s: float) -> _Curves:
    columns = clients.corner_share.shape
    payload, header, most, least = (
        np.broadcast_to(one, clients.weight.shape)[:, None]
        for one in (clients.payload_bit, clients.header_bit, clients.most_hz, clients.least_hz)
    )
    bits = clients.corner_share * payload + header
    gamma_hz = np.broadcast_to(clients.gamma_hz[:, None], columns)
    window_s = (latest_s - clients.compute_s)[:, None]
    # that the last of them ends at the latest end is what that end was made from; rounding aside
    needed_hz = np.minimum(bandwidth_for_hz(bits / window_s, gamma_hz), total_hz)
    high_hz = np.broadcast_to(np.minimum(most, total_hz), columns)
    low_hz = np.minimum(np.maximum(needed_hz, least), high_hz)
    low_hz = low_hz * np.minimum(total_hz / low_hz[:, -1].sum(), 1.0)
    fixed = tradeoff * clients.weight[:, None] * clients.corner_residual + (backlog_s * clients.compute_s)[:, None]
    return _Curves(fixed, backlog_s[:, None] * bits, gamma_hz, low_hz, high_hz, total_hz)


def _split(curves: _Curves, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best shares of the band for given corners [num, num_clients], and the value, shape [num]: convex in b."""
    rows = np.arange(corners.shape[1])
    factor, gamma_hz, low_hz, high_hz, fixed = (
        one[rows, corners] for one in (curves.factor, curves.gamma_hz, curves.low_hz, curves.high_hz, curves.fixed)
    )
    if not curves.factor.any():
        return low_hz, fixed.sum(axis=1)
    low, high = curves.prices(1.0).min() - 1.0, curves.prices(1e-9).max() + 1.0

    def surplus(log_price: np.ndarray) -> np.ndarray:
        share = curves.share_at(log_price[:, None], factor, gamma_hz, low_hz, high_hz)
        return share.sum(axis=1) / curves.total_hz - 1.0

    price = falling_root(surplus, np.full(len(corners), low), np.full(len(corners), high), tolerance=1e-12)
    share = curves.share_at(price[:, None], factor, gamma_hz, low_hz, high_hz)
    return share, (fixed + _seconds(factor, share, gamma_hz)).sum(axis=1)


def _dual(curves: _Curves, first: np.ndarray, last: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest lower bound with corners between two for each client, and the corners on both sides of the price.

    Returns:
        the bound; corners, shape [2, num_clients].
    """
    number = np.arange(curves.factor.shape[1])
    outside = (number < first[:, None]) | (number > last[:, None])

    def at(log_price: float) -> tuple[float, np.ndarray, np.ndarray]:
        share = curves.share_at(np.array(log_price), curves.factor, curves.gamma_hz, curves.low_hz, curves.high_hz)
        cost = np.where(outside, np.inf, curves.cost(share) + np.exp(log_price) * share)
        best = np.argmin(cost, axis=1)
        rows = np.arange(len(best))
        bound = float(cost[rows, best].sum() - np.exp(log_price) * curves.total_hz)
        return bound, best, share[rows, best]

    def surplus(log_price: np.ndarray) -> np.ndarray:
        return np.array([at(float(one))[2].sum() / curves.total_hz - 1.0 for one in log_price])

    if not curves.factor.any():
        best = last
        return float(curves.fixed[np.arange(len(best)), best].sum()), np.stack([best, best])
    low, high = curves.prices(1.0).min() - 1.0, curves.prices(1e-9).max() + 1.0
    price = float(falling_root(surplus, np.array([low]), np.array([high]), tolerance=1e-10)[0])
    above, below = at(price), at(price - 1e-8 * max(abs(price), 1.0))
    return max(above[0], below[0]), np.stack([above[1], below[1]])


def _searched(curves: _Curves, max_branches: int) -> tuple[np.ndarray, float, tuple[float, ...]]:
    """Best corners found, a lower bound of the optimum, and the values on the way."""
    count, most = curves.factor.shape[0], curves.factor.shape[1] - 1
    first, last = np.zeros(count, np.int64), np.full(count, most)
    bound, sides = _dual(curves, first, last)
    best, value = _improved(curves, _mixtures(sides))
    trace = [value]
    order = itertools.count()
    open_parts = [(bound, next(order), first, last, sides)]
    branches = 0
    while open_parts and branches < max_branches:
        bound, _, first, last, sides = open_parts[0]
        if value - bound <= 1e-6 * abs(value):
            break
        heapq.heappop(open_parts)
        client = int(np.argmax(np.ptp(sides, axis=0) * 1e6 + (last - first)))
        if first[client] == last[client]:
            continue
        cut = int(np.clip(sides[:, client].min(), first[client], last[client] - 1))
        for begin, end in ((first[client], cut), (cut + 1, last[client])):
            lower, upper = first.copy(), last.copy()
            lower[client], upper[client] = begin, end
            part_bound, part_sides = _dual(curves, lower, upper)
            branches += 1
            _, tried = _split(curves, _mixtures(part_sides))
            if tried.min() < value:
                best, value = _improved(curves, _mixtures(part_sides))
                trace.append(value)
            if part_bound < value:
                heapq.heappush(open_parts, (max(part_bound, bound), next(order), lower, upper, part_sides))
    return best, min(open_parts[0][0], value) if open_parts else value, tuple(trace)


def _mixtures(sides: np.ndarray) -> np.ndarray:
    """Both choices, and those in which some of the clients that differ take one, the others the other."""
    differ = np.flatnonzero(sides[0] != sides[1])
    found = [sides[0], sides[1]]
    for turn in range(1, len(differ)):
        mixed = sides[0].copy()
        mixed[differ[:turn]] = sides[1][differ[:turn]]
        found.append(mixed)
    return np.array(found)


def _improved(curves: _Curves, corners: np.ndarray) -> tuple[np.ndarray, float]:
    """The best of some corners after moves of one client, or two, that help."""
    _, values = _split(curves, corners)
    best, value = corners[int(np.argmin(values))], float(values.min())
    count, most = curves.factor.shape[0], curves.factor.shape[1] - 1
    eye = np.eye(count, dtype=np.int64)
    moves = [step * eye for step in (1, -1, 2, -2)]
    if count <= _MOST_PAIRS:
        moves.append(np.array([eye[i] - eye[k] for i, k in itertools.permutations(range(count), 2)]).reshape(-1, count))
    every = np.concatenate(moves)
    for _ in range(_PASSES):
        tried = best + every
        tried = tried[np.all((tried >= 0) & (tried <= most), axis=1)]
        if not len(tried):
            break
        _, values = _split(curves, tried)
        at = int(np.argmin(values))
        if values[at] >= value - 1e-12 * abs(value):
            break
        best, value = tried[at], float(values[at])
    return best, value
