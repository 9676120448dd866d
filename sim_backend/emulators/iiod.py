"""An emulated radio's network server: speaks the text protocol of libiio's iiod, one thread a connection."""

from __future__ import annotations

import socket
import sys
import threading

from sim_backend.emulators.faults import RADIO_FAULTS, FaultPlan
from sim_backend.emulators.iiod_connection import Connection
from sim_backend.emulators.iiod_session import Session
from sim_backend.emulators.iiod_shared import Radio, Shared
from testbed.core.errors import ConfigError

_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES = 10, 10, 6
_JOIN_S = 5.0


class IiodServer:
    """Serves one radio on one TCP port until it is closed.

    A client that stalls, leaves or talks nonsense harms nobody else; with its connection its buffers go.

    Faults strike at these opportunities: "refuse" at every connection; "stall", "disconnect", "late-reply",
    "duplicate-reply" and "brown-out" at every request; "garbage" and "nan" at every value read; "short-read" at every
    kernel block read; "wrong-serial" at every description. The others are the buffers'.

    Args:
        radio: who answers.
        host: address to listen at.
        port: TCP port; 0 takes a free one.
        faults: what goes wrong next.

    Raises:
        ConfigError: the port cannot be had.
    """

    def __init__(
        self, radio: Radio, *, host: str = "127.0.0.1", port: int = 0, faults: FaultPlan | None = None
    ) -> None:
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._faults = faults or FaultPlan(RADIO_FAULTS)
        self._shared = Shared(radio, self._faults, self._pause, self._drop_all)
        self._listener = _listen(radio.name, host, port)
        self.host, self.port = self._listener.getsockname()[:2]
        self._acceptor = threading.Thread(target=self._accept, name=f"iiod {radio.name}", daemon=True)
        self._acceptor.start()

    @property
    def uri(self) -> str:
        """How libiio and this package call it: ip:HOST:PORT."""
        return f"ip:{self.host}:{self.port}"

    def close(self) -> None:
        """End every connection and its buffers; may be repeated."""
        self._ended.set()
        # Shutting down wakes the thread that accepts; on Linux closing alone would not.
        _shut(self._listener)
        self._acceptor.join(_JOIN_S)
        self._listener.close()
        with self._lock:
            threads = list(self._connections.values())
        self._drop_all()
        for thread in threads:
            thread.join(_JOIN_S)

    def _drop_all(self) -> None:
        with self._lock:
            for connection in self._connections:
                _shut(connection)

    def _pause(self, seconds: float) -> None:
        self._ended.wait(seconds)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._ended.wait(0.01):
                    return
                continue
            if self._faults.take("refuse") is not None:
                connection.close()
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection,), name=f"{self._acceptor.name} client", daemon=True
            )
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            _prepare(connection)
            Session(Connection(connection, self._ended.is_set), self._shared).serve()
        finally:
            with self._lock:
                del self._connections[connection]
            connection.close()


def _listen(name: str, host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=64)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"the emulated radio {name} cannot listen at {host}:{port}: {error}",
            remedy="choose another first port, or end the program that holds this one (ss -ltnp)",
        ) from error


def _prepare(connection: socket.socket) -> None:
    """As iiod does: a client that vanished without a word is noticed after about 70 seconds."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other end was faster
