"""Runs that several system tests look at."""

from __future__ import annotations

import json

import pytest

from testbed.engine.experiment import RunResult
from tests.system import small_runs


@pytest.fixture(scope="session", autouse=True)
def extract(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A hundred passages of the built-in data on disk, so that no node has to read numpy and scipy for them."""
    from nodes.corpus import shifted

    folder = tmp_path_factory.mktemp("extract")
    for split, passages, count in zip(("train", "test"), shifted(), (120, 30), strict=True):
        rows = [passage.row() for passage in passages[:: len(passages) // count][:count]]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small_runs.CHANGES.append(f"data.source={folder}")


@pytest.fixture(scope="session")
def fedavg_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return small_runs.run(small_runs.small("fedavg", *small_runs.SGD), tmp_path_factory.mktemp("fedavg"))


@pytest.fixture(scope="session")
def ota_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    # nodes in a process of their own: many runs with nodes in the test's process are compared with it
    return small_runs.run(small_runs.small("ota-fedavg"), tmp_path_factory.mktemp("ota"), node_processes=1)


@pytest.fixture(scope="session")
def emulated_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    out = tmp_path_factory.mktemp("emulated")
    return small_runs.run(small_runs.small("ota-fedavg"), out, backend="emulated", record_wire=True)
