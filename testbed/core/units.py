"""Decibels, for the edge of files and screens; everything inside is SI."""

from __future__ import annotations

import math


def dbm_to_w(power_dbm: float) -> float:
    """Watts of a power in dBm."""
    return 10.0 ** ((power_dbm - 30.0) / 10.0)


def w_to_dbm(power_w: float) -> float:
    """dBm of a power in watts; minus infinity for zero."""
    return 10.0 * math.log10(power_w) + 30.0 if power_w > 0 else -math.inf


def from_db(ratio_db: float) -> float:
    """Power ratio of a number of decibels."""
    return 10.0 ** (ratio_db / 10.0)


def to_db(ratio: float) -> float:
    """Decibels of a power ratio; minus infinity for zero."""
    return 10.0 * math.log10(ratio) if ratio > 0 else -math.inf
