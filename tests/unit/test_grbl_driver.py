"""The GRBL driver over the emulated firmware: what it does when nothing goes wrong."""

import re

import numpy as np
import pytest

from drivers.grbl import GrblStage
from sim_backend.emulators.grbl_settings import Eeprom
from testbed.core.bench import StageSpec
from testbed.core.devices import Stage
from testbed.core.errors import ConfigError, LimitError, StageFault
from testbed.core.motion import travel_time_s
from testbed.engine.checks import check_stage
from tests.grbl_wire import SPEC, Firmware, jogs, ready_stage, really_m, stage_on

# --- the contract of a stage ----------------------------------------------------------------------------------------


def test_it_is_a_stage():
    firmware = Firmware()
    stage = ready_stage(firmware)
    assert isinstance(stage, Stage)
    assert firmware.num_opened == 1
    check_stage(stage, np.array([0.25, 0.15]), np.array([0.31, 0.1]))
    assert firmware.num_opened == 0
    assert firmware.grbl.state == "Idle"


def test_it_goes_where_it_was_sent():
    firmware = Firmware()
    stage = ready_stage(firmware)
    np.testing.assert_allclose(really_m(firmware), [0.1, 0.1], atol=1e-5)
    target_m = np.array([0.222, 0.033])
    expected_s, before_s = stage.duration_s(target_m), firmware.clock.now_s()
    spent = stage.move_to(target_m)
    np.testing.assert_allclose(really_m(firmware), target_m, atol=1e-5)
    np.testing.assert_allclose(stage.position_m, target_m, atol=1e-5)
    assert spent.seconds == pytest.approx(expected_s, abs=0.03)
    assert spent.seconds == pytest.approx(firmware.clock.now_s() - before_s)
    assert spent.joules == pytest.approx(6.0 * (spent.seconds - 0.2), abs=0.01)
    assert spent.travel_m == pytest.approx(np.hypot(0.122, 0.067), abs=1e-5)
    assert jogs(firmware) == ["$J=G53G90G21X-79.0000Y-168.0000F6000.00"]
    stage.close()


def test_the_homed_position_is_the_upper_end_stop():
    firmware = Firmware()
    stage = stage_on(firmware)
    stage.connect()
    assert not stage.homed
    stage.home()
    np.testing.assert_allclose(stage.position_m, [0.3, 0.2], atol=1e-5)
    np.testing.assert_allclose(really_m(firmware), [0.3, 0.2], atol=1e-5)
    stage.close()


@pytest.mark.parametrize(
    ("axes", "axis"), [("x", 0), ("y", 1), ("yx", 1)]
)  # fmt: skip
def test_axes_of_the_stage_are_axes_of_the_controller(axes, axis):
    firmware = Firmware()
    region_m = ((0.0, 0.1), (0.0, 0.1))
    spec = StageSpec(**SPEC, device={"port": "/dev/ttyTEST", "axes": axes})
    home_m = (0.05, 0.0)
    stage = GrblStage(spec, region_m=region_m, home_m=home_m, clock=firmware.clock, wire=firmware)
    stage.make_ready()
    stage.move_to(np.array([0.02, 0.0]))
    machine_m = firmware.grbl.machine_m(firmware.clock.now_s())
    assert machine_m[axis] == pytest.approx(-0.001 - 0.1 + 0.02, abs=1e-5)
    if len(axes) == 1:
        with pytest.raises(LimitError, match="axis 1"):
            stage.move_to(np.array([0.02, 0.05]))
    stage.close()


def test_a_given_machine_zero_is_used():
    firmware = Firmware()
    stage = ready_stage(firmware, device={"machine_zero_m": (-0.31, -0.205)})
    np.testing.assert_allclose(firmware.grbl.machine_m(firmware.clock.now_s())[:2], [-0.21, -0.105], atol=1e-5)
    stage.close()


@pytest.mark.parametrize("target", [(0.31, 0.1), (0.1, -0.01), (np.nan, 0.1), (np.inf, 0.1), (0.1,), (0.1, 0.1, 0.0)])
def test_beyond_an_end_stop_nothing_moves(target):
    firmware = Firmware()
    stage = ready_stage(firmware)
    with pytest.raises(LimitError):
        stage.move_to(np.array(target))
    assert not firmware.sent
    stage.close()


def test_staying_sends_no_jog():
    firmware = Firmware()
    stage = ready_stage(firmware)
    assert stage.move_to(np.array([0.1, 0.1])).seconds == 0.0
    assert jogs(firmware) == []
    stage.close()


def test_a_home_beyond_the_end_stops_is_refused_before_anything_is_opened():
    firmware = Firmware()
    with pytest.raises(ConfigError, match="home is beyond"):
        stage_on(firmware, home_m=(0.5, 0.1))
    with pytest.raises(ConfigError, match="port is not given"):
        stage_on(firmware, device={"port": None})
    assert firmware.num_opened == 0


# --- is the position known? -----------------------------------------------------------------------------------------


def test_unhomed_it_does_not_move():
    firmware = Firmware()
    stage = stage_on(firmware)
    with pytest.raises(StageFault, match="not connected"):
        stage.move_to(np.array([0.1, 0.1]))
    stage.connect()
    for question in (
        lambda: stage.move_to(np.array([0.1, 0.1])),
        lambda: stage.duration_s(np.array([0.1, 0.1])),
        lambda: stage.position_m,
    ):
        with pytest.raises(StageFault, match="not known"):
            question()
    assert jogs(firmware) == []
    stage.close()


def test_the_next_connection_still_knows_the_position():
    firmware = Firmware()
    ready_stage(firmware).close()
    stage = stage_on(firmware)
    stage.connect()
    stage.connect()
    assert stage.homed
    np.testing.assert_allclose(stage.position_m, [0.1, 0.1], atol=1e-5)
    assert b"$H" not in firmware.sent
    stage.close()


@pytest.mark.parametrize("what", ["power", "reset", "unlocked"])
def test_after_a_restart_it_has_to_be_homed(what):
    firmware = Firmware()
    ready_stage(firmware).close()
    if what == "reset":
        firmware.grbl.feed(b"\x18", firmware.clock.now_s())
    else:
        firmware.grbl.reset(firmware.clock.now_s())
        if what == "unlocked":
            firmware.grbl.feed(b"$X\n", firmware.clock.now_s())
    stage = stage_on(firmware)
    stage.connect()
    assert not stage.homed
    stage.home()
    np.testing.assert_allclose(really_m(firmware), [0.3, 0.2], atol=1e-5)
    stage.close()


def test_where_homing_is_forbidden_make_ready_refuses():
    firmware = Firmware()
    stage = stage_on(firmware, device={"home": False})
    with pytest.raises(StageFault, match="not known"):
        stage.make_ready()
    assert b"$H" not in firmware.sent
    stage.close()


def test_a_position_that_the_operator_vouches_for():
    firmware = Firmware(Eeprom())  # the stock board: no homing, boots idle at 0
    for axis in range(3):
        firmware.grbl.eeprom.settings |= {110 + axis: 6000.0, 120 + axis: 500.0}
    stage = stage_on(firmware, device={"home": False})
    stage.connect()
    with pytest.raises(StageFault, match="not known"):
        stage.move_to(np.array([0.1, 0.1]))
    with pytest.raises(LimitError):
        stage.assume_position(np.array([0.4, 0.1]))
    stage.assume_position(np.array([0.12, 0.1]))
    before_m = firmware.grbl.machine_m(firmware.clock.now_s())
    stage.move_to(np.array([0.1, 0.13]))
    np.testing.assert_allclose(
        firmware.grbl.machine_m(firmware.clock.now_s()) - before_m, [-0.02, 0.03, 0.0], atol=1e-5
    )
    with pytest.raises(StageFault, match="homing is off"):
        stage.home()
    stage.close()


# --- what it finds when it opens the port ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({22: 0, 20: 0}, r"homing is switched off on the controller \(\$22=0\)"),
        ({20: 0}, r"soft limits are switched off on the controller \(\$20=0\)"),
        ({13: 1}, "reports inches"),
        ({110: 3000.0}, r"axis X runs at most 0.0500 m/s \(\$110=3000\), the bench file says 0.1 m/s"),
        ({121: 2000.0}, r"axis Y accelerates with 2 m/s\^2"),
        ({130: 250.0}, r"end stops are machine X -0.3010 m to -0.0010 m, the controller allows -0.2500 m to 0"),
        ({23: 1}, "axis X homes towards its lower end"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    firmware = Firmware()
    firmware.grbl.eeprom.settings |= settings
    stage = stage_on(firmware)
    with pytest.raises(ConfigError, match=words) as caught:
        stage.connect()
    assert "remedy:" in str(caught.value)
    assert firmware.num_opened == 0


def test_settings_worth_a_word():
    firmware = Firmware()
    firmware.grbl.eeprom.settings |= {21: 0, 121: 300.0}
    stage = ready_stage(firmware)
    assert [re.search(r"\(\$21=0\)|\$1\b|axis Y", warning)[0] for warning in stage.warnings] == [
        "($21=0)", "$1", "axis Y"
    ]  # fmt: skip
    target_m = np.array([0.1, 0.18])
    assert stage.move_to(target_m).seconds == pytest.approx(0.08 / 0.1 + 0.1 / 0.3 + 0.2, abs=0.03)
    stage.close()


def test_nothing_is_written_to_the_settings_memory():
    firmware = Firmware()
    stage = stage_on(firmware)
    stage.make_ready()
    stage.close()
    assert not re.search(rb"\$\d+=|\$N\d|\$RST|G10|G28\.1|G30\.1", bytes(firmware.sent))


def test_another_device_on_the_port():
    firmware = Firmware()
    firmware.mangle = lambda data: b"echo:Unknown command\n" if data else b""
    with pytest.raises(StageFault, match='no GRBL controller answers at 115200 baud.*"echo:Unknown command"'):
        stage_on(firmware).connect()
    assert firmware.num_opened == 0


def test_another_firmware():
    firmware = Firmware()
    firmware.mangle = lambda data: data.replace(b"[VER:1.1h", b"[VER:0.9j")
    with pytest.raises(StageFault, match="not a GRBL 1.1 controller"):
        stage_on(firmware).connect()


@pytest.mark.parametrize("line", [b"$J=G91X-50F600\n", b"G91G1X-50F600\n"])
def test_a_motion_left_behind_is_ended_first(line):
    firmware = Firmware()
    ready_stage(firmware).close()
    firmware.grbl.feed(line, firmware.clock.now_s())
    firmware.clock.wait_until(firmware.clock.now_s() + 0.5)
    assert firmware.grbl.moving
    stage = stage_on(firmware)
    stage.connect()
    assert firmware.grbl.state == "Idle"
    assert not firmware.grbl.moving
    assert stage.homed == line.startswith(b"$J")  # ending a program takes a reset
    stage.make_ready()
    stage.close()


def test_half_a_line_left_behind_is_not_carried_out():
    firmware = Firmware()
    ready_stage(firmware).close()
    firmware.grbl.feed(b"$J=G91X5F600", firmware.clock.now_s())
    starts = firmware.grbl.starts
    stage = stage_on(firmware)
    stage.connect()
    assert stage.homed
    assert firmware.grbl.starts == starts
    np.testing.assert_allclose(really_m(firmware), [0.1, 0.1], atol=1e-5)
    stage.close()


@pytest.mark.parametrize("left", [b"!", b"$C\n", b"$SLP\n", b"\x84"], ids=["hold", "check", "sleep", "door"])
def test_a_state_left_behind_is_cleared_by_a_reset(left):
    firmware = Firmware()
    ready_stage(firmware).close()
    firmware.grbl.feed(left, firmware.clock.now_s())
    firmware.clock.wait_until(firmware.clock.now_s() + 1.0)
    assert firmware.grbl.state != "Idle"
    firmware.said.clear()
    stage = stage_on(firmware)
    stage.connect()
    assert not stage.homed
    stage.make_ready()
    np.testing.assert_allclose(really_m(firmware), [0.1, 0.1], atol=1e-5)
    stage.close()


def test_a_controller_that_waits_for_a_reset_gets_it():
    firmware = Firmware()
    ready_stage(firmware).close()
    firmware.grbl.hit_limit(firmware.clock.now_s())
    firmware.clock.wait_until(firmware.clock.now_s() + 3.0)
    firmware.said.clear()
    stage = stage_on(firmware)
    stage.connect()
    assert not stage.homed
    stage.make_ready()
    np.testing.assert_allclose(really_m(firmware), [0.1, 0.1], atol=1e-5)
    stage.close()


# --- play of the screws ---------------------------------------------------------------------------------------------


def test_targets_are_approached_from_below():
    firmware = Firmware()
    stage = ready_stage(firmware, device={"backlash_m": 0.002})
    target_m = np.array([0.05, 0.15])
    expected_s = stage.duration_s(target_m)
    spent = stage.move_to(target_m)
    # down on X to 2 mm below, up on Y at once, then up on X
    assert jogs(firmware) == [
        "$J=G53G90G21X-253.0000Y-51.0000F6000.00",
        "$J=G53G90G21X-251.0000Y-51.0000F6000.00",
    ]
    assert spent.seconds == pytest.approx(expected_s, abs=0.06)
    assert spent.travel_m == pytest.approx(np.hypot(0.052, 0.05) + 0.002, abs=2e-5)
    firmware.sent.clear()
    stage.move_to(np.array([0.06, 0.16]))
    assert len(jogs(firmware)) == 1
    firmware.sent.clear()
    stage.move_to(np.array([0.0, 0.16]))  # not below the end stop
    assert jogs(firmware)[0].startswith("$J=G53G90G21X-301.0000Y")
    stage.close()


def test_play_that_may_not_be_taken_up_is():
    firmware = Firmware()
    ready_stage(firmware, device={"backlash_m": 0.002}).close()
    stage = stage_on(firmware, device={"backlash_m": 0.002})
    stage.connect()
    firmware.sent.clear()
    stage.move_to(np.array([0.101, 0.102]))  # only 1 mm up on X
    assert jogs(firmware) == [
        "$J=G53G90G21X-202.0000Y-99.0000F6000.00",
        "$J=G53G90G21X-200.0000Y-99.0000F6000.00",
    ]
    stage.close()


def test_both_axes_together_run_no_slower_than_one():
    firmware = Firmware()
    stage = ready_stage(firmware)
    target_m = np.array([0.12, 0.12])
    expected_s = travel_time_s(0.02 * np.sqrt(2), 0.1, 0.5 * np.sqrt(2)) + 0.2  # each axis accelerates with 0.5 m/s^2
    assert stage.duration_s(target_m) == pytest.approx(expected_s)
    assert stage.move_to(target_m).seconds == pytest.approx(expected_s, abs=0.03)
    stage.close()
