"""Training through the flat vector equals a plain loop, adapters reload in peft, shards add up, rounds repeat."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.trainer import EvalSums, Trainer
from testbed.core.errors import ConfigError, ProtocolError
from testbed.core.specs import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec
from tests import tiny_llama

torch = pytest.importorskip("torch")

NODES = ("node-1", "node-2", "node-3")
NOUNS = ("antenna", "receiver", "film", "answer", "signal", "matrix")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama.make(tmp_path_factory.mktemp("llama"))
    for split, count in (("train", 40), ("test", 11)):
        rows = (
            {"sentence": f"the {NOUNS[index % 6]} number {index}{split[1]} is fine", "label": index % 2}
            for index in range(count)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def job(folder: Path, *, lora: dict[str, Any] | None = None, seed: int = 5, **training: Any) -> JobSpec:
    steps = {} if "local_epochs" in training else {"local_steps": 4}
    return JobSpec(
        seed=seed,
        nodes=NODES,
        model=ModelSpec(base=str(folder)),
        lora=LoraSpec(**{"rank": 4, "alpha": 8.0, **(lora or {})}),
        data=DataSpec(source=str(folder), template="sst2"),
        training=TrainingSpec(**{"batch_size": 4, "learning_rate": 0.01, **steps, **training}),
    )


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Trainer:
    return Trainer(job(folder))


@pytest.fixture(scope="module")
def vector(trainer: Trainer) -> np.ndarray:
    """An adapter that is not the initial one."""
    return trainer.initial + np.random.default_rng(1).normal(0, 0.05, trainer.layout.size).astype(np.float32)


def plain_rows(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Prompt and response ids of the training rows, by hand."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for line in (folder / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        texts = (f"Review: {row['sentence']}", "\nSentiment:", (" negative", " positive")[row["label"]])
        prompt, cue, response = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        rows.append(([tokenizer.bos_token_id, *prompt, *cue], response))
    return rows


def plain_round(
    folder: Path,
    spec: JobSpec,
    start: dict[str, np.ndarray],
    node: int,
    round_index: int,
    *,
    proximal: float = 0.0,
    drift: dict[str, np.ndarray] | None = None,
    factors: str = "AB",
) -> Any:
    """One round with peft and torch alone: rows one by one, one tensor per factor, the proximal term in the loss."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(r=spec.lora.rank, lora_alpha=spec.lora.alpha, target_modules=list(spec.lora.targets))
    model = get_peft_model(base, config)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            named[name.replace(".weight", ".default.weight")].copy_(torch.tensor(value))
    for name, parameter in named.items():
        if "lora_" in name and name.split(".lora_")[1][0] not in ("B" if spec.lora.freeze_a else factors):
            parameter.requires_grad_(False)
    published = {name: parameter.detach().clone() for name, parameter in named.items() if parameter.requires_grad}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = spec.training.learning_rate
    optimizer = (
        torch.optim.SGD(trained, rate, momentum=spec.training.momentum, weight_decay=spec.training.weight_decay)
        if spec.training.optimizer == "sgd"
        else torch.optim.AdamW(trained, rate, weight_decay=spec.training.weight_decay)
    )
    rows = plain_rows(folder)
    order = np.random.default_rng([spec.seed, 1]).permutation(len(rows))
    share = np.sort(np.array_split(order, len(NODES))[node])
    rng = np.random.default_rng([spec.seed, node, round_index])
    stream = np.concatenate([share[rng.permutation(len(share))] for _ in range(20)])
    size = spec.training.batch_size * spec.training.gradient_accumulation
    for step in range(spec.training.local_steps or 0):
        total, count = torch.zeros(()), 0
        for index in stream[step * size : (step + 1) * size]:
            prompt, response = rows[index]
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum")
            count += len(response)
        optimizer.zero_grad()
        away = sum(((named[name] - value) ** 2).sum() for name, value in published.items())
        (total / count + proximal / 2 * away).backward()
        torch.nn.utils.clip_grad_norm_(trained, spec.training.max_grad_norm)
        for name, value in (drift or {}).items():
            named[name.replace(".weight", ".default.weight")].grad.add_(torch.tensor(value))
        optimizer.step()
    return {name.replace(".default.weight", ".weight"): value.detach().numpy() for name, value in named.items()}


@pytest.mark.parametrize(
    ("lora", "training"),
    [
        ({}, {}),
        ({"freeze_a": True, "targets": ("o_proj", "down_proj")}, {"optimizer": "sgd", "momentum": 0.9}),
        ({}, {"gradient_accumulation": 2, "batch_size": 3, "weight_decay": 0.1, "max_grad_norm": 0.05}),
    ],
)
def test_equals_a_plain_loop(folder: Path, lora: dict[str, Any], training: dict[str, Any]) -> None:
    spec = job(folder, lora=lora, **training)
    ours = Trainer(spec)
    start = {**ours.layout.unpack(ours.initial), **ours.frozen_layout.unpack(ours.frozen)}
    expected = plain_round(folder, spec, start, node=1, round_index=3)
    outcome = ours.train("node-2", 3, ours.initial)
    for name, value in ours.layout.unpack(outcome.vector).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-3, atol=2e-5)
    assert np.abs(outcome.vector - ours.initial).max() > 1e-3
    assert outcome.steps == 4


TERMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"proximal": 3.0}, {"optimizer": "sgd", "learning_rate": 0.1}),
    ({"proximal": 0.5}, {"max_grad_norm": 0.05}),
    ({"drift": True}, {"optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.2}),
    ({"factors": "B"}, {"weight_decay": 0.1, "max_grad_norm": 0.05}),
    ({"factors": "A", "proximal": 1.0}, {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("terms", "training"), TERMS)
def test_what_a_scheme_adds_equals_a_plain_loop(
    folder: Path, vector: np.ndarray, terms: dict[str, Any], training: dict[str, Any]
) -> None:
    spec = job(folder, **{"local_steps": 3, **training})
    ours = Trainer(spec)
    if "drift" in terms:
        terms = {"drift": np.random.default_rng(8).normal(0, 0.02, ours.layout.size).astype(np.float32)}
    plain = {key: ours.layout.unpack(value) if key == "drift" else value for key, value in terms.items()}
    expected = plain_round(folder, spec, ours.layout.unpack(vector), node=1, round_index=3, **plain)
    outcome = ours.train("node-2", 3, vector, **terms)
    start = ours.layout.unpack(vector)
    for name, value in ours.layout.unpack(outcome.vector).items():
        kind = name.split(".lora_")[1][0]
        if terms.get("factors", kind) == kind:
            np.testing.assert_allclose(value, expected[name], rtol=2e-3, atol=2e-5)
            assert np.abs(value - start[name]).max() > 1e-4
        else:
            np.testing.assert_array_equal(value, start[name])
    bare = ours.train("node-2", 3, vector)
    assert np.abs(outcome.vector - bare.vector).max() > 1e-3, "the terms change something"


def test_terms_of_size_zero_change_no_bit(trainer: Trainer, vector: np.ndarray) -> None:
    plain = trainer.train("node-1", 2, vector)
    zero = trainer.train("node-1", 2, vector, proximal=0.0, drift=np.zeros_like(vector), factors="both")
    np.testing.assert_array_equal(plain.vector, zero.vector)
    trainer.train("node-1", 2, vector, factors="A")
    np.testing.assert_array_equal(plain.vector, trainer.train("node-1", 2, vector).vector)


def test_the_pull_shortens_the_way(trainer: Trainer, vector: np.ndarray) -> None:
    ways = [
        float(np.linalg.norm(trainer.train("node-1", 2, vector, proximal=pull).vector - vector))
        for pull in (0.0, 10.0, 1000.0)
    ]
    assert ways[0] > ways[1] > ways[2] > 0


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_update_of_plain_descent_is_the_sum_of_gradients(folder: Path, weight_decay: float) -> None:
    """One step without a limit: update / -step_size is the gradient, by finite differences of the loss."""
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": None, "local_steps": 1}
    ours = Trainer(job(folder, weight_decay=weight_decay, **settings))
    rng = np.random.default_rng(3)
    start = (ours.initial + rng.normal(0, 0.05, ours.layout.size)).astype(np.float32)
    outcome = ours.train("node-1", 1, start)
    assert (outcome.steps, outcome.step_size) == (1, 0.1)
    gradient = (start - outcome.vector).astype(np.float64) / 0.1 - weight_decay * start
    direction = gradient / np.linalg.norm(gradient)
    ends = [ours.train("node-1", 1, (start + sign * 0.02 * direction).astype(np.float32)) for sign in (1.0, -1.0)]
    assert (ends[0].loss_first - ends[1].loss_first) / 0.04 == pytest.approx(np.linalg.norm(gradient), rel=0.02)
    for odd in ({"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.5}):
        other = Trainer(job(folder, **odd))
        assert other.train("node-1", 0, other.initial, local_steps=1).step_size == 0.0


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason='needs: pip install "testbed[quantized]"')
def test_a_base_of_four_bits_trains_and_repeats(folder: Path) -> None:
    """Weights are a quarter of those in bfloat16, scores are near, and evaluation leaves no trace in training."""
    spec = job(folder)
    plain = Trainer(spec.model_copy(update={"model": ModelSpec(base=str(folder), dtype="bfloat16")}))
    ours = Trainer(spec.model_copy(update={"model": ModelSpec(base=str(folder), dtype="nf4")}))
    weights = [
        next(value for name, value in one._adapter.model.named_parameters() if name.endswith("up_proj.weight"))
        for one in (plain, ours)
    ]
    assert weights[0].nbytes == 4 * weights[1].nbytes
    before = ours.evaluate(ours.initial)
    assert before.loss_sum == pytest.approx(plain.evaluate(plain.initial).loss_sum, rel=0.1)
    outcome = ours.train("node-1", 0, ours.initial, local_steps=10)
    assert outcome.vector.dtype == np.float32
    assert outcome.loss_last < 0.9 * outcome.loss_first
    assert ours.evaluate(outcome.vector).loss_sum < 0.9 * before.loss_sum
    assert ours.evaluate(ours.initial) == before
    np.testing.assert_array_equal(ours.train("node-1", 0, ours.initial, local_steps=10).vector, outcome.vector)


def test_saved_adapter_reloads_in_peft(folder: Path, trainer: Trainer, vector: np.ndarray, tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.numpy import save_file
    from transformers import AutoModelForCausalLM

    save_file(trainer.layout.unpack(vector), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(trainer.peft_config))
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        logits = PeftModel.from_pretrained(base, tmp_path).eval()(input_ids=ids).logits
        trainer._adapter.write(vector)
        ours = trainer._adapter.model(input_ids=ids).logits
    assert (logits - plain).abs().max() > 1e-2
    torch.testing.assert_close(logits, ours, rtol=1e-5, atol=1e-5)


def test_layout(trainer: Trainer, folder: Path) -> None:
    names = [factor.name for factor in trainer.layout.factors]
    assert names[:2] == [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{kind}.weight" for kind in ("A", "B")]
    assert [factor.kind for factor in trainer.layout.factors] == ["A", "B"] * 4
    factors = trainer.layout.unpack(trainer.initial)
    for factor in trainer.layout.factors:
        bound = 1 / np.sqrt(factor.shape[1]) if factor.kind == "A" else 0.0
        assert 0.8 * bound <= np.abs(factors[factor.name]).max() <= bound
    other = Trainer(job(folder))
    np.testing.assert_array_equal(other.initial, trainer.initial)
    assert other.layout == trainer.layout
    assert Trainer(job(folder, seed=6)).initial.tolist() != trainer.initial.tolist()


def test_frozen_a_sends_only_b(folder: Path, trainer: Trainer) -> None:
    frozen = Trainer(job(folder, lora={"freeze_a": True}))
    assert {factor.kind for factor in frozen.layout.factors} == {"B"}
    assert {factor.kind for factor in frozen.frozen_layout.factors} == {"A"}
    assert frozen.layout.size + frozen.frozen_layout.size == trainer.layout.size
    assert not frozen.initial.any()
    start = trainer.layout.unpack(trainer.initial)
    for name, value in frozen.frozen_layout.unpack(frozen.frozen).items():
        np.testing.assert_array_equal(value, start[name])
    before = frozen.frozen.copy()
    outcome = frozen.train("node-1", 0, frozen.initial)
    assert outcome.vector.any()
    np.testing.assert_array_equal(frozen.frozen, before)


def test_rounds_repeat_whatever_happened_between(folder: Path) -> None:
    ours = Trainer(job(folder, lora={"dropout": 0.3}))
    first = ours.train("node-1", 2, ours.initial)
    other = ours.train("node-2", 2, first.vector)
    ours.evaluate(other.vector)
    again = ours.train("node-1", 2, ours.initial)
    np.testing.assert_array_equal(first.vector, again.vector)
    assert first.loss_mean == again.loss_mean
    assert not np.array_equal(first.vector, ours.train("node-1", 3, ours.initial).vector)


def test_start_is_left_alone_and_may_be_read_only(trainer: Trainer) -> None:
    start = trainer.initial.copy()
    start.setflags(write=False)
    outcome = trainer.train("node-1", 0, start)
    np.testing.assert_array_equal(start, trainer.initial)
    kept = outcome.vector.copy()
    trainer.train("node-2", 0, start)
    np.testing.assert_array_equal(outcome.vector, kept)


def test_training_lowers_the_loss(trainer: Trainer) -> None:
    before = trainer.evaluate(trainer.initial)
    outcome = trainer.train("node-1", 0, trainer.initial, local_steps=20)
    after = trainer.evaluate(outcome.vector)
    assert after.loss_sum < 0.7 * before.loss_sum
    assert outcome.loss_last < outcome.loss_first
    assert (outcome.steps, outcome.num_samples) == (20, 80)


def test_progress_stop_and_epochs(folder: Path, trainer: Trainer) -> None:
    seen: list[float] = []
    outcome = trainer.train("node-1", 0, trainer.initial, progress=seen.append, should_stop=lambda: len(seen) == 3)
    assert outcome.steps == 3
    assert seen == [0.25, 0.5, 0.75]
    epochs = Trainer(job(folder, local_epochs=2))
    assert epochs.num_samples("node-1") == 14
    assert epochs.num_steps("node-1") == 7
    assert epochs.num_steps("node-1", batch_size=5) == 6
    assert sum(map(epochs.num_samples, NODES)) == 40


@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.parametrize("task", ["language", "classification"])
def test_shards_add_up(folder: Path, vector: np.ndarray, task: str, loss_on: str) -> None:
    ours = Trainer(job(folder, task=task, loss_on=loss_on))
    whole = ours.evaluate(vector)
    parts = [ours.evaluate(vector, shard=shard, num_shards=3, batch_size=2) for shard in range(3)]
    total = parts[0] + parts[1] + parts[2]
    assert total.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
    assert (total.num_tokens, total.num_correct, total.num_rows) == (whole.num_tokens, whole.num_correct, 11)
    assert (whole.num_correct is None) == (task == "language")


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_one_pass_classification_equals_scoring_each_word(folder: Path, vector: np.ndarray, loss_on: str) -> None:
    ours = Trainer(job(folder, task="classification", loss_on=loss_on))
    sums = ours.evaluate(vector)
    language = Trainer(job(folder, loss_on=loss_on)).evaluate(vector)
    assert sums.loss_sum == pytest.approx(language.loss_sum, rel=1e-5)
    assert sums.num_tokens == language.num_tokens
    correct = 0
    for row in ours._encoder.encode_all(ours._data.test):
        scores = []
        for words in row.candidates:
            ids = torch.tensor(np.concatenate([row.prompt, words]))[None]
            with torch.no_grad():
                steps = ours._adapter.model(input_ids=ids).logits[0].log_softmax(-1)
            places = torch.arange(len(row.prompt) - 1, ids.shape[1] - 1)
            scores.append(float(steps[places, ids[0, len(row.prompt) :]].sum()))
        correct += int(np.argmax(scores)) == row.label
    assert sums.num_correct == correct


def test_bfloat16_base_trains_a_float32_adapter(folder: Path) -> None:
    spec = job(folder)
    ours = Trainer(spec.model_copy(update={"model": ModelSpec(base=str(folder), dtype="bfloat16")}))
    outcome = ours.train("node-1", 0, ours.initial, local_steps=10)
    assert outcome.vector.dtype == np.float32
    assert outcome.loss_last < outcome.loss_first


def test_errors(folder: Path, trainer: Trainer) -> None:
    with pytest.raises(ProtocolError, match="none of the experiment's nodes"):
        trainer.train("node-9", 0, trainer.initial)
    with pytest.raises(ProtocolError, match="does not fit a layout"):
        trainer.train("node-1", 0, trainer.initial[:-1])
    with pytest.raises(ProtocolError, match="does not fit a layout"):
        trainer.train("node-1", 0, trainer.initial, drift=trainer.initial[:-1])
    frozen = Trainer(job(folder, lora={"freeze_a": True}))
    with pytest.raises(ConfigError, match="train the factors A alone") as refused:
        frozen.train("node-1", 0, frozen.initial, factors="A")
    assert refused.value.key == "lora.freeze_a"
    with pytest.raises(ConfigError, match="loss of node-1 in round 4 is") as caught:
        trainer.train("node-1", 4, np.full_like(trainer.initial, np.nan))
    assert caught.value.key == "training.learning_rate"
    text = job(folder, task="classification").model_copy(
        update={"data": DataSpec(source=str(folder), template="text", fields={"text": "sentence"})}
    )
    with pytest.raises(ConfigError, match="no label words"):
        Trainer(text)


def test_sums_of_language_rows_have_no_accuracy() -> None:
    assert EvalSums(1.0, 2, None, 3) + EvalSums(1.0, 2, None, 3) == EvalSums(2.0, 4, None, 6)
