"""The time of an emulated bench: it stands still while anybody computes, and passes when all wait.

Drivers, engine and emulators share it, so that a move takes its emulated seconds and none of the reader's, and a run
takes the same time on every machine. Tasks that run side by side are threads of which one at a time has the word;
whoever waits for the earliest instant gets it next.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from sim_backend.control_client import ControlClient
from testbed.core.errors import DeviceError


class _Turn:
    """One thread that waits for its instant."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.failure: Exception | None = None

    def wait(self) -> None:
        self.came.wait()
        if self.failure is not None:
            raise self.failure


class EmulatedClock:
    """See `testbed.core.devices.Clock`.

    Args:
        control: of the emulators, whose time it is.
    """

    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._number = itertools.count()
        self._waiting: list[tuple[float, int, _Turn]] = []
        self._closed = False
        self.ahead_s = 0.0
        """How far the emulators' time is ahead of the run's."""

    def now_s(self) -> float:
        """Seconds since the run began."""
        return float(self._control.ask("now")["now_s"]) - self.ahead_s

    def wait_until(self, at_s: float) -> None:
        """Return at that time; whoever has to wait for an earlier one goes first.

        Raises:
            DeviceError: the emulators are gone, or the clock was closed.
        """
        turn = _Turn()
        with self._lock:
            self._queue(at_s, turn)
            self._pass_on()
        turn.wait()

    def set(self, at_s: float) -> None:
        """Go on from this time: the emulators' world passes to it, or where it has passed it already, the run lags."""
        now_s = self.now_s()
        if at_s < now_s:
            self.ahead_s += now_s - at_s
        else:
            self.wait_until(at_s)

    def concurrently(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run the tasks side by side in emulated time; returns when the last has ended.

        Args:
            tasks: each waits by this clock only.

        Returns:
            results in order.

        Raises:
            Exception: the first one, in the order of tasks; the others have run all the same.
        """
        if not tasks:
            return []
        results: list[Any] = [None] * len(tasks)
        failures: dict[int, BaseException] = {}
        left = len(tasks)
        parent = _Turn()

        def run(index: int, turn: _Turn) -> None:
            nonlocal left
            try:
                turn.wait()
                results[index] = tasks[index]()
            except BaseException as failure:
                failures[index] = failure
            finally:
                with self._lock:
                    left -= 1
                    if left == 0:
                        self._queue(float("-inf"), parent)
                    self._pass_on()

        with self._lock:
            for index in range(len(tasks)):
                turn = _Turn()
                self._queue(float("-inf"), turn)
                threading.Thread(target=run, args=(index, turn), name=f"side-by-side-{index}", daemon=True).start()
            self._pass_on()
        parent.wait()
        if failures:
            raise failures[min(failures)]
        return results

    def close(self) -> None:
        """Nobody waits any more; may be repeated."""
        with self._lock:
            self._closed = True
            for _, _, turn in self._waiting:
                turn.failure = DeviceError("the bench was closed while a device was at work")
                turn.came.set()
            self._waiting.clear()

    def _queue(self, at_s: float, turn: _Turn) -> None:
        heapq.heappush(self._waiting, (at_s, next(self._number), turn))

    def _pass_on(self) -> None:
        """Give the word to whoever waits for the earliest instant, which it is then."""
        if not self._waiting:
            return
        at_s, _, turn = heapq.heappop(self._waiting)
        if self._closed:
            turn.failure = DeviceError("the bench was closed while a device was at work")
        elif at_s != float("-inf"):
            try:
                self._control.ask("advance", to_s=at_s + self.ahead_s)
            except Exception as failure:
                turn.failure = failure
        turn.came.set()


class EmulatedTrigger:
    """The external trigger line of emulated radios, see `drivers.trigger.TriggerLine`.

    Args:
        control: of the emulators.
        clock: the run's.
    """

    def __init__(self, control: ControlClient, clock: EmulatedClock) -> None:
        self._control, self._clock = control, clock

    def pulse(self, at_s: float) -> None:
        """Pull the line at that instant of the run."""
        self._control.ask("pulse", at_s=at_s + self._clock.ahead_s)

    def close(self) -> None:
        """Nothing to let go: the connection belongs to whoever opened it."""
