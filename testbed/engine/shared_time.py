"""The controller's time on the nodes, where bursts start by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from testbed.core import messages
from testbed.core.devices import Devices

_EXCHANGES = 8
_NO_ARRAYS: Mapping[str, np.ndarray] = {}


def share_time(devices: Devices, names: Iterable[str], *, timeout_s: float) -> None:
    """Tell nodes what the controller's clock shows; nothing to do where something else starts their bursts.

    offset = (asked + answered) / 2 - read,   of the exchange with the shortest round trip, which bounds its error

    Args:
        devices: their link and clock.
        names: of the nodes; one that does not answer keeps what it knew.
        timeout_s: for each exchange.
    """
    if not devices.shares_time:
        return
    for name in names:
        exchanges: list[tuple[float, float]] = []
        for _ in range(_EXCHANGES):
            asked_s = devices.clock.now_s()
            answers = devices.link.ask({name: (messages.ReadClock(node=name), _NO_ARRAYS)}, timeout_s=timeout_s)
            trip_s = devices.clock.now_s() - asked_s
            if name in answers and isinstance(read := answers[name].message, messages.ClockRead):
                exchanges.append((trip_s, asked_s + trip_s / 2 - read.at_s))
        if exchanges:
            told = messages.SetClock(node=name, offset_s=min(exchanges)[1])
            devices.link.ask({name: (told, _NO_ARRAYS)}, timeout_s=timeout_s)
