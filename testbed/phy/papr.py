"""Peaks of a signal, and what clipping them costs."""

from __future__ import annotations

import math

import numpy as np


def papr(samples: np.ndarray) -> float:
    """Peak-to-average power ratio.

    PAPR = max |x|^2 / mean |x|^2

    Args:
        samples: shape [num_samples].

    Returns:
        linear ratio.

    Raises:
        ValueError: there is no power to compare with, or a sample is not finite.
    """
    power_w = _power(samples)
    mean_w = float(power_w.mean(dtype=np.float64)) if power_w.size else 0.0
    if not 0 < mean_w < math.inf:
        raise ValueError("a peak-to-average ratio needs finite samples that are not all zero")
    return float(power_w.max()) / mean_w


def clip(samples: np.ndarray, ratio: float) -> np.ndarray:
    """Limit the magnitude of a signal's peaks and keep their phase.

    y = x min(1, c / |x|),   c^2 = ratio mean |x|^2

    Args:
        samples: x, shape [num_samples].
        ratio: highest power that passes, over the average power.

    Returns:
        y, shape [num_samples], complex64.

    Raises:
        ValueError: the ratio is not positive, or a sample is not finite.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"a clipping ratio of {ratio:g} is not positive and finite")
    samples = np.asarray(samples, dtype=np.complex64)
    power_w = _power(samples)
    mean_w = float(power_w.mean(dtype=np.float64)) if power_w.size else 0.0
    if not math.isfinite(mean_w):
        raise ValueError("clipping needs finite samples")
    limit_w = mean_w * ratio
    clipped = samples.copy()
    peaks = np.flatnonzero(power_w > limit_w)
    clipped[peaks] *= np.sqrt(np.float32(limit_w) / power_w[peaks])
    return clipped


def clipping(ratio: float) -> tuple[float, float]:
    """Gain and distortion of the clipping of a circular Gaussian signal, which OFDM nearly is.

    y = alpha x + d,  E[x* d] = 0,  g^2 = ratio:
    alpha = 1 - exp(-g^2) + sqrt(pi) g erfc(g) / 2,   E|d|^2 / E|x|^2 = 1 - exp(-g^2) - alpha^2

    Args:
        ratio: highest power that passes, over the average power.

    Returns:
        alpha, and the distortion's power relative to the signal's before clipping.

    Raises:
        ValueError: the ratio is not positive.

    Reference:
        H. Ochiai, H. Imai, "Performance analysis of deliberately clipped OFDM signals", IEEE Trans. Commun. 2002;
        J. Bussgang, "Crosscorrelation functions of amplitude-distorted Gaussian signals", MIT RLE 216, 1952.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"a clipping ratio of {ratio:g} is not positive and finite")
    amplitude = math.sqrt(ratio)
    # where g^2 is large both terms vanish; expm1 keeps them where it is small
    passed = -math.expm1(-ratio)
    alpha = passed + math.sqrt(math.pi) / 2 * amplitude * math.erfc(amplitude)
    return alpha, max(passed - alpha * alpha, 0.0)


def _power(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    power_w: np.ndarray = np.square(samples.real) + np.square(samples.imag)
    return power_w
