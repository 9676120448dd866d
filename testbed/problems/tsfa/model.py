"""The model of TSFA: what a round costs in time, and what leaving out rank pairs costs in learning.

Paper: Kim and Choi, "Two-stage wireless federated LoRA fine-tuning with sparsified orthogonal updates", arXiv
2505.00333. From its abstract: the structural rank is fixed offline; the sparsification ratio and the bandwidth
allocation are set online by Lyapunov optimisation under long-term latency constraints; the convergence analysis has
terms for the rank, the sparsification and the covariance of separately averaged factors. Its equations were not at
hand: all of them here are our reconstruction, one latency queue for all clients included (`slot`), and so is one queue
for each (`apart`).

    kappa_n S + h <= (tau - Tc_n) R_n(b_n),   R_n(b) = c log2(1 + gamma_n / c) with c = min(b, most_n)
    sum_n b_n <= B,   b_n >= least_n
    delta_n(kappa): share of the update's energy that is left out, convex, falling, piecewise linear
    each round:  minimise over tau, b, kappa    V sum_n w_n delta_n(kappa_n) + Q tau                           (14)

least_n is the narrowest share that can be sent in, most_n the one beyond which more band is of no use: 0 and infinite
for links that can use any. R_n stays concave and does not fall.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from testbed.lora.sparse_orthogonal import EnergyCurve
from testbed.opt.bounded_share import equal_split
from testbed.opt.share import min_max_share
from testbed.phy.rate import shared_rate_bit_s


@dataclass(frozen=True)
class Clients:
    """One round's clients.

    Attributes:
        weight: w_n, adding up to one, shape [num_clients].
        compute_s: Tc_n, shape [num_clients].
        gamma_hz: p h / N0, positive, shape [num_clients].
        payload_bit: S, bits of a whole update; one number for all, or shape [num_clients].
        header_bit: h, bits that travel with any update (the bitmap); likewise.
        corner_share: kappa at the corners of delta, from the least one allowed to 1, shape [num_clients, num_corners].
        corner_residual: delta there, shape [num_clients, num_corners].
        least_hz: narrowest share of the band; one number for all, or shape [num_clients].
        most_hz: share beyond which the rate no longer grows, not below `least_hz`; likewise.
    """

    weight: np.ndarray
    compute_s: np.ndarray
    gamma_hz: np.ndarray
    payload_bit: float | np.ndarray
    header_bit: float | np.ndarray
    corner_share: np.ndarray
    corner_residual: np.ndarray
    least_hz: float | np.ndarray = 0.0
    most_hz: float | np.ndarray = np.inf

    @classmethod
    def of(
        cls,
        weight: np.ndarray,
        compute_s: np.ndarray,
        gamma_hz: np.ndarray,
        payload_bit: float,
        header_bit: float,
        curve: EnergyCurve,
        least: float,
    ) -> Clients:
        """Clients whose updates have one and the same residual curve.

        Args:
            weight, compute_s, gamma_hz, payload_bit, header_bit: as the attributes; weights are scaled to add up to 1.
            curve: delta.
            least: kappa_min, from 0 to 1.

        Raises:
            ValueError: shapes that differ, or a number out of range.
        """
        weight, compute_s, gamma_hz = (np.asarray(one, np.float64) for one in (weight, compute_s, gamma_hz))
        if not (weight.ndim == 1 and weight.shape == compute_s.shape == gamma_hz.shape and weight.size):
            raise ValueError(
                f"weights {weight.shape}, times {compute_s.shape} and {gamma_hz.shape} are not of one shape"
            )
        if not (np.all(weight > 0) and np.all(compute_s >= 0) and np.all(gamma_hz > 0)):
            raise ValueError("weights and channels must be positive, computing times at least 0")
        if not (0 <= least <= 1 and payload_bit > 0 and header_bit >= 0):
            raise ValueError(f"a least share of {least:g} is not from 0 to 1, or an update without bits")
        inner = curve.share[(curve.share > least) & (curve.share < 1)]
        share = np.concatenate([[least], inner, [1.0]]) if least < 1 else np.array([1.0, 1.0])
        shape = (weight.size, len(share))
        return cls(
            weight / weight.sum(),
            compute_s,
            gamma_hz,
            float(payload_bit),
            float(header_bit),
            np.broadcast_to(share, shape),
            np.broadcast_to(curve(share), shape),
        )

    @property
    def least(self) -> np.ndarray:
        """kappa_min of each client, shape [num_clients]."""
        return self.corner_share[:, 0]

    @property
    def limited(self) -> bool:
        """Whether some share of the band is not free to be any."""
        return bool(np.any(np.asarray(self.least_hz) > 0) or np.any(np.isfinite(self.most_hz)))

    def rate_bit_s(self, bandwidth_hz: np.ndarray) -> np.ndarray:
        """R_n(b_n), shape [..., num_clients].

        Args:
            bandwidth_hz: b, shape [..., num_clients].
        """
        return shared_rate_bit_s(np.minimum(bandwidth_hz, self.most_hz), self.gamma_hz)

    def end_s(self, share: np.ndarray, bandwidth_hz: np.ndarray) -> np.ndarray:
        """T_n = Tc_n + (kappa_n S + h) / R_n(b_n), shape [..., num_clients].

        Args:
            share: kappa, shape [..., num_clients].
            bandwidth_hz: b, positive, likewise.
        """
        return self.compute_s + (share * self.payload_bit + self.header_bit) / self.rate_bit_s(bandwidth_hz)

    def equal_shares(self, total_hz: float) -> np.ndarray:
        """Shares as equal as the limits allow, in hertz, shape [num_clients].

        Args:
            total_hz: B.
        """
        least_hz, most_hz = (np.broadcast_to(one, self.weight.shape) for one in (self.least_hz, self.most_hz))
        return equal_split(least_hz, most_hz, total_hz)

    def shortage(self, total_hz: float) -> str:
        """By how much the narrowest shares together exceed the band, in words; empty where they do not.

        Args:
            total_hz: B.
        """
        needed_hz = float(np.broadcast_to(self.least_hz, self.weight.shape).sum())
        if needed_hz <= total_hz * (1 + 1e-12):
            return ""
        return (
            f"the narrowest shares of {len(self.weight)} clients add up to {needed_hz:.6g} Hz,"
            f" {needed_hz - total_hz:.4g} Hz more than the band of {total_hz:g} Hz"
        )

    def lost(self, share: np.ndarray) -> np.ndarray:
        """delta_n(kappa_n), shape [..., num_clients].

        Args:
            share: kappa, shape [..., num_clients].
        """
        columns = [
            np.interp(share[..., n], self.corner_share[n], self.corner_residual[n]) for n in range(len(self.weight))
        ]
        return np.stack(columns, axis=-1)

    def penalty(self, share: np.ndarray) -> np.ndarray:
        """sum_n w_n delta_n(kappa_n), shape [...].

        Args:
            share: kappa, shape [..., num_clients].
        """
        return self.lost(share) @ self.weight

    def earliest(self, share: np.ndarray, total_hz: float) -> tuple[float, np.ndarray]:
        """The earliest end of a round in which everybody sends its share, and the split of the band that attains it.

        Args:
            share: kappa, shape [num_clients].
            total_hz: B.

        Returns:
            tau in seconds, infinite where the narrowest shares exceed the band; b in hertz, shape [num_clients].
        """
        bits = share * self.payload_bit + self.header_bit
        if not self.limited:
            found = min_max_share(bits, self.compute_s, self.gamma_hz, total_hz)
        else:
            least_hz, most_hz = (np.broadcast_to(one, self.weight.shape) for one in (self.least_hz, self.most_hz))
            found = min_max_share(bits, self.compute_s, self.gamma_hz, total_hz, least=least_hz, most=most_hz)
        return float(found.value), found.share

    def sent(self, bandwidth_hz: np.ndarray, latency_s: np.ndarray | float) -> np.ndarray:
        """The kappa that a share of the band carries until tau, at most 1; negative where not even the header fits.

        Args:
            bandwidth_hz: b, shape [..., num_clients].
            latency_s: tau, shape [..., 1] or a scalar.
        """
        bits = (latency_s - self.compute_s) * self.rate_bit_s(bandwidth_hz)
        return np.minimum((bits - self.header_bit) / self.payload_bit, 1.0)

    def rounded_down(self, share: np.ndarray) -> np.ndarray:
        """kappa at the next lower corner: whole rank pairs; what rounding took off counts. Shape [num_clients].

        Args:
            share: kappa, shape [num_clients].
        """
        reached = self.corner_share <= share[:, None] + 1e-7
        return np.take_along_axis(self.corner_share, np.maximum(reached.sum(axis=1) - 1, 0)[:, None], axis=1)[:, 0]

    def only(self, client: int) -> Clients:
        """One of the clients alone.

        Args:
            client: its number.
        """
        one = slice(client, client + 1)
        payload_bit, header_bit, least_hz, most_hz = (
            np.broadcast_to(value, self.weight.shape)[one]
            for value in (self.payload_bit, self.header_bit, self.least_hz, self.most_hz)
        )
        return Clients(
            self.weight[one],
            self.compute_s[one],
            self.gamma_hz[one],
            payload_bit,
            header_bit,
            self.corner_share[one],
            self.corner_residual[one],
            least_hz,
            most_hz,
        )

    def at(self, gamma_hz: np.ndarray) -> Clients:
        """The same clients in another round's channels, shape [num_clients]."""
        return replace(self, gamma_hz=gamma_hz)
