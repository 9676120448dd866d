"""A GRBL controller's settings, checked against the bench file, and the way from the stage frame to its coordinates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from testbed.core.bench import StageSpec
from testbed.core.errors import ConfigError, ConfigErrors, StageFault
from testbed.core.motion import travel_time_s

_LETTERS = "XYZ"
_HOLD_TORQUE = 255
_SLACK_M = 1e-6


def parse_settings(lines: Iterable[str]) -> dict[int, float]:
    """What `$$` printed: number -> value; lines that are no setting are left out."""
    found = (re.match(r"\$(\d+)=(-?[\d.]+)", line) for line in lines)
    return {int(each[1]): float(each[2]) for each in found if each is not None}


@dataclass(frozen=True)
class Machine:
    """How one stage is wired to its controller.

    Attributes:
        axes: index of the controller's axis for each stage coordinate it has, 1 or 2 of X, Y, Z.
        zero_m: machine coordinate of the stage frame's zero on each of these axes.
        speed_m_s: highest speed along a straight way, and of each axis, in this order.
        axis_speeds_m_s: $110-$112 of the axes.
        axis_accelerations_m_s2: $120-$122 of the axes.
        homing: whether the controller can home, $22.
        homing_s: bound of a homing cycle.
        warnings: what is worth knowing though it stops nothing.
    """

    axes: tuple[int, ...]
    zero_m: tuple[float, ...]
    speed_m_s: float
    axis_speeds_m_s: tuple[float, ...]
    axis_accelerations_m_s2: tuple[float, ...]
    homing: bool
    homing_s: float
    warnings: tuple[str, ...]

    def stage_m(self, machine_mm: tuple[float, float, float]) -> np.ndarray:
        """Machine coordinates in the stage frame, metres, shape [2]; a coordinate without an axis is 0."""
        point_m = np.zeros(2)
        for index, (axis, zero_m) in enumerate(zip(self.axes, self.zero_m, strict=True)):
            point_m[index] = machine_mm[axis] * 1e-3 - zero_m
        return point_m

    def jog(self, point_m: np.ndarray) -> str:
        """The jog to a stage-frame point, shape [2]: absolute, in machine millimetres, whatever the modal state."""
        words = "".join(
            f"{_LETTERS[axis]}{(zero_m + coordinate_m) * 1e3:.4f}"
            for axis, zero_m, coordinate_m in zip(self.axes, self.zero_m, point_m, strict=False)
        )
        return f"$J=G53G90G21{words}F{self.speed_m_s * 60e3:.2f}"

    def moving_s(self, start_m: np.ndarray, end_m: np.ndarray) -> float:
        """Seconds of a straight move, stage frame, shapes [2].

        The firmware limits speed and acceleration along the way so that no axis exceeds its own.
        """
        way_m = np.asarray(end_m - start_m, dtype=np.float64)[: len(self.axes)]
        length_m = float(np.linalg.norm(way_m))
        if length_m == 0.0:
            return 0.0
        share = np.maximum(np.abs(way_m) / length_m, 1e-12)
        speed_m_s = min(self.speed_m_s, float(np.min(np.array(self.axis_speeds_m_s) / share)))
        return travel_time_s(length_m, speed_m_s, float(np.min(np.array(self.axis_accelerations_m_s2) / share)))


def machine_of(settings: Mapping[int, float], spec: StageSpec, stops_m: np.ndarray, where: str) -> Machine:
    """Check a controller's settings against the bench file.

    Args:
        settings: of the controller.
        spec: the stage, as the bench file says.
        stops_m: its end stops, stage frame, [axis, (low, high)], shape [2, 2].
        where: port, for messages.

    Returns:
        how to drive it.

    Raises:
        ConfigError: a setting would let the stage do what the bench file excludes, or cannot do what it asks.
        StageFault: settings are missing.
    """
    axes = tuple(_LETTERS.index(letter.upper()) for letter in spec.device.axes)
    wanted = {13, 20, 21, 22, 23, 25, 27, *(first + axis for first in (110, 120, 130) for axis in axes)}
    if missing := sorted(wanted - settings.keys()):
        raise StageFault(
            f"{where}: the controller did not print its settings {', '.join(f'${number}' for number in missing)}",
            remedy="check the cable, and that the controller runs GRBL 1.1",
        )
    zero_m = _zero_m(settings, spec, stops_m, axes, where)
    problems: list[ConfigError] = [*_switch_problems(settings, spec, where)]
    for index, axis in enumerate(axes):
        problems += _axis_problems(settings, spec, where, axis, stops_m[index] + zero_m[index])
    if len(problems) > 1:
        raise ConfigErrors(problems)
    if problems:
        raise problems[0]
    seek_s = max(settings[130 + axis] for axis in axes) / max(settings[25], 1.0) * 60.0
    return Machine(
        axes=axes,
        zero_m=zero_m,
        speed_m_s=spec.speed_m_s,
        axis_speeds_m_s=tuple(settings[110 + axis] / 60e3 for axis in axes),
        axis_accelerations_m_s2=tuple(settings[120 + axis] * 1e-3 for axis in axes),
        homing=bool(settings[22]),
        homing_s=60.0 + 2 * len(_LETTERS) * seek_s,
        warnings=_warnings(settings, spec, axes, where),
    )


def _zero_m(
    settings: Mapping[int, float], spec: StageSpec, stops_m: np.ndarray, axes: tuple[int, ...], where: str
) -> tuple[float, ...]:
    given = spec.device.machine_zero_m
    if given is not None:
        return tuple(given[: len(axes)])
    inverted = [_LETTERS[axis] for axis in axes if int(settings[23]) >> axis & 1]
    if settings[22] and inverted:
        raise _wrong(
            f"{where}: axis {', '.join(inverted)} homes towards its lower end ($23={settings[23]:.0f}), so where the "
            "stage frame's zero lies cannot be guessed",
            "machine_zero_m",
            "set machine_zero_m: the machine coordinates at the stage frame's zero",
        )
    # homing ends one pull-off below machine zero
    return tuple(-settings[27] * 1e-3 - float(stops_m[index, 1]) for index in range(len(axes)))


def _switch_problems(settings: Mapping[int, float], spec: StageSpec, where: str) -> Iterable[ConfigError]:
    if settings[13]:
        yield _wrong(f"{where}: the controller reports inches", "port", "set $13=0 on the controller")
    if not spec.device.home:
        return
    for number, what in ((22, "homing is"), (20, "soft limits are")):
        if not settings[number]:
            yield _wrong(
                f"{where}: {what} switched off on the controller (${number}=0)",
                "home",
                f"set ${number}=1 (limit switches are needed); or say home = false and tell the stage its position",
            )


def _axis_problems(
    settings: Mapping[int, float], spec: StageSpec, where: str, axis: int, range_m: np.ndarray
) -> list[ConfigError]:
    letter = _LETTERS[axis]
    problems: list[ConfigError] = []
    speed_m_s, acceleration_m_s2 = settings[110 + axis] / 60e3, settings[120 + axis] * 1e-3
    if speed_m_s < spec.speed_m_s * (1 - 1e-3):
        problems.append(
            _wrong(
                f"{where}: axis {letter} runs at most {speed_m_s:.4f} m/s (${110 + axis}={settings[110 + axis]:g}), "
                f"the bench file says {spec.speed_m_s:g} m/s",
                "speed_m_s",
                f"lower speed_m_s, or set ${110 + axis}={spec.speed_m_s * 60e3:.3f} if the mechanics can do it",
            )
        )
    if acceleration_m_s2 > spec.acceleration_m_s2 * (1 + 1e-3):
        problems.append(
            _wrong(
                f"{where}: axis {letter} accelerates with {acceleration_m_s2:g} m/s^2 "
                f"(${120 + axis}={settings[120 + axis]:g}), the bench file allows {spec.acceleration_m_s2:g} m/s^2",
                "acceleration_m_s2",
                f"set ${120 + axis}={spec.acceleration_m_s2 * 1e3:.3f}, or raise acceleration_m_s2",
            )
        )
    travel_m = settings[130 + axis] * 1e-3
    if settings[20] and not (range_m[0] >= -travel_m - _SLACK_M and range_m[1] <= _SLACK_M):
        problems.append(
            _wrong(
                f"{where}: the stage's end stops are machine {letter} {range_m[0]:.4f} m to {range_m[1]:.4f} m, the "
                f"controller allows {-travel_m:.4f} m to 0 (${130 + axis}={settings[130 + axis]:g})",
                "travel_m",
                f"shorten travel_m, mend machine_zero_m, or set ${130 + axis} to the way the mechanics really have",
            )
        )
    return problems


def _warnings(settings: Mapping[int, float], spec: StageSpec, axes: tuple[int, ...], where: str) -> tuple[str, ...]:
    found = []
    if not settings[21]:
        found.append(f"{where}: hard limits are off ($21=0): a stage that loses steps runs into its end")
    if settings.get(1, _HOLD_TORQUE) != _HOLD_TORQUE:
        found.append(
            f"{where}: the motors are released {settings[1]:g} ms after a move ($1): the antenna can be pushed away "
            "unnoticed; $1=255 holds it"
        )
    for axis in axes:
        if settings[120 + axis] * 1e-3 < spec.acceleration_m_s2 * (1 - 1e-3):
            found.append(
                f"{where}: axis {_LETTERS[axis]} accelerates with only {settings[120 + axis] * 1e-3:g} m/s^2, less "
                "than the bench file says: moves take longer"
            )
    return tuple(found)


def _wrong(message: str, key: str, remedy: str) -> ConfigError:
    place = key if key in ("travel_m", "speed_m_s", "acceleration_m_s2") else f"device.{key}"
    return ConfigError(message, key=f"array.antennas.stage.{place}", remedy=remedy)
