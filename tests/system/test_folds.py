"""Folds, pruning and rank slices through the real link: the record, replay and resume, and the model rebuilt."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from nodes.trainer import Trainer
from testbed.core.errors import ConfigError
from testbed.core.orders import Evaluate, Publish, Trained
from testbed.core.specs import JobSpec
from testbed.engine.config import Loaded
from testbed.engine.dry import dry_experiment
from testbed.engine.experiment import RunResult, replay_experiment
from testbed.engine.recorder import read_rows, read_steps
from testbed.lora.refactor import Stack, stack_layout, stacked
from tests import tiny_llama
from tests.system.small_runs import SGD, cut, resume, run, small

TOY = "tests.toy_flora:ToyFlora"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return small(TOY, *SGD, f"model.base={tiny_llama.make(tmp_path_factory.mktemp('llama'))}")


@pytest.fixture(scope="module")
def toy_run(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(loaded, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def trainer(loaded: Loaded) -> Trainer:
    spec, names = loaded.spec, loaded.bench.node_names
    return Trainer(
        JobSpec(seed=spec.seed, nodes=names, model=spec.model, lora=spec.lora, data=spec.data, training=spec.training)
    )


def test_what_is_left_is_the_rebuilt_model(toy_run: RunResult, trainer: Trainer) -> None:
    """The folder of the final adapter is enough: base, folds in the order of their names, adapter on top."""
    final = toy_run.folder / "adapter"
    files = sorted(final.glob("fold-*.safetensors"))
    assert [file.name for file in files] == ["fold-001-00.safetensors", "fold-003-00.safetensors"]
    assert (toy_run.folder / "adapters" / "round-003" / "fold-003-00.safetensors").is_file()
    assert not list((toy_run.folder / "adapters" / "round-002").glob("fold*"))
    assert "4.0 * lora_B @ lora_A" in (final / "FOLDS.txt").read_text()
    ours = trainer
    folds = []
    for file in files:
        layout = stack_layout(ours.layout, 10)
        folds.append(Stack(layout.pack(load_file(str(file))), 10))
    ours.fold(folds)
    sums = ours.evaluate(ours.layout.pack(load_file(str(final / "adapter_model.safetensors"))))
    assert sums.loss_sum / sums.num_tokens == pytest.approx(toy_run.rounds[-1]["loss"], rel=1e-6)
    ours.fold([])
    assert ours.evaluate(ours.initial).loss_sum / sums.num_tokens == pytest.approx(toy_run.rounds[0]["loss"], rel=1e-6)
    assert toy_run.rounds[-1]["loss"] < toy_run.rounds[0]["loss"]


def test_the_run_is_the_loop_around_the_trainer(toy_run: RunResult, trainer: Trainer) -> None:
    ours, steps = trainer, read_steps(toy_run.folder)
    first, second, third = ours.job.nodes
    orders = [step.order for step in steps if isinstance(step.order, Publish)]
    works = [step.order.work for step in steps if hasattr(step.order, "work")]
    folds: list[Stack] = []
    start = ours.initial
    for index, (order, work) in enumerate(zip(orders, works, strict=True), 1):
        adapters, weights = {}, {}
        for name in (first, second, third):
            part = work[name]
            asked = {"pruning": part.pruning, "ranks": part.ranks, "others": part.others}
            done = ours.train(name, index, start, orthogonality=part.orthogonality, **asked)
            # round 3 starts from what round 2 published; the scheme stacks updates on the initial adapter
            adapters[name] = ours.initial + (done.vector - start)
            weights[name] = float(ours.num_samples(name))
        if index == 2:
            assert order.fold is None
        else:
            stack = stacked(ours.layout, adapters, weights, ranks={first: 4, second: 4, third: 2})
            assert order.fold_rank == stack.rank == 10
            assert order.fold is not None
            np.testing.assert_array_equal(order.fold, stack.vector)
            folds.append(stack)
            ours.fold(folds)
        start = order.adapter


def test_what_the_boards_did_is_recorded(toy_run: RunResult, loaded: Loaded) -> None:
    steps = read_steps(toy_run.folder)
    replies = [step.reply for step in steps if isinstance(step.reply, Trained)]
    for reply in replies:
        whole, pruned, masked = reply.results.values()
        assert (whole.work_share, whole.pruned, whole.pruned_ratio) == (1.0, 0.0, 0.0)
        assert 0.29 < pruned.pruned_ratio <= 0.45
        assert pruned.work_share < 0.85
        assert 0 < pruned.pruned < pruned.pruned_ratio
        board = loaded.bench.boards[1]
        assert pruned.seconds == pytest.approx(
            pruned.num_tokens * board.cycles_per_token * pruned.work_share / board.cpu_hz
        )
        assert masked.work_share == 1.0
        assert masked.pruned_ratio == pytest.approx(0.3, abs=0.02)
    published = [step for step in steps if isinstance(step.order, Publish)]
    rate_bit_s = loaded.bench.link.downlink_bit_s
    for step in published:
        values = step.order.adapter.size + (0 if step.order.fold is None else step.order.fold.size)
        assert step.reply.spent.air_time_s == pytest.approx(32 * values / rate_bit_s)
    replayed = replay_experiment(toy_run.folder)
    assert replayed.rounds == read_rows(toy_run.folder)


def test_resume_has_the_folds_again(toy_run: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(toy_run.folder, folder)
    cut(folder, 2)
    for name in ("adapter", "adapters/round-003"):
        shutil.rmtree(folder / name)
    resumed = resume(folder)
    assert resumed.rounds == toy_run.rounds
    before, after = (sorted((one / "adapter").iterdir()) for one in (toy_run.folder, folder))
    assert [path.name for path in after] == [path.name for path in before]
    for one, other in zip(before, after, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_dry_asks_the_same(toy_run: RunResult, loaded: Loaded) -> None:
    rows = dry_experiment(loaded.spec, loaded.scheme, loaded.bench)
    live = read_steps(toy_run.folder)
    assert len(rows) == len(live)
    for row, step in zip(rows, live, strict=True):
        if isinstance(step.order, Publish):
            assert row.air_time_s == pytest.approx(step.reply.spent.air_time_s)
        assert (row.order == "score the held-out split") == isinstance(step.order, Evaluate)
    assert any("of rank 10 to fold into the base" in row.order for row in rows)
    four_bits = small(TOY, *SGD, "model.dtype=nf4")
    with pytest.raises(ConfigError, match="weights of 4 bits cannot take them") as caught:
        dry_experiment(four_bits.spec, four_bits.scheme, four_bits.bench)
    assert caught.value.key == "model.dtype"
