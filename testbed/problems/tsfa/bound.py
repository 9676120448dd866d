"""The convergence bound of sparsified, separately averaged LoRA factors, as numbers.

With W+ = W - eta (grad F - h + xi) + eps, where h is the part of the gradient that no rank-r factor follows, xi noise
of variance sigma^2, eps = -sum_n w_n E_n - Cov the errors of sparsification and of averaging factors apart, and
eta <= 1 / L:

    (1/T) sum E||grad F||^2 <= 2 (F_0 - F*) / (eta T) + (2/T) sum ||h||^2
                               + (4 / (eta^2 T)) sum [(sum_n w_n ||E_n||)^2 + ||Cov||^2] + L eta sigma^2         (13)

These are the three effects that the paper's abstract names (rank, sparsification, covariance); the constants are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BoundTerms:
    """What each effect adds to the mean squared gradient.

    Attributes:
        start: 2 (F_0 - F*) / (eta T).
        rank: of h.
        sparsification: of E.
        covariance: of averaging factors apart.
        noise: of minibatches.
    """

    start: float
    rank: float
    sparsification: float
    covariance: float
    noise: float

    @property
    def total(self) -> float:
        """The right side of (13)."""
        return self.start + self.rank + self.sparsification + self.covariance + self.noise


def convergence_bound(
    smoothness: float,
    step: float,
    initial_gap: float,
    rank_residual: np.ndarray,
    sparsification: np.ndarray,
    covariance: np.ndarray,
    variance: float = 0.0,
) -> BoundTerms:
    """The terms of (13).

    Args:
        smoothness: L.
        step: eta, at most 1 / L.
        initial_gap: F_0 - F*.
        rank_residual: ||h^t||^2, shape [num_rounds].
        sparsification: sum_n w_n ||E_n^t||, shape [num_rounds].
        covariance: ||Cov^t||, shape [num_rounds].
        variance: sigma^2.

    Raises:
        ValueError: a step above 1 / L, or no rounds.
    """
    if not (smoothness > 0 and 0 < step <= 1.0 / smoothness * (1 + 1e-12)):
        raise ValueError(f"the bound needs a step of at most 1 / L = {1.0 / smoothness:g}, not {step:g}")
    rank_residual, sparsification, covariance = (
        np.atleast_1d(np.asarray(one, np.float64)) for one in (rank_residual, sparsification, covariance)
    )
    rounds = len(rank_residual)
    if rounds == 0 or not rank_residual.shape == sparsification.shape == covariance.shape:
        raise ValueError("the bound needs one number of each kind for every round")
    return BoundTerms(
        2.0 * initial_gap / (step * rounds),
        2.0 * float(np.mean(rank_residual)),
        4.0 / step**2 * float(np.mean(np.square(sparsification))),
        4.0 / step**2 * float(np.mean(np.square(covariance))),
        smoothness * step * variance,
    )
