"""What a SigMF recording says of itself: the words both ends share, and what can be played of it."""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core.devices import Capabilities
from testbed.core.errors import ConfigError

NAMESPACE = "testbed"
NAMESPACE_VERSION = "1.0.0"
UNIT = "square-root watts at the antenna port"
META, DATA = ".sigmf-meta", ".sigmf-data"
_BYTES_PER_SAMPLE = {"cf32_le": 8, "ci16_le": 4}
_FETCH = "fetch both files of the recording again from where it was made"


def sigmf_library() -> Any:
    """The package sigmf.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("sigmf")
    except ImportError as error:
        raise ConfigError("recordings need the package sigmf", remedy="pip install 'sigmf>=1.14'") from error


@dataclass(frozen=True)
class Recording:
    """One recording that can be played.

    Attributes:
        own: made by `drivers.sigmf_capture`: one capture, in square-root watts.
        at_s: run time of the first sample.
        rate_hz: samples of the file in a second; `sample_rate_hz` is what the radio was tuned to.
        gain: square-root watts of a sample of magnitude 1.
        flags: capabilities of the radio that made it.
        positions_m: shape [num_antennas, 2], array frame.
    """

    path: Path
    own: bool
    checksum: str | None
    num_channels: int
    num_samples: int
    at_s: float
    rate_hz: float
    sample_rate_hz: float
    frequency_hz: float
    gain: float
    flags: Mapping[str, bool]
    positions_m: np.ndarray | None

    def offset(self, num_samples: int, at_s: float) -> int | None:
        """First sample of the capture that is asked for; None where this recording does not hold it."""
        late = (at_s - self.at_s) * self.rate_hz
        if self.own:
            return 0 if abs(late) <= 0.5 and num_samples == self.num_samples else None
        return round(late) if late >= -0.5 and round(late) + num_samples <= self.num_samples else None

    def made_at(self, frequency_hz: float, sample_rate_hz: float) -> bool:
        """Whether the radio was tuned so, to a millionth of the sample rate: metadata written by others are rounded."""
        slack_hz = 1e-6 * self.sample_rate_hz
        near = abs(self.frequency_hz - frequency_hz) <= slack_hz
        return near and abs(self.sample_rate_hz - sample_rate_hz) <= slack_hz

    def __str__(self) -> str:
        return f"{self.path.name} with {self.num_samples} samples from {self.at_s:.9g} s on"


def metadata_files(recordings: Path) -> list[Path]:
    """The metadata files of a folder in the order of their names, or the one that is named.

    Raises:
        ConfigError: there is none.
    """
    if recordings.is_file():
        if recordings.suffix != META:
            raise ConfigError(f"not a {META} file", file=recordings, remedy=f"unpack an archive; name the {META} file")
        return [recordings]
    found = sorted(recordings.glob(f"*{META}"))
    if not found:
        raise ConfigError("no recordings here", file=recordings, remedy=f"name a folder that holds {META} files")
    return found


def open_recording(path: Path, full_scale_w: float | None) -> Recording:
    """What one metadata file says, checked against the standard's schema and the length of the data file.

    Args:
        path: of the .sigmf-meta file.
        full_scale_w: power of a sample of magnitude 1 at the antenna port, for a foreign recording.

    Raises:
        ConfigError: it cannot be played; names file, key and remedy.
    """
    metadata = _checked(path)
    whole, captures = metadata["global"], metadata["captures"]
    first = captures[0] if captures else {}
    own = f"{NAMESPACE}:unit" in whole
    _refuse_exotic(path, whole, captures)
    if own:
        _refuse_unknown(path, whole, first)
        full_scale_w = 1.0
    elif full_scale_w is None:
        key, remedy = f"{NAMESPACE}:unit", "give full_scale_w, the power of a sample of magnitude 1 at the antenna port"
        raise ConfigError("the recording does not say what its samples are in watts", file=path, key=key, remedy=remedy)
    num_channels = int(whole.get("core:num_channels", 1))
    num_samples = _num_samples(path, whole["core:datatype"], num_channels, first.get(f"{NAMESPACE}:num_samples"))
    rate_hz = _number(path, whole, "core:sample_rate", above=0.0)
    flags = whole.get(f"{NAMESPACE}:capabilities")
    return Recording(
        path=path,
        own=own,
        checksum=whole.get("core:sha512"),
        num_channels=num_channels,
        num_samples=num_samples,
        at_s=_number(path, first, f"{NAMESPACE}:at_s") if own else whole.get("core:offset", 0) / rate_hz,
        rate_hz=rate_hz,
        sample_rate_hz=_number(path, whole, f"{NAMESPACE}:sample_rate_hz", above=0.0) if own else rate_hz,
        frequency_hz=_number(path, first, "core:frequency"),
        gain=float(np.sqrt(full_scale_w)),
        flags={flag: flags.get(flag) is True for flag in Capabilities.FLAGS} if isinstance(flags, dict) else {},
        positions_m=_positions_m(path, first.get(f"{NAMESPACE}:positions_m"), num_channels),
    )


def _checked(path: Path) -> dict[str, Any]:
    """The metadata, valid by the standard's own schema."""
    invalid = importlib.import_module("jsonschema").ValidationError
    remedy = "mend the metadata; sigmf_validate says what the standard asks"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        # a foreign recording may use a namespace that it does not declare
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            sigmf_library().validate.validate(metadata)
    except invalid as error:
        key = ".".join(str(part) for part in error.absolute_path) or None
        raise ConfigError(error.message, file=path, key=key, remedy=remedy) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"the metadata cannot be read: {error}", file=path, remedy=remedy) from error
    return dict(metadata)


def _refuse_exotic(path: Path, whole: Mapping[str, Any], captures: Sequence[Mapping[str, Any]]) -> None:
    """Forms of the standard that no bench needs."""
    if whole["core:datatype"] not in _BYTES_PER_SAMPLE:
        message, remedy = f"samples of type {whole['core:datatype']} are not played", "convert them to "
        remedy += " or ".join(_BYTES_PER_SAMPLE)
        raise ConfigError(message, file=path, key="core:datatype", remedy=remedy)
    strange = [key for key in ("core:dataset", "core:trailing_bytes", "core:metadata_only") if whole.get(key)]
    strange += ["core:header_bytes" for capture in captures if capture.get("core:header_bytes")]
    if strange:
        remedy = f"convert it to a {META} and {DATA} pair"
        raise ConfigError("only conforming recordings are played", file=path, key=strange[0], remedy=remedy)
    if len({capture.get("core:frequency") for capture in captures}) > 1:
        remedy = "cut it into one recording for each carrier"
        raise ConfigError("the carrier changes inside", file=path, key="core:frequency", remedy=remedy)


def _refuse_unknown(path: Path, whole: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Recordings of the testbed that this code would read wrongly."""
    declared = {extension["name"]: extension["version"] for extension in whole.get("core:extensions", ())}
    version = declared.get(NAMESPACE, "")
    if version.split(".")[0] != NAMESPACE_VERSION.split(".")[0]:
        message = f"{NAMESPACE} {version or 'undeclared'}, where {NAMESPACE_VERSION} is understood"
        remedy = "play it with the version of the testbed that recorded it"
        raise ConfigError(message, file=path, key="core:extensions", remedy=remedy)
    if whole[f"{NAMESPACE}:unit"] != UNIT or whole["core:datatype"] != "cf32_le":
        remedy = f"{_FETCH}, or take the keys of {NAMESPACE} out and give full_scale_w"
        message = f"samples of the testbed are cf32_le in {UNIT}"
        raise ConfigError(message, file=path, key=f"{NAMESPACE}:unit", remedy=remedy)
    if not isinstance(first.get(f"{NAMESPACE}:num_samples"), int):
        raise ConfigError("a whole number is missing", file=path, key=f"{NAMESPACE}:num_samples", remedy=_FETCH)


def _num_samples(path: Path, datatype: str, num_channels: int, promised: int | None) -> int:
    """Samples of each channel, from the length of the data file."""
    data = path.with_suffix(DATA)
    try:
        length = data.stat().st_size
    except OSError as error:
        remedy = f"put them beside {path.name}"
        raise ConfigError(f"the samples are missing: {error.strerror}", file=data, remedy=remedy) from error
    num_samples, rest = divmod(length, _BYTES_PER_SAMPLE[datatype] * num_channels)
    if rest or num_samples == 0 or promised not in (None, num_samples):
        wanted = "whole samples" if promised is None else f"{promised} samples"
        message = (
            f"{length} bytes are not {wanted} of {num_channels} channels in {datatype}: it is cut, or another type"
        )
        key = "core:datatype" if promised is None else f"{NAMESPACE}:num_samples"
        raise ConfigError(message, file=data, key=key, remedy=_FETCH)
    return num_samples


def _number(path: Path, scope: Mapping[str, Any], key: str, *, above: float = -math.inf) -> float:
    value = scope.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
        wanted = "a number" if above == -math.inf else f"a number above {above:g}"
        raise ConfigError(f"{wanted} is missing", file=path, key=key, remedy="add the key to the metadata")
    return float(value)


def _positions_m(path: Path, value: Any, num_channels: int) -> np.ndarray | None:
    if value is None:
        return None
    try:
        positions_m = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        positions_m = np.zeros(0)
    if positions_m.shape != (num_channels, 2) or not np.isfinite(positions_m).all():
        message, key = f"positions are {num_channels} pairs of metres", f"{NAMESPACE}:positions_m"
        raise ConfigError(message, file=path, key=key, remedy=_FETCH)
    return positions_m
