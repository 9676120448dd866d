"""The GRBL driver through pyserial or a socket to an emulated controller, in virtual and in real time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from drivers.grbl import GrblStage
from sim_backend.emulators.faults import FaultPlan
from sim_backend.emulators.grbl_firmware import GrblFirmware
from sim_backend.emulators.grbl_port import GrblPort
from sim_backend.emulators.grbl_settings import Eeprom
from sim_backend.emulators.timebase import Timebase
from testbed.core.bench import StageSpec
from testbed.core.errors import StageFault
from testbed.engine.checks import check_stage

serial = pytest.importorskip("serial")

REGION_M = ((0.0, 0.3), (0.0, 0.2))
SPEED = 10.0


class EmulatedTime:
    """The emulators' time as a run's clock."""

    def __init__(self, timebase: Timebase) -> None:
        self.timebase = timebase

    def now_s(self) -> float:
        return self.timebase.now_s()

    def wait_until(self, at_s: float) -> None:
        self.timebase.advance(at_s)

    def set(self, at_s: float) -> None:
        raise AssertionError("emulated time is not set")

    def concurrently(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        return [task() for task in tasks]


class Bench:
    """One emulated stage and everything to reach it."""

    def __init__(self, mode: str) -> None:
        self.timebase = Timebase(mode, speed=SPEED if mode == "real" else 1.0)
        self.clock = EmulatedTime(self.timebase)
        self.firmware = GrblFirmware(
            Eeprom.for_stage(travel_m=(0.32, 0.22, 0.01), speed_m_s=0.4, acceleration_m_s2=2.0, hard_limits=True)
        )
        self.faults = FaultPlan()
        self.port = GrblPort("stage-0", self.firmware, self.timebase, faults=self.faults)
        self.stages: list[GrblStage] = []

    def stage(self, wire: str) -> GrblStage:
        where = self.port.pty if wire == "pty" else self.port.url
        spec = StageSpec(speed_m_s=0.4, acceleration_m_s2=2.0, settle_s=0.2, device={"port": where})
        stage = GrblStage(spec, region_m=REGION_M, home_m=(0.1, 0.1), clock=self.clock)
        self.stages.append(stage)
        return stage

    def really_m(self) -> np.ndarray:
        return self.port.position_m[:2] + np.array([0.301, 0.201])

    def close(self) -> None:
        for stage in self.stages:
            stage.close()
        self.port.close()
        self.timebase.close()


@pytest.fixture
def bench(request) -> Iterator[Bench]:
    opened = Bench(getattr(request, "param", "virtual"))
    yield opened
    opened.close()


@pytest.mark.parametrize("wire", ["pty", "socket"])
@pytest.mark.parametrize("bench", ["virtual", "real"], indirect=True)
def test_it_is_a_stage(bench: Bench, wire: str):
    stage = bench.stage(wire)
    stage.make_ready()
    np.testing.assert_allclose(bench.really_m(), [0.1, 0.1], atol=1e-5)
    stage.move_to(np.array([0.222, 0.033]))
    np.testing.assert_allclose(bench.really_m(), [0.222, 0.033], atol=1e-5)
    check_stage(stage, np.array([0.25, 0.15]), np.array([0.31, 0.1]))
    assert bench.port.state == "Idle"


def shuttle(stage: GrblStage) -> None:
    """To and fro: in virtual time a move may end before another thread has looked."""
    for _ in range(50):
        stage.move_to(np.array([0.3, 0.1]))
        stage.move_to(np.array([0.1, 0.1]))


@pytest.mark.parametrize("bench", ["virtual", "real"], indirect=True)
def test_a_stop_from_another_thread(bench: Bench):
    stage = bench.stage("socket")
    stage.make_ready()
    stopped = threading.Event()

    def stop_when_under_way() -> None:
        while bench.really_m()[0] < 0.15 and not stopped.is_set():
            pass
        stage.stop()
        stopped.set()

    watcher = threading.Thread(target=stop_when_under_way)
    watcher.start()
    try:
        with pytest.raises(StageFault, match="was stopped on its way"):
            shuttle(stage)
    finally:
        stopped.set()
        watcher.join(10.0)
    bench.clock.wait_until(bench.clock.now_s() + 1.0)
    assert not bench.port.moving
    stage.move_to(np.array([0.2, 0.1]))
    np.testing.assert_allclose(bench.really_m(), [0.2, 0.1], atol=1e-5)


@pytest.mark.parametrize(
    ("wire", "kind", "changes"),
    [
        ("pty", "duplicate-reply", {"count": 30}),
        ("pty", "garbage", {"count": 1, "after": 1}),
        ("socket", "garbage", {"count": 2, "after": 3}),
        ("pty", "garbage", {"count": 1, "after": 2}),
        ("socket", "late-reply", {"seconds": 0.2, "count": 3}),
        ("pty", "stall", {"seconds": 0.5, "after": 4}),
    ],
)
def test_faults_of_the_line_are_survived(bench: Bench, wire: str, kind: str, changes: dict):
    stage = bench.stage(wire)
    stage.make_ready()
    bench.faults.add(kind, **changes)
    for target_m in ([0.2, 0.1], [0.05, 0.15], [0.2, 0.1]):
        stage.move_to(np.array(target_m))
        np.testing.assert_allclose(bench.really_m(), target_m, atol=1e-5)


@pytest.mark.parametrize("wire", ["pty", "socket"])
@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("brown-out", {"after": 5}, "restarted by itself|locked by an alarm"),
        ("limit-hit", {"value": 0.2}, "ALARM:1"),
        ("disconnect", {"after": 6}, "its controller is gone"),
        ("stall", {"seconds": 2.0, "after": 5}, "does not answer"),
    ],
)
def test_faults_that_end_a_move(bench: Bench, wire: str, kind: str, changes: dict, words: str):
    stage = bench.stage(wire)
    stage.make_ready()
    bench.faults.add(kind, **changes)
    with pytest.raises(StageFault, match=words):
        stage.move_to(np.array([0.3, 0.1]))
    bench.faults.clear()
    bench.clock.wait_until(bench.clock.now_s() + 2.0)
    assert not bench.port.moving
    if kind == "disconnect":
        stage = bench.stage(wire)  # a terminal comes back under another name
    if kind != "stall":
        assert not stage.homed
        stage.make_ready()
        np.testing.assert_allclose(bench.really_m(), [0.1, 0.1], atol=1e-5)


def test_steps_that_are_lost_are_found_by_homing_alone(bench: Bench):
    stage = bench.stage("socket")
    stage.make_ready()
    bench.faults.add("lost-steps", value=0.002)
    stage.move_to(np.array([0.3, 0.1]))  # an open loop sees nothing
    assert bench.really_m()[0] == pytest.approx(0.298, abs=1e-4)
    stage.home()
    stage.move_to(np.array([0.3, 0.1]))
    np.testing.assert_allclose(bench.really_m(), [0.3, 0.1], atol=1e-5)


@pytest.mark.parametrize("wire", ["pty", "socket"])
def test_a_second_connection_still_knows_the_position(bench: Bench, wire: str):
    first = bench.stage(wire)
    first.make_ready()
    first.close()
    second = bench.stage(wire)
    second.connect()
    assert second.homed
    np.testing.assert_allclose(second.position_m, [0.1, 0.1], atol=1e-5)


def test_a_port_that_resets_its_board(bench: Bench):
    first = bench.stage("socket")
    first.make_ready()
    first.close()
    with bench.timebase.lock:
        bench.firmware.reset(bench.clock.now_s())
    second = bench.stage("socket")
    second.connect()
    assert not second.homed
    second.make_ready()


def test_the_watchdogs_way_to_stop(bench: Bench):
    stage = bench.stage("socket")
    stage.make_ready()
    transport = stage.transport
    assert transport is not None
    assert transport.fileno() >= 0
    assert stage.hold_command == b"!\x85"
