"""Calibration of the antennas' stages by what the radio hears: a tone's phase tells where an antenna is.

Nodes send tones all at once; while one antenna moves, all others stand still and tell how the transmitters' phases
turn. With no other antenna the bench's clocks have to be shared. See `calibration.axes_fit` for what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from calibration.access import Access
from calibration.axes_fit import AGAIN, FALLING, MOST_NODES, RISING, fit_axes
from calibration.courses import Course, num_axes, plan_course, stage_of
from calibration.routine import Fit, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.devices import Stage
from testbed.core.errors import ConfigError, LimitError
from testbed.core.frames import to_array, to_stage
from testbed.core.orders import Spent
from testbed.core.specs import Spec
from testbed.core.units import dbm_to_w
from testbed.phy.displacement import read_tones, tone

_SPARE = 256
"""Samples at both ends of a capture that are not used: paths and radios delay a burst."""
_GOLDEN = 0.6180339887498949


class AxesOptions(Spec):
    """What may be chosen."""

    stages: tuple[int, ...] = Field((), description="antennas whose stages are measured; all that can move by default")
    nodes: tuple[str, ...] = Field((), description="nodes that send tones; the first four by default")
    power_share: float = Field(
        0.01, gt=0, le=1, description="of each node's highest average power; less where the receiver clips"
    )
    num_samples: int = Field(8192, ge=256, description="of one measurement; four times as many halve the noise")
    wavelengths: float = Field(2.0, gt=0, description="length of the lines that are swept, where there is room")
    points: int = Field(20, ge=6, description="places on each line")
    approach_m: float = Field(2e-3, gt=0, description="way from which places are approached; more than the play")
    rest_s: float = Field(0.5, ge=0, description="wait beyond settle_s before a place is measured")
    homings: int = Field(5, ge=0, description="times that each stage is homed, where it can be")
    looks: int = Field(40, ge=12, description="measurements after each arrival")
    arrivals: int = Field(2, ge=1, description="times that each axis is watched as it comes to rest")
    listen_s: float = Field(0.6, gt=0, description="how long a stage is watched after its arrival")
    tolerance_m: float | None = Field(
        None, gt=0, description="vibration that counts as settled; device.tolerance_m of each stage by default"
    )
    node_std_m: float = Field(
        0.05, ge=0, description="how well position_m of the nodes is known; scale and rotation depend on it"
    )
    references_m: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description='what an operator measured: {"stage-0": [way that was ordered, way that was measured]}',
    )
    reference_std_m: float = Field(5e-5, gt=0, description="how well the operator measured")


@runtime_checkable
class Homing(Protocol):
    """A stage that can look for its switches."""

    def home(self) -> Spent: ...


class Axes:
    """See `calibration.routine.Routine`."""

    name: ClassVar[str] = "axes"
    about: ClassVar[str] = "homing repeatability, scale, backlash, settle time and frame of every stage"
    Options: ClassVar[type[Spec]] = AxesOptions
    validity: ClassVar[tuple[str, ...]] = ("array",)
    lasts_s: ClassVar[float] = 30 * 86400.0

    def next_step(
        self, bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """See `calibration.routine.Routine`.

        Raises:
            ConfigError: an antenna without a stage or a node that the bench does not have is named.
        """
        steps = planned(bench, options)
        return steps[len(done)] if len(done) < len(steps) else None

    def num_steps(self, bench: BenchSpec, options: Any) -> int:
        """See `calibration.routine.Routine`."""
        return len(planned(bench, options))

    def measure(self, access: Access, options: Any, step: Step) -> Raw:
        """See `calibration.routine.Routine`.

        Raises:
            ConfigError: the waveform has no samples.
            LimitError: a stage has no room for its lines.
            DeviceError: a radio or a stage failed; a stage whose position is not known is not moved.
        """
        watch = _Watch(access, options, int(step["stage"]))
        measured: dict[str, Callable[[], Raw]] = {
            "sweep": lambda: watch.sweep(int(step["axis"])),
            "settle": lambda: watch.settle(int(step["axis"])),
            "home": watch.home,
        }
        return measured[str(step["what"])]()

    def fit(self, bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """See `calibration.axes_fit.fit_axes`."""
        return fit_axes(bench, options, done)


def planned(bench: BenchSpec, options: AxesOptions) -> list[Step]:
    """All measurements, in order.

    Raises:
        ConfigError: see `Axes.next_step`.
    """
    nodes_of(bench, options)
    _check_references(bench, options)
    movable = [index for index, antenna in enumerate(bench.array.antennas) if antenna.stage is not None]
    steps: list[Step] = []
    for index in options.stages or movable:
        axes = range(num_axes(stage_of(bench, index)))
        steps += [{"stage": index, "what": "sweep", "axis": axis} for axis in axes]
        steps += [{"stage": index, "what": "settle", "axis": axis} for axis in axes]
        steps += [{"stage": index, "what": "home", "time": time} for time in range(options.homings)]
    return steps


def _check_references(bench: BenchSpec, options: AxesOptions) -> None:
    names = [f"stage-{index}" for index, antenna in enumerate(bench.array.antennas) if antenna.stage is not None]
    for name, (ordered_m, measured_m) in options.references_m.items():
        if name not in names or not ordered_m * measured_m > 0:
            raise ConfigError(
                f"{name!r}: [{ordered_m:g}, {measured_m:g}] is no reference",
                key="references_m",
                remedy=f"name one of {', '.join(names)}, with the way that was ordered and the way that was measured",
            )


def nodes_of(bench: BenchSpec, options: AxesOptions) -> tuple[str, ...]:
    """Nodes that send.

    Raises:
        ConfigError: the bench has no node of that name.
    """
    for name in options.nodes:
        if name not in bench.node_names:
            raise ConfigError(f"the bench has no node {name!r}", key="nodes", remedy="name nodes of the bench file")
    return options.nodes or bench.node_names[:MOST_NODES]


class _Watch:
    """Moves one stage and listens."""

    def __init__(self, access: Access, options: AxesOptions, index: int) -> None:
        bench = access.bench
        if bench.waveform.level != "samples":
            raise ConfigError(
                "tones need samples, and this bench sends symbols",
                key="waveform.level",
                remedy='set waveform.level = "samples"',
            )
        self._access, self._options, self._index = access, options, index
        self._spec = stage_of(bench, index)
        stage = access.devices.stages[index]
        assert stage is not None
        self._stage: Stage = stage
        self._names = nodes_of(bench, options)
        self._course: Course = plan_course(bench, index, options.wavelengths * bench.wavelength_m, options.approach_m)
        count = len(self._names)
        # off the grid of any converter's harmonics; images lie at negative frequencies
        self._tones = 0.03 + 0.38 * (np.arange(count) + _GOLDEN) / count
        self._reach = 0.15 / count
        powers = {board.name: dbm_to_w(board.max_power_dbm) for board in bench.boards}
        self._bursts = {
            name: tone(options.num_samples + 2 * _SPARE, float(frequency), options.power_share * powers[name])
            for name, frequency in zip(self._names, self._tones, strict=True)
        }

    def sweep(self, axis: int) -> Raw:
        """Along a line: up, down, and a few places once more."""
        options, (low_m, high_m) = self._options, self._course.spans_m[axis]
        lead_m = options.approach_m
        if high_m - low_m < 4 * lead_m:
            raise LimitError(
                f"stage-{self._index} has {high_m - low_m:.4f} m of free way along axis {axis}, too little to measure",
                remedy="widen the array's region, or move the other antennas' homes away",
            )
        self._move(self._course.base_m)
        places_m = np.linspace(low_m + lead_m, high_m - lead_m, options.points)
        again_m = places_m[[0, len(places_m) // 2, -1]]
        reported, heard = [], []
        for start_m, targets_m in ((low_m, places_m), (high_m, places_m[::-1]), (low_m, again_m)):
            self._go(axis, start_m)
            for target_m in targets_m:
                self._go(axis, float(target_m))
                reported.append(self._here_m())
                self._access.wait(options.rest_s)
                heard.append(self._listen())
        approach = np.repeat([RISING, FALLING, AGAIN], [len(places_m), len(places_m), len(again_m)])
        base_m = self._course.base_m
        self._go_home()
        return {"base_m": base_m, "reported_m": np.array(reported), "approach": approach, **_stacked(heard)}

    def settle(self, axis: int) -> Raw:
        """Arrive at the base, and watch."""
        options, clock = self._options, self._access.devices.clock
        low_m, high_m = self._course.spans_m[axis]
        base_m = float(self._course.base_m[axis])
        from_m = low_m if base_m - low_m > high_m - base_m else high_m
        heard: list[_Look] = []
        since, arrival = [], []
        self._move(self._course.base_m)
        for number in range(options.arrivals):
            self._go(axis, from_m)
            looks: list[_Look] = []
            arrived: list[float] = []
            way_s = self._stage.duration_s(self._course.base_m) - self._spec.settle_s
            expected_s = self._access.now_s() + way_s

            def move(arrived: list[float] = arrived) -> None:
                self._go(axis, base_m)
                arrived.append(clock.now_s() - self._spec.settle_s)

            def watch(looks: list[_Look] = looks, from_s: float = expected_s, number: int = number) -> None:
                for at_s in self._look_times_s(number):
                    if clock.now_s() <= (begin_s := from_s + at_s - self._access.devices.start_delay_s):
                        clock.wait_until(begin_s)
                        looks.append(self._listen())

            clock.concurrently([move, watch])
            heard += looks
            since += [look.at_s - arrived[0] for look in looks]
            arrival += [number] * len(looks)
        self._go_home()
        return {"since_s": np.array(since), "arrival": np.array(arrival), **_stacked(heard)}

    def _look_times_s(self, number: int) -> np.ndarray:
        """When to look after an arrival: denser at first, and at no equal distances, so that no frequency hides.

        Where a burst takes longer to start than looks are apart, each arrival begins one look later.
        """
        options = self._options
        slow = self._access.devices.start_delay_s > options.listen_s / options.looks
        look = np.arange(number % options.looks if slow else 0, options.looks)
        share = (look + (look * _GOLDEN + number * 0.37) % 1.0) / options.looks
        return np.asarray(options.listen_s * share**1.5)

    def home(self) -> Raw:
        """At the base before and after homing; nothing where the stage cannot home or has no room for it."""
        if not (isinstance(self._stage, Homing) and self._course.homing_free):
            return {"homed": np.array(0)}
        self._to_base()
        before = self._listen()
        self._stage.home()
        self._to_base()
        after = self._listen()
        self._go_home()
        return {"homed": np.array(1), **_stacked([before, after])}

    def _go_home(self) -> None:
        """All antennas to their homes: this one by way of where its lines cross, so that it passes nobody."""
        self._move(self._course.base_m)
        self._access.move(self._homes())

    def _to_base(self) -> None:
        """To the base from below on every axis."""
        self._move(self._course.base_m)
        for axis in range(num_axes(self._spec)):
            self._go(axis, float(self._course.base_m[axis]) - self._options.approach_m)
            self._move(self._course.base_m)
        self._access.wait(self._options.rest_s)

    def _go(self, axis: int, to_m: float) -> None:
        target_m = self._course.base_m.copy()
        target_m[axis] = to_m
        self._move(target_m)

    def _move(self, target_m: np.ndarray) -> None:
        """This antenna to a stage-frame point, shape [2]; all others at home."""
        positions_m = self._homes()
        positions_m[self._index] = to_array(target_m, self._spec)
        self._access.move(positions_m)

    def _homes(self) -> np.ndarray:
        return np.array([antenna.home_m for antenna in self._access.bench.array.antennas], dtype=np.float64)

    def _here_m(self) -> np.ndarray:
        """Where the stage says that it is, stage frame, shape [2]."""
        return to_stage(self._access.positions_m[self._index], self._spec)

    def _listen(self) -> _Look:
        access, count = self._access, self._options.num_samples
        heard = access.capture(count + 2 * _SPARE, self._bursts)
        start = heard.guard + _SPARE
        amplitudes, _, variance = read_tones(heard.samples[:, start : start + count], self._tones, self._reach)
        amplitudes[:, [name not in heard.sent for name in self._names]] = np.nan
        middle_s = heard.at_s + (_SPARE + count / 2) / access.bench.sample_rate_hz
        return _Look(middle_s, amplitudes, variance)


class _Look:
    """One measurement: instant, channels times amplitudes [num_antennas, num_nodes], their variance [num_antennas]."""

    def __init__(self, at_s: float, channel: np.ndarray, variance: np.ndarray) -> None:
        self.at_s, self.channel, self.variance = at_s, channel, variance


def _stacked(looks: Sequence[_Look]) -> dict[str, np.ndarray]:
    """Shapes [num_looks], [num_looks, num_antennas, num_nodes], [num_looks, num_antennas]."""
    return {
        "at_s": np.array([look.at_s for look in looks]),
        "channel": np.array([look.channel for look in looks]),
        "variance": np.array([look.variance for look in looks]),
    }
