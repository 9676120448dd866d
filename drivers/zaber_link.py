"""Zaber's own library over a transport of ours, so that ports are opened, recorded and watched in one way only.

`zaber-motion` (version 10) brings the protocol and hands ASCII messages without line ends to a custom transport. It is
used with native units alone: conversions would need Zaber's device database, which the library fetches over the
internet.
"""

from __future__ import annotations

import threading
from typing import Any

from drivers.transport import Transport, TransportTimeout
from testbed.core.errors import BenchError, ConfigError, DeviceError, StageFault

_SLICE_S = 0.1
_JOIN_S = 2.0
_LONGEST_MESSAGE = 1024


def library() -> Any:
    """The package `zaber_motion`. Raises ConfigError where it is not installed."""
    try:
        import zaber_motion
        import zaber_motion.ascii
    except ImportError as error:
        raise ConfigError(
            "Zaber stages need the package zaber-motion, which is not installed",
            remedy="pip install 'testbed[zaber]', or pip install zaber-motion==10.2.0",
        ) from error
    return zaber_motion


def is_gone(error: Exception) -> bool:
    """Whether the library says that its connection broke."""
    zaber = library()
    return isinstance(error, zaber.ConnectionClosedException | zaber.ConnectionFailedException)


def fault(name: str, error: Exception) -> StageFault:
    """What the library complains of, as a stage fault. The caller chains the cause."""
    zaber = library()
    words = str(error).removeprefix(f"{type(error).__name__}: ")
    if isinstance(error, zaber.RequestTimeoutException):
        return StageFault(
            f"{name}: no Zaber controller answers",
            remedy="check the port, the controller's power, and that it speaks ASCII at 115200 baud as device 1",
        )
    if is_gone(error):
        return StageFault(
            f"{name}: its controller is gone: {words}", remedy="check cable and power, then connect again"
        )
    if isinstance(error, zaber.MovementInterruptedException):
        return StageFault(f"{name}: was stopped on its way: {words}", remedy="move it again once that is safe")
    return StageFault(f"{name}: {words}", remedy="free the carriage, home the stage; else see the controller's manual")


class ZaberLink:
    """One connection to a chain of Zaber devices.

    Args:
        transport: the open port; closed here.
        name: for messages and threads.

    Raises:
        ConfigError: the library is not installed.
        StageFault: it refuses the connection.
    """

    def __init__(self, transport: Transport, *, name: str) -> None:
        self.transport = transport
        self._name = name
        self._ended = threading.Event()
        zaber = library()
        try:
            self._pipe: Any = zaber.ascii.Transport.open()
            self.connection: Any = zaber.ascii.Connection.open_custom(self._pipe)
        except zaber.MotionLibException as error:
            raise fault(name, error) from error
        self._threads = [
            threading.Thread(target=task, name=f"{name} {way}", daemon=True)
            for way, task in (("out", self._send), ("in", self._receive))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Let go of the port; may be repeated."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._hang_up("closed")
        self.transport.close()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _send(self) -> None:
        """What the library says, to the port."""
        zaber = library()
        while not self._ended.is_set():
            try:
                message = self._pipe.read()
                self.transport.send(f"{message}\n".encode("ascii"))
            except zaber.MotionLibException:
                return  # closed
            except BenchError as error:
                self._hang_up(error.message)
                return

    def _receive(self) -> None:
        """What comes from the port, line by line, to the library."""
        zaber = library()
        arrived = bytearray()
        while not self._ended.is_set():
            try:
                arrived += self.transport.receive(4096, timeout_s=_SLICE_S)
            except TransportTimeout:
                continue
            except DeviceError as error:
                self._hang_up(error.message)
                return
            *lines, rest = bytes(arrived).split(b"\n")
            arrived = bytearray(rest if len(rest) <= _LONGEST_MESSAGE else b"")
            for line in lines:
                text = line.decode("ascii", "replace").strip()
                if text[:1] not in ("@", "!", "#"):
                    continue  # noise: messages begin with one of these
                try:
                    self._pipe.write(text)
                except zaber.MotionLibException:
                    return  # closed

    def _hang_up(self, reason: str) -> None:
        """End the connection: every request that waits for an answer fails with this reason."""
        zaber = library()
        try:
            self._pipe.close_with_error(reason)
        except zaber.MotionLibException:
            pass  # closed already
