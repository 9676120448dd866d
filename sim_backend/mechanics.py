"""What lies between a stage's motors and its antenna: screws with play, a scale, switches that vary, vibrations."""

from __future__ import annotations

import math

import numpy as np

from sim_backend.impairments import stream
from testbed.core.bench import BenchSpec, StageSpec
from testbed.core.errors import ConfigError
from testbed.core.frames import to_array
from testbed.core.world_specs import StageTruthSpec

_HOMING = 49  # keeps the draws apart from those of the radios and of the stages' places
_LOOKS = 32
"""Looks at an antenna in one period of its vibration: straight lines between them are half a percent off."""
_STILL_M = 1e-8


class Mechanics:
    """One stage's truth, as `testbed.core.world_specs.StageTruthSpec` gives it.

    Args:
        truth: what departs.
        spec: the stage, as the bench file has it.
        seed: of the homings.
        index: of the antenna.
    """

    def __init__(self, truth: StageTruthSpec, spec: StageSpec, *, seed: int = 0, index: int = 0) -> None:
        self._truth = truth
        self._turned = spec.model_copy(update={"rotation_deg": spec.rotation_deg + truth.rotation_deg})
        self._play_m = np.array(truth.backlash_m)
        self._draws = stream(seed, _HOMING, index)
        self._motors_m: np.ndarray | None = None
        self._carriage_m = np.zeros(2)
        self._error_m = np.zeros(2)
        self._heading = np.zeros(2)
        self._moves = self._homes = False
        self._arrived_s = -math.inf
        self._rings_s = 0.0 if truth.ring_m <= _STILL_M else truth.ring_s * math.log(truth.ring_m / _STILL_M)

    def follow(self, motors_m: np.ndarray, now_s: float = 0.0, *, moves: bool = False, homes: bool = False) -> None:
        """The motors are there, shape [2], on a straight way from where they were last.

        carriage = min(max(carriage before, motor), motor + play)

        Args:
            motors_m: stage frame, shape [2].
            now_s: when.
            moves: whether they turn.
            homes: whether they look for their switches; the end of it draws a new place.
        """
        if self._motors_m is None:
            self._motors_m = self._carriage_m = motors_m.copy()
        way_m = motors_m - self._motors_m
        if (length_m := float(np.linalg.norm(way_m))) > 0:
            self._heading = way_m / length_m
        self._motors_m = motors_m.copy()
        self._carriage_m = np.clip(self._carriage_m, motors_m, motors_m + self._play_m)
        if self._homes and not homes:
            self._error_m = self._truth.homing_std_m * self._draws.standard_normal(2)
        if self._moves and not moves:
            self._arrived_s = now_s
        self._moves, self._homes = moves, homes

    def stage_m(self, now_s: float = 0.0) -> np.ndarray:
        """Where the antenna is in the frame that is really the stage's, shape [2]."""
        return self._truth.scale * (self._carriage_m + self._error_m) + self._vibration_m(now_s)

    def array_m(self, now_s: float = 0.0) -> np.ndarray:
        """Where the antenna is, array frame, shape [2]."""
        return to_array(self.stage_m(now_s), self._turned)

    def next_look_s(self, now_s: float) -> float | None:
        """When the antenna is elsewhere although its motors stand; None if it is still."""
        if self._moves or now_s >= self._arrived_s + self._rings_s:
            return None
        return now_s + 1 / (_LOOKS * self._truth.ring_hz)

    def _vibration_m(self, now_s: float) -> np.ndarray:
        """Along the way, amplitude exp(-t / ring_s) sin(2 pi f t) from the arrival on, shape [2]."""
        since_s = now_s - self._arrived_s
        if self._moves or not 0 <= since_s < self._rings_s:
            return np.zeros(2)
        truth = self._truth
        swing = math.exp(-since_s / truth.ring_s) * math.sin(2 * math.pi * truth.ring_hz * since_s)
        return truth.ring_m * swing * self._heading


def check_still(bench: BenchSpec) -> None:
    """Refuse what stages that jump from place to place cannot do.

    Raises:
        ConfigError: names the key.
    """
    for key in ("ring_m", "homing_std_m"):
        if getattr(bench.world.stages, key) > 0:
            raise ConfigError(
                "the stages of the simulated backend neither ring nor home",
                key=f"world.stages.{key}",
                remedy="use --backend emulated, or leave the key out",
            )
