"""How fast a packet uplink may go, and how much band a rate takes.

A node whose transmit power p is spread over a share b of the band, at channel gain h and noise density N0, has

    R(b) = b log2(1 + gamma / b),     gamma = p h / N0,

with gamma in hertz: the band at which the signal is as strong as the noise. R is concave and increasing in b and stays
below gamma / ln 2.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import lambertw

_LN2 = math.log(2.0)


def mrc_snr(channel: np.ndarray, power_w: np.ndarray | float, noise_w: float) -> np.ndarray:
    """Signal-to-noise ratio after maximum-ratio combining.

    snr_k = p_k ||h_k||^2 / noise

    Args:
        channel: shape [num_antennas, num_nodes].
        power_w: transmit power of each node, watts, shape [num_nodes] or a scalar.
        noise_w: noise power per antenna in the band of the signal, watts; positive. In a share B of the band it is
            the share of the noise.

    Returns:
        shape [num_nodes], linear.
    """
    return np.asarray(power_w) * np.sum(np.abs(channel) ** 2, axis=0) / noise_w


def capacity_bit_s(bandwidth_hz: np.ndarray | float, snr: np.ndarray | float, gap: float = 1.0) -> np.ndarray:
    """Shannon rate at a gap to capacity.

    R = B log2(1 + snr / gap)

    Args:
        bandwidth_hz: B.
        snr: linear signal-to-noise ratio in that band.
        gap: linear, at least 1; 1 is capacity itself.

    Returns:
        bit/s, broadcast shape of the arguments.

    Reference:
        J. Cioffi, "A multicarrier primer", 1991 (the SNR gap).
    """
    return np.asarray(bandwidth_hz) * np.log2(1.0 + np.asarray(snr) / gap)


def snr_bandwidth_hz(power_w: np.ndarray | float, gain: np.ndarray | float, noise_w_per_hz: float) -> np.ndarray:
    """Band in which a node is heard as loud as the noise.

    gamma = p h / N0

    Args:
        power_w: transmit power p, watts; any shape.
        gain: power gain h of the channel; any shape.
        noise_w_per_hz: noise density N0, positive.

    Returns:
        hertz, broadcast shape.

    Raises:
        ValueError: the noise density is not positive.
    """
    if not noise_w_per_hz > 0:
        raise ValueError(f"a noise density of {noise_w_per_hz} W/Hz is not positive")
    return np.asarray(power_w) * np.asarray(gain) / noise_w_per_hz


def shared_rate_bit_s(bandwidth_hz: np.ndarray | float, gamma_hz: np.ndarray | float) -> np.ndarray:
    """Rate in a share of the band over which the transmit power is spread.

    R = b log2(1 + gamma / b)

    Args:
        bandwidth_hz: b, at least 0; any shape.
        gamma_hz: `snr_bandwidth_hz`; any shape.

    Returns:
        bit/s, broadcast shape; 0 where b is 0.
    """
    bandwidth_hz, gamma_hz = np.asarray(bandwidth_hz, np.float64), np.asarray(gamma_hz, np.float64)
    positive = bandwidth_hz > 0
    spread = np.where(positive, bandwidth_hz, 1.0)
    return np.where(positive, spread * np.log1p(gamma_hz / spread), 0.0) / _LN2


def shared_rate_slope(bandwidth_hz: np.ndarray | float, gamma_hz: np.ndarray | float) -> np.ndarray:
    """Derivative of `shared_rate_bit_s` by the bandwidth, bit/s per hertz.

    R' = log2(1 + gamma / b) - gamma / ((b + gamma) ln 2)

    Args:
        bandwidth_hz: b, positive; any shape.
        gamma_hz: `snr_bandwidth_hz`; any shape.

    Returns:
        broadcast shape, positive, falling in b.
    """
    snr = np.asarray(gamma_hz, np.float64) / np.asarray(bandwidth_hz, np.float64)
    # ln(1 + x) - x / (1 + x) is a small difference at small x: its series there
    series = snr**2 * (1 / 2 - snr * (2 / 3 - snr * (3 / 4 - snr * (4 / 5 - snr * (5 / 6)))))
    return np.where(snr < 1e-3, series, np.log1p(snr) - snr / (1.0 + snr)) / _LN2


def bandwidth_for_hz(rate_bit_s: np.ndarray | float, gamma_hz: np.ndarray | float) -> np.ndarray:
    """Smallest share of the band that carries a rate: the inverse of `shared_rate_bit_s`.

    b = gamma / (-W_-1(-y e^-y) / y - 1),     y = r ln 2 / gamma

    Args:
        rate_bit_s: r, at least 0; any shape.
        gamma_hz: `snr_bandwidth_hz`; any shape.

    Returns:
        hertz, broadcast shape; infinite where r >= gamma / ln 2, which no bandwidth carries.

    Reference:
        R. M. Corless et al., "On the Lambert W function", Adv. Comput. Math. 5, 1996.
    """
    rate_bit_s, gamma_hz = np.broadcast_arrays(np.asarray(rate_bit_s, np.float64), np.asarray(gamma_hz, np.float64))
    wanted = rate_bit_s > 0
    level = np.divide(rate_bit_s * _LN2, gamma_hz, out=np.full(rate_bit_s.shape, np.inf), where=gamma_hz > 0)
    within = wanted & (level < 1.0)
    level = np.where(within, level, 0.5)
    # a very small y takes exp(y) out of the range of W, and then ln(1 + u) = y u is begun at its asymptote
    tiny = level < 1e-100
    ratio = np.where(tiny, -np.log(level) / level, -lambertw(-level * np.exp(-level), -1).real / level - 1.0)
    # W has a branch point at y = 1, where it keeps half the digits, or none
    lowest = 2.0 / level - 2.0
    for _ in range(2):
        ratio = np.fmax(ratio, lowest)
        ratio = ratio - (np.log1p(ratio) - level * ratio) / (1.0 / (1.0 + ratio) - level)
    return np.where(within, gamma_hz / ratio, np.where(wanted, np.inf, 0.0))
