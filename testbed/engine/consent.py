"""What a real bench would do, in words, and the consent that it takes."""

from __future__ import annotations

from typing import Any

from testbed.core.backends import backend as backend_of
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.scheme import Scheme
from testbed.engine.config import ExperimentSpec
from testbed.engine.dry import dry_experiment


def check_consent(backend: str, yes_transmit: bool) -> None:
    """Raises ConfigError where a backend really moves and radiates and nobody said that it may."""
    if backend_of(backend).radiates and not yes_transmit:
        raise ConfigError(
            f"the backend {backend} moves antennas and radiates, and nobody said that it may",
            key="--yes-transmit",
            remedy="see that the band is free and nobody is in the way of the stages, then add --yes-transmit",
        )


def announcement(experiment: ExperimentSpec, scheme: Scheme[Any], bench: BenchSpec) -> str:
    """What a run on real devices is going to do: band, power, air time, travel, from a dry run.

    Raises:
        LimitError: the first order that the bench would refuse.
        ConfigError: the bench lacks what the scheme needs, or the model's size cannot be known here.
    """
    steps = dry_experiment(experiment, scheme, bench)
    half_mhz = bench.sample_rate_hz / 2e6
    carrier_mhz = bench.carrier_hz / 1e6
    strongest = max(bench.boards, key=lambda board: board.max_power_dbm)
    moving = sum(antenna.stage is not None for antenna in bench.array.antennas)
    air_s = sum(step.air_time_s for step in steps)
    travel_m = sum(step.travel_m for step in steps)
    lines = [
        f"{experiment.name} on {bench.name}: {experiment.rounds} rounds of {experiment.scheme.name}",
        f"radiates: {len(bench.boards)} transmitters of up to {strongest.max_power_dbm:g} dBm each, "
        f"{carrier_mhz - half_mhz:g} to {carrier_mhz + half_mhz:g} MHz, about {air_s:.3g} s of air time",
    ]
    if moving:
        speed = max(antenna.stage.speed_m_s for antenna in bench.array.antennas if antenna.stage is not None)
        stages = "1 stage" if moving == 1 else f"{moving} stages"
        lines.append(f"moves:    {stages}, homed first where needed, then {travel_m:.3g} m in all, at {speed:g} m/s")
    lines.append(f"stop it:  testbed stop {experiment.bench}")
    return "\n".join(lines)
