"""A bench file that says where the emulators of its devices answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.core.bench import BenchSpec


def addressed(bench: BenchSpec, places: Mapping[str, Any], **changes: Any) -> BenchSpec:
    """The bench with uris and ports as `sim_backend.emulators.host.Emulators.addresses` lists them.

    Args:
        bench: without addresses, its receivers with one channel each.
        places: uris of radios and serial ports of stages.
        changes: further keys of the bench file.
    """
    content = bench.model_dump()
    receivers = [uri for name, uri in places["radios"].items() if name.startswith("receiver-")]
    content["array"]["radios"] = [{"uri": uri} for uri in receivers]
    content["nodes"] = [
        {**board.model_dump(), "radio": {**board.radio.model_dump(), "uri": places["radios"][board.name]}}
        for board in bench.boards
    ]
    for index, antenna in enumerate(content["array"]["antennas"]):
        if antenna["stage"] is not None:
            antenna["stage"]["device"]["port"] = places["stages"][f"stage-{index}"]["pty"]
    return BenchSpec.model_validate({**content, **changes})
