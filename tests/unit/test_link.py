"""The control link: who is there, who vanished, who must not join."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from drivers.zmq_link import ZmqLink
from testbed.core import messages
from testbed.core.errors import ConfigError, DeviceError, LinkTimeout, ProtocolError


@pytest.fixture
def link() -> Iterator[ZmqLink]:
    link = ZmqLink()
    yield link
    link.close()
    link.close()


class _Peer:
    """A bare DEALER that speaks the protocol by hand."""

    def __init__(self, address: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(address)

    def say(self, message: messages.Message, **arrays: np.ndarray) -> None:
        self.socket.send_multipart(messages.encode(message, arrays))

    def hear(self) -> messages.Packet:
        assert self.socket.poll(5000)
        return messages.decode(self.socket.recv_multipart())

    def close(self) -> None:
        self.context.destroy(0)


@pytest.fixture
def peer(link: ZmqLink) -> Iterator[_Peer]:
    peer = _Peer(link.address)
    yield peer
    peer.close()


_PEER_PROCESS = """
import sys, zmq
from testbed.core import messages
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
socket.connect(sys.argv[1])
socket.send_multipart(messages.encode(messages.Hello(nodes=("far",))))
print("up", flush=True)
while True:
    packet = messages.decode(socket.recv_multipart())
"""


def test_nodes_join_and_answer(link: ZmqLink, peer: _Peer) -> None:
    peer.say(messages.Hello(nodes=("a", "b")))
    link.wait_for(["a", "b"], timeout_s=5)
    assert link.take_joined() == ("a", "b")
    assert link.take_joined() == ()
    assert isinstance(peer.hear().message, messages.Welcome)
    seen = []
    # answers are queued before the question: serial numbers of a fresh link count from 1
    peer.say(messages.Progress(node="a", activity="training", fraction=0.5))
    peer.say(messages.Done(node="b", serial=2))
    peer.say(messages.Update(node="a", serial=1), update=np.ones(3, np.float32))
    requests = {name: (messages.SendUpdate(node=name), {}) for name in ("a", "b")}
    answers = link.ask(requests, timeout_s=5, progress=lambda *what: seen.append(what))
    assert list(answers) == ["a", "b"]
    assert answers["a"].arrays["update"].sum() == 3
    assert seen == [("a", "training", 0.5)]


def test_a_silent_node_is_absent(link: ZmqLink, peer: _Peer) -> None:
    peer.say(messages.Hello(nodes=("a",)))
    link.wait_for(["a"], timeout_s=5)
    assert link.ask({"a": (messages.SendUpdate(node="a"), {})}, timeout_s=0.1) == {}
    assert link.ask({"stranger": (messages.SendUpdate(node="stranger"), {})}, timeout_s=5) == {}


def test_a_late_answer_is_not_taken_for_the_next(link: ZmqLink, peer: _Peer) -> None:
    peer.say(messages.Hello(nodes=("a",)))
    link.wait_for(["a"], timeout_s=5)
    assert link.ask({"a": (messages.SendUpdate(node="a"), {})}, timeout_s=0.05) == {}
    peer.say(messages.Done(node="a", serial=1))
    peer.say(messages.Done(node="a", serial=2))
    answer = link.ask({"a": (messages.SendUpdate(node="a"), {})}, timeout_s=5)["a"].message
    assert isinstance(answer, messages.Done)
    assert answer.serial == 2


def test_a_failure_carries_node_and_kind(link: ZmqLink, peer: _Peer) -> None:
    peer.say(messages.Hello(nodes=("a",)))
    link.wait_for(["a"], timeout_s=5)
    peer.say(messages.Failed(node="a", serial=1, error="ConfigError", message="no such model"))
    with pytest.raises(ConfigError, match="a: no such model"):
        link.ask({"a": (messages.SendUpdate(node="a"), {})}, timeout_s=5)
    peer.say(messages.Failed(node="a", serial=2, error="Surprise", message="odd"))
    with pytest.raises(DeviceError, match="a: odd"):
        link.ask({"a": (messages.SendUpdate(node="a"), {})}, timeout_s=5)


def test_nodes_that_never_connect_are_named(link: ZmqLink) -> None:
    with pytest.raises(LinkTimeout, match=r"2 of 2 nodes did not connect within 0\.05 s: a, b") as caught:
        link.wait_for(["a", "b"], timeout_s=0.05)
    assert f"testbed node --connect {link.address} --id a" in str(caught.value)


def test_another_protocol_version_is_refused(link: ZmqLink, peer: _Peer) -> None:
    peer.socket.send_multipart([json.dumps({"protocol": 99, "kind": "hello", "nodes": ["a"]}).encode()])
    with pytest.raises(ProtocolError, match="protocol version 99"):
        link.wait_for(["a"], timeout_s=5)
    refused = peer.hear().message
    assert isinstance(refused, messages.Refused)
    assert "protocol version 99" in refused.reason


def test_two_nodes_of_one_name(link: ZmqLink, peer: _Peer) -> None:
    peer.say(messages.Hello(nodes=("a",)))
    link.wait_for(["a"], timeout_s=5)
    second = _Peer(link.address)
    second.say(messages.Hello(nodes=("a", "c")))
    with pytest.raises(LinkTimeout, match="c"):
        link.wait_for(["c"], timeout_s=0.3)
    refused = second.hear().message
    assert isinstance(refused, messages.Refused)
    assert "'a' is connected already" in refused.reason
    second.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_node_is_noticed_within_three_seconds(link: ZmqLink, end: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", _PEER_PROCESS, link.address], stdout=subprocess.PIPE)
    try:
        link.wait_for(["far"], timeout_s=20)
        process.send_signal(end)
        began = time.monotonic()
        assert link.ask({"far": (messages.SendUpdate(node="far"), {})}, timeout_s=30) == {}
        assert time.monotonic() - began < 4.0
        assert link.nodes == ()
    finally:
        process.kill()
        process.communicate()


def test_an_address_in_use_is_named(link: ZmqLink) -> None:
    with pytest.raises(DeviceError, match="cannot listen on"):
        ZmqLink(link.address)
