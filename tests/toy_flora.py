"""A scheme in a few lines that uses what boards can do: folds into the base, pruning, rank slices, a penalty."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from testbed.core.adapter import Adapter
from testbed.core.fleet import Fleet
from testbed.core.orders import Ideal, Payload, Pruning, Steps, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.lora.refactor import stacked


@dataclass(frozen=True)
class ToyState:
    """The fleet, the adapter that every round starts from, and the rounds done."""

    fleet: Fleet
    start: Adapter
    rounds: int = 0


class ToyFlora(Scheme[ToyState]):
    """Stacks the trained adapters, folds them in all rounds but the second, and starts anew."""

    def start(self, fleet: Fleet, adapter: Adapter) -> ToyState:
        return ToyState(fleet, adapter)

    def round(self, state: ToyState, rng: np.random.Generator) -> Steps[ToyState]:
        first, second, third = state.fleet.names
        works = {
            first: Work(orthogonality=0.1),
            second: Work(pruning=Pruning(0.45)),
            third: Work(ranks=2, others="absent", pruning=Pruning(0.3, "unstructured", "magnitude")),
        }
        yield from sound()
        trained = yield from train(works)
        weights = {name: float(result.num_samples) for name, result in trained.results.items()}
        band_hz = state.fleet.bandwidth_hz / 4
        uplinks = {
            name: Ideal(weight, band_hz, 1e-3, 1e6, Payload(choice="touched")) for name, weight in weights.items()
        }
        collected = yield from collect(uplinks)
        adapters = {name: state.start.initial + update for name, update in collected.updates.items()}
        layout = state.start.layout
        if state.rounds == 1:
            yield from publish(state.start.initial + collected.mean)
        else:
            stack = stacked(layout, adapters, weights, ranks={first: 4, second: 4, third: 2})
            yield from publish(state.start.initial, fold=stack.vector, fold_rank=stack.rank)
        return replace(state, rounds=state.rounds + 1)
