"""Whole runs of pwff: replayed, resumed bit for bit with what every node has for itself, and alone like one trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from nodes.trainer import Trainer
from testbed.core.errors import ConfigError
from testbed.core.orders import Collect, Publish, Train
from testbed.engine.config import Loaded
from testbed.engine.experiment import RunResult, replay_experiment, run_experiment
from testbed.engine.recorder import read_steps
from testbed.lora.choice import part_mask
from testbed.lora.peft_folder import load_adapter
from tests import tiny_llama
from tests.system.small_runs import SGD, cut, resume, run, small

ALIGN = "rewards='learned', method='dpo', steps=2, batch_size=2, group=2, max_tokens=4, length=48"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, and pairs on both kinds."""
    folder = tiny_llama.make(tmp_path_factory.mktemp("personal"))
    for split, count in (("train", 36), ("test", 6)):
        rows = [
            {"prompt": f"film {i}{split[1]}?", "chosen": f" good {i % 5}", "rejected": f" moves {i % 3}", "kind": kind}
            for i in range(count)
            for kind in (("helpful", "safety")[i % 2],)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def personal(files: Path, scheme: str, *changes: str) -> Loaded:
    aligned = f"alignment={{source='{files}', {ALIGN}, reference_prompts=4, measure_prompts=3}}"
    return small(
        "fedavg", f"model.base={files}", "lora.rank=2", "lora.bottleneck=3", "data.partition={kind='dirichlet'}",
        f"scheme={{name='pwff', uplink={{link='ideal', payload='float32'}}, {scheme}}}", aligned, *changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    loaded = personal(files, "tuning_rounds=2, alignment_rounds=2, proximal=0.1", "rounds=4")
    return run(loaded, tmp_path_factory.mktemp("runs"))


def test_everybody_is_scored_for_itself_and_alignment_is_told(whole: RunResult) -> None:
    rows = whole.rounds
    assert [row["scheme"].get("stage") for row in rows] == [None, "tune", "tune", "align", "align"]
    assert all(set(row["node_loss"]) <= {"node-00", "node-01", "node-02"} for row in rows)
    assert rows[-1]["scheme"]["worst_loss"] == max(rows[-1]["node_loss"].values())
    assert set(rows[-1]["alignment"]) == {"node-00", "node-01", "node-02"}
    assert rows[-1]["air_time_s"] == 0.0, "alignment sends nothing"
    assert rows[-1]["energy_j"] > 0
    assert rows[1]["aggregation_error"] < 1e-10, "what stays with its node is no error"


def test_no_uplink_speaks_of_what_is_private(whole: RunResult) -> None:
    """B-2, in the record."""
    layout = json.loads((whole.folder / "adapter.json").read_text())["layout"]["factors"]
    private = np.concatenate([np.full(np.prod(one["shape"]), one["kind"] in ("A", "B")) for one in layout])
    steps = read_steps(whole.folder)
    collected = [step for step in steps if isinstance(step.order, Collect)]
    assert len(collected) == 2
    for step in collected:
        for update in step.reply.updates.values():  # type: ignore[union-attr]
            assert not update[private].any()
            assert update[~private].any()
    parts = [set(one.order.part.kinds) for one in steps if isinstance(one.order, Publish)]
    assert parts == [{"down", "up", "bias"}] * 2


def test_a_run_replays_and_bottlenecks_have_a_file_of_their_own(whole: RunResult) -> None:
    assert replay_experiment(whole.folder).rounds == whole.rounds
    kept = load_file(str(whole.folder / "adapter" / "adapter_model.safetensors"))
    assert not any("bottleneck" in name for name in kept)
    assert any("bottleneck" in name for name in load_adapter(whole.folder / "adapter"))


@pytest.mark.parametrize("last", [1, 3])
def test_a_resumed_run_ends_bit_for_bit_alike(whole: RunResult, tmp_path: Path, last: int) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whole.folder, folder)
    cut(folder, last)
    again = resume(folder)
    assert again.rounds == whole.rounds
    for file in ("adapter_model.safetensors", "bottleneck.safetensors", "own.safetensors"):
        found, wanted = (load_file(str(one / "adapter" / file)) for one in (folder, whole.folder))
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values)
    assert {"own/node-00", "reference/node-02"} <= set(load_file(str(folder / "adapter" / "own.safetensors")))


def test_one_client_is_central_training(files: Path, tmp_path: Path) -> None:
    """B-4: the same seed, rows and steps, whether in a federation of one or in one trainer."""
    loaded = personal(files, "tuning_rounds=3", *SGD, "bench.nodes=[{count=1}]")
    result = run(loaded, tmp_path)
    (name,) = loaded.bench.node_names
    job = {key: getattr(loaded.spec, key) for key in ("seed", "model", "lora", "data", "training")}
    from testbed.core.specs import JobSpec

    trainer = Trainer(JobSpec(nodes=(name,), **job))
    vector = trainer.initial
    for index in (1, 2, 3):
        vector = trainer.train(name, index, vector).vector
    (work,) = {
        one for step in read_steps(result.folder) if isinstance(step.order, Train) for one in [len(step.order.work)]
    }
    assert work == 1
    sharing = next(step.order.part for step in read_steps(result.folder) if isinstance(step.order, Publish))
    inside = part_mask(trainer.layout, sharing)
    shared = trainer.layout.pack(load_adapter(result.folder / "adapter"))
    own = load_file(str(result.folder / "adapter" / "own.safetensors"))[f"own/{name}"]
    np.testing.assert_allclose(shared[inside], vector[inside], rtol=0, atol=2e-6)
    np.testing.assert_allclose(own, vector[~inside], rtol=0, atol=2e-6)


def test_alignment_without_its_section_is_refused_before_anything_is_made(files: Path, tmp_path: Path) -> None:
    loaded = small("fedavg", "lora.bottleneck=3", "scheme={name='pwff', alignment_rounds=1}")
    with pytest.raises(ConfigError, match=r"the experiment has no \[alignment\]"):
        run_experiment(loaded.spec, loaded.scheme, loaded.bench, backend="sim", out=tmp_path)
    assert not list(tmp_path.iterdir())
