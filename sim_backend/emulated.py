"""Opens an emulated bench: the drivers of real devices, against emulators in a process of their own.

Where a common trigger starts everything (`radio.trigger` is "clock"), the emulators' time stands still while anybody
computes, see `sim_backend.emulated_clock`, and the run takes the same emulated seconds on every machine. Where a
message on the network starts a burst, time is real, with the real jitter of this machine.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivers.clock import NodeClock, WallClock
from drivers.lab import NETWORK_START_S, Surroundings, board_of, open_controlled, open_transmitter, wire_of
from drivers.leases import Lease, Leases
from drivers.node_processes import NodeProcesses, num_processes
from drivers.pluto_scale import HEADROOM_DB
from drivers.power_meter import BoardMeter
from drivers.trigger import TriggerLine
from drivers.zmq_link import ZmqLink
from sim_backend.control_client import ControlClient
from sim_backend.emulated_clock import EmulatedClock, EmulatedTrigger
from sim_backend.meter import SimMeter
from testbed.core.bench import BenchSpec, NodeSpec
from testbed.core.devices import Clock, Devices, Meter
from testbed.core.errors import ConfigError, DeviceError
from testbed.core.hardware import PlutoSpec
from testbed.core.node_devices import NodeDevices
from testbed.phy.coherence import radio_flags

_START_S = 30.0
_BEFORE_S = -3600.0
"""Emulated time when the bench is switched on: homing is done when the run begins, at zero."""
_TAIL_BYTES = 2000


def open_bench(
    bench: BenchSpec,
    *,
    seed: int,
    folder: Path,
    node_processes: int | None = None,
    record_wire: Path | None = None,
    steal_leases: bool = False,
) -> Devices:
    """Start the emulators and the node processes, and open radios, stages and link by the real drivers.

    Args:
        bench: the bench; addresses of devices in it are replaced by those of the emulators.
        seed: of the world.
        folder: gets the logs of emulators and node processes, and `emulators.json`, where the emulators answer.
        node_processes: how many processes host the nodes; one for each core if None. With 0 none is started and the
            nodes come by themselves.
        record_wire: folder that gets every byte between drivers and devices.
        steal_leases: of no effect: nobody else can use these devices.

    Returns:
        the controller's devices; where processes were started, every node is connected.

    Raises:
        ConfigError: the bench does not fit real devices: the waveform has no samples, or a beacon is the trigger.
        DeviceError: the emulators or a node process ended early.
        LinkTimeout: a node did not connect.
    """
    virtual = bench.radio.trigger == "clock"
    with contextlib.ExitStack() as opened:
        emulators = EmulatorProcess(bench, seed=seed, folder=folder, virtual=virtual)
        opened.callback(emulators.close)
        there = addressed(bench, emulators.addresses)
        clock: Clock = WallClock()
        trigger: TriggerLine | None = None
        if virtual:
            control = ControlClient(emulators.addresses["control"])
            opened.callback(control.close)
            clock = emulated = EmulatedClock(control)
            opened.callback(emulated.close)
            trigger = EmulatedTrigger(control, emulated)
        lease = _lease(bench, f"emulated run in {folder}", opened)
        wire = wire_of(record_wire, "controller")
        controlled = open_controlled(there, opened, Surroundings(clock, radio_flags(bench), trigger, wire), lease)
        nodes = NodeProcesses(folder)
        opened.callback(nodes.stop)
        link = ZmqLink(bench.link.listen)
        opened.callback(link.close)
        processes = num_processes(len(bench.node_names)) if node_processes is None else node_processes
        if processes > 0:
            nodes.start(bench.node_names, link.address, processes)
            nodes.wait_for(bench.node_names, link, timeout_s=bench.link.connect_timeout_s)
        opened.callback(controlled.stop)  # nothing moves on while node processes take their time to end
        clock.set(0.0)
        return Devices(
            radio=controlled.radio,
            stages=controlled.stages,
            link=link,
            clock=clock,
            node_devices={
                "radios": {name: emulators.addresses["radios"][name] for name in bench.node_names},
                "record_wire": None if record_wire is None else str(record_wire),
            },
            close=opened.pop_all().close,
            serials=controlled.serials,
            firmware=controlled.firmware,
            start_delay_s=1e-3 if virtual else NETWORK_START_S,
            shares_time=not virtual,
        )


def open_node(bench: BenchSpec, node: str, devices: Mapping[str, Any]) -> NodeDevices:
    """Open one node's emulated radio by the real driver, and its meter.

    Args:
        bench: the bench.
        node: its name.
        devices: `radios`, node -> uri of its emulated radio; `record_wire`, a folder or None.

    Returns:
        the node's devices. Where energy is a model, seconds are those of the cost model too, as in `sim`.

    Raises:
        ConfigError: the bench has no such node, or no emulated radio is named for it.
        DeviceError: the emulated radio does not answer.
    """
    board = board_of(bench, node)
    radios = devices.get("radios")
    if not isinstance(radios, Mapping) or not isinstance(radios.get(node), str):
        raise ConfigError("the address of the emulated radio is absent", key=f"radios.{node}")
    board = board.model_copy(update={"radio": board.radio.model_copy(update={"uri": radios[node]})})
    with contextlib.ExitStack() as opened:
        meter: Meter = SimMeter(board)
        if board.meter.energy != "model":
            meter = real = BoardMeter(board)
            opened.callback(real.close)
        recorded = devices.get("record_wire")
        wire = wire_of(Path(recorded) if isinstance(recorded, str) else None, node)
        around = Surroundings(WallClock(), radio_flags(bench), None, wire, _full_scale_dbm)
        lease = _lease(bench, f"emulated {node}", opened)
        return open_transmitter(bench, board, opened, around, lease, meter=meter, clock=NodeClock())


def addressed(bench: BenchSpec, addresses: Mapping[str, Any]) -> BenchSpec:
    """The bench with the emulators' addresses in place of its own.

    Args:
        bench: the bench.
        addresses: as `sim_backend.emulators.host.Emulators.addresses`.

    Returns:
        a bench whose receivers, nodes and stages all have an address; serial numbers are kept where the file has them.
    """
    uris, stages = addresses["radios"], addresses["stages"]
    specs = bench.array.radios or tuple(PlutoSpec() for _ in bench.array.antennas)
    radios = [spec.model_copy(update={"uri": uris[f"receiver-{index}"]}) for index, spec in enumerate(specs)]
    antennas = []
    for index, antenna in enumerate(bench.array.antennas):
        if antenna.stage is not None:
            # pseudo-terminals keep no order between bytes and the control port, sockets do
            device = antenna.stage.device.model_copy(update={"driver": "grbl", "port": stages[f"stage-{index}"]["url"]})
            antenna = antenna.model_copy(update={"stage": antenna.stage.model_copy(update={"device": device})})
        antennas.append(antenna)
    array = bench.array.model_copy(update={"radios": tuple(radios), "antennas": tuple(antennas)})
    return bench.model_copy(update={"array": array})


class EmulatorProcess:
    """`testbed emulate` as a child that does not outlive this process.

    Args:
        bench: what is emulated.
        seed: of the world.
        folder: gets `emulators.log`, `emulators.json` and `emulated-bench.json`.
        virtual: time passes only where somebody waits.

    Raises:
        DeviceError: it did not start; with the end of its log.
    """

    def __init__(self, bench: BenchSpec, *, seed: int, folder: Path, virtual: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "emulators.log"
        file = folder / "emulated-bench.json"
        file.write_text(bench.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "sim_backend.emulators", str(file), "--seed", str(seed)]
        command += ["--time", "virtual", "--start", str(_BEFORE_S)] if virtual else ["--time", "real"]
        with self._log.open("ab") as log:
            # a session of its own: an interrupt at the keyboard reaches the controller alone, which then closes
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        try:
            self.addresses: Mapping[str, Any] = self._await_addresses()
            (folder / "emulators.json").write_text(json.dumps(self.addresses, indent=2) + "\n", encoding="utf-8")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it; may be repeated."""
        for end in (self._hang_up, self._process.terminate, self._process.kill):
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=3.0)
                break
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _hang_up(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _await_addresses(self) -> Mapping[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        impatience = threading.Timer(_START_S, self._process.kill)
        impatience.start()
        try:
            line = stdout.readline()
        finally:
            impatience.cancel()
        if not line:
            self._process.wait()
            text = self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
            raise DeviceError(f"the emulators did not start: {text}", remedy=f"the whole log is {self._log}")
        addresses: Mapping[str, Any] = json.loads(line)
        return addresses


def _lease(bench: BenchSpec, purpose: str, opened: contextlib.ExitStack) -> Lease:
    """Of nothing, since nobody else can use emulated devices; it tells the emergency stop where the dead man is."""
    lease = Leases().acquire([], bench=bench.name, purpose=purpose)
    opened.callback(lease.close)
    return lease


def _full_scale_dbm(board: NodeSpec) -> float:
    """An emulated radio without a figure of its own has the amplifier that its node's power needs."""
    return board.max_power_dbm + HEADROOM_DB
