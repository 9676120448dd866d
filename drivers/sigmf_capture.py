"""Every capture a radio makes, kept as SigMF recordings.

One recording for one `read`: `capture-000000.sigmf-data` holds the antennas' samples interleaved (cf32_le,
core:num_channels of them), `capture-000000.sigmf-meta` what is known about them. What SigMF has no word for stands in
the namespace `testbed`. The metadata appears last and in one step, so a recording that has it is whole.

Not recorded: what the radio transmits, and captures that nobody reads.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drivers.sigmf_recording import DATA, META, NAMESPACE, NAMESPACE_VERSION, UNIT, sigmf_library
from testbed.core.bench import WaveformSpec
from testbed.core.devices import Capabilities, Radio
from testbed.core.errors import ConfigError, DeviceError, ProtocolError, RadioFault

UNFINISHED = ".part"
_GLOBAL_FACTS = ("bench", "serials", "calibration_ids")  # of the bench; every other fact belongs to the one capture
_OWN_KEYS = ("at_s", "num_samples", "unit", "level", "sample_rate_hz", "capabilities")
_CHUNK = 65_536  # samples that are interleaved at a time
_META_BYTES = 65_536  # room that is kept free for the metadata
_NUMBERED = re.compile(r"capture-(\d{6,})\.sigmf-(data|meta)")  # what a killed process left unfinished does not count


class CapturingRadio:
    """A radio whose captures are written down as they are read.

    Args:
        radio: does the work; every verb reaches it.
        folder: of the recordings; made if absent. Numbers go on after those it holds.
        facts: asked after each capture for what the radio does not know: `positions_m` (array frame, shape
            [num_antennas, 2]), `serials`, `calibration_ids`, `bench`, `order_index`, `order_label`, and whatever else
            is worth keeping; `hw` becomes core:hw. Values are JSON or numpy.
        waveform: tells how many elements a second of a capture has.
        utc: wall-clock time of an instant of the run, where there is one. A simulated run has none, and its recordings
            carry no core:datetime.

    Raises:
        ConfigError: the package sigmf is missing, or the folder cannot be made.

    Reference:
        SigMF specification 1.2, "Global Object", "Captures Array", "Extension Namespaces".
    """

    def __init__(
        self,
        radio: Radio,
        folder: Path,
        *,
        facts: Callable[[], Mapping[str, Any]],
        waveform: WaveformSpec | None = None,
        utc: Callable[[float], datetime.datetime] | None = None,
    ) -> None:
        self._sigmf = sigmf_library()
        self._radio = radio
        self._folder = Path(folder)
        self._facts = facts
        self._waveform = waveform or WaveformSpec()
        self._utc = utc
        self._tuned: tuple[float, float] | None = None
        self._at_s: float | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            taken = [int(found[1]) for path in self._folder.iterdir() if (found := _NUMBERED.fullmatch(path.name))]
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self._index = max(taken, default=-1) + 1

    @property
    def capabilities(self) -> Capabilities:
        """Those of the radio."""
        return self._radio.capabilities

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Set carrier and sample rate.

        Raises:
            LimitError: outside the capabilities.
        """
        self._radio.tune(frequency_hz=frequency_hz, sample_rate_hz=sample_rate_hz)
        self._tuned = (frequency_hz, sample_rate_hz)

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """Send one burst, shape [num_samples]; it is not recorded.

        Raises:
            LimitError: as the radio.
            RadioFault: as the radio.
        """
        self._radio.transmit(samples, at_s=at_s, trigger_s=trigger_s)

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Make sure that the capture can be kept, then capture `num_samples` from `at_s` on.

        Raises:
            ConfigError: the folder cannot be written; nothing was armed.
            DeviceError: the disk has no room for the capture; nothing was armed.
            RadioFault: the radio was never tuned, so nobody could tell what the recording holds; or as the radio.
        """
        if self._tuned is None:
            raise RadioFault("a capture to be recorded was armed before the radio was tuned")
        self._at_s = None
        needed = self.capabilities.num_antennas * num_samples * np.dtype(np.complex64).itemsize + _META_BYTES
        try:
            # opened for writing, not asked for permission: a read-only disk says no only to this
            self._path(DATA + UNFINISHED).open("wb").close()
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        if free < needed:
            self._discard()
            raise DeviceError(
                f"a capture of {needed:,} bytes does not fit: the disk has {free:,} bytes left",
                file=self._folder,
                remedy="make room on the disk, record to another folder, or run without recording",
            )
        self._radio.arm(num_samples, at_s=at_s)
        self._at_s = at_s

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        """The armed capture, recorded; the record holds every antenna even where a combiner is given.

        Args:
            combiner: f, shape [num_antennas]; the array output is f^H y.

        Returns:
            shape [num_antennas, num_samples], or [1, num_samples] with a combiner, complex64.

        Raises:
            RadioFault: as the radio, or the recording could not be written; it names the file.
            ProtocolError: a fact is not JSON.
        """
        at_s, self._at_s = self._at_s, None
        samples = self._radio.read()
        if at_s is not None:
            self._record(samples, at_s)
        if combiner is None:
            return samples
        # [1, num_samples]
        return np.einsum("a,at->t", np.asarray(combiner, np.complex64).conj(), samples)[None]

    def mute(self) -> None:
        """Stop radiating at once; always legal."""
        self._radio.mute()

    def close(self) -> None:
        """Mute and let go; may be repeated."""
        self._radio.close()
        self._discard()

    def _path(self, suffix: str) -> Path:
        return self._folder / f"capture-{self._index:06d}{suffix}"

    def _discard(self) -> None:
        """Remove what an armed capture that never came would leave behind."""
        try:
            for suffix in (DATA, META):
                self._path(suffix + UNFINISHED).unlink(missing_ok=True)
        except OSError:
            pass  # the folder is gone or read-only; an empty .part file is no recording

    def _record(self, samples: np.ndarray, at_s: float) -> None:
        facts = dict(self._facts())
        path = self._path(DATA)
        try:
            checksum = _write_interleaved(samples, self._path(DATA + UNFINISHED))
            path = self._path(META)
            text = self._metadata(samples, at_s, facts, checksum)
            self._path(META + UNFINISHED).write_text(text, encoding="utf-8")
            os.replace(self._path(DATA + UNFINISHED), self._path(DATA))
            os.replace(self._path(META + UNFINISHED), self._path(META))
        except OSError as error:
            raise RadioFault(
                f"the capture of {at_s:g} s could not be recorded: {error.strerror or error}",
                file=path,
                remedy="make room on the disk or mend the folder, then resume the run",
            ) from error
        self._index += 1

    def _metadata(self, samples: np.ndarray, at_s: float, facts: dict[str, Any], checksum: str) -> str:
        """The .sigmf-meta file, checked against the schema."""
        assert self._tuned is not None  # arm has seen to it
        frequency_hz, sample_rate_hz = self._tuned
        can = self._radio.capabilities
        whole: dict[str, Any] = {
            "core:datatype": "cf32_le",
            "core:sample_rate": self._waveform.elements_per_second(sample_rate_hz),
            "core:num_channels": len(samples),
            "core:sha512": checksum,
            "core:recorder": "testbed",
            "core:extensions": [{"name": NAMESPACE, "version": NAMESPACE_VERSION, "optional": True}],
            f"{NAMESPACE}:unit": UNIT,
            f"{NAMESPACE}:level": self._waveform.level,
            f"{NAMESPACE}:sample_rate_hz": sample_rate_hz,
            f"{NAMESPACE}:capabilities": {flag: getattr(can, flag) for flag in Capabilities.FLAGS},
        }
        capture: dict[str, Any] = {
            "core:frequency": frequency_hz,
            f"{NAMESPACE}:at_s": at_s,
            f"{NAMESPACE}:num_samples": samples.shape[1],
        }
        if self._utc is not None:
            instant = self._utc(at_s).astimezone(datetime.UTC)
            capture["core:datetime"] = instant.isoformat(timespec="microseconds").replace("+00:00", "Z")
        _state(facts, whole, capture)
        recording = self._sigmf.SigMFFile(global_info=whole)
        recording.add_capture(0, metadata=capture)
        recording.validate()
        return str(recording.dumps()) + "\n"


def _state(facts: Mapping[str, Any], whole: dict[str, Any], capture: dict[str, Any]) -> None:
    """Put every fact where it belongs: to the whole recording or to its one capture."""
    for key, value in facts.items():
        if key in _OWN_KEYS or not key.isidentifier():
            raise ProtocolError(f"a recording cannot carry a fact named {key!r}")
        if key == "hw":
            whole["core:hw"] = str(value)
        else:
            (whole if key in _GLOBAL_FACTS else capture)[f"{NAMESPACE}:{key}"] = _plain(key, value)


def _write_interleaved(samples: np.ndarray, path: Path) -> str:
    """Write the antennas sample by sample; the SHA-512 of the file."""
    checksum = hashlib.sha512()
    with path.open("wb") as file:
        for start in range(0, samples.shape[1], _CHUNK):
            # [chunk, num_antennas]
            part = samples[:, start : start + _CHUNK].T.astype("<c8", order="C")
            file.write(part.data)
            checksum.update(part.data)
    return checksum.hexdigest()


def _plain(key: str, value: Any) -> Any:
    """The fact as JSON knows it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=lambda part: np.asarray(part).tolist()))
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a recording cannot carry the fact {key!r}: {error}") from error


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"captures cannot be recorded here: {error.strerror or error}",
        file=folder,
        remedy="name a folder that you may write to, or run without recording",
    )
