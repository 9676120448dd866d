"""Orders that a scheme yields and the replies it gets: frozen data, a closed union.

A scheme never sees a device. It says `Sound`, `Move`, `Train`, `Collect`, `Publish` or `Evaluate` (or two of them
`Together`) and the bench, a dry run or a record answers. Replies are measured facts with the seconds, joules, air time
and antenna travel they took. A silent node is data (`missing`), a broken device is an exception.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

from testbed.core.uplinks import WHOLE, Analogue, Digital, Ideal, MajorityVote, OneBit, Part, Payload, Uplink
from testbed.core.work import Alignment, LocalResult, Pruning, Tail, Work

__all__ = [
    "ORDERS",
    "REPLIES",
    "REPLY_OF",
    "WHOLE",
    "Alignment",
    "Analogue",
    "Collect",
    "Collected",
    "Delivery",
    "Digital",
    "Evaluate",
    "Ideal",
    "LocalResult",
    "MajorityVote",
    "Move",
    "Moved",
    "MovedAndTrained",
    "NodeScore",
    "OneBit",
    "Order",
    "Part",
    "Payload",
    "Pruning",
    "Publish",
    "Published",
    "Reply",
    "Scores",
    "Sound",
    "Sounding",
    "Spent",
    "Steps",
    "Tail",
    "Together",
    "Train",
    "Trained",
    "Uplink",
    "Work",
    "collect",
    "evaluate",
    "gather",
    "move",
    "move_while_training",
    "publish",
    "sound",
    "train",
]


@dataclass(frozen=True)
class Spent:
    """What an order took.

    Attributes:
        seconds: on the run's clock, from order to reply.
        joules: of all nodes, transmitters and stages together.
        air_time_s: seconds during which somebody transmitted.
        travel_m: way of all antennas together.
    """

    seconds: float = 0.0
    joules: float = 0.0
    air_time_s: float = 0.0
    travel_m: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds + other.seconds,
            self.joules + other.joules,
            self.air_time_s + other.air_time_s,
            self.travel_m + other.travel_m,
        )


# --- orders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sound:
    """Let each node in turn send pilots and estimate its channel to every antenna.

    Attributes:
        nodes: who sounds; all nodes of the fleet if empty.
        num_pilots: OFDM pilot symbols of each node, at least 2.
        per_subcarrier: also estimate the channel on every subcarrier.
    """

    nodes: tuple[str, ...] = ()
    num_pilots: int = 4
    per_subcarrier: bool = False


@dataclass(frozen=True)
class Move:
    """Bring the receive antennas to these places, side by side.

    Attributes:
        positions_m: array frame, shape [num_antennas, 2].
    """

    positions_m: np.ndarray


@dataclass(frozen=True)
class Train:
    """Let nodes fine-tune from the published adapter.

    Attributes:
        work: node -> its work; nodes that are not named rest.
    """

    work: Mapping[str, Work]


@dataclass(frozen=True)
class Collect:
    """Gather the weighted mean of the nodes' updates, or the majority of their signs.

    All uplinks of one order are of one kind. For `Analogue` and `OneBit`, `combiner` and `scale` say how the antennas'
    sum becomes the mean.

    Attributes:
        uplinks: node -> its uplink; others stay silent.
        combiner: receive weights f, unit norm, shape [num_antennas], or [num_active, num_antennas] for each subcarrier;
            the array output is f^H y.
        scale: square root of eta: f^H h_m b_m = scale * weight * std for every node under uniform forcing, and
            f^H h_m b_m = scale for every node that votes with `OneBit`.
        share: part of the weights that sends on each active subcarrier, shape [num_active]; all of it if None.
        expected_mse: predicted E||error||^2 of the mean, logged beside what is measured.
        deadline_s: of `Ideal` and `Digital`: what has not arrived so many seconds after the first node began to send is
            lost to the round; without it the order waits for everybody.
    """

    uplinks: Mapping[str, Uplink]
    combiner: np.ndarray | None = None
    scale: float | None = None
    share: np.ndarray | None = None
    expected_mse: float | None = None
    deadline_s: float | None = None


@dataclass(frozen=True)
class Publish:
    """Broadcast the new global adapter, and what every node shall add to its frozen base weights for good.

    W <- W + (alpha / rank) B A of every module, with A and B the factors in `fold` and alpha / rank the adapter's own;
    `adapter` then is the new start on top. FLoRA (arXiv 2409.05976) folds what the nodes trained, FedEx-LoRA
    (arXiv 2410.07432) what averaging factors apart leaves out; `testbed.lora.refactor.stacked` makes both. Nodes that
    join later get all folds so far, in their order.

    Attributes:
        adapter: flat vector, shape [num_values], float32.
        fold: factors A [fold_rank, in] and B [out, fold_rank] of every adapted module, in the order of
            `testbed.lora.refactor.stack_layout`, flat, float32; None folds nothing.
        fold_rank: inner dimension of `fold`; 0 without one.
        part: values that are broadcast; the others stay as each node has them, see `Work.keep`.
    """

    adapter: np.ndarray
    fold: np.ndarray | None = None
    fold_rank: int = 0
    part: Part = WHOLE


@dataclass(frozen=True)
class Evaluate:
    """Score the published adapter on the held-out split, shared out over the nodes.

    Attributes:
        personal: every node scores the adapter that it has, on its own rows of the held-out split, which is dealt as
            the training rows are.
    """

    personal: bool = False


@dataclass(frozen=True)
class Together:
    """Two orders side by side: a `Move` that hides behind a `Train`."""

    move: Move
    train: Train


Order: TypeAlias = Sound | Move | Train | Collect | Publish | Evaluate | Together


# --- replies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sounding:
    """Estimated channels.

    Attributes:
        nodes: column order of `channel`.
        channel: baseband gain from each node to each antenna, shape [num_antennas, num_nodes], complex128.
        noise_w: estimated noise power of one received data symbol, per antenna, in the band that carries symbols.
        positions_m: where the antennas were, array frame, shape [num_antennas, 2].
        delay_s: by how much each burst came later than was asked, shape [num_nodes].
        cfo_hz: each node's carrier offset, shape [num_nodes].
        heard_s: middle of each node's pilots, the instant its channel holds for, shape [num_nodes].
        response: channel on every active subcarrier, shape [num_antennas, num_nodes, num_active], complex64, where
            the order asked for it.
        missing: nodes that stayed silent or were not heard; they have no column.
        variance: E|error|^2 of each node's channel, shape [num_nodes]; None where it is not known.
    """

    nodes: tuple[str, ...]
    channel: np.ndarray
    noise_w: float
    positions_m: np.ndarray
    delay_s: np.ndarray
    cfo_hz: np.ndarray
    heard_s: np.ndarray
    response: np.ndarray | None = None
    missing: tuple[str, ...] = ()
    variance: np.ndarray | None = None
    spent: Spent = Spent()


@dataclass(frozen=True)
class Moved:
    """Where the antennas are now, array frame, shape [num_antennas, 2]."""

    positions_m: np.ndarray
    spent: Spent = Spent()


@dataclass(frozen=True)
class Trained:
    """Local training of everybody who answered."""

    results: Mapping[str, LocalResult]
    missing: tuple[str, ...] = ()
    spent: Spent = Spent()


@dataclass(frozen=True)
class Delivery:
    """How one node's packets fared.

    Attributes:
        scheme: modulation and coding.
        num_bytes: payload of the whole update.
        packets: that the update needed.
        sent: transmissions, repetitions included.
        snr: linear signal-to-noise ratio of the packets that arrived; None if none did.
    """

    scheme: str
    num_bytes: int
    packets: int
    sent: int
    snr: float | None = None


@dataclass(frozen=True)
class Collected:
    """What arrived.

    Attributes:
        mean: weighted mean of the updates of the nodes that arrived, or the majority's signs (-1, 0 or 1), shape
            [num_values], float32.
        updates: node -> its own update, for `Ideal` and `Digital`; over the air only the sum exists and this is empty.
        covered: node -> which values its bytes spoke of, shape [num_values], bool, where its payload left values out;
            the others are 0 in `updates` and `mean`.
        missing: nodes that stayed silent, or whose packets were lost.
        energy_j: node -> transmit energy.
        deliveries: node -> its packets, for `Digital`.
        coherence: amplitude of the pilots' sum over what perfect alignment would give, for `Analogue` and `OneBit`.
        lost: frames that were not found in the capture; their values count as zero.
    """

    mean: np.ndarray
    updates: Mapping[str, np.ndarray] = field(default_factory=dict)
    covered: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    energy_j: Mapping[str, float] = field(default_factory=dict)
    deliveries: Mapping[str, Delivery] = field(default_factory=dict)
    coherence: float | None = None
    lost: int = 0
    spent: Spent = Spent()


@dataclass(frozen=True)
class Published:
    """The adapter has reached everybody but `missing`."""

    missing: tuple[str, ...] = ()
    spent: Spent = Spent()


@dataclass(frozen=True)
class NodeScore:
    """One node's score; figures as of `Scores`."""

    loss: float
    num_tokens: int
    num_rows: int
    accuracy: float | None = None


@dataclass(frozen=True)
class Scores:
    """Held-out scores of the published adapter, or of the nodes' own adapters together.

    Attributes:
        loss: mean negative log-likelihood of a token, nats; perplexity is exp(loss).
        accuracy: share of rows whose label word is the likeliest; None for language tasks.
        nodes: node -> its own score, where the order asked for that; nodes without held-out rows have none.
    """

    loss: float
    num_tokens: int
    num_rows: int
    accuracy: float | None = None
    missing: tuple[str, ...] = ()
    spent: Spent = Spent()
    nodes: Mapping[str, NodeScore] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))


@dataclass(frozen=True)
class MovedAndTrained:
    """Both replies of `Together`; `spent.seconds` is the longer of the two."""

    moved: Moved
    trained: Trained
    spent: Spent = Spent()


Reply: TypeAlias = Sounding | Moved | Trained | Collected | Published | Scores | MovedAndTrained

ORDERS: tuple[type, ...] = (Sound, Move, Train, Collect, Publish, Evaluate, Together)
REPLIES: tuple[type, ...] = (Sounding, Moved, Trained, Collected, Published, Scores, MovedAndTrained)
REPLY_OF: Mapping[type, type] = dict(zip(ORDERS, REPLIES, strict=True))

State = TypeVar("State")
Steps: TypeAlias = Generator[Order, Reply, State]
"""A round: orders out, replies in, the next state at the end."""


def _ask(order: Order) -> Generator[Order, Reply, Any]:
    reply = yield order
    return reply


def sound(
    nodes: tuple[str, ...] = (), *, num_pilots: int = 4, per_subcarrier: bool = False
) -> Generator[Order, Reply, Sounding]:
    """`sounding = yield from sound()`."""
    return cast(Sounding, (yield from _ask(Sound(nodes, num_pilots, per_subcarrier))))


def move(positions_m: np.ndarray) -> Generator[Order, Reply, Moved]:
    """`moved = yield from move(positions_m)`."""
    return cast(Moved, (yield from _ask(Move(positions_m))))


def train(work: Mapping[str, Work]) -> Generator[Order, Reply, Trained]:
    """`trained = yield from train({node: Work()})`."""
    return cast(Trained, (yield from _ask(Train(work))))


def move_while_training(positions_m: np.ndarray, work: Mapping[str, Work]) -> Generator[Order, Reply, Trained]:
    """`trained = yield from move_while_training(positions_m, work)`."""
    both = cast(MovedAndTrained, (yield from _ask(Together(Move(positions_m), Train(work)))))
    return both.trained


def collect(
    uplinks: Mapping[str, Uplink],
    *,
    combiner: np.ndarray | None = None,
    scale: float | None = None,
    share: np.ndarray | None = None,
    expected_mse: float | None = None,
    deadline_s: float | None = None,
) -> Generator[Order, Reply, Collected]:
    """`collected = yield from collect(uplinks)`."""
    return (yield from gather(Collect(uplinks, combiner, scale, share, expected_mse, deadline_s)))


def gather(order: Collect) -> Generator[Order, Reply, Collected]:
    """`collected = yield from gather(order)`, for an order that a block has made."""
    return cast(Collected, (yield from _ask(order)))


def publish(
    adapter: np.ndarray, *, fold: np.ndarray | None = None, fold_rank: int = 0, part: Part = WHOLE
) -> Generator[Order, Reply, Published]:
    """`yield from publish(adapter)`."""
    return cast(Published, (yield from _ask(Publish(adapter, fold, fold_rank, part))))


def evaluate(*, personal: bool = False) -> Generator[Order, Reply, Scores]:
    """`scores = yield from evaluate()`."""
    return cast(Scores, (yield from _ask(Evaluate(personal))))
