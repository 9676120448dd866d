"""A bench of emulators in this process, and the devices that `drivers.lab` opens against them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from drivers.clock import NodeClock, WallClock
from drivers.lab import Controlled, Surroundings, open_controlled, open_transmitter
from drivers.leases import Lease, Leases
from drivers.transport import LiveWire, Wire
from drivers.trigger import TriggerLine
from sim_backend.control_client import ControlClient
from sim_backend.emulated import addressed
from sim_backend.emulated_clock import EmulatedClock, EmulatedTrigger
from sim_backend.emulators.host import Emulators
from sim_backend.meter import SimMeter
from testbed.core.bench import BenchSpec
from testbed.core.devices import Clock
from testbed.core.node_devices import NodeDevices
from testbed.phy.coherence import radio_flags
from tests.benches import small_bench

Time = Literal["virtual", "real"]
Port = Literal["pty", "url"]

FULL_SCALE_DBM = 23.0
"""Of an emulated node's radio: the headroom above its 10 dBm."""
_PATIENT_S = 10.0
"""The dead man's timeout where none is tested: emulators, drivers and tests share this machine's cores."""


def desk_bench(
    *,
    drivers: tuple[str, ...] = ("native",),
    receivers: tuple[int, ...] = (1,),
    stages: int = 0,
    num_nodes: int = 1,
    node: dict[str, Any] | None = None,
    gain_db: float = 25.0,
    **changes: Any,
) -> BenchSpec:
    """A small bench, for emulators.

    Args:
        drivers: of receivers and of nodes, by turns.
        receivers: channels of each receiver, one antenna each.
        stages: so many antennas, from the first on, can move; they travel 6 cm.
        num_nodes: boards.
        node: further keys of every board.
        gain_db: of the receivers.
        changes: further keys of the bench file.
    """
    stage = {"speed_m_s": 0.1, "acceleration_m_s2": 1.0, "settle_s": 0.05, "travel_m": [[0.0, 0.06], [0.0, 0.06]]}
    node = node or {}
    antennas: list[dict[str, Any]] = []
    for index in range(sum(receivers)):
        place = {**stage, "origin_m": [0.1 * index, 0.0]}
        moves = {"stage": place} if index < stages else {}
        antennas.append({"home_m": [0.1 * index + 0.03, 0.03], **moves})
    content: dict[str, Any] = {
        "array": {
            "origin_m": [0.0, 4.0, 1.0],
            "region_m": [[0.0, 0.1 * sum(receivers)], [0.0, 0.06]],
            "min_spacing_m": 0.03,
            "antennas": antennas,
            "radios": [
                {"channels": channels, "gain_db": gain_db, "driver": driver}
                for channels, driver in zip(receivers, cycle(drivers), strict=False)
            ],
        },
        "nodes": [
            {"name": f"node-{index:02d}", **node, "radio": {**node.get("radio", {}), "driver": driver}}
            for index, driver in zip(range(num_nodes), cycle(drivers), strict=False)
        ],
        "limits": {"dead_man_s": _PATIENT_S},
        **changes,
    }
    return small_bench(**content)


class _WallTrigger:
    """The external trigger's line where time is real."""

    def __init__(self, control: ControlClient, clock: Clock) -> None:
        self._control, self._clock = control, clock

    def pulse(self, at_s: float) -> None:
        self._clock.wait_until(at_s)
        self._control.ask("pulse", at_s=0.0)

    def close(self) -> None:
        pass


class Desk:
    """Emulators of a bench, and what the drivers open there; a context manager.

    Args:
        bench: without addresses.
        folder: gets the leases.
        time: of the emulators.
        port: how stages are reached.
        wire: between drivers and emulators.
    """

    def __init__(
        self, bench: BenchSpec, folder: Path, *, time: Time = "virtual", port: Port = "url", wire: Wire | None = None
    ) -> None:
        self._opened = ExitStack()
        with ExitStack() as opened:
            self.emulators = opened.enter_context(Emulators(bench, seed=1, mode=time))
            self.control = ControlClient(self.emulators.control)
            opened.callback(self.control.close)
            self.bench = reached(bench, self.emulators.addresses, port)
            self.clock: Clock
            self.trigger: TriggerLine
            if time == "virtual":
                self.clock = emulated = EmulatedClock(self.control)
                opened.callback(emulated.close)
                self.trigger = EmulatedTrigger(self.control, emulated)
            else:
                self.clock = WallClock()
                self.trigger = _WallTrigger(self.control, self.clock)
            self.lease: Lease = Leases(folder).acquire([], bench=bench.name, purpose="test")
            opened.callback(self.lease.close)
            self._wire: Wire = LiveWire() if wire is None else wire
            self._opened = opened.pop_all()

    def __enter__(self) -> Desk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def controlled(self) -> Controlled:
        """The controller's devices."""
        trigger = self.trigger if self.bench.radio.trigger == "clock" else None
        return open_controlled(self.bench, self._opened, self._around(trigger), self.lease)

    def node(self, index: int = 0) -> NodeDevices:
        """A board's devices; its clock shows the run's time."""
        board, clock = self.bench.boards[index], NodeClock()
        clock.follow(self.clock.now_s() - clock.own_s())
        node = open_transmitter(
            self.bench, board, self._opened, self._around(None), self.lease, meter=SimMeter(board), clock=clock
        )
        self._opened.callback(node.close)
        return node

    def soon_s(self) -> float:
        """An instant that has not passed, with time enough to get ready where time is real."""
        return self.clock.now_s() + (1e-3 if isinstance(self.clock, EmulatedClock) else 0.2)

    def radios(self) -> dict[str, dict[str, Any]]:
        """What the emulated radios do now, by name."""
        return dict(self.emulators.state()["radios"])

    def check_mute(self) -> None:
        """No radio has a buffer, radiates or could."""
        for name, radio in self.radios().items():
            found = (radio["buffers"], radio["transmitting"], radio["radiated_dbm"], radio["tx_gain_db"])
            assert found == (0, False, None, -89.75), f"{name} was left with {radio}"

    def _around(self, trigger: TriggerLine | None) -> Surroundings:
        return Surroundings(self.clock, radio_flags(self.bench), trigger, self._wire, lambda _: FULL_SCALE_DBM)


def reached(bench: BenchSpec, places: dict[str, Any], port: Port = "url") -> BenchSpec:
    """The bench with everything's address, as a bench file of real devices has it.

    Args:
        bench: without addresses.
        places: as `Emulators.addresses` lists them.
        port: how stages are reached.
    """
    content = addressed(bench, places).model_dump()
    for index, antenna in enumerate(content["array"]["antennas"]):
        if antenna["stage"] is not None:
            antenna["stage"]["device"]["port"] = places["stages"][f"stage-{index}"][port]
    content["nodes"] = [
        {**board.model_dump(), "radio": {**board.radio.model_dump(), "uri": places["radios"][board.name]}}
        for board in bench.boards
    ]
    return BenchSpec.model_validate(content)


def bench_file(bench: BenchSpec) -> str:
    """The bench as TOML."""
    content = bench.model_dump(mode="json", exclude_none=True)
    return "".join(f"{key} = {_toml(value)}\n" for key, value in content.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
