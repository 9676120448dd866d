"""The tables of an MA-OTA instance file."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from testbed.problems.instance import InstanceSpec


class AnyClient(InstanceSpec):
    """What holds for every client that does not say otherwise."""

    num_samples: int = Field(1000, ge=1, description="D_m, samples a client holds: its weight and its largest batch")
    update_std: float | None = Field(
        None, gt=0, description="nu_m, standard deviation of an update's values; sqrt(alpha1 / num_values) if absent"
    )
    max_power_w: float = Field(0.1, gt=0, description="P_m, largest transmit power")
    path_gain: float = Field(
        1.0, gt=0, description="E|h_m|^2 of a drawn channel, linear; channels given by paths hold it in their gains"
    )
    cycles_per_sample: float = Field(1e9, gt=0, description="C_m, CPU cycles of one sample's gradient; measure it")
    capacitance: float = Field(1e-28, ge=0, description="kappa_m, joules of a cycle per Hz^2 of the CPU's frequency")
    max_cpu_hz: float = Field(2e9, gt=0, description="highest CPU frequency")
    max_energy_j: float | None = Field(
        None, gt=0, description="most a client may spend in a round, computing and sending; no limit if absent"
    )
    downlink_noise_w: float = Field(1e-13, gt=0, description="noise power at the client, for the downlink's beam")


class OneClient(InstanceSpec):
    """One client: its channel, and what differs from `[client]`."""

    paths: tuple[tuple[float, ...], ...] | None = Field(
        None,
        min_length=1,
        description="plane waves [ux, uy, re, im]: direction cosines along the array's axes, complex gain;"
        " a fifth number is the cosine of departure along the client's own array. Drawn if absent",
    )
    num_samples: int | None = Field(None, ge=1, description="as in [client]")
    update_std: float | None = Field(None, gt=0, description="as in [client]")
    max_power_w: float | None = Field(None, gt=0, description="as in [client]")
    path_gain: float | None = Field(None, gt=0, description="as in [client]")
    cycles_per_sample: float | None = Field(None, gt=0, description="as in [client]")
    capacitance: float | None = Field(None, ge=0, description="as in [client]")
    max_cpu_hz: float | None = Field(None, gt=0, description="as in [client]")
    max_energy_j: float | None = Field(None, gt=0, description="as in [client]")
    downlink_noise_w: float | None = Field(None, gt=0, description="as in [client]")

    @model_validator(mode="after")
    def _waves(self) -> OneClient:
        for row, path in enumerate(self.paths or ()):
            if len(path) not in (4, 5):
                raise ValueError(f"paths: wave {row} has {len(path)} numbers; write [ux, uy, re, im]")
            if math.hypot(path[0], path[1]) > 1 + 1e-6 or (len(path) == 5 and abs(path[4]) > 1 + 1e-6):
                raise ValueError(f"paths: wave {row} has direction cosines outside the unit circle; scale them to it")
        return self


class DrawnChannel(InstanceSpec):
    """Channels drawn from the instance's seed: waves from the half space in front of the array."""

    num_clients: int = Field(10, ge=1, description="M; where [[clients]] are listed, as many as those")
    num_paths: int = Field(6, ge=1, description="L, plane waves of each client")
    rician_k: float = Field(0.0, ge=0, description="power of the first wave over that of all others, linear")


class RoundsGrid(InstanceSpec):
    """Numbers of rounds that are tried, every combination of them."""

    fine_tuning: tuple[int, int] = Field((1, 60), description="T, lowest and highest number of federated rounds")
    pre_training: tuple[int, int] = Field((0, 0), description="N_p, lowest and highest number of steps at the server")
    pretraining_batches: tuple[int, ...] = Field((1,), min_length=1, description="b_0, batches of pre-training to try")

    @model_validator(mode="after")
    def _ordered(self) -> RoundsGrid:
        for name, low in (("fine_tuning", 1), ("pre_training", 0)):
            first, last = getattr(self, name)
            if not low <= first <= last:
                raise ValueError(f"{name}: [{first}, {last}] is no range from {low} up; write [lowest, highest]")
        if min(self.pretraining_batches) < 1:
            raise ValueError("pretraining_batches: a batch holds at least one sample; drop what is below 1")
        return self


class Limits(InstanceSpec):
    """What everything together may take."""

    latency_s: float = Field(gt=0, description="T_max, seconds of pre-training and all rounds")
    energy_j: float | None = Field(None, gt=0, description="E_max of server, motors and all clients; none if absent")


class ServerSpec(InstanceSpec):
    """What pre-training costs."""

    cycles_per_sample: float = Field(1e9, gt=0, description="C_0")
    capacitance: float = Field(1e-28, ge=0, description="kappa_0, joules of a cycle per Hz^2")
    cpu_hz: float = Field(3e9, gt=0, description="f_0")


class DownlinkSpec(InstanceSpec):
    """How the adapter comes back."""

    bits_per_value: float = Field(16.0, gt=0, description="bits of one value of the adapter")
    rate_bit_s: float | None = Field(
        None, gt=0, description="rate where no beam is decided; the downlink takes no time if absent"
    )
    bandwidth_hz: float = Field(1e6, gt=0, description="B of the broadcast by a beam")
    power_w: float = Field(1.0, gt=0, description="power of the base station")


class MotionSpec(InstanceSpec):
    """What moving the antennas takes; without this table it is free."""

    speed_m_s: float = Field(0.1, gt=0, description="v of a stage")
    motor_power_w: float = Field(0.0, ge=0, description="power of one antenna's motors while they run")
    every_round: bool = Field(False, description="antennas travel as far in every round, not in the first alone")
