"""The movable vote in rooms that stand still: where the antennas go, who votes, and how loud."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.core.adapter import Adapter, Factor, Layout
from testbed.core.fleet import ArrayFacts, Fleet, NodeFacts
from testbed.core.orders import (
    Collect,
    Collected,
    LocalResult,
    MajorityVote,
    Move,
    Moved,
    MovedAndTrained,
    Order,
    Publish,
    Published,
    Reply,
    Sound,
    Sounding,
    Together,
    Train,
    Trained,
)
from testbed.phy.aperture import PathSet
from testbed.schemes.ma_fsk_mv import MaFskMv, MaFskMvState

CARRIER_HZ = 299_792_458.0 / 0.125
ADAPTER = Adapter(
    layout=Layout(factors=(Factor(name="m.lora_B.weight", shape=(4, 2), kind="B", module="m"),)),
    initial=np.zeros(8, np.float32),
)


class Room:
    """Answers a scheme's orders from plane waves; phases are new at every sounding unless the radios are coherent."""

    def __init__(self, paths: PathSet, num_antennas: int, *, coherent: bool, noise_w: float = 1e-4) -> None:
        home_m = np.array([[0.05 + 0.0625 * index, 0.05] for index in range(num_antennas)])
        region_m = np.array([[0.0, 0.375], [0.0, 0.375]])
        self.names = tuple(f"n{index}" for index in range(paths.num_nodes))
        nodes = tuple(
            NodeFacts(name, 10 + index, 0.5 + index, 1e9, 1e6, 1e-28) for index, name in enumerate(self.names)
        )
        array = ArrayFacts(home_m, np.ones(num_antennas, bool), region_m, 0.0625)
        self.fleet = Fleet(nodes, array, CARRIER_HZ, 1e6)
        self.paths, self.coherent, self.noise_w = paths, coherent, noise_w
        self.positions_m, self.rng = home_m, np.random.default_rng(0)
        self.asked: list[Order] = []

    def energy(self, positions_m: np.ndarray) -> np.ndarray:
        """P_m sum_n |h_m|^2."""
        power_w = np.array([node.max_power_w for node in self.fleet.nodes])
        return power_w * np.sum(np.abs(self.paths.channel(positions_m)) ** 2, axis=0)

    def play(self, scheme: MaFskMv, state: MaFskMvState) -> MaFskMvState:
        """One round."""
        steps = scheme.round(state, np.random.default_rng(1))
        reply: Reply | None = None
        try:
            while True:
                order = next(steps) if reply is None else steps.send(reply)
                self.asked.append(order)
                reply = self.answer(order)
        except StopIteration as end:
            return end.value

    def answer(self, order: Order) -> Reply:
        match order:
            case Move(positions_m=positions_m):
                self.positions_m = positions_m
                return Moved(positions_m)
            case Sound():
                return self._sounding()
            case Train(work=work):
                result = LocalResult(1.0, 1.0, 1.0, 10, 100, 0.0, 1.0, 1.0, 1.0)
                return Trained(dict.fromkeys(work, result))
            case Together(move=move, train=train):
                return MovedAndTrained(self.answer(move), self.answer(train))  # type: ignore[arg-type]
            case Collect():
                return Collected(np.ones(8, np.float32))
            case Publish():
                return Published()
        raise AssertionError(f"{order} was not expected")

    def _sounding(self) -> Sounding:
        count = len(self.names)
        turn = np.ones(count) if self.coherent else np.exp(2j * np.pi * self.rng.random(count))
        noise = self.rng.standard_normal((2, len(self.positions_m), count)) * np.sqrt(self.noise_w / 200)
        channel = self.paths.channel(self.positions_m) * turn + noise[0] + 1j * noise[1]
        none, variance = np.zeros(count), np.full(count, self.noise_w / 100)
        return Sounding(self.names, channel, self.noise_w, self.positions_m, none, none, none, variance=variance)


def room(seed: int, num_nodes: int, num_paths: int, num_antennas: int, *, coherent: bool) -> Room:
    paths = PathSet.draw(np.random.default_rng(seed), num_nodes, num_paths, 0.125)
    return Room(paths, num_antennas, coherent=coherent)


def visited(here: Room) -> list[np.ndarray]:
    return [order.positions_m for order in here.asked if isinstance(order, Move)]


def votes(here: Room) -> dict[str, MajorityVote]:
    last = [order for order in here.asked if isinstance(order, Collect)][-1]
    return {name: vote for name, vote in last.uplinks.items() if isinstance(vote, MajorityVote)}


@pytest.mark.parametrize("seed", range(4))
def test_one_antenna_without_phases_goes_to_the_best_place_it_saw(seed: int) -> None:
    here, scheme = room(seed, 4, 6, 1, coherent=False), MaFskMv(visits=10, abstain=0.2, step=0.5)
    state = here.play(scheme, scheme.start(here.fleet, ADAPTER))
    seen = [float(here.energy(layout_m).min()) for layout_m in visited(here)]
    assert len(seen) == 10
    assert state.figures["places"] == "measured"
    assert float(here.energy(here.positions_m).min()) > 0.97 * max(seen)
    assert state.figures["energy_over_fixed"] == pytest.approx(max(seen) / seen[0], rel=0.1)
    assert np.allclose(state.adapter, 0.5)
    sent, energy = votes(here), here.energy(here.positions_m)
    assert sorted(sent) == list(here.names), "far above the noise nobody's data is left out"
    limit_w = np.array([node.max_power_w for node in here.fleet.nodes])
    loud = [vote.power_w / limit_w[index] * energy[index] for index, vote in enumerate(sent.values())]
    assert np.allclose(loud, min(energy), rtol=0.1)
    assert max(vote.power_w / limit for vote, limit in zip(sent.values(), limit_w, strict=True)) == pytest.approx(1.0)
    assert {vote.threshold for vote in sent.values()} == {0.2}
    here.asked.clear()
    here.play(scheme, state)
    assert not [order for order in here.asked if isinstance(order, Move | Together)], "one search is enough"


def test_fields_that_predict_lead_beyond_what_was_visited() -> None:
    rises = []
    for seed in range(2):
        here, scheme = room(seed, 2, 2, 3, coherent=True), MaFskMv(visits=6, max_paths=3, num_starts=2)
        state = here.play(scheme, scheme.start(here.fleet, ADAPTER))
        assert state.figures["places"] == "field"
        seen = [float(here.energy(layout_m).min()) for layout_m in visited(here)]
        rises.append(float(here.energy(here.positions_m).min()) / max(seen))
    assert min(rises) > 1.0
    assert max(rises) > 1.1


def test_as_many_vote_as_are_asked_for_and_the_array_may_stay() -> None:
    here, scheme = room(2, 5, 6, 2, coherent=False), MaFskMv(move=False, voters=2)
    here.play(scheme, scheme.start(here.fleet, ADAPTER))
    assert len(votes(here)) == 2
    assert not visited(here)
    assert np.array_equal(here.positions_m, here.fleet.array.home_m)


def test_faint_nodes_are_left_out_where_they_would_drown_all() -> None:
    here = room(2, 5, 6, 2, coherent=False)
    here.paths, here.noise_w = here.paths.scaled(np.array([1.0, 1.0, 1.0, 1.0, 1e-3])), 0.1
    scheme = MaFskMv(move=False)
    here.play(scheme, scheme.start(here.fleet, ADAPTER))
    assert sorted(votes(here)) == ["n0", "n1", "n2", "n3"]


def test_antennas_go_back_to_measured_places_that_are_better() -> None:
    """After the search the state sends the antenna to the worst place that was visited; one sounding there shows it."""
    here, scheme = room(1, 3, 6, 1, coherent=False), MaFskMv(visits=8)
    state = here.play(scheme, scheme.start(here.fleet, ADAPTER))
    best_m = here.positions_m
    worst_m = min(visited(here), key=lambda layout_m: float(here.energy(layout_m).min()))
    state = here.play(scheme, replace(state, target_m=worst_m))
    assert np.array_equal(here.positions_m, worst_m)
    assert np.array_equal(state.target_m, best_m)
    here.play(scheme, state)
    assert np.array_equal(here.positions_m, best_m)
