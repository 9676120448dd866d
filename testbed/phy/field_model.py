"""The channel from one node at any position: what is measured of it, and what a handful of plane waves say.

h(r) = sum_l a_l exp(j 2 pi / lambda r . u_l)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from testbed.phy.array import field_response

PER_PATH = 4
"""Real unknowns of a path: two direction cosines and a complex gain."""


class FieldModel(Protocol):
    """The channel from one node to an antenna anywhere in the array's plane."""

    def predict(self, positions_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Channel and its standard deviation.

        Args:
            positions_m: array frame, shape [..., 2].

        Returns:
            h, shape [...], complex128; square root of E|h - true|^2, shape [...].
        """


@dataclass(frozen=True)
class Samples:
    """Channels of one node, measured by antennas that stood at many positions.

    Attributes:
        channel: shape [num_samples], complex.
        positions_m: array frame, shape [num_samples, 2].
        variance: E|error|^2 of each channel, shape [num_samples].
        antenna: which antenna measured, shape [num_samples], integers.
        visit: on which visit; samples of a visit share a phase, shape [num_samples], integers.
    """

    channel: np.ndarray
    positions_m: np.ndarray
    variance: np.ndarray
    antenna: np.ndarray
    visit: np.ndarray

    @classmethod
    def of(cls, channel: np.ndarray, positions_m: np.ndarray, variance: float) -> Samples:
        """Samples of one antenna whose phase never jumps, all measured alike well.

        Args:
            channel: shape [num_samples].
            positions_m: shape [num_samples, 2].
            variance: E|error|^2.
        """
        count = len(channel)
        index = np.arange(count)
        return cls(
            np.asarray(channel, np.complex128),
            np.asarray(positions_m, np.float64),
            np.full(count, float(variance)),
            np.zeros(count, np.int64),
            index,
        )

    def part(self, chosen: np.ndarray) -> Samples:
        """Those that an index array or a mask chooses."""
        return Samples(
            self.channel[chosen],
            self.positions_m[chosen],
            self.variance[chosen],
            self.antenna[chosen],
            self.visit[chosen],
        )

    def __len__(self) -> int:
        return len(self.channel)


@dataclass(frozen=True)
class PathField:
    """A channel made of plane waves, and how well they are known.

    Attributes:
        directions: direction cosines u_l along the array axes, shape [num_paths, 2].
        gains: a_l at the array origin, shape [num_paths], complex128.
        covariance: of the unknowns (u_x, u_y, Re a, Im a), all paths' u_x first, shape [4 num_paths, 4 num_paths].
        wavelength_m: metres.
    """

    directions: np.ndarray
    gains: np.ndarray
    covariance: np.ndarray
    wavelength_m: float

    def predict(self, positions_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `FieldModel`: the variance is J C J^H, with C the covariance and J the derivatives of h."""
        positions_m = np.asarray(positions_m, np.float64)
        flat_m = positions_m.reshape(-1, 2)
        waves = field_response(flat_m, self.directions, self.wavelength_m)
        slopes = path_slopes(waves, flat_m, self.gains, self.wavelength_m)
        variance = np.einsum("ni,ij,nj->n", slopes, self.covariance, slopes.conj()).real
        shape = positions_m.shape[:-1]
        return (waves @ self.gains).reshape(shape), np.sqrt(np.maximum(variance, 0.0)).reshape(shape)

    @property
    def rows(self) -> np.ndarray:
        """u_x, u_y, Re a, Im a of each path, shape [num_paths, 4], for a file."""
        return np.column_stack([self.directions, self.gains.real, self.gains.imag])

    @classmethod
    def of_rows(cls, rows: np.ndarray, covariance: np.ndarray, wavelength_m: float) -> PathField:
        """The inverse of `rows`.

        Args:
            rows: shape [num_paths, 4].
            covariance: shape [4 num_paths, 4 num_paths].
            wavelength_m: metres.
        """
        rows = np.asarray(rows, np.float64).reshape(-1, PER_PATH)
        gains = rows[:, 2] + 1j * rows[:, 3]
        return cls(rows[:, :2], gains, np.asarray(covariance, np.float64), wavelength_m)

    def after(self, position_m: np.ndarray, variance: float) -> PathField:
        """How well the same waves will be known once the channel has been measured at one more position.

        Args:
            position_m: array frame, shape [2].
            variance: E|error|^2 of that measurement.
        """
        waves = field_response(position_m[None], self.directions, self.wavelength_m)
        slopes = path_slopes(waves, position_m[None], self.gains, self.wavelength_m)
        # real and imaginary part, [2, 4 num_paths]
        rows = np.concatenate([slopes.real, slopes.imag])
        across = self.covariance @ rows.T
        seen = rows @ across + np.eye(2) * variance / 2
        return replace(self, covariance=self.covariance - across @ np.linalg.solve(seen, across.T))


def path_slopes(waves: np.ndarray, positions_m: np.ndarray, gains: np.ndarray, wavelength_m: float) -> np.ndarray:
    """Derivatives of h by the unknowns of its paths.

    dh/du = j 2 pi / lambda r a exp(j 2 pi / lambda r . u),   dh/d Re a = exp(...),   dh/d Im a = j exp(...)

    Args:
        waves: `testbed.phy.array.field_response` at the positions, shape [num_positions, num_paths].
        positions_m: array frame, shape [num_positions, 2].
        gains: a_l, shape [num_paths].
        wavelength_m: metres.

    Returns:
        by all u_x, all u_y, all Re a, all Im a, shape [num_positions, 4 num_paths], complex128.
    """
    turned = 2j * np.pi / wavelength_m * waves * gains
    return np.concatenate([turned * positions_m[:, :1], turned * positions_m[:, 1:], waves, 1j * waves], axis=1)
