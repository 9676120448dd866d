"""The short-training block, and the carrier offset that a preamble tells.

The block repeats itself sixteen times, because only every sixteenth subcarrier of the active band carries a tone.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy.fft

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm

PREAMBLE_BLOCKS = 3
PERIODS = 16
# Carrier offsets that are tried on each side of zero, in steps of a quarter subcarrier.
SHIFTS = 4 * PERIODS // 2


def short_symbols(waveform: WaveformSpec) -> np.ndarray:
    """The short-training block on its subcarriers: every sixteenth of the active band, of unit mean power in all.

    Quadratic phases exp(j pi u m^2), u chosen for the lowest peak, spread the tones' energy over time.

    Args:
        waveform: numerology.

    Returns:
        shape [num_active], complex64, in the subcarrier order of `testbed.phy.ofdm.modulate`.

    Raises:
        ValueError: num_subcarriers is not a multiple of 16, or no sixteenth subcarrier is active.

    Reference:
        M. Schroeder, "Synthesis of low-peak-factor signals and binary sequences with low autocorrelation", IEEE Trans.
        Inf. Theory 1970.
    """
    return _short_symbols(waveform.num_subcarriers, waveform.num_active).copy()


@functools.lru_cache(maxsize=64)
def _short_symbols(num_subcarriers: int, num_active: int) -> np.ndarray:
    tones = _tones(num_subcarriers, num_active)
    curvature = np.arange(1, 2048) / 1024.0
    # [num_curvatures, num_tones], lowest frequency first
    order = np.argsort(tones)
    rank = np.arange(len(tones))
    candidates = np.exp(1j * np.pi * curvature[:, None] * rank**2)
    # the envelope over one period at eight points a sample, [num_curvatures, num_points]
    grid = np.zeros((len(curvature), 8 * num_subcarriers // PERIODS), np.complex128)
    grid[:, tones[order] // PERIODS] = candidates
    peak = np.abs(scipy.fft.ifft(grid)).max(axis=1)
    symbols = np.zeros(num_active, np.complex64)
    amplitude = math.sqrt(num_active / len(tones))
    symbols[_positions(num_active, tones[order])] = amplitude * candidates[np.argmin(peak)]
    return symbols


def _tones(num_subcarriers: int, num_active: int) -> np.ndarray:
    count = num_active // 2 // PERIODS
    if num_subcarriers % PERIODS or not count:
        raise ValueError(
            f"{num_active} of {num_subcarriers} subcarriers carry no preamble; "
            "num_subcarriers must be a multiple of 16 and num_active at least 32"
        )
    upper = PERIODS * np.arange(1, count + 1)
    return np.concatenate([upper, -upper])


def _positions(num_active: int, tones: np.ndarray) -> np.ndarray:
    """Where subcarriers stand in the order of `ofdm.modulate`."""
    return np.where(tones > 0, tones - 1, num_active + tones)


def short_training(waveform: WaveformSpec) -> np.ndarray:
    """The short-training block: periodic with num_subcarriers / 16 samples, unit mean power, low peaks.

    Args:
        waveform: numerology.

    Returns:
        shape [cyclic_prefix + num_subcarriers], complex64.

    Raises:
        ValueError: num_subcarriers is not a multiple of 16, or no sixteenth subcarrier is active.
    """
    return ofdm.modulate(short_symbols(waveform), waveform)


def block_length(waveform: WaveformSpec) -> int:
    """Samples of one block, prefix included."""
    return waveform.num_subcarriers + waveform.cyclic_prefix


def coarse_cfo(samples: np.ndarray, start: int, waveform: WaveformSpec) -> float:
    """Carrier offset from the short-training block, through an unknown channel.

    cfo = argmax_f sum_n sum_m |X_n(16 m / num_subcarriers + f)|^2 over the tones m, |f| <= 8 / num_subcarriers

    Args:
        samples: shape [num_antennas, num_samples].
        start: index of the preamble's first sample; it may be some tens of samples off.
        waveform: numerology.

    Returns:
        cycles per sample; the error's standard deviation is about 1e-4 at 0 dB.
    """
    return _summit_cfo(_likelihood(samples, start, waveform), waveform)


def estimate_cfo(samples: np.ndarray, start: int, waveform: WaveformSpec, spread: int = 0, early: int = 0) -> float:
    """Carrier offset from a whole preamble, through an unknown channel.

    The turn from the first pilot block to the second, cfo = arg(sum x*[t] x[t + L]) / (2 pi L); which turn it is,
    modulo 1 / L, follows from the short-training block.

    Args:
        samples: shape [num_antennas, num_samples].
        start: index of the preamble's first sample.
        waveform: numerology.
        spread: samples by which arrivals may be later than `start`, left out where blocks of different kind overlap.
        early: samples by which they may be earlier.

    Returns:
        cycles per sample; the standard deviation is 1 / (2 pi L sqrt(snr L)) for a high snr of a sample, all antennas
        together.
    """
    return common_cfo(samples, np.array([start]), waveform, spread, early)


def common_cfo(
    samples: np.ndarray, starts: np.ndarray, waveform: WaveformSpec, spread: int = 0, early: int = 0
) -> float:
    """The carrier offset that several preambles share; where some are not there, the others tell it.

    As `estimate_cfo`, with the sums of every preamble over its energy: noise in place of one adds next to nothing.

    Args:
        samples: shape [num_antennas, num_samples].
        starts: indices of the preambles' first samples, shape [num_preambles], at least one.
        waveform: numerology.
        spread, early: as of `estimate_cfo`.

    Returns:
        cycles per sample.
    """
    block = block_length(waveform)
    begin, end = block + min(spread, waveform.cyclic_prefix), 2 * block - min(early, waveform.cyclic_prefix)
    likelihood: np.ndarray | float = 0.0
    turn = 0j
    for start in starts:
        one = _likelihood(samples, int(start), waveform)
        likelihood = likelihood + one / max(float(one.sum()), float(np.finfo(np.float64).tiny))
        first = samples[:, start + begin : start + end]
        second = samples[:, start + begin + block : start + end + block]
        energy_w = math.sqrt(float(np.vdot(first, first).real) * float(np.vdot(second, second).real))
        turn += complex(np.vdot(first, second)) / max(energy_w, float(np.finfo(np.float64).tiny))
    coarse = _summit_cfo(np.asarray(likelihood), waveform)
    return coarse + float(np.angle(turn * np.exp(-2j * np.pi * coarse * block))) / (2 * np.pi * block)


def _likelihood(samples: np.ndarray, start: int, waveform: WaveformSpec) -> np.ndarray:
    """Energy on the comb of tones for every carrier offset of a quarter subcarrier, shape [num_offsets]."""
    size = 4 * waveform.num_subcarriers
    taken = samples[:, start : start + block_length(waveform)].astype(np.complex64, copy=False)
    # [4 num_subcarriers]
    power = np.square(np.abs(scipy.fft.fft(taken, size))).sum(axis=0, dtype=np.float64)
    likelihood: np.ndarray = power[_comb(waveform.num_subcarriers, waveform.num_active)].sum(axis=0)
    return likelihood


@functools.lru_cache(maxsize=64)
def _comb(num_subcarriers: int, num_active: int) -> np.ndarray:
    """Where the tones lie for every carrier offset, in quarter subcarriers, shape [num_tones, num_offsets]."""
    shifts = np.arange(-SHIFTS, SHIFTS + 1)
    return (4 * _tones(num_subcarriers, num_active)[:, None] + shifts) % (4 * num_subcarriers)


def _summit_cfo(likelihood: np.ndarray, waveform: WaveformSpec) -> float:
    """Where a parabola through the largest likelihood and its neighbours peaks, cycles per sample."""
    best = min(max(int(np.argmax(likelihood)), 1), 2 * SHIFTS - 1)
    before, at, after = (float(value) for value in likelihood[best - 1 : best + 2])
    bend = before - 2 * at + after
    offset = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return (best - SHIFTS + min(max(offset, -1.0), 1.0)) / (4 * waveform.num_subcarriers)
