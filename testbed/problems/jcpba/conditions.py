"""How far an allocation is from the first-order conditions of (P-A1), and what its solution is called.

With nu_k >= 0, sum nu_k = 1 on the constraints T_k <= tau, lambda on the band and kappa on the penalty budget,

    nu_k (-dT_k/db_k) = lambda,      nu_k (alpha_k + V_k / R_k) in kappa p_k [e_k'(rho_k-), e_k'(rho_k+)],

the upper end falling away at rho_k = rho_max,k, the lower at rho_k = 0, and kappa (Gamma - sum p e) = 0. The first
row fixes nu where all clients end together. What remains of the second at the best kappa, in seconds per unit of
pruning ratio and relative to tau, is the residual; so is what clients wait for each other, and band left unused.
"""

from __future__ import annotations

import numpy as np

from testbed.opt.roots import falling_root
from testbed.opt.solution import Solution, Status
from testbed.problems.jcpba.model import Allocation, ClientCosts

_OPTIMAL, _KEPT = 1e-6, 1e-9


def kkt_residual(costs: ClientCosts, bandwidth_hz: float, penalty_budget: float, point: Allocation) -> float:
    """Largest violation of the first-order conditions of (P-A1), each relative to its own scale.

    Args:
        costs: of the clients.
        bandwidth_hz: B.
        penalty_budget: Gamma.
        point: an allocation that keeps the constraints, every share positive.
    """
    round_s = point.round_s
    waiting = (round_s - float(point.latency_s.min())) / round_s
    unused = max(0.0, 1.0 - float(point.bandwidth_hz.sum()) / bandwidth_hz)
    rate_bit_s = costs.uplink.rate_bit_s(point.bandwidth_hz)
    sent = (1.0 - point.pruning) * costs.payload_bits + costs.fixed_payload_bits
    # seconds saved per hertz; shares of the multiplier are the inverse of it
    quickening = sent * costs.uplink.slope(point.bandwidth_hz) / rate_bit_s**2
    nu = (1.0 / quickening) / np.sum(1.0 / quickening)
    pull_s = nu * (costs.scalable_s + costs.payload_bits / rate_bit_s)
    # either the budget has no price, and whoever may still prune should, or it has one and is used up
    without_s = float(np.max(np.where(point.pruning < costs.max_ratio - _KEPT, pull_s, 0.0)))
    with_s, price_s = _unbalanced_s(costs, point.pruning, pull_s)
    left_s = min(without_s, max(with_s, price_s * max(0.0, penalty_budget - point.penalty)))
    return max(waiting, unused, left_s / round_s)


def feasibility(costs: ClientCosts, bandwidth_hz: float, penalty_budget: float, point: Allocation) -> float:
    """Largest violation of a constraint, each divided by its own scale."""
    budget = penalty_budget if penalty_budget > 0 else 1.0
    return max(
        0.0,
        float(point.bandwidth_hz.sum()) / bandwidth_hz - 1.0,
        (point.penalty - penalty_budget) / budget,
        float(np.max(point.pruning - costs.max_ratio)),
        float(np.max(-point.pruning)),
    )


def judged(
    costs: ClientCosts,
    bandwidth_hz: float,
    penalty_budget: float,
    point: Allocation,
    *,
    otherwise: Status = "unfinished",
    iterations: int = 0,
    trace_s: tuple[float, ...] = (),
    message: str = "",
    note: str = "",
) -> Solution[Allocation]:
    """An allocation with its residuals and its status.

    Args:
        costs, bandwidth_hz, penalty_budget: the problem.
        point: what was found.
        otherwise: status where the first-order conditions do not hold.
        iterations: that it took.
        trace_s: rounds on the way.
        message: a constraint that cannot be kept; makes the status "infeasible".
        note: message where the first-order conditions do not hold.
    """
    residual = kkt_residual(costs, bandwidth_hz, penalty_budget, point)
    violation = feasibility(costs, bandwidth_hz, penalty_budget, point)
    optimal = residual <= _OPTIMAL and violation <= _KEPT
    status: Status = "infeasible" if message else "optimal" if optimal else otherwise
    return Solution(
        point, point.round_s, status, residual, violation, iterations, trace_s, message or ("" if optimal else note)
    )


def _unbalanced_s(costs: ClientCosts, pruning: np.ndarray, pull_s: np.ndarray) -> tuple[float, float]:
    """The least t such that one kappa keeps every client's condition within t, and the least such kappa."""
    left, right = costs.penalty.slope_at(pruning)
    at_zero, at_most = pruning <= _KEPT, pruning >= costs.max_ratio - _KEPT
    # pull <= kappa high + t, pull >= kappa low - t
    high = np.where(at_most, np.inf, costs.weight * right)
    low = np.where(at_zero, 0.0, costs.weight * left)

    def least(slack_s: np.ndarray) -> float:
        return float(np.max(np.where(high > 0, (pull_s - slack_s) / np.where(high > 0, high, 1.0), 0.0), initial=0.0))

    def gap(slack_s: np.ndarray) -> np.ndarray:
        most = np.min(np.where(low > 0, (pull_s + slack_s) / np.where(low > 0, low, 1.0), np.inf))
        return np.array(least(slack_s) - min(most, 1e300))

    # a client whose pruning is free and who does not prune leaves all its pull
    first = float(np.max(np.where(high <= 0, pull_s, 0.0)))
    slack_s = falling_root(gap, np.array(first), np.array(max(first, float(pull_s.max()))))
    return float(slack_s), least(slack_s)
