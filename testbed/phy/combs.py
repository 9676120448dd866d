"""Combs of tones: what they look like, where they are in a capture, and how strong each of them arrived.

No tone is the mirror of another, and they lie irregularly, so neither images nor a carrier offset nor products of low
order put one tone on another's place. Levels are spread like those of noise, so that a converter's steps do not bias
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft

FOUND = 3.0
"""Evidence from which on a comb is there; with 12 tones or more noise alone shows it once in 10^4 searches."""
_NEAREST, _FARTHEST = 0.02, 0.38  # of the sample rate: between what leaks around DC and the filters' edges
_GOLDEN = (math.sqrt(5) - 1) / 2
_BLOCKS = 64
_PAD = 8


@dataclass(frozen=True)
class Comb:
    """Tones that are sent together.

    Attributes:
        places: cycles in a sample, shape [num_tones].
        coefficients: amplitude and phase at sample 0, square-root watts, shape [num_tones], complex128.
    """

    places: np.ndarray
    coefficients: np.ndarray

    @classmethod
    def of(cls, num_tones: int, power_w: float) -> Comb:
        """Tones of equal power on both sides of the carrier.

        Args:
            num_tones: how many, at least 2.
            power_w: of all of them together.

        Returns:
            the comb; its peaks stay within 10 dB above its power for up to 32 tones.
        """
        index = np.arange(num_tones)
        # within its slot each tone lies where the golden ratio puts it, which no simple relation of frequencies meets
        place = (index + 0.25 + 0.5 * np.fmod((index + 1) * _GOLDEN, 1.0)) / num_tones
        size = _NEAREST + (_FARTHEST - _NEAREST) * place
        side = np.where(index % 2 == 0, 1.0, -1.0)
        phase_rad = 2 * np.pi * np.fmod((index + 1) ** 2 * math.sqrt(2) + index * math.sqrt(7), 1.0)
        return cls(side * size, math.sqrt(power_w / num_tones) * np.exp(1j * phase_rad))

    @property
    def mirrored(self) -> Comb:
        """The same tones on the other side of the carrier."""
        return Comb(-self.places, self.coefficients)

    def samples(self, num_samples: int, *, first: int = 0) -> np.ndarray:
        """Shape [num_samples], complex64, from sample `first` on."""
        waves = turning(self.places, num_samples, first=first)
        return (waves @ self.coefficients).astype(np.complex64)


@dataclass(frozen=True)
class CombFit:
    """A comb as it arrived.

    Attributes:
        offset: of the carrier, cycles in a sample.
        offset_std: standard deviation of `offset`.
        stretch: of the clock: tones lie at (1 + stretch) frequency + offset.
        amplitudes: at sample 0, shape [num_antennas, num_tones], complex128, square-root watts.
        noise_w: what is left at each antenna, shape [num_antennas].
        evidence: power around the median tone over that of the median bin; `FOUND` or more where the comb is there.
        places: where the tones are, cycles in a sample, shape [num_tones].
    """

    offset: float
    offset_std: float
    stretch: float
    amplitudes: np.ndarray
    noise_w: np.ndarray
    evidence: float
    places: np.ndarray

    @property
    def found(self) -> bool:
        """Whether the comb is there."""
        return self.evidence >= FOUND

    @property
    def power_w(self) -> np.ndarray:
        """Received power of all tones without the share of the noise in it, watts, shape [num_antennas]."""
        return np.square(np.abs(self.amplitudes)).sum(axis=-1)


def turning(places: np.ndarray, num_samples: int, *, first: int = 0) -> np.ndarray:
    """exp(j 2 pi f n) for n from `first` on, shape [num_samples, num_frequencies], complex128."""
    # a short table times another: exact to rounding, for a fraction of the exponentials
    step = 256
    coarse = np.exp(2j * np.pi * np.outer(first + step * np.arange(-(-num_samples // step)), places))
    fine = np.exp(2j * np.pi * np.outer(np.arange(step), places))
    table = (coarse[:, None, :] * fine[None]).reshape(-1, len(places))
    return table[:num_samples]


def fit_comb(received: np.ndarray, places: np.ndarray, *, limit: float) -> CombFit:
    """Carrier offset, clock and amplitudes of a comb.

    The offset is looked for where bins at all tones are strong; then every tone's frequency maximises its
    periodogram, frequencies f_k (1 + e) + d are fitted to them, and amplitudes follow by least squares together with a
    constant. The Cramer-Rao bounds are var(d) = 6 noise / (4 pi^2 N^3 P) with P summed over antennas, and noise / N for
    each amplitude.

    Args:
        received: shape [num_antennas, num_samples].
        places: of the tones that were sent, cycles in a sample, shape [num_tones].
        limit: largest offset that is looked for, cycles in a sample.

    Returns:
        the fit; without a comb there its `evidence` is low and its other values mean nothing.

    Reference:
        D. Rife, R. Boorstyn, "Single-tone parameter estimation from discrete-time observations", IEEE Trans. Inf.
        Theory 1974.
    """
    received = np.asarray(received)
    num_samples = received.shape[-1]
    coarse, evidence = _coarse_offset(received, places, limit)
    shifts, strengths = _fine_offsets(received, places, coarse)
    # d_k = d + e f_k, weighted by strength
    columns = np.stack([np.ones_like(places), places], axis=-1) * np.sqrt(strengths)[:, None]
    (shift, stretch), *_ = np.linalg.lstsq(columns, shifts * np.sqrt(strengths), rcond=None)
    offset = coarse + float(shift)
    arrived = places * (1 + float(stretch)) + offset
    waves = np.concatenate([turning(arrived, num_samples), np.ones((num_samples, 1))], axis=-1)
    # [num_tones + 1, num_antennas]
    found = solve(waves, received.T)
    left = received.T - waves @ found
    noise_w = np.square(np.abs(left)).sum(axis=0) / max(num_samples - waves.shape[1], 1)
    amplitudes = found[:-1].T
    snr = float(np.sum(np.square(np.abs(amplitudes)).sum(axis=-1) / np.maximum(noise_w, 1e-300)))
    offset_std = math.sqrt(6 / (4 * math.pi**2 * num_samples**3 * snr)) if snr > 0 else math.inf
    return CombFit(offset, offset_std, float(stretch), amplitudes, noise_w, evidence, arrived)


def solve(columns: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Least squares by the normal equations: of tones that are apart they are well conditioned.

    Args:
        columns: shape [num_samples, num_columns].
        right: shape [num_samples, num_rights].

    Returns:
        shape [num_columns, num_rights], complex128.
    """
    adjoint = columns.conj().T
    found: np.ndarray = np.linalg.solve(adjoint @ columns, adjoint @ right)
    return found


def burst_start(received: np.ndarray, length: int) -> int:
    """Where a burst of that length lies: the window with the largest energy.

    Args:
        received: shape [num_antennas, num_samples].
        length: samples of the burst, at most num_samples.

    Returns:
        index of its first sample, right to a few samples over the signal-to-noise ratio.
    """
    energy = np.square(np.abs(received)).sum(axis=0, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(energy)])
    return int(np.argmax(total[length:] - total[:-length]))


def _coarse_offset(received: np.ndarray, places: np.ndarray, limit: float) -> tuple[float, float]:
    """The offset to a bin, and its evidence.

    Logarithms keep a strong carrier of somebody else from looking like a comb, one of whose tones it meets.
    """
    size = received.shape[-1]
    spectrum = np.square(np.abs(scipy.fft.fft(received, axis=-1))).sum(axis=0)
    spectrum = spectrum + np.roll(spectrum, 1) + np.roll(spectrum, -1)
    floor = float(np.median(spectrum))
    if floor == 0.0:
        floor = float(spectrum.max()) * 1e-12 or 1.0
    reach = max(int(limit * size), 1)
    lags = np.arange(-reach, reach + 1)
    # [num_tones, num_lags]
    near = spectrum[(np.rint(places * size).astype(np.int64)[:, None] + lags) % size]
    best = int(np.argmax(np.log1p(near / floor).sum(axis=0)))
    return float(lags[best]) / size, float(np.median(near[:, best])) / floor


def _fine_offsets(received: np.ndarray, places: np.ndarray, coarse: float) -> tuple[np.ndarray, np.ndarray]:
    """Each tone's offset beyond the coarse one, cycles in a sample, and its power; shapes [num_tones]."""
    block = received.shape[-1] // _BLOCKS
    blocks = received[:, : block * _BLOCKS].reshape(len(received), _BLOCKS, block)
    near_places = places + coarse
    # block by block with the tone's phase at the block's beginning, [num_antennas, num_tones, num_blocks]
    carried = np.exp(-2j * np.pi * np.outer(near_places, block * np.arange(_BLOCKS)))
    parts = np.einsum("abn,nk->akb", blocks, turning(-near_places, block), optimize=True) * carried
    size = _PAD * _BLOCKS
    # [num_tones, size]
    periodogram = np.square(np.abs(np.fft.fft(parts, size, axis=-1))).sum(axis=0)
    near = 3 * _PAD
    windows = np.concatenate([periodogram[:, size - near :], periodogram[:, : near + 1]], axis=-1)
    angle = 2 * np.pi / size * (np.argmax(windows, axis=-1) - near)
    index = np.arange(_BLOCKS)
    for _ in range(4):
        # [num_antennas, num_tones, num_blocks]
        turned = parts * np.exp(-1j * angle[:, None] * index)
        total, first, second = turned.sum(-1), -1j * (turned @ index), -(turned @ index**2)
        gradient = 2 * np.sum((total.conj() * first).real, axis=0)
        curvature = 2 * np.sum(np.square(np.abs(first)) + (total.conj() * second).real, axis=0)
        step = np.divide(-gradient, curvature, out=np.zeros_like(gradient), where=curvature < 0)
        angle = angle + np.clip(step, -np.pi / size, np.pi / size)
    strength = np.square(np.abs(total)).sum(axis=0)
    return angle / (2 * np.pi * block), np.maximum(strength, 1e-300)
