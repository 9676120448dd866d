"""One receive combiner that serves the weakest node as well as it can."""

from __future__ import annotations

import numpy as np

_SHARPNESS = np.array([4.0, 16.0, 64.0])  # of the soft minimum, from near-average to near-weakest
_STEPS = np.geomspace(1e-4, 1.0, 9)
_FIRST_STEPS = 10  # of every start
_LAST_STEPS = 80  # of the best few
_KEPT = 4


def max_min_combiner(channel: np.ndarray) -> np.ndarray:
    """Unit-norm combiner with a large gain to the weakest node.

    maximise over ||f|| = 1 the minimum over k of |f^H h_k|^2

    Exact for one node (maximum-ratio combining) and for two (closed form: the weaker node's maximum-ratio combiner
    where the other hears it at least as well, else the combination that serves both alike). For more it is a local
    search: from the maximum-ratio combiner of every node and from phase-aligned sums it climbs along soft-minimum-
    weighted ascent directions, keeps a step only where the weakest gain grows, and returns the best end. The result
    does not depend on the scale of the channel and is never worse than any start.

    Args:
        channel: h_k, shape [num_antennas, num_nodes], any scale.

    Returns:
        f, shape [num_antennas], complex128.

    Raises:
        ValueError: no nodes, or a node's channel is zero or not finite.

    Reference:
        N. Sidiropoulos, T. Davidson, Z.-Q. Luo, "Transmit beamforming for physical-layer multicasting", IEEE Trans.
        Signal Process. 2006 (the problem).
    """
    # [num_antennas, num_nodes]
    channel = np.asarray(channel, dtype=np.complex128)
    norm = np.linalg.norm(channel, axis=0) if channel.ndim == 2 else np.zeros(0)
    if norm.size == 0 or not np.all(np.isfinite(norm)) or np.min(norm) == 0.0:
        raise ValueError("a combiner needs at least one node, and a finite channel that is not zero from each")
    channel = channel / np.max(norm)
    if channel.shape[1] == 1:
        return channel[:, 0] / np.linalg.norm(channel[:, 0])
    if channel.shape[1] == 2:
        return _serve_two(channel)
    combiners, weakest = _climb(channel, _starts(channel), _FIRST_STEPS)
    combiners, weakest = _climb(channel, combiners[np.argsort(-weakest)[:_KEPT]], _LAST_STEPS)
    return combiners[int(np.argmax(weakest))]


def dominant(response: np.ndarray) -> np.ndarray:
    """One flat channel that stands for a frequency-selective one: its strongest direction over the array.

    h_m = sigma_1 u_1 / sqrt(S) of the singular value decomposition of H_m, shape [num_antennas, S]

    Args:
        response: shape [num_antennas, num_nodes, num_active].

    Returns:
        shape [num_antennas, num_nodes], complex128; a flat channel comes back up to each node's phase.
    """
    # [num_nodes, num_antennas, num_active]
    left, strength, _ = np.linalg.svd(np.moveaxis(np.asarray(response, np.complex128), 1, 0), full_matrices=False)
    return (left[:, :, 0] * (strength[:, :1] / np.sqrt(response.shape[-1]))).T


def _serve_two(channel: np.ndarray) -> np.ndarray:
    first, second = channel.T
    power = np.sum(np.abs(channel) ** 2, axis=0)
    cross = np.vdot(first, second)
    weaker = int(np.argmin(power))
    if abs(cross) >= power[weaker]:
        combiner = channel[:, weaker]
    else:
        aligned = second * np.exp(-1j * np.angle(cross))
        combiner = (power[1] - abs(cross)) * first + (power[0] - abs(cross)) * aligned
    return combiner / np.linalg.norm(combiner)


def _starts(channel: np.ndarray) -> np.ndarray:
    """Unit-norm rows, shape [2 num_nodes, num_antennas]: each node's own, and an aligned sum begun at each."""
    # [num_nodes, num_antennas]
    own = (channel / np.linalg.norm(channel, axis=0)).T
    # correlation[i, k] = u_i^H u_k; node k joins the sum begun at i with the phase that i hears it in
    correlation = own.conj() @ own.T
    sums = np.exp(-1j * np.angle(correlation)) / np.linalg.norm(channel, axis=0) @ own
    return np.concatenate([own, sums / np.linalg.norm(sums, axis=1, keepdims=True)])


def _weakest(combiners: np.ndarray, channel: np.ndarray) -> np.ndarray:
    return np.min(np.abs(combiners.conj() @ channel) ** 2, axis=-1)


def _climb(channel: np.ndarray, combiners: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """So many uphill steps of every row; the combiners and their weakest gains."""
    best = _weakest(combiners, channel)
    rows = np.arange(len(combiners))
    for _ in range(num_steps):
        # [num_starts, num_nodes]
        heard = combiners.conj() @ channel
        power = np.abs(heard) ** 2
        spread = power / np.maximum(np.min(power, axis=1, keepdims=True), 1e-12) - 1.0
        # [num_sharpness, num_starts, num_nodes]
        share = np.exp(-_SHARPNESS[:, None, None] * np.minimum(spread, 1e3))
        share /= np.sum(share, axis=-1, keepdims=True)
        # ascent of sum_k share_k log |f^H h_k|^2, shape [num_sharpness, num_starts, num_antennas]
        ascent = (share * heard.conj() / np.maximum(power, 1e-24)) @ channel.T
        ascent -= combiners * np.sum(combiners.conj() * ascent, axis=-1, keepdims=True)
        ascent /= np.maximum(np.linalg.norm(ascent, axis=-1, keepdims=True), 1e-300)
        # [num_steps, num_sharpness, num_starts, num_antennas]
        tried = combiners + _STEPS[:, None, None, None] * ascent
        tried /= np.linalg.norm(tried, axis=-1, keepdims=True)
        tried = tried.reshape(-1, *combiners.shape)
        weakest = _weakest(tried, channel)
        choice = np.argmax(weakest, axis=0)
        grown = weakest[choice, rows] > best
        if not np.any(grown):
            break
        combiners = np.where(grown[:, None], tried[choice, rows], combiners)
        best = np.where(grown, weakest[choice, rows], best)
    return combiners, best
