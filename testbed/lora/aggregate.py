"""How updates become one: federated averaging of flat adapter vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

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


def covered_mean(
    updates: Mapping[str, np.ndarray],
    covered: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    rule: Literal["present", "all"] = "present",
) -> np.ndarray:
    """The mean of updates that speak of some values each, as after pruning.

        present   mean[j] = sum_{m: j in S_m} D_m g_m[j] / sum_{m: j in S_m} D_m   (0 where nobody covers j)
        all       mean[j] = sum_{m: j in S_m} D_m g_m[j] / sum_m D_m               (what is not covered counts as 0)

    Args:
        updates: node -> update g_m, shape [num_values], float32.
        covered: node -> S_m, shape [num_values], bool; a node without an entry covers all values.
        weights: node -> weight D_m, positive; those of nodes without an update do not count.
        rule: as above.

    Returns:
        Shape [num_values], float32; bit for bit `weighted_mean` at every value that all nodes cover.

    Raises:
        ValueError: as `weighted_mean`, a mask of another shape, or an unknown rule.

    Reference: E. Diao, J. Ding, V. Tarokh, "HeteroFL: Computation and communication efficient federated learning for
    heterogeneous clients", ICLR 2021, arXiv 2010.01264 (the first rule).
    """
    if rule not in ("present", "all"):
        raise ValueError(f"there is no rule {rule!r}; choose present or all")
    masks = {name: np.asarray(covered[name], bool) for name in sorted(updates) if name in covered}
    for name, mask in masks.items():
        if mask.shape != updates[name].shape:
            raise ValueError(f"{name} covers a mask of shape {mask.shape}; its update has shape {updates[name].shape}")
    zero = np.float32(0.0)
    heard = {name: np.where(masks[name], one, zero) if name in masks else one for name, one in updates.items()}
    mean = weighted_mean(heard, weights)
    if rule == "all" or not masks:
        return mean
    total = sum(weights[name] for name in sorted(updates))
    absent = np.zeros(mean.shape)
    for name, mask in masks.items():
        absent[~mask] += weights[name]
    count = np.zeros(mean.shape, np.int64)
    for mask in masks.values():
        count += ~mask
    partly = (count > 0) & (count < len(updates))
    mean[partly] *= (total / (total - absent[partly])).astype(np.float32)
    return mean
