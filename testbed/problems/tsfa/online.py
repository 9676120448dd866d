"""A round of TSFA from what a server can know: residual curves of received pairs, bits of a selection, the decision.

The residual curve delta_n of a node is that of the pairs' energies I_i^2 which the server saw last: pairs that did not
travel keep their older value. The latency that a queue grows by is measured: of the round, or of each node from the
round's start to the end of its own sending. The paper's equations are not available; that the server knows the curves
in this way is our reading, and so are the rules to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from testbed.core.adapter import Layout
from testbed.core.orders import Collected, Part, Payload, Trained, Uplink
from testbed.lora.choice import part_mask
from testbed.lora.sparse_orthogonal import EnergyCurve, RankPairs, residual_curve, update_energies
from testbed.opt.lyapunov import VirtualQueues
from testbed.opt.solution import Solution
from testbed.phy import payload as coding
from testbed.problems.digital_order import ShareLimits, air_seconds, trained_s, update_bits
from testbed.problems.tsfa.horizon import decided
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.slot import RoundDecision, ends, infeasible_round

Selection: TypeAlias = Literal["pairs", "separate", "random", "scores", "values", "all"]
Controller: TypeAlias = Literal["lyapunov", "myopic", "fixed"]

_TURNS = 8
"""Decisions that are tried where the rate is a staircase."""

_AGREED = 0.01
"""Part of the end by which a decision and the staircase may differ."""

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
        seen: node -> I_i^2, shape [num_pairs]; the mean of the others stands in for a node that was never heard, and
            pairs that never travelled count, for their size, as much as the least of those that did.
        decay: ratio of a singular value to the one before, where nobody was heard.
    """
    active = active_pairs(pairs, rank)
    within = np.concatenate([np.arange(count) for count in pairs.ranks])
    heard = [one for one in seen.values() if one[active].sum() > 0]
    shared = np.mean(heard, axis=0) if heard else decay ** (2.0 * within)
    curves = []
    for name in names:
        own = seen.get(name, shared)
        squares, sizes = (own if own[active].sum() > 0 else shared)[active], pairs.num_values[active]
        least = float((squares / sizes)[squares > 0].min())
        curves.append(residual_curve(np.where(squares > 0, squares, least * sizes), sizes))
    return curves


def round_clients(
    weights: Sequence[float],
    compute_s: Sequence[float],
    gamma_hz: np.ndarray,
    bits: tuple[float, float],
    curves: Sequence[EnergyCurve],
    num_pairs: int,
    least: float,
    limits: ShareLimits | None = None,
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
        limits: of the shares of the band; none if absent.
    """
    first = Clients.of(
        np.asarray(weights, np.float64), np.asarray(compute_s, np.float64), gamma_hz, *bits, curves[0], 1.0
    )
    fewest = min(max(int(np.ceil(least * num_pairs - 1e-9)), 0), num_pairs)
    counts = np.unique(np.linspace(fewest, num_pairs, min(_MOST_CORNERS, num_pairs - fewest + 1)).round())
    share = counts / num_pairs if len(counts) > 1 else np.array([1.0, 1.0])
    return replace(
        first,
        corner_share=np.broadcast_to(share, (len(curves), len(share))),
        corner_residual=np.stack([curve(share) for curve in curves]),
        least_hz=0.0 if limits is None else limits.least_hz,
        most_hz=np.inf if limits is None else limits.most_hz,
    )


def latency_queues(
    num_nodes: int, limit_s: float, own_s: Sequence[float], initial_s: float, *, each: bool
) -> VirtualQueues:
    """One queue for the round's end, or one for the finishing time of each node.

    Args:
        num_nodes: of the fleet.
        limit_s: T_bar.
        own_s: with `each`, limits of the nodes in turn, repeated; `limit_s` for all if empty.
        initial_s: Q(0).
        each: a queue for each.
    """
    if not each:
        return VirtualQueues.at_most(limit_s, initial_s)
    return VirtualQueues.at_most(np.resize(own_s or [limit_s], num_nodes), initial_s)


def queues_of(queues: VirtualQueues, names: Sequence[str], chosen: Sequence[str]) -> VirtualQueues:
    """The queues of some nodes.

    Args:
        queues: of all nodes in the order of `names`.
        names: of the fleet.
        chosen: whose, in this order.
    """
    rows = [list(names).index(name) for name in chosen]
    limit, backlog, initial, total = (one[rows] for one in (queues.limit, queues.backlog, queues.initial, queues.total))
    return VirtualQueues(limit, backlog, initial, total, queues.slots)


def ready_s(trained: Trained, names: Iterable[str], *, together: bool) -> list[float]:
    """Seconds until each node can send: its own training, or the slowest's where all begin together.

    Args:
        trained: what training took.
        names: whose.
        together: nobody sends before everybody has trained.
    """
    last_s = trained_s(trained)
    return [last_s if together else trained.results[name].seconds for name in names]


def latencies_s(
    queues: VirtualQueues,
    names: Sequence[str],
    trained: Trained,
    uplinks: Mapping[str, Uplink],
    collected: Collected,
    *,
    together: bool,
    each: bool,
) -> np.ndarray:
    """What the queues grow by, as measured: the round's seconds, or T_n, the end of each node's own sending.

    Who is missing counts until the round's end; who did not train counts as its limit, which leaves its queue alone.

    Args:
        queues: with their limits.
        names: of the fleet.
        trained, uplinks, collected: of the round.
        together: nobody sends before everybody has trained.
        each: there is a queue for each node.

    Returns:
        shape [num_queues].
    """
    round_s, sent_s = trained_s(trained) + collected.spent.seconds, air_seconds(uplinks, collected)
    if not each:
        return np.array([round_s])
    known = [name for name in names if name in trained.results]
    own_s = {
        name: before_s + sent_s.get(name, 0.0)
        for name, before_s in zip(known, ready_s(trained, known, together=together), strict=True)
    }
    own_s |= dict.fromkeys(collected.missing, round_s)
    return np.array([own_s.get(name, limit_s) for name, limit_s in zip(names, queues.limit.tolist(), strict=True)])


def decide(
    clients: Clients,
    total_hz: float,
    queues: VirtualQueues,
    tradeoff: float,
    controller: Controller,
    *,
    keep: float = 1.0,
    equal: bool = False,
    each: bool = False,
    attained: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Solution[RoundDecision]:
    """The round's ratios, shares and end.

    Where links reach a part of R(b) that is a staircase in b, the round is decided with the parts of the shares before,
    again and again; the decision counts whose end lies closest to what the parts of its own shares make of it.

    Args:
        clients: of the round.
        total_hz: B.
        queues: Q and T_bar: one, or with `each` one for each client.
        tradeoff: V.
        controller: drift plus penalty; every round ends at the limit, the least of several; one ratio for all rounds.
        keep: of controller fixed.
        equal: B / N for everybody: with lyapunov the best end for these shares, with fixed the end they lead to.
        each: the queues are those of the clients' finishing times.
        attained: shares of the band -> part of R(b) that each client reaches there; all of it if absent.
    """
    if attained is None:
        return _decide(clients, total_hz, queues, tradeoff, controller, keep, equal, each)
    share_hz, nearest, best = clients.equal_shares(total_hz), np.inf, None
    for _ in range(_TURNS):
        found = _decide(_slowed(clients, attained(share_hz)), total_hz, queues, tradeoff, controller, keep, equal, each)
        if not found.found:
            return found
        share_hz = found.point.bandwidth_hz
        end_s = float(np.max(_slowed(clients, attained(share_hz)).end_s(found.point.share, share_hz)))
        off = abs(end_s / found.point.latency_s - 1.0)
        if best is None or off < nearest:
            nearest, best = off, replace(found, point=replace(found.point, latency_s=end_s))
        if off < _AGREED:
            break
    assert best is not None
    return best


def _slowed(clients: Clients, attained: np.ndarray) -> Clients:
    """Clients whose bytes travel at a part of R_n: as if they had so many more of them."""
    return replace(clients, payload_bit=clients.payload_bit / attained, header_bit=clients.header_bit / attained)


def _decide(
    clients: Clients,
    total_hz: float,
    queues: VirtualQueues,
    tradeoff: float,
    controller: Controller,
    keep: float,
    equal: bool,
    each: bool,
) -> Solution[RoundDecision]:
    if controller != "fixed":
        policy = "myopic" if controller == "myopic" else ("equal-band" if equal else "tsfa")
        return decided(clients, total_hz, queues, tradeoff, policy, each=each)
    if message := clients.shortage(total_hz):
        return infeasible_round(clients, total_hz, message)
    share = clients.rounded_down(np.clip(np.full(clients.weight.shape, keep), clients.least, 1.0))
    if equal:
        bandwidth_hz = clients.equal_shares(total_hz)
        end_s = float(np.max(clients.end_s(share, bandwidth_hz)))
    else:
        end_s, bandwidth_hz = clients.earliest(share, total_hz)
    lost = float(clients.penalty(share))
    decision = RoundDecision(share, bandwidth_hz, end_s, lost, *ends(clients, total_hz))
    return Solution(decision, tradeoff * lost, "feasible")


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
