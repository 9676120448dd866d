"""Energy that a board measures itself: RAPL counters of processors, and current monitors on single-board computers.

Sources: Linux, Documentation/power/powercap/powercap.rst (RAPL), Documentation/hwmon/sysfs-interface.rst, ina2xx.rst
and ina3221.rst (units and what each channel is).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from testbed.core.errors import BenchError, ConfigError, DeviceError

PERIOD_S = 0.05
"""Time between two samples: short against changes of load, long against reading a file."""

_INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""Labels of rails that feed all others of a board (Jetson modules); adding the others would count them twice."""
_INA3221_CHANNELS = 3
"""Higher numbers are shunt voltages, and the sum of the currents."""


class Sensor(ABC):
    """Adds up energy between samples.

    Args:
        name: for the record.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.joules = 0.0

    @abstractmethod
    def start(self, now_s: float) -> None:
        """Begin at nought."""

    @abstractmethod
    def sample(self, now_s: float) -> None:
        """Add what has been spent since the last sample."""


class Counter(Sensor):
    """A counter of microjoules.

    Args:
        name: for the record.
        path: its file.
        range_uj: value after which it begins at nought again; None for one that never does.
    """

    def __init__(self, name: str, path: Path, range_uj: int | None = None) -> None:
        super().__init__(name)
        self._path = path
        self._range_uj = range_uj
        self._last_uj = 0

    def start(self, now_s: float) -> None:
        """Remember where the counter stands."""
        self._last_uj, self.joules = read_number(self._path), 0.0

    def sample(self, now_s: float) -> None:
        """Add what it has counted, over at most one wrap-around."""
        count_uj = read_number(self._path)
        gained_uj = count_uj - self._last_uj
        if gained_uj < 0:
            if self._range_uj is None:
                raise DeviceError(
                    f"the energy counter ran back from {self._last_uj} to {count_uj} microjoules",
                    file=self._path,
                    remedy="the sensor was reset while it measured: train this round again",
                )
            gained_uj += self._range_uj
        self._last_uj = count_uj
        self.joules += gained_uj * 1e-6


class PowerRail(Sensor):
    """A power that is integrated by trapezoids.

    Args:
        name: for the record.
        read_w: reads it now.
    """

    def __init__(self, name: str, read_w: Callable[[], float]) -> None:
        super().__init__(name)
        self._read_w = read_w
        self._last_s = self._last_w = 0.0

    def start(self, now_s: float) -> None:
        """Read the first power."""
        self._last_s, self._last_w, self.joules = now_s, self._read_w(), 0.0

    def sample(self, now_s: float) -> None:
        """Add a trapezoid."""
        power_w = self._read_w()
        self.joules += (now_s - self._last_s) * (power_w + self._last_w) / 2
        self._last_s, self._last_w = now_s, power_w


class Sampler:
    """Samples sensors from a thread of its own while something is measured.

    Args:
        sensors: what is added up.
        monotonic: a clock, seconds from whatever zero.
    """

    def __init__(self, sensors: Sequence[Sensor], monotonic: Callable[[], float]) -> None:
        self.sensors = tuple(sensors)
        self._monotonic = monotonic
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BenchError | None = None

    def begin(self) -> None:
        """Begin at nought."""
        self.stop()
        self._failure = None
        for sensor in self.sensors:
            sensor.start(self._monotonic())
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="energy sensors", daemon=True)
        self._thread.start()

    def end(self) -> float:
        """Joules since `begin`.

        Raises:
            DeviceError: a sensor could not be read on the way.
        """
        self.stop()
        if self._failure is not None:
            raise self._failure
        self._sample()
        return sum(sensor.joules for sensor in self.sensors)

    def stop(self) -> None:
        """Sample no more; may be repeated."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            try:
                self._sample()
            except BenchError as failure:
                self._failure = failure
                return

    def _sample(self) -> None:
        for sensor in self.sensors:
            sensor.sample(self._monotonic())


def find_rapl(sysfs: str | Path) -> list[Sensor]:
    """The processor packages and their memory.

    Cores and graphics lie inside a package, the platform (psys) around all packages, and intel-rapl-mmio shows the same
    packages once more: none of them is counted. Memory (dram) is beside its package, not inside.

    Raises:
        DeviceError: there is none, or this user may not read it.
    """
    root = Path(sysfs) / "class/powercap"
    sensors: list[Sensor] = []
    for folder in sorted(root.glob("intel-rapl:*")):
        name = read_text(folder / "name")
        if name.startswith("package-") or name == "dram":
            path = folder / "energy_uj"
            read_number(path)
            sensors.append(Counter(f"{folder.name} {name}", path, read_number(folder / "max_energy_range_uj")))
    if not sensors:
        raise DeviceError(
            "this machine has no RAPL energy counters",
            file=root,
            key="meter.energy",
            remedy='load the module intel_rapl_common (sudo modprobe intel_rapl_msr), or set meter.energy = "constant"',
        )
    return sensors


def find_hwmon(sysfs: str | Path, sensor: str | None) -> list[Sensor]:
    """Current and power monitors.

    Args:
        sysfs: where the kernel shows its devices.
        sensor: name of a chip or label of a rail; by default the rail that feeds the board, or else every rail of every
            chip of the INA families.

    Raises:
        DeviceError: there is none, or this user may not read it.
        ConfigError: none has that name.
    """
    root = Path(sysfs) / "class/hwmon"
    # (chip's name, rail's label, sensor)
    found = [
        (chip, label, each)
        for folder in sorted(root.glob("hwmon*"))
        if (chip := read_text(folder / "name")).startswith("ina") or sensor is not None
        for label, each in _rails(folder, chip)
    ]
    if sensor is not None:
        chosen = [each for chip, label, each in found if sensor in (chip, label)]
        if not chosen:
            known = sorted({word for chip, label, _ in found for word in (chip, label)})
            raise ConfigError(
                f"no power sensor is called {sensor!r}; there are: {', '.join(known) or 'none'}",
                key="meter.sensor",
                remedy="give the name of a chip or the label of a rail",
            )
    else:
        chosen = [each for _, label, each in found if label in _INPUT_RAILS] or [each for _, _, each in found]
    if not chosen:
        raise DeviceError(
            "this machine shows no power sensor of the INA families",
            file=root,
            key="meter.energy",
            remedy='load its driver (ina2xx or ina3221) and device tree overlay, or set meter.energy = "constant"',
        )
    for each in chosen:
        each.start(0.0)  # whoever may not read it learns it now
    return chosen


def _rails(folder: Path, chip: str) -> list[tuple[str, Sensor]]:
    """The rails of one chip with their labels: by energy where it counts that, else by power, else by U times I."""
    rails: list[tuple[str, Sensor]] = []
    for index in range(1, 17):
        label_path = folder / f"in{index}_label"
        label = read_text(label_path) if label_path.exists() else f"{chip}-{index}"
        name = f"{folder.name} {chip} {label}"
        energy, power = folder / f"energy{index}_input", folder / f"power{index}_input"
        volts, amperes = folder / f"in{index}_input", folder / f"curr{index}_input"
        if energy.exists():
            rails.append((label, Counter(name, energy)))
        elif power.exists():
            rails.append((label, PowerRail(name, _register_w(power))))
        elif volts.exists() and amperes.exists() and not (chip == "ina3221" and index > _INA3221_CHANNELS):
            switch = folder / f"in{index}_enable"
            if not switch.exists() or read_number(switch):
                rails.append((label, PowerRail(name, _product_w(volts, amperes))))
    return rails


def _register_w(power: Path) -> Callable[[], float]:
    return lambda: read_number(power) * 1e-6  # microwatts


def _product_w(volts: Path, amperes: Path) -> Callable[[], float]:
    return lambda: read_number(volts) * read_number(amperes) * 1e-6  # millivolts times milliamperes


def read_text(path: Path) -> str:
    """A file's text without white space around it.

    Raises:
        DeviceError: it cannot be read; for want of permission, with what allows it.
    """
    try:
        return path.read_text().strip()
    except PermissionError as error:
        raise DeviceError(
            "this user may not read the sensor",
            file=path,
            remedy=f"sudo chmod a+r {path} (until the next start; a udev rule makes it last)",
        ) from error
    except OSError as error:
        raise DeviceError(
            f"the sensor cannot be read: {error.strerror}", file=path, remedy="see whether its driver is loaded: dmesg"
        ) from error


def read_number(path: Path) -> int:
    """A file's whole number.

    Raises:
        DeviceError: it cannot be read, or says something else.
    """
    text = read_text(path)
    try:
        return int(text)
    except ValueError as error:
        raise DeviceError(f"the sensor says {text!r}, which is no whole number", file=path) from error
