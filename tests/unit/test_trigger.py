"""The trigger line: a pulse at its time on the right wire, and errors that say what to check."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from drivers.trigger import PULSE_S, SerialTriggerLine
from testbed.core.errors import ConfigError, DeviceError
from tests.fake_pluto import JumpingClock

serial = pytest.importorskip("serial", reason='pip install "pyserial>=3.5"')


class Recorder(JumpingClock):
    """Looks at the lines of a loop-back port whenever somebody waits: RTS shows as CTS, DTR as DSR."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, bool, bool]] = []
        self.line: SerialTriggerLine | None = None

    def wait_until(self, at_s: float) -> None:
        super().wait_until(at_s)
        self.look()

    def look(self) -> None:
        assert self.line is not None
        self.seen.append((self.now_s(), self.line._port.cts, self.line._port.dsr))


@pytest.mark.parametrize("kind", ["rts", "dtr"])
def test_a_pulse_is_active_for_a_millisecond_on_its_own_wire(kind: str) -> None:
    clock = Recorder()
    clock.line = line = SerialTriggerLine(f"{kind}:loop://", clock=clock)
    assert isinstance(line._port, serial.SerialBase)
    clock.look()
    line.pulse(2.0)
    clock.look()
    rts, dtr = kind == "rts", kind == "dtr"
    assert clock.seen == [
        (0.0, False, False),
        (2.0, False, False),
        (2.0 + PULSE_S, rts, dtr),
        (2.0 + PULSE_S, False, False),
    ]
    line.pulse(1.0)
    assert clock.now_s() == pytest.approx(2.0 + 2 * PULSE_S)
    for _ in range(2):
        line.close()
    with pytest.raises(DeviceError, match="closed"):
        line.pulse(3.0)


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("cts:/dev/ttyUSB0", ConfigError, "no trigger line"),
        ("rts:", ConfigError, "no trigger line"),
        ("rts:socket://127.0.0.1:1", ConfigError, "no control lines"),
        ("rts:nonsense://x", ConfigError, "not known"),
        ("dtr:/dev/no-such-port", DeviceError, "cannot be opened"),
        ("dtr:rfc2217://127.0.0.1:1", DeviceError, "refused"),
    ],
)
def test_lines_that_cannot_be_had_say_why(line: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        SerialTriggerLine(line, clock=JumpingClock())
    assert "remedy: " in str(caught.value)


def test_a_missing_pyserial_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(DeviceError, match="pip install"):
        SerialTriggerLine("rts:/dev/ttyUSB0", clock=JumpingClock())


def test_a_port_without_control_lines_is_told_at_the_pulse() -> None:
    ours, theirs = pty.openpty()
    try:
        line = SerialTriggerLine(f"rts:{os.ttyname(theirs)}", clock=JumpingClock())
        with pytest.raises(DeviceError, match="cannot be set"):
            line.pulse(1.0)
        line.close()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_port_that_is_in_use_is_told() -> None:
    ours, theirs = pty.openpty()
    try:
        line = SerialTriggerLine(f"rts:{os.ttyname(theirs)}", clock=JumpingClock())
        with pytest.raises(DeviceError, match="cannot be opened") as caught:
            SerialTriggerLine(f"rts:{os.ttyname(theirs)}", clock=JumpingClock())
        assert "another program holds the port" in str(caught.value)
        line.close()
    finally:
        os.close(ours)
        os.close(theirs)
