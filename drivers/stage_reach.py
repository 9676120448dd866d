"""Where a stage may go, and how it gets there: what all drivers of stages check before anything moves."""

from __future__ import annotations

import numpy as np

from testbed.core.bench import Interval, StageSpec
from testbed.core.errors import ConfigError, LimitError, StageFault
from testbed.core.frames import end_stops_m, to_stage

_ROUNDING_M = 1e-9


class Reach:
    """One stage's end stops, and its antenna's home, in the stage frame.

    Args:
        spec: the stage.
        region_m: where antennas may be, array frame; the end stops if the stage names none.
        home_m: where the antenna stands at the start, array frame.
        name: of the stage, for messages.

    Raises:
        ConfigError: no port is given, or the antenna's home lies beyond the end stops.
    """

    def __init__(
        self, spec: StageSpec, *, region_m: tuple[Interval, Interval], home_m: tuple[float, float], name: str
    ) -> None:
        if spec.device.port is None:
            raise ConfigError(
                f"{name}: its controller's port is not given",
                key="array.antennas.stage.device.port",
                remedy='set port, for example "/dev/ttyUSB0"; `testbed doctor` lists the ports of this computer',
            )
        self.port = spec.device.port
        self._name = name
        self._play_m = spec.device.backlash_m
        self.stops_m = end_stops_m(spec, region_m)
        if len(spec.device.axes) == 1:
            self.stops_m[1] = 0.0  # a rail: the second coordinate stays 0
        self.home_m = to_stage(np.array(home_m), spec)
        if (beyond := self._beyond(self.home_m)) is not None:
            raise ConfigError(
                f"{name}: the antenna's home is beyond its stage's end stops: {beyond}",
                key="array.antennas.stage",
                remedy="change home_m, or origin_m, rotation_deg or travel_m of its stage",
            )

    def legal(self, position_m: np.ndarray) -> np.ndarray:
        """The target, shape [2], if the stage may go there.

        Raises:
            LimitError: wrong shape, not finite, or beyond an end stop.
        """
        target_m = np.array(position_m, dtype=np.float64)
        if target_m.shape != (2,):
            raise LimitError(f"{self._name}: a stage has two axes; a target of shape {target_m.shape} was given")
        if (beyond := self._beyond(target_m)) is not None:
            raise LimitError(
                f"{self._name}: the target is beyond an end stop: {beyond}",
                remedy="order positions inside, or widen travel_m if the mechanics reach further",
            )
        return target_m

    def ways(self, start_m: np.ndarray, target_m: np.ndarray, *, play_taken_up: bool) -> list[np.ndarray]:
        """The points of the way: the target, after one below it on every axis whose play has to be taken up.

        Args:
            start_m: where the stage stands, shape [2].
            target_m: where it goes, shape [2].
            play_taken_up: whether the last motion of every axis was upwards, by the play at least.

        Returns:
            one or two points, shape [2] each; none below an end stop.
        """
        if self._play_m == 0.0:
            return [target_m]
        climb_m = 0.0 if play_taken_up else self._play_m
        below_m = np.maximum(target_m - self._play_m, self.stops_m[:, 0])
        via_m = np.where(target_m - start_m < climb_m - _ROUNDING_M, below_m, target_m)
        return [target_m] if np.array_equal(via_m, target_m) else [via_m, target_m]

    def unhomed(self) -> StageFault:
        """The error of a stage that is asked to move, or where it is, before that is known."""
        return StageFault(
            f"{self._name}: where it stands is not known, and it is not moved blindly",
            remedy="home it (home = true in the bench file does it at the start), or tell it its position",
        )

    def _beyond(self, point_m: np.ndarray) -> str | None:
        """Axis, value and range of the first coordinate beyond its end stops."""
        for axis, (value, (low, high)) in enumerate(zip(point_m, self.stops_m, strict=True)):
            if not low - _ROUNDING_M <= value <= high + _ROUNDING_M:
                return f"axis {axis}: {value:.4f} m is outside [{low:.4f}, {high:.4f}] m (stage frame)"
        return None
