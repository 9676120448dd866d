"""Federated LoRA that sends the values that matter most to the product (FedSRD): sparsify, reconstruct, decompose.

Paper: "FedSRD: Sparsify-Reconstruct-Decompose for Communication-Efficient Federated Large Language Models Fine-Tuning",
arXiv 2510.04601. From a review of it: a value of one factor is weighed by the norm of what it meets in the other,

    I(dB[u, v]) = |dB[u, v]| ||A[v, :]||,   I(dA[u, v]) = |dA[u, v]| ||B[:, u]||;

the server reconstructs products, averages them and decomposes the mean, alternately. Our reading: the largest scores
over all modules are sent. How the paper decomposes is not known here beyond that word, so there are two ways: by
default the truncated singular value decomposition of every round; with `aggregation = "alternating"` B is fitted to the
mean product with A as it was published, and A in the next round with B as it was, so that one factor changes in a
round. With "factors" A and B are averaged apart. What is broadcast is not made sparse. The link is ours, with equal
shares of the band.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Payload, Steps, Work, publish
from testbed.core.scheme import Scheme
from testbed.lora.node_ranks import ranks_of
from testbed.lora.refactor import alternate, mean_product, mean_product_with
from testbed.problems.digital_order import UplinkSpec, sample_weights
from testbed.problems.lora_round import exchange


@dataclass(frozen=True)
class FedSrdState:
    """What the server remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
        round_index: rounds done.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    round_index: int = 0
    figures: Mapping[str, float | str] = field(default_factory=dict)


class FedSrd(Scheme[FedSrdState]):
    """FedSRD-like: values of largest score, products averaged and decomposed."""

    keep: float = Field(0.1, gt=0, le=1, description="share of the values that is sent")
    aggregation: Literal["product", "alternating", "factors"] = Field(
        "product",
        description="what is averaged: products, brought back to the rank by a decomposition, or by fitting B and A in "
        "turn; or A and B apart",
    )
    error_feedback: bool = Field(False, description="what a node leaves out is added to its next update")
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel; values always as float16")

    @model_validator(mode="after")
    def _same_factors(self) -> FedSrd:
        if self.error_feedback and self.aggregation == "product":
            raise ValueError(
                "a decomposition turns the factors, and what was left out belongs to the old ones: "
                'set error_feedback = false, or aggregation = "alternating" or "factors"'
            )
        return self

    def start(self, fleet: Fleet, adapter: Adapter) -> FedSrdState:
        ranks_of(adapter.layout, fleet.names, ())
        return FedSrdState(fleet, adapter.initial, adapter.layout)

    def round(self, state: FedSrdState, rng: np.random.Generator) -> Steps[FedSrdState]:
        payload = Payload("topk", self.keep, self.error_feedback, choice="scores")
        trained, collected = yield from exchange(state.fleet, lambda _: Work(), lambda _: payload, self.uplink)
        figures: dict[str, float | str] = {}
        if self.aggregation == "factors":
            adapter = state.adapter + collected.mean
        else:
            adapters = {name: state.adapter + update for name, update in collected.updates.items()}
            weights = sample_weights(trained, adapters)
            if self.aggregation == "alternating":
                turn = alternate(state.round_index)
                found = mean_product_with(state.layout, state.adapter, adapters, weights, turn)
            else:
                found = mean_product(state.layout, adapters, weights)
            adapter = found.adapter
            figures["left_out"] = found.residual / found.norm if found.norm > 0 else 0.0
        yield from publish(adapter)
        return replace(state, adapter=adapter, round_index=state.round_index + 1, figures=figures)

    def report(self, state: FedSrdState) -> Mapping[str, float | str]:
        """left_out: which part of the mean product the adapter's rank could not hold."""
        return state.figures
