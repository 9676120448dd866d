"""From a sounding and shares of the band to the uplinks that carry whole updates, each in a band of its own.

A node whose power p is spread over a share b of the band B, heard with maximum-ratio combining over the array,
has the signal-to-noise ratio p ||h||^2 B / (noise b) and so, with gamma = p ||h||^2 B / noise and a gap to capacity,

    R(b) = b log2(1 + gamma / (gap b)),

which is the rate that problems of bandwidth allocation assume. Packets reach a part of it: their coding comes in steps,
and prefixes, guards, headers and repetitions take time (`testbed.problems.packet_links`). Nor can packets use any
share: guards lie between shares, the narrowest has a few subcarriers, and where the power is spread so thin that no
code bears it, more band is of no use. These are the limits of `share_limits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from testbed.core.adapter import Layout
from testbed.core.fleet import Fleet
from testbed.core.orders import Collected, Digital, Ideal, Payload, Sounding, Trained, Uplink
from testbed.lora.aggregate import covered_mean
from testbed.lora.choice import bitmap_bytes, part_mask
from testbed.phy import payload as coding
from testbed.phy.coding_schemes import SCHEMES, scheme_named
from testbed.phy.rate import capacity_bit_s, mrc_snr, snr_bandwidth_hz
from testbed.phy.subcarriers import GUARD, MIN_SHARE
from testbed.problems.instance import InstanceSpec

VALUE_BIT: Mapping[str, int] = {"float32": 32, "float16": 16, "int8": 8, "sign": 1}
"""Kind of payload -> bits of a value on air, scales not counted."""


_ROUNDING = 10.0**0.05
"""Half a decibel above the threshold of a coding scheme: shares become whole subcarriers."""


class UplinkSpec(InstanceSpec):
    """How updates travel."""

    link: Literal["packets", "ideal"] = Field("packets", description="coded packets, or an error-free link at a rate")
    payload: Literal["float32", "float16", "int8", "sign"] = Field("float16", description="how values become bytes")
    coding: str | None = Field(
        None, description="modulation and coding of packets; chosen from the sounded SNR if absent"
    )
    max_tries: int = Field(4, ge=1, description="transmissions of one packet before its node counts as missing")
    snr_gap: float = Field(
        2.0, ge=1, description="distance of modulation and coding from the Shannon rate, a power ratio; 2 is 3 dB"
    )
    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")

    @field_validator("coding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None:
            scheme_named(name)
        return name


@dataclass(frozen=True)
class ShareLimits:
    """What shares of the band are possible.

    Attributes:
        total_hz: sum of all shares at most.
        least_hz: narrowest share of each node, shape [num_nodes].
        most_hz: share beyond which more band is of no use, not below `least_hz`, shape [num_nodes].
    """

    total_hz: float
    least_hz: np.ndarray
    most_hz: np.ndarray


def share_limits(fleet: Fleet, sounding: Sounding, names: Sequence[str], spec: UplinkSpec) -> ShareLimits:
    """The shares that these nodes may have when they send at the same time.

    Error-free links divide the band at will. For packets, guards take their room, the narrowest share has
    `MIN_SHARE` subcarriers, and the widest is that at which the signal-to-noise ratio p ||h||^2 B / (noise b) falls to
    what `edge_snr` needs. More nodes than fit side by side send in waves that each have the whole band for a part of
    the time: n waves make each share n times as wide for an n-th of the time, so that its limits shrink by n.

    Args:
        fleet: the band, and the highest powers.
        sounding: channels, and the noise in the whole band.
        names: who sends, each of the sounding; at least one.
        spec: how updates travel.
    """
    if spec.link == "ideal":
        return ShareLimits(fleet.bandwidth_hz, np.zeros(len(names)), np.full(len(names), np.inf))
    most_hz = loudness_hz(fleet, sounding, names) / edge_snr(spec)
    if fleet.subcarrier_hz <= 0:
        return ShareLimits(fleet.bandwidth_hz, np.zeros(len(names)), most_hz)
    num_active, waves = round(fleet.bandwidth_hz / fleet.subcarrier_hz), num_waves(fleet, len(names))
    room = num_active - GUARD * (-(-len(names) // waves) - 1)
    least_hz = np.full(len(names), MIN_SHARE * fleet.subcarrier_hz / waves)
    return ShareLimits(room * fleet.subcarrier_hz, least_hz, np.maximum(least_hz, most_hz / waves))


def num_waves(fleet: Fleet, num_nodes: int) -> int:
    """In how many waves so many nodes send their packets: as few as fit side by side.

    Args:
        fleet: the band and its subcarriers.
        num_nodes: that send, at least one.
    """
    if fleet.subcarrier_hz <= 0:
        return 1
    num_active = round(fleet.bandwidth_hz / fleet.subcarrier_hz)
    return -(-num_nodes // max(1, (num_active + GUARD) // (MIN_SHARE + GUARD)))


def edge_snr(spec: UplinkSpec) -> float:
    """Linear signal-to-noise ratio below which spreading the power over more band is of no use.

    At the edge of a scheme that carries c bits on a symbol from the ratio s on, a power that is heard over gamma hertz
    carries c gamma / s bit/s. The scheme with the largest c / s makes most of it: shares that are wider either lose it
    or its code.

    Args:
        spec: the scheme, if it is fixed.
    """
    best = (
        scheme_named(spec.coding)
        if spec.coding
        else max(SCHEMES, key=lambda one: one.bits_per_symbol / one.threshold_snr)
    )
    return best.threshold_snr * _ROUNDING


def loudness_hz(fleet: Fleet, sounding: Sounding, names: Sequence[str], gap: float = 1.0) -> np.ndarray:
    """gamma_k = p_k ||h_k||^2 B / (gap noise), the band in which a node is heard as loud as the noise.

    Args:
        fleet: highest powers p_k, and the band B.
        sounding: channels, and the noise in the whole band.
        names: nodes, each of the sounding.
        gap: linear distance from the Shannon rate, at least 1.

    Returns:
        hertz, shape [num_nodes].
    """
    # [num_nodes]
    columns = [sounding.nodes.index(name) for name in names]
    gain = np.sum(np.abs(sounding.channel[:, columns]) ** 2, axis=0)
    power_w = np.array([fleet.node(name).max_power_w for name in names])
    return snr_bandwidth_hz(power_w, gain, sounding.noise_w / fleet.bandwidth_hz) / gap


def audible(fleet: Fleet, sounding: Sounding, gap: float = 1.0) -> tuple[list[str], np.ndarray]:
    """The nodes that are heard at all, and their gamma as of `loudness_hz`, positive, shape [num_nodes].

    Args:
        fleet, sounding, gap: as of `loudness_hz`.
    """
    gamma_hz = loudness_hz(fleet, sounding, sounding.nodes, gap)
    return [name for name, loud in zip(sounding.nodes, gamma_hz, strict=True) if loud > 0], gamma_hz[gamma_hz > 0]


def digital_uplinks(
    fleet: Fleet,
    sounding: Sounding,
    weights: Mapping[str, float],
    payloads: Mapping[str, Payload] | Payload,
    spec: UplinkSpec,
    *,
    shares_hz: Mapping[str, float] | None = None,
    head_start_s: Mapping[str, float] | None = None,
) -> dict[str, Uplink]:
    """One uplink for each node: packets on its subcarriers, or an error-free link at R(b).

    Args:
        fleet: highest powers, and the band.
        sounding: channels.
        weights: node -> its weight in the mean; those who send. Each is of the sounding.
        payloads: node -> how its update becomes bytes; or one for all.
        spec: how updates travel; its `payload` is the caller's business.
        shares_hz: node -> b; equal shares of the band if None.
        head_start_s: node -> seconds for which it has been sending when the order begins, for error-free links; packets
            start together.
    """
    names = list(weights)
    uplinks: dict[str, Uplink] = {}
    for name in names:
        column, power_w = sounding.nodes.index(name), fleet.node(name).max_power_w
        # noise in a share of the band is that share of the noise in the whole band
        if shares_hz is None:
            share_hz, noise_w = fleet.bandwidth_hz / len(names), sounding.noise_w / len(names)
        else:
            share_hz = shares_hz[name]
            noise_w = sounding.noise_w * share_hz / fleet.bandwidth_hz
        # [num_antennas]
        channel = sounding.channel[:, column]
        snr = float(mrc_snr(channel[:, None], power_w, noise_w)[0])
        payload = payloads if isinstance(payloads, Payload) else payloads[name]
        if spec.link == "ideal":
            rate_bit_s = float(capacity_bit_s(share_hz, snr, spec.snr_gap))
            ahead_s = 0.0 if head_start_s is None else head_start_s[name]
            uplinks[name] = Ideal(weights[name], share_hz, power_w, rate_bit_s, payload, ahead_s)
        else:
            uplinks[name] = Digital(
                weight=weights[name],
                bandwidth_hz=share_hz,
                power_w=power_w,
                snr=snr,
                combiner=channel / np.linalg.norm(channel),
                scheme=spec.coding,
                payload=payload,
                max_tries=spec.max_tries,
                cfo_hz=float(sounding.cfo_hz[column]),
            )
    return uplinks


def update_bits(layout: Layout, payload: Payload) -> tuple[float, float]:
    """Bits of all values that may travel, and bits that travel with any choice of them: the bitmap and the head.

    Args:
        layout: order of the update's values.
        payload: kind, part and choice; topk counts each value's own bits, not those of its place.
    """
    kind = Payload("float16") if payload.kind == "topk" else Payload(payload.kind)
    # rounding up of blocks and of bits
    spare = 5 if payload.kind in ("int8", "sign") else 0
    values = coding.num_bytes(kind, int(np.count_nonzero(part_mask(layout, payload.part)))) - coding.HEAD.size
    return 8.0 * values, 8.0 * (bitmap_bytes(layout, payload) + coding.HEAD.size + spare)


def head_starts_s(trained: Trained) -> dict[str, float]:
    """For how long each node has been sending when the slowest has trained, if nobody waits for the others."""
    last_s = trained_s(trained)
    return {name: last_s - result.seconds for name, result in trained.results.items()}


def trained_s(trained: Trained) -> float:
    """Seconds of the slowest node."""
    return max((result.seconds for result in trained.results.values()), default=0.0)


def sample_weights(trained: Trained, names: Iterable[str]) -> dict[str, float]:
    """node -> D_m."""
    return {name: float(trained.results[name].num_samples) for name in names if name in trained.results}


def moved(
    adapter: np.ndarray, trained: Trained, collected: Collected, rule: Literal["present", "all"] = "present"
) -> np.ndarray:
    """The adapter after the mean of what arrived, see `covered_mean`; as it was where nothing did.

    Args:
        adapter: published, shape [num_values].
        trained: D_m.
        collected: updates, and which values they speak of.
        rule: who counts in the mean of a value.
    """
    if not collected.updates:
        return adapter
    weights = sample_weights(trained, collected.updates)
    return adapter + covered_mean(collected.updates, collected.covered, weights, rule)


def until_s(deadline_s: float | None, trained: Trained) -> float | None:
    """What is left of a round's time when everybody has trained: the deadline of its `Collect`.

    Args:
        deadline_s: of training and sending together; None for no limit.
        trained: what training took.
    """
    return None if deadline_s is None else max(deadline_s - trained_s(trained), 1e-9)


def air_seconds(uplinks: Mapping[str, Uplink], collected: Collected) -> dict[str, float]:
    """How long each node really sent: its transmit energy over its power.

    Args:
        uplinks: of the order.
        collected: its reply.

    Returns:
        node -> seconds, of those that sent.
    """
    return {
        name: energy_j / uplink.power_w
        for name, energy_j in collected.energy_j.items()
        if isinstance(uplink := uplinks[name], Digital | Ideal) and uplink.power_w > 0
    }
