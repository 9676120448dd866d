"""The owner's side of the dead man: beats for as long as this process lives, so that nothing outlives it."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.grbl_line import HOLD, JOG_CANCEL
from drivers.leases import leases_folder
from drivers.watchdog import FIRE_S, Watch, remove_socket
from testbed.core.errors import ConfigError, DeviceError

GRBL_HOLD = HOLD + JOG_CANCEL
"""Bytes that a GRBL controller takes at any time but while it is homing."""
_START_S = 5.0
_BEATS = 4
"""Beats in one timeout."""
_GLANCE_S = 0.1
"""Longest wait without a look at whether all is over."""


@dataclass(frozen=True)
class HeldStage:
    """A stage that is held when its owner dies.

    Attributes:
        name: for messages, one word.
        fileno: descriptor of its open port.
        order: bytes that make it stand still. A GRBL controller that is homing hears nothing but a reset; see
            `DeadMan.order`.
    """

    name: str
    fileno: int
    order: bytes = GRBL_HOLD


class DeadMan:
    """Keeps a watchdog process informed that this one lives.

    Whatever holds the interpreter for longer than the timeout (importing a large library, for instance) looks like
    death: import first, then start it.

    Args:
        radios: uris of the radios that this process makes radiate.
        stages: the stages that it moves.
        timeout_s: longest time without a sign of life.
        stop: mutes the radios and stops the stages from within this process; called from a thread, when the watchdog
            struck or was lost, so that what this process believes agrees with what was done to its devices.
        log: file that the watchdog writes to; `watchdog.log` beside the leases by default.

    Raises:
        ConfigError: a stage's port has no descriptor.
        DeviceError: the watchdog could not be started, or does not reach a radio.
    """

    def __init__(
        self,
        radios: Sequence[str],
        stages: Sequence[HeldStage],
        timeout_s: float,
        *,
        stop: Callable[[], None],
        log: Path | None = None,
    ) -> None:
        for stage in stages:
            if stage.fileno < 0:
                raise ConfigError(
                    f"{stage.name}: this kind of port cannot be handed to the dead man",
                    key="array.antennas.stage.device.port",
                    remedy="use a serial port of this machine, or socket://HOST:PORT",
                )
        folder = Path(tempfile.mkdtemp(prefix="testbed-"))
        folder.chmod(0o755)  # anybody on this machine may stop the bench
        self.socket_path = str(folder / "dead-man")
        self._timeout_s = timeout_s
        self._stop = stop
        self._fault: DeviceError | None = None
        self._closed = threading.Event()
        watch = Watch(
            owner=os.getpid(),
            timeout_s=timeout_s,
            radios=tuple(radios),
            stages={stage.name: (stage.fileno, stage.order) for stage in stages},
            socket_path=self.socket_path,
        )
        self._process = _start(watch, leases_folder() / "watchdog.log" if log is None else log)
        self._answers = _Lines(self._process)
        try:
            self._await_ready()
        except BaseException:
            self._end()
            raise
        self._thread = threading.Thread(target=self._beat, name="dead man", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The watchdog's process."""
        return self._process.pid

    def check(self) -> None:
        """Return while the watchdog is there and has not struck.

        Raises:
            DeviceError: it struck, or is gone; the devices are mute and still.
        """
        if self._fault is not None:
            raise self._fault

    def order(self, stage: str, order: bytes) -> None:
        """Hold a stage with other bytes from now on: before and after it is homed, for instance.

        Args:
            stage: its name.
            order: bytes that make it stand still.
        """
        if not self._closed.is_set():
            self._answers.send(f"order {stage} {order.hex()}\n".encode())

    def close(self) -> None:
        """End the watch; the devices have to be mute and still before. May be repeated."""
        if self._closed.is_set():
            return
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._end()

    def _await_ready(self) -> None:
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s and not self._answers.ended:
            for line in self._answers.receive(_GLANCE_S):
                if line == "ready":
                    return
                if line.startswith("failed "):
                    failure: dict[str, Any] = json.loads(line.removeprefix("failed "))
                    raise DeviceError(f"the dead man cannot watch: {failure['message']}", remedy=failure["remedy"])
        raise DeviceError(
            "the dead man's process did not start",
            remedy=f"try: {sys.executable} -m drivers.watchdog, and look at its log",
        )

    def _beat(self) -> None:
        # the watchdog does not answer while it strikes
        patience_s = 2 * self._timeout_s + FIRE_S
        alive = True
        heard_s = due_s = time.monotonic()
        while not self._closed.is_set():
            if time.monotonic() >= due_s:
                alive = self._answers.send(b"beat\n")
                due_s = time.monotonic() + self._timeout_s / _BEATS
            for line in self._answers.receive(min(max(due_s - time.monotonic(), 0.0), _GLANCE_S)):
                heard_s = time.monotonic()
                if line.startswith("muted "):
                    self._fail(f"the dead man muted the radios and held the stages: {line.removeprefix('muted ')}")
            if not alive or self._answers.ended or time.monotonic() - heard_s > patience_s:
                if not self._closed.is_set():
                    self._process.kill()  # one that is frozen guards nothing, and would outlive this process
                    self._fail("the dead man's process is gone")
                return

    def _fail(self, what: str) -> None:
        self._fault = DeviceError(what, remedy="see that nothing is stuck, then resume the run")
        try:
            self._stop()
        except Exception as error:  # a thread that ends here would look like death
            self._fault.add_note(f"stopping from within failed too: {error}")

    def _end(self) -> None:
        self._answers.send(b"end\n")
        self._answers.close()
        try:
            self._process.wait(timeout=FIRE_S + 1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        remove_socket(self.socket_path)


class _Lines:
    """Lines to and from a process; neither direction ever blocks."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._pipes = (process.stdin, process.stdout)
        self._out, self._in = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._out, False)
        self._rest = b""
        self.ended = False

    def send(self, line: bytes) -> bool:
        """Whether there is somebody who may read it."""
        try:
            os.write(self._out, line)
        except BlockingIOError:
            pass  # it does not read: that it does not answer either shows soon
        except OSError:
            return False
        return True

    def receive(self, timeout_s: float) -> list[str]:
        """Lines that have come; waits for the first of them, at most so long."""
        if not select.select([self._in], [], [], timeout_s)[0]:
            return []
        data = os.read(self._in, 65_536)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def close(self) -> None:
        """Close both ends."""
        for pipe in self._pipes:
            pipe.close()


def _start(watch: Watch, log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as errors:
            # a session of its own: what the keyboard sends to the owner (interrupt, stop) must not reach it
            return subprocess.Popen(
                [sys.executable, "-m", "drivers.watchdog", watch.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=[descriptor for descriptor, _ in watch.stages.values()],
                start_new_session=True,
            )
    except OSError as error:
        raise DeviceError(f"the dead man's process cannot be started: {error}") from error


def ask_to_stop(socket_path: str, *, timeout_s: float = FIRE_S + 1.0) -> Mapping[str, Any]:
    """Tell a dead man of this machine to strike.

    Returns:
        muted and held: names; failed: name -> why.

    Raises:
        DeviceError: it is not there, or does not answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(timeout_s)
        try:
            caller.connect(socket_path)
            caller.sendall(b"stop\n")
            answer = b""
            while not answer.endswith(b"\n"):
                data = caller.recv(65_536)
                if not data:
                    raise ConnectionError("it hung up")
                answer += data
        except OSError as error:
            raise DeviceError(f"the dead man at {socket_path} does not answer: {error}") from error
    report: dict[str, Any] = json.loads(answer)
    return report
