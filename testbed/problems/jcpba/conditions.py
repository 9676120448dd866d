"""How far an allocation is from the first-order conditions of (P-A1), and what its solution is called.

With nu_k >= 0, sum nu_k = 1 on the constraints T_k <= tau, lambda on the band and kappa on the penalty budget,

    nu_k (-dT_k/db_k) = lambda,      nu_k (alpha_k + V_k / R_k) in kappa p_k [e_k'(rho_k-), e_k'(rho_k+)],

the upper end falling away at rho_k = rho_max,k, the lower at rho_k = 0, and kappa (Gamma - sum p e) = 0. Bounds of the
shares bring multipliers of their own: the first row becomes <= at the narrowest share and >= at the widest; a client
that ends before tau has nu_k = 0. Where the band has a price, lambda = 1 gives an interval of nu_k for every client,
and where it has none only clients at their widest share may hold up the round. What remains of the second row at the
best kappa, in seconds per unit of pruning ratio and relative to tau, is the residual; so is what clients wait for each
other, and band left unused that somebody could use.
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
    rate_bit_s = costs.uplink.rate_bit_s(point.bandwidth_hz)
    sent = (1.0 - point.pruning) * costs.payload_bits + costs.fixed_payload_bits
    # seconds saved per hertz; shares of the multiplier are the inverse of it
    quickening = sent * costs.uplink.slope(point.bandwidth_hz) / rate_bit_s**2
    inverse = 1.0 / quickening
    pull_s = costs.scalable_s + costs.payload_bits / rate_bit_s
    tight = point.latency_s >= round_s * (1.0 - _OPTIMAL)
    at_least = point.bandwidth_hz <= costs.uplink.least_hz * (1.0 + _KEPT)
    at_most = point.bandwidth_hz >= costs.uplink.most_hz * (1.0 - _KEPT)
    spare = penalty_budget - point.penalty
    # a price of the band: whoever is not at the narrowest share ends last
    waits = np.where(at_least, 0.0, (round_s - point.latency_s) / round_s)
    unused = 0.0 if at_most.all() else max(0.0, 1.0 - float(point.bandwidth_hz.sum()) / bandwidth_hz)
    nu = inverse / np.sum(np.where(tight, inverse, 0.0))
    least = np.where(at_least, 0.0, nu * pull_s)
    most = np.where(tight & at_most, np.inf, np.where(tight | ~at_least, nu * pull_s, 0.0))
    priced = max(float(waits.max()), unused, _unbalanced(costs, point.pruning, least, most, spare) / round_s)
    if not np.any(tight & at_most):
        return priced
    return min(priced, _unpriced(costs, point.pruning, pull_s, tight & at_most, spare) / round_s)


def feasibility(costs: ClientCosts, bandwidth_hz: float, penalty_budget: float, point: Allocation) -> float:
    """Largest violation of a constraint, each divided by its own scale."""
    budget = penalty_budget if penalty_budget > 0 else 1.0
    return max(
        0.0,
        float(point.bandwidth_hz.sum()) / bandwidth_hz - 1.0,
        (point.penalty - penalty_budget) / budget,
        float(np.max(point.pruning - costs.max_ratio)),
        float(np.max(-point.pruning)),
        float(np.max(costs.uplink.least_hz - point.bandwidth_hz)) / bandwidth_hz,
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


def _unbalanced(
    costs: ClientCosts, pruning: np.ndarray, least_s: np.ndarray, most_s: np.ndarray, spare: float
) -> float:
    """What the second row leaves, seconds, where each client's left side may lie between two values.

    Either the budget has no price, and whoever may still prune has no reason to, or it has one and is used up.

    Args:
        least_s, most_s: nu_k (alpha_k + V_k / R_k) at the least and at the most nu_k, shape [num_clients].
        spare: Gamma less the penalty.
    """
    without_s = float(np.max(np.where(pruning < costs.max_ratio - _KEPT, least_s, 0.0)))
    low, high = _slopes(costs, pruning)

    def price(slack_s: np.ndarray) -> float:
        return float(np.max(np.where(high > 0, (least_s - slack_s) / np.where(high > 0, high, 1.0), 0.0), initial=0.0))

    def gap(slack_s: np.ndarray) -> np.ndarray:
        # least <= kappa high + t, most >= kappa low - t
        most = np.min(np.where(low > 0, (most_s + slack_s) / np.where(low > 0, low, 1.0), np.inf))
        return np.array(price(slack_s) - min(most, 1e300))

    # a client whose pruning is free and who does not prune leaves all its pull
    first = float(np.max(np.where(high <= 0, least_s, 0.0)))
    slack_s = falling_root(gap, np.array(first), np.array(max(first, float(least_s.max()))))
    return min(without_s, max(float(slack_s), price(slack_s) * max(0.0, spare)))


def _unpriced(costs: ClientCosts, pruning: np.ndarray, pull_s: np.ndarray, holding: np.ndarray, spare: float) -> float:
    """The same where more band is of no use: the clients at their widest share that end last hold up the round.

    Args:
        pull_s: alpha_k + V_k / R_k, shape [num_clients].
        holding: which clients hold up the round, at least one, shape [num_clients].
        spare: Gamma less the penalty.
    """
    low, high = _slopes(costs, pruning)
    # one that cannot be pruned more ends the matter; else kappa = 1 / sum of nu, and nobody else prunes for nothing
    if np.any(holding & np.isinf(high)):
        return 0.0
    price_s = 1.0 / max(float(np.sum(np.where(holding, high / pull_s, 0.0))), 1e-300)
    return price_s * max(float(np.max(np.where(holding, 0.0, low))), max(0.0, spare))


def _slopes(costs: ClientCosts, pruning: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p_k e_k' to the left and to the right, 0 and infinite where ratios cannot go; each of shape [num_clients]."""
    left, right = costs.penalty.slope_at(pruning)
    low = np.where(pruning <= _KEPT, 0.0, costs.weight * left)
    return low, np.where(pruning >= costs.max_ratio - _KEPT, np.inf, costs.weight * right)
