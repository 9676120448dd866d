"""Byte streams to devices: what a driver needs of a socket or a serial port, and TCP itself.

A driver never opens a socket or a port on its own: it asks its wire, so that what goes over it can be recorded, or
played back without the device (`drivers.wire`).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import time
from typing import Protocol, runtime_checkable

from testbed.core.errors import ConfigError, DeviceError, LinkTimeout

Data = bytes | bytearray | memoryview

SEND_TIMEOUT_S = 5.0
"""How long a send waits for a peer that takes nothing."""


class TransportTimeout(LinkTimeout):
    """Nothing came, or nothing was taken, in time; what comes later belongs to an old question."""


class TransportClosed(DeviceError):
    """Nothing answers there, or the other end has gone."""


@runtime_checkable
class Transport(Protocol):
    """An open byte stream, used by one thread at a time; `close` is legal from any."""

    @property
    def description(self) -> str:
        """What was opened, for messages."""

    def send(self, *parts: Data) -> None:
        """Send the parts in order. Raises TransportTimeout, TransportClosed."""

    def receive(self, most: int, *, timeout_s: float) -> bytes:
        """What has come, at least one byte and at most so many. Raises TransportTimeout, TransportClosed."""

    def receive_into(self, view: memoryview, *, timeout_s: float) -> int:
        """The same into a writable buffer of bytes; returns how many came."""

    def fileno(self) -> int:
        """The descriptor to wait on."""

    def close(self) -> None:
        """Let go; wakes a receive that waits in another thread; may be repeated."""


@runtime_checkable
class Wire(Protocol):
    """Where transports come from."""

    def tcp(self, host: str, port: int, *, connect_timeout_s: float) -> Transport:
        """Connect. Raises TransportClosed or TransportTimeout with what to check."""

    def serial(self, url: str, *, baud: int) -> Transport:
        """Open a serial port or a pyserial URL. Raises DeviceError with what to check."""


class TcpTransport:
    """A TCP connection without Nagle's delay.

    Args:
        host: name or address.
        port: TCP port.
        connect_timeout_s: bound of the whole attempt, looking up the name included.

    Raises:
        ConfigError: the port is no port.
        TransportClosed: refused, unreachable, or no such name.
        TransportTimeout: no answer in time.
    """

    def __init__(self, host: str, port: int, *, connect_timeout_s: float = 2.0) -> None:
        self.description = f"tcp {host}:{port}"
        self._closed = False
        self._socket = _connect(host, port, connect_timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *parts: Data) -> None:
        """Send the parts in order."""
        try:
            self._socket.settimeout(SEND_TIMEOUT_S)
            if sum(len(part) for part in parts) <= 4096:
                self._socket.sendall(b"".join(parts))
            else:
                for part in parts:
                    self._socket.sendall(part)
        except TimeoutError as error:
            raise TransportTimeout(
                f"{self.description}: the device took no data for {SEND_TIMEOUT_S:g} s",
                remedy="check that the device runs and that no other program blocks it",
            ) from error
        except OSError as error:
            raise self._gone() from error

    def receive(self, most: int, *, timeout_s: float) -> bytes:
        """What has come."""
        try:
            self._socket.settimeout(max(timeout_s, 1e-6))
            data = self._socket.recv(most)
        except TimeoutError as error:
            raise self._silent(timeout_s) from error
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        return data

    def receive_into(self, view: memoryview, *, timeout_s: float) -> int:
        """What has come, into a buffer."""
        try:
            self._socket.settimeout(max(timeout_s, 1e-6))
            count = self._socket.recv_into(view)
        except TimeoutError as error:
            raise self._silent(timeout_s) from error
        except OSError as error:
            raise self._gone() from error
        if not count:
            raise self._gone()
        return count

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Shut down and close."""
        if self._closed:
            return
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a receive in another thread, which close alone does not
        except OSError:
            pass  # the other end went first
        self._socket.close()

    def _silent(self, timeout_s: float) -> TransportTimeout:
        return TransportTimeout(
            f"{self.description}: no answer within {timeout_s:g} s",
            remedy="check that the device runs and that the cable is plugged in",
        )

    def _gone(self) -> TransportClosed:
        if self._closed:
            return TransportClosed(f"{self.description}: closed here", remedy="open the device again")
        return TransportClosed(
            f"{self.description}: the device closed the connection",
            remedy="check that the device is powered, did not restart, and that the cable is plugged in",
        )


class LiveWire:
    """The real thing."""

    def tcp(self, host: str, port: int, *, connect_timeout_s: float) -> Transport:
        """Connect over TCP."""
        return TcpTransport(host, port, connect_timeout_s=connect_timeout_s)

    def serial(self, url: str, *, baud: int) -> Transport:
        """Open a serial port through pyserial, which is imported here and not before."""
        from drivers.serial_port import open_serial

        return open_serial(url, baud)


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    where = f"{host}:{port}"
    if not 0 < port < 65_536:
        raise ConfigError(f"{where}: {port} is no TCP port", remedy="give a port from 1 to 65535")
    deadline = time.monotonic() + timeout_s
    failure: OSError | None = None
    for family, address in _addresses(host, port, timeout_s):
        candidate = socket.socket(family, socket.SOCK_STREAM)
        try:
            candidate.settimeout(max(deadline - time.monotonic(), 0.01))
            candidate.connect(address)
            return candidate
        except OSError as error:
            candidate.close()
            failure = error
    if failure is None or isinstance(failure, TimeoutError):
        raise TransportTimeout(
            f"{where}: no answer within {timeout_s:g} s",
            remedy=f"check the address, the cable and that the device is powered: ping {host}",
        ) from failure
    if failure.errno == errno.ECONNREFUSED:
        raise TransportClosed(
            f"{where}: connection refused, nothing listens on this port",
            remedy="check the port and that the device's server runs (iiod listens on 30431)",
        ) from failure
    raise TransportClosed(
        f"{where}: cannot be reached ({failure.strerror or failure})",
        remedy="check the address, the cable and this computer's network settings",
    ) from failure


def _addresses(host: str, port: int, timeout_s: float) -> list[tuple[int, tuple]]:
    """Address families and socket addresses of a host; a name is looked up aside, since that has no timeout."""
    try:
        version = ipaddress.ip_address(host.partition("%")[0]).version
    except ValueError:
        pass
    else:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        return [(found[0], found[4]) for found in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)]
    found: list[tuple[int, tuple]] = []
    failures: list[OSError] = []

    def look_up() -> None:
        try:
            found.extend((each[0], each[4]) for each in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            failures.append(error if isinstance(error, OSError) else OSError(str(error)))

    thread = threading.Thread(target=look_up, daemon=True, name=f"look up {host}")
    thread.start()
    thread.join(timeout_s)
    if found:
        return found
    raise TransportClosed(
        f"{host}: no such host name" if failures else f"{host}: the name was not found within {timeout_s:g} s",
        remedy="check the spelling, or give the numeric address (a PlutoSDR is 192.168.2.1 by default)",
    ) from (failures[0] if failures else None)
