"""Puts right what calibrations have found wrong: pure functions on samples."""

from __future__ import annotations

import math

import numpy as np

from testbed.core.corrections import ReceiveCorrection, TransmitCorrection


def predistorted(
    samples: np.ndarray, correction: TransmitCorrection, *, at_s: float, carrier_hz: float, sample_rate_hz: float
) -> np.ndarray:
    """What a radio has to be given so that it radiates what was meant.

    x = (t - kappa conj(t)) / (1 - |kappa|^2),   t = s exp(-j 2 pi f t_n) / sqrt(g) - leak

    The rotation is that of the run's time, so that phases hold from one burst to the next. A radio that is weaker than
    it says (g < 1) is not driven harder: its limit holds for what it is given, and soundings see what is missing.

    Args:
        samples: s, square-root watts, shape [num_samples], complex64.
        correction: offset f / carrier, image kappa, leak, power error g.
        at_s: instant of the first sample, on the run's clock.
        carrier_hz: of the radio.
        sample_rate_hz: of the samples.

    Returns:
        x, shape [num_samples], complex64.

    Reference:
        M. Valkama, M. Renfors, V. Koivunen, "Advanced methods for I/Q imbalance compensation in communication
        receivers", 2001, for the inverse of a widely linear map.
    """
    out = samples.astype(np.complex64, copy=True)
    if correction.offset != 0.0:
        out *= _rotation(len(out), at_s, -correction.offset * carrier_hz, sample_rate_hz)
    gain = min(1.0, 1.0 / math.sqrt(correction.power_error))
    leak, image = complex(*correction.leak), complex(*correction.image)
    if gain != 1.0:
        out *= np.float32(gain)
    if leak != 0:
        out -= np.complex64(leak)
    return _without_image(out, image)


def equalised(samples: np.ndarray, correction: ReceiveCorrection) -> np.ndarray:
    """What arrived at an antenna, of what its radio delivered.

    s = (t - kappa conj(t)) / (1 - |kappa|^2),   t = (y - dc) / sqrt(g)

    Args:
        samples: y, square-root watts, shape [num_samples], complex64.
        correction: dc, image kappa, gain error g.

    Returns:
        s, shape [num_samples], complex64.
    """
    out = samples.astype(np.complex64, copy=True)
    dc = complex(*correction.dc)
    if dc != 0:
        out -= np.complex64(dc)
    if correction.gain_error != 1.0:
        out *= np.float32(1.0 / math.sqrt(correction.gain_error))
    return _without_image(out, complex(*correction.image))


def _without_image(samples: np.ndarray, image: complex) -> np.ndarray:
    """The inverse of s + kappa conj(s), in place."""
    if image != 0:
        mirrored = np.conj(samples)
        mirrored *= np.complex64(image)
        samples -= mirrored
        samples *= np.float32(1.0 / (1.0 - abs(image) ** 2))
    return samples


def _rotation(num_samples: int, at_s: float, frequency_hz: float, rate_hz: float) -> np.ndarray:
    """exp(j 2 pi f (at + n / rate)), complex64, exact in phase whatever the instant."""
    cycles = math.fmod(frequency_hz * at_s, 1.0) + np.arange(num_samples) * (frequency_hz / rate_hz)
    cycles -= np.rint(cycles)
    phase_rad = (2 * np.pi * cycles).astype(np.float32)
    out = np.empty(num_samples, np.complex64)
    np.cos(phase_rad, out=out.real)
    np.sin(phase_rad, out=out.imag)
    return out
