"""Real time: the controller's clock, and a node's, which knows how far it is behind the controller's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

_SPIN_S = 1e-3
"""Last part of a wait that is spent looking at the clock: sleeping is no more exact than this."""


class WallClock:
    """See `testbed.core.devices.Clock`; seconds pass by themselves.

    Args:
        at_s: what it shows first.
        monotonic: a clock that never goes back, seconds from whatever zero.
        pause: waits so many seconds, or a little longer.
    """

    def __init__(
        self,
        at_s: float = 0.0,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._monotonic = monotonic
        self._pause = pause
        self._zero_s = monotonic() - at_s

    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._monotonic() - self._zero_s

    def wait_until(self, at_s: float) -> None:
        """Return at that time or a little later; at once if it has passed."""
        while (left_s := at_s - self.now_s()) > 0:
            self._pause(left_s)

    def set(self, at_s: float) -> None:
        """Go on from this time, backwards too: where a recorded run continues."""
        self._zero_s = self._monotonic() - at_s

    def concurrently(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run every task in a thread of its own; returns when the last has ended.

        Args:
            tasks: what runs side by side.

        Returns:
            results in order.

        Raises:
            BaseException: the first in the tasks' order that one of them raised, after all have ended.
        """
        results: list[Any] = [None] * len(tasks)
        failures: dict[int, BaseException] = {}

        def carry_out(index: int) -> None:
            try:
                results[index] = tasks[index]()
            except BaseException as failure:
                failures[index] = failure

        # an interrupt of the waiting thread may leave without them: closing the devices then makes them end
        threads = [
            threading.Thread(target=carry_out, args=(index,), name=f"task {index}", daemon=True)
            for index in range(len(tasks))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[min(failures)]
        return results


class NodeClock:
    """A node's view of the controller's clock: its own monotonic clock and an offset that the controller measured.

    Args:
        offset_s: what the controller's clock shows when this one shows zero.
        monotonic: a clock that never goes back, seconds from whatever zero.
        pause: waits so many seconds, or a little longer.
    """

    def __init__(
        self,
        offset_s: float = 0.0,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.offset_s = offset_s
        self._monotonic = monotonic
        self._pause = pause

    def own_s(self) -> float:
        """This node's own clock, without the offset."""
        return self._monotonic()

    def follow(self, offset_s: float) -> None:
        """From now on the controller's clock is this one plus so much."""
        self.offset_s = offset_s

    def now_s(self) -> float:
        """The controller's clock, as well as it is known here."""
        return self._monotonic() + self.offset_s

    def wait_until(self, at_s: float) -> None:
        """Return at that time to within some ten microseconds; at once if it has passed.

        The last millisecond is spent looking at the clock, since a burst starts when this returns.
        """
        while (left_s := at_s - self.now_s()) > 0:
            if left_s > _SPIN_S:
                self._pause(left_s - _SPIN_S)
