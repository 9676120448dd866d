"""Research schemes: one paper, one file. Baselines live here too."""

from __future__ import annotations

from collections.abc import Mapping

SCHEMES: Mapping[str, str] = {
    "fedavg": "testbed.schemes.fedavg:FedAvg",
    "ota-fedavg": "testbed.schemes.ota_fedavg:OtaFedAvg",
    "obda": "testbed.schemes.obda:Obda",
    "fsk-mv": "testbed.schemes.fsk_mv:FskMv",
}
"""Name in the experiment file -> `module:Class`."""
