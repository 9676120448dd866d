"""Models whose linear layers are not Llama's: GPT-2's Conv1D, Qwen's biases, and targets that no adapter can have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from testbed.core.errors import ConfigError
from testbed.core.orders import WHOLE, Alignment, Part
from testbed.core.specs import AlignmentSpec, DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec
from testbed.lora.model_layout import adapter_layout
from testbed.lora.refactor import Stack, stack_layout
from tests import tiny_gpt2

torch = pytest.importorskip("torch")

from nodes import model as models  # noqa: E402
from nodes.adapters import attach  # noqa: E402
from nodes.trainer import Trainer  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_gpt2.make(tmp_path_factory.mktemp("gpt2"))
    for split, count in (("train", 12), ("test", 5)):
        rows = ({"sentence": f"film {i} is fine", "label": i % 2} for i in range(count))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs").mkdir()
    for split in ("train", "test"):
        rows = [
            {"prompt": f"film {i}{split}?", "chosen": f" good {i}", "rejected": " moves", "kind": kind}
            for i, kind in enumerate(("helpful", "safety") * 4)
        ]
        (folder / "pairs" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def job(folder: Path, *, bottleneck: int = 0, aligned: bool = False) -> JobSpec:
    alignment = AlignmentSpec(
        source=str(folder / "pairs"), rewards="learned", method="ppo", steps=1, batch_size=2, group=2, max_tokens=3,
        length=32, reference_prompts=3, measure_prompts=2,
    )  # fmt: skip
    return JobSpec(
        seed=3,
        nodes=("node-1",),
        model=ModelSpec(base=str(folder)),
        lora=LoraSpec(rank=2, alpha=6.0, targets=("c_attn", "mlp.c_proj"), bottleneck=bottleneck),
        data=DataSpec(source=str(folder), template="sst2"),
        training=TrainingSpec(
            batch_size=4, local_steps=3, learning_rate=0.1, optimizer="sgd", sequence_length=48, max_grad_norm=None
        ),
        alignment=alignment if aligned else None,
    )


def test_lora_on_gpt2_trains_as_a_plain_loop_on_its_conv1d_weights(folder: Path) -> None:
    """The same SGD steps, with W + (alpha / rank) (B A)^T put into the Conv1D weights by hand."""
    trainer = Trainer(job(folder))
    done = trainer.train("node-1", 1, trainer.initial)
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    values = {
        name: torch.tensor(array, requires_grad=True)
        for name, array in trainer.layout.unpack(trainer.initial.copy()).items()
    }
    names = sorted({factor.module.removeprefix("base_model.model.") for factor in trainer.layout.factors})
    assert [name.rsplit(".", 2)[-2:] for name in names] == [["attn", "c_attn"], ["mlp", "c_proj"]] * 2
    batches, losses = trainer._batches("node-1", [3, 0, 1], 4), []
    for _ in range(3):
        weights = {
            f"{name}.weight": plain.get_submodule(name).weight
            + 3.0 * (_of(values, name, "B") @ _of(values, name, "A")).T
            for name in names
        }
        batch = next(batches)
        ids, mask = torch.tensor(batch.input_ids), torch.tensor(batch.attention_mask)
        logits = torch.func.functional_call(plain, weights, kwargs={"input_ids": ids, "attention_mask": mask}).logits
        counts = torch.tensor(batch.loss_mask[:, 1:]).bool()
        chosen = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        loss = -chosen[counts].mean()
        gradients = torch.autograd.grad(loss, list(values.values()))
        values = {
            name: (value - 0.1 * slope).detach().requires_grad_(True)
            for (name, value), slope in zip(values.items(), gradients, strict=True)
        }
        losses.append(float(loss.detach()))
    assert done.loss_last == pytest.approx(losses[-1], abs=1e-5)
    for name, array in trainer.layout.unpack(done.vector).items():
        np.testing.assert_allclose(array, values[name].detach().numpy(), atol=1e-5)
    assert np.abs(done.vector - trainer.initial).max() > 1e-3


def _of(values: dict[str, torch.Tensor], name: str, kind: str) -> torch.Tensor:
    return values[f"base_model.model.{name}.lora_{kind}.weight"]


def test_a_fold_into_conv1d_weights_is_the_adapter_it_came_from(folder: Path) -> None:
    trainer, rng = Trainer(job(folder)), np.random.default_rng(4)
    vector = rng.normal(0, 0.1, trainer.layout.size).astype(np.float32)
    acting, still = trainer.evaluate(vector).loss_sum, trainer.evaluate(trainer.initial).loss_sum
    layout = stack_layout(trainer.layout, 2)
    fold = layout.pack(dict(zip(layout.slices, trainer.layout.unpack(vector).values(), strict=True)))
    trainer.fold([Stack(fold, 2)])
    # B is zero at the start, so that the fold alone acts
    assert trainer.evaluate(trainer.initial).loss_sum == pytest.approx(acting, rel=1e-5)
    assert acting != pytest.approx(still, rel=1e-3)
    trainer.fold([])
    assert trainer.evaluate(trainer.initial).loss_sum == pytest.approx(still, rel=1e-6)


def test_gpt2_tunes_with_bottlenecks_and_aligns(folder: Path) -> None:
    trainer = Trainer(job(folder, bottleneck=3, aligned=True))
    done = trainer.train("node-1", 1, trainer.initial, local_steps=8)
    assert done.loss_last < done.loss_first
    objective, own = Alignment((0.5, 0.5)), Part(kinds=("A", "B"))
    aligned = trainer.aligner.align("node-1", 1, done.vector, objective, reference=done.vector, part=own, pulled=WHOLE)
    _, measures = trainer.aligner.measured(done.vector, aligned, objective, done.vector)
    assert aligned.status == "finished"
    assert measures["kl"] > 0


def test_a_saved_gpt2_adapter_loads_in_peft(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from testbed.core.adapter import Adapter
    from testbed.lora.peft_folder import save_adapter

    trainer = Trainer(job(folder))
    vector = np.random.default_rng(5).normal(0, 0.1, trainer.layout.size).astype(np.float32)
    adapter = Adapter(layout=trainer.layout, initial=trainer.initial, peft_config=trainer.peft_config)
    save_adapter(tmp_path, adapter, vector)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).eval()
    trainer.evaluate(vector)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer._adapter.model(ids).logits)


@pytest.mark.parametrize("biased", [False, True])
def test_linear_layers_with_and_without_bias_take_lora(biased: bool) -> None:
    """A Qwen-type model by its names; OPT by its own, all with biases."""
    from transformers import OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if biased:
        base = OPTForCausalLM(
            OPTConfig(
                vocab_size=40, hidden_size=16, num_hidden_layers=1, ffn_dim=24, num_attention_heads=2,
                max_position_embeddings=32, word_embed_proj_dim=16,
            )
        )  # fmt: skip
        targets = ("q_proj", "fc1")
    else:
        base = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=40, hidden_size=16, num_hidden_layers=1, intermediate_size=24, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=32,
            )
        )  # fmt: skip
        targets = ("q_proj", "down_proj")
    base = base.eval().requires_grad_(False)
    ids = torch.arange(3, 9)[None]
    before = base(ids).logits.detach().clone()
    adapter = attach(base, LoraSpec(rank=2, targets=targets), 1)
    torch.testing.assert_close(adapter.model(ids).logits, before)
    assert len(adapter.layout.factors) == 4
    adapter.values.add_(0.1)
    assert not torch.allclose(adapter.model(ids).logits, before)


@pytest.mark.parametrize("bottleneck", [0, 3])
def test_the_layout_is_known_from_the_config_alone(folder: Path, bottleneck: int) -> None:
    spec = job(folder, bottleneck=bottleneck)
    found = adapter_layout(json.loads((folder / "config.json").read_text()), spec.lora)
    wanted = Trainer(spec).layout
    assert [(one.name, one.shape, one.kind) for one in found.factors] == [
        (one.name, one.shape, one.kind) for one in wanted.factors
    ]
    small = LoraSpec(rank=8, targets=("c_attn",), bottleneck=48)
    layout = adapter_layout({"model_type": "gpt2", "n_embd": 768, "n_layer": 12}, small)
    assert sum(one.size for one in layout.factors if one.kind in ("A", "B")) == 294_912
    assert layout.size == 294_912 + 894_528
    with pytest.raises(ConfigError, match="a GPT-2 model has no linear layer 'q_proj'"):
        adapter_layout({"model_type": "gpt2"}, LoraSpec(targets=("q_proj",)))


def test_targets_that_gpt2_has_not_are_refused_with_those_that_it_has(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)gpt2\).*no linear layer named 'q_proj'") as caught:
        Trainer(job(folder).model_copy(update={"lora": LoraSpec(rank=2, targets=("c_attn", "q_proj"))}))
    assert caught.value.key == "lora.targets"
    assert caught.value.remedy == "choose from c_attn, c_proj, c_fc"
    assert str(folder) in caught.value.message


def test_weights_stored_in_both_ways_are_refused_together() -> None:
    from transformers.pytorch_utils import Conv1D

    mixed = torch.nn.Sequential()
    mixed.add_module("up", torch.nn.Linear(3, 4))
    mixed.add_module("down", Conv1D(3, 4))
    assert models.check_targets(mixed, ("down",)) is True
    assert models.check_targets(mixed, ("up",)) is False
    with pytest.raises(ConfigError, match="store their weights in both ways") as caught:
        models.check_targets(mixed, ("up", "down"))
    assert caught.value.key == "lora.targets"
