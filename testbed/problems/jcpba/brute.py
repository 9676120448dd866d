"""The optimum of (P-A1) for two or three clients by trying ratios on ever finer grids.

All ratios but the last are tried, the last is the largest that the budget leaves, and the band is divided such that all
end together. Nothing of the nested search is used: a yardstick, and slow.
"""

from __future__ import annotations

import numpy as np

from testbed.opt.solution import Solution
from testbed.problems.jcpba.baselines import allocate_for
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz, obstacle

MAX_CLIENTS = 3
"""Beyond that a grid takes too long."""


def solve_brute(
    costs: ClientCosts,
    bandwidth_hz: float,
    penalty_budget: float,
    *,
    num_points: int = 25,
    num_zooms: int = 24,
    deadline_s: float | None = None,
) -> Solution[Allocation]:
    """Pruning and bandwidth by brute force.

    Args:
        costs: of at most three clients.
        bandwidth_hz: B.
        penalty_budget: Gamma.
        num_points: of the grid, along each ratio.
        num_zooms: grids after the first, each half as wide as the one before, around its best point.
        deadline_s: longest round that is acceptable, if there is one.

    Raises:
        ValueError: more than three clients.
    """
    count = costs.num_clients
    if count > MAX_CLIENTS:
        raise ValueError(f"{count} clients are too many to try everything, {MAX_CLIENTS} are the most")
    if text := obstacle(costs, bandwidth_hz, penalty_budget):
        none = Allocation.of(costs, np.zeros(count), equal_shares_hz(costs, bandwidth_hz))
        return Solution(none, none.round_s, "infeasible", feasibility=float("inf"), message=text)
    limit = costs.max_ratio[:-1]
    centre, width, best, best_s, trace = limit / 2, limit / 2, np.zeros(count), np.inf, []
    for _ in range(num_zooms + 1):
        axes = [
            np.linspace(max(0.0, c - w), min(top, c + w), num_points)
            for c, w, top in zip(centre, width, limit, strict=True)
        ]
        # [num_tried, num_clients - 1]
        tried = (
            np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, count - 1) if axes else np.zeros((1, 0))
        )
        pruning = _with_last(costs, tried, penalty_budget)
        kept = 1.0 - pruning
        sent = kept * costs.payload_bits + costs.fixed_payload_bits
        ends_s = costs.uplink.earliest(sent, costs.fixed_s + kept * costs.scalable_s, bandwidth_hz).value
        if len(ends_s) and ends_s.min() < best_s:
            best, best_s = pruning[int(np.argmin(ends_s))], float(ends_s.min())
        trace.append(best_s)
        centre, width = best[:-1], width / 2
    found = allocate_for(costs, bandwidth_hz, penalty_budget, best, deadline_s=deadline_s)
    return Solution(
        found.point, found.value, found.status, found.kkt_residual, found.feasibility, len(trace), tuple(trace),
        found.message,
    )  # fmt: skip


def _with_last(costs: ClientCosts, tried: np.ndarray, penalty_budget: float) -> np.ndarray:
    """Ratios [num_kept, num_clients]: the last is the largest that the budget leaves; what exceeds it is dropped."""
    others = np.concatenate([tried, np.zeros((len(tried), 1))], axis=1)
    left = penalty_budget - costs.total_penalty(others)
    others, left = others[left >= 0], left[left >= 0]
    ratio, worth = costs.penalty.ratio[-1], costs.weight[-1] * costs.penalty.removed[-1]
    # several ratios cost nothing where the curve is flat: the largest of them
    start = int(np.searchsorted(worth, 0.0, side="right")) - 1
    last = np.interp(left, worth[start:], ratio[start:])
    others[:, -1] = np.minimum(last, costs.max_ratio[-1])
    return others
