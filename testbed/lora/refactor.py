"""Averaging what is a product: the ways to aggregate LoRA factors, and what each of them costs.

The adapted weight moves by B A, and sum_m p_m B_m A_m (p_m = D_m / sum D) is what federated averaging of it would give.

- Factors apart: A and B are averaged on their own. The gap to the mean product is their covariance,

      sum_m p_m B_m A_m - Bbar Abar = sum_m p_m (B_m - Bbar)(A_m - Abar),                                          (1)

  and noise of the air enters squared: (B + E_B)(A + E_A) - B A = B E_A + E_B A + E_B E_A.                          (2)
- B alone (`lora.freeze_a`, FFA-LoRA, arXiv 2403.12313): the gap is zero, and noise enters linearly, E_B A.
- Alternately: B is trained and sent in one round, A in the next. In every round one factor is the same for all nodes,
  so the mean is exactly linear, and both factors learn.
- Products: where updates arrive apart, sum_m p_m B_m A_m is computed exactly and brought back to the adapter's rank by
  a truncated singular value decomposition, the best approximation of that rank (FlexLoRA, arXiv 2402.11505, and FedSVD
  average in the product space like this). Nothing of the size of the weight is ever formed.
- Stacked: the factors side by side have the mean product exactly, at the sum of the ranks; every node adds it to its
  frozen weights and starts anew (FLoRA, arXiv 2409.05976), or adds only the covariance (1) (FedEx-LoRA, arXiv
  2410.07432).

(1) and (2) are identities. B first in alternation, A with orthonormal rows after a decomposition, and the mean square
of (2) are our choices and derivations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from testbed.core.adapter import Factor, Layout

Factors: TypeAlias = Literal["both", "A", "B"]
"""Which factors are trained in a round, as of `testbed.core.orders.Work`."""

_BLOCK = 1 << 23
"""Values of the nodes' factors that are worked on at a time: bounds memory."""


def alternate(round_index: int) -> Literal["A", "B"]:
    """Which factor a round trains when they take turns: B in rounds 0, 2, 4, ..., A in the others.

    B comes first because it starts at zero, where the gradient of A vanishes.

    Args:
        round_index: rounds done so far.
    """
    return "B" if round_index % 2 == 0 else "A"


def places(layout: Layout, factors: Factors) -> np.ndarray:
    """Where factors lie in the flat vector.

    Args:
        layout: order of the factors.
        factors: A, B, or both.

    Returns:
        shape [layout.size], bool.
    """
    chosen = [np.full(factor.size, factors in ("both", factor.kind)) for factor in layout.factors]
    return np.concatenate([np.zeros(0, bool), *chosen])


def merged(layout: Layout, adapter: np.ndarray, mean: np.ndarray, factors: Factors) -> np.ndarray:
    """The published adapter moved by the mean update, on the trained factors only.

    What a noisy uplink puts on factors that rested is left out: these are known exactly.

    Args:
        adapter: shape [layout.size].
        mean: mean of the updates as it arrived, shape [layout.size].
        factors: which were trained.

    Returns:
        shape [layout.size], the type of `adapter + mean`.
    """
    if factors == "both":
        return adapter + mean
    return adapter + np.where(places(layout, factors), mean, np.zeros((), mean.dtype))


@dataclass(frozen=True)
class Refactored:
    """A mean product at the rank of the adapter.

    Attributes:
        adapter: its factors, shape [layout.size], float32.
        residual: Frobenius norm of what the rank left out, over all modules.
        norm: Frobenius norm of the mean product, over all modules.
    """

    adapter: np.ndarray
    residual: float
    norm: float


def product_svd(
    up: np.ndarray, down: np.ndarray, *, all_rows: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular value decompositions of B A that never form the product, exact and in O(rank^2 (in + out)).

        B = Q_B R_B,   A^T = Q_A R_A,   R_B R_A^T = U S V^T   (the core):   B A = (Q_B U) S (Q_A V)^T

    Args:
        up: B, shape [..., out, rank].
        down: A, shape [..., rank, in].
        all_rows: V^T has min(rank, in) rows; those beyond r are orthonormal to the others and belong to no singular
            value.

    Returns:
        U [..., out, r], S [..., r] in falling order, V^T [..., r, in] with r = min(out, rank, in); float64.
    """
    left, left_core = np.linalg.qr(np.asarray(up, np.float64))
    right, right_core = np.linalg.qr(np.swapaxes(np.asarray(down, np.float64), -1, -2))
    inner, strength, outer = np.linalg.svd(left_core @ np.swapaxes(right_core, -1, -2))
    num_values = strength.shape[-1]
    if not all_rows:
        outer = outer[..., :num_values, :]
    return left @ inner[..., :num_values], strength, outer @ np.swapaxes(right, -1, -2)


def mean_product(layout: Layout, adapters: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> Refactored:
    """The best adapter of its rank for the weighted mean of the products B_m A_m.

        [sqrt(p_1) B_1 ... sqrt(p_K) B_K] [sqrt(p_1) A_1; ...; sqrt(p_K) A_K] = U S V^T   (`product_svd`)
        B = U_r S_r,   A = V_r^T,   residual^2 = sum_{i > r} s_i^2

    This equals the truncated decomposition of the full matrix (Eckart and Young). A has orthonormal rows, also where
    singular values vanish: a rank whose B is zero can still learn, which it could not if both of its factors were zero.

    Args:
        layout: order of the factors; every module has an A and a B.
        adapters: node -> its adapter, shape [layout.size].
        weights: node -> weight D_m, positive.

    Returns:
        The adapter, the residual's norm and the mean product's norm, in float64 arithmetic.

    Raises:
        ValueError: no adapters, weights that do not add up, or a module without one of its factors.
    """
    names, shares = _shares(adapters, weights)
    result = np.zeros(layout.size, np.float32)
    residual = norm = 0.0
    for pairs in _alike(layout, len(names)):
        # [num_modules, num_nodes, rank, in] and [num_modules, num_nodes, out, rank]
        a, b = _stacked(layout, pairs, [adapters[name] for name in names])
        num_modules, num_nodes, rank, num_in = a.shape
        num_out = b.shape[2]
        root = np.sqrt(shares)[:, None, None]
        # [num_modules, num_nodes * rank, in] and [num_modules, out, num_nodes * rank]
        rows = (root * a).reshape(num_modules, num_nodes * rank, num_in)
        columns = (root * b).transpose(0, 2, 1, 3).reshape(num_modules, num_out, num_nodes * rank)
        u, s, vt = product_svd(columns, rows, all_rows=True)
        kept = min(rank, s.shape[1])
        # [num_modules, out, kept]
        new_b = u[:, :, :kept] * s[:, None, :kept]
        # more ranks than singular values: B is zero there, and A has further orthonormal rows as long as there are any
        rows_kept = min(rank, vt.shape[1])
        for index, (factor_a, factor_b) in enumerate(pairs):
            result[layout.slices[factor_a.name]].reshape(factor_a.shape)[:rows_kept] = vt[index, :rows_kept]
            result[layout.slices[factor_b.name]].reshape(factor_b.shape)[:, :kept] = new_b[index]
        residual += float(np.sum(s[:, kept:] ** 2))
        norm += float(np.sum(s**2))
    return Refactored(result, residual**0.5, norm**0.5)


def mean_product_with(
    layout: Layout,
    before: np.ndarray,
    adapters: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    factors: Literal["A", "B"],
) -> Refactored:
    """The adapter closest to the weighted mean of the products among those that differ in one factor alone.

        W = sum_m p_m B_m A_m
        B <- B + (W - B A) A^+   with A as it was,   or   A <- A + B^+ (W - B A)   with B as it was

    Of all least-squares solutions this is the nearest to the factor as it was: ranks that the other factor leaves
    without effect stay. W is not formed.

    Args:
        layout: order of the factors; every module has an A and a B.
        before: adapter that the nodes started from, shape [layout.size].
        adapters: node -> its adapter, shape [layout.size].
        weights: node -> weight D_m, positive.
        factors: which one changes.

    Returns:
        The adapter, the norm of W - B A and that of W, in float64 arithmetic.

    Raises:
        ValueError: as `mean_product`.
    """
    names, shares = _shares(adapters, weights)
    result = np.array(before, np.float32)
    found = layout.unpack(result)
    views = [layout.unpack(adapters[name]) for name in names]
    residual = norm = 0.0
    for factor_a, factor_b in _pairs(layout):
        a, b = found[factor_a.name].astype(np.float64), found[factor_b.name].astype(np.float64)
        # W = columns @ rows
        rows = np.concatenate([view[factor_a.name].astype(np.float64) for view in views])
        columns = np.concatenate([view[factor_b.name] * p for p, view in zip(shares, views, strict=True)], axis=1)
        if factors == "B":
            inverse = np.linalg.pinv(a)
            b += columns @ (rows @ inverse) - b @ (a @ inverse)
        else:
            inverse = np.linalg.pinv(b)
            a += (inverse @ columns) @ rows - (inverse @ b) @ a
        found[factor_a.name][:], found[factor_b.name][:] = a, b
        residual += float(np.sum(product_svd(np.hstack([columns, -b]), np.vstack([rows, a]))[1] ** 2))
        norm += float(np.sum(product_svd(columns, rows)[1] ** 2))
    return Refactored(result, residual**0.5, norm**0.5)


@dataclass(frozen=True)
class Stack:
    """Factors whose product is added to the frozen weights of every node: `Publish.fold` and `Publish.fold_rank`.

    Attributes:
        vector: A [rank, in] and B [out, rank] of every module, flat in the order of `stack_layout`, float32.
        rank: inner dimension.
    """

    vector: np.ndarray
    rank: int


def stack_layout(layout: Layout, rank: int) -> Layout:
    """The adapter's modules with another inner dimension: A [rank, in] before B [out, rank], module by module.

    Args:
        layout: of the adapter; every module has an A and a B.
        rank: inner dimension.

    Raises:
        ValueError: a rank below 1, or a module without one of its factors.
    """
    if rank < 1:
        raise ValueError(f"a stack of rank {rank} holds nothing; at least rank 1 is needed")
    factors = []
    for factor_a, factor_b in _pairs(layout):
        factors.append(factor_a.model_copy(update={"shape": (rank, factor_a.shape[1])}))
        factors.append(factor_b.model_copy(update={"shape": (factor_b.shape[0], rank)}))
    return Layout(factors=tuple(factors))


def stacked(
    layout: Layout,
    adapters: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    *,
    ranks: Mapping[str, int] | None = None,
    minus: np.ndarray | None = None,
) -> Stack:
    """Factors side by side, whose product is the weighted mean of the products, exactly.

        A = [A_1; ...; A_K; A_0],   B = [p_1 B_1, ..., p_K B_K, -B_0],   B A = sum_m p_m B_m A_m - B_0 A_0

    Args:
        layout: order of the factors; every module has an A and a B.
        adapters: node -> its adapter, shape [layout.size].
        weights: node -> weight D_m, positive; p_m = D_m / sum D.
        ranks: node -> how many of its first ranks count; the others are left out. All of them if None.
        minus: an adapter (A_0, B_0) whose product is taken off, such as the mean of the factors, so that only the
            covariance is left; shape [layout.size].

    Returns:
        The stack, of the sum of the ranks; nodes in the order of their names.

    Raises:
        ValueError: no adapters, weights that are not positive, a rank that the layout does not have, or a module
            without one of its factors.

    Reference: Z. Wang et al., "FLoRA: Federated fine-tuning large language models with heterogeneous low-rank
    adaptations", NeurIPS 2024, arXiv 2409.05976.
    """
    names, shares = _shares(adapters, weights)
    pairs = list(_pairs(layout))
    most = max(factor_a.shape[0] for factor_a, _ in pairs)
    counts = [most if ranks is None else ranks[name] for name in names]
    for name, count in zip(names, counts, strict=True):
        if not 1 <= count <= most:
            raise ValueError(f"{name} has rank {count}; the layout has ranks from 1 to {most}")
    parts = [(adapters[name], float(share), count) for name, share, count in zip(names, shares, counts, strict=True)]
    if minus is not None:
        parts.append((minus, -1.0, most))
    out = stack_layout(layout, sum(count for _, _, count in parts))
    vector = np.empty(out.size, np.float32)
    views, start = out.unpack(vector), 0
    for adapter, share, count in parts:
        found = layout.unpack(adapter)
        for factor_a, factor_b in pairs:
            views[factor_a.name][start : start + count] = found[factor_a.name][:count]
            views[factor_b.name][:, start : start + count] = share * found[factor_b.name][:, :count].astype(np.float64)
        start += count
    return Stack(vector, start)


def noisy_product_mse(layout: Layout, adapter: np.ndarray, variance_a: float, variance_b: float) -> float:
    """Mean square error of the products when both factors arrive with independent zero-mean noise.

        E ||(B + E_B)(A + E_A) - B A||_F^2 = in v_A ||B||_F^2 + out v_B ||A||_F^2 + out in r v_A v_B

    summed over modules, for entries of variance v_A and v_B; the cross terms of (2) vanish because the noises are
    independent. Only the first order is left where one factor is exact (v_A = 0: A frozen, or a round of B).

    Args:
        layout: order of the factors; every module has an A and a B.
        adapter: A and B without noise, shape [layout.size].
        variance_a: of each value of A: the aggregation error E||e||^2 over the number of values.
        variance_b: of each value of B.

    Returns:
        Of B A without the factor alpha / rank, which scales it by its square.

    Raises:
        ValueError: a negative variance, or a module without one of its factors.
    """
    if not (variance_a >= 0 and variance_b >= 0):
        raise ValueError(f"variances cannot be negative; {variance_a:g} and {variance_b:g} were given")
    total = 0.0
    for factor_a, factor_b in _pairs(layout):
        (rank, num_in), num_out = factor_a.shape, factor_b.shape[0]
        a = adapter[layout.slices[factor_a.name]].astype(np.float64)
        b = adapter[layout.slices[factor_b.name]].astype(np.float64)
        total += num_in * variance_a * float(b @ b) + num_out * variance_b * float(a @ a)
        total += num_out * num_in * rank * variance_a * variance_b
    return total


def trains_both(layout: Layout) -> bool:
    """Whether every module of the layout has an A and a B, as products need."""
    modules: dict[str, set[str]] = defaultdict(set)
    for factor in layout.factors:
        modules[factor.module].add(factor.kind)
    return bool(modules) and all(kinds == {"A", "B"} for kinds in modules.values())


def _pairs(layout: Layout) -> Iterator[tuple[Factor, Factor]]:
    """A and B of every module, in the order of the layout."""
    if not trains_both(layout):
        raise ValueError("a product needs an A and a B of every module; one of them is not in the layout")
    modules: dict[str, dict[str, Factor]] = defaultdict(dict)
    for factor in layout.factors:
        modules[factor.module][factor.kind] = factor
    for kinds in modules.values():
        yield kinds["A"], kinds["B"]


def _alike(layout: Layout, num_nodes: int) -> Iterator[list[tuple[Factor, Factor]]]:
    """Modules of equal shapes together, so that one call of the linear algebra does many of them."""
    groups: dict[tuple[tuple[int, ...], ...], list[tuple[Factor, Factor]]] = defaultdict(list)
    for factor_a, factor_b in _pairs(layout):
        groups[factor_a.shape, factor_b.shape].append((factor_a, factor_b))
    for group in groups.values():
        count = max(1, _BLOCK // (num_nodes * (group[0][0].size + group[0][1].size)))
        for first in range(0, len(group), count):
            yield group[first : first + count]


def _stacked(
    layout: Layout, pairs: Sequence[tuple[Factor, Factor]], vectors: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A and B of modules of equal shapes, float64, shape [num_modules, num_nodes, *factor.shape] each."""
    both = [
        np.array(
            [
                [vector[layout.slices[pair[kind].name]].reshape(pair[kind].shape) for vector in vectors]
                for pair in pairs
            ],
            dtype=np.float64,
        )
        for kind in (0, 1)
    ]
    return both[0], both[1]


def _shares(adapters: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> tuple[list[str], np.ndarray]:
    """Names in their order, so that the order of arrival does not matter, and p_m, shape [num_nodes]."""
    names = sorted(adapters)
    shares = np.array([weights[name] for name in names], dtype=np.float64)
    if not names or not (shares > 0).all():
        raise ValueError("a mean of products needs at least one adapter, and positive weights")
    return names, shares / shares.sum()
