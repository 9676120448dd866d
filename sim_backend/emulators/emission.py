"""One waveform that a transmitter's converter plays: once, or over and over."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal

from drivers.pluto_port import FULL_SCALE_TX
from sim_backend.emulators.converters import Tone
from sim_backend.emulators.history import Window
from sim_backend.emulators.transmit_path import TransmitPath, tone_codes
from sim_backend.impairments import rotation
from sim_backend.resample import HALF_TAPS, resampled

_TILE = 1 << 16  # samples that a short waveform is repeated to, so that stretches of it are copied in few pieces
_KEPT = 4  # settings of the transmitter for which what it radiates is kept
_SMALL_STRETCH = 0.01
_SMALL_SHIFT = 0.02  # of the sample rate: what such a carrier offset pushes out of the band is not worth a filter


@dataclass(frozen=True)
class Sounding:
    """Part of a waveform as it sounds in a window.

    Attributes:
        samples: square-root watts at the transmitting antenna, complex64.
        offset: sample of the window at which it begins; may be negative.
    """

    samples: np.ndarray
    offset: int


class Emission:
    """What one transmit buffer block puts on the air.

    Args:
        codes: I and Q of each channel, shape [num_samples, 2 * num_channels], int16.
        begin_s: instant of the first sample.
        rate_hz: samples in a second.
        cyclic: it repeats until it is ended.
        num_tunings: writes of the synthesiser's frequency before it.
        started_s: instant at which what it continues without a gap began; None if it begins by itself.
    """

    def __init__(
        self,
        codes: np.ndarray,
        *,
        begin_s: float,
        rate_hz: float,
        cyclic: bool = False,
        num_tunings: int = 0,
        started_s: float | None = None,
    ) -> None:
        self.codes, self.begin_s, self.rate_hz, self.cyclic = codes, begin_s, rate_hz, cyclic
        self._num_tunings = num_tunings
        self.started_s = begin_s if started_s is None else started_s
        """Instant at which what plays without a gap began."""
        self._continues = started_s is not None
        self.end_s = math.inf if cyclic else begin_s + len(codes) / rate_hz
        """Instant after the last sample."""
        self._cut = False
        self._lock = threading.Lock()
        self._mean_squares: dict[int, float] = {}
        self._radiated: dict[tuple[int, float, float], tuple[np.ndarray, float]] = {}

    def end(self, at_s: float) -> None:
        """Play no more from this instant on."""
        if at_s < self.end_s:
            self.end_s, self._cut = max(at_s, self.begin_s), True

    def mean_square(self, channel: int) -> float:
        """Mean of |code|^2 of one channel, relative to full scale squared."""
        if channel not in self._mean_squares:
            parts = self.codes[:, 2 * channel : 2 * channel + 2].astype(np.float32) / FULL_SCALE_TX
            self._mean_squares[channel] = 2 * float(np.mean(np.square(parts))) if parts.size else 0.0
        return self._mean_squares[channel]

    def codes_in(self, window: Window) -> np.ndarray:
        """What the converter plays in a window, shape [count, 2 * num_channels], int16."""
        indices = np.arange(window.count) - window.index(self.begin_s)
        playing = (indices >= 0) & (np.arange(window.count) < window.index(self.end_s))
        if self.cyclic:
            indices %= len(self.codes)
        else:
            playing &= indices < len(self.codes)
        out = np.zeros((window.count, self.codes.shape[1]), np.int16)
        out[playing] = self.codes[indices[playing]]
        return out

    def sounding(
        self, channel: int, path: TransmitPath, gain_db: float, shift_hz: float, window: Window, span: tuple[int, int]
    ) -> Sounding | None:
        """What it radiates at one setting of the transmitter, as a receiver on another carrier hears it.

        Args:
            channel: which transmit channel.
            path: from codes to the antenna.
            gain_db: of the transmitter.
            shift_hz: the transmitter's carrier less the receiver's.
            window: of the receiver.
            span: samples of the window in which the setting holds, as (first, after the last).

        Returns:
            None where nothing of it lies in the span.
        """
        if self.cyclic or self._continues:
            part = self._steady(path, channel, gain_db, shift_hz, window, span)
            return part and _turned(part, window, path.offset_hz + shift_hz, path.drift_hz_s)
        part = self._burst(path, channel, gain_db, shift_hz, window, span)
        return part and _turned(part, window, shift_hz, 0.0)

    def _burst(
        self, path: TransmitPath, channel: int, gain_db: float, shift_hz: float, window: Window, span: tuple[int, int]
    ) -> Sounding | None:
        samples, begin_s = self._once(path, channel, gain_db, shift_hz, window.rate_hz)
        offset = window.index(begin_s)
        # a burst that starts late ends late, unless it is cut short
        stop = min(span[1], offset + samples.size, window.index(self.end_s) if self._cut else span[1])
        start = max(span[0], offset)
        return Sounding(samples[start - offset : stop - offset], start) if start < stop else None

    def _steady(
        self, path: TransmitPath, channel: int, gain_db: float, shift_hz: float, window: Window, span: tuple[int, int]
    ) -> Sounding | None:
        samples, late_s = self._once(path, channel, gain_db, shift_hz, window.rate_hz)
        offset = window.index(self.begin_s + late_s)
        start = max(span[0], offset)
        stop = min(span[1], window.index(self.end_s), span[1] if self.cyclic else offset + samples.size)
        if start >= stop:
            return None
        if not self.cyclic:
            return Sounding(samples[start - offset : stop - offset], start)
        return Sounding(_around(samples, (start - offset) % samples.size, stop - start), start)

    def _once(
        self, path: TransmitPath, channel: int, gain_db: float, shift_hz: float, rate_hz: float
    ) -> tuple[np.ndarray, float]:
        """What is worked out once: the waveform, and when it begins or by how much it is late."""
        heard_hz = shift_hz if abs(shift_hz) > _SMALL_SHIFT * rate_hz else 0.0
        key = (channel, gain_db, heard_hz)
        with self._lock:
            if key not in self._radiated:
                codes = np.ascontiguousarray(self.codes[:, 2 * channel : 2 * channel + 2])
                if self.cyclic or self._continues:
                    samples = path.steady(codes, gain_db)
                    when_s, phase = path.start(self.started_s, self._num_tunings)
                    if phase != 1.0:
                        samples *= np.complex64(phase)
                else:
                    samples, when_s = path.burst(codes, gain_db, self.begin_s, self._num_tunings)
                steady = self.cyclic or self._continues
                samples, early = _resampled(samples, self.rate_hz, rate_hz, around=steady)
                when_s -= early / rate_hz
                if heard_hz != 0.0:
                    samples = _in_band(samples, heard_hz / rate_hz)
                if self.cyclic:
                    samples = np.tile(samples, -(-_TILE // samples.size))
                while len(self._radiated) >= _KEPT:
                    del self._radiated[next(iter(self._radiated))]
                self._radiated[key] = (samples, when_s)
            return self._radiated[key]


def tone_sounding(
    settings: Sequence[Tone], path: TransmitPath, gain_db: float, shift_hz: float, window: Window, span: tuple[int, int]
) -> Sounding | None:
    """What the chip's own tones radiate; see `Emission.sounding`."""
    if span[0] >= span[1] or not any(enabled and scale > 0 for _, scale, _, enabled in settings):
        return None
    samples = path.steady(tone_codes(settings, window.part(*span)), gain_db)
    if abs(shift_hz) > _SMALL_SHIFT * window.rate_hz:
        samples = _in_band(samples, shift_hz / window.rate_hz)
    return _turned(Sounding(samples, span[0]), window, path.offset_hz + shift_hz, path.drift_hz_s)


def _turned(part: Sounding, window: Window, offset_hz: float, drift_hz_s: float) -> Sounding:
    """As a receiver hears it whose oscillator is so far below."""
    if offset_hz == 0.0 and drift_hz_s == 0.0:
        return part
    turning = rotation(
        part.samples.size,
        at_s=window.origin_s,
        rate_hz=window.rate_hz,
        offset_hz=offset_hz,
        drift_hz_s=drift_hz_s,
        first=window.first + part.offset,
    )
    turning *= part.samples
    return Sounding(turning, part.offset)


def _around(samples: np.ndarray, start: int, count: int) -> np.ndarray:
    """`count` samples of a waveform that repeats, from index `start` on."""
    if start + count <= samples.size:
        return samples[start : start + count]
    out = np.empty(count, np.complex64)
    filled = 0
    while filled < count:
        size = min(samples.size - start, count - filled)
        out[filled : filled + size] = samples[start : start + size]
        filled, start = filled + size, 0
    return out


def _in_band(samples: np.ndarray, shift: float) -> np.ndarray:
    """What is left within half a sample rate of a receiver whose carrier lies `shift` sample rates below."""
    spectrum = scipy.fft.fft(samples)
    spectrum[np.abs(np.fft.fftfreq(samples.size) + shift) > 0.5] = 0
    return scipy.fft.ifft(spectrum, overwrite_x=True)


def _resampled(samples: np.ndarray, from_hz: float, to_hz: float, *, around: bool) -> tuple[np.ndarray, int]:
    """At another sample rate, and by how many samples it begins earlier.

    A waveform that repeats keeps whole periods, so that a rate that differs by parts per million changes nothing.
    """
    if from_hz == to_hz:
        return samples, 0
    stretch = from_hz / to_hz - 1
    if abs(stretch) <= _SMALL_STRETCH:
        return (samples, 0) if around else (resampled(samples, fraction=0.0, stretch=stretch), HALF_TAPS)
    if not around:
        samples = np.concatenate([samples, np.zeros(2 * HALF_TAPS, np.complex64)])
    count = max(1, round(samples.size * to_hz / from_hz))
    return scipy.signal.resample(samples, count).astype(np.complex64), 0
