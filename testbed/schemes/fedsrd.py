"""Federated LoRA that sends the values that matter most to the product (FedSRD): sparsify, reconstruct, decompose.

Paper: "FedSRD: Sparsify-Reconstruct-Decompose for Communication-Efficient Federated Large Language Models Fine-Tuning",
arXiv 2510.04601. From a review of it: a value of one factor is weighed by the norm of what it meets in the other,

    I(dB[u, v]) = |dB[u, v]| ||A[v, :]||,   I(dA[u, v]) = |dA[u, v]| ||B[:, u]||;

the server reconstructs products, averages them and decomposes the mean. Our reading: the largest scores over all
modules are sent; the decomposition is the truncated singular value decomposition of every round, where the paper
alternates. With `aggregation = "factors"` A and B are averaged apart. The link is ours, with equal shares of the band.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Payload, Steps, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.lora.node_ranks import ranks_of
from testbed.lora.refactor import mean_product
from testbed.problems.digital_order import UplinkSpec, digital_uplinks, head_starts_s, sample_weights


@dataclass(frozen=True)
class FedSrdState:
    """What the server remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    figures: Mapping[str, float | str] = field(default_factory=dict)


class FedSrd(Scheme[FedSrdState]):
    """FedSRD-like: values of largest score, products averaged and decomposed."""

    keep: float = Field(0.1, gt=0, le=1, description="share of the values that is sent")
    aggregation: Literal["product", "factors"] = Field(
        "product", description="what is averaged: products, brought back to the rank, or A and B apart"
    )
    error_feedback: bool = Field(False, description="what a node leaves out is added to its next update")
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel; values always as float16")

    @model_validator(mode="after")
    def _same_factors(self) -> FedSrd:
        if self.error_feedback and self.aggregation == "product":
            raise ValueError(
                "a decomposition turns the factors, and what was left out belongs to the old ones: "
                'set error_feedback = false, or aggregation = "factors"'
            )
        return self

    def start(self, fleet: Fleet, adapter: Adapter) -> FedSrdState:
        ranks_of(adapter.layout, fleet.names, ())
        return FedSrdState(fleet, adapter.initial, adapter.layout)

    def round(self, state: FedSrdState, rng: np.random.Generator) -> Steps[FedSrdState]:
        sounding = yield from sound(num_pilots=self.uplink.num_pilots)
        trained = yield from train(dict.fromkeys(sounding.nodes, Work()))
        weights = sample_weights(trained, sounding.nodes)
        payload = Payload("topk", self.keep, self.error_feedback, choice="scores")
        ahead_s = head_starts_s(trained)
        uplinks = digital_uplinks(state.fleet, sounding, weights, payload, self.uplink, head_start_s=ahead_s)
        collected = yield from collect(uplinks)
        figures: dict[str, float | str] = {}
        if self.aggregation == "factors":
            adapter = state.adapter + collected.mean
        else:
            adapters = {name: state.adapter + update for name, update in collected.updates.items()}
            found = mean_product(state.layout, adapters, sample_weights(trained, adapters))
            adapter = found.adapter
            figures["left_out"] = found.residual / found.norm if found.norm > 0 else 0.0
        yield from publish(adapter)
        return replace(state, adapter=adapter, figures=figures)

    def report(self, state: FedSrdState) -> Mapping[str, float | str]:
        """left_out: which part of the mean product the adapter's rank could not hold."""
        return state.figures
