"""What is installed for real devices, and whether the versions fit each other."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import os
from collections.abc import Iterable

from drivers.adi_install import LIBRARY, PINS
from drivers.findings import Finding, Status
from drivers.serial_port import list_ports


def package_findings(drivers: Iterable[str]) -> list[Finding]:
    """The optional packages; a missing one is a failure only where a driver of the bench needs it.

    Args:
        drivers: names of drivers in use: pyadi, grbl, zaber.
    """
    used = set(drivers)
    findings = [
        _package("pyserial", 'pip install "pyserial>=3.5"', "serial ports", needed=bool(used & {"grbl", "zaber"})),
        _package("zaber-motion", 'pip install "zaber-motion>=10.2"', 'driver = "zaber"', needed="zaber" in used),
    ]
    return findings + _libiio_findings(needed="pyadi" in used)


def port_findings(ports: Iterable[str]) -> list[Finding]:
    """Serial ports of this machine, and whether this user may open them.

    Args:
        ports: of the bench, those that are files.
    """
    found = {entry.device: entry.description for entry in list_ports()}
    findings = [_port(path, f"serial port {path} ({words})", needed=False) for path, words in found.items()]
    findings += [_port(path, f"serial port {path}", needed=True) for path in ports if path not in found]
    return findings or [Finding("ok", "this machine shows no serial ports")]


def libiio_version(names: Iterable[str] = ("libiio.so.0", "libiio.so.1")) -> tuple[int, int] | None:
    """Major and minor version of the C library libiio, None without it.

    Args:
        names: to look for; then whatever the system's own search finds.
    """
    for name in (*names, ctypes.util.find_library("iio")):
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        major, minor = ctypes.c_uint(), ctypes.c_uint()
        try:
            library.iio_library_get_version(ctypes.byref(major), ctypes.byref(minor), ctypes.create_string_buffer(8))
        except AttributeError:
            return 1, 0  # the call is gone from version 1 on
        return major.value, minor.value
    return None


def fit_finding(pyadi: str | None, pylibiio: str | None, libiio: tuple[int, int] | None, *, needed: bool) -> Finding:
    """Whether the three parts of pyadi-iio fit each other.

    Args:
        pyadi, pylibiio: versions of the Python packages, None without.
        libiio: version of the C library, None without.
        needed: whether the bench uses them.
    """
    shown = ", ".join(
        f"{name} {version or 'missing'}"
        for name, version in (
            ("pyadi-iio", pyadi),
            ("pylibiio", pylibiio),
            ("libiio", ".".join(map(str, libiio)) if libiio else None),
        )
    )
    bad: Status = "fail" if needed else "warn"
    if pyadi is None or pylibiio is None or libiio is None:
        if not needed:
            return Finding("ok", f'{shown}; only driver = "pyadi" needs them')
        return Finding("fail", f'{shown}; driver = "pyadi" needs all three', f"{LIBRARY}; {PINS}")
    if libiio[0] >= 1:
        return Finding(
            bad, f"{shown}: with libiio 1 pyadi-iio 0.0.21 sends a quarter of a cyclic waveform", f"{LIBRARY}; {PINS}"
        )
    if not pylibiio.startswith("0.25"):
        return Finding(bad, f"{shown}: this pylibiio does not fit this libiio", PINS)
    return Finding("ok", shown)


def _libiio_findings(*, needed: bool) -> list[Finding]:
    return [fit_finding(_version("pyadi-iio"), _version("pylibiio"), libiio_version(), needed=needed)]


def _package(name: str, install: str, purpose: str, *, needed: bool) -> Finding:
    version = _version(name)
    if version is not None:
        return Finding("ok", f"{name} {version}")
    if needed:
        return Finding("fail", f"{name} is not installed; {purpose} needs it", install)
    return Finding("ok", f"{name} is not installed; only {purpose} needs it")


def _port(path: str, name: str, *, needed: bool) -> Finding:
    if not os.path.exists(path):
        return Finding("fail", f"{name}: there is no such port", "check the cable, and the name in the bench file")
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding(
            "fail" if needed else "warn",
            f"{name}: this user may not open it",
            "add yourself to the group that owns it and log in again: sudo usermod -aG dialout $USER",
        )
    return Finding("ok", name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
