"""What starts all radios at one instant: a line of a serial port, wired to their external trigger inputs.

The edge reaches every radio at once, so how late the computer is does not matter to them: captures and bursts are
counted in samples from the edge. What is late is the edge itself against the run's clock.
"""

from __future__ import annotations

from typing import Any, Protocol

from testbed.core.errors import BenchError, ConfigError, DeviceError

PULSE_S = 1e-3
"""How long the line stays active; long for a wire, short between captures."""


class Timepiece(Protocol):
    """The run's time, as controller or node know it."""

    def now_s(self) -> float: ...

    def wait_until(self, at_s: float) -> None:
        """Return at that time; at once if it has passed."""


class TriggerLine(Protocol):
    """The external trigger of all radios of a bench."""

    def pulse(self, at_s: float) -> None:
        """Wait until then and give one pulse; at once if it has passed. Raises DeviceError when it cannot."""

    def close(self) -> None:
        """Let go of the line, inactive; may be repeated."""


class SerialTriggerLine:
    """RTS or DTR of a serial port, active while it pulses.

    Both lines are asked to stay inactive before the port opens, but most operating systems raise them for a moment all
    the same. So the port is opened here, before any radio is armed, and stays open.

    Args:
        line: "rts:PORT" or "dtr:PORT", PORT as pyserial's `serial_for_url` takes it.
        clock: tells when to pulse.

    Raises:
        ConfigError: the line is none of the two, or the port has no such lines.
        DeviceError: pyserial is missing, or the port cannot be opened.
    """

    def __init__(self, line: str, *, clock: Timepiece) -> None:
        kind, _, port = line.partition(":")
        if kind not in ("rts", "dtr") or not port:
            raise ConfigError(
                f"{line!r} is no trigger line", key="radio.trigger_line", remedy="write it as rts:PORT or dtr:PORT"
            )
        if port.startswith("socket:"):
            raise ConfigError(
                f"{port} carries bytes and no control lines",
                key="radio.trigger_line",
                remedy="name a port of this computer, or one that an RFC 2217 server shares: rfc2217://HOST:PORT",
            )
        self._line = line
        self._attribute = kind
        self._clock = clock
        self._port: Any = _open(line, port)

    def pulse(self, at_s: float) -> None:
        """Make the line active at that time, or at once if it has passed, for a millisecond.

        Raises:
            DeviceError: the line is closed, or the port is gone.
        """
        if self._port is None:
            raise DeviceError(f"the trigger line {self._line} is closed")
        self._clock.wait_until(at_s)
        try:
            self._set(True)
            self._clock.wait_until(self._clock.now_s() + PULSE_S)
        finally:
            self._set(False)

    def close(self) -> None:
        """Let go of the line, inactive; may be repeated."""
        port, self._port = self._port, None
        if port is not None:
            port.close()

    def _set(self, active: bool) -> None:
        try:
            setattr(self._port, self._attribute, active)
        except OSError as error:
            raise DeviceError(
                f"the trigger line {self._line} cannot be set: {error}",
                remedy="check that the port is plugged in and has modem control lines; pseudo-terminals have none",
            ) from error


def _open(line: str, port: str) -> Any:
    try:
        import serial
    except ImportError as error:
        raise DeviceError(
            f"the trigger line {line} needs pyserial, which is not installed", remedy='pip install "pyserial>=3.5"'
        ) from error
    try:
        opened = serial.serial_for_url(port, do_not_open=True)
        opened.exclusive = True
        opened.rts = opened.dtr = False
        opened.open()
    except (OSError, ValueError) as error:
        raise _why(line, port, error) from error
    return opened


def _why(line: str, port: str, error: Exception) -> BenchError:
    if isinstance(error, ValueError):
        return ConfigError(
            f"{line!r}: {error}", key="radio.trigger_line", remedy="write it as rts:/dev/ttyUSB0 or dtr:/dev/ttyUSB0"
        )
    if "Permission denied" in str(error):
        remedy = "join the group that owns the port, on Debian: sudo adduser $USER dialout; then log in again"
    elif "busy" in str(error) or "lock" in str(error):
        remedy = "another program holds the port; end it"
    else:
        remedy = "list the ports that exist: python -m serial.tools.list_ports"
    return DeviceError(f"the trigger line {line} cannot be opened: {error}", key="radio.trigger_line", remedy=remedy)
