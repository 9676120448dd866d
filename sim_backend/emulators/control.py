"""The control port of an emulated bench: time, the trigger's line, faults, and what is true.

One JSON object a line and one answer a line over TCP; what cannot be done is answered with {"error": "..."}:

    {"do": "now"}                           {"now_s": 1.25}
    {"do": "advance", "to_s": 2.0}          {"now_s": 2.0} when it is that time; virtual time jumps
    {"do": "pulse", "at_s": 2.0}            {"now_s": 2.0} after a pulse of the trigger's line, then or now
    {"do": "state"}                         {"now_s", "mode", "radios": {...}, "stages": {...}}
    {"do": "fault", "device": "node-00", "kind": "stall", "seconds": 1.0, "count": 1, "after": 0}   {"ok": true}
    {"do": "faults"}                        {"faults": [{"device", "kind", ...}]} that have yet to strike
    {"do": "clear"}                         {"ok": true}; none of them will
    {"do": "end"}                           {"ok": true}; the emulators end
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from testbed.core.errors import BenchError, DeviceError
from testbed.core.specs import Spec

_MOST_BYTES = 65_536  # of a request
_FAREWELL_S, _JOIN_S = 1.0, 10.0


class Controlled(Protocol):
    """What the control port controls; see `sim_backend.emulators.host.Emulators`."""

    def now(self) -> float:
        """Emulated seconds."""

    def advance(self, to_s: float) -> float:
        """Return at that time; now, seconds."""

    def pulse(self, at_s: float) -> float:
        """Pulse the trigger's line then; now, seconds."""

    def state(self) -> dict[str, Any]:
        """All that is true now."""

    def fault(self, device: str, kind: str, **parameters: Any) -> None:
        """Order a fault."""

    def faults(self) -> list[dict[str, Any]]:
        """Faults that have yet to strike."""

    def clear(self) -> None:
        """Forget them."""

    def end(self) -> None:
        """Let whoever waits for the end go on."""


class _Now(Spec):
    do: Literal["now"]


class _Advance(Spec):
    do: Literal["advance"]
    to_s: float


class _Pulse(Spec):
    do: Literal["pulse"]
    at_s: float


class _State(Spec):
    do: Literal["state"]


class _Fault(Spec):
    do: Literal["fault"]
    device: str
    kind: str
    count: int = 1
    after: int = 0
    seconds: float = 0.0
    value: float = 0.0
    text: str = ""


class _Faults(Spec):
    do: Literal["faults"]


class _Clear(Spec):
    do: Literal["clear"]


class _End(Spec):
    do: Literal["end"]


_Request = _Now | _Advance | _Pulse | _State | _Fault | _Faults | _Clear | _End
_REQUEST: TypeAdapter[_Request] = TypeAdapter(Annotated[_Request, Field(discriminator="do")])


class ControlServer:
    """Answers until it is closed; every connection has a thread of its own.

    Args:
        controlled: the emulated bench.
        host: address to listen on.
        port: 0 for any free one.

    Raises:
        DeviceError: the port is in use.
    """

    def __init__(self, controlled: Controlled, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._controlled = controlled
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise DeviceError(
                f"the control port {host}:{port} cannot be opened: {error.strerror}",
                remedy="end what listens there, or choose another port; 0 takes any free one",
            ) from error
        self.address = "{}:{}".format(*self._listener.getsockname()[:2])
        """HOST:PORT."""
        self._lock = threading.Lock()
        self._closed = False
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._acceptor = threading.Thread(target=self._accept, name="control", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """End every connection; may be repeated."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = dict(self._connections)
        _shut(self._listener, socket.SHUT_RDWR)
        self._acceptor.join(timeout=_JOIN_S)
        self._listener.close()
        # who was promised an answer gets it, unless he does not listen
        for how, patience_s in ((socket.SHUT_RD, _FAREWELL_S), (socket.SHUT_RDWR, _JOIN_S)):
            for connection, thread in connections.items():
                if thread is not threading.current_thread() and thread.is_alive():
                    _shut(connection, how)
                    thread.join(timeout=patience_s)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            thread = threading.Thread(target=self._serve, args=(connection,), name="control connection", daemon=True)
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while line := lines.readline(_MOST_BYTES):
                    connection.sendall(json.dumps(self._answer(line)).encode() + b"\n")
                    if not line.endswith(b"\n"):
                        return  # a line without end cannot be told from the next
        except OSError:
            pass  # the client is gone
        finally:
            with self._lock:
                self._connections.pop(connection, None)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return _do(_REQUEST.validate_json(line), self._controlled)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return {"error": f"{where}: {first['msg']}" if where else first["msg"]}
        except BenchError as error:
            return {"error": str(error)}


def _do(request: _Request, controlled: Controlled) -> dict[str, Any]:
    match request:
        case _Now():
            return {"now_s": controlled.now()}
        case _Advance():
            return {"now_s": controlled.advance(request.to_s)}
        case _Pulse():
            return {"now_s": controlled.pulse(request.at_s)}
        case _State():
            return controlled.state()
        case _Fault():
            controlled.fault(request.device, request.kind, **request.model_dump(exclude={"do", "device", "kind"}))
        case _Faults():
            return {"faults": controlled.faults()}
        case _Clear():
            controlled.clear()
        case _End():
            controlled.end()
    return {"ok": True}


def _shut(open_socket: socket.socket, how: int) -> None:
    try:
        open_socket.shutdown(how)
    except OSError:
        pass  # never connected, or closed meanwhile
