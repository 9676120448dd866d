"""The G-code that GRBL 1.1h understands: from a line and what is in force to one checked order.

Words and modal groups follow RS274/NGC as GRBL restricts it, and so do the order of the checks and their error numbers.
Two families that a stage has no use for are left out and answer error 20 like any unknown word: arcs (G2, G3) and
probing (G38.x). Lengths are in mm, rates in mm/min: the language's own units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sim_backend.emulators.grbl_settings import AXES, BAD_JOG, BAD_NUMBER, NEGATIVE, Refused

Vector = tuple[float, float, float]

_ZERO: Final[Vector] = (0.0, 0.0, 0.0)
_MM_PER_INCH: Final = 25.4
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_HIGHEST_LINE: Final = 10_000_000
_HIGHEST_TOOL: Final = 255

NO_LETTER, UNSUPPORTED, SAME_GROUP, NO_FEED, NOT_WHOLE, AXIS_CONFLICT, REPEATED = 1, 20, 21, 22, 23, 24, 25
NO_AXES, BAD_LINE_NUMBER, MISSING_VALUE, NO_SUCH_OFFSET, BAD_G53, AXES_EXIST = 26, 27, 28, 29, 30, 31
UNUSED, NOT_ONLY_Z, TOO_LARGE = 36, 37, 38

_GROUPS: Final[dict[str, str]] = (
    dict.fromkeys(("G4", "G10", "G28", "G28.1", "G30", "G30.1", "G53", "G92", "G92.1"), "once")
    | dict.fromkeys(("G0", "G1", "G80"), "motion")
    | dict.fromkeys(("G17", "G18", "G19"), "plane")
    | dict.fromkeys(("G90", "G91"), "reach")
    | {"G91.1": "centres", "G40": "cutter", "G61": "path"}
    | dict.fromkeys(("G93", "G94"), "feed")
    | dict.fromkeys(("G20", "G21"), "units")
    | dict.fromkeys(("G43.1", "G49"), "tool")
    | dict.fromkeys(("G54", "G55", "G56", "G57", "G58", "G59"), "offset")
    | dict.fromkeys(("M0", "M1", "M2", "M30"), "program")
    | dict.fromkeys(("M3", "M4", "M5"), "spindle")
    | dict.fromkeys(("M8", "M9"), "coolant")
)
_MODAL: Final = frozenset(("motion", "plane", "reach", "feed", "units", "tool", "offset", "spindle", "coolant"))
_OWN_AXES: Final = frozenset(("G10", "G28", "G30", "G92"))
"""Commands that read the axis words in a way of their own."""
_VALUES: Final = "FIJKLNPRSTXYZ"
_NOT_NEGATIVE: Final = "FNPTS"
_IN_JOGS: Final = frozenset(("reach", "units", "once"))


@dataclass(frozen=True)
class Modal:
    """The words in force, one of each modal group; `$G` prints them."""

    motion: str = "G0"
    offset: str = "G54"
    plane: str = "G17"
    units: str = "G21"
    reach: str = "G90"
    feed: str = "G94"
    tool: str = "G49"
    spindle: str = "M5"
    coolant: str = "M9"


@dataclass
class Parser:
    """What the parser remembers from line to line.

    Attributes:
        modal: the words in force.
        feed_mm_min: the last F.
        spindle_rpm: the last S.
        tool: the last T.
        at_mm: where the machine will be when every order given so far is done, machine coordinates.
        coordinates_mm: zero of the coordinate system in force.
        shift_mm: what G92 adds.
        tool_mm: what G43.1 adds to Z.
    """

    modal: Modal = field(default_factory=Modal)
    feed_mm_min: float = 0.0
    spindle_rpm: float = 0.0
    tool: int = 0
    at_mm: Vector = _ZERO
    coordinates_mm: Vector = _ZERO
    shift_mm: Vector = _ZERO
    tool_mm: float = 0.0

    def work_offset_mm(self) -> Vector:
        """Machine coordinates minus work coordinates."""
        x, y, z = (a + b for a, b in zip(self.coordinates_mm, self.shift_mm, strict=True))
        return x, y, z + self.tool_mm


@dataclass(frozen=True)
class Order:
    """One line, checked, with every length converted.

    Attributes:
        modal: the words in force from this line on.
        once: the command that is not modal, such as "G4"; "" for none.
        moves: machine coordinates to go to, each with whether at the axes' own rates; in order.
        at_mm: where the parser stands afterwards.
        feed_mm_min: the rate; in G93 the inverse of the duration in minutes.
        spindle_rpm: of M3 and M4.
        tool: of T.
        dwell_s: of G4.
        stored_mm: coordinates that G10, G28.1, G30.1 or G92 keep.
        stored_in: the offset that G10 writes.
        tool_mm: the Z offset of G43.1, None where it stays.
        program: "M0", "M2", "M30", or "" to go on.
    """

    modal: Modal
    once: str
    moves: tuple[tuple[Vector, bool], ...]
    at_mm: Vector
    feed_mm_min: float
    spindle_rpm: float
    tool: int
    dwell_s: float = 0.0
    stored_mm: Vector = _ZERO
    stored_in: str = ""
    tool_mm: float | None = None
    program: str = ""


@dataclass
class _Line:
    """The words of a line by what they are."""

    words: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    own_axes: bool = False

    @property
    def axes(self) -> set[str]:
        return set(AXES) & set(self.values)


def understand(text: str, parser: Parser, offsets_mm: Mapping[str, Vector], *, jog: bool = False) -> Order:
    """Check a line as the firmware does.

    Args:
        text: capitals, without blanks and comments; of a jog what follows `$J=`.
        parser: what is in force; it stays as it is.
        offsets_mm: the stored coordinate systems and G28, G30 positions.
        jog: whether the line is a jog, which is G1 in G94 whatever is in force.

    Returns:
        what to do.

    Raises:
        Refused: with the number of the error.
    """
    line = _read(text)
    modal = replace(parser.modal, **{group: word for group, word in line.words.items() if group in _MODAL})
    if jog:
        modal = replace(modal, motion="G1", feed="G94")
    once = line.words.get("once", "")
    moving = not line.own_axes and "tool" not in line.words and ("motion" in line.words or bool(line.axes))
    if line.values.get("N", 0) > _HIGHEST_LINE:
        raise Refused(BAD_LINE_NUMBER)
    feed_mm_min = _feed(line, modal, parser, jog=jog, moving=moving and modal.motion == "G1")
    if once == "G4" and "P" not in line.values:
        raise Refused(MISSING_VALUE)
    scale = _MM_PER_INCH if modal.units == "G20" else 1.0
    named_mm = {axis: line.values[axis] * scale for axis in line.axes}
    if line.words.get("tool") == "G43.1" and line.axes != {"Z"}:
        raise Refused(NOT_ONLY_Z)
    coordinates_mm = parser.coordinates_mm if modal.offset == parser.modal.offset else offsets_mm[modal.offset]
    stored_in, stored_mm = _stored(line, once, modal, parser, named_mm, coordinates_mm, offsets_mm)
    _check_motion(line, once, modal, feed_mm_min, moving=moving)
    _check_unused(line, once, jog=jog, used=moving or line.own_axes or "tool" in line.words)
    if jog:
        _check_jog(line, once)
    moves: tuple[tuple[Vector, bool], ...] = ()
    if line.axes and (moving or once in ("G28", "G30")):
        rapid = not moving or modal.motion == "G0"
        moves = ((_target(named_mm, once, modal, parser, coordinates_mm), rapid),)
    if once in ("G28", "G30"):
        moves = (*moves, (_only(line.axes or set(AXES), offsets_mm[once], parser.at_mm), True))
    return Order(
        modal=modal,
        once=once,
        moves=moves,
        at_mm=moves[-1][0] if moves else parser.at_mm,
        feed_mm_min=feed_mm_min,
        spindle_rpm=line.values.get("S", parser.spindle_rpm),
        tool=int(line.values.get("T", 0)),
        dwell_s=line.values["P"] if once == "G4" else 0.0,
        stored_mm=parser.at_mm if once in ("G28.1", "G30.1") else stored_mm,
        stored_in=stored_in,
        tool_mm=_tool_mm(line, named_mm),
        program=line.words.get("program", "").replace("M1", ""),
    )


def read_number(text: str, start: int) -> tuple[float, int]:
    """The number at `start` and where it ends.

    Raises:
        Refused: there is none.
    """
    found = _NUMBER.match(text, start)
    if found is None:
        raise Refused(BAD_NUMBER)
    return float(found.group()), found.end()


def _words(text: str) -> Iterator[tuple[str, float]]:
    place = 0
    while place < len(text):
        letter = text[place]
        if not "A" <= letter <= "Z":
            raise Refused(NO_LETTER)
        value, place = read_number(text, place + 1)
        yield letter, value


def _read(text: str) -> _Line:
    """Sort the words; refuse what is unknown, repeated or contradictory."""
    line = _Line()
    for letter, value in _words(text):
        if letter in "GM":
            _take_command(line, letter, value)
            continue
        if letter not in _VALUES:
            raise Refused(UNSUPPORTED)
        if letter == "T" and value > _HIGHEST_TOOL:
            raise Refused(TOO_LARGE)
        if letter in line.values:
            raise Refused(REPEATED)
        if letter in _NOT_NEGATIVE and value < 0:
            raise Refused(NEGATIVE)
        line.values[letter] = value
    return line


def _take_command(line: _Line, letter: str, value: float) -> None:
    tenths = round((value - int(value)) * 100)
    word = f"{letter}{int(value)}" + (f".{tenths // 10}" if tenths else "")
    if tenths and letter == "M":
        raise Refused(NOT_WHOLE)
    group = _GROUPS.get(word)
    if group is None or tenths % 10:
        known = f"{letter}{int(value)}" in _GROUPS and int(value) not in (28, 30, 90, 91, 92, 61)
        raise Refused(NOT_WHOLE if tenths and known else UNSUPPORTED)
    takes_axes = word in _OWN_AXES or word in ("G0", "G1") or group == "tool"
    if takes_axes:
        if line.own_axes or line.words.get("motion") in ("G0", "G1") or "tool" in line.words:
            raise Refused(AXIS_CONFLICT)
        line.own_axes = word in _OWN_AXES
    if group in line.words:
        raise Refused(SAME_GROUP)
    line.words[group] = word


def _feed(line: _Line, modal: Modal, parser: Parser, *, jog: bool, moving: bool) -> float:
    given = line.values.get("F")
    if jog and given is None:
        raise Refused(NO_FEED)
    if modal.feed == "G93":
        if given is None and moving:
            raise Refused(NO_FEED)
        return given or 0.0
    if given is not None:
        return given * (_MM_PER_INCH if modal.units == "G20" else 1.0)
    return parser.feed_mm_min if parser.modal.feed == "G94" else 0.0


def _stored(
    line: _Line,
    once: str,
    modal: Modal,
    parser: Parser,
    named_mm: Mapping[str, float],
    coordinates_mm: Vector,
    offsets_mm: Mapping[str, Vector],
) -> tuple[str, Vector]:
    """What G10 and G92 keep, and where."""
    if once not in ("G10", "G92"):
        return "", _ZERO
    if not line.axes:
        raise Refused(NO_AXES)
    if once == "G92":
        return "", _offset_for(named_mm, coordinates_mm, parser, parser.shift_mm)
    if not {"P", "L"} & set(line.values):
        raise Refused(MISSING_VALUE)
    system, kind = int(line.values.pop("P", 0)), line.values.pop("L", 0)
    if system > 6:
        raise Refused(NO_SUCH_OFFSET)
    if kind not in (2, 20) or (kind == 2 and "R" in line.values):
        raise Refused(UNSUPPORTED)
    name = f"G{53 + system}" if system else modal.offset
    if kind == 20:
        return name, _offset_for(named_mm, parser.shift_mm, parser, offsets_mm[name])
    x, y, z = (named_mm.get(axis, known) for axis, known in zip(AXES, offsets_mm[name], strict=True))
    return name, (x, y, z)


def _offset_for(named_mm: Mapping[str, float], other_mm: Vector, parser: Parser, otherwise_mm: Vector) -> Vector:
    """The offset with which the machine stands where the axis words say."""
    found = list(otherwise_mm)
    for index, axis in enumerate(AXES):
        if axis in named_mm:
            tool_mm = parser.tool_mm if axis == "Z" else 0.0
            found[index] = parser.at_mm[index] - other_mm[index] - named_mm[axis] - tool_mm
    return found[0], found[1], found[2]


def _target(named_mm: Mapping[str, float], once: str, modal: Modal, parser: Parser, coordinates_mm: Vector) -> Vector:
    """Machine coordinates that the axis words name."""
    target = list(parser.at_mm)
    for index, axis in enumerate(AXES):
        if axis not in named_mm:
            continue
        value = named_mm[axis]
        if once == "G53":
            target[index] = value
        elif modal.reach == "G91":
            target[index] += value
        else:
            tool_mm = parser.tool_mm if axis == "Z" else 0.0
            target[index] = value + coordinates_mm[index] + parser.shift_mm[index] + tool_mm
    return target[0], target[1], target[2]


def _only(axes: set[str], stored_mm: Vector, at_mm: Vector) -> Vector:
    """The stored coordinates of some axes, the others stay."""
    x, y, z = (stored_mm[i] if axis in axes else at_mm[i] for i, axis in enumerate(AXES))
    return x, y, z


def _tool_mm(line: _Line, named_mm: Mapping[str, float]) -> float | None:
    word = line.words.get("tool")
    return None if word is None else named_mm["Z"] if word == "G43.1" else 0.0


def _check_motion(line: _Line, once: str, modal: Modal, feed_mm_min: float, *, moving: bool) -> None:
    if once == "G53" and modal.motion not in ("G0", "G1"):
        raise Refused(BAD_G53)
    if modal.motion == "G80":
        if line.axes:
            raise Refused(AXES_EXIST)
    elif moving and modal.motion == "G1" and feed_mm_min == 0:
        raise Refused(NO_FEED)


def _check_jog(line: _Line, once: str) -> None:
    if set(line.words) - _IN_JOGS or once not in ("", "G53"):
        raise Refused(BAD_JOG)
    if not line.axes:
        raise Refused(NO_AXES)


def _check_unused(line: _Line, once: str, *, jog: bool, used: bool) -> None:
    meant = set("NF") if jog else set("NFST")
    if once == "G4":
        meant.add("P")
    if used:
        meant |= set(AXES)
    if set(line.values) - meant:
        raise Refused(UNUSED)
