"""Whole runs: real training, real ZeroMQ, simulated air."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from testbed.core.errors import ConfigError, LimitError, LinkTimeout, ReplayDeparture
from testbed.core.orders import Collect, Collected, MovedAndTrained
from testbed.engine.dry import dry_experiment
from testbed.engine.experiment import RunResult, replay_experiment, resume_experiment
from testbed.engine.recorder import read_rows, read_steps
from tests.system.small_runs import SGD, cut, resume, run, small

WEIGHTS = "adapter_model.safetensors"
PLAIN = Path(__file__).with_name("plain_fedavg.py")


def _adapter(result: RunResult) -> dict[str, np.ndarray]:
    return load_file(str(result.folder / result.summary["adapter"] / WEIGHTS))


def _compare(result: RunResult, reference: dict[str, np.ndarray]) -> tuple[float, float]:
    """How far training took the adapter, and how far the reference is from where it came to."""
    ours, start = _adapter(result), load_file(str(result.folder / "adapters" / "round-000" / WEIGHTS))
    assert set(reference) == set(ours)
    travelled = sum(float(np.sum((reference[name] - start[name]) ** 2)) for name in ours) ** 0.5
    apart = sum(float(np.sum((reference[name] - ours[name]) ** 2)) for name in ours) ** 0.5
    return travelled, apart


def test_a_run_leaves_everything_in_its_folder(fedavg_run: RunResult) -> None:
    folder, summary = fedavg_run.folder, fedavg_run.summary
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["rounds"] == 3
    assert summary["loss_after"] < summary["loss_before"]
    assert len(summary["config_sha256"]) == 64
    for key in ("latency_s", "energy_j", "air_time_s"):
        assert summary[key] == pytest.approx(sum(row[key] for row in read_rows(folder)))
        assert summary[key] > 0
    start = json.loads((folder / "start.json").read_text())
    assert start["experiment"]["seed"] == 1
    assert start["versions"]["torch"]
    assert start["commit"]
    assert [path.name for path in sorted((folder / "adapters").iterdir())] == [
        f"round-{index:03d}" for index in range(4)
    ]


@pytest.mark.parametrize(("optimizer", "tolerance"), [("sgd", 5e-5), ("adamw", 5e-3)])
def test_digital_equals_plain_torch_and_peft(
    optimizer: str, tolerance: float, fedavg_run: RunResult, tmp_path: Path
) -> None:
    """The same base, data, batches and seeds through a loop that imports nothing of ours."""
    from nodes import data
    from nodes.model import load_base
    from nodes.tokens import Encoder, collate

    loaded = small("fedavg", *(SGD if optimizer == "sgd" else ()))
    ours = fedavg_run if optimizer == "sgd" else run(loaded, tmp_path / "runs")
    spec = loaded.spec
    names = loaded.bench.node_names
    base, tokenizer = load_base(spec.model)
    base.save_pretrained(tmp_path / "base")
    rows = data.load(spec.data, len(names), spec.seed)
    encoder = Encoder(tokenizer, spec.training.sequence_length)
    arrays = {}
    for client, share in enumerate(rows.shares):
        encoded = encoder.encode_all([rows.train[index] for index in share])
        batch = collate(encoded, pad=tokenizer.pad_token_id, loss_on=spec.training.loss_on)
        for key in ("input_ids", "attention_mask", "loss_mask"):
            arrays[f"{key}_{client}"] = getattr(batch, key)
    np.savez(tmp_path / "data.npz", **arrays)
    options = {
        "rounds": spec.rounds,
        "seed": spec.seed,
        "batch_size": spec.training.batch_size,
        "local_steps": spec.training.local_steps,
        "optimizer": spec.training.optimizer,
        "learning_rate": spec.training.learning_rate,
        "max_grad_norm": spec.training.max_grad_norm,
    }
    (tmp_path / "options.json").write_text(json.dumps(options))
    command = [
        sys.executable,
        str(PLAIN),
        str(tmp_path / "base"),
        str(ours.folder / "adapters" / "round-000"),
        str(tmp_path / "data.npz"),
        str(tmp_path / "options.json"),
        str(tmp_path / "out.npz"),
    ]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
    with np.load(tmp_path / "out.npz") as plain:
        travelled, apart = _compare(ours, dict(plain))
    assert travelled > 0.1  # training did something
    assert apart < tolerance * travelled


def test_without_noise_the_air_adds_exactly(fedavg_run: RunResult, tmp_path: Path) -> None:
    quiet = run(small("ota-fedavg", *SGD, "bench.world.temperature_k=0", "scheme.visits=2"), tmp_path)
    travelled, apart = _compare(quiet, _adapter(fedavg_run))
    assert travelled > 0.1
    assert apart < 5e-5 * travelled
    assert max(row["aggregation_error"] or 0.0 for row in quiet.rounds) < 1e-9


def test_measured_error_is_the_predicted_one(ota_run: RunResult) -> None:
    rows = [row for row in ota_run.rounds if row["round"] > 0]
    ratios = [row["aggregation_error"] / row["expected_error"] for row in rows]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)
    assert all(row["participants"] == ["node-00", "node-01", "node-02"] for row in rows)


def test_antennas_move_in_the_first_round_only(ota_run: RunResult) -> None:
    travel = [row["travel_m"] for row in ota_run.rounds]
    assert travel[1] > 0.1
    assert travel[2:] == [0.0, 0.0]
    assert ota_run.rounds[1]["scheme"]["gain_over_fixed"] >= 1.0


@pytest.mark.parametrize("scheme", ["fedavg", "ota-fedavg"])
def test_replay_equals_live(scheme: str, fedavg_run: RunResult, ota_run: RunResult) -> None:
    recorded = fedavg_run if scheme == "fedavg" else ota_run
    replayed = replay_experiment(recorded.folder)
    assert replayed.rounds == recorded.rounds
    assert replayed.summary == recorded.summary


def test_replay_says_where_the_scheme_departs(ota_run: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ota_run.folder, folder)
    start = json.loads((folder / "start.json").read_text())
    start["experiment"]["scheme"]["num_pilots"] = 9
    (folder / "start.json").write_text(json.dumps(start))
    with pytest.raises(ReplayDeparture, match=r"step 2 \(round 1, Sound\): num_pilots: 9 instead of 4"):
        replay_experiment(folder)


def test_one_process_or_three_give_the_same_summary(ota_run: RunResult, tmp_path: Path) -> None:
    again = run(small("ota-fedavg"), tmp_path, node_processes=3)
    assert again.summary == ota_run.summary
    assert all(np.array_equal(array, _adapter(ota_run)[name]) for name, array in _adapter(again).items())


def test_another_seed_is_another_run(ota_run: RunResult, tmp_path: Path) -> None:
    other = run(small("ota-fedavg", "rounds=1", "scheme.move=false", seed=2), tmp_path)
    assert other.summary["config_sha256"] != ota_run.summary["config_sha256"]
    assert other.rounds[1]["aggregation_error"] != ota_run.rounds[1]["aggregation_error"]


def test_resume_continues_bit_for_bit(ota_run: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ota_run.folder, folder)
    cut(folder, 1)
    resumed = resume(folder)
    assert resumed.summary == ota_run.summary
    assert resumed.rounds == ota_run.rounds
    assert all(np.array_equal(array, _adapter(ota_run)[name]) for name, array in _adapter(resumed).items())
    assert replay_experiment(folder).summary == ota_run.summary
    with pytest.raises(ConfigError, match="this run is complete"):
        resume(folder)


def test_the_record_keeps_measured_facts(ota_run: RunResult) -> None:
    steps = read_steps(ota_run.folder)
    clocks = [step.clock_s for step in steps]
    assert clocks == sorted(clocks)
    collects = [step for step in steps if isinstance(step.order, Collect)]
    assert len(collects) == 3
    for step in collects:
        assert isinstance(step.reply, Collected)
        assert step.reply.updates == {}  # over the air only the sum exists
        assert step.reply.spent.joules == pytest.approx(sum(step.reply.energy_j.values()))
    hidden = [step.reply for step in steps if isinstance(step.reply, MovedAndTrained)]
    assert len(hidden) == 1
    assert hidden[0].spent.seconds == max(hidden[0].moved.spent.seconds, hidden[0].trained.spent.seconds)


def test_a_run_stops_at_its_budget(tmp_path: Path) -> None:
    result = run(small("fedavg", "budget.latency_s=0.001"), tmp_path)
    assert result.summary["status"] == "budget"
    assert result.summary["rounds"] < 3


def test_dry_asks_what_live_asks(ota_run: RunResult) -> None:
    loaded = small("ota-fedavg")
    steps = dry_experiment(loaded.spec, loaded.scheme, loaded.bench)
    live = read_steps(ota_run.folder)
    assert [step.round_index for step in steps] == [step.round_index for step in live]
    assert sum(step.air_time_s for step in steps) == pytest.approx(
        sum(step.reply.spent.air_time_s for step in live), rel=1e-6
    )


def test_dry_refuses_what_the_bench_refuses() -> None:
    loaded = small("ota-fedavg")
    array = loaded.bench.array.model_dump()
    array["antennas"][0]["stage"]["travel_m"] = [[0.0, 0.2], [0.0, 0.2]]
    bench = loaded.bench.model_copy(update={"array": type(loaded.bench.array).model_validate(array)})
    with pytest.raises(LimitError, match="antenna 0, stage axis"):
        dry_experiment(loaded.spec, loaded.scheme, bench)


def test_a_bench_without_coherence_is_refused(tmp_path: Path) -> None:
    loaded = small("ota-fedavg", "bench.radio.phase_coherent=false")
    with pytest.raises(ConfigError, match="phase_coherent"):
        run(loaded, tmp_path)
    with pytest.raises(ConfigError, match="phase_coherent"):
        dry_experiment(loaded.spec, loaded.scheme, loaded.bench)


def test_nodes_that_never_come_fail_the_run(tmp_path: Path) -> None:
    loaded = small("fedavg", "bench.link.connect_timeout_s=0.3")
    with pytest.raises(LinkTimeout, match="3 of 3 nodes did not connect"):
        run(loaded, tmp_path, node_processes=0)
    [folder] = tmp_path.iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


def test_what_a_node_cannot_load_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/no/such/model"):
        run(small("fedavg", "model.base='/no/such/model'"), tmp_path)


def test_a_changed_base_model_cannot_be_resumed(fedavg_run: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(fedavg_run.folder, folder)
    (folder / "summary.json").unlink()
    with np.load(folder / "initial.npz") as arrays:
        np.savez(folder / "initial.npz", initial=arrays["initial"] + 1, frozen=arrays["frozen"])
    with pytest.raises(ReplayDeparture, match="start from another adapter"):
        resume(folder)


def test_a_resume_that_fails_keeps_what_there_was(ota_run: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ota_run.folder, folder)
    start = json.loads((folder / "start.json").read_text())
    start["bench"]["link"]["connect_timeout_s"] = 0.2
    (folder / "start.json").write_text(json.dumps(start))
    (folder / "summary.json").unlink()
    with pytest.raises(LinkTimeout):
        resume_experiment(folder, node_processes=0)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["rounds"] == 3
    assert summary["loss_after"] == ota_run.summary["loss_after"]
    assert read_rows(folder) == ota_run.rounds


def test_freeze_a_sends_half(tmp_path: Path, fedavg_run: RunResult) -> None:
    result = run(small("fedavg", "lora.freeze_a=true", "rounds=1"), tmp_path)
    [full] = [step.reply.mean.size for step in read_steps(fedavg_run.folder) if isinstance(step.reply, Collected)][:1]
    [half] = [step.reply.mean.size for step in read_steps(result.folder) if isinstance(step.reply, Collected)]
    assert half < full
    adapter, start = (
        _adapter(result),
        load_file(str(result.folder / "adapters" / "round-000" / WEIGHTS)),
    )
    assert all(np.array_equal(adapter[name], start[name]) for name in adapter if "lora_A" in name)
    assert any(not np.array_equal(adapter[name], start[name]) for name in adapter if "lora_B" in name)
