"""Whole runs through the real drivers, their sockets and serial lines, beside the same runs in pure simulation."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from testbed.core.errors import ConfigError
from testbed.engine.experiment import RunResult, replay_experiment, resume_experiment
from tests.system.small_runs import cut, run, small

STATED_DB, STATED_NATS = 0.5, 0.003
"""How far an emulated run may lie from a simulated one: docs/emulators.md states it."""


def test_a_moving_array_learns_as_it_does_in_simulation(ota_run: RunResult, emulated_run: RunResult) -> None:
    assert emulated_run.summary["loss_after"] == pytest.approx(ota_run.summary["loss_after"], abs=STATED_NATS)
    for simulated, emulated in zip(ota_run.rounds[1:], emulated_run.rounds[1:], strict=True):
        ratio = emulated["aggregation_error"] / simulated["aggregation_error"]
        assert abs(10 * math.log10(ratio)) < STATED_DB
        assert emulated["participants"] == simulated["participants"]
        assert emulated["air_time_s"] == pytest.approx(simulated["air_time_s"])
        # converters of 12 bits may tip the choice between two places that are equally good
        assert emulated["travel_m"] == pytest.approx(simulated["travel_m"], rel=0.05)
        assert emulated["latency_s"] == pytest.approx(simulated["latency_s"], rel=0.05)
        assert emulated["energy_j"] == pytest.approx(simulated["energy_j"], rel=0.05)


def test_emulated_runs_repeat_replay_and_resume(emulated_run: RunResult, tmp_path: Path) -> None:
    assert replay_experiment(emulated_run.folder).rounds == emulated_run.rounds
    folder = tmp_path / "cut"
    shutil.copytree(emulated_run.folder, folder, ignore=shutil.ignore_patterns("wire"))
    cut(folder, 1)
    resumed = resume_experiment(folder, node_processes=1)
    assert resumed.rounds == emulated_run.rounds
    assert resumed.summary == emulated_run.summary


def test_every_byte_is_on_record(emulated_run: RunResult) -> None:
    owners = {path.name for path in (emulated_run.folder / "wire").iterdir()}
    assert owners == {"controller", "node-00", "node-01", "node-02"}
    text = "".join(path.read_text() for path in (emulated_run.folder / "wire" / "controller").iterdir())
    assert "$J=G53" in text
    assert "READBUF" in text


def test_the_record_names_the_emulated_radios(emulated_run: RunResult) -> None:
    devices = json.loads((emulated_run.folder / "devices.json").read_text())
    assert devices["serials"]["receiver-0"] == "emulated-receiver-0-1", "the radio of world 1"
    assert devices["serials"]["node-02"] == "emulated-node-02-1"


def test_packets_over_radios_that_only_the_network_triggers(tmp_path: Path) -> None:
    """Real time, real jitter of this machine; what is late or lost is asked for again."""
    changes = (
        "bench.array.radios=[{gain_db=30.0}]",
        "bench.array.antennas=[{home_m=[0.1, 0.1]}]",
        "bench.world.excess_loss_db=20",
        "bench.radio.trigger=network",
        "bench.radio.start_jitter_s=5e-3",
        "scheme.payload=int8",
        "rounds=1",
    )
    result = run(small("fedavg", *changes), tmp_path, backend="emulated")
    assert len(result.rounds[1]["participants"]) == 3
    assert result.summary["loss_after"] < result.summary["loss_before"]
    assert result.rounds[1]["aggregation_error"] < 1e-3


def test_what_real_radios_cannot_do_is_refused_before_anything_opens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="beacon"):
        run(small("fedavg", "bench.radio.trigger=beacon"), tmp_path, backend="emulated")
    with pytest.raises(ConfigError, match="samples"):
        run(small("ota-fedavg", "bench.waveform.level=symbols"), tmp_path, backend="emulated")
    with pytest.raises(ConfigError, match="--yes-transmit"):
        run(small("fedavg"), tmp_path, backend="lab")
    with pytest.raises(ConfigError, match=r"array\.radios"):
        run(small("fedavg"), tmp_path, backend="lab", yes_transmit=True)
    with pytest.raises(ConfigError, match="phase_coherent"):
        # what the bench file does not claim a real bench does not have
        run(small("ota-fedavg"), tmp_path, backend="lab", yes_transmit=True)
