"""The loss model of nodes with a real model, on both kinds of simulated devices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.access import Access
from calibration.loss_model import LossModel, LossModelOptions
from calibration.routine import Raw, Step
from testbed.core.backends import backend as backend_of
from testbed.core.backends import resolve
from testbed.core.specs import DataSpec, LoraSpec, ModelSpec, TrainingSpec
from tests import tiny_llama
from tests.benches import small_bench

BENCH = small_bench()


@pytest.mark.parametrize("backend", ["sim", "emulated"])
def test_on_nodes_with_a_real_model(backend: str, tmp_path: Path) -> None:
    """A node process with a small Llama: the same numbers as a trainer in this process, and a fit that may be used."""
    pytest.importorskip("torch")
    from nodes.measures import Measures
    from nodes.trainer import Trainer

    tiny_llama.make(tmp_path, layers=1)
    for split, count in (("train", 60), ("test", 5)):
        rows = (f"number {index}{split[1]} is {'very ' * (index % 3)}fine" for index in range(count))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    text = DataSpec(source=str(tmp_path))
    options = LossModelOptions(
        model=ModelSpec(base=str(tmp_path)),
        lora=LoraSpec(rank=2, alpha=4.0),
        data=text,
        pretraining=text,
        training=TrainingSpec(batch_size=4, local_steps=2, sequence_length=32),
        rows=16,
        batch_sizes=(1, 4),
        products=6,
        steps=6,
        states=20,
        point_rows=16,
    )
    devices = resolve(backend_of(backend).bench)(BENCH, seed=1, folder=tmp_path / "bench", node_processes=1)
    routine = LossModel()
    done: list[tuple[Step, Raw]] = []
    try:
        bench = Access(BENCH, devices, backend)
        bench.open_nodes()
        while (step := routine.next_step(BENCH, options, done, np.random.default_rng([3, len(done)]))) is not None:
            done.append((step, routine.measure(bench, options, step)))
    finally:
        devices.close()
    fit = routine.fit(BENCH, options, done)
    assert fit.passed, fit.why
    top, typical = fit.values["smoothness"], fit.values["smoothness_typical"]
    assert 0 < typical.value <= top.value
    assert all(np.isfinite(one.value) for one in fit.values.values())
    trainer = Trainer(options.job(BENCH))
    rng, variance = np.random.default_rng(int(done[1][0]["seed"])), done[1][1]["half"]
    for index, node in enumerate(BENCH.node_names):
        drawn = rng.integers(trainer.num_samples(node), size=(2 * options.pairs, 1))
        here = Measures(trainer).gradients(node, trainer.initial[None], drawn)
        expected = (here.norms[0, ::2] + here.norms[0, 1::2]) / 2 - here.products[0]
        np.testing.assert_allclose(variance[index], expected, rtol=1e-4)
