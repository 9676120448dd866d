"""The node agent: a process that hosts one or several nodes and answers the controller.

The main thread keeps the link and listens for disconnection; one worker thread trains and transmits, so a node can be
muted while it trains. When the controller vanishes the transmitters are muted at once; the agent then waits for it to
come back, unless it was started with `exit_with_parent`.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from drivers.zmq_link import describe, prepare
from nodes.worker import Worker
from testbed.core import messages
from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError, ConfigError, LinkTimeout, ProtocolError
from testbed.core.messages import Packet
from testbed.core.specs import JobSpec

if TYPE_CHECKING:
    from nodes.trainer import Trainer

_RESULTS = "inproc://results"
_KNOCK_EVERY_MS = 20
"""At a controller of the same process, which opens its door in a moment."""


def serve(
    address: str,
    names: Sequence[str],
    *,
    bench: BenchSpec | None = None,
    threads: int | None = None,
    exit_with_parent: bool = False,
    connect_timeout_s: float = 60.0,
) -> None:
    """Host nodes until the controller says goodbye.

    Args:
        address: of the controller, tcp://HOST:PORT.
        names: the nodes this process hosts.
        bench: this board's own bench file; the controller's is used if None.
        threads: of torch; torch's own choice if None.
        exit_with_parent: end when standard input reaches its end.
        connect_timeout_s: how long to knock before giving up.

    Raises:
        ConfigError: the address or the names are malformed, or the controller refused the nodes.
        ProtocolError: the controller speaks another protocol version.
        LinkTimeout: the controller did not answer.
    """
    if not address.startswith("tcp://") or ":" not in address[6:]:
        raise ConfigError(f"{address!r} is no address", key="--connect", remedy="write it as tcp://HOST:PORT")
    if len(set(names)) != len(names) or not names:
        raise ConfigError("every node needs a name of its own", key="--id", remedy="give each --id once")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    agent = _Agent(address, tuple(names), bench)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        agent.run(until=sys.stdin.fileno() if exit_with_parent else None, connect_timeout_s=connect_timeout_s)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        agent.close()


def host(
    address: str,
    names: Sequence[str],
    *,
    until: int,
    load: Callable[[JobSpec], Trainer] | None = None,
    connect_timeout_s: float = 60.0,
) -> None:
    """Host nodes in the thread that calls, beside a controller in the same process; signals are left alone.

    Args:
        address: of the controller, tcp://HOST:PORT.
        names: the nodes.
        until: file descriptor, of a pipe for instance; the nodes end when it reaches its end.
        load: makes the trainer of a job; `nodes.trainer.Trainer` if None. One that remembers its trainers saves what
            loading takes where several runs have the same job.
        connect_timeout_s: how long to knock before giving up.

    Raises:
        ConfigError: the controller refused the nodes.
        LinkTimeout: the controller did not answer.
    """
    agent = _Agent(address, tuple(names), None, load, _KNOCK_EVERY_MS)
    try:
        agent.run(until=until, connect_timeout_s=connect_timeout_s)
    finally:
        agent.close()


class _Agent:
    def __init__(
        self,
        address: str,
        names: tuple[str, ...],
        bench: BenchSpec | None,
        load: Callable[[JobSpec], Trainer] | None = None,
        knock_every_ms: int | None = None,
    ) -> None:
        self._names = names
        self._address = address
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = prepare(self._context.socket(zmq.DEALER))
        if knock_every_ms is not None:
            self._socket.setsockopt(zmq.RECONNECT_IVL, knock_every_ms)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.bind(_RESULTS)
        self._stop = threading.Event()
        self._tasks: queue.SimpleQueue[Packet | None] = queue.SimpleQueue()
        self._outbox: zmq.Socket[bytes] | None = None
        self._worker = Worker(say=self._say, should_stop=self._stop.is_set, bench=bench, load=load)
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._socket.connect(address)
        self._thread.start()

    # worker thread -------------------------------------------------------------------------------------------------

    def _say(self, message: messages.Message, arrays: Mapping[str, np.ndarray]) -> None:
        if self._outbox is None:
            self._outbox = self._context.socket(zmq.PUSH)
            self._outbox.setsockopt(zmq.LINGER, 0)
            self._outbox.connect(_RESULTS)
        self._outbox.send_multipart(messages.encode(message, arrays), copy=False)

    def _work(self) -> None:
        while (packet := self._tasks.get()) is not None:
            request = packet.message
            try:
                self._worker.answer(packet)
            except Exception as error:  # whatever went wrong, the controller must hear of it
                if self._stop.is_set():
                    break
                if not isinstance(error, BenchError):
                    sys.excepthook(type(error), error, error.__traceback__)
                if isinstance(request, messages.Request):
                    failed = messages.Failed(node=request.node, serial=request.serial, **describe(error))
                    self._say(failed, {})
        if self._outbox is not None:
            self._outbox.close(0)

    # main thread ---------------------------------------------------------------------------------------------------

    def run(self, *, until: int | None, connect_timeout_s: float) -> None:
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor, self._inbox):
            poller.register(socket, zmq.POLLIN)
        if until is not None:
            poller.register(until, zmq.POLLIN)
        welcomed = False
        while True:
            ready: dict[Any, int] = dict(poller.poll(None if welcomed else int(connect_timeout_s * 1000)))
            if not ready:
                raise LinkTimeout(
                    f"no controller answered at {self._address} within {connect_timeout_s:g} s",
                    remedy="start the run first, and check host, port and firewall",
                )
            if until is not None and until in ready and not os.read(until, 1024):
                return
            if self._monitor in ready:
                self._watch()
            if self._inbox in ready:
                self._socket.send_multipart(self._inbox.recv_multipart(copy=False), copy=False)
            if self._socket in ready:
                frames = self._socket.recv_multipart(copy=False)
                packet = messages.decode([frame.buffer for frame in frames])
                match packet.message:
                    case messages.Bye():
                        return
                    case messages.Welcome():
                        welcomed = True
                    case messages.Refused(reason=reason):
                        if "protocol version" in reason:
                            raise ProtocolError(reason)
                        raise ConfigError(reason, key="--id")
                    case _:
                        self._tasks.put(packet)

    def _watch(self) -> None:
        """Introduce the nodes on every new connection; mute on every lost one."""
        from zmq.utils.monitor import recv_monitor_message

        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_DISCONNECTED:
                self._mute()
            else:
                versions = {"protocol": str(messages.PROTOCOL), "python": sys.version.split()[0]}
                self._socket.send_multipart(messages.encode(messages.Hello(nodes=self._names, versions=versions)))

    def _mute(self) -> None:
        try:
            self._worker.mute()
        except BenchError as error:
            print(f"a radio may still radiate: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Mute, say goodbye, end the worker."""
        self._stop.set()
        self._tasks.put(None)
        self._mute()
        try:
            self._socket.send_multipart(messages.encode(messages.Bye()), flags=zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # nobody is connected any more
        self._thread.join(timeout=10.0)
        self._worker.close()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._inbox.close(0)
        self._socket.close(500)
        if not self._thread.is_alive():
            self._context.term()
