"""How updates become one: federated averaging of flat adapter vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def weighted_mean(updates: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The mean of the updates, each counted by its weight.

        mean = sum_m D_m g_m / sum_m D_m

    One matrix-vector product over the stacked updates, in the order of node names, so that the order in which updates
    arrive does not change a bit of the result.

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
    shares /= shares.sum()
    # [num_nodes] @ [num_nodes, num_values] -> [num_values]
    return shares.astype(np.float32) @ np.stack([updates[name] for name in names])
