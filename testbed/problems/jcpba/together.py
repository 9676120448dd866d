"""Rounds in which all clients begin to send together, once the slowest has trained.

Packets of one round start at one instant, so that the round lasts

    tau_c + tau_a,    tau_c = max_k beta_k + s_k alpha_k,    tau_a = max_k (s_k V_k + F_k) / R_k(b_k),

under the constraints of (P-A1). An end tau_c of training bounds what clients keep, s_k <= S_k,

    S_k = min(1, (tau_c - beta_k) / alpha_k).

With s_k = S_k s_k' what remains is (P-A1) for clients that compute nothing, send s_k' S_k V_k + F_k bits and have the
rest of their penalty curves, e_k(1 - S_k s_k') - e_k(1 - S_k), within the rest of the budget:
`testbed.problems.jcpba.joint` solves it. tau_c + tau_a(tau_c) is then searched along a line, from the earliest end of
training that the budget allows to the one at which sending is shortest: on a grid that holds the ends of unpruned
training between the two, and between the neighbours of its best point. That the sum has one minimum only is not proven
in general. At fixed shares it has: (tau_a R - F) / V and (tau_c - beta) / alpha are linear and penalties convex, so
that the least tau_a is convex in tau_c.

All of this is our reading: the paper speaks of one latency of computing and sending.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from testbed.opt.solution import Solution, Status
from testbed.problems.jcpba.conditions import feasibility
from testbed.problems.jcpba.descent import best_shares_hz, least_pruning
from testbed.problems.jcpba.joint import joint_optima
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz, late, obstacle
from testbed.problems.jcpba.penalty import PenaltyCurves
from testbed.problems.jcpba.uplink import FixedEfficiency

_GRID = 16
"""Ends of training that are tried first, besides those of unpruned clients."""

_GOLDEN = (5.0**0.5 - 1.0) / 2.0
_ROUNDING = 1e-12
_NO_TIME_S = 1e-12
"""Computing of clients that only send: a shrinking part of a round must not be nothing."""


def solve_together(
    costs: ClientCosts, bandwidth_hz: float, penalty_budget: float, *, deadline_s: float | None = None
) -> Solution[Allocation]:
    """Pruning and bandwidth that end the round earliest where all begin to send together.

    Args:
        costs: of the clients.
        bandwidth_hz: B.
        penalty_budget: Gamma.
        deadline_s: longest round that is acceptable, if there is one.

    Returns:
        value: tau_c + tau_a; latencies are the ends of the clients' sending. Status "stationary": the best of a grid
        and of the line between its neighbours; each of its points is a global optimum.

    Raises:
        ValueError: the band is not positive or the budget is not a number.
    """
    if text := obstacle(costs, bandwidth_hz, penalty_budget):
        return _none(costs, bandwidth_hz, text)

    def tried(train_s: float) -> Allocation:
        kept, rest, left = sending(costs, train_s, penalty_budget)
        found = joint_optima(rest, bandwidth_hz, np.array([left]))
        return sent_together(costs, 1.0 - kept * (1.0 - found.pruning[0]), found.bandwidth_hz[0])

    point, trace = _along(costs, penalty_budget, tried)
    message = late(costs, bandwidth_hz, point.round_s, deadline_s)
    return _judged(costs, bandwidth_hz, penalty_budget, point, "stationary", trace, message)


def descend_together(
    costs: ClientCosts,
    bandwidth_hz: float,
    penalty_budget: float,
    *,
    deadline_s: float | None = None,
    tolerance: float = 1e-9,
    max_sweeps: int = 50,
) -> Solution[Allocation]:
    """Pruning and bandwidth in turn for the same objective, from no pruning and equal shares.

    Args:
        costs, bandwidth_hz, penalty_budget, deadline_s: as of `solve_together`.
        tolerance: relative gain of a sweep below which it ends.
        max_sweeps: of both blocks.

    Returns:
        value: tau_c + tau_a; trace: the start, then the round after every half step. Status "stalled": neither block
        shortens the round alone.

    Raises:
        ValueError: as of `solve_together`.
    """
    if text := obstacle(costs, bandwidth_hz, penalty_budget):
        return _none(costs, bandwidth_hz, text)
    point = sent_together(costs, np.zeros(costs.num_clients), equal_shares_hz(costs, bandwidth_hz))
    trace, sweep = [point.round_s], 0
    while sweep < max_sweeps:
        sweep += 1
        before_s = point.round_s
        for found in (_pruned, _shared):
            following = found(costs, bandwidth_hz, penalty_budget, point)
            point = following if following.round_s <= point.round_s else point
            trace.append(point.round_s)
        if point.round_s >= before_s * (1.0 - tolerance):
            break
    status: Status = "stalled" if sweep < max_sweeps else "unfinished"
    message = late(costs, bandwidth_hz, point.round_s, deadline_s)
    return _judged(costs, bandwidth_hz, penalty_budget, point, status, tuple(trace), message)


def allocate_together(
    costs: ClientCosts,
    bandwidth_hz: float,
    penalty_budget: float,
    pruning: np.ndarray | None,
    shares_hz: np.ndarray | None = None,
    *,
    deadline_s: float | None = None,
) -> Solution[Allocation]:
    """The round of a rule: given ratios or the best for given shares, given shares or those that end sending earliest.

    Args:
        costs, bandwidth_hz, penalty_budget, deadline_s: as of `solve_together`.
        pruning: rho, shape [num_clients]; the best for the shares if None.
        shares_hz: b, shape [num_clients]; the best for the ratios if None.

    Raises:
        ValueError: neither is given.
    """
    if pruning is None and shares_hz is None:
        raise ValueError("a rule fixes the ratios, the shares or both")
    if text := obstacle(costs, bandwidth_hz, penalty_budget):
        return _none(costs, bandwidth_hz, text)
    ratios = np.zeros(costs.num_clients) if pruning is None else np.asarray(pruning, np.float64)
    point = sent_together(
        costs, ratios, equal_shares_hz(costs, bandwidth_hz) if shares_hz is None else np.asarray(shares_hz)
    )
    if pruning is None:
        point = _pruned(costs, bandwidth_hz, penalty_budget, point)
    elif shares_hz is None:
        point = _shared(costs, bandwidth_hz, penalty_budget, point)
    excess = point.penalty - penalty_budget
    message = (
        f"learning constraint: the penalty {point.penalty:.6g} exceeds the budget {penalty_budget:.6g} by {excess:.6g}"
        if excess > 1e-9 * max(penalty_budget, 1.0)
        else late(costs, bandwidth_hz, point.round_s, deadline_s)
    )
    return _judged(costs, bandwidth_hz, penalty_budget, point, "feasible", (point.round_s,), message)


def sent_together(costs: ClientCosts, pruning: np.ndarray, bandwidth_hz: np.ndarray) -> Allocation:
    """An allocation whose latencies are the slowest training and the client's own sending.

    Args:
        costs: of the clients.
        pruning: rho, shape [num_clients].
        bandwidth_hz: b, shape [num_clients].
    """
    pruning = np.clip(pruning, 0.0, costs.max_ratio)
    train_s = costs.fixed_s + (1.0 - pruning) * costs.scalable_s
    end_s = costs.latency_s(pruning, bandwidth_hz) - train_s + train_s.max()
    return Allocation(pruning, bandwidth_hz, end_s, float(costs.total_penalty(pruning)))


def sending(costs: ClientCosts, train_s: float, penalty_budget: float) -> tuple[np.ndarray, ClientCosts, float]:
    """What an end of training leaves to decide: clients that only send.

    Args:
        costs: of the clients.
        train_s: tau_c, not below anybody's training when pruned most.
        penalty_budget: Gamma.

    Returns:
        S_k, shape [num_clients]; the costs of sending by what is kept of it; the rest of the budget, at least 0.
    """
    scaled = costs.scalable_s > 0
    kept = np.where(scaled, (train_s - costs.fixed_s) / np.where(scaled, costs.scalable_s, 1.0), 1.0)
    kept = np.clip(kept, 1.0 - costs.max_ratio, 1.0)
    gone = costs.penalty.at(1.0 - kept)
    # what is pruned in any case is 0 on the new scale, with its penalty
    ratio = np.maximum(1.0 - (1.0 - costs.penalty.ratio) / kept[:, None], 0.0)
    ratio = np.where(ratio < _ROUNDING, 0.0, ratio)
    removed = np.where(ratio > 0, np.maximum(costs.penalty.removed - gone[:, None], 0.0), 0.0)
    ratio[:, -1] = 1.0
    shrinking = costs.payload_bits > 0
    left = penalty_budget - float(np.sum(costs.weight * gone))
    rest = replace(
        costs,
        fixed_s=np.zeros(costs.num_clients),
        # of an update that does not shrink nothing more is worth pruning
        scalable_s=np.where(shrinking, 0.0, _NO_TIME_S),
        payload_bits=kept * costs.payload_bits,
        penalty=PenaltyCurves(ratio, removed),
        max_ratio=np.where(shrinking, np.maximum(1.0 - (1.0 - costs.max_ratio) / kept, 0.0), 0.0),
    )
    return kept, rest, left if left > _ROUNDING * penalty_budget else 0.0


def _along(
    costs: ClientCosts, penalty_budget: float, tried: Callable[[float], Allocation], num_steps: int = 20
) -> tuple[Allocation, tuple[float, ...]]:
    """The earliest of the rounds that ends of training lead to, and the best round after each try."""
    whole_s = costs.fixed_s + costs.scalable_s
    # the earliest end of training that the budget allows: as if sending took no time
    ones = np.ones(costs.num_clients)
    silent = replace(
        costs, payload_bits=0.0 * ones, fixed_payload_bits=ones, uplink=FixedEfficiency(_NO_TIME_S**-2 * ones)
    )
    alone = least_pruning(silent, ones, penalty_budget)
    low = float(np.max(costs.fixed_s + (1.0 - alone) * costs.scalable_s))
    # where training may take its time, sending is shortest: a later end of training than it has there is of no use
    best = tried(float(whole_s.max()))
    high = max(low, float(np.max(costs.fixed_s + (1.0 - best.pruning) * costs.scalable_s)))
    corners = whole_s[(whole_s > low) & (whole_s < high)]
    ends_s = np.unique(np.concatenate([np.linspace(low, high, _GRID), corners]))
    trace: list[float] = []

    def length_s(end_s: float) -> float:
        nonlocal best
        found = tried(end_s)
        best = found if found.round_s < best.round_s else best
        trace.append(best.round_s)
        return found.round_s

    lengths = [length_s(float(end_s)) for end_s in ends_s]
    place = int(np.argmin(lengths))
    first, last = float(ends_s[max(place - 1, 0)]), float(ends_s[min(place + 1, len(ends_s) - 1)])
    inner = [last - _GOLDEN * (last - first), first + _GOLDEN * (last - first)]
    values = [length_s(one) for one in inner] if last > first else []
    for _ in range(num_steps if last > first else 0):
        if values[0] <= values[1]:
            last, inner, values = inner[1], [0.0, inner[0]], [0.0, values[0]]
            inner[0] = last - _GOLDEN * (last - first)
            values[0] = length_s(inner[0])
        else:
            first, inner, values = inner[0], [inner[1], 0.0], [values[1], 0.0]
            inner[1] = first + _GOLDEN * (last - first)
            values[1] = length_s(inner[1])
    return best, tuple(trace)


def _pruned(costs: ClientCosts, bandwidth_hz: float, penalty_budget: float, point: Allocation) -> Allocation:
    """The pruning step: the best ratios at the shares of a point."""
    shares_hz = point.bandwidth_hz

    def tried(train_s: float) -> Allocation:
        kept, rest, left = sending(costs, train_s, penalty_budget)
        return sent_together(costs, 1.0 - kept * (1.0 - least_pruning(rest, shares_hz, left)), shares_hz)

    return _along(costs, penalty_budget, tried, 40)[0]


def _shared(costs: ClientCosts, bandwidth_hz: float, penalty_budget: float, point: Allocation) -> Allocation:
    """The bandwidth step: the shares that end sending earliest at the ratios of a point."""
    still = replace(costs, fixed_s=np.zeros(costs.num_clients), scalable_s=np.full(costs.num_clients, _NO_TIME_S))
    return sent_together(costs, point.pruning, best_shares_hz(still, point.pruning, bandwidth_hz))


def _none(costs: ClientCosts, bandwidth_hz: float, text: str) -> Solution[Allocation]:
    point = sent_together(costs, np.zeros(costs.num_clients), equal_shares_hz(costs, bandwidth_hz))
    return Solution(point, point.round_s, "infeasible", feasibility=float("inf"), message=text)


def _judged(
    costs: ClientCosts,
    bandwidth_hz: float,
    penalty_budget: float,
    point: Allocation,
    status: Status,
    trace: tuple[float, ...],
    message: str,
) -> Solution[Allocation]:
    violation = feasibility(costs, bandwidth_hz, penalty_budget, point)
    return Solution(
        point,
        point.round_s,
        "infeasible" if message else status,
        feasibility=violation,
        iterations=len(trace),
        trace=trace,
        message=message,
    )
