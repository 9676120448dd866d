"""A client of the emulators' control port: time, trigger, state and faults. See `sim_backend.emulators.control`."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from testbed.core.errors import DeviceError

_CONNECT_S = 3.0
_ANSWER_S = 30.0


class ControlClient:
    """One connection to the control port, shared by threads.

    Args:
        address: HOST:PORT.

    Raises:
        DeviceError: nothing answers there.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = address
        self._lock = threading.Lock()
        try:
            self._socket = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"no emulators answer at {address}: {error}",
                remedy="are they still running? `testbed emulate` starts them",
            ) from error
        self._socket.settimeout(_ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rwb")

    def ask(self, do: str, **facts: Any) -> Any:
        """One request.

        Args:
            do: what; see the control port.
            facts: its parameters.

        Returns:
            the answer, a mapping or a list.

        Raises:
            DeviceError: the emulators are gone, or refuse.
        """
        line = json.dumps({"do": do, **facts}).encode() + b"\n"
        try:
            with self._lock:
                self._stream.write(line)
                self._stream.flush()
                reply = self._stream.readline()
        except (OSError, ValueError) as error:
            raise DeviceError(f"the emulators at {self._address} do not answer: {error}") from error
        if not reply:
            raise DeviceError(f"the emulators at {self._address} have ended", remedy="look at emulators.log in the run")
        answer = json.loads(reply)
        if isinstance(answer, dict) and answer.get("error"):
            raise DeviceError(f"the emulators refuse {do!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Let go; may be repeated."""
        try:
            self._stream.close()
        except OSError:
            pass  # what was not sent is lost with the connection
        self._socket.close()
