"""Bottleneck adapters change nothing at first, compute what (B1) says, and live in the flat vector behind LoRA."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from testbed.core.errors import ConfigError
from testbed.core.specs import LoraSpec, ModelSpec
from tests import tiny_llama

torch = pytest.importorskip("torch")

from nodes.adapters import FlatAdapter, attach  # noqa: E402
from nodes.bottleneck import extend, insert  # noqa: E402
from nodes.model import load_base  # noqa: E402

IDS = [[0, 17, 42, 99, 5, 301]]
WIDTH = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.make(tmp_path_factory.mktemp("llama"))


def adapted(folder: Path, **lora: object) -> FlatAdapter:
    base, _ = load_base(ModelSpec(base=str(folder)))
    return attach(base, LoraSpec(rank=3, alpha=6.0, **lora), 5)  # type: ignore[arg-type]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits


def gpt2(**config: int) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**config)).eval()


def test_a_fresh_adapter_computes_what_the_base_computes(folder: Path) -> None:
    before = logits(load_base(ModelSpec(base=str(folder)))[0])
    adapter = extend(adapted(folder), width=WIDTH, seed=1)
    assert float((logits(adapter.model) - before).abs().max()) <= 1e-6


def test_gpt2_small_sends_894528_values_at_width_48() -> None:
    with torch.device("meta"):
        model = gpt2()
        # no values are drawn on the meta device: only shapes count
        size = insert(model, width=48, seed=0).layout.size
    assert sum(parameter.numel() for parameter in model.parameters()) - size == 124_439_808
    assert size == 894_528
    # 1 MHz at a signal-to-noise ratio of 5 dB
    rate_bit_s = 1e6 * math.log2(1 + 10**0.5)
    assert 32 * size / rate_bit_s == pytest.approx(13.91, abs=0.01)
    assert 32 * 124_439_808 / rate_bit_s == pytest.approx(1935.5, abs=0.1)
    assert 32 * 2 * 7_087_872 / rate_bit_s == pytest.approx(220.5, abs=0.05)
    assert 32 * 294_912 / rate_bit_s == pytest.approx(4.6, abs=0.05)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_a_llama_block_adds_what_the_equation_says(folder: Path, activation: str) -> None:
    base, _ = load_base(ModelSpec(base=str(folder)))
    block = base.model.layers[1].mlp
    state = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = block(state)
    inserted = insert(base, width=WIDTH, seed=3, activation=activation)  # type: ignore[arg-type]
    rng = np.random.default_rng(8)
    values = {}
    for name, parameter in inserted.parameters.items():
        if name.startswith("model.layers.1."):
            values[name.rsplit(".", 1)[-1]] = value = rng.normal(size=tuple(parameter.shape))
            parameter.data.copy_(torch.from_numpy(value))
    narrow = plain.double().numpy() @ values["down_weight"].T + values["down_bias"]
    bent = {
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    }[activation](narrow)
    expected = plain.double().numpy() + bent @ values["up_weight"].T + values["up_bias"]
    with torch.no_grad():
        np.testing.assert_allclose(block(state).numpy(), expected, atol=2e-5)


def test_a_gpt2_model_is_changed_by_its_bottlenecks_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = gpt2(n_embd=16, n_layer=2, n_head=2, vocab_size=320, n_positions=32, bos_token_id=0, eos_token_id=1)
    before = logits(model)
    inserted = insert(model, width=WIDTH, seed=0)
    assert inserted.layout.size == 2 * (2 * 16 * WIDTH + WIDTH + 16)
    assert float((logits(model) - before).abs().max()) <= 1e-6
    # one component: the layer norms would take away what all components share
    inserted.parameters["transformer.h.0.mlp.bottleneck.up_bias"].data[3] = 0.5
    assert float((logits(model) - before).abs().max()) > 1e-3


def test_the_vector_is_lora_first_and_then_the_bottlenecks_in_one_piece(folder: Path) -> None:
    alone = adapted(folder)
    joined = extend(adapted(folder), width=WIDTH, seed=1)
    lora = alone.layout.size
    assert joined.layout.factors[: len(alone.layout.factors)] == alone.layout.factors, "no key of LoRA changes"
    assert {factor.kind for factor in joined.layout.factors[len(alone.layout.factors) :]} == {"down", "up", "bias"}
    assert joined.layout.size == lora + 2 * (2 * 32 * WIDTH + WIDTH + 32)
    np.testing.assert_array_equal(joined.initial[:lora], alone.initial)
    start = joined.layout.unpack(joined.initial)
    down = start["base_model.model.model.layers.0.mlp.bottleneck.down_weight"]
    assert 0.5 / math.sqrt(32) < np.abs(down).max() <= 1 / math.sqrt(32)
    assert not start["base_model.model.model.layers.0.mlp.bottleneck.up_weight"].any()


def test_writing_the_vector_changes_the_model_and_gradients_arrive_in_it(folder: Path) -> None:
    adapter = extend(adapted(folder), width=WIDTH, seed=1)
    rng = np.random.default_rng(2)
    vector = (adapter.initial + rng.normal(0, 0.1, adapter.layout.size)).astype(np.float32)
    adapter.write(vector)
    np.testing.assert_array_equal(adapter.read(), vector)
    ids = torch.tensor(IDS)
    adapter.model(input_ids=ids, labels=ids).loss.backward()
    gradient = adapter.gradient.clone().numpy()
    assert np.count_nonzero(gradient) > 0.9 * gradient.size
    # directional derivative by central differences, separately for LoRA and bottlenecks
    lora = adapter.layout.size - 2 * (2 * 32 * WIDTH + WIDTH + 32)
    for part in (slice(0, lora), slice(lora, None)):
        direction = np.zeros_like(vector)
        direction[part] = gradient[part] / np.linalg.norm(gradient[part])
        values = []
        for sign in (1, -1):
            adapter.write(vector + np.float32(sign * 3e-3) * direction)
            with torch.no_grad():
                values.append(float(adapter.model(input_ids=ids, labels=ids).loss))
        slope = (values[0] - values[1]) / 6e-3
        assert slope == pytest.approx(float(np.linalg.norm(gradient[part])), rel=0.02)


def test_the_same_seed_draws_the_same_bottlenecks(folder: Path) -> None:
    first, second, other = (extend(adapted(folder), width=WIDTH, seed=seed).initial for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_frozen_a_stays_out_of_the_vector(folder: Path) -> None:
    adapter = extend(adapted(folder, freeze_a=True), width=WIDTH, seed=1)
    assert {factor.kind for factor in adapter.layout.factors} == {"B", "down", "up", "bias"}
    assert {factor.kind for factor in adapter.frozen_layout.factors} == {"A"}


def test_a_second_insertion_is_refused(folder: Path) -> None:
    adapter = extend(adapted(folder), width=WIDTH, seed=1)
    with pytest.raises(ConfigError, match="has bottleneck adapters already"):
        extend(adapter, width=WIDTH, seed=1)


def test_a_model_without_known_blocks_is_refused() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"hidden_size": 8, "model_type": "odd"})
            self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8)])

    with pytest.raises(ConfigError, match=r"type odd.*no feed-forward block"):
        insert(Odd(), width=2, seed=0)
