"""Wires that write down what goes over them, and wires that play it back without the device.

A recording is a folder with one file per connection, in the order of their opening. A file holds JSON lines: first what
was opened, then each piece with its time since then, `sent` or `received`, as text where it is printable and as base64
(`sent64`, `received64`) where it is not; `failed` says that a wait ended without anything.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from drivers.transport import Data, LiveWire, Transport, TransportClosed, TransportTimeout, Wire
from testbed.core.errors import ConfigError, DeviceError, ProtocolError

_SHOWN = 40
"""Bytes of a departure that a message shows."""


class RecordingWire:
    """Records every connection that another wire opens.

    Args:
        folder: where the files go; it is made, and files already there stay. Several processes may share it.
        inner: what really opens; LiveWire by default.
    """

    def __init__(self, folder: Path, inner: Wire | None = None) -> None:
        self._folder = folder
        self._inner = inner or LiveWire()
        folder.mkdir(parents=True, exist_ok=True)

    def tcp(self, host: str, port: int, *, connect_timeout_s: float) -> Transport:
        """Connect, and record."""
        return self._open(
            "tcp", f"{host}:{port}", lambda: self._inner.tcp(host, port, connect_timeout_s=connect_timeout_s)
        )

    def serial(self, url: str, *, baud: int) -> Transport:
        """Open a serial port, and record."""
        return self._open("serial", url, lambda: self._inner.serial(url, baud=baud))

    def _open(self, kind: str, target: str, connect: Callable[[], Transport]) -> Transport:
        log = _Log(self._folder, kind, target)
        try:
            return _RecordingTransport(connect(), log)
        except DeviceError as error:
            log.write("refused", {"error": type(error).__name__, "message": error.message, "remedy": error.remedy})
            log.close()
            raise


class _Log:
    """One connection's file."""

    def __init__(self, folder: Path, kind: str, target: str) -> None:
        self._began_s = time.monotonic()
        self._lock = threading.Lock()
        self._file = self._create(folder, f"{kind}-{re.sub(r'[^0-9A-Za-z.]+', '-', target).strip('-')}")
        self._line({"opened": kind, "target": target, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    @staticmethod
    def _create(folder: Path, name: str) -> TextIO:
        number = sum(1 for _ in folder.glob("*.jsonl"))
        while True:
            try:
                return (folder / f"{number:05d}-{name}.jsonl").open("x", encoding="ascii", buffering=1)
            except FileExistsError:
                number += 1

    def piece(self, direction: str, data: bytes) -> None:
        if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in data):
            self.write(direction, data.decode("ascii"))
        else:
            self.write(f"{direction}64", base64.b64encode(data).decode("ascii"))

    def write(self, key: str, value: Any) -> None:
        self._line({"t": round(time.monotonic() - self._began_s, 6), key: value})

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _line(self, entry: dict[str, Any]) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.write(json.dumps(entry) + "\n")


class _RecordingTransport:
    """Passes everything on. What is sent is written down before it goes, so that an answer never precedes it."""

    def __init__(self, inner: Transport, log: _Log) -> None:
        self._inner = inner
        self._log = log
        self.description = inner.description

    def send(self, *parts: Data) -> None:
        self._log.piece("sent", b"".join(parts))
        try:
            self._inner.send(*parts)
        except DeviceError as error:
            self._failed(error)
            raise

    def receive(self, most: int, *, timeout_s: float) -> bytes:
        try:
            data = self._inner.receive(most, timeout_s=timeout_s)
        except DeviceError as error:
            self._failed(error)
            raise
        self._log.piece("received", data)
        return data

    def receive_into(self, view: memoryview, *, timeout_s: float) -> int:
        try:
            count = self._inner.receive_into(view, timeout_s=timeout_s)
        except DeviceError as error:
            self._failed(error)
            raise
        self._log.piece("received", bytes(view[:count]))
        return count

    def fileno(self) -> int:
        return self._inner.fileno()

    def close(self) -> None:
        self._inner.close()
        self._log.close()

    def _failed(self, error: DeviceError) -> None:
        self._log.write("failed", "timeout" if isinstance(error, TransportTimeout) else "closed")


@dataclass
class _Recorded:
    """One recorded connection.

    Attributes:
        sent: all that was sent.
        received: pieces that came, each with how many bytes had been sent before it; None is a wait that timed out.
        closed_after: bytes that had been sent when the other end went, None where it did not.
        refused: why it was not opened.
    """

    name: str
    sent: bytearray = field(default_factory=bytearray)
    received: list[tuple[int, bytes | None]] = field(default_factory=list)
    closed_after: int | None = None
    refused: dict[str, str] | None = None


class ReplayWire:
    """Answers as a recording did, and fails at the first byte sent that differs; after that it fails alike for ever.

    Connections to one target are handed out in their recorded order. How sends and receives are cut into pieces does
    not matter; an answer comes only when everything has been sent that had been sent before it.

    Args:
        folder: a recording.

    Raises:
        ConfigError: there is no recording, or a file of it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], list[_Recorded]] = {}
        self._open: list[_ReplayTransport] = []
        self._departure = _Departure()
        files = sorted(folder.glob("*.jsonl"))
        if not files:
            raise ConfigError(
                "no recorded connections here", file=folder, remedy="give a folder that --record-wire wrote"
            )
        for path in files:
            key, recorded = _read(path)
            self._waiting.setdefault(key, []).append(recorded)

    def tcp(self, host: str, port: int, *, connect_timeout_s: float) -> Transport:
        """The next recorded connection to this address."""
        return self._take("tcp", f"{host}:{port}")

    def serial(self, url: str, *, baud: int) -> Transport:
        """The next recorded opening of this port."""
        return self._take("serial", url)

    def check_complete(self) -> None:
        """Raise ProtocolError where connections were never opened, or less was sent on them than was recorded."""
        for waiting in self._waiting.values():
            if waiting:
                raise ProtocolError(f"{waiting[0].name}: recorded, but never opened", remedy=_REMEDY)
        for transport in self._open:
            transport.check_complete()

    def _take(self, kind: str, target: str) -> Transport:
        with self._lock:
            waiting = self._waiting.get((kind, target), [])
            self._departure.check()
            if not waiting:
                raise self._departure.here(
                    f"{self._folder}: the recording holds no further {kind} connection to {target}"
                )
            recorded = waiting.pop(0)
            if recorded.refused is not None:
                kinds = {"TransportTimeout": TransportTimeout, "TransportClosed": TransportClosed}
                error = kinds.get(recorded.refused["error"], DeviceError)
                raise error(recorded.refused["message"], remedy=recorded.refused["remedy"])
            transport = _ReplayTransport(recorded, self._departure)
            self._open.append(transport)
            return transport


_REMEDY = "the driver speaks differently than when this was recorded: find out why, or record anew"


class _Departure:
    """Where a driver first spoke differently, on whichever connection: what it does after that follows from it."""

    def __init__(self) -> None:
        self._message: str | None = None
        self._lock = threading.Lock()

    def here(self, message: str) -> ProtocolError:
        """The error to raise; it tells the first departure, which this may be."""
        with self._lock:
            self._message = self._message or message
            return ProtocolError(self._message, remedy=_REMEDY)

    def check(self) -> None:
        """Return while there was none."""
        if self._message is not None:
            raise ProtocolError(self._message, remedy=_REMEDY)


class _ReplayTransport:
    """One connection, played back."""

    def __init__(self, recorded: _Recorded, departure: _Departure) -> None:
        self._recorded = recorded
        self._departure = departure
        self.description = f"replay of {recorded.name}"
        self._num_sent = 0
        self._next = 0
        self._rest = b""
        self._closed = False

    def send(self, *parts: Data) -> None:
        self._check_open()
        data = b"".join(parts)
        expected = bytes(self._recorded.sent[self._num_sent : self._num_sent + len(data)])
        if data != expected:
            same = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), len(expected))
            at = self._num_sent + same
            wanted = bytes(self._recorded.sent[at : at + _SHOWN])
            raise self._departure.here(
                f"{self._recorded.name}: byte {at} sent differs: expected "
                f"{wanted or 'nothing more'!r}, got {data[same : same + _SHOWN]!r}"
            )
        self._num_sent += len(data)

    def receive(self, most: int, *, timeout_s: float) -> bytes:
        self._check_open()
        if not self._rest:
            self._rest = self._piece(timeout_s)
        data, self._rest = self._rest[:most], self._rest[most:]
        return data

    def receive_into(self, view: memoryview, *, timeout_s: float) -> int:
        data = self.receive(len(view), timeout_s=timeout_s)
        view[: len(data)] = data
        return len(data)

    def fileno(self) -> int:
        """There is no descriptor to wait on."""
        return -1

    def close(self) -> None:
        self._closed = True

    def check_complete(self) -> None:
        missing = self._recorded.sent[self._num_sent :]
        if missing:
            raise ProtocolError(
                f"{self._recorded.name}: byte {self._num_sent} was never sent: expected {bytes(missing[:_SHOWN])!r}",
                remedy=_REMEDY,
            )

    def _piece(self, timeout_s: float) -> bytes:
        """The next piece that may come now. A timeout holds while nothing more is sent, and is gone after that."""
        pieces = self._recorded.received
        while self._next < len(pieces) and pieces[self._next][1] is None and pieces[self._next][0] < self._num_sent:
            self._next += 1
        after, data = pieces[self._next] if self._next < len(pieces) else (None, None)
        if after is not None and after <= self._num_sent:
            self._next += 1
            if data is not None:
                return data
        closed = self._recorded.closed_after
        if after is None and closed is not None and closed <= self._num_sent:
            raise TransportClosed(f"{self.description}: the device closed the connection")
        waited = self._next > 0 and pieces[self._next - 1] == (self._num_sent, None)
        if waited:
            raise TransportTimeout(f"{self.description}: no answer within {timeout_s:g} s")
        raise self._departure.here(
            f"{self._recorded.name}: after {self._num_sent} bytes sent the driver waits for an answer, "
            + ("but the recording ends" if after is None else f"which came only after {after} bytes")
        )

    def _check_open(self) -> None:
        self._departure.check()
        if self._closed:
            raise TransportClosed(f"{self.description}: closed here")


def _read(path: Path) -> tuple[tuple[str, str], _Recorded]:
    """What was opened, and what went over it."""
    recorded = _Recorded(path.name)
    try:
        with path.open(encoding="ascii") as lines:
            header = json.loads(next(lines))
            for line in lines:
                _add(recorded, json.loads(line))
        return (header["opened"], header["target"]), recorded
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigError(
            f"this is no recorded connection ({type(error).__name__}: {error})",
            file=path,
            remedy="record anew with --record-wire",
        ) from error


def _add(recorded: _Recorded, entry: dict[str, Any]) -> None:
    for key, value in entry.items():
        if key == "sent":
            recorded.sent += value.encode("ascii")
        elif key == "sent64":
            recorded.sent += base64.b64decode(value, validate=True)
        elif key == "received":
            recorded.received.append((len(recorded.sent), value.encode("ascii")))
        elif key == "received64":
            recorded.received.append((len(recorded.sent), base64.b64decode(value, validate=True)))
        elif key == "refused":
            recorded.refused = value
        elif value == "timeout":
            recorded.received.append((len(recorded.sent), None))
        elif value == "closed":
            recorded.closed_after = len(recorded.sent)
