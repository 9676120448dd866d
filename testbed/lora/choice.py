"""Which values of an update travel: parts that both sides know, and choices that a node makes and tells.

What a payload sends is a bitmap of the node's choice, if there is one, followed by the chosen values in the order of
the flat vector. Both sides compute the same mask, so a value costs nothing but itself.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np

from testbed.core.adapter import Factor, Layout
from testbed.core.uplinks import Part, Payload
from testbed.lora.sparse_baselines import cross_scores, random_pairs, separate_norms
from testbed.lora.sparse_orthogonal import RankPairs, keep_best, update_energies
from testbed.lora.switch import max_rank, slice_mask

_Along: TypeAlias = Literal["ranks", "sides"]


def part_mask(layout: Layout, part: Part) -> np.ndarray:
    """The values that may travel.

    Args:
        layout: order of the flat vector.
        part: which of them.

    Returns:
        shape [layout.size], bool.

    Raises:
        ValueError: nothing is left, a rank that the layout does not have, or no k-th of n stretches.
    """
    mask = np.ones(layout.size, bool)
    if part.kinds or part.patterns:
        for factor in layout.factors:
            named = not part.patterns or any(fnmatchcase(factor.name, pattern) for pattern in part.patterns)
            named = named and (not part.kinds or factor.kind in part.kinds)
            mask[layout.slices[factor.name]] = named != part.others
    if part.ranks is not None and part.ranks < max_rank(layout):
        mask &= slice_mask(layout, part.ranks)
    if part.columns is not None:
        mask &= columns_mask(layout, part.columns)
    if part.segment is not None:
        index, count = part.segment
        if not 0 <= index < count:
            raise ValueError(f"there is no stretch {index} of {count}; count from 0")
        edges = np.linspace(0, np.count_nonzero(mask), count + 1).round().astype(np.int64)
        kept = np.flatnonzero(mask)[edges[index] : edges[index + 1]]
        mask[:] = False
        mask[kept] = True
    if not mask.any():
        raise ValueError(f"no value of the adapter belongs to {part}; its factors are {_listed(layout)}")
    return mask


def columns_mask(layout: Layout, columns: tuple[int, ...]) -> np.ndarray:
    """The values of these ranks of every module, shape [layout.size], bool.

    Args:
        layout: order of the flat vector; LoRA factors alone.
        columns: ranks, counted from 0, ascending.

    Raises:
        ValueError: no rank, one that the layout does not have, or another order.
    """
    most = max_rank(layout)
    if not columns or not 0 <= columns[0] <= columns[-1] < most or any(a >= b for a, b in pairwise(columns)):
        raise ValueError(f"columns {columns} of a LoRA of rank {most}: give ranks from 0 to {most - 1}, ascending")
    mask = np.zeros(layout.size, bool)
    views = layout.unpack(mask)
    for factor in layout.factors:
        # a module of a smaller rank has fewer of them
        there = [column for column in columns if column < factor.shape[0 if factor.kind == "A" else 1]]
        if factor.kind == "A":
            views[factor.name][there] = True
        else:
            views[factor.name][:, there] = True
    return mask


def choose(
    layout: Layout, payload: Payload, before: np.ndarray, update: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, bytes]:
    """The node's choice among the values of its part.

    Args:
        layout: order of the flat vector.
        payload: part, choice and keep.
        before: published adapter, shape [layout.size].
        update: trained minus published, with what is fed back, shape [layout.size].
        rng: draws lots where the choice asks for it.

    Returns:
        which values travel, shape [layout.size], bool; the bitmap that tells the other side.

    Raises:
        ValueError: as `part_mask`; or rank pairs are asked of a layout without them.
    """
    mask = part_mask(layout, payload.part)
    match payload.choice:
        case "all" | "scores":
            return mask, b""
        case "pairs" | "random":
            pairs = RankPairs.of(layout)
            # pairs of which the part holds a value
            held = _held(pairs, mask)
            # 0.1 * 30 is a little more than 3 in binary
            budget = payload.keep * float(pairs.num_values[held].sum()) * (1 + 1e-12)
            if payload.choice == "pairs":
                kept = np.zeros(pairs.num_pairs, bool)
                kept[held] = keep_best(update_energies(pairs, before, update)[held], pairs.num_values[held], budget)
            else:
                kept = random_pairs(pairs, budget, rng, held)
            return mask & pairs.mask(kept), np.packbits(kept).tobytes()
        case "separate":
            kept = separate_norms(RankPairs.of(layout), update, payload.keep)
            return mask & kept, np.packbits(_flags(layout, kept, "ranks")).tobytes()
        case "touched":
            flags = _flags(layout, update != 0, "sides")
            return mask & _of_flags(layout, flags, "sides"), np.packbits(flags).tobytes()


def chosen(layout: Layout, payload: Payload, bitmap: bytes) -> np.ndarray:
    """The mask that `choose` made, from its bitmap.

    Args:
        layout: order of the flat vector.
        payload: part and choice.
        bitmap: of `bitmap_bytes` bytes.

    Returns:
        shape [layout.size], bool.

    Raises:
        ValueError: as `part_mask`, or a bitmap of another length.
    """
    mask = part_mask(layout, payload.part)
    if len(bitmap) != bitmap_bytes(layout, payload):
        raise ValueError(f"a bitmap of {len(bitmap)} bytes where {bitmap_bytes(layout, payload)} are due")
    flags = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=_num_flags(layout, payload)).astype(bool)
    match payload.choice:
        case "all" | "scores":
            return mask
        case "pairs" | "random":
            return mask & RankPairs.of(layout).mask(flags)
        case "separate":
            return mask & _of_flags(layout, flags, "ranks")
        case "touched":
            return mask & _of_flags(layout, flags, "sides")


def scored(layout: Layout, before: np.ndarray, update: np.ndarray, mask: np.ndarray, keep: float) -> np.ndarray:
    """The update with zeros where a value's score is not among the largest.

    Args:
        layout: order of the flat vector.
        before: published adapter, shape [layout.size].
        update: shape [layout.size].
        mask: values that may travel, shape [layout.size], bool.
        keep: share of those that do.

    Returns:
        shape [layout.size].
    """
    score = np.where(mask, cross_scores(RankPairs.of(layout), before, update), -1.0)
    count = min(int(mask.sum()), int(np.ceil(keep * mask.sum() - 1e-9)))
    index = np.argpartition(score, score.size - count)[score.size - count :]
    kept = np.zeros_like(update)
    kept[index] = update[index]
    return kept


def bitmap_bytes(layout: Layout, payload: Payload) -> int:
    """Length of the bitmap."""
    return -(-_num_flags(layout, payload) // 8)


def _held(pairs: RankPairs, mask: np.ndarray) -> np.ndarray:
    """Which pairs have a value in the mask, shape [num_pairs], bool."""
    return np.concatenate([down.any(axis=1) | up.any(axis=0) for down, up in pairs.factors(mask)])


def _num_flags(layout: Layout, payload: Payload) -> int:
    match payload.choice:
        case "all" | "scores":
            return 0
        case "pairs" | "random":
            return RankPairs.of(layout).num_pairs
        case "separate":
            return sum(_count(factor, "ranks") for factor in layout.factors)
        case "touched":
            return sum(_count(factor, "sides") for factor in layout.factors)


def _axis(factor: Factor, along: _Along) -> int:
    """The axis whose entries have a flag each: ranks, or inputs of A and outputs of B."""
    if len(factor.shape) == 1:
        return 0
    return int((factor.kind == "A") == (along == "sides"))


def _count(factor: Factor, along: _Along) -> int:
    return factor.shape[_axis(factor, along)]


def _flags(layout: Layout, marked: np.ndarray, along: _Along) -> np.ndarray:
    """Whether anything is marked in each rank, or of each side, factor by factor, shape [num_flags], bool."""
    views = layout.unpack(marked)
    found = []
    for factor in layout.factors:
        others = tuple(axis for axis in range(len(factor.shape)) if axis != _axis(factor, along))
        found.append(views[factor.name].any(axis=others))
    return np.concatenate(found)


def _of_flags(layout: Layout, flags: np.ndarray, along: _Along) -> np.ndarray:
    """The mask whose flags these are, shape [layout.size], bool."""
    mask = np.zeros(layout.size, bool)
    views, start = layout.unpack(mask), 0
    for factor in layout.factors:
        stop = start + _count(factor, along)
        if _axis(factor, along) == 0 and len(factor.shape) == 2:
            views[factor.name][:] = flags[start:stop, None]
        else:
            views[factor.name][:] = flags[start:stop]
        start = stop
    return mask


def _listed(layout: Layout) -> str:
    kinds = sorted({factor.kind for factor in layout.factors})
    return f"of kind {', '.join(kinds)} and rank {max(max(factor.shape) for factor in layout.factors)} at most"
