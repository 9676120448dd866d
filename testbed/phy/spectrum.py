"""A band in which nobody of ours sends: its noise floor, and who else is in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.special import gammainccinv, gammaincinv

_ROUNDS = 8
_AROUND_DC = 2  # bins on either side that the receiver's own offset fills
_SPILL = 1  # bins on either side of an occupied one that its window reaches


@dataclass(frozen=True)
class Band:
    """What a capture of a band shows.

    Attributes:
        spectrum_w: noise power of one sample that each bin alone would tell, shape [num_antennas, num_bins], lowest
            frequency first.
        floor_w: of each antenna, watts a sample, shape [num_antennas].
        floor_std: relative standard deviation of the floors.
        excess: power of each bin over the floor, all antennas together, shape [num_bins].
        occupied: bins that noise does not explain, shape [num_bins], bool.
        bursts: share of the time in which more arrives than usually.
        places: bins' frequencies, cycles in a sample, shape [num_bins].
    """

    spectrum_w: np.ndarray
    floor_w: np.ndarray
    floor_std: float
    excess: np.ndarray
    occupied: np.ndarray
    bursts: float
    places: np.ndarray


def survey(samples: np.ndarray, *, num_bins: int, false_alarm: float) -> Band:
    """Floor and interferers of a capture.

    The spectrum is the mean of M periodograms of segments with a Hann window. In noise each bin is Gamma distributed:
    the median over bins gives a first floor whatever few bins hold, bins above the quantile of rate false_alarm /
    num_bins are set aside, and the mean of the others is the floor, with twice the bound's relative variance of
    1 / num_samples: the window's price. Segments with more energy than the median of all, by the same test, count as
    bursts and are left out of the floor where they are the smaller part.

    Args:
        samples: shape [num_antennas, num_samples].
        num_bins: L, samples of a segment; 8 segments or more.
        false_alarm: probability that noise alone shows an interferer anywhere in the band, or a burst at any time.

    Returns:
        the band.

    Raises:
        ValueError: fewer than 8 segments.

    Reference:
        P. Welch, "The use of fast Fourier transform for the estimation of power spectra", IEEE Trans. Audio
        Electroacoust. 1967; robust floors as in H. Rohling, "Radar CFAR thresholding in clutter and multiple target
        situations", IEEE Trans. Aerosp. Electron. Syst. 1983.
    """
    samples = np.asarray(samples)
    num_antennas, count = len(samples), samples.shape[-1] // num_bins
    if count < 8:
        raise ValueError(f"{samples.shape[-1]} samples are {count} segments of {num_bins}; give 8 or more")
    segments = samples[:, : count * num_bins].reshape(num_antennas, count, num_bins)
    quiet = ~_bursts(segments, false_alarm)
    bursts = 1.0 - float(quiet.mean())
    used = segments[:, quiet] if quiet.mean() > 0.5 else segments
    window = np.hanning(num_bins + 1)[:-1]
    window = window / np.sqrt(np.sum(window**2))
    periodograms = np.square(np.abs(scipy.fft.fft(used * window, axis=-1)))
    # [num_antennas, num_bins]
    spectrum_w = scipy.fft.fftshift(periodograms.mean(axis=1), axes=-1)
    places = np.fft.fftshift(np.fft.fftfreq(num_bins))
    floor_w, excess, occupied = _floor(spectrum_w, used.shape[1], false_alarm)
    # neighbouring bins of the window share noise, so that a bin counts for half
    free = max(int(np.count_nonzero(~occupied)), 1)
    floor_std = float(np.sqrt(2.0 / (free * used.shape[1])))
    return Band(spectrum_w, floor_w, floor_std, excess, occupied, bursts, places)


def _bursts(segments: np.ndarray, false_alarm: float) -> np.ndarray:
    """Segments in which more arrives than in the median one, shape [num_segments]."""
    energy = np.square(np.abs(segments)).sum(axis=-1, dtype=np.float64)
    usual = np.median(energy, axis=-1, keepdims=True)
    degrees = segments.shape[0] * segments.shape[-1]
    relative = np.where(usual > 0, energy / np.where(usual > 0, usual, 1.0), 1.0).mean(axis=0)
    # the median itself errs: a margin of its standard deviations
    margin = 1 + 4 * 1.25 / np.sqrt(degrees * segments.shape[1])
    return relative > gammainccinv(degrees, false_alarm / segments.shape[1]) / degrees * margin


def _floor(spectrum_w: np.ndarray, count: int, false_alarm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Floor of each antenna, excess of each bin, and which are occupied."""
    num_antennas, num_bins = spectrum_w.shape
    centre = np.abs(np.arange(num_bins) - num_bins // 2) <= _AROUND_DC
    floor_w = np.median(spectrum_w[:, ~centre], axis=-1) * count / gammaincinv(count, 0.5)
    threshold = gammainccinv(count * num_antennas, false_alarm / num_bins) / (count * num_antennas)
    occupied = np.zeros(num_bins, bool)
    for _ in range(_ROUNDS):
        scale = np.where(floor_w > 0, floor_w, 1.0)
        excess = (spectrum_w / scale[:, None]).mean(axis=0)
        found = (excess > threshold) & ~centre
        for shift in range(1, _SPILL + 1):
            found = found | np.roll(found, shift) | np.roll(found, -shift)
        found &= ~centre
        free = ~(found | centre)
        if not free.any():
            return floor_w, excess, found
        floor_w = spectrum_w[:, free].mean(axis=-1)
        if np.array_equal(found, occupied):
            break
        occupied = found
    return floor_w, excess, occupied
