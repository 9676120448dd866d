"""pyadi-iio in a process of its own: `python -m drivers.adi_process`, with a socket as its standard input.

libiio 0.24 can hang, can take late answers for others, and can end its process with a segmentation fault. Here it may:
the parent (`drivers.adi_child`) kills this process whenever an answer is late, and starts another one. This process
ends when its parent does, however that happened, and its sockets with it, which makes the radio drop its buffers.

A frame is four bytes of length, a JSON head, and the raw bytes that the head announces.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import queue
import socket
import struct
import threading
from dataclasses import asdict
from typing import Any

import numpy as np

from drivers.ad9361_adi import AdiSession
from drivers.pluto_port import PlutoSettings
from testbed.core.errors import BenchError, ConfigError, DeviceError, LimitError, ProtocolError, RadioFault

KINDS: dict[str, type[BenchError]] = {
    kind.__name__: kind for kind in (ConfigError, LimitError, DeviceError, RadioFault, ProtocolError)
}
"""Errors that keep their class on the way to the parent."""

_LENGTH = struct.Struct(">I")
_LONGEST_HEAD = 1 << 20

Frame = tuple[dict[str, Any], bytearray]


def send_frame(link: socket.socket, head: dict[str, Any], data: bytes | memoryview = b"") -> None:
    """Send a head and its bytes. Raises OSError when the other side is gone or takes nothing."""
    text = json.dumps({**head, "bytes": len(data)}).encode()
    link.sendall(_LENGTH.pack(len(text)) + text)
    if data:
        link.sendall(data)


def receive_frame(link: socket.socket) -> Frame:
    """Receive a head and its bytes. Raises EOFError when the other side is gone, OSError as the socket does."""
    (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
    if length > _LONGEST_HEAD:
        raise ProtocolError(f"a head of {length} bytes came")
    head = json.loads(_exactly(link, length))
    return head, _exactly(link, head["bytes"])


def _exactly(link: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = link.recv_into(view)
        if not got:
            raise EOFError("the other side has gone")
        view = view[got:]
    return data


class _Radio:
    """Answers one order after the other."""

    def __init__(self) -> None:
        self._session: AdiSession | None = None

    def answer(self, head: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], np.ndarray | None]:
        """What an order gives: facts in words, and samples."""
        if head["do"] == "open":
            self._session = AdiSession(head["uri"])
            return asdict(self._session.facts()), None
        session = self._session
        if session is None:
            raise ProtocolError("the radio is not open")
        match head["do"]:
            case "configure":
                return asdict(session.configure(PlutoSettings(**head["settings"]), head["filters"])), None
            case "settings":
                return asdict(session.settings()), None
            case "unsilence":
                session.unsilence()
            case "open_receive":
                session.open_receive(head["num_samples"], head["channels"], head["triggered"])
            case "receive":
                return {}, session.receive()
            case "close_receive":
                session.close_receive()
            case "open_transmit":
                codes = np.frombuffer(data, "<i2").reshape(-1, 2)
                session.open_transmit(codes, head["delay_samples"], head["cyclic"])
            case "push":
                session.push()
            case "close_transmit":
                session.close_transmit()
            case other:
                raise ProtocolError(f"there is no order {other!r}")
        return {}, None


def main() -> None:
    """Serve the parent at the other end of standard input until it is gone."""
    faulthandler.enable()
    link = socket.socket(fileno=os.dup(0))
    os.dup2(2, 1)  # what libraries print must not meet frames
    orders: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(link, orders), daemon=True).start()
    radio = _Radio()
    while True:
        head, data = orders.get()
        try:
            answer, codes = radio.answer(head, data)
        except BenchError as error:
            kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in KINDS), "DeviceError")
            failure = {"error": kind, "message": error.message, "key": error.key, "remedy": error.remedy}
            send_frame(link, {**failure, "broken": isinstance(error.__cause__, OSError) and _lost(error.__cause__)})
        except Exception as error:  # whatever went wrong inside libiio: its link cannot be trusted any more
            failure = {"error": "RadioFault", "message": f"{type(error).__name__}: {error}", "key": None}
            send_frame(link, {**failure, "remedy": "check the radio's power and its cable", "broken": True})
        else:
            send_frame(link, {"answer": answer}, b"" if codes is None else codes.data.cast("B"))


def _lost(error: OSError) -> bool:
    """Whether it says more than that the radio refused."""
    return error.errno not in (errno.EINVAL, errno.EBUSY, errno.ENOMEM)


def _listen(link: socket.socket, orders: queue.SimpleQueue[Frame]) -> None:
    """Notice the parent's end while the main thread is inside libiio, where nothing else could."""
    try:
        while True:
            orders.put(receive_frame(link))
    except (EOFError, OSError):
        # no destructor may run: those of libiio are what hangs and faults
        os._exit(0)


if __name__ == "__main__":
    main()
