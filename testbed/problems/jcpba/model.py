"""The clients of a round, what they decide, and how long the round takes.

Client k prunes the share rho_k of its model, s_k = 1 - rho_k stays, and it sends over a share b_k of the band:

    T_k(rho_k, b_k) = beta_k + s_k alpha_k + (s_k V_k + F_k) / R_k(b_k).                                    (3)

The paper's equations are not available; this is our reconstruction, the common form of this literature. Structured
pruning shrinks computing and payload alike (V_k > 0, F_k the parts that are sent whole); masks that leave the adapter's
shape alone shrink computing only (V_k = 0, F_k > 0). The round lasts as long as its slowest client,

    (P-A1)  minimise over rho, b: max_k T_k   s.t.  sum b_k <= B,  sum_k p_k e_k(rho_k) <= Gamma,
                                                   0 <= rho_k <= rho_max,k,  b_k >= 0.

Shares may have bounds besides, least_k <= b_k, and a rate that no longer grows beyond most_k: see
`testbed.problems.jcpba.uplink`. The downlink is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.opt.bounded_share import equal_split
from testbed.problems.jcpba.penalty import PenaltyCurves
from testbed.problems.jcpba.uplink import Uplink


@dataclass(frozen=True)
class ClientCosts:
    """What a round costs its clients.

    Attributes:
        fixed_s: beta_k, computing that pruning does not shorten, at least 0, shape [num_clients].
        scalable_s: alpha_k, computing of the unpruned model that pruning shortens, at least 0.
        payload_bits: V_k, sent by the unpruned client and shrinking with s_k, at least 0.
        uplink: rate of a share of the band.
        weight: p_k, of the client in the learning bound, at least 0.
        penalty: e_k(rho).
        max_ratio: rho_max,k, in [0, 1).
        fixed_payload_bits: F_k, sent whatever is pruned, at least 0.
    """

    fixed_s: np.ndarray
    scalable_s: np.ndarray
    payload_bits: np.ndarray
    uplink: Uplink
    weight: np.ndarray
    penalty: PenaltyCurves
    max_ratio: np.ndarray
    fixed_payload_bits: np.ndarray

    def __post_init__(self) -> None:
        count = np.shape(self.fixed_s)
        named = {
            "fixed_s": self.fixed_s,
            "scalable_s": self.scalable_s,
            "payload_bits": self.payload_bits,
            "weight": self.weight,
            "max_ratio": self.max_ratio,
            "fixed_payload_bits": self.fixed_payload_bits,
            "uplink": self.uplink.reach_bit_s,
            "penalty": self.penalty.ratio[:, 0],
        }
        if len(count) != 1 or count[0] == 0:
            raise ValueError(f"fixed_s of shape {count} names no clients")
        for name, values in named.items():
            if np.shape(values) != count:
                raise ValueError(f"{name} has shape {np.shape(values)}, there are {count[0]} clients")
            finite = np.isfinite(values) | (name == "uplink")
            if not np.all(finite & (np.asarray(values) >= 0)):
                raise ValueError(f"{name} must be finite and not negative")
        if np.any(self.max_ratio >= 1):
            raise ValueError(f"a largest pruning ratio of {self.max_ratio.max():g} is not inside [0, 1)")
        if np.any(self.payload_bits + self.fixed_payload_bits <= 0):
            raise ValueError("a client that sends nothing takes no part in the allocation: leave it out")
        if np.any(self.payload_bits + self.scalable_s <= 0):
            raise ValueError("a client whose round pruning does not shorten gets max_ratio 0 and some scalable_s")

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.fixed_s)

    def latency_s(self, pruning: np.ndarray, bandwidth_hz: np.ndarray) -> np.ndarray:
        """T_k, equation (3), shape [..., num_clients]; infinite where something is sent at rate 0."""
        kept = 1.0 - pruning
        rate_bit_s = self.uplink.rate_bit_s(bandwidth_hz)
        sent = kept * self.payload_bits + self.fixed_payload_bits
        air_s = np.divide(sent, rate_bit_s, out=np.full(np.shape(rate_bit_s), np.inf), where=rate_bit_s > 0)
        return self.fixed_s + kept * self.scalable_s + air_s

    def total_penalty(self, pruning: np.ndarray) -> np.ndarray:
        """sum_k p_k e_k(rho_k), shape [...]."""
        return np.sum(self.weight * self.penalty.at(pruning), axis=-1)


@dataclass(frozen=True)
class Allocation:
    """What is decided for a round.

    Attributes:
        pruning: rho, shape [num_clients].
        bandwidth_hz: b, shape [num_clients].
        latency_s: T_k of every client, shape [num_clients]; the round takes the largest.
        penalty: sum_k p_k e_k(rho_k).
        price_s: how much sooner the round would end for one more unit of penalty budget, seconds; NaN where unknown.
    """

    pruning: np.ndarray
    bandwidth_hz: np.ndarray
    latency_s: np.ndarray
    penalty: float
    price_s: float = float("nan")

    @classmethod
    def of(
        cls, costs: ClientCosts, pruning: np.ndarray, bandwidth_hz: np.ndarray, price_s: float = float("nan")
    ) -> Allocation:
        """The allocation with its latencies and its penalty."""
        latency_s = costs.latency_s(pruning, bandwidth_hz)
        return cls(pruning, bandwidth_hz, latency_s, float(costs.total_penalty(pruning)), price_s)

    @property
    def round_s(self) -> float:
        """max_k T_k."""
        return float(self.latency_s.max())


def equal_shares_hz(costs: ClientCosts, bandwidth_hz: float) -> np.ndarray:
    """B / K for every client, or as near to it as its bounds allow, shape [num_clients]."""
    return equal_split(costs.uplink.least_hz, costs.uplink.most_hz, bandwidth_hz)


def obstacle(costs: ClientCosts, bandwidth_hz: float, penalty_budget: float) -> str:
    """Why no allocation keeps the constraints, with the amount; empty where one does.

    Raises:
        ValueError: the band is not positive.
    """
    if not (bandwidth_hz > 0 and np.isfinite(bandwidth_hz)):
        raise ValueError(f"a band of {bandwidth_hz} Hz cannot be divided")
    if np.isnan(penalty_budget):
        raise ValueError("the penalty budget is not a number")
    if penalty_budget < 0:
        return (
            f"learning constraint: unpruned clients have penalty 0, the budget of {penalty_budget:.6g} "
            f"falls short of that by {-penalty_budget:.6g}"
        )
    silent = np.flatnonzero(costs.uplink.reach_bit_s <= 0)
    if len(silent):
        sent = costs.payload_bits + costs.fixed_payload_bits
        return "rate: " + ", ".join(f"client {k} has {sent[k]:.6g} bits to send at rate 0" for k in silent)
    needed_hz = float(costs.uplink.least_hz.sum())
    if needed_hz > bandwidth_hz * (1.0 + 1e-12):
        return (
            f"band: the narrowest shares of {costs.num_clients} clients take {needed_hz:.6g} Hz together, "
            f"{needed_hz - bandwidth_hz:.6g} Hz more than the {bandwidth_hz:.6g} Hz there are"
        )
    return ""


def late(costs: ClientCosts, bandwidth_hz: float, round_s: float, deadline_s: float | None) -> str:
    """By how much the shortest round misses its deadline, and who cannot meet it alone; empty where it is met."""
    if deadline_s is None or round_s <= deadline_s:
        return ""
    text = (
        f"deadline: the shortest round lasts {round_s:.6g} s, {round_s - deadline_s:.6g} s "
        f"({100 * (round_s / deadline_s - 1):.3g} %) more than {deadline_s:.6g} s"
    )
    alone_s = costs.latency_s(costs.max_ratio, np.full(costs.num_clients, bandwidth_hz))
    slowest = int(np.argmax(alone_s))
    if alone_s[slowest] > deadline_s:
        text += f"; client {slowest}, pruned most and alone in the band, already takes {alone_s[slowest]:.6g} s"
    return text
