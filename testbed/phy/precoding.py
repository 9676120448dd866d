"""What each node multiplies its symbols with, so that the air adds updates and not channels.

Node m sends b_m s_m; the combiner's output is sum_m g_m b_m s_m + f^H n with g_m = f^H h_m. The policies below choose
b_m. They differ in what they do about a weak g_m and in what they need to know:

- `uniform_forcing`: all nodes aligned, without bias; the weakest node sets the scale;
- `truncated_inversion`: the same, but a node stays silent where its channel is weak;
- `cotaf`: forcing with one normalisation for all nodes, so that none reports its mean or spread to the decoder;
- `phase_alignment`: full power, only phases aligned: louder, but each node counts by its channel.

A channel is flat, [num_antennas, num_nodes], or one for each active subcarrier, [num_antennas, num_nodes, num_active];
a combiner is one for all subcarriers, [num_antennas], or one for each, [num_active, num_antennas]. If either depends on
the subcarrier so do the precoders, and powers are averages over the active subcarriers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import exp1


@dataclass(frozen=True)
class Forcing:
    """Transmit coefficients, and the scale that the receiver divides by.

    Attributes:
        precoder: b_m, square-root watts, shape [num_nodes] or [num_nodes, num_active], complex128.
        scale: sqrt(eta).
        power_w: average of |b_m|^2 over the active subcarriers, shape [num_nodes].
    """

    precoder: np.ndarray
    scale: float
    power_w: np.ndarray


@dataclass(frozen=True)
class Truncated:
    """Forcing where the channel is good, silence where it is not.

    Attributes:
        forcing: coefficients, 0 where a node is silent.
        active: whose update a subcarrier carries, shape [num_nodes] or [num_nodes, num_active], bool.
        share: c_k = sum of D_m over the active nodes / sum of D_m over all, shape [] or [num_active]. The receiver
            divides by it; where it is 0 nothing is received.
    """

    forcing: Forcing
    active: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class Common:
    """Forcing with the same normalisation of every node's update.

    Attributes:
        mean: what every node subtracts: 0.
        std: what every node divides by.
        forcing: coefficients; its `power_w` bounds what is sent.
        sent_w: average power each node really sends, shape [num_nodes].
    """

    mean: float
    std: float
    forcing: Forcing
    sent_w: np.ndarray


@dataclass(frozen=True)
class Aligned:
    """Full power with aligned phases, and the weights that the channel makes of it.

    Attributes:
        forcing: coefficients, and the scale for which g_m b_m = scale * effective_m * nu_m.
        weight: average of `effective` over the active subcarriers, shape [num_nodes]; sums to 1.
        effective: weight of each node's update in what is received, shape [num_nodes] or [num_nodes, num_active].
        share: sum of `effective` over the nodes, shape [] or [num_active]; its average is 1.
    """

    forcing: Forcing
    weight: np.ndarray
    effective: np.ndarray
    share: np.ndarray


def uniform_forcing(
    channel: np.ndarray, combiner: np.ndarray, weight: np.ndarray, std: np.ndarray, max_power_w: np.ndarray
) -> Forcing:
    """Zero-forcing transmit coefficients with the largest scale that respects every power limit.

    b_m = sqrt(eta) D_m nu_m / (f^H h_m),   eta = min_m P_m |f^H h_m|^2 / (D_m nu_m)^2

    On subcarriers, |f^H h_m|^2 in eta is the harmonic mean over them: 1 / mean_k |f_k^H h_m[k]|^-2.

    The bottleneck node sends at its limit. A node whose update is constant (nu_m = 0, or D_m = 0) has nothing to
    send: its coefficient is 0 and it does not bound eta; its mean still counts at the receiver. If that holds for all,
    eta is that of unit D_m nu_m.

    Args:
        channel: h_m, shape [num_antennas, num_nodes] or [num_antennas, num_nodes, num_active].
        combiner: f, unit norm, shape [num_antennas] or [num_active, num_antennas].
        weight: D_m, shape [num_nodes].
        std: nu_m, standard deviation of each update's values, shape [num_nodes].
        max_power_w: P_m, watts, shape [num_nodes].

    Returns:
        coefficients, scale and powers.

    Raises:
        ValueError: the combiner does not hear a node that has something to send, a weight, standard deviation or
            power is negative, or arguments are not finite or do not fit together.

    Reference:
        X. Cao, G. Zhu, J. Xu, K. Huang, "Optimized power control for over-the-air computation in fading channels",
        2020; F. Moradi Kalarde, B. Liang, M. Dong et al., "Joint receive beamforming and device selection in
        federated learning with over-the-air aggregation", 2023. Inversion on each subcarrier: G. Zhu, Y. Wang,
        K. Huang, 2018, arXiv 1812.11494.
    """
    gain = _gain(channel, combiner)
    loudness, limit_w = _limits(gain, weight, std, max_power_w)
    return _inversion(gain, np.ones(gain.shape, bool), loudness, limit_w)


def truncated_inversion(
    channel: np.ndarray,
    combiner: np.ndarray,
    weight: np.ndarray,
    std: np.ndarray,
    max_power_w: np.ndarray,
    threshold: float,
    mean_gain: np.ndarray | None = None,
) -> Truncated:
    """Channel inversion that leaves weak subcarriers out: broadband analogue aggregation.

    b_m[k] = sqrt(eta) D_m nu_m / g_m[k]  where |g_m[k]|^2 >= g_th G_m,  0 elsewhere
    eta = min_m P_m / ((D_m nu_m)^2 mean_k [active / |g_m[k]|^2])

    Silence in deep fades frees the power that inverting them would cost, at the price of updates that are missing
    there. The receiver divides subcarrier k by the weights that are active on it, so the estimate stays a mean of
    updates, but of fewer nodes. Where channel and combiner are flat whole nodes are left out. A node with nothing to
    send (D_m nu_m = 0) counts as active: its update is known from its mean.

    Args:
        channel, combiner, weight, std, max_power_w: as of `uniform_forcing`.
        threshold: g_th, relative to G_m; 0 truncates nothing.
        mean_gain: G_m, shape [num_nodes]; the mean over subcarriers of each node's |g_m[k]|^2 if None, and where all is
            flat the mean over the nodes.

    Returns:
        coefficients, who is active where, and the active share of the weights.

    Raises:
        ValueError: as of `uniform_forcing`; the threshold is negative, or so high that nobody sends.

    Reference:
        G. Zhu, Y. Wang, K. Huang, "Broadband analog aggregation for low-latency federated edge learning", 2018,
        arXiv 1812.11494. Weights, the combiner and the receiver's division by the active share are our additions.
    """
    if not 0 <= threshold < math.inf:
        raise ValueError(f"a truncation threshold cannot be {threshold:g}: give 0 or above")
    gain = _gain(channel, combiner)
    loudness, limit_w = _limits(gain, weight, std, max_power_w)
    power_gain = np.abs(gain) ** 2
    if mean_gain is not None:
        reference = np.asarray(mean_gain, dtype=np.float64)
        if reference.shape != (len(gain),) or not np.all(np.isfinite(reference) & (reference >= 0)):
            raise ValueError(f"mean_gain needs one value, not negative, for each of {len(gain)} nodes")
    else:
        reference = power_gain.mean(axis=1) if gain.ndim == 2 else np.full(len(gain), power_gain.mean())
    passes = (power_gain >= threshold * _column(reference, gain)) & (power_gain > 0)
    sends = loudness > 0
    if not np.any(passes[sends] if np.any(sends) else passes):
        raise ValueError(f"the truncation threshold {threshold:g} silences every node; lower it")
    active = passes | ~_column(sends, gain)
    weights = np.broadcast_to(np.asarray(weight, dtype=np.float64), loudness.shape)
    total = float(np.sum(weights))
    share = weights @ active / total if total > 0 else np.ones(gain.shape[1:])
    return Truncated(_inversion(gain, passes, loudness, limit_w), active, np.asarray(share))


def rayleigh_truncation(threshold: float) -> tuple[float, float]:
    """How often truncated inversion sends under Rayleigh fading, and what a unit of received power costs.

    P(|g|^2 >= g_th) = exp(-g_th),   E[1 / |g|^2; |g|^2 >= g_th] = E_1(g_th),   for E|g|^2 = 1

    Without truncation the cost is infinite: inverting all of a Rayleigh channel takes unbounded power.

    Args:
        threshold: g_th, relative to the mean gain.

    Returns:
        activation probability, and mean inverse gain over all subcarriers (silent ones cost nothing).

    Raises:
        ValueError: the threshold is negative.

    Reference:
        G. Zhu, Y. Wang, K. Huang, 2018, arXiv 1812.11494.
    """
    if not threshold >= 0:
        raise ValueError(f"a truncation threshold cannot be {threshold:g}: give 0 or above")
    return math.exp(-threshold), float(exp1(threshold))


def cotaf(
    channel: np.ndarray,
    combiner: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    max_power_w: np.ndarray,
) -> Common:
    """One precoding factor for all nodes, from the largest update.

    p = P / max_m E||Delta_m||^2:  every node sends b_m Delta_m / nu,  nu = max_m sqrt(mean_m^2 + std_m^2)

    As the updates shrink over the rounds p grows, so the noise fades with them. The decoder needs p alone, no mean or
    spread of any node. Nodes with smaller updates send below what their coefficient allows.

    Args:
        channel, combiner, weight, max_power_w: as of `uniform_forcing`.
        mean, std: of each update's values, shape [num_nodes].

    Returns:
        the common mean 0 and divisor nu, coefficients, and the powers really sent.

    Raises:
        ValueError: as of `uniform_forcing`; or all updates are zero.

    Reference:
        T. Sery, N. Shlezinger, K. Cohen, Y. Eldar, "Over-the-air federated learning from heterogeneous data", IEEE
        Trans. Signal Process. 2021. The paper takes the expectation of the norm and equal weights over channels of unit
        gain; measuring the norm in each round, weights, and forcing through the channel are our choices.
    """
    gain = _gain(channel, combiner)
    # [num_nodes]
    rms = np.broadcast_to(np.hypot(np.asarray(mean, np.float64), np.asarray(std, np.float64)), (len(gain),))
    largest = float(np.max(rms))
    if not 0 < largest < math.inf:
        raise ValueError("all updates are zero or one is not finite; there is no common precoding factor")
    loudness, limit_w = _limits(gain, weight, np.full(len(gain), largest), max_power_w)
    forcing = _inversion(gain, np.ones(gain.shape, bool), loudness, limit_w)
    return Common(mean=0.0, std=largest, forcing=forcing, sent_w=forcing.power_w * (rms / largest) ** 2)


def phase_alignment(channel: np.ndarray, combiner: np.ndarray, std: np.ndarray, max_power_w: np.ndarray) -> Aligned:
    """Every node at its full power with its phase aligned: equal-gain transmission.

    b_m = sqrt(P_m) exp(-j arg g_m),   w_m = |g_m| sqrt(P_m) / nu_m,   scale = sum_m w_m,  weight_m = w_m / scale

    No node waits for the weakest, so the sum is as loud as the power limits allow. The price is a bias: what arrives is
    sum_m weight_m Delta_m, in which near nodes and small updates count for more, instead of the mean by D_m. It differs
    from that mean by sum_m (weight_m - D_m / D_S) Delta_m, which no averaging over noise removes. It vanishes where
    updates agree.

    Args:
        channel, combiner, max_power_w: as of `uniform_forcing`.
        std: nu_m, what each node divides its update by, positive, shape [num_nodes]; one value for all makes the
            weights those of channel and power alone.

    Returns:
        coefficients, and the weights with which the updates arrive. On subcarriers the weights vary; `share` says what
        to divide each one by.

    Raises:
        ValueError: the combiner does not hear a node, a standard deviation or power is not positive, or arguments are
            not finite or do not fit together.

    Reference:
        R. Mudumbai, G. Barriac, U. Madhow, "On the feasibility of distributed beamforming in wireless networks", 2007
        (phases only, at full power). The account of the weights is ours.
    """
    gain = _gain(channel, combiner)
    loudness, limit_w = _limits(gain, np.ones(len(gain)), std, max_power_w)
    if np.any(loudness == 0) or np.any(limit_w == 0):
        raise ValueError("phase alignment needs a positive standard deviation and power limit of every node")
    silent = np.abs(gain) == 0.0
    if np.any(silent):
        raise _deaf(silent)
    amplitude = _column(np.sqrt(limit_w), gain)
    precoder = amplitude * np.conj(gain) / np.abs(gain)
    received = np.abs(gain) * amplitude / _column(loudness, gain)
    # [num_nodes]
    mean_received = received.mean(axis=1) if gain.ndim == 2 else received
    scale = float(np.sum(mean_received))
    effective = received / scale
    return Aligned(
        forcing=Forcing(precoder=precoder, scale=scale, power_w=_mean_power(precoder)),
        weight=mean_received / scale,
        effective=effective,
        share=np.asarray(np.sum(effective, axis=0)),
    )


def quantise_phase(precoder: np.ndarray, bits: int) -> np.ndarray:
    """Precoders as a phase feedback of few bits would tell them: angle rounded, amplitude kept.

    b' = |b| exp(j q round(arg b / q)),   q = 2 pi / 2^bits

    Args:
        precoder: b, any shape.
        bits: of each phase.

    Returns:
        same shape, complex128.

    Raises:
        ValueError: fewer than one bit, or a precoder that is not finite.

    Reference:
        "Hybrid channel estimation with quantized phase feedback for over-the-air computation", arXiv 2601.16054:
        amplitudes known exactly, phases fed back with few bits, alone or beside an estimate from reciprocity. What is
        here is the plain case, a uniform quantiser of the whole phase; rounding the precoder's phase at the
        controller, in place of a feedback channel, is our choice. A. Sahin, "On the feasibility of distributed phase
        synchronization for coherent signal superposition", arXiv 2506.22252, needs no feedback: its phase-coded pilots
        go to and fro, which cancels the phase of the round trip. That exchange is not modelled here.
    """
    if bits < 1:
        raise ValueError(f"a phase needs at least one bit, not {bits}")
    precoder = np.asarray(precoder, dtype=np.complex128)
    if not np.all(np.isfinite(precoder)):
        raise ValueError("a precoder is not finite")
    step = 2.0 * math.pi / 2**bits
    return np.abs(precoder) * np.exp(1j * step * np.round(np.angle(precoder) / step))


def phase_feedback_gain(bits: int) -> float:
    """Mean amplitude that is left of a coherent sum when phases are rounded to so many bits.

    E[exp(j phi)] = sin(pi / 2^bits) / (pi / 2^bits),   phi uniform within half a step

    The squared error of a node's contribution, relative to its power, is 2 (1 - gain).

    Args:
        bits: of each phase.

    Returns:
        amplitude gain, at most 1: 0.637, 0.900, 0.974, 0.994 for 1, 2, 3, 4 bits.

    Raises:
        ValueError: fewer than one bit.

    Reference:
        R. Mudumbai, G. Barriac, U. Madhow, "On the feasibility of distributed beamforming in wireless networks", 2007
        (mean gain under phase errors), with the uniform errors of `quantise_phase`.
    """
    if bits < 1:
        raise ValueError(f"a phase needs at least one bit, not {bits}")
    return float(np.sinc(0.5**bits))


def _gain(channel: np.ndarray, combiner: np.ndarray) -> np.ndarray:
    """g_m = f^H h_m, shape [num_nodes] or [num_nodes, num_active]."""
    channel, combiner = np.asarray(channel, dtype=np.complex128), np.asarray(combiner, dtype=np.complex128)
    fits = (
        channel.ndim in (2, 3)
        and combiner.ndim in (1, 2)
        and channel.shape[0] == combiner.shape[-1]
        and (channel.ndim == 2 or combiner.ndim == 1 or channel.shape[2] == combiner.shape[0])
        and channel.shape[1] > 0
    )
    if not fits:
        raise ValueError(
            f"a channel of shape {list(channel.shape)} and a combiner of shape {list(combiner.shape)} do not fit: give "
            "[num_antennas, num_nodes] or [num_antennas, num_nodes, num_active], and [num_antennas] or "
            "[num_active, num_antennas]"
        )
    if not (np.all(np.isfinite(channel)) and np.all(np.isfinite(combiner))):
        raise ValueError("a channel or the combiner is not finite")
    if channel.ndim == 2:
        return np.asarray((combiner.conj() @ channel).T)
    if combiner.ndim == 1:
        return np.asarray(np.tensordot(combiner.conj(), channel, axes=1))
    return np.einsum("sn,nms->ms", combiner.conj(), channel)


def _limits(
    gain: np.ndarray, weight: np.ndarray, std: np.ndarray, max_power_w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """D_m nu_m and P_m, both [num_nodes]."""
    weight, std = np.asarray(weight, dtype=np.float64), np.asarray(std, dtype=np.float64)
    limit_w = np.asarray(max_power_w, dtype=np.float64)
    for name, values in (("weights", weight), ("standard deviations", std), ("power limits", limit_w)):
        if values.shape not in ((), (len(gain),)):
            raise ValueError(f"{name} of shape {list(values.shape)} do not fit {len(gain)} nodes")
        if np.any(values < 0):
            raise ValueError(f"{name} cannot be negative")
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{name} must be finite")
    return np.broadcast_to(weight * std, (len(gain),)), np.broadcast_to(limit_w, (len(gain),))


def _inversion(gain: np.ndarray, passes: np.ndarray, loudness: np.ndarray, limit_w: np.ndarray) -> Forcing:
    """Invert the gain wherever it passes, with the largest common scale."""
    amplitude = np.abs(gain)
    sends, heard = loudness > 0, amplitude > 0
    deaf = _column(sends, gain) & passes & ~heard
    if np.any(deaf):
        raise _deaf(deaf)
    inverted = passes & heard
    # [num_nodes]
    counts = inverted
    if gain.ndim == 2:
        # what inversion costs on average; silence costs nothing
        inverse = np.divide(1.0, amplitude, out=np.zeros_like(amplitude), where=inverted)
        amplitude = 1.0 / np.sqrt(np.mean(inverse**2, axis=1), where=inverted.any(axis=1), out=np.ones(len(gain)))
        counts = inverted.any(axis=1)
    bounds = sends & counts if np.any(sends) else counts
    if not np.any(bounds):
        raise _deaf(~inverted)
    scale = float(np.sqrt(np.min(limit_w[bounds] * (amplitude / np.where(sends, loudness, 1.0))[bounds] ** 2)))
    speaks = inverted & _column(sends, gain)
    precoder = np.where(speaks, scale * _column(loudness, gain) / np.where(speaks, gain, 1.0), 0.0)
    return Forcing(precoder=precoder, scale=scale, power_w=_mean_power(precoder))


def _deaf(silent: np.ndarray) -> ValueError:
    nodes = silent.any(axis=1) if silent.ndim == 2 else silent
    return ValueError(
        f"the combiner does not hear the nodes with index {np.flatnonzero(nodes).tolist()}; "
        "leave them out or choose another"
    )


def _mean_power(precoder: np.ndarray) -> np.ndarray:
    power_w = np.abs(precoder) ** 2
    return power_w.mean(axis=1) if power_w.ndim == 2 else power_w


def _column(values: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Per-node values, shaped to go with the gains."""
    return values[:, None] if gain.ndim == 2 else values
