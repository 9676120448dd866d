"""Exactly which bytes an update becomes, and the update again from the bytes.

A head of 16 bytes, little-endian, comes first: kind, version, scale exponent, number of values, values kept, and the
CRC-32 of everything else. The length follows from the kind and the number of values alone, so air time is known before
training ends; of topk with Golomb's code of places it depends on them. Values of float16 share one power of two that
puts the largest of them at the top of its range: nothing overflows, and small updates do not fall among the subnormal
numbers.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np

from testbed.core.orders import Payload
from testbed.phy import golomb

HEAD = struct.Struct("<BBhIII")
VERSION = 1
BLOCK_VALUES = 256
"""Values of int8 that share one scale."""

_KINDS = ("float32", "float16", "int8", "sign", "topk", "topk-golomb")
_TOP_EXPONENT = 15
"""float16 scales so that the largest magnitude lies in [2^14, 2^15): a factor of two below overflow."""
_FLOAT32_EXPONENTS = 128
_BELOW_TOP = np.float16(32752)
"""The float16 before 2^15."""


def num_kept(payload: Payload, num_values: int) -> int:
    """Values that are sent: ceil(keep d) for topk, all d otherwise.

    Raises:
        ValueError: keep is outside (0, 1].
    """
    if payload.kind != "topk":
        return num_values
    if not 0 < payload.keep <= 1:
        raise ValueError(f"keep = {payload.keep:g} is outside (0, 1]")
    # 0.1 * 30 is a little more than 3 in binary
    return min(num_values, math.ceil(payload.keep * num_values - 1e-9))


def num_bytes(payload: Payload, num_values: int) -> int:
    """Length of what `encode` returns; of topk with Golomb's code the most that it can be.

    Args:
        payload: kind and its parameters.
        num_values: length d of the update.

    Returns:
        bytes, the head included.

    Raises:
        ValueError: the kind is unknown, keep is outside (0, 1], or d does not fit the head.
    """
    kind = _kind(payload)
    if not 0 <= num_values < 2**32:
        raise ValueError(f"num_values = {num_values} does not fit the head")
    kept = num_kept(payload, num_values)
    if kind == "topk-golomb":
        return HEAD.size + golomb.most_bytes(num_values, kept) + 2 * kept
    return HEAD.size + _body_bytes(kind, num_values, kept)


def has_fixed_length(payload: Payload) -> bool:
    """Whether `num_bytes` is exact for every update.

    Raises:
        ValueError: the kind is unknown.
    """
    return _kind(payload) != "topk-golomb"


def encode(values: np.ndarray, payload: Payload) -> bytes:
    """The bytes of an update.

    int8: q = round(127 v / max|v|) in blocks of 256; sign: one bit a value, and the scale mean|v| that minimises the
    squared error; topk: the k largest magnitudes.

    Args:
        values: the update, shape [num_values].
        payload: kind and its parameters; `error_feedback` is the caller's business.

    Returns:
        `num_bytes(payload, num_values)` bytes, or fewer with Golomb's code.

    Raises:
        ValueError: a value is NaN, infinite or beyond float32, or the payload is none.
    """
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"an update has shape [num_values], not {values.shape}")
    if not np.all(np.abs(values) <= np.finfo(np.float32).max):
        raise ValueError("the update holds NaN, infinity or values beyond float32")
    values = values.astype(np.float32, copy=False)
    length = num_bytes(payload, values.size)
    kept, exponent, body = num_kept(payload, values.size), 0, b""
    if payload.kind == "float32":
        body = values.astype("<f4").tobytes()
    elif payload.kind == "float16":
        exponent, halves = _to_half(values)
        body = halves.tobytes()
    elif payload.kind == "int8":
        body = _to_int8(values)
    elif payload.kind == "sign":
        scale = np.float32(np.mean(np.abs(values), dtype=np.float64)) if values.size else np.float32(0)
        body = scale.astype("<f4").tobytes() + np.packbits(values >= 0).tobytes()
    else:
        index = _largest(values, kept)
        exponent, halves = _to_half(values[index])
        coded = _pack_index(index, values.size) if has_fixed_length(payload) else golomb.encode(index, values.size)
        body = coded + halves.tobytes()
    partial = HEAD.pack(_KINDS.index(_kind(payload)), VERSION, exponent, values.size, kept, 0)
    check = zlib.crc32(body, zlib.crc32(partial))
    data = partial[:-4] + check.to_bytes(4, "little") + body
    assert len(data) == length if has_fixed_length(payload) else len(data) <= length
    return data


def decode(data: bytes, num_values: int) -> np.ndarray:
    """The update that the bytes say.

    Args:
        data: from `encode`.
        num_values: length of the update, known beforehand.

    Returns:
        shape [num_values], float32; topk leaves zeros where nothing was sent.

    Raises:
        ValueError: the bytes are not those of such an update.
    """
    if len(data) < HEAD.size:
        raise ValueError(f"{len(data)} bytes are too few for a payload's head")
    number, version, exponent, count, kept, check = HEAD.unpack_from(data)
    body = data[HEAD.size :]
    if zlib.crc32(body, zlib.crc32(data[: HEAD.size - 4] + bytes(4))) != check:
        raise ValueError("the payload's CRC-32 does not hold")
    if version != VERSION or number >= len(_KINDS):
        raise ValueError(f"payload version {version}, kind {number} is not known here")
    kind = _KINDS[number]
    if count != num_values:
        raise ValueError(f"the payload holds {count} values, {num_values} are expected")
    if kept > count or (not kind.startswith("topk") and kept != count) or not _fits(kind, len(body), count, kept):
        raise ValueError(f"{len(data)} bytes are not the length of a {kind} payload of {count} values")
    if kind == "float32":
        values = np.frombuffer(body, "<f4").astype(np.float32)
    elif kind == "float16":
        values = _from_half(body, exponent)
    elif kind == "int8":
        values = _from_int8(body, count)
    elif kind == "sign":
        scale = np.frombuffer(body, "<f4", 1)[0]
        bits = np.unpackbits(np.frombuffer(body, np.uint8, offset=4), count=count)
        values = np.where(bits, scale, -scale).astype(np.float32)
    else:
        values = _spread(body, count, kept, exponent, kind)
    if not np.all(np.isfinite(values)):
        raise ValueError("the payload holds values that are not finite")
    return values


def with_error_feedback(update: np.ndarray, residual: np.ndarray, payload: Payload) -> tuple[bytes, np.ndarray]:
    """Send the update and what earlier bytes left out, and keep what these bytes leave out.

    c = encode(g + e),   e' = g + e - decode(c)

    Args:
        update: g, shape [num_values].
        residual: e of the rounds before, zeros at first, shape [num_values].
        payload: kind and its parameters.

    Returns:
        the bytes, and the new residual, shape [num_values], float32.

    Raises:
        ValueError: the shapes differ, or as `encode`.

    Reference:
        S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, "Error feedback fixes SignSGD and other gradient
        compression schemes", 2019.
    """
    update, residual = np.asarray(update, np.float32), np.asarray(residual, np.float32)
    if update.shape != residual.shape:
        raise ValueError(f"update {update.shape} and residual {residual.shape} differ in shape")
    with np.errstate(over="ignore", invalid="ignore"):  # encode refuses what is not finite
        total = update + residual
    data = encode(total, payload)
    return data, total - decode(data, total.size)


def _kind(payload: Payload) -> str:
    """The number's name in the head: topk has one for each code of its places."""
    kind = "topk-golomb" if payload.kind == "topk" and payload.positions == "golomb" else payload.kind
    if kind not in _KINDS:
        raise ValueError(f"payload kind {payload.kind!r} is none of {', '.join(_KINDS[:-1])}")
    return kind


def _fits(kind: str, num_bytes: int, count: int, kept: int) -> bool:
    """Whether a body may have such a length."""
    if kind == "topk-golomb":
        return num_bytes >= 2 * kept
    return num_bytes == _body_bytes(kind, count, kept)


def _body_bytes(kind: str, count: int, kept: int) -> int:
    if kind == "float32":
        return 4 * count
    if kind == "float16":
        return 2 * count
    if kind == "int8":
        return 4 * -(-count // BLOCK_VALUES) + count
    if kind == "sign":
        return 4 + -(-count // 8)
    return min(_bitmap_bytes(count), _list_bytes(count, kept)) + 2 * kept


def _to_half(values: np.ndarray) -> tuple[int, np.ndarray]:
    """Exponent e and v / 2^e as float16, little-endian; shape [num_values]."""
    largest = float(np.max(np.abs(values), initial=0.0))
    exponent = math.frexp(largest)[1] - _TOP_EXPONENT if largest > 0 else 0
    # float64: 2^-e alone may be beyond float32
    halves = np.ldexp(values.astype(np.float64), -exponent).astype("<f2")
    if exponent + _TOP_EXPONENT == _FLOAT32_EXPONENTS:
        # the largest float32 must not be rounded up to infinity
        np.clip(halves, -_BELOW_TOP, _BELOW_TOP, out=halves)
    return exponent, halves


def _from_half(body: bytes, exponent: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # a forged exponent gives infinity, which the caller refuses
        return np.ldexp(np.frombuffer(body, "<f2").astype(np.float64), exponent).astype(np.float32)


def _to_int8(values: np.ndarray) -> bytes:
    blocks = -(-values.size // BLOCK_VALUES)
    # [blocks, BLOCK_VALUES]
    padded = np.zeros((blocks, BLOCK_VALUES), np.float32)
    padded.ravel()[: values.size] = values
    scale = (np.abs(padded).max(axis=1) / np.float32(127)).astype(np.float32)
    # rounded up, 127 scales could exceed the largest float32
    scale = np.minimum(scale, np.nextafter(np.float32(np.finfo(np.float32).max / 127), np.float32(0)))
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    quantised = np.clip(np.rint(padded / divisor), -127, 127).astype(np.int8)
    return scale.astype("<f4").tobytes() + quantised.ravel()[: values.size].tobytes()


def _from_int8(body: bytes, count: int) -> np.ndarray:
    blocks = -(-count // BLOCK_VALUES)
    scale = np.frombuffer(body, "<f4", blocks).astype(np.float32)
    quantised = np.frombuffer(body, np.int8, offset=4 * blocks).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
        return quantised * np.repeat(scale, BLOCK_VALUES)[:count]


def _largest(values: np.ndarray, kept: int) -> np.ndarray:
    """Indices of the largest magnitudes, ascending, shape [kept]."""
    if kept == values.size:
        return np.arange(kept)
    return np.sort(np.argpartition(np.abs(values), values.size - kept)[values.size - kept :])


def _index_bits(count: int) -> int:
    return max(1, (count - 1).bit_length())


def _bitmap_bytes(count: int) -> int:
    return -(-count // 8)


def _list_bytes(count: int, kept: int) -> int:
    return -(-kept * _index_bits(count) // 8)


def _pack_index(index: np.ndarray, count: int) -> bytes:
    """A bitmap, or indices of as few bits as the largest needs, whichever is shorter for such a count."""
    if _bitmap_bytes(count) <= _list_bytes(count, index.size):
        sent = np.zeros(count, bool)
        sent[index] = True
        return np.packbits(sent).tobytes()
    # [kept, 32]
    bits = np.unpackbits(index.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    return np.packbits(bits[:, 32 - _index_bits(count) :]).tobytes()


def _unpack_index(packed: bytes, count: int, kept: int) -> np.ndarray:
    raw = np.frombuffer(packed, np.uint8)
    if _bitmap_bytes(count) <= _list_bytes(count, kept):
        return np.flatnonzero(np.unpackbits(raw, count=count))
    width = _index_bits(count)
    # [kept, 32]
    bits = np.zeros((kept, 32), np.uint8)
    bits[:, 32 - width :] = np.unpackbits(raw, count=kept * width).reshape(kept, width)
    return np.packbits(bits, axis=1).view(">u4").ravel().astype(np.int64)


def _spread(body: bytes, count: int, kept: int, exponent: int, kind: str) -> np.ndarray:
    split = len(body) - 2 * kept
    unpack = _unpack_index if kind == "topk" else golomb.decode
    index = unpack(body[:split], count, kept)
    if index.size != kept or np.any(np.diff(index) <= 0) or (kept and index[-1] >= count):
        raise ValueError("the payload's indices are not ascending places in the update")
    values = np.zeros(count, np.float32)
    values[index] = _from_half(body[split:], exponent)
    return values
