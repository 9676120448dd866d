"""Uplinks in bands of their own: packets that are repeated until they arrive, and error-free links."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from testbed.core import messages
from testbed.core.errors import DeviceError
from testbed.core.orders import Collect, Collected, Delivery, Digital, Ideal, Spent
from testbed.engine.air import LONGEST, Air
from testbed.lora.aggregate import weighted_mean
from testbed.phy import flexframe, packets, payload
from testbed.phy.coding_schemes import SCHEMES, CodingScheme, choose, scheme_named
from testbed.phy.subcarriers import allocate, max_nodes


@dataclass
class _Parcel:
    """One node's update on its way: what has arrived, what is tried again.

    Attributes:
        index: number of the node within the transfer.
        num_bytes, count: of the whole update, and the packets it takes.
        waiting: packets that have not arrived, with the transmissions each has had.
    """

    index: int
    uplink: Digital
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

    def update(self, num_values: int) -> np.ndarray | None:
        """What arrived, shape [num_values]; None where packets are missing or the bytes contradict their checks."""
        if self.waiting:
            return None
        try:
            return payload.decode(self.arrived.data(), num_values)
        except ValueError:
            return None

    def delivery(self) -> Delivery:
        """The facts for the reply."""
        snr = float(np.mean(self.snrs)) if self.snrs else None
        return Delivery(self.scheme.name, self.num_bytes, self.count, self.sent, snr)


def collect_packets(air: Air, order: Collect, num_values: int, transfer: int) -> Collected:
    """Carry out a `Collect` of `Digital` uplinks: selective repeat, all nodes side by side in their subcarriers.

    More nodes than fit side by side send in several waves. A wave has the band to itself: its nodes' shares grow by
    the same factor as their time shrinks.

    Args:
        transfer: number that tells this update's packets from those before.

    Raises:
        DeviceError: no node delivered its update.
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
        opened = _open(air, wave, growth, num_values, transfer)
        air_s += _deliver(air, opened, transfer)
        parcels |= opened
    decoded = {name: one.update(num_values) for name, one in parcels.items()}
    updates = {name: update for name, update in decoded.items() if update is not None}
    energy_j = {name: one.energy_j for name, one in parcels.items()}
    spent = Spent(air.devices.clock.now_s() - start_s, sum(energy_j.values()), air_s)
    deliveries = {name: one.delivery() for name, one in parcels.items()}
    return _collected(order, updates, energy_j, spent, deliveries)


def _deliver(air: Air, parcels: dict[str, _Parcel], transfer: int) -> float:
    """Ask for what is missing until it has arrived or was tried too often; the seconds on the air."""
    air_s = 0.0
    while active := {name: one for name, one in parcels.items() if one.waiting and not one.given_up}:
        chosen = {name: _fitting(air, one) for name, one in active.items()}
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
        length = max(_length(air, active[name], len(sequence)) for name, sequence in chosen.items())
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


def collect_ideal(air: Air, order: Collect, num_values: int, transfer: int) -> Collected:
    """Carry out a `Collect` of `Ideal` uplinks: the bytes arrive over the control link, the clock goes by the rate.

    Raises:
        DeviceError: no node delivered its update.
    """
    uplinks = {name: uplink for name, uplink in order.uplinks.items() if isinstance(uplink, Ideal)}
    data = air.crew.fetch_encoded({name: uplink.payload for name, uplink in uplinks.items()}, transfer)
    updates = {name: payload.decode(content, num_values) for name, content in data.items()}
    seconds = {name: 8 * len(content) / uplinks[name].rate_bit_s for name, content in data.items()}
    longest_s = max(seconds.values(), default=0.0)
    energy_j = {name: uplinks[name].power_w * seconds[name] for name in data}
    air.devices.clock.wait_until(air.devices.clock.now_s() + longest_s)
    return _collected(order, updates, energy_j, Spent(longest_s, sum(energy_j.values()), longest_s), {})


def _collected(
    order: Collect,
    updates: dict[str, np.ndarray],
    energy_j: dict[str, float],
    spent: Spent,
    deliveries: dict[str, Delivery],
) -> Collected:
    if not updates:
        raise DeviceError(
            "no node delivered its update",
            remedy="look at the logs of the nodes; if every packet was lost, choose a more robust coding scheme, more "
            "power, or more tries",
        )
    weights = {name: uplink.weight for name, uplink in order.uplinks.items() if isinstance(uplink, Digital | Ideal)}
    mean = weighted_mean(updates, weights)
    missing = tuple(name for name in order.uplinks if name not in updates)
    return Collected(mean, updates, missing, energy_j=energy_j, deliveries=deliveries, spent=spent)


def _open(air: Air, uplinks: dict[str, Digital], growth: float, num_values: int, transfer: int) -> dict[str, _Parcel]:
    """One parcel for every node, its share of the band `growth` times as wide as ordered."""
    waveform = air.bench.waveform
    shares_hz = {name: uplink.bandwidth_hz * growth for name, uplink in uplinks.items()}
    allocations = allocate(shares_hz, waveform, air.bench.sample_rate_hz)
    parcels = {}
    for index, (name, uplink) in enumerate(uplinks.items()):
        # the same power over a wider share
        scheme = scheme_named(uplink.scheme) if uplink.scheme else choose(uplink.snr / growth) or SCHEMES[0]
        num_bytes = payload.num_bytes(uplink.payload, num_values)
        # packets are counted with two bytes, so that a long update needs long ones
        shortest = -(-(num_bytes + packets.CHECK_BYTES) // packets.MAX_PACKETS)
        packet_bytes = max(flexframe.best_packet_bytes(scheme, allocations[name], waveform), shortest)
        arrived = packets.Reassembly(num_bytes, packet_bytes, node=index, transfer=transfer)
        count = packets.num_packets(num_bytes, packet_bytes)
        waiting = dict.fromkeys(range(count), 0)
        parcels[name] = _Parcel(
            index, uplink, num_bytes, count, scheme, allocations[name], packet_bytes, arrived, waiting
        )
    return parcels


def _length(air: Air, one: _Parcel, count: int) -> int:
    return flexframe.burst_length([one.packet_bytes] * count, one.scheme, one.allocation, air.bench.waveform)


def _fitting(air: Air, one: _Parcel) -> tuple[int, ...]:
    """The waiting packets that fit into one window, at least one."""
    each = _length(air, one, 2) - _length(air, one, 1)
    return tuple(list(one.waiting)[: max(1, LONGEST // each)])


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
