"""How long a stage is under way."""

from __future__ import annotations

import math


def travel_time_s(way_m: float, speed_m_s: float, acceleration_m_s2: float) -> float:
    """Seconds of a straight move from rest to rest with a trapezoidal speed profile.

        t = w / v + v / a  where w >= v^2 / a, else 2 sqrt(w / a)

    Args:
        way_m: length w of the way.
        speed_m_s: highest speed v.
        acceleration_m_s2: a, up and down alike.

    Returns:
        Seconds, settling not included; 0 for no way.
    """
    if way_m <= 0:
        return 0.0
    if way_m >= speed_m_s**2 / acceleration_m_s2:
        return way_m / speed_m_s + speed_m_s / acceleration_m_s2
    return 2.0 * math.sqrt(way_m / acceleration_m_s2)
