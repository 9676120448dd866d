"""Answers orders with devices, simulated, emulated or real; it cannot tell which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import assert_never

import numpy as np

from testbed.core import messages
from testbed.core.adapter import Adapter, Layout
from testbed.core.bench import BenchSpec
from testbed.core.devices import Devices
from testbed.core.errors import DeviceError
from testbed.core.fleet import Fleet
from testbed.core.frames import to_array, to_stage
from testbed.core.orders import (
    WHOLE,
    Analogue,
    Collect,
    Collected,
    Digital,
    Evaluate,
    Ideal,
    LocalResult,
    MajorityVote,
    Move,
    Moved,
    MovedAndTrained,
    NodeScore,
    OneBit,
    Order,
    Publish,
    Published,
    Reply,
    Scores,
    Sound,
    Spent,
    Together,
    Train,
    Trained,
)
from testbed.engine.air import Air
from testbed.engine.audit import audit
from testbed.engine.crew import Crew, check_folding
from testbed.engine.keeping import Keeping, to_file
from testbed.engine.limits import check_order
from testbed.engine.parcels import collect_ideal, collect_packets
from testbed.engine.soundings import sound
from testbed.engine.sums import collect_mean, collect_signs, collect_votes
from testbed.lora.choice import part_mask
from testbed.lora.refactor import Stack


@dataclass
class Live:
    """The answerer that acts.

    Args:
        devices: opened devices of the bench.
        bench: limits, frames and numerology.
        crew: the nodes.
        audit: let nodes report their true updates over the control link, to measure the aggregation error.
        fields: node -> plane waves of its channel, from a calibration.
    """

    devices: Devices
    bench: BenchSpec
    crew: Crew
    audit: bool = True
    fields: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    round_index: int = 0
    last_audit: dict[str, float] = field(default_factory=dict)
    num_values: int = 0
    """Length of the adapter vector, known once the nodes are ready."""
    _layout: Layout = field(default_factory=lambda: Layout(factors=()))
    _num_samples: dict[str, int] = field(default_factory=dict)
    _transfers: tuple[int, int] = (-1, 0)
    _feeding_back: set[str] = field(default_factory=set)

    # start and resume ------------------------------------------------------------------------------------------------

    def prepare(self) -> tuple[Adapter, Fleet]:
        """Tune the radio, wait for the nodes, let them load model and data.

        Raises:
            LinkTimeout: a node never connected, or did not get ready.
            ProtocolError: the nodes do not agree on the adapter they start from.
        """
        self.devices.radio.tune(frequency_hz=self.bench.carrier_hz, sample_rate_hz=self.bench.sample_rate_hz)
        ready = self.crew.assemble()
        facts = {name: packet.message for name, packet in ready.items() if isinstance(packet.message, messages.Ready)}
        first = self.bench.node_names[0]
        self._num_samples = {name: message.num_samples for name, message in facts.items()}
        adapter = Adapter(
            layout=facts[first].layout,
            initial=ready[first].arrays["initial"],
            frozen_layout=facts[first].frozen_layout,
            frozen=ready[first].arrays["frozen"],
            peft_config=facts[first].peft_config,
        )
        self.num_values, self._layout = adapter.size, adapter.layout
        return adapter, Fleet.of(self.bench, self._num_samples, self.fields)

    def residuals(self) -> dict[str, np.ndarray]:
        """What the payloads of nodes with error feedback have left out, shape [num_values] each."""
        return self.crew.residuals(self._feeding_back) if self._feeding_back else {}

    def own_values(self) -> dict[str, np.ndarray]:
        """What nodes have for themselves, by `testbed.engine.keeping.to_file`."""
        return to_file(self.crew.own_values()) if self.crew.keeping.holders else {}

    def restore(
        self,
        adapter: np.ndarray,
        positions_m: np.ndarray,
        clock_s: float,
        residuals: Mapping[str, np.ndarray],
        folds: Sequence[Stack] = (),
        keeping: Keeping | None = None,
    ) -> None:
        """Continue a recorded run: adapter, folds and own values on the nodes, antennas in place, clock set; the way
        there is not counted.
        """
        self.crew.folds = list(folds)
        self.crew.give_residuals(residuals)
        self._feeding_back = set(residuals)
        self._publish(Publish(adapter))
        if keeping is not None:
            self.crew.keeping = keeping
            self.crew.give_back(sorted(keeping.stored))
        self._move(Move(positions_m))
        self.devices.clock.set(clock_s)
        self.crew.share_time(self.crew.present())

    @property
    def _air(self) -> Air:
        return Air(self.bench, self.devices, self.crew)

    def now_s(self) -> float:
        """The run's clock."""
        return self.devices.clock.now_s()

    # orders ----------------------------------------------------------------------------------------------------------

    def answer(self, order: Order) -> Reply:
        """Check the order, carry it out, return what was measured.

        Raises:
            LimitError: the order breaks a limit; nothing moved, nothing radiated.
            DeviceError: a device failed.
        """
        check_order(order, self.bench, self.num_values, self._layout)
        self.crew.catch_up()
        self.last_audit = {}
        reply = self._carried_out(order)
        self.crew.keeping.note(order, reply)
        return reply

    def _carried_out(self, order: Order) -> Reply:
        match order:
            case Sound():
                self._keep_time()
                return sound(self._air, order, self.positions_m)
            case Move():
                return self._move(order)
            case Train():
                return self._train(order)
            case Collect():
                return self._collect(order)
            case Publish():
                return self._publish(order)
            case Evaluate():
                return self._evaluate(order)
            case Together(move=move, train=train):
                tasks = (lambda: self._move(move), lambda: self._train(train))
                moved, trained = self.devices.clock.concurrently(tasks)
                total = moved.spent + trained.spent
                spent = replace(total, seconds=max(moved.spent.seconds, trained.spent.seconds))
                return MovedAndTrained(moved, trained, spent)
            case _:
                assert_never(order)

    @property
    def positions_m(self) -> np.ndarray:
        """Where the antennas are, array frame, shape [num_antennas, 2]."""
        return antenna_positions_m(self.devices, self.bench)

    def _move(self, order: Move) -> Moved:
        start_s = self.devices.clock.now_s()
        tasks = [
            partial(stage.move_to, to_stage(point, antenna.stage))
            for point, stage, antenna in zip(
                order.positions_m, self.devices.stages, self.bench.array.antennas, strict=True
            )
            if stage is not None and antenna.stage is not None
        ]
        total = sum(self.devices.clock.concurrently(tasks), Spent())
        return Moved(self.positions_m, replace(total, seconds=self.devices.clock.now_s() - start_s))

    def _train(self, order: Train) -> Trained:
        start_s = self.devices.clock.now_s()
        requests: dict[str, messages.Message] = {
            name: messages.TrainTask(
                node=name,
                round_index=self.round_index,
                local_steps=work.local_steps,
                batch_size=work.batch_size,
                cpu_hz=work.cpu_hz,
                proximal=work.proximal,
                factors=work.factors,
                pruning=work.pruning,
                ranks=work.ranks,
                others=work.others,
                sketch=work.sketch,
                tail=work.tail,
                orthogonality=work.orthogonality,
                part=work.part,
                pulled=work.pulled,
                objective=work.objective,
                keep=work.keep,
                beside=work.beside,
            )
            for name, work in order.work.items()
        }
        arrays = {
            name: {"drift": work.drift.astype(np.float32, copy=False)}
            for name, work in order.work.items()
            if work.drift is not None
        }
        results = {}
        for name, done in self.crew.ask(requests, messages.TrainDone, arrays).items():
            facts = done.model_dump(exclude={"kind", "node", "serial"})
            results[name] = LocalResult(num_samples=self._num_samples[name], **facts)
        self.crew.holding = set(results)
        # what the drifts have in common is broadcast; each node knows its own part of its drift
        downlink_s = 32.0 * self.num_values / self.bench.link.downlink_bit_s if arrays else 0.0
        seconds = downlink_s + max((result.seconds for result in results.values()), default=0.0)
        self.devices.clock.wait_until(start_s + seconds)
        joules = sum(result.joules for result in results.values()) + self.bench.link.server_power_w * downlink_s
        missing = tuple(name for name in order.work if name not in results)
        return Trained(results, missing, Spent(seconds, joules, downlink_s))

    def _collect(self, order: Collect) -> Collected:
        self._keep_time()
        air, first = self._air, next(iter(order.uplinks.values()))
        for name, uplink in order.uplinks.items():
            if isinstance(uplink, Ideal | Digital) and uplink.payload.error_feedback:
                self._feeding_back.add(name)
        match first:
            case Ideal():
                collected = collect_ideal(air, order, self._layout, self._next_transfer())
            case Digital():
                collected = collect_packets(air, order, self._layout, self._next_transfer())
            case Analogue():
                collected = collect_mean(air, order, self.num_values)
            case OneBit():
                collected = collect_signs(air, order, self.num_values)
            case MajorityVote():
                collected = collect_votes(air, order, self.num_values)
            case _:
                assert_never(first)
        if self.audit:
            self._measure_error(order, collected)
        return collected

    def _keep_time(self) -> None:
        if self.devices.shares_time:
            self.crew.keep_time()

    def _next_transfer(self) -> int:
        """A number for this update's bytes, the same when the round is played again after a resume."""
        index, count = self._transfers
        self._transfers = (self.round_index, count + 1 if index == self.round_index else 0)
        return (self._transfers[0] * 16 + self._transfers[1]) % 256

    def _publish(self, order: Publish) -> Published:
        link = self.bench.link
        check_folding(order, self.crew.job.model)
        fold = None if order.fold is None else Stack(order.fold, order.fold_rank)
        reached = self.crew.publish(order.adapter, fold, order.part)
        num_values = published_values(order, self._layout)
        seconds = 32.0 * num_values / link.downlink_bit_s
        self.devices.clock.wait_until(self.devices.clock.now_s() + seconds)
        missing = tuple(name for name in self.bench.node_names if name not in reached)
        return Published(missing, Spent(seconds, link.server_power_w * seconds, seconds))

    def _evaluate(self, order: Evaluate) -> Scores:
        names = self.crew.present()
        requests: dict[str, messages.Message] = {
            name: messages.EvaluateTask(node=name, shard=index, num_shards=len(names), personal=order.personal)
            for index, name in enumerate(names)
        }
        answers = self.crew.ask(requests, messages.EvaluateDone)
        num_tokens = sum(answer.num_tokens for answer in answers.values())
        num_rows = sum(answer.num_rows for answer in answers.values())
        if not num_tokens:
            raise DeviceError("no node scored the held-out split", remedy="look at the logs of the nodes")
        correct = [answer.num_correct for answer in answers.values()]
        known = [count for count in correct if count is not None]
        return Scores(
            loss=sum(answer.loss_sum for answer in answers.values()) / num_tokens,
            num_tokens=num_tokens,
            num_rows=num_rows,
            accuracy=sum(known) / num_rows if len(known) == len(correct) and num_rows else None,
            missing=tuple(name for name in self.bench.node_names if name not in answers),
            nodes={name: _score(answer) for name, answer in answers.items() if order.personal and answer.num_tokens},
        )

    def _measure_error(self, order: Collect, collected: Collected) -> None:
        """Compare what arrived with what the nodes really hold; travels outside the run's time and energy."""
        names = [name for name in order.uplinks if name not in collected.missing]
        truth = self.crew.fetch(names)
        if len(truth) < len(names):
            return
        for name, uplink in order.uplinks.items():
            # values of kinds and names that stay with their node are no error of the link
            if name in truth and isinstance(uplink, Ideal | Digital) and (part := uplink.payload.part) != WHOLE:
                meant = part_mask(self._layout, replace(part, ranks=None, segment=None))
                truth[name] = np.where(meant, truth[name], np.float32(0))
        self.last_audit = audit(order, collected.mean, truth)


def _score(answer: messages.EvaluateDone) -> NodeScore:
    correct = answer.num_correct
    accuracy = None if correct is None else correct / answer.num_rows
    return NodeScore(answer.loss_sum / answer.num_tokens, answer.num_tokens, answer.num_rows, accuracy)


def published_values(order: Publish, layout: Layout) -> int:
    """How many numbers a broadcast carries."""
    fold = 0 if order.fold is None else order.fold.size
    return fold + (order.adapter.size if order.part == WHOLE else int(np.count_nonzero(part_mask(layout, order.part))))


def antenna_positions_m(devices: Devices, bench: BenchSpec) -> np.ndarray:
    """Where the antennas are, array frame, shape [num_antennas, 2]."""
    return np.array(
        [
            antenna.home_m if stage is None or antenna.stage is None else to_array(stage.position_m, antenna.stage)
            for stage, antenna in zip(devices.stages, bench.array.antennas, strict=True)
        ],
        dtype=np.float64,
    )
