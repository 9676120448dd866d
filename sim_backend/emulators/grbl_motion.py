"""GRBL's planner and its steppers: up to 15 straight lines, looked ahead, run with trapezoidal speed profiles.

Targets fall on whole steps. Where two lines meet, the speed follows from the angle and the junction deviation `$11`:
the centripetal acceleration on a circle that leaves the corner by that much stays below the axes' acceleration.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass

from sim_backend.emulators.grbl_profile import Profile, brake, run
from sim_backend.emulators.grbl_settings import ACCELERATION, MAX_RATE, STEPS_PER_MM, Eeprom

CAPACITY = 15
"""Lines that the planner holds."""

_SLOWEST_M_S = 1e-3 / 60
"""1 mm/min, the firmware's least rate."""
_STRAIGHT = 0.999999

Steps = tuple[int, int, int]


@dataclass
class Block:
    """One straight line.

    Attributes:
        start: steps at its start.
        steps: signed steps of every axis.
        way_m: its length.
        unit: its direction.
        acceleration_m_s2: what the axes allow along it.
        rapid_m_s: the fastest that the axes allow along it.
        asked_m_s: the programmed speed.
        rapid: whether it goes at the axes' own rates.
        fixed: whether the feed override leaves it alone.
        corner_m_s: the highest speed at its start that the corner allows.
        entry_m_s: speed planned at its start.
    """

    start: Steps
    steps: Steps
    way_m: float
    unit: tuple[float, float, float]
    acceleration_m_s2: float
    rapid_m_s: float
    asked_m_s: float
    rapid: bool
    fixed: bool
    corner_m_s: float = 0.0
    entry_m_s: float = 0.0

    def nominal_m_s(self, feed_share: float, rapid_share: float) -> float:
        """Cruising speed under the overrides."""
        wanted = self.rapid_m_s * rapid_share if self.rapid else self.asked_m_s * (1.0 if self.fixed else feed_share)
        return max(min(wanted, self.rapid_m_s), _SLOWEST_M_S)

    def after(self, way_m: float) -> Steps:
        """Where the motors stand after part of the way, in steps."""
        share = min(1.0, max(0.0, way_m / self.way_m))
        x, y, z = (begin + round(share * more) for begin, more in zip(self.start, self.steps, strict=True))
        return x, y, z


class Motion:
    """What the motors do.

    Args:
        eeprom: settings, read when a line is queued.
    """

    def __init__(self, eeprom: Eeprom) -> None:
        self._eeprom = eeprom
        self._queue: deque[Block] = deque()
        self._stand: Steps = (0, 0, 0)
        self._end: Steps = (0, 0, 0)
        self._since_s = 0.0
        self._done_m = 0.0
        self._profile: Profile | None = None
        self._braking = False
        self.feed_share = 1.0
        self.rapid_share = 1.0

    @property
    def moving(self) -> bool:
        """Whether the motors turn."""
        return self._profile is not None

    @property
    def pending(self) -> int:
        """Lines in the planner, that in progress included."""
        return len(self._queue)

    @property
    def block(self) -> Block | None:
        """The line in progress, or held."""
        return self._queue[0] if self._queue else None

    def steps(self, now_s: float) -> Steps:
        """Where the motors stand, as the firmware counts."""
        if not self._queue:
            return self._stand
        return self._queue[0].after(self.done_m(now_s))

    def done_m(self, now_s: float) -> float:
        """How much of the line in progress is covered."""
        if self._profile is None:
            return self._done_m
        return self._done_m + self._profile.at(now_s - self._since_s)[0]

    def speed_m_s(self, now_s: float) -> float:
        """Along the line."""
        return 0.0 if self._profile is None else self._profile.at(now_s - self._since_s)[1]

    def reaches_s(self, way_m: float) -> float:
        """When the line in progress has covered that way, at the present plan; infinite if it does not."""
        if self._profile is None or way_m < self._done_m - 1e-9:
            return math.inf
        return self._since_s + self._profile.reaches_s(max(0.0, way_m - self._done_m))

    def next_event_s(self) -> float:
        """When the line in progress ends or stands."""
        return math.inf if self._profile is None else self._since_s + self._profile.lasts_s

    def queue(self, target_m: tuple[float, float, float], *, asked_m_s: float, rapid: bool, fixed: bool) -> bool:
        """Append a line; it does not start by itself.

        Args:
            target_m: machine coordinates.
            asked_m_s: programmed speed.
            rapid: go at the axes' own rates instead.
            fixed: the feed override does not count.

        Returns:
            False where the target is where the motors will be anyway.
        """
        per_m = [1e3 * value for value in self._eeprom.per_axis(STEPS_PER_MM)]
        goal = [round(value * ratio) for value, ratio in zip(target_m, per_m, strict=True)]
        steps = (goal[0] - self._end[0], goal[1] - self._end[1], goal[2] - self._end[2])
        if not any(steps):
            return False
        ways_m = [number / ratio for number, ratio in zip(steps, per_m, strict=True)]
        way_m = math.hypot(*ways_m)
        x, y, z = (part_m / way_m for part_m in ways_m)
        block = Block(
            start=self._end,
            steps=steps,
            way_m=way_m,
            unit=(x, y, z),
            acceleration_m_s2=self._along((x, y, z), ACCELERATION, 1e-3),
            rapid_m_s=self._along((x, y, z), MAX_RATE, 1e-3 / 60),
            asked_m_s=asked_m_s,
            rapid=rapid,
            fixed=fixed,
        )
        if self._queue:
            block.corner_m_s = self._corner_m_s(self._queue[-1], block)
        self._queue.append(block)
        self._end = (goal[0], goal[1], goal[2])
        return True

    def start(self, now_s: float) -> None:
        """Run, from rest or on, with what is queued and the present overrides."""
        if not self._queue:
            return
        self._anchor(now_s)
        self._braking = False
        self._plan(now_s)

    def hold(self, now_s: float) -> None:
        """Brake, over the ends of lines if it takes so far."""
        if self._profile is not None and not self._braking:
            self._anchor(now_s)
            self._braking = True
            self._plan(now_s)

    def step(self, now_s: float) -> bool:
        """Handle what `next_event_s` announced.

        Returns:
            whether the motors stand now: held, or at the end of the last line.
        """
        block, speed_m_s = self._queue[0], self.speed_m_s(now_s)
        self._done_m = self.done_m(now_s)
        self._since_s = now_s
        if self._done_m >= block.way_m - 1e-9:
            self._queue.popleft()
            self._stand, self._done_m = block.after(block.way_m), 0.0
            ended = not self._queue
        else:
            ended = self._braking
        if ended or (self._braking and speed_m_s <= 1e-9):
            self._profile = None
            return True
        self._plan(now_s, speed_m_s)
        return False

    def kill(self, now_s: float) -> None:
        """Stop at once and forget every line."""
        self._stand = self.steps(now_s)
        self.place(self._stand)

    def place(self, steps: Steps) -> None:
        """Forget every line and call the present place so."""
        self._queue.clear()
        self._profile, self._done_m, self._braking = None, 0.0, False
        self._stand = self._end = steps

    def _anchor(self, now_s: float) -> None:
        """Keep what has been covered so far, and the speed, as the start of a new plan."""
        if self._profile is None:
            self._since_s = now_s
            return
        way_m, speed_m_s = self._profile.at(now_s - self._since_s)
        self._done_m += way_m
        self._since_s = now_s
        self._queue[0].entry_m_s = speed_m_s

    def _plan(self, now_s: float, speed_m_s: float | None = None) -> None:
        first = self._queue[0]
        if speed_m_s is None:
            speed_m_s = first.entry_m_s if self._profile is not None else 0.0
        left_m = max(first.way_m - self._done_m, 0.0)
        if self._braking:
            self._profile = brake(left_m, from_m_s=speed_m_s, acceleration_m_s2=first.acceleration_m_s2)
            return
        self._look_ahead(speed_m_s, left_m)
        self._profile = run(
            left_m,
            from_m_s=speed_m_s,
            at_most_m_s=first.nominal_m_s(self.feed_share, self.rapid_share),
            to_m_s=self._queue[1].entry_m_s if len(self._queue) > 1 else 0.0,
            acceleration_m_s2=first.acceleration_m_s2,
        )

    def _look_ahead(self, speed_m_s: float, left_m: float) -> None:
        """Entry speeds: from the last line back, so that the motors can always stop at its end; then forward."""
        blocks = list(self._queue)
        blocks[0].entry_m_s = speed_m_s
        after_m_s = 0.0
        for before, block in zip(reversed(blocks[:-1]), reversed(blocks[1:]), strict=True):
            fastest = min(one.nominal_m_s(self.feed_share, self.rapid_share) for one in (before, block))
            brakes = math.sqrt(after_m_s**2 + 2 * block.acceleration_m_s2 * block.way_m)
            block.entry_m_s = after_m_s = min(block.corner_m_s, fastest, brakes)
        for index, (before, block) in enumerate(itertools.pairwise(blocks)):
            way_m = before.way_m if index else left_m
            reach = math.sqrt(before.entry_m_s**2 + 2 * before.acceleration_m_s2 * way_m)
            block.entry_m_s = min(block.entry_m_s, reach)

    def _along(self, unit: tuple[float, ...], setting: int, scale: float) -> float:
        """The most of a per-axis limit that a direction allows."""
        limits = self._eeprom.per_axis(setting)
        return scale * min(limit / abs(part) for limit, part in zip(limits, unit, strict=True) if part)

    def _corner_m_s(self, before: Block, block: Block) -> float:
        cosine = -sum(a * b for a, b in zip(before.unit, block.unit, strict=True))
        if cosine > _STRAIGHT:
            return 0.0
        if cosine < -_STRAIGHT:
            return math.inf
        change = [b - a for a, b in zip(before.unit, block.unit, strict=True)]
        size = math.hypot(*change)
        accel = self._along(tuple(part / size for part in change), ACCELERATION, 1e-3)
        sine = math.sqrt(0.5 * (1.0 - cosine))
        return math.sqrt(accel * self._eeprom.settings[11] * 1e-3 * sine / (1.0 - sine))
