"""Choosing antenna places among those where the channel was measured."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from testbed.phy.combiner import max_min_combiner


def weakest_gain(channel: np.ndarray) -> float:
    """Gain of the weakest node at its combiner, q = min_k |f^H h_k|^2, shape of `channel` [num_antennas, num_nodes]."""
    combiner = max_min_combiner(channel)
    return float(np.min(np.abs(combiner.conj() @ channel) ** 2))


def select_ports(
    positions_m: np.ndarray, channel: np.ndarray, min_spacing_m: float, *, start: np.ndarray, movable: np.ndarray
) -> np.ndarray:
    """Ports whose antennas together serve the weakest node best, by exchange.

    maximise over sets of ports at least D apart   max_f min_k |f^H h_k|^2

    Beginning at `start` (usually the fixed array, so the result is never below it), each antenna in turn tries every
    free port that keeps the spacing, and the best exchange is kept, until no single exchange helps: a local optimum.

    Args:
        positions_m: measured places, shape [num_ports, 2].
        channel: measured there, shape [num_ports, num_nodes].
        min_spacing_m: smallest distance D of two antennas.
        start: indices of a feasible choice, shape [num_antennas].
        movable: which antennas may leave their start, shape [num_antennas], bool.

    Returns:
        Index of each antenna's port, shape [num_antennas].

    Reference:
        port selection of fluid and movable antennas, for instance arXiv 2409.03386 (greedy selection reaches 99 % of
        the optimum over measured ports).
    """
    # [num_ports, num_ports]
    distance = np.linalg.norm(positions_m[:, None] - positions_m[None], axis=-1)
    chosen = np.array(start)
    best = weakest_gain(channel[chosen])
    improved = True
    while improved:
        improved = False
        for slot in np.flatnonzero(movable):
            others = np.delete(chosen, slot)
            free = np.flatnonzero((distance[:, others] >= min_spacing_m - 1e-9).all(axis=1))
            gains = [weakest_gain(channel[np.append(others, port)]) for port in free]
            if gains and max(gains) > best * (1 + 1e-9):
                best = max(gains)
                chosen[slot] = free[int(np.argmax(gains))]
                improved = True
    return chosen


def nearest_assignment(targets_m: np.ndarray, current_m: np.ndarray) -> np.ndarray:
    """The same targets in the order that makes the antennas travel least in all.

    Args:
        targets_m: places to occupy, shape [num_antennas, 2].
        current_m: where each antenna is, shape [num_antennas, 2].

    Returns:
        One target for each antenna, shape [num_antennas, 2].
    """
    # [num_antennas, num_antennas]
    way = np.linalg.norm(current_m[:, None] - targets_m[None], axis=-1)
    return targets_m[linear_sum_assignment(way)[1]]


def random_layout(
    region_m: np.ndarray, fixed_m: np.ndarray, num_antennas: int, min_spacing_m: float, rng: np.random.Generator
) -> np.ndarray:
    """Places drawn uniformly in the region, one after the other, each far enough from those before.

    Args:
        region_m: [axis, (low, high)], shape [2, 2].
        fixed_m: antennas that stay where they are, shape [num_fixed, 2].
        num_antennas: how many places to draw.

    Returns:
        Shape [num_antennas, 2].

    Raises:
        ValueError: no room was found for that many antennas at that spacing.
    """
    for _ in range(100):
        layout: list[np.ndarray] = []
        for _ in range(200 * num_antennas):
            point = rng.uniform(region_m[:, 0], region_m[:, 1])
            if all(np.linalg.norm(point - other) >= min_spacing_m for other in (*fixed_m, *layout)):
                layout.append(point)
            if len(layout) == num_antennas:
                return np.array(layout)
    raise ValueError(f"{num_antennas} antennas do not fit at a spacing of {min_spacing_m:g} m")
