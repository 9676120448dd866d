"""The bytes of an update of which only a part travels: a bitmap of the node's choice, then the coded values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from testbed.core.adapter import Layout
from testbed.core.uplinks import Part, Payload
from testbed.lora.choice import bitmap_bytes, choose, chosen, part_mask, scored
from testbed.phy import payload as coding


def is_whole(payload: Payload) -> bool:
    """Whether every value of the update may travel."""
    return payload.choice == "all" and payload.part == Part()


def encode(layout: Layout, payload: Payload, before: np.ndarray, update: np.ndarray, *, seed: int) -> bytes:
    """The bytes of an update.

    Args:
        layout: order of the flat vector.
        payload: which values travel, and how they are coded.
        before: published adapter, shape [layout.size].
        update: trained minus published, with what is fed back, shape [layout.size].
        seed: of the lots of choice random.

    Raises:
        ValueError: as `testbed.lora.choice.choose` and `testbed.phy.payload.encode`.
    """
    mask, bitmap = choose(layout, payload, before, update, np.random.default_rng(seed))
    if payload.choice == "scores":
        values = scored(layout, before, update, mask, payload.keep)[mask]
        # what is not sent is zero, so the largest values are those with the largest scores
        coded = replace(payload, kind="topk")
    else:
        values, coded = update[mask], payload
    return bitmap + coding.encode(values, coded)


def decode(layout: Layout, payload: Payload, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The update that the bytes say.

    Args:
        layout: order of the flat vector.
        payload: what `encode` was given.
        data: its bytes.

    Returns:
        the update, zero where nothing was sent, shape [layout.size], float32; which values the bytes speak of, shape
        [layout.size], bool.

    Raises:
        ValueError: the bytes are not those of such an update.
    """
    split = bitmap_bytes(layout, payload)
    covered = chosen(layout, payload, data[:split])
    update = np.zeros(layout.size, np.float32)
    update[covered] = coding.decode(data[split:], int(np.count_nonzero(covered)))
    if payload.choice == "scores" or payload.kind == "topk":
        covered &= update != 0
    return update, covered


def num_bytes(layout: Layout, payload: Payload) -> int | None:
    """Length of what `encode` returns; None where it depends on the update."""
    if not coding.has_fixed_length(payload):
        return None
    match payload.choice:
        case "all":
            return coding.num_bytes(payload, int(np.count_nonzero(part_mask(layout, payload.part))))
        case "scores":
            count = int(np.count_nonzero(part_mask(layout, payload.part)))
            return coding.num_bytes(replace(payload, kind="topk"), count)
        case _:
            return None


def typical_bytes(layout: Layout, payload: Payload) -> int:
    """Length of what `encode` returns; where it depends on the update, the most that `keep` allows."""
    known = num_bytes(layout, payload)
    if known is not None:
        return known
    count = int(np.count_nonzero(part_mask(layout, payload.part)))
    if payload.kind == "topk":
        return coding.num_bytes(payload, count)
    kept = count if payload.choice == "touched" else math.ceil(payload.keep * count)
    return bitmap_bytes(layout, payload) + coding.num_bytes(payload, kept)
