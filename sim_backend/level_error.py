"""What a radio's gain is off from its setting: the truth that gain calibrations look for."""

from __future__ import annotations

import math

import numpy as np

from sim_backend.impairments import stream
from testbed.core.bench import BenchSpec
from testbed.core.units import from_db, to_db

_TRANSMIT, _RECEIVE = 48, 49  # keep the draws apart from those of other effects
_PERIOD_DB = 60.0  # of the error over the settings: gentler than any table's steps


class LevelError:
    """Gain error of one transmitter or of one antenna's receiver, a smooth function of its setting.

    e(g) = sigma (z_0 + z_1 cos(2 pi g / 60) + z_2 sin(2 pi g / 60)) / sqrt(2),   z standard normal, e and g in dB

    Args:
        sigma: standard deviation in decibels; 0 makes every gain true.
        generator: of the z.
    """

    def __init__(self, sigma: float, generator: np.random.Generator) -> None:
        self._sigma = sigma
        self._draws = generator.standard_normal(3)

    @classmethod
    def of_node(cls, bench: BenchSpec, node_index: int, seed: int) -> LevelError:
        """A node's transmitter."""
        return cls(bench.world.impairments.tx_gain_error_db, stream(seed, _TRANSMIT, node_index))

    @classmethod
    def of_antenna(cls, bench: BenchSpec, antenna: int, seed: int) -> LevelError:
        """The receiver behind an antenna of the array."""
        return cls(bench.world.impairments.rx_gain_error_db, stream(seed, _RECEIVE, antenna))

    def ratio(self, gain: float) -> float:
        """True over nominal power gain at a setting; both are power ratios."""
        if self._sigma == 0.0:
            return 1.0
        angle = 2 * math.pi * to_db(gain) / _PERIOD_DB
        steady, even, odd = self._draws
        return from_db(self._sigma * (steady + even * math.cos(angle) + odd * math.sin(angle)) / math.sqrt(2))

    def amplitude(self, gain: float) -> float:
        """Square root of `ratio`."""
        return math.sqrt(self.ratio(gain))
