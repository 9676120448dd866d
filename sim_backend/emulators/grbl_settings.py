"""What a GRBL controller keeps when its power fails: settings, coordinate offsets, startup lines, its name.

Numbers, defaults and checks are those of GRBL 1.1h in its generic build; lengths are in mm and rates in mm/min because
that is what the settings hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

AXES: Final = "XYZ"
STEPS_PER_MM, MAX_RATE, ACCELERATION, MAX_TRAVEL = 100, 110, 120, 130
OFFSETS: Final = ("G54", "G55", "G56", "G57", "G58", "G59", "G28", "G30")
NUM_STARTUP: Final = 2

BAD_NUMBER, BAD_STATEMENT, NEGATIVE, HOMING_DISABLED, SHORT_PULSE, NOT_IDLE = 2, 3, 4, 5, 6, 8
LOCKED, NEEDS_HOMING, OVERFLOW, BEYOND_TRAVEL, BAD_JOG = 9, 10, 11, 15, 16

DEFAULTS: Final[dict[int, float]] = {
    0: 10, 1: 25, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 10: 1, 11: 0.010, 12: 0.002, 13: 0,
    20: 0, 21: 0, 22: 0, 23: 0, 24: 25.0, 25: 500.0, 26: 250, 27: 1.0, 30: 1000, 31: 0, 32: 0,
    100: 250.0, 101: 250.0, 102: 250.0, 110: 500.0, 111: 500.0, 112: 500.0,
    120: 10.0, 121: 10.0, 122: 10.0, 130: 200.0, 131: 200.0, 132: 200.0,
}  # fmt: skip
_BYTES: Final = frozenset((0, 1, 2, 3, 10, 23, 26))
_SWITCHES: Final = frozenset((4, 5, 6, 13, 20, 21, 22, 32))
_WHOLE: Final = frozenset((30, 31))

_LEAST: Final = {STEPS_PER_MM: 1e-3, MAX_RATE: 1.0, ACCELERATION: 1e-3, MAX_TRAVEL: 0.0}
"""Below these the firmware divides by nothing; the emulated one moves at a crawl instead."""


class Refused(Exception):
    """The firmware answers `error:N`.

    Args:
        code: N.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"error:{code}")


@dataclass
class Eeprom:
    """The controller's memory; hand the same object to the next firmware to model a power cycle.

    Attributes:
        settings: number -> value, `$$`.
        offsets_mm: name -> three coordinates, `$#`.
        startup: lines run after every reset, `$N`.
        build_info: the text of `$I=`.
    """

    settings: dict[int, float] = field(default_factory=lambda: dict(DEFAULTS))
    offsets_mm: dict[str, tuple[float, float, float]] = field(
        default_factory=lambda: dict.fromkeys(OFFSETS, (0.0, 0.0, 0.0))
    )
    startup: list[str] = field(default_factory=lambda: [""] * NUM_STARTUP)
    build_info: str = ""

    @classmethod
    def for_stage(
        cls,
        *,
        travel_m: tuple[float, float, float],
        speed_m_s: float,
        acceleration_m_s2: float,
        hard_limits: bool = False,
    ) -> Eeprom:
        """The memory of a controller that somebody has set up for a stage: homing and soft limits on.

        Args:
            travel_m: way of each axis.
            speed_m_s: highest speed of every axis; homing seeks at a quarter of it.
            acceleration_m_s2: of every axis.
            hard_limits: whether touching a switch stops the machine.

        Returns:
            the memory.
        """
        eeprom = cls()
        rate_mm_min = speed_m_s * 60e3
        for axis in range(len(AXES)):
            eeprom.settings[MAX_RATE + axis] = rate_mm_min
            eeprom.settings[ACCELERATION + axis] = acceleration_m_s2 * 1e3
            eeprom.settings[MAX_TRAVEL + axis] = travel_m[axis] * 1e3
        eeprom.settings |= {20: 1, 21: float(hard_limits), 22: 1, 24: rate_mm_min / 40, 25: rate_mm_min / 4, 26: 25}
        return eeprom

    def on(self, number: int) -> bool:
        """Whether a switch among the settings is on."""
        return bool(self.settings[number])

    def per_axis(self, first: int) -> tuple[float, float, float]:
        """One of the settings that every axis has: `STEPS_PER_MM`, `MAX_RATE`, `ACCELERATION` or `MAX_TRAVEL`."""
        x, y, z = (max(self.settings[first + axis], _LEAST[first]) for axis in range(3))
        return x, y, z

    def store(self, number: int, value: float) -> None:
        """`$number=value`.

        Raises:
            Refused: the value or the setting does not exist.
        """
        if value < 0:
            raise Refused(NEGATIVE)
        if number not in self.settings:
            raise Refused(BAD_STATEMENT)
        if number == 0 and value < 3:
            raise Refused(SHORT_PULSE)
        if number == 20 and int(value) and not self.on(22):
            raise Refused(NEEDS_HOMING)
        if number in _BYTES:
            value = int(value) % 256
        elif number in _SWITCHES:
            value = float(int(value) % 256 != 0)
        self.settings[number] = value
        if number == 22 and not value:
            self.settings[20] = 0

    def restore(self, what: str) -> None:
        """`$RST=what`: "$" the settings, "#" the offsets, "*" everything.

        Raises:
            Refused: nothing of that name can be restored.
        """
        if what not in ("$", "#", "*"):
            raise Refused(BAD_STATEMENT)
        fresh = Eeprom()
        if what in "$*":
            self.settings = fresh.settings
        if what in "#*":
            self.offsets_mm = fresh.offsets_mm
        if what == "*":
            self.startup, self.build_info = fresh.startup, fresh.build_info

    def lines(self) -> Iterator[str]:
        """What `$$` prints."""
        for number in sorted(self.settings):
            value = self.settings[number]
            whole = number in _BYTES | _SWITCHES | _WHOLE
            yield f"${number}={value:.0f}" if whole else f"${number}={value:.3f}"
