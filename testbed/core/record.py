"""Orders and replies as JSON lines with their arrays beside them, exactly and append-only.

A line is one step; an array inside it becomes `{"$array": [offset, dtype, shape]}`, its bytes lie at that offset of the
array file. Decoding gives back equal data, bit for bit. Dataclasses carry their name under `$type`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from testbed.core import orders
from testbed.core.errors import ProtocolError

_TYPES: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        *orders.ORDERS,
        *orders.REPLIES,
        orders.Spent,
        orders.Work,
        orders.Pruning,
        orders.Tail,
        orders.Alignment,
        orders.Part,
        orders.Payload,
        orders.Ideal,
        orders.Digital,
        orders.Analogue,
        orders.MajorityVote,
        orders.OneBit,
        orders.LocalResult,
        orders.Delivery,
        orders.NodeScore,
    )
}

Store = Callable[[np.ndarray], int]
"""Appends an array's bytes and returns their offset."""
Load = Callable[[int, np.dtype, tuple[int, ...]], np.ndarray]
"""The array of that type and shape at that offset."""


def to_plain(value: Any, store: Store) -> Any:
    """JSON-ready form of an order, a reply or a part of one. Raises ProtocolError for any other type."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        case np.floating() | np.integer() | np.bool_():
            return to_plain(value.item(), store)
        case complex() | np.complexfloating():
            return {"$complex": [to_plain(value.real, store), to_plain(value.imag, store)]}
        case np.ndarray():
            array = np.ascontiguousarray(value)
            return {"$array": [store(array), array.dtype.str, list(array.shape)]}
        case Mapping():
            return {str(key): to_plain(item, store) for key, item in value.items()}
        case tuple() | list():
            return [to_plain(item, store) for item in value]
        case _ if type(value).__name__ in _TYPES:
            fields = {item.name: to_plain(getattr(value, item.name), store) for item in dataclasses.fields(value)}
            return {"$type": type(value).__name__, **fields}
        case _:
            raise ProtocolError(f"a {type(value).__name__} cannot be recorded")


def from_plain(value: Any, load: Load) -> Any:
    """What `to_plain` was given; sequences come back as tuples. Raises ProtocolError for an unknown type."""
    match value:
        case list():
            return tuple(from_plain(item, load) for item in value)
        case {"$float": text}:
            return float(text)
        case {"$complex": [real, imag]}:
            return complex(from_plain(real, load), from_plain(imag, load))
        case {"$array": [offset, dtype, shape]}:
            return load(offset, np.dtype(dtype), tuple(shape))
        case {"$type": name, **fields}:
            if name not in _TYPES:
                raise ProtocolError(f"the record holds a {name!r}, which this version does not know")
            return _TYPES[name](**{str(key): from_plain(item, load) for key, item in fields.items()})
        case dict():
            return {key: from_plain(item, load) for key, item in value.items()}
        case _:
            return value


def difference(left: Any, right: Any, path: str = "") -> str | None:
    """Where two orders differ first, as a dotted path with both values; None if they are equal bit for bit."""
    if isinstance(left, np.generic):
        left = left.item()
    if isinstance(right, np.generic):
        right = right.item()
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        if left.shape != right.shape or left.dtype != right.dtype:
            return f"{path}: {left.dtype}{left.shape} instead of {right.dtype}{right.shape}"
        if left.tobytes() == right.tobytes():
            return None
        with np.errstate(all="ignore"):
            worst = np.max(np.abs(left - right))
        return f"{path}: arrays differ by up to {worst:.3g}"
    if dataclasses.is_dataclass(left) and type(left) is type(right):
        for item in dataclasses.fields(left):
            inside = f"{path}.{item.name}" if path else item.name
            if found := difference(getattr(left, item.name), getattr(right, item.name), inside):
                return found
        return None
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if set(left) != set(right):
            return f"{path}: {', '.join(sorted(set(left) ^ set(right)))} on one side only"
        for key in left:
            if found := difference(left[key], right[key], f"{path}.{key}"):
                return found
        return None
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        if len(left) != len(right):
            return f"{path}: {len(left)} items instead of {len(right)}"
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            if found := difference(one, other, f"{path}[{index}]"):
                return found
        return None
    same = left == right or (isinstance(left, float) and isinstance(right, float) and left != left and right != right)
    if same and type(left) is type(right):
        return None
    return f"{path or type(right).__name__}: {_show(left)} instead of {_show(right)}"


def _show(value: Any) -> str:
    return type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
