"""Two ways to the channel at unseen positions that assume less than a handful of plane waves.

Both take the channel as a Gaussian process whose covariance is a sum of plane waves of independent gains,

    E{h(r) h*(s)} = sum_i p_i exp(j 2 pi / lambda (r - s) . u_i):

`fit_isotropic` with waves from everywhere alike, `fit_sparse` with powers that it learns, most of which become zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from testbed.phy.array import field_response
from testbed.phy.field_model import Samples

_RING = 128  # directions that stand for a ring: they give J0(x) for x up to about as much
_GRID = 0.25  # of the resolution wavelength / aperture
_ITERATIONS = 300
_NEGLIGIBLE = 1e-5  # of the largest power


@dataclass(frozen=True)
class GaussianField:
    """A Gaussian process, seen through what was measured of it.

    Attributes:
        channel: measured, shape [num_samples].
        positions_m: array frame, shape [num_samples, 2].
        variance: of the measurements, shape [num_samples].
        directions: direction cosines u_i, shape [num_waves, 2].
        powers: p_i, power gains, shape [num_waves].
        wavelength_m: metres.
        stretch: factor on the variance of what is predicted, where cross-validation found it too small.
    """

    channel: np.ndarray
    positions_m: np.ndarray
    variance: np.ndarray
    directions: np.ndarray
    powers: np.ndarray
    wavelength_m: float
    stretch: float = 1.0

    def predict(self, positions_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `testbed.phy.field_model.FieldModel`: mean k C^-1 y and variance k(0) - k C^-1 k^H of the posterior."""
        positions_m = np.asarray(positions_m, np.float64)
        inverse, weights = self._inverse
        waves = field_response(positions_m.reshape(-1, 2), self.directions, self.wavelength_m)
        # [num_positions, num_samples]
        across = waves * self.powers @ self._waves.conj().T
        variance = float(np.sum(self.powers)) - np.einsum("nm,mk,nk->n", across, inverse, across.conj()).real
        shape = positions_m.shape[:-1]
        return (across @ weights).reshape(shape), np.sqrt(self.stretch * np.maximum(variance, 0.0)).reshape(shape)

    @cached_property
    def _waves(self) -> np.ndarray:
        return field_response(self.positions_m, self.directions, self.wavelength_m)

    @cached_property
    def _inverse(self) -> tuple[np.ndarray, np.ndarray]:
        covariance = self._waves * self.powers @ self._waves.conj().T + np.diag(self.variance)
        inverse = np.linalg.inv(covariance)
        return inverse, inverse @ self.channel


def fit_isotropic(samples: Samples, wavelength_m: float) -> GaussianField:
    """Waves from everywhere alike: in the array's plane, or over a sphere, whichever explains the samples better.

    E{h(r) h*(s)} = P J0(2 pi d / lambda) for waves in the plane, P sin(2 pi d / lambda) / (2 pi d / lambda) for waves
    from a sphere, d = |r - s|. P and the choice maximise the likelihood of the samples.

    Args:
        samples: of one node, without factors and phases of their own.
        wavelength_m: metres.

    Returns:
        the process.

    Raises:
        ValueError: no samples, or some that are not finite.

    Reference:
        R. Clarke, "A statistical theory of mobile-radio reception", Bell Syst. Tech. J. 1968;
        C. Rasmussen, C. Williams, "Gaussian Processes for Machine Learning", 2006, chapters 2 and 5.
    """
    _check(samples)
    variance = _floored(samples)
    power = float(np.mean(np.abs(samples.channel) ** 2))
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for directions, shares in (_ring(), _sphere(samples, wavelength_m)):
        waves = field_response(samples.positions_m, directions, wavelength_m) / np.sqrt(variance)[:, None]
        strength, vectors = np.linalg.eigh(waves * shares @ waves.conj().T)
        seen = np.abs(vectors.conj().T @ (samples.channel / np.sqrt(variance))) ** 2
        # [num_powers]: log-likelihood of the samples
        powers = power * np.geomspace(0.1, 10.0, 41)
        spread = 1.0 + powers[:, None] * np.maximum(strength, 0.0)
        likelihood = -np.sum(np.log(spread) + seen / spread, axis=1)
        index = int(np.argmax(likelihood))
        if best is None or likelihood[index] > best[0]:
            best = float(likelihood[index]), directions, powers[index] * shares
    assert best is not None
    return GaussianField(samples.channel, samples.positions_m, variance, best[1], best[2], wavelength_m)


def fit_sparse(samples: Samples, wavelength_m: float) -> GaussianField:
    """Plane waves on a fixed grid of directions, most of them of no power: sparse Bayesian learning.

        p_i <- p_i |a_i^H C^-1 y| / sqrt(a_i^H C^-1 a_i),   C = sum_i p_i a_i a_i^H + diag(variance)

    which never lowers the likelihood of the samples. Directions between those of the grid are made of neighbours.

    Args:
        samples: of one node, without factors and phases of their own.
        wavelength_m: metres.

    Returns:
        the process with the powers that are left.

    Raises:
        ValueError: no samples, or some that are not finite.

    Reference:
        D. Wipf, B. Rao, "Sparse Bayesian learning for basis selection", IEEE Trans. Signal Process. 2004.
    """
    _check(samples)
    variance = _floored(samples)
    span_m = np.maximum(np.ptp(samples.positions_m, axis=0), 0.25 * wavelength_m)
    directions = _disc(float(np.min(_GRID * wavelength_m / span_m)))
    waves = field_response(samples.positions_m, directions, wavelength_m)
    powers = np.full(len(directions), float(np.mean(np.abs(samples.channel) ** 2)) / len(directions))
    for _ in range(_ITERATIONS):
        covariance = waves * powers @ waves.conj().T + np.diag(variance)
        solved = np.linalg.solve(covariance, np.concatenate([samples.channel[:, None], waves], axis=1))
        pulled = np.abs(waves.conj().T @ solved[:, 0])
        spread = np.sum(waves.conj() * solved[:, 1:], axis=0).real
        updated = powers * pulled / np.sqrt(np.maximum(spread, 1e-300))
        kept = updated > _NEGLIGIBLE * updated.max(initial=0.0)
        if not np.any(kept):
            break
        change = float(np.max(np.abs(updated - powers))) / float(updated.max())
        directions, waves, powers = directions[kept], waves[:, kept], updated[kept]
        if change < 1e-3:
            break
    return GaussianField(samples.channel, samples.positions_m, variance, directions, powers, wavelength_m)


def _check(samples: Samples) -> None:
    if not (len(samples) and np.all(np.isfinite(samples.channel)) and np.all(np.isfinite(samples.positions_m))):
        raise ValueError(f"no fit to {len(samples)} samples, or to some that are not finite")


def _floored(samples: Samples) -> np.ndarray:
    """Variances that leave the covariance invertible, [num_samples]."""
    power = float(np.mean(np.abs(samples.channel) ** 2))
    return np.maximum(samples.variance, max(1e-8 * power, 1e-300))


def _ring() -> tuple[np.ndarray, np.ndarray]:
    """Waves in the array's plane, [num_waves, 2], and their shares of the power."""
    angle_rad = 2 * np.pi * np.arange(_RING) / _RING
    return np.stack([np.cos(angle_rad), np.sin(angle_rad)], axis=1), np.full(_RING, 1 / _RING)


def _sphere(samples: Samples, wavelength_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Waves from all over a half-space, a Fibonacci lattice of equal shares, fine enough for the aperture."""
    span_m = float(np.max(np.ptp(samples.positions_m, axis=0)))
    count = int(np.clip(64 * (span_m / wavelength_m) ** 2, 256, 1024))
    index = np.arange(count) + 0.5
    radius = np.sqrt(1 - (index / count) ** 2)
    angle_rad = np.pi * (1 + math.sqrt(5)) * index
    return radius[:, None] * np.stack([np.cos(angle_rad), np.sin(angle_rad)], axis=1), np.full(count, 1 / count)


def _disc(step: float) -> np.ndarray:
    """Direction cosines on a grid within the unit disc, [num_directions, 2]."""
    axis = np.arange(-math.floor(1 / step), math.floor(1 / step) + 1) * step
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return grid[np.sum(grid**2, axis=1) <= 1.0 + step]
