"""Virtual time: it passes only where somebody waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class VirtualClock:
    """See `testbed.core.devices.Clock`; deterministic, without threads and without sleeping.

    Args:
        at_s: where time begins.
    """

    def __init__(self, at_s: float = 0.0) -> None:
        self._now_s = at_s

    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._now_s

    def wait_until(self, at_s: float) -> None:
        """Pass to that instant; an instant that has passed changes nothing."""
        self._now_s = max(self._now_s, at_s)

    def set(self, at_s: float) -> None:
        """Put the clock to that instant, backwards too: where a recorded run continues."""
        self._now_s = at_s

    def concurrently(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run the tasks one after the other, each from the same instant; the clock ends at the latest end.

        Args:
            tasks: what runs side by side.

        Returns:
            results in order.

        Raises:
            Exception: the first one a task raised; the other tasks have run all the same, as they would side by side.
        """
        start_s = latest_s = self._now_s
        results: list[Any] = []
        failures: list[Exception] = []
        for task in tasks:
            self._now_s = start_s
            try:
                results.append(task())
            except Exception as failure:
                failures.append(failure)
            latest_s = max(latest_s, self._now_s)
        self._now_s = latest_s
        if failures:
            raise failures[0]
        return results
