"""The offline stage of TSFA: which structural rank the whole run has.

For every rank r: what no rank-r factor follows, phi_lr(r) = sum over i > r of sigma_i^2 over all, from a pilot's
spectrum; what averaging apart loses, phi_cov(r), from pilot clients; and kappa_bar(r), the keep ratio whose mean
optimal latency over sampled channels is the limit, with the residual energy phi_sp(r) that it leaves. The rank with the
least c_1 phi_lr + c_2 phi_sp + c_3 phi_cov is chosen; ranks whose least keep ratio is too slow are left out.

That the offline stage fixes the rank alone is from the paper's abstract; the rest is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.lora.sparse_orthogonal import residual_curve
from testbed.opt.share import min_max_share


@dataclass(frozen=True)
class Candidate:
    """One rank.

    Attributes:
        rank: r.
        keep: kappa_bar, the largest keep ratio, equal for all, that keeps the mean latency.
        latency_s: mean latency at that ratio.
        excess_s: by how much the least keep ratio already exceeds the limit; 0 where it does not.
        rank_residual: phi_lr.
        sparsification: phi_sp; NaN where the rank is too slow.
        covariance: phi_cov.
        score: weighted sum; infinite where the rank is too slow.
    """

    rank: int
    keep: float
    latency_s: float
    excess_s: float
    rank_residual: float
    sparsification: float
    covariance: float
    score: float


def weigh_ranks(
    ranks: Sequence[int],
    spectrum: np.ndarray,
    covariance: Sequence[float],
    values_per_rank: int,
    value_bit: int,
    num_modules: int,
    compute_s: np.ndarray,
    gamma_hz: np.ndarray,
    total_hz: float,
    limit_s: float,
    costs: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    attained: np.ndarray | float = 1.0,
    least_hz: np.ndarray | float = 0.0,
    most_hz: np.ndarray | float = np.inf,
) -> tuple[Candidate, ...]:
    """All ranks, in the order given. The best is the one of least score.

    Args:
        ranks: to try.
        spectrum: singular values of a pilot update, falling, shape [num_values].
        covariance: phi_cov of each rank.
        values_per_rank: sum over modules of inputs and outputs.
        value_bit: q.
        num_modules: whose bitmaps travel.
        compute_s: Tc_n, shape [num_clients].
        gamma_hz: sampled channels, shape [num_samples, num_clients].
        total_hz: B.
        limit_s: mean latency.
        costs: c_1, c_2, c_3.
        attained: part of its rate at which each client's bytes travel, shape [num_clients] or one for all.
        least_hz, most_hz: limits of the shares of the band, that broadcast to the shape of `gamma_hz`.

    Raises:
        ValueError: a rank below 1, or a spectrum without energy.
    """
    energy = np.square(np.sort(np.asarray(spectrum, np.float64))[::-1])
    if min(ranks) < 1 or not energy.sum() > 0:
        raise ValueError("ranks start at 1, and a spectrum needs energy")
    limited = bool(np.any(np.asarray(least_hz) > 0) or np.any(np.isfinite(most_hz)))
    least_all, most_all = (np.broadcast_to(one, gamma_hz.shape) if limited else None for one in (least_hz, most_hz))
    before_s = np.broadcast_to(compute_s, gamma_hz.shape)
    found = []
    for rank, drift in zip(ranks, covariance, strict=True):
        payload_bit, header_bit = float(rank * values_per_rank * value_bit), float(rank * num_modules)
        kept = energy[:rank] if len(energy) >= rank else np.pad(energy, (0, rank - len(energy)))
        curve = residual_curve(kept, np.ones(rank))
        beyond = float(energy[rank:].sum() / energy.sum())

        def mean_s(keep: float, payload: float = payload_bit, header: float = header_bit) -> float:
            work = np.broadcast_to((keep * payload + header) / np.asarray(attained), gamma_hz.shape)
            return float(
                np.mean(min_max_share(work, before_s, gamma_hz, total_hz, least=least_all, most=most_all).value)
            )

        least = 1.0 / rank
        keep, latency_s = _largest_keep(mean_s, least, limit_s)
        excess_s = max(latency_s - limit_s, 0.0) if keep <= least else 0.0
        slow = excess_s > 1e-9 * limit_s
        lost = float("nan") if slow else float(curve(keep)) * (1.0 - beyond)
        score = np.inf if slow else costs[0] * beyond + costs[1] * lost + costs[2] * drift
        found.append(Candidate(rank, keep, latency_s, excess_s, beyond, lost, drift, float(score)))
    return tuple(found)


def _largest_keep(mean_s: Callable[[float], float], least: float, limit_s: float) -> tuple[float, float]:
    """The largest ratio in [least, 1] within the limit, and its mean latency; the least one where none is."""
    whole_s, first_s = mean_s(1.0), mean_s(least)
    if whole_s <= limit_s:
        return 1.0, whole_s
    if first_s >= limit_s:
        return least, first_s
    low, high = least, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if mean_s(middle) <= limit_s else (low, middle)
        if high - low <= 1e-12:
            break
    return low, mean_s(low)
