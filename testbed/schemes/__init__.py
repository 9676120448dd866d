"""Research schemes: one paper, one file. Baselines live here too."""

from __future__ import annotations

from collections.abc import Mapping

SCHEMES: Mapping[str, str] = {
    "fedavg": "testbed.schemes.fedavg:FedAvg",
    "scaffold": "testbed.schemes.scaffold:Scaffold",
    "ota-fedavg": "testbed.schemes.ota_fedavg:OtaFedAvg",
    "obda": "testbed.schemes.obda:Obda",
    "fsk-mv": "testbed.schemes.fsk_mv:FskMv",
    "ma-ota": "testbed.schemes.ma_ota:MaOta",
    "lora-switching": "testbed.schemes.lora_switching:LoraSwitching",
    "ma-fsk-mv": "testbed.schemes.ma_fsk_mv:MaFskMv",
    "jcpba": "testbed.schemes.jcpba:Jcpba",
    "soft-tsfa": "testbed.schemes.soft_tsfa:SoftTsfa",
    "flexlora": "testbed.schemes.flexlora:FlexLora",
    "hetlora": "testbed.schemes.hetlora:HetLora",
    "fslora": "testbed.schemes.fslora:FsLora",
    "flora": "testbed.schemes.flora:Flora",
    "fedsvd": "testbed.schemes.fedsvd:FedSvd",
    "ecolora": "testbed.schemes.ecolora:EcoLora",
    "fedsrd": "testbed.schemes.fedsrd:FedSrd",
    "pwff": "testbed.schemes.pwff:Pwff",
}
"""Name in the experiment file -> `module:Class`."""
