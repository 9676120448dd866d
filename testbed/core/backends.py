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
        derived: whether capabilities that the bench file leaves open follow from its figures, which are true there.
        radiates: whether antennas really move and transmitters really radiate.
    """

    bench: str
    node: str
    describe: str
    derived: bool = True
    radiates: bool = False


BACKENDS: dict[str, Backend] = {
    "sim": Backend(
        "sim_backend.open:open_bench", "sim_backend.open:open_node", "pure software, one shared world, virtual clock"
    ),
    "emulated": Backend(
        "sim_backend.emulated:open_bench",
        "sim_backend.emulated:open_node",
        "the drivers of real devices against emulators that speak their protocols, in the same world",
    ),
    "lab": Backend(
        "drivers.lab:open_bench",
        "drivers.lab:open_node",
        "real radios and stages; needs --yes-transmit",
        derived=False,
        radiates=True,
    ),
}

NODE_AGENT = "nodes.agent:serve"
EMULATOR_CONTROL = "sim_backend.control_client:ControlClient"
EMULATE = "sim_backend.emulators.host:serve"
DOCTOR = "drivers.doctor:check"
EMERGENCY_STOP = "drivers.emergency:stop_bench"
CALIBRATE = "calibration.session:calibrate"
CORRECTIONS = "calibration.use:corrections_for"
CHECK_SERIALS = "calibration.use:check_serials"
CORRECTED = "drivers.corrected_radio:CorrectedReceiver"
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
