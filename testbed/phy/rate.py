"""How fast a packet uplink may go."""

from __future__ import annotations

import numpy as np


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
