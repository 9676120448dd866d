"""What a calibration may ask of an opened bench: captures of bursts it makes up, moves, gains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from testbed.core import messages
from testbed.core.bench import BenchSpec
from testbed.core.devices import Adjustable, Devices
from testbed.core.errors import ConfigError, DeviceError
from testbed.core.frames import to_array, to_stage
from testbed.core.messages import Message
from testbed.core.orders import Spent
from testbed.engine.shared_time import share_time

_GUARD_SIGMAS = 6.0
_NO_BURSTS: Mapping[str, np.ndarray] = {}
_NO_ARRAYS: Mapping[str, np.ndarray] = {}


@dataclass(frozen=True)
class Heard:
    """A capture.

    Attributes:
        samples: square-root watts, shape [num_antennas, guard + num_samples + guard], complex64.
        at_s: nominal instant of the sample at index `guard`, on the run's clock.
        guard: samples that the capture begins early and ends late, since bursts start with jitter.
        positions_m: where the antennas were, array frame, shape [num_antennas, 2].
        sent: nodes that transmitted.
    """

    samples: np.ndarray
    at_s: float
    guard: int
    positions_m: np.ndarray
    sent: tuple[str, ...]


@dataclass
class Access:
    """An opened bench, as calibrations see it.

    Args:
        bench: the bench.
        devices: opened by any backend.
        backend: its name, for the nodes.
    """

    bench: BenchSpec
    devices: Devices
    backend: str
    serials: dict[str, str] = field(default_factory=dict)
    """Serial numbers of all radios, receivers and nodes, once the nodes are open."""
    firmware: dict[str, str] = field(default_factory=dict)
    """Versions that run on them, where they have any."""

    def open_nodes(self) -> None:
        """Tune the receiver, and let every node open its devices; none loads a model.

        Raises:
            LinkTimeout: a node never connected.
            DeviceError: a node could not open its radio.
        """
        bench, devices = self.bench, self.devices
        devices.radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz)
        devices.link.wait_for(bench.node_names, timeout_s=bench.link.connect_timeout_s)
        content = bench.model_dump(mode="json")
        answers = self._ask(
            {
                name: messages.OpenDevices(
                    node=name, backend=self.backend, devices=dict(devices.node_devices), bench=content
                )
                for name in bench.node_names
            }
        )
        self.share_time()
        self.serials, self.firmware = {**devices.serials}, {**devices.firmware}
        for name, answer in answers.items():
            if isinstance(answer, messages.Opened):
                self.serials[name] = answer.radio_serial
                if answer.firmware:
                    self.firmware[name] = answer.firmware

    def share_time(self) -> None:
        """Tell the nodes the controller's time where their bursts start by it, and whenever its clock was set."""
        share_time(self.devices, self.bench.node_names, timeout_s=self.bench.link.answer_timeout_s)

    @property
    def guard(self) -> int:
        """Samples of a capture before and after what was asked for."""
        return math.ceil(_GUARD_SIGMAS * self.bench.start_std_s * self.bench.sample_rate_hz)

    @property
    def positions_m(self) -> np.ndarray:
        """Where the antennas are, array frame, shape [num_antennas, 2]."""
        return np.array(
            [
                antenna.home_m if stage is None or antenna.stage is None else to_array(stage.position_m, antenna.stage)
                for stage, antenna in zip(self.devices.stages, self.bench.array.antennas, strict=True)
            ],
            dtype=np.float64,
        )

    def now_s(self) -> float:
        """The run's clock."""
        return self.devices.clock.now_s()

    def wait(self, seconds: float) -> None:
        """Let so much of the run's time pass."""
        self.devices.clock.wait_until(self.now_s() + seconds)

    def capture(
        self,
        num_samples: int,
        bursts: Mapping[str, np.ndarray] = _NO_BURSTS,
        *,
        offsets: Mapping[str, int] | None = None,
    ) -> Heard:
        """Listen while nodes send.

        Args:
            num_samples: between the guards.
            bursts: node -> what it sends, square-root watts, shape [length], complex64.
            offsets: node -> sample at which its burst nominally begins; 0 by default.

        Returns:
            the capture; a node that did not answer is not in `sent`.

        Raises:
            LimitError: a burst is too strong.
            RadioFault: a radio failed, or the receiver clips.
        """
        radio, clock, rate_hz = self.devices.radio, self.devices.clock, self.bench.sample_rate_hz
        begin_s = clock.now_s() + self.devices.start_delay_s + self.guard / rate_hz
        trigger_s = begin_s - self.guard / rate_hz
        radio.arm(num_samples + 2 * self.guard, at_s=trigger_s)
        requests: dict[str, Message] = {
            name: messages.SendSamples(
                node=name, at_s=begin_s + (offsets or {}).get(name, 0) / rate_hz, trigger_s=trigger_s
            )
            for name in bursts
        }
        answers = self._ask(requests, {name: {"samples": burst} for name, burst in bursts.items()})
        samples = radio.read()
        clock.wait_until(begin_s + (num_samples + self.guard) / rate_hz)
        return Heard(samples, begin_s, self.guard, self.positions_m, tuple(answers))

    def move(self, positions_m: np.ndarray) -> Spent:
        """Bring the antennas there, side by side, array frame, shape [num_antennas, 2]; what it took in sum.

        Raises:
            LimitError: beyond an end stop; nothing of that stage moves.
            StageFault: a stage did not arrive.
        """
        tasks = [
            partial(stage.move_to, to_stage(point, antenna.stage))
            for point, stage, antenna in zip(positions_m, self.devices.stages, self.bench.array.antennas, strict=True)
            if stage is not None and antenna.stage is not None
        ]
        return sum(self.devices.clock.concurrently(tasks), Spent())

    def adjust(
        self,
        node: str | None = None,
        *,
        rx_gain: float | None = None,
        tx_gain: float | None = None,
        crystal_hz: int | None = None,
    ) -> None:
        """Change gains or crystal of the receiver, or of a node's radio; see `testbed.core.devices.Adjustable`.

        Raises:
            ConfigError: the radios of this backend have no gains.
            LimitError, RadioFault: see there.
        """
        if node is not None:
            request = messages.AdjustRadio(node=node, rx_gain=rx_gain, tx_gain=tx_gain, crystal_hz=crystal_hz)
            self._ask({node: request})
            return
        radio = self.devices.radio
        if not isinstance(radio, Adjustable):
            raise ConfigError(
                "the receiver of this backend has no gains to set",
                key="--backend",
                remedy="use --backend emulated or lab",
            )
        radio.adjust(rx_gain=rx_gain, tx_gain=tx_gain, crystal_hz=crystal_hz)

    def _ask(
        self, requests: Mapping[str, Message], arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None
    ) -> dict[str, Message]:
        packets = self.devices.link.ask(
            {name: (request, (arrays or {}).get(name, _NO_ARRAYS)) for name, request in requests.items()},
            timeout_s=self.bench.link.answer_timeout_s,
        )
        if requests and not packets:
            raise DeviceError("no node answered", remedy="look at the logs of the nodes")
        return {name: packet.message for name, packet in packets.items()}
