"""LoRA adapters of a shared base model as one flat vector: every trained factor is a view into it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from nodes.model import check_targets
from testbed.core.adapter import Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.orders import WHOLE, Part
from testbed.core.specs import LoraSpec
from testbed.lora.choice import part_mask
from testbed.lora.switch import max_rank, slice_mask

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_INITIAL_DRAW = 4

Factors: TypeAlias = Literal["both", "A", "B"]
"""Which LoRA factors are trained."""


@dataclass(frozen=True)
class FlatAdapter:
    """A base model with LoRA layers whose trained factors share one vector.

    Attributes:
        model: the base with its LoRA layers.
        layout: order of the trained factors.
        frozen_layout: order of the factors that are not trained: A under `freeze_a`, else empty.
        values: trained values, shape [layout.size] float32; writing here changes the model.
        gradient: their gradient, shape [layout.size] float32; backward passes add to it.
        initial: values at the start of the experiment, shape [layout.size] float32.
        frozen: values of the frozen factors, shape [frozen_layout.size] float32.
        peft_config: content of `adapter_config.json`.
        parameters: name of a trained factor -> its parameter in the model.
    """

    model: PeftModel
    layout: Layout
    frozen_layout: Layout
    values: torch.Tensor
    gradient: torch.Tensor
    initial: np.ndarray
    frozen: np.ndarray
    peft_config: dict[str, Any]
    parameters: Mapping[str, torch.nn.Parameter]

    def write(self, vector: np.ndarray) -> None:
        """Put a flat adapter into the model, shape [layout.size]."""
        if vector.shape != (self.layout.size,):
            self.layout.unpack(vector)  # raises the error that names both sizes
        self.values.copy_(torch.from_numpy(np.require(vector, np.float32, ["C", "W"])))

    def read(self) -> np.ndarray:
        """A copy of the model's flat adapter, shape [layout.size] float32."""
        return self.values.to("cpu", copy=True).numpy()

    def beyond(self, ranks: int | None) -> torch.Tensor | None:
        """Where the ranks after the first so many lie, bool, shape [layout.size]; None if there are none.

        Raises:
            ValueError: a rank that the layout does not have.
        """
        if ranks is None or ranks == max_rank(self.layout):
            return None
        return torch.from_numpy(~slice_mask(self.layout, ranks)).to(self.values.device)

    @contextmanager
    def sketched(self, columns: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Multiply what LoRA adds by rank / len(columns) for a while, as a sketch that keeps these ranks alone asks.

        Args:
            columns: ranks that are kept, counted from 0, ascending.

        Yields:
            where the values of the other ranks lie, bool, shape [layout.size].

        Raises:
            ValueError: a rank that the layout does not have.
        """
        from peft.tuners.lora import LoraLayer

        beyond = torch.from_numpy(~part_mask(self.layout, Part(columns=columns))).to(self.values.device)
        growth = max_rank(self.layout) / len(columns)
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        before = [dict(layer.scaling) for layer in layers]
        for layer in layers:
            layer.scaling.update({name: scale * growth for name, scale in layer.scaling.items()})
        try:
            yield beyond
        finally:
            for layer, scaling in zip(layers, before, strict=True):
                layer.scaling.update(scaling)

    @contextmanager
    def training(self, factors: Factors, ranks: int | None = None, part: Part = WHOLE) -> Iterator[torch.Tensor | None]:
        """Train only some of the factors for a while: the others get no gradient, and none is computed for them.

        Args:
            factors: A, B or both.
            part: values that are trained, among those.
            ranks: only the first so many of every module are trained; of the others a gradient is computed all the
                same, and must not be used.

        Yields:
            where the values lie that rest, bool, shape [layout.size]; None if there are none.

        Raises:
            ConfigError: no factor would be trained.
        """
        chosen = part_mask(self.layout, part)
        resting = [
            factor
            for factor in self.layout.factors
            if factors not in ("both", factor.kind) or not chosen[self.layout.slices[factor.name]].any()
        ]
        beyond = self.beyond(ranks)
        if not chosen.all():
            outside = torch.from_numpy(~chosen).to(self.values.device)
            beyond = outside if beyond is None else beyond | outside
        if not resting:
            yield beyond
            return
        if len(resting) == len(self.layout.factors):
            raise ConfigError(
                f"a round was to train the factors {factors} alone, and the adapter trains none of them",
                key="lora.freeze_a",
                remedy="set freeze_a = false, or let the scheme train B or both factors",
            )
        where = torch.zeros(self.layout.size, dtype=torch.bool, device=self.values.device)
        if beyond is not None:
            where |= beyond
        for factor in resting:
            where[self.layout.slices[factor.name]] = True
            self.parameters[factor.name].requires_grad_(False)
        try:
            yield where
        finally:
            for factor in resting:
                self.parameters[factor.name].requires_grad_(True)


def attach(
    base: PreTrainedModel, spec: LoraSpec, seed: int, start: Mapping[str, np.ndarray] | None = None
) -> FlatAdapter:
    """Add LoRA layers to the base model, once for the life of the process.

    A is uniform in +-1/sqrt(in) (the Kaiming rule with a = sqrt(5), as in the LoRA authors' code), drawn from
    `numpy.random.default_rng([seed, 4])` factor by factor in layout order; B is zero, so training starts at the base.

    Args:
        base: frozen base model, already on its device.
        spec: rank, alpha and adapted layers.
        seed: seed of the experiment.
        start: factor name -> initial values, instead of a draw: where the base is a part of a larger one.

    Raises:
        ConfigError: a target matches no layer.
    """
    from peft import LoraConfig, get_peft_model

    turned = check_targets(base, spec.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # a float is as good
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        bias="none",
        fan_in_fan_out=turned,
    )
    model = get_peft_model(base, config)
    parameters = {
        _plain(name): parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }
    factors = [_factor(name, parameter) for name, parameter in parameters.items()]
    # named_parameters lists module by module; A stands before B inside each
    factors = [factor for _, pair in _by_module(factors).items() for factor in sorted(pair, key=lambda item: item.kind)]
    everything = Layout(factors=tuple(factors))
    if start is None:
        start = everything.unpack(_initial(everything, seed))

    trained = Layout(factors=tuple(factor for factor in factors if factor.kind == "B" or not spec.freeze_a))
    fixed = Layout(factors=tuple(factor for factor in factors if factor.kind == "A" and spec.freeze_a))
    device = next(iter(parameters.values())).device
    values = torch.zeros(trained.size, dtype=torch.float32, device=device)
    gradient = torch.zeros_like(values)
    for factor in trained.factors:
        parameter, where = parameters[factor.name], trained.slices[factor.name]
        parameter.data = values[where].view(factor.shape)
        parameter.grad = gradient[where].view(factor.shape)
        parameter.requires_grad_(True)
    for factor in fixed.factors:
        parameter = parameters[factor.name]
        parameter.requires_grad_(False)
        parameter.data.copy_(torch.from_numpy(start[factor.name].copy()))
    adapter = FlatAdapter(
        model=model,
        layout=trained,
        frozen_layout=fixed,
        values=values,
        gradient=gradient,
        initial=trained.pack({factor.name: start[factor.name] for factor in trained.factors}),
        frozen=fixed.pack({factor.name: start[factor.name] for factor in fixed.factors}),
        peft_config=_config_file(config),
        parameters={factor.name: parameters[factor.name] for factor in trained.factors},
    )
    adapter.write(adapter.initial)
    return adapter


def _plain(name: str) -> str:
    """Key in `adapter_model.safetensors`: the parameter name without the adapter's name."""
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def _factor(name: str, parameter: torch.Tensor) -> Factor:
    kind, marker = ("A", ".lora_A.") if ".lora_A." in name else ("B", ".lora_B.")
    rows, columns = parameter.shape
    return Factor(name=name, shape=(rows, columns), kind=kind, module=name.split(marker)[0])  # type: ignore[arg-type]


def _by_module(factors: list[Factor]) -> dict[str, list[Factor]]:
    modules: dict[str, list[Factor]] = {}
    for factor in factors:
        modules.setdefault(factor.module, []).append(factor)
    return modules


def _initial(layout: Layout, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, _INITIAL_DRAW])
    vector = np.zeros(layout.size, np.float32)
    for factor in layout.factors:
        if factor.kind == "A":
            bound = 1.0 / math.sqrt(factor.shape[1])
            vector[layout.slices[factor.name]] = rng.uniform(-bound, bound, factor.size)
    return vector


def _config_file(config: Any) -> dict[str, Any]:
    """What `adapter_config.json` holds: the configuration in words that JSON knows."""
    content = {**config.to_dict(), "inference_mode": True}
    return json.loads(
        json.dumps(content, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )
