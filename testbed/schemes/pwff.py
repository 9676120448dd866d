"""PWFF: boards share a part of the adapter, keep the rest for themselves, and align it with preferences of their own.

Paper: F. Jiang, L. Dong, S. Tu, Y. Peng, K. Wang, K. Yang, C. Pan, D. Niyato, "Personalized wireless federated learning
for large language models", arXiv 2404.13238. From its abstracts: adapters and LoRA together; global partial
aggregation; two reward models and a personalised loss; local multi-objective alignment; in the first version PFTT
(shared adapters, LoRA that is never aggregated) and PFIT (reinforcement learning with a client's weights of helpfulness
and safety, last layers trained). The body is not available, so all equations are our reconstruction:

    L_k(phi, psi) = CE(D_k; phi, psi) + (mu / 2) ||phi - phi^t||^2                      tuning, both parts      (B3)
    phi^{t+1} = sum_{k received} D_k phi_k / sum_{k received} D_k,   psi_k stays        over the air            (B4)
    max_psi E[l_k^h r_h + l_k^s r_s] - beta KL(pi || pi_ref)                            alignment, no traffic   (B6)

Our choices: phi are bottleneck adapters and psi LoRA factors unless `shared` says otherwise; phi rests while psi is
aligned; the reference is the policy after tuning; the regularisation that the first version gives as a reward is a loss
term (zeta of `[alignment]`), since a reward that is the same for all samples of a batch cancels. Method, rewards and
steps of alignment stand in `[alignment]`. The forms are settings, and so are the baselines; the presets pwff-... name
them: PFTT is `alignment_rounds = 0`; PFIT `tuning_rounds = 0`, `last_blocks`, `aligned = "shared"`; `interleave` aligns
between rounds of tuning; `shared = []` is local only; all kinds shared is FedAvg. `pull` is Ditto (arXiv 2012.04221,
Algorithm 1): v_k <- v_k - eta (grad F_k(v_k) + pull (v_k - phi^t)), a copy that goes on from round to round; here it
takes the steps of a whole round of training. `ranks` gives every client its r_k, at the same alpha / rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter, Layout
from testbed.core.errors import ConfigError
from testbed.core.fleet import Fleet
from testbed.core.orders import (
    WHOLE,
    Alignment,
    LocalResult,
    Part,
    Payload,
    Sounding,
    Steps,
    Trained,
    Work,
    collect,
    publish,
    sound,
    train,
)
from testbed.core.scheme import Scheme
from testbed.lora.node_ranks import ranks_of
from testbed.lora.partial import Sharing, divide, mean_of_received
from testbed.problems.digital_order import UplinkSpec, digital_uplinks, sample_weights
from testbed.problems.preference_weights import client_weights

Kind = Literal["A", "B", "down", "up", "bias"]


@dataclass(frozen=True)
class PwffState:
    """What the scheme remembers between rounds.

    Attributes:
        fleet: nodes, antennas and band.
        sharing: which values are phi.
        adapter: phi of the round, and the psi that everybody started from, shape [num_values].
        ranks: node -> LoRA rank r_k; the adapter's for all if empty.
        tuned, aligned: rounds of either stage so far.
        figures: of the last round, for its row.
    """

    fleet: Fleet
    sharing: Sharing
    adapter: np.ndarray
    ranks: Mapping[str, int] = field(default_factory=dict)
    tuned: int = 0
    aligned: int = 0
    figures: Mapping[str, float | str] = field(default_factory=dict)


class Pwff(Scheme[PwffState]):
    """Global partial aggregation and local alignment."""

    shared: tuple[Kind, ...] = Field(
        ("down", "up", "bias"), description="kinds of factors that all nodes share; the others stay with their node"
    )
    last_blocks: int | None = Field(None, ge=1, description="share only inside so many of the model's last blocks")
    private_blocks: int | None = Field(
        None, ge=1, description="share nothing inside so many of the model's last blocks (FedPer, arXiv 1912.00818)"
    )
    private: Literal["trained", "resting"] = Field("trained", description="what the values do that are not shared")
    tuning_rounds: int = Field(20, ge=0, description="of the first stage")
    alignment_rounds: int = Field(0, ge=0, description="of the second stage; needs [alignment]")
    interleave: int = Field(0, ge=0, description="align after so many rounds of tuning each; 0: after all of them")
    aligned: Literal["private", "shared"] = Field(
        "private", description="what alignment trains: what stays with the node, or what is shared, sent and averaged"
    )
    weights: tuple[tuple[float, float], ...] = Field(
        (),
        description="of helpfulness and safety, for each node in the bench's order; one pair is for all; none is a "
        "spread from 0.9, 0.1 to 0.1, 0.9",
    )
    proximal: float = Field(0.0, ge=0, description="mu, pull of shared values to those that were published")
    pull: float = Field(
        0.0, ge=0, description="Ditto's lambda: beside its adapter a node trains a copy of its own, which is scored"
    )
    ranks: tuple[int, ...] = Field(
        (), description="LoRA ranks of the nodes in turn, where LoRA stays with its node; lora.rank for all if empty"
    )
    uplink: UplinkSpec = Field(UplinkSpec(), description="how shared values travel")

    @property
    def personal(self) -> bool:
        return True

    @property
    def aligns(self) -> bool:
        return self.alignment_rounds > 0

    def start(self, fleet: Fleet, adapter: Adapter) -> PwffState:
        sharing = divide(
            adapter.layout, kinds=self.shared, last_blocks=self.last_blocks, private_blocks=self.private_blocks
        )
        if self.shared and not sharing.shared.factors:
            raise ConfigError(
                "no factor of the shared kinds stands in the blocks that are shared",
                key="scheme.last_blocks" if self.last_blocks is not None else "scheme.private_blocks",
                remedy="share more blocks, or shared = [] to share nothing",
            )
        lacking = sharing.shared if self.aligned == "shared" else sharing.private
        if self.aligns and not lacking.factors:
            raise ConfigError(
                f'aligned = "{self.aligned}", and no value is {self.aligned}',
                key="scheme.aligned",
                remedy="change scheme.shared, or align the other part",
            )
        client_weights(self.weights, len(fleet.nodes))
        if self.aligns and self.pull > 0:
            raise ConfigError(
                f"pull = {self.pull:g} trains copies beside the adapter, and alignment does not know them",
                key="scheme.pull",
                remedy="set pull = 0, or alignment_rounds = 0",
            )
        return PwffState(fleet, sharing, adapter.initial, self._node_ranks(sharing, fleet))

    def round(self, state: PwffState, rng: np.random.Generator) -> Steps[PwffState]:
        if self._next(state) == "align":
            return (yield from self._align(state))
        if not state.sharing.shared.factors:
            trained = yield from train(self._works(state, state.fleet.names, Work(keep=True)))
            return replace(state, tuned=state.tuned + 1, figures=self._figures(state, trained, 0))
        return (yield from self._tune(state))

    def done(self, state: PwffState) -> bool:
        return state.tuned >= self.tuning_rounds and state.aligned >= self.alignment_rounds

    def report(self, state: PwffState) -> Mapping[str, float | str]:
        return state.figures

    def _next(self, state: PwffState) -> Literal["tune", "align"]:
        """Which stage the next round belongs to."""
        if state.aligned >= self.alignment_rounds:
            return "tune"
        due = self.interleave > 0 and state.tuned >= (state.aligned + 1) * self.interleave
        return "align" if due or state.tuned >= self.tuning_rounds else "tune"

    def _tune(self, state: PwffState) -> Steps[PwffState]:
        """(B3) on the boards, (B4) over the air; with `pull`, a step of Ditto's personal copies towards phi^t."""
        part = state.sharing.part
        sounding = yield from sound(num_pilots=self.uplink.num_pilots)
        trains = part if self.private == "resting" else WHOLE
        work = Work(proximal=self.proximal, pulled=part, part=trains, keep=self.pull == 0)
        trained = yield from train(self._works(state, sounding.nodes, work))
        adapter, arrived = yield from self._gathered(state, sounding, trained, part)
        if self.pull > 0:
            copies = Work(proximal=self.pull, pulled=part, part=trains, beside=True)
            yield from train(self._works(state, sounding.nodes, copies))
        yield from publish(adapter, part=part)
        return replace(state, adapter=adapter, tuned=state.tuned + 1, figures=self._figures(state, trained, arrived))

    def _align(self, state: PwffState) -> Steps[PwffState]:
        """(B6) with the weights of each client: of its own values without traffic, or of shared ones with (B4)."""
        sharing, names = state.sharing, state.fleet.names
        everything = not sharing.shared.factors
        common = WHOLE if everything else sharing.part
        own = self.aligned == "private"
        part = common if everything or not own else Part(common.kinds, common.patterns, others=True)
        # a reference that moves with what is shared: the policy of this round's start
        moves = not own or self.interleave > 0
        weights = dict(zip(names, client_weights(self.weights, len(names)), strict=True))
        work = {
            name: replace(one, objective=Alignment(weights[name], "start" if moves else "first"))
            for name, one in self._works(state, names, Work(part=part, pulled=common, keep=own)).items()
        }
        if own:
            trained = yield from train(work)
            return replace(state, aligned=state.aligned + 1, figures=self._figures(state, trained, 0))
        sounding = yield from sound(num_pilots=self.uplink.num_pilots)
        trained = yield from train({name: work[name] for name in sounding.nodes})
        adapter, arrived = yield from self._gathered(state, sounding, trained, part)
        yield from publish(adapter, part=part)
        return replace(
            state, adapter=adapter, aligned=state.aligned + 1, figures=self._figures(state, trained, arrived)
        )

    def _works(self, state: PwffState, names: Iterable[str], work: Work) -> dict[str, Work]:
        """The same work for all, each at its own rank."""
        return {
            name: replace(work, part=replace(work.part, ranks=state.ranks.get(name, work.part.ranks))) for name in names
        }

    def _gathered(
        self, state: PwffState, sounding: Sounding, trained: Trained, part: Part
    ) -> Steps[tuple[np.ndarray, int]]:
        """Shared values after (B4) over equal shares of the band, and how many nodes were heard."""
        weights = sample_weights(trained, (name for name in sounding.nodes if name in trained.results))
        if not weights:
            return state.adapter, 0
        payload = Payload(self.uplink.payload, part=part)
        collected = yield from collect(digital_uplinks(state.fleet, sounding, weights, payload, self.uplink))
        before = state.sharing.phi(state.adapter)
        received = {name: before + state.sharing.phi(update) for name, update in collected.updates.items()}
        phi = mean_of_received(received, {name: weights[name] for name in received}, otherwise=before)
        return state.sharing.with_phi(state.adapter, phi), len(received)

    def _node_ranks(self, sharing: Sharing, fleet: Fleet) -> Mapping[str, int]:
        """r_k of (B2); empty where all have the adapter's. Ranks that rest at B = 0 add nothing to the model."""
        if not self.ranks:
            return {}
        lora = {kind: [one for one in sharing.layout.factors if one.kind == kind] for kind in ("A", "B")}
        if any(one in sharing.shared.factors for kind in lora for one in lora[kind]) or self.private == "resting":
            raise ConfigError(
                "ranks that differ need LoRA factors that are trained and stay with their node",
                key="scheme.ranks",
                remedy='set scheme.shared without "A" and "B" and private = "trained", or take the scheme hetlora',
            )
        return ranks_of(Layout(factors=(*lora["A"], *lora["B"])), fleet.names, self.ranks)

    def _figures(self, state: PwffState, trained: Trained, arrived: int) -> dict[str, float | str]:
        """What the row shows: who was heard, and of alignment the means over nodes."""
        results: list[LocalResult] = [result for result in trained.results.values() if result.measures]
        names = ("helpfulness_before", "helpfulness", "safety_before", "safety", "kl", "diverged")
        means = {
            name: float(np.mean([result.measures.get(name, 0.0) for result in results])) for name in names if results
        }
        size = float(state.sharing.shared.size)
        return {"stage": "align" if results else "tune", "shared": size, "arrived": float(arrived), **means}
