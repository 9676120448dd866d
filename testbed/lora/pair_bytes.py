"""Rank pairs as bytes: a bitmap of which are kept, then their values, and how many bytes that is."""

from __future__ import annotations

from typing import Literal

import numpy as np

from testbed.lora.sparse_orthogonal import RankPairs

ValueType = Literal["float32", "float16"]
_BITS = {"float32": 32, "float16": 16}


def payload_bit(pairs: RankPairs, kept: np.ndarray, value_bit: int = 16) -> int:
    """Bits on air of a choice of pairs: q sum over kept of (in + out), and one bit for each pair, in whole bytes.

    Args:
        pairs: of the layout.
        kept: shape [num_pairs], bool.
        value_bit: q, bits of a value.
    """
    values = int(pairs.num_values[np.asarray(kept, bool)].sum()) * value_bit
    return 8 * (-(-values // 8) + -(-pairs.num_pairs // 8))


def encode(pairs: RankPairs, vector: np.ndarray, kept: np.ndarray, values: ValueType = "float16") -> bytes:
    """The bitmap, highest bit first, then kept values in the order of the flat vector, little endian.

    Args:
        pairs: of the layout.
        vector: shape [layout.size].
        kept: shape [num_pairs], bool.
        values: how a value is written.

    Raises:
        ValueError: a value that the type cannot hold.
    """
    kept = np.asarray(kept, bool)
    chosen = vector[pairs.mask(kept)]
    largest = np.finfo(values).max
    if not np.all(np.abs(chosen) <= largest):
        raise ValueError(f"a value beyond {largest:g} does not fit into {values}: send float32, or clip the update")
    return np.packbits(kept).tobytes() + chosen.astype(np.dtype(values).newbyteorder("<")).tobytes()


def decode(pairs: RankPairs, data: bytes, values: ValueType = "float16") -> tuple[np.ndarray, np.ndarray]:
    """What `encode` wrote.

    Args:
        pairs: of the layout.
        data: as received.
        values: how a value was written.

    Returns:
        The vector, zero outside of kept pairs, shape [layout.size], float32; and kept, shape [num_pairs], bool.

    Raises:
        ValueError: another number of bytes than the bitmap asks for.
    """
    header = -(-pairs.num_pairs // 8)
    bits = np.unpackbits(np.frombuffer(data[:header], np.uint8))
    kept = bits[: pairs.num_pairs].astype(bool) if len(data) >= header else np.zeros(pairs.num_pairs, bool)
    expected = payload_bit(pairs, kept, _BITS[values]) // 8
    if len(data) != expected:
        raise ValueError(f"{len(data)} bytes, but the bitmap says {expected}: another layout, or a cut-off message")
    vector = np.zeros(pairs.layout.size, np.float32)
    vector[pairs.mask(kept)] = np.frombuffer(data[header:], np.dtype(values).newbyteorder("<"))
    return vector, kept
