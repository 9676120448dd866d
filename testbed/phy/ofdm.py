"""OFDM with a cyclic prefix as the carrier of uncoded symbols, and the packing of real values into symbols.

Active subcarriers lie around DC and leave it empty: FFT bins 1 .. num_active/2, then the as many negative ones.
Symbols of unit mean power give samples of unit mean power, so a precoder of |b|^2 watts radiates |b|^2 watts.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft

from testbed.core.bench import WaveformSpec


def num_blocks(num_symbols: int, waveform: WaveformSpec) -> int:
    """OFDM blocks that carry so many complex symbols."""
    return -(-num_symbols // waveform.num_active)


def burst_length(num_symbols: int, waveform: WaveformSpec) -> int:
    """Samples of a burst of so many complex symbols, cyclic prefixes included."""
    return num_blocks(num_symbols, waveform) * (waveform.num_subcarriers + waveform.cyclic_prefix)


def num_symbols_of(num_values: int) -> int:
    """Complex symbols that carry so many real values, two on each."""
    return -(-num_values // 2)


def body_middle(waveform: WaveformSpec) -> float:
    """Where the middle of a block's body lies at level symbols, in elements after the block's first.

    The whole block, prefix included, lasts num_active elements: num_active (prefix + size / 2) / (prefix + size).
    """
    size, prefix = waveform.num_subcarriers, waveform.cyclic_prefix
    return waveform.num_active * (prefix + size / 2) / (prefix + size)


def in_band_noise_w(noise_w: float, waveform: WaveformSpec) -> float:
    """Noise power of one demodulated symbol for white noise of `noise_w` per sample.

    noise = noise_w * num_active / num_subcarriers

    Args:
        noise_w: noise power of a sample over the whole sample rate, watts.
        waveform: numerology.

    Returns:
        watts; the `noise_w` of a `Sounding`.
    """
    return noise_w * waveform.num_active / waveform.num_subcarriers


def modulate(symbols: np.ndarray, waveform: WaveformSpec) -> np.ndarray:
    """Put symbols on the active subcarriers, block by block, and prepend the cyclic prefix.

    x = sqrt(num_subcarriers / num_active) * IFFT(X), unitary

    Args:
        symbols: shape [..., num_symbols]; the last block is filled with zeros.
        waveform: numerology.

    Returns:
        shape [..., burst_length(num_symbols)], complex64; unit mean power for symbols of unit mean power.

    Raises:
        ValueError: the cyclic prefix is longer than a block.
    """
    size, half, prefix = waveform.num_subcarriers, waveform.num_active // 2, waveform.cyclic_prefix
    if prefix > size:
        raise ValueError(f"cyclic_prefix = {prefix} exceeds num_subcarriers = {size}")
    symbols = np.asarray(symbols)
    lead, count = symbols.shape[:-1], symbols.shape[-1]
    blocks = num_blocks(count, waveform)
    filled = blocks * waveform.num_active
    if count < filled:
        padded = np.zeros((*lead, filled), np.complex64)
        padded[..., :count] = symbols
        symbols = padded
    # [..., blocks, num_active]
    carried = symbols.reshape(*lead, blocks, waveform.num_active)
    amplitude = np.float32(math.sqrt(size / waveform.num_active))
    # [..., blocks, num_subcarriers]
    grid = np.zeros((*lead, blocks, size), np.complex64)
    np.multiply(carried[..., :half], amplitude, out=grid[..., 1 : half + 1], casting="same_kind")
    np.multiply(carried[..., half:], amplitude, out=grid[..., size - half :], casting="same_kind")
    body = scipy.fft.ifft(grid, norm="ortho", overwrite_x=True)
    # [..., blocks, cyclic_prefix + num_subcarriers]
    samples = np.empty((*lead, blocks, prefix + size), np.complex64)
    samples[..., prefix:] = body
    samples[..., :prefix] = body[..., size - prefix :]
    return samples.reshape(*lead, blocks * (prefix + size))


def demodulate(samples: np.ndarray, waveform: WaveformSpec, num_symbols: int | None = None) -> np.ndarray:
    """Drop the cyclic prefix and read the active subcarriers: the inverse of `modulate`.

    X = sqrt(num_active / num_subcarriers) * FFT(x), unitary

    Args:
        samples: shape [..., num_samples], whole blocks from the first prefix on; a rest at the end is ignored.
        waveform: numerology.
        num_symbols: symbols to return; those of all whole blocks if None.

    Returns:
        shape [..., num_symbols], complex64. White noise of power w per sample has power
        w * num_active / num_subcarriers in each symbol.

    Raises:
        ValueError: there are not enough samples.
    """
    size, half, prefix = waveform.num_subcarriers, waveform.num_active // 2, waveform.cyclic_prefix
    samples = np.asarray(samples)
    lead = samples.shape[:-1]
    whole = samples.shape[-1] // (prefix + size)
    blocks = whole if num_symbols is None else num_blocks(num_symbols, waveform)
    if blocks > whole:
        raise ValueError(f"{samples.shape[-1]} samples hold {whole} OFDM blocks, {num_symbols} symbols need {blocks}")
    used = samples[..., : blocks * (prefix + size)].astype(np.complex64, copy=False)
    # [..., blocks, num_subcarriers]
    grid = scipy.fft.fft(used.reshape(*lead, blocks, prefix + size)[..., prefix:], norm="ortho")
    amplitude = np.float32(math.sqrt(waveform.num_active / size))
    # [..., blocks, num_active]
    symbols = np.empty((*lead, blocks, waveform.num_active), np.complex64)
    np.multiply(grid[..., 1 : half + 1], amplitude, out=symbols[..., :half])
    np.multiply(grid[..., size - half :], amplitude, out=symbols[..., half:])
    flat = symbols.reshape(*lead, blocks * waveform.num_active)
    return flat if num_symbols is None else flat[..., :num_symbols]


def body_power_w(samples: np.ndarray, waveform: WaveformSpec) -> float:
    """Average power of a burst.

    A burst of whole OFDM blocks is averaged over the blocks' bodies: the prefix repeats samples, so its power is that
    of the bodies in expectation but not burst by burst. Any other burst is averaged over all of its samples.

    Args:
        samples: shape [num_samples].
        waveform: numerology.

    Returns:
        watts; 0 for an empty burst.
    """
    block = waveform.num_subcarriers + waveform.cyclic_prefix
    body = np.asarray(samples)
    if body.size == 0:
        return 0.0
    if body.size % block == 0:
        body = body.reshape(-1, block)[:, waveform.cyclic_prefix :]
    squared = np.square(body.real) + np.square(body.imag)
    return float(np.mean(squared, dtype=np.float64))


def pack_values(values: np.ndarray) -> np.ndarray:
    """Two real values on the in-phase and quadrature part of one symbol.

    s = (v_I + j v_Q) / sqrt(2): values of unit variance give symbols of unit power.

    Args:
        values: shape [..., num_values]; an odd length is padded with one zero.

    Returns:
        shape [..., ceil(num_values / 2)], complex64.
    """
    values = np.asarray(values, dtype=np.float32)
    lead, count = values.shape[:-1], values.shape[-1]
    scaled = np.zeros((*lead, 2 * num_symbols_of(count)), np.float32)
    np.multiply(values, np.float32(math.sqrt(0.5)), out=scaled[..., :count])
    return scaled.view(np.complex64)


def unpack_values(symbols: np.ndarray, num_values: int) -> np.ndarray:
    """The inverse of `pack_values`.

    Args:
        symbols: shape [..., num_symbols].
        num_values: length before packing.

    Returns:
        shape [..., num_values], float32.

    Raises:
        ValueError: there are fewer symbols than the values need.
    """
    symbols = np.asarray(symbols)
    needed = num_symbols_of(num_values)
    if symbols.shape[-1] < needed:
        raise ValueError(f"{num_values} values need {needed} symbols, {symbols.shape[-1]} are given")
    scaled = np.multiply(symbols[..., :needed], np.float32(math.sqrt(2.0)), dtype=np.complex64)
    return scaled.view(np.float32)[..., :num_values]


def window_advance(waveform: WaveformSpec) -> int:
    """Samples by which a coherent receiver begins its FFT window inside the prefix: a quarter of it.

    A signal up to this much early, or up to the rest of the prefix late, is still read without inter-symbol
    interference. Soundings and data use the same advance, so a measured response holds for the data.
    """
    return waveform.cyclic_prefix // 4


def demodulate_at(
    samples: np.ndarray, starts: np.ndarray, waveform: WaveformSpec, *, advance: int = 0, cfo: float = 0.0
) -> np.ndarray:
    """Read the blocks that begin at given samples, with the FFT window advanced into the prefix.

    X_k = sqrt(num_active / num_subcarriers) exp(j 2 pi k advance / num_subcarriers) FFT(x exp(-j 2 pi cfo t)), unitary,
    t counting from the first of `samples`: the known phase of the advance is taken out.

    Args:
        samples: shape [..., num_samples].
        starts: index of the first sample of each block's prefix, shape [num_blocks].
        waveform: numerology.
        advance: samples by which the window begins before the prefix ends.
        cfo: carrier offset to take out, cycles per sample.

    Returns:
        shape [..., num_blocks, num_active], complex64.

    Raises:
        ValueError: a block lies outside the samples, or the advance outside the prefix.
    """
    size, half, prefix = waveform.num_subcarriers, waveform.num_active // 2, waveform.cyclic_prefix
    samples, starts = np.asarray(samples), np.asarray(starts, dtype=np.int64)
    if not 0 <= advance <= prefix:
        raise ValueError(f"advance = {advance} lies outside the prefix of {prefix} samples")
    symbols = np.empty((*samples.shape[:-1], len(starts), waveform.num_active), np.complex64)
    if not len(starts):
        return symbols
    first = starts + (prefix - advance)
    if first.min() < 0 or first.max() + size > samples.shape[-1]:
        raise ValueError(
            f"OFDM blocks from sample {starts.min()} to {starts.max()} lie outside {samples.shape[-1]} samples"
        )
    amplitude = math.sqrt(waveform.num_active / size)
    bins = np.concatenate([np.arange(1, half + 1), np.arange(-half, 0)])
    # [num_active]
    turn = (amplitude * np.exp(2j * np.pi / size * bins * advance)).astype(np.complex64)
    tone = np.exp(-2j * np.pi * cfo * np.arange(size)).astype(np.complex64)
    # [..., num_samples - num_subcarriers + 1, num_subcarriers], without a copy
    windows = np.lib.stride_tricks.sliding_window_view(samples, size, axis=-1)
    step = 2048  # blocks at once: the copies stay small
    for begin in range(0, len(starts), step):
        part = slice(begin, begin + step)
        # [..., step, num_subcarriers]
        taken = windows[..., first[part], :].astype(np.complex64, copy=False)
        if cfo:
            taken *= tone
        grid = scipy.fft.fft(taken, norm="ortho", overwrite_x=True)
        symbols[..., part, :half] = grid[..., 1 : half + 1]
        symbols[..., part, half:] = grid[..., size - half :]
        if cfo:
            phase = np.exp(-2j * np.pi * (cfo * first[part] % 1.0)).astype(np.complex64)
            symbols[..., part, :] *= phase[:, None]
        symbols[..., part, :] *= turn
    return symbols
