"""Somebody else's steady carrier in the band."""

from __future__ import annotations

import math

import numpy as np

from sim_backend.impairments import rotation
from testbed.core.bench import BenchSpec
from testbed.core.units import dbm_to_w


def add_jammer(heard: np.ndarray, bench: BenchSpec, *, at_s: float, carrier_hz: float, rate_hz: float) -> None:
    """Add the world's jammer to what antennas hear, in place; all hear it alike.

    y_n[i] += sqrt(P) exp(j 2 pi (f - carrier) t_i); nothing where it lies outside the band.

    Args:
        heard: square-root watts, shape [num_antennas, num_samples], complex64.
        bench: with `world.jammer_dbm` and `world.jammer_hz`.
        at_s: instant of the first sample.
        carrier_hz: of the receiver.
        rate_hz: samples in a second.
    """
    world = bench.world
    if world.jammer_dbm is None:
        return
    offset_hz = (bench.carrier_hz if world.jammer_hz is None else world.jammer_hz) - carrier_hz
    if abs(offset_hz) >= rate_hz / 2:
        return
    carrier = rotation(heard.shape[-1], at_s=at_s, rate_hz=rate_hz, offset_hz=offset_hz, drift_hz_s=0.0)
    carrier *= np.float32(math.sqrt(dbm_to_w(world.jammer_dbm)))
    heard += carrier
