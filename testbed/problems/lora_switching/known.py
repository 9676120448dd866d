"""What a scheduler of LoRA switching has learnt of its devices: links, costs and updates as they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from testbed.core.fleet import Fleet
from testbed.core.orders import Sounding, Trained

_MEMORY = 0.5  # weight of what is new in averages over rounds
_MOST_DOUBLINGS = 5  # the longest rest of a board that was late, 2^5 - 1 rounds


@dataclass(frozen=True)
class Known:
    """Facts of every node in the order of the fleet, shape [num_nodes] each.

    A board that was measured slower than the computing phase may have been so once only: it rests 1, 3, 7, ..., 31
    rounds, twice as many and one more each time it is late again, and then has another chance. In time once, it is
    as if it had never been late. Boards that are too slow by their facts have none.

    Attributes:
        names: of the nodes.
        gain: beta_k, mean power gain of all antennas together, an average over soundings; 0 where never heard.
        square: G_k^2, mean squared length of a whole update; 0 where none has come.
        compute_s, compute_j: of local training, as measured last; from the boards' facts before that.
        late: how many times in a row a board's training was longer than the computing phase, int.
        rest: rounds that it still waits for another chance, int.
    """

    names: tuple[str, ...]
    gain: np.ndarray
    square: np.ndarray
    compute_s: np.ndarray
    compute_j: np.ndarray
    late: np.ndarray
    rest: np.ndarray

    @classmethod
    def first(cls, fleet: Fleet, tokens: int) -> Known:
        """Before anything was measured.

        Args:
            fleet: its boards' facts.
            tokens: that a node trains on in a round.
        """
        nodes, nothing = fleet.nodes, np.zeros(len(fleet.nodes))
        compute_s = np.array([tokens * node.cycles_per_token / node.cpu_hz for node in nodes])
        compute_j = np.array([tokens * node.kappa * node.cycles_per_token * node.cpu_hz**2 for node in nodes])
        never = np.zeros(len(nodes), np.int64)
        return cls(fleet.names, nothing, nothing, compute_s, compute_j, never, never)

    def heard(self, sounding: Sounding) -> Known:
        """After the sounding with which a round begins."""
        gain = self.gain.copy()
        for column, name in enumerate(sounding.nodes):
            now = float(np.sum(np.abs(sounding.channel[:, column]) ** 2))
            gain[self.names.index(name)] = _averaged(float(gain[self.names.index(name)]), now)
        return replace(self, gain=gain, rest=np.maximum(self.rest - 1, 0))

    def in_time(self, phase_s: float) -> np.ndarray:
        """Which boards may train in this round, shape [num_nodes], bool.

        Args:
            phase_s: length of the computing phase.
        """
        return (self.compute_s <= phase_s) | ((self.late > 0) & (self.rest == 0))

    def trained(self, trained: Trained, share: Mapping[str, float], num_values: int, phase_s: float) -> Known:
        """After local training.

        Args:
            trained: what the nodes report.
            share: node -> rho of the module it trained: its update shows so much of the whole one's squared length.
            num_values: of an update.
            phase_s: length of the computing phase.
        """
        compute_s, compute_j, square = self.compute_s.copy(), self.compute_j.copy(), self.square.copy()
        late, rest = self.late.copy(), self.rest.copy()
        for name, result in trained.results.items():
            k = self.names.index(name)
            compute_s[k], compute_j[k] = result.seconds, result.joules
            late[k] = late[k] + 1 if result.seconds > phase_s else 0
            # one more, as the next round's sounding takes one off
            rest[k] = 2 ** min(int(late[k]), _MOST_DOUBLINGS) if late[k] else 0
            now = num_values * (result.update_std**2 + result.update_mean**2) / max(share[name], 1e-3)
            square[k] = _averaged(float(square[k]), now)
        return replace(self, compute_s=compute_s, compute_j=compute_j, square=square, late=late, rest=rest)

    @property
    def relative_square(self) -> np.ndarray:
        """G_k^2 over the largest; nodes that have not trained count as the mean of the others; 1 before the first."""
        seen = self.square > 0
        if not seen.any():
            return np.ones_like(self.square)
        filled = np.where(seen, self.square, np.mean(self.square[seen]))
        return filled / filled.max()


def _averaged(before: float, now: float) -> float:
    return now if before == 0 else (1 - _MEMORY) * before + _MEMORY * now
