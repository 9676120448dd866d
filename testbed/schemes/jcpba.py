"""Joint client-specific pruning and bandwidth allocation (JCPBA) for low-latency federated fine-tuning.

Paper: "Low-latency Federated LLM Fine-tuning Over Wireless Networks", arXiv 2602.01024. From its abstract: pruning
rates of each client and shares of the band that minimise the fine-tuning latency of clients with unlike processors and
channels under a constraint on learning, found by block coordinate descent. Its body is not available: all equations are
our reconstruction and stand in `testbed.problems.jcpba`. Every round they minimise

    max_k T_k,   T_k = beta_k + (1 - rho_k) alpha_k + ((1 - rho_k) V_k + F_k) / R_k(b_k)
    s.t. sum_k b_k <= B,   sum_k p_k e_k(rho_k) <= Gamma,   0 <= rho_k <= rho_max.

Our choices besides: the frozen base is pruned and LoRA is trained on what is left; `allocation = "joint"` is the global
optimum, "bcd" the paper's descent, which stalls (`bcd_gap` reports by how much); the penalty e_k is the ratio itself,
or the curve of squared norms that the nodes measure; costs are learnt from what nodes report; updates are averaged
where they overlap. Over error-free links who has trained sends at once; packets start together, so that with them

    max_k (beta_k + (1 - rho_k) alpha_k) + max_k ((1 - rho_k) V_k + F_k) / R_k(b_k)

is minimised (`testbed.problems.jcpba.together`), in what guards leave of the band, with shares of whole subcarriers and
none wider than the codes bear. Masks (`pruning = "unstructured"`) leave the update
and the measured seconds as they are: there the plan speaks of hardware that skips zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import (
    Collected,
    Payload,
    Pruning,
    Sounding,
    Steps,
    Trained,
    Uplink,
    Work,
    collect,
    publish,
    sound,
    train,
)
from testbed.core.scheme import Scheme
from testbed.opt.bounded_share import equal_split
from testbed.opt.solution import Solution
from testbed.problems.digital_order import (
    ShareLimits,
    UplinkSpec,
    air_seconds,
    audible,
    digital_uplinks,
    head_starts_s,
    moved,
    sample_weights,
    share_limits,
    trained_s,
    until_s,
    update_bits,
)
from testbed.problems.jcpba.measured import Experience, client_costs, decide, descent_gap, shrinking_share
from testbed.problems.jcpba.model import Allocation, ClientCosts
from testbed.problems.packet_links import PacketLinks

_LEAST_RATIO = 1e-6


@dataclass(frozen=True)
class JcpbaState:
    """What the scheme remembers between rounds.

    Attributes:
        fleet: nodes, antennas and band.
        adapter: global adapter, shape [num_values].
        layout: order of its factors.
        known: node -> what it costs.
        links: what its packets showed of each.
        shares_hz: node -> its share of the band in the last round.
        figures: of the last round, for its row.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    known: Mapping[str, Experience]
    links: PacketLinks
    shares_hz: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float | str] = field(default_factory=dict)


class Jcpba(Scheme[JcpbaState]):
    """Pruning ratios and bandwidth shares of every client, decided together in every round."""

    allocation: Literal["joint", "bcd", "uniform", "none", "random"] = Field(
        "joint",
        description="pruning ratios: the global optimum with the shares; block coordinate descent; one for all; none; "
        "random ones of the same penalty",
    )
    bandwidth: Literal["optimal", "equal"] = Field("optimal", description="shares of the band")
    penalty_budget: float = Field(0.2, ge=0, description="Gamma: largest weighted mean of the clients' penalties")
    max_ratio: float = Field(0.5, ge=0, le=0.95, description="largest pruning ratio of a client")
    penalty: Literal["chord", "measured"] = Field(
        "chord", description="penalty of a ratio: the ratio itself, or the share of squared weights that nodes report"
    )
    pruning: Literal["structured", "unstructured"] = Field(
        "structured", description="heads and channels are taken out, or single weights are set to zero"
    )
    importance: Literal["data", "magnitude"] = Field(
        "data", description="what is pruned first: what matters least on the node's rows, or the smallest weights"
    )
    coverage: Literal["present", "all"] = Field(
        "present", description="the mean of a value: over the nodes that trained it, or over all (zero from the rest)"
    )
    deadline_s: float | None = Field(None, gt=0, description="whose update arrives later is lost to the round")
    tokens: float = Field(4096.0, gt=0, description="tokens of a node's round, assumed until one has been measured")
    prunable: float = Field(
        0.8, gt=0, le=1, description="share of a step's work that pruning saves, assumed until it has been measured"
    )
    efficiency: float = Field(
        0.8, gt=0, le=1, description="part of their codes' rate that packets reach, assumed until it has been measured"
    )
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel")

    def start(self, fleet: Fleet, adapter: Adapter) -> JcpbaState:
        shrinking = shrinking_share(adapter.layout)
        known = {node.name: Experience.guess(node, self.tokens, self.prunable, shrinking) for node in fleet.nodes}
        links = PacketLinks.of(fleet.names, self.efficiency)
        return JcpbaState(fleet, adapter.initial, adapter.layout, known, links)

    def round(self, state: JcpbaState, rng: np.random.Generator) -> Steps[JcpbaState]:
        sounding = yield from sound(num_pilots=self.uplink.num_pilots)
        names, costs, limits = self._costs(state, sounding)
        plan = decide(
            costs, limits.total_hz, self.penalty_budget, self.allocation,
            equal=self.bandwidth == "equal", deadline_s=self.deadline_s, rng=rng, together=self._together,
        )  # fmt: skip
        ratios = dict(zip(names, plan.point.pruning.tolist(), strict=True))
        trained = yield from train({name: self._work(ratio) for name, ratio in ratios.items()})
        shares_hz = dict(zip(names, plan.point.bandwidth_hz.tolist(), strict=True))
        uplinks = state.links.backed_off(self._uplinks(state.fleet, sounding, shares_hz, ratios, trained))
        end_s = until_s(self.deadline_s, trained)
        collected = yield from collect(uplinks, deadline_s=end_s)
        adapter = moved(state.adapter, trained, collected, self.coverage)
        yield from publish(adapter)
        figures = self._figures(limits.total_hz, costs, plan, uplinks, trained, collected)
        known = self._learnt(state, trained, collected)
        links = state.links.after(uplinks, collected, end_s, state.fleet)
        return replace(state, adapter=adapter, known=known, links=links, shares_hz=shares_hz, figures=figures)

    def report(self, state: JcpbaState) -> Mapping[str, float | str]:
        return state.figures

    @property
    def _together(self) -> bool:
        return self.uplink.link == "packets"

    def _costs(self, state: JcpbaState, sounding: Sounding) -> tuple[list[str], ClientCosts, ShareLimits]:
        """Who is heard, what (P-A1) has to know of them, and which shares they may have."""
        names, gamma_hz = audible(state.fleet, sounding, self.uplink.snr_gap)
        limits = state.links.trusted(names, share_limits(state.fleet, sounding, names, self.uplink))
        steps = state.links.staircase(names, gamma_hz, self.uplink, state.fleet)
        equal_hz = equal_split(limits.least_hz, limits.most_hz, limits.total_hz)
        before_hz = [state.shares_hz.get(name, share) for name, share in zip(names, equal_hz, strict=True)]
        structured = self.pruning == "structured"
        values_bit, header_bit = update_bits(state.layout, self._payload(structured))
        costs = client_costs(
            [state.known[name] for name in names],
            [state.fleet.node(name).num_samples for name in names],
            gamma_hz,
            values_bit,
            header_bit,
            self.max_ratio,
            structured=structured,
            penalty=self.penalty,
            limits=limits,
            attained=1.0 if steps is None else steps(np.array(before_hz)),
        )
        return names, costs, limits

    def _work(self, ratio: float) -> Work:
        if ratio < _LEAST_RATIO:
            return Work()
        return Work(pruning=Pruning(ratio, self.pruning, self.importance))

    def _payload(self, shrinks: bool) -> Payload:
        return Payload(self.uplink.payload, choice="touched" if shrinks else "all")

    def _uplinks(
        self,
        fleet: Fleet,
        sounding: Sounding,
        shares_hz: Mapping[str, float],
        ratios: Mapping[str, float],
        trained: Trained,
    ) -> dict[str, Uplink]:
        """Shares as decided; what was pruned does not travel."""
        weights = sample_weights(trained, trained.results)
        shrinks = {name: self.pruning == "structured" and ratios[name] >= _LEAST_RATIO for name in weights}
        return digital_uplinks(
            fleet,
            sounding,
            weights,
            {name: self._payload(shrinks[name]) for name in weights},
            self.uplink,
            shares_hz={name: float(shares_hz[name]) for name in weights},
            head_start_s=head_starts_s(trained),
        )

    def _learnt(self, state: JcpbaState, trained: Trained, collected: Collected) -> dict[str, Experience]:
        """What the round has shown of its clients."""
        sent = {name: float(np.mean(mask)) for name, mask in collected.covered.items()}
        known = dict(state.known)
        for name, result in trained.results.items():
            known[name] = known[name].after(result, sent.get(name))
        return known

    def _figures(
        self,
        total_hz: float,
        costs: ClientCosts,
        plan: Solution[Allocation],
        uplinks: Mapping[str, Uplink],
        trained: Trained,
        collected: Collected,
    ) -> dict[str, float | str]:
        """Seconds as planned, as the optimum has them and as they were; what was pruned; who was late."""
        known_s = plan.value if self.allocation == "joint" and self.bandwidth == "optimal" else None
        joint_s, gap = descent_gap(costs, total_hz, self.penalty_budget, together=self._together, joint_s=known_s)
        sent_s = air_seconds(uplinks, collected)
        finished_s = [result.seconds + sent_s.get(name, 0.0) for name, result in trained.results.items()]
        return {
            "planned_s": plan.value,
            "joint_s": joint_s,
            "bcd_gap": gap,
            "slowest_s": max(finished_s, default=0.0),
            "round_s": trained_s(trained) + collected.spent.seconds,
            "ratio": float(np.mean([result.pruned_ratio for result in trained.results.values()])),
            "penalty": plan.point.penalty,
            "late": " ".join(collected.missing),
            "status": plan.status if plan.found else f"infeasible: {plan.message}",
        }
