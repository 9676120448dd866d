"""What has to be installed for pyadi-iio, and which wrong pair of versions gives itself away by which error.

pyadi-iio 0.0.21 asks for pylibiio 0.25 or newer; 1.0, which pip would take, fits no libiio that a distribution ships.
None of the Python packages brings the C library. Tried on Debian 12 with Python 3.11.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from testbed.core.errors import ConfigError

PINS = 'pip install "pyadi-iio==0.0.21" "pylibiio==0.25"'
"""Python packages that fit each other and libiio 0.24."""
LIBRARY = "sudo apt-get install -y libiio0"
"""The C library, on Debian and its relatives."""
_NATIVE = 'or set driver = "native", which needs neither'


def import_adi() -> tuple[Any, Any]:
    """The modules adi and iio.

    Raises:
        ConfigError: they or the C library are missing, or their versions do not fit; the remedy is what to install.
    """
    try:
        import adi
        import iio
    except Exception as error:  # each pair of wrong versions fails with an error of its own kind
        raise installation_error(error) from error
    if iio.version[0] >= 1:
        raise ConfigError(
            f"libiio {iio.version[0]}.{iio.version[1]} is in use, with which pyadi-iio 0.0.21 sends the first quarter "
            "of a cyclic waveform only",
            key="driver",
            remedy=f"{LIBRARY}; {PINS}; {_NATIVE}",
        )
    return adi, iio


def installation_error(error: Exception) -> ConfigError:
    """Why pyadi-iio could not be imported, and what to install.

    Args:
        error: that the import raised.
    """
    found = ", ".join(f"{name} {_version(name)}" for name in ("pyadi-iio", "pylibiio"))
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(
            f'driver = "pyadi" needs the Python module {error.name}, which is not installed here ({found})',
            key="driver",
            remedy=f"{PINS}; {LIBRARY}; {_NATIVE}",
        )
    if "version 1.x required" in text or "iio_context_get_version_patch" in text:
        return ConfigError(
            f"pylibiio and the C library libiio do not fit each other ({text}; {found})",
            key="driver",
            remedy=f'pip install "pylibiio==0.25", which fits Debian\'s libiio0; {_NATIVE}',
        )
    if "libiio" in text or "undefined symbol: iio_" in text:
        return ConfigError(
            f"the C library libiio is missing, the Python packages do not bring it ({found})",
            key="driver",
            remedy=f"{LIBRARY}; {PINS}; {_NATIVE}",
        )
    return ConfigError(
        f"pyadi-iio cannot be imported: {type(error).__name__}: {text} ({found})",
        key="driver",
        remedy=f"{PINS}; {LIBRARY}; {_NATIVE}",
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is missing"
