"""The wires of an emulated GRBL controller: a pseudo terminal and a TCP port into the same serial line.

A client opens the terminal like a USB port, or the TCP port like a serial server's raw port (`socket://`). Both reach
one serial line: bytes of both are taken as they come, answers go to whoever spoke last. As behind a serial server that
leaves the control lines alone, a connection resets nothing and nobody is greeted, unless `reset_on_open` models the
reset that opening an Arduino's USB port causes; a terminal cannot show that it was opened, so that this holds for TCP
only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from sim_backend.emulators.faults import Fault, FaultPlan
from sim_backend.emulators.grbl_firmware import GrblFirmware
from sim_backend.emulators.timebase import Timebase
from testbed.core.errors import ConfigError

BUSY: Final = b"busy: another client is connected to this stage\r\n"
"""What a second TCP client reads before it is disconnected."""

_GARBAGE: Final = b"\x00\xfe<Id#\xc3\x80"
_LOST_STEPS_M: Final = 1e-3
_REQUEST_FAULTS: Final = ("stall", "disconnect", "garbage", "late-reply", "duplicate-reply", "brown-out")
_READ_BYTES: Final = 4096


class GrblPort:
    """An emulated stage that clients reach as they would reach a real one; a listener of the timebase.

    Every line and every real-time byte of a client is one opportunity for a fault. "stall": the controller neither
    hears nor speaks for `seconds`; "late-reply": it speaks `seconds` late; "duplicate-reply": the answer comes twice;
    "garbage": `text`, or noise, comes before the answer; "disconnect": the line breaks, as if a USB plug were pulled
    and put back; "brown-out": the controller restarts and takes its place for 0. Every TCP connection is an
    opportunity for "refuse". Every start from rest is one for "lost-steps", which leaves the carriage `value` metres
    behind (1 mm by default), and for "limit-hit", an ALARM:1 `value` seconds of bench time after the start.

    Args:
        name: for messages, for instance "stage-0".
        firmware: the controller.
        timebase: when it is.
        link: symbolic link to make to the terminal; an old link is replaced.
        tcp: whether to listen on a TCP port.
        faults: what goes wrong.
        reset_on_open: whether a TCP connection resets the controller.
        host: address to listen on.

    Attributes:
        name: as given.

    Raises:
        ConfigError: the link's place is taken or cannot be written, or no port can be opened.
    """

    def __init__(
        self,
        name: str,
        firmware: GrblFirmware,
        timebase: Timebase,
        *,
        link: Path | None = None,
        tcp: bool = True,
        faults: FaultPlan | None = None,
        reset_on_open: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self._firmware, self._timebase = firmware, timebase
        self._faults = FaultPlan() if faults is None else faults
        self._link, self._reset_on_open = link, reset_on_open
        self._selector = selectors.DefaultSelector()
        self._wake_end, self._wake = socket.socketpair()
        self._master = self._slave = -1
        self._server: socket.socket | None = None
        self._client: socket.socket | None = None
        self._client_spoke = self._terminal_spoke = False
        self._unheard, self._unsaid = bytearray(), bytearray()
        self._deaf_until_s = self._mute_until_s = 0.0
        self._limit_s: float | None = None
        self._starts = 0
        self._ended = threading.Event()
        self._wake_end.setblocking(False)
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        try:
            self._open_terminal()
            if tcp:
                self._server = self._listen(host)
        except BaseException:
            self._close_all()
            raise
        self._thread = threading.Thread(target=self._serve, name=f"grbl {name}", daemon=True)
        timebase.add(self)
        self._thread.start()

    @property
    def pty(self) -> str | None:
        """Path of the terminal; None where the operating system has none."""
        with self._timebase.lock:
            return None if self._slave < 0 else os.ttyname(self._slave)

    @property
    def url(self) -> str | None:
        """pyserial URL of the TCP port; None without one."""
        if self._server is None:
            return None
        host, port = self._server.getsockname()[:2]
        return f"socket://{host}:{port}"

    @property
    def position_m(self) -> np.ndarray:
        """Where the carriages really are, machine frame, shape [3]."""
        with self._timebase.lock:
            return self._firmware.machine_m(self._timebase.now_s())

    @property
    def state(self) -> str:
        """As `?` calls it, without the number behind a hold."""
        with self._timebase.lock:
            return self._firmware.state

    @property
    def moving(self) -> bool:
        """Whether a motor turns."""
        with self._timebase.lock:
            self._firmware.machine_m(self._timebase.now_s())
            return self._firmware.moving

    def settle(self, now_s: float) -> None:
        """See `timebase.Listener`."""
        with self._timebase.lock:
            if self._ended.is_set():
                return
            self._say(self._firmware.advance(now_s))
            if self._limit_s is not None and now_s >= self._limit_s:
                self._limit_s = None
                self._say(self._firmware.hit_limit(now_s))
            self._flush()  # to whoever listened when it was said; a greeting before anybody came is lost
            self._accept(now_s)
            self._hear()
            if time.monotonic() >= self._deaf_until_s:
                self._obey(now_s)
            self._flush()

    def next_event_s(self, now_s: float) -> float | None:
        """See `timebase.Listener`."""
        with self._timebase.lock:
            coming = [self._firmware.next_event_s(now_s), self._limit_s]
            return min((event_s for event_s in coming if event_s is not None), default=None)

    def close(self) -> None:
        """Disconnect everybody; may be repeated."""
        self._timebase.remove(self)
        if not self._ended.is_set():
            self._ended.set()
            self._rouse()
            self._thread.join(timeout=10.0)
            with self._timebase.lock:
                self._close_all()

    # --- hearing ------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Settle whenever a client says something, so that answers need no step of time."""
        while not self._ended.is_set():
            left_s = self._deaf_until_s - time.monotonic()
            if left_s > 0:
                self._ended.wait(left_s)
            else:
                mute_s = self._mute_until_s - time.monotonic()
                self._selector.select(max(mute_s, 0.001) if self._unsaid else None)
                with contextlib.suppress(BlockingIOError):
                    self._wake_end.recv(_READ_BYTES)
            if not self._ended.is_set():
                with self._timebase.lock:
                    self.settle(self._timebase.now_s())

    def _rouse(self) -> None:
        """The thread waits for something else from now on."""
        self._wake.send(b"x")

    def _hear(self) -> None:
        """Take everything that has arrived."""
        while self._slave >= 0:
            try:
                data = os.read(self._master, _READ_BYTES)
            except BlockingIOError:
                break
            self._unheard += data
            self._terminal_spoke, self._client_spoke = True, False
        while self._client is not None:
            try:
                data = self._client.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._drop_client()
                break
            self._unheard += data
            self._client_spoke = True

    def _obey(self, now_s: float) -> None:
        """Hand the firmware what was heard, request by request."""
        for request, whole in self._requests():
            fault = self._faults.take(*_REQUEST_FAULTS) if whole else None
            if fault is not None and fault.kind == "stall":
                self._unheard[:0] = request
                self._deaf_until_s = time.monotonic() + fault.seconds
                self._rouse()
                return
            if fault is not None and fault.kind == "disconnect":
                self._unheard.clear()
                self._disconnect()
                return
            if fault is not None and fault.kind == "brown-out":
                self._say(self._firmware.reset(now_s))
                continue
            self._say(self._spoil(self._firmware.feed(request, now_s), fault))
            self._watch_moves(now_s)

    def _requests(self) -> Iterator[tuple[bytes, bool]]:
        """Lines and real-time bytes one by one, and what is left of an unfinished line."""
        while self._unheard:
            end = next((i for i, byte in enumerate(self._unheard) if byte in b"\n?!~\x18" or byte >= 0x80), None)
            size = len(self._unheard) if end is None else end + 1
            request = bytes(self._unheard[:size])
            del self._unheard[:size]
            yield request, end is not None

    def _spoil(self, answer: bytes, fault: Fault | None) -> bytes:
        if fault is None:
            return answer
        if fault.kind == "late-reply":
            self._flush()
            self._mute_until_s = time.monotonic() + fault.seconds
            self._rouse()
            return answer
        if fault.kind == "duplicate-reply":
            return answer * 2
        return (fault.text.encode("latin-1", "replace") or _GARBAGE) + answer

    def _watch_moves(self, now_s: float) -> None:
        if self._firmware.starts == self._starts:
            return
        self._starts = self._firmware.starts
        fault = self._faults.take("lost-steps", "limit-hit")
        if fault is not None and fault.kind == "lost-steps":
            self._firmware.lose_steps(fault.value or _LOST_STEPS_M, now_s)
        elif fault is not None:
            self._limit_s = now_s + max(fault.value, 0.0)

    # --- speaking -----------------------------------------------------------------------------------------------------

    def _say(self, answer: bytes) -> None:
        self._unsaid += answer

    def _flush(self) -> None:
        """Send what is due; a client that does not read loses it, as on a serial line."""
        if not self._unsaid or time.monotonic() < max(self._mute_until_s, self._deaf_until_s):
            return
        answer, self._unsaid = bytes(self._unsaid), bytearray()
        try:
            if self._client is not None and self._client_spoke:
                self._client.send(answer)
            elif self._terminal_spoke:
                os.write(self._master, answer)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EIO):
                raise

    # --- wires --------------------------------------------------------------------------------------------------------

    def _open_terminal(self) -> None:
        if sys.platform == "win32":
            return
        import tty

        self._master, self._slave = os.openpty()
        # left open here, so that a client that closes does not end the terminal; raw, so that no byte is changed
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self._selector.register(self._master, selectors.EVENT_READ)
        if self._link is None:
            return
        if self._link.exists() and not self._link.is_symlink():
            raise ConfigError(
                f"{self._link} is a file, not a link to an emulated stage",
                key=self.name,
                remedy="remove it, or choose another folder for the stages' terminals",
            )
        try:
            self._link.parent.mkdir(parents=True, exist_ok=True)
            following = self._link.with_name(self._link.name + ".new")
            following.unlink(missing_ok=True)
            following.symlink_to(os.ttyname(self._slave))
            following.replace(self._link)  # at once: who opens the link finds the old terminal or the new one
        except OSError as error:
            raise ConfigError(
                f"cannot make the link {self._link} to the terminal: {error.strerror}",
                key=self.name,
                remedy="make its folder writable, or choose another",
            ) from error

    def _listen(self, host: str) -> socket.socket:
        try:
            server = socket.create_server((host, 0))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}: {error.strerror}", key=self.name, remedy="choose an address of this machine"
            ) from error
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)
        return server

    def _accept(self, now_s: float) -> None:
        while self._server is not None:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self._client is not None:
                # the first may have left without its farewell having been read
                self._hear()
            if self._client is not None or self._faults.take("refuse") is not None:
                with client:
                    if self._client is not None:
                        client.send(BUSY)
                continue
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(client, selectors.EVENT_READ)
            self._client, self._client_spoke = client, True
            self._rouse()
            if self._reset_on_open:
                self._unheard.clear()
                self._say(self._firmware.reset(now_s))

    def _drop_client(self) -> None:
        if self._client is not None:
            self._selector.unregister(self._client)
            self._client.close()
            self._client, self._client_spoke = None, False

    def _disconnect(self) -> None:
        """Break both wires; the terminal comes back as a new one under the same link."""
        self._unsaid.clear()
        self._drop_client()
        self._close_terminal()
        self._open_terminal()

    def _close_terminal(self) -> None:
        if self._master >= 0:
            self._selector.unregister(self._master)
            os.close(self._master)
            os.close(self._slave)
            self._master = self._slave = -1
        self._terminal_spoke = False

    def _close_all(self) -> None:
        self._drop_client()
        self._close_terminal()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._link is not None and self._link.is_symlink():
            self._link.unlink()
        self._selector.close()
        self._wake_end.close()
        self._wake.close()
