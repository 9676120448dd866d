"""Uplinks in bands of their own: packets that are repeated until they arrive, and error-free links."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from testbed.core import messages
from testbed.core.adapter import Layout
from testbed.core.errors import DeviceError
from testbed.core.orders import Collect, Collected, Delivery, Digital, Ideal, Payload, Spent
from testbed.engine.air import LONGEST, Air
from testbed.lora import parcel
from testbed.lora.aggregate import weighted_mean
from testbed.phy import flexframe, packets, payload
from testbed.phy.coding_schemes import SCHEMES, CodingScheme, choose, more_robust, scheme_named
from testbed.phy.subcarriers import allocate, max_nodes

_ROUNDING = 1e-9


_Decoded: TypeAlias = tuple[np.ndarray, np.ndarray | None]
"""An update, and which of its values arrived; None for all."""


@dataclass
class _Parcel:
    """One node's update on its way: what has arrived, what is tried again.

    Attributes:
        index: number of the node within the transfer.
        layout: order of the update's values.
        num_bytes, count: of the whole update, and the packets it takes.
        scheme: of what is sent next; a more robust one after a burst of which most was lost, unless the order fixes it.
        waiting: packets that have not arrived, with the transmissions each has had.
    """

    index: int
    uplink: Digital
    layout: Layout
    num_bytes: int
    count: int
    scheme: CodingScheme
    allocation: np.ndarray
    packet_bytes: int
    arrived: packets.Reassembly
    waiting: dict[int, int]
    sent: int = 0
    energy_j: float = 0.0
    snrs: list[float] = field(default_factory=list)
    silent: bool = False

    @property
    def given_up(self) -> bool:
        """Whether a packet has failed too often, or the node has fallen silent."""
        return self.silent or any(tries >= self.uplink.max_tries for tries in self.waiting.values())

    def update(self) -> _Decoded | None:
        """What arrived; None where packets are missing or the bytes contradict their checks."""
        if self.waiting:
            return None
        try:
            return _decode(self.layout, self.uplink.payload, self.arrived.data())
        except ValueError:
            return None

    def delivery(self) -> Delivery:
        """The facts for the reply."""
        snr = float(np.mean(self.snrs)) if self.snrs else None
        return Delivery(self.scheme.name, self.num_bytes, self.count, self.sent, snr)


def collect_packets(air: Air, order: Collect, layout: Layout, transfer: int) -> Collected:
    """Carry out a `Collect` of `Digital` uplinks: selective repeat, all nodes side by side in their subcarriers.

    More nodes than fit side by side send in several waves. A wave has the band to itself: its nodes' shares grow by
    the same factor as their time shrinks.

    Args:
        layout: order of the updates' values.
        transfer: number that tells this update's packets from those before.

    Raises:
        DeviceError: no node delivered its update, and there was no deadline.
    """
    uplinks = {
        name: uplink
        for name, uplink in order.uplinks.items()
        if isinstance(uplink, Digital) and name in air.crew.holding
    }
    start_s, air_s = air.devices.clock.now_s(), 0.0
    parcels: dict[str, _Parcel] = {}
    num_waves = -(-len(uplinks) // max_nodes(air.bench.waveform))
    total_hz = sum(uplink.bandwidth_hz for uplink in uplinks.values())
    for first in range(num_waves):
        wave = dict(list(uplinks.items())[first::num_waves])
        growth = total_hz / sum(uplink.bandwidth_hz for uplink in wave.values())
        opened = _open(air, wave, growth, layout, transfer)
        left_s = None if order.deadline_s is None else order.deadline_s - air_s
        air_s += _deliver(air, opened, transfer, left_s)
        parcels |= opened
    decoded = {name: one.update() for name, one in parcels.items()}
    updates = {name: found for name, found in decoded.items() if found is not None}
    energy_j = {name: one.energy_j for name, one in parcels.items()}
    spent = Spent(air.devices.clock.now_s() - start_s, sum(energy_j.values()), air_s)
    deliveries = {name: one.delivery() for name, one in parcels.items()}
    return _collected(order, layout, updates, energy_j, spent, deliveries)


def _deliver(air: Air, parcels: dict[str, _Parcel], transfer: int, left_s: float | None) -> float:
    """Ask for what is missing until it has arrived, was tried too often or is late; the seconds on the air."""
    air_s = 0.0
    while active := {name: one for name, one in parcels.items() if one.waiting and not one.given_up}:
        chosen = {name: _fitting(air, one, None if left_s is None else left_s - air_s) for name, one in active.items()}
        active = {name: one for name, one in active.items() if chosen[name]}
        if not active:
            break
        begin_s = air.begin_s()
        requests: dict[str, messages.Message] = {
            name: messages.SendPackets(
                node=name,
                at_s=begin_s,
                power_w=one.uplink.power_w,
                transfer=transfer,
                index=one.index,
                payload=one.uplink.payload,
                scheme=one.scheme.name,
                packet_bytes=one.packet_bytes,
                sequence=chosen[name],
                cfo_hz=one.uplink.cfo_hz,
                waveform=air.bench.waveform,
            )
            for name, one in active.items()
        }
        length = max(_length(air, one, len(chosen[name])) for name, one in active.items())
        arrays = {name: {"allocation": one.allocation} for name, one in active.items()}
        samples, sent = air.capture(requests, length, begin_s, arrays=arrays)
        air_s += length / air.rate_hz
        for name, one in active.items():
            if name not in sent:
                one.silent = True
                continue
            one.energy_j += air.joules(sent[name])
            _listen(air, one, samples, chosen[name])
    return air_s


def collect_ideal(air: Air, order: Collect, layout: Layout, transfer: int) -> Collected:
    """Carry out a `Collect` of `Ideal` uplinks: the bytes arrive over the control link, the clock goes by the rate.

    Args:
        layout: order of the updates' values.
        transfer: number that tells this update's bytes from those before.

    Raises:
        DeviceError: no node delivered its update, and there was no deadline.
    """
    uplinks = {name: uplink for name, uplink in order.uplinks.items() if isinstance(uplink, Ideal)}
    data = air.crew.fetch_encoded({name: uplink.payload for name, uplink in uplinks.items()}, transfer)
    ahead_s = {name: uplinks[name].head_start_s for name in data}
    needed_s = {name: 8 * len(content) / uplinks[name].rate_bit_s for name, content in data.items()}
    limit_s = {name: math.inf if order.deadline_s is None else order.deadline_s + ahead_s[name] for name in data}
    updates = {
        name: _decode(layout, uplinks[name].payload, content)
        for name, content in data.items()
        if needed_s[name] <= limit_s[name] * (1 + _ROUNDING)
    }
    # who is late sends until the deadline, in vain
    seconds = {name: min(one, limit_s[name]) for name, one in needed_s.items()}
    left_s = max((max(seconds[name] - ahead_s[name], 0.0) for name in data), default=0.0)
    energy_j = {name: uplinks[name].power_w * seconds[name] for name in data}
    air.devices.clock.wait_until(air.devices.clock.now_s() + left_s)
    spent = Spent(left_s, sum(energy_j.values()), max(seconds.values(), default=0.0))
    return _collected(order, layout, updates, energy_j, spent, {})


def _decode(layout: Layout, kind: Payload, data: bytes) -> _Decoded:
    if parcel.is_whole(kind):
        return payload.decode(data, layout.size), None
    return parcel.decode(layout, kind, data)


def _collected(
    order: Collect,
    layout: Layout,
    arrived: dict[str, _Decoded],
    energy_j: dict[str, float],
    spent: Spent,
    deliveries: dict[str, Delivery],
) -> Collected:
    updates = {name: update for name, (update, _) in arrived.items()}
    covered = {name: mask for name, (_, mask) in arrived.items() if mask is not None}
    missing = tuple(name for name in order.uplinks if name not in updates)
    if not updates and order.deadline_s is not None:
        mean = np.zeros(layout.size, np.float32)
        return Collected(mean, {}, {}, missing, energy_j=energy_j, deliveries=deliveries, spent=spent)
    if not updates:
        raise DeviceError(
            "no node delivered its update",
            remedy="look at the logs of the nodes; if every packet was lost, choose a more robust coding scheme, more "
            "power, or more tries",
        )
    weights = {name: uplink.weight for name, uplink in order.uplinks.items() if isinstance(uplink, Digital | Ideal)}
    mean = weighted_mean(updates, weights)
    return Collected(mean, updates, covered, missing, energy_j=energy_j, deliveries=deliveries, spent=spent)


def _open(air: Air, uplinks: dict[str, Digital], growth: float, layout: Layout, transfer: int) -> dict[str, _Parcel]:
    """One parcel for every node, its share of the band `growth` times as wide as ordered."""
    lengths = _lengths(air, uplinks, layout, transfer)
    waveform = air.bench.waveform
    shares_hz = {name: uplink.bandwidth_hz * growth for name, uplink in uplinks.items()}
    allocations = allocate(shares_hz, waveform, air.bench.sample_rate_hz)
    parcels = {}
    for index, (name, num_bytes) in enumerate(lengths.items()):
        uplink = uplinks[name]
        # the same power over a wider share: in a wave of its own, or since no share is narrower than a few subcarriers
        given_hz = np.count_nonzero(allocations[name]) * air.bench.sample_rate_hz / waveform.num_subcarriers
        wider = max(growth, given_hz / uplink.bandwidth_hz)
        scheme = scheme_named(uplink.scheme) if uplink.scheme else choose(uplink.snr / wider) or SCHEMES[0]
        # packets are counted with two bytes, so that a long update needs long ones
        shortest = -(-(num_bytes + packets.CHECK_BYTES) // packets.MAX_PACKETS)
        packet_bytes = max(flexframe.best_packet_bytes(scheme, allocations[name], waveform), shortest)
        arrived = packets.Reassembly(num_bytes, packet_bytes, node=index, transfer=transfer)
        count = packets.num_packets(num_bytes, packet_bytes)
        waiting = dict.fromkeys(range(count), 0)
        parcels[name] = _Parcel(
            index, uplink, layout, num_bytes, count, scheme, allocations[name], packet_bytes, arrived, waiting
        )
    return parcels


def _lengths(air: Air, uplinks: dict[str, Digital], layout: Layout, transfer: int) -> dict[str, int]:
    """Bytes of every update; nodes whose bytes depend on the update are asked."""
    lengths = {
        name: payload.num_bytes(uplink.payload, layout.size)
        if parcel.is_whole(uplink.payload) and payload.has_fixed_length(uplink.payload)
        else parcel.num_bytes(layout, uplink.payload)
        for name, uplink in uplinks.items()
    }
    told = air.crew.encoded_bytes(
        {name: uplinks[name].payload for name, length in lengths.items() if length is None}, transfer
    )
    found = {name: told.get(name) if length is None else length for name, length in lengths.items()}
    return {name: length for name, length in found.items() if length is not None}


def _length(air: Air, one: _Parcel, count: int) -> int:
    return flexframe.burst_length([one.packet_bytes] * count, one.scheme, one.allocation, air.bench.waveform)


def _fitting(air: Air, one: _Parcel, left_s: float | None) -> tuple[int, ...]:
    """The waiting packets that fit into one window, at least one; with a deadline those that are still in time."""
    each = _length(air, one, 2) - _length(air, one, 1)
    count = max(1, LONGEST // each)
    if left_s is not None:
        begun = _length(air, one, 1) - each
        count = min(count, max(0, int((left_s * air.rate_hz - begun) // each)))
    return tuple(list(one.waiting)[:count])


def _listen(air: Air, one: _Parcel, samples: np.ndarray, chosen: tuple[int, ...]) -> None:
    """Combine for this node, demodulate its subcarriers, keep what is whole."""
    one.sent += len(chosen)
    for number in chosen:
        one.waiting[number] += 1
    combined = one.uplink.combiner.conj().astype(np.complex64) @ samples
    for received in flexframe.demodulate(combined, one.allocation, air.bench.waveform):
        if received.header_valid and received.payload_valid:
            one.arrived.add(received.header, received.payload)
            one.snrs.append(received.snr)
    one.waiting = {number: one.waiting[number] for number in one.arrived.missing}
    if one.uplink.scheme is None and 2 * sum(number in one.waiting for number in chosen) > len(chosen):
        one.scheme = more_robust(one.scheme)
