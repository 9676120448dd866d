"""Every device of the simulated backend keeps its contract."""

from collections.abc import Iterator

import numpy as np
import pytest

from sim_backend.air import AirHub, AirPort
from sim_backend.clock import VirtualClock
from sim_backend.radio import SimReceiver, SimTransmitter
from sim_backend.stage import SimStage
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.devices import Clock, Link, Radio, Stage
from testbed.engine.checks import check_clock, check_radio, check_stage
from tests.benches import small_bench

TRANSMIT = {
    "oscillator_ppm": 1.0,
    "drift_ppm_s": 0.01,
    "phase_noise_deg": 1.0,
    "phase_jumps": "burst",
    "start_offset_s": 1e-7,
    "tx_iq_gain_db": 0.2,
    "tx_dc_db": -40.0,
    "dac_bits": 12,
    "pa_saturation_dbm": 20.0,
}
RECEIVE = {
    "rx_iq_phase_deg": 1.0,
    "rx_dc_dbm": -90.0,
    "adc_bits": 12,
    "agc": "block",
    "phase_flip_gain_db": 40.0,
    "stale_samples": 100,
    "dropped_buffers": 0.2,
    "buffer_samples": 128,
}
BENCH = small_bench()
BENCHES = {
    "ideal": BENCH,
    "impaired": small_bench(world={"impairments": {**TRANSMIT, **RECEIVE}}, radio={"start_jitter_s": 1e-7}),
    "selective": small_bench(world={"selective": True}),
    # a burst of alike symbols is a train of pulses, far beyond a converter's scale
    "symbols": small_bench(waveform={"level": "symbols"}, world={"impairments": {**TRANSMIT, "dac_bits": None}}),
}
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


@pytest.mark.parametrize("bench", BENCHES.values(), ids=BENCHES)
def test_transmitter(hub: AirHub, bench: BenchSpec) -> None:
    radio = SimTransmitter(bench, node="node-00", port=AirPort(hub.address))
    assert isinstance(radio, Radio)
    check_radio(radio, soon_s=lambda: 0.5, **BAND)


@pytest.mark.parametrize("bench", BENCHES.values(), ids=BENCHES)
def test_receiver(hub: AirHub, bench: BenchSpec) -> None:
    positions = np.array([antenna.home_m for antenna in bench.array.antennas])
    radio = SimReceiver(bench, world=World(bench, 1), hub=hub, positions_m=lambda: positions)
    assert isinstance(radio, Radio)
    check_radio(radio, soon_s=lambda: 0.5, **BAND)


def test_the_link_is_one() -> None:
    from drivers.zmq_link import ZmqLink

    link = ZmqLink()
    assert isinstance(link, Link)
    link.close()
