"""A node's stopwatch and energy meter: time as measured here, energy as the bench file says where it comes from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from drivers.cpu_freq import CpuFrequency
from drivers.energy_sensors import Sampler, Sensor, find_hwmon, find_rapl
from testbed.core.bench import NodeSpec
from testbed.core.errors import LimitError, ProtocolError
from testbed.core.orders import Spent
from testbed.phy.budget import compute_joules

_TOLERANCE = 1e-9


class BoardMeter:
    """See `testbed.core.devices.Meter`.

    Seconds are measured from `begin` to `end`. Joules come from the source that `meter.energy` names; whatever it is,
    they are those of the whole board or processor while it works: its idle power is not subtracted.

    Args:
        board: the node, with its cost model and its meter.
        monotonic: a clock, seconds from whatever zero.

    Raises:
        DeviceError: a sensor or the frequency control is missing, or not permitted.
        ConfigError: no sensor has the name that the bench file gives.
    """

    def __init__(self, board: NodeSpec, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._spec = board.meter
        self._monotonic = monotonic
        self._began_s: float | None = None
        self._cpu_hz = board.cpu_hz
        self._sampler = Sampler(_sensors(board), monotonic)
        self._cpu = CpuFrequency(self._spec.sysfs) if self._spec.cpu_frequency else None

    def begin(self, cpu_hz: float | None = None) -> None:
        """Set the frequency, where the bench file lets it be set, and start to measure.

        Args:
            cpu_hz: frequency of the work; the board's highest if None.

        Raises:
            LimitError: the board cannot run at that frequency.
            DeviceError: the frequency could not be set.
        """
        board = self._board
        wanted_hz = board.cpu_hz if cpu_hz is None else cpu_hz
        if not 0 < wanted_hz <= board.cpu_hz * (1 + _TOLERANCE):
            raise LimitError(
                f"{board.name} cannot run at {wanted_hz:g} Hz; its range is up to {board.cpu_hz:g} Hz",
                key="nodes.cpu_hz",
                remedy="order a frequency inside the board's range",
            )
        # without control of it the processor runs as fast as it can, whatever was ordered
        self._cpu_hz = board.cpu_hz if self._cpu is None else self._cpu.set(wanted_hz)
        if self._sampler.sensors:
            self._sampler.begin()
        self._began_s = self._monotonic()

    def end(self, *, num_tokens: int, cpu_hz: float | None, work_share: float = 1.0) -> Spent:
        """What the work since `begin` took.

        model: joules = kappa C n s f^2, with f the frequency that was set, or the board's highest where none is set

        Args:
            num_tokens: n.
            cpu_hz: as `begin` got it.
            work_share: s, a token's operations relative to the whole model; of the energy model alone.

        Returns:
            seconds and joules.

        Raises:
            DeviceError: a sensor failed on the way.
        """
        if self._began_s is None:
            raise ProtocolError(f"{self._board.name}: the meter was ended before it began")
        seconds, self._began_s = self._monotonic() - self._began_s, None
        return Spent(seconds=seconds, joules=self._joules(seconds, num_tokens * work_share))

    def describe(self) -> dict[str, Any]:
        """Where seconds and joules come from, for the record."""
        facts: dict[str, Any] = {"seconds": "measured", "energy": self._spec.energy, "idle_power": "included"}
        match self._spec.energy:
            case "model":
                facts |= {"measured": False, "kappa": self._board.kappa, "idle_power": "not modelled"}
            case "constant":
                facts |= {"measured": False, "power_w": self._spec.power_w}
            case "rapl" | "hwmon":
                facts |= {"measured": True, "sensors": [sensor.name for sensor in self._sampler.sensors]}
        return facts | {"cpu_frequency": "not controlled" if self._cpu is None else "set"}

    def close(self) -> None:
        """Stop measuring and put the processor's frequency back; may be repeated."""
        self._sampler.stop()
        if self._cpu is not None:
            self._cpu.close()

    def _joules(self, seconds: float, num_tokens: float) -> float:
        board = self._board
        match self._spec.energy:
            case "model":
                return compute_joules(num_tokens, board.cycles_per_token, self._cpu_hz, board.kappa)
            case "constant":
                return self._spec.power_w * seconds
            case "rapl" | "hwmon":
                return self._sampler.end()


def _sensors(board: NodeSpec) -> list[Sensor]:
    match board.meter.energy:
        case "rapl":
            return find_rapl(board.meter.sysfs)
        case "hwmon":
            return find_hwmon(board.meter.sysfs, board.meter.sensor)
        case _:
            return []
