"""A node's frozen base model with weights left out: a smaller model that trains faster, or masks that do not.

Structured pruning builds a smaller model from slices of the base: whole key-value heads with their query heads, and
channels of the feed-forward blocks, as many in every layer. All else, embedding and output layer first of all, is
shared with the base. The smaller adapter is a gather of the flat vector; what it learns is scattered back. Which heads
and channels go is `testbed.lora.prune`'s rule, by importance on the base model with an untrained adapter: a node's
masks depend on seed, node, ratio and what was folded into the base, not on the round.

    data         sum of |w dL/dw| over the group's weights and a few batches of the node's own rows
                 (first-order Taylor, LLM-Pruner, arXiv 2305.11627; L is the mean loss of a batch)
    magnitude    sum of w^2 over the group's weights

Unstructured pruning zeroes single weights of each output row, by |w| ||x|| (Wanda, arXiv 2306.11695) or |w|, in place
for the time of the training; it costs as much as training without.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nodes.adapters import FlatAdapter, attach
from nodes.likelihood import Likelihood
from nodes.tokens import Batch
from testbed.core.errors import ConfigError
from testbed.core.orders import Pruning
from testbed.core.specs import LoraSpec
from testbed.lora.prune import LayerShape, kept, row_removed, work_share

_HEADS = ("q_proj", "k_proj", "v_proj", "o_proj")
_CHANNELS = ("gate_proj", "up_proj", "down_proj")
_INPUTS = ("o_proj", "down_proj")
"""Layers whose inputs belong to heads and channels; of the others the outputs do."""
_PREFIX = "base_model.model."
_KEPT_BYTES = 1 << 30
"""Pruned models and masks that are kept for later rounds take no more than this, or twice the base if that is more."""


@dataclass(frozen=True)
class PruningFacts:
    """What pruning left out: shares of weights, of their squared norm, and the operations that are left."""

    ratio: float = 0.0
    energy_share: float = 0.0
    work_share: float = 1.0


@dataclass(frozen=True)
class Smaller:
    """A pruned model with its adapter.

    Attributes:
        adapter: of the smaller model.
        likelihood: its losses.
        places: where its values lie in the whole adapter, shape [adapter.layout.size].
        facts: what was left out.
    """

    adapter: FlatAdapter
    likelihood: Likelihood
    places: np.ndarray
    facts: PruningFacts


@dataclass(frozen=True)
class _Linear:
    """A prunable layer: its path in the base, the module that stands there, and the bare layer inside it."""

    path: str
    module: torch.nn.Module
    bare: torch.nn.Linear


@dataclass
class Pruner:
    """Prunes the base of one process for any of its nodes.

    Args:
        adapter: the whole model with its adapter; its values are overwritten.
        likelihood: its losses.
        lora: of the experiment.
        seed: of the experiment.
        batches: the batches of a node by which importance is found.
    """

    adapter: FlatAdapter
    likelihood: Likelihood
    lora: LoraSpec
    seed: int
    batches: Callable[[str], Sequence[Batch]]
    _scores: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _norms: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    _kept: OrderedDict[Any, tuple[int, Any]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._base = self.adapter.model.get_base_model()
        self._layers = _layers(self._base)
        heads, channels = self._base.config, self._layers[0]["gate_proj"].bare.out_features
        self._head_dim = getattr(heads, "head_dim", None) or heads.hidden_size // heads.num_attention_heads
        key_value = self._layers[0]["k_proj"].bare.out_features // self._head_dim
        sizes = {name: one.bare.weight.numel() for name, one in self._layers[0].items()}
        self._shape = LayerShape(
            heads=key_value,
            head_values=sum(sizes[name] for name in _HEADS) // key_value,
            channels=channels,
            channel_values=sum(sizes[name] for name in _CHANNELS) // channels,
        )

    def forget(self) -> None:
        """Drop everything that was derived from the base weights: they have changed."""
        self._scores.clear()
        self._norms.clear()
        self._kept.clear()

    # structured ------------------------------------------------------------------------------------------------------

    def smaller(self, node: str, pruning: Pruning) -> Smaller | None:
        """The model of a node at a ratio; None where the ratio is too small to take anything out.

        Raises:
            ConfigError: the importance is not finite.
        """
        gone = self._shape.removed(pruning.ratio)
        if gone == (0, 0):
            return None
        scores = self._group_scores(node if pruning.importance == "data" else "")
        # [num_layers, num_heads] and [num_layers, num_channels]
        heads, channels = (kept(score, count) for score, count in zip(scores, gone, strict=True))
        key = (heads.tobytes(), channels.tobytes())
        return self._remember(key, lambda: self._build(heads, channels, gone))  # type: ignore[no-any-return]

    def _build(self, heads: np.ndarray, channels: np.ndarray, gone: tuple[int, int]) -> tuple[int, Smaller]:
        cuts = {
            one.path: self._cut_of(name, heads[index], channels[index])
            for index, layer in enumerate(self._layers)
            for name, one in layer.items()
        }
        base = self._copy(cuts)
        base.config.intermediate_size -= gone[1]
        base.config.head_dim = self._head_dim
        base.config.num_attention_heads -= gone[0] * (self._base.config.num_attention_heads // self._shape.heads)
        base.config.num_key_value_heads = self._shape.heads - gone[0]
        whole = self.adapter
        start = {
            **_sliced(whole.layout.unpack(whole.initial), cuts),
            **_sliced(whole.frozen_layout.unpack(whole.frozen), cuts),
        }
        adapter = attach(base, self.lora, self.seed, start)
        numbered = whole.layout.unpack(np.arange(whole.layout.size))
        where = _sliced(numbered, cuts)
        places = np.concatenate([where[factor.name].ravel() for factor in adapter.layout.factors])
        squares = self._group_scores("")
        lost = sum(float(square[~mask].sum()) for square, mask in zip(squares, (heads, channels), strict=True))
        values = len(self._layers) * self._shape.size
        ratio = self._shape.ratio(*gone)
        facts = PruningFacts(
            ratio=ratio,
            energy_share=lost / sum(float(square.sum()) for square in squares),
            work_share=work_share(
                values, values * (1.0 - ratio), self._fixed_values(), whole.layout.size, adapter.layout.size
            ),
        )
        likelihood = Likelihood.of(adapter.model, pad=self.likelihood.pad, loss_on=self.likelihood.loss_on)
        num_bytes = int(values * (1.0 - ratio)) * self._layers[0]["q_proj"].bare.weight.element_size()
        return num_bytes, Smaller(adapter, likelihood, places, facts)

    def _cut_of(self, name: str, heads: np.ndarray, channels: np.ndarray) -> tuple[str, np.ndarray]:
        """Which side of a layer is cut, rows or columns, and what of it stays."""
        if name in _CHANNELS:
            stays = channels
        else:
            bare = self._layers[0][name].bare
            width = bare.in_features if name in _INPUTS else bare.out_features
            stays = np.repeat(heads, width // self._shape.heads)
        return ("columns" if name in _INPUTS else "rows"), stays

    def _copy(self, cuts: dict[str, tuple[str, np.ndarray]]) -> Any:
        """The base without LoRA and with cut layers; everything else shares the base's memory."""
        memo: dict[int, Any] = {id(value): value for value in (*self._base.parameters(), *self._base.buffers())}
        for name, module in self._base.named_modules():
            bare = _bare(module)
            if name in cuts:
                memo[id(module)] = _cut(bare, *cuts[name])
            elif bare is not module:
                memo[id(module)] = bare
        base = copy.deepcopy(self._base, memo)
        # the copy has never seen an adapter
        vars(base).pop("peft_config", None)
        return base

    def _group_scores(self, node: str) -> tuple[np.ndarray, np.ndarray]:
        """Importance of every head and channel, by a node's data, or by magnitude for the node ""."""
        if node not in self._scores:
            self._scores[node] = self._taylor(node) if node else self._squares()
        return self._scores[node]

    def _squares(self) -> tuple[np.ndarray, np.ndarray]:
        scores = self._no_scores()
        for index, layer in enumerate(self._layers):
            for name, one in layer.items():
                self._add_groups(scores, index, name, one.bare.weight.detach().float().square())
        return scores

    def _taylor(self, node: str) -> tuple[np.ndarray, np.ndarray]:
        scores = self._no_scores()
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                for name, one in layer.items():

                    def reduce(weight: torch.Tensor, index: int = index, name: str = name) -> None:
                        # at once, so that only one layer's gradient is held at a time
                        assert weight.grad is not None
                        change = (weight.detach() * weight.grad).abs()
                        self._add_groups(scores, index, name, change)
                        weight.grad = None

                    weight = one.bare.weight.requires_grad_(True)
                    stack.callback(weight.requires_grad_, False)
                    stack.callback(weight.register_post_accumulate_grad_hook(reduce).remove)
            for batch in self._untrained_batches(node):
                (self.likelihood.loss(batch) / max(1, batch.num_targets)).backward()
        self._check_finite(node, *scores)
        return scores

    def _no_scores(self) -> tuple[np.ndarray, np.ndarray]:
        count = len(self._layers)
        return np.zeros((count, self._shape.heads)), np.zeros((count, self._shape.channels))

    def _add_groups(self, scores: tuple[np.ndarray, np.ndarray], index: int, name: str, values: torch.Tensor) -> None:
        """Sum a layer's values [out, in] by head or channel."""
        sums = values.sum(0 if name in _INPUTS else 1, dtype=torch.float64).cpu().numpy()
        score = scores[name in _CHANNELS][index]
        score += sums.reshape(score.size, -1).sum(1)

    # unstructured ----------------------------------------------------------------------------------------------------

    @contextmanager
    def masked(self, node: str, pruning: Pruning) -> Iterator[PruningFacts]:
        """Zero a node's least important weights for a while; afterwards the base is what it was, bit for bit.

        Yields:
            what was left out.

        Raises:
            ConfigError: the importance is not finite.
        """
        masks = self.masks(node, pruning)
        taken, total, count, size = 0.0, 0.0, 0, 0
        with ExitStack() as stack:
            for one, mask in zip(self._linears(), masks, strict=True):
                weight = one.bare.weight.detach()
                total += float(weight.double().square().sum())
                saved = weight[mask]
                taken += float(saved.double().square().sum())
                count, size = count + saved.numel(), size + weight.numel()
                stack.callback(weight.__setitem__, mask, saved)
                weight[mask] = 0.0
            yield PruningFacts(count / size, taken / total if total else 0.0)

    def masks(self, node: str, pruning: Pruning) -> list[torch.Tensor]:
        """The weights that go, layer by layer, bool, shape [out, in] each.

        Raises:
            ConfigError: the importance is not finite.
        """
        owner = node if pruning.importance == "data" else ""
        return self._remember((owner, pruning.ratio), lambda: self._masks(owner, pruning.ratio))  # type: ignore[no-any-return]

    def _masks(self, owner: str, ratio: float) -> tuple[int, list[torch.Tensor]]:
        found = []
        if owner and owner not in self._norms:
            self._norms[owner] = self._input_norms(owner)
        for one in self._linears():
            score = one.bare.weight.detach().float().abs()
            if owner:
                score = score * self._norms[owner][one.path]
            order = torch.argsort(score, dim=1, stable=True)
            first = order[:, : row_removed(ratio, score.shape[1])]
            found.append(torch.zeros_like(score, dtype=torch.bool).scatter_(1, first, True))
        return sum(mask.numel() for mask in found), found

    def _input_norms(self, node: str) -> dict[str, torch.Tensor]:
        """||x_j|| of every input of every prunable layer, over the tokens of a node's batches, shape [in] each."""
        squares: dict[str, torch.Tensor] = {}
        real: list[torch.Tensor] = []
        with ExitStack() as stack, torch.no_grad():
            for one in self._linears():

                def add(_module: Any, inputs: tuple[torch.Tensor, ...], path: str = one.path) -> None:
                    values = inputs[0].detach()[real[-1]].double().square().sum(0)
                    squares[path] = squares.get(path, 0.0) + values

                stack.callback(one.bare.register_forward_pre_hook(add).remove)
            for batch in self._untrained_batches(node):
                real.append(torch.from_numpy(batch.attention_mask).to(self.adapter.values.device) > 0)
                self.likelihood.loss(batch)
        norms = {path: square.sqrt().float() for path, square in squares.items()}
        self._check_finite(node, *(norm.cpu().numpy() for norm in norms.values()))
        return norms

    # both ------------------------------------------------------------------------------------------------------------

    def _untrained_batches(self, node: str) -> Sequence[Batch]:
        """The node's batches, with the model at its initial adapter and without dropout."""
        self.adapter.write(self.adapter.initial)
        self.adapter.model.eval()
        return self.batches(node)

    def _linears(self) -> Iterator[_Linear]:
        for layer in self._layers:
            yield from layer.values()

    def _fixed_values(self) -> int:
        """Weights of matrices that are neither prunable nor the adapter's."""
        prunable = {id(one.bare) for one in self._linears()}
        return sum(
            module.weight.numel()
            for name, module in self._base.named_modules()
            if isinstance(module, torch.nn.Linear) and id(module) not in prunable and ".lora_" not in name
        )

    def _remember(self, key: Any, make: Callable[[], tuple[int, Any]]) -> Any:
        """What was made for a key; the longest unused go first where memory would be too much."""
        if key not in self._kept:
            self._kept[key] = make()
            base_bytes = sum(one.bare.weight.nbytes for one in self._linears())
            while len(self._kept) > 1 and sum(size for size, _ in self._kept.values()) > max(
                _KEPT_BYTES, 2 * base_bytes
            ):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key][1]

    def _check_finite(self, node: str, *scores: np.ndarray) -> None:
        if not all(np.isfinite(score).all() for score in scores):
            raise ConfigError(
                f"the importance of weights for {node} is not finite on its own data",
                key="model.dtype",
                remedy="use a base model in float32 or bfloat16 that scores the data finitely, or importance magnitude",
            )


def _layers(base: torch.nn.Module) -> list[dict[str, _Linear]]:
    """The prunable layers of every decoder layer.

    Raises:
        ConfigError: another architecture, or weights of 4 bits.
    """
    blocks: dict[tuple[str, ...], list[dict[str, _Linear]]] = {_HEADS: [], _CHANNELS: []}
    for path, module in base.named_modules():
        children = dict(module.named_children())
        for names, found in blocks.items():
            if set(names) <= set(children):
                parts = {name: _Linear(f"{path}.{name}", children[name], _bare(children[name])) for name in names}
                found.append(parts)
    heads, channels = blocks.values()
    shapes = [{name: tuple(one.bare.weight.shape) for name, one in layer.items()} for layer in (*heads, *channels)]
    if not heads or len(heads) != len(channels) or any(one not in (shapes[0], shapes[-1]) for one in shapes):
        kind = type(base).__name__
        raise ConfigError(
            f"the model ({kind}) cannot be pruned: it has no layers of {', '.join((*_HEADS, *_CHANNELS))} alike",
            key="model.base",
            remedy="use a decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3), or a scheme that does not prune",
        )
    layers = [{**one, **other} for one, other in zip(heads, channels, strict=True)]
    if any(not one.bare.weight.is_floating_point() for layer in layers for one in layer.values()):
        raise ConfigError(
            "weights of 4 bits cannot be pruned",
            key="model.dtype",
            remedy='use dtype = "bfloat16" or "float32", or a scheme that does not prune',
        )
    return layers


def _bare(module: torch.nn.Module) -> Any:
    """The layer below LoRA; the module itself where there is none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _cut(bare: torch.nn.Linear, side: str, stays: np.ndarray) -> torch.nn.Linear:
    """A linear layer of some of another's rows (outputs) or columns (inputs)."""
    index = torch.from_numpy(np.flatnonzero(stays)).to(bare.weight.device)
    weight = bare.weight.detach().index_select(0 if side == "rows" else 1, index)
    smaller = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bare.bias is not None, device="meta")
    smaller.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bare.bias is not None:
        bias = bare.bias.detach().index_select(0, index) if side == "rows" else bare.bias.detach()
        smaller.bias = torch.nn.Parameter(bias, requires_grad=False)
    return smaller


def _sliced(factors: dict[str, np.ndarray], cuts: dict[str, tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The parts of LoRA factors that belong to cut layers: rows of B, columns of A."""
    found = {}
    for name, values in factors.items():
        stem, _, kind = name.removeprefix(_PREFIX).rpartition(".lora_")
        side, stays = cuts.get(stem, ("", np.zeros(0, bool)))
        if kind.startswith("A") and side == "columns":
            values = values[:, stays]
        elif kind.startswith("B") and side == "rows":
            values = values[stays]
        found[name] = values
    return found
