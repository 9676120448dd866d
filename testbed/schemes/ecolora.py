"""Federated LoRA whose clients send segments in turn, sparsified more and more (EcoLoRA).

Paper: "EcoLoRA: Communication-Efficient Federated Fine-Tuning of Large Language Models", EMNLP 2025, arXiv 2506.02001.
From its abstract: round-robin segments, so that clients upload complementary parts; adaptive sparsification that treats
A and B apart; lossless coding. Our reading of the second,

    k = k_min + (k_max - k_min) exp(-gamma (L_first - L_now)),   gamma of A and of B,

with the nodes' mean training losses L, and of the first: in round t node m sends segment (m + t) mod n, and a value's
mean is over the nodes whose segment holds it. Lossless coding is Golomb's, of the places of what is sent
(`testbed.phy.golomb`); what else the paper codes is not known here. Left out: the clients' mixing of older models.
Unlike gammas make two orders a round, A before B, and then nothing can be fed back. The link is ours, with equal shares
of the band.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import Field, model_validator

from testbed.core.adapter import Adapter, Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Part, Payload, Sounding, Steps, Trained, Uplink, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.lora.aggregate import covered_mean
from testbed.lora.choice import part_mask
from testbed.lora.node_ranks import ranks_of
from testbed.problems.digital_order import UplinkSpec, digital_uplinks, head_starts_s, sample_weights


@dataclass(frozen=True)
class EcoLoraState:
    """What the server remembers between rounds.

    Attributes:
        adapter: global adapter, shape [num_values].
        round_index: rounds done.
        first_loss: mean training loss of the first round; None before it.
    """

    fleet: Fleet
    adapter: np.ndarray
    layout: Layout
    round_index: int = 0
    first_loss: float | None = None
    figures: Mapping[str, float | str] = field(default_factory=dict)


class EcoLora(Scheme[EcoLoraState]):
    """EcoLoRA-like: segments in turn, and top-k with a share of its own for A and for B."""

    segments: int | None = Field(None, ge=1, description="n, segments of the update; as many as nodes if absent")
    keep: float = Field(0.5, gt=0, le=1, description="k_max: share of a segment's values that is sent at first")
    least_keep: float = Field(0.1, gt=0, le=1, description="k_min: share that it falls to")
    steepness_a: float = Field(1.0, ge=0, description="gamma of A: how fast the share falls with the loss")
    steepness_b: float = Field(1.0, ge=0, description="gamma of B")
    error_feedback: bool = Field(True, description="what a node leaves out is added to its next update")
    uplink: UplinkSpec = Field(default=UplinkSpec(), description="how updates travel; values always as float16")

    @model_validator(mode="after")
    def _one_order(self) -> EcoLora:
        if self.error_feedback and self.steepness_a != self.steepness_b:
            raise ValueError("unlike steepness of A and B sends two parts a round: set error_feedback = false")
        if self.least_keep > self.keep:
            raise ValueError(f"least_keep = {self.least_keep:g} is above keep = {self.keep:g}")
        return self

    def start(self, fleet: Fleet, adapter: Adapter) -> EcoLoraState:
        ranks_of(adapter.layout, fleet.names, ())
        return EcoLoraState(fleet, adapter.initial, adapter.layout)

    def round(self, state: EcoLoraState, rng: np.random.Generator) -> Steps[EcoLoraState]:
        sounding = yield from sound(num_pilots=self.uplink.num_pilots)
        trained = yield from train(dict.fromkeys(sounding.nodes, Work()))
        weights = sample_weights(trained, sounding.nodes)
        loss = sum(weights[name] * trained.results[name].loss_mean for name in weights) / sum(weights.values())
        fallen = 0.0 if state.first_loss is None else max(state.first_loss - loss, 0.0)
        shares = {"A": self._share(self.steepness_a, fallen), "B": self._share(self.steepness_b, fallen)}
        together = self.steepness_a == self.steepness_b
        adapter = state.adapter
        for kinds in ((),) if together else (("A",), ("B",)):
            parts = self._parts(state, kinds)
            uplinks = self._uplinks(state.fleet, sounding, trained, parts, shares[kinds[0] if kinds else "A"])
            collected = yield from collect(uplinks)
            # a value of a node's segment that was not among the largest is a zero of the mean
            masks = {name: part_mask(state.layout, parts[name]) for name in collected.updates}
            adapter = adapter + covered_mean(collected.updates, masks, weights)
        yield from publish(adapter)
        first_loss = loss if state.first_loss is None else state.first_loss
        figures = {"keep_a": shares["A"], "keep_b": shares["B"]}
        return replace(
            state, adapter=adapter, round_index=state.round_index + 1, first_loss=first_loss, figures=figures
        )

    def report(self, state: EcoLoraState) -> Mapping[str, float | str]:
        return state.figures

    def _share(self, steepness: float, fallen: float) -> float:
        """k after the loss has fallen by so much."""
        return self.least_keep + (self.keep - self.least_keep) * math.exp(-steepness * fallen)

    def _parts(self, state: EcoLoraState, kinds: tuple[str, ...]) -> dict[str, Part]:
        """Each node's segment of the round."""
        count = self.segments or len(state.fleet.nodes)
        return {
            name: Part(kinds=kinds, segment=((index + state.round_index) % count, count))
            for index, name in enumerate(state.fleet.names)
        }

    def _uplinks(
        self, fleet: Fleet, sounding: Sounding, trained: Trained, parts: Mapping[str, Part], share: float
    ) -> dict[str, Uplink]:
        weights = sample_weights(trained, sounding.nodes)
        payloads = {
            name: Payload("topk", share, self.error_feedback, parts[name], positions="golomb") for name in weights
        }
        ahead_s = head_starts_s(trained)
        return digital_uplinks(fleet, sounding, weights, payloads, self.uplink, head_start_s=ahead_s)
