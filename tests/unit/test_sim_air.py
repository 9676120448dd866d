import subprocess
import sys
import threading

import numpy as np
import pytest
import zmq

from sim_backend.air import AirHub, AirPort
from sim_backend.radio import SimReceiver, SimTransmitter
from sim_backend.world import World
from testbed.core.bench import AntennaSpec, ArraySpec, BenchSpec, NodeSpec, RadioSpec, WaveformSpec
from testbed.core.devices import Radio
from testbed.core.errors import LimitError, RadioFault
from testbed.core.world_specs import WorldSpec
from testbed.phy import estimate, ofdm

RATE_HZ = 1e6
NODES = ("a", "b", "c")
POSITIONS_M = np.array([[0.0, 0.0], [0.1, 0.0], [0.1, 0.2]])
ARRAY = ArraySpec(
    origin_m=(5.0, 0.1, 1.5),
    region_m=((0.0, 0.5), (0.0, 0.5)),
    min_spacing_m=0.0,
    antennas=(AntennaSpec(home_m=(0.0, 0.0)),),
)


def bench_with(**world) -> BenchSpec:
    return BenchSpec(
        name="room",
        carrier_hz=2.44e9,
        sample_rate_hz=RATE_HZ,
        waveform=WaveformSpec(num_subcarriers=64, num_active=48, cyclic_prefix=16),
        radio=RadioSpec(full_duplex=True, timed_tx=False, phase_coherent=True),
        array=ARRAY,
        nodes=tuple(NodeSpec(name=name, max_power_dbm=10.0) for name in NODES),
        world=WorldSpec(**world),
    )


QUIET = bench_with(temperature_k=0.0)


def normals(seed: int, num_samples: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (0.05 * generator.standard_normal((num_samples, 2)) @ np.array([1, 1j])).astype(np.complex64)


@pytest.fixture
def hub():
    hub = AirHub(NODES, RATE_HZ)
    yield hub
    hub.close()


@pytest.fixture
def port(hub):
    port = AirPort(hub.address)
    yield port
    port.close()


def receiver(hub: AirHub, bench: BenchSpec = QUIET) -> SimReceiver:
    return SimReceiver(bench, world=World(bench, 1), hub=hub, positions_m=lambda: POSITIONS_M)


def test_radios_answer_to_the_protocol(hub, port):
    assert isinstance(receiver(hub), Radio)
    transmitter = SimTransmitter(QUIET, node="a", port=port)
    assert isinstance(transmitter, Radio)
    capabilities = transmitter.capabilities
    assert (capabilities.timed_tx, capabilities.full_duplex, capabilities.phase_coherent) == (False, True, True)
    assert capabilities.max_power_w == pytest.approx(0.01)
    assert receiver(hub).capabilities.num_antennas == 1


def test_overlapping_bursts_add_up_through_their_channels(hub, port):
    at_s, window = 2.0, 20_000
    starts = {"a": 0, "b": 8190, "c": -300}
    bursts = {"a": normals(1, 20_000), "b": normals(2, 5000), "c": normals(3, 9000)}
    radio, world = receiver(hub), World(QUIET, 1)
    radio.arm(window, at_s=at_s)
    expected = np.zeros((3, window), np.complex128)
    for node in ("c", "a", "b"):
        port.post(node, at_s + starts[node] / RATE_HZ, bursts[node])
        whole = np.zeros(40_000, np.complex128)
        whole[10_000 + starts[node] :][: len(bursts[node])] = bursts[node]
        expected += np.outer(world.channel(node, POSITIONS_M, at_s), whole[10_000:30_000])
    heard = radio.read()
    assert heard.dtype == np.complex64
    np.testing.assert_allclose(heard, expected, atol=1e-6 * np.abs(expected).max())


def test_noise_is_added_and_repeats_with_the_instant(hub, port):
    bench = bench_with()
    radio = receiver(hub, bench)
    captures = []
    for at_s in (1.0, 1.0, 2.0):
        radio.arm(5000, at_s=at_s)
        captures.append(radio.read())
    np.testing.assert_array_equal(captures[0], captures[1])
    np.testing.assert_array_equal(captures[0], World(bench, 1).noise((3, 5000), 1.0))
    assert not np.array_equal(captures[0], captures[2])


def test_doppler_turns_the_channel_within_a_long_burst(hub, port):
    bench = bench_with(temperature_k=0.0, num_paths=1, doppler_hz=2.0)
    radio, world = receiver(hub, bench), World(bench, 1)
    radio.arm(500_000, at_s=1.0)
    port.post("a", 1.0, np.full(500_000, 0.1, np.complex64))
    turned = radio.read()[0, ::8192] / 0.1
    instants_s = 1.0 + np.arange(0, 500_000, 8192) / RATE_HZ
    expected = world.channels(("a",), POSITIONS_M[:1], instants_s)[:, 0, 0]
    # half a chunk of phase error at most
    np.testing.assert_allclose(turned, expected, rtol=2 * np.pi * 2.0 * 4096 / RATE_HZ * 1.01)


def test_bursts_of_symbols_follow_each_other_at_their_own_rate():
    bench = QUIET.model_copy(update={"waveform": WaveformSpec(num_subcarriers=64, num_active=48, level="symbols")})
    rate_hz = bench.waveform.elements_per_second(RATE_HZ)
    assert rate_hz == RATE_HZ * 48 / 128
    hub = AirHub(NODES, rate_hz)
    port, radio, world = AirPort(hub.address), receiver(hub, bench), World(bench, 1)
    bursts = {node: normals(index, 4800) for index, node in enumerate(NODES)}
    radio.arm(3 * 4800, at_s=0.5)
    for index, node in enumerate(NODES):
        SimTransmitter(bench, node=node, port=port).transmit(bursts[node], at_s=0.5 + index * 4800 / rate_hz)
    expected = [np.outer(world.channel(node, POSITIONS_M, 0.5), bursts[node]) for node in NODES]
    np.testing.assert_allclose(radio.read(), np.hstack(expected), atol=1e-6 * np.abs(expected).max())
    assert hub.bursts(0.5 + 3 * 4800 / rate_hz, 1) == []
    port.close()
    hub.close()


def test_two_processes_radiate_at_once(hub):
    code = (
        "import sys, numpy as np\n"
        "from sim_backend.air import AirPort\n"
        "port = AirPort(sys.argv[1])\n"
        "port.post(sys.argv[2], 1.0, np.full(1000, float(sys.argv[3]), np.complex64))\n"
        "port.close()\n"
    )
    radio, world = receiver(hub), World(QUIET, 1)
    radio.arm(1000, at_s=1.0)
    commands = [[sys.executable, "-c", code, hub.address, node, level] for node, level in (("a", "0.1"), ("c", "0.2"))]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    expected = 0.1 * world.channel("a", POSITIONS_M, 1.0) + 0.2 * world.channel("c", POSITIONS_M, 1.0)
    np.testing.assert_allclose(radio.read(), np.repeat(expected[:, None], 1000, axis=1), rtol=1e-5)


def test_pilots_through_the_air_give_the_channel(hub, port):
    bench = bench_with()
    radio, world, waveform = receiver(hub, bench), World(bench, 1), bench.waveform
    symbols = estimate.pilot_symbols(4, waveform)
    pilots = np.float32(0.1) * ofdm.modulate(symbols, waveform)
    radio.arm(len(pilots), at_s=0.5)
    SimTransmitter(bench, node="b", port=port).transmit(pilots, at_s=0.5)
    channel, noise_w = estimate.estimate_channel(ofdm.demodulate(radio.read(), waveform), symbols, 0.01)
    error = channel - world.channel("b", POSITIONS_M, 0.5)
    in_band_w = ofdm.in_band_noise_w(world.noise_w, waveform)
    assert np.abs(error).max() < 5 * np.sqrt(in_band_w / (0.01 * 4 * 48))
    assert noise_w == pytest.approx(in_band_w, rel=0.2)


def test_stale_bursts_are_dropped_and_a_node_can_be_forgotten(hub, port):
    port.post("a", 1.0, normals(1, 100))
    port.post("b", 2.0, normals(2, 100))
    port.post("c", 2.0, normals(3, 100))
    assert [burst.node for burst in hub.bursts(0.0, 10_000_000)] == ["a", "b", "c"]
    assert hub.bursts(0.0, 10) == []
    hub.forget("b")
    assert [burst.node for burst in hub.bursts(2.0, 100)] == ["c"]
    assert hub.bursts(1.0, 10) == []  # the burst of a has ended before 2.0
    radio = receiver(hub)
    radio.arm(200, at_s=2.0)
    assert radio.read().any()
    assert hub.bursts(2.0, 200) == []  # it was heard


def test_bursts_that_nobody_hears_are_bounded(hub, port):
    for index in range(64):
        port.post("a", float(index), np.ones(1, np.complex64))
    with pytest.raises(RadioFault, match="nobody listens"):
        port.post("a", 99.0, np.ones(1, np.complex64))


def test_a_stranger_is_refused(hub, port):
    with pytest.raises(RadioFault, match="no node 'mallory'"):
        port.post("mallory", 0.0, normals(1, 10))
    port.post("a", 0.0, normals(1, 10))


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"not json", b""],
        [b"[1, 2]", b""],
        [b'{"node": "a", "at_s": 0, "num_samples": 2}', b"\0" * 15],
        [b'{"node": "a", "at_s": 0, "num_samples": 0}', b""],
        [b'{"node": "a", "at_s": "NaN", "num_samples": 1}', b"\0" * 8],
        [b'{"node": "a", "at_s": 0, "num_samples": 1, "extra": 1}', b"\0" * 8],
        [b'{"protocol": 2, "node": "a", "at_s": 0, "num_samples": 1}', b"\0" * 8],
        [b'{"node": "a", "at_s": 0, "num_samples": 1}', b"\0" * 8, b""],
    ],
)
def test_malformed_posts_are_answered_and_the_hub_lives_on(hub, port, frames):
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger, socket.rcvtimeo = 0, 10_000
        socket.connect(hub.address)
        socket.send_multipart(frames)
        assert b'"error":null' not in socket.recv()
    assert hub.bursts(0.0, 100) == []
    port.post("a", 0.0, normals(1, 10))
    assert len(hub.bursts(0.0, 100)) == 1


def test_a_silent_hub_is_a_radio_fault_and_the_port_recovers():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as nobody:
        nobody.bind("tcp://127.0.0.1:*")
        port = AirPort(nobody.getsockopt_string(zmq.LAST_ENDPOINT), timeout_ms=50)
        for _ in range(2):
            with pytest.raises(RadioFault, match="does not answer"):
                port.post("a", 0.0, normals(1, 10))
        port.close()
        port.close()


def test_closing_ends_the_thread_and_may_be_repeated():
    before = threading.active_count()
    hub = AirHub(NODES, RATE_HZ)
    assert threading.active_count() == before + 1
    hub.close()
    hub.close()
    assert threading.active_count() == before


def test_a_forgotten_hub_neither_leaks_nor_hangs_the_interpreter():
    before = threading.active_count()
    AirHub(NODES, RATE_HZ)
    assert threading.active_count() == before
    code = "from sim_backend.air import AirHub, AirPort; h = AirHub(['a'], 1e6); p = AirPort(h.address)\n"
    code += "import numpy; p.post('a', 0.0, numpy.ones(3))"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_transmit_power_is_limited(hub, port):
    transmitter = SimTransmitter(QUIET, node="a", port=port)
    block = np.ones(80, np.complex64)
    transmitter.transmit(np.float32(0.1) * block, at_s=0.0)
    with pytest.raises(LimitError, match=r"a would transmit 0\.01\d* W .* limit is 0\.01 W"):
        transmitter.transmit(np.float32(0.106) * block, at_s=0.0)
    for samples in (np.full(80, np.nan), np.zeros(0), np.zeros((2, 3))):
        with pytest.raises(LimitError):
            transmitter.transmit(samples, at_s=0.0)
    assert len(hub.bursts(0.0, 100)) == 1
    transmitter.mute()
    transmitter.close()
    transmitter.close()


def test_the_limit_of_the_bench_holds_for_every_node(port):
    bench = QUIET.model_copy(update={"limits": QUIET.limits.model_copy(update={"max_power_dbm": 0.0})})
    assert SimTransmitter(bench, node="a", port=port).capabilities.max_power_w == pytest.approx(1e-3)


@pytest.mark.parametrize("radio_of", [receiver, lambda hub: SimTransmitter(QUIET, node="a", port=AirPort(hub.address))])
def test_tuning_stays_within_the_allowed_bands(hub, radio_of):
    radio = radio_of(hub)
    radio.tune(frequency_hz=2.45e9, sample_rate_hz=RATE_HZ)
    with pytest.raises(LimitError, match="outside the allowed bands"):
        radio.tune(frequency_hz=2.4003e9, sample_rate_hz=RATE_HZ)
    with pytest.raises(LimitError, match="sample rate"):
        radio.tune(frequency_hz=2.45e9, sample_rate_hz=2 * RATE_HZ)


def test_what_a_radio_cannot_do_it_refuses(hub, port):
    radio = receiver(hub)
    with pytest.raises(RadioFault, match="before it was armed"):
        radio.read()
    radio.arm(10, at_s=0.0)
    radio.read()
    with pytest.raises(RadioFault, match="before it was armed"):
        radio.read()
    with pytest.raises(LimitError, match="does not transmit"):
        radio.transmit(np.zeros(1), at_s=0.0)
    transmitter = SimTransmitter(QUIET, node="a", port=port)
    for verb in (lambda: transmitter.arm(1, at_s=0.0), transmitter.read):
        with pytest.raises(RadioFault, match="does not receive"):
            verb()
    radio.mute()
    radio.close()
    radio.close()
