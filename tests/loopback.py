"""A simulated bench in one process: radios, medium, engine and node uplinks as in a run, updates given, not trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nodes.uplink import Uplink
from nodes.worker import Worker
from testbed.core.adapter import Factor, Layout
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.messages import Message, Packet
from testbed.core.orders import Collect, Collected, Order, Reply
from testbed.core.specs import JobSpec
from testbed.engine.crew import Crew
from testbed.engine.live import Live
from testbed.engine.observe import Observer


class LocalLink:
    """The control link of nodes that live in this process; those in `deaf` hear nothing."""

    def __init__(self, worker: Worker, names: Sequence[str]) -> None:
        self.nodes = tuple(names)
        self.deaf: set[str] = set()
        self.asked: list[Message] = []
        self._worker = worker

    def take_joined(self) -> tuple[str, ...]:
        return ()

    def wait_for(self, nodes: Sequence[str], *, timeout_s: float) -> None:
        assert set(nodes) <= set(self.nodes)

    def ask(
        self,
        requests: Mapping[str, tuple[Message, Mapping[str, np.ndarray]]],
        *,
        timeout_s: float,
        progress: Any = None,
    ) -> dict[str, Packet]:
        answers: dict[str, Packet] = {}
        for name, (message, arrays) in requests.items():
            self.asked.append(message)
            if name not in self.deaf:

                def say(answer: Message, arrays: Mapping[str, np.ndarray], name: str = name) -> None:
                    answers[name] = Packet(answer, arrays)

                self._worker.say = say
                self._worker.answer(Packet(message, arrays))
        return answers

    def close(self) -> None:
        self._worker.close()


class Loopback:
    """A live bench whose nodes hold the given updates.

    Args:
        bench: the bench; its nodes are those that have an update.
        updates: node -> update, shape [num_values] float32.
        live: answers orders as in a run.
    """

    def __init__(self, bench: BenchSpec, updates: Mapping[str, np.ndarray], live: Live, link: LocalLink) -> None:
        self.bench, self.updates, self.live, self.link = bench, updates, live, link

    def answer(self, order: Order) -> Reply:
        """What the bench answers."""
        return self.live.answer(order)

    def collect(self, order: Collect) -> Collected:
        """What a collection brings."""
        reply = self.live.answer(order)
        assert isinstance(reply, Collected)
        return reply

    def mean(self) -> np.ndarray:
        """Mean of all updates, counted alike."""
        return np.mean(list(self.updates.values()), axis=0)


@contextlib.contextmanager
def loopback(bench: BenchSpec, updates: Mapping[str, np.ndarray], folder: Path, seed: int = 0) -> Iterator[Loopback]:
    """Open the simulated bench without node processes; mute, still and closed at the end."""
    sim = backend("sim")
    devices = resolve(sim.bench)(bench, seed=seed, folder=folder, node_processes=0)
    worker = Worker(say=lambda answer, arrays: None, should_stop=lambda: False)
    num_values = len(next(iter(updates.values())))
    for name in bench.node_names:
        node_devices = resolve(sim.node)(bench, name, devices.node_devices)
        node_devices.radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz)
        worker.adopt(name, node_devices, np.zeros(num_values, np.float32), bench, Uplink(updates[name]))
    try:
        link = LocalLink(worker, bench.node_names)
        devices.link.close()
        own = replace(devices, link=link)
        crew = Crew(own, bench, "sim", JobSpec(nodes=bench.node_names), Observer(), holding=set(bench.node_names))
        live = Live(own, bench, crew)
        own.radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz)
        live.num_values = num_values
        live._layout = Layout(factors=(Factor(name="v.lora_B.weight", shape=(num_values, 1), kind="B", module="v"),))
        yield Loopback(bench, updates, live, link)
    finally:
        worker.close()
        devices.close()
