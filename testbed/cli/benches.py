"""Commands about a bench: doctor, emulate, fault, stop."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from testbed.cli.runs import Json

Bench = Annotated[str, typer.Argument(metavar="BENCH", help="a bench preset of `testbed presets`, or a TOML file")]


def doctor(
    bench: Annotated[
        str | None, typer.Argument(metavar="[BENCH]", help="its radios and stages are asked who they are")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check packages, ports, radios, stages and leases, and say what to mend. Nothing moves or radiates."""
    from testbed.core.backends import DOCTOR, resolve
    from testbed.engine.config import load_bench

    findings = resolve(DOCTOR)(None if bench is None else load_bench(bench))
    if as_json:
        print(json.dumps({"findings": [finding.as_dict() for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(finding.line())
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(4)


def emulate(
    bench: Bench,
    seed: Annotated[int, typer.Option(metavar="N", help="of the world")] = 0,
    time: Annotated[
        Literal["real", "virtual"], typer.Option(help="virtual: time passes only where a client waits for samples")
    ] = "real",
    speed: Annotated[float, typer.Option(metavar="X", min=0.01, help="emulated seconds in a real one")] = 1.0,
    start_s: Annotated[float, typer.Option("--start", metavar="S", help="emulated time at the start")] = 0.0,
    host: Annotated[str, typer.Option(metavar="HOST", help="where to listen")] = "127.0.0.1",
    first_port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65_000, help="port of the first radio, the others follow; 0: any")
    ] = 0,
    links: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="gets stage-0, stage-1, ...: links to the serial ports of the stages"),
    ] = None,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="end when standard input reaches its end")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start emulators of a bench's radios and stages, for any Pluto or GRBL software, and print where they are."""
    from testbed.core.backends import EMULATE, resolve
    from testbed.engine.config import load_bench

    def ready(places: Mapping[str, Any]) -> None:
        if as_json:
            print(json.dumps(places), flush=True)
            return
        for name, uri in places["radios"].items():
            print(f"{name:16} {uri}")
        for name, stage in places["stages"].items():
            print(f"{name:16} {stage['pty']}  {stage['url']}")
        print(f"{'control':16} {places['control']}\nCtrl-C ends the emulators", flush=True)

    resolve(EMULATE)(
        load_bench(bench),
        seed=seed,
        mode=time,
        speed=speed,
        start_s=start_s,
        host=host,
        first_port=first_port,
        links=links,
        on_ready=ready,
        end_with_parent=exit_with_parent,
    )


def fault(
    where: Annotated[
        str, typer.Argument(metavar="WHERE", help="HOST:PORT of a control port, or the folder of an emulated run")
    ],
    device: Annotated[
        str | None, typer.Argument(metavar="[DEVICE]", help="as `testbed emulate` prints it: node-00, stage-0")
    ] = None,
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="stall, disconnect, brown-out, ...")] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="how long it lasts")] = 0.0,
    value: Annotated[float, typer.Option(metavar="X", help="how much; metres of lost steps, for instance")] = 0.0,
    text: Annotated[str, typer.Option(metavar="TEXT", help="what is said instead")] = "",
    count: Annotated[int, typer.Option(metavar="N", help="how many times")] = 1,
    after: Annotated[int, typer.Option(metavar="N", help="opportunities that pass before")] = 0,
    clear: Annotated[bool, typer.Option("--clear", help="forget the faults that have yet to strike")] = False,
    as_json: Json = False,
) -> None:
    """Let something go wrong on an emulated device, or list what is going to."""
    from testbed.core.backends import EMULATOR_CONTROL, resolve

    control = resolve(EMULATOR_CONTROL)(_control_address(where))
    try:
        if clear:
            control.ask("clear")
        if device is not None:
            control.ask(
                "fault",
                device=device,
                kind=kind or "",
                seconds=seconds,
                value=value,
                text=text,
                count=count,
                after=after,
            )
        faults = control.ask("faults")["faults"]
    finally:
        control.close()
    if as_json:
        print(json.dumps({"faults": faults}, indent=2))
    for one in () if as_json else faults:
        print(f"{one['device']:12} {one['kind']:16} left: {one['count']:<4} after: {one['after']}")


def _control_address(where: str) -> str:
    """HOST:PORT, of a run's emulators if `where` is its folder."""
    from testbed.core.errors import ConfigError

    folder = Path(where)
    if not folder.is_dir():
        return where
    from testbed.cli.runs import run_folder

    file = run_folder(folder) / "emulators.json"
    if not file.is_file():
        raise ConfigError(
            "this run has no emulators", file=folder, remedy="give the folder of a run on --backend emulated"
        )
    return str(json.loads(file.read_text(encoding="utf-8"))["control"])


def stop(bench: Bench, as_json: Json = False) -> None:
    """Emergency stop: mute every radio and hold every stage of a bench at once, past a run that hangs."""
    from testbed.core.backends import EMERGENCY_STOP, resolve
    from testbed.engine.config import load_bench

    report = resolve(EMERGENCY_STOP)(load_bench(bench))
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        for line in report.lines():
            print(line, file=sys.stdout if report.complete else sys.stderr)
    if not report.complete:
        raise typer.Exit(4)


COMMANDS: dict[str, Callable[..., None]] = {"doctor": doctor, "emulate": emulate, "fault": fault, "stop": stop}
