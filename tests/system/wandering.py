"""A scheme for tests: federated averaging in packets, by an antenna that goes away and comes back in every round."""

from __future__ import annotations

import numpy as np

from testbed.core.orders import Steps, move
from testbed.schemes.fedavg import FedAvg, FedAvgState

AWAY_M, HOME_M = (0.05, 0.05), (0.01, 0.01)


class Wandering(FedAvg):
    """FedAvg between two moves."""

    def round(self, state: FedAvgState, rng: np.random.Generator) -> Steps[FedAvgState]:
        yield from move(np.array([AWAY_M]))
        state = yield from super().round(state, rng)
        yield from move(np.array([HOME_M]))
        return state
