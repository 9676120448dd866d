"""The machine behind a GRBL controller: carriages on screws, limit switches and end stops, and the homing cycle.

The machine's own frame is the one in which a homed GRBL counts: switches at 0 and at minus the travel, carriages
between them. What the firmware believes and where the carriages are differ until the machine is homed, and again after
steps are lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sim_backend.emulators.grbl_profile import Profile, run
from sim_backend.emulators.grbl_settings import ACCELERATION, MAX_RATE, MAX_TRAVEL, Eeprom

Place = tuple[float, float, float]

_CLOSES_M = 1e-9
"""A switch closes this far beyond its place, so that going to the last legal place does not press it."""
_OVERTRAVEL_M = 2e-3
"""From a switch to the end stop, where the motor stalls."""

HOMING_DOOR, HOMING_STILL_PRESSED, HOMING_NOT_FOUND = 7, 8, 9
_SEARCH, _LOCATE = 1.5, 5.0
"""How far the switches are searched: travels at first, pull-offs afterwards."""


@dataclass(frozen=True)
class Machine:
    """What is screwed together.

    Attributes:
        travel_m: between the two switches of every axis.
        start_m: where the carriages stand when the power comes on, machine frame; mid-travel by default.
        switches: whether an axis has limit switches.
        homing_cycles: axes homed together, in order; the stock build homes Z, then X and Y.
    """

    travel_m: Place = (0.2, 0.2, 0.2)
    start_m: Place | None = None
    switches: tuple[bool, bool, bool] = (True, True, True)
    homing_cycles: tuple[tuple[int, ...], ...] = ((2,), (0, 1))


class Carriages:
    """Where the carriages really are.

    Args:
        machine: what they run on.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._at_m = list(machine.start_m or [-travel / 2 for travel in machine.travel_m])
        self._believed_m: Place = (0.0, 0.0, 0.0)

    def at_m(self, believed_m: Place) -> Place:
        """Where they are when the firmware believes `believed_m`."""
        x, y, z = (self._clip(i, self._at_m[i] + believed_m[i] - self._believed_m[i]) for i in range(3))
        return x, y, z

    def follow(self, believed_m: Place) -> None:
        """The motors have turned from where they were believed to be to here."""
        self._at_m = list(self.at_m(believed_m))
        self._believed_m = believed_m

    def rename(self, believed_m: Place) -> None:
        """The firmware calls this place so; nothing has moved."""
        self._believed_m = believed_m

    def put(self, at_m: Sequence[float], believed_m: Place) -> None:
        """The carriages are here, and the firmware calls it so."""
        self._at_m = [self._clip(axis, value) for axis, value in enumerate(at_m)]
        self._believed_m = believed_m

    def shift(self, by_m: Sequence[float]) -> None:
        """Lost steps: the carriages are elsewhere, and the firmware does not know."""
        self._at_m = [self._clip(axis, value + by_m[axis]) for axis, value in enumerate(self._at_m)]

    def pressed(self, at_m: Place) -> tuple[bool, bool, bool]:
        """Which axes press a switch at a place."""
        x, y, z = (
            self.machine.switches[i] and not -self.machine.travel_m[i] - _CLOSES_M < at_m[i] < _CLOSES_M
            for i in range(3)
        )
        return x, y, z

    def changes_at_m(self, from_m: Place, unit: Sequence[float], beyond_m: float) -> float:
        """Way along a line, not less than `beyond_m`, at which a switch closes or opens; infinite if none does."""
        ways = [math.inf]
        for axis in range(3):
            if self.machine.switches[axis] and unit[axis]:
                for edge in (_CLOSES_M, -self.machine.travel_m[axis] - _CLOSES_M):
                    ways.append((edge - from_m[axis]) / unit[axis])
        return min(way_m for way_m in ways if way_m > beyond_m - 0.1 * _CLOSES_M)

    def _clip(self, axis: int, value: float) -> float:
        return min(max(value, -self.machine.travel_m[axis] - _OVERTRAVEL_M), _OVERTRAVEL_M)


@dataclass(frozen=True)
class _Leg:
    """One move of a homing cycle: every axis goes the same way until its own stop."""

    begins_s: float
    lasts_s: float
    from_m: Place
    direction: Place
    profile: Profile
    stops_m: Place

    def at(self, now_s: float) -> tuple[Place, Place]:
        """Where the carriages are, and how far the firmware has counted."""
        way_m = self.profile.at(max(0.0, now_s - self.begins_s))[0]
        x, y, z = (sign * min(way_m, stop) for sign, stop in zip(self.direction, self.stops_m, strict=True))
        return (self.from_m[0] + x, self.from_m[1] + y, self.from_m[2] + z), (x, y, z)


class HomingCycle:
    """`$H`: seek the switches fast, back off, find them again slowly, back off.

    Nothing but a reset or the safety door interrupts it, so that all of it is known when it starts.

    Args:
        carriages: what moves.
        eeprom: `$22` to `$27` and the axes' limits.
        at_m: where the carriages stand.
        begins_s: when.

    Attributes:
        ends_s: when the last motor has stopped and settled.
        alarm: what the firmware reports then, 0 for success.
    """

    def __init__(self, carriages: Carriages, eeprom: Eeprom, at_m: Place, begins_s: float) -> None:
        self._carriages, self._eeprom = carriages, eeprom
        self._legs: list[_Leg] = []
        self._at_m = at_m
        self.ends_s = begins_s
        self.alarm = 0
        for axes in carriages.machine.homing_cycles:
            self._home(axes)
            if self.alarm:
                break

    def at(self, now_s: float) -> tuple[Place, Place]:
        """Where the carriages are, and how far the firmware has counted since its last zero."""
        current = self._legs[0]
        for leg in self._legs:
            if leg.begins_s <= now_s:
                current = leg
        return current.at(now_s)

    def homed_m(self) -> Place:
        """What the firmware calls the place where the cycle ends: the pull-off away from the switches."""
        pull_m = self._eeprom.settings[27] * 1e-3
        travel = self._eeprom.per_axis(MAX_TRAVEL)
        x, y, z = (pull_m - travel[i] * 1e-3 if self._backwards(i) else -pull_m for i in range(3))
        return x, y, z

    def homed_axes(self) -> set[int]:
        """Axes that the cycle sets."""
        return {axis for axes in self._carriages.machine.homing_cycles for axis in axes}

    def _home(self, axes: tuple[int, ...]) -> None:
        settings = self._eeprom.settings
        seek_m_s, feed_m_s = (max(settings[i], 1.0) * 1e-3 / 60 for i in (25, 24))
        pull_m = settings[27] * 1e-3
        travel = self._eeprom.per_axis(MAX_TRAVEL)
        search_m = _SEARCH * 1e-3 * max(travel[axis] for axis in axes)
        for approach, way_m, rate_m_s in (
            (True, search_m, seek_m_s),
            (False, pull_m, seek_m_s),
            (True, pull_m * _LOCATE, feed_m_s),
            (False, pull_m, seek_m_s),
        ):
            self._leg(axes, approach, way_m, rate_m_s)
            if self.alarm:
                return

    def _leg(self, axes: tuple[int, ...], approach: bool, way_m: float, rate_m_s: float) -> None:
        limits = (self._eeprom.per_axis(MAX_RATE), self._eeprom.per_axis(ACCELERATION))
        profile = run(
            way_m,
            from_m_s=0.0,
            at_most_m_s=min(rate_m_s, min(limits[0][axis] for axis in axes) * 1e-3 / 60),
            to_m_s=0.0,
            acceleration_m_s2=min(limits[1][axis] for axis in axes) * 1e-3,
        )
        direction, stops = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        for axis in axes:
            direction[axis] = -1.0 if self._backwards(axis) == approach else 1.0
            stops[axis] = self._to_switch_m(axis) if approach else way_m
        lasts_s = max(profile.reaches_s(stops[axis]) for axis in axes) if approach else profile.lasts_s
        if not math.isfinite(lasts_s):
            lasts_s, self.alarm = profile.lasts_s, HOMING_NOT_FOUND
        leg = _Leg(
            self.ends_s, lasts_s, self._at_m, (direction[0], direction[1], direction[2]), profile,
            (stops[0], stops[1], stops[2]),
        )  # fmt: skip
        self._legs.append(leg)
        self.ends_s += lasts_s
        self._at_m = leg.at(self.ends_s)[0]
        if not self.alarm:
            self.ends_s += self._eeprom.settings[26] * 1e-3
        if not approach and not self.alarm and any(self._to_switch_m(axis) <= _CLOSES_M for axis in axes):
            self.alarm = HOMING_STILL_PRESSED

    def _to_switch_m(self, axis: int) -> float:
        """Way to the switch that an axis homes to: 0 if it is pressed, infinite if there is none."""
        machine = self._carriages.machine
        if self._eeprom.on(5):
            return 0.0  # `$5` takes the open switches of this machine for pressed ones
        if not machine.switches[axis]:
            return math.inf
        at_m = self._at_m[axis]
        return max(0.0, at_m + machine.travel_m[axis] if self._backwards(axis) else -at_m)

    def _backwards(self, axis: int) -> bool:
        return bool(int(self._eeprom.settings[23]) >> axis & 1)
