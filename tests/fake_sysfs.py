"""Folders that look like the kernel's, for tests of meters and of the processor's frequency."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def add_policy(sysfs: Path, number: int, *, low: int = 600_000, high: int = 1_500_000, steps: str = "") -> Path:
    """One cpufreq policy, kHz."""
    folder = sysfs / f"devices/system/cpu/cpufreq/policy{number}"
    folder.mkdir(parents=True)
    for name, khz in (("cpuinfo_min_freq", low), ("cpuinfo_max_freq", high)):
        (folder / name).write_text(f"{khz}\n")
    for name, khz in (("scaling_min_freq", low), ("scaling_max_freq", high), ("scaling_cur_freq", high)):
        (folder / name).write_text(f"{khz}\n")
    if steps:
        (folder / "scaling_available_frequencies").write_text(steps + "\n")
    return folder


def follow(folder: Path) -> None:
    """From now on the processor runs as fast as it is allowed."""
    (folder / "scaling_cur_freq").unlink()
    (folder / "scaling_cur_freq").symlink_to(folder / "scaling_max_freq")


def allowed(folder: Path) -> list[int]:
    """Lowest and highest allowed frequency of a policy, kHz."""
    return [int((folder / name).read_text()) for name in ("scaling_min_freq", "scaling_max_freq")]


def add_zone(sysfs: Path, zone: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> Path:
    """One RAPL zone; returns its counter's file."""
    folder = sysfs / "class/powercap" / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder / "energy_uj"


def add_chip(sysfs: Path, number: int, name: str, **files: int | str) -> Path:
    """One hwmon chip."""
    folder = sysfs / f"class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for file, value in files.items():
        (folder / file).write_text(f"{value}\n")
    return folder


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def without_privileges() -> Iterator[None]:
    """As a user to whom files' permissions apply, also where the tests run as root."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)
