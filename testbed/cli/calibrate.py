"""The command `testbed calibrate`: measure, and look at what was measured."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from testbed.cli.runs import Json, Processes, StealLeases, YesTransmit

if TYPE_CHECKING:
    from testbed.cli.calibration_progress import CalibrationProgress

_CALIBRATE = "calibration.session:calibrate"
_RESUME = "calibration.session:resume"
_ANNOUNCE = "calibration.begun:announcement"
_ROUTINES = "calibration.listing:routines"
_SHOW = "calibration.listing:show"
_DIFFERENCE = "calibration.listing:difference"
_HISTORY = "calibration.listing:history"
_LINES = "calibration.shown:profile_lines"


_NAME = "NAME"
"""As the help of the group shows the command that calibrates."""


class _AnyName(TyperGroup):
    """Every word that is no sub-command is the name of a calibration."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args and args[0] not in set(self.commands) - {_NAME} and not args[0].startswith("-"):
            return "", self.commands[_NAME], args
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_AnyName,
    help="Measure what radios, stages and nodes really do, and keep it as a profile.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(_NAME)
def calibrate(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="one of `testbed calibrate list`, all, or module:Class of your own")
    ],
    bench: Annotated[str | None, typer.Option(metavar="FILE", help="bench preset or file")] = None,
    backend: Annotated[str, typer.Option(metavar="NAME", help="who plays the devices: sim, emulated or lab")] = "sim",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="of the routine; with all ROUTINE.OPTION=VALUE; may be repeated"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="of the simulated world, and of the choice of steps")
    ] = 0,
    resume: Annotated[
        str | None, typer.Option(metavar="ID", help="go on with a calibration that was cut off, and what follows it")
    ] = None,
    node_processes: Processes = None,
    yes_transmit: YesTransmit = False,
    steal_leases: StealLeases = False,
    as_json: Json = False,
) -> None:
    """Calibrate: carrier, iq, gain, ... or all in the right order. Ctrl-Z holds and goes on, Ctrl-C ends."""
    from testbed.cli.calibration_progress import CalibrationProgress
    from testbed.core.backends import backend as backend_of
    from testbed.core.backends import resolve
    from testbed.core.errors import ConfigError

    common = {"node_processes": node_processes, "yes_transmit": yes_transmit, "steal_leases": steal_leases}
    if resume is not None:
        if bench is not None or set_ or seed:
            raise ConfigError(
                "a calibration that goes on keeps its bench, options and seed",
                key="--resume",
                remedy=f"leave the other options out: testbed calibrate {name} --resume {resume}",
            )
        with CalibrationProgress(quiet=as_json) as progress:
            _finish(resolve(_RESUME)(resume, name=name, watcher=progress, **common), progress, as_json)
        return
    if bench is None:
        raise ConfigError(
            "it does not say which bench", key="--bench", remedy="give --bench FILE; `testbed presets` lists benches"
        )
    from testbed.engine.config import load_bench

    loaded, changes = load_bench(bench), set_ or []
    if backend_of(backend).radiates:
        print(resolve(_ANNOUNCE)(name, loaded, changes, bench), file=sys.stderr)
    with CalibrationProgress(quiet=as_json) as progress:
        outcome = resolve(_CALIBRATE)(
            name, loaded, backend=backend, settings=changes, seed=seed, watcher=progress, **common
        )
        _finish(outcome, progress, as_json)


@app.command("show")
def show(
    bench: Annotated[
        str | None, typer.Argument(metavar="[BENCH|ID]", help="bench preset, file or name; or an id")
    ] = None,
    routine: Annotated[str | None, typer.Argument(metavar="[ROUTINE|ID]", help="its newest profile, or that")] = None,
    as_json: Json = False,
) -> None:
    """Print the newest profiles, or one of them whole."""
    from testbed.core.backends import resolve

    _print(resolve(_SHOW)(bench, routine), as_json)


@app.command("diff")
def diff(
    one: Annotated[str, typer.Argument(metavar="ID")],
    other: Annotated[str, typer.Argument(metavar="ID")],
    as_json: Json = False,
) -> None:
    """Print two profiles beside each other, and how far their values are apart in standard deviations."""
    from testbed.core.backends import resolve

    _print(resolve(_DIFFERENCE)(one, other), as_json)


@app.command("history")
def history(
    bench: Annotated[str, typer.Argument(metavar="BENCH", help="bench preset, file or name")],
    routine: Annotated[str, typer.Argument(metavar="ROUTINE")],
    as_json: Json = False,
) -> None:
    """Print all profiles of one routine, and how its values went."""
    from testbed.core.backends import resolve

    _print(resolve(_HISTORY)(bench, routine), as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the calibrations with their options."""
    from testbed.core.backends import resolve

    _print(resolve(_ROUTINES)(), as_json)


def _print(listing: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(listing.content, indent=2, allow_nan=False))
    else:
        print("\n".join(listing.lines))


def _finish(outcome: Any, progress: CalibrationProgress, as_json: bool) -> None:
    """Print what came out; a calibration that failed ends the command with code 4."""
    from datetime import UTC, datetime

    from testbed.core.backends import resolve

    progress.close()
    if as_json:
        profiles = [
            {"folder": str(folder), "profile": profile.model_dump(mode="json")}
            for profile, folder in zip(outcome.profiles, outcome.folders, strict=True)
        ]
        print(json.dumps({"profiles": profiles, "skipped": dict(outcome.skipped)}, indent=2, allow_nan=False))
    else:
        for profile, folder in zip(outcome.profiles, outcome.folders, strict=True):
            print("\n".join(resolve(_LINES)(profile, datetime.now(UTC))))
            print(f"\nreport: {folder / 'report.html'}\n")
        for name, why in outcome.skipped.items():
            print(f"skipped {name}: {why}", file=sys.stderr)
        for profile, folder in zip(outcome.profiles, outcome.folders, strict=True):
            if not profile.passed:
                print(f"failed {profile.routine}: {profile.why}\nraw data are kept: {folder}", file=sys.stderr)
    if not outcome.passed:
        raise typer.Exit(4)
