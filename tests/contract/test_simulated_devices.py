"""Every device of the simulated backend keeps its contract."""

from collections.abc import Iterator

import numpy as np
import pytest

from sim_backend.air import AirHub, AirPort
from sim_backend.clock import VirtualClock
from sim_backend.radio import SimReceiver, SimTransmitter
from sim_backend.stage import SimStage
from sim_backend.world import World
from testbed.core.devices import Clock, Link, Radio, Stage
from testbed.engine.checks import check_clock, check_receiver, check_stage, check_transmitter
from tests.benches import small_bench

BENCH = small_bench()
BAND = {"frequency_hz": BENCH.carrier_hz, "sample_rate_hz": BENCH.sample_rate_hz}


@pytest.fixture
def hub() -> Iterator[AirHub]:
    hub = AirHub(BENCH.node_names, BENCH.sample_rate_hz)
    yield hub
    hub.close()


def test_clock() -> None:
    clock = VirtualClock()
    assert isinstance(clock, Clock)
    check_clock(clock)


def test_stage() -> None:
    antenna = BENCH.array.antennas[0]
    assert antenna.stage is not None
    stage = SimStage(antenna.stage, region_m=BENCH.array.region_m, home_m=antenna.home_m, clock=VirtualClock())
    assert isinstance(stage, Stage)
    check_stage(stage, np.array([0.3, 0.2]), np.array([0.5, 0.2]))


def test_transmitter(hub: AirHub) -> None:
    radio = SimTransmitter(BENCH, node="node-00", port=AirPort(hub.address))
    assert isinstance(radio, Radio)
    check_transmitter(radio, at_s=0.5, **BAND)


def test_receiver(hub: AirHub) -> None:
    positions = np.array([antenna.home_m for antenna in BENCH.array.antennas])
    radio = SimReceiver(BENCH, world=World(BENCH, 1), hub=hub, positions_m=lambda: positions)
    assert isinstance(radio, Radio)
    check_receiver(radio, at_s=0.5, **BAND)


def test_the_link_is_one() -> None:
    from drivers.zmq_link import ZmqLink

    link = ZmqLink()
    assert isinstance(link, Link)
    link.close()
