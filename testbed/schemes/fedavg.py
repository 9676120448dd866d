"""Federated averaging of LoRA updates over digital links: the reference every other scheme is held against.

Paper: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(Algorithm 1); applied to LoRA factors as in FedIT (arXiv 2305.05644). From the papers: the weighted mean of the
clients' updates, weights D_m. Our choice: the link. Every node gets an equal share B / K of the band, sends at its
highest power, and the array listens to each with maximum-ratio combining. With `link = "packets"` the update travels in
coded packets on that share's subcarriers, repeated until they arrive, and a node whose packets are lost is missing from
the round; with "ideal" it arrives without error at the Shannon rate of the sounded channel less a gap, and a node that
has trained sends at once, since its band is its own.

With `proximal` this is FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv
1812.06127; from the paper: the term (mu / 2) ||w - w_published||^2 in every node's loss). `aggregation` says what is
averaged, see `testbed.lora.refactor`: the factors A and B apart, as FedIT does; A and B in alternate rounds; or their
products, brought back to the adapter's rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from testbed.core.adapter import Adapter, Layout
from testbed.core.errors import ConfigError
from testbed.core.fleet import Fleet
from testbed.core.orders import Collected, Payload, Steps, Trained, Work, publish
from testbed.core.scheme import Scheme
from testbed.lora.refactor import Factors, alternate, mean_product, merged, trains_both
from testbed.phy.coding_schemes import scheme_named
from testbed.problems.digital_order import UplinkSpec, sample_weights
from testbed.problems.lora_round import exchange


@dataclass(frozen=True)
class FedAvgState:
    """What the scheme remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
        layout: order of its factors.
        round_index: rounds done.
        figures: of the last round, for its row.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    round_index: int = 0
    figures: Mapping[str, float | str] = field(default_factory=dict)


class FedAvg(Scheme[FedAvgState]):
    """FedAvg with equal bandwidth shares."""

    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")
    link: Literal["packets", "ideal"] = Field("packets", description="coded packets, or an error-free link at a rate")
    payload: Literal["float32", "float16", "int8", "sign", "topk"] = Field(
        "float32", description="how values become bytes"
    )
    positions: Literal["plain", "golomb"] = Field(
        "plain", description="how payload topk tells places: a bitmap or a list, or Golomb's code of the gaps"
    )
    keep: float = Field(0.1, gt=0, le=1, description="share of the values that payload topk sends")
    error_feedback: bool = Field(False, description="what a payload leaves out is added to the next update")
    coding: str | None = Field(
        None, description="modulation and coding of packets; chosen from the sounded SNR if absent"
    )
    max_tries: int = Field(4, ge=1, description="transmissions of one packet before its node counts as missing")
    snr_gap_db: float = Field(
        3.0, ge=0, description="link ideal: distance of modulation and coding from the Shannon rate"
    )
    proximal: float = Field(0.0, ge=0, description="FedProx: weight mu of the boards' pull to the published adapter")
    aggregation: Literal["factors", "alternate", "product"] = Field(
        "factors",
        description="what is averaged: the LoRA factors A and B; B in one round and A in the next; or the products "
        "B A, brought back to the rank of the adapter",
    )

    @field_validator("coding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None:
            scheme_named(name)
        return name

    def start(self, fleet: Fleet, adapter: Adapter) -> FedAvgState:
        if self.aggregation != "factors" and not trains_both(adapter.layout):
            raise ConfigError(
                f'aggregation = "{self.aggregation}" needs an adapter that trains A and B, and this one does not',
                key="scheme.aggregation",
                remedy='set freeze_a = false in [lora], or aggregation = "factors"',
            )
        return FedAvgState(fleet, adapter.initial, adapter.layout)

    def round(self, state: FedAvgState, rng: np.random.Generator) -> Steps[FedAvgState]:
        factors: Factors = alternate(state.round_index) if self.aggregation == "alternate" else "both"
        work = Work(proximal=self.proximal, factors=factors)
        payload = Payload(self.payload, self.keep, self.error_feedback, positions=self.positions)
        trained, collected = yield from exchange(state.fleet, lambda _: work, lambda _: payload, self._uplink())
        adapter, figures = self._merge(state, trained, collected, factors)
        yield from publish(adapter)
        return FedAvgState(state.fleet, adapter, state.layout, state.round_index + 1, figures)

    def report(self, state: FedAvgState) -> Mapping[str, float | str]:
        return state.figures

    def _merge(
        self, state: FedAvgState, trained: Trained, collected: Collected, factors: Factors
    ) -> tuple[np.ndarray, dict[str, float | str]]:
        """The next adapter; for products also which part of their mean the adapter's rank has left out."""
        if self.aggregation != "product":
            return merged(state.layout, state.adapter, collected.mean, factors), {}
        adapters = {name: state.adapter + update for name, update in collected.updates.items()}
        found = mean_product(state.layout, adapters, sample_weights(trained, adapters))
        return found.adapter, {"left_out": found.residual / found.norm if found.norm > 0 else 0.0}

    def _uplink(self) -> UplinkSpec:
        """How updates travel; ideal: each at its Shannon rate R_m = (B / K) log2(1 + snr_m / gap)."""
        return UplinkSpec(
            link=self.link,
            coding=self.coding,
            max_tries=self.max_tries,
            snr_gap=10.0 ** (self.snr_gap_db / 10.0),
            num_pilots=self.num_pilots,
        )
