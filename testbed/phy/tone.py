"""A tone in noise: its frequency, how well that is known, and how well it can be known at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.special import gammaincinv

LEAST_SNR = 100.0
"""Energy of a tone over the noise's density, below which it is not believed: 20 dB, far beyond chance."""
_BLOCK_SNR = 10.0  # of the blocks whose phases are fitted: below it phases no longer err like Gaussians
_MOST_BLOCKS = 64
_FEWEST_BLOCKS = 8


@dataclass(frozen=True)
class Tone:
    """A tone that was found.

    Attributes:
        cycles: its frequency in the middle of the samples, cycles per sample.
        cycles_std: its standard deviation, from how the phase really scatters about the fit.
        chirp: change of the frequency, cycles per sample in a sample.
        chirp_std: its standard deviation.
        amplitude: at the middle of the samples, shape [num_antennas], complex128.
        snr: of one sample, summed over antennas; noise is what lies close around the tone, its phase noise included.
        residual_rad: what the fit leaves of the phase, block by block, shape [num_blocks].
    """

    cycles: float
    cycles_std: float
    chirp: float
    chirp_std: float
    amplitude: np.ndarray
    snr: float
    residual_rad: np.ndarray


def frequency_bound(snr: float, num_samples: int) -> float:
    """Smallest standard deviation of the frequency of a tone whose phase and amplitude are unknown.

    var(f) >= 6 / ((2 pi)^2 snr N (N^2 - 1))

    Args:
        snr: of one sample; of several antennas, the sum.
        num_samples: N.

    Returns:
        Cramer-Rao bound as a standard deviation, cycles per sample.

    Reference:
        D. Rife, R. Boorstyn, "Single-tone parameter estimation from discrete-time observations", IEEE Trans. Inf.
        Theory 1974.
    """
    return math.sqrt(6.0 / (snr * num_samples * (num_samples**2 - 1.0))) / (2.0 * math.pi)


def chirp_bound(snr: float, num_samples: int) -> float:
    """Smallest standard deviation of the rate at which a tone's frequency changes.

    var(c) >= 90 / (pi^2 snr N (N^2 - 1)(N^2 - 4)),   phase = 2 pi (f n + c n^2 / 2)

    Args:
        snr: of one sample; of several antennas, the sum.
        num_samples: N.

    Returns:
        Cramer-Rao bound as a standard deviation, cycles per sample in a sample.

    Reference:
        P. Djuric, S. Kay, "Parameter estimation of chirp signals", IEEE Trans. Acoust. Speech Signal Process. 1990.
    """
    count = float(num_samples)
    return math.sqrt(90.0 / (snr * count * (count**2 - 1.0) * (count**2 - 4.0))) / math.pi


def estimate_tone(samples: np.ndarray, *, about: float, reach: float) -> Tone | None:
    """Find the strongest tone of a band and measure its frequency.

    The periodogram's peak, summed over antennas, f0 = argmax_f sum_n |sum_t x_n[t] exp(-j 2 pi f t)|^2, on a grid of
    half its resolution; then a parabola through the phases of the blocks that the derotated samples are summed to. That
    reaches `frequency_bound` (a block's phase is a sufficient statistic as long as it does not wrap).

    Args:
        samples: shape [num_antennas, num_samples].
        about: middle of the band, cycles per sample.
        reach: half of its width, cycles per sample; at most 0.5.

    Returns:
        the tone, or None where none stands 20 dB above the noise's density.

    Raises:
        ValueError: fewer than 64 samples, or samples that are not finite.

    Reference:
        S. Tretter, "Estimating the frequency of a noisy sinusoid by linear regression", IEEE Trans. Inf. Theory 1985.
    """
    samples = _checked(samples)
    coarse, energy, density = _peak(samples, about, reach)
    if not density > 0:
        density = np.finfo(np.float64).tiny
    total = energy / density
    if not total >= LEAST_SNR:
        return None
    num_blocks = int(min(max(total / _BLOCK_SNR, _FEWEST_BLOCKS), _MOST_BLOCKS))
    blocks = _blocks(samples, coarse, num_blocks)
    length = samples.shape[1] // num_blocks
    # instants of the blocks' middles from the middle of all, in samples, [num_blocks]
    since = length * (np.arange(num_blocks) - (num_blocks - 1) / 2)
    step = 0.0
    for _ in range(2):
        straight = blocks * np.exp(-2j * np.pi * step * since)
        # antennas add up in phase, [num_blocks]
        combined = straight.mean(axis=1).conj() @ straight
        phase_rad = np.unwrap(np.angle(combined))
        slope = float(since @ phase_rad) / float(since @ since)
        step += slope / (2 * np.pi)
    return _fitted(blocks, since, length, coarse + step, straight_by=step)


def energy_at(samples: np.ndarray, *, about: float, reach: float) -> tuple[float, float]:
    """The strongest tone of a band over the noise's density, and the noise's density, without a threshold.

    Args:
        samples: shape [num_antennas, num_samples].
        about: middle of the band, cycles per sample.
        reach: half of its width, cycles per sample.

    Returns:
        power of the tone summed over antennas, and noise power of one sample and antenna, in which the sidelobes of a
        strong tone count; watts for square-root watts.

    Raises:
        ValueError: as `estimate_tone`.
    """
    samples = _checked(samples)
    _, energy, density = _peak(samples, about, reach)
    return energy / samples.shape[1], density


def turning(cycles: float, num_samples: int, *, zero: float = 0.0) -> np.ndarray:
    """exp(j 2 pi cycles (n - zero)), shape [num_samples], complex64, by two short tables."""
    step = 256
    coarse = step * np.arange(-(-num_samples // step)) - zero
    table = np.exp(2j * np.pi * (cycles * coarse % 1.0)).astype(np.complex64)
    fine = np.exp(2j * np.pi * (cycles * np.arange(step) % 1.0)).astype(np.complex64)
    turned: np.ndarray = np.multiply.outer(table, fine).reshape(-1)[:num_samples]
    return turned


def _checked(samples: np.ndarray) -> np.ndarray:
    samples = np.atleast_2d(np.asarray(samples))
    if samples.shape[1] < 64:
        raise ValueError(f"{samples.shape[1]} samples are too few to tell a frequency; give 64 or more")
    if not np.all(np.isfinite(samples)):
        raise ValueError("the capture has samples that are not finite")
    return samples


def _peak(samples: np.ndarray, about: float, reach: float) -> tuple[float, float, float]:
    """Frequency of the periodogram's maximum, its energy over all antennas, and the noise's density of one antenna.

    For a tone of power P in N samples the energy is N P.
    """
    num_antennas, count = samples.shape
    size = scipy.fft.next_fast_len(2 * count)
    first = math.ceil((about - reach) * size)
    bins = np.arange(first, max(math.floor((about + reach) * size), first + 8) + 1)
    power = np.zeros(len(bins))
    for row in samples:
        spectrum = scipy.fft.fft(row, size)
        power += np.square(np.abs(spectrum[bins % size]))
    power /= count
    best = int(np.argmax(power))
    # half of the bins of noise lie below: the median of a sum of as many exponentials as there are antennas
    density = float(np.median(power)) / float(gammaincinv(num_antennas, 0.5))
    return float(bins[best]) / size, float(power[best]), density


def _blocks(samples: np.ndarray, cycles: float, num_blocks: int) -> np.ndarray:
    """Means of the derotated samples, shape [num_antennas, num_blocks], as seen from the middle of all blocks."""
    length = samples.shape[1] // num_blocks
    inside = np.exp(-2j * np.pi * cycles * (np.arange(length) - (length - 1) / 2)) / length
    middles = length * (np.arange(num_blocks) - (num_blocks - 1) / 2)
    used = samples[:, : num_blocks * length].reshape(len(samples), num_blocks, length)
    return (used @ inside.astype(np.complex64)) * np.exp(-2j * np.pi * (cycles * middles % 1.0))


def _fitted(blocks: np.ndarray, since: np.ndarray, length: int, cycles: float, *, straight_by: float) -> Tone:
    """The tone at `cycles` per sample, from block means that still turn by `straight_by` cycles per sample."""
    straight = blocks * np.exp(-2j * np.pi * straight_by * since)
    combined = straight.mean(axis=1).conj() @ straight
    phase_rad = np.angle(combined * np.exp(-1j * np.angle(combined.sum())))
    # orthogonal on a grid that is symmetric about zero, [3, num_blocks]
    bent = since**2 - np.mean(since**2)
    powers = np.stack([np.ones_like(since), since, bent])
    norms = np.sum(powers**2, axis=1)
    weights = powers @ phase_rad / norms
    residual_rad = phase_rad - weights @ powers
    scatter = float(residual_rad @ residual_rad) / (len(since) - 3)
    still = straight * np.exp(-1j * (weights[1] * since + weights[2] * bent))
    amplitude = still.mean(axis=1)
    # of one sample and antenna, as the means of `length` samples scatter
    noise = length * float(np.sum(np.abs(still - amplitude[:, None]) ** 2)) / (len(blocks) * (len(since) - 1))
    power = float(np.sum(np.abs(amplitude) ** 2))
    return Tone(
        cycles=cycles + float(weights[1]) / (2 * np.pi),
        cycles_std=math.sqrt(scatter / norms[1]) / (2 * np.pi),
        chirp=float(weights[2]) / np.pi,
        chirp_std=math.sqrt(scatter / norms[2]) / np.pi,
        amplitude=amplitude,
        snr=power / max(noise, float(np.finfo(np.float64).tiny)),
        residual_rad=residual_rad,
    )
