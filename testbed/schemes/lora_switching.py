"""LoRA switching: devices train and send a larger or smaller slice of one LoRA, or rest, within mean energy limits.

Paper: J. Wang, Q. Wang, Z. Li, Y. Wang, Z. Zhao, T. Q. S. Quek, "A federated fine-tuning paradigm of foundation models
in heterogenous wireless networks", arXiv 2509.19306. From its abstract: devices switch to LoRA modules dynamically,
against heterogeneity and unreliable transmission at once; a bound on the inference risk gap; module switching, power
and bandwidth decided online under long-term constraints. Its body is not available: model, bound and steps are our
reconstruction and stand in `testbed.problems.lora_switching`. In every round

    minimise over modules, powers, shares   V Phi + sum_k Q_k e_k,      Q_k <- max(Q_k + e_k - Ebar_k, 0)

with e_k as measured. Our choices besides: modules are nested slices of ranks (their other reading, modules for clusters
of data, is not built); a round has a computing phase and a sending phase of fixed length, and a node that was too slow
rests 1, 3, 7, ... rounds; the mean channel gain is an average over soundings; G_k^2 is an average of squared update
lengths; the share rho of a module comes from the singular values of the published adapter. Packets go through the real
modem and are repeated until the sending phase ends; `link = "outage"` draws losses from the formula instead, for fast
sweeps. Where modules have to be trained so many times a round, queues Z_m of what is owed add to what an update is
worth (C6).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from testbed.core.adapter import Adapter, Layout
from testbed.core.errors import ConfigError
from testbed.core.fleet import Fleet
from testbed.core.orders import Collected, Sounding, Steps, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.core.units import from_db
from testbed.lora.sparse_baselines import spectra
from testbed.lora.sparse_orthogonal import RankPairs
from testbed.lora.switch import Rule, aggregate_slices, max_rank, module_bit, module_values, spectrum_shares
from testbed.opt.lyapunov import VirtualQueues
from testbed.problems.lora_switching.horizon import Limits
from testbed.problems.lora_switching.known import Known
from testbed.problems.lora_switching.model import Slot, SlotDecision, SwitchingModel
from testbed.problems.lora_switching.order import slice_uplinks
from testbed.problems.lora_switching.policies import POLICIES, Situation

_HEAD_BITS = 128


@dataclass(frozen=True)
class SwitchingState:
    """What the scheme remembers between rounds.

    Attributes:
        fleet: nodes, antennas and band.
        layout: order of the adapter's values.
        adapter: global adapter, shape [num_values].
        queues: energy of each node beyond its mean limit, Q_k.
        owed: updates of each module that are missing, Z_m; None where none are asked for.
        known: gains, costs and updates as measured.
        figures: of the last round, for its row.
    """

    fleet: Fleet
    layout: Layout
    adapter: np.ndarray
    queues: VirtualQueues
    owed: VirtualQueues | None
    known: Known
    figures: Mapping[str, float | str] = field(default_factory=dict)


class LoraSwitching(Scheme[SwitchingState]):
    """Online switching of LoRA modules, power and bandwidth under long-term energy limits."""

    ranks: tuple[int, ...] = Field(
        (2, 4, 8), min_length=1, description="of the modules, rising; the last at most lora.rank"
    )
    policy: Literal[
        "switching",
        "myopic",
        "on-off",
        "equal-band",
        "full-power",
        "error-unaware",
        "large",
        "small",
        "random",
        "unconstrained",
    ] = Field("switching", description="how a round is decided; all but switching are baselines")
    tradeoff: float = Field(1.0, gt=0, description="V, what the bound's penalty weighs against energy queues")
    mean_energy_j: float = Field(1.0, gt=0, description="Ebar, mean energy of every node in a round")
    idle_j: float = Field(0.0, ge=0, description="energy of a node in a round of rest; it counts in every round")
    initial_queue_j: float = Field(0.0, ge=0, description="Q(0); short runs keep their limits only with a positive one")
    participation: tuple[float, ...] = Field(
        (), description="nu, least mean number of updates of each module in a round; none if empty"
    )
    generalisation: float = Field(0.0, ge=0, description="lambda_g, penalty of large modules; ordinal, no risk")
    compute_s: float = Field(10.0, gt=0, description="length of the computing phase; slower nodes rest")
    upload_s: float = Field(2.0, gt=0, description="length of the sending phase; what arrives later is lost")
    tokens: int = Field(2048, ge=1, description="tokens of a node's round, for the first decision; measured after that")
    link: Literal["packets", "outage"] = Field("packets", description="the modem, or losses drawn from the formula")
    rule: Rule = Field("zero-fill", description="what missing slices count as; zero-fill is what the bound speaks of")
    share: Literal["spectrum", "linear"] = Field("spectrum", description="rho: from singular values, or rank / largest")
    value: Literal["float16", "float32"] = Field("float16", description="format of values on the air")
    snr_gap_db: float = Field(8.5, ge=0, description="distance of the modem from the Shannon rate, in decisions")
    modem_share: float = Field(
        0.33, gt=0, le=1, description="of band and time, what guards, pilots, prefixes and headers leave to payload"
    )
    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")

    @field_validator("ranks")
    @classmethod
    def _rising(cls, ranks: tuple[int, ...]) -> tuple[int, ...]:
        if ranks[0] < 1 or any(low >= high for low, high in pairwise(ranks)):
            raise ValueError(f"ranks {list(ranks)} do not rise from 1 on")
        return ranks

    @model_validator(mode="after")
    def _one_for_each(self) -> LoraSwitching:
        if self.participation and (len(self.participation) != len(self.ranks) or min(self.participation) < 0):
            raise ValueError(
                f"participation: give {len(self.ranks)} numbers of at least 0, one for each module, or none"
            )
        return self

    def start(self, fleet: Fleet, adapter: Adapter) -> SwitchingState:
        most = max_rank(adapter.layout)
        if self.ranks[-1] > most:
            raise ConfigError(
                f"the largest module has rank {self.ranks[-1]}, the adapter has {most}",
                key="scheme.ranks",
                remedy="raise lora.rank, or leave the module out",
            )
        limit_j, rest_j = np.full(len(fleet.nodes), self.mean_energy_j), np.full(len(fleet.nodes), self.idle_j)
        required = np.array(self.participation) if self.participation else None
        owed = None if required is None else VirtualQueues.at_least(required)
        queues = VirtualQueues.at_most(limit_j - rest_j, self.initial_queue_j)
        known = Known.first(fleet, self.tokens)
        state = SwitchingState(fleet, adapter.layout, adapter.initial, queues, owed, known)
        if unmeetable := Limits(limit_j, rest_j, required).unmeetable(self._model(state, noise_w_hz=1.0)):
            raise ConfigError(
                f"no schedule keeps the limits: {'; '.join(unmeetable)}",
                key="scheme",
                remedy="raise mean_energy_j or compute_s, or lower tokens, idle_j or participation",
            )
        return state

    def round(self, state: SwitchingState, rng: np.random.Generator) -> Steps[SwitchingState]:
        sounding = yield from sound(num_pilots=self.num_pilots)
        state = replace(state, known=state.known.heard(sounding))
        slot, decision = self._decide(state, sounding, rng)
        names, adapter = state.fleet.names, state.adapter
        chosen = {names[k]: self.ranks[decision.module[k] - 1] for k in np.flatnonzero(decision.module > 0)}
        used_j, arrived = np.zeros(len(names)), np.zeros(len(self.ranks))
        if chosen:
            trained = yield from train({name: Work(ranks=rank) for name, rank in chosen.items()})
            used_j += [trained.results[name].joules if name in trained.results else 0.0 for name in names]
            shares = {name: float(slot.share[names.index(name), self.ranks.index(chosen[name])]) for name in chosen}
            state = replace(state, known=state.known.trained(trained, shares, state.layout.size, self.compute_s))
            ready = {name: rank for name, rank in chosen.items() if name in trained.results and name in sounding.nodes}
            if ready:
                uplinks = slice_uplinks(
                    state.fleet,
                    decision,
                    sounding,
                    ready,
                    dict(zip(self.ranks, self._payload_bit(state).tolist(), strict=True)),
                    self.upload_s,
                    value=self.value,
                    modem_share=self.modem_share if self.link == "packets" else None,
                )
                collected = yield from collect(uplinks, deadline_s=self.upload_s)
                mean, arrived = self._merged(state, decision, collected, ready, rng)
                adapter = adapter + mean
                used_j += [collected.energy_j.get(name, 0.0) for name in names]
        yield from publish(adapter)
        queues = state.queues.after(used_j)
        owed = None if state.owed is None else state.owed.after(-arrived)
        figures: dict[str, float | str] = {
            "modules": " ".join(str(chosen.get(name, 0)) for name in names),
            "arrived": float(arrived.sum()),
            "phi": decision.penalty,
            "queue_j": float(queues.backlog.max()),
            "queue_per_round_j": float(queues.backlog.max()) / queues.slots,
            "over_limit_j": float(queues.excess.max()),
        }
        if owed is not None:
            figures["owed"] = float(owed.backlog.max())
        return replace(state, adapter=adapter, queues=queues, owed=owed, figures=figures)

    def report(self, state: SwitchingState) -> Mapping[str, float | str]:
        return state.figures

    def _model(self, state: SwitchingState, noise_w_hz: float) -> SwitchingModel:
        """Windows, energies and sizes of every node and module."""
        fleet, known = state.fleet, state.known
        shape = (len(fleet.nodes), len(self.ranks))
        return SwitchingModel(
            total_hz=fleet.bandwidth_hz,
            noise_w_hz=noise_w_hz,
            payload_bit=self._payload_bit(state) / self.modem_share,
            window_s=np.broadcast_to(np.where(known.in_time(self.compute_s), self.upload_s, -1.0)[:, None], shape),
            compute_j=np.broadcast_to(known.compute_j[:, None], shape),
            max_power_w=np.array([node.max_power_w for node in fleet.nodes]),
            allowed=np.broadcast_to((known.gain > 0)[:, None] | (known.gain.max() == 0), shape),
        )

    def _payload_bit(self, state: SwitchingState) -> np.ndarray:
        """S_m, shape [num_modules]."""
        return module_bit(state.layout, self.ranks, 16 if self.value == "float16" else 32, _HEAD_BITS)

    def _decide(self, state: SwitchingState, sounding: Sounding, rng: np.random.Generator) -> tuple[Slot, SlotDecision]:
        """V Phi + sum_k Q_k e_k - sum_m Z_m sum_k x_km (1 - q_km) over modules, powers and shares."""
        fleet, known = state.fleet, state.known
        model = self._model(state, from_db(self.snr_gap_db) * sounding.noise_w / fleet.bandwidth_hz)
        samples = np.array([node.num_samples for node in fleet.nodes], np.float64)
        weight = samples / samples.sum()
        expressed = np.array(self.ranks) / max_rank(state.layout)
        if self.share == "spectrum":
            values = spectra(RankPairs.of(state.layout), state.adapter)
            if any(float(np.sum(one)) > 0 for one in values):
                expressed = spectrum_shares(values, self.ranks)
        sizes = np.array([module_values(state.layout, rank) for rank in self.ranks])
        slot = Slot(
            gain=np.maximum(known.gain, 1e-300),
            importance=weight * known.relative_square,
            share=np.broadcast_to(expressed, (len(weight), len(self.ranks))),
            complexity=self.generalisation * weight[:, None] * np.sqrt(sizes / samples.sum()),
        )
        owed = None if state.owed is None else state.owed.backlog
        now = Situation(model, slot, state.queues.backlog, self.tradeoff, owed, state.queues.limit, rng)
        return slot, POLICIES[self.policy](now).point

    def _merged(
        self,
        state: SwitchingState,
        decision: SlotDecision,
        collected: Collected,
        ready: Mapping[str, int],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The mean of what arrived, and how many of each module did; with link outage the formula draws who is lost."""
        names = state.fleet.names
        success = {name: 1.0 - float(decision.failure[names.index(name)]) for name in ready}
        lost = {name for name in sorted(ready) if self.link == "outage" and rng.uniform() >= success[name]}
        updates = {name: update for name, update in collected.updates.items() if name not in lost}
        weights = {node.name: float(node.num_samples) for node in state.fleet.nodes}
        ranks = {name: ready[name] for name in updates}
        counts = np.array([float(list(ranks.values()).count(rank)) for rank in self.ranks])
        return aggregate_slices(state.layout, updates, ranks, weights, self.rule, success), counts
