"""The words between controller and nodes: a small JSON head, then raw array frames. Never pickle.

A packet is a list of ZeroMQ frames: the head, a JSON object `{"protocol", "kind", ..., "arrays": [{name, dtype,
shape}]}` checked by pydantic, then one frame of little-endian bytes for each array, sent and received without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.core.adapter import Layout
from testbed.core.bench import WaveformSpec
from testbed.core.errors import ProtocolError
from testbed.core.orders import Payload
from testbed.core.specs import JobSpec

PROTOCOL = 3

_DTYPES = frozenset({"float32", "float64", "float16", "complex64", "complex128", "int8", "uint8", "int32", "int64"})
_MAX_HEAD_BYTES = 16 * 1024 * 1024


class Said(BaseModel):
    """Base of every message."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(Said):
    """Base of what the controller asks of one node; the answer repeats `serial`."""

    node: str
    serial: int = 0


# --- from a node ----------------------------------------------------------------------------------------------------


class Hello(Said):
    """A process introduces the nodes it hosts."""

    kind: Literal["hello"] = "hello"
    nodes: tuple[str, ...] = Field(min_length=1)
    versions: dict[str, str] = {}


class Ready(Request):
    """Answer to `Configure`. Arrays: `initial` [layout.size], `frozen` [frozen_layout.size], float32."""

    kind: Literal["ready"] = "ready"
    num_samples: int
    layout: Layout
    frozen_layout: Layout
    peft_config: dict[str, Any]
    radio_serial: str = ""


class Opened(Request):
    """Answer to `OpenDevices`."""

    kind: Literal["opened"] = "opened"
    radio_serial: str


class Done(Request):
    """Answer to a request that needs no facts in return."""

    kind: Literal["done"] = "done"


class TrainDone(Request):
    """Answer to `TrainTask`; the statistics are over the values of the update."""

    kind: Literal["train-done"] = "train-done"
    loss_first: float
    loss_last: float
    loss_mean: float
    num_tokens: int
    update_mean: float
    update_std: float
    seconds: float
    joules: float


class Sent(Request):
    """Answer to a request to transmit: the burst is on its way."""

    kind: Literal["sent"] = "sent"
    num_samples: int = Field(description="length of the burst in samples, or symbols where no OFDM is sent")
    power_sum_w: float = Field(description="sum of |x|^2 over the samples; energy is this over the sample rate")


class Update(Request):
    """Answer to `SendUpdate`. Array: `update` float32 [layout.size], or `payload` uint8 where one was asked for."""

    kind: Literal["update"] = "update"


class Residual(Request):
    """Answer to `SendResidual`. Array: `residual` float32 [layout.size]."""

    kind: Literal["residual"] = "residual"


class EvaluateDone(Request):
    """Answer to `EvaluateTask`: sums over the node's shard of the held-out split."""

    kind: Literal["evaluate-done"] = "evaluate-done"
    loss_sum: float
    num_tokens: int
    num_correct: int | None
    num_rows: int


class Progress(Said):
    """How far a node is within its task."""

    kind: Literal["progress"] = "progress"
    node: str
    activity: str
    fraction: float


class Failed(Request):
    """The request could not be carried out."""

    kind: Literal["failed"] = "failed"
    error: str
    message: str
    remedy: str | None = None


# --- from the controller --------------------------------------------------------------------------------------------


class Welcome(Said):
    """Answer to `Hello`."""

    kind: Literal["welcome"] = "welcome"


class Refused(Said):
    """Answer to a `Hello` that cannot be accepted; the node ends."""

    kind: Literal["refused"] = "refused"
    reason: str


class Configure(Request):
    """Load model and data, open the node's devices."""

    kind: Literal["configure"] = "configure"
    job: JobSpec
    backend: str
    devices: dict[str, Any] = Field(default_factory=dict, description="addresses that the backend's node devices need")
    bench: dict[str, Any] = Field(default_factory=dict, description="the resolved bench file")


class OpenDevices(Request):
    """Open the node's devices and nothing else: what a calibration needs."""

    kind: Literal["open-devices"] = "open-devices"
    backend: str
    devices: dict[str, Any] = Field(default_factory=dict, description="as in `Configure`")
    bench: dict[str, Any] = Field(default_factory=dict, description="as in `Configure`")


class AdjustRadio(Request):
    """Change gains or crystal of the node's radio, see `testbed.core.devices.Adjustable`. Answered with `Done`."""

    kind: Literal["adjust-radio"] = "adjust-radio"
    rx_gain: float | None = None
    tx_gain: float | None = None
    crystal_hz: int | None = None


class TrainTask(Request):
    """Fine-tune locally from the published adapter and keep the update."""

    kind: Literal["train"] = "train"
    round_index: int
    local_steps: int | None = None
    batch_size: int | None = None
    cpu_hz: float | None = None


class Burst(Request):
    """Base of what makes a node transmit at a given instant; `trigger_s` as of `testbed.core.devices.Radio`."""

    at_s: float
    trigger_s: float | None = None


class SendPilots(Burst):
    """Transmit pilots at a given instant."""

    kind: Literal["send-pilots"] = "send-pilots"
    power_w: float
    num_pilots: int
    waveform: WaveformSpec


class SendSamples(Burst):
    """Transmit samples as they are. Array: `samples`, complex64, square-root watts."""

    kind: Literal["send-samples"] = "send-samples"


class SendAnalogue(Burst):
    """Transmit a part of the update as uncoded symbols at a given instant; see `testbed.core.orders.Analogue`.

    Array: `precoder`, complex128, shape [1] or [num_active], square-root watts.
    """

    kind: Literal["send-analogue"] = "send-analogue"
    mean: float
    std: float
    first: int = Field(ge=0, description="symbol that this burst begins with")
    count: int = Field(ge=1, description="symbols of this burst")
    cfo_hz: float = 0.0
    cfo_from_s: float = 0.0
    clip: float | None = None
    waveform: WaveformSpec


class SendSigns(Burst):
    """Transmit the signs of a part of the update at a given instant; see `MajorityVote` and `OneBit` in the orders.

    Array: `precoder` as in `SendAnalogue`. With `pairs` the signs ride on pairs of subcarriers, else on QPSK symbols.
    """

    kind: Literal["send-signs"] = "send-signs"
    pairs: bool
    threshold: float = 0.0
    first: int = Field(ge=0, description="symbol that this burst begins with")
    count: int = Field(ge=1, description="symbols of this burst")
    cfo_hz: float = 0.0
    cfo_from_s: float = 0.0
    waveform: WaveformSpec


class SendPackets(Burst):
    """Transmit packets of the encoded update at a given instant; the update is encoded once for each transfer.

    Array: `allocation` uint8 [num_subcarriers], as of `testbed.phy.subcarriers.allocate`.
    """

    kind: Literal["send-packets"] = "send-packets"
    power_w: float
    transfer: int = Field(ge=0, lt=256)
    index: int = Field(ge=0, lt=256, description="number of this node within the transfer")
    payload: Payload
    scheme: str
    packet_bytes: int = Field(ge=1)
    sequence: tuple[int, ...] = Field(min_length=1, description="packets to send")
    cfo_hz: float = 0.0
    waveform: WaveformSpec


class SendUpdate(Request):
    """Send the update over the control link: as the bytes of an error-free uplink, or as it is for the audit."""

    kind: Literal["send-update"] = "send-update"
    payload: Payload | None = None
    transfer: int = 0


class SendResidual(Request):
    """Report what the node's payloads have left out so far, so that a run can be resumed."""

    kind: Literal["send-residual"] = "send-residual"


class SetResidual(Request):
    """Take back what earlier payloads left out. Array: `residual` [layout.size] float32."""

    kind: Literal["set-residual"] = "set-residual"


class ReadClock(Request):
    """Say what the node's own clock shows; the controller learns the offset between the two."""

    kind: Literal["read-clock"] = "read-clock"


class ClockRead(Request):
    """Answer to `ReadClock`."""

    kind: Literal["clock-read"] = "clock-read"
    at_s: float = Field(description="the node's own clock, from whatever zero")


class SetClock(Request):
    """What the controller's clock shows at the node's own zero."""

    kind: Literal["set-clock"] = "set-clock"
    offset_s: float


class SetAdapter(Request):
    """The new global adapter. Array: `adapter` [layout.size] float32."""

    kind: Literal["set-adapter"] = "set-adapter"


class EvaluateTask(Request):
    """Score the published adapter on shard `shard` of `num_shards` of the held-out split."""

    kind: Literal["evaluate"] = "evaluate"
    shard: int
    num_shards: int


class Bye(Said):
    """The run is over (from the controller), or the process ends (from a node)."""

    kind: Literal["bye"] = "bye"


Message: TypeAlias = (
    Hello
    | Ready
    | Opened
    | Done
    | TrainDone
    | Sent
    | Update
    | Residual
    | EvaluateDone
    | Progress
    | Failed
    | Welcome
    | Refused
    | Configure
    | OpenDevices
    | AdjustRadio
    | TrainTask
    | SendPilots
    | SendSamples
    | SendAnalogue
    | SendSigns
    | SendPackets
    | SendUpdate
    | SendResidual
    | SetResidual
    | ReadClock
    | ClockRead
    | SetClock
    | SetAdapter
    | EvaluateTask
    | Bye
)

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
