"""An instance of LoRA switching as a TOML file, and its answer, for `testbed solve lora-switching`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from testbed.core.errors import ConfigError
from testbed.opt.solution import Solution, Status
from testbed.problems.cell import cell_gain
from testbed.problems.instance import Answer, Instance
from testbed.problems.lora_switching.horizon import Limits, Outcome, backlog_bound, gradient_bound, risk_bound, run
from testbed.problems.lora_switching.model import Slot, SlotDecision, SwitchingModel, objective
from testbed.problems.lora_switching.offline import solve_horizon
from testbed.problems.lora_switching.policies import MOST_CHOICES, POLICIES, Situation
from testbed.problems.lora_switching.tables import BoundSpec, DeviceSpec, DrawSpec, ModuleSpec

_GAP = 1e-6
_OFFLINE = 200
"""Devices times slots up to which a horizon is solved as a whole."""


class LoraSwitchingInstance(Instance):
    """Devices that switch between LoRA modules under a mean energy limit, in one slot or many."""

    methods: ClassVar[tuple[str, ...]] = (*POLICIES, "offline")

    seed: int = Field(1, ge=0, description="of drawn devices, channels and losses")
    slots: int = Field(1, ge=1, le=100_000, description="T, rounds; 1 solves a single slot")
    tradeoff: float = Field(3.0, gt=0, description="V; large ones favour learning, small ones short queues")
    bandwidth_hz: float = Field(1e6, gt=0, description="B")
    noise_w_hz: float = Field(3.981e-21, gt=0, description="N0, noise density at the receiver, W/Hz")
    snr_gap: float = Field(1.0, ge=1, description="linear gap of the modem to capacity")
    round_s: float = Field(8.0, gt=0, description="T_max, of training and sending together")
    kappa: float = Field(1e-28, ge=0, description="switched capacitance of the processors, J s^2 per cycle")
    slot_shadowing: float = Field(0.0, ge=0, description="standard deviation of gains from slot to slot, decibels")
    gains: tuple[tuple[float, ...], ...] | None = Field(
        None, description="beta_k of each slot, one row a slot, instead of drawn ones"
    )
    modules: ModuleSpec = ModuleSpec()
    devices: tuple[DeviceSpec, ...] = Field((), description="one table for each device")
    draw: DrawSpec | None = Field(None, description="draws devices where none are listed")
    bound: BoundSpec = BoundSpec()

    @model_validator(mode="after")
    def _devices_fit(self) -> LoraSwitchingInstance:
        if bool(self.devices) == (self.draw is not None):
            raise ValueError("devices: list [[devices]] or add [draw] with num_devices, one of the two")
        for row, device in enumerate(self.devices):
            if (device.distance_m is None) == (device.gain is None) and self.gains is None:
                raise ValueError(f"devices.{row}: its channel is not clear; give distance_m or gain, one of the two")
            for name, one in (("compute_s", device.compute_s), ("compute_j", device.compute_j)):
                if one is not None and (len(one) != len(self.modules.ranks) or min(one) < 0):
                    raise ValueError(
                        f"devices.{row}.{name}: {list(one)}; give {len(self.modules.ranks)} numbers of at least 0,"
                        " one for each module"
                    )
        if self.gains is not None:
            count = len(self.devices) or (self.draw.num_devices if self.draw else 0)
            if len(self.gains) != self.slots or any(len(row) != count for row in self.gains):
                raise ValueError(f"gains: there must be {self.slots} rows of {count} numbers, a row for each slot")
            if not all(gain > 0 for row in self.gains for gain in row):
                raise ValueError("gains: a power gain is positive; write small ones for poor channels")
        if self.bound.convexity is not None and self.bound.convexity > self.bound.smoothness:
            raise ValueError("bound.convexity: mu cannot exceed L; lower it, or raise bound.smoothness")
        return self

    def solve(self, method: str) -> Answer:
        """All slots by one policy, or as a whole by `offline`, which knows every channel beforehand.

        Args:
            method: one of `methods`.

        Raises:
            ConfigError: more vectors of modules than can be enumerated, or more slots than are planned as a whole.
        """
        rng = np.random.default_rng(self.seed)
        devices = self.devices or self._drawn(rng)
        model, limits = self._model(devices), self._limits(devices)
        num_choices = (model.num_modules + 1) ** model.num_devices
        if method == "enumerate" and num_choices > MOST_CHOICES:
            raise ConfigError(
                f"{model.num_devices} devices of {model.num_modules} modules have {num_choices:.3g} choices",
                key="--method",
                remedy=f"enumerate up to {MOST_CHOICES} of them; switching has no such limit",
            )
        if method == "offline":
            self._check_offline(len(devices))
        unmeetable = limits.unmeetable(model)
        if unmeetable:
            short = np.maximum((limits.idle_j - limits.mean_energy_j) / limits.mean_energy_j, 0.0)
            solution: Solution[Any] = Solution(
                None, np.inf, "infeasible", feasibility=float(short.max()), message="; ".join(unmeetable)
            )
            return Answer(solution, {"unmeetable": list(unmeetable)})
        slots = self._slots(devices, rng)
        if method == "offline":
            return self._offline(model, slots, limits)
        initial_j = np.array([device.backlog_j for device in devices])
        outcome = run(model, slots, limits, self.tradeoff, method, rng, initial_j)
        return Answer(
            self._solution(outcome, slots, limits, method, model), self._decisions(outcome, model, slots, limits)
        )

    def _check_offline(self, num_devices: int) -> None:
        if num_devices * self.slots > _OFFLINE:
            raise ConfigError(
                f"{num_devices} devices in {self.slots} slots are too many decisions to plan as a whole",
                key="slots",
                remedy=f"plan up to {_OFFLINE} of them offline: --set slots={max(_OFFLINE // num_devices, 1)}",
            )
        if self.modules.participation is not None:
            raise ConfigError(
                "offline plans by energies alone, and modules.participation is another limit",
                key="modules.participation",
                remedy="leave it out, or use --method switching",
            )

    def _offline(self, model: SwitchingModel, slots: tuple[Slot, ...], limits: Limits) -> Answer:
        """The schedule, and how the online algorithm fares in the same slots: it may overdraw, the schedule may not."""
        planned = solve_horizon(model, slots, limits.mean_energy_j - limits.idle_j)
        rng = np.random.default_rng(self.seed)
        script = iter(planned.point.decisions)

        def play(now: Situation) -> Solution[SlotDecision]:
            decision = next(script)
            return Solution(decision, objective(decision, now.backlog, now.tradeoff), "stationary")

        outcome = run(model, slots, limits, self.tradeoff, play, rng)
        online = run(model, slots, limits, self.tradeoff, "switching", rng)
        content = {
            "penalty_bound": planned.point.bound,
            "energy_prices": planned.point.prices.tolist(),
            "online_penalty": online.mean_penalty,
            "online_excess_j": online.queues.excess.tolist(),
        }
        return Answer(planned, self._decisions(outcome, model, slots, limits) | content)

    def _drawn(self, rng: np.random.Generator) -> tuple[DeviceSpec, ...]:
        assert self.draw is not None
        spec = self.draw
        distance_m, cpu_hz = (
            rng.uniform(*spec.distance_m, spec.num_devices),
            rng.uniform(*spec.cpu_hz, spec.num_devices),
        )
        gain = cell_gain(distance_m, spec.shadowing * rng.standard_normal(spec.num_devices))
        return tuple(
            DeviceSpec(
                gain=float(gain[row]),
                cpu_hz=float(cpu_hz[row]),
                mean_energy_j=spec.mean_energy_j,
                max_power_w=spec.max_power_w,
            )
            for row in range(spec.num_devices)
        )

    def _model(self, devices: tuple[DeviceSpec, ...]) -> SwitchingModel:
        modules, ranks = self.modules, np.array(self.modules.ranks)
        cycles = modules.cycles + modules.cycles_per_rank * ranks
        # [num_devices, num_modules]
        compute_s = np.array([device.compute_s or tuple(cycles / device.cpu_hz) for device in devices])
        compute_j = np.array([device.compute_j or tuple(self.kappa * device.cpu_hz**2 * cycles) for device in devices])
        allowed = [ranks <= (ranks[-1] if one.largest_rank is None else one.largest_rank) for one in devices]
        return SwitchingModel(
            self.bandwidth_hz,
            self.noise_w_hz * self.snr_gap,
            ranks * float(modules.values_per_rank * modules.value_bit) + modules.head_bit,
            self.round_s - compute_s,
            compute_j,
            np.array([device.max_power_w for device in devices]),
            np.array(allowed),
        )

    def _limits(self, devices: tuple[DeviceSpec, ...]) -> Limits:
        required = self.modules.participation
        return Limits(
            np.array([device.mean_energy_j for device in devices]),
            np.array([device.idle_j for device in devices]),
            None if required is None else np.array(required),
        )

    def _slots(self, devices: tuple[DeviceSpec, ...], rng: np.random.Generator) -> tuple[Slot, ...]:
        weight = np.array([device.samples for device in devices])
        importance = weight / weight.sum() * np.array([device.gradient for device in devices])
        ranks = np.array(self.modules.ranks)
        share = ranks / ranks[-1] if self.modules.shares is None else np.array(self.modules.shares)
        if self.gains is not None:
            gains = np.array(self.gains)
        else:
            mean = np.array([one.gain if one.gain is not None else cell_gain(one.distance_m or 0.0) for one in devices])
            drawn = self.slot_shadowing * rng.standard_normal((self.slots, len(devices)))
            gains = mean * 10.0 ** (drawn / 10.0)
        shares = np.broadcast_to(share, (len(devices), len(ranks)))
        values_a_row = ranks * self.modules.values_per_rank / weight.sum()
        complexity = self.bound.generalisation * (weight / weight.sum())[:, None] * np.sqrt(values_a_row)
        return tuple(Slot(gain, importance, shares, complexity) for gain in gains)

    def _solution(
        self, outcome: Outcome, slots: tuple[Slot, ...], limits: Limits, method: str, model: SwitchingModel
    ) -> Solution[Any]:
        late = "".join(
            f"device {row} finishes no module it may train; " for row in np.flatnonzero(~model.possible.any(axis=1))
        )
        scale = self.tradeoff * max(float(slot.importance.sum()) for slot in slots)
        trace = outcome.trace if self.slots == 1 else tuple(one.penalty for one in outcome.decisions)
        excess = float(np.max(outcome.queues.excess / limits.mean_energy_j))
        one_slot = self.slots == 1
        value = float(outcome.values[0]) if one_slot else outcome.mean_penalty
        if not np.isfinite(outcome.gap):
            message = f"{late}{method} is a rule to compare with: nothing says how far it is from an optimum"
            return Solution(outcome, value, "unfinished", outcome.kkt_residual, excess, self.slots, trace, message)
        relative = outcome.gap / scale
        message = (
            late.rstrip("; ")
            if relative <= _GAP
            else f"{late}slots end at most {relative:.2g} of V sum w G^2 above their dual bounds"
        )
        status: Status = "optimal" if relative <= _GAP else "stationary"
        return Solution(
            outcome,
            value,
            status,
            outcome.kkt_residual,
            0.0 if one_slot else excess,
            self.slots,
            trace,
            message,
        )

    def _decisions(
        self, outcome: Outcome, model: SwitchingModel, slots: tuple[Slot, ...], limits: Limits
    ) -> dict[str, Any]:
        decided = outcome.decisions
        ranks = np.array([0, *self.modules.ranks])
        # [num_slots, num_devices]
        modules = np.array([one.module for one in decided])
        penalties = np.array([one.penalty for one in decided])
        bound = self.bound
        content: dict[str, Any] = {"mean_penalty": outcome.mean_penalty}
        if bound.convexity is None:
            content["gradient_bound"] = gradient_bound(bound.smoothness, bound.initial_gap, penalties)
        else:
            content["risk_gap_bound"] = risk_bound(bound.smoothness, bound.convexity, bound.initial_gap, penalties)
        content["arrived_per_round"] = float(outcome.arrived.sum()) / len(decided)
        if self.slots == 1:
            only = decided[0]
            content |= {
                "slot_bound": only.bound,
                "rank": ranks[only.module].tolist(),
                "power_w": only.power_w.tolist(),
                "bandwidth_hz": only.bandwidth_hz.tolist(),
                "failure": only.failure.tolist(),
                "energy_j": (only.energy_j + limits.idle_j).tolist(),
                "backlog_j": outcome.queues.backlog.tolist(),
            }
            return content
        content |= {
            "mean_energy_j": (outcome.queues.mean + limits.idle_j).tolist(),
            "limit_j": limits.mean_energy_j.tolist(),
            "excess_bound_j": outcome.queues.excess_bound.tolist(),
            "backlog_j": outcome.queues.backlog.tolist(),
            "largest_backlog_j": outcome.backlog.max(axis=0).tolist(),
            "backlog_bound_j": backlog_bound(model, slots, limits, self.tradeoff, outcome.backlog[0]).tolist(),
            "idle_share": (modules == 0).mean(axis=0).tolist(),
            "mean_failure": [
                float(np.mean([one.failure[device] for one in decided if one.module[device]] or [1.0]))
                for device in range(model.num_devices)
            ],
            "module_share": {f"rank_{rank}": float((modules == m).mean()) for m, rank in enumerate(ranks.tolist())},
            "ranks": ranks[modules].tolist(),
            "slot_power_w": [one.power_w.tolist() for one in decided],
            "slot_bandwidth_hz": [one.bandwidth_hz.tolist() for one in decided],
            "slot_backlog_j": outcome.backlog[1:].tolist(),
        }
        if outcome.participation is not None:
            content["participation"] = (-outcome.participation.mean).tolist()
            content["participation_backlog"] = outcome.participation.backlog.tolist()
        return content
