"""The GRBL driver over the emulated firmware: stopping, and everything that goes wrong on the way."""

import numpy as np
import pytest

from drivers.grbl import GrblStage
from drivers.grbl_line import GrblLine
from drivers.transport import TransportTimeout
from drivers.wire import RecordingWire, ReplayWire
from sim_backend.clock import VirtualClock
from sim_backend.emulators.grbl_carriage import Machine
from testbed.core.bench import StageSpec
from testbed.core.errors import LimitError, StageFault
from tests.grbl_wire import REGION_M, SPEC, TRAVEL_M, Firmware, jogs, ready_stage, really_m, stage_on

# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_move_that_is_stopped_stands_and_says_so():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.clock.after(0.8, stage.stop)
    with pytest.raises(StageFault, match="was stopped on its way"):
        stage.move_to(np.array([0.25, 0.1]))
    firmware.clock.wait_until(firmware.clock.now_s() + 1.0)
    stopped_m = really_m(firmware)
    assert 0.15 < stopped_m[0] < 0.2
    assert not firmware.grbl.moving
    stage.move_to(np.array([0.25, 0.1]))
    np.testing.assert_allclose(really_m(firmware), [0.25, 0.1], atol=1e-5)
    stage.close()


def test_a_stop_before_a_move_hinders_nothing():
    firmware = Firmware()
    stage = ready_stage(firmware)
    stage.stop()
    stage.stop()
    stage.move_to(np.array([0.2, 0.1]))
    np.testing.assert_allclose(really_m(firmware), [0.2, 0.1], atol=1e-5)
    stage.close()


def test_homing_can_be_stopped():
    firmware = Firmware()
    stage = stage_on(firmware)
    stage.connect()
    firmware.clock.after(1.0, stage.stop)
    with pytest.raises(StageFault, match="was stopped on its way"):
        stage.home()
    firmware.clock.wait_until(firmware.clock.now_s() + 1.0)
    assert not firmware.grbl.moving
    assert not stage.homed
    stage.home()
    assert stage.homed
    stage.close()


def test_a_hold_by_somebody_else_is_not_lifted():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.clock.after(0.5, lambda: firmware.say(firmware.grbl.feed(stage.hold_command, firmware.clock.now_s())))
    with pytest.raises(StageFault, match="stopped at"):
        stage.move_to(np.array([0.25, 0.1]))
    assert len(jogs(firmware)) == 1
    stage.move_to(np.array([0.25, 0.1]))
    firmware.grbl.feed(b"!", firmware.clock.now_s())
    with pytest.raises(StageFault, match="is held: somebody pressed hold or stop"):
        stage.move_to(np.array([0.2, 0.1]))
    stage.close()


def test_an_interrupted_move_stands_still():
    firmware = Firmware()
    stage = ready_stage(firmware)

    def interrupt() -> None:
        raise KeyboardInterrupt

    firmware.clock.after(0.5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        stage.move_to(np.array([0.25, 0.1]))
    firmware.clock.wait_until(firmware.clock.now_s() + 1.0)
    assert not firmware.grbl.moving
    assert really_m(firmware)[0] < 0.2
    stage.close()


def test_an_emergency_reset_loses_the_position():
    firmware = Firmware()
    stage = ready_stage(firmware)
    stage.emergency_reset()
    assert not stage.homed
    assert stage.make_ready().seconds > 1.0
    stage.close()


def test_closing_in_the_middle_of_a_move_ends_it():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.clock.after(0.5, stage.close)
    with pytest.raises(StageFault):
        stage.move_to(np.array([0.25, 0.1]))
    firmware.clock.wait_until(firmware.clock.now_s() + 1.0)
    assert not firmware.grbl.moving
    assert really_m(firmware)[0] < 0.2
    assert firmware.num_opened == 0


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_brown_out_in_the_middle_of_a_move():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.clock.after(0.5, lambda: firmware.say(firmware.grbl.reset(firmware.clock.now_s())))
    with pytest.raises(StageFault, match="restarted by itself; the stage's position is lost"):
        stage.move_to(np.array([0.25, 0.1]))
    with pytest.raises(StageFault, match="not known"):
        stage.move_to(np.array([0.25, 0.1]))
    stage.home()
    stage.move_to(np.array([0.25, 0.1]))
    np.testing.assert_allclose(really_m(firmware), [0.25, 0.1], atol=1e-5)
    stage.close()


def test_a_brown_out_between_two_moves():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.say(firmware.grbl.reset(firmware.clock.now_s()))
    with pytest.raises(StageFault, match="restarted by itself"):
        stage.move_to(np.array([0.25, 0.1]))
    assert not stage.homed
    stage.close()


def test_a_limit_switch_in_the_middle_of_a_move():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.clock.after(0.5, lambda: firmware.say(firmware.grbl.hit_limit(firmware.clock.now_s())))
    with pytest.raises(StageFault, match="ALARM:1, a limit switch was hit"):
        stage.move_to(np.array([0.25, 0.1]))
    assert not stage.homed
    stage.home()
    np.testing.assert_allclose(really_m(firmware), [0.3, 0.2], atol=1e-5)
    stage.close()


def test_homing_that_finds_no_switch():
    firmware = Firmware(machine=Machine(travel_m=TRAVEL_M, switches=(False, True, True)))
    stage = stage_on(firmware)
    with pytest.raises(StageFault, match="ALARM:9, homing did not find the limit switch"):
        stage.make_ready()
    assert not stage.homed
    assert not firmware.grbl.moving
    stage.close()


def test_a_homing_that_never_ends_is_reset():
    firmware = Firmware()
    stage = stage_on(firmware)
    stage.connect()
    firmware.hears = lambda data: data.replace(b"$H\n", b"G4P5000\n")  # stands for a cycle that hangs
    firmware.grbl.feed(b"$X\n", firmware.clock.now_s())
    with pytest.raises(StageFault, match="did not end its homing in time and was reset"):
        stage.home()
    firmware.hears = bytes
    stage.home()
    stage.close()


def test_a_disconnection_in_the_middle_of_a_move():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.clock.after(0.5, lambda: setattr(firmware, "gone", True))
    with pytest.raises(StageFault, match="its controller is gone"):
        stage.move_to(np.array([0.25, 0.1]))
    with pytest.raises(StageFault, match="not connected"):
        stage.move_to(np.array([0.25, 0.1]))
    stage.stop()
    stage.close()
    firmware.gone = False
    firmware.clock.wait_until(firmware.clock.now_s() + 5.0)
    stage.connect()
    stage.move_to(np.array([0.2, 0.1]))
    stage.close()


def test_the_controllers_own_limit_refuses():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.grbl.eeprom.settings[130] = 150.0
    with pytest.raises(LimitError, match="error:15, the target is beyond the controller's travel"):
        stage.move_to(np.array([0.05, 0.1]))
    np.testing.assert_allclose(really_m(firmware), [0.1, 0.1], atol=1e-5)
    stage.close()


@pytest.mark.parametrize("kind", ["double", "garbage", "nan", "crlf"])
def test_a_dirty_line_is_survived(kind):
    firmware = Firmware()
    stage = ready_stage(firmware)
    mangle = {
        "double": lambda data: data + data,
        "garbage": lambda data: b"\xff\xfe<Idl\r\n" + data if data else b"",
        "nan": lambda data: b"<Idle|MPos:nan,0.000,0.000|FS:0,0>\r\n" + data if data else b"",
        "crlf": lambda data: data.replace(b"\r\n", b"\n"),
    }[kind]
    firmware.mangle = mangle
    for target in ([0.2, 0.1], [0.05, 0.15], [0.2, 0.1]):
        stage.move_to(np.array(target))
        np.testing.assert_allclose(really_m(firmware), target, atol=1e-5)
    firmware.grbl.eeprom.settings[130] = 150.0
    with pytest.raises(LimitError, match="error:15"):
        stage.move_to(np.array([0.05, 0.1]))
    stage.close()


def test_a_jog_that_was_lost_is_given_again():
    firmware = Firmware()
    stage = ready_stage(firmware)
    lost = iter([True])

    def hears(data: bytes) -> bytes:
        return b"" if b"$J" in data and next(lost, False) else data

    firmware.hears = hears
    stage.move_to(np.array([0.2, 0.1]))
    np.testing.assert_allclose(really_m(firmware), [0.2, 0.1], atol=1e-5)
    stage.close()


def test_a_late_answer_is_not_the_answer_to_the_next_line():
    firmware = Firmware()
    stage = stage_on(firmware)
    stage.connect()
    line = GrblLine(firmware)
    held = bytearray()

    def hold(data: bytes) -> bytes:
        held.extend(data)
        return b""

    firmware.mangle = hold
    with pytest.raises(TransportTimeout, match="did not answer"):
        line.ask("$J=G53G90X-1000F600")
    assert held.count(b"[GC:") == held.count(b"error:") == 2  # asked twice
    firmware.mangle = bytes
    firmware.said += held
    assert line.ask("$I")[0].startswith("[VER:1.1")
    stage.close()


def test_a_silent_controller():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.mangle = lambda data: b""
    with pytest.raises(StageFault, match="does not answer a status query"):
        stage.move_to(np.array([0.2, 0.1]))
    stage.close()
    with pytest.raises(StageFault, match="no GRBL controller answers"):
        stage.connect()


def test_a_recorded_session_plays_back_without_the_controller(tmp_path):
    def session(wire, clock) -> np.ndarray:
        spec = StageSpec(**SPEC, device={"port": "/dev/ttyTEST"})
        stage = GrblStage(spec, region_m=REGION_M, home_m=(0.1, 0.1), clock=clock, wire=wire)
        stage.make_ready()
        stage.move_to(np.array([0.2, 0.05]))
        position_m = stage.position_m
        stage.close()
        return position_m

    firmware = Firmware()
    first_m = session(RecordingWire(tmp_path, firmware), firmware.clock)
    again_m = session(ReplayWire(tmp_path), VirtualClock(1.0))
    np.testing.assert_array_equal(again_m, first_m)


# --- the line -------------------------------------------------------------------------------------------------------


def test_reports_of_work_coordinates():
    firmware = Firmware()
    stage = ready_stage(firmware)
    firmware.grbl.feed(b"$10=0\nG92X5\n", firmware.clock.now_s())
    stage.move_to(np.array([0.2, 0.1]))
    np.testing.assert_allclose(stage.position_m, [0.2, 0.1], atol=1e-5)
    np.testing.assert_allclose(really_m(firmware), [0.2, 0.1], atol=1e-5)
    stage.close()


@pytest.mark.parametrize(
    "text",
    [
        "<Idle|FS:0,0>",
        "<Idle|MPos:1.0,2.0|FS:0,0>",
        "<Idle|MPos:1,2,3",
        "<idle|MPos:1,2,3>",
        "<Idle|MPos:1,inf,3>",
        "ok",
    ],
)
def test_what_is_no_report(text):
    firmware = Firmware()
    firmware.mangle = lambda data: f"{text}\r\n".encode()
    with pytest.raises(StageFault, match="does not answer"):
        GrblLine(firmware).status()
