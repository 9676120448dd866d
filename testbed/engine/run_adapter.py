"""The adapter of a run folder: what the nodes started from, and whether a replay ends where the run did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from testbed.core.adapter import Adapter, Layout
from testbed.core.bench import BenchSpec
from testbed.core.errors import ReplayDeparture
from testbed.core.fleet import Fleet
from testbed.engine.recorder import read_json, write_json
from testbed.lora.peft_folder import load_adapter


def write_start(folder: Path, adapter: Adapter, fleet: Fleet) -> None:
    """Keep the initial adapter, its layout, and how many rows each node owns."""
    np.savez(folder / "initial.npz", initial=adapter.initial, frozen=adapter.frozen)
    content = {
        "layout": adapter.layout.model_dump(mode="json"),
        "frozen_layout": adapter.frozen_layout.model_dump(mode="json"),
        "peft_config": adapter.peft_config,
        "num_samples": {node.name: node.num_samples for node in fleet.nodes},
    }
    write_json(folder / "adapter.json", content)


def read_start(
    folder: Path, bench: BenchSpec, fields: Mapping[str, Sequence[Sequence[float]]] | None = None
) -> tuple[Adapter, Fleet]:
    """What `write_start` kept; the fleet with these plane waves.

    Raises ConfigError where the files are missing or damaged.
    """
    content = read_json(folder, "adapter.json")
    with np.load(folder / "initial.npz", allow_pickle=False) as arrays:
        adapter = Adapter(
            layout=Layout.model_validate(content["layout"]),
            initial=arrays["initial"],
            frozen_layout=Layout.model_validate(content["frozen_layout"]),
            frozen=arrays["frozen"],
            peft_config=content["peft_config"],
        )
    return adapter, Fleet.of(bench, content["num_samples"], fields)


def compare_stored(folder: Path, adapter: Adapter, vector: np.ndarray) -> None:
    """Raises ReplayDeparture where the stored PEFT folder is not this vector, bit for bit."""
    stored = load_adapter(folder)
    for name, factor in adapter.layout.unpack(vector).items():
        if not np.array_equal(stored[name], factor):
            raise ReplayDeparture(f"the replayed adapter differs from the stored one in {name}", file=folder)
