"""Federated fine-tuning with LoRA of unlike ranks by zero padding and sparsity-weighted aggregation (HetLoRA).

Paper: Y. J. Cho, L. Liu, Z. Xu, A. Fahrezi, G. Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device
Foundation Models", EMNLP 2024, arXiv 2401.06432. From the paper: a client of rank r_m gets the first r_m ranks of the
global factors; the server pads what returns with zeros and averages it, a client weighing as much as its product,

    B = sum_m q_m [B_m 0],   A = sum_m q_m [A_m; 0],   q_m = ||B_m A_m||_F / sum_k ||B_k A_k||_F.

Also of the paper: clients prune their own ranks. Its body was not at hand; as public re-implementations have it, each
adds to its loss a penalty on its last ranks, those from floor(gamma r_m) on, and goes on with r_m <- floor(gamma r_m)
where training has made them smaller,

    F_m + lambda sum over modules ||B_tail|| ||A_tail||,   prune if the sum has fallen below what it was before.

Our readings: norms are over all modules together, and all modules of a node have one rank; the server, which has the
same factors, decides for the node, so that what is pruned has travelled once and is taken off before the mean; nothing
is pruned while the tail is still zero; no rank is given back. gamma and lambda are our choice, and `decay = 1` leaves
ranks as they are. The link is ours, with equal shares of the band.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Payload, Steps, Tail, Work, publish
from testbed.core.scheme import Scheme
from testbed.lora.aggregate import weighted_mean
from testbed.lora.node_ranks import node_adapters, ranks_of, tail_products, truncated_part, truncated_work
from testbed.lora.sparse_baselines import spectra
from testbed.lora.sparse_orthogonal import RankPairs
from testbed.problems.digital_order import UplinkSpec, sample_weights
from testbed.problems.lora_round import exchange


@dataclass(frozen=True)
class HetLoraState:
    """What the server remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
        ranks: node -> its rank, which only falls.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    ranks: Mapping[str, int]
    figures: Mapping[str, float | str] = field(default_factory=dict)


class HetLora(Scheme[HetLoraState]):
    """HetLoRA: zero padding, the mean weighted by the norms of the products, and ranks that nodes prune themselves."""

    ranks: tuple[int, ...] = Field((), description="of the nodes in turn, repeated; that of [lora] for all if empty")
    weighting: Literal["norm", "samples"] = Field(
        "norm", description="weight of a node: its product's norm, or its data"
    )
    decay: float = Field(0.85, gt=0, le=1, description="gamma: a node prunes to this share of its rank; 1 for never")
    penalty: float = Field(0.01, ge=0, description="lambda: weight of the penalty on a node's last ranks")
    least_rank: int = Field(1, ge=1, description="below which no node prunes")
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel")

    def start(self, fleet: Fleet, adapter: Adapter) -> HetLoraState:
        ranks = ranks_of(adapter.layout, fleet.names, self.ranks)
        return HetLoraState(fleet, adapter.initial, adapter.layout, ranks)

    def round(self, state: HetLoraState, rng: np.random.Generator) -> Steps[HetLoraState]:
        layout, ranks = state.layout, state.ranks
        trained, collected = yield from exchange(
            state.fleet,
            lambda name: self._work(layout, ranks[name]),
            lambda name: Payload(self.uplink.payload, part=truncated_part(layout, ranks[name])),
            self.uplink,
        )
        adapters = node_adapters(layout, state.adapter, collected.updates, ranks)
        ranks = {**ranks, **{name: self._pruned(state, name, adapters[name]) for name in adapters}}
        # once more, to take off what has been pruned
        adapters = node_adapters(layout, state.adapter, collected.updates, ranks)
        counted = self._weights(layout, adapters, sample_weights(trained, adapters))
        adapter = weighted_mean(adapters, counted)
        yield from publish(adapter)
        figures = {
            "largest_weight": max(counted.values()) / sum(counted.values()),
            "mean_rank": sum(ranks.values()) / len(ranks),
        }
        return replace(state, adapter=adapter, ranks=ranks, figures=figures)

    def report(self, state: HetLoraState) -> Mapping[str, float | str]:
        """largest_weight: of one node in the mean; mean_rank: of the nodes, for the next round."""
        return state.figures

    def _tail(self, rank: int) -> Tail | None:
        """The ranks that a node may prune, at least one; None where it may not."""
        first = math.floor(self.decay * rank)
        return Tail(self.penalty, first, rank) if self.least_rank <= first < rank else None

    def _work(self, layout: Layout, rank: int) -> Work:
        tail = self._tail(rank)
        return replace(truncated_work(layout, rank), tail=tail if self.penalty > 0 else None)

    def _pruned(self, state: HetLoraState, name: str, adapter: np.ndarray) -> int:
        """A node's rank after the round."""
        rank = state.ranks[name]
        tail = self._tail(rank)
        if tail is None:
            return rank
        before, after = (
            tail_products(state.layout, vector, tail.first, tail.last) for vector in (state.adapter, adapter)
        )
        return tail.first if after < before else rank

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
