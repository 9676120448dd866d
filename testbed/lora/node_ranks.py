"""Ranks that differ from node to node: who has which, what of an adapter is theirs, and what they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from testbed.core.adapter import Layout
from testbed.core.errors import ConfigError
from testbed.core.orders import Part, Work
from testbed.lora.refactor import trains_both
from testbed.lora.sparse_orthogonal import RankPairs
from testbed.lora.switch import max_rank, slice_mask


def ranks_of(layout: Layout, names: Sequence[str], ranks: Sequence[int]) -> dict[str, int]:
    """node -> its rank.

    Args:
        layout: of the global adapter, whose rank is the largest.
        names: nodes, in the order of the fleet.
        ranks: of the nodes in turn, from the start again where there are more nodes; the adapter's for all if empty.

    Raises:
        ConfigError: the adapter lacks A or B, or a rank that it does not have.
    """
    if not trains_both(layout):
        raise ConfigError(
            "products of factors need an adapter that trains A and B, and this one does not",
            key="lora.freeze_a",
            remedy="set freeze_a = false in [lora]",
        )
    most = max_rank(layout)
    wrong = [rank for rank in ranks if not 1 <= rank <= most]
    if wrong:
        raise ConfigError(
            f"a node cannot have rank {wrong[0]} of an adapter of rank {most}",
            key="scheme.ranks",
            remedy=f"choose ranks from 1 to {most}, or raise lora.rank",
        )
    if not ranks:
        return dict.fromkeys(names, most)
    return {name: ranks[index % len(ranks)] for index, name in enumerate(names)}


def truncated_work(layout: Layout, rank: int) -> Work:
    """Training of the first ranks alone, the others taken out."""
    return Work() if rank >= max_rank(layout) else Work(ranks=rank, others="absent")


def truncated_part(layout: Layout, rank: int) -> Part:
    """What of the update a node of that rank sends."""
    return Part() if rank >= max_rank(layout) else Part(ranks=rank)


def sketches(layout: Layout, ranks: Mapping[str, int], rng: np.random.Generator) -> dict[str, tuple[int, ...]]:
    """node -> the ranks of its sketch, ascending: each subset of that size is as likely as any other.

    Args:
        layout: of the global adapter.
        ranks: node -> how many.
        rng: draws the lots, node by node in the order of `ranks`.
    """
    most = max_rank(layout)
    return {name: tuple(sorted(rng.choice(most, count, replace=False).tolist())) for name, count in ranks.items()}


def tail_products(layout: Layout, vector: np.ndarray, first: int, last: int) -> float:
    """sum over modules ||B_tail||_F ||A_tail||_F, the ranks first <= i < last.

    Args:
        layout: A and B of every module.
        vector: adapter, shape [layout.size].
        first, last: the tail, counted from 0.
    """
    return sum(
        float(np.linalg.norm(down[first:last]) * np.linalg.norm(up[:, first:last]))
        for down, up in RankPairs.of(layout).factors(vector)
    )


def node_adapters(
    layout: Layout, before: np.ndarray, updates: Mapping[str, np.ndarray], ranks: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Where each node came to, zero beyond its rank.

    Args:
        layout: order of the values.
        before: published adapter, shape [layout.size].
        updates: node -> its update, shape [layout.size].
        ranks: node -> its rank.

    Returns:
        node -> adapter, shape [layout.size].
    """
    zero = before.dtype.type(0)
    return {name: np.where(slice_mask(layout, ranks[name]), before + update, zero) for name, update in updates.items()}
