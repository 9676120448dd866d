"""The emulated GRBL controller: what it says, in which order, and how its carriages move."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sim_backend.emulators.grbl_carriage import Machine
from sim_backend.emulators.grbl_firmware import GrblFirmware
from sim_backend.emulators.grbl_profile import brake, run
from sim_backend.emulators.grbl_settings import Eeprom
from testbed.core.motion import travel_time_s

RECORDED = Path(__file__).parents[3] / "shared" / "reference" / "grbl-golden-trace.txt"

GREETING = "Grbl 1.1h ['$' for help]"
TO_UNLOCK = "[MSG:'$H'|'$X' to unlock]"
UNLOCKED = "[MSG:Caution: Unlocked]"


@dataclass
class Bench:
    """A firmware and a client with a clock of its own."""

    eeprom: Eeprom = field(default_factory=Eeprom)
    machine: Machine | None = None
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.grbl = GrblFirmware(self.eeprom, self.machine)
        self.raw = self.grbl.advance(self.now_s)

    def send(self, data: bytes | str, after_s: float = 0.0) -> list[str]:
        """Wait, send a line or raw bytes, and return what has been said since the last call."""
        self.wait(after_s)
        self.raw += self.grbl.feed(data if isinstance(data, bytes) else data.encode() + b"\n", self.now_s)
        return self.lines()

    def wait(self, seconds: float) -> Bench:
        self.now_s += seconds
        self.raw += self.grbl.advance(self.now_s)
        return self

    def lines(self) -> list[str]:
        said, self.raw = self.raw.decode("latin-1"), b""
        return [line for line in said.split("\r\n") if line]

    def status(self) -> str:
        (line,) = self.send(b"?")
        return line

    def state(self) -> str:
        return self.status().strip("<>").split("|")[0]

    def mpos(self) -> list[float]:
        found = re.search(r"MPos:([-\d.,]+)", self.status())
        assert found
        return [float(part) for part in found.group(1).split(",")]

    def finish(self) -> float:
        """Let everything happen that will; returns when the last thing did."""
        last_s = self.now_s
        while (event_s := self.grbl.next_event_s(self.now_s)) is not None:
            self.now_s = last_s = max(event_s, self.now_s)
            self.raw += self.grbl.advance(self.now_s)
        return last_s


def bench(machine: Machine | None = None, /, **settings: float) -> Bench:
    """A stock controller that has said its greeting; settings by name, s22=1 for $22=1."""
    eeprom = Eeprom()
    eeprom.settings |= {int(name[1:]): value for name, value in settings.items()}
    made = Bench(eeprom, machine)
    made.lines()
    return made


# --- the dialogue recorded from the real firmware ---------------------------------------------------------------------


def test_the_dialogue_of_the_real_firmware() -> None:
    b = Bench()
    assert b.raw == f"\r\n{GREETING}\r\n".encode()
    b.lines()
    assert b.status() == "<Idle|MPos:0.000,0.000,0.000|FS:0,0|WCO:0.000,0.000,0.000>"
    assert b.send("$") == ["[HLP:$$ $# $G $I $N $x=val $Nx=line $J=line $SLP $C $X $H ~ ! ? ctrl-x]", "ok"]
    assert b.send("$I") == ["[VER:1.1h.20190830:]", "[OPT:V,15,128]", "ok"]
    assert b.send("$20=1") == ["error:10"]
    assert b.send("$22=1") == b.send("$20=1") == b.send("$X") == ["ok"]
    assert b.send("G1X-1") == ["error:22"]
    assert b.send("G1X-1F500") == ["ok"]
    assert b.send("G4P0.01") == []
    b.finish()
    assert b.lines() == ["ok"]
    assert b.mpos() == [-1.0, 0.0, 0.0]
    assert b.state() == "Idle"
    assert b.send("$J=G91X-6") == ["error:22"]
    assert b.send("$J=G91X-6F500") == ["ok"]
    assert b.wait(0.2).state() == "Jog"
    assert b.send(b"\x85") == []
    assert b.state() == "Jog"
    assert b.wait(1.0).state() == "Idle"
    assert b.send("$J=G91X-6F500") == ["ok"]
    assert b.send("G0X0") == ["error:9"]
    b.send(b"\x85", 0.1)
    assert b.wait(1.0).send("$J=G91X500F500") == ["error:15"]
    assert b.state() == "Idle"
    assert b.send("G0X5") == ["ALARM:2"]
    assert b.wait(0.49).lines() == []
    assert b.wait(0.02).lines() == ["[MSG:Reset to continue]"]
    assert b.send(b"?") == b.send("$X") == []
    assert b.send(b"\x18") == ["ok", GREETING, TO_UNLOCK]
    assert b.send("G0X-2") == ["error:9"]
    assert b.send("$X") == [UNLOCKED, "ok"]
    assert b.send("G1X-20F500") == ["ok"]
    b.send(b"!", 0.5)
    assert b.state() == "Hold:1"
    assert b.wait(1.0).state() == "Hold:0"
    assert b.send(b"~") == []
    assert b.wait(0.5).state() == "Run"
    assert b.send(b"\x18") == ["ALARM:3"]
    assert b.wait(0.51).lines() == [GREETING, TO_UNLOCK]
    assert b.state() == "Alarm"
    assert b.send("$X") == [UNLOCKED, "ok"]
    assert [b.send(line) for line in ("foo", "G99", "$Q", "", " ( a comment ) ; another")] == [
        ["error:2"], ["error:20"], ["error:2"], ["ok"], ["ok"],
    ]  # fmt: skip
    assert b.send(b"G90\r\n") == ["ok", "ok"]


def recorded_lines() -> list[list[str]]:
    """What every line of the recording says, status lines reduced to their state, simulator print-outs left out."""
    found = []
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        said = []
        for token in re.findall(r"b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|<[^>]*>", line):
            text = token if token.startswith("<") else ast.literal_eval(token)
            text = text.decode("latin-1") if isinstance(text, bytes) else text
            said += [reduced(part) for part in text.split("\r\n") if part]
        found.append([part for part in said if not re.match(r"-?\d+, ", part)])
    return found


def reduced(line: str) -> str:
    return re.sub(r"^<([^|>]*).*>$", r"<\1>", line)


def replay() -> list[Callable[[Bench], list[str]]]:
    """What the client did at every line of the recording."""

    def hold(b: Bench) -> list[str]:
        b.send("G1X-20F500")
        return b.send(b"!", 0.5) + b.send(b"?", 0.05) + b.send(b"?", 2.0)

    def reset_in_motion(b: Bench) -> list[str]:
        return b.send(b"\x18") + b.wait(0.6).lines()

    def jog_again(b: Bench) -> list[str]:
        return b.send("$J=G91X-26F500") + b.send("G1X0") + b.send(b"?", 0.2)

    def bad(b: Bench) -> list[str]:
        return [said for line in ("$X", "foo", "G99", "$Q", "X", "", "(nothing)") for said in b.send(line)]

    return [
        lambda b: b.lines(),
        lambda b: b.send(b"?"),
        lambda b: b.send("$"),
        lambda b: b.send("$I"),
        lambda b: b.send("$$"),
        lambda b: b.send("$20=1"),
        lambda b: b.send("$22=1"),
        lambda b: b.send("$20=1"),
        lambda b: b.send("$X"),
        lambda b: b.send("G1X-1"),
        lambda b: b.send("G1X-1F500"),
        lambda b: b.send("G4P0.01") + b.wait(2.0).lines() + b.send(b"?"),
        lambda b: b.send("$J=G91X-6"),
        lambda b: b.send("$J=G91X-6F600") + b.send(b"?", 0.2),
        lambda b: b.send(b"\x85") + b.send(b"?", 1.0),
        jog_again,
        lambda b: b.send(b"\x85") + b.send(b"?", 1.0),
        lambda b: b.send("$J=G91X-5000F600") + b.send(b"?"),
        lambda b: b.send("G0X-5000"),
        lambda b: b.wait(0.6).lines(),
        lambda b: b.send(b"?"),
        lambda b: b.send(b"\x18"),
        lambda b: b.send("G0X-2"),
        lambda b: b.send("$X") + b.send(b"?"),
        hold,
        lambda b: b.send(b"~") + b.send(b"?", 0.5),
        reset_in_motion,
        lambda b: b.send(b"?"),
        bad,
        lambda b: b.send(b"G90\r\n")[:1],
        lambda b: ["ok", *b.send(b"?")],
    ]  # fmt: skip


@pytest.mark.skipif(not RECORDED.exists(), reason=f"the recording {RECORDED} is not here")
def test_every_line_of_the_recording_is_reproduced() -> None:
    b, expected = Bench(), recorded_lines()
    answers = [[reduced(line) for line in act(b)] for act in replay()]
    assert answers == expected


# --- lines ------------------------------------------------------------------------------------------------------------


def test_lower_case_blanks_and_comments_do_not_count() -> None:
    b = bench()
    assert b.send(" g1 x-1 (aside) f100 ; rest") == ["ok"]
    assert "F100" in b.send("$G")[0]


def test_a_line_holds_79_characters_that_count() -> None:
    b = bench()
    assert b.send("G4P" + "0" * 71 + "    (and a long comment that is thrown away)") == ["ok"]
    assert b.send("G4P0" + "0" * 76) == ["error:11"]
    assert b.send("G90") == ["ok"], "the next line begins afresh"


def test_what_comes_while_the_buffer_is_full_is_lost() -> None:
    b = bench()
    b.send("G4P1")
    assert b.send(b"\n" * 200) == []
    assert b.wait(2.0).lines() == ["ok"] * (1 + 128)


def test_real_time_bytes_are_no_part_of_a_line() -> None:
    b = bench()
    (report,) = b.send(b"G1X?\xff\x85")
    assert report.startswith("<Idle")
    assert b.send(b"-2F500\n") == ["ok"]
    b.finish()
    assert b.mpos()[0] == -2


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("1G0", 1), ("G", 2), ("X-", 2), ("G0X1.2.3", 1), ("F-1", 4), ("G2X1Y1R1F100", 20), ("G38.2X-1F10", 20),
        ("M6", 20), ("M7", 20), ("A1", 20), ("G28.2", 20), ("G43Z1", 20), ("G90.1", 20), ("G90G91", 21), ("M3M5", 21),
        ("G1X1", 22), ("G93G1X1", 22), ("G0.5", 23), ("M3.1", 23), ("G59.1", 23), ("G0G92X1", 24), ("G0G1X1", 24),
        ("X1X2", 25), ("G92", 26), ("G10L2P1", 26), ("N10000001", 27), ("G4", 28), ("G10X1", 28), ("G10L2P7X1", 29),
        ("G10L3P1X1", 20), ("G10L2P1X1R1", 20), ("G80G53X1", 30), ("G80X1", 31), ("G90I1", 36), ("G0X1P1", 36),
        ("G43.1X1", 37), ("T256", 38),
        ("$J=G91X1", 22), ("$J=G91G2X1F10", 20), ("$J=G0X1F10", 16), ("$J=G54X1F10", 16), ("$J=X1F10S1", 36),
        ("$J=G92X1F10", 16), ("$JX1", 3), ("$J=F10", 26),
        ("$99", 3), ("$99=1", 3), ("$100=-1", 4), ("$100=x", 2), ("$100=1x", 3), ("$=1", 2), ("$H", 5), ("$0=2", 6),
        ("$103=1", 3), ("$300=1", 3), ("$GG", 3), ("$RST=x", 3), ("$RST", 3), ("$SLEEP", 3), ("$Ix", 3), ("$N2=G0", 3),
        ("$N0=G99", 20), ("$#1", 3),
    ],
)  # fmt: skip
def test_errors(line: str, error: int) -> None:
    b = bench()
    before = b.send("$G")
    assert b.send(line) == [f"error:{error}"]
    assert b.send("$G") == before, "a refused line leaves no trace"
    assert b.state() == "Idle"


def test_commands_that_only_an_idle_machine_takes() -> None:
    b = bench(s22=1.0)
    b.send("$X")
    b.send("G1X-50F500")
    for line in ("$$", "$#", "$I", "$N", "$H", "$100=200", "$SLP", "$RST=$", "$C", "$J=X0F100"):
        assert b.send(line) == ["error:8"], line
    assert b.send("$G")[-1] == "ok"


def test_a_locked_machine_takes_neither_gcode_nor_jogs() -> None:
    b = Bench(Eeprom.for_stage(travel_m=(0.3, 0.3, 0.1), speed_m_s=0.1, acceleration_m_s2=1.0))
    assert b.lines() == [GREETING, TO_UNLOCK]
    assert b.send("G0X-1") == ["error:9"]
    assert b.send("$J=X-1F100") == ["error:8"]
    assert b.send("$N0=G21") == ["error:8"]
    assert b.send("$G")[-1] == "ok"
    assert b.state() == "Alarm"


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_settings_outlive_power_and_can_be_restored() -> None:
    b = bench()
    for line in ("$110=1234.5", "$3=5", "$N1=G18", "G10L2P2X-3Y4", "$I=Rail One", "$1=300"):
        assert b.send(line) == ["ok"]
    b = Bench(b.eeprom)
    assert b.lines() == [GREETING, ">G18:ok"]
    assert {"$110=1234.500", "$3=5", "$1=44"} <= set(b.send("$$"))
    assert "[G55:-3.000,4.000,0.000]" in b.send("$#")
    assert b.send("$N") == ["$N0=", "$N1=G18", "ok"]
    assert b.send("$I")[0] == "[VER:1.1h.20190830:RAILONE]"
    assert b.send("$RST=$") == ["[MSG:Restoring defaults]", "ok", GREETING, ">G18:ok"]
    assert "$110=500.000" in b.send("$$")
    assert "[G55:-3.000,4.000,0.000]" in b.send("$#")
    b.send("$RST=*")
    assert "[G55:0.000,0.000,0.000]" in b.send("$#")
    assert b.send("$N") == ["$N0=", "$N1=", "ok"]


def test_soft_limits_end_with_homing() -> None:
    b = bench()
    b.send("$22=1")
    b.send("$20=1")
    b.send("$22=0")
    assert {"$20=0", "$22=0"} <= set(b.send("$$"))


def test_modal_words_and_the_end_of_a_program() -> None:
    b = bench()
    assert b.send("G1 G55 G18 G20 G91 M3 M8 S500 T2 F10") == ["ok"]
    assert b.send("$G") == ["[GC:G1 G55 G18 G20 G91 G94 M3 M8 T2 F254 S500]", "ok"]
    assert b.send("M30") == ["[MSG:Pgm End]", "ok"]
    assert b.send("$G") == ["[GC:G1 G54 G17 G20 G90 G94 M5 M9 T0 F254 S500]", "ok"]


def test_work_coordinates() -> None:
    b = bench()
    b.send("G10 L2 P1 X-10")
    b.send("G0 X1")
    b.finish()
    assert b.mpos()[0] == -9
    b.send("G92 X5")
    b.send("G0 X0 Y-1")
    b.finish()
    assert b.mpos()[:2] == [-14, -1]
    assert "[G92:-4.000,0.000,0.000]" in b.send("$#")
    b.send("G28.1")
    b.send("G53 G0 X0 Y0")
    b.send("G92.1")
    b.send("G28 X0")
    b.finish()
    assert b.lines() == ["ok", "ok"], "G92.1 waits for the motion before it"
    assert b.mpos()[:2] == [-14, 0], "G28 with a word goes by way of that word and moves that axis only"
    b.send("G43.1 Z2")
    assert "[TLO:2.000]" in b.send("$#")
    b.send("G10 L20 P0 Z0")
    assert "[G54:-10.000,0.000,-2.000]" in b.send("$#")
    b.send("$10=0")
    b.finish()
    b.lines()
    assert "WPos:-4.000,0.000,0.000" in b.status()


# --- status reports ---------------------------------------------------------------------------------------------------


def test_optional_fields_come_round_after_ten_reports_and_thirty() -> None:
    b = bench()
    reports = [b.status() for _ in range(21)]
    assert [i for i, line in enumerate(reports) if "WCO" in line] == [0, 10, 20]
    assert [i for i, line in enumerate(reports) if "Ov" in line] == [1, 11]
    b.send("$J=G91X-100F500")
    b.send("G54")
    reports = [b.status() for _ in range(61)]
    assert [i for i, line in enumerate(reports) if "WCO" in line] == [9, 39]


def test_the_report_mask_and_inches() -> None:
    b = bench(s10=3.0)
    assert "|Bf:15,128|" in b.status()
    b.send("G0X-25.4")
    assert "|Bf:14,128|" in b.status()
    b.finish()
    b.lines()
    b.send("$13=1")
    assert "MPos:-1.0000,0.0000,0.0000" in b.status()


def test_pressed_switches_are_reported() -> None:
    b = bench(Machine(start_m=(0.001, -0.201, -0.1)))
    assert "|Pn:XY|" in b.status()
    b.send("$5=1")
    assert "|Pn:Z" in b.status()


# --- motion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way_mm", [0.4, 6.9, 7.0, 80.0])
def test_a_move_takes_as_long_as_its_trapezoid(way_mm: float) -> None:
    b = bench()
    b.send(f"$J=X-{way_mm}F1000")
    expected_s = travel_time_s(way_mm * 1e-3, 500e-3 / 60, 10e-3)
    assert b.finish() == pytest.approx(expected_s, rel=1e-9)
    assert b.mpos()[0] == -way_mm


def test_the_slowest_axis_sets_rate_and_acceleration_along_a_line() -> None:
    b = bench(s110=6000.0, s111=3000.0, s120=1000.0, s121=200.0)
    b.send("G0X-80Y-60")
    assert b.finish() == pytest.approx(travel_time_s(0.1, 0.05 / 0.6, 0.2 / 0.6), rel=1e-9)


def test_positions_are_whole_steps() -> None:
    b = bench()
    b.send("$J=X-1.0025F500")
    b.finish()
    assert b.mpos()[0] == -1.004
    assert b.grbl.machine_m(b.now_s)[0] == pytest.approx(-0.1 - 1.004e-3)
    b.send("$J=X-1.0030F500")
    assert b.grbl.next_event_s(b.now_s) is None, "less than a step is no move"


def test_lines_in_one_direction_are_run_as_one_and_corners_slow_down() -> None:
    whole = bench()
    whole.send("G1X-40F500")
    parts = bench()
    for x in (-10, -20, -30, -40):
        parts.send(f"G1X{x}F500")
    assert parts.finish() == pytest.approx(whole.finish(), rel=1e-9)
    corner = bench()
    corner.send("G1X-20F500")
    corner.send("G1Y-20")
    there_and_back = bench()
    there_and_back.send("G1X-20F500")
    there_and_back.send("G1X0")
    one_s = travel_time_s(0.02, 500e-3 / 60, 10e-3)
    assert there_and_back.finish() == pytest.approx(2 * one_s, rel=1e-9)
    # sqrt(a d sin/(1-sin)) with a = 10 sqrt(2) mm/s^2 along the change of direction, d = 10 um, 45 degrees
    speed_m_s = math.sqrt(10e-3 * math.sqrt(2) * 10e-6 * math.sqrt(0.5) / (1 - math.sqrt(0.5)))
    saved_s = 2 * one_s - corner.finish()
    cruise_m_s, accel = 500e-3 / 60, 10e-3
    expected_s = 2 * (speed_m_s / accel - speed_m_s**2 / (2 * accel) / cruise_m_s)
    assert saved_s == pytest.approx(expected_s, rel=1e-6)


def test_no_limit_is_exceeded_on_any_path() -> None:
    rng = np.random.default_rng(20240817)
    b = bench(s110=6000.0, s111=4000.0, s112=1000.0, s120=900.0, s121=500.0, s122=100.0)
    step_s, places = 1e-3, []
    for _ in range(40):
        x, y, z = -rng.uniform(1.0, 60.0, 3)
        answer = b.send(f"G1X{x:.3f}Y{y:.3f}Z{z:.3f}F{rng.uniform(500, 9000):.0f}")
        while not answer:
            places.append(b.grbl.machine_m(b.now_s))
            answer = b.wait(step_s).lines()
        assert answer == ["ok"]
    while b.grbl.moving:
        places.append(b.grbl.machine_m(b.now_s))
        b.wait(step_s)
    speed = np.diff(np.array(places), axis=0) / step_s
    assert (np.abs(speed).max(axis=0) <= np.array([0.1, 4 / 60, 1 / 60]) + 2 * 4e-6 / step_s).all()
    assert np.abs(speed).max(axis=0)[0] > 0.05, "it does move"


def test_the_planner_takes_fifteen_lines_and_the_next_ok_waits() -> None:
    b = bench()
    answers = [b.send(f"G1X-{i}F500") for i in range(1, 17)]
    assert answers == [["ok"]] * 15 + [[]]
    b.finish()
    assert b.lines() == ["ok"]
    assert b.mpos()[0] == -16


def test_a_hold_brakes_over_the_end_of_a_line_and_resumes_without_a_gap() -> None:
    b = bench(s110=6000.0, s120=100.0)
    for x in range(1, 16):
        b.send(f"G1X-{x}F6000")
    b.wait(0.3)
    before = b.mpos()[0]
    b.send(b"!")
    b.finish()
    # 30 mm/s are gone after 4.5 mm
    assert b.mpos()[0] == pytest.approx(before - 4.5, abs=0.01)
    assert b.send("G4P0") == [], "a held program answers nothing"
    assert b.send(b"\x85~") == []
    b.finish()
    assert b.lines() == ["ok"]
    assert b.mpos()[0] == -15


def test_overrides() -> None:
    b = bench()
    b.send("G1X-50F300")
    b.wait(3.0)
    assert "|FS:300,0" in b.status()
    b.send(b"\x92" * 5)
    assert "|Ov:50,100,100" in b.wait(1.0).status()
    assert "|FS:150,0" in b.status()
    b.send(b"\x90\x91\x93")
    b.wait(1.0)
    assert "|FS:333,0" in b.status()
    b.send(b"\x92" * 30)
    b.wait(2.0)
    assert "|FS:30,0" in b.status(), "not below 10 %"
    b.send(b"\x90\x18")
    b.wait(1.0).lines()
    b.send("$X")
    b.send("G0X0")
    b.send(b"\x96")
    b.wait(3.0)
    assert "|FS:250,0" in b.status()


def test_jogs_ignore_the_feed_override() -> None:
    b = bench()
    b.send(b"\x92\x92")
    b.send("$J=X-50F300")
    assert "|FS:300,0" in b.wait(3.0).status()


def test_cancelling_a_jog_drops_all_that_are_queued() -> None:
    b = bench()
    for _ in range(5):
        b.send("$J=G91X-5F400")
    b.send(b"\x85", 1.0)
    b.finish()
    stopped = b.mpos()[0]
    assert -11 < stopped < -5
    b.send("$J=G91X-1F400")
    b.finish()
    assert b.mpos()[0] == pytest.approx(stopped - 1), "the next one starts where the last one stopped"
    b.send("$J=G91X-5F400")
    b.send(b"!", 0.5)
    b.finish()
    assert b.state() == "Idle", "a feed hold ends a jog"
    assert b.send(b"!") == []
    assert b.state() == "Hold:0"
    assert b.send("$X") == []
    assert b.send(b"~") == ["ok"]


def test_dwell_and_pause() -> None:
    b = bench()
    b.send("G1X-1F500")
    b.send("G4P2")
    assert b.finish() == pytest.approx(travel_time_s(1e-3, 500e-3 / 60, 10e-3) + 2.0)
    assert b.lines() == ["ok"]
    assert b.send("M0") == []
    assert b.state() == "Hold:0"
    assert b.send(b"~") == ["ok"]
    b.send("G4P5")
    assert b.send(b"\x18") == ["ok", GREETING], "a reset ends a dwell; its answer was due"


def test_the_door() -> None:
    b = bench()
    b.send("G1X-20F500")
    assert b.send(b"\x84", 1.0) == ["[MSG:Check Door]"]
    assert b.state() == "Door:2"
    assert b.wait(2.0).state() == "Door:0"
    b.send(b"~")
    assert b.state() == "Run"
    b.finish()
    assert b.mpos()[0] == -20
    b.send("$J=X0F500")
    b.send(b"\x84", 1.0)
    assert b.state() == "Jog"
    assert b.wait(2.0).state() == "Door:0"
    b.send(b"~")
    assert b.state() == "Idle"


def test_check_mode_moves_nothing() -> None:
    b = bench(s22=1.0, s20=1.0)
    b.send("$X")
    assert b.send("$C") == ["[MSG:Enabled]", "ok"]
    assert b.state() == "Check"
    assert b.send("G1X-10F100") == ["ok"]
    assert b.send("G99") == ["error:20"]
    assert b.send("$J=X-1F10") == ["error:8"]
    assert b.mpos()[0] == 0
    assert b.send("$C") == ["[MSG:Disabled]", "ok", GREETING]
    assert b.state() == "Idle"
    b.send("$C")
    assert b.send("G0X1") == ["ALARM:2"]


def test_a_reset_while_held_keeps_the_place_and_while_braking_does_not() -> None:
    b = bench()
    b.send("G1X-20F500")
    b.send(b"!", 1.0)
    b.wait(2.0)
    place = b.mpos()
    assert b.send(b"\x18") == [GREETING]
    assert (b.state(), b.mpos()) == ("Idle", place)
    b.send("G1X-40F500")
    b.send(b"!", 1.0)
    assert b.send(b"\x18", 0.1) == ["ALARM:3"]


def test_sleep_ends_with_a_reset_only() -> None:
    b = bench()
    assert b.send("$SLP") == ["ok", "[MSG:Sleeping]"]
    assert b.state() == "Sleep"
    assert b.send("$X") == b.send(b"~") == []
    assert b.send(b"\x18") == [GREETING, TO_UNLOCK]
    assert b.state() == "Alarm"


# --- alarms -----------------------------------------------------------------------------------------------------------


def test_a_reset_before_the_message_of_a_critical_alarm_is_lost() -> None:
    b = bench(s22=1.0, s20=1.0)
    b.send("$X")
    b.send("G0X1")
    assert b.send(b"\x18") == []
    assert b.wait(1.0).lines() == ["[MSG:Reset to continue]"]
    assert b.send(b"\x18") == ["ok", GREETING, TO_UNLOCK]


def test_a_soft_limit_brakes_before_its_alarm_and_keeps_the_place() -> None:
    b = bench(s22=1.0, s20=1.0)
    b.send("$X")
    b.send("G1X-50F500")
    b.wait(2.0)
    assert b.send("G1X-201") == []
    assert b.state() == "Hold:1"
    b.finish()
    assert b.lines() == ["ALARM:2", "[MSG:Reset to continue]"]
    b.send(b"\x18")
    reached = b.mpos()[0]
    assert -50 < reached < -10
    assert b.grbl.machine_m(b.now_s)[0] == pytest.approx(-0.1 + reached * 1e-3)


def test_a_hard_limit_stops_at_the_switch() -> None:
    b = bench(Machine(start_m=(-0.010, -0.1, -0.1)), s21=1.0)
    b.send("G1X50F500")
    b.finish()
    assert b.lines() == ["ALARM:1", "[MSG:Reset to continue]"]
    assert b.grbl.machine_m(b.now_s)[0] == pytest.approx(0.0, abs=5e-6)
    assert b.now_s == pytest.approx(travel_time_s(0.02, 500e-3 / 60, 10e-3) / 2 + 0.5, abs=1e-6)
    assert b.send(b"?") == []
    assert b.send(b"\x18") == [GREETING, TO_UNLOCK]
    far = bench(Machine(start_m=(-0.190, -0.1, -0.1)), s21=1.0)
    far.send("G0X-50")
    far.finish()
    assert far.lines()[0] == "ALARM:1"
    assert far.grbl.machine_m(far.now_s)[0] == pytest.approx(-0.2, abs=5e-6)


def test_without_hard_limits_the_motor_stalls_at_the_end_stop() -> None:
    b = bench(Machine(start_m=(-0.010, -0.1, -0.1)))
    b.send("G1X50F500")
    b.finish()
    assert b.mpos()[0] == 50, "the firmware does not know"
    assert b.grbl.machine_m(b.now_s)[0] == pytest.approx(0.002)
    b.send("G1X40")
    b.finish()
    assert b.grbl.machine_m(b.now_s)[0] == pytest.approx(-0.008)


def test_the_last_legal_places_press_no_switch() -> None:
    b = Bench(Eeprom.for_stage(travel_m=(0.3, 0.2, 0.1), speed_m_s=0.1, acceleration_m_s2=1.0, hard_limits=True))
    b.send("$H")
    b.finish()
    b.lines()
    for line in ("$J=G53X-300Y-200F6000", "$J=G53X0Y0F6000"):
        assert b.send(line) == ["ok"]
        b.finish()
        assert b.lines() == []
        assert "Pn" not in b.status()


# --- homing -----------------------------------------------------------------------------------------------------------


def leg_s(way_m: float, rate_m_s: float, accel: float) -> float:
    """From rest until a switch stops the axis at full rate."""
    ramp_m = rate_m_s**2 / (2 * accel)
    return math.sqrt(2 * way_m / accel) if way_m < ramp_m else rate_m_s / accel + (way_m - ramp_m) / rate_m_s


def test_homing_finds_the_switches_and_takes_its_time() -> None:
    b = bench(Machine(start_m=(-0.150, -0.020, -0.060)), s22=1.0)
    assert b.send("$H") == []
    assert b.grbl.state == "Home"
    assert b.send(b"?") == b.send("$I") == b.send(b"!") == []
    seek, feed, accel, pull = 500e-3 / 60, 25e-3 / 60, 10e-3, 1e-3
    again_s = 2 * travel_time_s(pull, seek, accel) + leg_s(pull, feed, accel) + 4 * 0.25
    expected_s = leg_s(0.060, seek, accel) + leg_s(0.150, seek, accel) + 2 * again_s
    assert b.finish() == pytest.approx(expected_s, rel=1e-9)
    said = b.lines()
    assert said[0].startswith("<Home|MPos:-1.000,-1.000,-1.000|"), "the question asked meanwhile"
    assert said[1:] == ["ok", "[VER:1.1h.20190830:]", "[OPT:V,15,128]", "ok"]
    assert b.state() == "Idle"
    np.testing.assert_allclose(b.grbl.machine_m(b.now_s), [-1e-3] * 3, atol=1e-9)
    b.send("$J=G53X-37.5Y-2F500")
    b.finish()
    np.testing.assert_allclose(b.grbl.machine_m(b.now_s), [-0.0375, -0.002, -0.001], atol=1e-9)


def test_homing_to_the_other_end() -> None:
    b = bench(Machine(), s22=1.0, s23=1.0)
    b.send("$H")
    b.finish()
    b.lines()
    assert b.mpos() == [-199, -1, -1]
    np.testing.assert_allclose(b.grbl.machine_m(b.now_s), [-0.199, -0.001, -0.001], atol=1e-9)


@pytest.mark.parametrize(
    ("machine", "settings", "alarm"),
    [
        (Machine(switches=(True, False, True)), {}, 9),
        (Machine(travel_m=(0.5, 0.2, 0.2), start_m=(-0.4, -0.1, -0.1)), {}, 9),
        (Machine(), {"s27": 0.0}, 8),
        (Machine(), {"s5": 1.0}, 8),
    ],
)
def test_homing_fails(machine: Machine, settings: dict[str, float], alarm: int) -> None:
    b = bench(machine, s22=1.0, **settings)
    b.send("$H")
    b.finish()
    assert b.lines() == [f"ALARM:{alarm}", "ok", GREETING, TO_UNLOCK]
    assert b.state() == "Alarm"


@pytest.mark.parametrize(("byte", "alarm"), [(b"\x18", 6), (b"\x84", 7)])
def test_homing_is_interrupted(byte: bytes, alarm: int) -> None:
    b = bench(s22=1.0)
    b.send("$H")
    b.wait(5.0)
    before = b.grbl.machine_m(b.now_s)
    assert b.send(byte) == [f"ALARM:{alarm}"]
    b.finish()
    assert b.lines() == ["ok", GREETING, TO_UNLOCK]
    np.testing.assert_allclose(b.grbl.machine_m(b.now_s), before, atol=1e-9)


# --- what firmware does not know --------------------------------------------------------------------------------------


def test_a_power_cycle_in_motion_forgets_the_place() -> None:
    b = bench(Machine(start_m=(-0.05, -0.1, -0.1)))
    b.send("G1X-20F500")
    b.wait(1.5)
    there = b.grbl.machine_m(b.now_s)
    assert b.grbl.reset(b.now_s) == f"\r\n{GREETING}\r\n".encode()
    assert b.mpos() == [0, 0, 0]
    np.testing.assert_allclose(b.grbl.machine_m(b.now_s), there)
    assert there[0] < -0.055


def test_lost_steps_are_lost_until_the_next_homing() -> None:
    b = bench(s22=1.0)
    b.send("$H")
    b.finish()
    b.lines()
    b.send("$J=G53X-31F500")
    b.wait(1.0)
    b.grbl.lose_steps(2e-3, b.now_s)
    b.finish()
    assert b.mpos()[0] == -31
    assert b.grbl.machine_m(b.now_s)[0] == pytest.approx(-0.029)
    b.send("$H")
    b.finish()
    b.lines()
    b.send("$J=G53X-31F500")
    b.finish()
    assert b.grbl.machine_m(b.now_s)[0] == pytest.approx(-0.031)


def test_a_hit_limit_is_a_critical_alarm() -> None:
    b = bench()
    b.send("$J=X-10F500")
    b.wait(0.5)
    assert b.grbl.hit_limit(b.now_s) == b"ALARM:1\r\n"
    assert not b.grbl.moving
    b.finish()
    assert b.lines() == ["[MSG:Reset to continue]"]


def test_time_does_not_run_back() -> None:
    b = bench()
    b.send("$J=X-10F500", 5.0)
    b.now_s = 0.0
    b.wait(1.0)
    assert b.mpos()[0] == 0


# --- profiles ---------------------------------------------------------------------------------------------------------


def test_profiles_cover_their_way_and_solve_for_time() -> None:
    rng = np.random.default_rng(7)
    for _ in range(300):
        way_m, accel = rng.uniform(1e-5, 0.5), rng.uniform(0.01, 5.0)
        start, most, end = rng.uniform(0, 0.3), rng.uniform(0.01, 0.3), rng.uniform(0, 0.3)
        profile = run(way_m, from_m_s=start, at_most_m_s=most, to_m_s=end, acceleration_m_s2=accel)
        assert profile.way_m == pytest.approx(way_m, rel=1e-9)
        times_s = np.linspace(0, profile.lasts_s, 50)
        places = [profile.at(time_s)[0] for time_s in times_s]
        assert all(b >= a - 1e-15 for a, b in pairwise(places))
        assert max(profile.at(time_s)[1] for time_s in times_s) <= max(most, start) + 1e-12
        for time_s in times_s[:-1]:
            assert profile.reaches_s(profile.at(time_s)[0]) == pytest.approx(time_s, abs=1e-6)
        stopped = brake(way_m, from_m_s=start, acceleration_m_s2=accel)
        assert stopped.way_m <= min(way_m, start**2 / (2 * accel)) + 1e-12
