"""Sample buffers of an iiod: each on a connection of its own, which ends the buffer when it ends."""

from __future__ import annotations

from typing import NoReturn

from drivers.iiod_client import BrokenLink, IiodClient, IiodConnection, IiodRefusal, in_words
from drivers.iiod_context import DeviceEntry
from drivers.transport import Data, TransportClosed, TransportTimeout
from testbed.core.errors import RadioFault

_SLACK_S = 0.5
"""How much longer than the server this side waits, so that the server's own answer still comes in step."""
_CLOSE_TIMEOUT_S = 0.5
"""How long the server may take to destroy a buffer; after that its connection ends it."""


class IiodBuffer:
    """One buffer. Not for several threads, except `abort`.

    After any error but a refusal the connection is closed, and with it the buffer.

    Args:
        client: whose server it is.
        device: whose samples.

    Attributes:
        sequence: blocks that were transferred since it was opened.
    """

    def __init__(self, client: IiodClient, device: DeviceEntry) -> None:
        self._client = client
        self._device = device
        self._connection: IiodConnection | None = None
        self._opened = False
        self._aborted = False
        self._mask = 0
        self._served_timeout_s: float | None = None
        self.sequence = 0

    @property
    def live(self) -> bool:
        """Whether it is open."""
        return self._opened and not self._aborted and self._connection is not None

    def open(self, num_samples: int, mask: int, *, cyclic: bool = False) -> None:
        """Create it: reception runs from now on, or waits for its trigger.

        Args:
            num_samples: of one block, each of all the channels.
            mask: which channels, one bit each.
            cyclic: transmit the first block again and again.

        Raises:
            IiodRefusal: EBUSY where another client holds it.
        """
        words = self._device.mask_words
        line = f"OPEN {self._device.identity} {num_samples} {mask:0{8 * words}x}" + (" CYCLIC" if cyclic else "")
        connection = self._connection = self._client.connect()
        if self._aborted:  # between its making and its connection
            connection.close()
        try:
            connection.command(line)
            connection.checked(f"{self._client.uri}: {line}")
        except BaseException as error:
            self._fail(line, error)
        self._mask = mask
        self._opened = True

    def read_into(self, view: memoryview, *, timeout_s: float) -> None:
        """Fill a buffer of bytes with the oldest samples.

        Raises:
            IiodRefusal: ETIMEDOUT where the samples do not come; the server then ends the buffer, and so does this.
        """
        connection = self._live()
        line = f"READBUF {self._device.identity} {len(view)}"
        try:
            if timeout_s != self._served_timeout_s:
                connection.command(f"TIMEOUT {max(1, round(timeout_s * 1000))}", timeout_s=timeout_s + _SLACK_S)
                connection.integer()  # a server that cannot set it keeps its own
                self._served_timeout_s = timeout_s
            connection.command(line, timeout_s=timeout_s + _SLACK_S)
            filled = 0
            while filled < len(view):
                count = connection.checked(f"{self._client.uri}: {line}")
                if not 0 < count <= len(view) - filled:
                    raise BrokenLink(f"{count} bytes came where {len(view) - filled} were asked for")
                if not filled:
                    self._check_mask(connection.line())
                connection.fill(view[filled : filled + count])
                filled += count
        except BaseException as error:
            self._fail(line, error)
        self.sequence += 1

    def begin_write(self, data: Data, *, held_back: int = 0) -> PendingWrite:
        """Send a block but for its last bytes, with which it will go on its way.

        Args:
            data: one block, as bytes.
            held_back: how many bytes wait for `PendingWrite.release`.
        """
        connection = self._live()
        line = f"WRITEBUF {self._device.identity} {len(data)}"
        view = memoryview(data)
        sent = len(view) - held_back
        try:
            connection.command(line)
            connection.checked(f"{self._client.uri}: {line}")
            if sent:
                connection.send(view[:sent])
        except BaseException as error:
            self._fail(line, error)
        return PendingWrite(self, line, len(view), view[sent:])

    def write(self, data: Data) -> None:
        """Send a block."""
        self.begin_write(data).release()

    def finish_write(self, line: str, num_bytes: int, rest: memoryview) -> None:
        """Send the last bytes of a block and wait until the server has it: see `PendingWrite.release`."""
        connection = self._live()
        try:
            if rest:
                connection.send(rest)
            taken = connection.integer(timeout_s=self._client.timeout_s)
            if taken < 0:
                raise IiodRefusal(f"{self._client.uri}: {line}", -taken)
            if taken != num_bytes:
                raise BrokenLink(f"the server took {taken} of {num_bytes} bytes")
        except BaseException as error:
            self._fail(line, error)
        self.sequence += 1

    def close(self) -> None:
        """Destroy it; may be repeated. A server that does not answer loses the connection, which ends it too."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._opened and not self._aborted:
            try:
                connection.command(f"CLOSE {self._device.identity}", timeout_s=_CLOSE_TIMEOUT_S)
                connection.integer()
                connection.exit()
            except (TransportTimeout, TransportClosed, BrokenLink):
                pass  # its connection ends it
        connection.close()

    def abort(self) -> None:
        """End it without waiting for anything; from any thread."""
        self._aborted = True
        connection = self._connection
        if connection is not None:
            connection.close()

    def _live(self) -> IiodConnection:
        if self._connection is None:
            raise RadioFault(f"{self._client.uri}: the buffer of {self._device.name} is closed", remedy="open another")
        return self._connection

    def _check_mask(self, line: bytes) -> None:
        try:
            mask = int(line, 16)
        except ValueError as error:
            raise BrokenLink(f"a mask was expected, {line[:40]!r} came") from error
        if mask != self._mask:
            raise BrokenLink(f"samples of the channels {mask:#x} came instead of {self._mask:#x}")

    def _fail(self, line: str, error: BaseException) -> NoReturn:
        """Close at once and raise the error, in the words of its command."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._aborted:
            raise RadioFault(
                f"{self._client.uri}: {line}: the buffer was ended from elsewhere", remedy="open another"
            ) from error
        if isinstance(error, TransportTimeout | TransportClosed | BrokenLink):
            raise in_words(f"{self._client.uri}: {line}", error) from error
        raise error


class PendingWrite:
    """A block whose last bytes are still here.

    Args:
        buffer: where it goes.
        line: the command it belongs to.
        num_bytes: of the whole block.
        rest: what is still here.
    """

    def __init__(self, buffer: IiodBuffer, line: str, num_bytes: int, rest: memoryview) -> None:
        self._buffer = buffer
        self._line = line
        self._num_bytes = num_bytes
        self._rest = rest

    def release(self) -> None:
        """Send them: the block is on its way one packet later. Returns when the server has it."""
        self._buffer.finish_write(self._line, self._num_bytes, self._rest)
