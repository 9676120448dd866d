"""The emulated positioner of one antenna: a GRBL controller, and how its axes lie in the array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sim_backend.emulators.faults import STAGE_FAULTS, FaultPlan
from sim_backend.emulators.grbl_carriage import Machine
from sim_backend.emulators.grbl_firmware import GrblFirmware
from sim_backend.emulators.grbl_port import GrblPort
from sim_backend.emulators.grbl_settings import Eeprom
from sim_backend.emulators.timebase import Timebase
from sim_backend.impairments import stream
from sim_backend.mechanics import Mechanics
from testbed.core.bench import Interval, StageSpec
from testbed.core.errors import ConfigError
from testbed.core.frames import end_stops_m
from testbed.core.world_specs import StageTruthSpec

PULL_OFF_M = 1e-3
"""Where homing ends, below the switch at machine coordinate 0."""

_SPARE_M = 1e-3  # from the lower end stop to the switch there
_UNUSED_M = 0.01  # travel of an axis that moves nothing
_START = 48  # keeps the draws apart from those of the radios


class VirtualStage:
    """One antenna's stage.

    Args:
        index: of the antenna.
        spec: travel, speed, acceleration and frame.
        region_m: where antennas may be, array frame; the end stops if the stage names none.
        timebase: the time.
        seed: of the place where the carriage stands when the power comes on.
        host: where its TCP port listens.
        links: folder that gets a link to its serial port.
        truth: how the antenna departs from what the controller counts; it does not by default.

    Raises:
        ConfigError: its end stops lie beyond the controller's limit switches.
    """

    def __init__(
        self,
        index: int,
        spec: StageSpec,
        *,
        region_m: tuple[Interval, Interval],
        timebase: Timebase,
        seed: int,
        host: str,
        links: Path | None,
        truth: StageTruthSpec | None = None,
    ) -> None:
        self.name = f"stage-{index}"
        self.faults = FaultPlan(STAGE_FAULTS)
        self._timebase = timebase
        self._axes = ["xyz".index(axis) for axis in spec.device.axes]
        # [axis, (low, high)], stage frame
        stops_m = end_stops_m(spec, region_m)[: len(self._axes)]
        self._zero_m = _machine_zero_m(spec, stops_m)
        low_m, high_m = (self._zero_m[:, None] + stops_m).T
        if (high_m > 0).any():
            raise ConfigError(
                f"the upper end stop lies at machine coordinates {high_m.round(6).tolist()} m, beyond the switch at 0",
                key=f"array.antennas.{index}.stage.device.machine_zero_m",
                remedy="GRBL counts below zero: give the machine coordinates of the stage frame's zero, "
                "or leave machine_zero_m out",
            )
        travel_m, start_m = np.full(3, _UNUSED_M), np.full(3, -_UNUSED_M / 2)
        travel_m[self._axes] = _SPARE_M - low_m
        start_m[self._axes] = stream(seed, _START, index).uniform(low_m, high_m)
        way_m = (float(travel_m[0]), float(travel_m[1]), float(travel_m[2]))
        machine = Machine(
            travel_m=way_m,
            start_m=(float(start_m[0]), float(start_m[1]), float(start_m[2])),
            homing_cycles=(tuple(sorted(self._axes)),),
        )
        eeprom = Eeprom.for_stage(travel_m=way_m, speed_m_s=spec.speed_m_s, acceleration_m_s2=spec.acceleration_m_s2)
        eeprom.settings[27] = PULL_OFF_M * 1e3
        firmware = GrblFirmware(eeprom, machine, start_s=timebase.now_s())
        self.port = GrblPort(
            self.name,
            firmware,
            timebase,
            link=None if links is None else links / self.name,
            tcp=True,
            faults=self.faults,
            host=host,
        )
        self._mechanics = Mechanics(truth or StageTruthSpec(), spec, seed=seed, index=index)
        timebase.add(self)

    def settle(self, now_s: float) -> None:
        """See `timebase.Listener`: the antenna follows the motors."""
        with self._timebase.lock:
            motors_m = np.zeros(2)
            motors_m[: len(self._axes)] = np.asarray(self.port.position_m)[self._axes] - self._zero_m
            self._mechanics.follow(motors_m, now_s, moves=self.moving, homes=self.port.state == "Home")

    def next_event_s(self, now_s: float) -> float | None:
        """See `timebase.Listener`: when to look at a vibrating antenna again."""
        return self._mechanics.next_look_s(now_s)

    @property
    def moving(self) -> bool:
        """Whether its motors turn."""
        return self.port.moving

    @property
    def position_m(self) -> np.ndarray:
        """Where the antenna really is, stage frame, shape [2]; the second coordinate of a rail is 0."""
        with self._timebase.lock:
            now_s = self._timebase.now_s()
            self.settle(now_s)
            return self._mechanics.stage_m(now_s)

    @property
    def array_m(self) -> np.ndarray:
        """Where the antenna really is, array frame, shape [2]."""
        with self._timebase.lock:
            now_s = self._timebase.now_s()
            self.settle(now_s)
            return self._mechanics.array_m(now_s)

    @property
    def addresses(self) -> dict[str, str | None]:
        """Its serial port, and the same over TCP."""
        return {"pty": self.port.pty, "url": self.port.url}

    def state(self) -> dict[str, Any]:
        """What it does now, for the control port."""
        return {
            "port": self.port.pty,
            "tcp": self.port.url,
            "state": self.port.state,
            "position_m": self.position_m.tolist(),
            "array_m": self.array_m.tolist(),
            "moving": self.moving,
        }

    def close(self) -> None:
        """Let go of its ports; may be repeated."""
        self._timebase.remove(self)
        self.port.close()


def _machine_zero_m(spec: StageSpec, stops_m: np.ndarray) -> np.ndarray:
    """Machine coordinates of the stage frame's zero, one for each axis in use."""
    if spec.device.machine_zero_m is not None:
        return np.array(spec.device.machine_zero_m, dtype=np.float64)[: len(stops_m)]
    return -PULL_OFF_M - stops_m[:, 1]
