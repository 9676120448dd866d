"""A known wideband burst in noise: when it began and how far its carrier is off, to a fraction of a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft

from testbed.phy.tone import LEAST_SNR, estimate_tone, turning

_STEPS = 3
_HEAD = 4096  # samples that are enough to find a start
_TINY = float(np.finfo(np.float64).tiny)
_SPARE = 32  # zeros around a burst, for what a fraction of a sample smears
_LARGEST_STEP = 0.5  # samples; beyond it the fit is not linear


@dataclass(frozen=True)
class Placed:
    """A known burst as it was received.

    Attributes:
        lag: where its first sample lies, samples.
        lag_std: standard deviation of it, from what the fit does not explain.
        cfo: carrier offset, cycles per sample.
        cfo_std: of it.
        channel: flat gain at the middle of the burst, shape [num_antennas], complex128.
        snr: of one sample, summed over antennas; what the fit does not explain counts as noise.
    """

    lag: float
    lag_std: float
    cfo: float
    cfo_std: float
    channel: np.ndarray
    snr: float


def lag_bound(reference: np.ndarray, snr: float) -> float:
    """Smallest standard deviation of the delay of a known burst whose gain is unknown.

    var(tau) >= 1 / (2 snr N beta^2),   beta^2 = sum_f (2 pi f)^2 |X(f)|^2 / sum_f |X(f)|^2 about the spectrum's centre

    Args:
        reference: the burst, shape [N].
        snr: of one sample; of several antennas, the sum.

    Returns:
        Cramer-Rao bound as a standard deviation, samples.

    Raises:
        ValueError: an empty burst.

    Reference:
        S. Kay, "Fundamentals of Statistical Signal Processing: Estimation Theory", 1993, example 3.13, with an unknown
        phase.
    """
    reference = np.asarray(reference)
    if not np.any(reference):
        raise ValueError("an empty burst has no delay")
    size = reference.size + _SPARE
    weight = np.square(np.abs(scipy.fft.fft(reference, size)))
    weight /= weight.sum()
    turn = 2 * np.pi * scipy.fft.fftfreq(size)
    width = float(weight @ turn**2) - float(weight @ turn) ** 2
    return math.sqrt(1.0 / (2.0 * snr * reference.size * width))


def delayed(burst: np.ndarray, fraction: float) -> tuple[np.ndarray, int]:
    """A burst that begins a fraction of a sample later, by its spectrum.

    Args:
        burst: shape [N].
        fraction: samples, -1 to 1.

    Returns:
        the burst with what the delay smears around it, shape [N + 2 margin], complex64; and the margin, the samples by
        which it begins earlier.
    """
    burst = np.asarray(burst, np.complex64)
    if fraction == 0.0:
        return burst, 0
    size = scipy.fft.next_fast_len(burst.size + 2 * _SPARE)
    padded = np.zeros(size, np.complex64)
    padded[_SPARE : _SPARE + burst.size] = burst
    moved: np.ndarray = scipy.fft.ifft(_moved(scipy.fft.fft(padded), fraction))
    return moved[: burst.size + 2 * _SPARE], _SPARE


def _moved(spectrum: np.ndarray, lag: float) -> np.ndarray:
    """Spectrum of what comes so many samples later, complex64."""
    moved = spectrum * turning(-lag / spectrum.size, spectrum.size)
    moved[spectrum.size // 2 + 1 :] *= np.complex64(np.exp(2j * np.pi * lag))
    return moved


def place(samples: np.ndarray, reference: np.ndarray, *, first: int, last: int, cfo: float) -> Placed | None:
    """Joint maximum-likelihood delay and carrier offset of a known burst through a flat channel.

    argmin |y_n[t] - a_n x(t - tau) exp(j 2 pi f t)|^2 over tau, f and every antenna's a_n

    A start to a sample by correlation; the offset from the tone that y x* is; then Gauss-Newton steps on both. Echoes
    later than the main lobe of the burst's correlation count as noise.

    Args:
        samples: shape [num_antennas, num_samples].
        reference: the burst, shape [N].
        first, last: starts to look at; the whole burst has to lie in the samples.
        cfo: carrier offset, known to a quarter of 1 / min(N, 4096) or better, cycles per sample.

    Returns:
        where it lies, or None where it stands less than 20 dB above the noise, all of its samples together.

    Raises:
        ValueError: the burst does not lie in the samples for any of the starts.

    Reference:
        S. Kay, as `lag_bound`.
    """
    samples = np.atleast_2d(np.asarray(samples))
    first, last = max(first, 0), min(last, samples.shape[1] - reference.size)
    if last < first:
        raise ValueError(f"a burst of {reference.size} samples does not lie in {samples.shape[1]}")
    lag, cfo = _coarse(samples, reference, first, last, cfo)
    # the burst with room on both sides, [num_antennas, size]
    size = scipy.fft.next_fast_len(reference.size + 2 * _SPARE)
    window = np.zeros((len(samples), size), np.complex64)
    low, high = max(lag - _SPARE, 0), min(lag - _SPARE + size, samples.shape[1])
    window[:, low - lag + _SPARE : high - lag + _SPARE] = samples[:, low:high]
    found = _refined(window, reference, cfo)
    if found.snr * reference.size < LEAST_SNR:
        return None
    # the middle of the burst lies a fraction of a sample beside the window's
    channel = found.channel * np.exp(2j * np.pi * found.cfo * found.lag)
    return replace(found, lag=lag + found.lag, channel=channel)


def _coarse(samples: np.ndarray, reference: np.ndarray, first: int, last: int, cfo: float) -> tuple[int, float]:
    """The start to a sample, from the burst's head, and the carrier offset to less than the burst's length resolves."""
    head = reference[:_HEAD].astype(np.complex64, copy=False)
    part = samples[:, first : last + head.size] * turning(-cfo, last - first + head.size)
    size = scipy.fft.next_fast_len(part.shape[1])
    spectrum = scipy.fft.fft(part, size) * scipy.fft.fft(head, size).conj()
    likelihood = np.square(np.abs(scipy.fft.ifft(spectrum)[:, : last - first + 1])).sum(axis=0)
    lag = first + int(np.argmax(likelihood))
    product = samples[:, lag : lag + reference.size] * (reference.conj() * turning(-cfo, reference.size))
    tone = estimate_tone(product, about=0.0, reach=min(4.0 / head.size, 0.5))
    return lag, cfo if tone is None else cfo + tone.cycles


def _refined(window: np.ndarray, reference: np.ndarray, cfo: float) -> Placed:
    """Gauss-Newton steps; the delay is counted from where the window has the burst."""
    size = window.shape[1]
    padded = np.zeros(size, np.complex64)
    padded[_SPARE : _SPARE + reference.size] = reference
    spectrum, turn = scipy.fft.fft(padded), (2 * np.pi * scipy.fft.fftfreq(size)).astype(np.float32)
    middle = _SPARE + (reference.size - 1) / 2
    since = (2j * np.pi * (np.arange(size) - middle)).astype(np.complex64)
    model = np.empty((3, size), np.complex64)
    lag = 0.0
    for _ in range(_STEPS):
        # the burst, and how it changes with delay and offset
        moved = _moved(spectrum, lag)
        model[0] = scipy.fft.ifft(moved)
        model[1] = scipy.fft.ifft(-1j * turn * moved)
        model[2] = since * model[0]
        straight = window * turning(-cfo, size, zero=middle)
        gram = (model.conj() @ model.T).astype(np.complex128)
        # [num_antennas, 3]
        seen = (straight @ model.conj().T).astype(np.complex128)
        energy = gram[0, 0].real
        channel = seen[:, 0] / energy
        power = max(float(np.sum(np.abs(channel) ** 2)), _TINY)
        # without what a gain of its own explains, [2, 2] and [2]
        left = (gram[1:, 1:] - np.outer(gram[1:, 0], gram[0, 1:]) / energy).real
        pull = (channel.conj() @ (seen[:, 1:] - np.outer(channel, gram[1:, 0]))).real
        step = np.linalg.solve(left, pull) / power
        lag += float(np.clip(step[0], -_LARGEST_STEP, _LARGEST_STEP))
        cfo += float(np.clip(step[1], -0.25 / size, 0.25 / size))
    heard = straight[:, _SPARE : _SPARE + reference.size]
    total = float(np.vdot(heard, heard).real)
    # a complex gain of every antenna, delay and offset are fitted
    noise = max(total - power * energy, 1e-12 * total, _TINY) / (len(window) * (reference.size - 1) - 1)
    variance = np.diag(np.linalg.inv(left)) * noise / (2 * power)
    return Placed(
        lag, math.sqrt(variance[0]), cfo, math.sqrt(variance[1]), channel, power * energy / reference.size / noise
    )
