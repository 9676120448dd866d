"""Many rounds of LoRA switching: queues, policies to compare with, and what the theory promises of a run.

    Q_k <- max(Q_k + e_k - Ebar_k, 0),     Z_m <- max(Z_m + nu_m - sum_k x_km (1 - q_km), 0)

On every path the mean energy lies below Ebar_k + Q_k(T) / T. Where computing takes energy, no queue exceeds

    Q_k(t) <= V w_k G_k,max^2 rho_max / E^cp_k,min + e_k,max - Ebar_k        (without participation limits)

since a device whose queue is longer stays idle. All of this is our reconstruction of the paper's long-term problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.opt.lyapunov import VirtualQueues, worthwhile_limit
from testbed.problems.lora_switching.model import Slot, SlotDecision, SwitchingModel
from testbed.problems.lora_switching.policies import POLICIES, Decide, Situation


@dataclass(frozen=True)
class Limits:
    """Long-term constraints.

    Attributes:
        mean_energy_j: Ebar_k, shape [num_devices].
        idle_j: energy of a round without training, which nothing avoids, shape [num_devices].
        participation: nu_m, mean number of updates of a module that arrive in a round, shape [num_modules]; none if
            absent.
    """

    mean_energy_j: np.ndarray
    idle_j: np.ndarray
    participation: np.ndarray | None = None

    def unmeetable(self, model: SwitchingModel) -> tuple[str, ...]:
        """What no schedule can keep, with the device or module and by how much; empty where nothing is proven.

        Args:
            model: of the devices.
        """
        found = []
        short_j = self.idle_j - self.mean_energy_j
        for device in np.flatnonzero(short_j > 0):
            found.append(
                f"device {device} takes {self.idle_j[device]:g} J in a round of rest, {short_j[device]:.4g} J more than"
                f" its mean limit of {self.mean_energy_j[device]:g} J"
            )
        if not model.possible.any():
            late_s = -float(np.max(np.where(model.allowed, model.window_s, -np.inf)))
            found.append(
                f"no device finishes any module it may train before the round ends: {late_s:.4g} s are missing"
            )
        if self.participation is not None:
            share = np.clip(-short_j / np.maximum(model.least_compute_j, 1e-300), 0.0, 1.0)
            share = np.where(model.possible.any(axis=1), share, 0.0)
            per_module = np.where(model.possible, share[:, None], 0.0).sum(axis=0)
            for module in np.flatnonzero(self.participation > per_module):
                found.append(
                    f"module {module + 1} is to be trained {self.participation[module]:g} times a round, but devices'"
                    f" energies and deadlines allow {per_module[module]:.4g} at most"
                )
            if not found and self.participation.sum() > share.sum():
                found.append(
                    f"modules are to be trained {self.participation.sum():g} times a round together, but devices'"
                    f" energies and deadlines allow {share.sum():.4g} at most"
                )
        return tuple(found)


@dataclass(frozen=True)
class Outcome:
    """A run of many slots.

    Attributes:
        decisions: one for each slot.
        queues: energy queues after the last slot, shape [num_devices] each.
        participation: queues of the modules, where asked for.
        backlog: Q_k before each slot, and at the end, shape [num_slots + 1, num_devices].
        values: the slots' objectives, shape [num_slots].
        gap: largest gap of a slot to its lower bound; infinite where a policy computes none.
        kkt_residual: largest of a slot.
        arrived: which updates arrived, drawn, shape [num_slots, num_devices], bool.
        trace: of the last slot's solver.
    """

    decisions: tuple[SlotDecision, ...]
    queues: VirtualQueues
    participation: VirtualQueues | None
    backlog: np.ndarray
    values: np.ndarray
    gap: float
    kkt_residual: float
    arrived: np.ndarray
    trace: tuple[float, ...] = ()

    @property
    def mean_penalty(self) -> float:
        """(1/T) sum_t Phi_t."""
        return float(np.mean([one.penalty for one in self.decisions]))


def run(
    model: SwitchingModel,
    slots: Sequence[Slot],
    limits: Limits,
    tradeoff: float,
    policy: str | Decide,
    rng: np.random.Generator,
    initial_j: np.ndarray | float = 0.0,
) -> Outcome:
    """All slots in turn, with the queues between them.

    Args:
        model: what stays.
        slots: what changes.
        limits: long-term constraints.
        tradeoff: V.
        policy: one of `POLICIES`, or what decides a slot itself.
        rng: draws losses, and the modules of policy random.
        initial_j: Q_k(0), shape [num_devices] or a scalar.
    """
    spare_j = limits.mean_energy_j - limits.idle_j
    queues = VirtualQueues.at_most(spare_j, np.broadcast_to(np.asarray(initial_j, np.float64), spare_j.shape))
    modules = None if limits.participation is None else VirtualQueues.at_least(limits.participation)
    decide = POLICIES[policy] if isinstance(policy, str) else policy
    decisions, backlog, values, arrived, gap, residual = [], [queues.backlog], [], [], 0.0, 0.0
    trace: tuple[float, ...] = ()
    for slot in slots:
        bonus = None if modules is None else modules.backlog
        solution = decide(Situation(model, slot, queues.backlog, tradeoff, bonus, spare_j, rng))
        decision = solution.point
        drawn = rng.uniform(size=model.num_devices) >= decision.failure
        queues = queues.after(decision.energy_j)
        if modules is not None:
            counts = np.zeros(model.num_modules)
            active = decision.module > 0
            np.add.at(counts, decision.module[active] - 1, 1.0 - decision.failure[active])
            modules = modules.after(-counts)
        decisions.append(decision)
        backlog.append(queues.backlog)
        values.append(solution.value)
        arrived.append(drawn & (decision.module > 0))
        gap = max(gap, solution.value - decision.bound)
        residual = max(residual, 0.0 if np.isnan(solution.kkt_residual) else solution.kkt_residual)
        trace = solution.trace
    return Outcome(
        tuple(decisions), queues, modules, np.array(backlog), np.array(values), gap, residual, np.array(arrived), trace
    )


def backlog_bound(
    model: SwitchingModel, slots: Sequence[Slot], limits: Limits, tradeoff: float, initial_j: np.ndarray | float = 0.0
) -> np.ndarray:
    """What no energy queue exceeds at any time, shape [num_devices]; infinite where computing is free.

    Args:
        model: what stays.
        slots: all that may come.
        limits: long-term constraints.
        tradeoff: V.
        initial_j: Q_k(0).
    """
    worth = np.max([slot.importance[:, None] * np.where(model.possible, slot.share, 0.0) for slot in slots], axis=0)
    paid = worthwhile_limit(
        tradeoff * worth.max(axis=1), model.least_compute_j, model.most_energy_j, limits.mean_energy_j - limits.idle_j
    )
    return np.maximum(paid, initial_j)


def gradient_bound(smoothness: float, initial_gap: float, penalties: np.ndarray) -> float:
    """(1/T) sum_t ||grad F||^2 <= 2 L gap_0 / T + (1/T) sum_t Phi_t     (A9).

    Args:
        smoothness: L.
        initial_gap: F(theta_0) - F*.
        penalties: Phi_t, shape [num_slots].
    """
    return 2.0 * smoothness * initial_gap / len(penalties) + float(np.mean(penalties))


def risk_bound(smoothness: float, convexity: float, initial_gap: float, penalties: np.ndarray) -> float:
    """gap_T <= (1 - mu/L)^T gap_0 + (1 / 2L) sum_t (1 - mu/L)^{T-1-t} Phi_t     (A8), under the PL condition.

    Args:
        smoothness: L.
        convexity: mu, at most L.
        initial_gap: gap_0.
        penalties: Phi_t, shape [num_slots].
    """
    factor = 1.0 - convexity / smoothness
    age = np.arange(len(penalties))[::-1]
    return float(factor ** len(penalties) * initial_gap + np.sum(factor**age * penalties) / (2.0 * smoothness))
