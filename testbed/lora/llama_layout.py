"""Sizes of a Llama model from its `config.json` alone: the layout of its adapter, and what pruning leaves to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.core.adapter import Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.specs import LoraSpec
from testbed.lora.prune import LayerShape, work_share


def llama_layout(config: Mapping[str, Any], lora: LoraSpec) -> Layout:
    """The trained factors of every adapted linear layer, module by module, A before B; then those of bottlenecks.

    Args:
        config: content of a Llama-architecture `config.json`.
        lora: rank, targets, whether A is trained, and the width of bottlenecks.

    Raises:
        ConfigError: another architecture, or a target that it does not have.
    """
    hidden, layers, mlp, heads, key_value_heads, head_dim = _sizes(config)
    key_value = key_value_heads * head_dim
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
    paths = [f".{parent}.{name}" for name, (parent, _) in linear.items()]
    strangers = [target for target in lora.targets if not any(path.endswith(f".{target}") for path in paths)]
    if strangers:
        raise ConfigError(
            f"a Llama model has no linear layer {strangers[0]!r}",
            key="lora.targets",
            remedy=f"choose among {', '.join(linear)}",
        )
    factors = []
    for layer in range(layers):
        for name, (parent, (rows, columns)) in linear.items():
            if any(f".{parent}.{name}".endswith(f".{target}") for target in lora.targets):
                factors += lora_factors(f"model.layers.{layer}.{parent}.{name}", rows, columns, lora)
    for layer in range(layers if lora.bottleneck else 0):
        factors += bottleneck_factors(f"model.layers.{layer}.mlp", hidden, lora.bottleneck)
    return Layout(factors=tuple(factors))


def lora_factors(module: str, rows: int, columns: int, lora: LoraSpec) -> list[Factor]:
    """One linear layer's A and B; B alone where A is frozen.

    Args:
        module: path of the layer.
        rows: length of its output.
        columns: length of its input.
        lora: rank, and whether A is trained.
    """
    stem = f"base_model.model.{module}"
    a = Factor(name=f"{stem}.lora_A.weight", shape=(lora.rank, columns), kind="A", module=module)
    b = Factor(name=f"{stem}.lora_B.weight", shape=(rows, lora.rank), kind="B", module=module)
    return [b] if lora.freeze_a else [a, b]


def bottleneck_factors(module: str, hidden: int, width: int) -> list[Factor]:
    """One block's W_down, b_down, W_up, b_up.

    Args:
        module: path of the feed-forward block.
        hidden: length of its output.
        width: of the bottleneck.
    """
    stem = f"base_model.model.{module}.bottleneck"
    return [
        Factor(name=f"{stem}.down_weight", shape=(width, hidden), kind="down", module=module),
        Factor(name=f"{stem}.down_bias", shape=(width,), kind="bias", module=module),
        Factor(name=f"{stem}.up_weight", shape=(hidden, width), kind="up", module=module),
        Factor(name=f"{stem}.up_bias", shape=(hidden,), kind="bias", module=module),
    ]


def llama_layer_shape(config: Mapping[str, Any]) -> LayerShape:
    """What structured pruning can take out of every layer.

    Args:
        config: content of a Llama-architecture `config.json`.

    Raises:
        ConfigError: another architecture.
    """
    hidden, _, mlp, heads, key_value_heads, head_dim = _sizes(config)
    # keys and values once, queries and outputs for every query head of the group
    head_values = 2 * hidden * head_dim * (1 + heads // key_value_heads)
    return LayerShape(heads=key_value_heads, head_values=head_values, channels=mlp, channel_values=3 * hidden)


def llama_work_share(config: Mapping[str, Any], lora: LoraSpec, ratio: float) -> tuple[float, float]:
    """What structured pruning at a ratio leaves to do, from the `config.json` alone.

    Args:
        config: content of a Llama-architecture `config.json`.
        lora: rank and targets.
        ratio: share of the prunable weights that is asked to go, from 0 to below 1.

    Returns:
        operations of a token relative to the whole model; the share of the prunable weights that really goes.

    Raises:
        ConfigError: another architecture, or a target that it does not have.
        ValueError: another ratio.
    """
    hidden, layers, mlp, heads, key_value_heads, head_dim = _sizes(config)
    shape = llama_layer_shape(config)
    gone, channels = shape.removed(ratio)
    smaller = {
        **config,
        "head_dim": head_dim,
        "intermediate_size": mlp - channels,
        "num_key_value_heads": key_value_heads - gone,
        "num_attention_heads": heads - gone * (heads // key_value_heads),
    }
    true_ratio = shape.ratio(gone, channels)
    whole = layers * shape.size
    values = [llama_layout(one, lora).size for one in (config, smaller)]
    share = work_share(whole, whole * (1.0 - true_ratio), hidden * config.get("vocab_size", 0), *values)
    return share, true_ratio


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int, int, int]:
    """hidden, layers, feed-forward channels, query heads, key-value heads, head dimension."""
    try:
        hidden, layers, mlp = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
        heads = config["num_attention_heads"]
    except KeyError as error:
        raise ConfigError(
            f"the model's config.json has no {error.args[0]}", key="model.base", remedy="use a Llama-architecture model"
        ) from error
    head_dim = config.get("head_dim") or hidden // heads
    return hidden, layers, mlp, heads, config.get("num_key_value_heads") or heads, head_dim
