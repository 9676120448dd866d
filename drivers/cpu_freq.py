"""The processor's frequency through Linux cpufreq, set as a scheme orders it and put back at the end.

Every policy's lowest and highest allowed frequency are set to the same value. That pins the frequency under whatever
governor runs, also under those of intel_pstate and amd-pstate that know no `scaling_setspeed`, and there is nothing but
two files a policy to put back.

Source: Linux, Documentation/admin-guide/pm/cpufreq.rst; frequencies in these files are kHz.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.core.errors import DeviceError, LimitError

TOLERANCE = 0.05
"""Largest relative difference between the frequency that was set and the one the kernel reports."""
_SETTLE_S = 0.5
_POLL_S = 0.02


@dataclass(frozen=True)
class Policy:
    """One group of cores that share a frequency.

    Attributes:
        folder: its files.
        slowest_hz, fastest_hz: what the hardware can do.
        steps_hz: the only frequencies it can run at, ascending; empty where any is possible.
    """

    folder: Path
    slowest_hz: float
    fastest_hz: float
    steps_hz: tuple[float, ...]

    def nearest_hz(self, cpu_hz: float) -> float:
        """The frequency it can run at that lies nearest."""
        if self.steps_hz:
            return min(self.steps_hz, key=lambda step_hz: abs(step_hz - cpu_hz))
        return min(max(cpu_hz, self.slowest_hz), self.fastest_hz)


class CpuFrequency:
    """Sets the frequency of all cores; puts back what was before on `close` and at the end of the process.

    A process that is killed leaves the frequency as it set it; `testbed doctor` says so.

    Args:
        sysfs: where the kernel shows its devices.
        monotonic: a clock, seconds from whatever zero.
        pause: waits so many seconds.

    Raises:
        DeviceError: the machine has no cpufreq, or this user may not set it; nothing has been changed.
    """

    def __init__(
        self,
        sysfs: str | Path = "/sys",
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.policies = find_policies(sysfs)
        self._monotonic = monotonic
        self._pause = pause
        # folder -> allowed range in kHz as it was
        self._before = {policy.folder: _allowed_khz(policy.folder) for policy in self.policies}
        for policy in self.policies:
            check_writable(policy)
        atexit.register(self.close)

    @property
    def range_hz(self) -> tuple[float, float]:
        """Lowest and highest frequency that every core can run at."""
        return max(each.slowest_hz for each in self.policies), min(each.fastest_hz for each in self.policies)

    def set(self, cpu_hz: float) -> float:
        """Run every core at this frequency, or at the nearest that it can.

        Returns:
            the frequency that was set; of the fastest cores where they differ.

        Raises:
            LimitError: outside `range_hz`; nothing has been changed.
            DeviceError: the kernel took something else, or the cores do not run at what it took.
        """
        low_hz, high_hz = self.range_hz
        if not low_hz * (1 - 1e-9) <= cpu_hz <= high_hz * (1 + 1e-9):
            raise LimitError(
                f"this processor cannot run at {cpu_hz:g} Hz; its range is {low_hz:g} to {high_hz:g} Hz",
                key="nodes.cpu_hz",
                remedy="order a frequency inside the range, and give the board's true highest as cpu_hz of the node",
            )
        target_hz = {policy.folder: policy.nearest_hz(cpu_hz) for policy in self.policies}
        for folder, hz in target_hz.items():
            khz = round(hz / 1e3)
            _allow_khz(folder, khz, khz)
        self._verify(target_hz)
        return max(target_hz.values())

    def close(self) -> None:
        """Put back what was before; may be repeated.

        Raises:
            DeviceError: a policy did not take it; the others have been put back all the same.
        """
        atexit.unregister(self.close)
        failures = []
        for folder, (low_khz, high_khz) in self._before.items():
            try:
                _allow_khz(folder, low_khz, high_khz)
            except DeviceError as failure:
                failures.append(failure)
        self._before = {}
        if failures:
            raise failures[0]

    def _verify(self, target_hz: dict[Path, float]) -> None:
        deadline_s = self._monotonic() + _SETTLE_S
        for folder, wanted_hz in target_hz.items():
            while abs((runs_hz := _read_khz(folder / "scaling_cur_freq") * 1e3) - wanted_hz) > TOLERANCE * wanted_hz:
                if self._monotonic() >= deadline_s:
                    raise DeviceError(
                        f"{folder.name} runs at {runs_hz:g} Hz though {wanted_hz:g} Hz was set",
                        file=folder / "scaling_cur_freq",
                        remedy="look for thermal or power throttling (dmesg); or set meter.cpu_frequency = false",
                    )
                self._pause(_POLL_S)


def find_policies(sysfs: str | Path) -> tuple[Policy, ...]:
    """The machine's policies.

    Raises:
        DeviceError: it has none.
    """
    root = Path(sysfs) / "devices/system/cpu/cpufreq"
    policies = tuple(
        Policy(
            folder,
            _read_khz(folder / "cpuinfo_min_freq") * 1e3,
            _read_khz(folder / "cpuinfo_max_freq") * 1e3,
            _steps_hz(folder / "scaling_available_frequencies"),
        )
        for folder in sorted(root.glob("policy*"), key=lambda path: int(path.name.removeprefix("policy")))
    )
    if not policies:
        raise DeviceError(
            "this machine does not let its processor's frequency be set: cpufreq shows no policy",
            file=root,
            remedy="set meter.cpu_frequency = false (virtual machines and most containers have no cpufreq)",
        )
    return policies


def check_writable(policy: Policy) -> None:
    """Open what would be written, without writing.

    Raises:
        DeviceError: this user may not.
    """
    for name in ("scaling_min_freq", "scaling_max_freq"):
        path = policy.folder / name
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError as error:
            raise DeviceError(
                f"may not set the processor's frequency: {error.strerror}",
                file=path,
                remedy=f"sudo chmod a+w {path.parent.parent}/policy*/scaling_m??_freq (until the next start), "
                "or set meter.cpu_frequency = false",
            ) from error


def is_pinned(policy: Policy) -> bool:
    """Whether the policy allows one frequency only, though the hardware has more: left by a run that was killed."""
    low_khz, high_khz = _allowed_khz(policy.folder)
    return low_khz == high_khz and policy.slowest_hz < policy.fastest_hz


def _allowed_khz(folder: Path) -> tuple[int, int]:
    return _read_khz(folder / "scaling_min_freq"), _read_khz(folder / "scaling_max_freq")


def _allow_khz(folder: Path, low_khz: int, high_khz: int) -> None:
    """The kernel refuses a lowest above the highest, so the end that moves outwards goes first."""
    lowest, highest = (folder / "scaling_min_freq", low_khz), (folder / "scaling_max_freq", high_khz)
    upwards = high_khz >= _read_khz(highest[0])
    for path, khz in (highest, lowest) if upwards else (lowest, highest):
        try:
            path.write_text(f"{khz}\n")
        except OSError as error:
            raise DeviceError(
                f"the kernel refused {khz} kHz: {error.strerror}",
                file=path,
                remedy="see whether another program sets frequencies too (power-profiles-daemon, tlp, tuned)",
            ) from error
    taken_khz = _allowed_khz(folder)
    if taken_khz != (low_khz, high_khz):
        raise DeviceError(
            f"{folder.name} allows {taken_khz[0]} to {taken_khz[1]} kHz though {low_khz} to {high_khz} kHz was set",
            file=folder,
            remedy="see whether another program sets frequencies too (power-profiles-daemon, tlp, tuned)",
        )


def _steps_hz(path: Path) -> tuple[float, ...]:
    if not path.exists():
        return ()
    return tuple(sorted(int(word) * 1e3 for word in path.read_text().split()))


def _read_khz(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"cannot read a frequency: {error}", file=path, remedy="set meter.cpu_frequency = false"
        ) from error
