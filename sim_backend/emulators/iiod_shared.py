"""What an emulated iiod needs of its radio, and what its clients share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sim_backend.emulators.chip import RECEIVE, TRANSMIT, Chip
from sim_backend.emulators.faults import FaultPlan

_FIRST_TIMEOUT_S = 1.0
_FIRST_NUM_BLOCKS = 4


class ReceiveBuffer(Protocol):
    """What a session needs of an open receive buffer."""

    @property
    def sample_bytes(self) -> int: ...

    def read(self, give_up: Callable[[], bool]) -> memoryview:
        """One kernel block."""

    def close(self) -> None:
        """Let go."""


class TransmitBuffer(Protocol):
    """What a session needs of an open transmit buffer."""

    @property
    def sample_bytes(self) -> int: ...

    def write(self, data: bytes | bytearray | memoryview, give_up: Callable[[], bool]) -> None:
        """One kernel block; waits for room in the queue until `give_up`."""

    def close(self) -> None:
        """Stop radiating."""


class Radio(Protocol):
    """What a server needs of a radio."""

    @property
    def name(self) -> str: ...
    @property
    def chip(self) -> Chip: ...

    def open_receive(self, num_samples: int, mask: int, num_blocks: int) -> ReceiveBuffer:
        """Start a receive transfer."""

    def open_transmit(self, num_samples: int, mask: int, cyclic: bool, num_blocks: int) -> TransmitBuffer:
        """Prepare a transmit transfer."""


@dataclass
class Shared:
    """What all clients of one server share.

    Attributes:
        radio: the radio.
        faults: what goes wrong next.
        pause: waits so long, or until the server closes.
        drop_all: cuts every connection.
        timeout_s: how long a transfer may take; 0 without end.
        num_blocks: kernel blocks of the next buffer of a device.
        busy: devices with a buffer.
        lock: guards `num_blocks` and `busy`.
    """

    radio: Radio
    faults: FaultPlan
    pause: Callable[[float], None]
    drop_all: Callable[[], None]
    timeout_s: float = _FIRST_TIMEOUT_S
    num_blocks: dict[str, int] = field(default_factory=lambda: dict.fromkeys((RECEIVE, TRANSMIT), _FIRST_NUM_BLOCKS))
    busy: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
