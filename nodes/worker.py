"""What a node does with a request: the work of one process, one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np

from testbed.core import messages
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.errors import ProtocolError
from testbed.core.messages import Packet
from testbed.core.node_devices import NodeDevices
from testbed.core.specs import JobSpec
from testbed.phy import estimate, ofdm, overair

if TYPE_CHECKING:
    from nodes.trainer import Trainer

Say = Callable[[messages.Message, Mapping[str, np.ndarray]], None]


@dataclass
class _Node:
    """One node of this process: its devices, the published adapter and its own latest update."""

    devices: NodeDevices
    adapter: np.ndarray
    update: np.ndarray | None = None


@dataclass
class Worker:
    """Answers requests for all nodes of one process; they share one base model.

    Args:
        say: sends a message with its arrays to the controller.
        should_stop: asked between optimiser steps; True ends training early.
        bench: this board's own bench file; the controller's is used if None.
    """

    say: Say
    should_stop: Callable[[], bool]
    bench: BenchSpec | None = None
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _job: JobSpec | None = None
    _trainer: Trainer | None = None

    def answer(self, packet: Packet) -> None:
        """Carry out one request and send its answer."""
        request = packet.message
        match request:
            case messages.Configure():
                self._configure(request)
            case messages.TrainTask():
                self._train(request)
            case messages.SendPilots():
                pilots = estimate.pilot_symbols(request.num_pilots, request.waveform)
                amplitude = np.float32(np.sqrt(request.power_w))
                self._transmit(request, ofdm.modulate(amplitude * pilots, request.waveform))
            case messages.SendAnalogue():
                samples = overair.encode(
                    self._update(request.node),
                    mean=request.mean,
                    std=request.std,
                    precoder=complex(*request.precoder),
                    waveform=request.waveform,
                )
                self._transmit(request, samples)
            case messages.SendUpdate():
                update = self._update(request.node)
                payload = update.astype(np.float16) if request.bits_per_value == 16 else update
                self._say(request, messages.Update, {}, {"update": payload})
            case messages.SetAdapter():
                self._set_adapter(request.node, packet.arrays["adapter"])
                self._say(request, messages.Done, {})
            case messages.EvaluateTask():
                self._evaluate(request)
            case (
                messages.Hello()
                | messages.Ready()
                | messages.Done()
                | messages.TrainDone()
                | messages.Sent()
                | messages.Update()
                | messages.EvaluateDone()
                | messages.Progress()
                | messages.Failed()
                | messages.Welcome()
                | messages.Refused()
                | messages.Bye()
            ):
                raise ProtocolError(f"a node cannot answer a {request.kind!r} message")
            case _:
                assert_never(request)

    def mute(self) -> None:
        """Stop every transmitter of this process; always legal, from any thread."""
        for node in list(self._nodes.values()):
            node.devices.radio.mute()

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

    def _node(self, name: str) -> _Node:
        if name not in self._nodes:
            raise ProtocolError(f"{name} was asked to work before it was configured")
        return self._nodes[name]

    def _update(self, name: str) -> np.ndarray:
        update = self._node(name).update
        if update is None:
            raise ProtocolError(f"{name} was asked for an update before it trained")
        return update

    def _configure(self, request: messages.Configure) -> None:
        from nodes.trainer import Trainer

        name = request.node
        if self._trainer is None or self._job != request.job:
            self.say(messages.Progress(node=name, activity="loading", fraction=0.0), {})
            self._trainer, self._job = Trainer(request.job), request.job
        bench = self.bench or BenchSpec.model_validate(request.bench)
        if name in self._nodes:
            self._nodes.pop(name).devices.close()
        devices = resolve(backend(request.backend).node)(bench, name, request.devices)
        self._nodes[name] = _Node(devices, self._trainer.initial)
        self._say(
            request,
            messages.Ready,
            {
                "num_samples": self._trainer.num_samples(name),
                "layout": self._trainer.layout,
                "frozen_layout": self._trainer.frozen_layout,
                "peft_config": self._trainer.peft_config,
            },
            {"initial": self._trainer.initial, "frozen": self._trainer.frozen},
        )

    def _train(self, request: messages.TrainTask) -> None:
        node, trainer = self._node(request.node), self._trained()

        def progress(fraction: float) -> None:
            self.say(messages.Progress(node=request.node, activity="training", fraction=fraction), {})

        node.devices.meter.begin()
        outcome = trainer.train(
            request.node,
            request.round_index,
            node.adapter,
            local_steps=request.local_steps,
            batch_size=request.batch_size,
            progress=progress,
            should_stop=self.should_stop,
        )
        spent = node.devices.meter.end(num_tokens=outcome.num_tokens, cpu_hz=request.cpu_hz)
        node.update = outcome.vector - node.adapter
        self._say(
            request,
            messages.TrainDone,
            {
                "loss_first": outcome.loss_first,
                "loss_last": outcome.loss_last,
                "loss_mean": outcome.loss_mean,
                "num_tokens": outcome.num_tokens,
                "update_mean": float(node.update.mean(dtype=np.float64)),
                "update_std": float(node.update.std(dtype=np.float64)),
                "seconds": spent.seconds,
                "joules": spent.joules,
            },
        )

    def _transmit(self, request: messages.SendPilots | messages.SendAnalogue, samples: np.ndarray) -> None:
        self._node(request.node).devices.radio.transmit(samples, at_s=request.at_s)
        self._say(
            request,
            messages.Sent,
            # the sum of |x|^2 over the samples, in watts; the controller knows the sample rate
            {"num_samples": len(samples), "power_sum_w": float(np.vdot(samples, samples).real)},
        )

    def _set_adapter(self, name: str, adapter: np.ndarray) -> None:
        """Nodes of one process that hold the same adapter share its memory."""
        same = (node.adapter for node in self._nodes.values() if np.array_equal(node.adapter, adapter))
        self._node(name).adapter = next(same, adapter)

    def _trained(self) -> Trainer:
        if self._trainer is None:
            raise ProtocolError("a node was asked to work before it was configured")
        return self._trainer

    def _evaluate(self, request: messages.EvaluateTask) -> None:
        node, trainer = self._node(request.node), self._trained()
        self.say(messages.Progress(node=request.node, activity="evaluating", fraction=0.0), {})
        sums = trainer.evaluate(node.adapter, shard=request.shard, num_shards=request.num_shards)
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
