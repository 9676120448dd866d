"""Levels of the bursts that a gain calibration sends, and of what receivers make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.reception import burst_power_w
from calibration.routine import Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.hardware import PlutoSpec
from testbed.core.units import dbm_to_w, from_db
from testbed.phy.combs import FOUND, Comb, CombFit, burst_start, fit_comb

LIMIT = 1 / 32
"""Largest carrier offset that is looked for, of the sample rate."""
_NUM_TONES = 24  # levels spread like noise: converters' steps then bias nothing
_EDGE = 64  # samples that filters and delays spoil
_PULSE_POWER = 0.95  # of the node's limit: the peak stays within the transmit converter's headroom of 13 dB


@dataclass(frozen=True)
class Level:
    """One comb as received, over what was sent.

    Attributes:
        step: which.
        ratio: received watts in a watt sent, shape [num_antennas].
        std: relative standard deviation, infinite where the converter's steps hide the signal; shape [num_antennas].
        tones: amplitudes over those sent, shape [num_antennas, num_tones], complex128.
        at_s: when.
        turns: carrier offset, cycles in a second, and its standard deviation.
    """

    step: Step
    ratio: np.ndarray
    std: np.ndarray
    tones: np.ndarray
    at_s: float
    turns: tuple[float, float]


def comb_of(power_w: float) -> Comb:
    """What nodes send."""
    return Comb.of(_NUM_TONES, power_w)


def received_comb(part: np.ndarray, *, limit: float) -> CombFit:
    """What arrived of it, shape [num_antennas, num_samples]."""
    return fit_comb(part, comb_of(1.0).places, limit=limit)


def pulse_power_w(bench: BenchSpec, node: str) -> float:
    """Average power of the pulse that a node sends, watts."""
    return _PULSE_POWER * burst_power_w(bench, node, 1.0)


def receivers(bench: BenchSpec) -> tuple[PlutoSpec, ...]:
    """The radio behind each antenna."""
    specs = bench.array.radios or tuple(PlutoSpec() for _ in bench.array.antennas)
    return tuple(spec for spec in specs for _ in range(spec.channels))


def nominal_gains(bench: BenchSpec) -> tuple[float, ...]:
    """The bench's receive gain at each antenna, a power ratio."""
    return tuple(from_db(spec.gain_db) for spec in receivers(bench))


def full_scale_w(bench: BenchSpec) -> tuple[float, ...]:
    """Power that fills each antenna's converter at no gain, watts."""
    return tuple(dbm_to_w(spec.rx_full_scale_dbm) for spec in receivers(bench))


def linked_w(bench: BenchSpec, done: Sequence[tuple[Step, Raw]]) -> dict[str, np.ndarray]:
    """Received watts in a watt sent of each node that was heard, as the first levels tell; [num_antennas]."""
    first = done[: len(bench.node_names)]
    return {
        step["node"]: raw["received_w"] / float(raw["power_w"])
        for step, raw in first
        if bool(raw["sent"]) and float(raw["evidence"]) >= FOUND
    }


def loudest(links: dict[str, np.ndarray]) -> str:
    """The node whose faintest antenna hears it best."""
    return max(links, key=lambda node: float(links[node].min()))


def margins(raw: Raw, length: int) -> tuple[int, int]:
    """First and last sample to use of a burst; where it may start very early or late, its energy tells where it is."""
    guard = int(raw["guard"])
    start, margin = guard, guard + _EDGE
    if margin > length // 8:
        start, margin = burst_start(raw["samples"], length), length // 8
    return start + margin, start + length - margin
