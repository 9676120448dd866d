"""The checks of every device, on a real bench: `pytest --bench=lab.toml -m hardware --yes-transmit`.

Antennas move by some millimetres and return; nodes transmit at their highest power. The radios of all nodes have to be
reached from this computer; on a board of its own, `-k node-00` runs the test of its transmitter alone.

The last test says what no emulator can: whether bursts arrive when the drivers expect them to. Where a trigger line
starts them, that is our reading of the transfer trigger in the radio's FPGA image.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drivers.clock import NodeClock
from drivers.lab import open_bench, open_node
from testbed.core.bench import BenchSpec, StageSpec
from testbed.core.devices import Devices
from testbed.core.errors import ConfigErrors, LimitError
from testbed.core.frames import end_stops_m, to_array, to_stage
from testbed.core.orders import Move
from testbed.engine.checks import check_clock, check_radio, check_stage
from testbed.engine.config import load_bench
from testbed.engine.limits import check_order
from testbed.phy.coherence import JITTER_DEVIATIONS

pytestmark = pytest.mark.hardware

STEP_M = 5e-3
BEYOND_M = 1e-2
SOON_S = 0.5
"""From an order to its instant: time enough for a radio behind a slow network."""
BURST_SAMPLES = 2048
LATER_SAMPLES = 1000
EDGE_SAMPLES = 64
LOUD = 4.0
"""Least ratio of a burst to what is received without it."""


def named_bench(config: pytest.Config) -> BenchSpec | None:
    """The bench of `--bench`."""
    name = config.getoption("--bench")
    try:
        return None if name is None else load_bench(name, Path.cwd())
    except ConfigErrors as error:
        raise pytest.UsageError(f"--bench {name}: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each node and each stage of the bench."""
    spec = named_bench(metafunc.config)
    if "node" in metafunc.fixturenames:
        metafunc.parametrize("node", ["no-bench"] if spec is None else spec.node_names)
    if "antenna" in metafunc.fixturenames:
        movable = [] if spec is None else [i for i, one in enumerate(spec.array.antennas) if one.stage is not None]
        metafunc.parametrize("antenna", movable or [-1])


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> BenchSpec:
    spec = named_bench(request.config)
    assert spec is not None  # without one every test here is skipped
    return spec


@pytest.fixture
def devices(bench: BenchSpec, tmp_path: Path) -> Iterator[Devices]:
    """The controller's: receivers and stages, which are homed where they have to be."""
    opened = open_bench(bench, seed=0, folder=tmp_path, node_processes=0)
    yield opened
    opened.close()


def test_clock(devices: Devices) -> None:
    check_clock(devices.clock)


def test_receiver(bench: BenchSpec, devices: Devices) -> None:
    check_radio(
        devices.radio,
        frequency_hz=bench.carrier_hz,
        sample_rate_hz=bench.sample_rate_hz,
        soon_s=lambda: devices.clock.now_s() + SOON_S,
    )


def test_stage(bench: BenchSpec, devices: Devices, antenna: int) -> None:
    if antenna < 0:
        pytest.skip("no antenna of this bench can move")
    spec, stage = bench.array.antennas[antenna].stage, devices.stages[antenna]
    assert spec is not None
    assert stage is not None
    target_m = safe_target_m(bench, antenna, spec)
    beyond_m = target_m.copy()
    beyond_m[0] = end_stops_m(spec, bench.array.region_m)[0, 1] + BEYOND_M
    check_stage(stage, target_m, beyond_m, tolerance_m=2 * spec.device.tolerance_m)


def safe_target_m(bench: BenchSpec, antenna: int, spec: StageSpec) -> np.ndarray:
    """A place a step from home, stage frame, where the antenna may be while all others are at home."""
    home_m = np.array([one.home_m for one in bench.array.antennas])
    stops_m = end_stops_m(spec, bench.array.region_m)
    for axis, step_m in itertools.product(range(len(spec.device.axes)), (STEP_M, -STEP_M)):
        target_m = to_stage(home_m[antenna], spec)
        target_m[axis] += step_m
        if not stops_m[axis, 0] <= target_m[axis] <= stops_m[axis, 1]:
            continue
        places_m = home_m.copy()
        places_m[antenna] = to_array(target_m, spec)
        try:
            check_order(Move(places_m), bench, 0)
        except LimitError:
            continue
        return target_m
    pytest.fail(f"antenna {antenna} cannot move {1e3 * STEP_M:g} mm in any direction from its home")


def test_transmitter(bench: BenchSpec, node: str) -> None:
    opened = open_node(bench, node, {})
    assert isinstance(opened.clock, NodeClock)
    clock = opened.clock
    try:
        check_radio(
            opened.radio,
            frequency_hz=bench.carrier_hz,
            sample_rate_hz=bench.sample_rate_hz,
            soon_s=lambda: clock.now_s() + SOON_S,
        )
    finally:
        opened.close()


def test_a_burst_arrives_when_it_should(bench: BenchSpec, devices: Devices, node: str) -> None:
    opened = open_node(bench, node, devices.node_devices)
    assert opened.clock is not None
    opened.clock.follow(devices.clock.now_s() - opened.clock.own_s())
    limit_w = opened.radio.capabilities.max_power_w
    phases_rad = np.random.default_rng(5).uniform(0.0, 2 * np.pi, BURST_SAMPLES)
    burst = (np.sqrt(limit_w) * np.exp(1j * phases_rad)).astype(np.complex64)
    rate_hz = bench.sample_rate_hz
    guard = round(JITTER_DEVIATIONS * bench.radio.start_jitter_s * rate_hz)
    arrivals = []
    try:
        for radio in (devices.radio, opened.radio):
            radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=rate_hz)
        for delay in (0, LATER_SAMPLES):
            begins_s = devices.clock.now_s() + SOON_S
            devices.radio.arm(2 * guard + delay + 2 * BURST_SAMPLES, at_s=begins_s)
            opened.radio.transmit(burst, at_s=begins_s + (guard + delay) / rate_hz, trigger_s=begins_s)
            start, ratio = loudest(devices.radio.read())
            assert ratio > LOUD, f"{node} is not heard: its burst is {10 * np.log10(ratio):.1f} dB above the rest"
            arrivals.append(start - delay - guard)
    finally:
        opened.close()
    print(f"{node}: bursts arrive {arrivals} samples after their instants")
    assert max(map(abs, arrivals)) <= guard + EDGE_SAMPLES
    if bench.radio.trigger == "clock":
        assert abs(arrivals[1] - arrivals[0]) <= 1, "a burst's delay after the trigger is not counted in samples"


def loudest(heard: np.ndarray) -> tuple[int, float]:
    """First sample of the loudest stretch as long as a burst, and its energy over that of the quietest.

    Args:
        heard: shape [num_antennas, num_samples].
    """
    total = np.concatenate([[0.0], np.cumsum((np.abs(heard.astype(np.complex128)) ** 2).sum(axis=0))])
    energy = total[BURST_SAMPLES:] - total[:-BURST_SAMPLES]
    return int(energy.argmax()), float(energy.max() / max(float(energy.min()), 1e-300))
