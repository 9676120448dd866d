"""The joint optimum of pruning and bandwidth, by two nested prices.

For a round of length tau and shares b the clients keep s_k = ((tau - beta_k) R_k - F_k) / (alpha_k R_k + V_k), concave
and increasing in b_k, so that the least penalty of a length,

    G(tau) = min over b of sum_k p_k e_k(1 - s_k(b_k; tau))   s.t.  sum b_k <= B,                           (5)

is a separable convex problem: where a client's s_k lies inside a piece of slope m of its penalty curve, one more hertz
is worth

    p_k m ds_k/db_k = p_k m W_k R_k'(b_k) / (alpha_k R_k + V_k)^2 = mu,     W_k = (tau - beta_k) V_k + alpha_k F_k,

for all of them; elsewhere s_k stays at a knot, or b_k at a bound. mu is found such that the band is used up, then tau
such that G(tau) = Gamma; its slope is -mu sum_k R_k (alpha_k R_k + V_k) / (W_k R_k'), where of a client at a bound of
its share p_k m R_k / (alpha_k R_k + V_k) counts instead. A tau below the end of a client that is pruned most and has
its widest share is out of reach; where that sets the round, band and budget may be left. max_k T_k is quasi-convex in
(s, b), so this is the global optimum of (P-A1). Problem and solution are our reconstruction; the paper descends block
by block (`testbed.problems.jcpba.descent`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.opt.roots import falling_root, rising_root
from testbed.opt.solution import Solution
from testbed.problems.jcpba.baselines import uniform_ratio
from testbed.problems.jcpba.conditions import judged
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz, late, obstacle
from testbed.problems.jcpba.penalty import PenaltyPieces

_STEP = 1e-12
"""Last step of Newton's method for price and length, relative: it is taken, and what it leaves is far smaller."""

_USED_UP = 1e-10
"""How much of the budget may be left or exceeded, relative."""

_ROUNDING = 1e-14


@dataclass(frozen=True)
class Optima:
    """Joint optima for several penalty budgets.

    Attributes:
        round_s: tau, shape [num_budgets].
        pruning: rho, shape [num_budgets, num_clients].
        bandwidth_hz: b, shape [num_budgets, num_clients].
        price_s: -d tau / d Gamma, seconds, shape [num_budgets]; 0 where the budget is not used up.
        iterations: lengths tau that were tried.
        trace_s: those lengths, for the first budget.
    """

    round_s: np.ndarray
    pruning: np.ndarray
    bandwidth_hz: np.ndarray
    price_s: np.ndarray
    iterations: int
    trace_s: tuple[float, ...]


def solve_joint(
    costs: ClientCosts, bandwidth_hz: float, penalty_budget: float, *, deadline_s: float | None = None
) -> Solution[Allocation]:
    """Pruning and bandwidth that end the round as early as the learning constraint allows, problem (P-A1).

    Args:
        costs: of the clients.
        bandwidth_hz: B.
        penalty_budget: Gamma, in the unit of p_k e_k.
        deadline_s: longest round that is acceptable, if there is one.

    Returns:
        value: the round in seconds. Status "optimal" where the first-order conditions hold to 1e-6 of the value,
        which the quasi-convex objective makes sufficient; "infeasible", with which constraint and by how much.

    Raises:
        ValueError: the band is not positive or the budget is not a number.
    """
    if text := obstacle(costs, bandwidth_hz, penalty_budget):
        none = Allocation.of(costs, np.zeros(costs.num_clients), equal_shares_hz(costs, bandwidth_hz))
        return Solution(none, none.round_s, "infeasible", feasibility=float("inf"), message=text)
    found = joint_optima(costs, bandwidth_hz, np.array([penalty_budget]))
    point = Allocation.of(costs, found.pruning[0], found.bandwidth_hz[0], float(found.price_s[0]))
    message = late(costs, bandwidth_hz, point.round_s, deadline_s)
    return judged(
        costs, bandwidth_hz, penalty_budget, point, iterations=found.iterations, trace_s=found.trace_s, message=message
    )


def joint_optima(costs: ClientCosts, bandwidth_hz: float, penalty_budgets: np.ndarray) -> Optima:
    """(P-A1) for several budgets at once.

    Args:
        costs: of the clients, each with a positive rate.
        bandwidth_hz: B, positive.
        penalty_budgets: Gamma, at least 0, shape [num_budgets].
    """
    # [num_budgets, 1] and [num_budgets, num_clients]
    budget = np.asarray(penalty_budgets, np.float64)[:, None]
    even = uniform_ratio(costs, penalty_budgets)[:, None] * np.ones(costs.num_clients)
    even = np.minimum(even, costs.max_ratio)
    # without a budget only what costs nothing is pruned; with more than enough, everybody most
    slack, broke = costs.total_penalty(costs.max_ratio) <= budget, budget <= 0
    known = np.where(slack, costs.max_ratio, np.minimum(_free_ratio(costs), costs.max_ratio))
    earliest = _ends(costs, bandwidth_hz, np.where(slack | broke, known, even))
    floor = _ends(costs, bandwidth_hz, np.broadcast_to(costs.max_ratio, even.shape))
    search = _Search(costs, bandwidth_hz, budget)
    lowest = np.where(slack | broke, earliest, floor)
    round_s = rising_root(search.surplus, lowest, earliest, 0.3 * lowest + 0.7 * earliest, tolerance=_STEP)
    open_end = ~(slack | broke)
    # a client at its widest share, pruned most, may hold up the round and leave budget
    surplus = search.surplus(round_s)[0] if open_end.any() else np.zeros_like(round_s)
    held_up = (round_s <= lowest) & (surplus > _USED_UP)
    if np.any(np.abs(surplus[open_end & ~held_up]) > _USED_UP):
        # a client that needs nearly the whole band makes G so steep that its slope misleads: values alone, then, and
        # the end of the bracket at which the budget is kept
        round_s = falling_root(lambda tau: -search.surplus(tau)[0], lowest, earliest, tolerance=1e-16)
        search.surplus(round_s)
    pruning = np.where(slack | broke, known, search.pruning)
    shares = costs.uplink.earliest(*_demands(costs, pruning), bandwidth_hz)
    price_s = np.where((slack | held_up)[:, 0], 0.0, search.price_s[:, 0])
    return Optima(shares.value, pruning, shares.share, price_s, len(search.trace_s), tuple(search.trace_s))


class _Search:
    """G(tau) for a column of budgets; shares of one length are the first guess for the next."""

    def __init__(self, costs: ClientCosts, bandwidth_hz: float, budget: np.ndarray) -> None:
        self._costs, self._band_hz, self._budget = costs, bandwidth_hz, budget
        self._pieces: PenaltyPieces = costs.penalty.within(costs.max_ratio)
        # [num_knots, num_clients]: from pruned most to pruned least; every piece has two ends
        self._kept = 1.0 - self._pieces.ratio.T[::-1]
        self._cost = (costs.weight[:, None] * self._pieces.slope).T[::-1]
        self._least_hz, self._most_hz = costs.uplink.least_hz, costs.uplink.most_hz
        self._bounded = bool(np.any(self._least_hz > 0) or np.any(np.isfinite(self._most_hz)))
        self._share_hz = np.broadcast_to(equal_shares_hz(costs, bandwidth_hz), (len(budget), costs.num_clients))
        self._price = np.zeros_like(budget)
        self.pruning = np.zeros((len(budget), costs.num_clients))
        self.price_s = np.full_like(budget, np.nan)
        self.trace_s: list[float] = []

    def surplus(self, round_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gamma - G(tau), relative to Gamma, and its slope: rising in tau. All of shape [num_budgets, 1]."""
        costs = self._costs
        self.trace_s.append(float(round_s[0, 0]))
        share_hz, price, pruning = self._shares(round_s)
        rate_bit_s = costs.uplink.rate_bit_s(share_hz)
        pace = costs.scalable_s * rate_bit_s + costs.payload_bits
        saved = price * rate_bit_s * pace / (self._width(round_s) * costs.uplink.slope(share_hz))
        if self._bounded:
            slope = costs.weight * costs.penalty.slope_at(pruning, 0.0)[0] * (pruning > 0)
            saved = np.where(self._at_bound(share_hz), slope * rate_bit_s / pace, saved)
        fall = saved.sum(axis=-1, keepdims=True)
        penalty = costs.total_penalty(pruning)[:, None]
        self._share_hz, self._price, self.pruning = share_hz, price, pruning
        self.price_s = np.divide(1.0, fall, out=np.full_like(fall, np.inf), where=fall > 0)
        scale = np.where(self._budget > 0, self._budget, 1.0)
        return (self._budget - penalty) / scale, fall / scale

    def _at_bound(self, share_hz: np.ndarray) -> np.ndarray:
        """Whose share cannot shrink, or is of no use wider; shape [num_budgets, num_clients]."""
        return (share_hz <= self._least_hz * (1.0 + _ROUNDING)) | (share_hz >= self._most_hz * (1.0 - _ROUNDING))

    def _width(self, round_s: np.ndarray) -> np.ndarray:
        """W_k, shape [num_budgets, num_clients]."""
        costs = self._costs
        return (round_s - costs.fixed_s) * costs.payload_bits + costs.scalable_s * costs.fixed_payload_bits

    def _shares(self, round_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The minimiser of (5) for each budget's length: b, mu, rho."""
        costs, width = self._costs, self._width(round_s)
        # [num_knots, num_budgets, num_clients]: the share that ends at tau with so much kept
        left_s = round_s - costs.fixed_s - costs.scalable_s * self._kept[:, None]
        sent = self._kept[:, None] * costs.payload_bits + costs.fixed_payload_bits
        rate_bit_s = np.divide(sent, left_s, out=np.full(left_s.shape, np.inf), where=left_s > 0)
        # no client needs more than the band; twice that is enough to show that a price is too low
        knot_hz = np.minimum(costs.uplink.bandwidth_hz(rate_bit_s), 2.0 * self._band_hz)
        below, above = knot_hz[1:] <= self._least_hz, knot_hz[:-1] >= self._most_hz
        knot_hz = np.clip(knot_hz, self._least_hz, self._most_hz)
        pace = costs.scalable_s * costs.uplink.rate_bit_s(knot_hz) + costs.payload_bits
        worth = costs.uplink.slope(knot_hz) / pace**2
        # [2 num_pieces, num_budgets, num_clients]: what a hertz is worth at both ends of each piece, falling
        gain = self._cost[:, None] * width
        # pieces beyond the widest share are never taken; those below the narrowest always are
        ends = np.stack([np.where(above, 0.0, gain * worth[:-1]), np.where(above, 0.0, gain * worth[1:])], axis=1)
        taken = np.stack([below, below], axis=1).reshape(-1, *width.shape)
        ends = np.where(taken, 0.0, ends.reshape(-1, *width.shape))
        positive = np.where(ends > 0, ends, np.inf)
        top = ends.max(axis=(0, 2))[:, None]
        bottom = np.minimum(positive.min(axis=(0, 2))[:, None], top)
        asleep = top <= 0
        top, bottom = np.where(asleep, 2.0, 2.0 * top), np.where(asleep, 1.0, 0.5 * bottom)
        ends = np.where(taken, np.inf, ends)
        share_hz = self._share_hz
        bend, at = np.zeros_like(share_hz), np.zeros_like(top)

        def unused(logarithm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal share_hz, bend, at
            at = logarithm
            share_hz, bend = self._at_price(np.exp(logarithm), ends, knot_hz, gain, share_hz)
            used = share_hz.sum(axis=-1, keepdims=True)
            return np.log(self._band_hz / used), -(share_hz * bend).sum(axis=-1, keepdims=True) / used

        guess = np.where(self._price > 0, self._price, np.sqrt(top * bottom))
        logarithm = rising_root(unused, np.log(bottom), np.log(top), np.log(guess), tolerance=_STEP)
        # the last, tiny step of the price moves the shares along their slopes
        price, share_hz = np.exp(logarithm), share_hz * np.exp(bend * (logarithm - at))
        rate_bit_s = costs.uplink.rate_bit_s(share_hz)
        kept = ((round_s - costs.fixed_s) * rate_bit_s - costs.fixed_payload_bits) / (
            costs.scalable_s * rate_bit_s + costs.payload_bits
        )
        return share_hz, price, _between(1.0 - kept, costs.max_ratio)

    def _at_price(
        self, price: np.ndarray, ends: np.ndarray, knot_hz: np.ndarray, gain: np.ndarray, start_hz: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each client takes at a price, and d ln b / d ln mu: [num_budgets, num_clients]."""
        # an odd count lies inside a piece, an even one on a knot
        count = (ends > price).sum(axis=0)
        inside, piece = count % 2 == 1, np.minimum(count // 2, len(gain) - 1)
        low_hz = _pick(knot_hz, count // 2)
        high_hz = np.where(inside, _pick(knot_hz, piece + 1), low_hz)
        slope = _pick(gain, piece)
        costs = self._costs
        share_hz, bend = costs.uplink.share_of_worth(
            price / np.where(slope > 0, slope, 1.0),
            costs.scalable_s,
            costs.payload_bits,
            low_hz,
            high_hz,
            np.clip(start_hz, low_hz, high_hz),
        )
        return share_hz, np.where(inside & (share_hz > low_hz) & (share_hz < high_hz), bend, 0.0)


def _free_ratio(costs: ClientCosts) -> np.ndarray:
    """The largest ratios that cost nothing, shape [num_clients]."""
    free = costs.weight[:, None] * costs.penalty.removed <= 0
    return np.max(np.where(free, costs.penalty.ratio, 0.0), axis=1)


def _demands(costs: ClientCosts, pruning: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits to send and seconds before sending, each of the shape of the ratios."""
    kept = 1.0 - pruning
    return kept * costs.payload_bits + costs.fixed_payload_bits, costs.fixed_s + kept * costs.scalable_s


def _ends(costs: ClientCosts, bandwidth_hz: float, pruning: np.ndarray) -> np.ndarray:
    """The earliest end at ratios [num_budgets, num_clients]: shape [num_budgets, 1]."""
    return costs.uplink.earliest(*_demands(costs, pruning), bandwidth_hz).value[:, None]


def _between(pruning: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Ratios inside their range; what rounding leaves of none or of the most is put right."""
    return np.where(pruning < _ROUNDING, 0.0, np.where(pruning > most - _ROUNDING, most, pruning))


def _pick(table: np.ndarray, place: np.ndarray) -> np.ndarray:
    """table[place[n, k], n, k], shape [num_budgets, num_clients]."""
    return np.take_along_axis(table, place[None], axis=0)[0]
