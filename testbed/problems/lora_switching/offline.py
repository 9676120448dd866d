"""LoRA switching when all rounds are known beforehand: what any schedule can reach at best, and a schedule near it.

    minimise (1/T) sum_t Phi_t   subject to   (1/T) sum_t e_k(t) <= Ebar_k for every k,   and each slot's own limits

The energies are all that ties slots together. A price mu_k on them separates the slots, and every mu >= 0 gives a bound

    (1/T) sum_t Phi_t  >=  (1/T) sum_t min_{x, p, b} [Phi_t + sum_k mu_k e_k(t)]  -  sum_k mu_k Ebar_k,

where the slot's own dual bound stands for its minimum. The best mu is found by column generation: the prices are those
of a linear programme that mixes the decisions found so far (Dantzig and Wolfe), and each price adds a decision to every
slot. A mixed-integer programme then picks one decision a slot. From its modules a search goes on: powers and shares of
given modules are found by turns, powers by (A10) with a price for each device at which its energy is used up, shares by
Newton's method. Few choices of modules are all tried, of many those that differ in one place or shift one use of energy
to another slot. The gap to the bound is what a better schedule could gain at most: few rounds leave one, since mixing
modules within a round is no schedule. Our reconstruction throughout.

Reference: G. B. Dantzig, P. Wolfe, "Decomposition principle for linear programs", Operations Research 8(1), 1960.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from testbed.opt.solution import Solution, Status
from testbed.problems.lora_switching.model import Slot, SlotDecision, SwitchingModel, describe
from testbed.problems.lora_switching.schedule import improved
from testbed.problems.lora_switching.slot import solve_slot

_NODES = 100
"""Of the mixed-integer programme's search."""


@dataclass(frozen=True)
class Schedule:
    """All rounds of a horizon.

    Attributes:
        decisions: one for each slot.
        bound: no schedule's mean penalty lies below it.
        prices: mu_k at the bound, penalty a joule, shape [num_devices].
    """

    decisions: tuple[SlotDecision, ...]
    bound: float
    prices: np.ndarray


def solve_horizon(
    model: SwitchingModel,
    slots: Sequence[Slot],
    spare_j: np.ndarray,
    *,
    tolerance: float = 1e-4,
    max_steps: int = 40,
) -> Solution[Schedule]:
    """The best schedule of a short horizon that is known beforehand.

    Args:
        model: what stays.
        slots: all T of them.
        spare_j: Ebar_k less what rest takes, at least 0, shape [num_devices].
        tolerance: gap of the mean penalty to its bound, relative to the penalty of a slot in which all rest, below
            which the schedule is called optimal.
        max_steps: rounds of column generation.

    Returns:
        the schedule, worth its mean penalty; status optimal within the tolerance, else stationary, with the gap in the
        message.

    Raises:
        ValueError: no slot, or limits that do not fit.
    """
    if not len(slots) or spare_j.shape != (model.num_devices,) or not np.all(spare_j >= 0):
        raise ValueError(f"a horizon needs slots and a limit of at least 0 for each of {model.num_devices} devices")
    total_j = len(slots) * spare_j
    scale = float(np.mean([slot.importance.sum() for slot in slots])) or 1.0
    exact = 0.1 * tolerance * scale * len(slots)
    start = _Columns.resting(model, slots)
    columns, bound, prices, trace = _generate(model, slots, start, total_j, exact, max_steps)
    chosen = improved(model, slots, total_j, np.array([one.module for one in columns.picked(total_j)]))
    value, lowest = _sum(chosen) / len(slots), bound / len(slots)
    gap = (value - lowest) / scale
    status: Status = "optimal" if gap <= tolerance else "stationary"
    message = "" if status == "optimal" else f"at most {gap:.2g} of sum w G^2 above the best schedule (dual bound)"
    over_j = np.sum([one.energy_j for one in chosen], axis=0) - total_j
    over = float(np.max(np.where(over_j > 0, over_j / np.maximum(total_j, 1e-300), 0.0)))
    schedule = Schedule(tuple(chosen), lowest, prices)
    return Solution(schedule, value, status, np.nan, over, len(trace), trace, message)


def _sum(decisions: Sequence[SlotDecision]) -> float:
    return float(sum(one.penalty for one in decisions))


@dataclass(frozen=True)
class _Columns:
    """The decisions found so far of every slot."""

    found: list[list[SlotDecision]]

    @classmethod
    def resting(cls, model: SwitchingModel, slots: Sequence[Slot]) -> _Columns:
        rest, nothing = np.zeros(model.num_devices, np.int64), np.zeros(model.num_devices)
        return cls([[describe(model, slot, rest, nothing, nothing)] for slot in slots])

    def joined(self, other: _Columns) -> _Columns:
        return _Columns([mine + theirs for mine, theirs in zip(self.found, other.found, strict=True)])

    @property
    def _flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Penalties [num], energies [num_devices, num], slots [num_slots, num] of all decisions."""
        every = [one for of_slot in self.found for one in of_slot]
        slot = np.repeat(np.arange(len(self.found)), [len(of_slot) for of_slot in self.found])
        member = (np.arange(len(self.found))[:, None] == slot).astype(np.float64)
        return np.array([one.penalty for one in every]), np.array([one.energy_j for one in every]).T, member

    def mixed(self, total_j: np.ndarray) -> tuple[float, np.ndarray]:
        """The best mixture within the energies: its penalty and the prices mu."""
        penalty, energy_j, member = self._flat
        unit_j = np.maximum(total_j, 1e-12)
        answer = linprog(
            penalty,
            A_ub=energy_j / unit_j[:, None],
            b_ub=total_j / unit_j,
            A_eq=member,
            b_eq=np.ones(len(self.found)),
            method="highs",
        )
        prices = np.maximum(-answer.ineqlin.marginals, 0.0) / unit_j
        return float(answer.fun), prices

    def picked(self, total_j: np.ndarray) -> list[SlotDecision]:
        """One decision for each slot, the best together within the energies."""
        penalty, energy_j, member = self._flat
        unit_j = np.maximum(total_j, 1e-12)
        # a hair inside: the programme keeps its constraints to 1e-6 or so
        room = LinearConstraint(energy_j / unit_j[:, None], -np.inf, total_j / unit_j * (1 - 1e-6))
        each = LinearConstraint(member, 1.0, 1.0)
        options = {"node_limit": _NODES, "mip_rel_gap": 1e-5, "presolve": False}
        answer = milp(penalty, integrality=np.ones(len(penalty)), bounds=Bounds(0, 1), constraints=[room, each],
                      options=options)  # fmt: skip
        if answer.x is None:
            return [of_slot[0] for of_slot in self.found]
        every = [one for of_slot in self.found for one in of_slot]
        return [every[row] for row in np.flatnonzero(answer.x > 0.5)]


def _generate(
    model: SwitchingModel, slots: Sequence[Slot], columns: _Columns, total_j: np.ndarray, exact: float, steps: int
) -> tuple[_Columns, float, np.ndarray, tuple[float, ...]]:
    """Column generation: columns, the best bound of the sum of penalties, its prices, the bounds on the way."""
    prices = np.zeros(len(total_j))
    bound, best = -np.inf, prices
    trace: list[float] = []
    for step in range(steps):
        # min Phi + sum_k mu_k e_k of each slot, with the bound of its minimum
        found = [solve_slot(model, slot, prices, 1.0).point for slot in slots]
        reached = float(sum(one.bound for one in found) - prices @ total_j)
        if reached > bound:
            bound, best = reached, prices
        trace.append(bound)
        columns = columns.joined(_Columns([[one] for one in found]))
        mixture, asked = columns.mixed(total_j)
        if mixture - bound <= exact:
            break
        # halfway to the best prices in every other step: those of the programme alone jump about
        prices = 0.5 * (asked + best) if step % 2 else asked
    return columns, bound, best, tuple(trace)
