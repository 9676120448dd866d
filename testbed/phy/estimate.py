"""Pilots, and what is estimated from them: a flat channel, the noise, a delay and a rotation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft

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
    return np.tile(_pilot_block(waveform.num_active), num_pilots)


@lru_cache(maxsize=8)
def _pilot_block(num_active: int) -> np.ndarray:
    """One block's pilots, shape [num_active], complex64."""
    index = np.arange(num_active, dtype=np.int64)
    # the phase in units of pi / num_active is periodic in 2 num_active; reducing it first keeps it exact
    sequence = np.exp(-1j * np.pi / num_active * (index * index % (2 * num_active)))
    # lowest frequency first -> positive frequencies first
    return np.roll(sequence, num_active // 2).astype(np.complex64)


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


def delay_response(lag: np.ndarray | float, waveform: WaveformSpec) -> np.ndarray:
    """What a delay does to every active subcarrier.

    H_k = exp(-j 2 pi k delay / num_subcarriers)

    Args:
        lag: samples, shape [...].
        waveform: numerology.

    Returns:
        shape [..., num_active], complex64, in the subcarrier order of `testbed.phy.ofdm.modulate`.
    """
    half, step = waveform.num_active // 2, 16
    # [..., 1]
    angle = -2 * np.pi / waveform.num_subcarriers * np.asarray(lag, dtype=np.float64)[..., None]
    # k = 16 q + r: two short tables and their products replace an exponential for every subcarrier
    coarse = np.exp(1j * angle * (step * np.arange(half // step + 1))).astype(np.complex64)
    fine = np.exp(1j * angle * np.arange(step)).astype(np.complex64)
    # [..., num_active / 2], subcarriers 1 .. num_active / 2
    upper = (coarse[..., :, None] * fine[..., None, :]).reshape(*angle.shape[:-1], -1)[..., 1 : half + 1]
    return np.concatenate([upper, upper[..., ::-1].conj()], axis=-1)


def estimate_delay(response: np.ndarray, waveform: WaveformSpec, *, limit: float) -> np.ndarray:
    """Maximum-likelihood delay of a channel that is flat but for the delay, with a phase of its own at each antenna.

    delay = argmax_t sum_n |sum_k H_nk exp(j 2 pi k t / num_subcarriers)|^2,   |t| <= limit

    Its variance reaches the Cramer-Rao bound (num_subcarriers / 2 pi)^2 / (2 snr sum_k k^2) with snr summed over
    antennas: a maximum on a grid of quarter samples, then Newton's steps.

    Args:
        response: H, shape [..., num_antennas, num_active].
        waveform: numerology.
        limit: largest delay that is looked for, samples.

    Returns:
        samples, shape [...].

    Reference:
        S. Kay, "Fundamentals of Statistical Signal Processing: Estimation Theory", 1993, example 3.13.
    """
    response = np.asarray(response, dtype=np.complex64)
    half, size = waveform.num_active // 2, 4 * waveform.num_subcarriers
    reach = min(int(4 * limit), size // 2 - 1)
    # [..., num_antennas, 4 num_subcarriers]
    grid = np.zeros((*response.shape[:-1], size), np.complex64)
    grid[..., 1 : half + 1], grid[..., size - half :] = response[..., :half], response[..., half:]
    profile = np.square(np.abs(scipy.fft.ifft(grid, overwrite_x=True))).sum(axis=-2)
    # [..., 2 reach + 1]
    near = np.concatenate([profile[..., size - reach :], profile[..., : reach + 1]], axis=-1)
    lag = (np.argmax(near, axis=-1) - reach) / 4.0
    # radians per sample of delay, [num_active]
    slope = 2 * np.pi / waveform.num_subcarriers * _subcarriers(waveform)
    for _ in range(3):
        # [..., num_antennas, num_active]
        turned = response * delay_response(lag, waveform).conj()[..., None, :]
        total, first, second = turned.sum(-1), 1j * (turned @ slope), -(turned @ slope**2)
        gradient = np.sum((total.conj() * first).real, axis=-1)
        curvature = np.sum(np.abs(first) ** 2 + (total.conj() * second).real, axis=-1)
        step = np.divide(-gradient, curvature, out=np.zeros_like(gradient), where=curvature < 0)
        lag = lag + np.clip(step, -0.25, 0.25)
    return np.clip(lag, -limit, limit)


def estimate_rotation(blocks: np.ndarray) -> float:
    """Maximum-likelihood phase advance from one repeated block to the next, through an unknown channel.

    w = argmax sum_i |sum_b Y_b[i] exp(-j w b)|^2, i over antennas and subcarriers: each block is the one before it,
    turned by w, and noise.

    Args:
        blocks: the same symbols received again and again, shape [num_antennas, num_blocks, num_active].

    Returns:
        radians in [-pi, pi].

    Raises:
        ValueError: fewer than two blocks.

    Reference:
        M. Luise, R. Reggiannini, "Carrier frequency recovery in all-digital modems for burst-mode transmissions",
        IEEE Trans. Commun. 1995, for the correlations over all lags.
    """
    blocks = np.asarray(blocks)
    count = blocks.shape[-2]
    if count < 2:
        raise ValueError("the rotation of one block is unknown; give two or more")
    # [num_blocks, num_blocks]
    gram = np.einsum("nbk,nck->bc", blocks.conj(), blocks, dtype=np.complex128)
    # sum of the products of blocks that lie 1, 2, ... apart, [num_blocks - 1]
    lags = np.arange(1, count)
    correlation = np.array([np.trace(gram, offset=int(lag)) for lag in lags])
    angles = np.linspace(-np.pi, np.pi, 16 * count, endpoint=False)
    likelihood = (np.exp(-1j * np.outer(angles, lags)) @ correlation).real
    angle = float(angles[np.argmax(likelihood)])
    for _ in range(4):
        turned = correlation * np.exp(-1j * angle * lags)
        curvature = -float(lags**2 @ turned.real)
        if curvature >= 0:
            break
        angle -= float(lags @ turned.imag) / curvature
    return float(np.angle(np.exp(1j * angle)))


def _subcarriers(waveform: WaveformSpec) -> np.ndarray:
    """Indices of the active subcarriers, in the order of `testbed.phy.ofdm.modulate`."""
    half = waveform.num_active // 2
    return np.concatenate([np.arange(1, half + 1), np.arange(-half, 0)])


def within_prefix(response: np.ndarray, waveform: WaveformSpec) -> np.ndarray:
    """The part of a channel estimate that echoes within the cyclic prefix can explain.

    H' = U U^H H, U the eigenvectors of R[k, l] = sinc(w (k - l)) exp(-j 2 pi c (k - l)), w and c the width and the
    middle of the delays that suffer no inter-symbol interference, as shares of a block. Noise falls to rank(U) /
    num_active of what it was.

    Args:
        response: estimate on the active subcarriers, shape [..., num_active].
        waveform: numerology.

    Returns:
        same shape, complex64.

    Reference:
        Y. Li, L. Cimini, N. Sollenberger, "Robust channel estimation for OFDM systems with rapid dispersive fading
        channels", IEEE Trans. Commun. 1998: the delay profile is taken as uniform over the prefix, and the noise as
        small.
    """
    basis = _prefix_basis(waveform.num_subcarriers, waveform.num_active, waveform.cyclic_prefix)
    explained: np.ndarray = (np.asarray(response, np.complex64) @ basis.conj()) @ basis.T
    return explained


@lru_cache(maxsize=8)
def _prefix_basis(num_subcarriers: int, num_active: int, cyclic_prefix: int) -> np.ndarray:
    """Eigenvectors that carry all but one part in a billion, shape [num_active, rank], complex64."""
    half = num_active // 2
    index = np.concatenate([np.arange(1, half + 1), np.arange(-half, 0)])
    early = cyclic_prefix // 4  # the windows of soundings begin that much before the end of the prefix
    width = (cyclic_prefix + 1) / num_subcarriers
    middle = ((cyclic_prefix - early) - early) / 2 / num_subcarriers
    apart = index[:, None] - index
    strength, vectors = np.linalg.eigh(np.sinc(width * apart) * np.exp(-2j * np.pi * middle * apart))
    return vectors[:, strength > 1e-9 * strength[-1]].astype(np.complex64)
