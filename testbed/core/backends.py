"""The one look-up that points up the layers: names of functions, resolved when they are used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from testbed.core.errors import ConfigError


@dataclass(frozen=True)
class Backend:
    """Where a backend's devices are opened.

    Attributes:
        bench: `module:function` that opens the controller's devices, see `sim_backend.open.open_bench`.
        node: `module:function` that opens one node's devices, see `sim_backend.open.open_node`.
        describe: one line for the command line.
    """

    bench: str
    node: str
    describe: str


BACKENDS: dict[str, Backend] = {
    "sim": Backend(
        "sim_backend.open:open_bench", "sim_backend.open:open_node", "pure software, one shared world, virtual clock"
    ),
}

NODE_AGENT = "nodes.agent:serve"
CAPTURE = "drivers.sigmf_capture:CapturingRadio"
PLAYBACK = "drivers.sigmf_radio:SigmfRadio"
PRETRAIN = "nodes.pretrain:pretrain"
PRETRAIN_OPTIONS = "nodes.pretrain:PretrainOptions"


def resolve(target: str) -> Any:
    """The object behind `module:name`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def backend(name: str) -> Backend:
    """The backend of that name. Raises ConfigError naming those there are."""
    if name not in BACKENDS:
        raise ConfigError(
            f"there is no backend {name!r}", key="--backend", remedy=f"choose one of: {', '.join(BACKENDS)}"
        )
    return BACKENDS[name]
