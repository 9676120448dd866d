"""The blocks of a segment, and where in a capture a receiver finds its frames.

A segment is one or more frames back to back. A frame is one short-training block, two pilot blocks and up to
`frame_blocks` data blocks, with one more pilot block after every `pilot_every` of them; the last frame carries only the
data it needs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm, preamble

SHORT, PILOT = -2, -1
# Frames, spread over a segment, that tell its carrier offset where timing is scheduled.
CFO_FRAMES = 32


@dataclass(frozen=True)
class Layout:
    """Which block of a segment carries what.

    Attributes:
        num_frames: frames of the segment.
        frame_blocks: blocks of every frame but the last.
        source: of each block, the data block it carries, or SHORT or PILOT, shape [num_blocks].
        frame: of each block, its frame, shape [num_blocks].
    """

    num_frames: int
    frame_blocks: int
    source: np.ndarray
    frame: np.ndarray

    @functools.cached_property
    def data(self) -> np.ndarray:
        """Blocks that carry data, shape [num_data_blocks]."""
        return np.flatnonzero(self.source >= 0)

    @functools.cached_property
    def known(self) -> np.ndarray:
        """Blocks that do not, shape [num_blocks - num_data_blocks]."""
        return np.flatnonzero(self.source < 0)

    def inside(self, blocks: np.ndarray) -> np.ndarray:
        """Place of blocks in their frames."""
        return blocks - self.frame[blocks] * self.frame_blocks


def layout(num_symbols: int, waveform: WaveformSpec) -> Layout:
    """The blocks of a segment of so many symbols.

    Args:
        num_symbols: complex symbols of data.
        waveform: numerology.

    Returns:
        one frame after the other; no block where there is no symbol.

    Raises:
        ValueError: num_symbols is negative.
    """
    if num_symbols < 0:
        raise ValueError(f"num_symbols = {num_symbols} is negative")
    data = np.arange(ofdm.num_blocks(num_symbols, waveform))
    capacity, every, head = waveform.frame_blocks, waveform.pilot_every, preamble.PREAMBLE_BLOCKS
    pilots = (capacity - 1) // every if every else 0
    whole = head + capacity + pilots
    frame, inside = data // capacity, data % capacity
    # [num_data_blocks]
    place = frame * whole + head + inside + (inside // every if every else 0)
    source = np.full(int(place[-1]) + 1 if len(place) else 0, PILOT)
    source[place] = data
    source[::whole] = SHORT
    return Layout(-(-len(source) // whole), whole, source, np.arange(len(source)) // whole)


def block_elements(waveform: WaveformSpec) -> int:
    """Elements of one block: samples with the prefix, or at level symbols its symbols."""
    return waveform.num_active if waveform.level == "symbols" else preamble.block_length(waveform)


@dataclass(frozen=True)
class Timing:
    """Where the frames are.

    Attributes:
        nominal, starts: where each frame should begin and from where it is read, shape [num_frames].
        found: shape [num_frames].
        middle: middle of the arrivals after `starts`, shape [num_frames].
        cfo: mean of the frames' carrier offsets, cycles per sample.
    """

    nominal: np.ndarray
    starts: np.ndarray
    found: np.ndarray
    middle: np.ndarray
    cfo: float


def find_frames(
    samples: np.ndarray, waveform: WaveformSpec, plan: Layout, start: int, guard: int, *, measure: bool
) -> Timing:
    """Where a segment's frames are: as scheduled, or where their preambles are found.

    Args:
        samples: shape [num_antennas, num_elements].
        waveform: numerology.
        plan: the segment's blocks; at least one.
        start: nominal index of the segment's first element.
        guard: as of `testbed.phy.frames.read`.
        measure: estimate the carrier offset of scheduled frames too.

    Returns:
        the timing; a frame inside which samples were lost or gained does not count as found.

    Raises:
        ValueError: a scheduled segment lies outside the capture.
    """
    block = block_elements(waveform)
    nominal = start + np.arange(plan.num_frames) * (plan.frame_blocks * block)
    if guard and waveform.level == "samples":
        return _search(samples, waveform, plan, nominal, guard)
    end = start + len(plan.source) * block
    if start < 0 or end > samples.shape[-1]:
        raise ValueError(f"elements {start} to {end} of the segment lie outside {samples.shape[-1]} elements")
    cfo = 0.0
    if measure and waveform.level == "samples":
        cfo = _carrier(samples, waveform, nominal)
    none = np.zeros(plan.num_frames, np.int64)
    return Timing(nominal, nominal, np.ones(plan.num_frames, bool), none, cfo)


def without(timing: Timing, samples: np.ndarray, waveform: WaveformSpec, missing: np.ndarray) -> Timing:
    """The timing where some frames turn out not to be there: they count as lost and tell no carrier offset.

    Args:
        timing: as of `find_frames`.
        samples: shape [num_antennas, num_elements].
        waveform: numerology.
        missing: numbers of the frames, shape [num_missing].

    Returns:
        the timing.
    """
    found = timing.found.copy()
    found[missing] = False
    cfo = timing.cfo
    if waveform.level == "samples" and np.any(found):
        cfo = _carrier(samples, waveform, timing.starts[found])
    return replace(timing, found=found, cfo=cfo)


def _carrier(samples: np.ndarray, waveform: WaveformSpec, starts: np.ndarray) -> float:
    """Carrier offset from some of these frames, wherever in the prefix the nodes may be."""
    early = ofdm.window_advance(waveform)
    some = starts[:: -(-len(starts) // CFO_FRAMES)]
    return preamble.common_cfo(samples, some, waveform, waveform.cyclic_prefix - early, early)


def _search(samples: np.ndarray, waveform: WaveformSpec, plan: Layout, nominal: np.ndarray, guard: int) -> Timing:
    """Find every frame: the first one anywhere within the guard, the others near where they are due, or within a frame.

    Frames bear no number. A receiver loses samples rather than gains them, so a frame that is not where it is due is
    looked for up to three quarters of a frame before and one quarter after: the frames beside it are not in there.
    """
    block = preamble.block_length(waveform)
    whole = plan.frame_blocks * block
    lengths = np.diff(np.append(np.arange(plan.num_frames) * plan.frame_blocks, len(plan.source))) * block
    near = max(waveform.cyclic_prefix, preamble.MARGIN)
    early, late = whole - whole // 4, whole // 4
    arrivals: list[preamble.Arrival | None] = []
    slip, cfo, usual = 0, None, 0.0
    for index, due in enumerate(nominal):
        low, high = int(due) + slip, samples.shape[-1] - int(lengths[index])
        arrival = None
        if cfo is not None:
            arrival = preamble.locate(samples, waveform, low - near, min(low + near, high), cfo=cfo)
        if arrival is not None:
            # the turn over the whole preamble, for every frame alike
            turned = preamble.estimate_cfo(samples, arrival.start, waveform, arrival.spread)
            arrival = replace(arrival, cfo=turned)
        if arrival is None or arrival.metric < 0.5 * usual:
            # what fits far worse than the frame before is a part of a preamble that stands beside
            before, after = (guard, guard) if index == 0 else (early, late)
            if cfo is None:
                before, after = max(before, guard), max(after, guard)
            arrival = preamble.search(samples, waveform, low - before, min(low + after, high))
        if arrival is not None:
            slip, usual, cfo = arrival.start - int(due), arrival.metric, arrival.cfo
        arrivals.append(arrival)
    return _judged(arrivals, nominal, samples.shape[-1] - lengths, guard, waveform)


def _judged(
    arrivals: list[preamble.Arrival | None], nominal: np.ndarray, latest: np.ndarray, guard: int, waveform: WaveformSpec
) -> Timing:
    """Starts to read at; a frame inside which samples were lost or gained is lost as well."""
    tolerance = max(ofdm.window_advance(waveform), 1)
    found = np.array([arrival is not None for arrival in arrivals])
    starts = np.array([at if a is None else a.start for a, at in zip(arrivals, nominal, strict=True)])
    middle = np.array([0 if arrival is None else arrival.spread // 2 for arrival in arrivals])
    heard = np.flatnonzero(found)
    shift = starts - nominal
    slipped = np.abs(np.diff(shift[heard])) > tolerance
    if len(heard) and not found[-1] and nominal[-1] + shift[heard[-1]] <= latest[-1]:
        # a slip may have been a frame longer: where the last frame is not in its place after one, nothing tells which
        # frame is which
        late_start = np.abs(shift[heard[:1]]) > max(guard, tolerance)
        found[heard[np.cumsum(np.append(late_start, slipped)) > 0]] = False
    found[heard[:-1][slipped]] = False
    # timing stays where it was, as long as everything falls into the prefix: what was measured there still holds
    used, due = starts.copy(), 0
    for index in heard:
        if abs(int(shift[index]) - due) > tolerance:
            due = int(shift[index])
        if 0 <= nominal[index] + due <= latest[index]:
            used[index] = nominal[index] + due
    # a preamble that is damaged tells a wrong carrier offset
    offsets = [arrival.cfo for arrival, good in zip(arrivals, found, strict=True) if arrival is not None and good]
    return Timing(nominal, used, found, middle + starts - used, float(np.mean(offsets)) if offsets else 0.0)
