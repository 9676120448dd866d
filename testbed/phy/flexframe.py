"""Packets on the air: OFDM frames of liquid-dsp in a share of the band, for nodes that send side by side.

A frame is a preamble of three OFDM symbols, a header (BPSK, Golay code, CRC-32), and the coded payload with its CRC-32.
The library fits its equaliser around DC and looks for preambles in the whole band, so every share is shifted to DC and
filtered, at the transmitter and at the receiver. With the guards of `testbed.phy.subcarriers` that separates nodes that
are neither synchronous nor equally strong: three nodes 20 dB apart leave errors 39 dB below the weakest. A matched
filter finds the preambles; the library then receives one frame from each. Whoever can send a well-formed header that
names a code which the library is built without can crash it: this is an uplink of nodes that are trusted. Frames are
samples whatever `waveform.level` says.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft

from testbed.core.bench import WaveformSpec
from testbed.phy import liquid
from testbed.phy.coding_schemes import CodingScheme
from testbed.phy.packets import Packet
from testbed.phy.subcarriers import DATA, GUARD, NULL, PILOT

FALSE_ALARM = 1e-8
"""Chance that noise passes for a preamble at one sample; header and payload checks come on top."""

PREAMBLE_SYMBOLS = 3


@dataclass(frozen=True)
class Received:
    """What came of one preamble.

    Attributes:
        header: user bytes; empty if no header was heard.
        payload: bytes; to be used only if `payload_valid`.
        header_valid: the header's CRC-32 holds.
        payload_valid: the payload's CRC-32 holds too.
        snr: linear, of the header's equalised symbols, so that the noise of the channel estimate counts; 0 if no header
            was heard.
        cfo: carrier offset, cycles per sample.
        start: sample at which the preamble begins.
    """

    header: bytes
    payload: bytes
    header_valid: bool
    payload_valid: bool
    snr: float
    cfo: float
    start: int


def burst_length(
    payload_bytes: Sequence[int], scheme: CodingScheme, allocation: np.ndarray, waveform: WaveformSpec
) -> int:
    """Samples of a burst of packets with payloads of so many bytes; exactly what `modulate` returns.

    Raises:
        ValueError: the allocation does not suit the waveform.
    """
    share = _share(allocation, waveform)
    frames = sum(frame_symbols(count, scheme, allocation) for count in payload_bytes) * _block(waveform)
    return frames + len(payload_bytes) * _gap(waveform) + (share.filter.size - 1 if len(payload_bytes) else 0)


def frame_symbols(payload_bytes: int, scheme: CodingScheme, allocation: np.ndarray) -> int:
    """OFDM symbols of one frame: preamble, header and payload."""
    num_data = int(np.count_nonzero(np.asarray(allocation) == DATA))
    payload = -(-8 * liquid.encoded_bytes(payload_bytes, scheme.fec0, scheme.fec1) // scheme.bits)
    return PREAMBLE_SYMBOLS + -(-liquid.header_symbols() // num_data) + -(-payload // num_data)


def best_packet_bytes(
    scheme: CodingScheme, allocation: np.ndarray, waveform: WaveformSpec, *, loss: float = 0.1, of_bytes: int = 1000
) -> int:
    """The payload that delivers most bytes per second.

    max_L  L (1 - loss)^(L / of_bytes) / (samples of a frame of L bytes)

    Args:
        scheme: modulation and coding.
        allocation: subcarriers, shape [num_subcarriers].
        waveform: numerology.
        loss: share of packets of `of_bytes` bytes that are lost; by default as at the scheme's threshold.
        of_bytes: length for which `loss` holds.

    Returns:
        bytes.

    Raises:
        ValueError: `loss` is outside [0, 1).
    """
    if not 0 <= loss < 1:
        raise ValueError(f"loss = {loss:g} is outside [0, 1)")
    # [num_candidates]
    candidates = np.unique(np.geomspace(32, liquid.MAX_PAYLOAD_BYTES, 200).astype(np.int64))
    symbols = np.array([frame_symbols(count, scheme, allocation) for count in candidates.tolist()])
    air = symbols * _block(waveform) + _gap(waveform)
    return int(candidates[np.argmax(candidates * (1 - loss) ** (candidates / of_bytes) / air)])


def modulate(
    packets: Sequence[Packet], scheme: CodingScheme, allocation: np.ndarray, waveform: WaveformSpec, power_w: float
) -> np.ndarray:
    """The burst of a node: its packets back to back.

    Args:
        packets: header of 8 bytes and payload of 1 to 9216 bytes each.
        scheme: modulation and coding.
        allocation: subcarriers, shape [num_subcarriers]: 0 null, 1 pilot, 2 data.
        waveform: numerology.
        power_w: average power over the frames, watts; the gaps between them are silent.

    Returns:
        samples in square-root watts, shape [burst_length], complex64.

    Raises:
        ValueError: the allocation does not suit the waveform, a packet is empty or too long, or the power is not a
            non-negative number.
        ConfigError: liquid-dsp is not installed.
    """
    if not (math.isfinite(power_w) and power_w >= 0):
        raise ValueError(f"power_w = {power_w:g} is no power")
    share = _share(allocation, waveform)
    lengths = [len(packet.payload) for packet in packets]
    burst = np.zeros(burst_length(lengths, scheme, allocation, waveform), np.complex64)
    if not packets:
        return burst
    plain = np.zeros(burst.size - share.filter.size + 1, np.complex64)
    position = radiating = 0
    with liquid.generator(
        share.centred, waveform.cyclic_prefix, share.taper, scheme.modulation, scheme.fec0, scheme.fec1
    ) as generator:
        for packet in packets:
            frame = generator.frame(packet.header, packet.payload)
            plain[position : position + frame.size] = frame
            position += frame.size - share.taper + _gap(waveform)
            radiating += frame.size - share.taper
    # [burst_length]
    filtered = _filtered(plain, share.filter)
    energy = float(np.sum(np.square(filtered.real) + np.square(filtered.imag), dtype=np.float64))
    amplitude = math.sqrt(power_w * radiating / energy)
    np.multiply(filtered, _carrier(share.centre, waveform, filtered.size, amplitude), out=burst)
    return burst


def demodulate(
    samples: np.ndarray, allocation: np.ndarray, waveform: WaveformSpec, *, max_cfo: float = 0.0
) -> list[Received]:
    """Every frame of one node that the capture holds.

    Other nodes may send at the same time in other shares. Without a search the carrier offset may be a quarter of a
    cycle over the preamble (`max_cfo_without_search`). A larger one is searched for: then nobody else may send within
    `max_cfo` of the share, and the offset must be the same in the whole capture.

    Args:
        samples: of one antenna or already combined, shape [num_samples], complex64.
        allocation: the node's subcarriers, shape [num_subcarriers].
        waveform: numerology.
        max_cfo: largest carrier offset to search for, cycles per sample; 0 does not search.

    Returns:
        in order of time, one for each preamble that was found; losses included.

    Raises:
        ValueError: the samples are not finite complex64 of one dimension, the allocation does not suit the waveform, or
            max_cfo is no carrier offset.
        ConfigError: liquid-dsp is not installed.
    """
    if not 0 <= max_cfo < 0.25:
        raise ValueError(f"max_cfo = {max_cfo:g} is outside [0, 0.25) cycles per sample")
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype != np.complex64:
        raise ValueError(f"samples must be complex64 of shape [num_samples], not {samples.dtype} of {samples.shape}")
    if not np.all(np.isfinite(samples.view(np.float32))):
        raise ValueError("samples hold NaN or infinity")
    share = _share(allocation, waveform)
    if samples.size < share.preamble.size:
        return []
    largest = float(max(np.abs(samples.real).max(), np.abs(samples.imag).max()))
    if largest < np.finfo(np.float32).tiny:
        return []
    # unit scale: the powers of a capture in watts are below the smallest normal float32
    shifted = samples * _carrier(-share.centre, waveform, samples.size, 1.0 / largest)
    cfo = _search(shifted, share, waveform, max_cfo) if max_cfo > 0 else 0.0
    if cfo:
        shifted *= np.exp(-2j * np.pi * cfo * np.arange(samples.size)).astype(np.complex64)
    # [num_samples + filter]
    heard = _filtered(shifted, share.filter)
    starts = _preambles(heard, share)
    # the last frame ends with the capture: zeros push it through
    heard = np.concatenate([heard, np.zeros(2 * _block(waveform), np.complex64)])
    # Both filters together delay by as much as one of them is long. The library tests every M samples for the short
    # symbols and then, half a block apart, for the long one, which in a narrow share it often takes for something
    # else: it is given samples from where its first test meets the short symbols in phase and its second the long one.
    lead = share.filter.size - 1 + waveform.num_subcarriers // 2 + 2 * waveform.cyclic_prefix - 1
    received = []
    with liquid.synchroniser(share.centred, waveform.cyclic_prefix, share.taper) as synchroniser:
        for start, end in zip(starts, [*starts[1:], heard.size], strict=False):
            frame = synchroniser.first_frame(heard[start + lead : end])
            received.append(_received(frame, cfo, start))
    return received


def max_cfo_without_search(waveform: WaveformSpec) -> float:
    """Largest carrier offset, cycles per sample, at which the matched filter for the preamble loses less than 1 dB."""
    return 0.25 / (PREAMBLE_SYMBOLS * _block(waveform))


def _received(frame: liquid.Frame | None, cfo: float, start: int) -> Received:
    if frame is None:
        return Received(b"", b"", False, False, 0.0, cfo, start)
    header = frame.header if frame.header_valid else b""
    snr = 1.0 / max(frame.error_power, 1e-12)
    return Received(header, frame.payload, frame.header_valid, frame.payload_valid, snr, cfo + frame.cfo, start)


# --- shares ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Share:
    """A share shifted to DC.

    Attributes:
        centre: FFT bin that is shifted to DC.
        centred: allocation after the shift, shape [num_subcarriers].
        filter: low-pass around the share, shape [taps], unit gain in its passband.
        taper: samples over which neighbouring OFDM symbols overlap.
        preamble: as it comes out of the receiver's filter, unit energy, shape [samples], complex64.
        short: first symbol of the preamble on its subcarriers, every other one of the share, shape [num_subcarriers].
    """

    centre: int
    centred: np.ndarray
    filter: np.ndarray
    taper: int
    preamble: np.ndarray
    short: np.ndarray


def _block(waveform: WaveformSpec) -> int:
    return waveform.num_subcarriers + waveform.cyclic_prefix


def _gap(waveform: WaveformSpec) -> int:
    """Silence after a frame, samples: longer than the tails of both filters."""
    return waveform.num_subcarriers


def _share(allocation: np.ndarray, waveform: WaveformSpec) -> _Share:
    allocation = np.asarray(allocation)
    if allocation.shape != (waveform.num_subcarriers,) or not np.all(np.isin(allocation, (NULL, PILOT, DATA))):
        raise ValueError(f"an allocation is {waveform.num_subcarriers} numbers, each 0 null, 1 pilot or 2 data")
    if np.count_nonzero(allocation == PILOT) < 2 or np.count_nonzero(allocation == DATA) < 4:
        raise ValueError("an allocation needs at least 2 pilots and 4 data subcarriers")
    if waveform.num_subcarriers % 2 or waveform.num_subcarriers < 32:
        raise ValueError(f"num_subcarriers = {waveform.num_subcarriers} must be even and at least 32 for packets")
    if 2 * waveform.cyclic_prefix > waveform.num_subcarriers:
        raise ValueError(
            f"cyclic_prefix = {waveform.cyclic_prefix} must be at most half of num_subcarriers = "
            f"{waveform.num_subcarriers} for packets"
        )
    return _cached_share(allocation.astype(np.uint8).tobytes(), waveform.cyclic_prefix)


@functools.lru_cache(maxsize=256)
def _cached_share(carriers: bytes, prefix: int) -> _Share:
    allocation = np.frombuffer(carriers, np.uint8)
    size = allocation.size
    # [num_used], signed bins
    used = np.sort((np.flatnonzero(allocation) + size // 2) % size - size // 2)
    centre = int(used[0] + used[-1]) // 2
    centred = np.roll(allocation, -centre)
    if np.count_nonzero(centred[::2]) < 4:
        raise ValueError("an allocation needs 4 subcarriers at even distances from its centre, for its preamble")
    half = max(int(used[-1]) - centre, centre - int(used[0]))
    taper = prefix // 4
    taps = _low_pass(half, size)
    with liquid.generator(centred, prefix, taper, "qpsk", "none", "none") as generator:
        plain = generator.frame(bytes(liquid.HEADER_BYTES), b"\0")[: PREAMBLE_SYMBOLS * (size + prefix)]
    reference = _filtered(_filtered(plain, taps), taps)
    reference /= np.float32(np.linalg.norm(reference))
    short = scipy.fft.fft(plain[prefix : prefix + size], norm="forward") * (centred != NULL)
    return _Share(centre, centred, taps, taper, reference, short)


def _low_pass(half: int, size: int) -> np.ndarray:
    """Windowed-sinc low-pass that passes bins -half .. half and stops at half + GUARD; shape [taps], complex64."""
    if 2 * (half + GUARD) >= size:
        return np.ones(1, np.complex64)
    taps = 3 * size // 8 + 1
    place = np.arange(taps) - (taps - 1) / 2
    width = 2 * (half + GUARD / 2) / size
    return (width * np.sinc(width * place) * np.kaiser(taps, 5.0)).astype(np.complex64)


def _carrier(bins: int, waveform: WaveformSpec, num_samples: int, amplitude: float) -> np.ndarray:
    """amplitude exp(j 2 pi bins n / num_subcarriers), shape [num_samples], complex64."""
    size = waveform.num_subcarriers
    period = amplitude * np.exp(2j * np.pi * bins / size * np.arange(size))
    return np.resize(period.astype(np.complex64), num_samples)


# --- detection ------------------------------------------------------------------------------------------------------


def _filtered(samples: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Full convolution by overlapping blocks, shape [num_samples + taps - 1], complex64."""
    if taps.size == 1:
        return samples * taps[0]
    size = scipy.fft.next_fast_len(max(4096, 8 * taps.size))
    step = size - taps.size + 1
    blocks = -(-samples.size // step)
    padded = np.zeros(blocks * step, np.complex64)
    padded[: samples.size] = samples
    response = scipy.fft.fft(taps.astype(np.complex64), size)
    # [blocks, size]
    spectrum = scipy.fft.fft(padded.reshape(blocks, step), size)
    spectrum *= response
    pieces = scipy.fft.ifft(spectrum, overwrite_x=True)
    whole = np.zeros((blocks + 1) * step, np.complex64)
    whole[: blocks * step].reshape(blocks, step)[:] = pieces[:, :step]
    whole[step:].reshape(blocks, step)[:, : size - step] += pieces[:, step:]
    return whole[: samples.size + taps.size - 1]


def _preambles(heard: np.ndarray, share: _Share) -> list[int]:
    """Where preambles begin, by a matched filter that is normalised to the energy under it.

    rho^2 = |<r, y>|^2 / |y|^2 exceeds t by chance with probability (1 - t)^(K - 1). The two short symbols are alike on
    half of the n subcarriers and the long one uses all: K = 2 n. All frames of a node come through one channel, so
    what is half as like as the best is chance too, and must not cut a frame in two.
    """
    length = share.preamble.size
    # [num_samples - length + 1]
    matched = _filtered(heard, share.preamble[::-1].conj())[length - 1 : heard.size]
    running = np.concatenate([[0.0], np.cumsum(np.square(heard.real) + np.square(heard.imag), dtype=np.float64)])
    energy = running[length:] - running[:-length]
    floor = 1e-9 * float(energy.max())
    likeness = (np.square(matched.real) + np.square(matched.imag)) / np.maximum(energy, floor)
    chance = 1.0 - FALSE_ALARM ** (1.0 / (2 * np.count_nonzero(share.centred) - 1))
    return _peaks(likeness, max(chance, 0.5 * float(likeness.max())), length)


def _search(samples: np.ndarray, share: _Share, waveform: WaveformSpec, max_cfo: float) -> float:
    """Carrier offset of the clearest preamble, cycles per sample; 0 if there is none.

    The short symbols repeat after half a block, which gives the offset up to whole pairs of subcarriers; the pair at
    which neighbouring subcarriers agree best with what was sent gives the rest.
    """
    size, lag = waveform.num_subcarriers, waveform.num_subcarriers // 2
    used = np.flatnonzero(share.centred)
    half = int(np.abs((used + size // 2) % size - size // 2).max())
    wide = _filtered(samples, _low_pass(half + math.ceil(max_cfo * size), size))
    length = 2 * _block(waveform) - lag
    # [num_samples - lag - length + 1]
    agreement = _sums(wide[lag:] * wide[:-lag].conj(), length)
    energy = _sums(np.square(np.abs(wide)), length + lag).real
    floor = 0.01 * float(energy.max())
    at = int(np.argmax(np.abs(agreement) / np.maximum(energy, floor)))
    rest = float(np.angle(agreement[at])) / (2 * np.pi * lag)
    turned = wide[at : at + length] * np.exp(-2j * np.pi * rest * np.arange(length))
    windows = np.lib.stride_tricks.sliding_window_view(turned, size)[::lag]
    # [num_windows, num_subcarriers]
    spectrum = scipy.fft.fft(windows)
    best, offset = 0.0, 0.0
    for pairs in range(-math.ceil(max_cfo * lag), math.ceil(max_cfo * lag) + 1):
        candidate = rest + pairs / lag
        if abs(candidate) > max_cfo + 0.5 / size:
            continue
        aligned = np.roll(spectrum, -2 * pairs, axis=-1) * share.short.conj()
        likeness = abs(complex(np.sum(np.roll(aligned, -2, axis=-1) * aligned.conj())))
        if likeness > best:
            best, offset = likeness, candidate
    return offset


def _sums(values: np.ndarray, length: int) -> np.ndarray:
    """Sums of `length` successive values, shape [num_values - length + 1]."""
    running = np.concatenate([[0.0], np.cumsum(values, dtype=np.complex128)])
    return running[length:] - running[:-length]


def _peaks(likeness: np.ndarray, threshold: float, length: int) -> list[int]:
    """Samples that exceed the threshold and everything within `length` of them."""
    above = np.flatnonzero(likeness > threshold)
    if above.size == 0:
        return []
    peaks = []
    for group in np.split(above, np.flatnonzero(np.diff(above) > length) + 1):
        peaks.append(int(group[np.argmax(likeness[group])]))
    return peaks
