"""The text protocol of iiod, as libiio 0.x speaks it, without libiio.

One connection carries attributes, every buffer has its own. Whatever is out of step - a reply that is late, cut short,
garbled or that nobody asked for - closes the connection, so that no reply is ever taken for the answer to another
question; the next call opens a fresh one. Source: `iiod/parser.y`, `ops.c` and `iiod-client.c` of libiio 0.24.
"""

from __future__ import annotations

import errno
import os
import re
import select
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from drivers.iiod_context import IioContext, parse_context
from drivers.transport import Data, LiveWire, Transport, TransportClosed, TransportTimeout, Wire
from testbed.core.errors import ConfigError, ProtocolError, RadioFault

PORT = 30_431
"""Where iiod listens by default."""
LARGEST_REPLY = 1 << 24
"""Bytes of an attribute or a description beyond which a length is taken for garbage."""

_WORDS = {
    errno.EBUSY: "another client holds it",
    errno.EINVAL: "invalid value, or the chip cannot do it now",
    errno.ENOENT: "there is no such attribute",
    errno.ENODEV: "there is no such device",
    errno.EBADF: "the buffer is not open",
    errno.ENXIO: "it is not open here",
    errno.ENOMEM: "the radio has not enough memory",
    errno.ETIMEDOUT: "no samples came in time",
    errno.EPERM: "not permitted",
    errno.EACCES: "not permitted",
    errno.ENOSYS: "this server cannot do it",
    errno.EIO: "the chip does not answer",
    errno.EPIPE: "the device is gone",
}
_REMEDIES = {
    errno.EBUSY: "end the other program that uses this radio (GNU Radio, IIO Oscilloscope, another run)",
    errno.ENOMEM: "use fewer samples at once",
    errno.ENOENT: "check the radio's firmware: v0.32 or later is expected",
    errno.ENODEV: "check that this is a PlutoSDR, with its usual firmware",
    errno.EIO: "power-cycle the radio",
    errno.EPIPE: "power-cycle the radio",
}
_LINK_REMEDY = "check the cable and the radio's power; the connection is opened afresh by the next call"
_Result = TypeVar("_Result")


class IiodRefusal(RadioFault):
    """The server answered with an error number; the connection is in step.

    Attributes:
        code: the error number, positive.
    """

    def __init__(self, what: str, code: int) -> None:
        self.code = code
        words = _WORDS.get(code, os.strerror(code))
        super().__init__(
            f"{what}: {words} ({errno.errorcode.get(code, 'errno')} {code})",
            remedy=_REMEDIES.get(code, "check the value and the radio's state"),
        )


class BrokenLink(RadioFault):
    """The connection was lost or out of step and is closed."""


def parse_uri(uri: str) -> tuple[str, int]:
    """Host and port of ip:HOST, ip:HOST:PORT or ip:[V6]:PORT.

    Raises:
        ConfigError: it is written otherwise.
    """
    found = re.fullmatch(r"ip:(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", uri)
    if found is None:
        raise ConfigError(
            f"{uri!r} is no address of a radio", remedy="write ip:HOST or ip:HOST:PORT, for example ip:192.168.2.1"
        )
    return found[1] or found[2], int(found[3] or PORT)


class IiodConnection:
    """One connection in step: a question, then all of its answer. Not for several threads, except `close`.

    Args:
        transport: an open connection.
        timeout_s: for each exchange.
    """

    def __init__(self, transport: Transport, *, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._deadline_s = 0.0
        self._held = b""

    def command(self, line: str, *payload: Data, timeout_s: float | None = None) -> None:
        """Ask. Raises BrokenLink where something lies here that nobody asked for."""
        self._deadline_s = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        if self._held or self._pending():
            stray = self._held or self._transport.receive(80, timeout_s=1.0)
            raise BrokenLink(f"a reply came that nobody asked for ({stray[:40]!r})", remedy=_LINK_REMEDY)
        self._transport.send(line.encode("ascii") + b"\r\n", *payload)

    def send(self, *payload: Data) -> None:
        """Send what follows a command."""
        self._transport.send(*payload)

    def integer(self, *, timeout_s: float | None = None) -> int:
        """The next line that is not empty, a number."""
        if timeout_s is not None:
            self._deadline_s = time.monotonic() + timeout_s
        while not (line := self.line().strip()):
            pass
        if not re.fullmatch(rb"-?\d{1,12}", line):
            raise BrokenLink(f"a number was expected, {line[:40]!r} came", remedy=_LINK_REMEDY)
        return int(line)

    def checked(self, what: str) -> int:
        """The next number. Raises IiodRefusal where it is negative."""
        value = self.integer()
        if value < 0:
            raise IiodRefusal(what, -value)
        return value

    def line(self) -> bytes:
        """The next line, without its end."""
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > 4096:
                raise BrokenLink(f"no line came, but {self._held[:40]!r}", remedy=_LINK_REMEDY)
            self._held += self._transport.receive(4096, timeout_s=self._left_s())
        line, self._held = self._held[:end], self._held[end + 1 :]
        return line

    def text(self, num_bytes: int) -> bytes:
        """So many bytes and the end of their line."""
        if num_bytes > LARGEST_REPLY:
            raise BrokenLink(f"a reply of {num_bytes} bytes was announced", remedy=_LINK_REMEDY)
        data = bytearray(num_bytes + 1)
        self.fill(memoryview(data))
        if data[-1:] != b"\n":
            raise BrokenLink(f"a reply ends with {bytes(data[-20:])!r}, not with its line", remedy=_LINK_REMEDY)
        return bytes(data[:-1])

    def fill(self, view: memoryview) -> None:
        """Receive straight into a buffer of bytes until it is full."""
        filled = min(len(self._held), len(view))
        view[:filled] = self._held[:filled]
        self._held = self._held[filled:]
        while filled < len(view):
            filled += self._transport.receive_into(view[filled:], timeout_s=self._left_s())

    def exit(self) -> None:
        """Take leave as libiio does, then close."""
        try:
            self._transport.send(b"\r\nEXIT\r\n")
        except (TransportTimeout, TransportClosed):
            pass  # it is gone already
        self.close()

    def close(self) -> None:
        """Close at once; from any thread."""
        self._transport.close()

    def _pending(self) -> bool:
        descriptor = self._transport.fileno()
        return descriptor >= 0 and bool(select.select([descriptor], [], [], 0)[0])

    def _left_s(self) -> float:
        return max(self._deadline_s - time.monotonic(), 0.001)


class IiodClient:
    """Attributes of one iiod, from any thread; `drivers.iiod_buffer` has the buffers.

    Args:
        uri: ip:HOST or ip:HOST:PORT.
        wire: where connections come from; LiveWire by default.
        timeout_s: for each exchange.
        connect_timeout_s: to connect.

    Raises:
        TransportClosed, TransportTimeout: nothing answers there.
        ProtocolError: what answers is no iiod.
    """

    def __init__(
        self, uri: str, *, wire: Wire | None = None, timeout_s: float = 2.0, connect_timeout_s: float = 2.0
    ) -> None:
        self.uri = uri
        self.timeout_s = timeout_s
        self._address = parse_uri(uri)
        self._wire = wire or LiveWire()
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._connection: IiodConnection | None = None
        self._closed = False
        self.context = IioContext(uri=uri)
        try:
            self.refresh()
        except BrokenLink as error:
            raise ProtocolError(
                f"{uri}: what answers there is no iiod ({error.message})",
                remedy="check the address and the port: a PlutoSDR's iiod listens on 30431",
            ) from error

    @property
    def broken(self) -> bool:
        """Whether the connection was lost, so that the next call opens a fresh one."""
        return self._connection is None

    def refresh(self) -> IioContext:
        """Read the description of the devices again."""

        def ask(connection: IiodConnection) -> IioContext:
            connection.command("PRINT")
            return parse_context(connection.text(connection.checked("PRINT")), self.uri)

        self.context = self._exchange("PRINT", ask)
        return self.context

    def drop(self) -> None:
        """Leave the connection, whatever state it is in; the next call opens a fresh one."""
        with self._lock:
            self._drop()

    def version(self) -> tuple[int, int, str]:
        """Of the server: major, minor, and its own tag."""

        def ask(connection: IiodConnection) -> tuple[int, int, str]:
            connection.command("VERSION")
            line = connection.line().decode("ascii", "replace")
            found = re.fullmatch(r"(\d+)\.(\d+)\.(.*?)\s*", line)
            if found is None:
                raise BrokenLink(f"a version was expected, {line[:40]!r} came", remedy=_LINK_REMEDY)
            return int(found[1]), int(found[2]), found[3]

        return self._exchange("VERSION", ask)

    def set_timeout(self, timeout_s: float) -> None:
        """How long the server waits for samples; it may hold for all of its clients."""
        self._number(f"TIMEOUT {max(1, round(timeout_s * 1000))}")

    def read(
        self,
        device: str,
        attribute: str,
        *,
        channel: str | None = None,
        output: bool = False,
        kind: Literal["", "DEBUG", "BUFFER"] = "",
    ) -> str:
        """An attribute of a device, of one of its channels, or of its debug or buffer side.

        Raises:
            IiodRefusal: the server refused.
            TransportTimeout, BrokenLink: the connection was lost; nothing that comes late is ever read.
        """
        path = _path(device, attribute, channel, output, kind)

        def ask(connection: IiodConnection) -> str:
            connection.command(f"READ {path}")
            data = connection.text(connection.checked(f"{self.uri}: reading {path}"))
            return data.rstrip(b"\0\n").decode("utf-8", "replace")

        return self._exchange(f"READ {path}", ask)

    def write(
        self,
        device: str,
        attribute: str,
        value: str,
        *,
        channel: str | None = None,
        output: bool = False,
        kind: Literal["", "DEBUG", "BUFFER"] = "",
    ) -> None:
        """Set an attribute; errors as `read`."""
        path = _path(device, attribute, channel, output, kind)
        data = value.encode("utf-8") + b"\0"
        shown = value if len(value) <= 30 else f"{value[:30]}..."

        def ask(connection: IiodConnection) -> None:
            connection.command(f"WRITE {path} {len(data)}", data)
            connection.checked(f"{self.uri}: writing {path} = {shown}")

        self._exchange(f"WRITE {path} = {shown}", ask)

    def set_buffers_count(self, device: str, count: int) -> None:
        """Kernel blocks of the buffers that are opened from now on."""
        self._number(f"SET {device} BUFFERS_COUNT {count}")

    def trigger_of(self, device: str) -> str | None:
        """Name of the trigger of a device, None without."""

        def ask(connection: IiodConnection) -> str | None:
            connection.command(f"GETTRIG {device}")
            length = connection.integer()
            if length in (0, -errno.ENODEV):  # iiod says both
                return None
            if length < 0:
                raise IiodRefusal(f"{self.uri}: GETTRIG {device}", -length)
            return connection.text(length).decode("ascii", "replace")

        return self._exchange(f"GETTRIG {device}", ask)

    def connect(self) -> IiodConnection:
        """A further connection, for a buffer."""
        host, port = self._address
        transport = self._wire.tcp(host, port, connect_timeout_s=self._connect_timeout_s)
        return IiodConnection(transport, timeout_s=self.timeout_s)

    def close(self) -> None:
        """Let go; may be repeated."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.exit()
                self._connection = None

    def _number(self, line: str) -> int:
        def ask(connection: IiodConnection) -> int:
            connection.command(line)
            return connection.checked(f"{self.uri}: {line}")

        return self._exchange(line, ask)

    def _exchange(self, what: str, ask: Callable[[IiodConnection], _Result]) -> _Result:
        """One question on a connection that is in step, or closed when this raises anything but IiodRefusal."""
        with self._lock:
            if self._closed:
                raise RadioFault(f"{self.uri}: the radio is closed", remedy="open it again")
            if self._connection is None:
                self._connection = self.connect()
            try:
                return ask(self._connection)
            except IiodRefusal as refusal:
                if refusal.code == errno.ENODEV:  # iiod leaves the value of such a WRITE unread on the connection
                    self._drop()
                raise
            except (TransportTimeout, TransportClosed, BrokenLink) as error:
                self._drop()
                raise in_words(f"{self.uri}: {what}", error) from error
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def in_words(what: str, error: TransportTimeout | TransportClosed | BrokenLink) -> TransportTimeout | BrokenLink:
    """A transport's error with the question that met it."""
    kind = TransportTimeout if isinstance(error, TransportTimeout) else BrokenLink
    return kind(f"{what}: {error.message}", remedy=_LINK_REMEDY)


def _path(device: str, attribute: str, channel: str | None, output: bool, kind: str) -> str:
    if channel is not None:
        return f"{device} {'OUTPUT' if output else 'INPUT'} {channel} {attribute}"
    return f"{device} {kind} {attribute}" if kind else f"{device} {attribute}"
