"""Ranks that rest or are absent, orthogonality, and folds into the base, against small models of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.trainer import Trainer
from nodes.uplink import Uplink
from nodes.worker import Worker
from testbed.core import messages
from testbed.core.adapter import Layout
from testbed.core.errors import ConfigError, ProtocolError
from testbed.core.messages import Packet
from testbed.core.specs import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec
from testbed.lora.refactor import Stack, stack_layout, stacked
from testbed.lora.sparse_orthogonal import RankPairs, penalty
from testbed.lora.switch import slice_mask
from tests import tiny_llama
from tests.benches import small_bench

torch = pytest.importorskip("torch")

from nodes.local_terms import Orthogonality  # noqa: E402

SGD = {"optimizer": "sgd", "learning_rate": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama.make(tmp_path_factory.mktemp("llama"), layers=3)
    for split, count in (("train", 24), ("test", 5)):
        rows = ({"sentence": f"number {i} of the films is fine", "label": i % 2} for i in range(count))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make(folder: Path, dtype: Any = "float32", lora: dict[str, Any] | None = None, **training: Any) -> Trainer:
    return Trainer(
        JobSpec(
            seed=5,
            nodes=("node-1", "node-2"),
            model=ModelSpec(base=str(folder), dtype=dtype),
            lora=LoraSpec(**{"rank": 4, "alpha": 8.0, **(lora or {})}),
            data=DataSpec(source=str(folder), template="sst2"),
            training=TrainingSpec(**{"batch_size": 4, "learning_rate": 0.01, "local_steps": 3, **training}),
        )
    )


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Trainer:
    return make(folder)


def drawn(layout: Layout, seed: int = 1, size: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, layout.size).astype(np.float32)


@pytest.fixture(scope="module")
def vector(trainer: Trainer) -> np.ndarray:
    return trainer.initial + drawn(trainer.layout, size=0.05)


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [{}, {**SGD, "weight_decay": 0.1, "max_grad_norm": 0.05}])
def test_other_ranks_rest_or_are_absent(folder: Path, vector: np.ndarray, training: dict[str, Any]) -> None:
    ours = make(folder, **training)
    trained = slice_mask(ours.layout, 2)
    whole = ours.train("node-1", 1, vector)
    terms = {"proximal": 0.3, "drift": drawn(ours.layout, 4, 0.01)}
    for added in ({}, terms):
        frozen = ours.train("node-1", 1, vector, ranks=2, **added)  # type: ignore[arg-type]
        absent = ours.train("node-1", 1, vector, ranks=2, others="absent", **added)  # type: ignore[arg-type]
        for outcome in (frozen, absent):
            np.testing.assert_array_equal(outcome.vector[~trained], vector[~trained])
            assert (outcome.vector != vector)[trained].mean() > 0.99
        assert frozen.loss_first == whole.loss_first, "the others act"
        alone = np.where(trained, vector, np.float32(0))
        reference = ours.train("node-1", 1, alone, ranks=2, **added)  # type: ignore[arg-type]
        assert absent.loss_first == reference.loss_first != whole.loss_first
        np.testing.assert_array_equal(absent.vector[trained], reference.vector[trained])
        assert not np.array_equal(absent.vector, frozen.vector)
    np.testing.assert_array_equal(ours.train("node-1", 1, vector, ranks=4, others="absent").vector, whole.vector)
    np.testing.assert_array_equal(ours.train("node-1", 1, vector).vector, whole.vector)
    only = ours.train("node-1", 1, vector, ranks=2, factors="B").vector != vector
    kinds = np.concatenate([np.full(factor.size, factor.kind == "B") for factor in ours.layout.factors])
    np.testing.assert_array_equal(only, trained & kinds)


def test_absent_ranks_are_a_lora_of_smaller_rank(folder: Path, trainer: Trainer, vector: np.ndarray) -> None:
    """With alpha / rank as it was: the same losses and the same first ranks as an adapter that has no others."""
    small = make(folder, lora={"rank": 2, "alpha": 4.0})
    start = small.layout.pack(
        {
            name: np.ascontiguousarray(values[:2] if ".lora_A" in name else values[:, :2])
            for name, values in trainer.layout.unpack(vector).items()
        }
    )
    expected = small.train("node-2", 4, start)
    found = trainer.train("node-2", 4, vector, ranks=2, others="absent")
    assert found.loss_mean == pytest.approx(expected.loss_mean, rel=1e-5)
    trained = slice_mask(trainer.layout, 2)
    np.testing.assert_allclose(found.vector[trained], _first(small, trainer, expected.vector)[trained], atol=2e-4)


def _first(small: Trainer, large: Trainer, vector: np.ndarray) -> np.ndarray:
    wide = np.zeros(large.layout.size, np.float32)
    views = large.layout.unpack(wide)
    for name, values in small.layout.unpack(vector).items():
        views[name][: values.shape[0], : values.shape[1]] = values
    return wide


# --- orthogonality ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [{}, {"targets": ("q_proj", "k_proj", "down_proj"), "rank": 3}, {"freeze_a": True}])
def test_the_gradient_of_orthogonality_is_that_of_autograd(folder: Path, lora: dict[str, Any]) -> None:
    layout = make(folder, lora=lora).layout
    flat = torch.from_numpy(drawn(layout, 2, 0.3)).double().requires_grad_(True)
    omega = torch.zeros((), dtype=torch.float64)
    modules = {factor.module for factor in layout.factors}
    for factor in layout.factors:
        matrix = flat[layout.slices[factor.name]].view(factor.shape)
        rows = matrix if factor.kind == "A" else matrix.T
        gram = rows @ rows.T
        omega = omega + ((gram - torch.diag(torch.diag(gram))) ** 2).sum() / len(modules)
    (0.7 * omega).backward()
    start = torch.ones_like(flat)
    found = start.clone()
    Orthogonality.of(layout, 0.7).add_gradient(flat.detach(), found)
    assert flat.grad.abs().max() > 0.01
    torch.testing.assert_close(found - start, flat.grad, rtol=1e-9, atol=1e-12)
    if not lora.get("freeze_a"):
        value, gradient = penalty(RankPairs.of(layout), flat.detach().numpy())
        assert value == pytest.approx(float(omega.detach()))
        np.testing.assert_allclose(0.7 * gradient, flat.grad.numpy(), rtol=1e-6, atol=1e-9)


def test_orthogonality_in_training(folder: Path, vector: np.ndarray) -> None:
    ours = make(folder, **SGD, max_grad_norm=None, local_steps=1)
    plain = ours.train("node-1", 1, vector)
    found = ours.train("node-1", 1, vector, orthogonality=0.2)
    pairs = RankPairs.of(ours.layout)
    value, gradient = penalty(pairs, vector)
    assert found.loss_mean == plain.loss_mean, "the losses are those of the data"
    np.testing.assert_allclose(plain.vector - found.vector, 0.1 * 0.2 * gradient, rtol=1e-3, atol=1e-6)
    strong = ours.train("node-1", 1, vector, orthogonality=2.0, local_steps=10)
    assert penalty(pairs, strong.vector)[0] < 0.5 * value
    np.testing.assert_array_equal(ours.train("node-1", 1, vector, orthogonality=0.0).vector, plain.vector)


# --- folds ------------------------------------------------------------------------------------------------------------


def weights_of(trainer: Trainer) -> dict[str, Any]:
    return {
        name: value.detach().clone()
        for name, value in trainer._adapter.model.named_parameters()
        if ".lora_" not in name
    }


def test_a_folded_adapter_is_the_adapter(folder: Path, vector: np.ndarray) -> None:
    """The base with the fold and an adapter at its start scores as the adapter on the bare base did."""
    ours = make(folder)
    vector = vector * np.float32(4.0)
    before = weights_of(ours)
    expected, initial = ours.evaluate(vector).loss_sum, ours.evaluate(ours.initial).loss_sum
    fold = stacked(ours.layout, {"a": vector}, {"a": 1.0})
    ours.fold([fold])
    assert ours.evaluate(ours.initial).loss_sum == pytest.approx(expected, rel=1e-5)
    assert initial != pytest.approx(expected, rel=1e-3)
    views = ours.layout.unpack(vector)
    changed = 0
    for name, weight in weights_of(ours).items():
        stem = name.removesuffix(".base_layer.weight")
        if f"{stem}.lora_A.weight" in views:
            product = views[f"{stem}.lora_B.weight"].astype(np.float64) @ views[f"{stem}.lora_A.weight"]
            np.testing.assert_allclose(weight.numpy(), before[name].numpy() + 2.0 * product, atol=1e-5)
            changed += 1
        else:
            assert torch.equal(weight, before[name])
    assert changed == 6
    mean = {name: vector * factor for name, factor in (("a", np.float32(1.0)), ("b", np.float32(0.5)))}
    ours.fold([stacked(ours.layout, mean, {"a": 3.0, "b": 1.0})])
    for name, weight in weights_of(ours).items():
        stem = name.removesuffix(".base_layer.weight")
        if f"{stem}.lora_A.weight" in views:
            product = views[f"{stem}.lora_B.weight"].astype(np.float64) @ views[f"{stem}.lora_A.weight"]
            np.testing.assert_allclose(weight.numpy(), before[name].numpy() + 1.625 * product, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folds_come_and_go_bit_for_bit(folder: Path, dtype: str) -> None:
    """One after the other, all at once in a process that came later, and back again after something else."""
    ours, late = make(folder, dtype), make(folder, dtype)
    before = weights_of(ours)
    folds = [Stack(drawn(stack_layout(ours.layout, rank), rank, 0.05), rank) for rank in (2, 5, 1)]
    for count in range(4):
        ours.fold(folds[:count])
    late.fold([Stack(fold.vector.copy(), fold.rank) for fold in folds])
    after = weights_of(ours)
    assert sum(not torch.equal(after[name], before[name]) for name in before) == 6
    same = all(torch.equal(value, after[name]) for name, value in weights_of(late).items())
    assert same
    np.testing.assert_array_equal(
        ours.train("node-1", 1, ours.initial).vector, late.train("node-1", 1, late.initial).vector
    )
    ours.fold([folds[1]])
    assert not torch.equal(weights_of(ours)[_one(before)], after[_one(before)])
    ours.fold([])
    assert all(torch.equal(value, before[name]) for name, value in weights_of(ours).items())
    ours.fold(folds)
    assert all(torch.equal(value, after[name]) for name, value in weights_of(ours).items())


def _one(weights: dict[str, Any]) -> str:
    return next(name for name in weights if "q_proj" in name)


def test_small_folds_add_up_in_bfloat16(folder: Path) -> None:
    """Each is below half a step of bfloat16 for most weights; a hundred are not lost."""
    ours = make(folder, "bfloat16")
    before = weights_of(ours)
    fold = Stack(drawn(stack_layout(ours.layout, 1), 3, 0.004), 1)
    ours.fold([fold] * 100)
    views = stack_layout(ours.layout, 1).unpack(fold.vector)
    name = _one(before)
    stem = name.removesuffix(".base_layer.weight")
    product = 100 * 2.0 * views[f"{stem}.lora_B.weight"].astype(np.float64) @ views[f"{stem}.lora_A.weight"]
    expected = before[name].float().numpy() + product
    found = weights_of(ours)[name].float().numpy()
    assert np.all(np.abs(found - expected) <= np.abs(expected) / 256 + 1e-6), "rounded once"
    assert np.abs(product).max() > 0.002


def test_a_node_that_lacks_folds_says_so() -> None:
    worker = Worker(say=lambda message, arrays: None, should_stop=lambda: False)
    worker.adopt("a", None, np.zeros(3, np.float32), small_bench(), Uplink())  # type: ignore[arg-type]
    given = {"adapter": np.zeros(3, np.float32), "fold-0": np.ones(2, np.float32)}
    worker.answer(Packet(messages.SetAdapter(node="a", fold_ranks=(1,)), given))
    with pytest.raises(ProtocolError, match="a has 1 folds in its base, and the controller speaks of 2"):
        worker.answer(Packet(messages.SetAdapter(node="a", folded=2), given))


def test_weights_of_four_bits_take_no_fold(folder: Path) -> None:
    ours = make(folder)
    layer = ours._adapter.model.get_submodule(ours.layout.factors[0].module).get_base_layer()
    layer.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match="4 bits cannot take it") as caught:
        ours.fold([Stack(drawn(stack_layout(ours.layout, 1)), 1)])
    assert caught.value.key == "model.dtype"
