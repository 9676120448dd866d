"""Bottleneck adapters: a narrow layer behind each feed-forward block, whose values join the flat adapter.

    h <- h + W_up sigma(W_down h + b_down) + b_up,   W_up = 0 and b_up = 0 at start      (B1)

h is the output of the feed-forward block before the residual addition, where Houlsby et al. (arXiv 1902.00751) put
their second adapter and Pfeiffer et al. (arXiv 2005.00247) their only one. "Personalized Wireless Federated Learning
for Large Language Models" (arXiv 2404.13238) says that it uses adapters and LoRA; place, width and activation are our
reading, since the paper's body is not available.

The layer hangs on the block by a forward hook, so that no module of the model changes its name and LoRA factors keep
their keys. It computes in float32, whatever the base's number format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from nodes.adapters import FlatAdapter
from testbed.core.adapter import Factor, Layout
from testbed.core.errors import ConfigError

Activation = Literal["gelu", "relu", "silu"]

_INITIAL_DRAW = 5
_CHILD = "bottleneck"
_FEED_FORWARD = ("mlp", "feed_forward", "ffn")
"""Names that decoders give to their feed-forward blocks: Llama, Mistral, Qwen, GPT-2, NeoX and Phi say mlp."""

_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class Bottleneck(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """What is added to a feed-forward block's output: W_up sigma(W_down h + b_down) + b_up.

    Args:
        hidden: length of h.
        width: length of the narrow layer.
        activation: sigma.
        device: where the values live.
    """

    def __init__(self, hidden: int, width: int, activation: Activation, device: torch.device) -> None:
        super().__init__()

        def empty(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device), requires_grad=False)

        self.down_weight = empty(width, hidden)
        self.down_bias = empty(width)
        self.up_weight = empty(hidden, width)
        self.up_bias = empty(hidden)
        self._activation = _ACTIVATIONS[activation]

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """The addition for h, shape [..., hidden], of h's type."""
        narrow = self._activation(functional.linear(state.float(), self.down_weight, self.down_bias))
        return functional.linear(narrow, self.up_weight, self.up_bias).to(state.dtype)


@dataclass(frozen=True)
class Inserted:
    """The bottlenecks of a model, and the values they start from.

    Attributes:
        layout: block by block: W_down, b_down, W_up, b_up.
        parameters: factor name -> tensor of the model.
        initial: flat values at the start, shape [layout.size] float32.
    """

    layout: Layout
    parameters: Mapping[str, torch.nn.Parameter]
    initial: np.ndarray


def insert(
    model: torch.nn.Module, *, width: int, seed: int, activation: Activation = "gelu", prefix: str = ""
) -> Inserted:
    """Hang a bottleneck on every feed-forward block of a Llama- or GPT-2-type model, once for its life.

    W_down is uniform in +-1/sqrt(hidden), drawn from `numpy.random.default_rng([seed, 5])` block by block; all else is
    zero, so that the model computes what it computed before. The number of values of L blocks is
    L (2 hidden width + width + hidden).

    Args:
        model: a causal language model, with or without LoRA layers.
        width: length of the narrow layer.
        seed: seed of the experiment.
        activation: sigma.
        prefix: what precedes each module's name in a factor's name, as `base_model.model.` in files of peft.

    Returns:
        Layout, tensors and initial values.

    Raises:
        ConfigError: the model has no feed-forward block of a known name, or has bottlenecks already.
    """
    hidden = int(model.config.hidden_size)
    blocks = _feed_forward_blocks(model)
    factors: list[Factor] = []
    parameters: dict[str, torch.nn.Parameter] = {}
    rng = np.random.default_rng([seed, _INITIAL_DRAW])
    start: list[np.ndarray] = []
    bound = 1.0 / math.sqrt(hidden)
    for name, block in blocks.items():
        device = next(block.parameters()).device
        child = Bottleneck(hidden, width, activation, device)
        block.add_module(_CHILD, child)
        block.register_forward_hook(_add)
        for key, kind, shape in (
            ("down_weight", "down", (width, hidden)),
            ("down_bias", "bias", (width,)),
            ("up_weight", "up", (hidden, width)),
            ("up_bias", "bias", (hidden,)),
        ):
            full = f"{prefix}{name}.{_CHILD}.{key}"
            factors.append(Factor(name=full, shape=shape, kind=kind, module=name))  # type: ignore[arg-type]
            parameters[full] = getattr(child, key)
            drawn = rng.uniform(-bound, bound, shape) if kind == "down" else np.zeros(shape)
            start.append(drawn.astype(np.float32).ravel())
    return Inserted(Layout(factors=tuple(factors)), parameters, np.concatenate(start))


def extend(adapter: FlatAdapter, *, width: int, seed: int, activation: Activation = "gelu") -> FlatAdapter:
    """Let bottlenecks join a flat LoRA adapter: one vector, LoRA factors first, then the bottlenecks in one piece.

    The given adapter must not be used afterwards: its values no longer reach the model.

    Args:
        adapter: what `nodes.adapters.attach` returned.
        width: length of the narrow layer.
        seed: seed of the experiment.
        activation: sigma.

    Returns:
        The longer adapter, at its initial values.

    Raises:
        ConfigError: the model has no feed-forward block of a known name, or has bottlenecks already.
    """
    base = adapter.model.get_base_model()
    added = insert(base, width=width, seed=seed, activation=activation, prefix="base_model.model.")
    layout = Layout(factors=(*adapter.layout.factors, *added.layout.factors))
    tensors = {**adapter.parameters, **added.parameters}
    values = torch.zeros(layout.size, dtype=torch.float32, device=adapter.values.device)
    gradient = torch.zeros_like(values)
    for factor in layout.factors:
        parameter, where = tensors[factor.name], layout.slices[factor.name]
        parameter.data = values[where].view(factor.shape)
        parameter.requires_grad_(True)
        parameter.grad = gradient[where].view(factor.shape)
    longer = replace(
        adapter,
        layout=layout,
        values=values,
        gradient=gradient,
        initial=np.concatenate([adapter.initial, added.initial]),
        parameters=tensors,
    )
    longer.write(longer.initial)
    return longer


def _feed_forward_blocks(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    blocks = {
        name: module
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in _FEED_FORWARD and name.count(".") and name.rsplit(".", 2)[-2].isdigit()
    }
    if not blocks:
        kind = getattr(model.config, "model_type", type(model).__name__)
        raise ConfigError(
            f"the model (type {kind}) has no feed-forward block named {', '.join(_FEED_FORWARD)} in numbered layers",
            key="lora.bottleneck",
            remedy="use a decoder of the Llama or GPT-2 family, or leave the bottleneck adapters out",
        )
    if any(_CHILD in dict(block.named_children()) for block in blocks.values()):
        raise ConfigError(
            "the model has bottleneck adapters already",
            key="lora.bottleneck",
            remedy="load the base model anew; bottlenecks are inserted once for its life",
        )
    return blocks


def _add(block: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    """Forward hook of a feed-forward block: the output plus its bottleneck's addition."""
    return output + block.get_submodule(_CHILD)(output)
