"""Federated fine-tuning with LoRA of unlike ranks by zero padding and sparsity-weighted aggregation (HetLoRA).

Paper: Y. J. Cho, L. Liu, Z. Xu, A. Fahrezi, G. Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device
Foundation Models", EMNLP 2024, arXiv 2401.06432. From the paper: a client of rank r_m gets the first r_m ranks of the
global factors; the server pads what returns with zeros and averages it, a client weighing as much as its product,

    B = sum_m q_m [B_m 0],   A = sum_m q_m [A_m; 0],   q_m = ||B_m A_m||_F / sum_k ||B_k A_k||_F.

Our reading: the norm is over all modules together. Left out: the clients' own pruning of ranks, which needs a penalty
on the last ranks in their training. The link is ours, with equal shares of the band.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Payload, Steps, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.lora.aggregate import weighted_mean
from testbed.lora.node_ranks import node_adapters, ranks_of, truncated_part, truncated_work
from testbed.lora.sparse_baselines import spectra
from testbed.lora.sparse_orthogonal import RankPairs
from testbed.problems.digital_order import UplinkSpec, digital_uplinks, head_starts_s, sample_weights


@dataclass(frozen=True)
class HetLoraState:
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


class HetLora(Scheme[HetLoraState]):
    """HetLoRA: zero padding, and the mean weighted by the norms of the products."""

    ranks: tuple[int, ...] = Field((), description="of the nodes in turn, repeated; that of [lora] for all if empty")
    weighting: Literal["norm", "samples"] = Field(
        "norm", description="weight of a node: its product's norm, or its data"
    )
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel")

    def start(self, fleet: Fleet, adapter: Adapter) -> HetLoraState:
        ranks = ranks_of(adapter.layout, fleet.names, self.ranks)
        return HetLoraState(fleet, adapter.initial, adapter.layout, ranks)

    def round(self, state: HetLoraState, rng: np.random.Generator) -> Steps[HetLoraState]:
        layout, ranks = state.layout, state.ranks
        sounding = yield from sound(num_pilots=self.uplink.num_pilots)
        trained = yield from train({name: truncated_work(layout, ranks[name]) for name in sounding.nodes})
        weights = sample_weights(trained, sounding.nodes)
        payloads = {name: Payload(self.uplink.payload, part=truncated_part(layout, ranks[name])) for name in weights}
        ahead_s = head_starts_s(trained)
        uplinks = digital_uplinks(state.fleet, sounding, weights, payloads, self.uplink, head_start_s=ahead_s)
        collected = yield from collect(uplinks)
        adapters = node_adapters(layout, state.adapter, collected.updates, ranks)
        counted = self._weights(layout, adapters, sample_weights(trained, adapters))
        adapter = weighted_mean(adapters, counted)
        yield from publish(adapter)
        figures = {"largest_weight": max(counted.values()) / sum(counted.values())}
        return replace(state, adapter=adapter, figures=figures)

    def report(self, state: HetLoraState) -> Mapping[str, float | str]:
        """largest_weight: of one node in the mean."""
        return state.figures

    def _weights(
        self, layout: Layout, adapters: Mapping[str, np.ndarray], samples: dict[str, float]
    ) -> dict[str, float]:
        """q_m; by data where no product has a norm yet."""
        if self.weighting == "samples":
            return samples
        pairs = RankPairs.of(layout)
        norms = {
            name: float(np.sqrt(sum(np.sum(np.square(one)) for one in spectra(pairs, adapter))))
            for name, adapter in adapters.items()
        }
        return norms if sum(norms.values()) > 0 else samples
