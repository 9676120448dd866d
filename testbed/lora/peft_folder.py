"""An adapter as a folder that `PeftModel.from_pretrained` loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from testbed.core.adapter import Adapter


def save_adapter(folder: Path, adapter: Adapter, vector: np.ndarray) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`.

    Args:
        folder: made if it does not exist.
        adapter: layout, frozen factors and configuration.
        vector: trained factors, shape [adapter.size], float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factors = {**adapter.frozen_layout.unpack(adapter.frozen), **adapter.layout.unpack(vector)}
    tensors = {name: np.ascontiguousarray(values) for name, values in factors.items()}
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps(adapter.peft_config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
