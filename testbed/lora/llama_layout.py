"""The layout of LoRA factors on a Llama model, from its `config.json` alone: sizes without loading a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.core.adapter import Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.specs import LoraSpec


def llama_layout(config: Mapping[str, Any], lora: LoraSpec) -> Layout:
    """The trained factors of every adapted linear layer, module by module, A before B.

    Args:
        config: content of a Llama-architecture `config.json`.
        lora: rank, targets and whether A is trained.

    Raises:
        ConfigError: another architecture, or a target that it does not have.
    """
    try:
        hidden, layers, mlp = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
        heads = config["num_attention_heads"]
    except KeyError as error:
        raise ConfigError(
            f"the model's config.json has no {error.args[0]}", key="model.base", remedy="use a Llama-architecture model"
        ) from error
    head_dim = config.get("head_dim") or hidden // heads
    key_value = (config.get("num_key_value_heads") or heads) * head_dim
    # name -> parent module, (out, in), in the order of the model
    linear = {
        "q_proj": ("self_attn", (heads * head_dim, hidden)),
        "k_proj": ("self_attn", (key_value, hidden)),
        "v_proj": ("self_attn", (key_value, hidden)),
        "o_proj": ("self_attn", (hidden, heads * head_dim)),
        "gate_proj": ("mlp", (mlp, hidden)),
        "up_proj": ("mlp", (mlp, hidden)),
        "down_proj": ("mlp", (hidden, mlp)),
    }
    strangers = [target for target in lora.targets if target not in linear]
    if strangers:
        raise ConfigError(
            f"a Llama model has no linear layer {strangers[0]!r}",
            key="lora.targets",
            remedy=f"choose among {', '.join(linear)}",
        )
    factors = []
    for layer in range(layers):
        for name, (parent, (rows, columns)) in linear.items():
            if name in lora.targets:
                module = f"model.layers.{layer}.{parent}.{name}"
                stem = f"base_model.model.{module}"
                if not lora.freeze_a:
                    factors.append(
                        Factor(name=f"{stem}.lora_A.weight", shape=(lora.rank, columns), kind="A", module=module)
                    )
                factors.append(Factor(name=f"{stem}.lora_B.weight", shape=(rows, lora.rank), kind="B", module=module))
    return Layout(factors=tuple(factors))
