"""For how long one sounding foretells the phase of the channels after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

_LEAST_ROTATION = 0.3
"""Mean rotation below which a phase error is too large to be told from none at all."""
_SIGMAS = 3.0
_LEAST_PAIRS = 4


@dataclass(frozen=True)
class Foretold:
    """How well phases were foretold, by how long before.

    Attributes:
        lag_s: mean time from sounding to sounding in each bin, shape [num_bins].
        rotation: mean of exp(j error), real part, shape [num_bins].
        std: of it.
        valid: bins that tell a phase error.
        constant: part of the squared error that does not grow.
        growth: of the squared error, per squared second.
        covariance: of both.
    """

    lag_s: np.ndarray
    rotation: np.ndarray
    std: np.ndarray
    valid: np.ndarray
    constant: float
    growth: float
    covariance: np.ndarray

    @property
    def lost(self) -> bool:
        """Whether nothing is left of the phase even after the shortest time."""
        return not bool(self.valid.any())

    def variance_at(self, lag_s: float) -> tuple[float, float]:
        """Squared phase error after so long, rad^2, and its standard deviation; infinite where nothing is left."""
        if self.lost:
            return math.inf, 0.0
        row = np.array([1.0, lag_s**2])
        return self.constant + self.growth * lag_s**2, math.sqrt(max(float(row @ self.covariance @ row), 0.0))

    def time_until(self, variance: float) -> tuple[float, float]:
        """Time after which the squared phase error reaches `variance`, seconds, and its standard deviation.

        0 and the shortest time measured where it is beyond that from the start; the longest time measured and infinity
        where it is not reached until then.
        """
        shortest_s, longest_s = float(self.lag_s[0]), float(self.lag_s[-1])
        spare = variance - self.constant
        if self.lost or spare <= 0:
            return 0.0, shortest_s
        if self.growth * longest_s**2 <= spare:
            return longest_s, math.inf
        time_s = math.sqrt(spare / self.growth)
        return time_s, self.variance_at(time_s)[1] / (2 * self.growth * time_s)


def foretell(
    channel: np.ndarray, at_s: np.ndarray, offset_hz: np.ndarray, *, noise: float, longest_s: float
) -> Foretold:
    """Let every sounding foretell the phases of those after it, and fit how its error grows.

    error_kl = arg(h_k^H h_l exp(-j 2 pi f_k (t_l - t_k))),   E cos(error) = exp(-(a + b (t_l - t_k)^2) / 2)

    a is what differs from burst to burst: phase noise, the noise of the receiver's synthesiser. b grows from errors of
    the offsets, from drift and from motion. Bins of the time between two soundings are octaves.

    Args:
        channel: h, shape [num_soundings, num_antennas].
        at_s: instants t for which they hold, ascending, shape [num_soundings]; four or more.
        offset_hz: carrier offset f as each sounding told it, shape [num_soundings].
        noise: variance of the estimate of one antenna's channel.
        longest_s: phases are foretold for at most so long.

    Returns:
        the mean rotations, and the fit through those that tell an error.

    Raises:
        ValueError: fewer than four soundings.
    """
    if len(at_s) < _LEAST_PAIRS:
        raise ValueError(f"{len(at_s)} soundings are too few; give {_LEAST_PAIRS} or more")
    early, late = np.triu_indices(len(at_s), 1)
    lag_s = at_s[late] - at_s[early]
    near = lag_s <= max(longest_s, float(np.sort(lag_s)[_LEAST_PAIRS - 1]))
    early, late, lag_s = early[near], late[near], lag_s[near]
    # noise lengthens channels and does not turn them
    energy = np.sum(np.abs(channel) ** 2, axis=1) - channel.shape[1] * noise
    energy = np.maximum(energy, 1e-3 * energy.max())
    turn = np.exp(-2j * np.pi * (offset_hz[early] * lag_s % 1.0))
    alike = np.sum(channel[early].conj() * channel[late], axis=1) * turn
    cosine = (alike / np.sqrt(energy[early] * energy[late])).real
    num_bins = max(1, math.ceil(math.log2(lag_s.max() / lag_s.min())))
    edges_s = np.geomspace(0.999 * lag_s.min(), 1.001 * lag_s.max(), num_bins + 1)
    bins = np.digitize(lag_s, edges_s) - 1
    taken = [index for index in range(num_bins) if np.count_nonzero(bins == index) >= _LEAST_PAIRS]
    if not taken:
        bins, taken = np.zeros_like(bins), [0]
    mean_s = np.array([lag_s[bins == index].mean() for index in taken])
    rotation = np.array([cosine[bins == index].mean() for index in taken])
    # soundings, not pairs, are independent
    count = np.array([len(np.unique(early[bins == index])) for index in taken])
    std = np.array([cosine[bins == index].std(ddof=1) for index in taken]) / np.sqrt(count)
    valid = np.cumprod(rotation > np.maximum(_SIGMAS * np.maximum(std, 1 / np.sqrt(2 * count)), _LEAST_ROTATION)) > 0
    constant, growth, covariance = _line(mean_s[valid], rotation[valid], std[valid])
    return Foretold(mean_s, rotation, std, valid, constant, growth, covariance)


def _line(lag_s: np.ndarray, rotation: np.ndarray, std: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Squared error a + b lag^2, both at least 0, from mean rotations exp(-error^2 / 2); and their covariance."""
    if not lag_s.size:
        return math.inf, 0.0, np.zeros((2, 2))
    variance = -2 * np.log(np.minimum(rotation, 1.0))
    spread = 2 * np.maximum(std, 1e-6) / rotation
    unit_s2 = float(np.mean(lag_s**2))
    rows = np.stack([np.ones_like(lag_s), lag_s**2 / unit_s2], axis=1) / spread[:, None]
    weights, _ = nnls(rows, variance / spread)
    # one bin alone cannot tell growth from a constant: both are then as uncertain as it is large
    covariance = np.linalg.inv(rows.T @ rows + np.eye(2) / max(float(variance.max()), 1e-6) ** 2)
    scale = np.array([1.0, 1 / unit_s2])
    return float(weights[0]), float(weights[1]) / unit_s2, covariance * np.outer(scale, scale)
