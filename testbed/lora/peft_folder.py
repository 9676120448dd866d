"""An adapter as a folder that `PeftModel.from_pretrained` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from testbed.core.adapter import Adapter, Layout
from testbed.lora.refactor import Stack, stack_layout

ADAPTER_FILE = "adapter_model.safetensors"
BOTTLENECK_FILE = "bottleneck.safetensors"
"""W_down, b_down, W_up and b_up of every feed-forward block, see `nodes.bottleneck`."""


def save_adapter(folder: Path, adapter: Adapter, vector: np.ndarray) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, and `bottleneck.safetensors` where there are any.

    PEFT knows no bottleneck adapters and would leave them out in silence, so they have a file of their own.

    Args:
        folder: made if it does not exist.
        adapter: layout, frozen factors and configuration.
        vector: trained factors, shape [adapter.size], float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factors = {**adapter.frozen_layout.unpack(adapter.frozen), **adapter.layout.unpack(vector)}
    tensors = {name: np.ascontiguousarray(values) for name, values in factors.items()}
    lora = {
        factor.name for factor in (*adapter.frozen_layout.factors, *adapter.layout.factors) if factor.kind in ("A", "B")
    }
    for file, wanted in ((ADAPTER_FILE, True), (BOTTLENECK_FILE, False)):
        chosen = {name: values for name, values in tensors.items() if (name in lora) == wanted}
        if chosen or wanted:
            save_file(chosen, str(folder / file), metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps(adapter.peft_config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def load_adapter(folder: Path) -> dict[str, np.ndarray]:
    """All factors that `save_adapter` wrote, by name.

    Args:
        folder: of an adapter.
    """
    files = [folder / ADAPTER_FILE, folder / BOTTLENECK_FILE]
    return {name: values for file in files if file.is_file() for name, values in load_file(str(file)).items()}


def save_folds(folder: Path, layout: Layout, folds: Mapping[str, Stack], scale: float) -> None:
    """Write what was added to the base weights, one file for each fold, and how to do it again, `FOLDS.txt`.

    Args:
        folder: of an adapter; it exists.
        layout: of the adapter.
        folds: stem of the file -> its factors; names in their order are the order of the run.
        scale: alpha / rank of the adapter, by which products are multiplied.
    """
    if not folds:
        return
    for stem, fold in folds.items():
        factors = stack_layout(layout, fold.rank).unpack(fold.vector)
        tensors = {name: np.ascontiguousarray(values) for name, values in factors.items()}
        save_file(tensors, str(folder / f"{stem}.safetensors"), metadata={"format": "pt"})
    (folder / "FOLDS.txt").write_text(_HOW.format(scale=scale), encoding="utf-8")


_HOW = """\
This adapter stands on a base model into which updates were folded during the run. To rebuild it, take the base model
that adapter_config.json names, and for every file fold-*.safetensors, of this round and of all rounds before, in the
order of their names, add to the weight W of each module, in float32,

    W <- W + {scale!r} * lora_B @ lora_A

with the factors of that module; then load the adapter on top. The folder adapter/ of a finished run holds all of them.
"""
