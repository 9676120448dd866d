"""Federated fine-tuning with LoRA of unlike ranks by stacking (FLoRA): aggregation without noise.

Paper: Z. Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
NeurIPS 2024, arXiv 2409.05976. From the paper: factors are stacked, not averaged,

    B A = [p_1 B_1 ... p_K B_K] [A_1; ...; A_K] = sum_m p_m B_m A_m,

every client adds the product to its frozen weights, and adapters start anew. Our choices: A is drawn anew with the
spread of the first one, else all rounds together would stay in its row space; B is zero; the link, with equal shares of
the band.
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
from testbed.lora.refactor import stacked
from testbed.problems.digital_order import UplinkSpec, sample_weights
from testbed.problems.lora_round import exchange


@dataclass(frozen=True)
class FloraState:
    """What the server remembers between rounds.

    Attributes:
        adapter: what all nodes start from, shape [num_values].
        spread: standard deviation of each value of A in the first adapter, 0 for B, shape [num_values].
        ranks: node -> its rank.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    spread: np.ndarray
    ranks: Mapping[str, int]
    figures: Mapping[str, float | str] = field(default_factory=dict)


class Flora(Scheme[FloraState]):
    """FLoRA: stacked factors are folded into the frozen weights, adapters start anew."""

    ranks: tuple[int, ...] = Field((), description="of the nodes in turn, repeated; that of [lora] for all if empty")
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel")

    def start(self, fleet: Fleet, adapter: Adapter) -> FloraState:
        ranks = ranks_of(adapter.layout, fleet.names, self.ranks)
        return FloraState(fleet, adapter.initial, adapter.layout, _spread(adapter), ranks)

    def round(self, state: FloraState, rng: np.random.Generator) -> Steps[FloraState]:
        layout, ranks = state.layout, state.ranks
        trained, collected = yield from exchange(
            state.fleet,
            lambda name: truncated_work(layout, ranks[name]),
            lambda name: Payload(self.uplink.payload, part=truncated_part(layout, ranks[name])),
            self.uplink,
        )
        adapters = node_adapters(layout, state.adapter, collected.updates, ranks)
        stack = stacked(layout, adapters, sample_weights(trained, adapters), ranks=ranks)
        fresh = (state.spread * rng.standard_normal(layout.size)).astype(np.float32)
        yield from publish(fresh, fold=stack.vector, fold_rank=stack.rank)
        return replace(state, adapter=fresh, figures={"stacked_rank": stack.rank})

    def report(self, state: FloraState) -> Mapping[str, float | str]:
        """stacked_rank: inner dimension of what was folded in, and went down to every node."""
        return state.figures


def _spread(adapter: Adapter) -> np.ndarray:
    """Of A factor by factor, shape [num_values]."""
    spread = np.zeros(adapter.layout.size)
    for factor in adapter.layout.factors:
        if factor.kind == "A":
            where = adapter.layout.slices[factor.name]
            spread[where] = float(np.std(adapter.initial[where]))
    return spread
