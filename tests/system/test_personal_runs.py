"""Whole runs of pwff: replayed, resumed bit for bit with what every node has for itself, and alone like one trainer."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from nodes.trainer import Trainer
from testbed.core.errors import ConfigError
from testbed.core.orders import Collect, Order, Part, Publish, Train
from testbed.core.specs import JobSpec
from testbed.engine.config import Loaded
from testbed.engine.experiment import RunResult, replay_experiment, resume_experiment, run_experiment
from testbed.engine.observe import Observer
from testbed.engine.recorder import read_steps
from testbed.lora.choice import part_mask
from testbed.lora.peft_folder import load_adapter
from tests import tiny_llama
from tests.system.node_threads import nodes_here
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


EVERY = "shared=['A', 'B', 'down', 'up', 'bias'], pull=0.5, tuning_rounds=3"


def test_a_ditto_run_resumes_bit_for_bit_with_its_copies(files: Path, tmp_path: Path) -> None:
    loaded = personal(files, EVERY, "rounds=3")
    whole = run(loaded, tmp_path / "whole")
    folder = tmp_path / "cut"
    shutil.copytree(whole.folder, folder)
    cut(folder, 2)
    assert resume(folder).rounds == whole.rounds
    found, wanted = (load_file(str(one / "adapter" / "own.safetensors")) for one in (folder, whole.folder))
    assert found.keys() == wanted.keys() == {f"beside/node-{index:02d}" for index in range(3)}
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
    shared = load_adapter(whole.folder / "adapter")
    assert wanted["beside/node-00"].size == sum(values.size for values in shared.values())
    assert len({values.tobytes() for values in wanted.values()}) == 3, "everybody has its own"
    assert replay_experiment(whole.folder).rounds == whole.rounds


class _KillThenStop(Observer):
    """Kills the process of node-01 in round 2, and the run in round 3."""

    def __init__(self) -> None:
        self.round = 0

    def round_started(self, index: int) -> None:
        self.round = index

    def order_started(self, order: Order) -> None:
        if self.round == 2 and isinstance(order, Train):
            own = f"/proc/{os.getpid()}/task/*/children"
            children = [pid for file in Path("/").glob(own[1:]) for pid in file.read_text().split()]
            (victim,) = [pid for pid in children if "node-01" in Path(f"/proc/{pid}/cmdline").read_text()]
            os.kill(int(victim), signal.SIGKILL)
        if self.round == 3:
            raise KeyboardInterrupt


def test_a_killed_board_has_its_own_values_again_when_the_run_is_resumed(files: Path, tmp_path: Path) -> None:
    """It missed round 2, so it goes on from what it had after round 1, with the phi of round 2."""
    loaded = personal(files, "tuning_rounds=3", *SGD, "rounds=3", "bench.nodes=[{count=2}]")
    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path, node_processes=2, observer=_KillThenStop())
    (folder,) = tmp_path.iterdir()
    job = {key: getattr(loaded.spec, key) for key in ("seed", "model", "lora", "data", "training")}
    trainer = Trainer(JobSpec(nodes=loaded.bench.node_names, **job))
    inside = part_mask(trainer.layout, Part(kinds=("down", "up", "bias")))
    kept = [load_file(str(folder / "adapters" / f"round-{index:03d}" / "own.safetensors")) for index in (1, 2)]
    np.testing.assert_array_equal(kept[0]["own/node-01"], kept[1]["own/node-01"])
    assert not np.array_equal(kept[0]["own/node-00"], kept[1]["own/node-00"])
    with nodes_here():
        rounds = resume_experiment(folder).rounds
    assert [row["participants"] for row in rounds[1:]] == [["node-00", "node-01"], ["node-00"], ["node-00", "node-01"]]
    start = trainer.layout.pack(load_adapter(folder / "adapters" / "round-002"))
    start[~inside] = kept[0]["own/node-01"]
    wanted = trainer.train("node-01", 3, start).vector[~inside]
    found = load_file(str(folder / "adapter" / "own.safetensors"))["own/node-01"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert np.abs(found - start[~inside]).max() > 1e-4


def test_a_target_that_the_model_lacks_is_told_before_anything_moves(files: Path, tmp_path: Path) -> None:
    loaded = personal(files, "tuning_rounds=1", "lora.targets=['q_proj', 'query']")
    with pytest.raises(ConfigError, match="no linear layer named 'query'") as caught:
        run(loaded, tmp_path)
    assert f"lora.targets: the model {files} (type llama)" in caught.value.message
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj" in str(caught.value.remedy)
    steps = [file for file in tmp_path.rglob("steps.jsonl") if len(file.read_bytes().splitlines()) > 1]
    assert not steps, "no order was given"


def test_one_client_is_central_training(files: Path, tmp_path: Path) -> None:
    """B-4: the same seed, rows and steps, whether in a federation of one or in one trainer."""
    loaded = personal(files, "tuning_rounds=3", *SGD, "bench.nodes=[{count=1}]")
    result = run(loaded, tmp_path)
    (name,) = loaded.bench.node_names
    job = {key: getattr(loaded.spec, key) for key in ("seed", "model", "lora", "data", "training")}
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
