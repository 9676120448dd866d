"""Rules to compare with: what is not optimised is fixed by hand.

no pruning, one ratio for all, random ratios of the same penalty, equal shares of the band. Each leaves the rest to the
exact step of its block, so that a gap is the rule's own.
"""

from __future__ import annotations

import numpy as np

from testbed.opt.roots import falling_root
from testbed.opt.solution import Solution
from testbed.problems.jcpba.conditions import judged
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz, late, obstacle


def allocate_for(
    costs: ClientCosts,
    bandwidth_hz: float,
    penalty_budget: float,
    pruning: np.ndarray,
    shares_hz: np.ndarray | None = None,
    *,
    deadline_s: float | None = None,
) -> Solution[Allocation]:
    """The round at given pruning ratios, with the best shares of the band or with given ones.

    Args:
        costs: of the clients.
        bandwidth_hz: B.
        penalty_budget: Gamma.
        pruning: rho, shape [num_clients].
        shares_hz: b, shape [num_clients]; the best by default. Of a share beyond its client's widest the rest stays
            unused.
        deadline_s: longest round that is acceptable, if there is one.

    Raises:
        ValueError: a ratio lies outside [0, rho_max], or a share is not positive.
    """
    pruning = np.asarray(pruning, np.float64)
    if np.any(pruning < 0) or np.any(pruning > costs.max_ratio):
        raise ValueError(f"pruning ratios {pruning} leave [0, {costs.max_ratio}]")
    if shares_hz is not None and not np.all(shares_hz > 0):
        raise ValueError("every client needs a share of the band")
    if text := obstacle(costs, bandwidth_hz, penalty_budget):
        point = Allocation.of(costs, pruning, equal_shares_hz(costs, bandwidth_hz))
        return Solution(point, point.round_s, "infeasible", feasibility=float("inf"), message=text)
    if shares_hz is None:
        kept = 1.0 - pruning
        sent = kept * costs.payload_bits + costs.fixed_payload_bits
        shares_hz = costs.uplink.earliest(sent, costs.fixed_s + kept * costs.scalable_s, bandwidth_hz).share
    point = Allocation.of(costs, pruning, np.minimum(shares_hz, costs.uplink.most_hz))
    excess = point.penalty - penalty_budget
    message = too_narrow(costs, point.bandwidth_hz) or (
        f"learning constraint: the penalty {point.penalty:.6g} exceeds the budget {penalty_budget:.6g} by {excess:.6g}"
        if excess > 1e-9 * max(penalty_budget, 1.0)
        else late(costs, bandwidth_hz, point.round_s, deadline_s)
    )
    return judged(
        costs,
        bandwidth_hz,
        penalty_budget,
        point,
        otherwise="feasible",
        message=message,
        note="a rule, not an optimum: see kkt_residual",
    )


def too_narrow(costs: ClientCosts, shares_hz: np.ndarray) -> str:
    """Who has less than its narrowest share, and by how much; empty where nobody has.

    Args:
        costs: of the clients.
        shares_hz: b, shape [num_clients].
    """
    lack_hz = costs.uplink.least_hz - shares_hz
    short = np.flatnonzero(lack_hz > 1e-9 * costs.uplink.least_hz)
    if not len(short):
        return ""
    return "share: " + ", ".join(
        f"client {k} has {shares_hz[k]:.6g} Hz, {lack_hz[k]:.6g} Hz less than its narrowest share" for k in short
    )


def uniform_ratio(costs: ClientCosts, penalty_budgets: np.ndarray) -> np.ndarray:
    """The one ratio that uses up each budget, clients at their largest ratio staying there; shape [num_budgets].

    Args:
        costs: of the clients.
        penalty_budgets: Gamma, at least 0, shape [num_budgets].
    """
    budgets = np.asarray(penalty_budgets, np.float64)
    limit = float(costs.max_ratio.max())
    return _largest(costs, np.broadcast_to(1.0, (len(budgets), costs.num_clients)), budgets, limit)


def uniform_pruning(costs: ClientCosts, penalty_budget: float) -> np.ndarray:
    """One ratio for all that uses up the budget, shape [num_clients]."""
    ratio = uniform_ratio(costs, np.array([max(penalty_budget, 0.0)]))[0]
    return np.minimum(ratio, costs.max_ratio)


def random_pruning(costs: ClientCosts, penalty_budget: float, rng: np.random.Generator) -> np.ndarray:
    """Ratios in random proportion, scaled such that they use up the budget, shape [num_clients]."""
    # [1, num_clients]
    direction = rng.uniform(0.05, 1.0, (1, costs.num_clients))
    limit = float(np.max(costs.max_ratio / direction))
    scale = _largest(costs, direction, np.array([max(penalty_budget, 0.0)]), limit)[0]
    return np.minimum(scale * direction[0], costs.max_ratio)


def _largest(costs: ClientCosts, direction: np.ndarray, budgets: np.ndarray, limit: float) -> np.ndarray:
    """Largest multiple of each direction [num_budgets, num_clients] whose penalty stays within the budget."""

    def exceeded(negative: np.ndarray) -> np.ndarray:
        pruning = np.minimum(-negative[:, None] * direction, costs.max_ratio)
        # rounding of a penalty is no excess
        return costs.total_penalty(pruning) - budgets * (1.0 + 1e-13)

    # falling in the negative multiple, so that the side which is returned keeps the budget
    return -falling_root(exceeded, np.full(len(budgets), -limit), np.zeros(len(budgets)), tolerance=1e-14)
