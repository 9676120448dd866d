"""Block coordinate descent, as the paper's abstract describes its solution: pruning and bandwidth in turn.

Pruning at fixed shares: with c_k = alpha_k + V_k / R_k(b_k) and beta_k + F_k / R_k(b_k) before it, the least pruning
that meets a length tau is rho_k(tau) = max(0, 1 - (tau - beta_k) / c_k); the shortest length that the budget allows is
where sum_k p_k e_k(rho_k(tau)) = Gamma, a convex falling function of tau. Bandwidth at fixed ratios: all clients end
together (`testbed.opt.share`). Both steps are exact, so the round never grows.

It stalls: after a bandwidth step all clients end together and the band is used up; where the budget is used up too,
neither block alone can help, optimal or not, since a maximum is not smooth. The paper's equations are not available;
steps, start (no pruning, equal shares) and order (pruning first) are our reading.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from testbed.opt.solution import Solution
from testbed.problems.jcpba.baselines import uniform_pruning
from testbed.problems.jcpba.conditions import judged
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz, late, obstacle


def solve_bcd(
    costs: ClientCosts,
    bandwidth_hz: float,
    penalty_budget: float,
    *,
    first: Literal["pruning", "bandwidth"] = "pruning",
    deadline_s: float | None = None,
    tolerance: float = 1e-12,
    max_sweeps: int = 100,
) -> Solution[Allocation]:
    """Pruning and bandwidth in turn until neither shortens the round.

    Args:
        costs: of the clients.
        bandwidth_hz: B.
        penalty_budget: Gamma.
        first: block that begins: pruning, from equal shares, or bandwidth, from one ratio for all that uses up the
            budget.
        deadline_s: longest round that is acceptable, if there is one.
        tolerance: relative gain of a sweep below which it ends.
        max_sweeps: of both blocks.

    Returns:
        value: the round in seconds; trace: the start, then the round after every half step. Status "optimal" where the
        first-order conditions hold, "stalled" where they do not.

    Raises:
        ValueError: the band is not positive or the budget is not a number.
    """
    equal_hz = equal_shares_hz(costs, bandwidth_hz)
    if text := obstacle(costs, bandwidth_hz, penalty_budget):
        none = Allocation.of(costs, np.zeros(costs.num_clients), equal_hz)
        return Solution(none, none.round_s, "infeasible", feasibility=float("inf"), message=text)
    pruning = np.zeros(costs.num_clients) if first == "pruning" else uniform_pruning(costs, penalty_budget)
    shares_hz = equal_hz
    trace = [float(costs.latency_s(pruning, shares_hz).max())]
    blocks = ("pruning", "bandwidth") if first == "pruning" else ("bandwidth", "pruning")
    sweep = 0
    while sweep < max_sweeps:
        sweep += 1
        before_s = trace[-1]
        for block in blocks:
            if block == "pruning":
                pruning = least_pruning(costs, shares_hz, penalty_budget)
            else:
                shares_hz = best_shares_hz(costs, pruning, bandwidth_hz)
            trace.append(float(costs.latency_s(pruning, shares_hz).max()))
        if trace[-1] >= before_s * (1.0 - tolerance):
            break
    point = Allocation.of(costs, pruning, shares_hz)
    return judged(
        costs,
        bandwidth_hz,
        penalty_budget,
        point,
        otherwise="stalled" if sweep < max_sweeps else "unfinished",
        iterations=len(trace) - 1,
        trace_s=tuple(trace),
        message=late(costs, bandwidth_hz, point.round_s, deadline_s),
        note="no block shortens the round alone; both together would: see method joint",
    )


def best_shares_hz(costs: ClientCosts, pruning: np.ndarray, bandwidth_hz: float) -> np.ndarray:
    """Shares of the band with which clients of given ratios end earliest, all together; shape [num_clients]."""
    kept = 1.0 - pruning
    sent = kept * costs.payload_bits + costs.fixed_payload_bits
    return costs.uplink.earliest(sent, costs.fixed_s + kept * costs.scalable_s, bandwidth_hz).share


def least_pruning(costs: ClientCosts, shares_hz: np.ndarray, penalty_budget: float) -> np.ndarray:
    """Ratios that end the round earliest at given shares within the budget, none larger than that needs.

    Args:
        costs: of the clients.
        shares_hz: b, positive, shape [num_clients].
        penalty_budget: Gamma, at least 0.

    Returns:
        rho, shape [num_clients].
    """
    rate_bit_s = costs.uplink.rate_bit_s(shares_hz)
    before_s = costs.fixed_s + costs.fixed_payload_bits / rate_bit_s
    scaled_s = costs.scalable_s + costs.payload_bits / rate_bit_s
    # Newton's method on a convex, falling, piecewise linear function: from the left, monotone, and exact at its end
    round_s = float(np.max(before_s + (1.0 - costs.max_ratio) * scaled_s))
    for _ in range(1000):
        pruning = np.clip(1.0 - (round_s - before_s) / scaled_s, 0.0, costs.max_ratio)
        excess = float(costs.total_penalty(pruning)) - penalty_budget
        # pruning falls in tau, so the slope to the left in rho is the one to the right in tau
        slope = np.where(pruning > 0, costs.weight * costs.penalty.slope_at(pruning, 1e-13)[0] / scaled_s, 0.0)
        fall = float(slope.sum())
        if excess <= 1e-13 * penalty_budget or fall <= 0:
            break
        following = round_s + excess / fall
        if following <= round_s:
            break
        round_s = following
    # rounding may leave a trace of pruning where none is needed
    return np.where(pruning < 1e-14, 0.0, pruning)
