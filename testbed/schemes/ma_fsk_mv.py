"""Movable antennas for a non-coherent majority vote: what MA-OTA can be on radios without a common phase.

Papers. Movable antennas and client selection for fine-tuning through the air: Zhao, Xiu, Dai, Wei, Niyato, arXiv
2506.00011, which assumes coherent clients and whose body is not available. The vote by energies on pairs of
subcarriers: Sahin, arXiv 2209.09954, with absentee votes. From the papers: antennas are placed anew and few of the
clients send at once; a client's sign is the choice of a subcarrier, and energies are compared. Our reading, all of it
in `testbed.problems.ma_ota`: without phases the weakest voter's energy takes the place of the combined gain,

    maximise over r   min_{m in S} E_m(r),   E_m(r) = P_m sum_n |h_m(r_n)|^2              (energy)
    choose S to minimise   4 (1 - D_S / D)^2 + (2 / N) [1 / (|S| snr) + 1 / (|S| snr)^2]    (voters)
    p_m = P_m min_{j in S} E_j / E_m, so that all votes arrive equally loud.

Our choice of how the channels become known:

1. visit the fixed array and `visits - 1` random layouts, and sound at each;
2. fit plane waves, with a free phase for each visit where phases do not hold. Where every node's field predicts
   left-out measurements, place the antennas by it; else, and always with one antenna and free phases, take the best of
   the places that were measured (heard_energy);
3. go there while the nodes train, sound again, choose the voters by what is heard there, and go back to measured places
   in the next round if these are better after all.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter
from testbed.core.fleet import Fleet
from testbed.core.orders import (
    MajorityVote,
    Order,
    Reply,
    Sounding,
    Steps,
    Trained,
    Work,
    collect,
    move,
    move_while_training,
    publish,
    sound,
    train,
)
from testbed.core.scheme import Scheme
from testbed.phy.aperture import Aperture, PathSet
from testbed.phy.ports import nearest_assignment, random_layout
from testbed.problems.ma_ota.heard_energy import Heard, cautious_energy, trusted_field
from testbed.problems.ma_ota.survey import Survey
from testbed.problems.ma_ota.voters import choose_voters, plan_vote

_WORTH = 0.9  # times the score here: measured places below it are gone to


@dataclass(frozen=True)
class MaFskMvState:
    """What the scheme remembers between rounds.

    Attributes:
        fleet: nodes, antennas and band.
        adapter: global adapter, shape [num_values].
        target_m: where the antennas shall be in the next round, shape [num_antennas, 2].
        positions_m: where they are, shape [num_antennas, 2].
        heard: energies at the places of the latest search, and since.
        round_index: rounds done.
        figures: of the last round, for its row.
    """

    fleet: Fleet
    adapter: np.ndarray
    target_m: np.ndarray
    positions_m: np.ndarray
    heard: Heard
    round_index: int = 0
    figures: Mapping[str, float | str] = field(default_factory=dict)


class MaFskMv(Scheme[MaFskMvState]):
    """Majority vote by energy detection, with antennas and voters chosen for the weakest vote."""

    needs = frozenset({"timed_tx"})

    move: bool = Field(True, description="search better antenna places; false keeps the fixed array")
    visits: int = Field(8, ge=1, description="layouts visited in a search, the fixed array included")
    search_every: int = Field(0, ge=0, description="rounds between searches; 0 searches in the first round only")
    voters: int | None = Field(None, ge=1, description="nodes that vote in a round; the best number if absent")
    max_paths: int = Field(6, ge=1, description="most plane waves of a node's channel")
    max_error: float = Field(0.1, gt=0, description="error up to which a fitted field counts, share of its power")
    num_starts: int = Field(6, ge=1, description="starts of the placement, the fixed array included")
    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")
    step: float = Field(1.0, gt=0, description="how far a vote moves a value, in mean spreads of the voters' updates")
    abstain: float = Field(0.0, ge=0, description="values below this many spreads of their node's update abstain")

    def start(self, fleet: Fleet, adapter: Adapter) -> MaFskMvState:
        home_m = fleet.array.home_m
        return MaFskMvState(fleet, adapter.initial, home_m, home_m, Heard.nothing(len(fleet.nodes)))

    def round(self, state: MaFskMvState, rng: np.random.Generator) -> Steps[MaFskMvState]:
        figures: dict[str, float | str] = {}
        if self._searches(state):
            state, figures = yield from self._search(state, rng)
        work = {name: Work() for name in state.fleet.names}
        if np.array_equal(state.target_m, state.positions_m):
            trained = yield from train(work)
        else:
            trained = yield from move_while_training(state.target_m, work)
        sounding = yield from sound(num_pilots=self.num_pilots)
        votes, told = self._votes(state.fleet, sounding, trained)
        adapter = state.adapter
        if votes:
            collected = yield from collect(votes)
            step = self.step * float(np.mean([trained.results[name].update_std for name in votes]))
            adapter = adapter + np.float32(step) * collected.mean
        yield from publish(adapter)
        state = self._looked_back(state, sounding)
        return replace(state, adapter=adapter, round_index=state.round_index + 1, figures={**figures, **told})

    def report(self, state: MaFskMvState) -> Mapping[str, float | str]:
        return state.figures

    def _searches(self, state: MaFskMvState) -> bool:
        due = self.search_every > 0 and state.round_index % self.search_every == 0
        movable = bool(state.fleet.array.movable.any())
        return self.move and self.visits > 1 and movable and (state.round_index == 0 or due)

    def _search(
        self, state: MaFskMvState, rng: np.random.Generator
    ) -> Generator[Order, Reply, tuple[MaFskMvState, dict[str, float | str]]]:
        """Steps 1 and 2: visits, then places by the fields or by what was measured."""
        fleet, array = state.fleet, state.fleet.array
        survey, heard, position_m, noise_w = Survey(), Heard.nothing(len(fleet.nodes)), state.positions_m, 0.0
        for visit in range(self.visits):
            layout_m = array.home_m.copy()
            if visit > 0:
                fixed_m, count = array.home_m[~array.movable], int(array.movable.sum())
                drawn_m = random_layout(array.region_m, fixed_m, count, array.min_spacing_m, rng)
                layout_m[array.movable] = nearest_assignment(drawn_m, position_m[array.movable])
            position_m = (yield from move(layout_m)).positions_m
            sounding = yield from sound(num_pilots=self.num_pilots)
            survey, noise_w = survey.with_sounding(sounding), sounding.noise_w
            heard = heard.with_sounding(sounding, fleet.names, _power_w(fleet))
        fixed = heard.at(survey.visits[0])
        best_m = heard.best(_aperture(fleet), survey.visits[0])
        layouts_m = [*survey.visits, best_m]
        energies = [heard.at(layout_m) for layout_m in layouts_m]
        by_field = self._by_fields(fleet, survey, noise_w, rng)
        if by_field is not None:
            layouts_m.append(by_field[0])
            energies.append(by_field[1])
        scores = [self._vote_of(fleet, fleet.names, energy_w, noise_w)[1] for energy_w in energies]
        choice = int(np.argmin(scores))
        source = "field" if choice > len(survey.visits) else "measured"
        target_m = layouts_m[choice].copy()
        target_m[array.movable] = nearest_assignment(target_m[array.movable], position_m[array.movable])
        figures: dict[str, float | str] = {"places": source, "places_measured": float(len(heard.places_m))}
        served = fixed > 0
        if served.any():
            figures["energy_over_fixed"] = float(energies[choice][served].min() / fixed[served].min())
        return replace(state, target_m=target_m, positions_m=position_m, heard=heard), figures

    def _by_fields(
        self, fleet: Fleet, survey: Survey, noise_w: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Places by the fitted fields, and the energies that they surely bring; None where a field is not trusted."""
        fields = []
        for name in fleet.names:
            found = trusted_field(survey, name, fleet.wavelength_m, max_paths=self.max_paths, max_error=self.max_error)
            if found is None:
                return None
            fields.append(found)
        power_w = _power_w(fleet)
        planned = plan_vote(
            PathSet.of(fields).scaled(np.sqrt(power_w)),
            _aperture(fleet),
            _weights(fleet, fleet.names),
            noise_w,
            rng=rng,
            count=self.voters,
            num_starts=self.num_starts,
        )
        places_m = planned.point.positions_m
        return places_m, cautious_energy(fields, power_w, places_m)

    def _vote_of(
        self, fleet: Fleet, names: Sequence[str], energy_w: np.ndarray, noise_w: float
    ) -> tuple[tuple[int, ...], float]:
        """The voters among these nodes, and what the vote is worth; nobody where nobody is heard."""
        audible = int(np.sum(energy_w > 0))
        if audible == 0 or not noise_w > 0:
            return (), float("inf")
        count = None if self.voters is None else min(self.voters, audible)
        return choose_voters(energy_w, _weights(fleet, names), noise_w, fleet.array.num_antennas, count=count)

    def _votes(
        self, fleet: Fleet, sounding: Sounding, trained: Trained
    ) -> tuple[dict[str, MajorityVote], dict[str, float | str]]:
        """Who votes, and with p_m = P_m min_{j in S} E_j / E_m, so that every vote arrives equally loud."""
        names = [name for name in sounding.nodes if name in trained.results]
        columns = [sounding.nodes.index(name) for name in names]
        limit_w = np.array([fleet.node(name).max_power_w for name in names])
        energy_w = limit_w * np.sum(np.abs(sounding.channel[:, columns]) ** 2, axis=0)
        voters, _ = self._vote_of(fleet, names, energy_w, sounding.noise_w)
        votes = {
            names[index]: MajorityVote(
                power_w=float(limit_w[index] * energy_w[list(voters)].min() / energy_w[index]),
                threshold=self.abstain * trained.results[names[index]].update_std,
                cfo_hz=float(sounding.cfo_hz[columns[index]]),
            )
            for index in voters
        }
        told: dict[str, float | str] = {"voters": " ".join(votes)}
        if votes:
            told["weakest_snr"] = 2.0 * float(energy_w[list(voters)].min()) / (len(sounding.channel) * sounding.noise_w)
        return votes, told

    def _looked_back(self, state: MaFskMvState, sounding: Sounding) -> MaFskMvState:
        """The state after the sounding at the target: if measured places are better after all, they are next."""
        here_m = sounding.positions_m
        state = replace(state, positions_m=here_m, target_m=here_m)
        if not len(state.heard.places_m):
            return state
        heard = state.heard.with_sounding(sounding, state.fleet.names, _power_w(state.fleet))
        best_m = heard.best(_aperture(state.fleet), here_m)
        fleet, noise_w = state.fleet, sounding.noise_w
        here, there = (self._vote_of(fleet, fleet.names, heard.at(one_m), noise_w)[1] for one_m in (here_m, best_m))
        return replace(state, heard=heard, target_m=best_m if there < _WORTH * here else here_m)


def _power_w(fleet: Fleet) -> np.ndarray:
    return np.array([node.max_power_w for node in fleet.nodes])


def _weights(fleet: Fleet, names: Sequence[str]) -> np.ndarray:
    return np.array([fleet.node(name).num_samples for name in names], np.float64)


def _aperture(fleet: Fleet) -> Aperture:
    array = fleet.array
    return Aperture(array.home_m, array.movable, array.region_m, array.min_spacing_m, fleet.wavelength_m)
