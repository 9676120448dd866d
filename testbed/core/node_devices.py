"""What a node works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from testbed.core.devices import Meter, Radio


@dataclass(frozen=True)
class NodeDevices:
    """One node's opened devices.

    Attributes:
        radio: its transmitter.
        meter: its stopwatch and energy meter.
        close: mutes the radio and lets go; may be repeated.
    """

    radio: Radio
    meter: Meter
    close: Callable[[], None]
