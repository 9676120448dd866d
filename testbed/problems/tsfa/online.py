"""A round of TSFA from what a server can know: residual curves of received pairs, bits of a selection, the decision.

The residual curve delta_n of a node is that of the pairs' energies I_i^2 which the server saw last: pairs that did not
travel keep their older value. The paper's equations are not available; that the server knows the curves in this way is
our reading, and so are the rules to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from testbed.core.adapter import Layout
from testbed.core.orders import Part, Payload
from testbed.lora.choice import part_mask
from testbed.lora.sparse_orthogonal import EnergyCurve, RankPairs, residual_curve, update_energies
from testbed.opt.solution import Solution
from testbed.phy import payload as coding
from testbed.phy.rate import shared_rate_bit_s
from testbed.problems.digital_order import update_bits
from testbed.problems.tsfa.horizon import POLICIES
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.slot import RoundDecision, ends

Selection: TypeAlias = Literal["pairs", "separate", "random", "scores", "values", "all"]
Controller: TypeAlias = Literal["lyapunov", "myopic", "fixed"]

_MOST_CORNERS = 32
"""Of a residual curve: a chord over several pairs lies above it, and every corner is a whole number of pairs."""


def active_pairs(pairs: RankPairs, rank: int) -> np.ndarray:
    """Which pairs belong to the first ranks, shape [num_pairs], bool.

    Args:
        pairs: of the layout.
        rank: structural rank.
    """
    return np.concatenate([np.arange(count) < rank for count in pairs.ranks])


def seen_squares(
    pairs: RankPairs, before: np.ndarray, updates: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The latest I_i^2 of every pair of every node.

    Args:
        pairs: of the layout.
        before: adapter the updates started from, shape [layout.size].
        updates: node -> what arrived of its update, shape [layout.size].
        known: node -> I_i^2 seen before, shape [num_pairs].

    Returns:
        node -> I_i^2, shape [num_pairs]; of pairs that did not travel the older value.
    """
    seen = dict(known)
    for name, update in updates.items():
        fresh = update_energies(pairs, before, update)
        seen[name] = np.where(fresh > 0, fresh, known[name]) if name in known else fresh
    return seen


def node_curves(
    pairs: RankPairs, rank: int, names: Sequence[str], seen: Mapping[str, np.ndarray], decay: float
) -> list[EnergyCurve]:
    """delta_n of each node.

    Args:
        pairs: of the layout.
        rank: structural rank.
        names: whose curves.
        seen: node -> I_i^2, shape [num_pairs]; the mean of the others stands in for a node that was never heard.
        decay: ratio of a singular value to the one before, where nobody was heard.
    """
    active = active_pairs(pairs, rank)
    within = np.concatenate([np.arange(count) for count in pairs.ranks])
    heard = [one for one in seen.values() if one[active].sum() > 0]
    shared = np.mean(heard, axis=0) if heard else decay ** (2.0 * within)
    curves = []
    for name in names:
        own = seen.get(name, shared)
        squares = own if own[active].sum() > 0 else shared
        curves.append(residual_curve(squares[active], pairs.num_values[active]))
    return curves


def round_clients(
    weights: Sequence[float],
    compute_s: Sequence[float],
    gamma_hz: np.ndarray,
    bits: tuple[float, float],
    curves: Sequence[EnergyCurve],
    num_pairs: int,
    least: float,
    attained: Sequence[float],
) -> Clients:
    """The clients of a round, each with a curve of its own.

    Args:
        weights: D_n.
        compute_s: Tc_n.
        gamma_hz: positive, shape [num_clients].
        bits: S of a whole update, and h of its header.
        curves: delta_n.
        num_pairs: that may travel; kappa is a multiple of its inverse.
        least: kappa_min.
        attained: part of R_n at which each client's bytes travel: as if it had so many more of them.
    """
    slow = 1.0 / np.asarray(attained, np.float64)
    first = Clients.of(
        np.asarray(weights, np.float64), np.asarray(compute_s, np.float64), gamma_hz, *bits, curves[0], 1.0
    )
    fewest = min(max(int(np.ceil(least * num_pairs - 1e-9)), 0), num_pairs)
    counts = np.unique(np.linspace(fewest, num_pairs, min(_MOST_CORNERS, num_pairs - fewest + 1)).round())
    share = counts / num_pairs if len(counts) > 1 else np.array([1.0, 1.0])
    return replace(
        first,
        payload_bit=bits[0] * slow,
        header_bit=bits[1] * slow,
        corner_share=np.broadcast_to(share, (len(curves), len(share))),
        corner_residual=np.stack([curve(share) for curve in curves]),
    )


def decide(
    clients: Clients,
    total_hz: float,
    backlog_s: float,
    tradeoff: float,
    limit_s: float,
    controller: Controller,
    *,
    keep: float = 1.0,
    equal: bool = False,
) -> Solution[RoundDecision]:
    """The round's ratios, shares and end.

    Args:
        clients: of the round.
        total_hz: B.
        backlog_s: Q.
        tradeoff: V.
        limit_s: T_bar.
        controller: drift plus penalty; every round ends at the limit; one ratio for all rounds.
        keep: of controller fixed.
        equal: B / N for everybody: with lyapunov the best end for these shares, with fixed the end they lead to.
    """
    if controller == "lyapunov":
        return POLICIES["equal-band" if equal else "tsfa"](clients, total_hz, backlog_s, tradeoff, limit_s, True)
    if controller == "myopic":
        return POLICIES["myopic"](clients, total_hz, backlog_s, tradeoff, limit_s, True)
    share = clients.rounded_down(np.clip(np.full(clients.weight.shape, keep), clients.least, 1.0))
    if equal:
        bandwidth_hz = np.full(clients.weight.shape, total_hz / len(clients.weight))
        rate_bit_s = shared_rate_bit_s(bandwidth_hz, clients.gamma_hz)
        end_s = float(np.max(clients.compute_s + (share * clients.payload_bit + clients.header_bit) / rate_bit_s))
    else:
        end_s, bandwidth_hz = clients.earliest(share, total_hz)
    lost = float(clients.penalty(share))
    decision = RoundDecision(share, bandwidth_hz, end_s, lost, *ends(clients, total_hz))
    return Solution(decision, tradeoff * lost + backlog_s * end_s, "unfinished")


def sparse_payload(
    layout: Layout,
    selection: Selection,
    kind: Literal["float32", "float16", "int8", "sign"],
    rank: int,
    share: float,
    *,
    error_feedback: bool,
) -> Payload:
    """The payload that keeps a share of the values of the first ranks, in at most the bits that were planned for it.

    Args:
        layout: order of the update's values.
        selection: what is kept: rank pairs by what they changed (SOFT), rows of A and columns of B apart, pairs by lot,
            single values by FedSRD's score or by size, or all.
        kind: how values become bytes; single values travel as float16 with their places.
        rank: structural rank.
        share: kappa.
        error_feedback: what is left out is added to the next update.
    """
    whole = int(RankPairs.of(layout).ranks.max())
    part = Part() if rank >= whole else Part(ranks=rank)
    match selection:
        case "all":
            return Payload(kind, part=part, error_feedback=error_feedback)
        case "scores" | "values":
            choice: Literal["scores", "all"] = "scores" if selection == "scores" else "all"
            values = int(np.count_nonzero(part_mask(layout, part)))
            kept = _values_within(values, share) / values
            return Payload("topk", kept, error_feedback, part, choice)
        case "separate":
            # of each module's ranks, rounded down
            kept = max(int(share * rank + 1e-9), 1) / whole
            return Payload(kind, kept, error_feedback, part, "separate")
        case "pairs" | "random":
            return Payload(kind, share, error_feedback, part, selection)


def _values_within(num_values: int, share: float) -> int:
    """How many values fit, with their places, into the bytes of a share of all values without places; at least one."""
    allowed = coding.HEAD.size + 2.0 * share * num_values
    low, high = 1, num_values
    while low < high:
        middle = (low + high + 1) // 2
        fits = coding.num_bytes(Payload("topk", middle / num_values), num_values) <= allowed
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def selection_bits(
    layout: Layout, selection: Selection, kind: Literal["float32", "float16", "int8", "sign"], rank: int
) -> tuple[float, float]:
    """S and h: bits of all values that may travel, and of what goes with any choice of them.

    Args:
        layout: order of the update's values.
        selection, kind, rank: as of `sparse_payload`.
    """
    return update_bits(layout, sparse_payload(layout, selection, kind, rank, 1.0, error_feedback=False))
