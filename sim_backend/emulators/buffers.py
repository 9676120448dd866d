"""Transfers between an emulated radio's converters and its memory, as the kernel runs them.

Receive: a few blocks are filled from the opening on, whether or not anybody reads; when all are full the transfer
stops. A read returns the oldest full block and hands it back to be filled with what comes then. So who reads late, or
moves the antenna between two reads, is given the past first. Samples of a block are worked out when it is read.

Transmit: blocks are queued behind the one that plays; silence follows the last. A cyclic buffer has one block, which
repeats until the buffer is closed.

With the transfer trigger armed a transfer begins at the trigger's pulse and the delays that the trigger is set to. A
buffer keeps the sample rate that it was opened with.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from sim_backend.emulators.emission import Emission
from sim_backend.emulators.faults import FaultPlan
from sim_backend.emulators.history import Window
from sim_backend.emulators.timebase import Timebase

GiveUp = Callable[[], bool]
Render = Callable[[Window, Sequence[int]], np.ndarray]

_SLICE_S = 0.02


def never() -> bool:
    """Nobody gives up."""
    return False


def failure(code: int) -> OSError:
    """The error of the operating system with this number."""
    return OSError(code, os.strerror(code))


class ReceiveBuffer:
    """Blocks that a converter fills.

    Args:
        timebase: the time.
        render: what the converters of some channels deliver in a window, shape [count, 2 * num_channels] int16.
        num_samples: of a block.
        elements: enabled scan elements: 0 and 1 are I and Q of the first channel, 2 and 3 of the second.
        num_blocks: blocks of the kernel.
        rate_hz: samples in a second.
        triggered: it waits for `begin`.
        faults: "overflow" loses all that was captured and not yet read.
        lost: called when samples are lost.
        closed: called when it is closed.
    """

    def __init__(
        self,
        timebase: Timebase,
        render: Render,
        *,
        num_samples: int,
        elements: Sequence[int],
        num_blocks: int,
        rate_hz: float,
        triggered: bool,
        faults: FaultPlan,
        lost: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self._timebase, self._render, self._faults = timebase, render, faults
        self._lost, self._on_close = lost, closed
        self.num_samples = num_samples
        """Of a block."""
        self.sample_bytes = 2 * len(elements)
        """Of one sample of all enabled elements."""
        self.overflow = False
        """Whether samples were lost since it was opened."""
        self.sequence = 0
        """Blocks that were read."""
        self._channels = sorted({element // 2 for element in elements})
        self._columns = [2 * self._channels.index(element // 2) + element % 2 for element in sorted(elements)]
        self._num_blocks, self._rate_hz = num_blocks, rate_hz
        self._full: deque[Window] = deque()
        self._filling: Window | None = None
        self._reading: Window | None = None
        self._waits, self._closed = triggered, False
        self._changed = threading.Condition(timebase.lock)
        if not triggered:
            self.begin(timebase.now_s())

    @property
    def waits(self) -> bool:
        """Whether it waits for the trigger."""
        return self._waits

    def begin(self, at_s: float) -> None:
        """The transfer begins at this instant; called under the time's lock."""
        self._waits = False
        self._filling = Window(at_s, 0, self.num_samples, self._rate_hz)
        self._changed.notify_all()

    def read(self, give_up: GiveUp = never) -> memoryview:
        """The oldest full block; waits until there is one.

        Args:
            give_up: asked again and again while waiting, in real time.

        Returns:
            bytes of one block: little-endian int16, in the order of the scan elements.

        Raises:
            OSError: ETIMEDOUT after `give_up`, EBADF after `close`, EIO where the room has no answer.
        """
        window = self._take(give_up)
        try:
            codes = self._render(window, self._channels)
        finally:
            self._reading = None
        if self._columns != list(range(codes.shape[1])):
            codes = np.ascontiguousarray(codes[:, self._columns])
        return codes.astype("<i2", copy=False).data.cast("B")

    def wanted(self) -> list[tuple[float, float]]:
        """Stretches of time whose samples may still be read; called under the time's lock."""
        self._catch_up(self._timebase.now_s())
        windows = [*self._full, *([] if self._reading is None else [self._reading])]
        stretches = [(window.start_s, window.stop_s) for window in windows]
        return stretches if self._filling is None else [*stretches, (self._filling.start_s, math.inf)]

    def close(self) -> None:
        """End the transfer and every wait; may be repeated."""
        with self._timebase.lock:
            if self._closed:
                return
            self._closed, self._waits, self._filling = True, False, None
            self._full.clear()
            self._changed.notify_all()
            self._on_close()

    def _take(self, give_up: GiveUp) -> Window:
        while True:
            with self._timebase.lock:
                self._check_open()
                window = self._next()
                if window is not None:
                    return window
                ready_s = None if self._filling is None else self._filling.stop_s
                if ready_s is None:
                    self._changed.wait(_SLICE_S)
            if ready_s is None:
                if give_up():
                    raise failure(errno.ETIMEDOUT)
            elif not self._timebase.wait_until(ready_s, lambda: self._closed or give_up()):
                self._check_open()
                raise failure(errno.ETIMEDOUT)

    def _next(self) -> Window | None:
        """The oldest full block, handed back to be filled."""
        now_s = self._timebase.now_s()
        self._catch_up(now_s)
        if not self._full:
            return None
        if self._faults.take("overflow") is not None:
            self._overflow()
            self._full.clear()
            self._filling = Window(now_s, 0, self.num_samples, self._rate_hz)
            return None
        window = self._reading = self._full.popleft()
        if self._filling is None:
            self._filling = Window(now_s, 0, self.num_samples, self._rate_hz)
        self.sequence += 1
        return window

    def _catch_up(self, now_s: float) -> None:
        while self._filling is not None and self._filling.stop_s <= now_s:
            self._full.append(self._filling)
            if len(self._full) < self._num_blocks:
                self._filling = self._filling.following()
            else:
                self._filling = None
                self._overflow()

    def _overflow(self) -> None:
        self.overflow = True
        self._lost()

    def _check_open(self) -> None:
        if self._closed:
            raise failure(errno.EBADF)


class TransmitBuffer:
    """Blocks that a converter plays.

    Args:
        timebase: the time.
        emit: puts a waveform on the air.
        num_samples: of a block.
        elements: enabled scan elements: 0 and 1 are I and Q of the first channel, 2 and 3 of the second.
        num_elements: of the radio.
        num_blocks: blocks of the kernel.
        cyclic: the one block repeats until the buffer is closed.
        rate_hz: samples in a second.
        num_tunings: tells how often the transmitter was tuned.
        armed: tells whether a transfer would wait for the trigger now.
        faults: "underrun" leaves a gap of its seconds, emulated time, before a block.
        lost: called when there is a gap between two blocks.
        closed: called when it is closed.
    """

    def __init__(
        self,
        timebase: Timebase,
        emit: Callable[[Emission], None],
        *,
        num_samples: int,
        elements: Sequence[int],
        num_elements: int,
        num_blocks: int,
        cyclic: bool,
        rate_hz: float,
        num_tunings: Callable[[], int],
        armed: Callable[[], bool],
        faults: FaultPlan,
        lost: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self._timebase, self._emit, self._faults = timebase, emit, faults
        self._lost, self._on_close = lost, closed
        self.num_samples = num_samples
        """Of a block."""
        self.sample_bytes = 2 * len(elements)
        """Of one sample of all enabled elements."""
        self.cyclic = cyclic
        """Whether the block repeats."""
        self.underflow = False
        """Whether there was silence between two blocks since it was opened."""
        self._elements, self._num_elements = sorted(elements), num_elements
        self._num_blocks, self._rate_hz = num_blocks, rate_hz
        self._num_tunings, self._armed = num_tunings, armed
        self._played: deque[Emission] = deque(maxlen=num_blocks)
        self._held: list[np.ndarray] = []
        self._closed = False
        self._changed = threading.Condition(timebase.lock)

    @property
    def waits(self) -> bool:
        """Whether it is loaded and waits for the trigger."""
        return bool(self._held)

    def write(self, data: bytes | bytearray | memoryview, give_up: GiveUp = never) -> None:
        """Queue one block; waits while all blocks are full.

        Args:
            data: little-endian int16, in the order of the scan elements; the twelve most significant bits count.
            give_up: asked again and again while waiting, in real time.

        Raises:
            OSError: EINVAL for no whole samples or more than a block, EPERM for a second block of a cyclic buffer,
                ETIMEDOUT after `give_up`, EBADF after `close`.
        """
        codes = self._codes(data)
        with self._timebase.lock:
            self._check_open()
            if self.cyclic and (self._played or self._held):
                raise failure(errno.EPERM)
        self._wait_for_room(give_up)
        with self._timebase.lock:
            self._check_open()
            if self._held or (not self._played and self._armed()):
                self._held.append(codes)
            else:
                self._play(codes, self._timebase.now_s())

    def begin(self, at_s: float) -> None:
        """What is loaded begins to play at this instant; called under the time's lock."""
        held, self._held = self._held, []
        for codes in held:
            self._play(codes, at_s)
        self._changed.notify_all()

    def close(self) -> None:
        """Nothing of it radiates from now on; may be repeated."""
        with self._timebase.lock:
            if self._closed:
                return
            self._closed = True
            self._held.clear()
            now_s = self._timebase.now_s()
            for emission in self._played:
                emission.end(now_s)
            self._changed.notify_all()
            self._on_close()

    def _codes(self, data: bytes | bytearray | memoryview) -> np.ndarray:
        """A block as I and Q of every channel, shape [num_samples, num_elements], int16."""
        size = len(data)
        if size == 0 or size % self.sample_bytes or size > self.num_samples * self.sample_bytes:
            raise failure(errno.EINVAL)
        given = np.frombuffer(data, "<i2").reshape(-1, len(self._elements))
        codes = np.zeros((len(given), self._num_elements), np.int16)
        codes[:, self._elements] = given
        return codes

    def _wait_for_room(self, give_up: GiveUp) -> None:
        while True:
            with self._timebase.lock:
                self._check_open()
                now_s = self._timebase.now_s()
                ends_s = [emission.end_s for emission in self._played if emission.end_s > now_s]
                if len(self._held) + len(ends_s) < self._num_blocks:
                    return
                if self._held:
                    self._changed.wait(_SLICE_S)
            if self._held:
                if give_up():
                    raise failure(errno.ETIMEDOUT)
            elif not self._timebase.wait_until(min(ends_s), lambda: self._closed or give_up()):
                self._check_open()
                raise failure(errno.ETIMEDOUT)

    def _play(self, codes: np.ndarray, at_s: float) -> None:
        last = self._played[-1] if self._played else None
        started_s = None
        if last is not None:
            gap = self._faults.take("underrun")
            if gap is None and last.end_s >= at_s:
                at_s, started_s = last.end_s, last.started_s
            else:
                self.underflow = True
                self._lost()
                at_s = max(at_s, last.end_s) + (0.0 if gap is None else gap.seconds)
        emission = Emission(
            codes,
            begin_s=at_s,
            rate_hz=self._rate_hz,
            cyclic=self.cyclic,
            num_tunings=self._num_tunings(),
            started_s=started_s,
        )
        self._played.append(emission)
        self._emit(emission)

    def _check_open(self) -> None:
        if self._closed:
            raise failure(errno.EBADF)
