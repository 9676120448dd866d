"""What the weakest of several nodes is heard with in many layouts at once: quickly, and never too much.

One and two nodes are in closed form. For more, every layout's combiner climbs along the gradient of a soft minimum

    f <- f + s P sum_k w_k h_k (h_k^H f) / |h_k^H f|^2,   w_k ~ exp(-b |f^H h_k|^2 / min_j |f^H h_j|^2),   P = I - f f^H

with several sharpnesses b and steps s tried at once and the best kept, so that no step falls. The layouts are a leading
axis of every array. It ranks layouts; what a layout is worth is said by `testbed.problems.multicast.multicast`.
"""

from __future__ import annotations

import numpy as np

from testbed.problems.multicast import pair_gain, start_combiners

_SHARPNESS = np.array([4.0, 32.0])
_LENGTHS = np.geomspace(3e-3, 1.0, 6)
_KEPT = 3


def climbed_gains(
    channel: np.ndarray, *, combiners: np.ndarray | None = None, num_steps: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Gain of the weakest node with a good combiner, for many layouts.

    Args:
        channel: h_k, shape [num_layouts, num_antennas, num_nodes].
        combiners: to climb from, unit norm, shape [num_layouts, num_antennas]; if None the
            three best of each node's own and of phase-aligned sums.
        num_steps: of the climb, where there are more than two nodes.

    Returns:
        gains, at most max_f min_k |f^H h_k|^2 and equal to it for one and two nodes, shape [num_layouts]; combiners,
        which reach them for more than two nodes, shape [num_layouts, num_antennas].
    """
    channel = np.asarray(channel, np.complex128)
    if channel.shape[2] <= 2:
        return _closed(channel), np.zeros(channel.shape[:2], np.complex128)
    if combiners is None:
        # [num_layouts, num_starts, num_antennas]
        starts = start_combiners(channel)
        weakest = _weakest(starts, channel)
        order = np.argsort(-weakest, axis=1)[:, :_KEPT]
        starts = np.take_along_axis(starts, order[:, :, None], axis=1)
        ends = [_climb(channel, starts[:, index], num_steps) for index in range(starts.shape[1])]
        # [num_layouts, num_kept]
        gains = np.stack([end[0] for end in ends], axis=1)
        winner = gains.argmax(axis=1)
        rows = np.arange(len(channel))
        return gains[rows, winner], np.stack([end[1] for end in ends], axis=1)[rows, winner]
    return _climb(channel, combiners, num_steps)


def _climb(channel: np.ndarray, combiners: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """So many steps of every layout's combiner; gains [num_layouts] and combiners [num_layouts, num_antennas]."""
    best = _weakest(combiners[:, None], channel)[:, 0]
    rows = np.arange(len(channel))
    for _ in range(num_steps):
        heard = np.einsum("bn,bnk->bk", combiners.conj(), channel)
        power = np.maximum(np.abs(heard) ** 2, 1e-300)
        spread = np.minimum(power / power.min(axis=1, keepdims=True) - 1.0, 50.0)
        # [num_sharpness, num_layouts, num_nodes]
        share = np.exp(-_SHARPNESS[:, None, None] * spread)
        share /= share.sum(axis=2, keepdims=True)
        # [num_layouts, num_sharpness, num_antennas]
        uphill = np.einsum("sbk,bnk->bsn", share * heard.conj() / power, channel)
        uphill -= combiners[:, None] * np.einsum("bn,bsn->bs", combiners.conj(), uphill)[:, :, None]
        uphill /= np.maximum(np.linalg.norm(uphill, axis=2, keepdims=True), 1e-300)
        # [num_layouts, num_tried, num_antennas]
        tried = combiners[:, None, None] + _LENGTHS[:, None] * uphill[:, :, None]
        tried = tried.reshape(len(channel), -1, channel.shape[1])
        tried /= np.linalg.norm(tried, axis=2, keepdims=True)
        weakest = _weakest(tried, channel)
        choice = weakest.argmax(axis=1)
        grown = weakest[rows, choice] > best
        combiners = np.where(grown[:, None], tried[rows, choice], combiners)
        best = np.where(grown, weakest[rows, choice], best)
    return best, combiners


def _closed(channel: np.ndarray) -> np.ndarray:
    """Maximum-ratio combining of one node, the closed form of two, shape [num_layouts]."""
    power = np.sum(np.abs(channel) ** 2, axis=1)
    if channel.shape[2] == 1:
        return power[:, 0]
    cross = np.abs(np.sum(channel[:, :, 0].conj() * channel[:, :, 1], axis=1))
    return pair_gain(power[:, 0], power[:, 1], cross)


def _weakest(combiners: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """min_k |f^H h_k|^2, shape [num_layouts, num_tried]."""
    heard = combiners.conj() @ channel
    return np.min(heard.real**2 + heard.imag**2, axis=2)
