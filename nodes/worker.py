"""What a node does with a request: the work of one process, one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

import numpy as np

from drivers.corrected_radio import CorrectedTransmitter
from nodes.hosted_node import HostedNode
from nodes.uplink import Uplink
from testbed.core import messages
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.corrections import TransmitCorrection
from testbed.core.devices import Adjustable
from testbed.core.errors import BenchError, ConfigError, ProtocolError
from testbed.core.messages import Packet
from testbed.core.node_devices import FollowedClock, NodeDevices
from testbed.core.orders import WHOLE, Alignment
from testbed.core.specs import JobSpec
from testbed.lora.refactor import Stack
from testbed.phy import sounding

if TYPE_CHECKING:
    from nodes.trainer import Trainer

Say = Callable[[messages.Message, Mapping[str, np.ndarray]], None]
_Burst: TypeAlias = messages.SendPilots | messages.SendAnalogue | messages.SendSigns | messages.SendPackets


@dataclass
class Worker:
    """Answers requests for all nodes of one process; they share one base model.

    Args:
        say: sends a message with its arrays to the controller.
        should_stop: asked between optimiser steps; True ends training early.
        bench: this board's own bench file; the controller's is used if None.
        load: makes the trainer of a job; `nodes.trainer.Trainer` if None.
    """

    say: Say
    should_stop: Callable[[], bool]
    bench: BenchSpec | None = None
    load: Callable[[JobSpec], Trainer] | None = None
    _nodes: dict[str, HostedNode] = field(default_factory=dict)
    _job: JobSpec | None = None
    _trainer: Trainer | None = None

    def answer(self, packet: Packet) -> None:
        """Carry out one request and send its answer."""
        request = packet.message
        match request:
            case messages.Configure():
                self._configure(request)
            case messages.OpenDevices():
                bench = self._bench_of(request)
                self._open(request, bench, np.zeros(0, np.float32))
                opened = self._node(request.node).devices
                facts = {"radio_serial": opened.serial, "firmware": opened.firmware}
                self._say(request, messages.Opened, facts)
            case messages.AdjustRadio():
                self._adjust(request)
            case messages.TrainTask():
                self._train(request, packet.arrays)
            case messages.SendPilots():
                self._transmit(request, sounding.build(request.num_pilots, request.waveform, request.power_w))
            case messages.SendSamples():
                self._transmit(request, packet.arrays["samples"])
            case messages.SendAnalogue():
                rate_hz = self._rate_hz(request)
                uplink, update = self._uplink(request.node)
                self._transmit(request, uplink.analogue(update, request, packet.arrays["precoder"], rate_hz))
            case messages.SendSigns():
                rate_hz = self._rate_hz(request)
                uplink, update = self._uplink(request.node)
                self._transmit(request, uplink.signs(update, request, packet.arrays["precoder"], rate_hz))
            case messages.SendPackets():
                rate_hz = self._rate_hz(request)
                uplink, update = self._uplink(request.node)
                self._transmit(request, uplink.packets(update, request, packet.arrays["allocation"], rate_hz))
            case messages.SendUpdate():
                uplink, update = self._uplink(request.node)
                if request.payload is None:
                    self._say(request, messages.Update, {}, {"update": update})
                else:
                    data = uplink.encoded(update, request.payload, request.transfer)
                    self._say(request, messages.Update, {}, {"payload": np.frombuffer(data, np.uint8)})
            case messages.EncodeUpdate():
                uplink, update = self._uplink(request.node)
                data = uplink.encoded(update, request.payload, request.transfer)
                self._say(request, messages.Encoded, {"num_bytes": len(data)})
            case messages.SendResidual():
                node = self._node(request.node)
                residual = np.zeros_like(node.adapter) if node.uplink.residual is None else node.uplink.residual
                self._say(request, messages.Residual, {}, {"residual": residual})
            case messages.SetResidual():
                self._node(request.node).uplink.residual = packet.arrays["residual"]
                self._say(request, messages.Done, {})
            case messages.SendOwn():
                own = self._node(request.node).own_values(self._trained(request.node).layout, request.shared)
                self._say(request, messages.Own, {}, dict(own))
            case messages.SetOwn():
                self._give_back(request, packet.arrays)
            case messages.ReadClock():
                self._say(request, messages.ClockRead, {"at_s": self._clock(request.node).own_s()})
            case messages.SetClock():
                self._clock(request.node).follow(request.offset_s)
                self._say(request, messages.Done, {})
            case messages.SetAdapter():
                self._set_adapter(request, packet.arrays)
                self._say(request, messages.Done, {})
            case messages.EvaluateTask():
                self._evaluate(request)
            case messages.MeasureGradients():
                self._measure_gradients(request, packet.arrays)
            case messages.MeasureStates():
                self._measure_states(request)
            case (
                messages.Hello()
                | messages.Ready()
                | messages.Opened()
                | messages.Done()
                | messages.TrainDone()
                | messages.Sent()
                | messages.Update()
                | messages.Encoded()
                | messages.Residual()
                | messages.Own()
                | messages.ClockRead()
                | messages.EvaluateDone()
                | messages.Gradients()
                | messages.States()
                | messages.Progress()
                | messages.Failed()
                | messages.Welcome()
                | messages.Refused()
                | messages.Bye()
            ):
                raise ProtocolError(f"a node cannot answer a {request.kind!r} message")
            case _:
                assert_never(request)

    def adopt(self, name: str, devices: NodeDevices, adapter: np.ndarray, bench: BenchSpec, uplink: Uplink) -> None:
        """Work for one more node, with its devices, the published adapter [num_values] and what it has to send."""
        self._nodes[name] = HostedNode(devices, adapter, bench.sample_rate_hz, uplink)

    def mute(self) -> None:
        """Stop every transmitter of this process; always legal, from any thread.

        Raises:
            BenchError: the first that could not be reached; the others are mute.
        """
        failures: list[BenchError] = []
        for node in list(self._nodes.values()):
            try:
                node.devices.radio.mute()
            except BenchError as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Mute and let go of all devices; may be repeated."""
        for node in self._nodes.values():
            node.devices.close()
        self._nodes.clear()

    def _say(
        self,
        request: messages.Request,
        kind: type[messages.Request],
        facts: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        answer = kind(node=request.node, serial=request.serial, **facts)
        self.say(answer, arrays or {})  # type: ignore[arg-type]

    def _node(self, name: str) -> HostedNode:
        if name not in self._nodes:
            raise ProtocolError(f"{name} was asked to work before it was configured")
        return self._nodes[name]

    def _clock(self, name: str) -> FollowedClock:
        clock = self._node(name).devices.clock
        if clock is None:
            raise ProtocolError(f"{name} was asked for its clock, and something else starts its bursts")
        return clock

    def _uplink(self, name: str) -> tuple[Uplink, np.ndarray]:
        uplink = self._node(name).uplink
        if uplink.update is None:
            raise ProtocolError(f"{name} was asked for an update before it trained")
        return uplink, uplink.update

    def _rate_hz(self, request: _Burst) -> float:
        return request.waveform.elements_per_second(self._node(request.node).rate_hz)

    def _configure(self, request: messages.Configure) -> None:
        from nodes.trainer import Trainer

        name = request.node
        if self._trainer is None or self._job != request.job:
            self.say(messages.Progress(node=name, activity="loading", fraction=0.0), {})
            self._trainer, self._job = (self.load or Trainer)(request.job), request.job
        self._open(request, self._bench_of(request), self._trainer.initial)
        self._say(
            request,
            messages.Ready,
            {
                "num_samples": self._trainer.num_samples(name),
                "layout": self._trainer.layout,
                "frozen_layout": self._trainer.frozen_layout,
                "peft_config": self._trainer.peft_config,
                "radio_serial": self._node(name).devices.serial,
            },
            {"initial": self._trainer.initial, "frozen": self._trainer.frozen},
        )

    def _bench_of(self, request: messages.Configure | messages.OpenDevices) -> BenchSpec:
        return self.bench or BenchSpec.model_validate(request.bench)

    def _open(self, request: messages.Configure | messages.OpenDevices, bench: BenchSpec, adapter: np.ndarray) -> None:
        name = request.node
        if name in self._nodes:
            self._nodes.pop(name).devices.close()
        devices = resolve(backend(request.backend).node)(bench, name, request.devices)
        if (found := request.devices.get("corrections", {}).get(name)) is not None:
            correction = TransmitCorrection.model_validate(found)
            devices = replace(devices, radio=CorrectedTransmitter(devices.radio, correction))
        devices.radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz)
        self.adopt(name, devices, adapter, bench, Uplink())

    def _adjust(self, request: messages.AdjustRadio) -> None:
        radio = self._node(request.node).devices.radio
        if not isinstance(radio, Adjustable):
            raise ConfigError(
                f"the radio of {request.node} has no gains to set",
                key="--backend",
                remedy="use --backend emulated or lab",
            )
        radio.adjust(rx_gain=request.rx_gain, tx_gain=request.tx_gain, crystal_hz=request.crystal_hz)
        self._say(request, messages.Done, {})

    def _train(self, request: messages.TrainTask, arrays: Mapping[str, np.ndarray]) -> None:
        node, trainer = self._node(request.node), self._trained(request.node)
        if request.objective is not None:
            self._align(request, request.objective)
            return
        if request.pruning is not None:
            # once for many rounds, and not what a round's training takes
            trainer.prepare(request.node, request.pruning)
        node.devices.meter.begin(request.cpu_hz)
        outcome = trainer.train(
            request.node,
            request.round_index,
            node.scored if request.beside else node.adapter,
            published=node.adapter if request.beside else None,
            local_steps=request.local_steps,
            batch_size=request.batch_size,
            proximal=request.proximal,
            drift=arrays.get("drift"),
            factors=request.factors,
            pruning=request.pruning,
            ranks=request.ranks,
            others=request.others,
            sketch=request.sketch,
            tail=request.tail,
            orthogonality=request.orthogonality,
            part=request.part,
            pulled=request.pulled,
            progress=self._report(request.node, "training"),
            should_stop=self.should_stop,
        )
        pruned = outcome.pruning
        spent = node.devices.meter.end(
            num_tokens=outcome.num_tokens, cpu_hz=request.cpu_hz, work_share=pruned.work_share
        )
        update = node.take(outcome.vector, trainer.layout, keep=request.keep, beside=request.beside)
        self._say(
            request,
            messages.TrainDone,
            {
                "loss_first": outcome.loss_first,
                "loss_last": outcome.loss_last,
                "loss_mean": outcome.loss_mean,
                "num_tokens": outcome.num_tokens,
                "update_mean": float(update.mean(dtype=np.float64)),
                "update_std": float(update.std(dtype=np.float64)),
                "seconds": spent.seconds,
                "joules": spent.joules,
                "num_steps": outcome.steps,
                "step_size": outcome.step_size,
                "work_share": pruned.work_share,
                "pruned": pruned.energy_share,
                "pruned_ratio": pruned.ratio,
            },
        )

    def _align(self, request: messages.TrainTask, objective: Alignment) -> None:
        node, trainer = self._node(request.node), self._trained(request.node)
        aligner, start, reference = trainer.aligner, node.adapter, node.leash(objective)
        self._report(request.node, "aligning")(0.0)
        node.devices.meter.begin(request.cpu_hz)
        aligned = aligner.align(
            request.node,
            request.round_index,
            start,
            objective,
            reference=reference,
            part=request.part,
            pulled=request.pulled,
            should_stop=self.should_stop,
        )
        spent = node.devices.meter.end(num_tokens=aligned.num_tokens, cpu_hz=request.cpu_hz, work_share=1.0)
        # what is measured for the record is no part of the round's work
        self._report(request.node, "measuring")(0.0)
        aligned, measures = aligner.measured(start, aligned, objective, reference)
        update = node.take(aligned.vector, trainer.layout, keep=request.keep)
        losses = [step.loss for step in aligned.trace] or [0.0]
        self._say(
            request,
            messages.TrainDone,
            {
                "loss_first": losses[0],
                "loss_last": losses[-1],
                "loss_mean": float(np.mean(losses)),
                "num_tokens": aligned.num_tokens,
                "update_mean": float(update.mean(dtype=np.float64)),
                "update_std": float(update.std(dtype=np.float64)),
                "seconds": spent.seconds,
                "joules": spent.joules,
                "num_steps": len(aligned.trace),
                "measures": measures,
            },
        )

    def _give_back(self, request: messages.SetOwn, arrays: Mapping[str, np.ndarray]) -> None:
        self._node(request.node).give_back(arrays, self._trained(request.node).layout, request.shared)
        self._say(request, messages.Done, {})

    def _transmit(self, request: messages.Burst, samples: np.ndarray) -> None:
        self._node(request.node).devices.radio.transmit(samples, at_s=request.at_s, trigger_s=request.trigger_s)
        self._say(
            request,
            messages.Sent,
            # the sum of |x|^2 over the samples, in watts; the controller knows the sample rate
            {"num_samples": len(samples), "power_sum_w": float(np.vdot(samples, samples).real)},
        )

    def _set_adapter(self, request: messages.SetAdapter, arrays: Mapping[str, np.ndarray]) -> None:
        """Nodes of one process that hold the same adapter and folds share their memory."""
        node, adapter = self._node(request.node), arrays["adapter"]
        if request.folded > len(node.folds):
            raise ProtocolError(
                f"{request.node} has {len(node.folds)} folds in its base, and the controller speaks of {request.folded}"
            )
        known = [fold for other in self._nodes.values() for fold in other.folds]
        folds = list(node.folds[: request.folded])
        for index, rank in enumerate(request.fold_ranks):
            new = Stack(arrays[f"fold-{index}"], rank)
            folds.append(next((fold for fold in known if np.array_equal(fold.vector, new.vector)), new))
        if request.part != WHOLE:
            adapter = node.published(adapter, self._trained(request.node).layout, request.part)
        same = (one.adapter for one in self._nodes.values() if np.array_equal(one.adapter, adapter))
        node.adapter, node.folds = next(same, adapter), tuple(folds)

    def _trained(self, name: str) -> Trainer:
        """The process's trainer, its base with what this node's has been given."""
        if self._trainer is None:
            raise ProtocolError("a node was asked to work before it was configured")
        self._trainer.fold(self._nodes[name].folds if name in self._nodes else ())
        return self._trainer

    def _evaluate(self, request: messages.EvaluateTask) -> None:
        node, trainer = self._node(request.node), self._trained(request.node)
        self.say(messages.Progress(node=request.node, activity="evaluating", fraction=0.0), {})
        own = request.node if request.personal else None
        vector = node.scored if request.personal else node.adapter
        sums = trainer.evaluate(vector, shard=request.shard, num_shards=request.num_shards, node=own)
        self._say(
            request,
            messages.EvaluateDone,
            {
                "loss_sum": sums.loss_sum,
                "num_tokens": sums.num_tokens,
                "num_correct": sums.num_correct,
                "num_rows": sums.num_rows,
            },
        )

    def _measure_gradients(self, request: messages.MeasureGradients, arrays: Mapping[str, np.ndarray]) -> None:
        from nodes.measures import Measures

        missing = [name for name in ("points", "rows") if name not in arrays]
        if missing:
            raise ProtocolError(f"a request to measure gradients came without {' and '.join(missing)}")
        found = Measures(self._trained(request.node)).gradients(
            request.node,
            arrays["points"],
            arrays["rows"],
            blocks=request.blocks,
            direction=arrays.get("direction"),
            progress=self._report(request.node, "measuring gradients"),
            should_stop=self.should_stop,
        )
        self._say(request, messages.Gradients, {}, vars(found))

    def _measure_states(self, request: messages.MeasureStates) -> None:
        from nodes.measures import Measures

        report = self._report(request.node, "reading the pre-training text" if request.pretraining else "measuring")
        # reading the built-in text takes a minute, in which nothing else is heard of this node
        report(0.0)
        measures, rng = Measures(self._trained(request.node)), np.random.default_rng(request.seed)
        rows = (
            measures.pretraining_rows(request.source, request.count, rng)
            if request.pretraining
            else measures.own_rows(request.node, request.count, rng)
        )
        self._say(request, messages.States, {}, {"states": measures.states(rows, progress=report)})

    def _report(self, name: str, activity: str) -> Callable[[float], None]:
        """Says how far a task of a node is."""

        def report(fraction: float) -> None:
            self.say(messages.Progress(node=name, activity=activity, fraction=fraction), {})

        return report
