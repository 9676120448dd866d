"""Which values are whose: what a checkpoint asks nodes for, and what a node gets that comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from testbed.core import messages
from testbed.core.adapter import Layout
from testbed.core.devices import Devices
from testbed.core.messages import Message, Packet
from testbed.core.orders import WHOLE, LocalResult, Part, Publish, Published, Train, Trained, Work
from testbed.core.specs import JobSpec
from testbed.engine.crew import Crew
from testbed.engine.keeping import Keeping, from_file, outside, to_file
from testbed.engine.observe import Observer
from tests.benches import small_bench

BENCH = small_bench()
NAMES = BENCH.node_names
PHI = Part(kinds=("up",))
DONE = LocalResult(1, 1, 1, 1, 1, 0.0, 1.0, 1.0, 1.0)


def kept(keeping: Keeping, work: Work, *names: str) -> None:
    keeping.note(Train(dict.fromkeys(names, work)), Trained(dict.fromkeys(names, DONE)))


def told(keeping: Keeping, part: Part) -> None:
    keeping.note(Publish(np.zeros(2, np.float32), part=part), Published())


def test_what_is_shared_is_what_was_broadcast_last_and_not_trained_since() -> None:
    keeping = Keeping()
    kept(keeping, Work(), "a")
    assert (keeping.nodes, keeping.shared) == (set(), WHOLE)
    kept(keeping, Work(keep=True), "a", "b")
    assert (keeping.nodes, keeping.shared) == ({"a", "b"}, None)
    told(keeping, PHI)
    assert (keeping.nodes, keeping.shared) == ({"a", "b"}, PHI)
    kept(keeping, Work(keep=True, part=outside(PHI)), "a")
    assert keeping.shared == PHI, "what was trained was private anyway"
    kept(keeping, Work(keep=True, part=PHI), "a")
    assert keeping.shared is None
    keeping.stored = {"a": {"own": np.ones(1)}}
    assert keeping.lost(["a", "b", "c"]) == ["b"]
    told(keeping, WHOLE)
    assert (keeping.nodes, keeping.shared, keeping.stored) == (set(), WHOLE, {})


def test_a_copy_beside_the_adapter_outlives_every_broadcast() -> None:
    keeping = Keeping()
    kept(keeping, Work(beside=True), "a")
    assert (keeping.nodes, keeping.copies, keeping.holders, keeping.shared) == (set(), {"a"}, {"a"}, WHOLE)
    assert keeping.lost(["a", "b"]) == ["a"]
    kept(keeping, Work(keep=True), "b")
    keeping.stored = {"a": {"own": np.zeros(1), "beside": np.ones(1)}, "b": {"own": np.ones(1)}}
    told(keeping, WHOLE)
    assert (keeping.holders, set(keeping.stored), set(keeping.stored["a"])) == ({"a"}, {"a"}, {"beside"})
    assert keeping.lost(["a"]) == []


def test_ranks_that_rest_take_nothing_from_what_is_shared() -> None:
    keeping = Keeping()
    told(keeping, PHI)
    kept(keeping, Work(keep=True, part=Part(kinds=("up",), others=True, ranks=1)), "a")
    assert keeping.shared == PHI


def test_a_file_holds_every_node_by_name() -> None:
    stored = {"n/1": {"own": np.arange(3.0), "reference": np.ones(3)}, "n.2": {"own": np.zeros(3)}}
    again = from_file(to_file(stored))
    assert {name: set(arrays) for name, arrays in again.items()} == {"n/1": {"own", "reference"}, "n.2": {"own"}}
    np.testing.assert_array_equal(again["n/1"]["own"], np.arange(3.0))


class _Link:
    """Nodes whose own value is their number; keeps what they were sent."""

    def __init__(self) -> None:
        self.nodes: tuple[str, ...] = NAMES
        self.joined: tuple[str, ...] = ()
        self.sent: list[tuple[str, Message, Mapping[str, np.ndarray]]] = []

    def take_joined(self) -> tuple[str, ...]:
        joined, self.joined = self.joined, ()
        return joined

    def wait_for(self, nodes: Sequence[str], *, timeout_s: float) -> None:
        assert set(nodes) <= set(self.nodes)

    def ask(self, requests: Mapping[str, Any], *, timeout_s: float, progress: Any = None) -> dict[str, Packet]:
        answers = {}
        for name, (message, arrays) in requests.items():
            self.sent.append((name, message, arrays))
            if isinstance(message, messages.Configure):
                layout = Layout(factors=())
                ready = messages.Ready(node=name, num_samples=1, layout=layout, frozen_layout=layout, peft_config={})
                nothing = np.zeros(0, np.float32)
                answers[name] = Packet(ready, {"initial": nothing, "frozen": nothing})
            elif isinstance(message, messages.SendOwn):
                answers[name] = Packet(messages.Own(node=name), {"own": np.full(2, NAMES.index(name), np.float32)})
            else:
                answers[name] = Packet(messages.Done(node=name), {})
        return answers

    def close(self) -> None:
        pass


class _Hears(Observer):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def crew() -> Crew:
    link = _Link()
    devices = Devices(radio=None, stages=(), link=link, clock=None, node_devices={}, close=link.close)  # type: ignore[arg-type]
    crew = Crew(devices, BENCH, "sim", JobSpec(nodes=NAMES), _Hears())
    crew.assemble()
    return crew


def test_a_node_that_comes_back_gets_all_that_was_broadcast_and_then_its_own(crew: Crew) -> None:
    link: Any = crew.devices.link
    kept(crew.keeping, Work(keep=True), *NAMES)
    crew.publish(np.arange(3, dtype=np.float32), part=PHI)
    told(crew.keeping, PHI)
    stored = crew.own_values()
    assert [message.shared for _, message, _ in link.sent[-len(NAMES) :]] == [PHI] * len(NAMES)
    assert float(stored[NAMES[1]]["own"][0]) == 1.0
    # between the checkpoint and the return everybody trains on
    kept(crew.keeping, Work(keep=True), *NAMES)
    link.sent.clear()
    link.joined = (NAMES[1],)
    crew.catch_up()
    configured, published, own = link.sent
    assert isinstance(configured[1], messages.Configure)
    assert published[1].part == WHOLE
    np.testing.assert_array_equal(published[2]["adapter"], np.arange(3))
    assert (own[0], own[1].shared) == (NAMES[1], PHI), "as they were stored"
    np.testing.assert_array_equal(own[2]["own"], [1.0, 1.0])
    assert crew.observer.warnings == []  # type: ignore[attr-defined]


def test_values_that_nobody_has_are_said_to_be_lost(crew: Crew) -> None:
    link: Any = crew.devices.link
    kept(crew.keeping, Work(keep=True), *NAMES)
    link.joined = (NAMES[0],)
    crew.catch_up()
    (warning,) = crew.observer.warnings  # type: ignore[attr-defined]
    assert warning.startswith(f"{NAMES[0]} came back before a round's end had kept its own values")


def test_where_everything_is_shared_nobody_is_asked(crew: Crew) -> None:
    link: Any = crew.devices.link
    link.sent.clear()
    assert crew.own_values() == {}
    assert link.sent == []
