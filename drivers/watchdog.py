"""The dead man's own process: mutes radios and holds stages when its owner shows no sign of life.

Started by `drivers.dead_man.DeadMan`, which writes `beat` lines to its standard input and reads its answers. No beat
for the timeout means that the owner is frozen, the end of the input that it died. An owner that is still frozen after a
second timeout is killed, so that the kernel closes its connections and every iiod drops the buffers behind them. On a
socket of its own it takes `stop` from anybody on this machine.

It imports nothing heavy, so that it is there within half a second.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from drivers.silencer import Silencer
from testbed.core.errors import BenchError

FIRE_S = 3.0
"""How long muting and holding may take; what has not answered by then counts as not reached."""
_DRAIN_S = 0.2


@dataclass(frozen=True)
class Watch:
    """What is watched, as the owner hands it over in JSON.

    Attributes:
        owner: its process.
        timeout_s: longest time between two beats.
        radios: uris.
        stages: name -> descriptor that the owner's port was opened with, and the bytes that hold the stage.
        socket_path: where `stop` is taken.
    """

    owner: int
    timeout_s: float
    radios: tuple[str, ...]
    stages: Mapping[str, tuple[int, bytes]]
    socket_path: str

    def to_json(self) -> str:
        """For the command line."""
        stages = {name: [descriptor, hold.hex()] for name, (descriptor, hold) in self.stages.items()}
        return json.dumps({**vars(self), "stages": stages})

    @classmethod
    def from_json(cls, text: str) -> Watch:
        """From the command line."""
        content: dict[str, Any] = json.loads(text)
        stages = {name: (int(each[0]), bytes.fromhex(each[1])) for name, each in content["stages"].items()}
        return cls(**{**content, "radios": tuple(content["radios"]), "stages": stages})


class Watchdog:
    """Waits, and strikes.

    Args:
        watch: what is watched.
        say: sends a line to the owner; never fails or blocks.
        log: writes a line down.

    Raises:
        DeviceError: a radio cannot be reached: the way to mute it has to be proven before it radiates.
    """

    def __init__(self, watch: Watch, say: Callable[[str], None], log: Callable[[str], None]) -> None:
        self._watch = watch
        self._say = say
        self._log = log
        self._stages = dict(watch.stages)
        self._silencers: dict[str, Silencer] = {}
        failed = side_by_side({uri: partial(self._connect, uri) for uri in watch.radios})
        if failed:
            self.close()
            raise next(iter(failed.values()))

    def strike(self, reason: str) -> dict[str, Any]:
        """Mute every radio and hold every stage side by side, and tell everybody.

        Returns:
            muted and held: names; failed: name -> why.
        """
        self._log(f"strikes: {reason}")
        mutes = {uri: self._silencers[uri].mute for uri in self._watch.radios}
        holds = {name: partial(hold, *stage) for name, stage in self._stages.items()}
        failed = side_by_side({**mutes, **holds})
        report = {
            "muted": [uri for uri in mutes if uri not in failed],
            "held": [name for name in holds if name not in failed],
            "failed": {name: str(error).splitlines()[0] for name, error in failed.items()},
        }
        self._log(json.dumps(report))
        self._say(f"muted {reason}")
        return report

    def run(self, beats: int, wake: int, listener: socket.socket) -> None:
        """Watch until the owner has ended.

        Args:
            beats: descriptor of the owner's lines.
            wake: descriptor that turns readable when this process is asked to end.
            listener: the socket for `stop`.
        """
        lines = b""
        last_s, struck = time.monotonic(), False
        while True:
            left_s = last_s + self._watch.timeout_s * (2 if struck else 1) - time.monotonic()
            ready = select.select([beats, wake, listener.fileno()], [], [], max(left_s, 0))[0]
            if beats in ready:
                data = os.read(beats, 65_536)
                if not data:
                    self.strike("its process has ended")
                    return
                *complete, lines = (lines + data).split(b"\n")
                if b"end" in complete:
                    self._log("ends: all is closed")
                    return
                for line in complete:
                    self._take_order(line)
                if b"beat" in complete:
                    last_s, struck = time.monotonic(), False
                    self._say("beat")
            elif left_s <= 0 and not struck:
                self.strike(f"no sign of life for {self._watch.timeout_s:g} s")
                struck = True
            elif left_s <= 0:
                self._kill_owner()
                return
            if wake in ready:
                self.strike("the dead man was told to end")
                return
            if listener.fileno() in ready:
                self._answer(listener)

    def close(self) -> None:
        """Let go of the radios."""
        for silencer in self._silencers.values():
            silencer.close()

    def _connect(self, uri: str) -> None:
        self._silencers[uri] = Silencer(uri)

    def _take_order(self, line: bytes) -> None:
        """`order NAME HEX`: the bytes that hold a stage from now on."""
        match line.decode().split(" "):
            case ["order", name, order] if name in self._stages:
                self._stages[name] = (self._stages[name][0], bytes.fromhex(order))

    def _kill_owner(self) -> None:
        if os.getppid() == self._watch.owner:  # else it is gone, and its number may be another's
            self._log(f"kills process {self._watch.owner}: still no sign of life")
            os.kill(self._watch.owner, signal.SIGKILL)
        self.strike("its process was killed")

    def _answer(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(0.3)
            try:
                if connection.recv(64).strip() == b"stop":
                    report = self.strike("emergency stop")
                    connection.sendall(json.dumps(report).encode() + b"\n")
            except OSError as error:
                self._log(f"a caller went away: {error}")


def side_by_side(tasks: Mapping[str, Callable[[], None]], *, timeout_s: float = FIRE_S) -> dict[str, Exception]:
    """Carry out all tasks at once, within bounded time, whatever becomes of the others.

    Returns:
        what failed, or did not end in time: name -> why.
    """
    failed: dict[str, Exception] = {name: TimeoutError(f"no answer within {timeout_s:g} s") for name in tasks}

    def carry_out(name: str) -> None:
        try:
            tasks[name]()
        except Exception as error:
            failed[name] = error
        else:
            del failed[name]

    threads = [threading.Thread(target=carry_out, args=(name,), name=name, daemon=True) for name in tasks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return dict(failed)


def hold(descriptor: int, order: bytes) -> None:
    """Send a stage the bytes that make it stand still, over a port that the owner opened.

    Raises:
        OSError: the port took nothing.
    """
    os.write(descriptor, order)
    if os.isatty(descriptor):
        import termios

        termios.tcdrain(descriptor)  # the port may be closed right after


def remove_socket(path: str) -> None:
    """Remove the socket and the folder it alone lies in, as far as they are still there."""
    for remove, name in ((os.unlink, path), (os.rmdir, os.path.dirname(path))):
        try:
            remove(name)
        except OSError:
            pass  # gone already


def main(arguments: list[str]) -> int:
    """Run as a process; see `drivers.dead_man`."""
    watch = Watch.from_json(arguments[0])
    answers = sys.stdout.fileno()
    os.set_blocking(answers, False)

    def say(line: str) -> None:
        try:
            os.write(answers, line.encode() + b"\n")
        except OSError:
            pass  # the owner is gone or frozen

    def log(line: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} dead man of {watch.owner} {line}", file=sys.stderr, flush=True)

    wake, woken = os.pipe()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.write(woken, b"t") and None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(watch.socket_path)
            os.chmod(watch.socket_path, 0o666)  # anybody here may stop the bench
            listener.listen()
            watchdog = Watchdog(watch, say, log)
        except (BenchError, OSError) as error:
            remedy = error.remedy if isinstance(error, BenchError) else None
            headline = error.headline if isinstance(error, BenchError) else str(error)
            say("failed " + json.dumps({"message": headline, "remedy": remedy}))
            log(f"cannot watch: {headline}")
            return 1
        say("ready")
        log(f"watches {', '.join([*watch.radios, *watch.stages]) or 'nothing'}")
        try:
            watchdog.run(sys.stdin.fileno(), wake, listener)
        except BaseException as error:
            watchdog.strike(f"the dead man failed: {type(error).__name__}: {error}")
            raise
        finally:
            watchdog.close()
            remove_socket(watch.socket_path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
