"""The one time of an emulated bench, and the order of what happens in it.

Virtual time stands still until somebody advances it; real time is the wall clock, faster or slower where that is asked.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from testbed.core.errors import ConfigError

Mode = Literal["virtual", "real"]

_SLICE_S = 0.02
_SLOWEST, _FASTEST = 1e-3, 1e3


class Listener(Protocol):
    """Whoever does something at a time of its own."""

    def settle(self, now_s: float) -> None:
        """Take all input that has already arrived, and do everything that is due by now."""

    def next_event_s(self, now_s: float) -> float | None:
        """When something is due next, later than now; None if nothing is."""


class Timebase:
    """Time, and who depends on it; safe to use from several threads.

    Listeners are settled one after the other under `lock`. Who changes the world from a thread of its own holds `lock`
    while doing so; `now_s` needs no lock.

    Args:
        mode: "virtual" or "real".
        speed: seconds that pass in a second of real time.
        start_s: what it shows first.

    Raises:
        ConfigError: no such mode, or a speed out of range.
    """

    def __init__(self, mode: Mode = "virtual", *, speed: float = 1.0, start_s: float = 0.0) -> None:
        if mode not in ("virtual", "real"):
            raise ConfigError(f"there is no time {mode!r}", key="mode", remedy="choose virtual or real")
        if not _SLOWEST <= speed <= _FASTEST:
            raise ConfigError(
                f"a speed of {speed:g}", key="speed", remedy=f"choose between {_SLOWEST:g} and {_FASTEST:g}"
            )
        if not math.isfinite(start_s):
            raise ConfigError(
                f"time cannot start at {start_s}", key="start_s", remedy="give a finite number of seconds"
            )
        self.mode: Mode = mode
        self.lock = threading.RLock()
        """Held while anything happens."""
        self._speed = speed
        self._started_s = time.monotonic()
        self._start_s = self._virtual_s = start_s
        self._listeners: tuple[Listener, ...] = ()
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    def now_s(self) -> float:
        """The present, seconds."""
        if self.mode == "virtual":
            return self._virtual_s
        return self._start_s + (time.monotonic() - self._started_s) * self._speed

    def add(self, listener: Listener) -> None:
        """Settle it from now on."""
        with self.lock:
            if not any(known is listener for known in self._listeners):
                self._listeners = (*self._listeners, listener)
            if self.mode == "real" and self._ticker is None and not self._ended.is_set():
                self._ticker = threading.Thread(target=self._tick, name="time", daemon=True)
                self._ticker.start()

    def remove(self, listener: Listener) -> None:
        """Settle it no more; a stranger changes nothing."""
        with self.lock:
            self._listeners = tuple(known for known in self._listeners if known is not listener)

    def settle(self) -> float:
        """Everything that is due by now has happened when this returns; returns now."""
        with self.lock:
            now_s = self.now_s()
            for listener in self._listeners:
                listener.settle(now_s)
            return now_s

    def advance(self, to_s: float, give_up: Callable[[], bool] = lambda: False) -> float:
        """Return at that time, everything on the way done in order.

        Args:
            to_s: when; a time that has passed only settles.
            give_up: ends the wait early, in real time.

        Returns:
            now, seconds.

        Raises:
            ConfigError: not a finite time.
        """
        if not math.isfinite(to_s):
            raise ConfigError(f"time cannot be {to_s}", key="to_s", remedy="give a finite number of seconds")
        if self.mode == "real":
            self._wait(to_s, give_up)
            return self.settle()
        with self.lock:
            while (now_s := self.settle()) < to_s:
                self._virtual_s = min([to_s, *self._coming(now_s)])
            return now_s

    def wait_until(self, to_s: float, give_up: Callable[[], bool]) -> bool:
        """For somebody who needs what will be at that time: virtual time jumps there, real time is waited for.

        Returns:
            whether it is that time; False after `give_up` said so.
        """
        if give_up():
            return False
        return self.advance(to_s, give_up) >= to_s

    def close(self) -> None:
        """End every wait; may be repeated."""
        self._ended.set()
        ticker = self._ticker
        if ticker is not None and ticker is not threading.current_thread():
            ticker.join(timeout=10.0)

    def _coming(self, now_s: float) -> list[float]:
        events = [listener.next_event_s(now_s) for listener in self._listeners]
        return [event_s for event_s in events if event_s is not None and event_s > now_s]

    def _wait(self, to_s: float, give_up: Callable[[], bool]) -> None:
        while (left_s := (to_s - self.now_s()) / self._speed) > 0 and not give_up():
            if self._ended.wait(min(left_s, _SLICE_S)):
                return

    def _tick(self) -> None:
        """Real time passes by itself: settle every listener when something is due, and often."""
        while not self._ended.is_set():
            with self.lock:
                now_s = self.settle()
                coming_s = min(self._coming(now_s), default=math.inf)
            self._ended.wait(min(max((coming_s - now_s) / self._speed, 1e-3), _SLICE_S))
