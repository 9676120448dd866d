"""The costs of (P-A1) from what nodes reported of earlier rounds, and a round's decision by each rule.

Before the first round the seconds follow from a node's nominal speed and an assumed number of tokens, what pruning
saves from the model's shape. From then on both are what was measured: seconds / work share of the whole model, the
prunable share of computing (1 - work share) / ratio, the shrinking share of the update (1 - values sent / values) /
ratio. Structured pruning removes outputs of the query, key, value, gate and up projections and inputs of the output and
down projections; the factor on the other side keeps its size, so that only a part of a LoRA update shrinks. All of this
is our reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from testbed.core.adapter import Layout
from testbed.core.fleet import NodeFacts
from testbed.core.orders import LocalResult
from testbed.opt.solution import Solution
from testbed.problems.digital_order import ShareLimits
from testbed.problems.jcpba.baselines import allocate_for, random_pruning, uniform_pruning
from testbed.problems.jcpba.descent import least_pruning, solve_bcd
from testbed.problems.jcpba.joint import solve_joint
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz
from testbed.problems.jcpba.penalty import PenaltyCurves, chord
from testbed.problems.jcpba.together import allocate_together, descend_together, solve_together
from testbed.problems.jcpba.uplink import Bounded, Shannon, Uplink

Rule: TypeAlias = Literal["joint", "bcd", "uniform", "none", "random"]

_SHRINKS = {
    "B": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
    "A": ("o_proj", "down_proj"),
}
"""Kind of factor -> layers of which structured pruning takes rows of B, or columns of A."""

_MOST_POINTS = 32


@dataclass(frozen=True)
class Experience:
    """What is known of one client.

    Attributes:
        whole_s: seconds of a round's training of the unpruned model.
        prunable: share of them that pruning saves per unit of ratio, in [0, 1].
        shrinking: share of the update's values that pruning saves per unit of ratio, in [0, 1].
        points: pruning ratio -> share of the squared norm that it took out.
    """

    whole_s: float
    prunable: float
    shrinking: float
    points: Mapping[float, float] = field(default_factory=dict)

    @classmethod
    def guess(cls, node: NodeFacts, tokens: float, prunable: float, shrinking: float) -> Experience:
        """What a node is taken to cost before it has trained.

        Args:
            node: nominal cycles for a token, and frequency.
            tokens: of a round.
            prunable, shrinking: as the attributes.
        """
        return cls(tokens * node.cycles_per_token / node.cpu_hz, prunable, shrinking)

    def after(self, result: LocalResult, values_share: float | None) -> Experience:
        """With what one more round has shown.

        Args:
            result: the node's training.
            values_share: values that its bytes spoke of over all values; None where nothing was heard.
        """
        ratio, share = result.pruned_ratio, result.work_share
        known = replace(self, whole_s=result.seconds / share) if result.seconds > 0 and share > 0 else self
        if ratio <= 0:
            return known
        if share < 1:
            known = replace(known, prunable=min((1.0 - share) / ratio, 1.0))
        if values_share is not None and values_share < 1:
            known = replace(known, shrinking=min((1.0 - values_share) / ratio, 1.0))
        points = {**dict(list(self.points.items())[1 - _MOST_POINTS :]), round(ratio, 4): result.pruned}
        return replace(known, points=points)


def shrinking_share(layout: Layout) -> float:
    """Share of an update's values that lie on pruned sides: all of them would go at ratio 1.

    Args:
        layout: order of the update's values.
    """
    gone = sum(
        factor.size for factor in layout.factors if factor.module.rpartition(".")[2] in _SHRINKS.get(factor.kind, ())
    )
    return gone / layout.size


def penalty_curves(known: Sequence[Experience], kind: Literal["chord", "measured"]) -> PenaltyCurves:
    """e_k(rho) relative to the squared norm of what may be pruned, so that e_k(1) = 1.

    Args:
        known: of each client.
        kind: chord: e = rho; measured: the convex curve below the points that the node reported, (0, 0) and (1, 1).
    """
    if kind == "chord":
        return chord(np.ones(len(known)))
    hulls = [_lower_hull([(0.0, 0.0), *sorted(one.points.items()), (1.0, 1.0)]) for one in known]
    longest = max(len(hull) for hull in hulls)
    # [num_clients, num_knots, 2]
    knots = np.array([[*hull, *[hull[-1]] * (longest - len(hull))] for hull in hulls])
    return PenaltyCurves(knots[:, :, 0], knots[:, :, 1])


def _lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The convex curve below points of rising abscissa."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _turn(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        hull.append(point)
    return hull


def _turn(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> float:
    """Positive where the way over three points turns left."""
    return (middle[0] - first[0]) * (last[1] - first[1]) - (middle[1] - first[1]) * (last[0] - first[0])


def client_costs(
    known: Sequence[Experience],
    weights: Sequence[float],
    gamma_hz: np.ndarray,
    update_bits: float,
    header_bits: float,
    max_ratio: float,
    *,
    structured: bool = True,
    penalty: Literal["chord", "measured"] = "chord",
    limits: ShareLimits | None = None,
    attained: np.ndarray | float = 1.0,
) -> ClientCosts:
    """The clients of a round.

    Args:
        known: of each client.
        weights: D_k.
        gamma_hz: p_k ||h_k||^2 / N0 less a gap, positive, shape [num_clients].
        update_bits: values of the whole update on air.
        header_bits: bits that travel with any update.
        max_ratio: rho_max, in [0, 1).
        structured: whether the update shrinks; masks leave it whole.
        penalty: as of `penalty_curves`.
        limits: of the shares, if they have any.
        attained: part of the rate at which each client's bytes travel, positive, shape [num_clients].
    """
    shrinking = np.array([one.shrinking if structured else 0.0 for one in known])
    whole_s, prunable = np.array([one.whole_s for one in known]), np.array([one.prunable for one in known])
    share = np.asarray(weights, np.float64)
    free = Shannon(np.asarray(gamma_hz, np.float64))
    limited = limits is not None and bool(np.any(limits.least_hz > 0) or np.any(np.isfinite(limits.most_hz)))
    uplink: Uplink = Bounded(free, limits.least_hz, limits.most_hz) if limits is not None and limited else free
    return ClientCosts(
        fixed_s=whole_s * (1.0 - prunable),
        scalable_s=np.maximum(whole_s * prunable, 1e-12),
        payload_bits=shrinking * update_bits / attained,
        uplink=uplink,
        weight=share / share.sum(),
        penalty=penalty_curves(known, penalty),
        max_ratio=np.full(len(known), max_ratio),
        fixed_payload_bits=((1.0 - shrinking) * update_bits + header_bits) / attained,
    )


def decide(
    costs: ClientCosts,
    total_hz: float,
    penalty_budget: float,
    rule: Rule,
    *,
    equal: bool,
    deadline_s: float | None,
    rng: np.random.Generator,
    together: bool = False,
) -> Solution[Allocation]:
    """One round's ratios and shares.

    Args:
        costs: of the clients.
        total_hz: B.
        penalty_budget: Gamma.
        rule: how ratios are found: jointly with the shares, in turn with them, one for all, none, or at random.
        equal: B / K for everybody, whatever the ratios; joint and bcd then are the best ratios for these shares.
        deadline_s: longest acceptable round, if there is one.
        rng: draws random ratios.
        together: whether all begin to send together, once the slowest has trained.
    """
    if together:
        return _decide_together(costs, total_hz, penalty_budget, rule, equal, deadline_s, rng)
    if rule == "joint" and not equal:
        return solve_joint(costs, total_hz, penalty_budget, deadline_s=deadline_s)
    if rule == "bcd" and not equal:
        return solve_bcd(costs, total_hz, penalty_budget, deadline_s=deadline_s)
    equal_hz = equal_shares_hz(costs, total_hz)
    match rule:
        case "joint" | "bcd":
            pruning = least_pruning(costs, equal_hz, penalty_budget)
        case "uniform":
            pruning = uniform_pruning(costs, penalty_budget)
        case "random":
            pruning = random_pruning(costs, penalty_budget, rng)
        case "none":
            pruning = np.zeros(costs.num_clients)
    return allocate_for(costs, total_hz, penalty_budget, pruning, equal_hz if equal else None, deadline_s=deadline_s)


def _decide_together(
    costs: ClientCosts,
    total_hz: float,
    penalty_budget: float,
    rule: Rule,
    equal: bool,
    deadline_s: float | None,
    rng: np.random.Generator,
) -> Solution[Allocation]:
    """The same where all begin to send together."""
    if rule == "joint" and not equal:
        return solve_together(costs, total_hz, penalty_budget, deadline_s=deadline_s)
    if rule == "bcd" and not equal:
        return descend_together(costs, total_hz, penalty_budget, deadline_s=deadline_s)
    pruning: np.ndarray | None
    match rule:
        case "joint" | "bcd":
            pruning = None
        case "uniform":
            pruning = uniform_pruning(costs, penalty_budget)
        case "random":
            pruning = random_pruning(costs, penalty_budget, rng)
        case "none":
            pruning = np.zeros(costs.num_clients)
    shares_hz = equal_shares_hz(costs, total_hz) if equal else None
    return allocate_together(costs, total_hz, penalty_budget, pruning, shares_hz, deadline_s=deadline_s)


def descent_gap(
    costs: ClientCosts, total_hz: float, penalty_budget: float, *, together: bool = False, joint_s: float | None = None
) -> tuple[float, float]:
    """The length of the round at the global optimum, and by which part of it block coordinate descent is longer.

    Args:
        costs: of the clients.
        total_hz: B.
        penalty_budget: Gamma.
        together: as of `decide`.
        joint_s: the former, where it is known.
    """
    joint, descent = (solve_together, descend_together) if together else (solve_joint, solve_bcd)
    joint_s = joint(costs, total_hz, penalty_budget).value if joint_s is None else joint_s
    return joint_s, descent(costs, total_hz, penalty_budget).value / joint_s - 1.0
