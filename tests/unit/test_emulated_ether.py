"""The air of emulated radios against closed forms, and against the simulated receiver."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sim_backend.air import AirHub, AirPort
from sim_backend.emulators.history import Window
from sim_backend.emulators.radio import VirtualRadio
from sim_backend.radio import SimReceiver, SimTransmitter
from sim_backend.world import BOLTZMANN_J_K, World
from testbed.core.errors import LimitError
from testbed.core.units import dbm_to_w, from_db, w_to_dbm
from tests.emulated_air import LO_HZ, QUIET, RATE_HZ, Air, air, arm, complex_codes, pulse, set_phy, steady, tone

TX_W = dbm_to_w(23.0)  # a node's full scale: its 10 dBm and 13 dB of headroom
RX_W = dbm_to_w(-20.0)  # a receiver's full scale at the 20 dB gain of these tests
LENGTH = 4000


@pytest.fixture
def quiet() -> Iterator[Air]:
    with air(world=QUIET) as made:
        yield made


def codes_of(amplitude: float, full_scale_w: float = RX_W) -> float:
    """Receive codes of an amplitude at the antenna in square-root watts."""
    return 2048 * amplitude / math.sqrt(full_scale_w)


def cyclic(radio: VirtualRadio, codes: np.ndarray) -> Any:
    """Let a radio repeat a waveform."""
    buffer = radio.open_transmit(len(codes), 2 ** codes.shape[1] - 1, True, 4)
    buffer.write(codes.tobytes())
    return buffer


def hear(radio: VirtualRadio, num_samples: int = LENGTH, num_channels: int = 1) -> np.ndarray:
    """A fresh capture in codes, shape [num_channels, num_samples]."""
    buffer = radio.open_receive(num_samples, 4**num_channels - 1, 1)
    block = complex_codes(buffer.read(), num_channels)
    buffer.close()
    return block


def test_a_tone_arrives_with_the_channels_gain_and_phase(quiet: Air) -> None:
    cyclic(quiet.node(1), tone(LENGTH, 80))
    for antennas in ((0,), (1, 2)):
        heard = hear(quiet.receiver(*antennas), num_channels=len(antennas))
        gain = heard @ np.exp(-2j * np.pi * 80 / LENGTH * np.arange(LENGTH)) / LENGTH
        # the converter rounds down, which a tone does not see
        expected = codes_of(0.5 * math.sqrt(TX_W)) * quiet.channel(1)[list(antennas)]
        np.testing.assert_allclose(gain, expected, rtol=0, atol=0.1)
        quiet.radios.pop().close()


def test_what_is_radiated_is_known_in_dbm(quiet: Air) -> None:
    node = quiet.node(0)
    assert (node.state()["transmitting"], node.state()["radiated_dbm"]) == (False, None)
    buffer = cyclic(node, tone(LENGTH, 80))
    for gain_db in (0.0, -12.5, -89.75):
        set_phy(node, "voltage0", True, "hardwaregain", gain_db)
        assert node.state()["radiated_dbm"] == pytest.approx(23 - 6.02 + gain_db, abs=0.01)
        assert node.state()["tx_gain_db"] == gain_db
        assert node.state()["transmitting"] is (gain_db > -89.75)
    set_phy(node, "altvoltage1", True, "powerdown", 1)
    assert node.state()["radiated_dbm"] is None
    set_phy(node, "altvoltage1", True, "powerdown", 0)
    buffer.close()
    assert node.state()["radiated_dbm"] is None


def test_emission_ends_at_the_instant_it_is_told_to(quiet: Air) -> None:
    """Attenuation, power down and the end of the buffer act in the middle of a block, and of a cyclic buffer."""
    node, receiver = quiet.node(0), quiet.receiver()

    def close(buffer: Any) -> None:
        buffer.close()

    def attenuate(buffer: Any) -> None:
        set_phy(node, "voltage0", True, "hardwaregain", -89.75)

    def power_down(buffer: Any) -> None:
        set_phy(node, "altvoltage1", True, "powerdown", 1)

    for end in (attenuate, power_down, close):
        set_phy(node, "voltage0", True, "hardwaregain", 0)
        set_phy(node, "altvoltage1", True, "powerdown", 0)
        buffer = cyclic(node, steady())
        capture = receiver.open_receive(1000, 0b11, 1)
        quiet.timebase.advance(quiet.timebase.now_s() + 600 / RATE_HZ)
        end(buffer)
        heard = np.abs(complex_codes(capture.read())[0])
        assert heard[:600].min() > 100, end
        assert heard[600:].max() < 1, end
        buffer.close()
        capture.close()


def test_a_change_of_gain_applies_from_its_instant(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    cyclic(node, steady())
    capture = receiver.open_receive(900, 0b11, 1)
    quiet.timebase.advance(300 / RATE_HZ)
    set_phy(node, "voltage0", True, "hardwaregain", -6)
    quiet.timebase.advance(600 / RATE_HZ)
    set_phy(receiver, "voltage0", False, "hardwaregain", 26)
    parts = np.abs(complex_codes(capture.read())[0]).reshape(3, 300)
    full = codes_of(0.5 * math.sqrt(TX_W)) * abs(quiet.channel(0)[0])
    np.testing.assert_allclose(parts.mean(axis=1), [full, full / 10**0.3, full], atol=1)
    assert np.ptp(parts, axis=1).max() == 0


@pytest.mark.parametrize("offset_hz", [-40_000, 3_000, 1_200_000])
def test_two_carriers_turn_at_their_true_difference(quiet: Air, offset_hz: int) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    cyclic(node, steady())
    set_phy(node, "altvoltage1", True, "frequency", LO_HZ + offset_hz)
    buffer = receiver.open_receive(LENGTH, 0b11, 4)
    heard = np.concatenate([complex_codes(buffer.read())[0] for _ in range(3)])
    true_hz = node.chip.tx_lo_hz - receiver.chip.rx_lo_hz
    assert true_hz == pytest.approx(offset_hz, abs=10)
    turning = heard * np.exp(-2j * np.pi * true_hz / RATE_HZ * np.arange(heard.size))
    # over three blocks the phase stays within rounding
    assert np.abs(np.angle(turning / turning.mean())).max() < 0.02
    assert np.abs(turning).mean() > 100


def test_what_lies_outside_the_band_is_not_heard(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    cyclic(node, tone(LENGTH, 800))  # 1 MHz above the carrier
    for offset_hz, heard in ((0, True), (1_400_000, True), (1_600_000, False), (20_000_000, False)):
        set_phy(node, "altvoltage1", True, "frequency", LO_HZ + offset_hz)
        assert bool(np.abs(hear(receiver)).mean() > 100) is heard, offset_hz


def test_two_nodes_add_coherently(quiet: Air) -> None:
    nodes, receiver = [quiet.node(0), quiet.node(1)], quiet.receiver()
    for node in nodes:
        arm(node, output=2)
        node.open_transmit(64, 0b11, False, 4).write(steady().tobytes())
    arm(receiver, output=1)
    capture = receiver.open_receive(64, 0b11, 1)
    pulse(quiet, 1.0)
    expected = codes_of(0.5 * math.sqrt(TX_W)) * (quiet.channel(0)[0] + quiet.channel(1)[0])
    np.testing.assert_allclose(complex_codes(capture.read())[0], expected, atol=1)


def test_the_room_is_reciprocal_and_radios_hear_themselves(quiet: Air) -> None:
    receiver, node = quiet.receiver(0, 1, tx_full_scale_dbm=20.0), quiet.node(2)
    codes = np.concatenate([steady(), steady(0.25)], axis=1)
    cyclic(receiver, codes)
    channel = quiet.channel(2)
    arrives = math.sqrt(dbm_to_w(20.0)) * (0.5 * channel[0] + 0.25 * channel[1])
    np.testing.assert_allclose(hear(node)[0], codes_of(arrives), atol=1)
    set_phy(receiver, "voltage0", False, "hardwaregain", 0)
    leaks = math.sqrt(dbm_to_w(20.0)) * 0.75 * 0.01
    np.testing.assert_allclose(hear(receiver)[0], codes_of(leaks, dbm_to_w(0.0)), atol=1)


def test_a_lone_radio_hears_its_own_cyclic_tone_at_minus_forty_db(quiet: Air) -> None:
    node = quiet.node(0, gain_db=0.0)
    cyclic(node, tone(LENGTH, 80))
    assert np.mean(np.abs(hear(node)) ** 2) == pytest.approx(
        codes_of(0.5 * math.sqrt(TX_W), 1e-3) ** 2 * 1e-4, rel=0.01
    )


def test_the_chips_own_tones_radiate_until_a_buffer_is_opened(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    dds = "cf-ad9361-dds-core-lpc"
    for channel, phase in (("altvoltage0", 90_000), ("altvoltage2", 0)):
        for attribute, value in (("frequency", 250_000), ("scale", 0.25), ("phase", phase), ("raw", 1)):
            node.chip.write(dds, channel, True, attribute, value=str(value))
    assert node.state()["dds"]
    assert node.state()["radiated_dbm"] == pytest.approx(23 - 12.04, abs=0.01)
    heard = hear(receiver)[0]
    bins = np.abs(np.fft.fft(heard)) / LENGTH
    assert int(bins.argmax()) == 200  # 250 kHz, above the carrier
    assert bins.max() == pytest.approx(codes_of(0.25 * math.sqrt(TX_W)) * abs(quiet.channel(0)[0]), rel=0.01)
    node.open_transmit(64, 0b11, False, 4)
    assert not node.state()["dds"]
    assert not hear(receiver).any()


def test_noise_is_that_of_the_room_whatever_the_rate() -> None:
    with air() as made:
        receiver, node = made.receiver(gain_db=60.0), made.node(0, gain_db=60.0)
        full_w = dbm_to_w(-60.0)
        noise_w = BOLTZMANN_J_K * 290 * from_db(7.0) * RATE_HZ
        for radio in (receiver, node):
            assert np.mean(np.abs(hear(radio, 50_000)) ** 2) == pytest.approx(2048**2 * noise_w / full_w, rel=0.05)
        set_phy(receiver, "voltage0", False, "sampling_frequency", 2 * RATE_HZ)
        assert np.mean(np.abs(hear(receiver, 50_000)) ** 2) == pytest.approx(2048**2 * 2 * noise_w / full_w, rel=0.05)


def test_a_gain_of_its_own_fits_the_signal_and_is_told_to_the_chip(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    cyclic(node, tone(LENGTH, 80))
    set_phy(receiver, "voltage0", False, "gain_control_mode", "slow_attack")
    heard = hear(receiver)
    level_db = 10 * math.log10(np.mean(np.abs(heard) ** 2) / 2048**2)
    assert -13.0 <= level_db <= -12.0
    arrives_dbm = w_to_dbm(0.25 * TX_W * abs(quiet.channel(0)[0]) ** 2)
    shown = receiver.chip.read("ad9361-phy", "voltage0", False, "hardwaregain")
    assert float(shown.split()[0]) == pytest.approx(-12 - arrives_dbm, abs=1)


def test_the_converter_clips_at_its_rails(quiet: Air) -> None:
    cyclic(quiet.node(0), tone(LENGTH, 80))
    heard = hear(quiet.receiver(gain_db=60.0))
    assert (heard.real.max(), heard.real.min()) == (2047, -2048)
    assert (heard.imag.max(), heard.imag.min()) == (2047, -2048)


def test_a_receiver_without_its_synthesiser_hears_nothing() -> None:
    with air() as made:
        receiver = made.receiver(gain_db=70.0)
        assert hear(receiver).any()
        set_phy(receiver, "altvoltage0", True, "powerdown", 1)
        assert not hear(receiver).any()


def test_a_radio_at_another_rate_is_heard_at_its_frequency(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    set_phy(node, "voltage0", False, "sampling_frequency", 2 * RATE_HZ)
    set_phy(node, "voltage0", True, "hardwaregain", 0)
    cyclic(node, tone(LENGTH, 200))  # 500 kHz at 10 MS/s
    bins = np.abs(np.fft.fft(hear(receiver)[0])) / LENGTH
    assert int(bins.argmax()) == 400
    assert bins.max() == pytest.approx(codes_of(0.5 * math.sqrt(TX_W)) * abs(quiet.channel(0)[0]), rel=0.02)


def test_a_clock_that_is_off_by_parts_per_million_bends_nothing(quiet: Air) -> None:
    """A burst near the edge of the band keeps its level; carrier and sample clock are off by the same ratio."""
    node, receiver = quiet.node(0), quiet.receiver()
    xo_hz = int(node.chip.read("ad9361-phy", None, None, "xo_correction"))
    node.chip.write("ad9361-phy", None, None, "xo_correction", value=str(xo_hz - 800))
    set_phy(node, "altvoltage1", True, "frequency", LO_HZ)
    set_phy(node, "voltage0", False, "sampling_frequency", RATE_HZ)
    set_phy(node, "voltage0", True, "hardwaregain", 0)
    rate_hz = node.chip.sample_rate_hz
    assert rate_hz / receiver.chip.sample_rate_hz - 1 == pytest.approx(20e-6, rel=0.02)
    shift_hz = node.chip.tx_lo_hz - receiver.chip.rx_lo_hz
    assert shift_hz == pytest.approx(20e-6 * LO_HZ, rel=0.02)
    capture = receiver.open_receive(20_000, 0b11, 1)
    node.open_transmit(20_000, 0b11, False, 4).write(tone(20_000, 7000).tobytes())
    heard = complex_codes(capture.read())[0][100:-100]
    turns = (0.35 * rate_hz + shift_hz) / receiver.chip.sample_rate_hz * np.arange(heard.size)
    rest = heard * np.exp(-2j * np.pi * turns)
    assert np.abs(rest / rest.mean() - 1).max() < 0.02
    assert abs(rest.mean()) == pytest.approx(codes_of(0.5 * math.sqrt(TX_W)) * abs(quiet.channel(0)[0]), rel=0.01)


def test_antennas_are_heard_where_they_were(quiet: Air) -> None:
    """An antenna on its way: each block's phase is that of the place in the middle of it."""
    cyclic(quiet.node(0), steady())
    buffer = quiet.receiver().open_receive(500, 0b11, 4)
    begin_m, speed_m_s = quiet.home_m.copy(), 50.0

    class Motor:
        def settle(self, now_s: float) -> None:
            quiet.home_m = begin_m + np.array([speed_m_s * now_s, 0.0])

        def next_event_s(self, now_s: float) -> float | None:
            return now_s + 1e-5

    quiet.timebase.remove(quiet.ether)
    quiet.timebase.add(Motor())
    quiet.timebase.add(quiet.ether)
    quiet.timebase.advance(4 * 500 / RATE_HZ)
    for block in range(4):
        quiet.home_m = begin_m + np.array([speed_m_s * (block + 0.5) * 500 / RATE_HZ, 0.0])
        expected = codes_of(0.5 * math.sqrt(TX_W)) * quiet.channel(0)[0]
        assert complex_codes(buffer.read())[0].mean() == pytest.approx(expected, abs=1)


def test_what_nobody_can_hear_any_more_is_forgotten(quiet: Air) -> None:
    node = quiet.node(0)
    late = quiet.receiver().open_receive(1000, 0b11, 1)
    for _ in range(50):
        buffer = node.open_transmit(64, 0b11, False, 4)
        buffer.write(steady().tobytes())
        quiet.timebase.advance(quiet.timebase.now_s() + 0.5)
        buffer.close()
    in_a_year = Window(0.0, 0, int(3e7 * RATE_HZ), RATE_HZ)
    assert len(node.station.playing_in(in_a_year)) <= 3
    assert np.abs(complex_codes(late.read())[0][:64]).min() > 100


def test_a_place_that_the_room_does_not_know_is_an_error_of_the_device(
    quiet: Air, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> np.ndarray:
        raise LimitError("outside the recorded points")

    cyclic(quiet.node(0), steady())
    buffer = quiet.receiver().open_receive(64, 0b11, 1)
    monkeypatch.setattr(World, "response", refuse)
    with pytest.raises(OSError, match=r".+") as caught:
        buffer.read()
    assert caught.value.errno == errno.EIO
    assert isinstance(caught.value.__cause__, LimitError)


IMPAIRED = {
    "oscillator_ppm": 1.0, "drift_ppm_s": 0.1, "phase_noise_deg": 2.0, "phase_jumps": "tune", "start_offset_s": 3e-7,
    "tx_iq_gain_db": 0.3, "tx_iq_phase_deg": 2.0, "tx_dc_db": -35.0, "pa_saturation_dbm": 20.0, "rx_iq_gain_db": 0.2,
    "rx_iq_phase_deg": 1.0, "rx_dc_dbm": -60.0, "phase_flip_gain_db": 15.0, "rx_gain_db": 20.0,
}  # fmt: skip
ROOMS: dict[str, dict[str, Any]] = {
    "still": {},
    "selective": {"selective": True, "delay_spread_s": 2e-7, "model": "isotropic"},
    "turning": {"doppler_hz": 200.0},
    "moving and selective": {"selective": True, "fading": "jakes", "doppler_hz": 200.0},
    "impaired": {"impairments": IMPAIRED},
}


@pytest.mark.parametrize("room", ROOMS)
def test_emulated_radios_hear_what_simulated_radios_hear_within_rounding(room: str) -> None:
    """Two nodes, three antennas behind two radios, bursts at their delays, noise: sample by sample, code by code."""
    at_s, count, delays = 0.253, 3 * 8192 + 77, (300, 512)
    radio = {"start_jitter_s": 2e-7}
    generator = np.random.default_rng(8)
    bursts = [16 * generator.integers(-300, 300, (20_000, 2)).astype(np.int16) for _ in delays]
    with air(world=ROOMS[room], radio=radio) as made:
        receivers, nodes = (
            [made.receiver(0, gain_db=20.0), made.receiver(1, 2, gain_db=20.0)],
            [made.node(0), made.node(1)],
        )
        for node, codes, delay in zip(nodes, bursts, delays, strict=True):
            arm(node, output=2, delay=delay)
            node.open_transmit(len(codes), 0b11, False, 4).write(codes.tobytes())
        for receiver in receivers:
            arm(receiver, output=1)
        captures = [receivers[0].open_receive(count, 0b11, 1), receivers[1].open_receive(count, 0b1111, 1)]
        pulse(made, at_s)
        heard = np.concatenate([complex_codes(captures[0].read(), 1), complex_codes(captures[1].read(), 2)])
        expected = _simulated(made, nodes, bursts, [at_s + delay / RATE_HZ for delay in delays], at_s, count)
    wanted = expected * 2048 / math.sqrt(RX_W)
    assert np.abs(wanted).mean() > 20
    difference = heard - wanted
    assert np.abs(difference.real).max() < 0.51
    assert np.abs(difference.imag).max() < 0.51


def _simulated(
    made: Air, nodes: list[VirtualRadio], bursts: list[np.ndarray], begins_s: list[float], at_s: float, count: int
) -> np.ndarray:
    """What `SimReceiver` captures of the same bursts, shape [num_antennas, count]."""
    bench, seed = made.bench, made.seed
    hub = AirHub(bench.node_names, bench.sample_rate_hz)
    receiver = SimReceiver(bench, world=World(bench, seed), hub=hub, positions_m=lambda: made.home_m, seed=seed)
    receiver.arm(count, at_s=at_s)
    for node, codes, begin_s in zip(nodes, bursts, begins_s, strict=True):
        transmitter = SimTransmitter(bench, node=node.name, port=AirPort(hub.address), seed=seed)
        for _ in range(node.chip.tunings):
            transmitter.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz)
        samples = codes.astype(np.float32).view(np.complex64)[:, 0] * np.float32(math.sqrt(TX_W) / 32_768)
        transmitter.transmit(samples, at_s=begin_s)
        transmitter.close()
    heard = receiver.read()
    hub.close()
    return heard
