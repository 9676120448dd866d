"""One window of air: the receiver listens while nodes send, in whole pieces that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from testbed.core import messages
from testbed.core.bench import BenchSpec
from testbed.core.devices import Devices
from testbed.engine.crew import Crew

_GUARD_SIGMAS = 6.0
LONGEST = 1 << 20
"""Elements of the longest window: 64 MiB for eight antennas."""

_NO_ARRAYS: Mapping[str, Mapping[str, np.ndarray]] = {}


@dataclass(frozen=True)
class Air:
    """What soundings and uplinks have in common: timing, capture, and the wait for its end.

    Args:
        bench: numerology, sample rate and how exactly bursts start.
        devices: radio and clock.
        crew: the nodes.
    """

    bench: BenchSpec
    devices: Devices
    crew: Crew

    @property
    def rate_hz(self) -> float:
        """Elements in a second."""
        return self.bench.waveform.elements_per_second(self.bench.sample_rate_hz)

    @property
    def guard(self) -> int:
        """Elements that a capture begins early and ends late: six standard deviations of a burst's start, and the head
        start of radios that are known to be late."""
        return math.ceil((_GUARD_SIGMAS * self.bench.start_std_s + self.devices.advance_s) * self.rate_hz)

    @property
    def shared_clock(self) -> bool:
        """Whether carrier offsets need no estimate."""
        return self.devices.radio.capabilities.shared_clock

    def begin_s(self) -> float:
        """The next instant for which a burst can be ordered."""
        return self.devices.clock.now_s() + self.devices.start_delay_s + self.guard / self.rate_hz

    def capture(
        self,
        requests: Mapping[str, messages.Message],
        length: int,
        begin_s: float,
        *,
        arrays: Mapping[str, Mapping[str, np.ndarray]] = _NO_ARRAYS,
        combiner: np.ndarray | None = None,
    ) -> tuple[np.ndarray, dict[str, messages.Sent]]:
        """Listen around `length` elements from `begin_s` on while the nodes send; the clock then stands at the end.

        Args:
            requests: node -> its request to transmit.
            length: elements between the guards.
            begin_s: nominal instant of the first element.
            arrays: node -> arrays of its request.
            combiner: receive weights, shape [num_antennas]; all antennas are returned if None.

        Returns:
            samples [num_antennas or 1, length + 2 guard], and what the nodes that sent report.
        """
        window = length + 2 * self.guard
        radio, clock = self.devices.radio, self.devices.clock
        trigger_s = begin_s - self.guard / self.rate_hz
        radio.arm(window, at_s=trigger_s)
        bursts: dict[str, messages.Message] = {
            name: request.model_copy(update={"trigger_s": trigger_s}) for name, request in requests.items()
        }
        sent = self.crew.ask(bursts, messages.Sent, arrays)
        samples = radio.read(combiner)
        clock.wait_until(begin_s + (length + self.guard) / self.rate_hz)
        return samples, sent

    def joules(self, sent: messages.Sent) -> float:
        """Transmit energy of one burst."""
        return sent.power_sum_w / self.rate_hz
