"""Federated fine-tuning with LoRA of unlike ranks by a decomposition of the mean product (FlexLoRA).

Paper: J. Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources",
NeurIPS 2024, arXiv 2402.11505. From the paper: the server averages the products,

    W = sum_m p_m B_m A_m,   W = U S V^T,

and every client gets the singular vectors of its own rank. Our choices: the published factors are B = U S and A = V^T
in falling order of the singular values, so that a client's truncation is their first ranks; the decomposition works on
the factors without forming W (`testbed.lora.refactor.mean_product`); the link, with equal shares of the band.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Payload, Steps, publish
from testbed.core.scheme import Scheme
from testbed.lora.node_ranks import node_adapters, ranks_of, truncated_part, truncated_work
from testbed.lora.refactor import mean_product
from testbed.problems.digital_order import UplinkSpec, sample_weights
from testbed.problems.lora_round import exchange


@dataclass(frozen=True)
class FlexLoraState:
    """What the server remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
        ranks: node -> its rank.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    ranks: Mapping[str, int]
    figures: Mapping[str, float | str] = field(default_factory=dict)


class FlexLora(Scheme[FlexLoraState]):
    """FlexLoRA: products are averaged and brought back to each node's rank."""

    ranks: tuple[int, ...] = Field((), description="of the nodes in turn, repeated; that of [lora] for all if empty")
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel")

    def start(self, fleet: Fleet, adapter: Adapter) -> FlexLoraState:
        ranks = ranks_of(adapter.layout, fleet.names, self.ranks)
        return FlexLoraState(fleet, adapter.initial, adapter.layout, ranks)

    def round(self, state: FlexLoraState, rng: np.random.Generator) -> Steps[FlexLoraState]:
        layout, ranks = state.layout, state.ranks
        trained, collected = yield from exchange(
            state.fleet,
            lambda name: truncated_work(layout, ranks[name]),
            lambda name: Payload(self.uplink.payload, part=truncated_part(layout, ranks[name])),
            self.uplink,
        )
        adapters = node_adapters(layout, state.adapter, collected.updates, ranks)
        found = mean_product(layout, adapters, sample_weights(trained, adapters))
        yield from publish(found.adapter)
        figures = {"left_out": found.residual / found.norm if found.norm > 0 else 0.0}
        return replace(state, adapter=found.adapter, figures=figures)

    def report(self, state: FlexLoraState) -> Mapping[str, float | str]:
        """left_out: which part of the mean product the adapter's rank could not hold."""
        return state.figures
