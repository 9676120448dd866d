"""The shared medium: node processes post what they radiate, the receiver asks what is in the air.

A post is two frames, a JSON head `{"protocol", "node", "at_s", "num_samples"}` and the samples as little-endian
complex64; the answer is one frame, `{"error": null}` or what was wrong.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zmq
from pydantic import Field, ValidationError

from testbed.core.errors import RadioFault
from testbed.core.specs import Spec

_PROTOCOL = 1
_MAX_FRAME_BYTES = 2**30
_MAX_WAITING = 64  # bursts of one node that nobody has listened to
_TIMEOUT_MS = 10_000


class _Head(Spec):
    protocol: Literal[1] = 1
    node: str
    at_s: float
    num_samples: int = Field(ge=1)


class _Answer(Spec):
    error: str | None = None


@dataclass(frozen=True)
class Burst:
    """What one node radiates.

    Attributes:
        at_s: instant of the first sample.
        samples: square-root watts, shape [num_samples], complex64, read-only.
    """

    node: str
    at_s: float
    samples: np.ndarray


class AirHub:
    """The controller's end: stores bursts that a background thread receives.

    Args:
        nodes: who may radiate.
        elements_per_second: of all bursts: the sample rate, or what `WaveformSpec.elements_per_second` says.
    """

    def __init__(self, nodes: Iterable[str], elements_per_second: float) -> None:
        self._nodes = frozenset(nodes)
        self._elements_per_second = elements_per_second
        self._lock = threading.Lock()
        self._bursts: dict[str, list[Burst]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        posts = self._context.socket(zmq.REP)
        posts.setsockopt(zmq.LINGER, 0)
        posts.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        posts.bind("tcp://127.0.0.1:*")
        self.address = posts.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where `AirPort` connects to."""
        bell, clapper = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        bell.bind("inproc://end")
        clapper.connect("inproc://end")
        hub = weakref.ref(self)  # the thread must not keep a forgotten hub alive
        thread = threading.Thread(target=_serve, args=(hub, posts, bell), name="air", daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end, self._context, clapper, thread)

    def bursts(self, at_s: float, num_samples: int) -> list[Burst]:
        """Every burst that overlaps a window, in the order of node names; what ended before the window is dropped.

        Args:
            at_s: instant of the window's first sample.
            num_samples: its length.

        Returns:
            bursts with at least one sample inside.
        """
        self.drop_until(at_s)
        end_s = at_s + num_samples / self._elements_per_second
        with self._lock:
            found = [burst for node in sorted(self._bursts) for burst in self._bursts[node]]
        return [burst for burst in found if burst.at_s < end_s]

    def drop_until(self, at_s: float) -> None:
        """Drop every burst that ended by then."""
        with self._lock:
            for node, waiting in self._bursts.items():
                self._bursts[node] = [burst for burst in waiting if self._end_s(burst) > at_s]

    def forget(self, node: str) -> None:
        """Drop every burst of one node."""
        with self._lock:
            self._bursts.pop(node, None)

    def close(self) -> None:
        """End the thread and let go; may be repeated."""
        self._end()
        with self._lock:
            self._bursts.clear()

    def _end_s(self, burst: Burst) -> float:
        return burst.at_s + burst.samples.size / self._elements_per_second

    def _take(self, frames: Sequence[Any]) -> str | None:
        """Store a post; what is wrong with it, if anything."""
        if len(frames) != 2:
            return f"a post has 2 frames, {len(frames)} arrived"
        try:
            head = _Head.model_validate_json(bytes(frames[0]))
        except ValidationError as error:
            first = error.errors()[0]
            return f"malformed head: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        if head.node not in self._nodes:
            return f"the bench has no node {head.node!r}"
        payload = memoryview(frames[1])
        if payload.nbytes != head.num_samples * 8:
            return f"{payload.nbytes} bytes are not {head.num_samples} complex64 samples"
        samples = np.frombuffer(payload, np.dtype("<c8"))
        samples.flags.writeable = False
        with self._lock:
            waiting = self._bursts.setdefault(head.node, [])
            if len(waiting) >= _MAX_WAITING:
                return f"{len(waiting)} bursts of {head.node} wait already and nobody listens"
            waiting.append(Burst(head.node, head.at_s, samples))
        return None


def _serve(hub: weakref.ref[AirHub], posts: zmq.Socket[bytes], bell: zmq.Socket[bytes]) -> None:
    poller = zmq.Poller()
    poller.register(posts, zmq.POLLIN)
    poller.register(bell, zmq.POLLIN)
    try:
        while bell not in (ready := dict(poller.poll())):
            if posts in ready:
                frames = [frame.buffer for frame in posts.recv_multipart(copy=False)]
                medium = hub()
                wrong = "the medium is gone" if medium is None else medium._take(frames)
                del medium
                posts.send(_Answer(error=wrong).model_dump_json().encode())
    finally:
        posts.close(0)
        bell.close(0)


def _end(context: zmq.Context[zmq.Socket[bytes]], clapper: zmq.Socket[bytes], thread: threading.Thread) -> None:
    """Ring the bell, wait for the thread, let go; runs once, at exit at the latest."""
    try:
        clapper.send(b"", flags=zmq.NOBLOCK)
    except zmq.ZMQError:
        pass  # the thread has ended by itself
    if thread is not threading.current_thread():
        thread.join(timeout=10.0)
    clapper.close(0)
    if not thread.is_alive():
        context.term()


class AirPort:
    """A node's end; connects on the first burst.

    Args:
        address: of the hub.
        timeout_ms: how long the hub may take to answer.
    """

    def __init__(self, address: str, *, timeout_ms: int = _TIMEOUT_MS) -> None:
        self._address = address
        self._timeout_ms = timeout_ms
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None

    def post(self, node: str, at_s: float, samples: np.ndarray) -> None:
        """Radiate a burst; returns when the medium has it.

        Args:
            node: who radiates.
            at_s: instant of the first sample.
            samples: square-root watts, shape [num_samples].

        Raises:
            RadioFault: the hub does not answer or refuses the burst.
        """
        head = _Head(node=node, at_s=at_s, num_samples=len(samples)).model_dump_json().encode()
        payload = np.ascontiguousarray(samples, dtype=np.dtype("<c8"))
        with self._lock:
            socket = self._connected()
            try:
                socket.send_multipart([head, payload.view(np.uint8).data], copy=False)
                reply = socket.recv()
            except zmq.ZMQError as error:
                self._let_go()  # a request without its answer blocks the socket
                raise RadioFault(
                    f"{node}: the simulated medium at {self._address} does not answer: {error}",
                    remedy="is the controller still running?",
                ) from error
        try:
            answer = _Answer.model_validate_json(reply)
        except ValidationError as error:
            raise RadioFault(f"{node}: something else than the simulated medium answers at {self._address}") from error
        if answer.error is not None:
            raise RadioFault(f"{node}: the simulated medium refused a burst: {answer.error}")

    def close(self) -> None:
        """Let go; may be repeated."""
        with self._lock:
            self._let_go()

    def _connected(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            self._context = zmq.Context()
            self._socket = self._context.socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.SNDTIMEO, self._timeout_ms)
            self._socket.setsockopt(zmq.RCVTIMEO, self._timeout_ms)
            self._socket.connect(self._address)
        return self._socket

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
        if self._context is not None:
            self._context.term()
        self._socket = self._context = None
