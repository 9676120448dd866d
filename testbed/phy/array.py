"""Plane waves over the aperture: the field-response channel."""

from __future__ import annotations

import numpy as np


def field_response(positions_m: np.ndarray, directions: np.ndarray, wavelength_m: float) -> np.ndarray:
    """Phase of every plane wave at every antenna, relative to the array origin.

    A[n, l] = exp(j 2 pi / lambda * r_n . u_l)

    Args:
        positions_m: antenna positions r_n, array frame, metres, shape [num_antennas, 2]; or [num_antennas, 3] with the
            height over the array's plane.
        directions: direction cosines u_l towards the source along the two array axes, shape [num_paths, 2]; or unit
            vectors along the axes and the normal of their plane, shape [num_paths, 3].
        wavelength_m: metres.

    Returns:
        shape [num_antennas, num_paths], complex128, unit modulus.

    Raises:
        ValueError: positions and directions differ in their number of coordinates, or it is neither 2 nor 3.

    Reference:
        L. Zhu, W. Ma, R. Zhang, "Modeling and performance analysis for movable antenna enabled wireless
        communications", IEEE Trans. Wireless Commun. 2024, section II.
    """
    positions_m, directions = np.asarray(positions_m, dtype=np.float64), np.asarray(directions, dtype=np.float64)
    if positions_m.shape[-1] != directions.shape[-1] or positions_m.shape[-1] not in (2, 3):
        raise ValueError(
            f"positions of shape {positions_m.shape} and directions of shape {directions.shape}: "
            "both must have 2 coordinates, or both 3"
        )
    # [num_antennas, 2 or 3] @ [2 or 3, num_paths]
    way_m = positions_m @ directions.T
    return np.exp(2j * np.pi / wavelength_m * way_m)


def channel(positions_m: np.ndarray, directions: np.ndarray, gains: np.ndarray, wavelength_m: float) -> np.ndarray:
    """Narrow-band far-field channel from one source to every antenna.

    h_n = sum_l a_l exp(j 2 pi / lambda * r_n . u_l)

    Args:
        positions_m: array frame, metres, shape [num_antennas, 2 or 3].
        directions: as in `field_response`, shape [num_paths, 2 or 3].
        gains: complex path gains a_l at the array origin, shape [num_paths], or [..., num_paths] for several instants.
        wavelength_m: metres.

    Returns:
        shape [..., num_antennas], complex128.

    Raises:
        ValueError: as `field_response`.

    Reference:
        as `field_response`.
    """
    return np.asarray(gains) @ field_response(positions_m, directions, wavelength_m).T
