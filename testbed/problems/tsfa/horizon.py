"""Many rounds of TSFA: the latency queue, policies to compare with, and what holds on every path.

    Q <- max(Q + tau - T_bar, 0)
    sum over t < T of tau^t <= T T_bar + Q^T - Q^0                                      (on every path)
    Q^t <= V (delta_max - delta_min) / (T_bar - tau_lo) + tau_max - T_bar               if tau_min^t <= tau_lo < T_bar

The second holds since a round that ends at tau when Q is longer than the first summand would be beaten by the earliest
end; it is our reading of the paper's long-term constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.opt.lyapunov import VirtualQueues
from testbed.opt.solution import Solution
from testbed.phy.rate import shared_rate_bit_s
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.slot import RoundDecision, ends, keep_by, solve_round


@dataclass(frozen=True)
class Outcome:
    """A run of many rounds.

    Attributes:
        decisions: one for each round.
        queue: after the last round.
        backlog_s: Q before each round, and at the end, shape [num_rounds + 1].
        values: V sum w delta + Q tau of each round, shape [num_rounds].
        trace: of the last round's search.
    """

    decisions: tuple[RoundDecision, ...]
    queue: VirtualQueues
    backlog_s: np.ndarray
    values: np.ndarray
    trace: tuple[float, ...]


def run(
    rounds: Sequence[Clients],
    total_hz: float,
    limit_s: float,
    tradeoff: float,
    policy: str = "tsfa",
    initial_s: float = 0.0,
    *,
    whole_pairs: bool = True,
) -> Outcome:
    """All rounds in turn.

    Args:
        rounds: clients of each.
        total_hz: B.
        limit_s: T_bar, mean latency.
        tradeoff: V.
        policy: one of `POLICIES`.
        initial_s: Q(0).
        whole_pairs: send whole rank pairs only.
    """
    queue = VirtualQueues.at_most(limit_s, initial_s)
    decisions, backlog, values = [], [float(queue.backlog[0])], []
    trace: tuple[float, ...] = ()
    for clients in rounds:
        solution = POLICIES[policy](clients, total_hz, float(queue.backlog[0]), tradeoff, limit_s, whole_pairs)
        queue = queue.after(np.array([solution.point.latency_s]))
        decisions.append(solution.point)
        backlog.append(float(queue.backlog[0]))
        values.append(solution.value)
        trace = solution.trace
    return Outcome(tuple(decisions), queue, np.array(backlog), np.array(values), trace)


def queue_bound(outcome: Outcome, rounds: Sequence[Clients], tradeoff: float, limit_s: float) -> float:
    """What Q never exceeds; infinite where some round cannot end before the limit.

    Args:
        outcome: of policy tsfa.
        rounds: its clients.
        tradeoff: V.
        limit_s: T_bar.
    """
    slowest_s = max(one.earliest_s for one in outcome.decisions)
    if slowest_s >= limit_s:
        return np.inf
    latest_s = max(one.latest_s for one in outcome.decisions)
    spread = max(float(clients.penalty(clients.least)) for clients in rounds)
    bound = tradeoff * spread / (limit_s - slowest_s) + max(latest_s - limit_s, 0.0)
    return float(max(bound, outcome.backlog_s[0]))


def unmeetable(rounds: Sequence[Clients], total_hz: float, limit_s: float) -> str:
    """Why no schedule keeps the mean latency, with the client that costs most of it and by how much; else empty.

    Args:
        rounds: all that come.
        total_hz: B.
        limit_s: T_bar.
    """
    earliest_s = np.array([ends(clients, total_hz)[0] for clients in rounds])
    mean_s = float(earliest_s.mean())
    if mean_s <= limit_s:
        return ""
    # each client alone with the whole band at its least share
    alone_s = np.mean(
        [
            [
                float(_alone(clients, n).earliest(clients.least[n : n + 1], total_hz)[0])
                for n in range(len(clients.weight))
            ]
            for clients in rounds
        ],
        axis=0,
    )
    slowest = int(np.argmax(alone_s))
    return (
        f"latency_s: with every client at its least share rounds take {mean_s:.4g} s in the mean,"
        f" {mean_s - limit_s:.4g} s more than the limit of {limit_s:g} s; client {slowest} takes"
        f" {alone_s[slowest]:.4g} s even with the whole band"
    )


def _alone(clients: Clients, client: int) -> Clients:
    one = slice(client, client + 1)
    return Clients(
        clients.weight[one],
        clients.compute_s[one],
        clients.gamma_hz[one],
        clients.payload_bit,
        clients.header_bit,
        clients.corner_share[one],
        clients.corner_residual[one],
    )


# --- policies: (clients, B, Q, V, T_bar, whole pairs) -> one round ----------------------------------------------------

Decide = Callable[[Clients, float, float, float, float, bool], Solution[RoundDecision]]


def _tsfa(
    clients: Clients, total_hz: float, backlog_s: float, tradeoff: float, limit_s: float, whole_pairs: bool
) -> Solution[RoundDecision]:
    return solve_round(clients, total_hz, backlog_s, tradeoff, whole_pairs=whole_pairs)


def _myopic(
    clients: Clients, total_hz: float, backlog_s: float, tradeoff: float, limit_s: float, whole_pairs: bool
) -> Solution[RoundDecision]:
    """Every round ends at the limit, or as early as it can where that is later."""
    earliest_s, latest_s = ends(clients, total_hz)
    at_s = float(np.clip(limit_s, earliest_s, latest_s))
    keep, share = keep_by(clients, total_hz, np.array([at_s]))
    return _decided(clients, total_hz, backlog_s, tradeoff, keep[0], share[0], at_s, whole_pairs)


def _equal_band(
    clients: Clients, total_hz: float, backlog_s: float, tradeoff: float, limit_s: float, whole_pairs: bool
) -> Solution[RoundDecision]:
    """B / N for everybody; the end is the best of a grid."""
    share = np.full(clients.weight.shape, total_hz / len(clients.weight))
    rate_s = (np.array([clients.least, np.ones_like(share)]) * clients.payload_bit + clients.header_bit) / np.maximum(
        shared_rate_bit_s(share, clients.gamma_hz), 1e-300
    )
    first_s, last_s = (clients.compute_s + rate_s).max(axis=1)
    tried_s = np.linspace(first_s, last_s, 401)
    keep = np.clip(clients.sent(share, tried_s[:, None]), clients.least, 1.0)
    at = int(np.argmin(tradeoff * clients.penalty(keep) + backlog_s * tried_s))
    return _decided(clients, total_hz, backlog_s, tradeoff, keep[at], share, float(tried_s[at]), False)


def _fixed(keep_all: bool) -> Decide:
    def decide(
        clients: Clients, total_hz: float, backlog_s: float, tradeoff: float, limit_s: float, whole_pairs: bool
    ) -> Solution[RoundDecision]:
        keep = np.ones(clients.weight.shape) if keep_all else clients.least.copy()
        at_s, share = clients.earliest(keep, total_hz)
        return _decided(clients, total_hz, backlog_s, tradeoff, keep, share, at_s, False)

    return decide


def _decided(
    clients: Clients,
    total_hz: float,
    backlog_s: float,
    tradeoff: float,
    keep: np.ndarray,
    share: np.ndarray,
    latency_s: float,
    whole_pairs: bool,
) -> Solution[RoundDecision]:
    if whole_pairs:
        keep = clients.rounded_down(keep)
        latency_s, share = clients.earliest(keep, total_hz)
    penalty = float(clients.penalty(keep))
    decision = RoundDecision(keep, share, latency_s, penalty, *ends(clients, total_hz))
    return Solution(decision, tradeoff * penalty + backlog_s * latency_s, "unfinished")


POLICIES: Mapping[str, Decide] = {
    "tsfa": _tsfa,
    "myopic": _myopic,
    "equal-band": _equal_band,
    "dense": _fixed(True),
    "least": _fixed(False),
}
"""How a round may be decided, by name; the first is the paper's."""
