"""What pruning costs in accuracy: the energy of the weights that a pruning ratio removes.

e_k(rho) bounds ||w - w m_k||^2 for the mask m_k of ratio rho. For magnitude pruning it is the sum of the smallest
squares, known before training where the base is frozen: convex, nondecreasing, piecewise linear. The usual bound of the
literature, rho D^2 with D^2 = ||w||^2, is its chord. Which of them the paper takes is not known; both are offered.

Reference: S. Stich, J. Cordonnier, M. Jaggi, "Sparsified SGD with memory", NeurIPS 2018 (the chord).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class PenaltyCurves:
    """e_k(rho) of every client, by its knots; straight between them.

    Attributes:
        ratio: knots, shape [num_clients, num_knots], from 0 to 1 along each row; equal neighbours are allowed.
        removed: e_k there, the same shape: 0 at 0, convex, nondecreasing.
    """

    ratio: np.ndarray
    removed: np.ndarray

    def __post_init__(self) -> None:
        if self.ratio.ndim != 2 or self.ratio.shape != self.removed.shape or self.ratio.shape[1] < 2:
            raise ValueError(f"knots {self.ratio.shape} and energies {self.removed.shape} are no curves of two knots")
        run, rise = np.diff(self.ratio, axis=1), np.diff(self.removed, axis=1)
        if not (np.all(self.ratio[:, 0] == 0) and np.all(self.ratio[:, -1] == 1) and np.all(run >= 0)):
            raise ValueError("the knots of a penalty curve go from ratio 0 to ratio 1")
        if not (np.isfinite(self.removed).all() and np.all(self.removed[:, 0] == 0) and np.all(rise >= 0)):
            raise ValueError("a penalty curve begins at 0 and does not fall")
        if np.any((run == 0) & (rise > 0)):
            raise ValueError("a penalty curve does not jump")
        slopes = self.slopes
        if np.any(np.diff(slopes, axis=1) < -1e-9 * slopes[:, -1:]):
            raise ValueError("a penalty curve is convex: what is pruned first costs least")

    @cached_property
    def slopes(self) -> np.ndarray:
        """Of the pieces, shape [num_clients, num_knots - 1]; a piece without length has its predecessor's slope."""
        run, rise = np.diff(self.ratio, axis=1), np.diff(self.removed, axis=1)
        slopes = rise / np.where(run > 0, run, 1.0)
        for piece in range(1, slopes.shape[1]):
            slopes[:, piece] = np.where(run[:, piece] > 0, slopes[:, piece], slopes[:, piece - 1])
        return slopes

    def at(self, ratio: np.ndarray) -> np.ndarray:
        """e_k(rho), shape [..., num_clients], at ratios of that shape inside [0, 1]."""
        piece = self._piece(ratio)
        left, base = (_pick(item, piece) for item in (self.ratio, self.removed))
        return base + _pick(self.slopes, piece) * (ratio - left)

    def slope_at(self, ratio: np.ndarray, tolerance: float = 1e-9) -> tuple[np.ndarray, np.ndarray]:
        """Slopes to the left and to the right of a ratio, each of shape [..., num_clients].

        Args:
            ratio: shape [..., num_clients].
            tolerance: a ratio this close to a knot lies on it.
        """
        slopes = self.slopes
        return _pick(slopes, self._piece(ratio - tolerance)), _pick(slopes, self._piece(ratio + tolerance))

    def within(self, max_ratio: np.ndarray) -> PenaltyPieces:
        """The pieces below the largest ratios, shape [num_clients]."""
        knots = np.minimum(self.ratio, max_ratio[:, None])
        return PenaltyPieces(knots, self.slopes)

    def _piece(self, ratio: np.ndarray) -> np.ndarray:
        # inner knots at or below the ratio
        return (np.asarray(ratio)[..., None] >= self.ratio[:, 1:-1]).sum(axis=-1)


@dataclass(frozen=True)
class PenaltyPieces:
    """Penalty curves cut off at the largest ratios.

    Attributes:
        ratio: knots, shape [num_clients, num_pieces + 1].
        slope: of the pieces, shape [num_clients, num_pieces].
    """

    ratio: np.ndarray
    slope: np.ndarray


def chord(squared_norm: np.ndarray) -> PenaltyCurves:
    """e_k(rho) = rho D_k^2.

    Args:
        squared_norm: D_k^2, at least 0, shape [num_clients].
    """
    squared_norm = np.asarray(squared_norm, np.float64)
    return PenaltyCurves(
        np.tile([0.0, 1.0], (len(squared_norm), 1)), np.stack([np.zeros(len(squared_norm)), squared_norm], axis=1)
    )


def magnitude(weights: Sequence[np.ndarray], num_pieces: int = 16) -> PenaltyCurves:
    """e_k(rho) of magnitude pruning, the sum of the floor(rho P) smallest squares, on evenly spaced knots.

    Straight lines between knots of a convex curve lie above it: the bound keeps holding.

    Args:
        weights: w_k, any shape, one of each client.
        num_pieces: of a curve.

    Raises:
        ValueError: a client without weights, or weights that are not finite.
    """
    knots = np.linspace(0.0, 1.0, num_pieces + 1)
    curves = []
    for client, values in enumerate(weights):
        squares = np.sort(np.square(np.asarray(values, np.float64)).reshape(-1))
        if len(squares) == 0 or not np.isfinite(squares[-1]):
            raise ValueError(f"client {client} has no weights, or weights that are not finite")
        total = np.concatenate([[0.0], np.cumsum(squares)])
        curves.append(np.interp(knots * len(squares), np.arange(len(total)), total))
    return PenaltyCurves(np.tile(knots, (len(curves), 1)), np.array(curves))


def _pick(table: np.ndarray, place: np.ndarray) -> np.ndarray:
    """table[k, place[..., k]], shape [..., num_clients]."""
    return table[np.arange(table.shape[0]), place]
