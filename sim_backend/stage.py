"""One antenna's positioner with a trapezoidal speed profile."""

from __future__ import annotations

import numpy as np

from sim_backend.clock import VirtualClock
from sim_backend.mechanics import Mechanics
from testbed.core.bench import Interval, StageSpec
from testbed.core.errors import ConfigError, LimitError
from testbed.core.frames import end_stops_m, to_stage
from testbed.core.motion import travel_time_s
from testbed.core.orders import Spent
from testbed.core.world_specs import StageTruthSpec

_TOLERANCE_M = 1e-9


class SimStage:
    """See `testbed.core.devices.Stage`: both axes run together along the straight line to the target.

    Args:
        spec: speed, acceleration, settling, power and frame.
        region_m: where antennas may be, array frame; the end stops if the stage names none.
        home_m: where the antenna stands at the start, array frame.
        clock: passes while the stage moves.
        truth: how the antenna departs from what the stage counts; it does not by default.

    Raises:
        ConfigError: the antenna's home lies beyond the end stops.
    """

    def __init__(
        self,
        spec: StageSpec,
        *,
        region_m: tuple[Interval, Interval],
        home_m: tuple[float, float],
        clock: VirtualClock,
        truth: StageTruthSpec | None = None,
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._stops_m = end_stops_m(spec, region_m)
        self._position_m = to_stage(np.array(home_m), spec)
        self._mechanics = Mechanics(truth or StageTruthSpec(), spec)
        self._mechanics.follow(self._position_m)
        if (beyond := self._beyond(self._position_m)) is not None:
            raise ConfigError(
                f"the antenna's home is beyond its stage's end stops: {beyond}",
                key="array.antennas.stage",
                remedy="change home_m, or origin_m, rotation_deg or travel_m of its stage",
            )

    @property
    def position_m(self) -> np.ndarray:
        """Where the antenna is, stage frame, shape [2]."""
        return self._position_m.copy()

    @property
    def array_m(self) -> np.ndarray:
        """Where the antenna really is, array frame, shape [2]."""
        return self._mechanics.array_m()

    def duration_s(self, position_m: np.ndarray) -> float:
        """Seconds that `move_to` would take from here, settling included; 0 if the antenna is there already.

        t = D / v + v / a where the stage reaches its speed (D >= v^2 / a), else 2 sqrt(D / a)

        Args:
            position_m: target, stage frame, shape [2].

        Returns:
            seconds.
        """
        way_m = self._way_m(np.asarray(position_m, dtype=np.float64))
        return self._moving_s(way_m) + self._spec.settle_s if way_m > 0 else 0.0

    def move_to(self, position_m: np.ndarray) -> Spent:
        """Go there and settle.

        Args:
            position_m: target, stage frame, shape [2].

        Returns:
            seconds with settling, joules while moving, way.

        Raises:
            LimitError: beyond an end stop; nothing moves.
        """
        target_m = np.array(position_m, dtype=np.float64)
        if target_m.shape != (2,):
            raise LimitError(f"a stage has two axes; a target of shape {target_m.shape} was given")
        if (beyond := self._beyond(target_m)) is not None:
            raise LimitError(f"the target is beyond an end stop: {beyond}")
        way_m, seconds = self._way_m(target_m), self.duration_s(target_m)
        joules = self._spec.power_w * self._moving_s(way_m)
        self._clock.wait_until(self._clock.now_s() + seconds)
        self._position_m = target_m
        self._mechanics.follow(target_m)
        return Spent(seconds, joules, 0.0, way_m)

    def stop(self) -> None:
        """Stand still: in virtual time a move has always ended."""

    def close(self) -> None:
        """Let go; may be repeated."""
        self.stop()

    def _way_m(self, target_m: np.ndarray) -> float:
        return float(np.linalg.norm(target_m - self._position_m))

    def _moving_s(self, way_m: float) -> float:
        return travel_time_s(way_m, self._spec.speed_m_s, self._spec.acceleration_m_s2)

    def _beyond(self, point_m: np.ndarray) -> str | None:
        """Axis, value and range of the first coordinate beyond its end stops."""
        for axis, (value, (low, high)) in enumerate(zip(point_m, self._stops_m, strict=True)):
            if not low - _TOLERANCE_M <= value <= high + _TOLERANCE_M:
                return f"axis {axis}: {value:.4f} m is outside [{low:.4f}, {high:.4f}] m (stage frame)"
        return None
