"""The quickstart, shrunk until a whole run takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbed.engine.config import Loaded, load_experiment
from testbed.engine.experiment import RunResult, resume_experiment, run_experiment
from testbed.engine.recorder import read_json, read_steps
from tests.system.node_threads import nodes_here

CHANGES = [
    "rounds=3",
    "bench.nodes=[{count=3}]",
    "training.local_steps=2",
    "training.batch_size=4",
    "training.sequence_length=64",
    "lora.rank=4",
]
"""As given to `--set`; the session's extract of the built-in data is appended."""


SGD = ("training.optimizer=sgd", "training.learning_rate=0.3")
"""Linear in the gradient: rounding stays rounding. AdamW divides small gradients by their size, rounding included."""


def small(scheme: str = "fedavg", *changes: str, seed: int = 1) -> Loaded:
    """Three nodes, three rounds, two steps each."""
    return load_experiment("quickstart", [f"scheme={{name='{scheme}'}}", *CHANGES, *changes], seed)


def run(loaded: Loaded, out: Path, **options: Any) -> RunResult:
    """Run it, by default on the simulated backend with all nodes in this process."""
    options = {"backend": "sim", **options}
    if options["backend"] != "sim" or "node_processes" in options:
        return run_experiment(loaded.spec, loaded.scheme, loaded.bench, out=out, **{"node_processes": 1, **options})
    with nodes_here():
        return run_experiment(loaded.spec, loaded.scheme, loaded.bench, out=out, **options)


def resume(folder: Path) -> RunResult:
    """Resume it, with nodes as `run` has them."""
    if read_json(folder, "start.json")["backend"] != "sim":
        return resume_experiment(folder, node_processes=1)
    with nodes_here():
        return resume_experiment(folder)


def cut(folder: Path, last: int) -> None:
    """Cut a run off in the round after `last`, with a half-written line, as a power cut leaves it."""
    (folder / "summary.json").unlink()
    kept = sum(step.round_index <= last for step in read_steps(folder)) + 2
    lines = (folder / "steps.jsonl").read_bytes().split(b"\n")
    (folder / "steps.jsonl").write_bytes(b"\n".join(lines[:kept]) + b"\n" + lines[kept][:40])
    rows = (folder / "rounds.jsonl").read_bytes().split(b"\n")
    (folder / "rounds.jsonl").write_bytes(b"\n".join(rows[: last + 1]) + b"\n")


def small_arguments(*changes: str) -> list[str]:
    """The same shrinking for the command line."""
    return [word for change in (*CHANGES, *changes) for word in ("--set", change)]
