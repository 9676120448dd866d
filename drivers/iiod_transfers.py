"""One capture and one burst over an iiod buffer, see `drivers.pluto_port`."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from drivers.iiod_buffer import IiodBuffer, PendingWrite
from drivers.iiod_client import BrokenLink, IiodRefusal
from drivers.transport import TransportClosed
from testbed.core.errors import BenchError, LinkTimeout, ProtocolError, RadioFault

LOST = (LinkTimeout, TransportClosed, BrokenLink)
"""Errors after which a connection is closed."""
_HELD_BACK_BYTES = 4
_Lost = Callable[[str, BenchError], RadioFault]


class NativeCapture:
    """A receive buffer whose transfer is running, or waits for the trigger.

    Args:
        buffer: opened with a block of `num_padded` samples.
        uri: for messages.
        num_samples: that were asked for.
        num_padded: of the block.
        channels: complex ones.
        triggered: whether it waits for the trigger.
        lost: reopens the link after it was lost, and gives the error to raise.
    """

    def __init__(
        self,
        buffer: IiodBuffer,
        *,
        uri: str,
        num_samples: int,
        num_padded: int,
        channels: int,
        triggered: bool,
        lost: _Lost,
    ) -> None:
        self._buffer = buffer
        self._uri = uri
        self._num_samples = num_samples
        self._shape = (num_padded, 2 * channels)
        self.triggered = triggered
        self._lost = lost

    @property
    def open(self) -> bool:
        """Whether its buffer lives."""
        return self._buffer.live

    def wait(self, timeout_s: float) -> np.ndarray:
        """The samples, shape [num_samples, 2 * channels] int16.

        Raises:
            RadioFault: they do not come in time, were read before, or the link was lost; the buffer is destroyed.
        """
        if self._buffer.sequence:
            raise RadioFault(f"{self._uri}: this capture was read already", remedy="open another")
        block = np.empty(self._shape, "<i2")
        try:
            self._buffer.read_into(block.data.cast("B"), timeout_s=timeout_s)
        except LOST as error:
            raise self._lost("receiving", error) from error
        except IiodRefusal as error:
            if error.code == errno.ETIMEDOUT:
                waiting, remedy = "", "restart the radio"
                if self.triggered:
                    waiting, remedy = " of waiting for the trigger", "check the trigger line and what pulls it"
                raise RadioFault(
                    f"{self._uri}: no samples came within {timeout_s:g} s{waiting}", remedy=remedy
                ) from error
            raise
        return block[: self._num_samples]

    def close(self) -> None:
        """Destroy the buffer; may be repeated."""
        self._buffer.close()

    def abort(self) -> None:
        """End it without waiting; from any thread."""
        self._buffer.abort()


class NativeBurst:
    """A transmit buffer that is loaded and waits for its release or for the trigger.

    Args:
        buffer: not open yet, so that a silence that comes meanwhile can end it.
        uri: for messages.
        triggered: whether the trigger starts it.
        lost: as for a capture.
    """

    def __init__(self, buffer: IiodBuffer, *, uri: str, triggered: bool, lost: _Lost) -> None:
        self._buffer = buffer
        self._uri = uri
        self.triggered = triggered
        self._lost = lost
        self._pending: PendingWrite | None = None

    @property
    def open(self) -> bool:
        """Whether its buffer lives."""
        return self._buffer.live

    def load(self, block: np.ndarray) -> None:
        """Send the block, but for its last sample where nothing but that starts it."""
        pending = self._buffer.begin_write(block.data.cast("B"), held_back=0 if self.triggered else _HELD_BACK_BYTES)
        if self.triggered:
            pending.release()
        else:
            self._pending = pending

    def release(self) -> None:
        """Send the last sample: it goes on air one packet later.

        Raises:
            ProtocolError: it waits for the trigger, or was released before.
            RadioFault: the link was lost.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            raise ProtocolError(
                f"{self._uri}: this burst {'waits for the trigger' if self.triggered else 'was released already'}",
                remedy="release a burst once, and only one that was loaded without delay_samples",
            )
        try:
            pending.release()
        except LOST as error:
            raise self._lost("transmitting", error) from error

    def close(self) -> None:
        """Destroy the buffer: nothing of it radiates any more; may be repeated."""
        if self._pending is not None:
            self._buffer.abort()  # the server waits for the rest of the block and would take a CLOSE for it
        self._buffer.close()

    def abort(self) -> None:
        """End it without waiting; from any thread."""
        self._buffer.abort()
