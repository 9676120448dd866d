"""What every transmitter refuses before anything is sent."""

from __future__ import annotations

import math

import numpy as np

from testbed.core.bench import WaveformSpec
from testbed.core.errors import LimitError
from testbed.core.units import w_to_dbm
from testbed.phy.ofdm import body_power_w

POWER_TOLERANCE = 0.12
"""Orders keep the limit to six digits; the symbols of one burst are random, and so is its average."""


def check_burst(node: str, samples: np.ndarray, at_s: float, *, limit_w: float, waveform: WaveformSpec) -> None:
    """Refuse a burst that is none, or that is too strong.

    Args:
        node: who would send it, for messages.
        samples: square-root watts, shape [num_samples], complex64. Average power is that of `body_power_w`, or at level
            symbols that of all symbols.
        at_s: instant of the first sample.
        limit_w: highest average power.
        waveform: numerology.

    Raises:
        LimitError: not one row of finite complex64 samples, or an average power above the limit.
    """
    if samples.ndim != 1 or samples.size == 0:
        raise LimitError(f"{node}: a burst is one row of samples; shape {samples.shape} was given")
    if samples.dtype != np.complex64:
        raise LimitError(f"{node}: a burst is complex64; {samples.dtype} was given")
    if not np.isfinite(samples).all() or not math.isfinite(at_s):
        raise LimitError(f"{node}: the burst at {at_s} s is not finite")
    with np.errstate(over="ignore"):
        if waveform.level == "symbols":
            power_w = float(np.mean(np.square(samples.view(np.float32)), dtype=np.float64)) * 2
        else:
            power_w = body_power_w(samples, waveform)
    if not power_w <= limit_w * (1 + POWER_TOLERANCE):
        raise LimitError(
            f"{node} would transmit {power_w:.6g} W ({w_to_dbm(power_w):.2f} dBm) on average; "
            f"its limit is {limit_w:.6g} W ({w_to_dbm(limit_w):.2f} dBm)",
            remedy="the smaller of the node's max_power_dbm and limits.max_power_dbm in the bench file holds",
        )
