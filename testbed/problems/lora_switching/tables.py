"""The tables of a LoRA-switching instance file."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, model_validator

from testbed.problems.instance import InstanceSpec


class ModuleSpec(InstanceSpec):
    """The modules: nested slices of one LoRA."""

    ranks: tuple[int, ...] = Field((2, 4, 8, 16), min_length=1, description="r_m, rising; the last is the whole LoRA")
    values_per_rank: int = Field(36_864, ge=1, description="inputs and outputs of all adapted layers, together")
    value_bit: int = Field(32, ge=1, le=64, description="bits of a value on air")
    head_bit: int = Field(0, ge=0, description="bits of a shared head that travels with each module; 0 keeps it local")
    cycles: float = Field(2e9, ge=0, description="processor cycles of a round's training, the rank's part excluded")
    cycles_per_rank: float = Field(4e7, ge=0, description="cycles that each rank adds")
    shares: tuple[float, ...] | None = Field(
        None,
        description="rho_m, of a gradient's energy that each module expresses; r_m over the largest rank if absent",
    )
    participation: tuple[float, ...] | None = Field(
        None,
        description="nu_m, mean number of updates of each module that must arrive in a round; no such limit if absent",
    )

    @model_validator(mode="after")
    def _fits(self) -> ModuleSpec:
        if self.ranks[0] < 1 or any(b <= a for a, b in pairwise(self.ranks)):
            raise ValueError(f"modules.ranks: {list(self.ranks)} do not rise from at least 1; sort them, each once")
        for name, one in (("shares", self.shares), ("participation", self.participation)):
            if one is not None and len(one) != len(self.ranks):
                raise ValueError(f"modules.{name}: {len(one)} numbers for {len(self.ranks)} modules; give one for each")
        if self.shares is not None and not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"modules.shares: {list(self.shares)} are not all from 0 to 1; they are shares of energy")
        if self.participation is not None and min(self.participation) < 0:
            raise ValueError("modules.participation: a number of updates is not negative; write 0 for no limit")
        return self


class DeviceSpec(InstanceSpec):
    """One device."""

    distance_m: float | None = Field(None, gt=0, description="from the base station; gives the mean gain of a cell")
    gain: float | None = Field(None, gt=0, description="beta_k, mean power gain of the channel, instead of a distance")
    max_power_w: float = Field(0.2, gt=0, description="P_max, transmit power")
    cpu_hz: float = Field(1e9, gt=0, description="f_k")
    samples: float = Field(1.0, gt=0, description="D_k, rows it owns; its weight is D_k over all")
    gradient: float = Field(1.0, ge=0, description="G_k^2, squared norm of its gradient")
    mean_energy_j: float = Field(0.15, gt=0, description="Ebar_k, mean energy of a round that is not to be exceeded")
    idle_j: float = Field(0.0, ge=0, description="energy of a round of rest")
    backlog_j: float = Field(0.0, ge=0, description="Q_k(0); a positive one is careful from the first round")
    largest_rank: int | None = Field(None, ge=0, description="what its memory holds; any rank if absent")
    compute_s: tuple[float, ...] | None = Field(None, description="measured seconds of training each module")
    compute_j: tuple[float, ...] | None = Field(None, description="measured joules of training each module")


class DrawSpec(InstanceSpec):
    """Devices drawn at random instead of listed."""

    num_devices: int = Field(ge=1, le=1000, description="K")
    distance_m: tuple[float, float] = Field((50.0, 500.0), description="smallest and largest, uniform")
    cpu_hz: tuple[float, float] = Field((0.5e9, 2e9), description="smallest and largest, uniform")
    shadowing: float = Field(
        8.0, ge=0, description="standard deviation of each device's log-normal shadowing, decibels"
    )
    mean_energy_j: float = Field(0.15, gt=0, description="Ebar_k of all")
    max_power_w: float = Field(0.2, gt=0, description="P_max of all")

    @model_validator(mode="after")
    def _ordered(self) -> DrawSpec:
        for name in ("distance_m", "cpu_hz"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"draw.{name}: {low:g} to {high:g} is no range; write a positive low and a higher one")
        return self


class BoundSpec(InstanceSpec):
    """Constants of the convergence bound."""

    smoothness: float = Field(1.0, gt=0, description="L")
    convexity: float | None = Field(None, gt=0, description="mu of the PL condition, at most L; without it if absent")
    initial_gap: float = Field(1.0, ge=0, description="F(theta_0) - F*")
    generalisation: float = Field(
        0.0, ge=0, description="lambda_g of the penalty lambda_g sqrt(d_m / n) of large modules; ordinal, no risk"
    )
