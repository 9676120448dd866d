"""A smaller model is the masked model, masks nest and are undone, importance is what it says it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.trainer import Trainer
from testbed.core.adapter import Layout
from testbed.core.errors import ConfigError
from testbed.core.orders import Payload, Pruning
from testbed.core.specs import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec
from testbed.lora import parcel
from testbed.lora.llama_layout import llama_layer_shape, llama_work_share
from testbed.lora.refactor import Stack, stack_layout
from tests import tiny_llama

torch = pytest.importorskip("torch")

from nodes.pruning import Pruner, _layers  # noqa: E402

NODES = ("node-1", "node-2")
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RATIOS = (0.05, 0.2, 0.45, 0.5, 0.7, 0.95)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama.make(tmp_path_factory.mktemp("llama"))
    words = ("antenna", "receiver", "film", "answer", "signal", "matrix")
    for split, count in (("train", 24), ("test", 5)):
        rows = ({"sentence": f"the {words[i % 6]} number {i} is fine", "label": i % 2} for i in range(count))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make(folder: Path, dtype: Any = "float32", lora: dict[str, Any] | None = None, **training: Any) -> Trainer:
    return Trainer(
        JobSpec(
            seed=5,
            nodes=NODES,
            model=ModelSpec(base=str(folder), dtype=dtype),
            lora=LoraSpec(**{"rank": 4, "alpha": 8.0, "targets": EVERY, **(lora or {})}),
            data=DataSpec(source=str(folder), template="sst2"),
            training=TrainingSpec(**{"batch_size": 4, "learning_rate": 0.01, "local_steps": 2, **training}),
        )
    )


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Trainer:
    return make(folder)


@pytest.fixture(scope="module")
def vector(trainer: Trainer) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 0.05, trainer.layout.size)
    return trainer.initial + noise.astype(np.float32)


def pruner(trainer: Trainer) -> Pruner:
    return trainer._pruning()


def masks(trainer: Trainer, node: str, pruning: Pruning) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """Each masked layer of the whole model, with what stays of its inputs, read off the smaller model's places."""
    smaller = pruner(trainer).smaller(node, pruning)
    assert smaller is not None
    there = np.zeros(trainer.layout.size, bool)
    there[smaller.places] = True
    for name, part in trainer.layout.unpack(there).items():
        if name.endswith(("o_proj.lora_A.weight", "down_proj.lora_A.weight")):
            stays = part.all(axis=0)
            assert (part.any(axis=0) == stays).all()
            yield name, trainer._adapter.model.get_submodule(name.removesuffix(".lora_A.weight")), stays


def loss_and_gradient(net: Any, batch: Any) -> tuple[float, np.ndarray]:
    net.adapter.gradient.zero_()
    loss = net.likelihood.loss(batch)
    loss.backward()
    return float(loss.detach()), net.adapter.gradient.numpy().copy()


@pytest.mark.parametrize("importance", ["data", "magnitude"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.95])
def test_the_smaller_model_is_the_masked_model(
    trainer: Trainer, vector: np.ndarray, ratio: float, importance: Any
) -> None:
    pruning = Pruning(ratio, importance=importance)
    smaller = pruner(trainer).smaller("node-1", pruning)
    assert smaller is not None
    batch = trainer._importance_batches("node-2")[0]
    removers = []
    for _, module, stays in masks(trainer, "node-1", pruning):
        keep = torch.from_numpy(stays.astype(np.float32))
        removers.append(module.register_forward_pre_hook(lambda _, inputs, keep=keep: (inputs[0] * keep,)))
        assert 0 < stays.sum() < len(stays) or ratio == 0.1
    whole = pruner(trainer)
    trainer._adapter.write(vector)
    expected, gradient = loss_and_gradient(whole, batch)
    ids = torch.from_numpy(batch.input_ids)
    with torch.no_grad():
        logits = trainer._adapter.model(input_ids=ids).logits
    for remover in removers:
        remover.remove()
    smaller.adapter.write(vector[smaller.places])
    found, own = loss_and_gradient(smaller, batch)
    with torch.no_grad():
        np.testing.assert_allclose(smaller.adapter.model(input_ids=ids).logits, logits, atol=1e-5)
    assert found == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(own, gradient[smaller.places], rtol=1e-4, atol=2e-5)
    gone = np.ones(len(gradient), bool)
    gone[smaller.places] = False
    assert not gradient[gone].any(), "what was taken out does not act"
    assert trainer.evaluate(vector).loss_sum != pytest.approx(expected)


@pytest.mark.parametrize("importance", ["data", "magnitude"])
def test_masks_nest_and_energy_rises(trainer: Trainer, importance: Any) -> None:
    before, energy, share = np.ones(trainer.layout.size, bool), 0.0, 1.0
    for ratio in RATIOS:
        smaller = pruner(trainer).smaller("node-1", Pruning(ratio, importance=importance))
        assert smaller is not None
        there = np.zeros(trainer.layout.size, bool)
        there[smaller.places] = True
        assert not (there & ~before).any()
        facts = smaller.facts
        assert ratio - 0.21 < facts.ratio <= ratio + 1e-9
        assert facts.energy_share > energy
        assert facts.work_share < share
        weights = [w for n, w in smaller.adapter.model.named_parameters() if "layers" in n and w.dim() == 2]
        prunable = sum(w.numel() for w, n in zip(weights, _names(smaller), strict=True) if "lora_" not in n)
        assert facts.ratio == pytest.approx(1 - prunable / (2 * (3072 + 4608)))
        before, energy, share = there, facts.energy_share, facts.work_share
    assert share < 0.8


def _names(smaller: Any) -> list[str]:
    return [n for n, w in smaller.adapter.model.named_parameters() if "layers" in n and w.dim() == 2]


def test_the_config_file_knows_the_same(trainer: Trainer, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert llama_layer_shape(config) == pruner(trainer)._shape
    for ratio in RATIOS:
        smaller = pruner(trainer).smaller("node-1", Pruning(ratio))
        assert smaller is not None
        share, true_ratio = llama_work_share(config, trainer.job.lora, ratio)
        assert (share, true_ratio) == pytest.approx((smaller.facts.work_share, smaller.facts.ratio))


def test_operations_are_those_that_are_counted(folder: Path) -> None:
    """Forward and backward under a counter; the first layer asks for no gradient of its input, which counts as work."""
    from torch.utils.flop_counter import FlopCounterMode

    ours = make(folder, loss_on="all")
    batch = ours._importance_batches("node-1")[0]

    def count(net: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            net.likelihood.loss(batch).backward()
        return counter.get_total_flops()

    whole = count(pruner(ours))
    for ratio in (0.2, 0.5, 0.95):
        smaller = pruner(ours).smaller("node-1", Pruning(ratio))
        assert smaller is not None
        assert count(smaller) / whole == pytest.approx(smaller.facts.work_share, rel=0.06)


def test_importance_is_weight_times_gradient(trainer: Trainer, folder: Path) -> None:
    """The same sums with plain transformers; magnitude is the sum of squares, and e_k what it loses."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder)
    heads, channels = np.zeros(2), np.zeros(48)
    for batch in trainer._importance_batches("node-2"):
        plain.zero_grad()
        logits = plain(
            input_ids=torch.from_numpy(batch.input_ids), attention_mask=torch.from_numpy(batch.attention_mask)
        )
        chosen = logits.logits.log_softmax(-1)[:, :-1].gather(2, torch.from_numpy(batch.input_ids)[:, 1:, None])[..., 0]
        counts = torch.from_numpy(batch.loss_mask[:, 1:])
        (-chosen[counts].sum() / counts.sum()).backward()
        layer = plain.model.layers[1]
        change = {
            name: (part.weight * part.weight.grad).abs().detach().numpy()
            for name, part in (*layer.self_attn.named_children(), *layer.mlp.named_children())
            if name in EVERY
        }
        for head in range(2):
            query, key = slice(16 * head, 16 * head + 16), slice(8 * head, 8 * head + 8)
            heads[head] += change["q_proj"][query].sum() + change["o_proj"][:, query].sum()
            heads[head] += change["k_proj"][key].sum() + change["v_proj"][key].sum()
        channels += (change["gate_proj"] + change["up_proj"] + change["down_proj"].T).sum(axis=1)
    found = pruner(trainer)._group_scores("node-2")
    np.testing.assert_allclose(found[0][1], heads, rtol=1e-3)
    np.testing.assert_allclose(found[1][1], channels, rtol=2e-3, atol=1e-6)
    smaller = pruner(trainer).smaller("node-2", Pruning(0.5, importance="magnitude"))
    assert smaller is not None
    total, kept = 0.0, 0.0
    for name, value in plain.named_parameters():
        if name.split(".")[-2] in EVERY:
            total += float((value.detach().double() ** 2).sum())
    for name, value in smaller.adapter.model.named_parameters():
        if name.split(".")[-3] in EVERY and "base_layer" in name:
            kept += float((value.detach().double() ** 2).sum())
    assert smaller.facts.energy_share == pytest.approx(1 - kept / total, rel=1e-6)


def test_training_a_smaller_model_touches_only_its_values(trainer: Trainer, vector: np.ndarray) -> None:
    plain = trainer.train("node-1", 3, vector)
    assert plain.pruning.work_share == 1.0
    nothing = trainer.train("node-1", 3, vector, pruning=Pruning(0.0))
    np.testing.assert_array_equal(plain.vector, nothing.vector)
    pruning = Pruning(0.5)
    drift = np.random.default_rng(2).normal(0, 0.01, vector.size).astype(np.float32)
    outcome = trainer.train("node-1", 3, vector, pruning=pruning, drift=drift)
    smaller = pruner(trainer).smaller("node-1", pruning)
    assert smaller is not None
    there = np.zeros(vector.size, bool)
    there[smaller.places] = True
    update = outcome.vector - vector
    assert not update[~there].any()
    assert (update[there] != 0).mean() > 0.99
    assert outcome.pruning == smaller.facts
    payload = Payload(choice="touched")
    decoded, covered = parcel.decode(
        trainer.layout, payload, parcel.encode(trainer.layout, payload, vector, update, seed=1)
    )
    np.testing.assert_array_equal(covered, there)
    np.testing.assert_array_equal(decoded, update)
    again = make(Path(trainer.job.model.base)).train("node-1", 3, vector, pruning=pruning, drift=drift)
    np.testing.assert_array_equal(again.vector, outcome.vector)
    np.testing.assert_array_equal(trainer.train("node-1", 3, vector).vector, plain.vector)
    other = pruner(trainer).smaller("node-2", pruning)
    assert other is not None
    assert not np.array_equal(other.places, smaller.places), "other data, other masks"


def test_a_frozen_a_is_sliced_not_drawn(folder: Path) -> None:
    frozen = make(folder, lora={"freeze_a": True})
    smaller = pruner(frozen).smaller("node-1", Pruning(0.5))
    assert smaller is not None
    whole = frozen.frozen_layout.unpack(frozen.frozen)
    for name, part in smaller.adapter.frozen_layout.unpack(smaller.adapter.frozen).items():
        columns = [np.flatnonzero((whole[name] == one[:, None]).all(axis=0)) for one in part.T]
        assert all(len(found) == 1 for found in columns)
    assert smaller.adapter.frozen.size < frozen.frozen.size
    update = frozen.train("node-1", 0, frozen.initial, pruning=Pruning(0.5)).vector
    assert 0 < (update != 0).sum() <= smaller.places.size


def weights_of(trainer: Trainer) -> dict[str, Any]:
    return {
        name: value.detach().clone()
        for name, value in trainer._adapter.model.named_parameters()
        if ".lora_" not in name
    }


@pytest.mark.parametrize("importance", ["data", "magnitude"])
def test_zeroed_weights_come_back(trainer: Trainer, vector: np.ndarray, importance: Any) -> None:
    before = weights_of(trainer)
    plain = trainer.train("node-1", 1, vector)
    pruning = Pruning(0.4, "unstructured", importance)
    outcome = trainer.train("node-1", 1, vector, pruning=pruning)
    assert np.abs(outcome.vector - plain.vector).max() > 1e-3
    assert outcome.pruning.work_share == 1.0
    with pytest.raises(ConfigError, match="loss of node-1"):
        trainer.train("node-1", 1, np.full_like(vector, np.nan), pruning=pruning)
    for name, value in weights_of(trainer).items():
        assert torch.equal(value, before[name])
    # every row loses the floor(0.4 n) of least score
    counts = [int(0.4 * one.bare.in_features) for one in pruner(trainer)._linears()]
    lost = total = removed = 0.0
    for one, mask, count in zip(
        pruner(trainer)._linears(), pruner(trainer).masks("node-1", pruning), counts, strict=True
    ):
        assert (mask.sum(dim=1) == count).all()
        weight = one.bare.weight.double()
        lost, total = lost + float((weight[mask] ** 2).sum()), total + float((weight**2).sum())
        removed += int(mask.sum())
        if importance == "magnitude":
            for row, out in zip(weight.abs(), mask, strict=True):
                assert row[out].max() <= row[~out].min()
    assert outcome.pruning.energy_share == pytest.approx(lost / total)
    assert outcome.pruning.ratio == pytest.approx(removed / (2 * (3072 + 4608)))
    small = pruner(trainer).masks("node-1", Pruning(0.2, "unstructured", importance))
    for one, other in zip(small, pruner(trainer).masks("node-1", pruning), strict=True):
        assert not (one & ~other).any()


def test_wanda_weighs_by_the_inputs(trainer: Trainer) -> None:
    """||x_j|| of the first layer's queries: normalised embeddings of all real tokens."""
    base = trainer._adapter.model.get_base_model()
    squares = torch.zeros(32, dtype=torch.float64)
    for batch in trainer._importance_batches("node-1"):
        ids = torch.from_numpy(batch.input_ids)[torch.from_numpy(batch.attention_mask) > 0]
        with torch.no_grad():
            squares += base.model.layers[0].input_layernorm(base.model.embed_tokens(ids)).double().square().sum(0)
    pruner(trainer).masks("node-1", Pruning(0.3, "unstructured"))
    found = pruner(trainer)._norms["node-1"]["model.layers.0.self_attn.q_proj"]
    np.testing.assert_allclose(found.numpy(), squares.sqrt().numpy(), rtol=1e-5)


def test_a_fold_makes_importance_anew(folder: Path) -> None:
    ours = make(folder)
    before = pruner(ours).smaller("node-1", Pruning(0.5))
    fold_layout: Layout = stack_layout(ours.layout, 1)
    fold = Stack(np.random.default_rng(3).normal(0, 0.3, fold_layout.size).astype(np.float32), 1)
    ours.fold([fold])
    after = pruner(ours).smaller("node-1", Pruning(0.5))
    ours.fold([])
    back = pruner(ours).smaller("node-1", Pruning(0.5))
    assert before is not None
    assert after is not None
    assert back is not None
    assert after.facts.energy_share != before.facts.energy_share
    assert back.facts == before.facts
    np.testing.assert_array_equal(back.places, before.places)


def test_bfloat16_prunes(folder: Path) -> None:
    ours = make(folder, dtype="bfloat16")
    for kind in ("structured", "unstructured"):
        outcome = ours.train("node-1", 0, ours.initial, pruning=Pruning(0.5, kind))  # type: ignore[arg-type]
        assert outcome.vector.dtype == np.float32
        assert np.isfinite(outcome.loss_last)


def test_what_cannot_be_pruned_says_so() -> None:
    odd = torch.nn.Module()
    with pytest.raises(ConfigError, match="cannot be pruned: it has no layers"):
        _layers(odd)

    def block(names: tuple[str, ...]) -> Any:
        return torch.nn.ModuleDict({name: torch.nn.Linear(4, 4, bias=False) for name in names})

    quantised = torch.nn.ModuleList([block(EVERY[:4]), block(EVERY[4:])])
    assert len(_layers(quantised)) == 1
    weight = torch.zeros(4, 4, dtype=torch.uint8)
    quantised[0]["q_proj"].weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ConfigError, match="4 bits cannot be pruned") as caught:
        _layers(quantised)
    assert caught.value.key == "model.dtype"
