"""Answers orders with devices, simulated, emulated or real; it cannot tell which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import assert_never

import numpy as np

from testbed.core import messages
from testbed.core.adapter import Adapter
from testbed.core.bench import BenchSpec
from testbed.core.devices import Devices
from testbed.core.errors import DeviceError
from testbed.core.fleet import Fleet
from testbed.core.frames import to_array, to_stage
from testbed.core.orders import (
    Analogue,
    Collect,
    Collected,
    Digital,
    Evaluate,
    LocalResult,
    Move,
    Moved,
    MovedAndTrained,
    Order,
    Publish,
    Published,
    Reply,
    Scores,
    Sound,
    Sounding,
    Spent,
    Together,
    Train,
    Trained,
)
from testbed.core.units import dbm_to_w
from testbed.engine.crew import Crew
from testbed.engine.limits import check_order
from testbed.lora.aggregate import weighted_mean
from testbed.phy import estimate, ofdm, overair

_NO_ARRAYS: Mapping[str, np.ndarray] = {}
_START_DELAY_S = 1e-3
"""Between an order to transmit and the first sample: time for the order to reach every node."""


@dataclass
class Live:
    """The answerer that acts.

    Args:
        devices: opened devices of the bench.
        bench: limits, frames and numerology.
        crew: the nodes.
        audit: let nodes report their true updates over the control link, to measure the aggregation error.
    """

    devices: Devices
    bench: BenchSpec
    crew: Crew
    audit: bool = True
    round_index: int = 0
    last_audit: dict[str, float] = field(default_factory=dict)
    _num_values: int = 0
    _num_samples: dict[str, int] = field(default_factory=dict)

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
        self._num_values = adapter.size
        return adapter, Fleet.of(self.bench, self._num_samples)

    def restore(self, adapter: np.ndarray, positions_m: np.ndarray, clock_s: float) -> None:
        """Continue a recorded run: adapter on the nodes, antennas in place, clock set; the way there is not counted."""
        self._publish(Publish(adapter))
        self._move(Move(positions_m))
        self.devices.clock.set(clock_s)

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
        check_order(order, self.bench, self._num_values)
        self.crew.catch_up()
        self.last_audit = {}
        match order:
            case Sound():
                return self._sound(order)
            case Move():
                return self._move(order)
            case Train():
                return self._train(order)
            case Collect():
                return self._collect(order)
            case Publish():
                return self._publish(order)
            case Evaluate():
                return self._evaluate()
            case Together(move=move, train=train):
                tasks = (lambda: self._move(move), lambda: self._train(train))
                moved, trained = self.devices.clock.concurrently(tasks)
                total = moved.spent + trained.spent
                spent = replace(total, seconds=max(moved.spent.seconds, trained.spent.seconds))
                return MovedAndTrained(moved, trained, spent)
            case _:
                assert_never(order)

    def _sound(self, order: Sound) -> Sounding:
        waveform, rate_hz = self.bench.waveform, self.bench.sample_rate_hz
        asked = order.nodes or self.bench.node_names
        names = self.crew.present(asked)
        pilots = estimate.pilot_symbols(order.num_pilots, waveform)
        slot = ofdm.burst_length(pilots.size, waveform)
        start_s = self.devices.clock.now_s() + _START_DELAY_S
        boards = {board.name: board for board in self.bench.boards}
        powers = {name: dbm_to_w(boards[name].max_power_dbm) for name in names}
        requests: dict[str, messages.Message] = {
            name: messages.SendPilots(
                node=name,
                at_s=start_s + index * slot / rate_hz,
                power_w=powers[name],
                num_pilots=order.num_pilots,
                waveform=waveform,
            )
            for index, name in enumerate(names)
        }
        self.devices.radio.arm(slot * len(names), at_s=start_s)
        sent = self.crew.ask(requests, messages.Sent)
        samples = self.devices.radio.read()
        end_s = start_s + slot * len(names) / rate_hz
        self.devices.clock.wait_until(end_s)
        heard = [name for name in names if name in sent]
        if not heard:
            raise DeviceError("no node answered the sounding", remedy="look at the logs of the nodes")
        channels, noises = [], []
        for index, name in enumerate(names):
            if name in sent:
                # [num_antennas, slot]
                burst = samples[:, index * slot : (index + 1) * slot]
                channel, noise_w = estimate.estimate_channel(ofdm.demodulate(burst, waveform), pilots, powers[name])
                channels.append(channel)
                noises.append(noise_w)
        spent = Spent(
            seconds=end_s - start_s + _START_DELAY_S,
            joules=sum(message.power_sum_w for message in sent.values()) / rate_hz,
            air_time_s=slot * len(heard) / rate_hz,
        )
        return Sounding(
            nodes=tuple(heard),
            channel=np.stack(channels, axis=1),
            noise_w=float(np.mean(noises)),
            positions_m=self.positions_m,
            missing=tuple(name for name in asked if name not in heard),
            spent=spent,
        )

    @property
    def positions_m(self) -> np.ndarray:
        """Where the antennas are, array frame, shape [num_antennas, 2]."""
        return np.array(
            [
                antenna.home_m if stage is None or antenna.stage is None else to_array(stage.position_m, antenna.stage)
                for stage, antenna in zip(self.devices.stages, self.bench.array.antennas, strict=True)
            ],
            dtype=np.float64,
        )

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
            )
            for name, work in order.work.items()
        }
        results = {}
        for name, done in self.crew.ask(requests, messages.TrainDone).items():
            facts = done.model_dump(exclude={"kind", "node", "serial"})
            results[name] = LocalResult(num_samples=self._num_samples[name], **facts)
        self.crew.holding = set(results)
        seconds = max((result.seconds for result in results.values()), default=0.0)
        self.devices.clock.wait_until(start_s + seconds)
        joules = sum(result.joules for result in results.values())
        return Trained(results, tuple(name for name in order.work if name not in results), Spent(seconds, joules))

    def _collect(self, order: Collect) -> Collected:
        if all(isinstance(uplink, Digital) for uplink in order.uplinks.values()):
            collected = self._collect_digital(order)
        else:
            collected = self._collect_analogue(order)
        if self.audit:
            self._measure_error(order, collected)
        return collected

    def _collect_digital(self, order: Collect) -> Collected:
        uplinks = {name: uplink for name, uplink in order.uplinks.items() if isinstance(uplink, Digital)}
        updates = self.crew.fetch({name: uplink.bits_per_value for name, uplink in uplinks.items()})
        if not updates:
            raise DeviceError("no node delivered its update", remedy="look at the logs of the nodes")
        times = {name: uplinks[name].bits_per_value * self._num_values / uplinks[name].rate_bit_s for name in updates}
        seconds = max(times.values())
        energy_j = {name: uplinks[name].power_w * times[name] for name in updates}
        self.devices.clock.wait_until(self.devices.clock.now_s() + seconds)
        mean = weighted_mean(updates, {name: uplinks[name].weight for name in updates})
        spent = Spent(seconds, sum(energy_j.values()), seconds)
        missing = tuple(name for name in order.uplinks if name not in updates)
        return Collected(mean, updates, missing, energy_j=energy_j, spent=spent)

    def _collect_analogue(self, order: Collect) -> Collected:
        uplinks = {
            name: uplink
            for name, uplink in order.uplinks.items()
            if isinstance(uplink, Analogue) and name in self.crew.holding
        }
        assert order.combiner is not None  # check_order saw to it
        assert order.scale is not None
        waveform, rate_hz = self.bench.waveform, self.bench.sample_rate_hz
        length = ofdm.burst_length(ofdm.num_symbols_of(self._num_values), waveform)
        start_s = self.devices.clock.now_s() + _START_DELAY_S
        self.devices.radio.arm(length, at_s=start_s)
        requests: dict[str, messages.Message] = {
            name: messages.SendAnalogue(
                node=name,
                at_s=start_s,
                precoder=(uplink.precoder.real, uplink.precoder.imag),
                mean=uplink.mean,
                std=uplink.std,
                waveform=waveform,
            )
            for name, uplink in uplinks.items()
        }
        sent = self.crew.ask(requests, messages.Sent)
        samples = self.devices.radio.read()
        self.devices.clock.wait_until(start_s + length / rate_hz)
        if not sent:
            raise DeviceError("no node transmitted", remedy="look at the logs of the nodes")
        mean = overair.decode(
            samples,
            combiner=order.combiner,
            scale=order.scale,
            weights=np.array([uplinks[name].weight for name in sent]),
            means=np.array([uplinks[name].mean for name in sent]),
            num_values=self._num_values,
            waveform=waveform,
        )
        energy_j = {name: message.power_sum_w / rate_hz for name, message in sent.items()}
        spent = Spent(length / rate_hz + _START_DELAY_S, sum(energy_j.values()), length / rate_hz)
        missing = tuple(name for name in order.uplinks if name not in sent)
        return Collected(mean, missing=missing, energy_j=energy_j, spent=spent)

    def _publish(self, order: Publish) -> Published:
        link = self.bench.link
        reached = self.crew.publish(order.adapter)
        seconds = 32.0 * order.adapter.size / link.downlink_bit_s
        self.devices.clock.wait_until(self.devices.clock.now_s() + seconds)
        missing = tuple(name for name in self.bench.node_names if name not in reached)
        return Published(missing, Spent(seconds, link.server_power_w * seconds, seconds))

    def _evaluate(self) -> Scores:
        names = self.crew.present()
        requests: dict[str, messages.Message] = {
            name: messages.EvaluateTask(node=name, shard=index, num_shards=len(names))
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
        )

    def _measure_error(self, order: Collect, collected: Collected) -> None:
        """Compare the mean with what the nodes that sent really hold; travels outside the run's time and energy."""
        names = [name for name in order.uplinks if name not in collected.missing]
        truth = self.crew.fetch(dict.fromkeys(names, 32))
        if len(truth) < len(names):
            return
        mean = weighted_mean(truth, {name: order.uplinks[name].weight for name in names})
        error = collected.mean.astype(np.float64) - mean
        self.last_audit = {
            "error_norm2": float(error @ error),
            "true_norm2": float(np.dot(mean, mean.astype(np.float64))),
        }
