"""The preamble of an uncoded burst: one short-training block, then two pilot blocks; and how it is found.

The short-training block repeats itself sixteen times in a block, whatever channel it went through and however many
nodes sent it at once, so the receiver finds it by comparing the capture with itself. Only there it compares with the
pilots it knows, which gives the exact start and confirms the find.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import scipy.fft

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm
from testbed.phy.estimate import pilot_symbols
from testbed.phy.training import (
    PERIODS,
    PREAMBLE_BLOCKS,
    block_length,
    coarse_cfo,
    common_cfo,
    estimate_cfo,
    short_symbols,
    short_training,
)

__all__ = [
    "MARGIN",
    "PREAMBLE_BLOCKS",
    "Arrival",
    "block_length",
    "candidate_threshold",
    "common_cfo",
    "confirmation_threshold",
    "detect",
    "estimate_cfo",
    "locate",
    "search",
    "short_symbols",
    "short_training",
]

# Probabilities of honest noise: that the self-comparison asks for a second look at a start, and that the comparison
# with the known pilots confirms at one start.
CANDIDATE = 1e-3
FALSE_ALARM = 1e-8

# An arrival this far below the strongest one still counts as the first or the last: above the pilots' own sidelobes.
ARRIVAL_SHARE = 0.15
CHUNK = 1 << 15
CLIMBS = 4
# Two pilot blocks of one preamble differ in power by less than this factor, even where superposed nodes beat.
IMBALANCE = 8.0
# Samples by which a start may be off that was found with a wrong carrier offset.
MARGIN = 16


@dataclass(frozen=True)
class Arrival:
    """Where a preamble begins.

    Attributes:
        start: index of its first sample, of the earliest arrival where several overlap.
        cfo: carrier offset, cycles per sample.
        metric: share of the pilots' received energy that the known pilots explain, 0 to 1; snr / (1 + snr) for one
            arrival through a flat channel.
        spread: samples from the earliest to the latest arrival.
    """

    start: int
    cfo: float
    metric: float
    spread: int = 0


def candidate_threshold(num_antennas: int, waveform: WaveformSpec) -> float:
    """Threshold on the squared self-correlation that white noise exceeds with probability `CANDIDATE` at one start.

    P(rho^2 > t) = (1 - t)^(K N - 1) for the squared correlation of K N independent pairs of circular Gaussians

    Args:
        num_antennas: N.
        waveform: numerology; K is a block less one period.

    Returns:
        threshold between 0 and 1.
    """
    pairs = num_antennas * (block_length(waveform) - waveform.num_subcarriers // PERIODS)
    return -math.expm1(math.log(CANDIDATE) / (pairs - 1))


def confirmation_threshold(num_antennas: int, waveform: WaveformSpec) -> float:
    """Threshold on `Arrival.metric` that white noise exceeds with probability `FALSE_ALARM` at one start.

    The correlations of two pilot blocks of L samples at N antennas are 2 N circular Gaussians, so that
    P(metric > x / (2 L N)) = exp(-x) sum_{i < 2N} x^i / i!

    Args:
        num_antennas: N.
        waveform: numerology.

    Returns:
        threshold; above 1 where the waveform is too short for this probability.
    """
    terms = 2 * num_antennas
    return _erlang_quantile(terms) / (terms * block_length(waveform))


@functools.lru_cache(maxsize=64)
def _erlang_quantile(terms: int) -> float:
    """What the sum of so many exponential variables of unit mean exceeds with probability `FALSE_ALARM`."""
    low, high = 0.0, 40.0 + 4.0 * terms
    for _ in range(60):
        middle = (low + high) / 2
        # the upper tail of the Erlang distribution, by logarithms
        tail = sum(math.exp(i * math.log(middle) - middle - math.lgamma(i + 1)) for i in range(terms))
        low, high = (middle, high) if tail > FALSE_ALARM else (low, middle)
    return high


def detect(samples: np.ndarray, waveform: WaveformSpec, *, threshold: float | None = None) -> Arrival | None:
    """The first preamble of a capture.

    A start is looked at again where the block that begins there resembles itself one period later,
    |sum x*[t] x[t + T]|^2 >= c sum |x[t]|^2 sum |x[t + T]|^2, sums over antennas and samples. It is confirmed where the
    known pilots explain enough of the two blocks after it.

    Args:
        samples: shape [num_antennas, num_samples] or [num_samples].
        waveform: numerology.
        threshold: lowest `Arrival.metric` of a preamble; `confirmation_threshold` if None.

    Returns:
        the arrival, or None where the capture holds no preamble. The carrier offset is found within half the spacing of
        the tones, +-8 subcarriers.

    Raises:
        ValueError: the capture is shorter than a preamble, or a sample is not finite.

    Reference:
        T. Schmidl, D. Cox, "Robust frequency and timing synchronization for OFDM", IEEE Trans. Commun. 1997.
    """
    samples = _checked(samples)
    last = samples.shape[-1] - PREAMBLE_BLOCKS * block_length(waveform)
    if last < 0:
        raise ValueError(f"{samples.shape[-1]} samples are fewer than the preamble's {samples.shape[-1] - last}")
    return search(samples, waveform, 0, last, threshold=threshold)


def search(
    samples: np.ndarray, waveform: WaveformSpec, first: int, last: int, *, threshold: float | None = None
) -> Arrival | None:
    """The first preamble that begins from sample `first` to sample `last` of a capture; see `detect`.

    Args:
        samples: shape [num_antennas, num_samples].
        waveform: numerology.
        first, last: starts to look at; what lies outside the capture is left out.
        threshold: as of `detect`.

    Returns:
        the arrival, or None.

    Raises:
        ValueError: a sample is not finite.
    """
    block = block_length(waveform)
    first, last = max(first, 0), min(last, samples.shape[-1] - PREAMBLE_BLOCKS * block)
    least = candidate_threshold(len(samples), waveform)
    begin = first
    while begin <= last:
        # a preamble whose slope is met near the end of a chunk is still seen up to its peak
        end = min(begin + CHUNK, last + 1)
        metric = _self_correlation(samples[:, begin : min(end + block, last + 1) + block], waveform)
        at = 0
        while at < end - begin:
            crossed = int(np.argmax(metric[at:] >= least)) + at
            if crossed >= end - begin or metric[crossed] < least:
                break
            peak = _summit(metric, crossed, 2 * block)
            found = _confirmed(samples, waveform, begin + peak, first, last, threshold)
            if found is not None:
                return found
            at = peak + waveform.num_subcarriers // PERIODS
        begin = end
    return None


def _summit(metric: np.ndarray, start: int, reach: int) -> int:
    """The first value from `start` on that none of the next `reach` exceeds."""
    peak = start
    while (ahead := int(np.argmax(metric[peak : peak + reach]))) > 0:
        peak += ahead
    return peak


def _confirmed(
    samples: np.ndarray, waveform: WaveformSpec, candidate: int, first: int, last: int, threshold: float | None
) -> Arrival | None:
    half = block_length(waveform) // 2
    low, high = max(candidate - half, first), min(candidate + half, last)
    cfo = coarse_cfo(samples, candidate, waveform)
    found = locate(samples, waveform, low, high, cfo=cfo, threshold=threshold)
    if found is None:
        return None
    # the candidate may be many samples off, and a block beside a strong preamble the pilots fit a little as well: go on
    # to where they fit much better, wherever that is, then look again with the carrier offset found there
    least = _least(samples, waveform, threshold)
    for _ in range(CLIMBS):
        cfo = estimate_cfo(samples, found.start, waveform, found.spread)
        begin, metric = _beside(samples, waveform, found.start, cfo)
        beside = _best(metric, begin, waveform, cfo, least)
        if beside is None or beside.metric < 1.5 * found.metric:
            break
        if not first - MARGIN <= beside.start <= last + MARGIN:
            return None
        found = beside
    low, high = max(found.start - MARGIN, first), min(found.start + found.spread + MARGIN, last)
    if begin <= low <= high < begin + len(metric):
        found = _best(metric[low - begin : high + 1 - begin], low, waveform, cfo, least)
    else:
        found = locate(samples, waveform, low, high, cfo=cfo, threshold=threshold)
    if found is None or not _repeats(samples, waveform, found):
        return None
    return Arrival(found.start, estimate_cfo(samples, found.start, waveform, found.spread), found.metric, found.spread)


def _beside(samples: np.ndarray, waveform: WaveformSpec, start: int, cfo: float) -> tuple[int, np.ndarray]:
    """Metric of `locate` within a block of a start, even where the capture's end cuts; and the first start it is of."""
    block = block_length(waveform)
    begin, reach = max(start - block - MARGIN, 0), block + MARGIN
    near = samples[:, begin + block : start + reach + PREAMBLE_BLOCKS * block]
    missing = start + reach + (PREAMBLE_BLOCKS - 1) * block - begin - near.shape[-1]
    if missing:
        near = np.pad(near, ((0, 0), (0, missing)))
    return begin, _pilot_correlation(near, waveform, cfo)


def _repeats(samples: np.ndarray, waveform: WaveformSpec, found: Arrival) -> bool:
    """Whether a block that repeats itself stands where the short-training block of an arrival does."""
    low, high = max(found.start - MARGIN, 0), found.start + found.spread + MARGIN + block_length(waveform)
    return bool(_self_correlation(samples[:, low:high], waveform).max() >= candidate_threshold(len(samples), waveform))


def locate(
    samples: np.ndarray, waveform: WaveformSpec, first: int, last: int, *, cfo: float, threshold: float | None = None
) -> Arrival | None:
    """The preamble among a few starts where one is due, by the known pilots alone.

    metric[t] = sum_n sum_b |sum_k y_n[t + b L + k] p*[k]|^2 / (sum_k |p[k]|^2 sum_n sum_b sum_k |y_n[t + b L + k]|^2)

    with b the two pilot blocks of L samples p and y the capture without its carrier offset; 0 where one of the two
    blocks explains hardly anything.

    Args:
        samples: shape [num_antennas, num_samples].
        waveform: numerology.
        first, last: starts to look at; what lies outside the capture is left out.
        cfo: carrier offset, cycles per sample, known to half a subcarrier or better.
        threshold: lowest metric of a preamble; `confirmation_threshold` if None.

    Returns:
        the arrival with the carrier offset that was given, or None.
    """
    block = block_length(waveform)
    first, last = max(first, 0), min(last, samples.shape[-1] - PREAMBLE_BLOCKS * block)
    if last < first:
        return None
    metric = _pilot_correlation(samples[:, first + block : last + PREAMBLE_BLOCKS * block], waveform, cfo)
    return _best(metric, first, waveform, cfo, _least(samples, waveform, threshold))


def _least(samples: np.ndarray, waveform: WaveformSpec, threshold: float | None) -> float:
    return confirmation_threshold(len(samples), waveform) if threshold is None else threshold


def _best(metric: np.ndarray, first: int, waveform: WaveformSpec, cfo: float, least: float) -> Arrival | None:
    """The arrival where the metric of the starts from `first` on is largest, or None where it is below `least`."""
    peak = int(np.argmax(metric))
    if not metric[peak] >= least:
        return None
    # earlier and later arrivals of the same preamble lie within a prefix of the strongest
    low = max(peak - waveform.cyclic_prefix, 0)
    near = metric[low : peak + waveform.cyclic_prefix + 1]
    seen = np.flatnonzero(near >= max(least, ARRIVAL_SHARE * float(metric[peak])))
    earliest, latest = (int(seen[0]), int(seen[-1])) if len(seen) else (peak - low, peak - low)
    return Arrival(int(first + low + earliest), cfo, float(metric[peak]), latest - earliest)


def _checked(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    samples = samples[None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or not len(samples):
        raise ValueError(f"samples must have the shape [num_antennas, num_samples], not {samples.shape}")
    return samples


def _require_finite(samples: np.ndarray) -> None:
    if not np.all(np.isfinite(samples)):
        raise ValueError("the capture has samples that are not finite")


def _self_correlation(samples: np.ndarray, waveform: WaveformSpec) -> np.ndarray:
    """Squared correlation of each block with itself one period later, shape [num_samples - block + 1]."""
    period = waveform.num_subcarriers // PERIODS
    pairs = block_length(waveform) - period
    _require_finite(samples)
    products = np.zeros(samples.shape[-1] - period, np.complex128)
    power = np.zeros(samples.shape[-1], np.float64)
    starts = samples.shape[-1] - pairs + 1
    constant, constant_w = np.zeros(starts - period, np.complex128), np.zeros(starts, np.float64)
    for antenna in samples:
        early, late = antenna[:-period], antenna[period:]
        products += early.conj() * late
        power += np.square(antenna.real) + np.square(antenna.imag)
        # a converter's constant offset resembles itself perfectly and no subcarrier carries it: take the means out
        total = _window_sum(antenna, pairs)
        constant += total[:-period].conj() * total[period:]
        constant_w += np.square(total.real) + np.square(total.imag)
    # [num_samples - pairs + 1]
    energy = _window_sum(power, pairs)
    # what rounding leaves of the running sums is no energy
    floor = 1e-12 * float(power.sum()) + np.finfo(np.float64).tiny
    energy = np.maximum(energy - constant_w / pairs, 0.0)
    both = energy[:-period] * energy[period:]
    squared = np.square(np.abs(_window_sum(products, pairs) - constant / pairs))
    metric: np.ndarray = np.divide(squared, both, out=np.zeros_like(both), where=both > floor * floor)
    return metric


def _window_sum(values: np.ndarray, length: int) -> np.ndarray:
    """Sums over `length` neighbours."""
    running = np.cumsum(values, dtype=np.result_type(values, np.float64))
    sums = running[length - 1 :].copy()
    sums[1:] -= running[:-length]
    return sums


def _pilot_correlation(samples: np.ndarray, waveform: WaveformSpec, cfo: float) -> np.ndarray:
    """Metric of `locate`, shape [num_samples - 2 block + 1]; `samples` begins where the first pilot block may."""
    _require_finite(samples)
    block, numerology = block_length(waveform), (waveform.num_subcarriers, waveform.num_active, waveform.cyclic_prefix)
    # [num_antennas, num_samples]
    turned = samples * np.exp(-2j * np.pi * cfo * np.arange(samples.shape[-1])).astype(np.complex64)
    size = scipy.fft.next_fast_len(samples.shape[-1])
    spectrum = scipy.fft.fft(turned.astype(np.complex64, copy=False), size)
    spectrum *= _pilot_spectrum(*numerology, size)
    # one block's correlation, [num_samples - block + 1]
    single = np.square(np.abs(scipy.fft.ifft(spectrum, overwrite_x=True)[:, : samples.shape[-1] - block + 1])).sum(0)
    power = (np.square(turned.real) + np.square(turned.imag)).sum(axis=0, dtype=np.float64)
    energy = _window_sum(power, 2 * block) * _pilot_energy(*numerology)
    first, second = single[:-block], single[block:]
    # one pilot block alone is no preamble: it stands beside one, or the capture cuts it
    explained = np.where(np.maximum(first, second) <= IMBALANCE * np.minimum(first, second), first + second, 0.0)
    floor = 1e-12 * float(energy.max()) + np.finfo(np.float64).tiny
    metric: np.ndarray = np.divide(explained, energy, out=np.zeros_like(energy), where=energy > floor)
    return metric


@functools.lru_cache(maxsize=32)
def _pilot(num_subcarriers: int, num_active: int, cyclic_prefix: int) -> np.ndarray:
    waveform = WaveformSpec(num_subcarriers=num_subcarriers, num_active=num_active, cyclic_prefix=cyclic_prefix)
    return ofdm.modulate(pilot_symbols(1, waveform), waveform)


@functools.lru_cache(maxsize=32)
def _pilot_energy(num_subcarriers: int, num_active: int, cyclic_prefix: int) -> float:
    pilot = _pilot(num_subcarriers, num_active, cyclic_prefix)
    return float(np.vdot(pilot, pilot).real)


@functools.lru_cache(maxsize=32)
def _pilot_spectrum(num_subcarriers: int, num_active: int, cyclic_prefix: int, size: int) -> np.ndarray:
    """Conjugate spectrum of a pilot block at so many points."""
    spectrum: np.ndarray = scipy.fft.fft(_pilot(num_subcarriers, num_active, cyclic_prefix), size).conj()
    return spectrum
