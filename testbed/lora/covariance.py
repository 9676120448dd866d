"""What is lost when factors are averaged apart: the covariance of B and A over the nodes.

    sum_n w_n B_n A_n - Bbar Abar = sum_n w_n (B_n - Bbar)(A_n - Abar) = Cov_w(B, A)

exactly, for weights that add up to one. Norms come from Gram matrices of the factors; no product is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.lora.sparse_orthogonal import RankPairs


@dataclass(frozen=True)
class Covariance:
    """Squared norms over all modules.

    Attributes:
        squared: ||Cov_w(B, A)||_F^2.
        bound: the Cauchy-Schwarz bound, sum over modules of (sum_n w_n ||B_n - Bbar||^2) (sum_n w_n ||A_n - Abar||^2).
        mean_squared: ||Bbar Abar||_F^2, to compare with.
    """

    squared: float
    bound: float
    mean_squared: float

    @property
    def relative(self) -> float:
        """squared / mean_squared; infinite where the mean product is zero and the covariance is not."""
        if self.mean_squared > 0:
            return self.squared / self.mean_squared
        return 0.0 if self.squared == 0 else np.inf


def aggregation_covariance(pairs: RankPairs, adapters: Sequence[np.ndarray], weights: np.ndarray) -> Covariance:
    """The error of averaging A and B apart.

    Args:
        pairs: of the layout.
        adapters: one for each node, shape [layout.size] each.
        weights: shape [num_nodes], positive; scaled to add up to one.

    Raises:
        ValueError: no adapters, or weights that do not fit them.
    """
    # [num_nodes]
    shares = np.asarray(weights, np.float64)
    if len(adapters) == 0 or shares.shape != (len(adapters),) or not (np.all(shares >= 0) and shares.sum() > 0):
        raise ValueError(f"{len(adapters)} adapters need as many weights of at least 0, not all 0; got {shares}")
    shares = shares / shares.sum()
    squared = bound = mean_squared = 0.0
    for parts in zip(*(pairs.factors(adapter) for adapter in adapters), strict=True):
        # [num_nodes, rank, in], [num_nodes, out, rank]
        down = np.stack([one[0] for one in parts]).astype(np.float64)
        up = np.stack([one[1] for one in parts]).astype(np.float64)
        down_mean, up_mean = np.tensordot(shares, down, 1), np.tensordot(shares, up, 1)
        down_drift, up_drift = down - down_mean, up - up_mean
        squared += product_energy(
            np.concatenate(list(up_drift * shares[:, None, None]), axis=1), np.concatenate(list(down_drift))
        )
        mean_squared += product_energy(up_mean, down_mean)
        spread = [float(shares @ np.sum(np.square(drift), axis=(1, 2))) for drift in (up_drift, down_drift)]
        bound += spread[0] * spread[1]
    return Covariance(squared, bound, mean_squared)


def product_energy(left: np.ndarray, right: np.ndarray) -> float:
    """||X Y||_F^2 = <X^T X, Y Y^T> without the product.

    Args:
        left: X, shape [rows, inner].
        right: Y, shape [inner, columns].
    """
    return max(float(np.sum((left.T @ left) * (right @ right.T))), 0.0)
