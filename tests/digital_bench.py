"""A bench in this process for schemes over digital uplinks: real bytes, known channels, clocks that can be reckoned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from testbed.core.adapter import Adapter, Factor, Layout
from testbed.core.fleet import ArrayFacts, Fleet, NodeFacts
from testbed.core.orders import (
    Collect,
    Collected,
    Ideal,
    LocalResult,
    Order,
    Payload,
    Publish,
    Published,
    Reply,
    Sound,
    Sounding,
    Spent,
    Train,
    Trained,
    Work,
)
from testbed.core.scheme import Scheme
from testbed.engine.perform import perform
from testbed.lora import parcel
from testbed.lora.aggregate import weighted_mean
from testbed.phy import payload as coding

BAND_HZ, NOISE_W = 1e6, 1e-9

Learn = Callable[[str, int, np.ndarray, Work], np.ndarray]
"""Node, round, published adapter and work -> update."""


def lora_layout(rank: int = 4, modules: tuple[str, ...] = ("q_proj", "o_proj"), width: int = 16) -> Layout:
    """LoRA on square layers, A before B."""
    return Layout(
        factors=tuple(
            Factor(name=f"l.{module}.lora_{kind}.weight", shape=shape, kind=kind, module=f"l.{module}")  # type: ignore[arg-type]
            for module in modules
            for kind, shape in (("A", (rank, width)), ("B", (width, rank)))
        )
    )


def lora_adapter(layout: Layout, seed: int = 0) -> Adapter:
    """A at random, B zero."""
    initial = np.zeros(layout.size, np.float32)
    rng = np.random.default_rng(seed)
    for factor in layout.factors:
        if factor.kind == "A":
            initial[layout.slices[factor.name]] = rng.standard_normal(factor.size) / np.sqrt(factor.shape[1])
    return Adapter(layout=layout, initial=initial)


def fleet_of(cpu_hz: list[float], samples: list[int], power_w: float = 0.1) -> Fleet:
    """Nodes n0, n1, ... before two antennas that stand still."""
    array = ArrayFacts(np.array([[0.0, 0.0], [0.1, 0.0]]), np.zeros(2, bool), np.array([[0, 1.0], [0, 1.0]]), 0.05)
    nodes = tuple(
        NodeFacts(f"n{index}", count, power_w, speed_hz, 2e6, 1e-28)
        for index, (speed_hz, count) in enumerate(zip(cpu_hz, samples, strict=True))
    )
    return Fleet(nodes, array, 2.45e9, BAND_HZ)


@dataclass
class DigitalBench:
    """Answers orders over error-free links, and keeps what it was asked.

    Attributes:
        gains: |h|^2 of each node, over both antennas together.
        learn: the nodes' training.
        tokens: of a round.
        prunable: share of the work that pruning saves.
        channels: that can be taken out, one by one.
        slower: node -> by which factor its link is slower than its rate, when it sends.
        slow_cpu: node -> by which factor its processor is slower than it says.
    """

    fleet: Fleet
    gains: dict[str, float]
    learn: Learn
    published: list[np.ndarray]
    layout: Layout
    tokens: int = 1000
    prunable: float = 0.75
    channels: int = 1000
    slower: dict[str, float] = field(default_factory=dict)
    slow_cpu: dict[str, float] = field(default_factory=dict)
    asked: list[Order] = field(default_factory=list)
    sizes: list[dict[str, int]] = field(default_factory=list)
    updates: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    ends: list[dict[str, float]] = field(default_factory=list)

    def run(self, scheme: Scheme[Any], adapter: Adapter, rounds: int) -> list[Any]:
        """States after so many rounds, the first one first."""
        states = [scheme.start(self.fleet, adapter)]
        for index in range(1, rounds + 1):
            states.append(perform(scheme.round(states[-1], np.random.default_rng([7, index])), self.answer))
        return states

    def of(self, kind: type) -> list[Any]:
        """Orders of one kind, in their order."""
        return [order for order in self.asked if isinstance(order, kind)]

    def answer(self, order: Order) -> Reply:
        self.asked.append(order)
        match order:
            case Sound(nodes=nodes):
                return self._sound(nodes or self.fleet.names)
            case Train(work=work):
                return Trained({name: self._train(name, part) for name, part in work.items()})
            case Collect():
                return self._collect(order)
            case Publish(adapter=adapter):
                self.published.append(adapter)
                return Published()
        raise AssertionError(order)

    def _sound(self, names: tuple[str, ...]) -> Sounding:
        channel = np.array([[np.sqrt(self.gains[name] / 2)] * 2 for name in names], complex).T
        zeros = np.zeros(len(names))
        return Sounding(tuple(names), channel, NOISE_W, self.fleet.array.home_m, zeros, zeros, zeros)

    def _train(self, name: str, work: Work) -> LocalResult:
        node, ratio = self.fleet.node(name), 0.0 if work.pruning is None else work.pruning.ratio
        ratio = int(ratio * self.channels) / self.channels
        share = 1.0 - self.prunable * ratio
        seconds = self.tokens * node.cycles_per_token / node.cpu_hz * share * self.slow_cpu.get(name, 1.0)
        self.updates[name] = self.learn(name, len(self.published), self.published[-1], work).astype(np.float32)
        self.seconds[name] = seconds
        loss = 2.0 / len(self.published)
        return LocalResult(
            loss, loss, loss, node.num_samples, self.tokens, 0.0, 1.0, seconds, 1.0,
            work_share=share, pruned=ratio**2, pruned_ratio=ratio,
        )  # fmt: skip

    def _collect(self, order: Collect) -> Collected:
        updates, covered, energy_j, left_s = {}, {}, {}, []
        limit_s = np.inf if order.deadline_s is None else order.deadline_s
        self.sizes.append({})
        self.ends.append({})
        for name, uplink in order.uplinks.items():
            assert isinstance(uplink, Ideal)
            data = self._bytes(name, uplink.payload)
            self.sizes[-1][name] = len(data)
            needed_s = 8 * len(data) / uplink.rate_bit_s * self.slower.get(name, 1.0)
            self.ends[-1][name] = self.seconds[name] + needed_s
            ending_s = max(needed_s - uplink.head_start_s, 0.0)
            left_s.append(min(ending_s, limit_s))
            energy_j[name] = uplink.power_w * min(needed_s, limit_s + uplink.head_start_s)
            if ending_s > limit_s * (1 + 1e-9):
                continue
            if parcel.is_whole(uplink.payload):
                updates[name] = coding.decode(data, self.layout.size)
            else:
                updates[name], covered[name] = parcel.decode(self.layout, uplink.payload, data)
        weights = {name: uplink.weight for name, uplink in order.uplinks.items()}  # type: ignore[union-attr]
        mean = weighted_mean(updates, weights) if updates else np.zeros(self.layout.size, np.float32)
        missing = tuple(name for name in order.uplinks if name not in updates)
        spent = Spent(max(left_s), sum(energy_j.values()), max(left_s))
        return Collected(mean, updates, covered, missing, energy_j, spent=spent)

    def _bytes(self, name: str, payload: Payload) -> bytes:
        if parcel.is_whole(payload):
            return coding.encode(self.updates[name], payload)
        return parcel.encode(self.layout, payload, self.published[-1], self.updates[name], seed=len(self.published))
