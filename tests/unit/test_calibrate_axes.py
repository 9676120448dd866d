"""The stages' calibration on a desk in closed form: every antenna hears every node's waves, oscillators are free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pytest

from calibration.access import Access, Heard
from calibration.axes import Axes, AxesOptions
from calibration.courses import plan_course
from calibration.routine import Fit, Raw, Step
from sim_backend.clock import VirtualClock
from sim_backend.mechanics import Mechanics
from sim_backend.stage import SimStage
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError, LimitError, StageFault
from testbed.core.frames import to_array
from testbed.core.orders import Spent
from tests.benches import small_bench

NODES = [
    {"name": "a", "position_m": [7.0, 2.0, 1.0]},
    {"name": "b", "position_m": [4.0, 7.5, 2.9]},
    {"name": "c", "position_m": [5.0, 4.5, 0.1]},
]
BACKLASH_M = [1.2e-4, 6e-5]
TRUTH = {
    "backlash_m": BACKLASH_M, "scale": 1.004, "rotation_deg": 3.0, "homing_std_m": 4e-5, "ring_m": 3e-4,
    "ring_s": 0.06, "ring_hz": 35.0,
}  # fmt: skip
SETTLE_S = 0.06 * math.log(3e-4 / 2e-5)
OPTIONS = AxesOptions(stages=(0,), num_samples=2048, power_share=0.1, homings=12)
"""Some 78 dB for each tone of a capture."""
MOTOR_STEP_M = 4e-6


class DeskStage(SimStage):
    """A stage with a mast that rings, switches, and motors that lose steps at the move that is named."""

    def __init__(self, bench: BenchSpec, index: int, clock: VirtualClock, *, loses_at: int | None, homed: bool) -> None:
        spec = bench.array.antennas[index].stage
        assert spec is not None
        home_m = bench.array.antennas[index].home_m
        super().__init__(spec, region_m=bench.array.region_m, home_m=home_m, clock=clock)
        self.truth = Mechanics(bench.world.stages, spec, seed=5, index=index)
        self.truth.follow(self.position_m)
        self._clock, self._settle_s = clock, spec.settle_s
        self._homed = homed
        self._moves, self._loses_at, self._lost_m = 0, loses_at, np.zeros(2)

    def move_to(self, position_m: np.ndarray) -> Spent:
        if not self._homed:
            raise StageFault("stage-0: where it stands is not known, and it is not moved blindly", remedy="home it")
        spent = super().move_to(position_m)
        if spent.travel_m > 1e-9:
            self._moves += 1
            if self._moves == self._loses_at:
                self._lost_m = np.array([2e-4, 2e-4])
            self.truth.follow(position_m - self._lost_m, moves=True)
            self.truth.follow(position_m - self._lost_m, self._clock.now_s() - self._settle_s)
        return spent

    def home(self) -> Spent:
        self.truth.follow(self.position_m, homes=True)
        self.truth.follow(self.position_m)
        return Spent(1.0)


class Desk:
    """What a routine asks of `calibration.access.Access`."""

    def __init__(
        self,
        bench: BenchSpec,
        *,
        loses_at: int | None = None,
        silent: bool = False,
        coherent: bool = False,
        homed: bool = True,
    ) -> None:
        self.bench, self.backend, self.guard = bench, "desk", 0
        self._clock, self._rng = VirtualClock(), np.random.default_rng(11)
        self._world, self._silent, self._coherent = World(bench, 3), silent, coherent
        self._boards = {board.name: index for index, board in enumerate(bench.boards)}
        stages = tuple(
            None if antenna.stage is None else DeskStage(bench, index, self._clock, loses_at=loses_at, homed=homed)
            for index, antenna in enumerate(bench.array.antennas)
        )
        self.devices = cast(Any, _Devices(self._clock, stages))

    def now_s(self) -> float:
        return self._clock.now_s()

    def wait(self, seconds: float) -> None:
        self._clock.wait_until(self.now_s() + seconds)

    @property
    def positions_m(self) -> np.ndarray:
        return self._all(lambda stage, spec: to_array(stage.position_m, spec))

    def move(self, positions_m: np.ndarray) -> Spent:
        return Access.move(cast(Access, self), positions_m)

    def capture(self, num_samples: int, bursts: Mapping[str, np.ndarray]) -> Heard:
        rate_hz, now_s = self.bench.sample_rate_hz, self.now_s() + self.devices.start_delay_s
        middle_s = now_s + num_samples / 2 / rate_hz
        true_m = self._all(lambda stage, _: stage.truth.array_m(middle_s))
        shape = (len(true_m), num_samples)
        parts = self._rng.standard_normal((2, *shape)) * math.sqrt(self._world.noise_w / 2)
        heard = parts[0] + 1j * parts[1]
        for name, burst in {} if self._silent else bursts.items():
            # every burst has an oscillator of its own
            turn, off_hz = (0.0, 0.0) if self._coherent else self._rng.uniform(-1, 1, 2) * (np.pi, 5e3)
            turned = np.exp(1j * (turn + 2 * np.pi * off_hz / rate_hz * np.arange(num_samples)))
            heard += np.outer(self._world.channel(name, true_m, 0.0), burst[:num_samples] * turned)
        self._clock.wait_until(now_s + num_samples / rate_hz)
        return Heard(heard.astype(np.complex64), now_s, 0, true_m, tuple(bursts))

    def _all(self, place: Any) -> np.ndarray:
        antennas = zip(self.devices.stages, self.bench.array.antennas, strict=True)
        return np.array(
            [antenna.home_m if stage is None else place(stage, antenna.stage) for stage, antenna in antennas]
        )


class _Devices:
    def __init__(self, clock: VirtualClock, stages: tuple[Any, ...]) -> None:
        self.clock, self.stages, self.start_delay_s = clock, stages, 1e-3


def desk_bench(**changes: Any) -> BenchSpec:
    world = {"num_paths": 1, "stages": {**TRUTH, **changes.pop("stages", {})}, **changes.pop("world", {})}
    return small_bench(**{"nodes": NODES, "world": world, **changes})


def measured(bench: BenchSpec, desk: Desk, options: AxesOptions = OPTIONS) -> list[tuple[Step, Raw]]:
    routine = Axes()
    done: list[tuple[Step, Raw]] = []
    while (step := routine.next_step(bench, options, done, np.random.default_rng(0))) is not None:
        done.append((step, routine.measure(cast(Access, desk), options, step)))
    assert len(done) == routine.num_steps(bench, options)
    return done


@lru_cache(maxsize=4)
def plain_measured(num_paths: int) -> list[tuple[Step, Raw]]:
    bench = desk_bench(world={"num_paths": num_paths})
    return measured(bench, Desk(bench))


@lru_cache(maxsize=4)
def plain(num_paths: int) -> Fit:
    return Axes().fit(desk_bench(), OPTIONS, plain_measured(num_paths))


def within(fit: Fit, key: str, truth: Any, deviations: float = 4.0) -> bool:
    found = fit.values[key]
    return bool(np.all(np.abs(np.subtract(found.value, truth)) <= deviations * np.array(found.std)))


@pytest.mark.parametrize("num_paths", [1, 6])
def test_backlash_is_found_within_a_motor_step(num_paths: int) -> None:
    fit = plain(num_paths)
    assert fit.passed, fit.why
    found = fit.values["stage-0.backlash"]
    assert np.abs(np.subtract(found.value, BACKLASH_M)).max() < MOTOR_STEP_M
    assert within(fit, "stage-0.backlash", BACKLASH_M)
    assert max(found.std) < MOTOR_STEP_M


@pytest.mark.parametrize("num_paths", [1, 6])
def test_the_settle_time_is_found_within_ten_percent(num_paths: int) -> None:
    fit = plain(num_paths)
    assert fit.values["stage-0.settle"].value == pytest.approx(SETTLE_S, rel=0.1)
    assert "settle_s = 0.1 in the bench file is too short" in fit.why


def test_bursts_that_start_slowly_see_one_vibration_through_many_arrivals() -> None:
    bench = desk_bench()
    options = OPTIONS.model_copy(update={"homings": 0, "arrivals": 40})
    desk = Desk(bench)
    desk.devices.start_delay_s = 0.5
    fit = Axes().fit(bench, options, measured(bench, desk, options))
    assert fit.passed, fit.why
    settle = fit.values["stage-0.settle"]
    assert abs(settle.value - SETTLE_S) < max(0.1 * SETTLE_S, 4 * settle.std)
    assert settle.std < 0.1


def test_homing_scatters_as_it_does() -> None:
    fit = plain(1)
    assert fit.values["stage-0.homing_std"].value == pytest.approx(4e-5, rel=0.5)
    assert within(fit, "stage-0.homing_std", 4e-5)


def test_scale_and_rotation_follow_from_where_the_nodes_are() -> None:
    fit = plain(1)
    assert within(fit, "stage-0.scale", 1.004)
    assert fit.values["stage-0.scale"].std < 0.02
    x, y, rotation_rad = fit.values["stage-0.frame"].value
    assert (x, y) == (0.0, 0.0)
    assert rotation_rad == pytest.approx(math.radians(3.0), abs=math.radians(1.0))
    assert fit.values["stage-0.frame"].std[:2] == (math.inf, math.inf)
    assert 0 < fit.values["stage-0.frame"].std[2] < math.radians(2.0)


def test_reflections_make_scale_and_rotation_less_certain_and_not_wrong() -> None:
    fit = plain(6)
    assert within(fit, "stage-0.scale", 1.004, 3.0)
    assert within(fit, "stage-0.frame", (0.0, 0.0, math.radians(3.0)), 3.0)
    assert fit.values["stage-0.frame"].std[2] > plain(1).values["stage-0.frame"].std[2]


def test_every_value_has_its_unit_and_every_figure_its_labels() -> None:
    fit = plain(1)
    units = {key.partition(".")[2]: found.unit for key, found in fit.values.items()}
    assert units == {
        "min_spacing": "m", "backlash": "m", "settle": "s", "homing_std": "m", "scale": "1", "frame": "m, m, rad",
    }  # fmt: skip
    assert len(fit.curves) == 4
    assert all(" / " in curve.x_label and len(curve.x) == len(curve.measured) for curve in fit.curves)


def test_a_table_that_was_put_up_the_wrong_way_round_is_found() -> None:
    bench = desk_bench(stages={"rotation_deg": 180.0, "ring_m": 0.0})
    options = OPTIONS.model_copy(update={"homings": 0})
    fit = Axes().fit(bench, options, measured(bench, Desk(bench), options))
    assert abs(fit.values["stage-0.frame"].value[2]) == pytest.approx(math.pi, abs=0.03)
    assert "rotation_deg" in fit.why


def test_without_places_of_nodes_only_a_reference_tells_the_scale() -> None:
    bench = desk_bench(nodes=[{"count": 3}], stages={"ring_m": 0.0})
    options = OPTIONS.model_copy(update={"homings": 0, "stages": (0, 1)})
    done = measured(bench, Desk(bench), options)
    alone = Axes().fit(bench, options, done)
    assert math.isinf(alone.values["stage-0.scale"].std)
    assert math.isinf(alone.values["stage-0.frame"].std[2])
    assert "references_m" in alone.why
    told = Axes().fit(bench, options.model_copy(update={"references_m": {"stage-0": (0.2, 0.2008)}}), done)
    assert told.values["stage-0.scale"].value == pytest.approx(1.004, abs=5e-4)
    # the other stage hears the same waves
    assert within(told, "stage-1.scale", 1.004)
    assert told.values["stage-1.scale"].std < 0.02


def test_lost_steps_in_the_middle_fail_the_fit() -> None:
    bench = desk_bench(stages={"ring_m": 0.0})
    fit = Axes().fit(bench, OPTIONS, measured(bench, Desk(bench, loses_at=20)))
    assert not fit.passed
    assert "lost steps" in fit.why


def test_ringing_beyond_the_watch_fails_the_fit() -> None:
    bench = desk_bench(stages={"ring_s": 3.0, "ring_m": 5e-4})
    options = OPTIONS.model_copy(update={"homings": 0})
    fit = Axes().fit(bench, options, measured(bench, Desk(bench), options))
    assert not fit.passed
    assert "still rings" in fit.why


def test_what_still_rings_while_places_are_measured_counts_as_uncertainty() -> None:
    bench = desk_bench()
    options = OPTIONS.model_copy(update={"homings": 0, "rest_s": 0.1})
    fit = Axes().fit(bench, options, measured(bench, Desk(bench), options))
    assert "rang by" in fit.why
    assert within(fit, "stage-0.backlash", BACKLASH_M)


def test_a_stage_that_does_not_ring_settles_before_the_first_look() -> None:
    bench = desk_bench(stages={"ring_m": 0.0, "backlash_m": [0.0, 0.0]})
    options = OPTIONS.model_copy(update={"homings": 0})
    fit = Axes().fit(bench, options, measured(bench, Desk(bench), options))
    assert fit.passed, fit.why
    assert fit.values["stage-0.settle"].value < 0.02
    assert within(fit, "stage-0.backlash", (0.0, 0.0))


def test_silence_fails_the_fit() -> None:
    bench = desk_bench()
    fit = Axes().fit(bench, OPTIONS, measured(bench, Desk(bench, silent=True)))
    assert not fit.passed
    assert "no node is heard" in fit.why
    assert math.isinf(fit.values["stage-0.backlash"].std[0])


@pytest.mark.parametrize("coherent", [True, False])
def test_a_lonely_antenna_needs_shared_clocks(coherent: bool) -> None:
    array = small_bench().array.model_dump(mode="json")
    array["antennas"] = array["antennas"][:1]
    bench = desk_bench(array=array, stages={"ring_m": 0.0})
    options = OPTIONS.model_copy(update={"homings": 0})
    fit = Axes().fit(bench, options, measured(bench, Desk(bench, coherent=coherent), options))
    assert fit.passed == coherent, fit.why
    assert within(fit, "stage-0.backlash", BACKLASH_M)


def test_a_stage_that_was_not_homed_is_not_moved() -> None:
    bench = desk_bench()
    with pytest.raises(StageFault, match="not known"):
        Axes().measure(cast(Access, Desk(bench, homed=False)), OPTIONS, {"stage": 0, "what": "sweep", "axis": 0})


def test_symbols_carry_no_tones() -> None:
    bench = desk_bench(waveform={"level": "symbols"})
    with pytest.raises(ConfigError, match="waveform.level"):
        Axes().measure(cast(Access, Desk(bench)), OPTIONS, {"stage": 0, "what": "sweep", "axis": 0})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"stages": (2,)}, "stage"),
        ({"nodes": ("nobody",)}, "nobody"),
        ({"references_m": {"stage-2": (0.1, 0.1)}}, "references_m"),
        ({"references_m": {"stage-0": (0.1, 0.0)}}, "references_m"),
    ],
)
def test_what_the_bench_does_not_have_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Axes().next_step(desk_bench(), AxesOptions(**options), [], np.random.default_rng(0))


@pytest.mark.parametrize("rubbish", ["zeros", "noise", "gaps", "exact"])
def test_rubbish_never_raises_and_never_passes_as_knowledge(rubbish: str) -> None:
    bench, rng = desk_bench(), np.random.default_rng(4)
    done = []
    for step, raw in plain_measured(1):
        channel, changed = raw.get("channel"), dict(raw)
        if channel is not None:
            noise = rng.standard_normal((2, *channel.shape))
            changed["channel"] = {
                "zeros": np.zeros_like(channel),
                "noise": (noise[0] + 1j * noise[1]) * np.abs(channel),
                "gaps": np.where(noise[0] > 2, np.nan, channel),
                "exact": channel,
            }[rubbish]
            changed["variance"] = raw["variance"] * (rubbish != "exact")
        done.append((step, changed))
    fit = Axes().fit(bench, OPTIONS, done)
    assert fit.passed == (rubbish == "exact"), fit.why


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_an_interrupted_calibration_claims_nothing_that_it_did_not_measure(count: int) -> None:
    fit = Axes().fit(desk_bench(), OPTIONS, plain_measured(1)[:count])
    known = {key.partition(".")[2] for key, value in fit.values.items() if np.isfinite(value.std).any()}
    assert known == [set(), {"backlash"}, {"backlash", "settle", "scale", "frame"}][min(count, 2) if count < 3 else 2]
    assert fit.passed == (count > 0)


def test_lines_keep_their_distance_from_the_other_antennas() -> None:
    bench = desk_bench()
    for index in (0, 1):
        course = plan_course(bench, index, 0.15, 2e-3)
        assert np.diff(course.spans_m, axis=1).min() > 0.1
        spec = bench.array.antennas[index].stage
        assert spec is not None
        ways = [np.linspace(np.array(bench.array.antennas[index].home_m), course.base_m, 50)]
        for axis, (low_m, high_m) in enumerate(course.spans_m):
            way_m = np.repeat(course.base_m[None], 50, axis=0)
            way_m[:, axis] = np.linspace(low_m, high_m, 50)
            ways.append(way_m)
        for other, antenna in enumerate(bench.array.antennas):
            if other != index:
                distance_m = np.linalg.norm(to_array(np.concatenate(ways), spec) - antenna.home_m, axis=1)
                assert distance_m.min() >= bench.array.min_spacing_m - 1e-6


def test_a_stage_without_room_is_refused_before_it_moves() -> None:
    array = small_bench().array.model_dump(mode="json")
    array["region_m"] = [[0.05, 0.253], [0.047, 0.053]]
    bench = desk_bench(array=array)
    with pytest.raises(LimitError, match="free way"):
        Axes().measure(cast(Access, Desk(bench)), OPTIONS, {"stage": 0, "what": "sweep", "axis": 1})
