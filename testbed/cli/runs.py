"""Commands about runs: run, dry, replay, resume, show."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from testbed.cli.progress import RunProgress
    from testbed.engine.config import Loaded
    from testbed.engine.experiment import RunResult

Experiment = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="a preset of `testbed presets`, or a TOML file")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, or a folder of runs: the newest of them")]
Bench = Annotated[str | None, typer.Option(metavar="FILE", help="bench preset or file, instead of the experiment's")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="instead of the experiment's")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="change a key: training.local_steps=20, bench.carrier_hz=2.45e9; may be repeated",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else, on standard output")]
Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="processes that share the simulated nodes; default: CPU cores; 0: nodes are started by hand",
    ),
]


YesTransmit = Annotated[
    bool, typer.Option("--yes-transmit", help="lab: antennas may really move, transmitters may really radiate")
]
StealLeases = Annotated[
    bool,
    typer.Option("--steal-leases", help="take radios, stages and frequencies from whoever holds them, on record"),
]


def run(
    experiment: Experiment,
    backend: Annotated[str, typer.Option(metavar="NAME", help="who plays the devices: sim, emulated or lab")] = "sim",
    bench: Bench = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the run's folder is made inside")] = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    node_processes: Processes = None,
    capture: Annotated[
        bool, typer.Option("--capture", help="keep what the receiver hears, as SigMF in the run")
    ] = False,
    playback: Annotated[
        Path | None, typer.Option(metavar="DIR", help="SigMF captures that the receiver hears instead of the air")
    ] = None,
    record_wire: Annotated[
        bool, typer.Option("--record-wire", help="keep every byte between drivers and devices in the run")
    ] = False,
    yes_transmit: YesTransmit = False,
    steal_leases: StealLeases = False,
    as_json: Json = False,
) -> None:
    """Run an experiment and print its table."""
    from testbed.core.backends import backend as backend_of
    from testbed.engine.config import require_local_files

    radiates = backend_of(backend).radiates
    loaded = _load(experiment, bench, seed, set_)
    require_local_files(loaded)
    if radiates:
        _announce(loaded)

    def go(progress: RunProgress) -> RunResult:
        from testbed.engine.experiment import run_experiment

        return run_experiment(
            loaded.spec,
            loaded.scheme,
            loaded.bench,
            backend=backend,
            out=out,
            node_processes=node_processes,
            capture=capture,
            playback=playback,
            record_wire=record_wire,
            yes_transmit=yes_transmit,
            steal_leases=steal_leases,
            observer=progress,
        )

    _finish(_watched(go, as_json), as_json)


def dry(
    experiment: Experiment,
    bench: Bench = None,
    seed: Seed = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print what an experiment would ask of the bench, and refuse what breaks a limit. Nothing moves or radiates."""
    loaded = _load(experiment, bench, seed, set_)
    from testbed.engine.dry import dry_experiment
    from testbed.report.orders_table import render_orders

    steps = [asdict(step) for step in dry_experiment(loaded.spec, loaded.scheme, loaded.bench)]
    if as_json:
        _print_json({"name": loaded.spec.name, "bench": loaded.bench.name, "steps": steps})
    else:
        print_table(render_orders(steps))


def replay(run: Run, as_json: Json = False) -> None:
    """Think a recorded run through again, without devices; exit code 6 where the scheme now decides otherwise."""

    def go(progress: RunProgress) -> RunResult:
        from testbed.engine.experiment import replay_experiment

        return replay_experiment(run_folder(run), observer=progress)

    result = _watched(go, as_json)
    _finish(result, as_json, last=f"every decision is the recorded one: {result.folder}")


def resume(
    run: Run,
    node_processes: Processes = None,
    yes_transmit: YesTransmit = False,
    steal_leases: StealLeases = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was cut off, after its last complete round."""

    def go(progress: RunProgress) -> RunResult:
        from testbed.engine.experiment import resume_experiment

        return resume_experiment(
            run_folder(run),
            node_processes=node_processes,
            yes_transmit=yes_transmit,
            steal_leases=steal_leases,
            observer=progress,
        )

    _finish(_watched(go, as_json), as_json)


def show(
    run: Run,
    against: Annotated[Path | None, typer.Option(metavar="RUN", help="another run to compare with")] = None,
    as_json: Json = False,
) -> None:
    """Print a run's table, or its comparison with another run."""
    from testbed.engine.recorder import read_json, read_rows
    from testbed.report.comparison import Recorded, differences, render_comparison
    from testbed.report.table import render_plain

    folder = run_folder(run)
    finished = (folder / "summary.json").is_file()
    summary = read_json(folder, "summary.json") if finished else {"status": "running, or cut off"}
    rows = read_rows(folder)
    if against is None:
        if as_json:
            _print_json({"folder": str(folder), "summary": summary, "rounds": rows})
            return
        if rows:
            print_table(render_plain(rows))
        _say_where(folder, summary)
        return
    other = run_folder(against)
    other_summary = read_json(other, "summary.json")
    labels = [str(one.get("name") or path.name) for one, path in ((summary, folder), (other_summary, other))]
    if labels[0] == labels[1]:
        labels = [folder.name, other.name]
    pair = Recorded(labels[0], summary, rows), Recorded(labels[1], other_summary, read_rows(other))
    if as_json:
        compared = [
            {
                "name": line.name,
                "unit": line.unit,
                "run": line.one,
                "against": line.other,
                "difference": line.difference,
            }
            for line in differences(*pair)
        ]
        _print_json({"run": str(folder), "against": str(other), "comparison": compared})
    else:
        print_table(render_comparison(*pair))
        _say_where(folder, summary)
        _say_where(other, other_summary)


def run_folder(path: Path) -> Path:
    """The run's folder; of a folder of runs, the newest.

    Raises:
        ConfigError: there is no run.
    """
    from testbed.core.errors import ConfigError

    if (path / "start.json").is_file():
        return path
    runs = sorted(path.glob("*/start.json"), key=lambda start: start.stat().st_mtime_ns) if path.is_dir() else []
    if not runs:
        raise ConfigError(
            "there is no run here" if path.is_dir() else "there is no such folder",
            file=path,
            remedy="give the folder of a run, as `testbed run` prints it",
        )
    return runs[-1].parent


def print_table(text: str) -> None:
    """A table as it is, its heading bold where the output is a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        sys.stdout.write(text + "\n")
        return
    lines = text.split("\n")
    rule = next((index for index, line in enumerate(lines) if line.startswith("---")), 0)
    with console.capture() as captured:
        for index, line in enumerate(lines):
            console.print(Text(line, style="bold" if index < rule else ""), soft_wrap=True)
    sys.stdout.write(captured.get())


def _load(experiment: str, bench: str | None, seed: int | None, changes: list[str] | None) -> Loaded:
    from testbed.engine.config import load_experiment

    return load_experiment(experiment, changes or (), seed, bench)


def _announce(loaded: Loaded) -> None:
    """What a run on real devices is going to do, before anything is opened."""
    from testbed.engine.consent import announcement

    print(announcement(loaded.spec, loaded.scheme, loaded.bench), file=sys.stderr)


def _watched(go: Callable[[RunProgress], RunResult], as_json: bool) -> RunResult:
    """Run under a progress display; an error that ends a run says where the run is and how it goes on."""
    from testbed.cli.progress import RunProgress

    progress = RunProgress(quiet=as_json)
    try:
        with progress:
            return go(progress)
    except (Exception, KeyboardInterrupt) as error:
        if progress.folder is not None and (progress.folder / "rounds.jsonl").is_file():
            error.add_note(f"run folder  {progress.folder}\nto go on    testbed resume {progress.folder}")
        raise


def _finish(result: RunResult, as_json: bool, last: str | None = None) -> None:
    from testbed.report.table import render_plain

    if as_json:
        _print_json({"folder": str(result.folder), "summary": result.summary, "rounds": result.rounds})
        return
    print_table(render_plain(result.rounds))
    if last is None:
        _say_where(result.folder, result.summary)
    else:
        print(last)


def _say_where(folder: Path, summary: dict[str, Any]) -> None:
    print(f"{summary.get('status')}: {folder}")
    if summary.get("adapter"):
        print(f"adapter: {folder / summary['adapter']}")


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2, allow_nan=False, default=str))
