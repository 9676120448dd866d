"""Serial ports through pyserial: a device file, a COM port, or any pyserial URL.

`socket://HOST:PORT` needs no pyserial: it is plain TCP and is opened as such. Opening a USB board's port raises its DTR
line, which resets most Arduino boards; a port that was closed here keeps DTR raised (HUPCL off), so that only the first
opening after the cable was plugged in resets the board.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from drivers.transport import SEND_TIMEOUT_S, Data, TcpTransport, Transport, TransportClosed, TransportTimeout
from testbed.core.errors import BenchError, ConfigError, DeviceError

CONNECT_TIMEOUT_S = 2.0
_SLICE_S = 0.02
"""How long one read of pyserial waits: changing its timeout would configure the port anew each time."""
_OVER_NETWORK = "rfc2217://"
_NEEDS_PYSERIAL = "install pyserial: pip install 'testbed[stage]', or pip install 'pyserial>=3.5'"


@dataclass(frozen=True)
class PortEntry:
    """A serial port of this computer.

    Attributes:
        device: what to open.
        description: what the operating system calls it.
        serial: serial number of the USB device, if it is one.
    """

    device: str
    description: str
    serial: str | None


class _Port(Protocol):
    """What is used of a pyserial port."""

    @property
    def in_waiting(self) -> int: ...
    def read(self, size: int) -> bytes: ...
    def write(self, data: bytes) -> int | None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class SerialTransport:
    """See `drivers.transport.Transport`, over an open pyserial port.

    Args:
        port: opened with a read timeout of 20 ms or so.
        description: what was opened, for messages.
    """

    def __init__(self, port: _Port, description: str) -> None:
        self.description = description
        self._port = port
        self._closed = False

    def send(self, *parts: Data) -> None:
        """Send the parts in order."""
        try:
            self._port.write(b"".join(parts))
        except _pyserial().SerialTimeoutException as error:
            raise TransportTimeout(
                f"{self.description}: the device took no data for {SEND_TIMEOUT_S:g} s",
                remedy="check that the device is powered and that flow control is off",
            ) from error
        except Exception as error:  # after a close pyserial also fails with TypeError
            raise self._gone(error) from error

    def receive(self, most: int, *, timeout_s: float) -> bytes:
        """What has come."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                waiting = self._port.in_waiting
                data = self._port.read(max(1, min(waiting, most))) if waiting or timeout_s > 0 else b""
            except Exception as error:
                raise self._gone(error) from error
            if data:
                return data
            if time.monotonic() >= deadline_s:
                raise TransportTimeout(
                    f"{self.description}: no answer within {timeout_s:g} s",
                    remedy="check that the device is powered and that the cable is plugged in",
                )

    def receive_into(self, view: memoryview, *, timeout_s: float) -> int:
        """What has come, into a buffer."""
        data = self.receive(len(view), timeout_s=timeout_s)
        view[: len(data)] = data
        return len(data)

    def fileno(self) -> int:
        """The port's descriptor; -1 where it has none (rfc2217, Windows) or is closed."""
        try:
            return self._port.fileno()
        except Exception:  # io.UnsupportedOperation, AttributeError or pyserial's own, depending on the URL
            return -1

    def close(self) -> None:
        """Let go of the port."""
        if self._closed:
            return
        self._closed = True
        try:
            self._port.close()
        except OSError:
            pass  # the device went first

    def _gone(self, error: Exception) -> DeviceError:
        if self._closed:
            return TransportClosed(f"{self.description}: closed here", remedy="open the device again")
        return TransportClosed(
            f"{self.description}: the serial connection broke ({_words(error)})",
            remedy="check the USB cable and the device's power supply, and that no other program uses the port",
        )


def open_serial(url: str, baud: int = 115_200) -> Transport:
    """Open a serial port for us alone.

    Args:
        url: `/dev/ttyUSB0`, `COM3`, `socket://HOST:PORT`, `rfc2217://HOST:PORT`, `spy://...`, `loop://`.
        baud: bits per second; a network connection and a pseudo-terminal ignore it.

    Returns:
        the open port.

    Raises:
        ConfigError: the URL cannot be understood, or pyserial is not installed.
        TransportClosed: no such port, no permission, in use, or nothing listens there.
        TransportTimeout: nothing answers at the network address.
    """
    if not url.strip():
        raise ConfigError("a serial port is needed, the name given is empty", remedy=_choice())
    if url.startswith("socket://"):
        return TcpTransport(*_host_and_port(url), connect_timeout_s=CONNECT_TIMEOUT_S)
    serial = _pyserial()
    address = _bounded(url)
    port: Any = None
    try:
        port = serial.serial_for_url(
            address,
            baudrate=baud,
            timeout=_SLICE_S,
            write_timeout=None if url.startswith(_OVER_NETWORK) else SEND_TIMEOUT_S,
            exclusive=_exclusive(url),
            do_not_open=True,
        )
        port.open()
    except Exception as error:
        if port is not None:
            _discard(port)
        raise _explained(url, error) from error
    transport = SerialTransport(port, f"serial {url}")
    _keep_dtr(transport.fileno())
    return transport


def list_ports() -> tuple[PortEntry, ...]:
    """Serial ports that this computer shows now, in the order of their names; none without pyserial."""
    try:
        from serial.tools import list_ports as found
    except ImportError:
        return ()
    entries = (PortEntry(port.device, port.description or "", port.serial_number) for port in found.comports())
    return tuple(sorted(entries, key=lambda entry: entry.device))


def _pyserial() -> Any:
    try:
        import serial
    except ImportError as error:
        raise ConfigError("serial ports need pyserial, which is not installed", remedy=_NEEDS_PYSERIAL) from error
    return serial


def _exclusive(url: str) -> bool | None:
    # only a device file can be locked; Windows always is
    return True if url.startswith("/") else None


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: {error}", remedy=f"write {url.partition(':')[0]}://HOST:PORT") from error
    if not host or port is None:
        raise ConfigError(f"{url}: host or port is missing", remedy=f"write {url.partition(':')[0]}://HOST:PORT")
    return host, port


def _discard(port: Any) -> None:
    """Close a port that did not open: pyserial leaves sockets behind, and fails on what it had not begun."""
    try:
        port.close()
    except Exception:
        pass  # why it did not open says more


def _bounded(url: str) -> str:
    """A URL that fails in time: pyserial waits 5 s for a host and 3 s for its serial server by itself."""
    if not url.startswith(_OVER_NETWORK):
        return url
    TcpTransport(*_host_and_port(url), connect_timeout_s=CONNECT_TIMEOUT_S).close()
    return url if "timeout=" in url else f"{url}{'&' if '?' in url else '?'}timeout=1.2"


def _keep_dtr(descriptor: int) -> None:
    """Leave DTR raised when the port is closed, since its next rise would reset the board."""
    if descriptor < 0:
        return
    try:
        import termios  # does not exist on Windows
    except ImportError:
        return
    try:
        attributes = termios.tcgetattr(descriptor)
        attributes[2] &= ~termios.HUPCL
        termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
    except termios.error:
        pass  # not a terminal: nothing to keep


def _explained(url: str, error: Exception) -> BenchError:
    """pyserial's complaint in words, by its errno."""
    if not isinstance(error, OSError):
        return ConfigError(
            f"{url}: not a serial port that pyserial can open ({_words(error)})",
            remedy="give a device file, socket://HOST:PORT, rfc2217://HOST:PORT or another URL of pyserial; "
            + _choice(),
        )
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return TransportClosed(f"{url}: no such serial port", remedy=_choice())
    if error.errno in (errno.EACCES, errno.EPERM):
        return TransportClosed(
            f"{url}: no permission to open this serial port",
            remedy="add yourself to the group that owns it and log in again: sudo usermod -aG dialout $USER",
        )
    if error.errno in (errno.EAGAIN, errno.EBUSY):
        return TransportClosed(
            f"{url}: another process uses this serial port",
            remedy=f"end it; find it with: fuser -v {url}",
        )
    if error.errno == errno.ENOTTY or "Could not configure port" in str(error):
        return TransportClosed(f"{url}: this is no serial port", remedy=_choice())
    return TransportClosed(
        f"{url}: cannot be opened ({_words(error)})",
        remedy="check the name, the cable and, for a network address, that its server runs; " + _choice(),
    )


def _choice() -> str:
    names = [entry.device for entry in list_ports()]
    if not names:
        return "this computer shows no serial ports; plug the device in, or give socket://HOST:PORT"
    return f"serial ports here: {', '.join(names)}"


def _words(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
