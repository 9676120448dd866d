"""The two rate models of a frequency-division uplink, and what their inverses cost in band.

Shannon: R_k(b) = b log2(1 + gamma_k / b), the transmit power spread over the share. Fixed efficiency: R_k(b) = c_k b,
one modulation and coding scheme however wide the share. Both readings occur in this literature; the paper's own is not
known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from testbed.opt.roots import rising_root
from testbed.opt.share import MinMax, excess, min_max_linear, min_max_share, share_for
from testbed.phy.rate import shared_rate_bit_s, shared_rate_slope

_LN2 = math.log(2.0)

_NEWTON = 1e-8
"""Last step of Newton's method in ln b: it is taken, and what it leaves is its square."""


@dataclass(frozen=True)
class Shannon:
    """R_k(b) = b log2(1 + gamma_k / b).

    Attributes:
        gamma_hz: p_k h_k / N0, at least 0, shape [num_clients].
    """

    gamma_hz: np.ndarray

    @property
    def reach_bit_s(self) -> np.ndarray:
        """Rate that no share exceeds, shape [num_clients]."""
        return self.gamma_hz / np.log(2.0)

    def rate_bit_s(self, bandwidth_hz: np.ndarray) -> np.ndarray:
        """R_k, shape [..., num_clients]."""
        return shared_rate_bit_s(bandwidth_hz, self.gamma_hz)

    def slope(self, bandwidth_hz: np.ndarray) -> np.ndarray:
        """R_k', bit/s per hertz, shape [..., num_clients]."""
        return shared_rate_slope(bandwidth_hz, self.gamma_hz)

    def bandwidth_hz(self, rate_bit_s: np.ndarray) -> np.ndarray:
        """The inverse, shape [..., num_clients]; infinite beyond the reach."""
        return share_for(rate_bit_s, self.gamma_hz)

    def earliest(self, payload_bits: np.ndarray, before_s: np.ndarray, bandwidth_hz: float) -> MinMax:
        """Shares of the band by which all are heard at the same, earliest time; arguments [..., num_clients]."""
        return min_max_share(payload_bits, before_s, np.broadcast_to(self.gamma_hz, payload_bits.shape), bandwidth_hz)

    def share_of_worth(
        self,
        worth: np.ndarray,
        scalable_s: np.ndarray,
        payload_bits: np.ndarray,
        low_hz: np.ndarray,
        high_hz: np.ndarray,
        start_hz: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The share b at which one more hertz is worth so much: R'(b) / (alpha R(b) + V)^2 = worth, which falls in b.

        Args:
            worth: shape [..., num_clients].
            scalable_s: alpha, shape [num_clients].
            payload_bits: V, shape [num_clients].
            low_hz: smallest share, shape [..., num_clients]; taken where the worth is higher still.
            high_hz: largest share.
            start_hz: first guess.

        Returns:
            b, and d ln b / d ln worth there (negative), each of shape [..., num_clients].
        """
        target, rise = np.log(worth * _LN2), np.ones_like(worth)

        def value(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # x = ln u, u = gamma / b: rate and slope from one logarithm
            nonlocal rise
            snr = np.exp(x)
            part = snr / (1.0 + snr)
            full = np.log1p(snr)
            # ln 2 R'; a difference of two like numbers only where the band is a thousand times gamma
            bent = excess(snr) if snr.min() < 1e-3 else full - part
            air = scaled_hz * full / snr
            time_bits = air + payload_bits
            # d ln R' / dx is 2 where u is small and 1 / ln u where it is large
            rise = part**2 / bent + 2.0 * air * bent / (full * time_bits)
            return np.log(bent / time_bits**2) - target, rise

        scaled_hz = scalable_s * self.gamma_hz / _LN2
        low, high = np.log(self.gamma_hz / high_hz), np.log(self.gamma_hz / low_hz)
        x = rising_root(value, low, high, np.log(self.gamma_hz / start_hz), tolerance=_NEWTON)
        return self.gamma_hz * np.exp(-x), -1.0 / rise


@dataclass(frozen=True)
class FixedEfficiency:
    """R_k(b) = c_k b.

    Attributes:
        efficiency: c_k, bit/s per hertz, at least 0, shape [num_clients].
    """

    efficiency: np.ndarray

    @property
    def reach_bit_s(self) -> np.ndarray:
        """Rate that no share exceeds, shape [num_clients]."""
        return np.where(self.efficiency > 0, np.inf, 0.0)

    def rate_bit_s(self, bandwidth_hz: np.ndarray) -> np.ndarray:
        """R_k, shape [..., num_clients]."""
        return self.efficiency * bandwidth_hz

    def slope(self, bandwidth_hz: np.ndarray) -> np.ndarray:
        """R_k', bit/s per hertz, shape [..., num_clients]."""
        return np.broadcast_to(self.efficiency, np.shape(bandwidth_hz))

    def bandwidth_hz(self, rate_bit_s: np.ndarray) -> np.ndarray:
        """The inverse, shape [..., num_clients]."""
        served = self.efficiency > 0
        return np.where(
            served, rate_bit_s / np.where(served, self.efficiency, 1.0), np.where(rate_bit_s > 0, np.inf, 0)
        )

    def earliest(self, payload_bits: np.ndarray, before_s: np.ndarray, bandwidth_hz: float) -> MinMax:
        """Shares of the band by which all are heard at the same, earliest time; arguments [..., num_clients]."""
        return min_max_linear(
            payload_bits, before_s, np.broadcast_to(self.efficiency, payload_bits.shape), bandwidth_hz
        )

    def share_of_worth(
        self,
        worth: np.ndarray,
        scalable_s: np.ndarray,
        payload_bits: np.ndarray,
        low_hz: np.ndarray,
        high_hz: np.ndarray,
        start_hz: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The share b at which one more hertz is worth so much, c / (alpha c b + V)^2 = worth, in closed form.

        b = (sqrt(c / worth) - V) / (alpha c); where alpha is 0 any share is worth as much, and the bounds decide.

        Args and Returns: as of `Shannon.share_of_worth`.
        """
        root = np.sqrt(self.efficiency / worth)
        pace = scalable_s * self.efficiency
        with np.errstate(divide="ignore", invalid="ignore"):
            free_hz = np.where(pace > 0, (root - payload_bits) / pace, np.where(root > payload_bits, np.inf, -np.inf))
        share_hz = np.clip(free_hz, low_hz, high_hz)
        inside = (pace > 0) & (share_hz == free_hz)
        # d ln b / d ln worth = -root / (2 alpha c b)
        return share_hz, np.where(inside, -0.5 * root / np.where(inside, pace * share_hz, 1.0), 0.0)


Uplink: TypeAlias = Shannon | FixedEfficiency
"""Either rate model."""
