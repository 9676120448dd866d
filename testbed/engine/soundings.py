"""Soundings: each node in turn sends pilots; channel, noise, delay and carrier offset are what the receiver hears."""

from __future__ import annotations

import numpy as np

from testbed.core import messages
from testbed.core.errors import DeviceError
from testbed.core.orders import Sound, Sounding, Spent
from testbed.core.units import dbm_to_w
from testbed.engine.air import LONGEST, Air
from testbed.phy import sounding as pilots
from testbed.phy.sounding import Heard


def sound(air: Air, order: Sound, positions_m: np.ndarray) -> Sounding:
    """Carry out a `Sound`.

    Args:
        air: timing and capture.
        order: who sounds.
        positions_m: where the antennas are, shape [num_antennas, 2].

    Raises:
        DeviceError: no node answered, or none was heard.
    """
    bench, waveform = air.bench, air.bench.waveform
    asked = order.nodes or bench.node_names
    names = air.crew.present(asked)
    powers_w = {board.name: dbm_to_w(board.max_power_dbm) for board in bench.boards}
    length, guard = pilots.length(order.num_pilots, waveform), air.guard
    slot = length + 2 * guard
    together = max(1, LONGEST // slot)
    start_s = air.devices.clock.now_s()
    heard: dict[str, Heard] = {}
    heard_s: dict[str, float] = {}
    sent: dict[str, messages.Sent] = {}
    for first in range(0, len(names), together):
        part = names[first : first + together]
        begin_s = air.begin_s()
        at_s = {name: begin_s + index * slot / air.rate_hz for index, name in enumerate(part)}
        requests: dict[str, messages.Message] = {
            name: messages.SendPilots(
                node=name, at_s=at_s[name], power_w=powers_w[name], num_pilots=order.num_pilots, waveform=waveform
            )
            for name in part
        }
        samples, answers = air.capture(requests, slot * len(part) - 2 * guard, begin_s)
        sent |= answers
        for index, name in enumerate(part):
            if name not in answers:
                continue
            # [num_antennas, slot]
            burst = samples[:, index * slot : (index + 1) * slot]
            found = pilots.read(
                burst,
                waveform,
                order.num_pilots,
                powers_w[name],
                start=guard,
                guard=guard,
                correct_cfo=not air.shared_clock,
            )
            if found is not None:
                heard[name] = found
                heard_s[name] = at_s[name] + found.centre / air.rate_hz
    if not sent:
        raise DeviceError("no node answered the sounding", remedy="look at the logs of the nodes")
    if not heard:
        raise DeviceError(
            "no node's pilots were found in the capture",
            remedy="are the transmitters connected? Raise max_power_dbm or num_pilots, or check radio.start_jitter_s",
        )
    spent = Spent(
        seconds=air.devices.clock.now_s() - start_s,
        joules=sum(air.joules(answer) for answer in sent.values()),
        air_time_s=length * len(sent) / air.rate_hz,
    )
    estimates = list(heard.values())
    # one pilot symbol on every active subcarrier estimates the channel num_pilots * num_active times
    energy_w = np.array([powers_w[name] for name in heard]) * order.num_pilots * waveform.num_active
    return Sounding(
        nodes=tuple(heard),
        channel=np.stack([one.channel for one in estimates], axis=1),
        noise_w=float(np.mean([one.noise_w for one in estimates])),
        positions_m=positions_m,
        delay_s=np.array([one.lag for one in estimates]) / air.rate_hz,
        cfo_hz=np.array([one.cfo for one in estimates]) * bench.sample_rate_hz,
        heard_s=np.array([heard_s[name] for name in heard]),
        response=np.stack([one.response for one in estimates], axis=1) if order.per_subcarrier else None,
        missing=tuple(name for name in asked if name not in heard),
        variance=np.array([one.noise_w for one in estimates]) / energy_w,
        spent=spent,
    )
