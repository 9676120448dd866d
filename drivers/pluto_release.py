"""A loaded burst that is let go when the clock shows its time, from a thread of its own.

The process may so host several nodes whose bursts begin together, or load one burst while another one waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from drivers.pluto_port import Burst
from drivers.trigger import Timepiece
from testbed.core.errors import BenchError

_GLANCE_S = 0.05
_JOIN_S = 5.0


class TimedRelease:
    """One burst and its time.

    Args:
        burst: loaded; whoever made it closes it, after `cancel`.
        at_s: when to let it go.
        clock: tells the time.
        check: raises BenchError where the burst must not go any more.
    """

    def __init__(self, burst: Burst, at_s: float, *, clock: Timepiece, check: Callable[[], None]) -> None:
        self._burst, self._at_s, self._clock, self._check = burst, at_s, clock, check
        self._cancelled = threading.Event()
        self._failure: BenchError | None = None
        self._thread = threading.Thread(target=self._run, name="release", daemon=True)
        self._thread.start()

    def cancel(self) -> BenchError | None:
        """Let it go no more, unless it has gone; returns what kept it from going, None if nothing did."""
        self._cancelled.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)
        return self._failure

    def _run(self) -> None:
        try:
            # in slices, so that a mute or another order ends the wait
            while (left_s := self._at_s - self._clock.now_s()) > _GLANCE_S:
                self._clock.wait_until(self._at_s - left_s + _GLANCE_S)
                self._check()
                if self._cancelled.is_set():
                    return
            self._clock.wait_until(self._at_s)
            self._check()
            if not self._cancelled.is_set():
                self._burst.release()
        except BenchError as error:
            self._failure = error
