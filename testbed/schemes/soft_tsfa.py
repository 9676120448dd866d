"""Sparsified orthogonal fine-tuning (SOFT), controlled by two-stage optimisation (TSFA).

Paper: B. Kim, W. Choi, "Two-Stage Wireless Federated LoRA Fine-Tuning with Sparsified Orthogonal Updates", arXiv
2505.00333. From its abstract: near orthogonality imposed on the factors, and a norm-based importance of each rank that
sparsifies them without a decomposition; the structural rank fixed offline; sparsification ratio and bandwidth set
online by Lyapunov optimisation under a long-term latency limit. Its body is not available: all equations are our
reconstruction and stand in `testbed.lora.sparse_orthogonal` and `testbed.problems.tsfa`. In every round

    minimise over tau, b, kappa   V sum_n w_n delta_n(kappa_n) + Q tau,     Q <- max(Q + tau - T_bar, 0)
    s.t. kappa_n S + h <= (tau - Tc_n) R_n(b_n),   sum_n b_n <= B,   kappa_min <= kappa_n <= 1,

or with `queues = "each"` sum_n Q_n T_n in the place of Q tau, T_n the end of a node's own sending and Q_n its queue.

Our choices besides: nodes keep what they leave out (error feedback); the round is decided after training, from its
measured seconds and a fresh sounding, and what arrives after tau is lost; queues grow by measured seconds; delta_n is
that of the pairs the server saw last. With `ranks` the first round is a pilot from which the rank is chosen
(`testbed.problems.tsfa.pilot`), outside of the queue; without, it is that of `[lora]`, and `testbed solve tsfa` chooses
it offline. Over error-free links who has trained sends at once; packets start together when the slowest has trained, in
shares of the band that have limits, at rates that are a staircase (`testbed.problems.packet_links`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter, Layout
from testbed.core.errors import ConfigError
from testbed.core.fleet import Fleet
from testbed.core.orders import Collected, Sounding, Steps, Trained, Uplink, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.lora.refactor import trains_both
from testbed.lora.sparse_orthogonal import RankPairs, coherence
from testbed.lora.switch import max_rank
from testbed.opt.lyapunov import VirtualQueues
from testbed.problems.digital_order import (
    VALUE_BIT,
    UplinkSpec,
    audible,
    digital_uplinks,
    head_starts_s,
    loudness_hz,
    moved,
    sample_weights,
    share_limits,
    trained_s,
    until_s,
)
from testbed.problems.packet_links import PacketLinks
from testbed.problems.tsfa import online
from testbed.problems.tsfa.pilot import best_rank, cut_to_rank, pilot_candidates
from testbed.problems.tsfa.slot import RoundDecision


@dataclass(frozen=True)
class SoftState:
    """What the scheme remembers between rounds.

    Attributes:
        fleet: nodes, antennas and band.
        adapter: global adapter, shape [num_values].
        layout: order of its factors.
        queue: Q, seconds above the limit: of rounds, or of each node.
        rank: structural rank; None before the pilot.
        seen: node -> squared importance of its pairs as they were seen last, shape [num_pairs].
        links: what packets reached on them.
        figures: of the last round, for its row.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    queue: VirtualQueues
    rank: int | None
    links: PacketLinks
    seen: Mapping[str, np.ndarray] = field(default_factory=dict)
    figures: Mapping[str, float | str] = field(default_factory=dict)


class SoftTsfa(Scheme[SoftState]):
    """Rank pairs and bandwidth under a long-term latency limit; the factors are kept near orthogonal."""

    orthogonality: float = Field(0.1, ge=0, description="weight of the penalty that pulls the factors to orthogonality")
    selection: Literal["pairs", "separate", "random", "scores", "values", "all"] = Field(
        "pairs",
        description="what is sent: rank pairs by what they changed; rows of A and columns of B apart; pairs by lot; "
        "single values by FedSRD's score, or by size; all",
    )
    controller: Literal["lyapunov", "myopic", "fixed"] = Field(
        "lyapunov", description="drift plus penalty; every round ends at latency_s; the same share in every round"
    )
    bandwidth: Literal["optimal", "equal"] = Field("optimal", description="shares of the band")
    queues: Literal["one", "each"] = Field(
        "one", description="mean latency is limited for the round, or for each node until the end of its own sending"
    )
    latency_s: float = Field(10.0, gt=0, description="T_bar: mean seconds of a round's training and sending")
    own_latency_s: tuple[float, ...] = Field(
        (), description="queues each: T_bar of the nodes in turn, repeated; latency_s for all if empty"
    )
    tradeoff: float = Field(20.0, gt=0, description="V: large ones favour learning, small ones short queues")
    backlog_s: float = Field(0.0, ge=0, description="Q before the first round; 0 sends everything once")
    keep: float = Field(1.0, gt=0, le=1, description="controller fixed: share of the values that is sent")
    least_keep: float | None = Field(None, gt=0, le=1, description="kappa_min; one pair of each module if absent")
    deadline: bool = Field(True, description="what arrives after the round's end is lost to it")
    slack: float = Field(1.0, ge=1, description="the deadline lies at so many times the planned end")
    error_feedback: bool = Field(True, description="what a node leaves out is added to its next update")
    coverage: Literal["present", "all"] = Field(
        "all", description="the mean of a value: over the nodes that sent it, or over all (zero from the rest)"
    )
    ranks: tuple[int, ...] = Field((), description="structural ranks that a pilot weighs; that of [lora] if empty")
    rank_costs: tuple[float, float, float] = Field(
        (1.0, 1.0, 1.0), description="pilot: weights of rank residual, sparsification and covariance"
    )
    decay: float = Field(0.8, gt=0, lt=1, description="ratio of neighbouring singular values, until updates were seen")
    efficiency: float = Field(
        0.8, gt=0, le=1, description="part of their codes' rate that packets reach, assumed until it has been measured"
    )
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel")

    def start(self, fleet: Fleet, adapter: Adapter) -> SoftState:
        if not trains_both(adapter.layout):
            raise ConfigError(
                "rank pairs need an adapter that trains A and B, and this one does not",
                key="lora.freeze_a",
                remedy="set freeze_a = false in [lora]",
            )
        most = max_rank(adapter.layout)
        if self.ranks and not 1 <= min(self.ranks) <= max(self.ranks) <= most:
            raise ConfigError(
                f"the pilot weighs ranks {', '.join(map(str, self.ranks))}, and the adapter has {most}",
                key="scheme.ranks",
                remedy=f"choose ranks from 1 to {most}, or raise lora.rank",
            )
        rank, links = None if self.ranks else most, PacketLinks.of(fleet.names, self.efficiency)
        num_nodes, each = len(fleet.names), self.queues == "each"
        queue = online.latency_queues(num_nodes, self.latency_s, self.own_latency_s, self.backlog_s, each=each)
        return SoftState(fleet, adapter.initial, adapter.layout, queue, rank, links)

    def round(self, state: SoftState, rng: np.random.Generator) -> Steps[SoftState]:
        whole, pilot = max_rank(state.layout), state.rank is None
        rank = whole if state.rank is None else state.rank
        work = Work(ranks=None if rank == whole else rank, others="absent", orthogonality=self.orthogonality)
        trained = yield from train(dict.fromkeys(state.fleet.names, work))
        sounding = yield from sound(tuple(trained.results), num_pilots=self.uplink.num_pilots)
        plan, uplinks = self._plan(state, sounding, trained, rank)
        end_s = until_s(self.slack * plan.latency_s if self.deadline and not pilot else None, trained)
        collected = yield from collect(uplinks, deadline_s=end_s)
        if pilot:
            following = self._after_pilot(state, sounding, trained, collected)
        else:
            following = self._after(state, trained, uplinks, collected)
        yield from publish(following.adapter)
        links = state.links.after(uplinks, collected, end_s, state.fleet)
        figures: dict[str, float | str] = {
            "rank": rank,
            "keep": float(np.mean(plan.share)),
            "lost": plan.penalty,
            "planned_s": plan.latency_s,
            "round_s": trained_s(trained) + collected.spent.seconds,
            "backlog_s": float(following.queue.backlog.max()),
            "mean_s": float(following.queue.mean.max()),
            "coherence": max(coherence(RankPairs.of(state.layout), following.adapter)),
            "late": " ".join(collected.missing),
        }
        if self.queues == "each":
            figures["backlogs_s"] = " ".join(f"{one:.4g}" for one in following.queue.backlog)
        return replace(following, links=links, figures=figures)

    def report(self, state: SoftState) -> Mapping[str, float | str]:
        return state.figures

    def _plan(
        self, state: SoftState, sounding: Sounding, trained: Trained, rank: int
    ) -> tuple[RoundDecision, dict[str, Uplink]]:
        """The round's decision (14): each node's share of its pairs in its share of the band. A pilot sends all."""
        pilot, kind, each = state.rank is None, self.uplink.payload, self.queues == "each"
        selection = "all" if pilot else self.selection
        names, gamma_hz = audible(state.fleet, sounding, self.uplink.snr_gap)
        limits = state.links.trusted(names, share_limits(state.fleet, sounding, names, self.uplink))
        pairs, weights = RankPairs.of(state.layout), sample_weights(trained, names)
        least = 1.0 / rank if self.least_keep is None else self.least_keep
        clients = online.round_clients(
            list(weights.values()),
            online.ready_s(trained, names, together=self.uplink.link == "packets"),
            gamma_hz,
            online.selection_bits(state.layout, selection, kind, rank),
            online.node_curves(pairs, rank, names, state.seen, self.decay),
            int(online.active_pairs(pairs, rank).sum()),
            1.0 if selection == "all" else least,
            limits,
        )
        plan = online.decide(
            clients,
            limits.total_hz,
            online.queues_of(state.queue, state.fleet.names, names) if each else state.queue,
            self.tradeoff,
            "fixed" if pilot else self.controller,
            keep=self.keep,
            equal=self.bandwidth == "equal",
            each=each,
            attained=state.links.staircase(names, gamma_hz, self.uplink, state.fleet),
        ).point
        payloads = {
            name: online.sparse_payload(state.layout, selection, kind, rank, share, error_feedback=self.error_feedback)
            for name, share in zip(names, plan.share.tolist(), strict=True)
        }
        shares_hz = dict(zip(names, plan.bandwidth_hz.tolist(), strict=True))
        ahead_s = head_starts_s(trained)
        uplinks = digital_uplinks(
            state.fleet, sounding, weights, payloads, self.uplink, shares_hz=shares_hz, head_start_s=ahead_s
        )
        return plan, state.links.backed_off(uplinks)

    def _after(
        self, state: SoftState, trained: Trained, uplinks: Mapping[str, Uplink], collected: Collected
    ) -> SoftState:
        """Factors averaged apart, and queues longer by what was taken beyond their limits."""
        adapter = moved(state.adapter, trained, collected, self.coverage)
        seen = online.seen_squares(RankPairs.of(state.layout), state.adapter, collected.updates, state.seen)
        queue, each, together = state.queue, self.queues == "each", self.uplink.link == "packets"
        used_s = online.latencies_s(queue, state.fleet.names, trained, uplinks, collected, together=together, each=each)
        return replace(state, adapter=adapter, seen=seen, queue=queue.after(used_s))

    def _after_pilot(self, state: SoftState, sounding: Sounding, trained: Trained, collected: Collected) -> SoftState:
        """The structural rank, and the mean product cut to it."""
        weights = sample_weights(trained, sorted(collected.updates))
        names = list(weights)
        candidates = pilot_candidates(
            state.layout,
            self.ranks,
            state.adapter,
            collected.updates,
            weights,
            np.array(online.ready_s(trained, names, together=self.uplink.link == "packets")),
            loudness_hz(state.fleet, sounding, names, self.uplink.snr_gap)[None],
            state.fleet.bandwidth_hz,
            self.latency_s,
            VALUE_BIT[self.uplink.payload],
            self.rank_costs,
            self.decay,
            attained=1.0 if self.uplink.link == "ideal" else self.efficiency,
            limits=share_limits(state.fleet, sounding, names, self.uplink),
        )
        rank = best_rank(candidates, self.latency_s).rank
        adapters = {name: state.adapter + update for name, update in collected.updates.items()}
        return replace(state, adapter=cut_to_rank(state.layout, adapters, weights, rank), rank=rank)
