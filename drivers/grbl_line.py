"""GRBL 1.1's line protocol: questions, their answers, and how both are kept together.

The firmware answers each line with one `ok` or `error:N`, in order, and `?` at once. An answer may be lost, doubled or
late. Therefore `$G` follows every line: its reply `[GC:...]` closes the answers to everything before it, and the last
acknowledgement before it is the line's own. What arrives while nobody asks is stale, except what tells of a reset or
an alarm.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass

from drivers.grbl_words import alarm_words, error_words
from drivers.transport import Transport, TransportTimeout
from testbed.core.errors import StageFault

REPLY_S = 1.0
"""Bound of an answer, wall time: the firmware parses a line in milliseconds."""
STATUS_S = 0.4
_QUIET_S = 0.3
_LONGEST_LINE = 512

BAUD = 115_200
STATUS = b"?"
HOLD = b"!"
RESUME = b"~"
RESET = b"\x18"
JOG_CANCEL = b"\x85"


class GrblRefusal(StageFault):
    """The firmware refused a line with `error:N`."""

    def __init__(self, where: str, line: str, code: int) -> None:
        words, remedy = error_words(code)
        self.code = code
        super().__init__(f'{where}: the controller refused "{line}" with error:{code}, {words}', remedy=remedy)


class PositionLost(StageFault):
    """The controller's position counts for nothing until the stage is homed."""


class GrblAlarm(PositionLost):
    """The firmware raised an alarm and locked itself."""

    def __init__(self, where: str, code: int) -> None:
        words, remedy = alarm_words(code)
        self.code = code
        super().__init__(f"{where}: ALARM:{code}, {words}", remedy=remedy)


class GrblRestart(PositionLost):
    """The firmware restarted when nobody asked it to: its position is lost."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where}: the controller restarted by itself; the stage's position is lost",
            remedy="check the power supply and the USB cable (a brown-out restarts the board), then home the stage",
        )


@dataclass(frozen=True)
class Report:
    """A status report.

    Attributes:
        state: Idle, Run, Hold, Jog, Alarm, Door, Check, Home or Sleep.
        part: what follows the colon of Hold and Door: Hold:0 stands, Hold:1 is braking.
        machine_mm: machine coordinates, millimetres; None while only work coordinates without offset are known.
    """

    state: str
    part: int | None
    machine_mm: tuple[float, float, float] | None


class GrblLine:
    """One open connection to a GRBL controller.

    Args:
        transport: the port; not closed here.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.where = transport.description
        self._arrived = bytearray()
        self._unanswered = False
        self._line = ""
        self._answers: list[str] = []
        self._acknowledged: str | None = None
        self._offset_mm: tuple[float, float, float] | None = None
        self.modal_state = ""
        """What `$G` said when a line was answered last."""
        self.unknown: str | None = None
        """The last line that GRBL does not say."""

    def realtime(self, commands: bytes) -> None:
        """Send real-time bytes, which act at once and are not answered."""
        self.transport.send(commands)

    def status(self, *, timeout_s: float = STATUS_S, attempts: int = 3) -> Report:
        """Where the stage is and what it does.

        Raises:
            StageFault: no report came.
            GrblAlarm, GrblRestart: it told of an alarm or a restart instead.
            TransportClosed: the connection broke.
        """
        for _ in range(attempts):
            self.drop_stale()
            self.realtime(STATUS)
            deadline_s = time.monotonic() + timeout_s
            while (text := self._next(deadline_s)) is not None:
                self._notice(text)
                if (report := self._parse(text)) is not None:
                    return report
        raise StageFault(
            f"{self.where}: the controller does not answer a status query",
            remedy="check its power, the cable and the baud rate (115200); a controller that is homing, or that waits "
            "for a reset after a limit alarm, is silent too",
        )

    def ask(self, line: str, *, timeout_s: float = REPLY_S) -> list[str]:
        """Send a line and wait for its answer; once more where that is lost, so twice has to be the same as once.

        Args:
            line: without line end.
            timeout_s: bound of each answer, wall time.

        Returns:
            the lines that came before its `ok`.

        Raises:
            GrblRefusal: it was answered with an error.
            TransportTimeout: it was not answered.
        """
        try:
            return self._ask(line, timeout_s)
        except TransportTimeout:
            return self._ask(line, timeout_s)

    def _ask(self, line: str, timeout_s: float) -> list[str]:
        self.begin(line)
        answers = self.finish(timeout_s=timeout_s)
        if answers is None:
            raise TransportTimeout(
                f'{self.where}: the controller did not answer "{line}" within {timeout_s:g} s',
                remedy="check that it is not held or homing, and the cable",
            )
        return answers

    def begin(self, line: str) -> None:
        """Send a line whose answer `finish` gathers."""
        self._settle()
        self.drop_stale()
        self._line, self._answers, self._acknowledged = line, [], None
        self._unanswered = True
        self.transport.send(f"{line}\n$G\n".encode("ascii"))

    def finish(self, *, timeout_s: float) -> list[str] | None:
        """The answer to the line that was begun; None while it has not come."""
        deadline_s = time.monotonic() + timeout_s
        while (text := self._next(deadline_s)) is not None:
            self._notice(text)
            if text.startswith("[GC:"):
                self._unanswered = False
                return self._close_answer(text, deadline_s)
            if _is_acknowledgement(text):
                self._acknowledged = text
            elif text[0] in "[$" and not text.startswith("[MSG:"):
                self._answers.append(text)
        return None

    def flush_partial(self) -> None:
        """Make the firmware forget half a line that an earlier owner may have left: "=" spoils any line."""
        self.transport.send(b"=\n")
        self._unanswered = True
        self.transport.send(b"$G\n")
        self._settle()

    def begin_reset(self) -> None:
        """Send a soft reset; an `ok` that was pending comes before the banner and answers nothing."""
        self._unanswered = False
        self.realtime(RESET)

    def await_banner(self, *, timeout_s: float) -> bool:
        """Read until the firmware says that it has restarted; whether it did."""
        deadline_s = time.monotonic() + timeout_s
        while (text := self._next(deadline_s)) is not None:
            if _is_banner(text):
                self._offset_mm = None
                self._unanswered = False
                return True
        return False

    def drop_stale(self) -> None:
        """Forget what has come; an alarm or a restart among it is raised."""
        while (text := self._next(0.0)) is not None:
            self._notice(text)

    def _settle(self) -> None:
        """An answer that was not waited for any longer: take it if it comes now, else give it up."""
        while self._unanswered:
            text = self._next(time.monotonic() + _QUIET_S)
            if text is None:
                break
            self._notice(text)
            if text.startswith("[GC:"):
                break
        self._unanswered = False

    def _close_answer(self, fence: str, deadline_s: float) -> list[str]:
        self.modal_state = fence
        while (text := self._next(deadline_s)) is not None:
            self._notice(text)
            if _is_acknowledgement(text):
                break
        if self._acknowledged is None:
            raise TransportTimeout(
                f'{self.where}: the answer to "{self._line}" was lost', remedy="check the cable; shield it from motors"
            )
        if self._acknowledged != "ok":
            raise GrblRefusal(self.where, self._line, int(self._acknowledged.partition(":")[2]))
        return self._answers

    def _notice(self, text: str) -> None:
        """Raise what must never be overlooked."""
        if _is_banner(text):
            self._unanswered = False
            self._offset_mm = None
            raise GrblRestart(self.where)
        if (alarm := re.fullmatch(r"ALARM:(\d+)", text)) is not None:
            self._unanswered = False
            raise GrblAlarm(self.where, int(alarm[1]))
        if text[0] not in "[<$" and not _is_acknowledgement(text):
            self.unknown = text[:60]

    def _next(self, deadline_s: float) -> str | None:
        """The next line that is not empty; None at the deadline (0: only what has come already)."""
        while True:
            end = self._arrived.find(b"\n")
            if end >= 0:
                text = self._arrived[:end].decode("latin-1").strip()
                del self._arrived[: end + 1]
                if text:
                    return text
                continue
            if len(self._arrived) > _LONGEST_LINE:
                self._arrived.clear()  # no line of the firmware is that long
            try:
                self._arrived += self.transport.receive(
                    4096, timeout_s=max(0.0, deadline_s - time.monotonic()) if deadline_s else 0.0
                )
            except TransportTimeout:
                return None

    def _parse(self, text: str) -> Report | None:
        """A status report, or None for anything else and for one that was mangled on the way."""
        found = re.fullmatch(r"<([A-Z][a-z]+)(?::(\d))?\|(.*)>", text)
        if found is None:
            return None
        fields = dict(field.partition(":")[::2] for field in found[3].split("|"))
        if (offset := _three(fields.get("WCO", ""))) is not None:
            self._offset_mm = offset
        machine = _three(fields.get("MPos", ""))
        work = _three(fields.get("WPos", ""))
        if machine is None and work is None:
            return None
        if machine is None and work is not None and self._offset_mm is not None:
            first, second, third = (a + b for a, b in zip(work, self._offset_mm, strict=True))
            machine = (first, second, third)
        return Report(found[1], None if found[2] is None else int(found[2]), machine)


def _three(text: str) -> tuple[float, float, float] | None:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        return None
    if len(numbers) < 3 or not all(math.isfinite(number) for number in numbers):
        return None
    return numbers[0], numbers[1], numbers[2]


def _is_acknowledgement(text: str) -> bool:
    return text == "ok" or re.fullmatch(r"error:\d+", text) is not None


def _is_banner(text: str) -> bool:
    return text.startswith("Grbl ") and "help" in text
