"""The terminal and the TCP port of an emulated stage, as pyserial sees them."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_backend.emulators.faults import STAGE_FAULTS, FaultPlan
from sim_backend.emulators.grbl_carriage import Machine
from sim_backend.emulators.grbl_firmware import GrblFirmware
from sim_backend.emulators.grbl_port import BUSY, GrblPort
from sim_backend.emulators.grbl_settings import Eeprom
from sim_backend.emulators.timebase import Timebase
from testbed.core.errors import ConfigError
from testbed.core.motion import travel_time_s

serial = pytest.importorskip("serial")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals")

GREETING = b"Grbl 1.1h ['$' for help]"


class Desk:
    """A port in virtual time and what a client says to it."""

    def __init__(self, folder: Path, *, mode: str = "virtual", speed: float = 1.0, reset_on_open: bool = False) -> None:
        self.time = Timebase(mode, speed=speed)  # type: ignore[arg-type]
        self.faults = FaultPlan(STAGE_FAULTS)
        eeprom = Eeprom.for_stage(travel_m=(0.3, 0.3, 0.1), speed_m_s=0.1, acceleration_m_s2=1.0)
        machine = Machine(travel_m=(0.3, 0.3, 0.1), start_m=(-0.1, -0.05, -0.05))
        self.link = folder / "stage-0"
        self.port = GrblPort(
            "stage-0", GrblFirmware(eeprom, machine), self.time, link=self.link, faults=self.faults,
            reset_on_open=reset_on_open,
        )  # fmt: skip
        self.clients: list[Any] = []

    def open(self, way: str) -> Any:
        url = str(self.link) if way == "terminal" else self.port.url
        self.clients.append(serial.serial_for_url(url, baudrate=115200, timeout=3.0))
        return self.clients[-1]

    def connect(self) -> socket.socket:
        """A plain TCP connection: pyserial's does not close its socket where the other side has gone."""
        assert self.port.url is not None
        host, port = self.port.url.removeprefix("socket://").split(":")
        return socket.create_connection((host, int(port)), timeout=3.0)

    def home(self, client: Any) -> None:
        self.time.advance(self.time.now_s() + 0.01)
        client.write(b"$H\n")
        wait_for(lambda: self.port.state == "Home")
        self.time.advance(self.time.now_s() + 60.0)
        assert client.readline() == b"ok\r\n"

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.port.close()
        self.time.close()


def wait_for(condition: object) -> None:
    """Until the port's thread has taken what was sent."""
    assert callable(condition)
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(1e-3)
    pytest.fail("it has not come true within 3 s")


def ask(client: Any, line: bytes) -> bytes:
    client.write(line)
    return bytes(client.readline())


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


WAYS = pytest.mark.parametrize("way", ["terminal", "tcp"])


@WAYS
def test_a_session_over_pyserial(desk: Desk, way: str) -> None:
    client = desk.open(way)
    assert ask(client, b"?").startswith(b"<Alarm|MPos:0.000,0.000,0.000|")
    assert ask(client, b"$J=X-1F100\n") == b"error:8\r\n"
    desk.home(client)
    begun_s = desk.time.now_s()
    assert ask(client, b"$J=G53G90X-81Y-61F6000\n") == b"ok\r\n"
    assert desk.port.moving
    assert desk.time.now_s() == begun_s, "virtual time stands still for talk"
    lasts_s = travel_time_s(0.1, 0.1 / 0.8, 1.0 / 0.8)
    lasts_s = max(lasts_s, travel_time_s(0.1, 0.1, 1.0 / 0.8))
    desk.time.advance(begun_s + lasts_s - 1e-6)
    assert desk.port.moving
    desk.time.advance(begun_s + lasts_s + 1e-6)
    assert not desk.port.moving
    np.testing.assert_allclose(desk.port.position_m, [-0.081, -0.061, -0.001], atol=1e-9)
    assert ask(client, b"?").startswith(b"<Idle|MPos:-81.000,-61.000,-1.000|")


def test_time_takes_what_has_arrived_before_it_passes(desk: Desk) -> None:
    client = desk.open("tcp")
    desk.home(client)
    for place in range(-2, -100, -1):
        client.write(b"$J=G53X%dF6000\n" % place)
        desk.time.advance(desk.time.now_s() + 10.0)
        assert desk.port.position_m[0] == pytest.approx(place * 1e-3)


@WAYS
def test_a_client_that_closes_and_comes_back_finds_the_stage_as_it_was(desk: Desk, way: str) -> None:
    client = desk.open(way)
    desk.home(client)
    client.close()
    again = desk.open(way)
    assert ask(again, b"?").startswith(b"<Idle|MPos:-1.000,-1.000,-1.000|")


def test_an_answer_that_nobody_waits_for_does_not_reach_the_next_client(desk: Desk) -> None:
    client = desk.open("terminal")
    desk.home(client)
    client.write(b"$J=G53X-51F6000\nG4P0\n")
    wait_for(lambda: desk.port.moving)
    client.close()
    over_tcp = desk.open("tcp")
    desk.time.advance(desk.time.now_s() + 10.0)
    assert ask(over_tcp, b"?")[:5] in (b"error", b"<Idle")


def test_both_wires_reach_one_machine(desk: Desk) -> None:
    terminal, over_tcp = desk.open("terminal"), desk.open("tcp")
    desk.home(terminal)
    assert ask(terminal, b"$J=G53X-51F600\n") == b"ok\r\n"
    assert ask(over_tcp, b"?").startswith(b"<Jog|")
    desk.time.advance(desk.time.now_s() + 1.0)
    assert ask(over_tcp, b"\x85?").startswith(b"<Jog|"), "still braking"
    desk.time.advance(desk.time.now_s() + 1.0)
    assert ask(terminal, b"?").startswith(b"<Idle|")
    assert -0.02 < desk.port.position_m[0] < -0.01


def test_a_second_tcp_client_is_told_so(desk: Desk) -> None:
    first = desk.open("tcp")
    assert ask(first, b"?").startswith(b"<Alarm")
    with desk.connect() as second:
        said = b""
        while chunk := second.recv(100):
            said += chunk
    assert said == BUSY
    assert ask(first, b"?").startswith(b"<Alarm")
    first.close()
    assert ask(desk.open("tcp"), b"?").startswith(b"<Alarm")


def test_the_terminal_refuses_a_second_owner(desk: Desk) -> None:
    with (
        serial.serial_for_url(str(desk.link), exclusive=True),
        pytest.raises(serial.SerialException),
        serial.serial_for_url(str(desk.link), exclusive=True),
    ):
        pass


def test_reset_on_open(tmp_path: Path) -> None:
    desk = Desk(tmp_path, reset_on_open=True)
    try:
        # a plain socket: pyserial drops what has arrived before it is open
        host, _, port = desk.port.url.removeprefix("socket://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10.0) as plain:
            heard = b""
            while not heard.endswith(b"unlock]\r\n"):
                heard += plain.recv(1024)
        assert heard.strip().startswith(GREETING)
        client = desk.open("tcp")
        client.read_until(b"unlock]\r\n")
        desk.home(client)
        client.close()
        client = desk.open("tcp")
        client.read_until(b"unlock]\r\n")
        assert ask(client, b"?").startswith(b"<Alarm|MPos:0.000,0.000,0.000|")
        assert desk.port.position_m[0] == pytest.approx(-0.001)
    finally:
        desk.close()


def test_real_time_passes_by_itself(tmp_path: Path) -> None:
    desk = Desk(tmp_path, mode="real", speed=100.0)
    try:
        client = desk.open("terminal")
        client.write(b"$H\n")
        assert client.readline() == b"ok\r\n"
        assert ask(client, b"$J=G53X-51F6000\n") == b"ok\r\n"
        assert ask(client, b"G4P0.1\n") in (b"ok\r\n", b"error:9\r\n")
        wait_for(lambda: not desk.port.moving)
        assert desk.port.position_m[0] == pytest.approx(-0.051)
    finally:
        desk.close()


def test_close_lets_everything_go(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    desk = Desk(tmp_path)
    client = desk.open("tcp")
    assert ask(client, b"?")
    desk.close()
    desk.port.close()
    assert not desk.link.is_symlink()
    assert not [thread for thread in threading.enumerate() if thread.name == "grbl stage-0"]
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before


def test_the_link_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "stage-0").write_text("precious")
    with pytest.raises(ConfigError, match="is a file") as raised:
        Desk(tmp_path)
    assert raised.value.remedy
    assert (tmp_path / "stage-0").read_text() == "precious"


def test_an_old_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "stage-0").symlink_to("/dev/pts/nowhere")
    desk = Desk(tmp_path)
    assert str(desk.link.resolve()) == desk.port.pty
    desk.close()


# --- faults -----------------------------------------------------------------------------------------------------------


@WAYS
def test_a_stall_delays_and_loses_nothing(desk: Desk, way: str) -> None:
    client = desk.open(way)
    assert ask(client, b"?")
    desk.faults.add("stall", seconds=0.6)
    client.timeout = 0.05
    client.write(b"?$I\n")
    assert client.readline() == b""
    client.timeout = 3.0
    assert [client.readline()[:5] for _ in range(4)] == [b"<Alar", b"[VER:", b"[OPT:", b"ok\r\n"]


@WAYS
def test_a_late_reply(desk: Desk, way: str) -> None:
    client = desk.open(way)
    assert ask(client, b"?")
    desk.faults.add("late-reply", after=1, seconds=0.6)
    assert ask(client, b"?").startswith(b"<Alarm")
    client.timeout = 0.05
    client.write(b"$X\n")
    assert client.readline() == b""
    wait_for(lambda: desk.port.state == "Idle")
    client.timeout = 3.0
    assert [client.readline(), client.readline()] == [b"[MSG:Caution: Unlocked]\r\n", b"ok\r\n"]


@WAYS
def test_a_duplicate_reply_and_garbage(desk: Desk, way: str) -> None:
    client = desk.open(way)
    desk.faults.add("duplicate-reply")
    client.write(b"$\n")
    assert [client.readline()[:4] for _ in range(4)] == [b"[HLP", b"ok\r\n"] * 2
    desk.faults.add("garbage", text="Zx#")
    assert ask(client, b"?").startswith(b"Zx#<Alarm")
    desk.faults.add("garbage")
    assert b"\x00" in ask(client, b"?")
    assert ask(client, b"?").startswith(b"<Alarm")


def test_a_disconnect_breaks_both_wires_and_the_link_leads_to_a_new_terminal(desk: Desk) -> None:
    terminal = desk.open("terminal")
    desk.faults.add("disconnect")
    with desk.connect() as over_tcp:
        terminal.write(b"?")
        assert over_tcp.recv(100) == b"", "the farewell of a closed connection"
    with pytest.raises((serial.SerialException, OSError)):
        ask(terminal, b"?")
    terminal.close()
    wait_for(lambda: str(desk.link.resolve()) == desk.port.pty)
    assert ask(desk.open("terminal"), b"?").startswith(b"<Alarm")
    assert ask(desk.open("tcp"), b"?").startswith(b"<Alarm")


def test_a_brown_out_forgets_the_place(desk: Desk) -> None:
    client = desk.open("terminal")
    desk.home(client)
    desk.faults.add("brown-out")
    client.write(b"$J=G53X-51F600\n")
    assert GREETING in client.read_until(b"unlock]\r\n")
    assert ask(client, b"?").startswith(b"<Alarm|MPos:0.000,0.000,0.000|")
    assert desk.port.position_m[0] == pytest.approx(-0.001)


def test_lost_steps(desk: Desk) -> None:
    client = desk.open("terminal")
    desk.home(client)
    desk.faults.add("lost-steps", after=1, value=2.5e-3)
    for place, really_m in ((-11, -0.011), (-31, -0.0285), (-1, 0.0015)):
        assert ask(client, b"$J=G53X%dF6000\n" % place) == b"ok\r\n"
        desk.time.advance(desk.time.now_s() + 5.0)
        assert b"MPos:%d.000," % place in ask(client, b"?")
        assert desk.port.position_m[0] == pytest.approx(really_m)


def test_a_limit_is_hit_while_the_stage_moves(desk: Desk) -> None:
    client = desk.open("terminal")
    desk.home(client)
    desk.faults.add("limit-hit", value=0.5)
    assert ask(client, b"$J=G53X-201F6000\n") == b"ok\r\n"
    desk.time.advance(desk.time.now_s() + 2.0)
    assert client.readline() == b"ALARM:1\r\n"
    assert client.readline() == b"[MSG:Reset to continue]\r\n"
    # 0.1 s of acceleration and 0.4 s at 0.1 m/s
    assert desk.port.position_m[0] == pytest.approx(-0.001 - 0.045, abs=1e-5)
    client.write(b"\x18")
    assert GREETING in client.read_until(b"unlock]\r\n")


def test_a_refused_connection(desk: Desk) -> None:
    desk.faults.add("refuse")
    with desk.connect() as refused:
        assert refused.recv(100) == b""
    assert ask(desk.open("tcp"), b"?").startswith(b"<Alarm")
