"""Mutual coupling of an array's antennas, as side-by-side parallel half-wave dipoles."""

from __future__ import annotations

import numpy as np
from scipy.special import sici

FREE_SPACE_OHM = 376.730313668
_NEAREST = 1e-6  # wavelengths; nearer ones are taken for the same dipole, whose wire has a radius


def mutual_impedance(distance_m: np.ndarray, wavelength_m: float) -> np.ndarray:
    """Mutual impedance of two thin half-wave dipoles, side by side, by the induced-EMF method.

    R = eta / (4 pi) (2 Ci(u0) - Ci(u1) - Ci(u2)),   X = -eta / (4 pi) (2 Si(u0) - Si(u1) - Si(u2))
    u0 = k d,   u1 = k (sqrt(d^2 + l^2) + l),   u2 = k (sqrt(d^2 + l^2) - l),   l = lambda / 2

    Args:
        distance_m: between the axes, metres, any shape; 0 gives the self impedance 73.1 + j 42.5 ohm.
        wavelength_m: metres.

    Returns:
        ohm, shape of distance_m, complex128.

    Reference:
        C. A. Balanis, "Antenna Theory", 4th edition, section 8.6.2, equations 8-68 to 8-69b.
    """
    distance = np.maximum(np.asarray(distance_m, dtype=np.float64) / wavelength_m, _NEAREST)
    far = np.hypot(distance, 0.5) + 0.5
    # sqrt(d^2 + l^2) - l as d^2 / (sqrt(d^2 + l^2) + l): it does not cancel
    arguments = 2 * np.pi * np.stack([distance, far, distance**2 / far])
    sines, cosines = sici(arguments)
    scale = FREE_SPACE_OHM / (4 * np.pi)
    resistance = scale * (2 * cosines[0] - cosines[1] - cosines[2])
    reactance = -scale * (2 * sines[0] - sines[1] - sines[2])
    return resistance + 1j * reactance


def coupling_matrix(positions_m: np.ndarray, wavelength_m: float) -> np.ndarray:
    """What the ports of coupled antennas see of the voltages that each antenna alone would deliver.

    C = (Z_A + Z_L) (Z + Z_L I)^-1,   Z_nm = mutual impedance,  Z_A = Z_nn,  Z_L = conj(Z_A) (matched)

    The dipoles are taken side by side whatever the direction from one to the other.

    Args:
        positions_m: array frame, metres, shape [num_antennas, 2 or 3].
        wavelength_m: metres.

    Returns:
        shape [num_antennas, num_antennas], complex128; 1 for a lone antenna. The coupled channel is C h.

    Reference:
        I. J. Gupta, A. A. Ksienski, "Effect of mutual coupling on the performance of adaptive arrays", IEEE Trans.
        Antennas Propag. 1983.
    """
    positions_m = np.asarray(positions_m, dtype=np.float64)
    # [num_antennas, num_antennas]
    distance_m = np.linalg.norm(positions_m[:, None] - positions_m[None], axis=-1)
    impedance = mutual_impedance(distance_m, wavelength_m)
    own = mutual_impedance(np.zeros(1), wavelength_m)[0]
    identity = np.eye(len(positions_m))
    return (own + own.conjugate()) * np.linalg.solve(impedance + own.conjugate() * identity, identity)
