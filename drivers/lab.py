"""Opens a real bench: the controller's radios and stages here, a board's radio and meter in its own process.

The emulated backend opens its devices by the same functions; it brings another clock, trigger and addresses.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from drivers.clock import NodeClock, WallClock
from drivers.dead_man import DeadMan, HeldStage
from drivers.emergency import stop_bench
from drivers.grbl import GrblStage
from drivers.grbl_line import RESET
from drivers.leases import Grant, Lease, Leases, bench_resources, radio
from drivers.liveness import died
from drivers.node_processes import NodeProcesses
from drivers.pluto_array import PlutoArray
from drivers.pluto_port import PlutoPort
from drivers.pluto_radio import PlutoTransmitter
from drivers.pluto_scale import PLUTO_FULL_SCALE_DBM
from drivers.power_meter import BoardMeter
from drivers.rail import Rail
from drivers.transport import LiveWire, Wire
from drivers.trigger import SerialTriggerLine, TriggerLine
from drivers.wire import RecordingWire
from drivers.zaber import ZaberStage
from drivers.zmq_link import ZmqLink
from testbed.core.bench import BenchSpec, NodeSpec
from testbed.core.devices import Clock, Devices, Meter
from testbed.core.errors import BenchError, ConfigError
from testbed.core.hardware import PlutoSpec
from testbed.core.node_devices import NodeDevices
from testbed.phy.coherence import claimed_flags

NETWORK_START_S = 1.0
"""From an order to its burst where a message on the network starts it: the board needs time to compute the burst."""
_EVICTION_S = 15.0
"""Longest wait for a run whose bench is taken away: it ends node processes, which may be loading a model."""
_GLANCE_S = 0.05
_UNPROVEN = (
    "drivers native, pyadi, grbl and zaber have met emulators and simulated devices only: stay near the stop button"
)


@dataclass(frozen=True)
class Surroundings:
    """What a backend brings to the drivers.

    Attributes:
        clock: the run's.
        flags: what the radios claim.
        trigger: starts captures and bursts where `radio.trigger` is "clock".
        wire: where connections come from.
        full_scale_dbm: of a node's radio that does not say itself.
    """

    clock: Clock
    flags: Mapping[str, bool]
    trigger: TriggerLine | None
    wire: Wire
    full_scale_dbm: Callable[[NodeSpec], float] = field(default=lambda _: PLUTO_FULL_SCALE_DBM)


@dataclass(frozen=True)
class Controlled:
    """The controller's own devices, at home and mute."""

    radio: PlutoArray
    stages: tuple[GrblStage | ZaberStage | None, ...]
    serials: Mapping[str, str]
    firmware: Mapping[str, str]
    stop: Callable[[], None]
    """Mutes the radios and stops the stages; never fails."""


def open_bench(
    bench: BenchSpec,
    *,
    seed: int,
    folder: Path,
    node_processes: int | None = None,
    record_wire: Path | None = None,
    steal_leases: bool = False,
) -> Devices:
    """Lease the bench, open radios, stages and link, and home the stages that need it.

    Args:
        bench: the bench; every radio has a uri and every stage a port.
        seed: of no effect on real devices.
        folder: gets the logs of node processes.
        node_processes: boards that run on this machine are started in so many processes; by default none is, and the
            boards come by themselves.
        record_wire: folder that gets every byte between drivers and devices.
        steal_leases: take the bench from whoever holds it.

    Returns:
        the controller's devices.

    Raises:
        ConfigError: an address is absent, or what answers does not fit the bench file.
        DeviceError: somebody holds a device, or a device does not answer or is another one.
        LinkTimeout: a node process did not connect.
    """
    check_complete(bench)
    with contextlib.ExitStack() as opened:
        leases = Leases()
        before = leases.known() if steal_leases else ()
        lease = leases.acquire(bench_resources(bench), bench=bench.name, purpose=f"run in {folder}", steal=steal_leases)
        opened.callback(lease.close)
        if steal_leases:
            _evict(bench, before)
        clock = WallClock()
        trigger = None
        if bench.radio.trigger == "clock" and bench.radio.trigger_line is not None:
            trigger = SerialTriggerLine(bench.radio.trigger_line, clock=clock)
            opened.callback(trigger.close)
        wire = wire_of(record_wire, "controller")
        controlled = open_controlled(bench, opened, Surroundings(clock, claimed_flags(bench), trigger, wire), lease)
        nodes = NodeProcesses(folder)
        opened.callback(nodes.stop)
        link = ZmqLink(bench.link.listen)
        opened.callback(link.close)
        if node_processes:
            nodes.start(bench.node_names, link.address, node_processes)
            nodes.wait_for(bench.node_names, link, timeout_s=bench.link.connect_timeout_s)
        opened.callback(controlled.stop)  # nothing moves on while node processes take their time to end
        clock.set(0.0)
        network = bench.radio.trigger == "network"
        return Devices(
            radio=controlled.radio,
            stages=controlled.stages,
            link=link,
            clock=clock,
            node_devices={"lease": lease.grant.token, "record_wire": None if record_wire is None else str(record_wire)},
            close=opened.pop_all().close,
            serials=controlled.serials,
            firmware=controlled.firmware,
            start_delay_s=NETWORK_START_S if network else 1e-3,
            shares_time=network,
            notes=(_UNPROVEN,),
        )


def open_node(bench: BenchSpec, node: str, devices: Mapping[str, Any]) -> NodeDevices:
    """Open one board's radio and meter.

    Args:
        bench: the bench, or the board's own.
        node: its name.
        devices: `lease`, the controller's grant; `record_wire`, a folder or None.

    Returns:
        the node's devices.

    Raises:
        ConfigError: the bench has no such node, or its radio no uri.
        DeviceError: somebody holds the radio, or it does not answer or is another one.
    """
    board = board_of(bench, node)
    with contextlib.ExitStack() as opened:
        uri = _uri(board.radio, f"nodes ({node}): radio.uri")
        leases = Leases()
        # where the controller's lease reaches this machine the radio is in it already
        known = any(grant.token == devices.get("lease") for grant in leases.held())
        lease = leases.acquire([] if known else [radio(uri)], bench=bench.name, purpose=node)
        opened.callback(lease.close)
        clock = NodeClock()
        recorded = devices.get("record_wire")
        wire = wire_of(Path(recorded) if isinstance(recorded, str) else None, node)
        meter = BoardMeter(board)
        opened.callback(meter.close)
        around = Surroundings(WallClock(), claimed_flags(bench), None, wire)
        return open_transmitter(bench, board, opened, around, lease, meter=meter, clock=clock)


def open_controlled(bench: BenchSpec, opened: contextlib.ExitStack, around: Surroundings, lease: Lease) -> Controlled:
    """Open the receiver and the stages, watched by a dead man; the stages end at home.

    Args:
        bench: with a uri for every radio and a port for every stage.
        opened: closes everything again, stages held and radios mute first.
        around: what the backend brings.
        lease: says where the dead man can be told to stop.

    Returns:
        the devices.

    Raises:
        ConfigError, DeviceError, StageFault: see the drivers.
    """
    specs = bench.array.radios
    ports: list[PlutoPort] = []
    for spec in specs:
        ports.append(open_port(spec, around.wire))
        opened.callback(ports[-1].close)
    array = PlutoArray(bench, ports, flags=around.flags, clock=around.clock, trigger=around.trigger)
    opened.callback(array.close)
    stages = _stages(bench, around)
    for stage in stages:
        if stage is not None:
            opened.callback(stage.close)
            stage.connect()

    def stop() -> None:
        halts = [port.silence for port in ports] + [stage.stop for stage in stages if stage is not None]
        for halt in halts:
            # what cannot be reached keeps nothing else from being stopped
            with contextlib.suppress(BenchError):
                halt()

    radios = [port.facts.uri for port in ports]
    dead_man = DeadMan(radios, _held(stages, homing=True), bench.limits.dead_man_s, stop=stop)
    opened.callback(dead_man.close)
    opened.callback(stop)
    # whatever a device says when it is stopped from outside, the run ends with the reason
    opened.callback(lease.check)
    opened.callback(dead_man.check)
    lease.guard(dead_man.socket_path, stop)
    around.clock.concurrently([stage.make_ready for stage in stages if stage is not None])
    for held in _held(stages, homing=False):
        dead_man.order(held.name, held.order)
    serials = {f"receiver-{index}": port.facts.serial for index, port in enumerate(ports)}
    firmware = {f"receiver-{index}": port.facts.firmware for index, port in enumerate(ports)}
    return Controlled(array, stages, serials, firmware, stop)


def open_transmitter(
    bench: BenchSpec,
    board: NodeSpec,
    opened: contextlib.ExitStack,
    around: Surroundings,
    lease: Lease,
    *,
    meter: Meter,
    clock: NodeClock,
) -> NodeDevices:
    """Open a board's radio, watched by a dead man.

    Args:
        bench: the bench.
        board: the node, its radio with a uri.
        opened: closes everything again, the radio mute first.
        around: what the backend brings.
        lease: says where the dead man can be told to stop.
        meter: the board's.
        clock: follows the controller's.

    Returns:
        the node's devices.

    Raises:
        ConfigError, DeviceError: see the drivers.
    """
    port = open_port(board.radio, around.wire)
    opened.callback(port.close)
    transmitter = PlutoTransmitter(
        bench, board.name, port, flags=around.flags, clock=clock, full_scale_dbm=around.full_scale_dbm(board)
    )
    opened.callback(transmitter.close)
    dead_man = DeadMan([port.facts.uri], [], bench.limits.dead_man_s, stop=transmitter.mute)
    opened.callback(dead_man.close)
    lease.guard(dead_man.socket_path, transmitter.mute)
    opened.callback(transmitter.mute)
    return NodeDevices(
        transmitter,
        meter,
        close=opened.pop_all().close,
        serial=port.facts.serial,
        firmware=port.facts.firmware,
        clock=clock,
    )


def open_port(spec: PlutoSpec, wire: Wire) -> PlutoPort:
    """One AD936x by the driver that its bench file names; nothing of it is set.

    Raises:
        ConfigError: pyadi-iio or libiio are missing.
        DeviceError: it does not answer or is another one.
    """
    uri = _uri(spec, "radio.uri")
    if spec.driver == "pyadi":
        from drivers.pluto import AdiPort

        return AdiPort(uri, serial=spec.serial)
    from drivers.pluto_native import NativePort

    return NativePort(uri, serial=spec.serial, wire=wire)


def wire_of(folder: Path | None, owner: str) -> Wire:
    """The wire of a process: live, and recorded where there is a folder."""
    return LiveWire() if folder is None else RecordingWire(folder / owner)


def board_of(bench: BenchSpec, node: str) -> NodeSpec:
    """The board of that name. Raises ConfigError if the bench has none."""
    board = next((board for board in bench.boards if board.name == node), None)
    if board is None:
        raise ConfigError(f"the bench has no node {node!r}", key="nodes", remedy="name the node as the bench file does")
    return board


def check_complete(bench: BenchSpec) -> None:
    """Refuse a bench file that does not say how its devices are reached.

    Raises:
        ConfigError: names the key.
    """
    remedy = "docs/hardware.md tells how a bench file names its devices; `testbed presets` lists an example, desk"
    if not bench.array.radios:
        raise ConfigError("the bench file names no radio behind its antennas", key="array.radios", remedy=remedy)
    missing = [f"array.radios.{index}.uri" for index, spec in enumerate(bench.array.radios) if spec.uri is None]
    missing += [
        f"array.antennas.{index}.stage.device.port"
        for index, antenna in enumerate(bench.array.antennas)
        if antenna.stage is not None and antenna.stage.device.port is None
    ]
    if missing:
        raise ConfigError("the bench file does not say how a device is reached", key=", ".join(missing), remedy=remedy)


def _evict(bench: BenchSpec, before: Sequence[Grant]) -> None:
    """Stop the bench past the runs that had it, end those of this machine, and wait until their ports are free."""
    stop_bench(bench, known=before)
    ours = bench_resources(bench)
    owners = [
        grant
        for grant in before
        if grant.is_here and any(each.conflicts(one) for each in grant.resources for one in ours)
    ]
    for grant in owners:
        # another user's run ends by itself when it next uses the bench
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not died(grant.pid, grant.started):
                os.kill(grant.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + _EVICTION_S
    while any(not died(grant.pid, grant.started) for grant in owners) and time.monotonic() < deadline_s:
        time.sleep(_GLANCE_S)


def _uri(spec: PlutoSpec, key: str) -> str:
    if spec.uri is None:
        raise ConfigError(
            "the bench file does not say where this radio is", key=key, remedy="give ip:HOST or ip:HOST:PORT"
        )
    return spec.uri


def _stages(bench: BenchSpec, around: Surroundings) -> tuple[GrblStage | ZaberStage | None, ...]:
    """A driver for each stage, not yet connected; carriages of one rail know each other."""
    rails: dict[str, Rail] = {}
    stages: list[GrblStage | ZaberStage | None] = []
    for index, antenna in enumerate(bench.array.antennas):
        spec = antenna.stage
        if spec is None:
            stages.append(None)
            continue
        name = spec.device.rail
        if name is not None and name not in rails:
            rails[name] = Rail(name, min_spacing_m=bench.array.min_spacing_m, clock=around.clock)
        build: Callable[..., GrblStage | ZaberStage] = GrblStage
        if spec.device.driver == "zaber":
            build = partial(ZaberStage, microstep_m=spec.device.microstep_m)
        stages.append(
            build(
                spec,
                region_m=bench.array.region_m,
                home_m=antenna.home_m,
                clock=around.clock,
                wire=around.wire,
                rail=None if name is None else rails[name],
                name=f"stage-{index}",
            )
        )
    return tuple(stages)


def _held(stages: Sequence[GrblStage | ZaberStage | None], *, homing: bool) -> list[HeldStage]:
    """What a dead man needs of connected stages; a GRBL controller that homes hears nothing but a reset."""
    return [
        HeldStage(
            stage.name,
            stage.transport.fileno(),
            RESET if homing and isinstance(stage, GrblStage) else stage.hold_command,
        )
        for stage in stages
        if stage is not None and stage.transport is not None
    ]
