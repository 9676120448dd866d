"""One GRBL controller at work: where it is, jogs, homing, and stopping in the middle of either."""

from __future__ import annotations

import numpy as np

from drivers.grbl_line import HOLD, JOG_CANCEL, RESET, RESUME, GrblLine, GrblRefusal, PositionLost, Report
from drivers.grbl_machine import Machine, machine_of, parse_settings
from drivers.grbl_opening import answer_again, check_version, come_to_rest, is_marked_homed, mark_homed, reset, wake
from testbed.core.bench import StageSpec
from testbed.core.devices import Clock
from testbed.core.errors import LimitError, StageFault

POLL_S = 0.1
"""Between two status queries while the stage is under way: the firmware's own advice is 5 to 10 a second."""
FINEST_POLL_S, FINE_POLL_S = 0.002, 0.02
"""The same from the expected arrival on, growing, so that the measured time of a move is not a poll too long."""
LATE_S = 5.0
"""How much longer than expected a move may take, beside half as long again."""
HOLD_COMMAND = HOLD + JOG_CANCEL
_REPORTS_TO_OFFSET = 40
"""Work coordinates become machine coordinates with the offset, which at least every thirtieth report tells."""


class StopMark:
    """Changes at every stop: who began before it does not go on."""


class GrblController:
    """See the module; stage-frame metres.

    Args:
        line: the open connection.
        clock: waited on while the stage moves.
        name: of the stage, for messages.
        tolerance_m: largest distance from a target that counts as arrived.
    """

    def __init__(self, line: GrblLine, *, clock: Clock, name: str, tolerance_m: float) -> None:
        self.line = line
        self.stop_mark = StopMark()
        self.position_m = np.zeros(2)
        """Where it was when last asked, as far as the controller knows."""
        self._clock = clock
        self._name = name
        self._tolerance_m = tolerance_m
        self._machine: Machine | None = None
        self._vouched_m = np.zeros(2)
        self._homing = False
        self._held_by_us = False

    @property
    def machine(self) -> Machine:
        """The checked settings. Raises StageFault before they were read."""
        if self._machine is None:
            raise StageFault(f"{self._name}: not connected to its controller", remedy="connect it first")
        return self._machine

    def introduce(self, spec: StageSpec, stops_m: np.ndarray) -> bool:
        """Bring it to rest and check it.

        Args:
            spec: the stage, as the bench file says.
            stops_m: its end stops, shape [2, 2].

        Returns:
            whether it still knows where it is, from a homing of ours.

        Raises:
            ConfigError: its settings do not fit the bench file.
            StageFault: it is no GRBL 1.1 controller, or not ready.
        """
        restarted = wake(self.line, self._clock)
        self.line.flush_partial()
        come_to_rest(self.line, self._clock)
        check_version(self.line)
        self._machine = machine_of(parse_settings(self.line.ask("$$")), spec, stops_m, self.line.where)
        homed = is_marked_homed(self.line)
        return self.look().state == "Idle" and homed and not restarted

    def look(self) -> Report:
        """Ask where it is."""
        report = self.line.status()
        for _ in range(_REPORTS_TO_OFFSET):
            if report.machine_mm is not None:
                break
            report = self.line.status()
        if report.machine_mm is None:
            raise StageFault(f"{self.line.where}: the controller reports no machine position", remedy="set $10=1 on it")
        self.position_m = self.machine.stage_m(report.machine_mm) + self._vouched_m
        return report

    def near(self, first_m: np.ndarray, second_m: np.ndarray) -> bool:
        """Whether two points, shape [2], count as the same."""
        return float(np.linalg.norm(first_m - second_m)) <= self._tolerance_m

    def vouch(self, position_m: np.ndarray) -> None:
        """It stands there, shape [2], whatever the controller counts."""
        self._vouched_m = np.zeros(2)
        self.ready()
        self._vouched_m = position_m - self.position_m
        self.position_m = position_m.copy()

    def ready(self) -> None:
        """Take back a hold of ours, and look.

        Raises:
            StageFault: it is not at rest and free to move.
        """
        if self._held_by_us:
            self._held_by_us = False
            if self.line.status().state == "Hold":
                self.line.realtime(JOG_CANCEL + RESUME)  # nothing is queued, so nothing moves on
        self._require_idle(self.look())

    def go(self, target_m: np.ndarray, mark: StopMark) -> None:
        """Jog to a point and arrive.

        Args:
            target_m: shape [2].
            mark: the stop mark from before the move was begun.

        Raises:
            LimitError: the controller's soft limits refuse it.
            StageFault: it was stopped, or stands elsewhere.
        """
        start_m = self.position_m.copy()
        self._start_jog(target_m, mark)
        self._arrive(start_m, target_m, mark)
        if not self.near(self.position_m, target_m):
            raise StageFault(
                f"{self.line.where}: {self._name} stopped at {_point(self.position_m)}, not at its target "
                f"{_point(target_m)}",
                remedy="see whether somebody stopped it, or whether it is blocked; then home it",
            )

    def home(self, mark: StopMark) -> None:
        """Run a homing cycle and leave the mark of it.

        Raises:
            StageFault: homing is off, it failed, or it was stopped.
        """
        if not self.machine.homing:
            raise StageFault(
                f"{self.line.where}: homing is off on the controller ($22=0)",
                remedy="fit limit switches and set $22=1, or tell the stage where it stands (assume_position)",
            )
        answer_again(self.line, self._clock)
        if self._held_by_us:
            self._held_by_us = False
            self.line.realtime(JOG_CANCEL + RESUME)
        self._homing = True
        try:
            self._run_homing(mark)
        finally:
            self._homing = False
        mark_homed(self.line)
        self._vouched_m = np.zeros(2)
        self.ready()

    def stop(self) -> None:
        """Brake; from any thread, without waiting. Raises what the transport raises."""
        self.stop_mark = StopMark()
        self._held_by_us = True
        # while homing, the firmware hears nothing but a reset
        self.line.realtime(RESET if self._homing else HOLD_COMMAND)

    def _start_jog(self, target_m: np.ndarray, mark: StopMark) -> None:
        command = self.machine.jog(target_m - self._vouched_m)
        self._refuse_if_stopped(mark)
        try:
            self.line.ask(command)
        except GrblRefusal as refusal:
            if refusal.code == 15:
                raise LimitError(refusal.message, remedy=refusal.remedy) from refusal
            raise
        self._refuse_if_stopped(mark)

    def _arrive(self, start_m: np.ndarray, target_m: np.ndarray, mark: StopMark) -> None:
        """Wait until it stands."""
        expected_s = self.machine.moving_s(start_m, target_m)
        begun_s, fine_s = self._clock.now_s(), FINEST_POLL_S
        while True:
            now_s = self._clock.now_s()
            left_s = begun_s + expected_s - now_s
            if left_s > 0:
                self._clock.wait_until(now_s + min(POLL_S, left_s))
            else:
                self._clock.wait_until(now_s + fine_s)
                fine_s = min(2 * fine_s, FINE_POLL_S)
            report = self.look()
            self._refuse_if_stopped(mark)
            if report.state == "Idle":
                return
            if report.state not in ("Jog", "Run"):
                self._require_idle(report)
            if -left_s > 0.5 * expected_s + LATE_S:
                raise StageFault(
                    f"{self.line.where}: {self._name} still moves {expected_s - left_s:.1f} s after it left for a way "
                    f"of {expected_s:.1f} s",
                    remedy="check $110-$112 and $120-$122, and the feed override of the controller",
                )

    def _run_homing(self, mark: StopMark) -> None:
        deadline_s = self._clock.now_s() + self.machine.homing_s
        self.line.begin("$H")
        try:
            while self.line.finish(timeout_s=2e-3) is None:
                self._refuse_if_stopped(mark)
                if self._clock.now_s() > deadline_s:
                    reset(self.line, self._clock)
                    raise StageFault(
                        f"{self.line.where}: {self._name} did not end its homing in time and was reset",
                        remedy="check the limit switches, $25 and $130-$132",
                    )
                self._clock.wait_until(self._clock.now_s() + POLL_S)
        except PositionLost:
            self._refuse_if_stopped(mark)  # then the alarm is our own reset's
            raise

    def _refuse_if_stopped(self, mark: StopMark) -> None:
        if mark is self.stop_mark:
            return
        if not self._homing:
            self.line.realtime(HOLD_COMMAND)  # a jog may have followed the stop
        raise StageFault(
            f"{self.line.where}: {self._name} was stopped on its way", remedy="move it again once that is safe"
        )

    def _require_idle(self, report: Report) -> None:
        if report.state == "Idle":
            return
        where = f"{self.line.where}: {self._name}"
        if report.state == "Alarm":
            raise PositionLost(f"{where} is locked by an alarm", remedy="home it")
        if report.state == "Hold":
            raise StageFault(
                f"{where} is held: somebody pressed hold or stop",
                remedy="find out why; then connect again, which clears the hold",
            )
        raise StageFault(
            f'{where} is in state "{report.state}" where it should stand ready',
            remedy="close the safety door, and see whether another program moves the stage",
        )


def _point(point_m: np.ndarray) -> str:
    return f"({point_m[0]:.5f}, {point_m[1]:.5f}) m"
