"""From what the antennas hear to the samples a receiver delivers.

In order: amplifier, unequal branches, DC offset, converter. Samples stay in square-root watts at the antenna port: the
gain is divided out again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sim_backend.impairments import add_image, quantise, receive_imbalance, stream
from testbed.core.units import dbm_to_w, from_db
from testbed.core.world_specs import ImpairmentsSpec

_CHUNK = 8192
_BLOCK_BACKOFF = from_db(12.0)
_BUFFERS = 16  # keeps the draws apart from the transmitters'


@dataclass(frozen=True)
class Stretch:
    """Samples of a capture that follow each other in time.

    Attributes:
        start: index of the capture where they begin.
        stop: index after the last.
        source: samples from the capture's instant to the first of them; negative is earlier.
    """

    start: int
    stop: int
    source: int


class ReceiveChain:
    """The receive chains of one array, one for each antenna; all lose the same buffers.

    Args:
        impairments: what they do.
        seed: of the run.
    """

    def __init__(self, impairments: ImpairmentsSpec, *, seed: int) -> None:
        self._own = impairments
        self._seed = seed
        self._full_scale_w = dbm_to_w(impairments.adc_full_scale_dbm)
        self._dc_w = 0.0 if impairments.rx_dc_dbm is None else dbm_to_w(impairments.rx_dc_dbm)
        self._wanted, self._image = receive_imbalance(
            math.sqrt(from_db(impairments.rx_iq_gain_db)), math.radians(impairments.rx_iq_phase_deg)
        )

    @property
    def linear(self) -> bool:
        """Whether every antenna's signal comes out as it went in, up to one sign common to all.

        A combination may then be formed before the chain as well as behind it.
        """
        flips = self._own.phase_flip_gain_db is not None and self._own.agc == "block"
        return self._own.adc_bits is None and self._image == 0 and self._dc_w == 0.0 and not flips

    def stretches(self, num_samples: int, at_s: float) -> list[Stretch]:
        """Where the samples of a capture come from: stale ones first, and what fell into lost buffers is skipped.

        Args:
            num_samples: length of the capture.
            at_s: its instant, which decides what is lost.

        Returns:
            stretches that fill the capture in order.
        """
        source, lost = -self._own.stale_samples, self._own.dropped_buffers
        if lost == 0.0:
            return [Stretch(0, num_samples, source)]
        generator = stream(self._seed, _BUFFERS, round(at_s * 1e9))
        found: list[Stretch] = []
        filled = 0
        while filled < num_samples:
            if generator.random() >= lost:
                stop = min(filled + self._own.buffer_samples, num_samples)
                last = found[-1] if found else None
                if last is not None and last.source + last.stop - last.start == source:
                    found[-1] = Stretch(last.start, stop, last.source)
                else:
                    found.append(Stretch(filled, stop, source))
                filled = stop
            source += self._own.buffer_samples
        return found

    def gain(self, power_w: float) -> float:
        """Power gain in front of the converter for a capture of this average power, a ratio."""
        if self._own.agc == "manual" or power_w + self._dc_w == 0.0:
            return from_db(self._own.rx_gain_db)
        return self._full_scale_w / (power_w + self._dc_w) / _BLOCK_BACKOFF

    def receive(self, heard: np.ndarray) -> None:
        """Pass a capture through the chains, in place, chunk by chunk.

        Args:
            heard: square-root watts at the antenna ports, shape [num_rows, num_samples], complex64.
        """
        flip = self._own.phase_flip_gain_db
        for row in heard:
            gain = self.gain(_power_w(row) if self._own.agc == "block" else 0.0)
            if flip is not None and gain >= from_db(flip):
                np.negative(row, out=row)
            if not self.linear:
                for start in range(0, row.size, _CHUNK):
                    self._convert(row[start : start + _CHUNK], gain)

    def _convert(self, chunk: np.ndarray, gain: float) -> None:
        if self._image != 0:
            add_image(chunk, self._wanted, self._image)
        if self._dc_w > 0:
            chunk += np.complex64(math.sqrt(self._dc_w / 2) * (1 + 1j))
        if self._own.adc_bits is not None:
            # the scale as it looks from in front of the amplifier
            quantise(chunk, math.sqrt(self._full_scale_w / gain), self._own.adc_bits)


def _power_w(row: np.ndarray) -> float:
    """Mean of |x|^2, watts; 0 for an empty row."""
    total = sum(float(np.vdot(part, part).real) for part in np.split(row, range(_CHUNK, row.size, _CHUNK)))
    return total / max(row.size, 1)
