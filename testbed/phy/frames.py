"""Uncoded symbols in frames: preamble, pilots, data; and how a receiver reads them back.

A segment is one or more frames back to back. A frame is one short-training block, two pilot blocks and up to
`frame_blocks` data blocks, with one more pilot block after every `pilot_every` of them; the last frame carries only the
data it needs. Everything is multiplied by the precoder, so superposed nodes' pilots add up as their data do.
At level symbols a block is its symbols, without OFDM, and a pilot block stands for the short-training block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm, preamble, tracking
from testbed.phy.estimate import pilot_symbols
from testbed.phy.segment import PILOT, SHORT, Layout, Timing, block_elements, find_frames, layout, without

CHUNK_BLOCKS = 2048


@dataclass(frozen=True)
class FrameRead:
    """What a segment said.

    Attributes:
        symbols: shape [num_symbols], complex64; zero where the frame was lost.
        lost: frames that were not found, or whose pilots are absent.
        lag: by how many elements the frames came later than nominal, their mean; 0 where every frame was lost.
        cfo: carrier offset, cycles per sample.
        gain: mean of the pilots after the corrections over `reference`, 1 for perfect alignment; the pilots' mean in
            square-root watts where there is no reference; 0 where every frame was lost.
        noise_w: noise power of one symbol after combining; None where every frame was lost.
    """

    symbols: np.ndarray
    lost: int
    lag: float
    cfo: float
    gain: complex
    noise_w: float | None


def segment_length(num_symbols: int, waveform: WaveformSpec) -> int:
    """Elements of a segment of so many symbols, preambles and pilots included."""
    return len(layout(num_symbols, waveform).source) * block_elements(waveform)


def build(symbols: np.ndarray, waveform: WaveformSpec, precoder: complex | np.ndarray = 1.0) -> np.ndarray:
    """Put symbols into frames.

    Block by block x = OFDM(b p) for pilots p and x = OFDM(b s) for data s. The short training takes the phases of b,
    with one amplitude on its few subcarriers, so that its power is the average.

    Args:
        symbols: s, shape [num_symbols]; the last block is filled with zeros.
        waveform: numerology.
        precoder: b, square-root watts: one number, or one for each active subcarrier, shape [num_active], in the order
            of `testbed.phy.ofdm.modulate`.

    Returns:
        shape [segment_length(num_symbols)], complex64.

    Raises:
        ValueError: a shape is wrong, a precoder is not finite, or the waveform carries no preamble.
    """
    symbols = np.asarray(symbols)
    if symbols.ndim != 1:
        raise ValueError(f"symbols must have the shape [num_symbols], not {symbols.shape}")
    factor = np.asarray(precoder, dtype=np.complex64)
    if factor.shape not in ((), (waveform.num_active,)) or not np.all(np.isfinite(factor)):
        raise ValueError(f"precoder must be finite, one or {waveform.num_active}, not of shape {factor.shape}")
    short_factor = factor if waveform.level == "symbols" else _levelled(factor)
    plan, length, active = layout(len(symbols), waveform), block_elements(waveform), waveform.num_active
    known = _known(waveform)
    # [num_blocks, block_elements]
    elements = np.empty((len(plan.source), length), np.complex64)
    for begin in range(0, len(plan.source), CHUNK_BLOCKS):
        source = plan.source[begin : begin + CHUNK_BLOCKS]
        is_data = source >= 0
        # [chunk, num_active]
        grid = known[np.where(is_data, PILOT, source)]
        rows = source[is_data]
        if len(rows):
            carried = np.zeros((len(rows), active), np.complex64)
            part = symbols[rows[0] * active : (rows[-1] + 1) * active]
            carried.reshape(-1)[: len(part)] = part
            grid[is_data] = carried
        # [chunk, num_active] or []
        grid *= factor if factor.ndim == 0 else np.where((source == SHORT)[:, None], short_factor, factor)
        sent = grid if waveform.level == "symbols" else ofdm.modulate(grid.reshape(-1), waveform)
        elements[begin : begin + CHUNK_BLOCKS] = sent.reshape(-1, length)
    return elements.reshape(-1)


def read(
    samples: np.ndarray,
    waveform: WaveformSpec,
    num_symbols: int,
    *,
    combiner: np.ndarray,
    start: int = 0,
    guard: int = 0,
    reference: float | None = None,
) -> FrameRead:
    """Read a segment back as f^H y, and take out what all pilots have in common.

    With a `reference` the phase, the delay and the slow turn that the pilots' sum shows are taken out of the data; the
    amplitude is left alone, so a loss of coherence stays visible. A frame whose pilots are absent is lost, whether or
    not frames are looked for. See `testbed.phy.tracking`.

    Args:
        samples: y, shape [num_antennas, num_elements].
        waveform: numerology.
        num_symbols: data symbols of the segment.
        combiner: f, shape [num_antennas], or [num_active, num_antennas] for each subcarrier.
        start: nominal index of the segment's first element.
        guard: the segment may begin this many samples earlier or later, and a capture may have lost or gained samples
            inside: frames are looked for. 0: timing is as scheduled. At level symbols it always is.
        reference: A, amplitude of the pilots after combining where all nodes are aligned, square-root watts; None
            takes nothing out.

    Returns:
        symbols and measurements. The carrier offset is not measured, and 0, where guard is 0 and there is no reference.

    Raises:
        ValueError: a shape is wrong, a scheduled segment lies outside the capture, an argument is out of range, or a
            sample is not finite.
    """
    samples = _capture(samples, start, guard, num_symbols)
    combiner = np.asarray(combiner, dtype=np.complex64)
    if combiner.shape not in ((len(samples),), (waveform.num_active, len(samples))):
        raise ValueError(
            f"combiner must have the shape [{len(samples)}] or [{waveform.num_active}, {len(samples)}], "
            f"not {combiner.shape}"
        )
    if not np.all(np.isfinite(combiner)):
        raise ValueError("the combiner is not finite")
    if reference is not None and not 0 < reference < math.inf:
        raise ValueError(f"reference = {reference:g} must be positive and finite")
    if combiner.ndim == 1:
        # combining first leaves one antenna to search and to transform
        samples, combiner = (combiner.conj() @ samples)[None], np.ones(1, np.complex64)
    plan = layout(num_symbols, waveform)
    if not len(plan.source):
        return FrameRead(np.zeros(0, np.complex64), 0, 0.0, 0.0, 0j, None)
    timing = find_frames(samples, waveform, plan, start, guard, measure=reference is not None)
    # without pilots to follow, an estimated carrier offset would add a turn of its own
    cfo = 0.0 if reference is None else timing.cfo
    receiver = _Receiver(samples, waveform, timing.starts, plan, combiner, cfo)
    return _read(receiver, timing, num_symbols, reference)


def demodulate(
    samples: np.ndarray, waveform: WaveformSpec, num_symbols: int, *, start: int, guard: int
) -> tuple[np.ndarray, int]:
    """Read a segment's symbols at every antenna, for a decision on energies.

    Frames are found as in `read`. The FFT window lies in the middle of the prefix and its phase is not taken out.

    Args:
        samples: shape [num_antennas, num_elements].
        waveform: numerology.
        num_symbols: data symbols of the segment.
        start, guard: as of `read`.

    Returns:
        symbols [num_antennas, num_symbols], complex64, zero where a frame was lost; and the number of lost frames.

    Raises:
        ValueError: as of `read`.
    """
    samples = _capture(samples, start, guard, num_symbols)
    plan, active = layout(num_symbols, waveform), waveform.num_active
    symbols = np.zeros((len(samples), ofdm.num_blocks(num_symbols, waveform), active), np.complex64)
    if not len(plan.source):
        return symbols.reshape(len(samples), -1), 0
    timing = find_frames(samples, waveform, plan, start, guard, measure=False)
    blocks = plan.data[timing.found[plan.frame[plan.data]]]
    begins = (timing.starts + timing.middle)[plan.frame[blocks]] + plan.inside(blocks) * block_elements(waveform)
    if waveform.level == "symbols":
        symbols[:, plan.source[blocks]] = samples[:, begins[:, None] + np.arange(active)]
    else:
        advance = waveform.cyclic_prefix // 2
        # read from the middle of several arrivals, the last block may reach over the capture's end
        begins = np.minimum(begins, samples.shape[-1] - preamble.block_length(waveform) + advance)
        for part in np.array_split(np.arange(len(blocks)), -(-len(blocks) // CHUNK_BLOCKS) or 1):
            symbols[:, plan.source[blocks[part]]] = ofdm.demodulate_at(
                samples, begins[part], waveform, advance=advance, cfo=timing.cfo
            )
    return symbols.reshape(len(samples), -1)[:, :num_symbols], int(np.sum(~timing.found))


@dataclass(frozen=True)
class _Receiver:
    """A capture whose blocks are read and combined."""

    samples: np.ndarray
    waveform: WaveformSpec
    starts: np.ndarray
    plan: Layout
    combiner: np.ndarray
    cfo: float

    def elements(self, blocks: np.ndarray) -> np.ndarray:
        """First element of each block."""
        place = self.plan.inside(blocks) * block_elements(self.waveform)
        begins: np.ndarray = self.starts[self.plan.frame[blocks]] + place
        return begins

    def symbols(self, blocks: np.ndarray) -> np.ndarray:
        """Combined symbols of each block, shape [len(blocks), num_active]."""
        begins = self.elements(blocks)
        if self.waveform.level == "symbols":
            # [num_antennas, len(blocks), num_active]
            received = self.samples[:, begins[:, None] + np.arange(self.waveform.num_active)]
        else:
            advance = ofdm.window_advance(self.waveform)
            received = ofdm.demodulate_at(self.samples, begins, self.waveform, advance=advance, cfo=self.cfo)
        if self.combiner.ndim == 1:
            combined: np.ndarray = received[0] * self.combiner[0].conj()
        else:
            combined = np.einsum("kn,nbk->bk", self.combiner.conj(), received)
        return combined


def _levelled(factor: np.ndarray) -> np.ndarray:
    """The same phases with the amplitude of the average power; 0 stays 0."""
    size = np.abs(factor)
    rms = np.sqrt(np.mean(np.square(size)))
    return np.divide(factor, size, out=np.zeros_like(factor), where=size > 0) * rms


def _known(waveform: WaveformSpec) -> np.ndarray:
    """What the blocks SHORT and PILOT carry, shape [2, num_active]."""
    pilot = pilot_symbols(1, waveform)
    return np.stack([pilot if waveform.level == "symbols" else preamble.short_symbols(waveform), pilot])


def _capture(samples: np.ndarray, start: int, guard: int, num_symbols: int) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 2 or not len(samples):
        raise ValueError(f"samples must have the shape [num_antennas, num_elements], not {samples.shape}")
    if guard < 0 or num_symbols < 0:
        raise ValueError(f"guard = {guard} and num_symbols = {num_symbols} must not be negative")
    if not np.all(np.isfinite(samples)):
        raise ValueError("the capture has samples that are not finite")
    return samples.astype(np.complex64, copy=False)


def _read(receiver: _Receiver, timing: Timing, num_symbols: int, reference: float | None) -> FrameRead:
    plan, waveform = receiver.plan, receiver.waveform
    symbols = np.zeros((int(plan.source.max()) + 1, waveform.num_active), np.complex64)
    pilots = _pilots(receiver, timing.found)
    if reference is not None and len(pilots.frame):
        missing = tracking.absent(pilots, waveform, reference)
        if len(missing):
            timing = without(timing, receiver.samples, waveform, missing)
            receiver = replace(receiver, cfo=timing.cfo)
            pilots = _pilots(receiver, timing.found)
    found = timing.found
    lost = int(np.sum(~found))
    if not len(pilots.frame):
        return FrameRead(symbols.reshape(-1)[:num_symbols], lost, 0.0, timing.cfo, 0j, None)
    track = tracking.follow(pilots, waveform, receiver.cfo, correct=reference is not None)
    data = plan.data[found[plan.frame[plan.data]]]
    for begin in range(0, len(data), CHUNK_BLOCKS):
        blocks = data[begin : begin + CHUNK_BLOCKS]
        read = receiver.symbols(blocks)
        if reference is not None:
            read *= tracking.correction(track, plan.frame[blocks], receiver.elements(blocks), waveform)
        symbols[plan.source[blocks]] = read
    # a delay is measured in samples
    lag = track.delay_of(len(found)) * block_elements(waveform) / preamble.block_length(waveform)
    return FrameRead(
        symbols.reshape(-1)[:num_symbols],
        lost,
        float(np.mean((timing.starts - timing.nominal + lag)[found])),
        timing.cfo + track.cfo,
        track.gain / (1.0 if reference is None else reference),
        track.noise_w,
    )


def _pilots(receiver: _Receiver, found: np.ndarray) -> tracking.Pilots:
    """The known blocks of these frames, [num_frames], and what each says of the channel."""
    plan = receiver.plan
    known = plan.known[found[plan.frame[plan.known]]]
    # [len(known), num_active]
    response = receiver.symbols(known) * _known(receiver.waveform)[plan.source[known]].conj()
    return tracking.Pilots(response, plan.frame[known], plan.source[known] == SHORT, receiver.elements(known))
