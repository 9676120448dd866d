"""Coherent over-the-air aggregation: the air adds what the nodes send.

Every node m sends b_m s_m[i] at once; the array hears y[i] = sum_m h_m b_m s_m[i] + n[i] and forms the mean of the
updates from f^H y. Under uniform forcing f^H h_m b_m = sqrt(eta) D_m nu_m for every node, so the mean is unbiased.
`testbed.phy.precoding` chooses the b_m, `testbed.phy.frames` carries the symbols.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from testbed.phy.combiner import max_min_combiner
from testbed.phy.ofdm import num_symbols_of, pack_values, unpack_values
from testbed.phy.precoding import Forcing, uniform_forcing

__all__ = ["Forcing", "aggregation_mse", "max_min_combiner", "mean_of", "symbols_of", "uniform_forcing"]


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


def symbols_of(update: np.ndarray, mean: float, std: float, first: int = 0, count: int | None = None) -> np.ndarray:
    """The unit-power symbols of a part of an update.

    s[i] = (v[2i] + j v[2i+1]) / sqrt(2),   v = (g - mean) / std

    Args:
        update: g, shape [num_values].
        mean: subtracted from every value.
        std: divisor; 0 says that the update is constant, and the symbols are zero.
        first: symbol to begin with.
        count: how many; all that follow if None.

    Returns:
        shape [count], complex64.
    """
    total = num_symbols_of(len(update))
    last = total if count is None else min(first + count, total)
    part = np.asarray(update[2 * first : 2 * last], dtype=np.float32)
    if std > 0:
        normal = (part - np.float32(mean)) * np.float32(1.0 / std)
    else:
        normal = np.zeros_like(part)
    return pack_values(normal)


def mean_of(
    symbols: np.ndarray,
    *,
    scale: float,
    weights: np.ndarray,
    means: np.ndarray,
    num_values: int,
    share: np.ndarray | None = None,
) -> np.ndarray:
    """The mean of the updates, from the array output's symbols.

    g = (1 / D_S) (Re/Im{f^H y} / (sqrt(eta) c_k) + sum_m D_m mean_m)

    Args:
        symbols: f^H y, shape [num_symbols], complex64.
        scale: sqrt(eta); positive.
        weights: D_m of the nodes that sent, shape [num_nodes].
        means: what each node subtracted, shape [num_nodes].
        num_values: length of the update.
        share: c_k, the part of the weights that sends on each active subcarrier, shape [num_active]; where it is 0
            nobody sends and the value is the mean alone. All ones if None.

    Returns:
        estimate of sum_m D_m g_m / D_S, shape [num_values], float32.

    Raises:
        ValueError: there are fewer symbols than the update needs.
    """
    weights = np.asarray(weights, dtype=np.float64)
    total = float(np.sum(weights))
    factor = 1.0 / (scale * total)
    if share is None:
        scaled = np.multiply(symbols, np.float32(factor), dtype=np.complex64)
    else:
        share = np.asarray(share, dtype=np.float64)
        gains = np.divide(factor, share, out=np.zeros_like(share), where=share > 0).astype(np.float32)
        scaled = np.multiply(symbols, np.resize(gains, len(symbols)), dtype=np.complex64)
    # [num_values]
    values = unpack_values(scaled, num_values)
    values += np.float32(weights @ np.asarray(means, dtype=np.float64) / total)
    return values


def pilot_reference(scale: float, weights: np.ndarray, stds: np.ndarray) -> float:
    """Amplitude of the aligned nodes' pilots after combining: A = sqrt(eta) sum_m D_m nu_m.

    Args:
        scale: sqrt(eta).
        weights: D_m of the nodes that sent, shape [num_nodes].
        stds: nu_m, shape [num_nodes].

    Returns:
        square-root watts; 0 where nobody has anything to send.
    """
    reference = scale * float(np.dot(weights, stds))
    return reference if math.isfinite(reference) else 0.0
