"""Nested modules of one LoRA: module m trains and sends the first r_m ranks, the others stay as they are.

W = W0 + s B A with s = alpha / r_max for every module, so the sum of slices is the whole and a small module is a mask,
U_m, on the flat vector: the first r_m rows of every A and the first r_m columns of every B. Modules differ in size,

    d_m = r_m sum_l (in_l + out_l)   (less where a layer has fewer ranks),      S_m = d_m b_q + head  bits,

and in the share rho_m of a gradient's energy that they can express. Masked slices of one shared A and B avoid clashes
of ranks, not the covariance of A and B that averaging them apart leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from testbed.core.adapter import Factor, Layout
from testbed.lora.aggregate import weighted_mean

Rule = Literal["zero-fill", "renormalised", "inverse-probability"]


def max_rank(layout: Layout) -> int:
    """The largest rank of a layout's factors.

    Raises:
        ValueError: a layout without factors.
    """
    if not layout.factors:
        raise ValueError("a layout without factors has no ranks to switch between")
    ranks = [_rank(factor) for factor in layout.factors if factor.kind in ("A", "B")]
    return max(ranks, default=0)


def slice_mask(layout: Layout, rank: int, above: int = 0) -> np.ndarray:
    """U_m: which values belong to the first ranks, those `above` < i <= `rank`.

    Args:
        layout: order of the flat vector; factors of either kind.
        rank: r_m, from 0 (idle, no value) to the layout's largest.
        above: ranks at the start that do not count.

    Returns:
        shape [layout.size], bool.

    Raises:
        ValueError: a rank that the layout does not have.
    """
    most = max_rank(layout)
    if not 0 <= above <= rank <= most:
        raise ValueError(f"slices {above} to {rank} of a LoRA of rank {most}: choose ranks from 0 to {most}")
    mask = np.zeros(layout.size, bool)
    views = layout.unpack(mask)
    for factor in layout.factors:
        if factor.kind == "A":
            views[factor.name][above:rank] = True
        elif factor.kind == "B":
            views[factor.name][:, above:rank] = True
        else:
            # values of bottleneck adapters have no rank: they are with the first slice
            views[factor.name][...] = above == 0 < rank
    return mask


def module_values(layout: Layout, rank: int) -> int:
    """d_m, values of the first ranks.

    Args:
        layout: order of the flat vector.
        rank: r_m.
    """
    return int(slice_mask(layout, rank).sum())


def module_bit(layout: Layout, ranks: Sequence[int], value_bit: int = 32, head_bit: int = 0) -> np.ndarray:
    """S_m = d_m b_q + head, bits.

    Args:
        layout: order of the flat vector.
        ranks: r_m of each module; 0 sends nothing, no head either.
        value_bit: b_q, bits of a value.
        head_bit: bits of a shared head that travels with every module; 0 for a local or frozen one.

    Returns:
        shape [num_modules], int64.
    """
    sizes = [module_values(layout, rank) * value_bit + (head_bit if rank else 0) for rank in ranks]
    return np.array(sizes, np.int64)


def truncate(layout: Layout, vector: np.ndarray, rank: int) -> np.ndarray:
    """What module m sends: the values of its slices, in the order of the flat vector.

    Args:
        layout: order of the flat vector.
        vector: adapter or update, shape [layout.size].
        rank: r_m.

    Returns:
        shape [d_m].
    """
    return vector[slice_mask(layout, rank)]


def lift(layout: Layout, values: np.ndarray, rank: int) -> np.ndarray:
    """The flat vector of what module m sent, zero in the other slices: the inverse of `truncate`.

    Args:
        layout: order of the flat vector.
        values: shape [d_m].
        rank: r_m.

    Returns:
        shape [layout.size], dtype of the values.

    Raises:
        ValueError: another number of values than the module has.
    """
    mask = slice_mask(layout, rank)
    if values.shape != (int(mask.sum()),):
        raise ValueError(f"a module of rank {rank} has {int(mask.sum())} values, not {values.shape}")
    vector = np.zeros(layout.size, values.dtype)
    vector[mask] = values
    return vector


def gradient_shares(layout: Layout, gradient: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
    """rho_m = ||U_m g||^2 / ||g||^2: which share of a gradient's (or update's) energy each module expresses.

    Args:
        layout: order of the flat vector.
        gradient: shape [layout.size].
        ranks: r_m of each module.

    Returns:
        shape [num_modules], from 0 to 1; r_m / r_max where the gradient is zero, as for random slices.
    """
    squares = np.square(gradient.astype(np.float64))
    total = float(squares.sum())
    if total == 0:
        return np.array(ranks, np.float64) / max_rank(layout)
    return np.array([min(float(squares[slice_mask(layout, rank)].sum()) / total, 1.0) for rank in ranks])


def spectrum_shares(singular_values: Sequence[np.ndarray], ranks: Sequence[int]) -> np.ndarray:
    """rho_m from the last accumulated B A: energy of the largest r_m singular values of each layer over the whole.

    Args:
        singular_values: of every layer, in falling order.
        ranks: r_m of each module.

    Returns:
        shape [num_modules], rising with the rank; concave in it.

    Raises:
        ValueError: no energy.
    """
    squares = [np.square(np.sort(np.asarray(one, np.float64))[::-1]) for one in singular_values]
    total = sum(float(one.sum()) for one in squares)
    if not total > 0:
        raise ValueError("singular values without energy say nothing about ranks: use r_m / r_max")
    return np.array([sum(float(one[:rank].sum()) for one in squares) / total for rank in ranks])


def aggregate_slices(
    layout: Layout,
    updates: Mapping[str, np.ndarray],
    ranks: Mapping[str, int],
    weights: Mapping[str, float],
    rule: Rule = "zero-fill",
    success: Mapping[str, float] | None = None,
    least_success: float = 0.1,
) -> np.ndarray:
    """One update from modules of different ranks, some of them lost.

        zero-fill             slice i: sum over arrived k with r_mk >= i of w_k u_k,   w_k = D_k / D over all nodes
        renormalised          the same over the sum of w_k of those who contributed to the slice
        inverse-probability   w_k u_k / max(P[k arrives], least)

    Zero fill is what the convergence bound speaks of: what is missing counts as no change. Inverse probability is
    unbiased over losses as long as no probability lies below `least_success`.

    Args:
        layout: order of the flat vector.
        updates: node -> its update as `lift` gives it, zero outside its slices, shape [layout.size], float32; only
            those that arrived.
        ranks: node -> r_m of its module, for those that arrived.
        weights: node -> D_k, positive, of all nodes, silent ones included.
        rule: as above.
        success: node -> probability with which its update arrives, for inverse probability.
        least_success: bounds the largest factor.

    Returns:
        shape [layout.size], float32. With all nodes at the largest rank and arrived it is `weighted_mean`, bit for bit.

    Raises:
        ValueError: an update from a node without weight or rank, or no success probabilities where they are needed.
    """
    strangers = sorted(name for name in updates if name not in weights or name not in ranks)
    if strangers:
        raise ValueError(f"{', '.join(strangers)}: an update needs its node's weight and rank")
    nothing = np.zeros(layout.size, np.float32)
    if not updates:
        return nothing
    counted = dict(updates)
    if rule == "inverse-probability":
        if success is None:
            raise ValueError("inverse probability needs the probability of every node that arrived")
        for name, update in updates.items():
            counted[name] = update * np.float32(1.0 / max(success[name], least_success))
    mean = weighted_mean({name: counted.get(name, nothing) for name in weights}, weights)
    if rule == "renormalised":
        total = sum(weights.values())
        edges = sorted({0, *ranks.values()})
        for low, high in pairwise(edges):
            present = sum(weights[name] for name in sorted(updates) if ranks[name] >= high)
            if 0 < present < total:
                mean[slice_mask(layout, high, low)] *= np.float32(total / present)
    return mean


def _rank(factor: Factor) -> int:
    return factor.shape[0] if factor.kind == "A" else factor.shape[1]
