"""A motion stage of one or two Zaber axes, through Zaber's own library.

Only the library's native units are used, see `drivers.zaber_link`; the way of a microstep comes from the stage's data
sheet. Axis x of the bench file is the controller's axis 1, y is 2, z is 3. Zaber stages count upwards from where homing
ends, so without `machine_zero_m` the lower end stop lies there. A warning flag tells whether they still know where they
are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from drivers.rail import Carriage, Rail
from drivers.stage_reach import Reach
from drivers.transport import LiveWire, Transport, Wire
from drivers.zaber_link import ZaberLink, fault, is_gone, library
from testbed.core.bench import Interval, StageSpec
from testbed.core.devices import Clock
from testbed.core.errors import BenchError, ConfigError, StageFault
from testbed.core.motion import travel_time_s
from testbed.core.orders import Spent

BAUD = 115_200
DEVICE = 1
OLDEST_FIRMWARE = (7, 25)
"""The first whose `move abs` takes a speed (zaber-motion 10.2, `Axis.move_absolute`)."""
SPEED_UNIT = 1.6384
"""Native speed of one microstep a second (Zaber ASCII protocol manual, `maxspeed`)."""
ACCELERATION_UNIT = 1.6384e-4
"""Native acceleration of one microstep a second squared (the same, `accel`)."""
_POLL_S = 0.05
_LATE_S = 5.0
_HOMING_S = 120.0
_REPLY_MS = 1000
_SHARE = 1e-6


class ZaberStage:
    """See `testbed.core.devices.Stage`; used like `drivers.grbl.GrblStage`.

    Args:
        spec: speed, acceleration, settling, power, frame and how the controller is reached.
        region_m: where antennas may be, array frame; the end stops if the stage names none.
        home_m: where the antenna stands at the start, array frame.
        clock: the run's.
        microstep_m: way of one microstep, from the data sheet.
        wire: where the port comes from; the real one by default.
        rail: shared with other carriages, if it is.
        name: for messages.

    Raises:
        ConfigError: port or microstep are not given, or the antenna's home lies beyond the end stops.
    """

    hold_command = b"/stop\n"
    """Bytes that make every stage of the chain stand still, for somebody else who holds the port's descriptor."""

    def __init__(
        self,
        spec: StageSpec,
        *,
        region_m: tuple[Interval, Interval],
        home_m: tuple[float, float],
        clock: Clock,
        microstep_m: float | None = None,
        wire: Wire | None = None,
        rail: Rail | None = None,
        name: str = "stage",
    ) -> None:
        if microstep_m is None or not microstep_m > 0:
            raise ConfigError(
                f"{name}: the way of one microstep is needed for a Zaber stage",
                key="array.antennas.stage.device.microstep_m",
                remedy='set it as the data sheet says, under "microstep size"',
            )
        self.name = name
        self._spec = spec
        self._clock = clock
        self._microstep_m = microstep_m
        self._wire: Wire = wire or LiveWire()
        self._reach = Reach(spec, region_m=region_m, home_m=home_m, name=name)
        self._carriage: Carriage | None = None if rail is None else rail.add(name, spec)
        self._numbers = ["xyz".index(letter) + 1 for letter in spec.device.axes]
        self._verb = threading.RLock()
        self._link: ZaberLink | None = None
        self._axes: list[Any] = []
        self._zero_m = np.zeros(len(self._numbers))
        self._position_m = np.zeros(2)
        self._known = False
        self._play_taken_up = False
        self._stop_mark = object()

    @property
    def transport(self) -> Transport | None:
        """The open port, None before `connect` and after `close`."""
        link = self._link
        return None if link is None else link.transport

    @property
    def homed(self) -> bool:
        """Whether the position is known."""
        return self._known

    @property
    def position_m(self) -> np.ndarray:
        """Where the antenna was when the controller was last asked, stage frame, shape [2].

        Raises:
            StageFault: the position is not known.
        """
        if not self._known:
            raise self._reach.unhomed()
        return self._position_m.copy()

    def connect(self) -> None:
        """Open the port, make the stage stand still, check the controller; may be repeated.

        Raises:
            ConfigError: zaber-motion is not installed, or the end stops lie beyond the controller's limits.
            StageFault: no Zaber controller answers, or its firmware is too old.
            TransportClosed: the port cannot be opened.
        """
        with self._verb:
            if self._link is not None:
                return
            library()  # complains before the port is opened
            transport = self._wire.serial(self._reach.port, baud=BAUD)
            try:
                self._link = ZaberLink(transport, name=self.name)
                with self._translated():
                    self._introduce(self._link.connection)
            except BaseException:
                self._hang_up()
                transport.close()
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
        if self._near(start_m, target_m):
            return 0.0
        seconds = self._spec.settle_s
        for point_m in self._reach.ways(start_m, target_m, play_taken_up=self._play_taken_up):
            seconds += self._moving_s(start_m, point_m)
            start_m = point_m
        return seconds

    def home(self) -> Spent:
        """Find the reference position.

        Returns:
            seconds and joules; the way is not known and counts as 0.

        Raises:
            StageFault: it failed, or was stopped; the position is not known then.
        """
        with self._verb, self._translated(), self._moving():
            axes, mark = self._connected(), self._stop_mark
            begun_s = self._clock.now_s()
            self._known = self._play_taken_up = False
            if self._carriage is not None:
                self._carriage.search()
            try:
                for axis in axes:
                    axis.home(wait_until_idle=False)
                self._await_idle(axes, _HOMING_S, mark)
            finally:
                self._set_known(False)
            self._look()
            self._set_known(all(axis.is_homed() for axis in axes))
            seconds = self._clock.now_s() - begun_s
            return Spent(seconds, self._spec.power_w * seconds, 0.0, 0.0)

    def move_to(self, position_m: np.ndarray) -> Spent:
        """Go there and settle.

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
            axes, mark = self._connected(), self._stop_mark
            if self._known and not all(axis.is_homed() for axis in axes):
                self._set_known(False)  # it lost its reference since
            if not self._known:
                raise self._reach.unhomed()
            self._look()
            start_m = self.position_m
            if self._near(start_m, target_m):
                return Spent()
            begun_s = self._clock.now_s()
            points = self._reach.ways(start_m, target_m, play_taken_up=self._play_taken_up)
            self._play_taken_up = False
            with self._way([start_m, *points]), self._moving():
                left_s, way_m = self._clock.now_s(), 0.0
                for point_m in points:
                    self._go(axes, point_m, mark)
                    way_m += float(np.linalg.norm(self._position_m - start_m))
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
        self._stop_mark = object()
        link = self._link
        if link is None:
            return
        try:
            link.transport.send(self.hold_command)
        except BenchError as error:
            raise StageFault(
                f"{self.name} could not be told to stop: {error.message}", remedy="switch the stage's power off"
            ) from error

    def close(self) -> None:
        """Stop, let go of the port; may be repeated."""
        if self._link is None:
            return
        self._stop_quietly()
        self._set_known(False)
        self._hang_up()

    def _introduce(self, connection: Any) -> None:
        connection.default_request_timeout = _REPLY_MS
        answer = connection.generic_command("get version", device=DEVICE)
        version = tuple(int(part) for part in answer.data.split(".")[:2])
        if version < OLDEST_FIRMWARE:
            raise StageFault(
                f"{self.name}: the Zaber controller's firmware {answer.data} is too old",
                remedy=f"update it to {'.'.join(str(part) for part in OLDEST_FIRMWARE)} or newer with Zaber Launcher",
            )
        device = connection.get_device(DEVICE)
        self._axes = [device.get_axis(number) for number in self._numbers]
        for axis in self._axes:
            axis.stop(wait_until_idle=False)
        self._await_idle(self._axes, _LATE_S, self._stop_mark, faults=False)
        limits_m = [
            [axis.settings.get(end) * self._microstep_m for end in ("limit.min", "limit.max")] for axis in self._axes
        ]
        self._zero_m = self._checked_zero_m(np.array(limits_m))
        self._look()
        self._set_known(all(axis.is_homed() for axis in self._axes))

    def _checked_zero_m(self, limits_m: np.ndarray) -> np.ndarray:
        """Controller coordinates of the stage frame's zero; limits_m: [axis, (low, high)]."""
        stops_m = self._reach.stops_m[: len(self._numbers)]
        given = self._spec.device.machine_zero_m
        zero_m = limits_m[:, 0] - stops_m[:, 0] if given is None else np.array(given[: len(self._numbers)])
        for letter, stop_m, limit_m in zip(self._spec.device.axes, stops_m + zero_m[:, None], limits_m, strict=True):
            if stop_m[0] < limit_m[0] - self._microstep_m or stop_m[1] > limit_m[1] + self._microstep_m:
                raise ConfigError(
                    f"{self.name}: the stage's end stops are {stop_m[0]:.4f} m to {stop_m[1]:.4f} m on axis {letter}, "
                    f"the controller allows {limit_m[0]:.4f} m to {limit_m[1]:.4f} m",
                    key="array.antennas.stage.travel_m",
                    remedy="shorten travel_m, or mend microstep_m or machine_zero_m",
                )
        return np.asarray(zero_m)

    def _go(self, axes: list[Any], target_m: np.ndarray, mark: object) -> None:
        """All axes start together and arrive together."""
        start_m = self.position_m
        way_m = (target_m - start_m)[: len(axes)]
        share = np.abs(way_m) / np.linalg.norm(way_m)
        speed = self._spec.speed_m_s / self._microstep_m * SPEED_UNIT
        acceleration = self._spec.acceleration_m_s2 / self._microstep_m * ACCELERATION_UNIT
        self._refuse_if_stopped(mark)
        for axis, number_m, part in zip(axes, target_m + self._padded_zero_m(), share, strict=False):
            if part < _SHARE:
                continue
            axis.move_absolute(
                round(number_m / self._microstep_m),
                wait_until_idle=False,
                velocity=max(1, round(float(part) * speed)),
                acceleration=max(1, round(float(part) * acceleration)),
            )
        self._refuse_if_stopped(mark)
        expected_s = self._moving_s(start_m, target_m)
        self._await_idle(axes, 1.5 * expected_s + _LATE_S, mark, expected_s=expected_s)
        self._look()
        if not self._near(self._position_m, target_m):
            raise StageFault(
                f"{self.name} stopped at ({self._position_m[0]:.5f}, {self._position_m[1]:.5f}) m, not at its target "
                f"({target_m[0]:.5f}, {target_m[1]:.5f}) m",
                remedy="see whether it is blocked, then home it",
            )

    def _await_idle(
        self, axes: list[Any], bound_s: float, mark: object, *, expected_s: float = 0.0, faults: bool = True
    ) -> None:
        begun_s = self._clock.now_s()
        while any(axis.is_busy() for axis in axes):
            now_s = self._clock.now_s()
            if now_s - begun_s > bound_s:
                raise StageFault(
                    f"{self.name}: still moves after {bound_s:.1f} s",
                    remedy="check maxspeed and accel of the controller",
                )
            left_s = begun_s + expected_s - now_s
            self._clock.wait_until(now_s + (min(left_s, 2 * _POLL_S) if left_s > 0 else _POLL_S / 2))
            self._refuse_if_stopped(mark)
        self._refuse_if_stopped(mark)
        if not faults:
            return
        flags = set[str]().union(*(axis.warnings.get_flags() for axis in axes))
        if "NI" in flags:
            raise StageFault(
                f"{self.name}: its movement was interrupted by somebody else (flag NI)",
                remedy="find out why, then move it again",
            )
        if failed := sorted(flag for flag in flags if flag.startswith("F")):
            raise StageFault(
                f"{self.name}: the controller reports a fault ({', '.join(failed)})",
                remedy="look the flags up in Zaber's protocol manual, take the cause away, then home the stage",
            )

    def _look(self) -> None:
        for index, axis in enumerate(self._connected()):
            self._position_m[index] = axis.get_position() * self._microstep_m - self._zero_m[index]

    def _padded_zero_m(self) -> np.ndarray:
        padded_m = np.zeros(2)
        padded_m[: len(self._zero_m)] = self._zero_m
        return padded_m

    def _moving_s(self, start_m: np.ndarray, end_m: np.ndarray) -> float:
        way_m = float(np.linalg.norm(end_m - start_m))
        return travel_time_s(way_m, self._spec.speed_m_s, self._spec.acceleration_m_s2)

    def _refuse_if_stopped(self, mark: object) -> None:
        if mark is self._stop_mark:
            return
        self._stop_quietly()  # a move may have followed the stop
        raise StageFault(f"{self.name} was stopped on its way", remedy="move it again once that is safe")

    def _near(self, first_m: np.ndarray, second_m: np.ndarray) -> bool:
        return float(np.linalg.norm(first_m - second_m)) <= self._spec.device.tolerance_m

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except library().MotionLibException as error:
            if is_gone(error):
                self._set_known(False)
                self._hang_up()
            raise fault(self.name, error) from error

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
        link, self._link, self._axes = self._link, None, []
        if link is not None:
            link.close()

    def _way(self, points_m: list[np.ndarray]) -> AbstractContextManager[None]:
        if self._carriage is None:
            return nullcontext()
        return self._carriage.way([float(point_m[0]) for point_m in points_m])

    def _set_known(self, known: bool) -> None:
        self._known = known
        if self._carriage is None:
            return
        if known:
            self._carriage.stands_at(float(self._position_m[0]))
        else:
            self._carriage.lost()

    def _connected(self) -> list[Any]:
        if not self._axes:
            raise StageFault(
                f"{self.name}: not connected to its controller at {self._reach.port}", remedy="connect it first"
            )
        return self._axes
