"""What a node works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from testbed.core.devices import Meter, Radio


class FollowedClock(Protocol):
    """A node's own clock, which learns how far the controller's is ahead of it."""

    def own_s(self) -> float:
        """The node's own time, from whatever zero."""

    def follow(self, offset_s: float) -> None:
        """From now on the controller's time is the node's own time plus this."""


@dataclass(frozen=True)
class NodeDevices:
    """One node's opened devices.

    Attributes:
        radio: its transmitter.
        meter: its stopwatch and energy meter.
        close: mutes the radio and lets go; may be repeated.
        serial: the radio's serial number, for records and calibrations.
        firmware: the version that runs on the radio, if it has one.
        clock: its clock, where bursts start by the controller's time; None where something else starts them.
    """

    radio: Radio
    meter: Meter
    close: Callable[[], None]
    serial: str = ""
    firmware: str = ""
    clock: FollowedClock | None = None
