"""The emergency stop: mutes every radio and holds every stage of a bench past the program that runs it.

The dead men of the runs that hold the bench, found through the leases, mute and hold what they guard even where their
owner is frozen; every radio of the bench file is muted over a connection of its own at the same time; then each stage
that no dead man held is told over its port.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from drivers.dead_man import GRBL_HOLD, ask_to_stop
from drivers.grbl_line import BAUD, RESET, GrblLine
from drivers.leases import Grant, Leases, Resource, bench_resources, stage
from drivers.silencer import Silencer
from drivers.transport import LiveWire, Wire
from drivers.watchdog import hold, side_by_side
from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError, DeviceError, StageFault
from testbed.core.hardware import StagePortSpec

ZABER_HOLD = b"/stop\n"
"""Tells every Zaber device of a port to stop (Zaber ASCII protocol, command stop)."""
_BOUND_S = 5.0
_PATIENCE_S = 0.7
"""How long stages wait for the dead men's answers."""


_NOT_DEVICES = ("what the dead man", "a run whose")


@dataclass(frozen=True)
class StopReport:
    """What an emergency stop did.

    Attributes:
        done: what is mute or still now.
        failed: what could not be reached -> why.
    """

    done: tuple[str, ...]
    failed: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether everything was reached."""
        return not self.failed

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "complete": self.complete}

    def lines(self) -> list[str]:
        """For people, the worst first."""
        if not self.done and not self.failed:
            return ["nothing to stop: the bench file names no radio uri and no stage port, and no run holds the bench"]
        off = "; switch its power off"
        failed = [
            f"NOT STOPPED  {name}: {why}{'' if name.startswith(_NOT_DEVICES) else off}"
            for name, why in self.failed.items()
        ]
        return [*failed, *(f"stopped      {name}" for name in self.done)]


def stop_bench(
    bench: BenchSpec,
    *,
    leases: Leases | None = None,
    known: Sequence[Grant] | None = None,
    wire: Wire | None = None,
) -> StopReport:
    """Stop all of a bench, in five seconds at most.

    Args:
        bench: whose radios and stages.
        leases: where the runs that hold it are written down.
        known: these grants instead of those that are written down now.
        wire: how ports of stages are opened.

    Returns:
        what was done and what was not.
    """
    done: list[str] = []
    failed: dict[str, str] = {}
    broken: list[DeviceError] = []
    # name that a run gives to a stage -> what that run has leased
    held: dict[str, set[Resource]] = {}
    tasks: dict[str, Callable[[], None]] = {}
    answered: list[threading.Event] = []
    for grant in _grants(bench, (leases or Leases()).known(broken) if known is None else known):
        for path in grant.watchdogs:
            name = f"what the dead man of {grant.owner}'s run (process {grant.pid} on {grant.host}) guards"
            if not grant.is_here:
                failed[name] = f"it runs on another machine: log in to {grant.host} and stop the bench there too"
            elif os.path.exists(path):
                answered.append(threading.Event())
                tasks[f"{name} ({path})"] = partial(_strike, path, grant, done, held, failed, answered[-1])
    for uri in _uris(bench):
        tasks[f"radio {uri}"] = partial(_mute, uri, done)
    for name, device in _stages(bench).items():
        if device.port is not None:
            tasks[f"stage {device.port}"] = partial(_hold, name, device, wire or LiveWire(), done, held, answered)
    failed |= _in_words(side_by_side(tasks, timeout_s=_BOUND_S))
    failed |= {f"a run whose lease cannot be read ({error.file})": error.message for error in broken}
    return StopReport(tuple(dict.fromkeys(done)), failed)


def _grants(bench: BenchSpec, known: Sequence[Grant]) -> list[Grant]:
    """Grants of runs on this bench, or on one that shares a radio or a stage with it; also those that have ended."""
    ours = {each for each in bench_resources(bench) if each.kind != "frequency"}
    return [grant for grant in known if grant.bench == bench.name or ours & set(grant.resources)]


def _uris(bench: BenchSpec) -> tuple[str, ...]:
    radios = [*bench.array.radios, *(board.radio for board in bench.boards)]
    return tuple(dict.fromkeys(radio.uri for radio in radios if radio.uri))


def _stages(bench: BenchSpec) -> dict[str, StagePortSpec]:
    """Stages by the names that runs give them."""
    antennas = enumerate(bench.array.antennas)
    return {f"stage-{index}": each.stage.device for index, each in antennas if each.stage is not None}


def _strike(
    path: str,
    grant: Grant,
    done: list[str],
    held: dict[str, set[Resource]],
    failed: dict[str, str],
    answered: threading.Event,
) -> None:
    try:
        report = ask_to_stop(path)
        for name in report["held"]:
            held.setdefault(name, set()).update(grant.resources)
    except DeviceError:
        if grant.ended(time.time()):
            return  # both have died; what they left is reached directly
        raise
    finally:
        answered.set()
    by = f"by the dead man of process {grant.pid}"
    done += [f"{name} ({by})" for name in (*report["muted"], *report["held"])]
    failed.update({f"{name} ({by})": why for name, why in report["failed"].items()})


def _mute(uri: str, done: list[str]) -> None:
    silencer = Silencer(uri)
    try:
        silencer.mute()
    finally:
        silencer.close()
    done.append(f"radio {uri}")


def _hold(
    name: str,
    device: StagePortSpec,
    wire: Wire,
    done: list[str],
    held: dict[str, set[Resource]],
    answered: Sequence[threading.Event],
) -> None:
    """Hold a stage, unless a dead man soon says that he did: his way leaves the run's port alone."""
    assert device.port is not None
    deadline_s = time.monotonic() + _PATIENCE_S
    for event in answered:
        event.wait(max(0.0, deadline_s - time.monotonic()))
    if stage(device.port) in held.get(name, ()):
        return
    try:
        transport = wire.serial(device.port, baud=BAUD)
    except DeviceError:
        if not _hold_unasked(device):
            raise
        done.append(f"stage {device.port} (past the program that holds its port; home it again)")
        return
    try:
        if device.driver == "zaber":
            transport.send(ZABER_HOLD)
        else:
            transport.send(GRBL_HOLD)
            try:
                GrblLine(transport).status(attempts=1)
            except StageFault:
                transport.send(RESET)  # it says nothing: while it homes it hears nothing else
    finally:
        transport.close()
    done.append(f"stage {device.port}")


def _hold_unasked(device: StagePortSpec) -> bool:
    """Stop a stage over a serial port that another program has locked; false where there is no such port."""
    if device.port is None or not device.port.startswith("/"):
        return False
    try:
        descriptor = os.open(device.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not os.isatty(descriptor):
            return False
        # nobody can be asked whether it homes, when it hears nothing but a reset
        hold(descriptor, ZABER_HOLD if device.driver == "zaber" else GRBL_HOLD + RESET)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _in_words(failures: dict[str, Exception]) -> dict[str, str]:
    return {
        name: error.headline if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        for name, error in failures.items()
    }
