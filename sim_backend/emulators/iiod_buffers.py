"""Buffers of an emulated radio as the clients of its iiod open, fill, empty and close them."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sim_backend.emulators.attribute_tree import Device, refusal
from sim_backend.emulators.chip import RECEIVE, TRANSMIT, Chip
from sim_backend.emulators.iiod_connection import ClientGone, Connection
from sim_backend.emulators.iiod_request import Request
from sim_backend.emulators.iiod_shared import ReceiveBuffer, Shared, TransmitBuffer

LARGEST_BLOCK_BYTES = 1 << 27
"""Larger kernel blocks are refused with ENOMEM."""
_BUSY_TRIES, _BUSY_PAUSE_S = 50, 1e-3


BufferType = TypeVar("BufferType", ReceiveBuffer, TransmitBuffer)


@dataclass
class Opened(Generic[BufferType]):
    """A buffer that a client has open.

    Attributes:
        buffer: the transfer.
        block_bytes: of one kernel block.
        mask: channels in it.
        failed: whether the transfer broke; only closing helps.
    """

    buffer: BufferType
    block_bytes: int
    mask: int
    failed: bool = False

    def usable(self) -> Opened[BufferType]:
        """Itself.

        Raises:
            OSError: EBADF after a failure.
        """
        if self.failed:
            raise refusal(errno.EBADF)
        return self

    def fail(self) -> None:
        """End the transfer."""
        self.failed = True
        self.buffer.close()


class ClientBuffers:
    """The buffers of one client.

    Args:
        connection: to it.
        shared: the server.
    """

    def __init__(self, connection: Connection, shared: Shared) -> None:
        self._connection = connection
        self._shared = shared
        self._chip: Chip = shared.radio.chip
        self._receiving: Opened[ReceiveBuffer] | None = None
        self._transmitting: Opened[TransmitBuffer] | None = None

    def set_blocks(self, request: Request) -> int:
        """SET <device> BUFFERS_COUNT <count>.

        Raises:
            OSError: EINVAL, ENODEV, ENOSYS without a buffer, EBUSY while one lives.
        """
        device = self._chip.device(request.words[0])
        if request.words[1] not in ("BUFFERS_COUNT", "buffers_count") or request.number < 1:
            raise refusal(errno.EINVAL)
        if device.name not in self._shared.num_blocks:
            raise refusal(errno.ENOSYS)

        def set_count() -> None:
            with self._shared.lock:
                if device.name in self._shared.busy:
                    raise refusal(errno.EBUSY)
                self._shared.num_blocks[device.name] = request.number

        self._patiently(set_count)
        return 0

    def open(self, request: Request) -> int:
        """OPEN <device> <samples> <mask> [CYCLIC].

        Raises:
            OSError: EINVAL, ENODEV, ENOMEM for enormous blocks, EBUSY while another buffer of the device lives.
        """
        device = self._chip.device(request.words[0])
        num_samples = int(request.words[1]) if request.words[1].isdecimal() else 0
        mask = _mask(request.words[2], device)
        cyclic = len(request.words) == 4
        if num_samples < 1 or not mask or (cyclic and request.words[3] not in ("CYCLIC", "cyclic")):
            raise refusal(errno.EINVAL)
        if num_samples * 2 * mask.bit_count() > LARGEST_BLOCK_BYTES:
            raise refusal(errno.ENOMEM)
        if device.name == TRANSMIT:
            self._patiently(lambda: self._start_transmit(num_samples, mask, cyclic))
        else:
            self._patiently(lambda: self._start_receive(num_samples, mask))
        return 0

    def _start_receive(self, num_samples: int, mask: int) -> None:
        with self._shared.lock:
            self._check_free(RECEIVE)
            buffer = self._shared.radio.open_receive(num_samples, mask, self._shared.num_blocks[RECEIVE])
            self._shared.busy.add(RECEIVE)
        self._receiving = Opened(buffer, num_samples * buffer.sample_bytes, mask)

    def _start_transmit(self, num_samples: int, mask: int, cyclic: bool) -> None:
        with self._shared.lock:
            self._check_free(TRANSMIT)
            blocks = 1 if cyclic else self._shared.num_blocks[TRANSMIT]
            buffer = self._shared.radio.open_transmit(num_samples, mask, cyclic, blocks)
            self._shared.busy.add(TRANSMIT)
        self._transmitting = Opened(buffer, num_samples * buffer.sample_bytes, mask)

    def _check_free(self, name: str) -> None:
        if name in self._shared.busy:
            raise refusal(errno.EBUSY)

    def _patiently(self, attempt: Callable[[], None]) -> None:
        """Try for up to 50 ms: the end of an old connection may arrive after the request that needs it."""
        for _ in range(_BUSY_TRIES):
            try:
                return attempt()
            except OSError as error:
                if error.errno != errno.EBUSY or self._connection.gone():
                    raise
            self._shared.pause(_BUSY_PAUSE_S)
        return attempt()

    def close(self, request: Request) -> int:
        """CLOSE <device>.

        Raises:
            OSError: ENODEV; ENXIO, this client has no buffer of it.
        """
        name = self._chip.device(request.words[0]).name
        if name == RECEIVE and self._receiving is not None:
            self._close_receive()
        elif name == TRANSMIT and self._transmitting is not None:
            self._close_transmit()
        else:
            raise refusal(errno.ENXIO)
        return 0

    def close_all(self) -> None:
        """The client has gone."""
        try:
            self._close_transmit()
        finally:
            self._close_receive()

    def _close_receive(self) -> None:
        opened, self._receiving = self._receiving, None
        if opened is None:
            return
        try:
            opened.buffer.close()
        finally:
            with self._shared.lock:
                self._shared.busy.discard(RECEIVE)

    def _close_transmit(self) -> None:
        opened, self._transmitting = self._transmitting, None
        if opened is None:
            return
        try:
            opened.buffer.close()
        finally:
            with self._shared.lock:
                self._shared.busy.discard(TRANSMIT)

    def read(self, request: Request) -> int | None:
        """READBUF <device> <bytes>: sends kernel block after kernel block, the mask with the first.

        Returns:
            what is left to say, if anything.

        Raises:
            OSError: EBADF, not open or broken; EINVAL, it transmits; ETIMEDOUT.
            ClientGone: the client left.
        """
        name = self._chip.device(request.words[0]).name
        if self._receiving is None:
            raise refusal(errno.EINVAL if name == TRANSMIT and self._transmitting is not None else errno.EBADF)
        if name != RECEIVE:
            raise refusal(errno.EBADF)
        opened = self._receiving.usable()
        left, sample_bytes = request.number, opened.buffer.sample_bytes
        if left < sample_bytes:
            return 0
        mask = b"%08x\n" % opened.mask
        while left >= sample_bytes:
            block = self._block(opened)[:left]
            head = b"%d\n" % len(block) + mask
            if self._shared.faults.take("short-read") is not None:
                self._connection.send(head, block[: len(block) // 2])
                raise ClientGone
            self._connection.send(head, block)
            left, mask = left - len(block), b""
        return 0 if left else None

    def _block(self, opened: Opened[ReceiveBuffer]) -> memoryview:
        timeout_s = self._shared.timeout_s
        deadline_s = time.monotonic() + timeout_s if timeout_s else float("inf")
        try:
            return opened.buffer.read(lambda: self._connection.gone() or time.monotonic() > deadline_s)
        except OSError as error:
            opened.fail()
            if time.monotonic() > deadline_s:
                raise refusal(errno.ETIMEDOUT) from error
            raise

    def write(self, request: Request) -> int:
        """WRITEBUF <device> <bytes>: says go, takes the bytes, queues kernel block after kernel block.

        Returns:
            bytes taken.

        Raises:
            OSError: EBADF, not open or broken; EINVAL, it receives; what the buffer says.
            ClientGone: the client left; a block that is not whole is dropped.
        """
        name = self._chip.device(request.words[0]).name
        if self._transmitting is None:
            raise refusal(errno.EINVAL if name == RECEIVE and self._receiving is not None else errno.EBADF)
        if name != TRANSMIT:
            raise refusal(errno.EBADF)
        opened = self._transmitting.usable()
        left, sample_bytes = request.number, opened.buffer.sample_bytes
        if left < sample_bytes:
            return 0
        self._connection.send(b"0\n")
        while left >= sample_bytes:
            data = memoryview(self._connection.payload(min(left, opened.block_bytes)))
            left -= len(data)
            try:
                opened.buffer.write(data[: len(data) - len(data) % sample_bytes], self._connection.gone)
            except OSError:
                opened.fail()
                raise
        return request.number - left


def _mask(text: str, device: Device) -> int:
    """The channels that take part, of the eight digits for each 32 channels.

    Raises:
        OSError: EINVAL for another text.
    """
    if len(text) != 8 * ((len(device.channels) + 31) // 32):
        raise refusal(errno.EINVAL)
    try:
        return int(text, 16) & device.scan_mask
    except ValueError:
        raise refusal(errno.EINVAL) from None
