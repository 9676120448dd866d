"""A radio that plays SigMF recordings back: those of `CapturingRadio`, and foreign ones.

A recording of the testbed is one capture, and comes back bit for bit when the same instant and length are armed. A
foreign recording has no such instants: its first sample stands at core:offset samples of run time (0 s where it has
none), and any stretch of it may be armed.

Not modelled: anything that was not recorded. It hears no transmission, and whoever moves an antenna hears what was
recorded where it stood.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np

from drivers.sigmf_recording import DATA, Recording, metadata_files, open_recording, sigmf_library
from testbed.core.devices import Capabilities
from testbed.core.errors import ConfigError, LimitError, RadioFault

_LISTED = 4  # recordings that a message names


class SigmfRadio:
    """A receiver that returns what was recorded.

    Args:
        recordings: a folder of recordings, played in the order of their names, or one .sigmf-meta file.
        in_order: play one capture after the other, whatever instant is armed: a foreign recording from where the last
            capture ended, one of the testbed as a whole.
        full_scale_w: power of a sample of magnitude 1 (full scale of an integer type) at the antenna port, watts;
            needed for foreign recordings only: SigMF has no unit.

    Raises:
        ConfigError: the package sigmf is missing, the folder holds no recording, or one of them cannot be played: it
            names file, key and remedy.

    Reference:
        SigMF specification 1.2.
    """

    def __init__(self, recordings: Path, *, in_order: bool = False, full_scale_w: float | None = None) -> None:
        self._sigmf = sigmf_library()
        if full_scale_w is not None and not 0 < full_scale_w < float("inf"):
            raise ConfigError(
                f"{full_scale_w} W cannot be a full scale", key="full_scale_w", remedy="give watts above 0"
            )
        self._folder = Path(recordings)
        self._in_order = in_order
        self._recordings = [open_recording(path, full_scale_w) for path in metadata_files(self._folder)]
        first = self._recordings[0]
        for other in self._recordings[1:]:
            if other.num_channels != first.num_channels:
                raise ConfigError(
                    f"{other.num_channels} channels, but {first.path.name} has {first.num_channels}",
                    file=other.path,
                    key="core:num_channels",
                    remedy="play recordings of different arrays from different folders",
                )
        self._tuned: tuple[float, float] | None = None
        self._played = dict.fromkeys((one.path for one in self._recordings), 0)  # samples, in order
        self._window: tuple[Recording, int, int] | None = None
        self._positions_m = first.positions_m
        self._verified: set[Path] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What the recorded radio could do, tuned to what was recorded; a foreign one is credited with nothing."""
        rates_hz = [one.sample_rate_hz for one in self._recordings]
        halves_hz = [(one.frequency_hz, one.sample_rate_hz / 2) for one in self._recordings]
        return Capabilities(
            **{flag: all(one.flags.get(flag, False) for one in self._recordings) for flag in Capabilities.FLAGS},
            num_antennas=self._recordings[0].num_channels,
            max_power_w=0.0,
            frequencies_hz=tuple(sorted({(middle - half, middle + half) for middle, half in halves_hz})),
            sample_rate_hz=(min(rates_hz), max(rates_hz)),
        )

    @property
    def positions_m(self) -> np.ndarray | None:
        """Where the antennas stood, array frame, shape [num_antennas, 2]; None where the recording does not say.

        They are those of the capture that was armed last, before that those of the first.
        """
        return self._positions_m

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Choose the recordings made at this carrier and sample rate.

        Raises:
            LimitError: there are none.
        """
        if not any(recording.made_at(frequency_hz, sample_rate_hz) for recording in self._recordings):
            held = sorted({(one.frequency_hz, one.sample_rate_hz) for one in self._recordings})[:_LISTED]
            raise LimitError(
                f"nothing in {self._folder} was recorded at {frequency_hz:.10g} Hz, {sample_rate_hz:.10g} samples/s",
                remedy="it holds " + ", ".join(f"{carrier:.10g} Hz, {rate:.10g} samples/s" for carrier, rate in held),
            )
        self._tuned = (frequency_hz, sample_rate_hz)

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """Refused: a recording does not radiate.

        Raises:
            LimitError: always.
        """
        raise LimitError("recordings are played back: nothing can be transmitted")

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Choose the capture that was recorded at this instant with this length, or the next one.

        Raises:
            LimitError: there is nothing to capture.
            RadioFault: there is no such capture; it says what was asked and what the folder holds.
        """
        self._window = None
        if num_samples < 1:
            raise LimitError(f"a capture of {num_samples} samples")
        found = self._next(num_samples) if self._in_order else self._at(num_samples, at_s)
        if found is None:
            raise self._absent(num_samples, at_s)
        recording, offset = found
        self._window = (recording, offset, num_samples)
        self._positions_m = recording.positions_m

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        """The armed capture.

        Args:
            combiner: f, shape [num_antennas]; the array output is f^H y.

        Returns:
            shape [num_antennas, num_samples], or [1, num_samples] with a combiner, complex64.

        Raises:
            RadioFault: nothing was armed, or the file changed since it was recorded, ends early or holds values that
                are not finite; it names file, key and remedy.
        """
        if self._window is None:
            raise RadioFault("the player was read before it was armed")
        (recording, offset, num_samples), self._window = self._window, None
        samples = self._load(recording, offset, num_samples)
        if combiner is None:
            return samples
        # [1, num_samples]
        return np.einsum("a,at->t", np.asarray(combiner, np.complex64).conj(), samples)[None]

    def mute(self) -> None:
        """Nothing to do: it never radiates."""

    def close(self) -> None:
        """Let go; may be repeated."""
        self._window = None

    def _chosen(self) -> list[Recording]:
        return [one for one in self._recordings if self._tuned is None or one.made_at(*self._tuned)]

    def _at(self, num_samples: int, at_s: float) -> tuple[Recording, int] | None:
        for recording in self._chosen():
            offset = recording.offset(num_samples, at_s)
            if offset is not None and num_samples > 0:
                return recording, max(offset, 0)
        return None

    def _next(self, num_samples: int) -> tuple[Recording, int] | None:
        """The stretch that comes next; nothing is passed over where it does not fit."""
        left = self._left()
        if not left or num_samples <= 0:
            return None
        recording, played = left[0], self._played[left[0].path]
        rest = recording.num_samples - played
        if num_samples > rest or (recording.own and num_samples != rest):
            return None
        self._played[recording.path] += num_samples
        return recording, played

    def _left(self) -> list[Recording]:
        return [one for one in self._chosen() if self._played[one.path] < one.num_samples]

    def _absent(self, num_samples: int, at_s: float) -> RadioFault:
        chosen = self._chosen()
        asked = f"{num_samples} samples from {at_s:.9g} s on"
        if self._in_order:
            left = self._left()
            played = f", {self._played[left[0].path]} of them played" if left and self._played[left[0].path] else ""
            holds = f"next is {left[0]}{played}" if left else f"all {len(chosen)} recordings have been played"
        else:
            near = sorted(chosen, key=lambda one: abs(one.at_s - at_s))[:_LISTED]
            holds = f"it holds {len(chosen)} recordings, the nearest are " + "; ".join(map(str, near))
        return RadioFault(
            f"no recording of {asked}: {holds}",
            file=self._folder,
            remedy="play the captures that the recorded run made, with its configuration, seed and waveform",
        )

    def _load(self, recording: Recording, offset: int, num_samples: int) -> np.ndarray:
        """Samples of one file in square-root watts, shape [num_antennas, num_samples], complex64."""
        data = recording.path.with_suffix(DATA)
        remedy = "fetch both files of the recording again from where it was made"
        unchecked = recording.checksum is not None and recording.path not in self._verified
        try:
            if unchecked:
                with data.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha512").hexdigest()
                if digest != str(recording.checksum).lower():
                    raise RadioFault(
                        "the samples are not those that were recorded", file=data, key="core:sha512", remedy=remedy
                    )
            # the library warns where a file ends inside a sample; that is an error here
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # [num_samples, num_antennas], or one axis for one antenna
                read = self._sigmf.fromfile(recording.path, skip_checksum=True).read_samples(offset, num_samples)
            # [num_antennas, num_samples]
            samples = np.ascontiguousarray(read.reshape(num_samples, recording.num_channels).T)
        except (OSError, ValueError, self._sigmf.error.SigMFError) as error:
            raise RadioFault(f"the samples cannot be read: {error}", file=data, remedy=remedy) from error
        if unchecked:
            self._verified.add(recording.path)
        broken = np.flatnonzero(~np.isfinite(samples).all(axis=0))
        if broken.size:
            raise RadioFault(
                f"{broken.size} samples are not finite, the first is sample {offset + broken[0]}",
                file=data,
                remedy="leave this recording out: move its two files to another folder",
            )
        return samples if recording.own else samples * np.float32(recording.gain)
