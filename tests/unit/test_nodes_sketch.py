"""Sketches and penalties on the last ranks, carried out by the trainer: against peft itself and autograd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.trainer import Trainer
from testbed.core import messages, record
from testbed.core.adapter import Layout
from testbed.core.errors import LimitError
from testbed.core.orders import Part, Tail, Train, Work
from testbed.core.specs import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec
from testbed.engine.limits import check_order
from testbed.lora.choice import part_mask
from testbed.lora.node_ranks import tail_products
from tests import tiny_llama
from tests.benches import small_bench

torch = pytest.importorskip("torch")

from nodes.tail_penalty import TailPenalty  # noqa: E402

SKETCH = (0, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama.make(tmp_path_factory.mktemp("llama"), layers=2)
    for split, count in (("train", 24), ("test", 5)):
        rows = ({"sentence": f"number {i} of the films is fine", "label": i % 2} for i in range(count))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make(folder: Path, rank: int = 4, **training: Any) -> Trainer:
    return Trainer(
        JobSpec(
            seed=5,
            nodes=("node-1", "node-2"),
            model=ModelSpec(base=str(folder)),
            lora=LoraSpec(rank=rank, alpha=8.0),
            data=DataSpec(source=str(folder), template="sst2"),
            training=TrainingSpec(**{"batch_size": 4, "learning_rate": 0.01, "local_steps": 3, **training}),
        )
    )


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Trainer:
    return make(folder)


@pytest.fixture(scope="module")
def vector(trainer: Trainer) -> np.ndarray:
    return trainer.initial + np.random.default_rng(1).normal(0, 0.05, trainer.layout.size).astype(np.float32)


def columns(layout: Layout, vector: np.ndarray, small: Layout) -> np.ndarray:
    """The sketch's ranks as an adapter of their own."""
    return small.pack(
        {
            name: np.ascontiguousarray(values[list(SKETCH)] if ".lora_A" in name else values[:, list(SKETCH)])
            for name, values in layout.unpack(vector).items()
        }
    )


def test_a_sketch_is_a_lora_of_its_ranks_at_the_same_alpha(folder: Path, trainer: Trainer, vector: np.ndarray) -> None:
    """(alpha / r) B S A with S = (r / k) diag(0, 1) is (alpha / k) B_k A_k: peft with rank k does the same steps."""
    small = make(folder, rank=2)
    expected = small.train("node-1", 3, columns(trainer.layout, vector, small.layout))
    found = trainer.train("node-1", 3, vector, sketch=SKETCH)
    assert found.loss_first == pytest.approx(expected.loss_first, rel=1e-6)
    assert found.loss_mean == pytest.approx(expected.loss_mean, rel=1e-5)
    ours = columns(trainer.layout, found.vector, small.layout)
    np.testing.assert_allclose(ours, expected.vector, atol=2e-4)
    outside = ~part_mask(trainer.layout, Part(columns=SKETCH))
    np.testing.assert_array_equal(found.vector[outside], vector[outside])
    assert (found.vector != vector)[~outside].mean() > 0.99
    other = trainer.train("node-1", 3, vector, sketch=(1, 2))
    assert other.loss_first != found.loss_first


def test_the_sketch_ends_with_the_round(trainer: Trainer, vector: np.ndarray) -> None:
    before = trainer.train("node-1", 1, vector)
    trainer.train("node-1", 1, vector, sketch=SKETCH)
    np.testing.assert_array_equal(trainer.train("node-1", 1, vector).vector, before.vector)
    every = trainer.train("node-1", 1, vector, sketch=(0, 1, 2, 3))
    np.testing.assert_array_equal(every.vector, before.vector)


def test_the_gradient_of_the_tail_is_that_of_autograd(trainer: Trainer, vector: np.ndarray) -> None:
    layout, tail = trainer.layout, Tail(0.7, 1, 3)
    flat = torch.tensor(vector, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    modules = dict.fromkeys(factor.module for factor in layout.factors)
    for module in modules:
        down, up = (
            flat[layout.slices[factor.name]].view(factor.shape) for factor in layout.factors if factor.module == module
        )
        total = total + torch.linalg.norm(down[1:3]) * torch.linalg.norm(up[:, 1:3])
    assert tail_products(layout, vector, 1, 3) == pytest.approx(float(total.detach()), rel=1e-6)
    (0.7 * total).backward()
    found = torch.zeros(layout.size)
    TailPenalty.of(layout, tail).add_gradient(torch.tensor(vector), found)
    np.testing.assert_allclose(found.numpy(), flat.grad.numpy(), atol=1e-6)
    # B = 0, as at the start, has no gradient of its own and gives A none
    still = torch.zeros(layout.size)
    TailPenalty.of(layout, tail).add_gradient(torch.tensor(trainer.initial), still)
    assert not still.any()


def test_the_penalty_is_part_of_the_step_and_makes_the_tail_fade(folder: Path, vector: np.ndarray) -> None:
    rate = 0.05
    ours = make(folder, optimizer="sgd", learning_rate=rate, local_steps=1, max_grad_norm=1e9)
    plain = ours.train("node-1", 1, vector)
    bent = ours.train("node-1", 1, vector, tail=Tail(2.0, 2, 4))
    gradient = torch.zeros(ours.layout.size)
    TailPenalty.of(ours.layout, Tail(2.0, 2, 4)).add_gradient(torch.tensor(vector), gradient)
    np.testing.assert_allclose(bent.vector, plain.vector - rate * gradient.numpy(), atol=1e-6)
    assert bent.loss_mean == plain.loss_mean, "losses are those of the data"
    sizes = [tail_products(ours.layout, one, 2, 4) for one in (bent.vector, plain.vector)]
    assert sizes[0] < sizes[1]


def test_they_are_recorded_and_travel_as_they_are() -> None:
    work = Work(sketch=SKETCH, tail=Tail(0.5, 1, 2), part=Part(columns=(2,)))
    plain = json.loads(json.dumps(record.to_plain(work, lambda _: 0)))
    assert record.from_plain(plain, lambda *_: np.zeros(0)) == work
    task = messages.TrainTask(node="n", round_index=1, sketch=work.sketch, tail=work.tail, part=work.part)
    again = messages.TrainTask.model_validate_json(task.model_dump_json())
    assert (again.sketch, again.tail, again.part) == (work.sketch, work.tail, work.part)


@pytest.mark.parametrize(
    ("work", "complaint"),
    [
        (Work(sketch=(0, 9)), "columns (0, 9) of a LoRA of rank 4: give ranks from 0 to 3, ascending"),
        (Work(sketch=(2, 1)), "ascending"),
        (Work(sketch=()), "ascending"),
        (Work(sketch=(1,), ranks=2), "sketch and ranks both choose ranks"),
        (Work(tail=Tail(-1.0, 0, 1)), "a weight of at least 0"),
        (Work(tail=Tail(1.0, 2, 2)), "ranks first < last"),
    ],
)
def test_sketches_and_tails_that_make_no_sense_are_refused(trainer: Trainer, work: Work, complaint: str) -> None:
    bench = small_bench()
    with pytest.raises(LimitError) as caught:
        check_order(Train({bench.node_names[0]: work}), bench, trainer.layout.size, trainer.layout)
    assert complaint in str(caught.value)
