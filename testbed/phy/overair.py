"""Coherent over-the-air aggregation: the air adds what the nodes send.

Every node m sends b_m s_m[i] at once; the array hears y[i] = sum_m h_m b_m s_m[i] + n[i] and forms the mean of the
updates from f^H y. Under uniform forcing f^H h_m b_m = sqrt(eta) D_m nu_m for every node, so the mean is unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from testbed.core.bench import WaveformSpec
from testbed.phy.combiner import max_min_combiner
from testbed.phy.ofdm import demodulate, modulate, num_symbols_of, pack_values, unpack_values

__all__ = [
    "Forcing",
    "aggregation_mse",
    "decode",
    "encode",
    "max_min_combiner",
    "uniform_forcing",
]


@dataclass(frozen=True)
class Forcing:
    """Transmit coefficients that align all nodes at the combiner.

    Attributes:
        precoder: b_m, square-root watts, shape [num_nodes], complex128.
        scale: sqrt(eta).
        power_w: |b_m|^2, shape [num_nodes].
    """

    precoder: np.ndarray
    scale: float
    power_w: np.ndarray


def uniform_forcing(
    channel: np.ndarray, combiner: np.ndarray, weight: np.ndarray, std: np.ndarray, max_power_w: np.ndarray
) -> Forcing:
    """Zero-forcing transmit coefficients with the largest scale that respects every power limit.

    b_m = sqrt(eta) D_m nu_m / (f^H h_m),   eta = min_m P_m |f^H h_m|^2 / (D_m nu_m)^2

    The bottleneck node sends at its limit. A node whose update is constant (nu_m = 0, or D_m = 0) has nothing to
    send: its coefficient is 0 and it does not bound eta; its mean still counts in `decode`. If that holds for all,
    eta is that of unit D_m nu_m.

    Args:
        channel: h_m, shape [num_antennas, num_nodes].
        combiner: f, unit norm, shape [num_antennas].
        weight: D_m, shape [num_nodes].
        std: nu_m, standard deviation of each update's values, shape [num_nodes].
        max_power_w: P_m, watts, shape [num_nodes].

    Returns:
        coefficients, scale and powers.

    Raises:
        ValueError: the combiner does not hear a node that has something to send, or a weight or standard deviation
            is negative.

    Reference:
        X. Cao, G. Zhu, J. Xu, K. Huang, "Optimized power control for over-the-air computation in fading channels",
        2020; F. Moradi Kalarde, B. Liang, M. Dong et al., "Joint receive beamforming and device selection in
        federated learning with over-the-air aggregation", 2023.
    """
    # [num_nodes]
    gain = np.asarray(combiner).conj() @ np.asarray(channel, dtype=np.complex128)
    loudness = np.asarray(weight, dtype=np.float64) * np.asarray(std, dtype=np.float64)
    limit_w = np.broadcast_to(np.asarray(max_power_w, dtype=np.float64), loudness.shape)
    if np.any(loudness < 0):
        raise ValueError("weights and standard deviations cannot be negative")
    sends = loudness > 0
    if np.any(sends & (np.abs(gain) == 0.0)):
        deaf = np.flatnonzero(sends & (np.abs(gain) == 0.0)).tolist()
        raise ValueError(f"the combiner does not hear the nodes with index {deaf}; leave them out or choose another")
    bounds = sends if np.any(sends) else np.ones_like(sends)
    scale = float(np.sqrt(np.min(limit_w[bounds] * (np.abs(gain) / np.where(sends, loudness, 1.0))[bounds] ** 2)))
    precoder = np.where(sends, scale * loudness / np.where(sends, gain, 1.0), 0.0)
    return Forcing(precoder=precoder, scale=scale, power_w=np.abs(precoder) ** 2)


def aggregation_mse(
    num_values: int, noise_w: float, scale: float, total_weight: float, convention: Literal["iq", "real"] = "iq"
) -> float:
    """Squared error that the receiver's noise leaves in the mean.

    E||e||^2 = d sigma^2 / (eta D_S^2) for two values on each symbol ("iq", what `encode` and `decode` do), half of it
    for one real value on each symbol of unit power ("real").

    Args:
        num_values: length d of the update.
        noise_w: noise power sigma^2 of one data symbol, watts (the `noise_w` of a `Sounding`).
        scale: sqrt(eta).
        total_weight: D_S, the sum of the weights.
        convention: how values ride on symbols.

    Returns:
        expected squared error, in units of the update squared.
    """
    error = num_values * noise_w / (scale * total_weight) ** 2
    return error if convention == "iq" else error / 2


def encode(update: np.ndarray, mean: float, std: float, precoder: complex, waveform: WaveformSpec) -> np.ndarray:
    """What a node transmits.

    x = OFDM(b * pack((g - mean) / std))

    Args:
        update: g, shape [num_values].
        mean: subtracted from every value.
        std: divisor; 0 says that the update is constant, and the burst is silence of the same length.
        precoder: b, square-root watts.
        waveform: numerology.

    Returns:
        samples in square-root watts, shape [burst_length(num_symbols_of(num_values))], complex64.
    """
    update = np.asarray(update, dtype=np.float32)
    if std > 0:
        normal = (update - np.float32(mean)) * np.float32(1.0 / std)
    else:
        normal = np.zeros_like(update)
    return modulate(pack_values(normal) * np.complex64(precoder), waveform)


def decode(
    samples: np.ndarray,
    combiner: np.ndarray,
    scale: float,
    weights: np.ndarray,
    means: np.ndarray,
    num_values: int,
    waveform: WaveformSpec,
) -> np.ndarray:
    """The mean of the updates, from what the antennas heard.

    g = (1 / D_S) (Re/Im{f^H y} / sqrt(eta) + sum_m D_m mean_m)

    Antennas are combined before the FFT, so only one stream is demodulated.

    Args:
        samples: y, shape [num_antennas, num_samples], complex64, from the first sample of the burst on.
        combiner: f, shape [num_antennas].
        scale: sqrt(eta); positive.
        weights: D_m of the nodes that sent, shape [num_nodes].
        means: what each node subtracted, shape [num_nodes].
        num_values: length of the update.
        waveform: numerology.

    Returns:
        estimate of sum_m D_m g_m / D_S, shape [num_values], float32.

    Raises:
        ValueError: there are fewer samples than the update needs.
    """
    weights = np.asarray(weights, dtype=np.float64)
    total = float(np.sum(weights))
    # fold 1 / (sqrt(eta) D_S) into the combiner: one pass over the samples
    receive = (np.asarray(combiner).conj() / (scale * total)).astype(np.complex64)
    # [num_samples]
    combined = receive @ samples
    # [num_values]
    values = unpack_values(demodulate(combined, waveform, num_symbols_of(num_values)), num_values)
    values += np.float32(weights @ np.asarray(means, dtype=np.float64) / total)
    return values
