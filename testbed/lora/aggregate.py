"""How updates become one: federated averaging of flat adapter vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_PIECE = 1 << 15  # values: two pieces of float32 fit into a first- or second-level cache


def weighted_mean(updates: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The mean of the updates, each counted by its weight.

        mean = sum_m D_m g_m / sum_m D_m

    Summed in the order of node names, so that the order of arrival does not change a bit of the result, and in pieces
    that stay in the processor's cache, so that nothing but the updates is read from memory.

    Args:
        updates: node -> update g_m, shape [num_values], float32.
        weights: node -> weight D_m, positive.

    Returns:
        Shape [num_values], float32.

    Raises:
        ValueError: no updates, or weights that do not add up to a positive number.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017.
    """
    names = sorted(updates)
    # [num_nodes]
    shares = np.array([weights[name] for name in names], dtype=np.float64)
    if not names or not shares.sum() > 0:
        raise ValueError("a mean needs at least one update of positive weight")
    shares32 = (shares / shares.sum()).astype(np.float32)
    mean = np.zeros(updates[names[0]].shape, np.float32)
    part = np.empty(_PIECE, np.float32)
    for start in range(0, mean.size, _PIECE):
        piece = mean[start : start + _PIECE]
        scaled = part[: piece.size]
        for share, name in zip(shares32, names, strict=True):
            np.multiply(updates[name][start : start + _PIECE], share, out=scaled)
            piece += scaled
    return mean
