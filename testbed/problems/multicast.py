"""One receive combiner that serves the weakest node as well as it can, and how near it is to the optimum.

    maximise over ||f|| = 1   q = min_k |f^H h_k|^2

is the same as the least-norm vector z = f / sqrt(q) with |z^H h_k| >= 1 for all k: multicast beamforming of one group.
For one and two nodes it is in closed form. For more it is climbed by successive convex approximation: around z_0, with
c_k = z_0^H h_k, the constraint is tightened to Re{(c_k^* h_k)^H z} >= (1 + |c_k|^2) / 2, a least-distance programme
in 2N real variables; Newton steps on the first-order conditions end the climb, from several starts.

The receive combiner as a multicast beamformer is published (arXiv 2302.14336); the closed form for two nodes, the
starts and the Newton steps are this project's.

Reference: N. Sidiropoulos, T. Davidson, Z.-Q. Luo, "Transmit beamforming for physical-layer multicasting", IEEE Trans.
Signal Process. 2006; F. Kalarde, M. Dong, B. Liang et al., arXiv 2302.14336.
"""

from __future__ import annotations

import numpy as np

from testbed.opt.kkt import stationarity
from testbed.opt.least_distance import least_distance
from testbed.opt.solution import Solution

_SCREENING_STEPS, _STEPS, _TURNS = 3, 12, 20
_KEPT = 5
_SUMS, _SUMS_KEPT = 256, 8
_PRIMES = np.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0, 31.0, 37.0])
_HEARD = 1e-12
"""Gain of the node heard worst, over its own channel's, from which a combiner is a start."""
_SETTLED = 1e-10
_STATIONARY, _POLISHED = 1e-4, 1e-8
_ACTIVE = 1e-6


def weakest_gain(channel: np.ndarray, combiner: np.ndarray) -> float:
    """min over k of |f^H h_k|^2 / ||f||^2.

    Args:
        channel: h_k, shape [num_antennas, num_nodes].
        combiner: f, any norm but zero, shape [num_antennas].
    """
    heard = combiner.conj() @ channel
    return float(np.min(heard.real**2 + heard.imag**2) / np.vdot(combiner, combiner).real)


def pair_gain(first: np.ndarray, second: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Best gain of the weaker of two nodes, in closed form.

    q = min(n_1, n_2) where c >= min(n_1, n_2), else (n_1 n_2 - c^2) / (n_1 + n_2 - 2 c)

    Args:
        first, second: n_1 = ||h_1||^2 and n_2 = ||h_2||^2, any shape.
        cross: c = |h_1^H h_2|, the same shape.
    """
    weaker = np.minimum(first, second)
    aligned = cross >= weaker
    spread = np.where(aligned, 1.0, first + second - 2.0 * cross)
    return np.where(aligned, weaker, (first * second - cross**2) / spread)


def multicast(channel: np.ndarray, *, start: np.ndarray | None = None) -> Solution[np.ndarray]:
    """Unit-norm combiner with the largest gain to the node that is heard worst.

    maximise over ||f|| = 1 the minimum over k of |f^H h_k|^2

    Exact for one node (maximum-ratio combining) and for two (closed form). For more it is the best of several climbs;
    for three the semidefinite relaxation is tight, so that it can be checked. The combiner does not depend on the
    channel's scale.

    Args:
        channel: h_k, shape [num_antennas, num_nodes], any scale.
        start: a further combiner to climb from, not zero, shape [num_antennas].

    Returns:
        f, shape [num_antennas]; `value` is q, `kkt_residual` is relative to it, `trace` is the winner's climb.

    Raises:
        ValueError: no nodes, or a node's channel is zero or not finite, or the start is zero, not finite or of another
            length.

    Reference:
        as the module; n_k, c and the closed form are in `pair_gain`.
    """
    channel, scale = _checked(channel, start)
    iterations = 0
    trace: tuple[float, ...] = ()
    if channel.shape[1] == 1:
        combiner = channel[:, 0]
    elif channel.shape[1] == 2:
        combiner = _serve_two(channel)
    else:
        combiner, trace, iterations = _serve_many(channel, start)
    # the phase of f is free: the first node is heard with a real amplitude
    heard = np.vdot(combiner, channel[:, 0])
    combiner = combiner * np.exp(1j * np.angle(heard)) / np.linalg.norm(combiner)
    value = weakest_gain(channel, combiner)
    residual = combiner_kkt(channel, combiner)
    exact = channel.shape[1] <= 2
    return Solution(
        point=combiner,
        value=value * scale**2,
        status="optimal" if exact else "stationary" if residual < _STATIONARY else "stalled",
        kkt_residual=residual,
        iterations=iterations,
        trace=tuple(level * scale**2 for level in trace) or (value * scale**2,),
    )


def improve_combiner(channel: np.ndarray, combiner: np.ndarray) -> np.ndarray:
    """The best combiner that a single climb reaches: exact for one and two nodes, never worse than where it begins.

    Args:
        channel: h_k, none zero, shape [num_antennas, num_nodes].
        combiner: shape [num_antennas].

    Returns:
        f, unit norm, shape [num_antennas].
    """
    if channel.shape[1] <= 2:
        best = channel[:, 0] if channel.shape[1] == 1 else _serve_two(channel)
        return best / np.linalg.norm(best)
    return _finish(channel / np.sqrt(np.min(np.sum(np.abs(channel) ** 2, axis=0))), combiner, [])[0]


def combiner_kkt(channel: np.ndarray, combiner: np.ndarray) -> float:
    """What the first-order conditions of the best combiner leave, relative to its gain.

    min over mu >= 0, sum mu = 1, of || P sum_k mu_k grad |f^H h_k|^2 || / q, k active, P the projection along f

    Args:
        channel: h_k, shape [num_antennas, num_nodes].
        combiner: f, unit norm, shape [num_antennas].
    """
    # [num_nodes]
    heard = combiner.conj() @ channel
    gain = np.abs(heard) ** 2
    active = gain <= gain.min() * (1.0 + _ACTIVE)
    # gradient of |f^H h|^2 in the real embedding: 2 c^* h, less its part along f
    slopes = 2.0 * (channel[:, active] * heard[active].conj()).T
    slopes = slopes - np.outer(slopes @ combiner.conj(), combiner)
    return stationarity(np.hstack([slopes.real, slopes.imag]), np.zeros((0, 2 * len(combiner)))).residual / gain.min()


def _checked(channel: np.ndarray, start: np.ndarray | None) -> tuple[np.ndarray, float]:
    """The channel over its scale, and the scale."""
    channel = np.asarray(channel, dtype=np.complex128)
    if channel.ndim != 2 or channel.size == 0:
        raise ValueError(f"a channel of shape {channel.shape} is none of [num_antennas, num_nodes] with a node")
    size = np.max(np.abs(channel), axis=0)
    if not np.isfinite(size).all():
        raise ValueError(f"the channels of nodes {np.flatnonzero(~np.isfinite(size)).tolist()} are not finite")
    if size.min() == 0.0:
        raise ValueError(
            f"the channels of nodes {np.flatnonzero(size == 0.0).tolist()} are zero: leave these nodes out"
        )
    if start is not None and (
        start.shape != (len(channel),) or not np.isfinite(start).all() or not np.abs(start).max() > 0
    ):
        raise ValueError(f"a start of shape {start.shape} is no finite combiner of {len(channel)} antennas")
    scale = float(size.min())
    channel = channel / scale
    power = float(np.min(np.sum(np.abs(channel) ** 2, axis=0)))
    return channel / np.sqrt(power), float(scale * np.sqrt(power))


def _serve_two(channel: np.ndarray) -> np.ndarray:
    """The weaker node's own combiner where the other hears it at least as well, else the one that serves both alike."""
    first, second = channel.T
    power = np.sum(np.abs(channel) ** 2, axis=0)
    cross = np.vdot(first, second)
    weaker = int(np.argmin(power))
    if abs(cross) >= power[weaker]:
        return channel[:, weaker]
    aligned = second * np.exp(-1j * np.angle(cross))
    return (power[1] - abs(cross)) * first + (power[0] - abs(cross)) * aligned


def start_combiners(channel: np.ndarray) -> np.ndarray:
    """Unit-norm combiners to begin from: each node's own, and a phase-aligned sum begun at each.

    Args:
        channel: shape [..., num_antennas, num_nodes].

    Returns:
        shape [..., 2 num_nodes, num_antennas].
    """
    # [..., num_nodes, num_antennas]
    norm = np.linalg.norm(channel, axis=-2)[..., None]
    own = np.swapaxes(channel, -1, -2) / np.maximum(norm, 1e-300)
    # correlation[i, k] = u_i^H u_k; node k joins the sum begun at i with the phase that i hears it in
    correlation = own.conj() @ np.swapaxes(own, -1, -2)
    turned = correlation.conj() / np.maximum(np.abs(correlation), 1e-300)
    sums = turned / np.maximum(np.swapaxes(norm, -1, -2), 1e-300) @ own
    sums /= np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-300)
    return np.concatenate([own, sums], axis=-2)


def _serve_many(channel: np.ndarray, start: np.ndarray | None) -> tuple[np.ndarray, tuple[float, ...], int]:
    """The best end of several climbs, its trace, and the steps of all together."""
    begun = list(start_combiners(channel))
    begun.append(np.linalg.svd(channel, full_matrices=False)[0][:, 0])
    begun += list(_best_sums(channel))
    if start is not None:
        begun.append(start)
    begun = [one for one in begun if weakest_gain(channel, one) > _HEARD]
    steps = 0
    ends: list[tuple[float, np.ndarray, list[float]]] = []
    for one in begun:
        combiner, trace = _climb(channel, one, _SCREENING_STEPS)
        steps += len(trace)
        ends.append((trace[-1], combiner, trace))
    ends.sort(key=lambda end: -end[0])
    finished = [_finish(channel, combiner, trace) for _, combiner, trace in ends[:_KEPT]]
    # ends that differ by rounding only are one: the first of them, whatever the scale
    best = max(end[1][-1] for end in finished)
    combiner, trace = next(end for end in finished if end[1][-1] >= best * (1.0 - _SETTLED))
    return combiner, tuple(trace), steps + sum(len(end[1]) for end in finished)


def _finish(channel: np.ndarray, combiner: np.ndarray, trace: list[float]) -> tuple[np.ndarray, list[float]]:
    """Climb and Newton steps in turn until the first-order conditions hold."""
    for _ in range(_TURNS):
        combiner, more = _climb(channel, combiner, _STEPS)
        combiner = polish(channel, combiner)
        trace = [*trace, *more, weakest_gain(channel, combiner)]
        if combiner_kkt(channel, combiner) < _POLISHED:
            break
    return combiner, trace


def _best_sums(channel: np.ndarray) -> np.ndarray:
    """The best of many sums of all nodes' channels, their phases spread evenly by a lattice of irrational steps."""
    nodes = np.arange(channel.shape[1])
    steps = np.sqrt(_PRIMES[nodes % len(_PRIMES)]) + np.pi * (nodes // len(_PRIMES))
    turns = np.exp(2j * np.pi * np.outer(np.arange(1, _SUMS + 1), steps))
    # [num_sums, num_antennas]
    sums = turns @ (channel / np.sum(np.abs(channel) ** 2, axis=0)).T
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-300)
    heard = sums.conj() @ channel
    return sums[np.argsort(-np.min(heard.real**2 + heard.imag**2, axis=1))[:_SUMS_KEPT]]


def _climb(channel: np.ndarray, combiner: np.ndarray, num_steps: int) -> tuple[np.ndarray, list[float]]:
    """Steps of successive convex approximation; the unit-norm combiner and its gain after each.

    With z_0 scaled so that min |z_0^H h_k| = 1, the tightened rows Re{(c_k^* ... )} are the real embedding of
    a_k = h_k c_k^*: a_k . z >= (1 + |c_k|^2) / 2.
    """
    z = combiner / np.sqrt(weakest_gain(channel, combiner)) / np.linalg.norm(combiner)
    trace: list[float] = []
    size = len(z)
    level = 0.0
    for _ in range(num_steps):
        heard = z.conj() @ channel
        turned = (channel * heard.conj()).T
        nearest = least_distance(np.hstack([turned.real, turned.imag]), 0.5 * (1.0 + np.abs(heard) ** 2))
        if nearest is None:
            break
        moved = nearest.point[:size] + 1j * nearest.point[size:]
        gain = weakest_gain(channel, moved)
        if gain <= level * (1.0 + _SETTLED):
            break
        level = gain
        trace.append(gain)
        z = moved / (np.sqrt(gain) * np.linalg.norm(moved))
    return z / np.linalg.norm(z), trace or [weakest_gain(channel, combiner)]


def polish(channel: np.ndarray, combiner: np.ndarray, num_steps: int = 6) -> np.ndarray:
    """Newton steps on the first-order conditions of the least-norm form, with the active nodes held.

    z = sum_k mu_k h_k h_k^H z,   |z^H h_k|^2 = 1 on the active set

    Args:
        channel: h_k, shape [num_antennas, num_nodes].
        combiner: near a stationary one, shape [num_antennas].
        num_steps: at most.

    Returns:
        unit-norm combiner, never worse than the one given, shape [num_antennas].
    """
    best, value = combiner / np.linalg.norm(combiner), weakest_gain(channel, combiner)
    z = best / np.sqrt(value)
    size = len(z)
    heard = z.conj() @ channel
    turned = (channel * heard.conj()).T
    nearest = least_distance(np.hstack([turned.real, turned.imag]), 0.5 * (1.0 + np.abs(heard) ** 2))
    if nearest is None:
        return best
    active = np.flatnonzero(nearest.multipliers > 1e-7 * nearest.multipliers.max())
    held, weights = channel[:, active], nearest.multipliers[active]
    # real embedding of h h^H for every active node, shape [num_active, 2 size, 2 size]
    outer = held.T[:, :, None] * held.conj().T[:, None, :]
    forms = np.concatenate(
        [np.concatenate([outer.real, -outer.imag], axis=2), np.concatenate([outer.imag, outer.real], axis=2)], axis=1
    )
    x = np.concatenate([z.real, z.imag])
    # the phase of z is free: its direction is charged, which moves no solution
    for _ in range(num_steps):
        gradients = forms @ x
        phase = np.concatenate([-x[size:], x[:size]])
        matrix = np.zeros((2 * size + len(active), 2 * size + len(active)))
        matrix[: 2 * size, : 2 * size] = np.eye(2 * size) - np.tensordot(weights, forms, 1) + np.outer(phase, phase)
        matrix[: 2 * size, 2 * size :] = -gradients.T
        matrix[2 * size :, : 2 * size] = -gradients
        right = np.concatenate([weights @ gradients - x, 0.5 * (gradients @ x - 1.0)])
        try:
            step = np.linalg.solve(matrix, right)
        except np.linalg.LinAlgError:
            break
        x, weights = x + step[: 2 * size], weights + step[2 * size :]
        if not np.isfinite(x).all() or weights.min() < 0.0:
            break
        moved = x[:size] + 1j * x[size:]
        gain = weakest_gain(channel, moved)
        if gain < value * (1.0 - 1e-6):
            break
        if gain >= value:
            best, value = moved / np.linalg.norm(moved), gain
        if np.abs(step).max() < 1e-13 * np.abs(x).max():
            break
    return best
