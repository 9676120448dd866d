"""Pilots, and the estimate of a flat channel and of the noise from them."""

from __future__ import annotations

import numpy as np

from testbed.core.bench import WaveformSpec


def pilot_symbols(num_pilots: int, waveform: WaveformSpec) -> np.ndarray:
    """A Zadoff-Chu sequence over the active subcarriers, repeated in every pilot block.

    p_n = exp(-j pi n^2 / num_active), n counting from the lowest frequency up: unit modulus in frequency and nearly
    constant envelope in time.

    Args:
        num_pilots: OFDM blocks.
        waveform: numerology.

    Returns:
        shape [num_pilots * num_active], complex64, in the subcarrier order of `testbed.phy.ofdm.modulate`.

    Reference:
        D. Chu, "Polyphase codes with good periodic correlation properties", IEEE Trans. Inf. Theory 1972.
    """
    index = np.arange(waveform.num_active, dtype=np.int64)
    # the phase in units of pi / num_active is periodic in 2 num_active; reducing it first keeps it exact
    sequence = np.exp(-1j * np.pi / waveform.num_active * (index * index % (2 * waveform.num_active)))
    # lowest frequency first -> positive frequencies first
    ordered = np.roll(sequence, waveform.num_active // 2)
    return np.tile(ordered, num_pilots).astype(np.complex64)


def estimate_channel(received: np.ndarray, pilots: np.ndarray, power_w: float) -> tuple[np.ndarray, float]:
    """Least-squares estimate of a frequency-flat channel, and the noise that is left over.

    h_n = sum_i conj(p_i) y_n[i] / (sqrt(P) S),   noise = sum_n sum_i |y_n[i] - sqrt(P) h_n p_i|^2 / (N (S - 1))

    Both are unbiased. The estimate of each antenna has variance E|h_n - true|^2 = noise / (P S), the noise estimate
    noise^2 / (N (S - 1)).

    Args:
        received: demodulated symbols y, shape [num_antennas, S].
        pilots: unit-modulus symbols p that were sent, shape [S].
        power_w: average transmit power P of the pilots, watts.

    Returns:
        channel [num_antennas] complex128, and noise power of one symbol and antenna in watts.

    Raises:
        ValueError: not as many symbols as pilots, fewer than two, or a power that is not positive.

    Reference:
        S. Kay, "Fundamentals of Statistical Signal Processing: Estimation Theory", 1993, chapters 4 and 8.
    """
    # [num_antennas, S]
    received = np.asarray(received, dtype=np.complex128)
    sent = np.sqrt(power_w) * np.asarray(pilots, dtype=np.complex128)
    count = len(sent)
    if count < 2 or received.shape[-1] != count or not power_w > 0:
        raise ValueError(f"no estimate from {received.shape[-1]} symbols and {count} pilots of {power_w:g} W")
    # [num_antennas]
    channel = received @ sent.conj() / (power_w * count)
    residual = received - channel[:, None] * sent
    noise_w = float(np.vdot(residual, residual).real) / (len(received) * (count - 1))
    return channel, noise_w
