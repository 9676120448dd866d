"""Sparsified orthogonal fine-tuning (SOFT): rank pairs whose size is seen without a product or a decomposition.

A module's change is B A = sum_i b_i a_i^T with b_i a column of B and a_i a row of A: rank pair i. While it trains, a
penalty pulls the pairs towards orthogonality; then I_i = ||b_i|| ||a_i|| is a singular value, and the pairs of largest
I_i are what a truncated decomposition would keep.

Paper: Kim and Choi, "Two-stage wireless federated LoRA fine-tuning with sparsified orthogonal updates", arXiv
2505.00333. From its abstract: near orthogonality imposed on the factors, and an importance of each rank from norms,
without a decomposition. Our reading, since its body was not at hand: the penalty's form (off-diagonal by default, which
leaves the norms free; the form with the identity is AdaLoRA's), the importance of an update, the choice over all
modules' pairs by energy per value, the bitmap, and error feedback on pairs. Pairs are kept or dropped whole: half a
pair means nothing.

Everything works on the flat vector of a `Layout`; vectors over pairs run module by module, rank by rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from testbed.core.adapter import Factor, Layout

Form = Literal["off-diagonal", "identity"]


@dataclass(frozen=True)
class RankPairs:
    """Where the rank pairs of a layout lie.

    Attributes:
        layout: order of the flat vector.
        down, up: the factors A [rank, in] and B [out, rank] of each module.
    """

    layout: Layout
    down: tuple[Factor, ...]
    up: tuple[Factor, ...]

    @classmethod
    def of(cls, layout: Layout) -> RankPairs:
        """The pairs of every module of a layout.

        Raises:
            ValueError: a module's A or B is not in the layout (a frozen A travels in no pair), or their ranks differ.
        """
        found: dict[str, dict[str, Factor]] = {}
        for factor in layout.factors:
            found.setdefault(factor.module, {})[factor.kind] = factor
        for module, factors in found.items():
            if set(factors) != {"A", "B"}:
                raise ValueError(f"{module} trains only {' and '.join(factors)}: rank pairs need both A and B")
            if factors["A"].shape[0] != factors["B"].shape[1]:
                raise ValueError(
                    f"{module} has rank {factors['A'].shape[0]} in A and {factors['B'].shape[1]} in B: make them equal"
                )
        return cls(layout, tuple(one["A"] for one in found.values()), tuple(one["B"] for one in found.values()))

    @cached_property
    def ranks(self) -> np.ndarray:
        """Rank of each module, shape [num_modules]."""
        return np.array([factor.shape[0] for factor in self.down])

    @cached_property
    def num_values(self) -> np.ndarray:
        """Values of each pair, in + out of its module, shape [num_pairs]."""
        sizes = [down.shape[1] + up.shape[0] for down, up in zip(self.down, self.up, strict=True)]
        return np.repeat(sizes, self.ranks)

    @cached_property
    def starts(self) -> np.ndarray:
        """First pair of each module, and the number of pairs at the end, shape [num_modules + 1]."""
        return np.concatenate([[0], np.cumsum(self.ranks)])

    @property
    def num_pairs(self) -> int:
        """Pairs of all modules."""
        return int(self.ranks.sum())

    def factors(self, vector: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Views (A [rank, in], B [out, rank]) of each module.

        Args:
            vector: shape [layout.size].
        """
        views = self.layout.unpack(vector)
        return [(views[down.name], views[up.name]) for down, up in zip(self.down, self.up, strict=True)]

    def mask(self, kept: np.ndarray) -> np.ndarray:
        """Which values of the flat vector belong to kept pairs, shape [layout.size], bool.

        Args:
            kept: shape [num_pairs], bool.

        Raises:
            ValueError: another number of pairs.
        """
        kept = np.asarray(kept, bool)
        if kept.shape != (self.num_pairs,):
            raise ValueError(f"{self.num_pairs} pairs, but a choice of shape {kept.shape}")
        mask = np.empty(self.layout.size, bool)
        for index, (down, up) in enumerate(self.factors(mask)):
            ranks = kept[self.starts[index] : self.starts[index + 1]]
            down[:], up[:] = ranks[:, None], ranks
        return mask


def orthonormal_start(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """A start with orthonormal rows of A and B = 0: the first step finds orthogonal directions.

    Args:
        layout: A and B of every module; each rank at most the module's inputs.
        rng: draws the directions.

    Returns:
        shape [layout.size], float32.

    Raises:
        ValueError: more ranks than inputs.
    """
    vector = np.zeros(layout.size, np.float32)
    for down, _ in RankPairs.of(layout).factors(vector):
        rank, inputs = down.shape
        if rank > inputs:
            raise ValueError(f"{rank} orthogonal rows do not fit into {inputs} inputs: lower the rank")
        down[:] = np.linalg.qr(rng.standard_normal((inputs, rank)))[0].T
    return vector


def penalty(pairs: RankPairs, vector: np.ndarray, form: Form = "off-diagonal") -> tuple[float, np.ndarray]:
    """How far the factors are from orthogonal, the mean over modules, and its gradient, in O(rank^2 (in + out)).

        off-diagonal   Omega = ||B^T B - diag(B^T B)||_F^2 + ||A A^T - diag(A A^T)||_F^2,  dOmega/dB = 4 B (G - diag G)
        identity       Omega = ||B^T B - I||_F^2 + ||A A^T - I||_F^2,                      dOmega/dB = 4 B (G - I)

    with G = B^T B, and alike for A. The second drives norms to 1 as well and so forgets the sizes that importance is
    read from; at B = 0 its gradient vanishes.

    Args:
        pairs: of the layout.
        vector: adapter, shape [layout.size].
        form: what the Gram matrices are compared with.

    Returns:
        Omega, and its gradient, shape [layout.size], float64.

    Reference: Q. Zhang et al., "Adaptive budget allocation for parameter-efficient fine-tuning" (AdaLoRA), arXiv
    2303.10512 (the second form).
    """
    gradient = np.zeros(pairs.layout.size)
    value = 0.0
    count = len(pairs.down)
    for (down, up), (down_slope, up_slope) in zip(pairs.factors(vector), pairs.factors(gradient), strict=True):
        for rows, slope in ((down, down_slope), (up.T, up_slope.T)):
            wide = rows.astype(np.float64)
            gram = wide @ wide.T
            if form == "identity":
                gram[np.diag_indices_from(gram)] -= 1.0
            else:
                np.fill_diagonal(gram, 0.0)
            value += float(np.sum(gram * gram)) / count
            slope[:] = (4.0 / count) * (gram @ wide)
    return value, gradient


def coherence(pairs: RankPairs, vector: np.ndarray) -> tuple[float, float]:
    """Largest cosine between two rows of A and between two columns of B, over all modules: 0 for orthogonal factors.

    With m pairs dropped the energy of what is lost differs from the sum of their I_i^2 by at most the factor
    (m - 1) mu_A mu_B.

    Args:
        pairs: of the layout.
        vector: adapter, shape [layout.size].

    Returns:
        mu_A, mu_B.
    """
    worst = [0.0, 0.0]
    for down, up in pairs.factors(vector):
        for place, rows in enumerate((down, up.T)):
            wide = rows.astype(np.float64)
            length = np.linalg.norm(wide, axis=1, keepdims=True)
            unit = np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
            gram = np.abs(unit @ unit.T)
            np.fill_diagonal(gram, 0.0)
            worst[place] = max(worst[place], float(gram.max(initial=0.0)))
    return worst[0], worst[1]


def energies(pairs: RankPairs, vector: np.ndarray) -> np.ndarray:
    """I_i^2 = ||b_i||^2 ||a_i||^2 of every pair, in O(in + out) each: squared singular values of orthogonal factors.

    Args:
        pairs: of the layout.
        vector: adapter, shape [layout.size].

    Returns:
        shape [num_pairs], float64.
    """
    parts = []
    for down, up in pairs.factors(vector):
        parts.append(_row_dots(down, down) * _row_dots(up.T, up.T))
    return np.concatenate(parts)


def update_energies(pairs: RankPairs, before: np.ndarray, update: np.ndarray) -> np.ndarray:
    """I_i^2 = ||b'_i a'_i^T - b_i a_i^T||_F^2 of every pair, exactly: by how much a pair changed its module.

        with b' = b + beta, a' = a + alpha:   b' a'^T - b a^T = b alpha^T + beta a'^T,
        I^2 = |b|^2 |alpha|^2 + |beta|^2 |a'|^2 + 2 <b, beta> <alpha, a'>

    which is the difference of the products without their cancellation.

    Args:
        pairs: of the layout.
        before: published adapter, shape [layout.size].
        update: trained minus published, shape [layout.size].

    Returns:
        shape [num_pairs], float64, at least 0.
    """
    parts = []
    for (down, up), (down_change, up_change) in zip(pairs.factors(before), pairs.factors(update), strict=True):
        after = down.astype(np.float64) + down_change
        mixed = _row_dots(up.T, up_change.T) * _row_dots(down_change, after)
        squares = _row_dots(up.T, up.T) * _row_dots(down_change, down_change)
        squares += _row_dots(up_change.T, up_change.T) * _row_dots(after, after)
        parts.append(np.maximum(squares + 2.0 * mixed, 0.0))
    return np.concatenate(parts)


def _row_dots(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """<row, row> of two matrices, shape [num_rows], float64."""
    return np.einsum("ij,ij->i", one, other, dtype=np.float64)


def keep_best(squares: np.ndarray, num_values: np.ndarray, budget: float) -> np.ndarray:
    """The pairs worth most within a budget of values, over all modules at once: greedy by energy per value.

    Exact where all pairs have one size; otherwise it misses the best choice's energy by less than one pair's.

    Args:
        squares: I_i^2, shape [num_pairs].
        num_values: of each pair, shape [num_pairs].
        budget: values that may be sent.

    Returns:
        shape [num_pairs], bool.

    Reference: G. B. Dantzig, "Discrete-variable extremum problems", Operations Research 5(2), 1957.
    """
    squares, num_values = np.asarray(squares, np.float64), np.asarray(num_values)
    order = np.argsort(-squares / num_values, kind="stable")
    kept = np.zeros(squares.shape, bool)
    left = budget
    for index in order:
        if num_values[index] <= left:
            kept[index] = True
            left -= num_values[index]
    return kept


@dataclass(frozen=True)
class EnergyCurve:
    """Which share of the energy is lost when a share kappa of the values is sent: convex, falling, piecewise linear.

    Attributes:
        share: kappa at the corners, from 0 to 1, shape [num_corners].
        residual: share of the energy that is left out there, from 1 to 0, shape [num_corners].
    """

    share: np.ndarray
    residual: np.ndarray

    def __call__(self, share: np.ndarray | float) -> np.ndarray:
        """delta(kappa), shape as `share`."""
        return np.interp(share, self.share, self.residual)

    @property
    def slopes(self) -> np.ndarray:
        """d delta / d kappa of each piece, rising towards 0, shape [num_corners - 1]."""
        return np.diff(self.residual) / np.diff(self.share)


def residual_curve(squares: np.ndarray, num_values: np.ndarray) -> EnergyCurve:
    """The curve of sending the pairs in the order of their energy per value.

    Args:
        squares: I_i^2, shape [num_pairs].
        num_values: of each pair, shape [num_pairs].

    Raises:
        ValueError: no energy at all, or a negative one.
    """
    squares, num_values = np.asarray(squares, np.float64), np.asarray(num_values, np.float64)
    if not (np.all(squares >= 0) and 0 < squares.sum() < np.inf):
        raise ValueError("a residual curve needs energies of at least 0, not all of them 0")
    order = np.argsort(-squares / num_values, kind="stable")
    share = np.concatenate([[0.0], np.cumsum(num_values[order])]) / num_values.sum()
    # summed from the small end, so that a tail below the rounding of the whole keeps its digits
    left = np.concatenate([np.cumsum(squares[order][::-1])[::-1], [0.0]]) / squares.sum()
    share[-1], left[0] = 1.0, 1.0
    return EnergyCurve(share, left)


@dataclass(frozen=True)
class Sparsified:
    """One node's sparsified update.

    Attributes:
        sent: what travels, zero outside of kept pairs, shape [layout.size].
        residual: what stays and is added to the next update, shape [layout.size]; sent + residual is the update with
            the former residual, bit for bit.
        kept: shape [num_pairs], bool.
        lost: share of the update's energy in dropped pairs.
    """

    sent: np.ndarray
    residual: np.ndarray
    kept: np.ndarray
    lost: float


def sparsify(
    pairs: RankPairs,
    before: np.ndarray,
    update: np.ndarray,
    budget: float,
    residual: np.ndarray | None = None,
) -> Sparsified:
    """One update with error feedback on whole pairs: u = Delta + e, send S(u), e <- u - S(u).

    Args:
        pairs: of the layout.
        before: published adapter, shape [layout.size].
        update: Delta, trained minus published, shape [layout.size].
        budget: values that may be sent.
        residual: e of the round before, shape [layout.size]; none if absent.

    Raises:
        ValueError: an update that is not finite.
    """
    whole = update if residual is None else update + residual
    energy = update_energies(pairs, before, whole)
    if not np.all(np.isfinite(energy)):
        raise ValueError("an update with values that are not finite cannot be sparsified: training has diverged")
    kept = keep_best(energy, pairs.num_values, budget)
    mask = pairs.mask(kept)
    total = float(energy.sum())
    lost = float(energy[~kept].sum()) / total if total > 0 else 0.0
    zero = whole.dtype.type(0)
    return Sparsified(np.where(mask, whole, zero), np.where(mask, zero, whole), kept, lost)
