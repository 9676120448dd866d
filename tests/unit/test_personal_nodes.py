"""Nodes that keep values of their own: parts that are trained and broadcast, personal scores, and local alignment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.data import load
from nodes.partition import dealt_alike
from nodes.uplink import Uplink
from nodes.worker import Worker
from testbed.core import messages
from testbed.core.errors import ConfigError
from testbed.core.messages import Packet
from testbed.core.node_devices import NodeDevices
from testbed.core.orders import WHOLE, Alignment, Part
from testbed.core.specs import (
    AlignmentSpec,
    DataSpec,
    JobSpec,
    LoraSpec,
    ModelSpec,
    PartitionSpec,
    TrainingSpec,
)
from testbed.lora.choice import part_mask
from tests import tiny_llama
from tests.benches import small_bench

torch = pytest.importorskip("torch")

from nodes.trainer import Trainer  # noqa: E402

NODES = ("node-1", "node-2")
PHI, PSI = Part(kinds=("down", "up", "bias")), Part(kinds=("A", "B"))
NOUNS = ("antenna", "receiver", "film", "answer", "signal", "matrix")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama.make(tmp_path_factory.mktemp("llama"))
    for split, count in (("train", 40), ("test", 12)):
        rows = ({"sentence": f"the {NOUNS[i % 6]} {i}{split[1]} is fine", "label": i % 2} for i in range(count))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs").mkdir()
    for split, count in (("train", 24), ("test", 8)):
        (folder / "pairs" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(count, split)))
    return folder


def pairs(count: int, split: str) -> list[dict[str, str]]:
    """Helpful responses are longer by words of the prompt; safe ones lack a word."""
    return [
        {
            "prompt": f"what of {NOUNS[i % 6]} {i}{split[1]}?",
            "chosen": f" the {NOUNS[i % 6]} is good",
            "rejected": f" the {NOUNS[(i + 1) % 6]} moves",
            "kind": ("helpful", "safety")[i // 2 % 2],
        }
        for i in range(count)
    ]


ALIGNMENT: dict[str, Any] = {
    "rewards": "learned", "method": "dpo", "steps": 2, "batch_size": 2, "group": 2, "max_tokens": 4, "length": 48,
    "reference_prompts": 6, "measure_prompts": 4, "learning_rate": 0.01,
}  # fmt: skip


def job(folder: Path, alignment: Mapping[str, Any] | None = None, **data: Any) -> JobSpec:
    aligned = None if alignment is None else {"source": str(folder / "pairs"), **ALIGNMENT, **alignment}
    return JobSpec(
        seed=5,
        nodes=NODES,
        model=ModelSpec(base=str(folder)),
        lora=LoraSpec(rank=2, alpha=4.0, bottleneck=3),
        data=DataSpec(source=str(folder), template="sst2", **data),
        training=TrainingSpec(batch_size=4, learning_rate=0.01, local_steps=2, weight_decay=0.1),
        alignment=None if aligned is None else AlignmentSpec(**aligned),
    )


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Trainer:
    return Trainer(job(folder, {}, partition=PartitionSpec(kind="label", labels_per_node=1)))


class _Meter:
    """Counts tokens as joules."""

    def begin(self, cpu_hz: float | None) -> None:
        pass

    def end(self, *, num_tokens: int, cpu_hz: float | None, work_share: float) -> Any:
        from testbed.core.orders import Spent

        return Spent(1.0, float(num_tokens))


class Process:
    """A worker whose answers are at hand."""

    def __init__(self, trainer: Trainer) -> None:
        self.said: list[tuple[Any, Mapping[str, np.ndarray]]] = []
        self.worker = Worker(lambda message, arrays: self.said.append((message, arrays)), lambda: False)
        self.worker._trainer, self.worker._job = trainer, trainer.job
        for name in NODES:
            devices = NodeDevices(None, _Meter(), lambda: None)  # type: ignore[arg-type]
            self.worker.adopt(name, devices, trainer.initial, small_bench(), Uplink())

    def ask(self, request: Any, arrays: Mapping[str, np.ndarray] | None = None) -> tuple[Any, Mapping[str, np.ndarray]]:
        self.worker.answer(Packet(request, arrays or {}))
        return self.said[-1]

    def has(self, name: str) -> np.ndarray:
        """The adapter that a node goes on from."""
        return self.ask(messages.SendOwn(node=name, shared=None))[1]["own"]


def test_a_part_is_trained_and_every_byte_of_the_rest_stays(trainer: Trainer) -> None:
    start = trainer.initial + np.random.default_rng(1).normal(0, 0.05, trainer.layout.size).astype(np.float32)
    for part in (PHI, PSI):
        changed = trainer.train("node-1", 1, start, part=part).vector != start
        inside = part_mask(trainer.layout, part)
        assert not changed[~inside].any(), "weight decay moves nothing outside"
        assert changed[inside].mean() > 0.95


def test_the_pull_applies_where_it_is_said_to(trainer: Trainer) -> None:
    start = trainer.initial
    free = trainer.train("node-1", 1, start, local_steps=4).vector - start
    held = trainer.train("node-1", 1, start, local_steps=4, proximal=1e3, pulled=PHI).vector - start
    inside = part_mask(trainer.layout, PHI)
    assert np.linalg.norm(held[inside]) < 0.6 * np.linalg.norm(free[inside])
    everywhere = trainer.train("node-1", 1, start, local_steps=4, proximal=1e3).vector - start
    assert not np.array_equal(held, everywhere)


def test_what_a_node_keeps_stays_and_what_is_broadcast_replaces(trainer: Trainer) -> None:
    """B-2: phi is the same everywhere after a broadcast, psi is untouched byte for byte."""
    process, inside = Process(trainer), part_mask(trainer.layout, PHI)
    for name in NODES:
        process.ask(messages.TrainTask(node=name, round_index=1, keep=True))
    trained = {name: process.has(name) for name in NODES}
    assert not np.array_equal(trained["node-1"], trained["node-2"])
    told = np.full(trainer.layout.size, 0.25, np.float32)
    for name in NODES:
        process.ask(messages.SetAdapter(node=name, part=PHI), {"adapter": told})
        now = process.has(name)
        np.testing.assert_array_equal(now[inside], told[inside])
        np.testing.assert_array_equal(now[~inside], trained[name][~inside])
    process.ask(messages.TrainTask(node="node-1", round_index=2))
    np.testing.assert_array_equal(process.has("node-1"), np.where(inside, told, trained["node-1"]))
    process.ask(messages.SetAdapter(node="node-1", part=WHOLE), {"adapter": told})
    np.testing.assert_array_equal(process.has("node-1"), told)


def test_a_node_that_comes_back_gets_what_was_its_own(trainer: Trainer) -> None:
    process, told = Process(trainer), np.full(trainer.layout.size, 0.01, np.float32)
    process.ask(messages.TrainTask(node="node-1", round_index=1, keep=True))
    process.ask(messages.SetAdapter(node="node-1", part=PHI), {"adapter": told})
    align = messages.TrainTask(node="node-1", round_index=2, keep=True, part=PSI, objective=Alignment((0.5, 0.5)))
    process.ask(align)
    kept = process.ask(messages.SendOwn(node="node-1", shared=PHI))[1]
    assert kept["own"].size == part_mask(trainer.layout, PSI).sum()
    fresh = Process(trainer)
    fresh.ask(messages.SetAdapter(node="node-1"), {"adapter": told})
    fresh.ask(messages.SetOwn(node="node-1", shared=PHI), kept)
    np.testing.assert_array_equal(fresh.has("node-1"), process.has("node-1"))
    # the reference is back as well, so that the next alignment is the same
    again = align.model_copy(update={"round_index": 3})
    assert process.ask(again)[0] == fresh.ask(again)[0]
    np.testing.assert_array_equal(fresh.has("node-1"), process.has("node-1"))


def test_a_copy_beside_the_adapter_takes_dittos_steps(folder: Path) -> None:
    """v <- v - eta (grad F(v) + lambda (v - w)) in plain torch, over two rounds, with w moved in between."""
    spec = job(folder)
    plain = TrainingSpec(batch_size=4, learning_rate=0.05, local_steps=2, optimizer="sgd", max_grad_norm=None)
    lora = LoraSpec(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    trainer = Trainer(spec.model_copy(update={"training": plain, "lora": lora}))
    process, pull = Process(trainer), 0.7
    rng = np.random.default_rng(2)
    told = [rng.normal(0, 0.1, trainer.layout.size).astype(np.float32) for _ in range(3)]
    copy = None
    for index in (1, 2):
        process.ask(messages.SetAdapter(node="node-1"), {"adapter": told[index - 1]})
        process.ask(messages.TrainTask(node="node-1", round_index=index))
        update = process.ask(messages.SendUpdate(node="node-1"))[1]["update"]
        process.ask(messages.TrainTask(node="node-1", round_index=index, proximal=pull, beside=True))
        again = process.ask(messages.SendUpdate(node="node-1"))[1]["update"]
        np.testing.assert_array_equal(again, update, err_msg="what is to be sent is not the copy's")
        np.testing.assert_array_equal(process.has("node-1"), told[index - 1])
        copy = _ditto(trainer, folder, told[index - 1] if copy is None else copy, told[index - 1], pull, index)
    process.ask(messages.SetAdapter(node="node-1"), {"adapter": told[2]})
    beside = process.ask(messages.SendOwn(node="node-1", shared=WHOLE))[1]
    assert set(beside) == {"beside"}
    np.testing.assert_allclose(beside["beside"], copy, atol=2e-6)
    scored, _ = process.ask(messages.EvaluateTask(node="node-1", shard=0, num_shards=1, personal=True))
    assert scored.loss_sum == pytest.approx(trainer.evaluate(beside["beside"], node="node-1").loss_sum)
    fresh = Process(trainer)
    fresh.ask(messages.SetAdapter(node="node-1"), {"adapter": told[2]})
    fresh.ask(messages.SetOwn(node="node-1", shared=WHOLE), beside)
    third = messages.TrainTask(node="node-1", round_index=3, proximal=pull, beside=True)
    assert process.ask(third)[0] == fresh.ask(third)[0]


def _ditto(
    trainer: Trainer, folder: Path, start: np.ndarray, centre: np.ndarray, pull: float, index: int
) -> np.ndarray:
    """Two SGD steps of the copy on W + 2 B A, with gradients of autograd and no code of the trainer's but its rows."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    names = sorted({factor.module.removeprefix("base_model.model.") for factor in trainer.layout.factors})
    flat, batches = torch.tensor(start, requires_grad=True), trainer._batches("node-1", [5, 0, index], 4)
    for _ in range(2):
        batch = next(batches)
        parts = {
            factor.name: flat[trainer.layout.slices[factor.name]].view(factor.shape)
            for factor in trainer.layout.factors
        }
        stems = {name: f"base_model.model.{name}.lora" for name in names}
        weights = {
            f"{name}.weight": base.get_submodule(name).weight
            + 2.0 * parts[f"{stem}_B.weight"] @ parts[f"{stem}_A.weight"]
            for name, stem in stems.items()
        }
        ids, mask = torch.tensor(batch.input_ids), torch.tensor(batch.attention_mask)
        logits = torch.func.functional_call(base, weights, kwargs={"input_ids": ids, "attention_mask": mask}).logits
        chosen = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        loss = -chosen[torch.tensor(batch.loss_mask[:, 1:]).bool()].mean()
        loss = loss + 0.5 * pull * (flat - torch.tensor(centre)).square().sum()
        (slope,) = torch.autograd.grad(loss, [flat])
        flat = (flat - 0.05 * slope).detach().requires_grad_(True)
    return flat.detach().numpy()


def test_alignment_and_training_leave_ranks_beyond_a_nodes_own(trainer: Trainer) -> None:
    process, own = Process(trainer), Part(kinds=("A", "B"), ranks=1)
    process.ask(messages.TrainTask(node="node-1", round_index=1, keep=True, part=own))
    process.ask(messages.TrainTask(node="node-1", round_index=2, keep=True, part=own, objective=Alignment((0.5, 0.5))))
    inside = part_mask(trainer.layout, own)
    changed = process.has("node-1") != trainer.initial
    assert changed[inside].mean() > 0.95
    assert not changed[~inside].any()
    assert inside.sum() == part_mask(trainer.layout, PSI).sum() / 2


@pytest.mark.parametrize("method", ["dpo", "modpo", "ppo"])
def test_alignment_changes_its_part_alone_and_reports_its_worth(trainer: Trainer, method: Any) -> None:
    process = Process(trainer)
    objective = Alignment((0.7, 0.3), method=method)
    task = messages.TrainTask(node="node-2", round_index=1, keep=True, part=PSI, objective=objective)
    done, _ = process.ask(task)
    changed = process.has("node-2") != trainer.initial
    assert changed.any()
    assert not changed[part_mask(trainer.layout, PHI)].any()
    assert done.num_steps == 2
    assert done.joules == done.num_tokens > 0
    names = {"helpfulness", "helpfulness_before", "safety", "safety_before", "kl", "diverged"}
    assert names <= set(done.measures)
    assert done.measures["kl"] >= 0
    assert done.measures["diverged"] == 0
    update = process.ask(messages.SendUpdate(node="node-2"))[1]["update"]
    np.testing.assert_allclose(update, process.has("node-2") - trainer.initial, atol=1e-7)


def test_a_policy_that_leaves_the_leash_is_taken_back(folder: Path) -> None:
    process = Process(Trainer(job(folder, {"kl_limit": 1e-9})))
    done, _ = process.ask(
        messages.TrainTask(node="node-1", round_index=1, keep=True, part=PSI, objective=Alignment((0.5, 0.5)))
    )
    assert done.measures["diverged"] == 1
    np.testing.assert_array_equal(process.has("node-1"), process.worker._trainer.initial)  # type: ignore[union-attr]


def test_a_personal_score_is_that_of_the_own_rows(trainer: Trainer) -> None:
    """One label each: the nodes' rows are apart, and together they are the held-out split."""
    parts = [trainer.evaluate(trainer.initial, node=name) for name in NODES]
    whole = trainer.evaluate(trainer.initial)
    assert [part.num_rows for part in parts] == [6, 6]
    assert sum(part.loss_sum for part in parts) == pytest.approx(whole.loss_sum, rel=1e-5)
    done, _ = Process(trainer).ask(messages.EvaluateTask(node="node-2", shard=0, num_shards=1, personal=True))
    assert done.loss_sum == pytest.approx(parts[1].loss_sum)
    assert done.loss_sum != pytest.approx(parts[0].loss_sum)


def test_held_out_rows_are_dealt_as_the_training_rows_are(folder: Path) -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 300)
    owner = np.where(classes == 2, 1, rng.integers(0, 4, 300))
    shares = [np.flatnonzero(owner == node) for node in range(4)]
    held_out = rng.integers(0, 3, 90)
    dealt = dealt_alike(shares, classes.tolist(), held_out.tolist(), rng)
    np.testing.assert_array_equal(np.sort(np.concatenate(dealt)), np.arange(90))
    for name in range(3):
        rows = np.count_nonzero(held_out == name)
        for share, part in zip(shares, dealt, strict=True):
            wanted = rows * np.mean(owner[classes == name] == owner[share[0]])
            assert abs(np.count_nonzero(held_out[part] == name) - wanted) < 1
    unknown = dealt_alike(shares, classes.tolist(), [7] * 20, rng)
    assert sum(map(len, unknown)) == 20
    spec = DataSpec(source=str(folder), template="sst2", partition=PartitionSpec(kind="label", labels_per_node=1))
    data = load(spec, 2, 3)
    for train, test in zip(data.shares, data.test_shares, strict=True):
        assert {data.train[i].label for i in train} == {data.test[i].label for i in test}


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"prompt": "a", "chosen": " ", "rejected": "b", "kind": "helpful"}], {}, "the chosen response is empty"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b ", "kind": "safety"}], {}, "are identical"),
        ([{**row, "kind": "helpful"} for row in pairs(8, "train")], {}, "no preference pairs of kind 'safety'"),
        (pairs(24, "train"), {"partition": {"kind": "label", "labels_per_node": 1}}, "no preference pairs of kind"),
        ([], {}, "alignment.source: 0 prompts of preference pairs cannot be dealt to 2 nodes"),
        (pairs(1, "train"), {}, "alignment.source: 1 prompts of preference pairs cannot be dealt to 2 nodes"),
    ],
)
def test_preferences_that_cannot_be_used_are_told_before_a_node_is_ready(
    folder: Path, tmp_path: Path, rows: list[dict[str, str]], changes: dict[str, Any], message: str
) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=message):
        Trainer(job(folder, {"source": str(tmp_path), **changes}))


def test_no_alignment_without_its_section_and_no_pruning_with_bottlenecks(folder: Path) -> None:
    from testbed.core.orders import Pruning

    plain = Trainer(job(folder))
    process = Process(plain)
    with pytest.raises(ConfigError, match=r"the experiment has no \[alignment\]"):
        process.ask(messages.TrainTask(node="node-1", round_index=1, objective=Alignment((0.5, 0.5))))
    with pytest.raises(ConfigError, match="bottleneck adapters cannot be pruned"):
        plain.train("node-1", 1, plain.initial, pruning=Pruning(0.3))


def test_saved_reward_models_are_worth_what_they_were_when_saved(
    folder: Path, trainer: Trainer, tmp_path: Path
) -> None:
    objective, vector = Alignment((0.5, 0.5)), trainer.initial
    aligned = trainer.aligner.align("node-1", 1, vector, objective, reference=vector, part=PSI, pulled=WHOLE)
    _, wanted = trainer.aligner.measured(vector, aligned, objective, vector)
    trainer.aligner.rewards[0].model.save(tmp_path)  # type: ignore[attr-defined]
    again = Trainer(job(folder, {"rewards": str(tmp_path)}, partition=PartitionSpec(kind="label", labels_per_node=1)))
    _, found = again.aligner.measured(vector, aligned, objective, vector)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert wanted["helpfulness"] != wanted["safety"]


def test_a_node_aligns_towards_both_programmatic_rewards(folder: Path) -> None:
    """One after the other they go up by more than the noise; together the weights say which gives way."""
    settings = {
        "rewards": "opposed", "listed": tuple("abcdefghijklmnopqrstuvwxyz0123456789"), "method": "ppo", "steps": 14,
        "learning_rate": 0.1, "beta": 0.02, "batch_size": 6, "group": 16, "max_tokens": 3, "measure_prompts": 8,
        "reference_prompts": 12,
    }  # fmt: skip
    process = Process(Trainer(job(folder, settings)))
    found = {}
    for round_index, (name, weights) in enumerate(zip(NODES, ((1.0, 0.0), (0.0, 1.0)), strict=True)):
        align = messages.TrainTask(
            node=name, round_index=round_index, keep=True, part=PSI, objective=Alignment(weights)
        )
        found[name] = process.ask(align)[0].measures
    for name, what in zip(NODES, ("helpfulness", "safety"), strict=True):
        gain = found[name][what] - found[name][f"{what}_before"]
        assert gain > 2 * found[name][f"{what}_error"], (what, found[name])
    assert found["node-1"]["safety"] < found["node-2"]["safety"]
    assert found["node-1"]["helpfulness"] > found["node-2"]["helpfulness"]


def test_a_reward_that_tells_no_samples_apart_is_refused(folder: Path) -> None:
    process = Process(Trainer(job(folder, {"rewards": "programmatic", "method": "ppo"})))
    task = messages.TrainTask(node="node-1", round_index=1, part=PSI, objective=Alignment((0.5, 0.5)))
    with pytest.raises(ConfigError, match=r"the reward \w+ is the same for all 12 reference samples"):
        process.ask(task)
