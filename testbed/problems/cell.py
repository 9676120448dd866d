"""Mean channel gains of a cell, as customary where a paper gives no measured ones.

path loss in decibels: 128.1 + 37.6 log10(distance in km), and log-normal shadowing.

Reference: 3GPP TR 36.814, "Further advancements for E-UTRA physical layer aspects", macro cell at 2 GHz.
"""

from __future__ import annotations

import numpy as np


def cell_gain(distance_m: np.ndarray | float, shadowing: np.ndarray | float = 0.0) -> np.ndarray:
    """Mean power gain beta at a distance.

    Args:
        distance_m: positive; any shape.
        shadowing: decibels that the gain lies above the path loss's; any shape.

    Returns:
        linear, broadcast shape.

    Raises:
        ValueError: a distance that is not positive.
    """
    distance_m = np.asarray(distance_m, np.float64)
    if not np.all(distance_m > 0):
        raise ValueError(f"a path loss needs positive distances, not {distance_m.min():g} m")
    return 10.0 ** (-(128.1 + 37.6 * np.log10(distance_m / 1000.0) - np.asarray(shadowing)) / 10.0)
