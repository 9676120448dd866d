"""How a slot of LoRA switching may be decided: the paper's way, and what it is compared with.

The baselines are our choice; each takes away one of the three subproblems, the queues, or all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from testbed.opt.solution import Solution
from testbed.problems.lora_switching.model import Slot, SlotDecision, SwitchingModel, describe, objective, slot_terms
from testbed.problems.lora_switching.slot import solve_slot
from testbed.problems.lora_switching.steps import reduced, share_band
from testbed.problems.lora_switching.unaware import unaware_choice

MOST_CHOICES = 20_000
"""Module vectors up to which a slot is enumerated."""


@dataclass(frozen=True)
class Situation:
    """All that a policy may look at.

    Attributes:
        model: what stays.
        slot: what changes.
        backlog: Q_k, shape [num_devices].
        tradeoff: V.
        bonus: Z_m, shape [num_modules]; none if absent.
        spare_j: mean limit of each device less what rest takes, shape [num_devices].
        rng: draws the modules of policy random.
    """

    model: SwitchingModel
    slot: Slot
    backlog: np.ndarray
    tradeoff: float
    bonus: np.ndarray | None
    spare_j: np.ndarray
    rng: np.random.Generator


Decide = Callable[[Situation], Solution[SlotDecision]]


def _switching(now: Situation) -> Solution[SlotDecision]:
    """The paper's: modules, powers and shares together, energy priced by the queues."""
    return solve_slot(now.model, now.slot, now.backlog, now.tradeoff, now.bonus)


def _enumerated(now: Situation) -> Solution[SlotDecision]:
    """Every vector of modules, each finished from two starts."""
    num_choices = (now.model.num_modules + 1) ** now.model.num_devices
    if num_choices > MOST_CHOICES:
        raise ValueError(f"{num_choices} vectors of modules are too many to enumerate, {MOST_CHOICES} are not")
    terms = slot_terms(now.model, now.slot, now.backlog, now.tradeoff, now.bonus)
    vectors = np.array(list(itertools.product(range(now.model.num_modules + 1), repeat=now.model.num_devices)))
    worth = terms.worth[np.arange(now.model.num_devices), np.maximum(vectors - 1, 0)]
    vectors = vectors[np.all((vectors == 0) | (worth > 0), axis=1)]
    chosen = terms.of(np.maximum(vectors - 1, 0))
    best, share, module = np.inf, np.zeros(now.model.num_devices), np.zeros(now.model.num_devices, np.int64)
    for start in (np.ones(vectors.shape), chosen.load_hz):
        found, values = share_band(chosen, vectors > 0, start, now.model.total_hz)
        row = int(np.argmin(values))
        if values[row] < best:
            best, share, module = float(values[row]), found[row], np.where(found[row] > 0, vectors[row], 0)
    state = reduced(terms.of(np.maximum(module - 1, 0)), np.where(share > 0, share, now.model.total_hz))
    bound = now.tradeoff * float(now.slot.importance.sum()) + best
    decision = describe(now.model, now.slot, module, np.where(module > 0, state.power_w, 0.0), share, bound)
    return Solution(
        decision, objective(decision, now.backlog, now.tradeoff, now.bonus), "optimal", iterations=len(vectors)
    )


def _myopic(now: Situation) -> Solution[SlotDecision]:
    """No round may take more than the mean limit: no queue, powers limited instead."""
    window_s = np.where(now.model.possible, now.model.window_s, 1.0)
    most_w = np.where(now.model.possible, (now.spare_j[:, None] - now.model.compute_j) / window_s, 0.0)
    return solve_slot(now.model, now.slot, np.zeros_like(now.backlog), now.tradeoff, now.bonus, most_power_w=most_w)


def _unconstrained(now: Situation) -> Solution[SlotDecision]:
    """Energy is free: the least penalty there is."""
    return solve_slot(now.model, now.slot, np.zeros_like(now.backlog), now.tradeoff, now.bonus)


def _full_power(now: Situation) -> Solution[SlotDecision]:
    """Modules and shares are optimised, everybody who sends does so with full power."""
    return solve_slot(now.model, now.slot, now.backlog, now.tradeoff, now.bonus, full_power=True)


def _on_off(now: Situation) -> Solution[SlotDecision]:
    """No switching between sizes: each device's largest module or none, powers and shares optimised."""
    last = _extreme(now.model.possible, largest=True)
    only = now.model.possible & (np.arange(1, now.model.num_modules + 1) == last[:, None])
    return solve_slot(replace(now.model, allowed=only), now.slot, now.backlog, now.tradeoff, now.bonus)


def _equal_band(now: Situation) -> Solution[SlotDecision]:
    """Each device has B / K, and chooses its module and power for itself."""
    terms = slot_terms(now.model, now.slot, now.backlog, now.tradeoff, now.bonus)
    share = np.full(terms.worth.shape, now.model.total_hz / now.model.num_devices)
    state = reduced(terms, share)
    best = np.argmin(state.cost, axis=1)
    rows = np.arange(now.model.num_devices)
    module = np.where(state.cost[rows, best] < 0, best + 1, 0)
    decision = describe(now.model, now.slot, module, state.power_w[rows, best], share[:, 0])
    return Solution(decision, objective(decision, now.backlog, now.tradeoff, now.bonus), "stationary", kkt_residual=0.0)


def _unaware(now: Situation) -> Solution[SlotDecision]:
    """The scheduler believes that nothing is lost."""
    terms = slot_terms(now.model, now.slot, now.backlog, now.tradeoff, now.bonus)
    decision = describe(now.model, now.slot, *unaware_choice(terms, now.model.total_hz))
    return Solution(decision, objective(decision, now.backlog, now.tradeoff, now.bonus), "stationary")


def _fixed(pick: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Decide:
    """Modules by a rule, full power, equal shares of those who send."""

    def decide(now: Situation) -> Solution[SlotDecision]:
        module = pick(now.model.possible, now.rng)
        share = np.where(module > 0, now.model.total_hz / max(int(np.sum(module > 0)), 1), 0.0)
        decision = describe(now.model, now.slot, module, now.model.max_power_w, share)
        return Solution(
            decision, objective(decision, now.backlog, now.tradeoff, now.bonus), "stationary", kkt_residual=0.0
        )

    return decide


def _extreme(possible: np.ndarray, *, largest: bool) -> np.ndarray:
    """The last or first possible module of each device, 0 where there is none, shape [num_devices]."""
    number = np.where(possible, np.arange(1, possible.shape[1] + 1), 0)
    if largest:
        return number.max(axis=1)
    least = np.where(possible, number, possible.shape[1] + 1).min(axis=1)
    return np.where(possible.any(axis=1), least, 0)


def _random_module(possible: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of a device's possible modules or none, all alike; shape [num_devices]."""
    # the largest of random keys is a uniform choice among those that are possible
    keys = rng.uniform(size=(len(possible), possible.shape[1] + 1))
    keys[:, 1:] = np.where(possible, keys[:, 1:], -1.0)
    return np.argmax(keys, axis=1)


POLICIES: Mapping[str, Decide] = {
    "switching": _switching,
    "enumerate": _enumerated,
    "myopic": _myopic,
    "on-off": _on_off,
    "equal-band": _equal_band,
    "full-power": _full_power,
    "error-unaware": _unaware,
    "large": _fixed(lambda possible, rng: _extreme(possible, largest=True)),
    "small": _fixed(lambda possible, rng: _extreme(possible, largest=False)),
    "random": _fixed(_random_module),
    "unconstrained": _unconstrained,
}
"""How a slot may be decided, by name; the first is the paper's."""
