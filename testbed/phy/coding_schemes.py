"""Modulation and coding schemes of the digital uplink, and the choice of one from the signal-to-noise ratio.

The codes are those that liquid-dsp carries itself: repetition, Hamming, Golay and SEC-DED block codes.

Thresholds are measured with `testbed.phy.flexframe` over white Gaussian noise: 300 packets of 1000 bytes at every
quarter of a decibel, in the middle one of three equal shares of the default waveform (58 subcarriers, 7 of them
pilots), without carrier offset; the threshold is the first step at which at most one packet in ten is lost. The whole
band needs up to 0.75 dB less, a share of 12 subcarriers 2 dB more: its channel estimate rests on fewer symbols. Below
4 dB pilots slip, and no code helps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from testbed.core.units import from_db


@dataclass(frozen=True)
class CodingScheme:
    """One modulation and coding scheme.

    Attributes:
        name: as an experiment names it.
        modulation: liquid-dsp's name.
        bits: coded bits of one data symbol.
        fec0: inner code, liquid-dsp's name.
        fec1: outer code.
        rate: information bits over coded bits, of both codes together.
        threshold_snr: linear signal-to-noise ratio of a data subcarrier above which at most one packet of 1000 bytes in
            ten is lost.
    """

    name: str
    modulation: str
    bits: int
    fec0: str
    fec1: str
    rate: float
    threshold_snr: float

    @property
    def bits_per_symbol(self) -> float:
        """Information bits on one data symbol; headers, checks, pilots and preambles not counted."""
        return self.bits * self.rate


SCHEMES: tuple[CodingScheme, ...] = (
    CodingScheme("bpsk-golay-rep3", "bpsk", 1, "rep3", "g2412", 1 / 6, from_db(4.0)),
    CodingScheme("bpsk-golay", "bpsk", 1, "g2412", "none", 1 / 2, from_db(5.0)),
    CodingScheme("qpsk-golay", "qpsk", 2, "g2412", "none", 1 / 2, from_db(7.75)),
    CodingScheme("qpsk-hamming", "qpsk", 2, "h128", "none", 2 / 3, from_db(10.25)),
    CodingScheme("qpsk-secded", "qpsk", 2, "secded7264", "none", 8 / 9, from_db(10.75)),
    CodingScheme("qpsk", "qpsk", 2, "none", "none", 1.0, from_db(13.0)),
    CodingScheme("qam16-golay", "qam16", 4, "g2412", "none", 1 / 2, from_db(14.25)),
    CodingScheme("qam16-hamming", "qam16", 4, "h128", "none", 2 / 3, from_db(17.0)),
    CodingScheme("qam16-secded", "qam16", 4, "secded7264", "none", 8 / 9, from_db(17.75)),
    CodingScheme("qam16", "qam16", 4, "none", "none", 1.0, from_db(20.0)),
    CodingScheme("qam64-secded", "qam64", 6, "secded7264", "none", 8 / 9, from_db(23.75)),
    CodingScheme("qam64", "qam64", 6, "none", "none", 1.0, from_db(26.25)),
    CodingScheme("qam256-secded", "qam256", 8, "secded7264", "none", 8 / 9, from_db(29.75)),
    CodingScheme("qam256", "qam256", 8, "none", "none", 1.0, from_db(32.75)),
)
"""From the most robust to the fastest."""


def scheme_named(name: str) -> CodingScheme:
    """The scheme of that name.

    Raises:
        ValueError: there is none.
    """
    for scheme in SCHEMES:
        if scheme.name == name:
            return scheme
    raise ValueError(f"no coding scheme {name!r}; there are {', '.join(scheme.name for scheme in SCHEMES)}")


def choose(snr: float, margin: float = 1.0) -> CodingScheme | None:
    """The scheme with most bits on a symbol whose threshold, times the margin, does not exceed the ratio.

    Args:
        snr: linear signal-to-noise ratio of a data subcarrier, after combining.
        margin: linear power ratio kept in reserve; 2 is 3 dB.

    Returns:
        the scheme; None if even the most robust needs more.

    Raises:
        ValueError: the ratio is NaN or negative, or the margin is not a positive number.
    """
    if math.isnan(snr) or snr < 0:
        raise ValueError(f"snr = {snr:g} is no signal-to-noise ratio")
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"margin = {margin:g} must be a positive power ratio")
    borne = [scheme for scheme in SCHEMES if scheme.threshold_snr * margin <= snr]
    return max(borne, key=lambda scheme: scheme.bits_per_symbol, default=None)


def more_robust(scheme: CodingScheme) -> CodingScheme:
    """The next scheme towards the robust end; the most robust one itself.

    Args:
        scheme: one of `SCHEMES`.
    """
    return SCHEMES[max(SCHEMES.index(scheme) - 1, 0)]


def slowest_above(bits_per_symbol: float) -> CodingScheme:
    """The most robust scheme that carries so much; the fastest where none does.

    Args:
        bits_per_symbol: information bits on one data symbol.
    """
    enough = [scheme for scheme in SCHEMES if scheme.bits_per_symbol >= bits_per_symbol]
    return min(enough, key=lambda scheme: scheme.threshold_snr, default=SCHEMES[-1])
