"""What controller and nodes can say to each other; `testbed.core.messages` puts it into frames."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import Field

from testbed.core.adapter import Layout
from testbed.core.bench import WaveformSpec
from testbed.core.message_bases import Request, Said
from testbed.core.orders import WHOLE, Alignment, Part, Payload, Pruning, Tail
from testbed.core.own_messages import Own, SendOwn, SetOwn
from testbed.core.specs import DataSpec, JobSpec

# --- from a node ----------------------------------------------------------------------------------------------------


class Hello(Said):
    """A process introduces the nodes it hosts."""

    kind: Literal["hello"] = "hello"
    nodes: tuple[str, ...] = Field(min_length=1)
    versions: dict[str, str] = Field(default_factory=dict)


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
    firmware: str = ""


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
    num_steps: int = 0
    step_size: float = Field(0.0, description="this and what follows as of `testbed.core.orders.LocalResult`")
    work_share: float = 1.0
    pruned: float = 0.0
    pruned_ratio: float = 0.0
    measures: dict[str, float] = Field(default_factory=dict)


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


class Gradients(Request):
    """Answer to `MeasureGradients`.

    Arrays:
        losses: mean over a batch's target tokens, nats a token, shape [num_points, num_batches] float64.
        norms: squared length of a batch's gradient, same shape.
        products: inner product of the gradients of two batches, the first and second, the third and fourth, ...; shape
            [num_points, num_batches // 2] float64.
        slopes: inner product of a batch's gradient with the direction, shape [num_points, num_batches] float64; empty
            without a direction.
        means: mean gradient of each block of batches, shape [num_points, blocks, layout.size] float32.
    """

    kind: Literal["gradients"] = "gradients"


class States(Request):
    """Answer to `MeasureStates`. Array: `states` float32 [num_rows, hidden], a row's mean last hidden state."""

    kind: Literal["states"] = "states"


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
    """Fine-tune locally from the published adapter and keep the update; see `testbed.core.orders.Work`.

    Array, where the work has one: `drift` float32 [layout.size].
    """

    kind: Literal["train"] = "train"
    round_index: int
    local_steps: int | None = None
    batch_size: int | None = None
    cpu_hz: float | None = None
    proximal: float = 0.0
    factors: Literal["both", "A", "B"] = "both"
    pruning: Pruning | None = None
    ranks: int | None = None
    others: Literal["frozen", "absent"] = "frozen"
    sketch: tuple[int, ...] | None = None
    tail: Tail | None = None
    orthogonality: float = 0.0
    part: Part = WHOLE
    pulled: Part = WHOLE
    objective: Alignment | None = None
    keep: bool = False
    beside: bool = False


class MeasureGradients(Request):
    """Measure gradients of the loss at given adapters, on given batches of the node's rows; nothing changes.

    Arrays: `points` float32 [num_points, layout.size]; `rows` int64 [num_batches, batch_size], numbers of the node's
    rows from 0; optionally `direction` float32 [layout.size].
    """

    kind: Literal["measure-gradients"] = "measure-gradients"
    blocks: int = Field(1, ge=1, description="consecutive batches are averaged in so many groups of equal size")


class MeasureStates(Request):
    """Measure what the base model makes of texts: its last hidden state, averaged over each text's tokens."""

    kind: Literal["measure-states"] = "measure-states"
    count: int = Field(ge=1, description="texts, at most")
    seed: int = Field(ge=0, description="of the draw")
    pretraining: bool = Field(False, description="texts the base model was trained on, instead of the node's rows")
    source: DataSpec | None = Field(None, description="where those are; None: of the built-in text")


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


class EncodeUpdate(Request):
    """Encode the update and say how many bytes it became, where that depends on the update."""

    kind: Literal["encode-update"] = "encode-update"
    payload: Payload
    transfer: int


class Encoded(Request):
    """Answer to `EncodeUpdate`."""

    kind: Literal["encoded"] = "encoded"
    num_bytes: int


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
    """The new global adapter, and what the node shall have added to its base weights by now.

    Arrays: `adapter` [layout.size] float32; `fold-0`, `fold-1`, ... as of `testbed.core.orders.Publish`, of the ranks
    in `fold_ranks`: they follow the first `folded` that the node has got before.
    """

    kind: Literal["set-adapter"] = "set-adapter"
    folded: int = Field(0, ge=0, description="folds before these, in the order of the run")
    fold_ranks: tuple[int, ...] = ()
    part: Part = Field(WHOLE, description="values that the node takes over; the others stay as it has them")


class EvaluateTask(Request):
    """Score the node's adapter on shard `shard` of `num_shards` of the held-out split, or on its own rows of it."""

    kind: Literal["evaluate"] = "evaluate"
    shard: int
    num_shards: int
    personal: bool = False


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
    | Own
    | EvaluateDone
    | Gradients
    | States
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
    | EncodeUpdate
    | Encoded
    | SendResidual
    | SetResidual
    | SendOwn
    | SetOwn
    | ReadClock
    | ClockRead
    | SetClock
    | SetAdapter
    | EvaluateTask
    | MeasureGradients
    | MeasureStates
    | Bye
)
