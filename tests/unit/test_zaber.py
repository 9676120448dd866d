"""The Zaber driver: the real library over a tiny ASCII controller that moves with the run's clock."""

import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from drivers.transport import TransportClosed, TransportTimeout
from drivers.zaber import ACCELERATION_UNIT, SPEED_UNIT, ZaberStage
from sim_backend.clock import VirtualClock
from testbed.core.bench import StageSpec
from testbed.core.devices import Stage
from testbed.core.errors import ConfigError, LimitError, StageFault
from testbed.core.motion import travel_time_s
from testbed.engine.checks import check_stage

pytest.importorskip("zaber_motion")

MICROSTEP_M = 0.5e-6
REGION_M = ((0.0, 0.3), (0.0, 0.2))
SPEC = {"speed_m_s": 0.1, "acceleration_m_s2": 0.5, "settle_s": 0.2, "power_w": 6.0}


class Axis:
    def __init__(self) -> None:
        self.at = 12_345
        self.homed = False
        self.interrupted = False
        self.fault: str | None = None
        self.target = self.at
        self.start = self.at
        self.from_s = self.until_s = 0.0

    def position(self, now_s: float) -> int:
        if now_s >= self.until_s:
            return self.target
        share = (now_s - self.from_s) / (self.until_s - self.from_s)
        return round(self.start + share * (self.target - self.start))

    def go(self, target: int, seconds: float, now_s: float) -> None:
        self.start, self.target = self.position(now_s), target
        self.from_s, self.until_s = now_s, now_s + seconds
        self.interrupted = False

    def stop(self, now_s: float) -> None:
        if now_s < self.until_s:
            self.target, self.until_s, self.interrupted = self.position(now_s), now_s, True

    def flags(self) -> list[str]:
        flags = [] if self.homed else ["WR"]
        if self.interrupted:
            flags.append("NI")
        return flags if self.fault is None else [self.fault, *flags]


class Controller:
    """Two axes behind a transport."""

    description = "serial /dev/ttyZABER"

    def __init__(self, firmware: str = "7.31") -> None:
        self.clock = Clock()
        self.axes = {1: Axis(), 2: Axis()}
        self.firmware = firmware
        self.limit = 700_000
        self.moves: list[list[str]] = []
        self.heard: list[str] = []
        self.deaf = self.gone = False
        self.num_opened = 0
        self._said = bytearray()
        self._changed = threading.Condition()

    def serial(self, url: str, *, baud: int) -> "Controller":
        assert (url, baud) == ("/dev/ttyZABER", 115_200)
        self.num_opened += 1
        return self

    def tcp(self, host: str, port: int, *, connect_timeout_s: float) -> "Controller":
        raise AssertionError("a stage needs no TCP")

    def send(self, *parts: bytes) -> None:
        with self._changed:
            if self.gone:
                raise TransportClosed("pulled out", remedy="plug it in")
            for line in b"".join(bytes(part) for part in parts).decode().splitlines():
                self.heard.append(line)
                if not self.deaf:
                    self._obey(line)
            self._changed.notify_all()

    def receive(self, most: int, *, timeout_s: float) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._said or self.gone or not self.num_opened, timeout_s)
            if self.gone or not self.num_opened:
                raise TransportClosed("pulled out", remedy="plug it in")
            if not self._said:
                raise TransportTimeout("nothing came")
            data = bytes(self._said[:most])
            del self._said[:most]
            return data

    def receive_into(self, view: memoryview, *, timeout_s: float) -> int:
        raise AssertionError("messages are not received into buffers")

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        with self._changed:
            self.num_opened = 0
            self._changed.notify_all()

    def vanish(self) -> None:
        with self._changed:
            self.gone = True
            self._changed.notify_all()

    def _obey(self, line: str) -> None:
        words = line.partition(":")[0].removeprefix("/").split()
        device, axis = (int(words.pop(0)) if words and words[0].isdigit() else 0 for _ in range(2))
        number = f"{words.pop(0)} " if words and words[0].isdigit() else ""
        now_s = self.clock.now_s()
        chosen = [self.axes[axis]] if axis in self.axes else list(self.axes.values())
        data, verdict = "0", "OK"
        match words:
            case ["get", "version"]:
                data = self.firmware
            case ["get", "limit.min"]:
                data = "0"
            case ["get", "limit.max"]:
                data = str(self.limit)
            case ["get", "pos"]:
                data = str(chosen[0].position(now_s))
            case ["warnings"] | ["warnings", "clear"]:
                flags = chosen[0].flags()
                data = " ".join([f"{len(flags):02d}", *flags])
                if words[1:]:
                    chosen[0].interrupted = False
            case ["stop"]:
                for each in chosen:
                    each.stop(now_s)
            case ["home"]:
                chosen[0].go(0, 2.0, now_s)
                chosen[0].homed = True
            case ["move", "abs", target, speed, acceleration]:
                self.moves.append([str(axis), target, speed, acceleration])
                if chosen[0].fault is None:
                    way = abs(int(target) - chosen[0].position(now_s))
                    steps_s = float(speed) / SPEED_UNIT
                    chosen[0].go(
                        int(target), travel_time_s(way, steps_s, float(acceleration) / ACCELERATION_UNIT), now_s
                    )
            case []:
                pass
            case _:
                verdict, data = "RJ", "BADCOMMAND"
        busy = any(now_s < each.until_s for each in chosen)
        flags = [flag for each in chosen for flag in each.flags()]
        state = "BUSY" if busy else "IDLE"
        answer = f"@{device or 1:02d} {axis} {number}{verdict} {state} {flags[0] if flags else '--'} {data}\r\n"
        self._said += answer.encode()


class Clock(VirtualClock):
    """Does something at a time."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.events: list[tuple[float, Callable[[], object]]] = []

    def wait_until(self, at_s: float) -> None:
        for event in sorted(self.events, key=lambda event: event[0]):
            if event[0] <= at_s:
                self.events.remove(event)
                super().wait_until(event[0])
                event[1]()
        super().wait_until(at_s)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        self.events.append((self.now_s() + seconds, action))


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.close()


def stage_on(controller: Controller, *, microstep_m: float | None = MICROSTEP_M, **changes) -> ZaberStage:
    device = {"driver": "zaber", "port": "/dev/ttyZABER", **changes.pop("device", {})}
    spec = StageSpec(**{**SPEC, "device": device, **changes})
    return ZaberStage(
        spec, region_m=REGION_M, home_m=(0.1, 0.1), clock=controller.clock, microstep_m=microstep_m, wire=controller
    )


def ready_stage(controller: Controller, **changes) -> ZaberStage:
    stage = stage_on(controller, **changes)
    stage.make_ready()
    controller.moves.clear()
    return stage


def really_m(controller: Controller) -> np.ndarray:
    return np.array([axis.position(controller.clock.now_s()) for axis in controller.axes.values()]) * MICROSTEP_M


def test_it_is_a_stage(controller):
    stage = ready_stage(controller)
    assert isinstance(stage, Stage)
    np.testing.assert_allclose(really_m(controller), [0.1, 0.1], atol=1e-6)
    check_stage(stage, np.array([0.25, 0.15]), np.array([0.31, 0.1]))
    assert controller.num_opened == 0


def test_both_axes_arrive_together(controller):
    stage = ready_stage(controller)
    before_s = controller.clock.now_s()
    spent = stage.move_to(np.array([0.16, 0.02]))
    np.testing.assert_allclose(really_m(controller), [0.16, 0.02], atol=1e-6)
    (first, second) = controller.moves
    assert [first[:2], second[:2]] == [["1", "320000"], ["2", "40000"]]
    # 0.06 and 0.08 of a way of 0.1 m at 0.1 m/s
    assert float(first[2]) == pytest.approx(0.06 / MICROSTEP_M * 1.6384, rel=1e-3)
    assert float(second[2]) == pytest.approx(0.08 / MICROSTEP_M * 1.6384, rel=1e-3)
    assert float(second[3]) == pytest.approx(0.4 / MICROSTEP_M * 1.6384e-4, rel=0.02)
    assert spent.seconds == pytest.approx(0.1 / 0.1 + 0.2 + 0.2, abs=0.06)
    assert spent.seconds == pytest.approx(controller.clock.now_s() - before_s)
    assert spent.travel_m == pytest.approx(0.1, abs=1e-5)
    assert spent.joules == pytest.approx(6.0 * (spent.seconds - 0.2), abs=0.01)
    stage.close()


def test_a_rail_moves_one_axis(controller):
    stage = stage_on(controller, device={"axes": "y"}, travel_m=((0.0, 0.3), (0.0, 0.0)), origin_m=(0.0, 0.1))
    stage.make_ready()
    stage.move_to(np.array([0.2, 0.0]))
    assert {move[0] for move in controller.moves} == {"2"}
    with pytest.raises(LimitError, match="axis 1"):
        stage.move_to(np.array([0.2, 0.1]))
    stage.close()


def test_the_play_of_the_screws(controller):
    stage = ready_stage(controller, device={"backlash_m": 0.002})
    stage.move_to(np.array([0.05, 0.1]))
    assert [move[:2] for move in controller.moves] == [["1", "96000"], ["1", "100000"]]
    stage.close()


@pytest.mark.parametrize("target", [(0.31, 0.1), (np.nan, 0.1), (0.1,)])
def test_beyond_an_end_stop_nothing_moves(controller, target):
    stage = ready_stage(controller)
    with pytest.raises(LimitError):
        stage.move_to(np.array(target))
    assert not controller.moves
    stage.close()


def test_unhomed_it_does_not_move(controller):
    stage = stage_on(controller, device={"home": False})
    with pytest.raises(StageFault, match="not known"):
        stage.make_ready()
    with pytest.raises(StageFault, match="not known"):
        stage.move_to(np.array([0.1, 0.1]))
    assert not controller.moves
    stage.home()
    assert stage.homed
    stage.close()


def test_the_next_connection_still_knows_the_position(controller):
    ready_stage(controller).close()
    stage = stage_on(controller)
    stage.connect()
    stage.connect()
    np.testing.assert_allclose(stage.position_m, [0.1, 0.1], atol=1e-6)
    controller.axes[1].homed = False
    with pytest.raises(StageFault, match="not known"):
        stage.move_to(np.array([0.2, 0.1]))
    stage.close()


def test_a_move_that_is_stopped_stands_and_says_so(controller):
    stage = ready_stage(controller)
    controller.clock.after(0.8, stage.stop)
    with pytest.raises(StageFault, match="was stopped on its way"):
        stage.move_to(np.array([0.25, 0.1]))
    assert really_m(controller)[0] < 0.2
    stage.stop()
    stage.move_to(np.array([0.25, 0.1]))
    np.testing.assert_allclose(really_m(controller), [0.25, 0.1], atol=1e-6)
    stage.close()


def test_a_stop_by_somebody_else(controller):
    stage = ready_stage(controller)
    controller.clock.after(0.8, lambda: controller.send(stage.hold_command))
    with pytest.raises(StageFault, match="movement was interrupted"):
        stage.move_to(np.array([0.25, 0.1]))
    assert len(controller.moves) == 1
    stage.close()


def test_a_stall(controller):
    stage = ready_stage(controller)
    controller.axes[1].fault = "FS"
    with pytest.raises(StageFault, match=r"^stage: Movement may have failed.*Stalled and Stopped \(FS\)"):
        stage.move_to(np.array([0.25, 0.1]))
    stage.close()


def test_a_disconnection_in_the_middle_of_a_move(controller):
    stage = ready_stage(controller)
    controller.clock.after(0.5, controller.vanish)
    with pytest.raises(StageFault, match="is gone.*pulled out"):
        stage.move_to(np.array([0.25, 0.1]))
    with pytest.raises(StageFault, match="not connected"):
        stage.move_to(np.array([0.25, 0.1]))
    stage.close()


def test_nobody_answers(controller):
    controller.deaf = True
    with pytest.raises(StageFault, match="no Zaber controller answers"):
        stage_on(controller).connect()
    assert controller.num_opened == 0


def test_an_old_firmware():
    controller = Controller("6.28")
    with pytest.raises(StageFault, match="firmware 6.28 is too old"):
        stage_on(controller).connect()
    assert controller.num_opened == 0


def test_end_stops_beyond_the_controllers_limits(controller):
    controller.limit = 500_000
    with pytest.raises(
        ConfigError, match="end stops are 0.0000 m to 0.3000 m on axis x, the controller allows 0.0000 m"
    ):
        stage_on(controller).connect()


def test_the_microstep_is_needed(controller):
    with pytest.raises(ConfigError, match="microstep"):
        stage_on(controller, microstep_m=None)


def test_without_the_library(controller, monkeypatch):
    monkeypatch.setitem(sys.modules, "zaber_motion", None)
    with pytest.raises(ConfigError, match=r"not installed\s.*pip install"):
        stage_on(controller).connect()
    assert controller.num_opened == 0
