"""The sweep of the field: where it goes, what it makes of what it hears, and what it refuses to believe."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from calibration.access import Heard
from calibration.field import Field, FieldOptions
from calibration.field_plot import field_maps
from calibration.field_result import field_models, predict
from calibration.field_sweep import Layout
from calibration.routine import Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError, LimitError
from testbed.core.frames import end_stops_m, to_stage
from testbed.phy.array import field_response
from tests.benches import small_bench

STAGE = {"speed_m_s": 0.1, "acceleration_m_s2": 1.0, "settle_s": 0.1}
NOISE_W = 1e-9
Bend = Callable[[int, np.ndarray], np.ndarray]


def bench_of(*antennas: Any, min_spacing_m: float = 0.0614, side_m: float = 0.375, **changes: Any) -> BenchSpec:
    """Antennas in a square, two nodes."""
    array = {
        "origin_m": [0.0, 4.0, 1.0],
        "region_m": [[0.0, side_m], [0.0, side_m]],
        "min_spacing_m": min_spacing_m,
        "antennas": antennas,
    }
    return small_bench(array=array, nodes=[{"count": 2}], **changes)


def four_antennas() -> BenchSpec:
    """Four movable antennas in a square of three wavelengths."""
    return bench_of(*({"home_m": [x, 0.19], "stage": STAGE} for x in (0.09, 0.155, 0.22, 0.285)))


@dataclass
class Sweep:
    """A bench whose nodes' channels have a closed form; what `calibration.access.Access` offers a routine.

    Attributes:
        where: order of the visit, ordered positions -> where the antennas really are.
        turn: order of the visit -> factor on every channel.
        silent: nodes that never answer.
        rail: amplitude at which the receiver's converter clips.
    """

    bench: BenchSpec
    where: Bend = lambda visit, positions_m: positions_m
    turn: Callable[[int], complex] = lambda visit: 1.0
    factors: np.ndarray | None = None
    silent: tuple[str, ...] = ()
    rail: float = math.inf
    guard: int = 0
    visits: int = -1
    positions_m: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.paths = {}
        for name in self.bench.node_names:
            count = int(self.rng.integers(3, 6))
            angle_rad, radius = self.rng.uniform(0, 2 * np.pi, count), self.rng.uniform(0.1, 1.0, count)
            directions = radius[:, None] * np.stack([np.cos(angle_rad), np.sin(angle_rad)], axis=1)
            gains = self.rng.standard_normal((count, 2)) @ np.array([1, 1j]) / math.sqrt(2 * count)
            self.paths[name] = directions, 1e-2 * gains

    def channel(self, name: str, positions_m: np.ndarray) -> np.ndarray:
        directions, gains = self.paths[name]
        return field_response(positions_m, directions, self.bench.wavelength_m) @ gains

    def now_s(self) -> float:
        return 10.0 * self.visits

    def move(self, positions_m: np.ndarray) -> None:
        for point_m, antenna in zip(positions_m, self.bench.array.antennas, strict=True):
            if antenna.stage is not None:
                stops_m = end_stops_m(antenna.stage, self.bench.array.region_m)
                target_m = to_stage(point_m, antenna.stage)
                if np.any(target_m < stops_m[:, 0] - 1e-6) or np.any(target_m > stops_m[:, 1] + 1e-6):
                    raise LimitError("beyond an end stop")
        self.positions_m = np.array(positions_m)
        self.visits += 1

    def capture(self, num_samples: int, bursts: dict[str, np.ndarray], *, offsets: dict[str, int]) -> Heard:
        count = len(self.positions_m)
        shape = (count, num_samples, 2)
        samples = self.rng.standard_normal(shape) @ np.array([1, 1j]) * math.sqrt(NOISE_W / 2)
        true_m = self.where(self.visits, self.positions_m)
        sent = tuple(name for name in bursts if name not in self.silent)
        for name in sent:
            channel = self.channel(name, true_m) * self.turn(self.visits)
            if self.factors is not None:
                channel = channel * self.factors
            begin = offsets[name]
            samples[:, begin : begin + len(bursts[name])] += channel[:, None] * bursts[name]
        branches = samples.astype(np.complex64).view(np.float32)
        np.clip(branches, -self.rail, self.rail, out=branches)
        return Heard(branches.view(np.complex64), self.now_s(), 0, self.positions_m, sent)

    def done(self, options: FieldOptions) -> list[tuple[Step, Raw]]:
        routine, done = Field(), []
        while (step := next_step(self.bench, options, done)) is not None:
            done.append((step, routine.measure(self, options, step)))  # type: ignore[arg-type]
        assert len(done) == routine.num_steps(self.bench, options)
        return done

    def fit(self, **options: Any) -> Fit:
        chosen = FieldOptions.model_validate(options)
        return Field().fit(self.bench, chosen, self.done(chosen))

    def worst_error(self, values: dict[str, Quantity]) -> float:
        """On positions that were not seen, up to a constant common to all; and z^2 is sane."""
        axis_m = np.linspace(0.0, 0.375, 20)
        positions_m = np.stack(np.meshgrid(axis_m, axis_m), axis=-1)
        guess, std = predict(values, positions_m)
        true = np.stack([self.channel(name, positions_m.reshape(-1, 2)) for name in field_models(values)], axis=-1)
        miss = np.abs(guess.reshape(true.shape) - true) ** 2
        assert np.all(np.isfinite(std))
        return float(np.max(np.mean(miss, axis=0) / np.mean(np.abs(true) ** 2, axis=0)))


def next_step(bench: BenchSpec, options: FieldOptions, done: list[tuple[Step, Raw]]) -> Step | None:
    return Field().next_step(bench, options, done, np.random.default_rng([3, len(done)]))


@pytest.mark.parametrize("layout", ["raster", "serpentine", "latin", "adaptive"])
def test_every_layout_keeps_antennas_apart_within_their_travel_and_tells_the_field(layout: Layout) -> None:
    bench = four_antennas()
    sweep = Sweep(bench)
    done = sweep.done(FieldOptions(layout=layout))
    positions_m = np.array([step["positions_m"] for step, _ in done])
    assert positions_m.shape == (17, 4, 2)
    assert np.all((positions_m >= 0) & (positions_m <= 0.375))
    apart_m = np.linalg.norm(positions_m[:, :, None] - positions_m[:, None], axis=-1) + np.eye(4)
    assert apart_m.min() >= bench.array.min_spacing_m - 1e-6
    np.testing.assert_array_equal(positions_m[15], positions_m[0], "the sweep ends where it began")
    assert len(np.unique(positions_m[:15].reshape(-1, 2), axis=0)) == 60
    fit = Field().fit(bench, FieldOptions(layout=layout), done)
    assert fit.passed, fit.why
    assert sweep.worst_error(dict(fit.values)) < 10**-2.5


def test_a_serpentine_goes_a_shorter_way_than_a_raster() -> None:
    ways_m = {}
    for layout in ("raster", "serpentine"):
        steps = Sweep(small_bench()).done(FieldOptions(layout=layout, num_revisits=0, num_measurements=48))
        positions_m = np.array([step["positions_m"] for step, _ in steps])
        ways_m[layout] = np.linalg.norm(np.diff(positions_m, axis=0), axis=-1).sum()
    assert ways_m["serpentine"] < 0.8 * ways_m["raster"]


def test_steps_are_words_of_json_and_the_same_after_an_interruption() -> None:
    options = FieldOptions(layout="adaptive", num_measurements=28)
    sweep = Sweep(four_antennas())
    done = sweep.done(options)
    for count in (0, 3, 5, 8):
        assert json.loads(json.dumps(done[count][0])) == next_step(sweep.bench, options, done[:count])


def test_a_profile_is_a_field_again() -> None:
    sweep = Sweep(four_antennas())
    for method in ("paths", "sparse", "gaussian"):
        fit = sweep.fit(method=method, worst_error=0.5)
        stored = json.loads(json.dumps({name: quantity.value for name, quantity in fit.values.items()}))
        again = {name: Quantity(value, "1", 0.0) for name, value in stored.items()}
        positions_m = np.array([[0.1, 0.2], [0.3, 0.05], [0.2, 0.2]])
        for one, other in zip(predict(again, positions_m), predict(fit.values, positions_m), strict=True):
            np.testing.assert_allclose(one, other)
            assert one.shape == (3, 2)
        shapes = [np.shape(quantity.value) == np.shape(quantity.std) for quantity in fit.values.values()]
        assert all(shapes)


def test_maps_are_pictures_that_need_nothing_else() -> None:
    fit = Sweep(four_antennas()).fit(num_measurements=40)
    maps = field_maps(fit.values, ((0.0, 0.375), (0.0, 0.375)))
    assert list(maps) == ["node-00", "node-01"]
    root = ElementTree.fromstring(maps["node-00"])
    images = [part for part in root if part.tag.endswith("image")]
    assert len(images) == 4
    assert all(str(image.get("href")).startswith("data:image/png;base64,iVBORw0KGgo") for image in images)
    assert sum(part.tag.endswith("circle") for part in root) == 2 * 40


def test_antennas_that_differ_are_told_apart_without_being_asked() -> None:
    factors = np.array([1.0, 0.8 * np.exp(2.0j), 1.2 * np.exp(-1.0j), np.exp(0.5j)])
    sweep = Sweep(four_antennas(), factors=factors)
    fit = sweep.fit()
    assert fit.passed, fit.why
    assert sweep.worst_error(dict(fit.values)) < 10**-2.0
    for index, factor in enumerate(factors):
        told = fit.values[f"antenna-{index}.factor"].value
        assert abs(complex(*told) - factor) < 0.05
    assert not Sweep(four_antennas(), factors=factors).fit(antennas="alike").passed


def test_phases_that_are_new_at_every_visit_are_told_by_an_antenna_that_stands_still() -> None:
    phases_rad = np.random.default_rng(0).uniform(0, 2 * np.pi, 100)
    phases_rad[0] = 0.0
    sweep = Sweep(four_antennas(), turn=lambda visit: np.exp(1j * phases_rad[visit]))
    fit = sweep.fit(phases="free")
    assert fit.passed, fit.why
    assert sweep.worst_error(dict(fit.values)) < 10**-2.0
    believed = Sweep(four_antennas(), turn=lambda visit: np.exp(1j * phases_rad[visit])).fit(phases="held")
    assert not believed.passed


def test_one_antenna_and_new_phases_tell_nothing() -> None:
    bench = bench_of({"home_m": [0.1, 0.1], "stage": STAGE})
    fit = Sweep(bench).fit(phases="free", num_measurements=8)
    assert not fit.passed
    assert "stands still" in fit.why
    assert not fit.values


def test_a_stage_that_loses_steps_is_named() -> None:
    def lost(visit: int, positions_m: np.ndarray) -> np.ndarray:
        return positions_m + np.array([0.012, -0.006]) * ((np.arange(4) == 1) & (visit >= 7))[:, None]

    fit = Sweep(four_antennas(), where=lost).fit()
    assert not fit.passed
    assert "antenna 1" in fit.why
    assert "lost steps" in fit.why
    assert re.search("stood 1[1-5] mm", fit.why), "13.4 mm"
    assert "from visit 7 on" in fit.why


def test_a_room_that_does_not_stand_still_is_noticed() -> None:
    """One path turns against the others while the antennas travel."""
    bench = four_antennas()
    sweep = Sweep(bench)
    standing = sweep.channel

    def moving(name: str, positions_m: np.ndarray) -> np.ndarray:
        directions, gains = sweep.paths[name]
        gains = gains * np.exp(1j * np.where(np.arange(len(gains)) == 0, 0.2 * max(sweep.visits, 0), 0.0))
        return field_response(positions_m, directions, bench.wavelength_m) @ gains

    sweep.channel = moving  # type: ignore[method-assign]
    fit = sweep.fit()
    sweep.channel = standing  # type: ignore[method-assign]
    assert not fit.passed
    assert "does not stand still" in fit.why
    models = field_models(fit.values)
    for name, model in models.items():
        _, std = model.predict(np.array([[0.2, 0.2]]))
        assert std[0] > 0.05 * np.sqrt(np.mean(np.abs(standing(name, np.array([[0.2, 0.2], [0.1, 0.1]]))) ** 2))


def test_a_phase_that_turns_slowly_is_called_by_its_name() -> None:
    fit = Sweep(four_antennas(), turn=lambda visit: np.exp(0.1j * visit)).fit()
    assert not fit.passed
    assert "set phases = free" in fit.why


@pytest.mark.parametrize("num_measurements", [4, 8, 12])
def test_too_few_measurements_are_not_believed(num_measurements: int) -> None:
    fit = Sweep(four_antennas()).fit(num_measurements=num_measurements, num_revisits=0)
    assert not fit.passed
    assert "raise num_measurements" in fit.why


def test_noise_alone_is_not_believed() -> None:
    sweep = Sweep(four_antennas(), turn=lambda visit: 1e-4)
    fit = sweep.fit(num_measurements=40)
    assert not fit.passed
    assert "signal-to-noise" in fit.why


def test_silent_nodes_and_clipping_receivers_are_told() -> None:
    fit = Sweep(four_antennas(), silent=("node-01",)).fit(num_measurements=40)
    assert not fit.passed
    assert "node-01 never heard" in fit.why
    assert "node-00.paths" in fit.values
    assert "no node was heard" in Sweep(four_antennas(), silent=("node-00", "node-01")).fit(num_measurements=8).why
    clipped = Sweep(four_antennas(), rail=2e-4).fit(num_measurements=8)
    assert not clipped.passed
    assert "saturates" in clipped.why


def test_a_short_travel_and_a_rail_bound_the_sweep() -> None:
    short = {**STAGE, "travel_m": [[0.0, 0.1], [0.02, 0.3]], "origin_m": [0.2, 0.35], "rotation_deg": 180.0}
    rail = {**STAGE, "origin_m": [0.0, 0.3], "device": {"driver": "grbl", "axes": "x"}}
    bench = bench_of(
        {"home_m": [0.15, 0.2], "stage": short}, {"home_m": [0.05, 0.3], "stage": rail}, min_spacing_m=0.02
    )
    done = Sweep(bench).done(FieldOptions(num_measurements=30))
    positions_m = np.array([step["positions_m"] for step, _ in done])
    assert positions_m[:, 0].min(axis=0) == pytest.approx([0.1, 0.05], abs=0.03)
    assert np.all((positions_m[:, 0] >= [0.1, 0.05]) & (positions_m[:, 0] <= [0.2, 0.33]))
    np.testing.assert_allclose(positions_m[:, 1, 1], 0.3)
    assert np.ptp(positions_m[:, 1, 0]) > 0.2


def test_benches_that_cannot_sweep_are_refused_before_anything_moves() -> None:
    options = FieldOptions()
    with pytest.raises(ConfigError, match="no antenna of this bench can sweep"):
        Field().num_steps(bench_of({"home_m": [0.1, 0.1]}), options)
    with pytest.raises(ConfigError, match="no antenna 7"):
        Field().num_steps(small_bench(), FieldOptions(reference=7))
    away = {**STAGE, "origin_m": [5.0, 0.0], "travel_m": [[0.0, 0.1], [0.0, 0.1]]}
    with pytest.raises(ConfigError, match="cannot reach"):
        next_step(bench_of({"home_m": [0.1, 0.1], "stage": away}), options, [])
    # the fixed antenna in the middle leaves no room around it
    homes = {"home_m": [0.0, 0.0], "stage": STAGE}, {"home_m": [0.025, 0.025]}
    tight = bench_of(*homes, side_m=0.05, min_spacing_m=0.03)
    array = tight.array.model_copy(update={"min_spacing_m": 0.04})
    with pytest.raises(ConfigError, match="finds no place"):
        next_step(tight.model_copy(update={"array": array}), options, [])
    symbols = small_bench(waveform={"level": "symbols"})
    with pytest.raises(ConfigError, match="samples"):
        Sweep(symbols).done(options)
