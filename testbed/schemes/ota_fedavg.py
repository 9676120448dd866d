"""Federated averaging through the air: all nodes send at once, the channel adds, a movable array listens.

Papers. Uniform-forcing transmit coefficients and the power rule: Liu, Yuan, Zhang (arXiv 2011.10282) and Kalarde et al.
(arXiv 2302.14336),

    b_m = sqrt(eta) D_m nu_m / (f^H h_m),     eta = min_m P_m |f^H h_m|^2 / (D_m nu_m)^2,
    E||e||^2 = d sigma^2 / (eta D_S^2)

with two real values on each complex symbol. Other precodings of the literature may be chosen instead: truncated
inversion (broadband analogue aggregation, Zhu, Wang, Huang, arXiv 1812.11494), COTAF (Sery, Shlezinger, Cohen, Eldar,
2021), and alignment of phases alone; phases may come from feedback of few bits. Our choice: the receive combiner is the
max-min heuristic of `testbed.phy.combiner`; nodes far weaker than the strongest may be left out of a round altogether;
and antenna places come from a plain search over measured ports:

1. visit the fixed array and `visits - 1` random layouts and sound at each: the channel is known at visits * N places;
2. choose the N of these places that serve the weakest node best, by exchange, starting at the fixed array;
3. go there while the nodes train, sound again, and go by what is heard there.

The search assumes that the room stands still while it lasts. `search_every` repeats it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter
from testbed.core.fleet import Fleet
from testbed.core.orders import (
    Collect,
    Order,
    Reply,
    Sounding,
    Steps,
    Trained,
    Work,
    gather,
    move,
    move_while_training,
    publish,
    sound,
    train,
)
from testbed.core.scheme import Scheme
from testbed.core.units import from_db
from testbed.phy.combiner import max_min_combiner
from testbed.phy.policies import Policy
from testbed.phy.ports import nearest_assignment, random_layout, select_ports, weakest_gain
from testbed.problems.analogue_order import analogue_order


@dataclass(frozen=True)
class OtaState:
    """What the scheme remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
        round_index: rounds done.
        positions_m: where the antennas are, shape [num_antennas, 2].
        figures: of the last round, for its row.
    """

    fleet: Fleet
    adapter: np.ndarray
    round_index: int
    positions_m: np.ndarray
    figures: Mapping[str, float | str] = field(default_factory=dict)


class OtaFedAvg(Scheme[OtaState]):
    """FedAvg with analogue over-the-air aggregation and, where the bench has stages, movable receive antennas."""

    needs = frozenset({"timed_tx", "phase_coherent"})

    precoding: Policy = Field(
        "uniform",
        description="uniform forcing; truncated inversion, silent below `threshold`; COTAF, one scale for all updates; "
        "phase, full power and only phases aligned",
    )
    threshold: float = Field(
        0.1, ge=0, lt=1, description="precoding truncated: gain, relative to its mean, below which a node is silent"
    )
    per_subcarrier: bool = Field(False, description="sound and precode every subcarrier, for frequency-selective rooms")
    phase_bits: int | None = Field(None, ge=1, le=16, description="bits of each node's phase feedback; exact if absent")
    clip_db: float | None = Field(None, gt=0, description="transmitted peaks are clipped this far above the mean power")
    move: bool = Field(True, description="search better antenna places; false keeps the fixed array")
    visits: int = Field(8, ge=1, description="layouts visited in a search, the fixed array included")
    search_every: int = Field(0, ge=0, description="rounds between searches; 0 searches in the first round only")
    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")
    truncate_db: float | None = Field(None, gt=0, description="leave out nodes this much weaker than the strongest")

    def start(self, fleet: Fleet, adapter: Adapter) -> OtaState:
        return OtaState(fleet, adapter.initial, 0, fleet.array.home_m)

    def round(self, state: OtaState, rng: np.random.Generator) -> Steps[OtaState]:
        work = {name: Work() for name in state.fleet.names}
        figures: dict[str, float | str] = {}
        if self._searches(state):
            target_m, figures = yield from self._search(state, rng)
            trained = yield from move_while_training(target_m, work)
        else:
            target_m = state.positions_m
            trained = yield from train(work)
        sounding = yield from sound(num_pilots=self.num_pilots, per_subcarrier=self.per_subcarrier)
        order = self._plan(state.fleet, sounding, trained, len(state.adapter))
        adapter = state.adapter
        if order is not None:
            collected = yield from gather(order)
            adapter = adapter + collected.mean
        yield from publish(adapter)
        return OtaState(state.fleet, adapter, state.round_index + 1, target_m, figures)

    def report(self, state: OtaState) -> Mapping[str, float | str]:
        return state.figures

    def _searches(self, state: OtaState) -> bool:
        first = state.round_index == 0
        due = self.search_every > 0 and state.round_index % self.search_every == 0
        return self.move and self.visits > 1 and bool(state.fleet.array.movable.any()) and (first or due)

    def _search(
        self, state: OtaState, rng: np.random.Generator
    ) -> Generator[Order, Reply, tuple[np.ndarray, dict[str, float | str]]]:
        """Steps 1 and 2: measured ports, and the best of them."""
        array = state.fleet.array
        num_antennas = array.num_antennas
        ports_m, channels = [], []
        nodes: tuple[str, ...] | None = None
        position_m = state.positions_m
        for visit in range(self.visits):
            layout_m = array.home_m.copy()
            if visit > 0:
                fixed_m, count = array.home_m[~array.movable], int(array.movable.sum())
                drawn_m = random_layout(array.region_m, fixed_m, count, array.min_spacing_m, rng)
                layout_m[array.movable] = nearest_assignment(drawn_m, position_m[array.movable])
            moved = yield from move(layout_m)
            position_m = moved.positions_m
            sounding = yield from sound(num_pilots=self.num_pilots)
            if nodes is not None and sounding.nodes != nodes:
                continue
            nodes = sounding.nodes
            ports_m.append(position_m)
            channels.append(sounding.channel)
        # [num_ports, 2], [num_ports, num_nodes]
        places_m, channel = np.concatenate(ports_m), np.concatenate(channels)
        loudness = np.array([self._strength(state.fleet, name) for name in nodes or ()])
        effective = channel * loudness
        home = np.arange(num_antennas)
        chosen = select_ports(places_m, effective, array.min_spacing_m, start=home, movable=array.movable)
        gain = weakest_gain(effective[chosen]) / weakest_gain(effective[home])
        target_m = places_m[chosen]
        target_m[array.movable] = nearest_assignment(target_m[array.movable], position_m[array.movable])
        return target_m, {"gain_over_fixed": gain, "ports_measured": float(len(places_m))}

    @staticmethod
    def _strength(fleet: Fleet, name: str) -> float:
        """sqrt(P_m) / D_m: before training, all updates are taken to be alike."""
        node = fleet.node(name)
        return float(np.sqrt(node.max_power_w)) / node.num_samples

    def _plan(self, fleet: Fleet, sounding: Sounding, trained: Trained, num_values: int) -> Collect | None:
        """Who sends what: selection, combiner, precoding. None if nobody has anything to send."""
        names = [name for name in sounding.nodes if name in trained.results and trained.results[name].update_std > 0]
        if self.truncate_db is not None and names:
            strength = np.array(
                [np.linalg.norm(sounding.channel[:, sounding.nodes.index(name)]) ** 2 for name in names]
            )
            strength *= [(self._strength(fleet, name) / trained.results[name].update_std) ** 2 for name in names]
            kept = np.flatnonzero(strength >= strength.max() * 10.0 ** (-self.truncate_db / 10.0))
            names = [names[index] for index in kept]
        if not names:
            return None
        return analogue_order(
            fleet,
            sounding,
            trained,
            names,
            num_values,
            combine=max_min_combiner,
            policy=self.precoding,
            threshold=self.threshold,
            per_subcarrier=self.per_subcarrier,
            phase_bits=self.phase_bits,
            clip=None if self.clip_db is None else from_db(self.clip_db),
        )
