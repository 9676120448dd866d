"""What was asked of a calibration: written down when it begins, so that it can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from calibration.names import ALL, names_of, routine_named
from calibration.routine import Routine
from calibration.store import START, Store
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.specs import Spec
from testbed.engine.config import check_options


class Plan(BaseModel):
    """One calibration that is to follow: its name or `module:Class`, and its options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    options: dict[str, Any] = {}


class Begun(Plan):
    """The content of `start.json`.

    Attributes:
        id: of the calibration.
        bench: the whole bench file.
        serials: radio -> serial number.
        clock_s: the run's clock before the first step.
        positions_m: where the antennas were then, array frame, shape [num_antennas, 2].
        then: what follows when this one is done.
    """

    format: Literal[1] = 1
    id: str
    bench: dict[str, Any]
    backend: str
    seed: int
    serials: dict[str, str]
    clock_s: float
    positions_m: list[list[float]]
    then: tuple[Plan, ...] = ()
    versions: dict[str, str] = {}
    commit: str = "unknown"


@dataclass(frozen=True)
class Job:
    """A routine with checked options.

    Attributes:
        target: how it is found again.
    """

    target: str
    routine: Routine
    options: Spec

    @property
    def name(self) -> str:
        """As folders and profiles are named."""
        return self.routine.name

    @property
    def plain_options(self) -> dict[str, Any]:
        """Every option, defaults filled in, as JSON."""
        return self.options.model_dump(mode="json")

    @property
    def plan(self) -> Plan:
        """As it is written down."""
        return Plan(target=self.target, options=self.plain_options)


def jobs_for(name: str, settings: Sequence[str]) -> list[Job]:
    """The calibrations behind a name, with their options.

    Args:
        name: of a routine, `module:Class`, or `all`.
        settings: `option=value`; for `all` `routine.option=value`.

    Raises:
        ConfigError: there is no such routine or option, or a value is out of range.
    """
    names = names_of(name)
    routines = {one: routine_named(one) for one in names}
    own: dict[str, list[str]] = {one: [] for one in names}
    for setting in settings:
        if name != ALL:
            own[name].append(setting)
            continue
        routine, dot, rest = setting.partition(".")
        if routine not in own or not dot:
            raise ConfigError(
                "it does not say which calibration it is for",
                key=f"--set {setting}",
                remedy=f"write --set ROUTINE.OPTION=VALUE, ROUTINE one of {', '.join(names)}",
            )
        own[routine].append(rest)
    return [Job(one, routines[one], check_options(routines[one].Options, own[one], {})) for one in names]


def job_of(target: str, options: Mapping[str, Any]) -> Job:
    """A calibration as it was written down. Raises ConfigError where there no longer is such a routine or option."""
    routine = routine_named(target)
    try:
        return Job(target, routine, routine.Options.model_validate(options))
    except ValidationError as error:
        raise ConfigError(
            f"the options of {target} are no longer what they were: {error.errors()[0]['msg']}",
            remedy="calibrate anew",
        ) from error


def read_begun(store: Store, folder: Path) -> tuple[Begun, BenchSpec]:
    """What `start.json` says, and the bench in it. Raises ConfigError where it is damaged, or of another version."""
    try:
        begun = Begun.model_validate(store.read_json(folder, START))
        return begun, BenchSpec.model_validate(begun.bench)
    except ValidationError as error:
        raise ConfigError(
            f"this is no calibration that this version can go on with: {error.errors()[0]['msg']}",
            file=folder / START,
            remedy="calibrate anew",
        ) from error


def announcement(name: str, bench: BenchSpec, settings: Sequence[str], bench_file: str) -> str:
    """What a calibration on real devices is going to do: band, power, motion.

    Args:
        name: of a routine, or `all`.
        bench: what is calibrated.
        settings: `option=value`.
        bench_file: where the bench was read from, for the command that stops it.

    Raises:
        ConfigError: there is no such routine or option.
    """
    jobs = jobs_for(name, settings)
    half_hz = bench.sample_rate_hz / 2
    strongest = max(bench.boards, key=lambda board: board.max_power_dbm)
    moving = sum(antenna.stage is not None for antenna in bench.array.antennas)
    steps = sum(job.routine.num_steps(bench, job.options) for job in jobs)
    lines = [
        f"calibration {', '.join(job.name for job in jobs)} of {bench.name}: up to {steps} steps",
        f"may radiate: {len(bench.boards)} transmitters of up to {strongest.max_power_dbm:g} dBm each, "
        f"{(bench.carrier_hz - half_hz) / 1e6:g} to {(bench.carrier_hz + half_hz) / 1e6:g} MHz; "
        f"some routines tune within limits.frequencies_hz",
    ]
    if moving:
        lines.append(f"may move:    {moving} stages, homed first where needed")
    lines.append(f"stop it:     testbed stop {bench_file}")
    return "\n".join(lines)
