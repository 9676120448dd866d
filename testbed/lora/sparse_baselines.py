"""What SOFT is compared with: factors pruned apart, single values, FedSRD's score, and the singular values themselves.

Published rules in our reading, from their abstracts, reviews or released code: separate norms as in FLASC's rank mode
(arXiv 2406.05233), which picks rows of A and columns of B independently; FedSRD (arXiv 2510.04601), which weighs a
value of one factor by the norm of what it meets in the other. The decomposition is
`testbed.lora.refactor.product_svd`.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from testbed.lora.refactor import product_svd
from testbed.lora.sparse_orthogonal import RankPairs


def spectra(pairs: RankPairs, vector: np.ndarray) -> list[np.ndarray]:
    """Singular values of every module's B A, in falling order.

    Args:
        pairs: of the layout.
        vector: adapter, shape [layout.size].
    """
    return [product_svd(up, down)[1] for down, up in pairs.factors(vector)]


def update_spectra(pairs: RankPairs, before: np.ndarray, update: np.ndarray) -> list[np.ndarray]:
    """Singular values of every module's change B' A' - B A = [B', -B] [A'; A], 2 rank of them at most.

    Args:
        pairs: of the layout.
        before: published adapter, shape [layout.size].
        update: trained minus published, shape [layout.size].
    """
    found = []
    for (down, up), (down_change, up_change) in zip(pairs.factors(before), pairs.factors(update), strict=True):
        wide = np.concatenate([up, np.asarray(up_change, np.float64)], axis=1)
        # B' A' - B A = B dA + dB A'
        tall = np.concatenate([down_change, down.astype(np.float64) + down_change])
        found.append(product_svd(wide, tall)[1])
    return found


def truncated(pairs: RankPairs, vector: np.ndarray, rank: int) -> np.ndarray:
    """Every module's best approximation of that rank, balanced: B <- U sqrt(S), A <- sqrt(S) V^T, zero beyond the rank.

    Args:
        pairs: of the layout.
        vector: adapter, shape [layout.size].
        rank: kept of each module.

    Returns:
        shape [layout.size], dtype of the vector.

    Reference: Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.
    """
    out = np.zeros_like(vector)
    for (down, up), (new_down, new_up) in zip(pairs.factors(vector), pairs.factors(out), strict=True):
        left, strength, right = product_svd(up, down)
        kept = min(rank, len(strength))
        root = np.sqrt(strength[:kept])
        new_up[:, :kept] = left[:, :kept] * root
        new_down[:kept] = root[:, None] * right[:kept]
    return out


def separate_norms(pairs: RankPairs, vector: np.ndarray, keep: float) -> np.ndarray:
    """Rows of A and columns of B of largest norm, chosen apart in every module: the pairs come apart.

    Args:
        pairs: of the layout.
        vector: adapter or update, shape [layout.size].
        keep: share of each module's ranks, rounded to whole ones, at least one.

    Returns:
        Which values are sent, shape [layout.size], bool.
    """
    mask = np.zeros(pairs.layout.size, bool)
    for (down, up), (down_mask, up_mask) in zip(pairs.factors(vector), pairs.factors(mask), strict=True):
        count = max(1, round(keep * len(down)))
        down_mask[np.argsort(-np.linalg.norm(down, axis=1), kind="stable")[:count]] = True
        up_mask[:, np.argsort(-np.linalg.norm(up, axis=0), kind="stable")[:count]] = True
    return mask


def random_pairs(
    pairs: RankPairs, budget: float, rng: np.random.Generator, among: np.ndarray | None = None
) -> np.ndarray:
    """Pairs in random order as long as they fit, shape [num_pairs], bool.

    Args:
        pairs: of the layout.
        budget: values that may be sent.
        rng: draws the order.
        among: which pairs may be drawn, shape [num_pairs], bool; any if None.
    """
    places = np.arange(pairs.num_pairs) if among is None else np.flatnonzero(among)
    order = places[rng.permutation(len(places))]
    kept = np.zeros(pairs.num_pairs, bool)
    kept[order] = np.cumsum(pairs.num_values[order]) <= budget
    return kept


def largest_values(score: np.ndarray, num_kept: int) -> np.ndarray:
    """The values of largest score, earlier ones first where scores tie.

    Args:
        score: shape [num_values]; |update| gives plain top-k.
        num_kept: how many.

    Returns:
        shape [num_values], bool, exactly `num_kept` true.

    Raises:
        ValueError: more than there are, or fewer than none.
    """
    if not 0 <= num_kept <= score.size:
        raise ValueError(f"{num_kept} of {score.size} values cannot be kept")
    mask = np.zeros(score.size, bool)
    if num_kept:
        border = np.partition(score, score.size - num_kept)[score.size - num_kept]
        mask = score > border
        ties = np.flatnonzero(score == border)
        mask[ties[: num_kept - int(mask.sum())]] = True
    return mask


def cross_scores(pairs: RankPairs, before: np.ndarray, update: np.ndarray) -> np.ndarray:
    """FedSRD's score of every value: |dB[u, v]| ||A[v, :]|| and |dA[u, v]| ||B[:, u]||.

    The product's change is dB A + (B + dB) dA, so the row norms of A before and the column norms of B after count.

    Args:
        pairs: of the layout.
        before: published adapter, shape [layout.size].
        update: trained minus published, shape [layout.size].

    Returns:
        shape [layout.size], float64.

    Reference: FedSRD, arXiv 2510.04601.
    """
    score = np.empty(pairs.layout.size)
    parts = zip(pairs.factors(before), pairs.factors(update), pairs.factors(score), strict=True)
    for (down, up), (down_change, up_change), (down_score, up_score) in parts:
        up_score[:] = np.abs(up_change) * np.linalg.norm(down, axis=1)
        down_score[:] = np.abs(down_change) * np.linalg.norm(up + up_change, axis=0)[:, None]
    return score


def values_bit(num_kept: int, size: int, value_bit: int = 16) -> float:
    """Bits of single values: q for each, and log2 of the number of ways to choose them, the least an index can cost.

    Args:
        num_kept: values sent.
        size: values there are.
        value_bit: q.
    """
    ways = gammaln(size + 1) - gammaln(num_kept + 1) - gammaln(size - num_kept + 1)
    return num_kept * value_bit + float(ways) / float(np.log(2.0))
