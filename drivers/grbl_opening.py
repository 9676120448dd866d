"""What a GRBL controller goes through before it is trusted: waking, coming to rest, telling what it is and knows."""

from __future__ import annotations

import re
import time

from drivers.grbl_line import BAUD, HOLD, JOG_CANCEL, RESET, GrblLine, PositionLost, Report
from testbed.core.devices import Clock
from testbed.core.errors import StageFault

_WAKE_S = 2.6
_RESET_AFTER_S = 1.2
_STOPPING_S = 5.0
_BRAKING_POLL_S = 0.02
_WAKE_POLL_S = 0.05
_LOST_RESET_S = 0.7
_RESETS = 3
_HOMED_TOOL = 97


def wake(line: GrblLine, clock: Clock) -> bool:
    """Wait until the controller answers; an Arduino that its port has reset takes 2 s.

    Returns:
        whether it restarted, and so lost its position.

    Raises:
        StageFault: nothing there speaks GRBL.
    """
    restarted = False
    begun_s = time.monotonic()
    next_reset_s = _RESET_AFTER_S
    while True:
        try:
            line.status(timeout_s=0.2, attempts=1)
            return restarted
        except PositionLost:
            restarted = True
        except StageFault as silent:
            waited_s = time.monotonic() - begun_s
            if waited_s > _WAKE_S:
                heard = f', but something does: "{line.unknown}"' if line.unknown else ""
                raise StageFault(
                    f"{line.where}: no GRBL controller answers at {BAUD} baud{heard}",
                    remedy="check the port, the controller's power and that its firmware is GRBL 1.1",
                ) from silent
            if waited_s > next_reset_s:
                next_reset_s = waited_s + _LOST_RESET_S
                line.realtime(RESET)  # after a limit alarm, and while homing, the firmware hears nothing else
                restarted = True
        clock.wait_until(clock.now_s() + _WAKE_POLL_S)


def reset(line: GrblLine, clock: Clock) -> None:
    """Soft reset. The first one is lost where an alarm has just been said: the firmware pauses for half a second.

    Raises:
        StageFault: the controller does not come back.
    """
    for _ in range(_RESETS):
        line.begin_reset()
        deadline_s = clock.now_s() + _LOST_RESET_S
        while clock.now_s() < deadline_s:
            if line.await_banner(timeout_s=_WAKE_POLL_S):
                return
            clock.wait_until(clock.now_s() + _WAKE_POLL_S)
    raise StageFault(f"{line.where}: the controller does not come back from a reset", remedy="check its power")


def come_to_rest(line: GrblLine, clock: Clock) -> None:
    """Whatever an earlier owner left behind: nothing moves and nothing is queued afterwards.

    Raises:
        StageFault: it does not stop, or something keeps it from being ready.
    """
    report = line.status()
    if report.state in ("Jog", "Run"):
        line.realtime(JOG_CANCEL if report.state == "Jog" else HOLD)
        report = await_rest(line, clock)
    if report.state in ("Idle", "Alarm"):
        return
    # held, asleep or checking: a reset at rest empties the queue and moves nothing
    reset(line, clock)
    report = line.status()
    if report.state not in ("Idle", "Alarm"):
        raise StageFault(
            f'{line.where}: the controller stays in state "{report.state}" after a reset',
            remedy="close the safety door, release the hold button, or check their wiring",
        )


def await_rest(line: GrblLine, clock: Clock) -> Report:
    """Return when the stage has braked.

    Raises:
        StageFault: it goes on moving.
    """
    deadline_s = clock.now_s() + _STOPPING_S
    while (report := line.status()).state in ("Jog", "Run", "Hold") and report.part != 0:
        if clock.now_s() > deadline_s:
            raise StageFault(
                f"{line.where}: the stage does not stop", remedy="switch its power off, then check the controller"
            )
        clock.wait_until(clock.now_s() + _BRAKING_POLL_S)
    return report


def check_version(line: GrblLine) -> None:
    """Raises StageFault where the firmware is not GRBL 1.1."""
    version = line.ask("$I")
    if not any(answer.startswith("[VER:1.1") for answer in version):
        raise StageFault(
            f'{line.where}: not a GRBL 1.1 controller; it says "{" ".join(version)}"',
            remedy="check the port; flash GRBL 1.1, or a firmware that reports version 1.1",
        )


def mark_homed(line: GrblLine) -> None:
    """Leave the mark that says it was homed: a tool number, which every restart, reset and alarm clears."""
    line.ask(f"T{_HOMED_TOOL}")


def is_marked_homed(line: GrblLine) -> bool:
    """Whether the mark is still there."""
    line.ask("")
    return re.search(rf"\bT{_HOMED_TOOL}\b", line.modal_state) is not None


def answer_again(line: GrblLine, clock: Clock) -> None:
    """Make a controller that waits for a reset after a limit alarm listen."""
    try:
        line.status(attempts=2)
    except StageFault:
        reset(line, clock)
