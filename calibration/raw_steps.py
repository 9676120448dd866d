"""Raw data of a calibration: one npz file a step, written whole or not at all, with what it was measured for."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.routine import Raw, Step
from testbed.core.errors import ConfigError, ProtocolError

FOLDER = "raw"
_FACTS = "step"
"""Name under which a file holds its facts, as JSON."""
_TAKEN = {_FACTS, "file", "allow_pickle"}
"""Names that a file needs itself, or `numpy.savez`."""


@dataclass(frozen=True)
class Facts:
    """What is known of one step beside its arrays.

    Attributes:
        index: from 0.
        step: what was measured.
        clock_s: the run's clock after the step.
        positions_m: where the antennas were then, array frame, shape [num_antennas, 2].
        taken: UTC, ISO 8601.
        calibration_id, routine: it belongs to.
    """

    index: int
    step: dict[str, Any]
    clock_s: float
    positions_m: list[list[float]]
    taken: str
    calibration_id: str
    routine: str


def plain_step(step: Step) -> dict[str, Any]:
    """A step as JSON gives it back: what is measured first is then what is measured after an interruption.

    Raises:
        ProtocolError: JSON cannot hold it.
    """
    try:
        return dict(json.loads(json.dumps(_listed(step), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ProtocolError(
            f"a step cannot be written down: {error}", remedy="let next_step give numbers, texts and lists of them"
        ) from error


def checked_raw(raw: Raw) -> dict[str, np.ndarray]:
    """The arrays of a step.

    Raises:
        ProtocolError: one has a name that the file needs, or holds objects.
    """
    arrays = {name: np.asarray(array) for name, array in raw.items()}
    for name, array in arrays.items():
        if name in _TAKEN or array.dtype.hasobject:
            raise ProtocolError(
                f"raw data {name!r} of type {array.dtype} cannot be kept",
                remedy=f"let measure give arrays of numbers, under other names than {', '.join(sorted(_TAKEN))}",
            )
    return arrays


def write_step(folder: Path, facts: Facts, raw: Raw) -> Path:
    """Keep one step; returns its file."""
    path = folder / FOLDER / f"{facts.index:05d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    arrays: dict[str, Any] = {**raw, _FACTS: np.array(json.dumps(asdict(facts), allow_nan=False))}
    with scratch.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(scratch, path)
    return path


def read_steps(folder: Path) -> list[tuple[Facts, dict[str, np.ndarray]]]:
    """All steps that are complete, in their order.

    Raises:
        ConfigError: a file is damaged, or one in the middle is missing.
    """
    found = []
    for index, path in enumerate(step_files(folder)):
        try:
            with np.load(path, allow_pickle=False) as file:
                raw = {name: file[name] for name in file.files if name != _FACTS}
                facts = Facts(**json.loads(str(file[_FACTS])))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(f"the raw data are damaged: {error}", file=path, remedy="calibrate anew") from error
        if facts.index != index:
            raise ConfigError(f"step {index} is missing", file=path.parent, remedy="calibrate anew")
        found.append((facts, raw))
    return found


def step_files(folder: Path) -> list[Path]:
    """The files of complete steps, in their order."""
    return sorted((folder / FOLDER).glob("*.npz"))


def _listed(value: Any) -> Any:
    """Arrays and numpy's numbers as Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _listed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(one) for one in value]
    return value
