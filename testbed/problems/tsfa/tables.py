"""The tables of a TSFA instance file."""

from __future__ import annotations

from pydantic import Field, model_validator

from testbed.problems.instance import InstanceSpec


class ClientSpec(InstanceSpec):
    """One client."""

    distance_m: float | None = Field(None, gt=0, description="from the base station; gives the mean gain of a cell")
    gain: float | None = Field(None, gt=0, description="h, mean power gain of the channel, instead of a distance")
    power_w: float = Field(0.1, gt=0, description="p, transmit power")
    compute_s: float = Field(2.0, ge=0, description="Tc, seconds of local training")
    samples: float = Field(1.0, gt=0, description="D, rows it owns; its weight is D over all")
    latency_s: float | None = Field(
        None, gt=0, description="with queues = each: mean seconds until this client ends; that of the file if absent"
    )


class DrawSpec(InstanceSpec):
    """Clients drawn at random instead of listed."""

    num_clients: int = Field(ge=1, le=1000, description="N")
    distance_m: tuple[float, float] = Field((50.0, 500.0), description="smallest and largest, uniform")
    compute_s: tuple[float, float] = Field((1.0, 6.0), description="smallest and largest, uniform")
    power_w: float = Field(0.1, gt=0, description="p of all")

    @model_validator(mode="after")
    def _ordered(self) -> DrawSpec:
        if not 0 < self.distance_m[0] <= self.distance_m[1] or not 0 <= self.compute_s[0] <= self.compute_s[1]:
            raise ValueError("draw: a range runs from its smaller to its larger end; swap the two, distances positive")
        return self


class UpdateSpec(InstanceSpec):
    """The update that travels."""

    values_per_rank: int = Field(36_864, ge=1, description="inputs and outputs of all adapted layers, together")
    num_modules: int = Field(24, ge=1, description="adapted layers; each sends a bitmap of one bit a rank")
    value_bit: int = Field(16, ge=1, le=64, description="q, bits of a value on air")
    spectrum: tuple[float, ...] | None = Field(
        None, description="singular values of a pilot update, falling; decay^i if absent"
    )
    decay: float = Field(0.8, gt=0, lt=1, description="ratio of a singular value to the one before")
    least_keep: float | None = Field(None, ge=0, le=1, description="kappa_min; one rank, 1 / r, if absent")

    @model_validator(mode="after")
    def _fits(self) -> UpdateSpec:
        if self.spectrum is not None and (
            not self.spectrum
            or min(self.spectrum) < 0
            or max(self.spectrum) == 0
            or list(self.spectrum) != sorted(self.spectrum, reverse=True)
        ):
            raise ValueError("update.spectrum: singular values fall from a positive one to at least 0; sort them")
        return self


class OfflineSpec(InstanceSpec):
    """The offline stage: which rank."""

    ranks: tuple[int, ...] = Field((2, 4, 8, 16, 32), min_length=1, description="structural ranks to weigh")
    covariance: tuple[float, ...] | None = Field(
        None, description="phi_cov of each rank, from pilot clients; 0.002 r if absent"
    )
    costs: tuple[float, float, float] = Field(
        (1.0, 1.0, 1.0), description="c_1, c_2, c_3 of rank residual, sparsification, covariance"
    )
    samples: int = Field(64, ge=1, le=10_000, description="channels drawn to estimate the mean latency")

    @model_validator(mode="after")
    def _fits(self) -> OfflineSpec:
        if min(self.ranks) < 1:
            raise ValueError(f"offline.ranks: {min(self.ranks)} is no rank; write 1 or more")
        if self.covariance is not None and len(self.covariance) != len(self.ranks):
            raise ValueError(
                f"offline.covariance: {len(self.covariance)} numbers for {len(self.ranks)} ranks; give one for each"
            )
        return self


class BoundSpec(InstanceSpec):
    """Constants of the convergence bound (13)."""

    smoothness: float = Field(1.0, gt=0, description="L")
    step: float = Field(1.0, gt=0, description="eta, at most 1 / L")
    initial_gap: float = Field(1.0, ge=0, description="F_0 - F*")
    variance: float = Field(0.0, ge=0, description="sigma^2 of minibatches")
    update_square: float = Field(1.0, ge=0, description="||E||^2 of a whole update, which shares of energy multiply")
