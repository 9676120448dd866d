"""Many rounds of TSFA: the latency queue, policies to compare with, and what holds on every path.

    Q <- max(Q + tau - T_bar, 0)
    sum over t < T of tau^t <= T T_bar + Q^T - Q^0                                      (on every path)
    Q^t <= V (delta_max - delta_min) / (T_bar - tau_lo) + tau_max - T_bar               if tau_min^t <= tau_lo < T_bar

The second holds since a round that ends at tau when Q is longer than the first summand would be beaten by the earliest
end; it is our reading of the paper's long-term constraint. With a queue for each client the first line holds for each,
with its own finishing times T_n and its own limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from testbed.opt.lyapunov import VirtualQueues
from testbed.opt.solution import Solution
from testbed.problems.tsfa.apart import solve_apart, split_apart
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.slot import RoundDecision, ends, infeasible_round, keep_by, solve_round


@dataclass(frozen=True)
class Outcome:
    """A run of many rounds.

    Attributes:
        decisions: one for each round.
        queue: after the last round; one, or one for each client.
        backlog_s: Q before each round, and at the end, shape [num_rounds + 1, num_queues].
        values: V sum w delta + Q tau of each round, or with sum Q_n T_n, shape [num_rounds].
        trace: of the last round's search.
        messages: of the rounds' solutions, empty where there is nothing to say.
    """

    decisions: tuple[RoundDecision, ...]
    queue: VirtualQueues
    backlog_s: np.ndarray
    values: np.ndarray
    trace: tuple[float, ...]
    messages: tuple[str, ...] = ()


def run(
    rounds: Sequence[Clients],
    total_hz: float,
    limit_s: float | np.ndarray,
    tradeoff: float,
    policy: str = "tsfa",
    initial_s: float = 0.0,
    *,
    whole_pairs: bool = True,
    each: bool = False,
) -> Outcome:
    """All rounds in turn.

    Args:
        rounds: clients of each.
        total_hz: B.
        limit_s: T_bar, mean latency; with `each` also shape [num_clients].
        tradeoff: V.
        policy: one of `POLICIES`.
        initial_s: Q(0).
        whole_pairs: send whole rank pairs only.
        each: a queue for each client's finishing time instead of one for the round's end.
    """
    if each:
        queue = VirtualQueues.at_most(np.broadcast_to(limit_s, rounds[0].weight.shape), initial_s)
    else:
        queue = VirtualQueues.at_most(limit_s, initial_s)
    decisions, backlog, values, messages = [], [queue.backlog], [], []
    trace: tuple[float, ...] = ()
    for clients in rounds:
        solution = decided(clients, total_hz, queue, tradeoff, policy, whole_pairs=whole_pairs, each=each)
        one = solution.point
        queue = queue.after(clients.end_s(one.share, one.bandwidth_hz) if each else np.array([one.latency_s]))
        decisions.append(one)
        backlog.append(queue.backlog)
        values.append(solution.value)
        messages.append(solution.message)
        trace = solution.trace
    return Outcome(tuple(decisions), queue, np.array(backlog), np.array(values), trace, tuple(messages))


def decided(
    clients: Clients,
    total_hz: float,
    queues: VirtualQueues,
    tradeoff: float,
    policy: str = "tsfa",
    *,
    whole_pairs: bool = True,
    each: bool = False,
) -> Solution[RoundDecision]:
    """One round by a policy.

    Args:
        clients: of the round.
        total_hz: B.
        queues: Q and T_bar.
        tradeoff: V.
        policy: one of `POLICIES`; those that look at no queue end by the smallest limit.
        whole_pairs: send whole rank pairs only; with a queue for each client they always are.
        each: the queues are those of the clients' finishing times; else there is one, for the round's end.
    """
    if message := clients.shortage(total_hz):
        return infeasible_round(clients, total_hz, message)
    if each and policy in APART:
        return APART[policy](clients, total_hz, queues.backlog, tradeoff)
    backlog_s = 0.0 if each else float(queues.backlog[0])
    limit_s = float(queues.limit.min())
    found = POLICIES[policy](clients, total_hz, backlog_s, tradeoff, limit_s, whole_pairs)
    if not each:
        return found
    one = found.point
    waited_s = float(queues.backlog @ clients.end_s(one.share, one.bandwidth_hz))
    return replace(found, value=tradeoff * one.penalty + waited_s)


def queue_bound(outcome: Outcome, rounds: Sequence[Clients], tradeoff: float, limit_s: float) -> float:
    """What the one queue Q never exceeds; infinite where some round cannot end before the limit.

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
    return float(max(bound, outcome.backlog_s[0, 0]))


def unmeetable(rounds: Sequence[Clients], total_hz: float, limit_s: float | np.ndarray, *, each: bool = False) -> str:
    """Why no schedule keeps the mean latency, with the client that costs most of it and by how much; else empty.

    Args:
        rounds: all that come.
        total_hz: B.
        limit_s: T_bar; with `each` also shape [num_clients].
        each: limits on every client's own finishing time, of which only those are told that the client would break with
            the whole band to itself.
    """
    if message := rounds[0].shortage(total_hz):
        return message
    mean_s = float(np.mean([ends(clients, total_hz)[0] for clients in rounds]))
    if not each and mean_s <= float(np.min(limit_s)):
        return ""
    # each client alone with the whole band at its least share
    alone_s = np.mean(
        [
            [clients.only(n).earliest(clients.least[n : n + 1], total_hz)[0] for n in range(len(clients.weight))]
            for clients in rounds
        ],
        axis=0,
    )
    own_s = np.broadcast_to(limit_s, alone_s.shape)
    slowest = int(np.argmax(alone_s - own_s))
    if each:
        excess_s = float(alone_s[slowest] - own_s[slowest])
        if excess_s <= 0:
            return ""
        return (
            f"latency_s: client {slowest} takes {alone_s[slowest]:.4g} s in the mean at its least share with the whole"
            f" band, {excess_s:.4g} s more than its limit of {own_s[slowest]:g} s"
        )
    return (
        f"latency_s: with every client at its least share rounds take {mean_s:.4g} s in the mean,"
        f" {mean_s - own_s[0]:.4g} s more than the limit of {own_s[0]:g} s; client {slowest} takes"
        f" {alone_s[slowest]:.4g} s even with the whole band"
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
    share = clients.equal_shares(total_hz)
    first_s, last_s = clients.end_s(np.array([clients.least, np.ones_like(share)]), share).max(axis=1)
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
    return Solution(decision, tradeoff * penalty + backlog_s * latency_s, "feasible")


APART: Mapping[str, Callable[[Clients, float, np.ndarray, float], Solution[RoundDecision]]] = {
    "tsfa": solve_apart,
    "equal-band": split_apart,
}
"""The same where each client has a queue, of policies that look at queues: (clients, B, Q_n, V) -> one round."""

POLICIES: Mapping[str, Decide] = {
    "tsfa": _tsfa,
    "myopic": _myopic,
    "equal-band": _equal_band,
    "dense": _fixed(True),
    "least": _fixed(False),
}
"""How a round may be decided, by name; the first is the paper's."""
