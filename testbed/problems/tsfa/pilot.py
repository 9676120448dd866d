"""The offline stage of TSFA from a pilot round: the structural rank that the rest of the run keeps.

All nodes train at the adapter's whole rank and send everything once. The spectrum of the mean update, the covariance of
the clients' factors cut to each rank, training seconds and sounded channels are what `weigh_ranks` asks for. Then the
factors are turned so that the first ranks are the best approximation of their rank, and the ranks beyond are emptied.
That the rank is fixed beforehand is from the paper's abstract; the pilot round and what it measures are our reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from testbed.core.adapter import Layout
from testbed.core.errors import ConfigError
from testbed.lora.covariance import aggregation_covariance
from testbed.lora.refactor import mean_product
from testbed.lora.sparse_baselines import update_spectra
from testbed.lora.sparse_orthogonal import RankPairs
from testbed.lora.switch import slice_mask
from testbed.problems.digital_order import ShareLimits
from testbed.problems.tsfa.rank import Candidate, weigh_ranks


def pilot_candidates(
    layout: Layout,
    ranks: Sequence[int],
    before: np.ndarray,
    updates: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    compute_s: np.ndarray,
    gamma_hz: np.ndarray,
    total_hz: float,
    limit_s: float,
    value_bit: int,
    costs: tuple[float, float, float],
    decay: float,
    *,
    attained: np.ndarray | float = 1.0,
    limits: ShareLimits | None = None,
) -> tuple[Candidate, ...]:
    """What each rank would cost and lose.

    Args:
        layout: order of the update's values.
        ranks: to weigh.
        before: adapter the updates started from, shape [layout.size].
        updates: node -> update at the whole rank, shape [layout.size].
        weights: node -> D_n.
        compute_s: Tc_n, shape [num_clients].
        gamma_hz: sounded channels, shape [num_samples, num_clients].
        total_hz: B.
        limit_s: T_bar.
        value_bit: q.
        costs: of rank residual, sparsification and covariance.
        decay: ratio of a singular value to the one before, where the updates are empty.
        attained: part of its rate at which each client's bytes travel, shape [num_clients] or one for all.
        limits: of the shares of the band, instead of `total_hz`.
    """
    pairs = RankPairs.of(layout)
    names = sorted(updates)
    share = np.array([weights[name] for name in names], np.float64)
    mean = np.tensordot(share / share.sum(), np.stack([updates[name] for name in names]).astype(np.float64), 1)
    spectra = update_spectra(pairs, before, mean)
    longest = max(len(one) for one in spectra)
    # over the modules, which all have the rank
    spectrum = np.sqrt(np.mean([np.square(np.pad(one, (0, longest - len(one)))) for one in spectra], axis=0))
    if not spectrum.sum() > 0:
        spectrum = decay ** np.arange(longest)
    covariance = []
    for rank in ranks:
        mask = slice_mask(layout, rank)
        found = aggregation_covariance(pairs, [np.where(mask, before + updates[name], 0.0) for name in names], share)
        # where the mean product vanishes, all of it is lost
        covariance.append(min(found.relative, 1.0))
    return weigh_ranks(
        ranks,
        spectrum,
        covariance,
        int(pairs.num_values.sum() // max(int(pairs.ranks.max()), 1)),
        value_bit,
        len(pairs.down),
        compute_s,
        gamma_hz,
        total_hz if limits is None else limits.total_hz,
        limit_s,
        costs,
        attained=attained,
        least_hz=0.0 if limits is None else limits.least_hz,
        most_hz=np.inf if limits is None else limits.most_hz,
    )


def best_rank(candidates: Sequence[Candidate], limit_s: float) -> Candidate:
    """The rank of least score.

    Raises:
        ConfigError: every rank is too slow; says by how much the nearest misses the limit.
    """
    best = min(candidates, key=lambda one: one.score)
    if not np.isfinite(best.score):
        nearest = min(candidates, key=lambda one: one.excess_s)
        raise ConfigError(
            f"no rank is fast enough: with one pair of each module rank {nearest.rank} takes {nearest.latency_s:.4g} s "
            f"a round, {nearest.excess_s:.4g} s more than the limit of {limit_s:g} s",
            key="scheme.latency_s",
            remedy="raise latency_s, add smaller ranks, or leave slow nodes out",
        )
    return best


def cut_to_rank(
    layout: Layout, adapters: Mapping[str, np.ndarray], weights: Mapping[str, float], rank: int
) -> np.ndarray:
    """The mean product of the adapters, turned so that its first ranks are its best approximation; nothing beyond.

    Args:
        layout: order of the adapter's values.
        adapters: node -> adapter, shape [layout.size].
        weights: node -> D_n.
        rank: to keep.

    Returns:
        shape [layout.size], float32.
    """
    turned = mean_product(layout, adapters, weights).adapter
    return np.where(slice_mask(layout, rank), turned, np.float32(0.0))
