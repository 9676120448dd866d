"""The ways an update can travel; a `Collect` order asks for one of them, the same for every node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np


@dataclass(frozen=True)
class Part:
    """Which values of the flat vector may travel, known to both sides beforehand; the rest stay with the node.

    Attributes:
        kinds: of factors; all if empty.
        patterns: names of factors, with * for anything; all if empty.
        ranks: the first so many ranks of every LoRA module; all if None.
        segment: (k, n): the k-th of n stretches of what is left, as equal as can be; all of it if None.
        others: the values that kinds and patterns do not name, instead of those that they do.
        columns: these ranks of every LoRA module, counted from 0, instead of the first ones; ascending.
    """

    kinds: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    ranks: int | None = None
    segment: tuple[int, int] | None = None
    others: bool = False
    columns: tuple[int, ...] | None = None


WHOLE = Part()
"""All values."""


@dataclass(frozen=True)
class Payload:
    """How an update becomes bytes.

    Attributes:
        kind: float32; float16; int8, with one scale for every 256 values; sign, one bit and one scale; topk, the
            largest values as float16 with their indices.
        keep: share of the values that topk and `choice` send.
        error_feedback: the node adds what this round's bytes leave out to its next update.
        part: values that may travel.
        choice: which of them do, chosen by the node and told by a bitmap or indices: all; pairs, the rank pairs that
            changed their modules most (SOFT); separate, rows of A and columns of B of largest norm; random, rank pairs
            drawn by lot; scores, single values weighted by the norms of the other factor (FedSRD), of kind topk;
            touched, the rows of B and columns of A that training changed (after structured pruning).
        positions: how topk tells the places of its values: plain, a bitmap or a list, whichever is shorter; golomb,
            Golomb's code of the gaps between them, whose length depends on the update.
    """

    kind: Literal["float32", "float16", "int8", "sign", "topk"] = "float32"
    keep: float = 0.1
    error_feedback: bool = False
    part: Part = Part()
    choice: Literal["all", "pairs", "separate", "random", "scores", "touched"] = "all"
    positions: Literal["plain", "golomb"] = "plain"


@dataclass(frozen=True)
class Ideal:
    """An error-free link in a band of its own: the reference, and the fast way to sweep.

    Attributes:
        weight: of this node's update in the mean.
        bandwidth_hz: share of the band.
        power_w: average transmit power.
        rate_bit_s: rate the scheme assumes; air time is the payload's bits over this rate.
        payload: how the update becomes bytes.
        head_start_s: for so long it has been sending when the order begins: a node that trained faster than the others
            need not wait for them, since its band is its own.
    """

    weight: float
    bandwidth_hz: float
    power_w: float
    rate_bit_s: float
    payload: Payload = Payload()
    head_start_s: float = 0.0


@dataclass(frozen=True)
class Digital:
    """Packets in a band of their own: preamble, header, coded payload, CRC; those that fail are sent again.

    Attributes:
        weight: of this node's update in the mean.
        bandwidth_hz: share of the band; becomes whole subcarriers.
        power_w: average transmit power.
        scheme: name of a modulation and coding scheme in `testbed.phy.coding_schemes`; from the sounded SNR if None.
        snr: linear signal-to-noise ratio in the share, after combining, from which the scheme is chosen.
        combiner: receive weights for this node, shape [num_antennas], unit norm.
        payload: how the update becomes bytes.
        max_tries: transmissions of one packet before its node counts as missing.
        cfo_hz: carrier offset that the node takes out before it sends.
    """

    weight: float
    bandwidth_hz: float
    power_w: float
    snr: float
    combiner: np.ndarray
    scheme: str | None = None
    payload: Payload = Payload()
    max_tries: int = 4
    cfo_hz: float = 0.0


@dataclass(frozen=True)
class Analogue:
    """An uncoded uplink whose signals add up in the air.

    The node sends precoder * s, where two values of (update - mean) / std ride on the real and imaginary part of one
    unit-power symbol s, so its average power is the mean of |precoder|^2.

    Attributes:
        weight: of this node's update in the mean, D_m.
        precoder: transmit coefficient b_m, square-root watts: a complex number, or one for each active subcarrier,
            shape [num_active], in the order of `testbed.phy.ofdm.modulate`.
        mean: subtracted from every value before sending.
        std: divisor that makes the values unit-variance; positive.
        cfo_hz: carrier offset that the node takes out, with the phase of `cfo_from_s` kept.
        cfo_from_s: instant at which the channel was estimated.
        clip: peaks above this multiple of the average power are clipped; None clips nothing.
    """

    weight: float
    precoder: complex | np.ndarray
    mean: float
    std: float
    cfo_hz: float = 0.0
    cfo_from_s: float = 0.0
    clip: float | None = None


@dataclass(frozen=True)
class MajorityVote:
    """Non-coherent vote on the sign of every value, on pairs of subcarriers; the receiver compares energies.

    Attributes:
        power_w: average transmit power.
        threshold: values of smaller magnitude abstain.
        cfo_hz: carrier offset that the node takes out.
    """

    power_w: float
    threshold: float = 0.0
    cfo_hz: float = 0.0


@dataclass(frozen=True)
class OneBit:
    """Coherent vote on the sign of every value: two signs on each QPSK symbol; the receiver takes the sum's signs.

    Attributes:
        precoder: as of `Analogue`.
        cfo_hz, cfo_from_s: as of `Analogue`.
    """

    precoder: complex | np.ndarray
    cfo_hz: float = 0.0
    cfo_from_s: float = 0.0


Uplink: TypeAlias = Ideal | Digital | Analogue | MajorityVote | OneBit
