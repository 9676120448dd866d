"""Fractional delay and clock stretch of a burst, by a windowed sinc whose phase slides along the burst."""

from __future__ import annotations

import math

import numpy as np
import scipy.special

HALF_TAPS = 12
"""Samples by which a resampled burst begins and ends earlier and later than the burst itself."""

_KAISER_BETA = 6.8  # side lobes near -70 dB; with 24 taps the passband ends above 0.8 of Nyquist
_SLIDE = 1 / 64  # of a sample: largest change of phase over which taps are interpolated linearly, error below -70 dB
_LONGEST = 8192  # samples over which one pair of taps is interpolated


def resampled_length(num_samples: int, *, fraction: float, stretch: float) -> int:
    """Samples that `resampled` returns."""
    return math.ceil((num_samples - 1) / (1.0 + stretch) + fraction) + 2 * HALF_TAPS + 1


def resampled(samples: np.ndarray, *, fraction: float, stretch: float = 0.0) -> np.ndarray:
    """A burst as it leaves a converter whose clock starts late and runs fast.

    y[m] = x((1 + stretch) (m - HALF_TAPS - fraction)),   x(u) = sum_i x[i] sinc(u - i) w((u - i) / HALF_TAPS)

    w is a Kaiser window. Up to 0.8 of the Nyquist frequency the error stays below -50 dB of the signal.

    Args:
        samples: x, shape [num_samples], complex64; silence before and after.
        fraction: of a sample by which the burst is late, from 0 to below 1.
        stretch: how much faster the converter's clock runs, a ratio far below 1.

    Returns:
        y, shape [resampled_length], complex64.

    Raises:
        ValueError: the fraction is outside [0, 1), or the stretch beyond +-1 %.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction = {fraction:g}; a resampled burst is late by a fraction of a sample")
    if not abs(stretch) <= 0.01:
        raise ValueError(f"stretch = {stretch:g}; clocks differ by 1 % at most")
    length = resampled_length(samples.size, fraction=fraction, stretch=stretch)
    out = np.empty(length, np.complex64)
    slides = _LONGEST if stretch == 0.0 else int(_SLIDE / abs(stretch))
    step = min(_LONGEST, max(1, slides))
    for start in range(0, length, step):
        stop = min(start + step, length)
        position = (1.0 + stretch) * (start - HALF_TAPS - fraction)
        first = math.floor(position)
        phase = position - first
        # [step + 2 HALF_TAPS - 1]
        around = _stretch_of(samples, first - HALF_TAPS + 1, first + stop - start + HALF_TAPS)
        np.copyto(out[start:stop], np.correlate(around, _taps(phase), "valid"))
        if stretch != 0.0:
            slid = np.correlate(around, _taps(phase + stretch * (stop - start)), "valid")
            slid -= out[start:stop]
            slid *= np.arange(stop - start, dtype=np.float32) / np.float32(stop - start)
            out[start:stop] += slid
    return out


def _taps(phase: float) -> np.ndarray:
    """Taps over x[-HALF_TAPS + 1] .. x[HALF_TAPS] for the value at `phase`, shape [2 HALF_TAPS], float32."""
    distance = phase - np.arange(-HALF_TAPS + 1, HALF_TAPS + 1)
    inside = np.sqrt(np.maximum(0.0, 1.0 - np.square(distance / HALF_TAPS)))
    return (np.sinc(distance) * scipy.special.i0(_KAISER_BETA * inside) / scipy.special.i0(_KAISER_BETA)).astype(
        np.float32
    )


def _stretch_of(samples: np.ndarray, start: int, stop: int) -> np.ndarray:
    """samples[start:stop] with silence wherever the burst is over, shape [stop - start]."""
    begin, end = max(start, 0), min(stop, samples.size)
    if begin == start and end == stop:
        return samples[start:stop]
    padded = np.zeros(stop - start, np.complex64)
    if begin < end:
        padded[begin - start : end - start] = samples[begin:end]
    return padded
