"""The words between controller and nodes: a small JSON head, then raw array frames. Never pickle.

A packet is a list of ZeroMQ frames: the head, a JSON object `{"protocol", "kind", ..., "arrays": [{name, dtype,
shape}]}` checked by pydantic, then one frame of little-endian bytes for each array, sent and received without a copy.
The kinds of messages stand in `testbed.core.message_kinds`; here they are all at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.core.errors import ProtocolError
from testbed.core.message_bases import Request, Said
from testbed.core.message_kinds import (
    AdjustRadio,
    Burst,
    Bye,
    ClockRead,
    Configure,
    Done,
    Encoded,
    EncodeUpdate,
    EvaluateDone,
    EvaluateTask,
    Failed,
    Gradients,
    Hello,
    MeasureGradients,
    MeasureStates,
    Message,
    OpenDevices,
    Opened,
    Progress,
    ReadClock,
    Ready,
    Refused,
    Residual,
    SendAnalogue,
    SendPackets,
    SendPilots,
    SendResidual,
    SendSamples,
    SendSigns,
    SendUpdate,
    Sent,
    SetAdapter,
    SetClock,
    SetResidual,
    States,
    TrainDone,
    TrainTask,
    Update,
    Welcome,
)
from testbed.core.own_messages import Own, SendOwn, SetOwn

__all__ = [
    "PROTOCOL",
    "AdjustRadio",
    "Burst",
    "Bye",
    "ClockRead",
    "Configure",
    "Done",
    "EncodeUpdate",
    "Encoded",
    "EvaluateDone",
    "EvaluateTask",
    "Failed",
    "Gradients",
    "Hello",
    "MeasureGradients",
    "MeasureStates",
    "Message",
    "OpenDevices",
    "Opened",
    "Own",
    "Packet",
    "Progress",
    "ReadClock",
    "Ready",
    "Refused",
    "Request",
    "Residual",
    "Said",
    "SendAnalogue",
    "SendOwn",
    "SendPackets",
    "SendPilots",
    "SendResidual",
    "SendSamples",
    "SendSigns",
    "SendUpdate",
    "Sent",
    "SetAdapter",
    "SetClock",
    "SetOwn",
    "SetResidual",
    "States",
    "TrainDone",
    "TrainTask",
    "Update",
    "Welcome",
    "decode",
    "encode",
]

PROTOCOL = 4

_DTYPES = frozenset({"float32", "float64", "float16", "complex64", "complex128", "int8", "uint8", "int32", "int64"})
_MAX_HEAD_BYTES = 16 * 1024 * 1024

_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


@dataclass(frozen=True)
class Packet:
    """A message with its arrays."""

    message: Message
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class _ArrayHead(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    protocol: int
    kind: str = ""


_ARRAYS = TypeAdapter(list[_ArrayHead])


def encode(message: Message, arrays: Mapping[str, np.ndarray] | None = None) -> list[Any]:
    """The frames of a message: JSON head, then one buffer for each array (the array's own memory, not a copy).

    Raises:
        ProtocolError: an array's type cannot travel.
    """
    frames: list[Any] = [b""]
    heads = []
    for name, array in (arrays or {}).items():
        if array.dtype.name not in _DTYPES:
            raise ProtocolError(f"array {name!r} of type {array.dtype} cannot travel")
        contiguous = np.ascontiguousarray(array)
        heads.append({"name": name, "dtype": array.dtype.name, "shape": array.shape})
        frames.append(contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b"")
    head = _ENVELOPE.dump_json({"protocol": PROTOCOL, "arrays": heads, **message.model_dump(mode="json")})
    frames[0] = head
    return frames


_ENVELOPE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def decode(frames: Sequence[Any]) -> Packet:
    """The packet of received frames; arrays are read-only views of the frames' memory.

    Raises:
        ProtocolError: another protocol version, an unknown kind, a malformed head, or frames that do not fit it.
    """
    if not frames:
        raise ProtocolError("an empty packet arrived")
    head_bytes = bytes(memoryview(frames[0]))
    if len(head_bytes) > _MAX_HEAD_BYTES:
        raise ProtocolError(f"a message head of {len(head_bytes)} bytes arrived; at most {_MAX_HEAD_BYTES} are allowed")
    try:
        head = _ENVELOPE.validate_json(head_bytes)
        version = _Head.model_validate(head).protocol
    except ValidationError as error:
        raise ProtocolError("a message head that is not a JSON object with a protocol version arrived") from error
    if version != PROTOCOL:
        raise ProtocolError(
            f"the other side speaks protocol version {version}, this side {PROTOCOL}",
            remedy="install the same version of the testbed on the controller and on every node",
        )
    head.pop("protocol")
    try:
        array_heads = _ARRAYS.validate_python(head.pop("arrays", []))
        message = _MESSAGES.validate_python(head)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"malformed {head.get('kind', '?')!r} message: {where}: {first['msg']}") from error
    if len(array_heads) != len(frames) - 1:
        raise ProtocolError(f"{len(frames) - 1} array frames arrived, the head names {len(array_heads)}")
    arrays = {}
    for array_head, frame in zip(array_heads, frames[1:], strict=True):
        buffer = memoryview(frame)
        dtype = np.dtype(array_head.dtype) if array_head.dtype in _DTYPES else None
        if dtype is None or buffer.nbytes != math.prod(array_head.shape) * dtype.itemsize:
            raise ProtocolError(f"array {array_head.name!r}: {buffer.nbytes} bytes do not fit {array_head}")
        array = np.frombuffer(buffer, dtype).reshape(array_head.shape)
        array.flags.writeable = False
        arrays[array_head.name] = array
    return Packet(message, arrays)
