"""One connection of the iiod text protocol: lines in, replies out, and the payloads between them."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

_LINE_LIMIT = 8192
_CHUNK = 65536
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class ClientGone(Exception):
    """The client has closed its end, or the server closes."""


class LineTooLong(Exception):
    """So many bytes without a line end are no request."""


class Connection:
    """Buffered reading and whole writing on a connected socket.

    Args:
        client: the socket; it stays the caller's to close.
        ended: tells whether the server closes.
    """

    def __init__(self, client: socket.socket, ended: Callable[[], bool]) -> None:
        client.setblocking(False)
        self._socket = client
        self._ended = ended
        self._pending = bytearray()
        self._poll = select.poll()

    def line(self) -> bytes:
        """The next line without its end.

        Raises:
            ClientGone: no more will come.
            LineTooLong: what came so far is dropped.
        """
        while (end := self._pending.find(b"\n")) < 0:
            if len(self._pending) >= _LINE_LIMIT:
                self._pending.clear()
                raise LineTooLong
            self._receive_more()
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        if len(line) >= _LINE_LIMIT:
            raise LineTooLong
        return line

    def payload(self, size: int) -> bytearray:
        """Exactly so many bytes that follow a request.

        Raises:
            ClientGone: fewer come.
        """
        data = bytearray(size)
        taken = min(size, len(self._pending))
        data[:taken] = self._pending[:taken]
        del self._pending[:taken]
        view = memoryview(data)
        while taken < size:
            self._wait(select.POLLIN)
            try:
                count = self._socket.recv_into(view[taken:])
            except BlockingIOError:
                continue
            except OSError as error:
                raise ClientGone from error
            if count == 0:
                raise ClientGone
            taken += count
        return data

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send all of it.

        Raises:
            ClientGone: the client takes no more.
        """
        left = [memoryview(part).cast("B") for part in parts if len(part)]
        while left:
            try:
                count = self._socket.sendmsg(left)
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            except OSError as error:
                raise ClientGone from error
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]

    def gone(self) -> bool:
        """Whether nobody waits for an answer any more: closed, half closed or reset, or the server closes."""
        self._poll.register(self._socket, select.POLLRDHUP)
        return self._ended() or any(event & _GONE for _, event in self._poll.poll(0))

    def _receive_more(self) -> None:
        self._wait(select.POLLIN)
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise ClientGone from error
        if not data:
            raise ClientGone
        self._pending += data

    def _wait(self, event: int) -> None:
        # A server that closes shuts the connection down, which ends the wait.
        self._poll.register(self._socket, event)
        self._poll.poll()
        if self._ended():
            raise ClientGone
