"""The air adds: bursts through their channels into a capture, chunk by chunk.

Long captures are worked on by several threads, each with a few chunks at a time; no temporary is larger than those.
What a chunk holds does not depend on who computes it. Bursts are given by their samples and by the index of the
capture at which each begins, which may be negative; channels are those of the rows that are wanted, antennas or one
combination of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view

from sim_backend.threads import in_parallel

CHUNK = 8192
"""Elements of a chunk; the room stands still within one."""

# complex multiplications of one product. OpenBLAS keeps up to 2^16 of them on one thread; where other processes keep
# the cores busy, waiting for its other threads costs a hundred times the product
_PRODUCT = 65_536
_STAGGER = 24

# flat channels take two chunks at a time: threads that copy shorter rows wait for the interpreter's lock
_STRETCH = 2 * CHUNK
ChannelAt = Callable[[float, Sequence[int]], np.ndarray]
"""Channels of the bursts of these numbers at an index of the capture, shape [..., num_rows, len(bursts)], complex64."""


def add_flat(heard: np.ndarray, bursts: Sequence[np.ndarray], offsets: Sequence[int], channel_at: ChannelAt) -> None:
    """Add bursts through channels that are flat in frequency.

    y[i] += sum_k h_k(t_i) x_k[i - offset_k]

    Args:
        heard: y, shape [num_rows, num_elements], complex64, in place.
        bursts: x_k, each of shape [length_k], complex64.
        offsets: index of y at which each begins.
        channel_at: h of some bursts at an index, [num_rows, num_active]; asked once a chunk, at its middle, in order
            of time and by one thread at a time.
    """
    num_rows, num_elements = heard.shape
    size = min(_STRETCH, num_elements)

    def stretches() -> Iterator[tuple[int, int, list[int], list[np.ndarray]]]:
        for start in range(0, num_elements, _STRETCH):
            stop = min(start + _STRETCH, num_elements)
            active = _active(bursts, offsets, start, stop)
            if active:
                middles = [(begin + min(begin + CHUNK, stop)) / 2 for begin in range(start, stop, CHUNK)]
                yield start, stop, active, [channel_at(middle, active) for middle in middles]

    def add(stretches: Iterator[tuple[int, int, list[int], list[np.ndarray]]]) -> None:
        # rows a power of two apart would share few lines of the cache
        sent = np.empty((len(bursts), size + _STAGGER), np.complex64)
        parts = _parts(num_rows, num_elements)
        for start, stop, active, channels in stretches:
            # [num_active, stretch]
            sounding = sent[: len(active), : stop - start]
            _gather(sounding, [bursts[k] for k in active], [offsets[k] for k in active], start)
            for begin, channel in zip(range(start, stop, CHUNK), channels, strict=True):
                end = min(begin + CHUNK, stop)
                _add_product(channel, sounding[:, begin - start : end - start], heard[:, begin:end], parts)

    in_parallel(stretches(), add, num_rows * len(bursts) * num_elements)


def add_selective(
    heard: np.ndarray,
    bursts: Sequence[np.ndarray],
    offsets: Sequence[int],
    spectrum_at: ChannelAt,
    *,
    lead: int,
    tail: int,
) -> None:
    """Add bursts through channels that vary in frequency, by overlap-save.

    y[i] += sum_k sum_(l=-lead)^tail h_k[l] x_k[i - offset_k - l]

    Args:
        heard: y, shape [num_rows, num_elements], complex64, in place.
        bursts: x_k, each of shape [length_k], complex64.
        offsets: index of y at which each begins.
        spectrum_at: FFT of some bursts' h over l modulo the FFT's length at an index, shape
            [fft, num_rows, num_active]; see `fir_spectrum`. Asked once a chunk, at its middle.
        lead: taps before l = 0.
        tail: taps after it.
    """
    num_rows, num_elements = heard.shape
    size = fft_length(lead, tail)
    hop = size - lead - tail
    chunk = max(1, CHUNK // hop) * hop

    def chunks() -> Iterator[tuple[int, int, list[int], np.ndarray]]:
        for start in range(0, num_elements, chunk):
            stop = min(start + chunk, num_elements)
            active = _active(bursts, offsets, start - tail, stop + lead)
            if active:
                yield start, stop, active, spectrum_at((start + stop) / 2, active)

    def add(chunks: Iterator[tuple[int, int, list[int], np.ndarray]]) -> None:
        for start, stop, active, spectrum in chunks:
            count = -(-(stop - start) // hop)
            # [num_active, count * hop + lead + tail]
            sent = np.empty((len(active), count * hop + lead + tail), np.complex64)
            _gather(sent, [bursts[k] for k in active], [offsets[k] for k in active], start - tail)
            # [num_active, count, fft]
            blocks_in = scipy.fft.fft(sliding_window_view(sent, size, axis=1)[:, ::hop])
            # [fft, num_active, count]
            bins = np.ascontiguousarray(blocks_in.transpose(2, 0, 1))
            # [num_rows, count, fft]: each product is small, so it stays on one thread
            mixed = np.ascontiguousarray((spectrum @ bins).transpose(1, 2, 0))
            valid = scipy.fft.ifft(mixed, overwrite_x=True)[:, :, tail : size - lead]
            heard[:, start:stop] += valid.reshape(num_rows, count * hop)[:, : stop - start]

    in_parallel(chunks(), add, num_rows * len(bursts) * num_elements)


def add_subcarriers(
    heard: np.ndarray,
    bursts: Sequence[np.ndarray],
    offsets: Sequence[int],
    response_at: ChannelAt,
    num_active: int,
) -> None:
    """Add bursts of OFDM symbols, each subcarrier through its own gain.

    y[i] += sum_k H_k(a) x_k[i - offset_k],   a = (i - offset_k) modulo num_active

    Args:
        heard: y, shape [num_rows, num_elements], complex64, in place.
        bursts: x_k, each of shape [length_k], complex64, in block order.
        offsets: index of y at which each begins.
        response_at: H of some bursts at an index, shape [num_active, num_rows, num_sounding]; asked once a chunk, at
            its middle.
        num_active: subcarriers that carry symbols.
    """
    num_rows, num_elements = heard.shape
    chunk = max(1, CHUNK // num_active) * num_active

    def chunks() -> Iterator[tuple[int, int, list[int], np.ndarray]]:
        for start in range(0, num_elements, chunk):
            stop = min(start + chunk, num_elements)
            active = _active(bursts, offsets, start, stop)
            if active:
                yield start, stop, active, response_at((start + stop) / 2, active)

    def add(chunks: Iterator[tuple[int, int, list[int], np.ndarray]]) -> None:
        for start, stop, active, response in chunks:
            blocks = -(-(stop - start) // num_active)
            # [num_sounding, blocks * num_active]
            sent = np.empty((len(active), blocks * num_active), np.complex64)
            _gather(sent, [bursts[k] for k in active], [offsets[k] for k in active], start)
            # a burst that begins inside a block of the capture has its subcarriers shifted
            shifted = [np.roll(response[:, :, at], offsets[k] - start, axis=0) for at, k in enumerate(active)]
            # [num_active, num_rows, num_sounding]
            gains = np.stack(shifted, axis=2)
            # [num_active, num_sounding, blocks]
            carried = np.ascontiguousarray(sent.reshape(len(active), blocks, num_active).transpose(2, 0, 1))
            # [num_rows, blocks * num_active]
            mixed = (gains @ carried).transpose(1, 2, 0).reshape(num_rows, blocks * num_active)
            heard[:, start:stop] += mixed[:, : stop - start]

    in_parallel(chunks(), add, num_rows * len(bursts) * num_elements)


def fft_length(lead: int, tail: int) -> int:
    """Length of the transforms of `add_selective`: a power of two that the taps fill to an eighth at most."""
    return 1 << (8 * (lead + tail) - 1).bit_length()


def sounded_frequencies(lead: int, tail: int) -> np.ndarray:
    """Frequencies at which `fir_spectrum` takes a response, in cycles a sample, shape [2 (lead + tail)]."""
    return np.fft.fftfreq(2 * (lead + tail))


def fir_spectrum(response: np.ndarray, *, lead: int, tail: int) -> np.ndarray:
    """Frequency response of a filter with few taps that comes close to a channel's.

    The impulse response of sampled frequencies never ends; both ends are tapered to zero, so that overlap-save is an
    exact linear convolution. Close to Nyquist alone the response differs.

    Args:
        response: at `sounded_frequencies(lead, tail)`, shape [num_frequencies, num_rows, num_bursts].
        lead: taps kept before delay 0.
        tail: taps kept after it; the taper takes the last `lead` of them.

    Returns:
        shape [fft_length(lead, tail), num_rows, num_bursts], complex64.

    Raises:
        ValueError: a tenth of the energy or more arrives later than the taps that are kept.
    """
    num_taps = len(response)
    # [num_frequencies]: 1 from -lead / 2 to tail - lead, raised cosines of lead / 2 and lead samples beyond
    index = np.fft.fftfreq(num_taps, 1 / num_taps)
    rise = np.clip((index + lead) / (lead / 2), 0.0, 1.0)
    fall = np.clip((tail - index) / lead, 0.0, 1.0)
    taper = np.square(np.sin(np.pi / 2 * rise) * np.sin(np.pi / 2 * fall))
    # [num_frequencies, num_rows, num_bursts]
    taps = np.fft.ifft(response, axis=0)
    energy = np.sum(np.square(np.abs(taps)), axis=(1, 2))
    if energy @ taper < 0.9 * energy.sum():
        raise ValueError(f"the channel is longer than {tail - lead} samples")
    taps *= taper[:, None, None]
    # [fft, num_rows, num_bursts]
    spread = np.zeros((fft_length(lead, tail), *taps.shape[1:]), np.complex64)
    spread[: tail + 1] = taps[: tail + 1]
    spread[-lead:] = taps[-lead:]
    return scipy.fft.fft(spread, axis=0, overwrite_x=True)


def multiply_rows(row: np.ndarray, capture: np.ndarray) -> np.ndarray:
    """row @ capture on one thread: shapes [num_antennas] and [num_antennas, n] give [1, n], complex64."""
    out = np.zeros((1, capture.shape[1]), np.complex64)
    parts = _parts(1, capture.shape[1])
    for start in range(0, capture.shape[1], CHUNK):
        _add_product(row[None], capture[:, start : start + CHUNK], out[:, start : start + CHUNK], parts)
    return out


def _parts(num_rows: int, num_elements: int) -> np.ndarray:
    """Room for `_add_product` of a chunk: real and imaginary part of the channel times what is sent."""
    return np.empty((2 * num_rows, min(CHUNK, num_elements) + _STAGGER), np.complex64)


def _add_product(channel: np.ndarray, sent: np.ndarray, heard: np.ndarray, parts: np.ndarray) -> None:
    """heard += channel @ sent, as one stack of products that each stay on one thread.

    H x = Re(H) x + j Im(H) x, since OpenBLAS multiplies real matrices half as fast again as complex ones.
    """
    (num_rows, num_sent), size = channel.shape, sent.shape[1]
    # [2 * num_rows, chunk]
    product = parts[:, :size]
    if num_sent == 1:
        np.multiply(channel, sent, out=product[:num_rows])
        heard += product[:num_rows]
        return
    # [2 * num_rows, num_sent] @ [num_sent, 2 * chunk]: real and imaginary parts of the samples take turns
    gains, sent, out = np.concatenate([channel.real, channel.imag]), sent.view(np.float32), product.view(np.float32)
    # a power of two, which divides a chunk
    width = 2 << max(3, (_PRODUCT // (num_rows * num_sent)).bit_length() - 1)
    stacks = 2 * size // width
    even = stacks * width
    if stacks:
        # [stacks, 2 * num_rows, width] = [2 * num_rows, num_sent] @ [stacks, num_sent, width]
        left = sent[:, :even].reshape(num_sent, stacks, width).transpose(1, 0, 2)
        np.matmul(gains, left, out=out[:, :even].reshape(2 * num_rows, stacks, width).transpose(1, 0, 2))
    if even < 2 * size:
        np.matmul(gains, sent[:, even:], out=out[:, even:])
    real, imaginary = product[:num_rows], product[num_rows:]
    imaginary *= np.complex64(1j)
    real += imaginary
    heard += real


def _active(bursts: Sequence[np.ndarray], offsets: Sequence[int], start: int, stop: int) -> list[int]:
    """Bursts with an element in the window."""
    return [
        k
        for k, (burst, offset) in enumerate(zip(bursts, offsets, strict=True))
        if offset < stop and offset + burst.size > start
    ]


def _gather(sent: np.ndarray, bursts: Sequence[np.ndarray], offsets: Sequence[int], start: int) -> None:
    """Write what each burst sends in the window from `start` on into its row; silence where it does not."""
    size = sent.shape[1]
    for row, burst, offset in zip(sent, bursts, offsets, strict=True):
        begin, end = start - offset, start - offset + size
        if begin >= 0 and end <= burst.size:
            row[:] = burst[begin:end]
            continue
        low, high = max(begin, 0), min(end, burst.size)
        row[: low - begin] = 0
        row[low - begin : high - begin] = burst[low:high]
        row[high - begin :] = 0
