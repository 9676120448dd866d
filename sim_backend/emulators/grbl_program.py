"""GRBL's main program: reads lines, executes each, answers each with `ok` or `error:N`.

It is a generator. Where the firmware would loop until something has happened it yields what it waits for, and is
resumed when that has come true; a reset throws it away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

from sim_backend.emulators import grbl_report as report
from sim_backend.emulators.grbl_carriage import Place
from sim_backend.emulators.grbl_core import SOFT_LIMIT, Core, State
from sim_backend.emulators.grbl_gcode import Modal, Order, read_number, understand
from sim_backend.emulators.grbl_motion import CAPACITY
from sim_backend.emulators.grbl_settings import (
    BAD_STATEMENT,
    BEYOND_TRAVEL,
    HOMING_DISABLED,
    LOCKED,
    MAX_TRAVEL,
    NOT_IDLE,
    NUM_STARTUP,
    OVERFLOW,
    Refused,
)

LINE_CHARACTERS: Final = 79
"""Characters of a line that the firmware keeps, blanks and comments not counted."""


@dataclass(frozen=True)
class Wait:
    """What the program waits for.

    Attributes:
        ready: whether it has come true.
        at_s: when it comes true by itself, if it does.
    """

    ready: Callable[[], bool]
    at_s: float = math.inf


Steps = Generator[Wait, None, None]


@dataclass
class Program:
    """The main program between two resets.

    Args:
        core: what it commands.

    Attributes:
        executing: whether a line has begun whose answer is still due.
    """

    core: Core
    executing: bool = field(default=False, init=False)

    def run(self) -> Steps:
        """Everything from the greeting on; it never ends by itself."""
        core = self.core
        core.say(report.GREETING)
        if core.state is State.ALARM:
            core.say(report.LOCKED)
        else:
            yield from self._run_startup()
        while True:
            text, fits = yield from self._read_line()
            self.executing = True
            yield from self._answer(text, fits)
            self.executing = False

    # --- lines --------------------------------------------------------------------------------------------------------

    def _read_line(self) -> Generator[Wait, None, tuple[str, bool]]:
        """The next line in capitals, without blanks and comments, and whether it fitted."""
        core, text, fits, comment = self.core, "", True, ""
        while True:
            while not core.rx:
                core.start_cycle()
                yield Wait(lambda: bool(core.rx))
            character = chr(core.rx.pop(0))
            if character in "\r\n":
                yield Wait(lambda: not core.quiet)
                return text, fits
            if comment or not fits:
                if character == ")" and comment == "(":
                    comment = ""
            elif character in "(;":
                comment = character
            elif character > " " and character != "/":
                if len(text) == LINE_CHARACTERS:
                    fits = False
                else:
                    text += character.upper()

    def _answer(self, text: str, fits: bool) -> Steps:
        core = self.core
        try:
            if not fits:
                raise Refused(OVERFLOW)
            if text.startswith("$"):
                yield from self._command(text[1:])
            elif text:
                if core.state in (State.ALARM, State.JOG):
                    raise Refused(LOCKED)
                yield from self._execute(text)
        except Refused as refused:
            core.say(f"error:{refused.code}")
        else:
            core.say("ok")
        if core.state is State.SLEEP:
            core.say("[MSG:Sleeping]")

    def _run_startup(self) -> Steps:
        for text in self.core.eeprom.startup:
            if not text:
                continue
            try:
                yield from self._execute(text)
            except Refused as refused:
                self.core.say(f">{text}:error:{refused.code}")
            else:
                self.core.say(f">{text}:ok")

    # --- commands -----------------------------------------------------------------------------------------------------

    def _command(self, text: str) -> Steps:
        core = self.core
        if not text:
            core.say(report.HELP)
        elif text[0] == "J":
            yield from self._jog(text)
        elif text[0] in "$GCX":
            if len(text) > 1:
                raise Refused(BAD_STATEMENT)
            self._print_or_switch(text)
        elif core.state not in (State.IDLE, State.ALARM):
            raise Refused(NOT_IDLE)
        elif text[0] == "H":
            yield from self._home(text)
        elif text[0] == "N":
            yield from self._startup_lines(text)
        else:
            self._keep(text)

    def _print_or_switch(self, letter: str) -> None:
        core = self.core
        if letter == "G":
            core.say(report.modes(core))
        elif letter == "$":
            if core.state in (State.RUN, State.HOLD):
                raise Refused(NOT_IDLE)
            for line in core.eeprom.lines():
                core.say(line)
        elif letter == "X":
            if core.state is State.ALARM:
                core.say("[MSG:Caution: Unlocked]")
                core.state = State.IDLE
        elif core.state is State.CHECK:
            core.say("[MSG:Disabled]")
            core.aborted = True
        else:
            if core.state is not State.IDLE:
                raise Refused(NOT_IDLE)
            core.state = State.CHECK
            core.say("[MSG:Enabled]")

    def _keep(self, text: str) -> None:
        """`$#`, `$I`, `$SLP`, `$RST=`, and settings."""
        core = self.core
        if text[0] == "#":
            _only(text, "#")
            for line in report.parameters(core):
                core.say(line)
        elif text[0] == "S":
            _only(text, "SLP")
            core.sleep()
        elif text[0] == "I" and len(text) > 1:
            if text[1] != "=":
                raise Refused(BAD_STATEMENT)
            core.eeprom.build_info = text[2:]
        elif text[0] == "I":
            for line in report.build(core):
                core.say(line)
        elif text[0] == "R":
            if not text.startswith("RST=") or len(text) != 5:
                raise Refused(BAD_STATEMENT)
            core.eeprom.restore(text[4])
            core.recount()
            core.say("[MSG:Restoring defaults]")
            core.aborted = True
        else:
            number, value = _setting(text)
            core.eeprom.store(number, value)
            core.recount()
            if number == 13:
                core.overrides.reports_to_wco = 0

    def _startup_lines(self, text: str) -> Steps:
        core = self.core
        if text == "N":
            for index, line in enumerate(core.eeprom.startup):
                core.say(f"$N{index}={line}")
            return
        if core.state is not State.IDLE:
            raise Refused(NOT_IDLE)
        number, end = read_number(text, 1)
        if text[end : end + 1] != "=" or not 0 <= number < NUM_STARTUP:
            raise Refused(BAD_STATEMENT)
        yield from self._execute(text[end + 1 :])
        yield from self._sync()
        core.eeprom.startup[int(number)] = text[end + 1 :]

    def _home(self, text: str) -> Steps:
        core = self.core
        if not core.eeprom.on(22):
            raise Refused(HOMING_DISABLED)
        _only(text, "H")
        core.home()
        yield Wait(lambda: core.homing is None)
        core.state = State.IDLE
        yield from self._run_startup()

    def _jog(self, text: str) -> Steps:
        core = self.core
        if core.state not in (State.IDLE, State.JOG):
            raise Refused(NOT_IDLE)
        if text[1:2] != "=":
            raise Refused(BAD_STATEMENT)
        order = understand(text[2:], core.parser, core.eeprom.offsets_mm, jog=True)
        if core.eeprom.on(20) and self._beyond(order.at_mm):
            raise Refused(BEYOND_TRAVEL)
        yield from self._room()
        core.queue(order.at_mm, asked_mm_min=order.feed_mm_min, jog=True)
        core.parser.at_mm = order.at_mm

    # --- G-code -------------------------------------------------------------------------------------------------------

    def _execute(self, text: str) -> Steps:
        """One line, in the order of execution of RS274/NGC as GRBL has it."""
        core, parser = self.core, self.core.parser
        order = understand(text, parser, core.eeprom.offsets_mm)
        parser.feed_mm_min, parser.spindle_rpm, parser.tool = order.feed_mm_min, order.spindle_rpm, order.tool
        before = parser.modal
        if (order.modal.spindle, order.modal.coolant) != (before.spindle, before.coolant):
            yield from self._sync()
            core.overrides.reports_to_ov = 0
        if order.once == "G4" and core.state is not State.CHECK:
            yield from self._sync()
            until_s = core.now_s + order.dwell_s
            yield Wait(lambda: core.now_s >= until_s, until_s)
        yield from self._set_offsets(order)
        parser.modal = order.modal
        for target_mm, rapid in order.moves:
            yield from self._line(target_mm, order, rapid=rapid)
        parser.at_mm = order.at_mm
        if order.program:
            yield from self._end(order.program)

    def _set_offsets(self, order: Order) -> Steps:
        """Everything that changes what work coordinates mean, or keeps a place."""
        core, parser = self.core, self.core.parser
        moved = order.modal.offset != parser.modal.offset or order.once in ("G92", "G92.1")
        moved = moved or (order.tool_mm is not None and order.tool_mm != parser.tool_mm)
        if moved or order.stored_in or order.once in ("G28.1", "G30.1"):
            yield from self._sync()
        if order.once in ("G28.1", "G30.1"):
            core.eeprom.offsets_mm[order.once[:3]] = order.stored_mm
        if order.stored_in:
            core.eeprom.offsets_mm[order.stored_in] = order.stored_mm
            moved = moved or order.stored_in == order.modal.offset
        parser.coordinates_mm = core.eeprom.offsets_mm[order.modal.offset]
        if order.once == "G92":
            parser.shift_mm = order.stored_mm
        elif order.once == "G92.1":
            parser.shift_mm = (0.0, 0.0, 0.0)
        if order.tool_mm is not None:
            parser.tool_mm = order.tool_mm
        if moved:
            core.overrides.reports_to_wco = 0

    def _line(self, target_mm: Place, order: Order, *, rapid: bool) -> Steps:
        core = self.core
        if core.eeprom.on(20) and self._beyond(target_mm):
            if core.state is State.RUN:
                core.stop_for_soft_limit()
                yield Wait(lambda: core.state is State.IDLE)
            core.alarm(SOFT_LIMIT)
            yield Wait(lambda: False)  # the alarm ends in a reset
        if core.state is State.CHECK:
            return
        yield from self._room()
        asked_mm_min = order.feed_mm_min
        if order.modal.feed == "G93" and not rapid:
            asked_mm_min *= math.dist(target_mm, core.parser.at_mm)
        core.queue(target_mm, asked_mm_min=asked_mm_min, rapid=rapid)

    def _end(self, word: str) -> Steps:
        """M0 pauses; M2 and M30 end a program."""
        core = self.core
        yield from self._sync()
        if word == "M0":
            core.pause()
            yield Wait(lambda: not core.quiet)
            return
        modal = core.parser.modal
        core.parser.modal = Modal(motion="G1", units=modal.units, tool=modal.tool)
        if core.state is not State.CHECK:
            core.parser.coordinates_mm = core.eeprom.offsets_mm["G54"]
            core.overrides.feed = core.overrides.rapid = core.overrides.spindle = 100
            core.overrides.reports_to_wco = core.overrides.reports_to_ov = 0
            core.motion.feed_share = core.motion.rapid_share = 1.0
        core.say("[MSG:Pgm End]")

    def _sync(self) -> Steps:
        """Until every planned line is done."""
        core = self.core
        core.start_cycle()
        yield Wait(lambda: not core.motion.pending and core.state is not State.RUN)

    def _room(self) -> Steps:
        """Until the planner takes another line."""
        core = self.core
        if core.motion.pending >= CAPACITY:
            core.start_cycle()
        yield Wait(lambda: core.motion.pending < CAPACITY)

    def _beyond(self, target_mm: Place) -> bool:
        """Whether a target is outside of [-travel, 0]; a tenth of a micrometre is the firmware's rounding."""
        travel = self.core.eeprom.per_axis(MAX_TRAVEL)
        return any(not -most - 1e-4 <= value <= 1e-4 for value, most in zip(target_mm, travel, strict=True))


def _only(text: str, allowed: str) -> None:
    if text != allowed:
        raise Refused(BAD_STATEMENT)


def _setting(text: str) -> tuple[int, float]:
    """Number and value of `$number=value`."""
    number, end = read_number(text, 0)
    if text[end : end + 1] != "=":
        raise Refused(BAD_STATEMENT)
    value, after = read_number(text, end + 1)
    if after != len(text) or not 0 <= number <= 255:
        raise Refused(BAD_STATEMENT)
    return int(number), value
