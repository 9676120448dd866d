"""A bench in this process for schemes over error-free links: perfect channels, training by whatever is handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from testbed.core.bench import BenchSpec
from testbed.core.fleet import Fleet
from testbed.core.orders import (
    Collect,
    Collected,
    LocalResult,
    Order,
    Publish,
    Published,
    Reply,
    Sound,
    Sounding,
    Train,
    Trained,
    Work,
)
from testbed.core.scheme import Scheme
from testbed.engine.limits import check_order
from testbed.engine.perform import perform
from testbed.lora.aggregate import weighted_mean

Learn = Callable[[str, int, np.ndarray, Work], tuple[np.ndarray, int, float]]
"""Node, round, published adapter and work -> trained adapter, steps and step size."""


@dataclass
class InProcess:
    """Answers orders; whoever is in `silent` is not heard.

    Attributes:
        published: adapter after every round, the initial one first.
        works: what was ordered, round by round.
    """

    bench: BenchSpec
    num_samples: Mapping[str, int]
    learn: Learn
    published: list[np.ndarray]
    silent: dict[int, tuple[str, ...]] = field(default_factory=dict)
    works: list[Mapping[str, Work]] = field(default_factory=list)
    _updates: dict[str, np.ndarray] = field(default_factory=dict)

    def run(self, scheme: Scheme[Any], adapter: Any, rounds: int) -> list[Any]:
        """States after so many rounds, the first one first."""
        states = [scheme.start(Fleet.of(self.bench, dict(self.num_samples)), adapter)]
        for index in range(1, rounds + 1):
            states.append(perform(scheme.round(states[-1], np.random.default_rng([0, index])), self.answer))
        return states

    def answer(self, order: Order) -> Reply:
        check_order(order, self.bench, self.published[0].size)
        match order:
            case Sound():
                names = [name for name in self.bench.node_names if name not in self.silent.get(len(self.published), ())]
                ones = np.ones((len(self.bench.array.antennas), len(names)), np.complex128)
                zeros = np.zeros(len(names))
                home_m = np.array([antenna.home_m for antenna in self.bench.array.antennas])
                return Sounding(tuple(names), ones, 1e-9, home_m, zeros, zeros, zeros)
            case Train(work=work):
                self.works.append(work)
                return Trained({name: self._train(name, part) for name, part in work.items()})
            case Collect(uplinks=uplinks):
                weights = {name: uplink.weight for name, uplink in uplinks.items()}  # type: ignore[union-attr]
                updates = {name: self._updates[name] for name in uplinks}
                return Collected(weighted_mean(updates, weights), updates)
            case Publish(adapter=adapter):
                self.published.append(adapter)
                return Published()
            case _:
                raise AssertionError(f"nobody asked for {order}")

    def _train(self, name: str, work: Work) -> LocalResult:
        index = len(self.published)
        after, steps, step_size = self.learn(name, index, self.published[-1], work)
        self._updates[name] = after - self.published[-1]
        return LocalResult(0, 0, 0, self.num_samples[name], 1, 0, 1, 1, 1, num_steps=steps, step_size=step_size)
