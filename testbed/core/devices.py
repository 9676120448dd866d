"""What the engine asks of devices, in SI units. Nobody above can tell a simulated device from a real one.

Samples are complex baseband in square-root watts at the antenna port: the mean of |x|^2 is the average power in watts.
Verbs seek a state and may be repeated; every device ends mute and still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from testbed.core.errors import LimitError
from testbed.core.messages import Message, Packet
from testbed.core.orders import Spent


@dataclass(frozen=True)
class Capabilities:
    """What a radio can honestly do; an experiment that needs more is refused before anything moves.

    Attributes:
        timed_tx: a burst starts at a given instant.
        shared_clock: transmitters and receiver run on one reference.
        phase_coherent: the phase of a channel estimate still holds when data follow it.
        full_duplex: it may receive while it transmits.
        num_antennas: receive channels.
        max_power_w: highest average transmit power.
        frequencies_hz: bands it may be tuned to, as (low, high).
        sample_rate_hz: lowest and highest sample rate.
    """

    timed_tx: bool
    shared_clock: bool
    phase_coherent: bool
    full_duplex: bool
    num_antennas: int
    max_power_w: float
    frequencies_hz: tuple[tuple[float, float], ...]
    sample_rate_hz: tuple[float, float]

    FLAGS = ("timed_tx", "shared_clock", "phase_coherent", "full_duplex")

    def check_tuning(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Refuse a carrier or a sample rate outside the capabilities.

        Raises:
            LimitError: says which.
        """
        low_hz, high_hz = self.sample_rate_hz
        if not low_hz <= sample_rate_hz <= high_hz:
            raise LimitError(f"a sample rate of {sample_rate_hz:g} Hz; the radios of this bench run at {low_hz:g} Hz")
        half_hz = sample_rate_hz / 2
        if not any(
            low <= frequency_hz - half_hz and frequency_hz + half_hz <= high for low, high in self.frequencies_hz
        ):
            bands = ", ".join(f"[{low:g}, {high:g}]" for low, high in self.frequencies_hz)
            raise LimitError(
                f"{frequency_hz:g} +- {half_hz:g} Hz is outside the allowed bands {bands}",
                remedy="limits.frequencies_hz in the bench file names the bands your licence covers",
            )


@runtime_checkable
class Radio(Protocol):
    """A transmitter, a receiver, or both."""

    @property
    def capabilities(self) -> Capabilities: ...

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Set carrier and sample rate. Raises LimitError outside the capabilities."""

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """Send one burst, then be mute. Shape [num_samples] complex64. Returns when the burst is on its way.

        `trigger_s` is the instant at which the receiver's capture begins. Radios that a common trigger starts keep the
        burst ready and send it `at_s - trigger_s` after the trigger; without it they send at the trigger.

        Raises LimitError where the average power exceeds `max_power_w`, RadioFault when the radio failed.
        """

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Discard what is stale and capture `num_samples` from `at_s` on, or from the trigger on.

        Raises LimitError for an empty capture or an instant that is not finite.
        """

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        """The armed capture, shape [num_antennas, num_samples] complex64, or its combination f^H y, [1, num_samples].

        `combiner` is f, shape [num_antennas]. Raises RadioFault when nothing was armed.
        """

    def mute(self) -> None:
        """Stop radiating at once; always legal."""

    def close(self) -> None:
        """Mute and let go; may be repeated."""


@runtime_checkable
class Adjustable(Protocol):
    """A radio whose gains and crystal a calibration may change until it is tuned anew.

    What it delivers stays in square-root watts as far as its nominal gains are true.
    """

    def adjust(
        self, *, rx_gain: float | None = None, tx_gain: float | None = None, crystal_hz: int | None = None
    ) -> None:
        """Set what is given.

        Args:
            rx_gain: receive gain as a power ratio.
            tx_gain: transmit gain as a power ratio, at most 1.
            crystal_hz: frequency of the crystal that the radio reckons with.

        Raises LimitError beyond the chip's range or the node's power limit, RadioFault when the radio failed.
        """


@runtime_checkable
class Stage(Protocol):
    """One antenna's positioner, in its own stage frame."""

    @property
    def position_m(self) -> np.ndarray:
        """Where the antenna is, shape [2]."""

    def duration_s(self, position_m: np.ndarray) -> float:
        """Seconds that `move_to` would take from here, settling included."""

    def move_to(self, position_m: np.ndarray) -> Spent:
        """Go there, shape [2]; returns when the antenna has arrived and settled.

        Raises LimitError beyond the end stops (nothing moves), StageFault when the target was not reached.
        """

    def stop(self) -> None:
        """Stand still at once; always legal."""

    def close(self) -> None:
        """Stop and let go; may be repeated."""


@runtime_checkable
class Clock(Protocol):
    """The one time base of a run, virtual or real."""

    def now_s(self) -> float: ...

    def wait_until(self, at_s: float) -> None:
        """Return at that time; at once if it has passed."""

    def set(self, at_s: float) -> None:
        """Go on from this time: a run that is resumed."""

    def concurrently(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run the tasks side by side; returns when the last has ended, results in order."""


@runtime_checkable
class Meter(Protocol):
    """A node's stopwatch and energy meter."""

    def begin(self, cpu_hz: float | None = None) -> None:
        """Work begins, at this CPU frequency; None is the highest. Raises LimitError beyond the board's range."""

    def end(self, *, num_tokens: int, cpu_hz: float | None, work_share: float = 1.0) -> Spent:
        """Work on so many tokens has ended; what it took. `cpu_hz` None is the highest frequency; `work_share` is a
        token's operations relative to the whole model.
        """


ProgressCallback = Callable[[str, str, float], None]
"""Called with node, activity and the fraction done."""


@runtime_checkable
class Link(Protocol):
    """The controller's end of the control link."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes that are connected now."""

    def take_joined(self) -> tuple[str, ...]:
        """Nodes that introduced themselves since the last call; they know nothing yet."""

    def wait_for(self, nodes: Sequence[str], *, timeout_s: float) -> None:
        """Return when all of them are connected. Raises LinkTimeout naming those that are not."""

    def ask(
        self,
        requests: Mapping[str, tuple[Message, Mapping[str, np.ndarray]]],
        *,
        timeout_s: float,
        progress: ProgressCallback | None = None,
    ) -> dict[str, Packet]:
        """Send one request to each node and gather the answers; a silent or vanished node is absent from them.

        Raises DeviceError when a node answers that it failed.
        """

    def close(self) -> None:
        """Dismiss the nodes and let go; may be repeated."""


@dataclass(frozen=True)
class Devices:
    """The controller's devices of one opened bench.

    Attributes:
        stages: one per antenna; None where an antenna is fixed.
        node_devices: what a node needs to open its own devices, sent to it in `Configure`.
        close: makes everything still and mute, then lets go; may be repeated.
        serials: device -> its serial number, for the metadata of recordings.
        firmware: device -> the version that runs on it, where it has one.
        calibration_ids: profiles in use, for the same.
        start_delay_s: from an order to transmit to the first sample: time for the order to reach every node and for
            its burst to be ready.
        advance_s: how much earlier than ordered some node starts, since its radio is known to be late; captures begin
            as much earlier.
        notes: what whoever watches the run should know of these devices.
        shares_time: whether nodes have to know the controller's clock, since nothing else starts their bursts.
    """

    radio: Radio
    stages: tuple[Stage | None, ...]
    link: Link
    clock: Clock
    node_devices: Mapping[str, Any]
    close: Callable[[], None]
    serials: Mapping[str, str] = field(default_factory=dict)
    firmware: Mapping[str, str] = field(default_factory=dict)
    calibration_ids: tuple[str, ...] = ()
    start_delay_s: float = 1e-3
    shares_time: bool = False
    advance_s: float = 0.0
    notes: tuple[str, ...] = ()
