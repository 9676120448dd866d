"""Small real runs, shared by the system tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.engine.config import Loaded, load_experiment
from testbed.engine.experiment import RunResult, run_experiment

SMALL = (
    "rounds=3",
    "bench.nodes=[{count=3}]",
    "training.local_steps=2",
    "training.batch_size=4",
    "training.sequence_length=64",
    "data.max_train=120",
    "data.max_test=30",
    "lora.rank=4",
)


def small(scheme: str = "fedavg", *changes: str, seed: int = 1) -> Loaded:
    """The quickstart, shrunk: three nodes, three rounds, two steps each."""
    return load_experiment("quickstart", [f"scheme={{name='{scheme}'}}", *SMALL, *changes], seed)


def run(loaded: Loaded, out: Path, **options: Any) -> RunResult:
    """Run it on the simulated backend, by default with all nodes in one process."""
    options = {"node_processes": 1, **options}
    return run_experiment(loaded.spec, loaded.scheme, loaded.bench, backend="sim", out=out, **options)


def small_arguments(*changes: str) -> list[str]:
    """The same shrinking for the command line."""
    arguments: Sequence[str] = [*SMALL, *changes]
    return [word for change in arguments for word in ("--set", change)]


@pytest.fixture(scope="session")
def fedavg_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(small("fedavg"), tmp_path_factory.mktemp("fedavg"))


@pytest.fixture(scope="session")
def ota_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(small("ota-fedavg"), tmp_path_factory.mktemp("ota"))
