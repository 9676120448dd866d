"""What schemes add to local training, through the real link and back: drifts, and the preset of a large model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from nodes.trainer import Trainer
from testbed.core.orders import Collect, Train, Trained
from testbed.core.specs import JobSpec
from testbed.engine.config import load_experiment
from testbed.engine.experiment import replay_experiment
from testbed.engine.recorder import read_rows, read_steps
from tests import tiny_llama
from tests.system.small_runs import SGD, run, small


def test_scaffold_over_the_link_is_the_algorithm(tmp_path: Path) -> None:
    """Drifts travel with the request and the record: the same loop around the trainer, in a dozen lines."""
    loaded = small("scaffold", *SGD)
    result = run(loaded, tmp_path)
    spec, names = loaded.spec, loaded.bench.node_names
    job = JobSpec(seed=spec.seed, nodes=names, model=spec.model, lora=spec.lora, data=spec.data, training=spec.training)
    trainer = Trainer(job)
    x, c = trainer.initial, np.zeros_like(trainer.initial)
    own = dict.fromkeys(names, c)
    total = sum(trainer.num_samples(name) for name in names)
    for index in (1, 2, 3):
        moved, changed = np.zeros_like(x), np.zeros_like(x)
        for name in names:
            y = trainer.train(name, index, x, drift=c - own[name]).vector
            new = own[name] - c + (x - y) / np.float32(2 * 0.3)
            moved += np.float32(trainer.num_samples(name) / total) * (y - x)
            changed += np.float32(trainer.num_samples(name) / total) * (new - own[name])
            own[name] = new
        x, c = x + moved, c + changed
    saved = load_file(str(result.folder / "adapter" / "adapter_model.safetensors"))
    ours = trainer.layout.pack(saved)
    travelled = float(np.linalg.norm(x - trainer.initial))
    assert travelled > 0.1
    assert float(np.linalg.norm(ours - x)) < 1e-4 * travelled
    orders = [step.order for step in read_steps(result.folder) if isinstance(step.order, Train)]
    assert np.abs(orders[1].work[names[0]].drift).max() > 0  # type: ignore[arg-type]
    replies = [step.reply for step in read_steps(result.folder) if isinstance(step.reply, Trained)]
    # the common part of the drifts is broadcast: it takes time on the air
    broadcast_s = 32.0 * x.size / loaded.bench.link.downlink_bit_s
    longest_s = max(part.seconds for part in replies[0].results.values())
    assert replies[0].spent.seconds == pytest.approx(longest_s + broadcast_s)
    assert replies[0].spent.air_time_s == pytest.approx(broadcast_s)
    replayed = replay_experiment(result.folder)
    assert replayed.rounds == read_rows(result.folder)


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param(
            "nf4",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("bitsandbytes") is None, reason='needs: pip install "testbed[quantized]"'
            ),
        ),
    ],
)
def test_the_preset_of_a_large_model_runs_on_a_small_one(tmp_path: Path, dtype: str) -> None:
    folder = tiny_llama.make(tmp_path / "llama")
    for split, count in (("train", 40), ("test", 4)):
        rows = (
            {"instruction": f"Say {index}.", "context": "" if index % 2 else "Briefly.", "response": f"number {index}"}
            for index in range(count)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [f"model.base={folder}", f"model.dtype={dtype}", f"data.source={folder}", "rounds=1"]
    changes += ["training.local_steps=1", "training.gradient_accumulation=1", "training.sequence_length=96"]
    loaded = load_experiment("openllama-3b", [*changes, "scheme={name='ota-fedavg', visits=2}"])
    assert len(loaded.bench.node_names) == 10
    result = run(loaded, tmp_path / "runs")
    assert result.summary["status"] == "done"
    [order] = [step.order for step in read_steps(result.folder) if isinstance(step.order, Collect)]
    assert len(order.uplinks) == 10
    before, after = (np.array(row["loss"]) for row in result.rounds)
    assert after != before
    assert np.isfinite(after)
