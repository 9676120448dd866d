"""Virtual radios on one emulated air, without servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim_backend.emulators.chip import Chip, Identity
from sim_backend.emulators.ether import Ether
from sim_backend.emulators.radio import VirtualRadio
from sim_backend.emulators.timebase import Mode, Timebase
from testbed.core.bench import BenchSpec
from testbed.core.hardware import PlutoSpec
from tests.benches import small_bench

LO_HZ, RATE_HZ = 2_450_000_000, 5_000_000
QUIET = {"temperature_k": 0.0}


@dataclass
class Air:
    """A bench's air with antennas that tests put where they like."""

    bench: BenchSpec
    timebase: Timebase
    seed: int = 3
    home_m: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def __post_init__(self) -> None:
        self.home_m = np.array([antenna.home_m for antenna in self.bench.array.antennas])
        self.ether = Ether(self.bench, self.seed, self.timebase, lambda: self.home_m)
        self.timebase.add(self.ether)
        self.radios: list[VirtualRadio] = []

    def receiver(self, *antennas: int, gain_db: float = 20.0, **spec: Any) -> VirtualRadio:
        """One of the array's radios, tuned to the bench's carrier."""
        antennas = antennas or (0,)
        name = f"receiver-{antennas[0]}"
        return self._radio(name, gain_db, PlutoSpec(channels=len(antennas), **spec), None, antennas)

    def node(self, index: int, gain_db: float = 20.0) -> VirtualRadio:
        """A node's radio, tuned to the bench's carrier, at 0 dB transmit gain."""
        board = self.bench.boards[index]
        return self._radio(board.name, gain_db, board.radio, board.name, ())

    def channel(self, index: int, at_s: float = 0.0) -> np.ndarray:
        """From a node to every antenna where they are now, shape [num_antennas]."""
        return self.ether.world.channel(self.bench.node_names[index], self.home_m, at_s)

    def _radio(
        self, name: str, gain_db: float, spec: PlutoSpec, node: str | None, antennas: tuple[int, ...]
    ) -> VirtualRadio:
        chip = Chip(Identity(f"emulated-{name}", two_channels=spec.channels == 2, triggered=True))
        radio = VirtualRadio(name, chip, self.ether, spec=spec, node=node, antennas=antennas)
        self.radios.append(radio)
        set_phy(radio, "altvoltage0", True, "frequency", LO_HZ)
        set_phy(radio, "altvoltage1", True, "frequency", LO_HZ)
        set_phy(radio, "voltage0", False, "sampling_frequency", RATE_HZ)
        for channel in range(spec.channels):
            set_phy(radio, f"voltage{channel}", False, "gain_control_mode", "manual")
            set_phy(radio, f"voltage{channel}", False, "hardwaregain", gain_db)
            set_phy(radio, f"voltage{channel}", True, "hardwaregain", 0)
        return radio


@contextmanager
def air(mode: Mode = "virtual", *, seed: int = 3, **changes: Any) -> Iterator[Air]:
    """The air of the small bench; keys of the bench file may be replaced."""
    timebase = Timebase(mode)
    made = Air(small_bench(**changes), timebase, seed)
    try:
        yield made
    finally:
        for radio in made.radios:
            radio.close()
        timebase.close()


def set_phy(radio: VirtualRadio, channel: str, output: bool, attribute: str, value: object) -> None:
    """Write an attribute of the transceiver."""
    radio.chip.write("ad9361-phy", channel, output, attribute, value=str(value))


def arm(radio: VirtualRadio, *, delay: int = 0, output: int = 1, external: bool = True) -> None:
    """Let transfers of this radio wait for the trigger; output 1 is the receive transfer, 2 the transmit transfer."""
    device = "iio-axi-tdd-0"
    radio.chip.write(device, None, None, "enable", value="0")
    radio.chip.write(device, None, None, "burst_count", value="1")
    radio.chip.write(device, None, None, "sync_external", value=str(int(external)))
    radio.chip.write(device, f"channel{output}", True, "on_raw", value=str(delay))
    radio.chip.write(device, f"channel{output}", True, "enable", value="1")
    radio.chip.write(device, None, None, "enable", value="1")


def pulse(made: Air, at_s: float) -> None:
    """The external trigger's line pulses."""
    with made.timebase.lock:
        now_s = made.timebase.advance(at_s)
        for radio in made.radios:
            radio.trigger(now_s, external=True)


def tone(num_samples: int, cycles: int, amplitude: float = 0.5) -> np.ndarray:
    """A complex tone as codes, shape [num_samples, 2], int16; its power is amplitude^2 of full scale."""
    wave = 32_768 * amplitude * np.exp(2j * np.pi * cycles / num_samples * np.arange(num_samples))
    return np.rint(np.stack([wave.real, wave.imag], axis=1)).astype("<i2")


def steady(amplitude: float = 0.5, num_samples: int = 64) -> np.ndarray:
    """A carrier, shape [num_samples, 2], int16."""
    return tone(num_samples, 0, amplitude)


def complex_codes(block: memoryview, num_channels: int = 1) -> np.ndarray:
    """A block as complex codes, shape [num_channels, num_samples]."""
    branches = np.frombuffer(block, "<i2").astype(np.float64).reshape(-1, num_channels, 2)
    return (branches[..., 0] + 1j * branches[..., 1]).T
