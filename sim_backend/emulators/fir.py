"""The programmable FIR filters of an AD936x: the text that loads them, and what they do to rates and levels.

The format is that of the Linux driver's `filter_fir_config`: a line each for "TX <paths> GAIN <dB> INT <n>" and
"RX <paths> GAIN <dB> DEC <n>", then one line "<tx>,<rx>" a tap; # begins a comment, other lines are passed over.
"""

from __future__ import annotations

import errno
import math
import re
from dataclasses import dataclass

from sim_backend.emulators.attribute_tree import refusal
from testbed.core.units import from_db

_HEADER = re.compile(r"(TX|RX) (\d+) GAIN (-?\d+) (?:INT|DEC) (\d+)", re.ASCII)
_TAP = re.compile(r"\s*(-?\d+)(?:\s*,\s*(-?\d+))?", re.ASCII)
_FULL_SCALE = 32_768
_MOST_TAPS = 128
_GAINS_DB = {"TX": (-6, 0), "RX": (-12, -6, 0, 6)}


@dataclass(frozen=True)
class Fir:
    """One direction's filter.

    Attributes:
        taps: in 32768ths; none before the first is loaded.
        factor: decimation or interpolation.
        gain_db: of the stage behind it.
    """

    taps: tuple[int, ...] = ()
    factor: int = 0
    gain_db: int = 0

    def gain(self, *, interpolates: bool) -> float:
        """Amplitude at the carrier: what an interpolator inserts are zeros, which its taps have to make up for."""
        spread = self.factor if interpolates else 1
        return sum(self.taps) / _FULL_SCALE / spread * math.sqrt(from_db(self.gain_db))


@dataclass(frozen=True)
class FirPair:
    """Both directions' filters."""

    transmit: Fir = Fir()
    receive: Fir = Fir()

    @property
    def text(self) -> str:
        """What reading `filter_fir_config` gives."""
        receive, transmit = self.receive, self.transmit
        return f"FIR Rx: {len(receive.taps)},{receive.factor} Tx: {len(transmit.taps)},{transmit.factor}"

    @classmethod
    def parse(cls, text: str) -> FirPair:
        """Read the driver's format.

        Raises:
            OSError: EINVAL, a header is missing, or a number is impossible: taps come in sixteens up to 128.
        """
        headers: dict[str, tuple[int, int]] = {}
        taps: list[tuple[int, int]] = []
        for line in text.splitlines():
            header = _HEADER.match(line)
            tap = _TAP.match(line)
            if header is not None and header[1] not in headers:
                headers[header[1]] = (int(header[3]), int(header[4]))
            elif tap is not None:
                taps.append((int(tap[1]), int(tap[2] or tap[1])))
        if len(headers) < 2 or len(taps) % 16 or not 0 < len(taps) <= _MOST_TAPS:
            raise refusal(errno.EINVAL)
        if any(abs(value) > _FULL_SCALE for pair in taps for value in pair):
            raise refusal(errno.EINVAL)
        for direction, (gain_db, factor) in headers.items():
            if gain_db not in _GAINS_DB[direction] or factor not in (1, 2, 4):
                raise refusal(errno.EINVAL)
        transmit, receive = zip(*taps, strict=True)
        return cls(Fir(transmit, headers["TX"][1], headers["TX"][0]), Fir(receive, headers["RX"][1], headers["RX"][0]))
