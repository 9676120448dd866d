"""Carriages on one rail: they keep their distance at all times and cannot pass each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from testbed.core.bench import StageSpec
from testbed.core.devices import Clock
from testbed.core.errors import ConfigError, LimitError
from testbed.core.frames import to_array

POLL_S = 0.05
"""How often a waiting carriage looks again, on the run's clock."""
GRACE_POLLS = 20
"""How many times it looks while nothing on the rail moves, so that the others can be sent somewhere meanwhile."""
_WALL_POLL_S = 0.01
"""Also passes at each of these: a virtual clock may pass before another thread has begun."""
_TOLERANCE_M = 1e-6


class Rail:
    """The carriages of one rail.

    The rail's coordinate is the array-frame projection on the first carriage's axis, so that carriages may be mounted
    with different origins, or turned by half a turn.

    Args:
        name: as in the bench file, for messages.
        min_spacing_m: smallest distance of two antennas.
        clock: the run's.
    """

    def __init__(self, name: str, *, min_spacing_m: float, clock: Clock) -> None:
        self.name = name
        self._spacing_m = min_spacing_m
        self._clock = clock
        self._changed = threading.Condition()
        self._carriages: list[Carriage] = []
        self._direction: np.ndarray | None = None

    def add(self, name: str, spec: StageSpec) -> Carriage:
        """Put a carriage on the rail; where it stands is not known yet.

        Args:
            name: for messages.
            spec: how its stage lies in the array frame.

        Raises:
            ConfigError: it does not run along this rail.
        """
        along = to_array(np.array([1.0, 0.0]), spec) - to_array(np.zeros(2), spec)
        with self._changed:
            if self._direction is None:
                self._direction = along
            sign = float(along @ self._direction)
            if abs(abs(sign) - 1.0) > 1e-6:
                raise ConfigError(
                    f'{name} is not parallel to the other carriages of rail "{self.name}"',
                    key="array.antennas.stage.rotation_deg",
                    remedy="give all stages of one rail the same rotation_deg, or half a turn more",
                )
            origin_m = float(to_array(np.zeros(2), spec) @ self._direction)
            carriage = Carriage(self, name, origin_m, 1.0 if sign > 0 else -1.0)
            self._carriages.append(carriage)
            return carriage

    def _enter(self, carriage: Carriage, hull_m: tuple[float, float], target_m: float) -> None:
        """Take the way when it is clear; the others get a while to be sent somewhere else, and to get there."""
        with self._changed:
            carriage._wanted_m = target_m
        patience = GRACE_POLLS
        try:
            while (blocking := self._try_enter(carriage, hull_m)) is not None:
                if self._others_move(carriage):
                    patience = GRACE_POLLS
                elif patience == 0:
                    raise self._in_the_way(carriage, blocking)
                else:
                    patience -= 1
                    with self._changed:
                        self._changed.wait(_WALL_POLL_S)
                self._clock.wait_until(self._clock.now_s() + POLL_S)
        except BaseException:
            with self._changed:
                carriage._wanted_m = None
            raise

    def _try_enter(self, carriage: Carriage, hull_m: tuple[float, float]) -> Carriage | None:
        """Take the way if it is clear; else who blocks it. LimitError where waiting cannot help."""
        with self._changed:
            blocking = self._blocking(carriage, hull_m)
            if blocking is None:
                carriage._hull_m, carriage._moving = hull_m, True
            else:
                self._refuse_crossing(carriage)
            return blocking

    def _search(self, carriage: Carriage) -> None:
        while True:
            with self._changed:
                if not self._others_move(carriage):
                    carriage._hull_m, carriage._moving = None, True
                    return
            self._clock.wait_until(self._clock.now_s() + POLL_S)

    def _others_move(self, carriage: Carriage) -> bool:
        return any(other._moving for other in self._carriages if other is not carriage)

    def _blocking(self, carriage: Carriage, hull_m: tuple[float, float]) -> Carriage | None:
        near_m = self._spacing_m - _TOLERANCE_M
        for other in self._carriages:
            if other is carriage:
                continue
            if other._hull_m is None or (
                hull_m[0] - near_m < other._hull_m[1] and other._hull_m[0] < hull_m[1] + near_m
            ):
                return other
        return None

    def _refuse_crossing(self, carriage: Carriage) -> None:
        """Where both have been sent somewhere and would have to change places, nobody can make way."""
        if carriage._hull_m is None or carriage._wanted_m is None:
            return
        for other in self._carriages:
            if other is carriage or other._hull_m is None or other._wanted_m is None:
                continue
            before = sum(carriage._hull_m) < sum(other._hull_m)
            apart_m = (other._wanted_m - carriage._wanted_m) * (1.0 if before else -1.0)
            if apart_m < self._spacing_m - _TOLERANCE_M:
                raise LimitError(
                    f'{carriage.name} and {other.name} would have to pass each other on rail "{self.name}", or come '
                    f"closer than {self._spacing_m:g} m: they were sent to {carriage._wanted_m:.4f} m and "
                    f"{other._wanted_m:.4f} m along the rail",
                    remedy="keep the antennas of one rail in their order and apart by min_spacing_m",
                )

    def _in_the_way(self, carriage: Carriage, other: Carriage) -> LimitError:
        if other._hull_m is None:
            return LimitError(
                f'{carriage.name} was not moved: where {other.name} stands on rail "{self.name}" is not known',
                remedy=f"home {other.name} first",
            )
        return LimitError(
            f'{carriage.name} was not moved: {other.name} stands in its way on rail "{self.name}", between '
            f"{other._hull_m[0]:.4f} m and {other._hull_m[1]:.4f} m along the rail, and nothing moves it away",
            remedy=f"move {other.name} as well, or keep {self._spacing_m:g} m from it",
        )

    def _leave(self, carriage: Carriage, at_m: float | None) -> None:
        with self._changed:
            carriage._moving, carriage._wanted_m = False, None
            if at_m is not None:
                carriage._hull_m = (at_m, at_m)
            self._changed.notify_all()


class Carriage:
    """One carriage's part of a rail.

    Args:
        rail: where it runs.
        name: for messages.
        origin_m: rail coordinate of its stage's zero.
        sign: +1 where its stage's first axis runs along the rail, -1 where it runs against it.
    """

    def __init__(self, rail: Rail, name: str, origin_m: float, sign: float) -> None:
        self.name = name
        self._rail = rail
        self._origin_m = origin_m
        self._sign = sign
        self._hull_m: tuple[float, float] | None = None  # nowhere else is it; None: not known
        self._wanted_m: float | None = None
        self._moving = False

    def stands_at(self, coordinate_m: float) -> None:
        """It was found or brought there, stage frame."""
        self._rail._leave(self, self._along_m(coordinate_m))

    def search(self) -> None:
        """It is about to be homed: wait until nothing else moves; nothing else may move until it stands somewhere."""
        self._rail._search(self)

    def lost(self) -> None:
        """Where it stands is not known any more: nobody on the rail may move until it is."""
        with self._rail._changed:
            self._hull_m, self._moving, self._wanted_m = None, False, None
            self._rail._changed.notify_all()

    @contextmanager
    def way(self, coordinates_m: list[float]) -> Iterator[None]:
        """Have the way to oneself: enter when it is clear, leave at its end.

        A move that fails inside leaves the carriage somewhere on its way, and all of it stays taken.

        Args:
            coordinates_m: first coordinates of where it stands and of all points it goes to, stage frame, in order.

        Raises:
            LimitError: the carriages would change their order, or one stands in the way that nobody moves.
        """
        along_m = [self._along_m(coordinate_m) for coordinate_m in coordinates_m]
        self._rail._enter(self, (min(along_m), max(along_m)), along_m[-1])
        try:
            yield
        except BaseException:
            self._rail._leave(self, None)
            raise
        self._rail._leave(self, along_m[-1])

    def _along_m(self, coordinate_m: float) -> float:
        return self._origin_m + self._sign * coordinate_m
