"""What of a bench file decides whether a profile still speaks of this bench."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from calibration.profile import Validity
from testbed.core.backends import backend as backend_of
from testbed.core.bench import BenchSpec
from testbed.core.errors import ProtocolError
from testbed.core.hardware import PlutoSpec
from testbed.core.units import from_db

VALIDITY = ("frequency_hz", "sample_rate_hz", "gain", "array")
_ELSEWHERE = {"uri", "serial", "gain_db"}
"""A radio may move to another address; serial numbers and gains are compared by themselves."""


def bench_sha256(bench: BenchSpec, backend: str) -> str:
    """Fingerprint of what every calibration of a bench depends on: its radios, and in simulation its world.

    Carrier, rate, gains and array are not in it: they matter to some calibrations only, see `validity_of`. Neither is
    what a calibration finds and a user then writes into the file to report it, such as `start_jitter_s`. Keys at
    their defaults do not count, so that a version with new keys keeps the profiles.

    Args:
        bench: the bench.
        backend: where the devices are real, the simulated world does not matter.

    Returns:
        64 hexadecimal digits.
    """
    simulated = not backend_of(backend).radiates
    told = None if simulated else {"name", "max_power_dbm", "radio"}
    boards = [board.model_dump(mode="json", include=told, exclude_defaults=True) for board in bench.boards]
    for board in boards:
        board["radio"] = {key: value for key, value in board.get("radio", {}).items() if key not in _ELSEWHERE}
    content = {
        "boards": boards,
        "receivers": [
            one.model_dump(mode="json", exclude=_ELSEWHERE, exclude_defaults=True) for one in bench.array.radios
        ],
        "num_antennas": len(bench.array.antennas),
        "trigger": bench.radio.trigger,
        "world": bench.world.model_dump(mode="json", exclude_defaults=True) if simulated else None,
        "room_m": bench.room_m if simulated else None,
    }
    return _sha256(content)


def array_sha256(bench: BenchSpec) -> str:
    """Fingerprint of where the antennas may be, on which stages, and where the nodes stand."""
    array = bench.array.model_dump(mode="json", exclude={"radios"}, exclude_defaults=True)
    for antenna in array["antennas"]:
        device = antenna.get("stage", {}).pop("device", {})
        antenna["device"] = {key: value for key, value in device.items() if key != "port"}
    return _sha256({"array": array, "nodes": [board.position_m for board in bench.boards]})


def validity_of(keys: Sequence[str], bench: BenchSpec) -> Validity:
    """The bench's settings under the keys that matter to a routine.

    Raises:
        ProtocolError: a key that there is not.
    """
    if unknown := sorted(set(keys) - set(VALIDITY)):
        raise ProtocolError(
            f"a calibration is valid for {', '.join(unknown)}, and no bench has that",
            remedy=f"let its `validity` name some of {', '.join(VALIDITY)}",
        )
    radios = bench.array.radios or (PlutoSpec(),)
    settings: dict[str, Any] = {
        "frequency_hz": bench.carrier_hz,
        "sample_rate_hz": bench.sample_rate_hz,
        "gain": tuple(from_db(radio.gain_db) for radio in radios),
        "array": array_sha256(bench) if "array" in keys else None,
    }
    return Validity(**{key: settings[key] for key in keys})


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
