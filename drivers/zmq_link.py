"""The control link over ZeroMQ: one ROUTER at the controller, one DEALER in every node process.

ZeroMQ's own heartbeats run in its I/O thread, so a node process that was killed, stopped or cut off is noticed within
about two seconds even while it trains, and a node that comes back introduces itself again. Frames are those of
`testbed.core.messages`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from testbed.core import messages
from testbed.core.devices import ProgressCallback
from testbed.core.errors import (
    BenchError,
    ConfigError,
    DeviceError,
    LimitError,
    LinkTimeout,
    ProtocolError,
    RadioFault,
)
from testbed.core.messages import Message, Packet

HEARTBEAT_MS = 500
HEARTBEAT_TIMEOUT_MS = 2000
_ERRORS: Mapping[str, type[BenchError]] = {
    kind.__name__: kind for kind in (ConfigError, LimitError, DeviceError, RadioFault, ProtocolError)
}


def prepare(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """Heartbeats, no send limit, no lingering: the options both ends share."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 500)
    socket.setsockopt(zmq.RECONNECT_IVL, 200)
    return socket


def disconnections(monitor: zmq.Socket[bytes]) -> int:
    """How many DISCONNECTED events wait on a socket's monitor; they are consumed."""
    count = 0
    while monitor.poll(0):
        event = recv_monitor_message(monitor)
        count += event["event"] == zmq.EVENT_DISCONNECTED
    return count


class ZmqLink:
    """The controller's end, see `testbed.core.devices.Link`.

    Args:
        address: where to listen; port `*` takes a free one.

    Raises:
        DeviceError: the address cannot be bound.
    """

    def __init__(self, address: str = "tcp://127.0.0.1:*") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = prepare(self._context.socket(zmq.ROUTER))
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close(0)
            self._context.destroy(0)
            raise DeviceError(
                f"cannot listen on {address}: {error}", remedy="choose a free port, or tcp://127.0.0.1:* for any"
            ) from error
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._route: dict[str, bytes] = {}
        self._joined: list[str] = []
        self._rejected: ProtocolError | None = None
        self._serial = 0
        self._closed = False

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes that are connected now."""
        self._drop_the_dead()
        return tuple(self._route)

    def take_joined(self) -> tuple[str, ...]:
        """Nodes that introduced themselves since the last call."""
        while self._socket.poll(0):
            self._receive(None)
        joined, self._joined = self._joined, []
        return tuple(dict.fromkeys(joined))

    def wait_for(self, nodes: Sequence[str], *, timeout_s: float) -> None:
        """Return when all of them are connected.

        Raises:
            LinkTimeout: naming the nodes that did not connect.
            ProtocolError: a node of another protocol version knocked.
        """
        deadline = time.monotonic() + timeout_s
        while absent := [node for node in nodes if node not in self._route]:
            if not self._poll_until(deadline):
                raise LinkTimeout(
                    f"{len(absent)} of {len(nodes)} nodes did not connect within {timeout_s:g} s: "
                    + ", ".join(absent[:8])
                    + (", ..." if len(absent) > 8 else ""),
                    remedy=f"start them with: testbed node --connect {self.address} --id {absent[0]}",
                )
            self._receive(None)
            if self._rejected is not None:
                raise self._rejected
            self._drop_the_dead()

    def ask(
        self,
        requests: Mapping[str, tuple[Message, Mapping[str, np.ndarray]]],
        *,
        timeout_s: float,
        progress: ProgressCallback | None = None,
    ) -> dict[str, Packet]:
        """Send one request to each node and gather the answers; a silent or vanished node is absent from them.

        A node that leaves the order for a burst unanswered is dismissed with its process: the burst, made ready after
        all, would wait for a trigger that is meant for others.

        Args:
            requests: node -> message and arrays.
            timeout_s: wall clock to wait without any sign of life from the nodes still working.

        Raises:
            BenchError: the kind a node reported, with the node's name.
        """
        waiting: dict[str, int] = {}
        for node, (message, arrays) in requests.items():
            self._serial += 1
            if self._send(node, message.model_copy(update={"serial": self._serial}), arrays):
                waiting[node] = self._serial
        answers: dict[str, Packet] = {}
        deadline = time.monotonic() + timeout_s
        while waiting:
            if self._poll_until(deadline):
                packet = self._receive(progress)
                deadline = time.monotonic() + timeout_s
                if packet is not None and isinstance(packet.message, messages.Request):
                    node = packet.message.node
                    if waiting.get(node) == packet.message.serial:
                        del waiting[node]
                        answers[node] = packet
            elif time.monotonic() >= deadline:
                self._dismiss([node for node in waiting if isinstance(requests[node][0], messages.Burst)])
                break
            for node in [node for node in waiting if node not in self._route]:
                del waiting[node]
        for node, packet in answers.items():
            if isinstance(packet.message, messages.Failed):
                kind = _ERRORS.get(packet.message.error, DeviceError)
                # drivers name the node themselves
                text = packet.message.message.removeprefix(f"{node}: ")
                raise kind(f"{node}: {text}", remedy=packet.message.remedy)
        return {node: answers[node] for node in requests if node in answers}

    def close(self) -> None:
        """Dismiss the nodes and let go; may be repeated."""
        if self._closed:
            return
        self._closed = True
        for identity in set(self._route.values()):
            try:
                self._socket.send_multipart([identity, *messages.encode(messages.Bye())], flags=zmq.NOBLOCK)
            except zmq.ZMQError:
                continue
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(500)
        self._context.term()

    def _poll_until(self, deadline: float) -> bool:
        """Whether something can be received before the deadline; dead nodes are dropped on the way."""
        while (left := deadline - time.monotonic()) > 0:
            if self._socket.poll(min(200, max(1, int(left * 1000)))):
                return True
            before = len(self._route)
            self._drop_the_dead()
            if len(self._route) != before:
                return False
        return False

    def _send(self, node: str, message: Message, arrays: Mapping[str, np.ndarray]) -> bool:
        identity = self._route.get(node)
        if identity is None:
            return False
        try:
            self._socket.send_multipart([identity, *messages.encode(message, arrays)], copy=False)
        except zmq.ZMQError:
            self._forget(identity)
            return False
        return True

    def _receive(self, progress: ProgressCallback | None) -> Packet | None:
        identity_frame, *frames = self._socket.recv_multipart(copy=False)
        identity = bytes(identity_frame.buffer)
        try:
            packet = messages.decode([frame.buffer for frame in frames])
        except ProtocolError as error:
            self._reply(identity, messages.Refused(reason=error.message))
            self._rejected = error
            return None
        message = packet.message
        if isinstance(message, messages.Hello):
            self._greet(identity, message)
        elif isinstance(message, messages.Progress):
            if progress is not None:
                progress(message.node, message.activity, message.fraction)
        elif isinstance(message, messages.Bye):
            self._forget(identity)
        else:
            return packet
        return None

    def _greet(self, identity: bytes, hello: messages.Hello) -> None:
        taken = [node for node in hello.nodes if self._route.get(node, identity) != identity]
        if taken and any(self._reply(self._route[node], messages.Welcome()) for node in taken):
            self._reply(
                identity,
                messages.Refused(reason=f"a node named {taken[0]!r} is connected already; choose another --id"),
            )
            return
        for node in hello.nodes:
            self._route[node] = identity
        self._joined.extend(hello.nodes)
        self._reply(identity, messages.Welcome())

    def _reply(self, identity: bytes, message: Message) -> bool:
        try:
            self._socket.send_multipart([identity, *messages.encode(message)])
        except zmq.ZMQError:
            self._forget(identity)
            return False
        return True

    def _dismiss(self, nodes: Iterable[str]) -> None:
        """Have these nodes' processes end, which mutes them."""
        for identity in {self._route[node] for node in nodes if node in self._route}:
            self._reply(identity, messages.Bye())
            self._forget(identity)

    def _forget(self, identity: bytes) -> None:
        for node in [node for node, route in self._route.items() if route == identity]:
            del self._route[node]

    def _drop_the_dead(self) -> None:
        """After a disconnection, greet every process once more: ROUTER refuses to send to those that are gone."""
        if disconnections(self._monitor):
            for identity in set(self._route.values()):
                self._reply(identity, messages.Welcome())


def describe(error: BaseException) -> dict[str, Any]:
    """Class, message and remedy of an error, as `Failed` carries them."""
    if not isinstance(error, BenchError):
        return {"error": "DeviceError", "message": f"{type(error).__name__}: {error}"}
    name = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS), "DeviceError")
    return {"error": name, "message": error.headline, "remedy": error.remedy}
