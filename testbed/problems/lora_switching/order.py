"""From a slot's decision to uplinks: each device's slices, at the rate that fills the sending phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from testbed.core.fleet import Fleet
from testbed.core.orders import Digital, Ideal, Part, Payload, Sounding, Uplink
from testbed.phy.coding_schemes import slowest_above
from testbed.problems.lora_switching.model import SlotDecision

_TRIES = 1000  # as often as the sending phase allows


def slice_uplinks(
    fleet: Fleet,
    decision: SlotDecision,
    sounding: Sounding,
    ranks: Mapping[str, int],
    payload_bit: Mapping[int, float],
    window_s: float,
    *,
    value: Literal["float16", "float32"],
    modem_share: float | None,
) -> dict[str, Uplink]:
    """Uplinks of the devices that trained.

    Args:
        fleet: the band.
        decision: powers and shares, in the order of the fleet.
        sounding: channels of these devices.
        ranks: device -> r_m of its module.
        payload_bit: r_m -> S_m.
        window_s: tau.
        value: format of values on the air.
        modem_share: of band and time, what the modem's overheads leave to payload, from which the coding scheme
            follows; packets are repeated until the window ends. None: error-free at the rate S_m / tau.
    """
    uplinks: dict[str, Uplink] = {}
    for name, rank in ranks.items():
        k, column = fleet.names.index(name), sounding.nodes.index(name)
        share_hz, power_w, weight = (
            float(decision.bandwidth_hz[k]),
            float(decision.power_w[k]),
            fleet.nodes[k].num_samples,
        )
        payload, rate_bit_s = Payload(value, part=Part(ranks=rank)), payload_bit[rank] / window_s
        if modem_share is None:
            uplinks[name] = Ideal(weight, share_hz, power_w, rate_bit_s, payload)
            continue
        channel = sounding.channel[:, column]
        noise_w = sounding.noise_w * share_hz / fleet.bandwidth_hz
        uplinks[name] = Digital(
            weight=weight,
            bandwidth_hz=share_hz,
            power_w=power_w,
            snr=power_w * float(np.sum(np.abs(channel) ** 2)) / noise_w,
            combiner=channel / np.linalg.norm(channel),
            scheme=slowest_above(rate_bit_s / (share_hz * modem_share)).name,
            payload=payload,
            max_tries=_TRIES,
            cfo_hz=float(sounding.cfo_hz[column]),
        )
    return uplinks
