"""Opens the simulated bench: the controller's devices here, a node's devices in its own process."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drivers.node_processes import NodeProcesses, num_processes
from drivers.zmq_link import ZmqLink
from sim_backend.air import AirHub, AirPort
from sim_backend.capabilities import check_level
from sim_backend.clock import VirtualClock
from sim_backend.mechanics import check_still
from sim_backend.meter import SimMeter
from sim_backend.radio import SimReceiver, SimTransmitter
from sim_backend.stage import SimStage
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.devices import Devices
from testbed.core.errors import ConfigError
from testbed.core.node_devices import NodeDevices


def open_bench(
    bench: BenchSpec,
    *,
    seed: int,
    folder: Path,
    node_processes: int | None = None,
    record_wire: Path | None = None,
    steal_leases: bool = False,
) -> Devices:
    """Open world, medium, receiver, stages, clock and link, and start the node processes.

    Args:
        bench: the bench.
        seed: of the world.
        folder: gets the logs of the node processes.
        node_processes: how many processes host the nodes; one for each core if None. With 0 none is started and the
            nodes come by themselves.
        record_wire: refused: there are no wires.
        steal_leases: of no effect: nobody else can use these devices.

    Returns:
        the controller's devices; where processes were started, every node is connected.

    Raises:
        ConfigError: an antenna's home is beyond the end stops of its stage, an impairment needs samples and the
            waveform has none, or stages shall ring or home.
        DeviceError: a node process ended early.
        LinkTimeout: a node did not connect.
    """
    check_level(bench)
    check_still(bench)
    if record_wire is not None:
        raise ConfigError(
            "the simulated backend has no wires to record", key="--record-wire", remedy="use --backend emulated or lab"
        )
    with contextlib.ExitStack() as opened:
        # closed in the opposite order, each whatever happens to the others
        clock = VirtualClock()
        hub = AirHub(bench.node_names, bench.waveform.elements_per_second(bench.sample_rate_hz))
        opened.callback(hub.close)
        nodes = NodeProcesses(folder)
        opened.callback(nodes.stop)
        link = ZmqLink(bench.link.listen)
        opened.callback(link.close)
        stages = _open_stages(bench, clock)
        world = World(bench, seed)
        radio = SimReceiver(bench, world=world, hub=hub, positions_m=lambda: _positions_m(bench, stages), seed=seed)
        opened.callback(radio.close)
        opened.callback(radio.mute)
        for stage in stages:
            if stage is not None:
                opened.callback(stage.close)
                opened.callback(stage.stop)
        processes = num_processes(len(bench.node_names)) if node_processes is None else node_processes
        if processes > 0:
            nodes.start(bench.node_names, link.address, processes)
            nodes.wait_for(bench.node_names, link, timeout_s=bench.link.connect_timeout_s)
        return Devices(
            radio=radio,
            stages=stages,
            link=link,
            clock=clock,
            node_devices={"air": hub.address, "seed": seed},
            close=opened.pop_all().close,
            serials={"receiver": f"simulated-{bench.name}-{seed}"},
        )


def open_node(bench: BenchSpec, node: str, devices: Mapping[str, Any]) -> NodeDevices:
    """Open one node's transmitter and meter.

    Args:
        bench: the bench.
        node: its name.
        devices: `air`, the address of the medium, and `seed`, of the transmit chain.

    Returns:
        the node's devices.

    Raises:
        ConfigError: the bench has no such node, the address or the seed is absent, or an impairment needs samples and
            the waveform has none.
    """
    board = next((board for board in bench.boards if board.name == node), None)
    if board is None:
        raise ConfigError(f"the bench has no node {node!r}", key="nodes", remedy="name the node as the bench file does")
    if not isinstance(devices.get("air"), str):
        raise ConfigError("the address of the simulated medium is absent", key="air")
    if not isinstance(devices.get("seed"), int):
        raise ConfigError("the seed of the simulated radios is absent", key="seed")
    radio = SimTransmitter(bench, node=node, port=AirPort(devices["air"]), seed=devices["seed"])
    serial = f"simulated-{bench.name}-{devices['seed']}-{node}"
    return NodeDevices(radio=radio, meter=SimMeter(board), close=radio.close, serial=serial)


def _open_stages(bench: BenchSpec, clock: VirtualClock) -> tuple[SimStage | None, ...]:
    return tuple(
        None
        if antenna.stage is None
        else SimStage(
            antenna.stage, region_m=bench.array.region_m, home_m=antenna.home_m, clock=clock, truth=bench.world.stages
        )
        for antenna in bench.array.antennas
    )


def _positions_m(bench: BenchSpec, stages: Sequence[SimStage | None]) -> np.ndarray:
    """Where the antennas really are, array frame, shape [num_antennas, 2]."""
    return np.array(
        [
            antenna.home_m if stage is None else stage.array_m
            for stage, antenna in zip(stages, bench.array.antennas, strict=True)
        ],
        dtype=np.float64,
    )
