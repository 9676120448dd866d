"""Votes on the sign of every value: non-coherent on pairs of subcarriers (FSK-MV), and coherent with one bit (OBDA).

A node votes +1 or -1 on each value of its update, or abstains; the air adds the votes and the receiver takes the
majority. FSK-MV puts the vote into *which* of two neighbouring subcarriers carries energy, so neither the nodes nor the
receiver need a channel estimate or a phase. OBDA puts two votes on the real and imaginary part of one QPSK symbol and
needs precoders that align the nodes (`testbed.phy.precoding`).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc, comb, erfc

from testbed.core.bench import WaveformSpec
from testbed.phy.ofdm import pack_values, unpack_values


def signs(update: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """One vote on each value; values of small magnitude abstain.

    v = +1 where g > t, -1 where g < -t, 0 (absentee) where |g| <= t

    With t = 0 only a value of exactly 0 abstains.

    Args:
        update: g, shape [num_values].
        threshold: t, in units of the update; not negative.

    Returns:
        shape [num_values], int8.

    Raises:
        ValueError: the threshold is negative or not finite, or the update is not finite.

    Reference:
        A. Sahin, "A demonstration of over-the-air computation for federated edge learning", 2022, arXiv 2209.09954
        (absentee votes); J. Bernstein et al., "signSGD: compressed optimisation for non-convex problems", 2018.
    """
    update = np.asarray(update)
    if not 0 <= threshold < math.inf:
        raise ValueError(f"a vote's threshold cannot be {threshold:g}: give a magnitude, 0 or above")
    if not np.all(np.isfinite(update)):
        raise ValueError("the update holds values that are not finite; they have no sign to vote on")
    return (update > threshold).astype(np.int8) - (update < -threshold).astype(np.int8)


def fsk_num_symbols(num_values: int, waveform: WaveformSpec) -> int:
    """Complex symbols of a non-coherent vote: two for each value.

    With 192 active subcarriers a block carries 96 votes.

    Args:
        num_values: length of the update.
        waveform: numerology.

    Returns:
        2 num_values; `testbed.phy.ofdm.num_blocks` says how many OFDM blocks that is.

    Raises:
        ValueError: a pair would lie at the two edges of the band.
    """
    _check_pairs(waveform)
    return 2 * num_values


def fsk_symbols(votes: np.ndarray, waveform: WaveformSpec, *, seed: int) -> np.ndarray:
    """One vote on each pair of neighbouring active subcarriers, as energy on the first or on the second.

    (s[2i], s[2i+1]) = sqrt(2) e^{j phi_i} (1, 0) for v_i = +1,  (0, 1) for v_i = -1,  (0, 0) for v_i = 0

    The phases phi_i are uniform and independent, so votes that agree do not pile up to peaks in time. They carry no
    information; nodes should draw them from different seeds. A full ballot has unit mean power, an abstention saves its
    share of it.

    Args:
        votes: v, shape [num_values]; -1, 0 or +1.
        waveform: numerology.
        seed: of the phases.

    Returns:
        shape [2 num_values], complex64, in the order of `testbed.phy.ofdm.modulate`.

    Raises:
        ValueError: a pair would lie at the two edges of the band.

    Reference:
        A. Sahin, B. Everette, S. Hoque, "Distributed learning over a wireless network with FSK-based majority vote",
        2021, arXiv 2111.01850; A. Sahin, 2022, arXiv 2209.09954 (the arrangement on OFDM).
    """
    _check_pairs(waveform)
    votes = np.asarray(votes)
    turns = np.random.default_rng(seed).random(len(votes), dtype=np.float32)
    # [num_values]
    phasors = np.float32(math.sqrt(2.0)) * np.exp(np.complex64(2j * math.pi) * turns)
    # [num_values, 2]
    pairs = np.zeros((len(votes), 2), np.complex64)
    np.multiply(phasors, votes > 0, out=pairs[:, 0])
    np.multiply(phasors, votes < 0, out=pairs[:, 1])
    return pairs.reshape(-1)


def fsk_decide(
    symbols: np.ndarray, num_values: int, antenna_weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The majority's signs from the energies on each pair of subcarriers.

    e_i^+ = sum_n w_n |y_n[2i]|^2,   e_i^- = sum_n w_n |y_n[2i+1]|^2,   vote_i = sgn(e_i^+ - e_i^-)

    Antennas are added after the square, since their phases are unknown.

    Args:
        symbols: demodulated symbols y, shape [num_antennas, num_symbols].
        num_values: how many votes to read.
        antenna_weight: w, not negative, shape [num_antennas]: one over the noise power where antennas are unlike; all
            ones if None.

    Returns:
        votes [num_values] int8, -1 or +1 and 0 on an exact tie only; energies [2, num_values] float32, first e^+.

    Raises:
        ValueError: there are too few symbols, or the weights do not fit the antennas or are negative.

    Reference:
        A. Sahin, 2022, arXiv 2209.09954. Weighing antennas is our addition; equal weights are the paper's detector.
    """
    symbols = np.atleast_2d(np.asarray(symbols))
    if symbols.shape[-1] < 2 * num_values:
        raise ValueError(f"{num_values} votes need {2 * num_values} symbols, {symbols.shape[-1]} are given")
    used = symbols[:, : 2 * num_values]
    # [num_antennas, 2 * num_values]
    power = np.square(used.real) + np.square(used.imag)
    weight = np.ones(len(symbols)) if antenna_weight is None else np.asarray(antenna_weight, dtype=np.float64)
    if weight.shape != (len(symbols),) or not np.all(weight >= 0):
        raise ValueError(f"{len(symbols)} antennas need as many weights, none negative; they have shape {weight.shape}")
    # [2, num_values]
    energies = np.ascontiguousarray((weight.astype(np.float32) @ power).reshape(-1, 2).T, dtype=np.float32)
    return (energies[0] > energies[1]).astype(np.int8) - (energies[0] < energies[1]).astype(np.int8), energies


def fsk_vote_error(
    num_plus: np.ndarray | int, num_minus: np.ndarray | int, snr: np.ndarray | float, num_antennas: int
) -> np.ndarray:
    """Probability that a non-coherent vote goes against the majority, under independent Rayleigh fading.

    P = I_x(N, N),   x = (1 + K_min snr) / (2 + (K_plus + K_minus) snr),   K_min = min(K_plus, K_minus)

    Every node's channel to every antenna is an independent complex Gaussian, so the two energies are independent
    Gamma(N) variables of mean N (1 + K snr) in units of the noise; their ratio follows the F distribution. I is the
    regularised incomplete beta function. A tie of the voters counts as an error half of the time.

    Args:
        num_plus: K_plus, nodes that vote +1.
        num_minus: K_minus, nodes that vote -1.
        snr: mean energy of one node's active subcarrier over the noise of one symbol and antenna, E_s / N_0. A node of
            average power P puts 2 P on it: snr = 2 P E|h|^2 / noise_w.
        num_antennas: N.

    Returns:
        broadcast shape of the arguments.

    Raises:
        ValueError: a negative number of voters or SNR, or no antenna.

    Reference:
        A. Sahin, B. Everette, S. Hoque, 2021, arXiv 2111.01850 (one antenna: exponential energies). More antennas by
        the same argument.
    """
    plus, minus, ratio = _checked(num_plus, num_minus, snr)
    _check_antennas(num_antennas)
    share = (1.0 + np.minimum(plus, minus) * ratio) / (2.0 + (plus + minus) * ratio)
    return np.asarray(betainc(num_antennas, num_antennas, share))


def fsk_vote_error_awgn(snr: np.ndarray | float, num_antennas: int = 1) -> np.ndarray:
    """Probability that one node's non-coherent vote is misread over channels that do not fade.

    P = 2^{1-2N} e^{-N snr/2} sum_{k=0}^{N-1} c_k (N snr/2)^k,   c_k = (1/k!) sum_{n=0}^{N-1-k} C(2N-1, n)

    With one antenna this is the e^{-snr/2} / 2 of non-coherent orthogonal signalling.

    Args:
        snr: energy of the active subcarrier over the noise of one symbol, the same at every antenna; a node of average
            power P puts 2 P on it: snr = 2 P |h|^2 / noise_w. With unlike antennas the mean over them.
        num_antennas: N, combined by their energies.

    Returns:
        shape of snr.

    Raises:
        ValueError: a negative SNR, or no antenna.

    Reference:
        J. Proakis, M. Salehi, "Digital Communications", 5th ed. 2008, section 11.1 (multichannel binary signalling).
    """
    _check_antennas(num_antennas)
    ratio = np.asarray(snr, dtype=np.float64)
    if not np.all(ratio >= 0):
        raise ValueError("a signal-to-noise ratio cannot be negative")
    half = 0.5 * num_antennas * ratio
    total = np.zeros_like(half)
    for k in range(num_antennas):
        coefficient = float(np.sum(comb(2 * num_antennas - 1, np.arange(num_antennas - k)))) / math.factorial(k)
        total = total + coefficient * half**k
    return 2.0 ** (1 - 2 * num_antennas) * np.exp(-half) * total


def obda_symbols(votes: np.ndarray) -> np.ndarray:
    """Two votes on one QPSK symbol.

    s[i] = (v[2i] + j v[2i+1]) / sqrt(2); an abstention sends nothing on its rail

    Args:
        votes: v, shape [num_values]; -1, 0 or +1.

    Returns:
        shape [ceil(num_values / 2)], complex64; unit power where nobody abstains.

    Reference:
        G. Zhu, Y. Du, D. Gunduz, K. Huang, "One-bit over-the-air aggregation for communication-efficient federated edge
        learning", 2020, arXiv 2001.05713. Abstentions are our addition.
    """
    return pack_values(np.asarray(votes))


def obda_decide(symbols: np.ndarray, num_values: int) -> np.ndarray:
    """The majority's signs from the aligned sum of the nodes' QPSK symbols.

    vote[2i] = sgn(Re z[i]),   vote[2i+1] = sgn(Im z[i])

    Args:
        symbols: z = f^H y, shape [num_symbols].
        num_values: how many votes to read.

    Returns:
        shape [num_values], int8; 0 on an exact tie only.

    Raises:
        ValueError: there are fewer symbols than the votes need.

    Reference:
        G. Zhu, Y. Du, D. Gunduz, K. Huang, 2020, arXiv 2001.05713.
    """
    values = unpack_values(symbols, num_values)
    return (values > 0).astype(np.int8) - (values < 0).astype(np.int8)


def obda_vote_error(num_plus: np.ndarray | int, num_minus: np.ndarray | int, snr: np.ndarray | float) -> np.ndarray:
    """Probability that a coherent one-bit vote goes against the majority, for aligned nodes in white noise.

    P = Q(|K_plus - K_minus| sqrt(snr)),   Q(x) = erfc(x / sqrt(2)) / 2

    A node's rail carries half of its power and meets half of the noise. A tie counts as an error half of the time.

    Args:
        num_plus: K_plus, nodes that vote +1.
        num_minus: K_minus, nodes that vote -1.
        snr: power of one node's symbol after combining over the noise of one combined symbol:
            |f^H h_m b_m|^2 / noise_w for a combiner of unit norm, the same for every node.

    Returns:
        broadcast shape of the arguments.

    Raises:
        ValueError: a negative number of voters or SNR.

    Reference:
        G. Zhu, Y. Du, D. Gunduz, K. Huang, 2020, arXiv 2001.05713 (the channel model).
    """
    plus, minus, ratio = _checked(num_plus, num_minus, snr)
    return np.asarray(0.5 * erfc(np.abs(plus - minus) * np.sqrt(ratio / 2.0)))


def _check_pairs(waveform: WaveformSpec) -> None:
    # positive and negative frequencies are both paired from within only if each half is even
    if waveform.num_active % 4:
        raise ValueError(
            f"num_active = {waveform.num_active} leaves a pair of subcarriers at the two edges of the band, where the "
            "channel differs; votes on pairs need a multiple of 4"
        )


def _checked(
    num_plus: np.ndarray | int, num_minus: np.ndarray | int, snr: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    plus, minus = np.asarray(num_plus, dtype=np.float64), np.asarray(num_minus, dtype=np.float64)
    ratio = np.asarray(snr, dtype=np.float64)
    if not (np.all(plus >= 0) and np.all(minus >= 0) and np.all(ratio >= 0)):
        raise ValueError("numbers of voters and signal-to-noise ratios cannot be negative")
    return plus, minus, ratio


def _check_antennas(num_antennas: int) -> None:
    if num_antennas < 1:
        raise ValueError(f"a vote needs at least one antenna, not {num_antennas}")
