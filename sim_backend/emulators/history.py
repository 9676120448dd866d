"""What held when: settings and positions are remembered for as long as samples of that time may still be wanted."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """A stretch of consecutive samples.

    Attributes:
        origin_s: instant from which samples are counted.
        first: number of the first sample since then.
        count: how many.
        rate_hz: samples in a second.
    """

    origin_s: float
    first: int
    count: int
    rate_hz: float

    @property
    def start_s(self) -> float:
        """Instant of the first sample."""
        return self.origin_s + self.first / self.rate_hz

    @property
    def stop_s(self) -> float:
        """Instant after the last sample."""
        return self.origin_s + (self.first + self.count) / self.rate_hz

    def index(self, at_s: float) -> int:
        """The sample nearest to an instant, counted from the first; infinite instants lie beyond either end."""
        if math.isinf(at_s):
            return -(2**62) if at_s < 0 else 2**62
        return round((at_s - self.origin_s) * self.rate_hz) - self.first

    def part(self, start: int, stop: int) -> Window:
        """Samples `start` up to `stop`."""
        return Window(self.origin_s, self.first + start, stop - start, self.rate_hz)

    def following(self) -> Window:
        """As many samples right after these."""
        return Window(self.origin_s, self.first + self.count, self.count, self.rate_hz)


class History(Generic[T]):
    """A value that changes at instants. Reading needs no lock; only one thread writes at a time.

    Args:
        value: what held before the first change.
    """

    def __init__(self, value: T) -> None:
        self._changes: tuple[tuple[float, T], ...] = ((-math.inf, value),)

    @property
    def latest(self) -> T:
        """What holds now."""
        return self._changes[-1][1]

    def record(self, at_s: float, value: T) -> None:
        """It holds from this instant on, which is not before the last one."""
        if value == self.latest:
            return
        kept = self._changes[:-1] if at_s <= self._changes[-1][0] else self._changes
        self._changes = (*kept, (at_s, value))

    def between(self, start_s: float, stop_s: float) -> list[tuple[float, float, T]]:
        """What held in a stretch of time, as (from, to, value) in order; the first and the last reach beyond it."""
        changes = self._changes
        ends = [at_s for at_s, _ in changes[1:]] + [math.inf]
        return [
            (at_s, end_s, value)
            for (at_s, value), end_s in zip(changes, ends, strict=True)
            if at_s < stop_s and end_s > start_s
        ]

    def forget_before(self, at_s: float) -> None:
        """What held before that instant is not asked for any more."""
        last = bisect_right([since_s for since_s, _ in self._changes], at_s)
        self._changes = self._changes[max(last - 1, 0) :]


class Track:
    """Where antennas were: known at instants, and on straight lines in between.

    Args:
        positions_m: tells where they are now, shape [num_antennas, 2].
    """

    def __init__(self, positions_m: Callable[[], np.ndarray]) -> None:
        self._ask = positions_m
        self._seen_s = -math.inf
        self._points: tuple[tuple[float, np.ndarray], ...] = ((-math.inf, self._asked()),)

    def look(self, now_s: float) -> bool:
        """Note where they are; returns whether they have moved since the last look."""
        here_m = self._asked()
        last_s, last_m = self._points[-1]
        moved = not np.array_equal(here_m, last_m)
        if moved:
            stood = () if self._seen_s <= last_s else ((self._seen_s, last_m),)
            kept = self._points[:-1] if now_s <= last_s else self._points
            self._points = (*kept, *stood, (now_s, here_m))
        self._seen_s = max(self._seen_s, now_s)
        return moved

    def at(self, at_s: float) -> np.ndarray:
        """Where they were at an instant, shape [num_antennas, 2]; the same array for as long as they stood still."""
        points = self._points
        after = bisect_right([since_s for since_s, _ in points], at_s)
        if after == 0:
            return points[0][1]
        before_s, before_m = points[after - 1]
        if after == len(points) or before_s == -math.inf:
            return before_m
        after_s, after_m = points[after]
        if np.array_equal(before_m, after_m):
            return before_m
        return before_m + (after_m - before_m) * ((at_s - before_s) / (after_s - before_s))

    def forget_before(self, at_s: float) -> None:
        """Where they were before that instant is not asked for any more."""
        last = bisect_right([since_s for since_s, _ in self._points], at_s)
        self._points = self._points[max(last - 1, 0) :]

    def _asked(self) -> np.ndarray:
        here_m = np.array(self._ask(), dtype=np.float64)
        here_m.flags.writeable = False
        return here_m
