"""Sparse device selection by differences of convex functions.

As many clients as can be are to be heard with |z^H h_m|^2 >= 1 by a short z (a combiner f = z / ||z||, whose gain is
1 / ||z||^2). With slacks x_m >= 0 for those that are not, and |||x|||_c the sum of the c largest of them,

    minimise   ||z||^2 / 2 + C (||x||_1 - |||x|||_c)   subject to   |z^H h_m|^2 >= 1 - x_m

is a difference of convex functions: at most c clients are left out for free. Each step linearises the concave parts,
|z^H h|^2 >= 2 Re{(z0^H h)^* z^H h} - |z0^H h|^2 and the c largest slacks, and solves a soft-margin quadratic programme.

From the literature: Yang, Jiang, Shi, Ding, "Federated learning via over-the-air computation", arXiv 1812.11750, who
lift z to a matrix of rank one and fix how well clients must be heard. Our reading: z is not lifted, so the rank holds
by itself; and since the convergence bound trades clients against their gain there is no such threshold, so a range of
prices C and all numbers c are tried, all at once as one batch.
"""

from __future__ import annotations

import numpy as np

from testbed.problems.multicast import multicast

_PRICES = 6
_STEPS, _SWEEPS = 12, 30


def dc_candidates(channel: np.ndarray, concurrency: int | None) -> np.ndarray:
    """Combiners that serve many clients well and give up the others; see the module.

    Args:
        channel: h_m, none of them zero, shape [num_antennas, num_clients].
        concurrency: how many clients must be served; all numbers are tried if None.

    Returns:
        unit norm, one for each price and each number of clients left out, from two starts: the combiner for everybody
        and that of the strongest client; shape [num_candidates, num_antennas].
    """
    num_clients = channel.shape[1]
    power = np.sum(np.abs(channel) ** 2, axis=0)
    everybody = multicast(channel)
    strongest = channel[:, int(np.argmax(power))] / np.sqrt(power.max())
    # squared lengths of z for the strongest alone and for everybody: one client left out is worth less than both
    prices = np.geomspace(0.1 / power.max(), 3.0 / everybody.value, _PRICES)
    left_out = np.arange(num_clients) if concurrency is None else np.array([num_clients - concurrency])
    price, count, start = (axis.ravel() for axis in np.meshgrid(prices, left_out, np.arange(2), indexing="ij"))
    begun = np.stack([everybody.point / np.sqrt(everybody.value), strongest / np.sqrt(power.max())])[start]
    reached = _descend(channel, begun, price, count)
    length = np.linalg.norm(reached, axis=1)
    return reached[length > 0] / length[length > 0][:, None]


def _descend(channel: np.ndarray, z: np.ndarray, price: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Steps of the difference-of-convex method for every row.

    Args:
        channel: shape [num_antennas, num_clients].
        z: starts, shape [num_rows, num_antennas].
        price: C, shape [num_rows].
        count: c, shape [num_rows].
    """
    multipliers = np.zeros((len(z), channel.shape[1]))
    for _ in range(_STEPS):
        heard = z.conj() @ channel
        slack = np.maximum(1.0 - np.abs(heard) ** 2, 0.0)
        # the c worst clients cost nothing in this step
        rank = np.argsort(np.argsort(-slack, axis=1, kind="stable"), axis=1)
        most = np.where(rank < count[:, None], 0.0, price[:, None])
        # rows 2 Re{c^* z^H h} >= 1 + |c|^2 - x in the real embedding, [num_rows, num_clients, 2 num_antennas]
        turned = 2.0 * heard.conj()[:, :, None] * channel.T
        rows = np.concatenate([turned.real, turned.imag], axis=2)
        multipliers = _soft_margin(rows, 1.0 + np.abs(heard) ** 2, most, multipliers)
        point = np.einsum("bm,bmi->bi", multipliers, rows)
        moved = point[:, : len(channel)] + 1j * point[:, len(channel) :]
        # a row that is served by nobody's multiplier stays where it is
        z = np.where(np.linalg.norm(moved, axis=1, keepdims=True) > 0, moved, z)
    return z


def _soft_margin(rows: np.ndarray, least: np.ndarray, most: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """Multipliers of   min ||z||^2 / 2 + sum most x   s.t.  rows z >= least - x, x >= 0,   by coordinate ascent.

    Args:
        rows: shape [batch, num_rows, num_variables].
        least: shape [batch, num_rows].
        most: shape [batch, num_rows].
        multipliers: start, shape [batch, num_rows].
    """
    gram = rows @ np.swapaxes(rows, 1, 2)
    curvature = np.maximum(np.einsum("bmm->bm", gram), 1e-300)
    current = np.clip(multipliers, 0.0, most)
    for _ in range(_SWEEPS):
        for index in range(current.shape[1]):
            short = least[:, index] - np.einsum("bm,bm->b", gram[:, index], current)
            current[:, index] = np.clip(current[:, index] + short / curvature[:, index], 0.0, most[:, index])
    return current
