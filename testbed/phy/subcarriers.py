"""Bandwidth shares become whole contiguous subcarriers, with pilots inside and guards between them.

An allocation has one number for each FFT bin: 0 null, 1 pilot, 2 data. Guards let filters separate nodes that are not
synchronous; DC stays empty, also inside a share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from testbed.core.bench import WaveformSpec

NULL, PILOT, DATA = 0, 1, 2

MIN_SHARE = 12
"""Subcarriers of the narrowest share: its preamble is found from 6 dB on, that of fewer not reliably."""

MIN_PILOTS = 4
PILOT_SPACING = 8


GUARD = 8
"""Empty subcarriers between two shares: the transition of the filters in `testbed.phy.flexframe`."""


def max_nodes(waveform: WaveformSpec) -> int:
    """Nodes that can send side by side."""
    return (waveform.num_active + GUARD) // (MIN_SHARE + GUARD)


def allocate(bandwidth_hz: Mapping[str, float], waveform: WaveformSpec, sample_rate_hz: float) -> dict[str, np.ndarray]:
    """Subcarriers for every node, from the lowest frequency up in the order of the mapping.

    n_k ~ B_k num_subcarriers / sample_rate_hz, shrunk in proportion where guards need room, rounded by the largest
    remainder, never below `MIN_SHARE`.

    Args:
        bandwidth_hz: node -> its share B_k of the band, hertz.
        waveform: numerology.
        sample_rate_hz: of the radios, hertz.

    Returns:
        node -> its allocation in FFT order, shape [num_subcarriers], uint8: 0 null, 1 pilot, 2 data.

    Raises:
        ValueError: a share is not positive, the shares exceed the band, or there are more nodes than fit.
    """
    if not bandwidth_hz:
        return {}
    spacing_hz = sample_rate_hz / waveform.num_subcarriers
    # [num_nodes]
    wanted = np.array(list(bandwidth_hz.values()), dtype=np.float64) / spacing_hz
    if not np.all(np.isfinite(wanted)) or np.any(wanted <= 0):
        raise ValueError("every node needs a positive bandwidth; leave nodes without one out of the order")
    if wanted.sum() > waveform.num_active * (1 + 1e-6):
        raise ValueError(
            f"the shares add up to {wanted.sum() * spacing_hz:g} Hz, the band has "
            f"{waveform.num_active * spacing_hz:g} Hz; shrink them in proportion"
        )
    room = waveform.num_active - GUARD * (wanted.size - 1)
    if room < MIN_SHARE * wanted.size:
        raise ValueError(
            f"{wanted.size} nodes do not fit side by side into {waveform.num_active} subcarriers: at most "
            f"{max_nodes(waveform)} do; let them send in turn, or raise num_subcarriers and num_active"
        )
    half = waveform.num_active // 2
    # [num_active], signed bins from the lowest frequency up
    band = np.concatenate([np.arange(-half, 0), np.arange(1, half + 1)])
    allocations, first = {}, 0
    for node, count in zip(bandwidth_hz, _whole(wanted, room).tolist(), strict=True):
        allocation = np.zeros(waveform.num_subcarriers, np.uint8)
        allocation[band[first : first + count]] = _kinds(count)
        allocations[node] = allocation
        first += count + GUARD
    return allocations


def _whole(wanted: np.ndarray, room: int) -> np.ndarray:
    """Whole subcarriers, at least `MIN_SHARE` each and at most `room` in all, largest remainder; shape [num_nodes]."""
    total = max(min(room, round(float(wanted.sum()))), MIN_SHARE * wanted.size)
    small = np.zeros(wanted.size, dtype=bool)
    while True:
        # lifting a small share takes from the others, which may then be too small themselves
        left = total - MIN_SHARE * int(small.sum())
        exact = np.where(small, MIN_SHARE, wanted * left / max(float(wanted[~small].sum()), 1e-300))
        below = exact < MIN_SHARE - 1e-9
        if not np.any(below & ~small):
            break
        small |= below
    count = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - count), kind="stable")
    count[order[: total - int(count.sum())]] += 1
    return count


def _kinds(count: int) -> np.ndarray:
    """Pilots evenly among data, shape [count], uint8."""
    num_pilots = max(MIN_PILOTS, math.floor(count / PILOT_SPACING))
    kinds = np.full(count, DATA, np.uint8)
    kinds[np.floor((np.arange(num_pilots) + 0.5) * count / num_pilots).astype(np.int64)] = PILOT
    return kinds
