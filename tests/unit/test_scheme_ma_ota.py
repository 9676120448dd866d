"""The scheme ma-ota against a bench whose channels are known plane waves: what it asks, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from testbed.core.adapter import Adapter, Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.fleet import ArrayFacts, Fleet, NodeFacts
from testbed.core.orders import (
    Collect,
    Collected,
    LocalResult,
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
from testbed.engine.perform import perform
from testbed.phy.aperture import PathSet
from testbed.problems.ma_ota.survey import Survey, robust_gain
from testbed.problems.multicast import multicast
from testbed.schemes.ma_ota import MaOta

WAVELENGTH = 0.125
SIZE = 64
ADAPTER = Adapter(
    layout=Layout(factors=(Factor(name="m.lora_B.weight", shape=(SIZE, 1), kind="B", module="m"),)),
    initial=np.zeros(SIZE, np.float32),
)


def fleet_of(num_nodes: int, num_antennas: int = 4, **facts: Any) -> Fleet:
    home = np.column_stack([0.1 + 0.0625 * np.arange(num_antennas), np.full(num_antennas, 0.19)])
    array = ArrayFacts(home, np.ones(num_antennas, bool), np.array([[0, 0.375], [0, 0.375]]), 0.0625)
    given = {"num_samples": 100, "max_power_w": 1.0, "cpu_hz": 1e9, "cycles_per_token": 1e6, "kappa": 1e-28, **facts}
    nodes = tuple(NodeFacts(name=f"n{index}", **given) for index in range(num_nodes))
    return Fleet(nodes, array, 299_792_458.0 / WAVELENGTH, 1e6)


@dataclass
class Bench:
    """Answers from plane waves, and keeps what it was asked."""

    paths: PathSet
    positions_m: np.ndarray
    noise_w: float = 1e-4
    turns: bool = False
    """Whether every sounding has a phase of its own, as without a common clock."""
    seed: int = 0
    asked: list[Order] = field(default_factory=list)
    combined: list[float] = field(default_factory=list)

    def answer(self, order: Order) -> Reply:
        self.asked.append(order)
        match order:
            case Sound(nodes=nodes):
                names = nodes or tuple(f"n{index}" for index in range(self.paths.num_nodes))
                rng = np.random.default_rng([self.seed, len(self.asked)])
                channel = self.paths.channel(self.positions_m)[:, [int(name[1:]) for name in names]]
                variance = self.noise_w / 100
                noise = rng.standard_normal((2, *channel.shape)) * np.sqrt(variance / 2)
                turn = np.exp(2j * np.pi * rng.random()) if self.turns else 1.0
                zero = np.zeros(len(names))
                return Sounding(
                    names, turn * channel + noise[0] + 1j * noise[1], self.noise_w, self.positions_m, zero, zero, zero,
                    variance=np.full(len(names), variance),
                )  # fmt: skip
            case Move(positions_m=positions):
                self.positions_m = positions
                return Moved(positions)
            case Train(work=work):
                result = LocalResult(1.0, 1.0, 1.0, 100, 10, 0.0, 0.1, 1.0, 1.0)
                return Trained(dict.fromkeys(work, result))
            case Together(move=move, train=train):
                return MovedAndTrained(self.answer(move), self.answer(train))  # type: ignore[arg-type]
            case Collect(uplinks=uplinks, combiner=combiner):
                heard = combiner.conj() @ self.paths.channel(self.positions_m)[:, [int(name[1:]) for name in uplinks]]
                self.combined.append(float(np.min(np.abs(heard) ** 2)))
                return Collected(np.zeros(SIZE, np.float32))
            case Publish():
                return Published()
        raise AssertionError(order)

    def sent(self) -> list[list[str]]:
        return [sorted(order.uplinks) for order in self.asked if isinstance(order, Collect)]


def played(scheme: MaOta, bench: Bench, fleet: Fleet, rounds: int = 1) -> Any:
    state = scheme.start(fleet, ADAPTER)
    for index in range(1, rounds + 1):
        state = perform(scheme.round(state, np.random.default_rng([5, index])), bench.answer)
    return state


def bench_of(fleet: Fleet, seed: int, **facts: Any) -> Bench:
    paths = PathSet.draw(np.random.default_rng(seed), len(fleet.nodes), 3, WAVELENGTH)
    return Bench(paths, fleet.array.home_m, **facts)


@pytest.mark.parametrize("turns", [False, True])
def test_placed_antennas_hear_the_weakest_node_better(turns: bool) -> None:
    fleet = fleet_of(4)
    gains = []
    for seed in range(4):
        moving, fixed = (bench_of(fleet, seed, turns=turns) for _ in range(2))
        played(MaOta(visits=8), moving, fleet)
        played(MaOta(placement="fixed"), fixed, fleet)
        gains.append(10 * np.log10(moving.combined[0] / fixed.combined[0]))
    assert min(gains) > -0.1
    assert np.mean(gains) > 3.0, gains


def test_the_combiner_is_that_of_the_measured_channels() -> None:
    fleet = fleet_of(4)
    bench = bench_of(fleet, 1, noise_w=1e-12)
    played(MaOta(placement="fixed"), bench, fleet)
    best = multicast(bench.paths.channel(fleet.array.home_m)).value
    assert bench.combined[0] == pytest.approx(best, rel=1e-4)


def test_k_boards_at_a_time_and_missed_turns_are_made_up_for() -> None:
    fleet = fleet_of(5)
    fair, selfish = bench_of(fleet, 2), bench_of(fleet, 2)
    state = played(MaOta(concurrency=2, placement="fixed", fairness=10.0), fair, fleet, rounds=10)
    assert all(len(names) == 2 for names in fair.sent())
    np.testing.assert_array_equal(state.counts, 4)
    assert state.figures["jain"] == pytest.approx(1.0)
    alone = played(MaOta(concurrency=2, placement="fixed"), selfish, fleet, rounds=10)
    assert alone.figures["jain"] < 0.6
    # and what fairness costs: the two best are never worse heard
    assert np.mean(selfish.combined) > np.mean(fair.combined)


def test_more_boards_at_once_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 nodes are to send at once, the bench has 3") as caught:
        MaOta(concurrency=8).start(fleet_of(3), ADAPTER)
    assert caught.value.key == "scheme.concurrency"


def test_antennas_stay_where_moving_is_not_worth_it() -> None:
    fleet = fleet_of(4)
    bench = bench_of(fleet, 3)
    played(MaOta(visits=6), bench, fleet, rounds=4)
    moves = [isinstance(order, Together) for order in bench.asked]
    assert sum(moves) == 1, "the channels stand still, so one placement serves all rounds"
    eager = bench_of(fleet, 3)
    played(MaOta(visits=6, least_gain_db=60.0), eager, fleet)
    assert not any(isinstance(order, Together) for order in eager.asked)


def test_a_room_that_changes_is_seen_and_learnt_anew() -> None:
    fleet = fleet_of(2)
    bench = bench_of(fleet, 4)
    scheme = MaOta(visits=6, survey_every=0)
    state = played(scheme, bench, fleet)
    other = PathSet.draw(np.random.default_rng(99), 2, 3, WAVELENGTH)
    bench.paths = other
    before = {name: told.directions for name, told in state.fields.items()}
    state = perform(scheme.round(state, np.random.default_rng(0)), bench.answer)
    assert any(
        told.directions.shape != before[name].shape or not np.array_equal(told.directions, before[name])
        for name, told in state.fields.items()
    )


def test_a_field_profile_spares_the_survey() -> None:
    fleet = fleet_of(4)
    bench = bench_of(fleet, 5)
    rows = [
        np.column_stack([bench.paths.directions[k], bench.paths.gains[k].real, bench.paths.gains[k].imag])
        for k in range(4)
    ]
    known = replace(fleet, nodes=tuple(replace(node, paths=rows[k]) for k, node in enumerate(fleet.nodes)))
    played(MaOta(), bench, known)
    assert sum(isinstance(order, Sound) for order in bench.asked) == 2, "one for the noise, one at the final places"
    assert not any(isinstance(order, Move) for order in bench.asked[:2])
    fixed = bench_of(fleet, 5)
    played(MaOta(placement="fixed"), fixed, fleet)
    assert bench.combined[0] > fixed.combined[0]


PLAN = {
    "latency_s": 2000.0,
    "local_steps": 2,
    "tokens_per_row": 64,
    "max_rounds": 40,
    "constants": {
        "smoothness": 10.0, "pl": 0.5, "step_size": 0.1, "gradient_variance": 4.0, "alpha1": 1.0, "alpha2": 0.1,
        "initial_gap": 5.0,
    },
}  # fmt: skip


def test_the_plan_fixes_rounds_batches_and_frequencies_within_the_budget() -> None:
    fleet = fleet_of(3)
    bench = bench_of(fleet, 6)
    scheme = MaOta.model_validate({"placement": "fixed", "plan": PLAN})
    state = scheme.start(fleet, ADAPTER)
    rounds = 0
    while not scheme.done(state):
        state = perform(scheme.round(state, np.random.default_rng(rounds)), bench.answer)
        rounds += 1
        assert rounds <= 40
    assert rounds == state.schedule.fine_tuning > 1
    total_s = 0.0
    for order in bench.asked:
        if isinstance(order, Train):
            seconds = [
                1e6 * 64 * 2 * work.batch_size / work.cpu_hz for work in order.work.values() if work.cpu_hz is not None
            ]
            assert all(work.cpu_hz <= 1e9 * (1 + 1e-9) for work in order.work.values() if work.cpu_hz is not None)
            assert len(seconds) == 3
            total_s += max(seconds)
    assert total_s <= 2000.0
    assert total_s > 1000.0, "most of the budget is used"


def test_a_budget_that_nobody_can_keep_is_refused_before_anything_moves() -> None:
    scheme = MaOta.model_validate({"plan": {**PLAN, "latency_s": 0.01}})
    with pytest.raises(
        ConfigError, match=r"latency: 1 round needs .* s at the highest CPU frequency, 0.01 s"
    ) as caught:
        scheme.start(fleet_of(3), ADAPTER)
    assert caught.value.key == "scheme.plan.latency_s"


def test_the_robust_gain_is_a_quantile() -> None:
    """With one path and one antenna |h|^2 depends on the gain alone: its posterior is a noncentral chi-square."""
    from scipy.stats import ncx2

    from testbed.phy.field_model import PathField

    variance = 0.04
    covariance = np.diag([0.0, 0.0, variance / 2, variance / 2])
    told = PathField(np.zeros((1, 2)), np.array([1.0 + 0j]), covariance, WAVELENGTH)
    rng = np.random.default_rng(0)
    draws = [robust_gain([told], np.ones(1), np.zeros((1, 2)), np.ones(1), rng) for _ in range(200)]
    expected = ncx2.ppf(0.1, 2, 2 / variance) * variance / 2
    assert np.mean(draws) == pytest.approx(expected, rel=0.03)


def test_a_survey_tells_the_channel_between_its_places() -> None:
    fleet = fleet_of(1)
    bench = bench_of(fleet, 7, noise_w=1e-6)
    survey, rng = Survey(), np.random.default_rng(1)
    for _ in range(8):
        bench.positions_m = rng.uniform(0, 0.375, (4, 2))
        survey = survey.with_sounding(bench.answer(Sound()))  # type: ignore[arg-type]
    fit = survey.fit("n0", WAVELENGTH, 8)
    assert fit is not None
    places = rng.uniform(0, 0.375, (200, 2))
    truth = bench.paths.channel(places)[:, 0]
    error = np.mean(np.abs(fit.field.predict(places)[0] - truth) ** 2) / np.mean(np.abs(truth) ** 2)
    assert error < 0.01
    assert survey.fit("stranger", WAVELENGTH, 8) is None
