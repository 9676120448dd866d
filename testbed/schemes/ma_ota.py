"""Movable antennas and over-the-air aggregation with client selection (MA-OTA).

Paper: Y. Zhao, Y. Xiu, C. Dai, N. Wei, D. Niyato, "Movable Antenna Enhanced Federated Fine-Tuning of Large Language
Models via Hybrid Client Selection Optimization", arXiv 2506.00011. From its abstracts: movable receive antennas placed
anew in each round under a spacing constraint; an auxiliary channel that absorbs transmit powers; a bound that links the
final loss to over-the-air noise and to the shift between pre-training and fine-tuning data; rounds, CPU frequencies,
batch sizes, selection, positions and beamformers decided jointly by SCA with penalty dual decomposition; LoRA on a
4-bit base; K of 10 clients at a time and participation fairness. Its body is not available: the equations are our
reading in the lineage of Liu, Yuan, Zhang (arXiv 2011.10282) and Kalarde et al. (arXiv 2302.14336), and stand in
`testbed.problems.ma_ota`. Per round they minimise

    Phi = 4 (1 - D_S / D)^2 + sigma^2 / D_S^2 max_{m in S} D_m^2 / (P_m |f^H h_m(r)|^2).

Our choices besides: the channels come from a survey (soundings at a few layouts, to which plane waves are fitted) or
from a field calibration; selected nodes train while the antennas move; the combiner is computed from a sounding at the
final places; antennas move only where the gain that is expected in nine cases of ten is worth it; virtual queues keep
participation fair.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter
from testbed.core.fleet import Fleet
from testbed.core.orders import (
    Order,
    Reply,
    Sounding,
    Steps,
    Trained,
    Work,
    gather,
    move_while_training,
    publish,
    sound,
    train,
)
from testbed.core.scheme import Scheme
from testbed.core.units import from_db
from testbed.phy.aperture import Aperture
from testbed.phy.field_model import PathField
from testbed.problems.analogue_order import analogue_order
from testbed.problems.ma_ota.decision import Decision, Manner, check_concurrency, decide
from testbed.problems.ma_ota.plan import PlanSpec
from testbed.problems.ma_ota.schedule import Schedule
from testbed.problems.ma_ota.selection import Criterion, jain, update_queues
from testbed.problems.ma_ota.survey import Survey, refreshed, visit_layouts
from testbed.problems.multicast import multicast


@dataclass(frozen=True)
class MaOtaState:
    """What the scheme remembers between rounds.

    Attributes:
        fleet: nodes, antennas and band.
        adapter: global adapter, shape [num_values].
        positions_m: where the antennas are, shape [num_antennas, 2].
        round_index: rounds done.
        survey: soundings so far.
        fields: node -> its channel's plane waves, of nodes that were heard.
        noise_w: of one symbol at one antenna.
        spread: node -> standard deviation of its latest update's values.
        queues: missed turns Q_m, in the order of the fleet, shape [num_nodes].
        counts: how often each node was chosen, shape [num_nodes].
        schedule: numbers of rounds and batches, once they are planned.
        figures: of the last round, for its row.
    """

    fleet: Fleet
    adapter: np.ndarray
    positions_m: np.ndarray
    queues: np.ndarray
    counts: np.ndarray
    round_index: int = 0
    survey: Survey = field(default_factory=Survey)
    fields: Mapping[str, PathField] = field(default_factory=dict)
    noise_w: float = 0.0
    spread: Mapping[str, float] = field(default_factory=dict)
    schedule: Schedule | None = None
    figures: Mapping[str, float | str] = field(default_factory=dict)


class MaOta(Scheme[MaOtaState]):
    """Movable antennas, client selection and over-the-air aggregation, decided together in every round."""

    needs = frozenset({"timed_tx", "phase_coherent"})
    instead: ClassVar[str] = "ma-fsk-mv"

    concurrency: int | None = Field(
        None, ge=1, description="K, nodes that train and send in a round; any number if absent"
    )
    placement: Literal["pdd", "sca", "ao", "pso", "grid", "sdr", "random", "fixed", "stay"] = Field(
        "pdd",
        description="antenna places: penalty dual decomposition; joint SCA; alternation; particle swarm; greedy over a "
        "grid of ports; pdd with the combiner of a semidefinite relaxation; random; the fixed array; where they are",
    )
    num_starts: int = Field(6, ge=1, description="starts of the placement, the fixed array included")
    selection: Literal[
        "exact", "all", "top-one", "gsds", "adsbf", "gibbs", "dc", "random", "strongest", "round-robin"
    ] = Field("exact", description="who sends: the best of all sets of K (up to 12 nodes), or a rule of the literature")
    screened: int = Field(2, ge=1, description="selection exact: sets of nodes for which antennas are placed anew")
    fairness: float = Field(0.0, ge=0, description="what a missed turn weighs against the objective Phi")
    visits: int = Field(
        6, ge=1, description="layouts sounded in a survey, the fixed array included; none with a field profile"
    )
    survey_every: int = Field(0, ge=0, description="rounds between surveys; 0 makes one, in the first round")
    max_paths: int = Field(8, ge=1, description="most plane waves of a node's channel")
    least_gain_db: float = Field(0.5, ge=0, description="antennas move only where the weakest node gains this much")
    position_std_m: float = Field(5e-5, ge=0, description="how well stages know where they are")
    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")
    per_subcarrier: bool = Field(False, description="precode every subcarrier, for frequency-selective rooms")

    plan: PlanSpec | None = Field(
        None, description="decide rounds, batches and CPU frequencies too; else the experiment's [training] holds"
    )

    def start(self, fleet: Fleet, adapter: Adapter) -> MaOtaState:
        check_concurrency(self.concurrency, len(fleet.nodes))
        nothing = np.zeros(len(fleet.nodes))
        if self.plan is not None:
            # a budget that no channel could meet is refused before anything moves or radiates
            self.plan.rounds(fleet, fleet.nodes[:1], adapter.size, noise_w=0.0, gain=1.0)
        return MaOtaState(fleet, adapter.initial, fleet.array.home_m, nothing, nothing)

    def round(self, state: MaOtaState, rng: np.random.Generator) -> Steps[MaOtaState]:
        if self._surveys(state):
            state = yield from self._survey(state, rng)
        names = [name for name in state.fleet.names if name in state.fields]
        decision = self._decide(state, names, rng)
        chosen = [names[index] for index in decision.selected]
        state, work = self._work(state, chosen, decision)
        if decision.moves:
            trained = yield from move_while_training(decision.positions_m, work)
        else:
            trained = yield from train(work)
        sounding = yield from sound(tuple(chosen), num_pilots=self.num_pilots, per_subcarrier=self.per_subcarrier)
        senders = [name for name in sounding.nodes if name in trained.results and trained.results[name].update_std > 0]
        adapter = state.adapter
        if senders:
            order = analogue_order(
                state.fleet,
                sounding,
                trained,
                senders,
                len(adapter),
                combine=lambda channel: multicast(channel).point,
                per_subcarrier=self.per_subcarrier,
            )
            collected = yield from gather(order)
            adapter = adapter + collected.mean
        yield from publish(adapter)
        return self._next(state, adapter, decision, sounding, trained)

    def done(self, state: MaOtaState) -> bool:
        return state.schedule is not None and state.round_index >= state.schedule.fine_tuning

    def report(self, state: MaOtaState) -> Mapping[str, float | str]:
        return state.figures

    def _surveys(self, state: MaOtaState) -> bool:
        due = self.survey_every > 0 and state.round_index % self.survey_every == 0
        return state.round_index == 0 or due or not state.fields

    def _survey(self, state: MaOtaState, rng: np.random.Generator) -> Generator[Order, Reply, MaOtaState]:
        """Sound at the fixed array and at random layouts, and fit plane waves; a profile spares the way."""
        fleet, array = state.fleet, state.fleet.array
        known = {
            node.name: PathField.of_rows(node.paths, np.zeros((4 * len(node.paths),) * 2), fleet.wavelength_m)
            for node in fleet.nodes
            if node.paths is not None
        }
        moves = bool(array.movable.any()) and self.placement not in ("fixed", "stay") and len(known) < len(fleet.nodes)
        visits, here_m = self.visits if moves else 1, state.positions_m
        survey, sounding = yield from visit_layouts(array, here_m, visits, rng, num_pilots=self.num_pilots, moves=moves)
        for name in fleet.names:
            if name not in known and (fit := survey.fit(name, fleet.wavelength_m, self.max_paths)) is not None:
                known[name] = fit.field
        return replace(state, positions_m=sounding.positions_m, survey=survey, fields=known, noise_w=sounding.noise_w)

    def _decide(self, state: MaOtaState, names: Sequence[str], rng: np.random.Generator) -> Decision:
        """Phi over sets and places, with the auxiliary channels h sqrt(P_m) / (D_m nu_m)."""
        fleet, index = state.fleet, [state.fleet.names.index(name) for name in names]
        nodes = [fleet.nodes[k] for k in index]
        weights = np.array([node.num_samples for node in nodes], np.float64)
        usual = float(np.mean(list(state.spread.values()))) if state.spread else 1.0
        spread = np.array([state.spread.get(node.name, usual) for node in nodes])
        criterion = Criterion(
            weights,
            len(state.adapter),
            state.noise_w,
            gradient_square=len(state.adapter) * usual**2,
            queues=state.queues[index],
            fairness=self.fairness,
        )
        manner = Manner(
            concurrency=None if self.concurrency is None else min(self.concurrency, len(names)),
            selection=self.selection,
            placement=self.placement,
            num_starts=self.num_starts,
            screened=self.screened,
            least_rise=from_db(self.least_gain_db),
            position_std_m=self.position_std_m,
        )
        factor = np.sqrt([node.max_power_w for node in nodes]) / (weights * spread)
        array = fleet.array
        aperture = Aperture(array.home_m, array.movable, array.region_m, array.min_spacing_m, fleet.wavelength_m)
        fields = [state.fields[name] for name in names]
        return decide(manner, criterion, fields, factor, aperture, state.positions_m, rng, turn=state.round_index)

    def _work(self, state: MaOtaState, chosen: Sequence[str], decision: Decision) -> tuple[MaOtaState, dict[str, Work]]:
        """Batches and frequencies of the chosen, and in the first round the number of rounds."""
        fleet, size = state.fleet, len(state.adapter)
        nodes = [fleet.node(name) for name in chosen]
        if self.plan is None or not nodes:
            return state, {name: Work() for name in chosen}
        schedule = state.schedule or self.plan.rounds(fleet, nodes, size, state.noise_w, decision.gain)
        return replace(state, schedule=schedule), self.plan.work(schedule, nodes, size, fleet)

    def _next(
        self, state: MaOtaState, adapter: np.ndarray, decision: Decision, sounding: Sounding, trained: Trained
    ) -> MaOtaState:
        sent = [state.fleet.names.index(name) for name in sounding.nodes]
        counts = state.counts.copy()
        counts[sent] += 1
        survey, fields = refreshed(state.survey, state.fields, sounding, self.max_paths)
        return replace(
            state,
            adapter=adapter,
            positions_m=sounding.positions_m,
            queues=update_queues(state.queues, sent),
            counts=counts,
            round_index=state.round_index + 1,
            survey=survey,
            fields=fields,
            noise_w=sounding.noise_w,
            spread={**state.spread, **{name: result.update_std for name, result in trained.results.items()}},
            figures={
                "chosen": " ".join(sounding.nodes),
                "gain_over_staying": decision.gain / decision.gain_here if decision.gain_here > 0 else 1.0,
                "jain": jain(counts),
            },
        )
