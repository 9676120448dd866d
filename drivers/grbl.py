"""A motion stage on a GRBL 1.1 controller, over a serial port or a network.

Every move is a jog in absolute machine coordinates: it can be cancelled, raises no alarm at the end of the travel and
depends on no modal state. Nothing is ever written to the controller's settings memory.

**Is the position known?** The firmware does not say whether it was homed. After a homing this driver sets the tool
number, which means nothing to a stage and which every restart, reset and alarm of the firmware clears. A controller
that is found at rest with that number still counts from the same zero; any other one has to be homed. This cannot see
an antenna that was pushed by hand while its motors were off ($1 below 255).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np

from drivers.grbl_controller import HOLD_COMMAND, GrblController
from drivers.grbl_line import BAUD, JOG_CANCEL, GrblLine, PositionLost
from drivers.grbl_opening import await_rest, reset
from drivers.rail import Carriage, Rail
from drivers.stage_reach import Reach
from drivers.transport import LiveWire, Transport, TransportClosed, TransportTimeout, Wire
from testbed.core.bench import Interval, StageSpec
from testbed.core.devices import Clock
from testbed.core.errors import BenchError, StageFault
from testbed.core.orders import Spent

_CLOSING_S = 2.0


class GrblStage:
    """See `testbed.core.devices.Stage`.

    Call `make_ready`, or `connect` and `home`, before the first move.

    Args:
        spec: speed, acceleration, settling, power, frame and how the controller is reached.
        region_m: where antennas may be, array frame; the end stops if the stage names none.
        home_m: where the antenna stands at the start, array frame.
        clock: the run's; waited on while the stage moves, never the computer's own clock.
        wire: where the port comes from; the real one by default.
        rail: shared with other carriages, if it is.
        name: for messages.

    Raises:
        ConfigError: no port is given, or the antenna's home lies beyond the end stops.
    """

    hold_command = HOLD_COMMAND
    """Bytes that make the stage stand still, for somebody else who holds the port's descriptor."""

    def __init__(
        self,
        spec: StageSpec,
        *,
        region_m: tuple[Interval, Interval],
        home_m: tuple[float, float],
        clock: Clock,
        wire: Wire | None = None,
        rail: Rail | None = None,
        name: str = "stage",
    ) -> None:
        self.name = name
        self._spec = spec
        self._clock = clock
        self._wire: Wire = wire or LiveWire()
        self._reach = Reach(spec, region_m=region_m, home_m=home_m, name=name)
        self._carriage: Carriage | None = None if rail is None else rail.add(name, spec)
        self._verb = threading.RLock()
        self._controller: GrblController | None = None
        self._known = False
        self._play_taken_up = False

    @property
    def transport(self) -> Transport | None:
        """The open port, None before `connect` and after `close`."""
        controller = self._controller
        return None if controller is None else controller.line.transport

    @property
    def homed(self) -> bool:
        """Whether the position is known."""
        return self._known

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the controller's settings leave to be desired; empty before `connect`."""
        controller = self._controller
        return () if controller is None else controller.machine.warnings

    @property
    def position_m(self) -> np.ndarray:
        """Where the antenna was when the controller was last asked, stage frame, shape [2].

        Raises:
            StageFault: the position is not known.
        """
        controller = self._controller
        if not self._known or controller is None:
            raise self._reach.unhomed()
        return controller.position_m.copy()

    def connect(self) -> None:
        """Open the port, make the stage stand still, check the controller; may be repeated.

        Keeps the position where the controller still has it, see the module.

        Raises:
            ConfigError: the controller's settings do not fit the bench file.
            StageFault: nothing there speaks GRBL 1.1.
            TransportClosed: the port cannot be opened.
        """
        with self._verb:
            if self._controller is not None:
                return
            line = GrblLine(self._wire.serial(self._reach.port, baud=BAUD))
            self._controller = controller = GrblController(
                line, clock=self._clock, name=self.name, tolerance_m=self._spec.device.tolerance_m
            )
            try:
                with self._translated():
                    self._play_taken_up = False
                    self._set_known(controller.introduce(self._spec, self._reach.stops_m))
            except BaseException:
                self._hang_up()
                raise

    def make_ready(self) -> Spent:
        """Connect, home where the position is not known, and bring the antenna to its home.

        Returns:
            what that took.

        Raises:
            StageFault: the position is not known, and the bench file forbids homing.
        """
        self.connect()
        homed = Spent()
        if not self._known:
            if not self._spec.device.home:
                raise self._reach.unhomed()
            homed = self.home()
        return homed + self.move_to(self._reach.home_m)

    def assume_position(self, position_m: np.ndarray) -> None:
        """The operator vouches that the antenna stands there, for this connection: stages without limit switches.

        Args:
            position_m: stage frame, shape [2].

        Raises:
            LimitError: beyond the end stops.
            StageFault: the stage is not connected, or not at rest.
        """
        target_m = self._reach.legal(position_m)
        with self._verb, self._translated():
            self._connected().vouch(target_m)
            self._play_taken_up = False
            self._set_known(True)

    def duration_s(self, position_m: np.ndarray) -> float:
        """Seconds that `move_to` would take from here, settling and the approach from below included.

        Args:
            position_m: target, stage frame, shape [2].

        Returns:
            seconds; 0 if the antenna is there already.

        Raises:
            StageFault: the position is not known.
        """
        start_m, target_m = self.position_m, np.asarray(position_m, dtype=np.float64)
        controller = self._connected()
        if controller.near(start_m, target_m):
            return 0.0
        seconds = self._spec.settle_s
        for point_m in self._reach.ways(start_m, target_m, play_taken_up=self._play_taken_up):
            seconds += controller.machine.moving_s(start_m, point_m)
            start_m = point_m
        return seconds

    def home(self) -> Spent:
        """Find the limit switches and with them the position; clears an alarm.

        Returns:
            seconds and joules; the way is not known and counts as 0.

        Raises:
            StageFault: the controller cannot home, or failed to; the position is not known then.
        """
        with self._verb, self._translated(), self._moving():
            controller = self._connected()
            begun_s, mark = self._clock.now_s(), controller.stop_mark
            self._known = self._play_taken_up = False
            if self._carriage is not None:
                self._carriage.search()
            try:
                controller.home(mark)
            finally:
                self._set_known(False)
            self._set_known(True)
            seconds = self._clock.now_s() - begun_s
            return Spent(seconds, self._spec.power_w * seconds, 0.0, 0.0)

    def move_to(self, position_m: np.ndarray) -> Spent:
        """Go there and settle: straight, or from below where the screws' play has to be taken up.

        Args:
            position_m: target, stage frame, shape [2].

        Returns:
            seconds with settling, joules while moving, way.

        Raises:
            LimitError: beyond an end stop, or another carriage is in the way; nothing moves.
            StageFault: the position is not known, or the target was not reached; the stage stands still.
        """
        target_m = self._reach.legal(position_m)
        with self._verb, self._translated():
            controller = self._connected()
            mark = controller.stop_mark
            if not self._known:
                raise self._reach.unhomed()
            controller.ready()
            start_m = self.position_m
            if controller.near(start_m, target_m):
                return Spent()
            begun_s = self._clock.now_s()
            points = self._reach.ways(start_m, target_m, play_taken_up=self._play_taken_up)
            self._play_taken_up = False
            with self._way([start_m, *points]), self._moving():
                left_s, way_m = self._clock.now_s(), 0.0
                for point_m in points:
                    controller.go(point_m, mark)
                    way_m += float(np.linalg.norm(controller.position_m - start_m))
                    start_m = self.position_m
                arrived_s = self._clock.now_s()
            self._play_taken_up = True
            self._clock.wait_until(arrived_s + self._spec.settle_s)
            joules = self._spec.power_w * (arrived_s - left_s)
            return Spent(self._clock.now_s() - begun_s, joules, 0.0, way_m)

    def stop(self) -> None:
        """Brake at once, from any thread and without waiting for anybody; a move that is under way fails.

        Raises:
            StageFault: the controller could not be told.
        """
        controller = self._controller
        if controller is None:
            return
        try:
            controller.stop()
        except BenchError as error:
            raise StageFault(
                f"{self.name} could not be told to stop: {error.message}", remedy="switch the stage's power off"
            ) from error

    def emergency_reset(self) -> None:
        """Reset the firmware: stops at once, without braking. The stage has to be homed again.

        Raises:
            StageFault: the controller did not come back.
        """
        self._stop_quietly()
        with self._verb, self._translated():
            self._set_known(False)
            if self._controller is not None:
                reset(self._controller.line, self._clock)

    def close(self) -> None:
        """Stop, let go of the port; may be repeated."""
        controller = self._controller
        if controller is None:
            return
        self._stop_quietly()
        if self._verb.acquire(timeout=_CLOSING_S):
            try:
                await_rest(controller.line, self._clock)
                controller.ready()
            except BenchError:
                pass  # it was told to stop; more cannot be done over a link that does not answer
            finally:
                self._verb.release()
        self._set_known(False)
        self._hang_up()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Whatever ends the trust in the position ends it here; the user sees stage faults."""
        try:
            yield
        except PositionLost:
            self._set_known(False)
            raise
        except TransportClosed as error:
            self._set_known(False)
            self._hang_up()
            raise StageFault(
                f"{self.name}: its controller is gone: {error.message}", remedy=f"{error.remedy}; then connect again"
            ) from error
        except TransportTimeout as error:
            raise StageFault(f"{self.name}: {error.message}", remedy=error.remedy) from error

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Whatever goes wrong inside, the stage is told to stand still."""
        try:
            yield
        except BaseException:
            self._stop_quietly()
            raise

    def _stop_quietly(self) -> None:
        try:
            self.stop()
        except BenchError:
            pass  # what led here says more

    def _hang_up(self) -> None:
        controller, self._controller = self._controller, None
        if controller is None:
            return
        try:
            controller.line.realtime(JOG_CANCEL)
        except BenchError:
            pass  # gone
        controller.line.transport.close()

    def _way(self, points_m: list[np.ndarray]) -> AbstractContextManager[None]:
        if self._carriage is None:
            return nullcontext()
        return self._carriage.way([float(point_m[0]) for point_m in points_m])

    def _set_known(self, known: bool) -> None:
        self._known = known
        if self._carriage is None:
            return
        if known and self._controller is not None:
            self._carriage.stands_at(float(self._controller.position_m[0]))
        else:
            self._carriage.lost()

    def _connected(self) -> GrblController:
        if self._controller is None:
            raise StageFault(
                f"{self.name}: not connected to its controller at {self._reach.port}", remedy="connect it first"
            )
        return self._controller
