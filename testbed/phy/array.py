"""Plane waves over the aperture: the field-response channel."""

from __future__ import annotations

import numpy as np


def field_response(positions_m: np.ndarray, directions: np.ndarray, wavelength_m: float) -> np.ndarray:
    """Phase of every plane wave at every antenna, relative to the array origin.

    A[n, l] = exp(j 2 pi / lambda * r_n . u_l)

    Args:
        positions_m: antenna positions r_n, array frame, metres, shape [num_antennas, 2].
        directions: direction cosines u_l towards the source along the two array axes, shape [num_paths, 2].
        wavelength_m: metres.

    Returns:
        shape [num_antennas, num_paths], complex128, unit modulus.

    Reference:
        L. Zhu, W. Ma, R. Zhang, "Modeling and performance analysis for movable antenna enabled wireless
        communications", IEEE Trans. Wireless Commun. 2024, section II.
    """
    # [num_antennas, 2] @ [2, num_paths]
    way_m = np.asarray(positions_m, dtype=np.float64) @ np.asarray(directions, dtype=np.float64).T
    return np.exp(2j * np.pi / wavelength_m * way_m)


def channel(positions_m: np.ndarray, directions: np.ndarray, gains: np.ndarray, wavelength_m: float) -> np.ndarray:
    """Narrow-band far-field channel from one source to every antenna.

    h_n = sum_l a_l exp(j 2 pi / lambda * r_n . u_l)

    Args:
        positions_m: array frame, metres, shape [num_antennas, 2].
        directions: direction cosines, shape [num_paths, 2].
        gains: complex path gains a_l at the array origin, shape [num_paths], or [..., num_paths] for several instants.
        wavelength_m: metres.

    Returns:
        shape [..., num_antennas], complex128.

    Reference:
        as `field_response`.
    """
    return np.asarray(gains) @ field_response(positions_m, directions, wavelength_m).T
