"""A whole emulated bench: a virtual PlutoSDR for every radio, a GRBL controller for every stage, one world and time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sim_backend.emulators.chip import Chip, Identity
from sim_backend.emulators.control import ControlServer
from sim_backend.emulators.ether import Ether
from sim_backend.emulators.faults import FaultPlan
from sim_backend.emulators.iiod import IiodServer
from sim_backend.emulators.radio import VirtualRadio
from sim_backend.emulators.stages import VirtualStage
from sim_backend.emulators.timebase import Mode, Timebase
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.hardware import PlutoSpec

_PLAIN_HZ = (325e6, 3.8e9)
_GLANCE_S = 0.2


class Emulators:
    """The bench, emulated in this process until it is closed; a context manager.

    Args:
        bench: the bench.
        seed: of the world, the radios and the stages.
        mode: "virtual" time stands still until it is advanced; "real" time passes.
        speed: of real time, seconds in a second.
        start_s: when the bench is switched on, in the time of the world.
        host: where to listen.
        control_port: TCP port of the control port; 0 takes any free one.
        first_port: TCP port of the first radio, the others follow; 0 takes any free ones.
        links: folder that gets a link to each stage's serial port.

    Raises:
        ConfigError: the bench cannot be emulated, or a radio's port is in use.
        DeviceError: the control port is in use.
    """

    def __init__(
        self,
        bench: BenchSpec,
        *,
        seed: int = 0,
        mode: Mode = "virtual",
        speed: float = 1.0,
        start_s: float = 0.0,
        host: str = "127.0.0.1",
        control_port: int = 0,
        first_port: int = 0,
        links: Path | None = None,
    ) -> None:
        self.timebase = Timebase(mode, speed=speed, start_s=start_s)
        """The one time."""
        self.ended = threading.Event()
        """Set when somebody asked for the end."""
        self._bench, self._seed, self._closing = bench, seed, False
        with contextlib.ExitStack() as opened:
            opened.callback(self.timebase.close)
            self.stages = self._open_stages(opened, seed, host, links)
            """By antenna."""
            self.ether = Ether(bench, seed, self.timebase, self._positions_m, moving=self._moving)
            """The air."""
            self.timebase.add(self.ether)
            self.radios: dict[str, VirtualRadio] = {}
            """By name."""
            self.servers: dict[str, IiodServer] = {}
            """By the name of the radio."""
            for name, spec, node, antennas in _radios(bench):
                port = first_port + len(self.radios) if first_port else 0
                self._open_radio(opened, name, spec, node, antennas, (host, port))
            self._control = ControlServer(self, host=host, port=control_port)
            opened.callback(self._control.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> Emulators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def control(self) -> str:
        """HOST:PORT of the control port."""
        return self._control.address

    @property
    def addresses(self) -> dict[str, Any]:
        """Where everything answers: {"control", "radios": {name: uri}, "stages": {name: {"pty", "url"}}}."""
        return {
            "control": self.control,
            "radios": {name: server.uri for name, server in self.servers.items()},
            "stages": {stage.name: stage.addresses for stage in self.stages.values()},
        }

    def now(self) -> float:
        """Emulated seconds."""
        return self.timebase.now_s()

    def advance(self, to_s: float) -> float:
        """Return at that time, or when the emulators close; now, seconds."""
        return self.timebase.advance(to_s, lambda: self._closing)

    def pulse(self, at_s: float) -> float:
        """Pulse the external trigger of all radios at that time, or now if it has passed; the instant, seconds."""
        if self.timebase.mode == "real":
            self.advance(at_s)
        with self.timebase.lock:
            now_s = self.timebase.advance(at_s)
            for radio in self.radios.values():
                radio.trigger(now_s, external=True)
            return now_s

    def state(self) -> dict[str, Any]:
        """All that is true now, see `sim_backend.emulators.control`."""
        with self.timebase.lock:
            now_s = self.timebase.settle()
            radios = {name: {"uri": self.servers[name].uri, **radio.state()} for name, radio in self.radios.items()}
            stages = {stage.name: stage.state() for stage in self.stages.values()}
            return {"now_s": now_s, "mode": self.timebase.mode, "radios": radios, "stages": stages}

    def fault(self, device: str, kind: str, **parameters: Any) -> None:
        """Order a fault, see `sim_backend.emulators.faults.FaultPlan.add`.

        Raises:
            ConfigError: there is no such device, or it has no such fault.
        """
        plans = self._plans
        if device not in plans:
            raise ConfigError(
                f"there is no device {device!r}", key="device", remedy=f"choose one of: {', '.join(plans)}"
            )
        plans[device].add(kind, **parameters)

    def faults(self) -> list[dict[str, Any]]:
        """Faults that have yet to strike."""
        return [{"device": device, **fault} for device, plan in self._plans.items() for fault in plan.pending()]

    def clear(self) -> None:
        """No fault strikes any more."""
        for plan in self._plans.values():
            plan.clear()

    def end(self) -> None:
        """Let `serve` end."""
        self.ended.set()

    def close(self) -> None:
        """Close every port; may be repeated."""
        self._closing = True
        self._opened.close()

    @property
    def _plans(self) -> dict[str, FaultPlan]:
        stages = {stage.name: stage.faults for stage in self.stages.values()}
        return {**{name: radio.faults for name, radio in self.radios.items()}, **stages}

    def _open_stages(
        self, opened: contextlib.ExitStack, seed: int, host: str, links: Path | None
    ) -> dict[int, VirtualStage]:
        stages: dict[int, VirtualStage] = {}
        for index, antenna in enumerate(self._bench.array.antennas):
            if antenna.stage is not None:
                stage = VirtualStage(
                    index,
                    antenna.stage,
                    region_m=self._bench.array.region_m,
                    timebase=self.timebase,
                    seed=seed,
                    host=host,
                    links=links,
                    truth=self._bench.world.stages,
                )
                opened.callback(stage.close)
                stages[index] = stage
        return stages

    def _open_radio(
        self,
        opened: contextlib.ExitStack,
        name: str,
        spec: PlutoSpec,
        node: str | None,
        antennas: tuple[int, ...],
        place: tuple[str, int],
    ) -> None:
        if name in self.radios:
            raise ConfigError(
                f"two radios are called {name!r}", key="nodes", remedy="rename the node; receivers are receiver-0, ..."
            )
        chip = Chip(_identity(name, spec, self._bench.carrier_hz, self._seed))
        radio = self.radios[name] = VirtualRadio(name, chip, self.ether, spec=spec, node=node, antennas=antennas)
        server = self.servers[name] = IiodServer(radio, host=place[0], port=place[1], faults=radio.faults)
        opened.callback(server.close)
        # before the server: its clients may wait for samples
        opened.callback(radio.close)

    def _positions_m(self) -> np.ndarray:
        """Where the antennas really are, array frame, shape [num_antennas, 2]."""
        antennas = enumerate(self._bench.array.antennas)
        return np.array([self.stages[index].array_m if index in self.stages else antenna.home_m
                         for index, antenna in antennas], dtype=np.float64)  # fmt: skip

    def _moving(self) -> bool:
        return any(stage.moving for stage in self.stages.values())


def serve(
    bench: BenchSpec,
    *,
    seed: int = 0,
    mode: Mode = "virtual",
    speed: float = 1.0,
    start_s: float = 0.0,
    host: str = "127.0.0.1",
    control_port: int = 0,
    first_port: int = 0,
    links: Path | None = None,
    on_ready: Callable[[dict[str, Any]], None],
    end_with_parent: bool = False,
) -> None:
    """Emulate a bench until SIGTERM, SIGINT or the control port ends it; for the main thread of a process.

    Args:
        bench: the bench.
        seed: see `Emulators`.
        mode: see `Emulators`.
        speed: see `Emulators`.
        start_s: see `Emulators`.
        host: see `Emulators`.
        control_port: see `Emulators`.
        first_port: see `Emulators`.
        links: see `Emulators`.
        on_ready: gets `Emulators.addresses` when all of them answer.
        end_with_parent: the end of standard input ends it too.

    Raises:
        ConfigError: see `Emulators`.
        DeviceError: see `Emulators`.
    """
    with (
        Emulators(
            bench,
            seed=seed,
            mode=mode,
            speed=speed,
            start_s=start_s,
            host=host,
            control_port=control_port,
            first_port=first_port,
            links=links,
        ) as emulators,
        _signals(emulators.end),
    ):
        if end_with_parent:
            threading.Thread(target=_wait_for_end_of_input, args=(emulators.end,), name="parent", daemon=True).start()
        on_ready(emulators.addresses)
        while not emulators.ended.wait(_GLANCE_S):
            pass  # a signal is only noticed between two waits


@contextlib.contextmanager
def _signals(end: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and SIGINT end it."""
    before = {number: signal.signal(number, lambda *_: end()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_end_of_input(end: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    end()


def _radios(bench: BenchSpec) -> Iterator[tuple[str, PlutoSpec, str | None, tuple[int, ...]]]:
    """Name, levels, node and antennas of every radio: the receivers in the order of their antennas, then the nodes."""
    specs = bench.array.radios or tuple(PlutoSpec() for _ in bench.array.antennas)
    first = 0
    for index, spec in enumerate(specs):
        yield f"receiver-{index}", spec, None, tuple(range(first, first + spec.channels))
        first += spec.channels
    for board in bench.boards:
        yield board.name, board.radio, board.name, ()


def _identity(name: str, spec: PlutoSpec, carrier_hz: float, seed: int) -> Identity:
    """A radio that reaches the bench's carrier, with the trigger in its image; each world has radios of its own."""
    lowest_hz, highest_hz = _PLAIN_HZ
    plain = lowest_hz <= carrier_hz <= highest_hz and spec.channels == 1
    return Identity(
        serial=spec.serial or (f"emulated-{name}-{seed}" if seed else f"emulated-{name}"),
        two_channels=spec.channels == 2,
        triggered=True,
        transceiver="ad9363a" if plain else "ad9361" if spec.channels == 2 else "ad9364",
    )
