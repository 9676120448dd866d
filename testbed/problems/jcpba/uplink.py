"""The two rate models of a frequency-division uplink, and what their inverses cost in band.

Shannon: R_k(b) = b log2(1 + gamma_k / b), the transmit power spread over the share. Fixed efficiency: R_k(b) = c_k b,
one modulation and coding scheme however wide the share. Both readings occur in this literature; the paper's own is not
known. Either may have bounds: a narrowest share, and a widest beyond which the rate no longer grows,

    R_k(b) = R_k(min(b, most_k)),   b >= least_k,

which is as concave and increasing as before.
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
    def least_hz(self) -> np.ndarray:
        """Narrowest share: any, shape [num_clients]."""
        return np.zeros(len(self.gamma_hz))

    @property
    def most_hz(self) -> np.ndarray:
        """Widest share that is of use: none, shape [num_clients]."""
        return np.full(len(self.gamma_hz), np.inf)

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
    def least_hz(self) -> np.ndarray:
        """Narrowest share: any, shape [num_clients]."""
        return np.zeros(len(self.efficiency))

    @property
    def most_hz(self) -> np.ndarray:
        """Widest share that is of use: none, shape [num_clients]."""
        return np.full(len(self.efficiency), np.inf)

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


@dataclass(frozen=True)
class Bounded:
    """Either rate with a narrowest share, and a widest beyond which the rate stays.

    Attributes:
        free: the rate between the bounds.
        least_hz: narrowest shares, at least 0, shape [num_clients].
        most_hz: widest shares that are of use, positive, not below the narrowest, may be infinite, shape [num_clients].
    """

    free: Shannon | FixedEfficiency
    least_hz: np.ndarray
    most_hz: np.ndarray

    def __post_init__(self) -> None:
        count = np.shape(self.free.reach_bit_s)
        if not np.shape(self.least_hz) == np.shape(self.most_hz) == count:
            raise ValueError(
                f"bounds {np.shape(self.least_hz)} and {np.shape(self.most_hz)} are not of the shape {count} of rates"
            )
        if not (np.isfinite(self.least_hz).all() and np.all(self.least_hz >= 0) and np.all(self.most_hz > 0)):
            raise ValueError("narrowest shares must be finite and not negative, widest ones positive")
        if np.any(self.least_hz > self.most_hz):
            client = int(np.argmax(self.least_hz - self.most_hz))
            raise ValueError(
                f"client {client}: its narrowest share, {self.least_hz[client]:.6g} Hz, is wider than its widest, "
                f"{self.most_hz[client]:.6g} Hz"
            )

    @property
    def reach_bit_s(self) -> np.ndarray:
        """Rate that no share exceeds, shape [num_clients]."""
        limited = np.isfinite(self.most_hz)
        return np.where(limited, self.free.rate_bit_s(np.where(limited, self.most_hz, 1.0)), self.free.reach_bit_s)

    def rate_bit_s(self, bandwidth_hz: np.ndarray) -> np.ndarray:
        """R_k, shape [..., num_clients]."""
        return self.free.rate_bit_s(np.minimum(bandwidth_hz, self.most_hz))

    def slope(self, bandwidth_hz: np.ndarray) -> np.ndarray:
        """R_k', bit/s per hertz, shape [..., num_clients]: to the left at the widest share, 0 beyond it."""
        # rounding of the widest share does not lie beyond it
        return np.where(bandwidth_hz > self.most_hz * (1.0 + 1e-9), 0.0, self.free.slope(bandwidth_hz))

    def bandwidth_hz(self, rate_bit_s: np.ndarray) -> np.ndarray:
        """The inverse of the free rate, shape [..., num_clients]; the bounds are the caller's."""
        return self.free.bandwidth_hz(rate_bit_s)

    def earliest(self, payload_bits: np.ndarray, before_s: np.ndarray, bandwidth_hz: float) -> MinMax:
        """Shares by which the last is heard as early as can be; arguments [..., num_clients].

        Those between their bounds are heard at one time; band is left over where everybody has the widest share.
        """
        solve, measure = (
            (min_max_share, self.free.gamma_hz)
            if isinstance(self.free, Shannon)
            else (min_max_linear, self.free.efficiency)
        )
        reach = np.broadcast_to(measure, payload_bits.shape)
        return solve(payload_bits, before_s, reach, bandwidth_hz, least=self.least_hz, most=self.most_hz)

    def share_of_worth(
        self,
        worth: np.ndarray,
        scalable_s: np.ndarray,
        payload_bits: np.ndarray,
        low_hz: np.ndarray,
        high_hz: np.ndarray,
        start_hz: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The share at which one more hertz is worth so much, within low and high.

        Args and Returns: as of `Shannon.share_of_worth`.
        """
        return self.free.share_of_worth(worth, scalable_s, payload_bits, low_hz, high_hz, start_hz)


Uplink: TypeAlias = Shannon | FixedEfficiency | Bounded
"""Any rate model."""
