"""The layout of an adapter from a model's `config.json` alone: Llama's architecture, and GPT-2's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.core.adapter import Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.specs import LoraSpec
from testbed.lora.llama_layout import bottleneck_factors, llama_layout, lora_factors


def adapter_layout(config: Mapping[str, Any], lora: LoraSpec) -> Layout:
    """The trained factors of every adapted linear layer, module by module, A before B; then those of bottlenecks.

    Args:
        config: content of a `config.json`; its `model_type` tells GPT-2, all else is read as Llama's.
        lora: rank, targets, whether A is trained, and the width of bottlenecks.

    Raises:
        ConfigError: another architecture, or a target that it does not have.
    """
    return _gpt2_layout(config, lora) if config.get("model_type") == "gpt2" else llama_layout(config, lora)


def _gpt2_layout(config: Mapping[str, Any], lora: LoraSpec) -> Layout:
    """GPT-2 stores its weights [in, out]; the factors are A [rank, in] and B [out, rank] as everywhere."""
    hidden, layers = config.get("n_embd", 768), config.get("n_layer", 12)
    inner = config.get("n_inner") or 4 * hidden
    # path inside a block -> (out, in), in the order of the model
    linear = {
        "attn.c_attn": (3 * hidden, hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (inner, hidden),
        "mlp.c_proj": (hidden, inner),
    }
    strangers = [one for one in lora.targets if not any(f".{path}".endswith(f".{one}") for path in linear)]
    if strangers:
        raise ConfigError(
            f"a GPT-2 model has no linear layer {strangers[0]!r}",
            key="lora.targets",
            remedy=f"choose among {', '.join(dict.fromkeys(path.split('.')[1] for path in linear))}, or write "
            "mlp.c_proj for one of two",
        )
    factors: list[Factor] = []
    for layer in range(layers):
        for path, (rows, columns) in linear.items():
            if any(f".{path}".endswith(f".{target}") for target in lora.targets):
                factors += lora_factors(f"transformer.h.{layer}.{path}", rows, columns, lora)
    for layer in range(layers if lora.bottleneck else 0):
        factors += bottleneck_factors(f"transformer.h.{layer}.mlp", hidden, lora.bottleneck)
    return Layout(factors=tuple(factors))
