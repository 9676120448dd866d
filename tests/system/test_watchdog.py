"""The dead man for real: owners that are killed, stopped or stuck, and radios that must fall silent in time."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from drivers.dead_man import DeadMan, HeldStage, ask_to_stop
from testbed.core.errors import ConfigError, DeviceError
from tests.child import ROOT, Child
from tests.fake_iiod import FakeIiod

TIMEOUT_S = 0.6
MARGIN_S = 1.5
"""What a busy machine may add."""

OWNER = """
import ctypes, os, sys
from pathlib import Path
from drivers.dead_man import DeadMan, HeldStage
from testbed.core.errors import DeviceError

def say(*words):
    # at once with its end: two threads speak
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

radios, timeout_s, log, *ports = sys.argv[1:]
stages = [HeldStage(f"stage-{index}", os.open(port, os.O_RDWR | os.O_NOCTTY)) for index, port in enumerate(ports)]
dead_man = DeadMan(radios.split(), stages, float(timeout_s), stop=lambda: say("stopped"), log=Path(log))
say(dead_man.pid, dead_man.socket_path)
for line in sys.stdin:
    if line.startswith("hog"):
        ctypes.PyDLL(None).usleep(int(line.split()[1]))  # keeps the interpreter for itself
    if line.startswith("order"):
        dead_man.order("stage-0", bytes.fromhex(line.split()[1]))
    if line.startswith("close"):
        dead_man.close()
    try:
        dead_man.check()
        say("fine")
    except DeviceError as error:
        say(error.message)
"""


def ended(pid: int, timeout_s: float) -> bool:
    """Whether a process ends within so long."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


class Owner(Child):
    """A process that owns radios and stages."""

    def __init__(self, uris: list[str], timeout_s: float, log: Path, ports: tuple[str, ...]) -> None:
        super().__init__(OWNER, " ".join(uris), str(timeout_s), str(log), *ports)
        self.watchdog = 0
        self.socket_path = ""

    def watched(self) -> None:
        """Wait until its dead man watches."""
        first = self.hear(20.0).split()
        self.watchdog, self.socket_path = int(first[0]), first[1]

    def signal(self, number: int) -> float:
        """Send it, and say when."""
        self.process.send_signal(number)
        return time.monotonic()


@dataclass
class Port:
    """A serial port, seen from the stage's side."""

    master: int
    path: str

    def hear(self, timeout_s: float) -> bytes:
        return os.read(self.master, 100) if select.select([self.master], [], [], timeout_s)[0] else b""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "watchdog.log"


@pytest.fixture
def radios() -> Iterator[list[FakeIiod]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeIiod(name)) for name in ("one", "two")]


@pytest.fixture
def port() -> Iterator[Port]:
    master, slave = os.openpty()
    tty.setraw(slave)
    yield Port(master, os.ttyname(slave))
    os.close(master)
    os.close(slave)


Own = Callable[..., Owner]


@pytest.fixture
def own(log: Path) -> Iterator[Own]:
    """Starts owners, and sees that neither they nor their watchdogs outlive the test."""
    owners: list[Owner] = []

    def start(uris: list[str], *ports: str, timeout_s: float = TIMEOUT_S) -> Owner:
        owners.append(Owner(uris, timeout_s, log, ports))
        owners[-1].watched()
        return owners[-1]

    yield start
    left = []
    for owner in owners:
        owner.end()
        if owner.watchdog and not ended(owner.watchdog, 8.0):
            os.kill(owner.watchdog, signal.SIGKILL)
            left.append(owner.watchdog)
    assert not left, f"watchdogs outlived their owners: {log.read_text()}"


def test_a_killed_owner(own: Own, radios: list[FakeIiod], port: Port, log: Path) -> None:
    owner = own([radio.uri for radio in radios], port.path)
    assert not any(radio.muted for radio in radios)
    at_s = owner.signal(signal.SIGKILL)
    assert all(radio.wait_until_muted(MARGIN_S) for radio in radios)
    assert port.hear(MARGIN_S) == b"!\x85"
    assert time.monotonic() - at_s < MARGIN_S
    assert ended(owner.watchdog, 5.0)
    assert not Path(owner.socket_path).parent.exists()
    assert "strikes: its process has ended" in log.read_text()


def test_a_stopped_owner_is_muted_in_time_and_killed_later(
    own: Own, radios: list[FakeIiod], port: Port, log: Path
) -> None:
    owner = own([radio.uri for radio in radios], port.path)
    at_s = owner.signal(signal.SIGSTOP)
    assert all(radio.wait_until_muted(TIMEOUT_S + MARGIN_S) for radio in radios)
    muted_s = time.monotonic() - at_s
    assert TIMEOUT_S / 2 < muted_s < TIMEOUT_S + MARGIN_S
    assert port.hear(MARGIN_S) == b"!\x85"
    assert owner.process.wait(timeout=2 * TIMEOUT_S + MARGIN_S) == -signal.SIGKILL
    assert time.monotonic() - at_s > 1.5 * TIMEOUT_S
    assert ended(owner.watchdog, 5.0)
    assert f"no sign of life for {TIMEOUT_S:g} s" in log.read_text()


def test_an_owner_that_wakes_up_learns_what_happened(own: Own, radios: list[FakeIiod]) -> None:
    owner = own([radio.uri for radio in radios], timeout_s=1.5)
    owner.signal(signal.SIGSTOP)
    assert all(radio.wait_until_muted(1.5 + MARGIN_S) for radio in radios)
    owner.signal(signal.SIGCONT)
    assert owner.hear() == "stopped"
    owner.tell("check")
    assert owner.hear() == "the dead man muted the radios and held the stages: no sign of life for 1.5 s"
    # it goes on watching: whatever the owner does now, its next silence is noticed as well
    radios[0].unmute()
    owner.signal(signal.SIGKILL)
    assert radios[0].wait_until_muted(MARGIN_S)


def test_an_owner_stuck_inside_the_interpreter(own: Own, radios: list[FakeIiod]) -> None:
    owner = own([radios[0].uri], timeout_s=1.5)
    owner.tell("hog 2000000")
    assert radios[0].wait_until_muted(1.5 + MARGIN_S)
    assert "stopped" in (owner.hear(), owner.hear())
    owner.tell("check")
    assert owner.hear() == "the dead man muted the radios and held the stages: no sign of life for 1.5 s"


def test_a_beating_owner_is_left_alone(own: Own, radios: list[FakeIiod], port: Port, log: Path) -> None:
    owner = own([radio.uri for radio in radios], port.path, timeout_s=1.2)
    assert port.hear(2.5) == b""
    owner.tell("close")
    assert owner.hear() == "fine"
    assert ended(owner.watchdog, 5.0)
    assert not any(radio.muted for radio in radios)
    assert "strikes" not in log.read_text()
    assert not Path(owner.socket_path).parent.exists()


def test_what_holds_a_stage_may_change(own: Own, port: Port) -> None:
    owner = own([], port.path)
    owner.tell("order 18")
    assert owner.hear() == "fine"
    owner.signal(signal.SIGKILL)
    assert port.hear(MARGIN_S) == b"\x18"


def test_one_radio_that_hangs_does_not_save_the_others(own: Own, radios: list[FakeIiod], log: Path, port: Port) -> None:
    owner = own([radio.uri for radio in radios], port.path)
    radios[0].stall()
    owner.signal(signal.SIGKILL)
    assert radios[1].wait_until_muted(MARGIN_S)
    assert port.hear(MARGIN_S) == b"!\x85"
    assert ended(owner.watchdog, 6.0)
    assert f'"failed": {{"{radios[0].uri}"' in log.read_text()


def test_a_broken_connection_is_opened_anew(own: Own, radios: list[FakeIiod]) -> None:
    owner = own([radio.uri for radio in radios])
    for radio in radios:
        radio.drop()
    owner.signal(signal.SIGKILL)
    assert all(radio.wait_until_muted(MARGIN_S) for radio in radios)


@pytest.mark.parametrize(("number", "within_s"), [(signal.SIGKILL, 2.0), (signal.SIGSTOP, 8.0)])
def test_a_watchdog_that_is_gone_is_noticed(
    own: Own, radios: list[FakeIiod], number: signal.Signals, within_s: float
) -> None:
    owner = own([radios[0].uri], timeout_s=0.4)
    os.kill(owner.watchdog, number)
    assert owner.hear(within_s) == "stopped"
    owner.tell("check")
    assert owner.hear() == "the dead man's process is gone"
    with contextlib.suppress(ProcessLookupError):
        os.kill(owner.watchdog, signal.SIGKILL)
    owner.tell("close")
    assert owner.hear() == "the dead man's process is gone"
    assert not Path(owner.socket_path).parent.exists()


def test_a_watchdog_that_is_told_to_end_strikes_first(own: Own, radios: list[FakeIiod]) -> None:
    owner = own([radios[0].uri])
    os.kill(owner.watchdog, signal.SIGTERM)
    assert radios[0].wait_until_muted(MARGIN_S)
    assert owner.hear() == "stopped"


@pytest.mark.parametrize("stopped", [False, True])
def test_the_emergency_stop(own: Own, radios: list[FakeIiod], port: Port, stopped: bool) -> None:
    owner = own([radio.uri for radio in radios], port.path, timeout_s=5.0)
    if stopped:
        owner.signal(signal.SIGSTOP)
    report = ask_to_stop(owner.socket_path)
    assert report == {"muted": [radio.uri for radio in radios], "held": ["stage-0"], "failed": {}}
    assert all(radio.muted for radio in radios)
    assert port.hear(MARGIN_S) == b"!\x85"
    if not stopped:
        assert owner.hear() == "stopped"
        owner.tell("check")
        assert owner.hear().endswith("emergency stop")


def test_nothing_that_the_keyboard_sends_reaches_it(own: Own, radios: list[FakeIiod]) -> None:
    owner = own([radios[0].uri])
    assert os.getsid(owner.watchdog) == owner.watchdog
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(owner.watchdog, number)
    owner.tell("check")
    assert owner.hear() == "fine"


def test_it_starts_fast_and_without_heavy_libraries() -> None:
    program = "import sys, drivers.watchdog; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    began_s = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    elapsed_s = time.monotonic() - began_s
    assert not {"torch", "numpy", "scipy", "pydantic", "serial", "iio", "adi", "zmq"} & set(ran.stdout.split())
    assert elapsed_s < 1.5  # about 0.1 s on an idle machine


def refused(radios: list[str], log: Path, stages: list[HeldStage] | None = None) -> tuple[DeviceError, float]:
    began_s = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        DeadMan(radios, stages or [], 1.0, stop=lambda: None, log=log)
    return caught.value, time.monotonic() - began_s


def test_a_radio_that_cannot_be_reached_is_told_at_once(radios: list[FakeIiod], log: Path) -> None:
    error, seconds = refused([radios[0].uri, "ip:127.0.0.1:1"], log)
    assert "connection refused" in str(error)
    assert error.remedy
    assert seconds < 3.0
    radios[1].stall()
    error, seconds = refused([radio.uri for radio in radios], log)
    assert "no answer within" in str(error)
    assert seconds < 3.0
    assert not any(radio.muted for radio in radios)


def test_something_else_behind_the_uri(log: Path) -> None:
    with FakeIiod(chip="adxl345") as other:
        error, _ = refused([other.uri], log)
    assert "is this a PlutoSDR?" in str(error)


def test_a_port_that_cannot_be_handed_on(log: Path) -> None:
    with pytest.raises(ConfigError, match="stage-0: this kind of port cannot be handed to the dead man"):
        DeadMan([], [HeldStage("stage-0", -1)], 1.0, stop=lambda: None, log=log)


def test_nobody_answers_the_emergency_stop(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not answer: "):
        ask_to_stop(str(tmp_path / "nothing"))
