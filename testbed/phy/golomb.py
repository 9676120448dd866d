"""Places of sparse values as Golomb's code of the gaps between them, close to the entropy of independent places.

Where each of n places is taken with probability p, gaps are geometric, P(gap = g) = p (1 - p)^g, and with the divisor

    M = ceil(log(2 - p) / -log(1 - p))

the best code of them is floor(gap / M) in unary and gap mod M in truncated binary (S. W. Golomb, "Run-length
encodings", IEEE Transactions on Information Theory 1966; that this M is the best: R. G. Gallager and D. C. Van Voorhis,
1975). Our choices: all unary parts come first, then the leading bits of all remainders, then their last bits, which
needs as many bits and no loop; of places that are mostly taken the free ones are coded; the divisor itself takes four
bytes, since logarithms may differ in their last bit from machine to machine.
"""

from __future__ import annotations

import math
import struct

import numpy as np

_DIVISOR = struct.Struct("<I")


def best_divisor(count: int, kept: int) -> int:
    """M for so many independent places out of all.

    Args:
        count: n, places.
        kept: how many are taken, from 1 to `count`.

    Returns:
        at least 1.

    Raises:
        ValueError: none is taken, or more than there are.
    """
    if not 0 < kept <= count:
        raise ValueError(f"{kept} of {count} places have no gaps to code; choose 1 to {count}")
    if 2 * kept >= count:
        return 1
    share = kept / count
    return max(1, math.ceil(math.log(2 - share) / -math.log1p(-share)))


def encode(places: np.ndarray, count: int) -> bytes:
    """The code of ascending places.

    Args:
        places: which are taken, ascending, each below `count`, shape [kept].
        count: n, places, below 2^32.

    Returns:
        M and the code; nothing where no place, or every place, is taken.
    """
    coded = _rarer(places, count)
    if not coded.size:
        return b""
    divisor = best_divisor(count, coded.size)
    quotient, rest = np.divmod(np.diff(coded, prepend=-1) - 1, divisor)
    # unary: so many zeros, and a one
    ends = np.cumsum(quotient) + np.arange(coded.size)
    unary = np.zeros(int(ends[-1]) + 1, np.uint8)
    unary[ends] = 1
    width, short = _widths(divisor)
    long = rest >= short
    value = np.where(long, rest + short, rest)
    leading = _bits(np.where(long, value >> 1, value), max(width - 1, 0))
    last = (value[long] & 1).astype(np.uint8) if width else np.zeros(0, np.uint8)
    return _DIVISOR.pack(divisor) + np.packbits(np.concatenate([unary, leading, last])).tobytes()


def decode(data: bytes, count: int, kept: int) -> np.ndarray:
    """The places that `encode` was given.

    Args:
        data: its bytes.
        count: n.
        kept: how many places are taken.

    Returns:
        ascending, shape [kept], int64.

    Raises:
        ValueError: the bytes are not those of so many places.
    """
    rare = min(kept, count - kept)
    if not 0 <= kept <= count or (len(data) > 0) != (rare > 0):
        raise ValueError(f"{len(data)} bytes cannot tell {kept} of {count} places")
    coded = np.zeros(0, np.int64) if rare == 0 else _decoded(data, count, rare)
    if 2 * kept <= count:
        return coded
    taken = np.ones(count, bool)
    taken[coded] = False
    return np.flatnonzero(taken)


def most_bytes(count: int, kept: int) -> int:
    """Length that no code of so many places exceeds.

    Args:
        count: n.
        kept: how many are taken.
    """
    rare = min(kept, count - kept)
    if rare == 0:
        return 0
    divisor = best_divisor(count, rare)
    return _DIVISOR.size - (-(rare * (1 + _widths(divisor)[0]) + (count - rare) // divisor) // 8)


def _rarer(places: np.ndarray, count: int) -> np.ndarray:
    """The taken places, or the free ones where these are fewer, ascending, int64."""
    places = np.asarray(places, np.int64)
    if 2 * places.size <= count:
        return places
    free = np.ones(count, bool)
    free[places] = False
    return np.flatnonzero(free)


def _widths(divisor: int) -> tuple[int, int]:
    """Bits of a long remainder, and how many remainders take one bit less."""
    width = (divisor - 1).bit_length()
    return width, (1 << width) - divisor


def _bits(values: np.ndarray, width: int) -> np.ndarray:
    """The lowest bits of each value, highest first, shape [num_values * width]."""
    # [num_values, 32]
    bits = np.unpackbits(values.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    return bits[:, 32 - width :].ravel()


def _decoded(data: bytes, count: int, rare: int) -> np.ndarray:
    wrong = ValueError(f"{len(data)} bytes are no code of {rare} of {count} places")
    if len(data) <= _DIVISOR.size:
        raise wrong
    (divisor,) = _DIVISOR.unpack_from(data)
    if not 1 <= divisor <= count:
        raise wrong
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=_DIVISOR.size))
    ends = np.flatnonzero(bits)[:rare]
    width, short = _widths(divisor)
    low = max(width - 1, 0)
    if ends.size < rare or int(ends[-1]) + 1 + rare * low > bits.size:
        raise wrong
    start = int(ends[-1]) + 1
    # [rare, 32]
    leading = np.zeros((rare, 32), np.uint8)
    leading[:, 32 - low :] = bits[start : start + rare * low].reshape(rare, low)
    rest = np.packbits(leading, axis=1).view(">u4").ravel().astype(np.int64)
    start += rare * low
    if width:
        long = np.flatnonzero(rest >= short)
        last = bits[start : start + long.size]
        if last.size < long.size:
            raise wrong
        rest[long] = 2 * rest[long] + last - short
        start += long.size
    coded = np.cumsum((np.diff(ends, prepend=-1) - 1) * divisor + rest + 1) - 1
    if -(-start // 8) * 8 != bits.size or coded[-1] >= count:
        raise wrong
    return coded
