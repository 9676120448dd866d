"""The published systems' optimisation problems: mathematics that a scheme and `testbed solve` share."""

from __future__ import annotations

from collections.abc import Mapping

PROBLEMS: Mapping[str, str] = {
    "jcpba": "testbed.problems.jcpba.instance:JcpbaInstance",
    "ma-ota": "testbed.problems.ma_ota.instance:MaOtaInstance",
    "lora-switching": "testbed.problems.lora_switching.instance:LoraSwitchingInstance",
    "tsfa": "testbed.problems.tsfa.instance:TsfaInstance",
}
"""Name on the command line -> `module:Class` of its `Instance`."""
