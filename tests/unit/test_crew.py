"""Nodes that come back, or missed a broadcast, get what they need before the next order."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from testbed.core import messages
from testbed.core.adapter import Factor, Layout
from testbed.core.devices import Devices
from testbed.core.messages import Message, Packet
from testbed.core.specs import JobSpec
from testbed.engine.crew import Crew
from testbed.engine.observe import Observer
from testbed.lora.refactor import Stack
from tests.benches import small_bench

BENCH = small_bench()
NAMES = BENCH.node_names
LAYOUT = Layout(factors=(Factor(name="m.lora_B.weight", shape=(2, 2), kind="B", module="m"),))


class _Link:
    """Answers as nodes do and keeps what they were sent; nodes in `deaf` do not answer."""

    def __init__(self) -> None:
        self.nodes: tuple[str, ...] = NAMES
        self.joined: tuple[str, ...] = ()
        self.deaf: set[str] = set()
        self.sent: list[tuple[str, str]] = []
        self.adapters: dict[str, np.ndarray] = {}
        self.folds: dict[str, list[tuple[int, float]]] = {}

    def take_joined(self) -> tuple[str, ...]:
        joined, self.joined = self.joined, ()
        return joined

    def wait_for(self, nodes: Sequence[str], *, timeout_s: float) -> None:
        assert set(nodes) <= set(self.nodes)

    def ask(
        self,
        requests: Mapping[str, tuple[Message, Mapping[str, np.ndarray]]],
        *,
        timeout_s: float,
        progress: Any = None,
    ) -> dict[str, Packet]:
        answers = {}
        for name, (message, arrays) in requests.items():
            self.sent.append((name, message.kind))
            if name in self.deaf:
                continue
            if isinstance(message, messages.Configure):
                ready = messages.Ready(
                    node=name, num_samples=1, layout=LAYOUT, frozen_layout=Layout(factors=()), peft_config={}
                )
                self.folds[name] = []
                answers[name] = Packet(ready, {"initial": np.zeros(4, np.float32), "frozen": np.zeros(0, np.float32)})
            else:
                assert isinstance(message, messages.SetAdapter)
                self.adapters[name] = arrays["adapter"]
                new = [(rank, float(arrays[f"fold-{index}"][0])) for index, rank in enumerate(message.fold_ranks)]
                assert len(arrays) == 1 + len(new)
                self.folds[name] = self.folds.get(name, [])[: message.folded] + new
                answers[name] = Packet(messages.Done(node=name))
        return answers

    def close(self) -> None:
        pass


def _crew() -> tuple[Crew, _Link]:
    link = _Link()
    devices = Devices(radio=None, stages=(), link=link, clock=None, node_devices={}, close=link.close)  # type: ignore[arg-type]
    crew = Crew(devices, BENCH, "sim", JobSpec(nodes=NAMES), Observer())
    crew.assemble()
    link.sent.clear()
    return crew, link


def test_a_node_that_comes_back_is_configured_and_brought_up_to_date() -> None:
    crew, link = _crew()
    adapter = np.arange(4, dtype=np.float32)
    crew.publish(adapter)
    crew.holding = set(NAMES)
    link.sent.clear()
    link.adapters.clear()
    link.joined = (NAMES[1],)
    crew.catch_up()
    assert link.sent == [(NAMES[1], "configure"), (NAMES[1], "set-adapter")]
    assert np.array_equal(link.adapters[NAMES[1]], adapter)
    assert crew.holding == {NAMES[0], NAMES[2]}  # the update it had is gone
    link.sent.clear()
    crew.catch_up()
    assert link.sent == []


def test_a_node_that_missed_a_broadcast_gets_it_before_the_next_order() -> None:
    crew, link = _crew()
    link.deaf = {NAMES[0]}
    assert crew.publish(np.ones(4, np.float32)) == NAMES[1:]
    link.deaf = set()
    link.sent.clear()
    crew.catch_up()
    assert link.sent == [(NAMES[0], "set-adapter")]
    assert link.adapters[NAMES[0]].sum() == 4


def test_folds_reach_everybody_once_and_in_their_order() -> None:
    """New ones alone to who is up to date, all of them to who came back or may have missed some."""
    crew, link = _crew()
    adapter = np.zeros(4, np.float32)

    def fold(value: float, rank: int) -> Stack:
        return Stack(np.full(3, value, np.float32), rank)

    crew.publish(adapter, fold(1.0, 5))
    link.deaf = {NAMES[0]}
    crew.publish(adapter, fold(2.0, 6))
    assert link.folds[NAMES[0]] == [(5, 1.0)]
    assert link.folds[NAMES[1]] == [(5, 1.0), (6, 2.0)]
    link.deaf = set()
    link.joined = (NAMES[2],)
    crew.catch_up()
    crew.publish(adapter, fold(3.0, 7))
    crew.publish(adapter)
    assert link.folds == {name: [(5, 1.0), (6, 2.0), (7, 3.0)] for name in NAMES}


def test_updates_are_fetched_only_from_nodes_that_hold_one() -> None:
    crew, link = _crew()
    crew.holding = set()
    assert crew.fetch(dict.fromkeys(NAMES, 32)) == {}
    assert link.sent == []


class _Time:
    """The controller's clock; a node's clock shows 100 s less and runs alike."""

    def __init__(self) -> None:
        self.at_s = 7.0

    def now_s(self) -> float:
        return self.at_s


class _SlowLink(_Link):
    """Every exchange takes its time there and back; a node reads its clock in between."""

    def __init__(self, time: _Time, trips_s: list[tuple[float, float]]) -> None:
        super().__init__()
        self._time, self._trips_s = time, trips_s
        self.offsets: dict[str, float] = {}

    def ask(
        self,
        requests: Mapping[str, tuple[Message, Mapping[str, np.ndarray]]],
        *,
        timeout_s: float,
        progress: Any = None,
    ) -> dict[str, Packet]:
        (name, (message, _)), *_ = requests.items()
        if isinstance(message, messages.ReadClock):
            self.sent.append((name, message.kind))
            there_s, back_s = self._trips_s[len(self.sent) % len(self._trips_s)]
            read_s = self._time.at_s + there_s - 100.0
            self._time.at_s += there_s + back_s
            return {} if name in self.deaf else {name: Packet(messages.ClockRead(node=name, at_s=read_s))}
        if isinstance(message, messages.SetClock):
            self.offsets[name] = message.offset_s
            return {name: Packet(messages.Done(node=name))}
        return super().ask(requests, timeout_s=timeout_s, progress=progress)


def test_nodes_learn_the_controllers_time_from_the_quickest_exchange() -> None:
    time = _Time()
    link = _SlowLink(time, [(0.2, 0.01), (0.0011, 0.0009), (0.03, 0.5)])
    devices = Devices(
        radio=None,
        stages=(),
        link=link,
        clock=time,
        node_devices={},
        close=link.close,
        shares_time=True,  # type: ignore[arg-type]
    )
    crew = Crew(devices, BENCH, "lab", JobSpec(nodes=NAMES), Observer())
    link.deaf = {NAMES[1]}
    crew.share_time(NAMES)
    assert set(link.offsets) == set(NAMES) - {NAMES[1]}
    for offset_s in link.offsets.values():
        # half of the shortest round trip bounds the error, here 1 ms; the other exchanges are 95 and 235 ms wrong
        assert abs(offset_s - 100.0) <= 0.001 + 1e-9
        assert abs(offset_s - 100.0) > 0.0


def test_time_is_shared_again_when_crystals_may_have_drifted() -> None:
    time = _Time()
    link = _SlowLink(time, [(0.0, 0.0)])
    devices = Devices(
        radio=None,
        stages=(),
        link=link,
        clock=time,
        node_devices={},
        close=link.close,
        shares_time=True,  # type: ignore[arg-type]
    )
    crew = Crew(devices, BENCH, "lab", JobSpec(nodes=NAMES), Observer())
    crew.share_time(NAMES)
    link.offsets.clear()
    time.at_s += 5.0
    crew.keep_time()
    assert not link.offsets
    time.at_s += 6.0
    crew.keep_time()
    assert link.offsets == dict.fromkeys(NAMES, 100.0)
