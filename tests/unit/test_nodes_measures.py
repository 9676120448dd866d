"""What a node measures equals plain autograd, and leaves training as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.measures import Measures
from nodes.trainer import Trainer
from nodes.worker import Worker
from testbed.core import messages
from testbed.core.errors import ConfigError, DeviceError, ProtocolError
from testbed.core.messages import Packet
from testbed.core.specs import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec
from testbed.opt.wasserstein import sliced
from tests import tiny_llama
from tests.benches import small_bench

torch = pytest.importorskip("torch")

BENCH = small_bench()
NODES = BENCH.node_names
NODE = NODES[1]
NOUNS = ("antenna", "receiver", "film", "answer", "signal", "matrix")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama.make(tmp_path_factory.mktemp("llama"))
    for split, count in (("train", 40), ("test", 11)):
        rows = (
            {"text": f"the {NOUNS[index % 6]} number {index}{split[1]} is {'very ' * (index % 3)}fine"}
            for index in range(count)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def job(folder: Path, **training: Any) -> JobSpec:
    return JobSpec(
        seed=5,
        nodes=NODES,
        model=ModelSpec(base=str(folder)),
        lora=LoraSpec(rank=4, alpha=8.0),
        data=DataSpec(source=str(folder)),
        training=TrainingSpec(**{"batch_size": 4, "local_steps": 2, "sequence_length": 32, **training}),
    )


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Trainer:
    return Trainer(job(folder))


@pytest.fixture(scope="module")
def points(trainer: Trainer) -> np.ndarray:
    """The initial adapter, and another one."""
    rng = np.random.default_rng(1)
    return np.stack([trainer.initial, trainer.initial + rng.normal(0, 0.1, trainer.layout.size).astype(np.float32)])


def plain(trainer: Trainer, point: np.ndarray, rows: np.ndarray) -> tuple[float, np.ndarray]:
    """Loss and gradient of one batch, row by row with torch alone."""
    encoded = Measures(trainer)._rows_of(NODE)
    adapter = trainer._adapter
    adapter.write(point)
    parameters = [parameter for parameter in adapter.model.parameters() if parameter.requires_grad]
    total, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor(np.concatenate([encoded[row].prompt, encoded[row].response]))
        logits = adapter.model(input_ids=ids[None]).logits[0]
        targets = ids[max(1, len(encoded[row].prompt)) :]
        total = total + torch.nn.functional.cross_entropy(logits[-len(targets) - 1 : -1], targets, reduction="sum")
        count += len(targets)
    found = torch.autograd.grad(total / count, parameters)
    return float(total.detach()) / count, torch.cat([one.flatten() for one in found]).double().numpy()


def test_gradients_equal_plain_autograd(trainer: Trainer, points: np.ndarray) -> None:
    # the second batch is larger than a forward pass of training
    rows = np.array([[0, 3, 5, 7, 9, 11], [1, 1, 2, 4, 6, 8], [2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 0]])
    direction = np.random.default_rng(2).normal(size=trainer.layout.size).astype(np.float32)
    found = Measures(trainer).gradients(NODE, points, rows, blocks=2, direction=direction)
    for place, point in enumerate(points):
        expected = [plain(trainer, point, one) for one in rows]
        gradients = np.stack([one[1] for one in expected])
        assert np.linalg.norm(gradients[0]) > 1e-3
        np.testing.assert_allclose(found.losses[place], [one[0] for one in expected], rtol=1e-5)
        np.testing.assert_allclose(found.norms[place], np.sum(gradients**2, axis=1), rtol=1e-3)
        np.testing.assert_allclose(
            found.products[place], [gradients[0] @ gradients[1], gradients[2] @ gradients[3]], rtol=1e-3
        )
        np.testing.assert_allclose(found.slopes[place], gradients @ direction, rtol=1e-2, atol=1e-5)
        for block in range(2):
            mean = gradients[2 * block : 2 * block + 2].mean(axis=0)
            np.testing.assert_allclose(found.means[place, block], mean, rtol=1e-3, atol=1e-6)


def test_nothing_is_left_behind(trainer: Trainer, folder: Path, points: np.ndarray) -> None:
    fresh = Trainer(job(folder)).train(NODE, 3, trainer.initial)
    Measures(trainer).gradients(NODE, points, np.array([[1, 2], [3, 4]]))
    Measures(trainer).states(Measures(trainer).own_rows(NODE, 4, np.random.default_rng(0)))
    np.testing.assert_array_equal(trainer.train(NODE, 3, trainer.initial).vector, fresh.vector)


def test_curvature_equals_that_of_autograd(trainer: Trainer, points: np.ndarray) -> None:
    """Largest eigenvalue of the Hessian: by differences of measured gradients, and from torch's own products."""
    from calibration.loss_constants import top_curvature

    rows, step, start = np.array([[0, 1, 2, 3]]), 0.02, points[1].astype(np.float64)

    def measured(way: np.ndarray) -> np.ndarray:
        pair = np.stack([start + step * way, start - step * way]).astype(np.float32)
        means = Measures(trainer).gradients(NODE, pair, rows).means[:, 0].astype(np.float64)
        return (means[0] - means[1]) / (2 * step)

    adapter = trainer._adapter
    parameters = [parameter for parameter in adapter.model.parameters() if parameter.requires_grad]
    batch = [Measures(trainer)._rows_of(NODE)[row] for row in rows[0]]

    def exact(way: np.ndarray) -> np.ndarray:
        from nodes.tokens import collate

        adapter.write(points[1])
        one = collate(batch, pad=trainer._pad, loss_on="response")
        loss = trainer._likelihood.loss(one) / one.num_targets
        first = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
        second = torch.autograd.grad(first @ torch.from_numpy(way.astype(np.float32)), parameters)
        return torch.cat([g.flatten() for g in second]).double().numpy()

    first = np.random.default_rng(3).normal(size=len(start))
    ours = top_curvature(measured, first, most=12)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        truth = top_curvature(exact, first, most=40, tolerance=1e-3)
    assert ours.value == pytest.approx(truth.value, rel=0.03)


def test_progress_and_stop(trainer: Trainer, points: np.ndarray) -> None:
    seen: list[float] = []
    rows = np.array([[0], [1]])
    Measures(trainer).gradients(NODE, points, rows, progress=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(DeviceError, match="was stopped"):
        Measures(trainer).gradients(NODE, points, rows, should_stop=lambda: True)


def test_states_are_means_over_tokens(trainer: Trainer) -> None:
    rows = Measures(trainer).own_rows(NODE, 100, np.random.default_rng(0))
    assert len(rows) == trainer.num_samples(NODE)
    found = Measures(trainer).states(rows)
    assert found.shape == (len(rows), 32)
    trainer._adapter.write(trainer.initial)
    for row, state in zip(rows[:5], found, strict=False):
        ids = torch.tensor(np.concatenate([row.prompt, row.response]))[None]
        with torch.no_grad():
            hidden = trainer._adapter.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(state, hidden.mean(dim=0).numpy(), rtol=1e-3, atol=1e-5)


def test_pretraining_text_is_cut_to_the_lengths_of_the_rows(trainer: Trainer, tmp_path: Path) -> None:
    measures, rng = Measures(trainer), np.random.default_rng(0)
    books = [" ".join(f"{noun} {index}" for index in range(400)) for noun in NOUNS]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": book}) + "\n" for book in books))
    pieces = measures.pretraining_rows(DataSpec(source=str(tmp_path)), 60, rng)
    lengths = {len(row) for row in measures._rows_of(NODE)}
    assert len(pieces) == 60
    assert min(map(len, pieces)) >= min(lengths) - 2
    assert max(map(len, pieces)) <= 32
    assert len({tuple(piece.response.tolist()) for piece in pieces}) > 50, "from all over the text"
    # the same kind of text against itself, and against the rows
    same = measures.states(measures.pretraining_rows(DataSpec(source=str(tmp_path)), 60, rng))
    text, rows = measures.states(pieces), measures.states(measures._rows_of(NODE))
    near, far = sliced(text, same, rng), sliced(text, rows, rng)
    assert near.value < 2 * near.std
    assert far.value > 3 * far.std
    assert far.raw > 2 * far.floor


def test_pretraining_text_that_is_not_known(trainer: Trainer) -> None:
    with pytest.raises(ConfigError, match="is not known here") as caught:
        Measures(trainer).pretraining_rows(None, 5, np.random.default_rng(0))
    assert caught.value.key == "pretraining"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"points": np.zeros((1, 3), np.float32)}, "adapters of shape"),
        ({"rows": np.zeros((0, 2), np.int64)}, "row numbers of shape"),
        ({"rows": np.array([[0, 999]])}, "the node has 1"),
        ({"blocks": 2}, "do not make 2 blocks"),
        ({"direction": np.zeros(2, np.float32)}, "a direction of shape"),
    ],
)
def test_arrays_that_do_not_fit(trainer: Trainer, points: np.ndarray, changes: dict[str, Any], says: str) -> None:
    words = {"points": points, "rows": np.array([[0], [1], [2]]), **changes}
    with pytest.raises(ProtocolError, match=says):
        Measures(trainer).gradients(NODE, words.pop("points"), words.pop("rows"), **words)


def test_a_worker_answers(folder: Path, trainer: Trainer, points: np.ndarray, tmp_path: Path) -> None:
    said: list[tuple[messages.Message, Mapping[str, np.ndarray]]] = []
    worker = Worker(say=lambda message, arrays: said.append((message, arrays)), should_stop=lambda: False)
    with pytest.raises(ProtocolError, match="before it was configured"):
        worker.answer(Packet(messages.MeasureGradients(node=NODE), {"points": points, "rows": np.array([[0]])}))
    worker._trainer = trainer
    rows = np.array([[0, 1], [2, 3]])
    worker.answer(Packet(messages.MeasureGradients(node=NODE, serial=7), {"points": points, "rows": rows}))
    answer, arrays = said[-1]
    assert answer == messages.Gradients(node=NODE, serial=7)
    travelled = messages.decode(messages.encode(answer, arrays)).arrays
    expected = Measures(trainer).gradients(NODE, points, rows)
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(travelled[name], array)
    assert isinstance(said[-2][0], messages.Progress)
    with pytest.raises(ProtocolError, match="without rows"):
        worker.answer(Packet(messages.MeasureGradients(node=NODE), {"points": points}))
    for pretraining in (False, True):
        source = DataSpec(source=str(folder)) if pretraining else None
        request = messages.MeasureStates(node=NODE, count=6, seed=1, pretraining=pretraining, source=source)
        worker.answer(messages.decode(messages.encode(request)))
        answer, arrays = said[-1]
        assert isinstance(answer, messages.States)
        assert arrays["states"].shape == (6, 32)
