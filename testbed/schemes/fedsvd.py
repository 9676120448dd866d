"""Federated LoRA that trains B alone and turns the factors by a decomposition between rounds (FedSVD).

Paper: S. Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA", arXiv 2505.12805.
From the paper: clients train and send B while A rests, so that the mean of the products is exact; the server then
decomposes

    B A = U S V^T,   A <- V_r^T,   B <- U_r S_r,

so that A follows the directions that were learnt, with orthonormal rows. Our choices: the decomposition works on the
factors without forming B A; the link, with equal shares of the band. With `period = 0` A is never turned: FFA-LoRA
(arXiv 2403.12313).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Part, Payload, Steps, Work, publish
from testbed.core.scheme import Scheme
from testbed.lora.node_ranks import ranks_of
from testbed.lora.refactor import mean_product, merged
from testbed.problems.digital_order import UplinkSpec
from testbed.problems.lora_round import exchange


@dataclass(frozen=True)
class FedSvdState:
    """What the server remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
        round_index: rounds done.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    round_index: int = 0


class FedSvd(Scheme[FedSvdState]):
    """FedSVD: B is averaged, and B A decomposed anew."""

    period: int = Field(1, ge=0, description="rounds between decompositions; 0 for none")
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel")

    def start(self, fleet: Fleet, adapter: Adapter) -> FedSvdState:
        ranks_of(adapter.layout, fleet.names, ())
        return FedSvdState(fleet, adapter.initial, adapter.layout)

    def round(self, state: FedSvdState, rng: np.random.Generator) -> Steps[FedSvdState]:
        payload = Payload(self.uplink.payload, part=Part(kinds=("B",)))
        _, collected = yield from exchange(state.fleet, lambda _: Work(factors="B"), lambda _: payload, self.uplink)
        adapter = merged(state.layout, state.adapter, collected.mean, "B")
        done = state.round_index + 1
        if self.period and done % self.period == 0:
            adapter = mean_product(state.layout, {"server": adapter}, {"server": 1.0}).adapter
        yield from publish(adapter)
        return replace(state, adapter=adapter, round_index=done)
