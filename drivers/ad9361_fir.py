"""The FIR filters that an AD936x needs below 2.083 MS/s: decimation and interpolation by four.

A low-pass of our own design, 128 taps, passes 0.77 of the band and stops by 58 dB what would fold into it. Both
directions keep the level: the interpolator's taps sum up to four, since it puts three zeros between samples.
"""

from __future__ import annotations

from functools import cache

import numpy as np

FACTOR = 4
NUM_TAPS = 128
_ONE = 32_768
_CUTOFF = 0.442
"""Half amplitude, in sample rates; the transition ends at half a sample rate."""
_BETA = 5.65
"""Of the Kaiser window."""


@cache
def fir_taps() -> tuple[np.ndarray, np.ndarray]:
    """Transmit and receive taps, each shape [128] int16 in 32768ths."""
    from scipy.signal import firwin  # slow to import, and only slow rates need it

    taps = firwin(NUM_TAPS, _CUTOFF, window=("kaiser", _BETA), fs=FACTOR)
    return np.rint(FACTOR * _ONE * taps).astype(np.int16), np.rint(_ONE * taps).astype(np.int16)


@cache
def fir_config() -> str:
    """What loads them: the text of the attribute filter_fir_config of the Linux driver ad9361."""
    transmit, receive = fir_taps()
    lines = [f"RX 3 GAIN 0 DEC {FACTOR}", f"TX 3 GAIN 0 INT {FACTOR}"]
    lines += [f"{tx},{rx}" for tx, rx in zip(transmit.tolist(), receive.tolist(), strict=True)]
    return "\n".join(lines) + "\n"
