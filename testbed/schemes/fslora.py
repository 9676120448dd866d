"""Federated LoRA whose clients each train a random sketch of the global factors (FSLoRA).

Paper: W. Fang et al., "Federated Sketching LoRA: On-Device Collaborative Fine-Tuning of Large Language Models", arXiv
2501.19389. From its abstract and released code: every client adapts the global factors of rank r through a sketch,

    W_m = W + (alpha / r) B S_m A,   S_m = (r / k_m) diag(0, 1) with k_m ones at random,   E S_m = I,

and sends only the ranks of its sketch, so that k_m sets what it computes and what travels. Our readings: a sketch is
drawn anew for every client and round, the same ranks for all of its modules; what a client did not train counts as zero
in the mean, sum_m p_m dB_m (the other rule, the mean over those who trained a value, is `coverage = "present"`); the
server draws and both sides know. The link is ours, with equal shares of the band.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Part, Payload, Steps, Work, publish
from testbed.core.scheme import Scheme
from testbed.lora.node_ranks import ranks_of, sketches
from testbed.problems.digital_order import UplinkSpec, moved
from testbed.problems.lora_round import exchange


@dataclass(frozen=True)
class FsLoraState:
    """What the server remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
        ranks: node -> k_m, ranks of its sketches.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    ranks: Mapping[str, int]


class FsLora(Scheme[FsLoraState]):
    """FSLoRA: every node trains and sends ranks of the global adapter that are drawn by lot."""

    ranks: tuple[int, ...] = Field(
        (), description="ranks of the nodes' sketches in turn, repeated; that of [lora] for all if empty"
    )
    coverage: Literal["present", "all"] = Field(
        "all", description="the mean of a value: over the nodes that trained it, or over all (zero from the rest)"
    )
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel")

    def start(self, fleet: Fleet, adapter: Adapter) -> FsLoraState:
        return FsLoraState(fleet, adapter.initial, adapter.layout, ranks_of(adapter.layout, fleet.names, self.ranks))

    def round(self, state: FsLoraState, rng: np.random.Generator) -> Steps[FsLoraState]:
        drawn = sketches(state.layout, state.ranks, rng)
        trained, collected = yield from exchange(
            state.fleet,
            lambda name: Work(sketch=drawn[name]),
            lambda name: Payload(self.uplink.payload, part=Part(columns=drawn[name])),
            self.uplink,
        )
        adapter = moved(state.adapter, trained, collected, self.coverage)
        yield from publish(adapter)
        return replace(state, adapter=adapter)
