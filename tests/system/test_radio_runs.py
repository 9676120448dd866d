"""Whole runs over the other uplinks, and over radios that are less than perfect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from testbed.core.errors import RadioFault
from testbed.engine.config import Loaded, load_experiment
from testbed.engine.experiment import RunResult, replay_experiment
from tests.system.small_runs import CHANGES, cut, resume, run, small


def votes(*changes: str) -> Loaded:
    """The preset for stock PlutoSDRs, shrunk."""
    nodes = "bench.nodes=[{count=3, max_power_dbm=0.0}]"
    return load_experiment("quickstart-votes", [*CHANGES, nodes, *changes], 1)


@pytest.fixture(scope="module")
def votes_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(votes(), tmp_path_factory.mktemp("votes"), capture=True)


def test_radios_without_coherence_learn_by_majority(votes_run: RunResult) -> None:
    assert votes_run.summary["loss_after"] < votes_run.summary["loss_before"]
    for row in votes_run.rounds[1:]:
        assert len(row["participants"]) == 3
        # three voters and a room with noise: better than a coin, not perfect
        assert 0.0 < row["vote_error"] < 0.4
        assert row["aggregation_error"] is None
        assert row["scheme"]["step"] > 0
    assert replay_experiment(votes_run.folder).summary == votes_run.summary


def test_recorded_captures_play_the_same_run(votes_run: RunResult, tmp_path: Path) -> None:
    captures = votes_run.folder / "captures"
    # a sounding and a collection in each of three rounds
    assert len(list(captures.glob("*.sigmf-meta"))) == 6
    meta = json.loads((captures / "capture-000000.sigmf-meta").read_text())
    assert meta["global"]["testbed:serials"] == {"receiver": "simulated-plutos-1"}
    assert meta["captures"][0]["testbed:positions_m"] == [[0.1875, 0.1875]]
    played = run(votes(), tmp_path, playback=captures)
    assert played.summary == votes_run.summary
    assert played.rounds == votes_run.rounds


def test_captures_of_another_run_are_refused(votes_run: RunResult, tmp_path: Path) -> None:
    with pytest.raises(RadioFault):
        run(votes("scheme.num_pilots=6"), tmp_path, playback=votes_run.folder / "captures")


def test_a_resumed_run_meets_the_same_impairments_and_goes_on_recording(votes_run: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(votes_run.folder, folder)
    cut(folder, 1)
    for capture in sorted((folder / "captures").iterdir())[4:]:
        capture.unlink()
    resumed = resume(folder)
    assert resumed.summary == votes_run.summary
    assert resumed.rounds == votes_run.rounds
    assert len(list((folder / "captures").glob("*.sigmf-meta"))) >= 4


def test_coherent_votes(tmp_path: Path) -> None:
    result = run(small("obda", "rounds=2", "scheme.step=0.5"), tmp_path)
    for row in result.rounds[1:]:
        assert row["vote_error"] < 0.3
        assert row["coherence"] == pytest.approx(1.0, abs=0.05)


def test_resume_brings_back_what_payloads_left_out(tmp_path: Path) -> None:
    scheme = ("scheme.link=ideal", "scheme.payload=topk", "scheme.keep=0.02", "scheme.error_feedback=true")
    whole = run(small("fedavg", *scheme), tmp_path / "whole")
    # without feedback the first round is the same and the others are not
    forgetful = run(small("fedavg", *scheme[:-1]), tmp_path / "forgetful")
    assert forgetful.rounds[1]["loss"] == whole.rounds[1]["loss"]
    assert forgetful.rounds[2]["loss"] != whole.rounds[2]["loss"]
    folder = tmp_path / "cut"
    shutil.copytree(whole.folder, folder)
    cut(folder, 1)
    resumed = resume(folder)
    assert resumed.summary == whole.summary
    assert resumed.rounds == whole.rounds


def test_symbols_give_the_figures_of_samples(ota_run: RunResult, tmp_path: Path) -> None:
    fast = run(small("ota-fedavg", "bench.waveform.level=symbols"), tmp_path)
    assert [row["air_time_s"] for row in fast.rounds] == pytest.approx([row["air_time_s"] for row in ota_run.rounds])
    for row, other in zip(fast.rounds[1:], ota_run.rounds[1:], strict=True):
        assert row["aggregation_error"] == pytest.approx(row["expected_error"], rel=0.1)
        assert 10 * np.log10(row["aggregation_error"] / other["aggregation_error"]) == pytest.approx(0.0, abs=2.0)
