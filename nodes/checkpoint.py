"""State of a pre-training run on disk, so that a stopped run goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def save(
    out: Path, model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], state: dict[str, float]
) -> None:
    """Write model, optimisers and `state` to `out/checkpoint.safetensors`, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
    partial = out / "checkpoint.part"
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        partial,
        metadata={name: str(value) for name, value in state.items()},
    )
    partial.replace(out / "checkpoint.safetensors")


def restore(
    out: Path, model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], state: dict[str, float]
) -> None:
    """Fill model, optimisers and `state` from the checkpoint of `out`; where there is none, change nothing."""
    from safetensors import safe_open

    path = out / "checkpoint.safetensors"
    if not path.is_file():
        return
    kept: dict[int, dict[int, dict[str, torch.Tensor]]] = {number: {} for number in range(len(optimizers))}
    with safe_open(path, "pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118
            if name.startswith("model."):
                model.get_parameter(name.removeprefix("model.")).copy_(file.get_tensor(name))
            else:
                _, number, index, key = name.split(".", 3)
                kept[int(number)].setdefault(int(index), {})[key] = file.get_tensor(name)
        state.update({name: float(value) for name, value in file.metadata().items() if name in state})
    for number, optimizer in enumerate(optimizers):
        optimizer.load_state_dict({"state": kept[number], "param_groups": optimizer.state_dict()["param_groups"]})
