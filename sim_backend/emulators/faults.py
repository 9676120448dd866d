"""What goes wrong next on one emulated device: ordered by tests or the control port, met by the device's server."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from testbed.core.errors import ConfigError

RADIO_FAULTS = (
    "stall",
    "disconnect",
    "short-read",
    "garbage",
    "nan",
    "late-reply",
    "duplicate-reply",
    "underrun",
    "overflow",
    "wrong-serial",
    "brown-out",
    "refuse",
)
"""Faults that an emulated radio knows."""
STAGE_FAULTS = (
    "stall",
    "disconnect",
    "garbage",
    "late-reply",
    "duplicate-reply",
    "lost-steps",
    "limit-hit",
    "brown-out",
    "refuse",
)
"""Faults that an emulated stage knows."""
FAULTS = tuple(dict.fromkeys(RADIO_FAULTS + STAGE_FAULTS))
"""Every fault there is."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: which, one of `FAULTS`.
        seconds: how long, where the fault lasts: wall clock.
        value: how much, where the fault has a size, in the unit that the device says.
        text: what is said instead, where the fault speaks.
    """

    kind: str
    seconds: float = 0.0
    value: float = 0.0
    text: str = ""


@dataclass
class _Order:
    fault: Fault
    count: int
    after: int


class FaultPlan:
    """The faults of one device, in the order in which they were asked for; safe to use from several threads.

    Args:
        kinds: faults that the device knows.
    """

    def __init__(self, kinds: Iterable[str] = FAULTS) -> None:
        self._kinds = tuple(kinds)
        self._orders: list[_Order] = []
        self._lock = threading.Lock()

    def add(
        self,
        kind: str,
        *,
        count: int = 1,
        after: int = 0,
        seconds: float = 0.0,
        value: float = 0.0,
        text: str = "",
    ) -> None:
        """Order a fault.

        Args:
            kind: which.
            count: how many times.
            after: opportunities that pass before it strikes first.
            seconds: how long it lasts, wall clock.
            value: how much, see the device.
            text: what is said instead, see the device.

        Raises:
            ConfigError: the device does not know such a fault, or a number is impossible.
        """
        if kind not in self._kinds:
            raise ConfigError(
                f"this device has no fault {kind!r}", key="kind", remedy=f"choose one of: {', '.join(self._kinds)}"
            )
        if count < 1 or after < 0:
            raise ConfigError(
                f"a fault that strikes {count} times after {after} opportunities",
                key="count" if count < 1 else "after",
                remedy="count is 1 or more, after is 0 or more",
            )
        if not (math.isfinite(seconds) and seconds >= 0 and math.isfinite(value)):
            raise ConfigError(
                f"a fault of {seconds} s and value {value}",
                key="seconds",
                remedy="give finite numbers, seconds 0 or more",
            )
        with self._lock:
            self._orders.append(_Order(Fault(kind, seconds, value, text), count, after))

    def take(self, *kinds: str) -> Fault | None:
        """The next fault of these kinds if it strikes now; each call is one opportunity for all of them."""
        with self._lock:
            struck: _Order | None = None
            for order in self._orders:
                if order.fault.kind not in kinds:
                    continue
                if order.after > 0:
                    order.after -= 1
                elif struck is None:
                    struck = order
            if struck is None:
                return None
            struck.count -= 1
            if struck.count == 0:
                self._orders.remove(struck)
            return struck.fault

    def pending(self) -> list[dict[str, object]]:
        """Faults that have yet to strike, as `add` took them."""
        with self._lock:
            return [{**asdict(order.fault), "count": order.count, "after": order.after} for order in self._orders]

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._orders.clear()
