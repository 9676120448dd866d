"""The native port against emulated radios: settings, captures, bursts, silence, and links that fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.ad9361_fir import FACTOR, fir_config, fir_taps
from drivers.iiod_client import IiodClient
from drivers.pluto_native import NativePort
from drivers.pluto_port import MUTED_DB, PlutoPort, PlutoSettings
from drivers.transport import TransportClosed
from drivers.wire import RecordingWire, ReplayWire
from sim_backend.emulators.chip import Chip, Identity
from sim_backend.emulators.host import Emulators
from sim_backend.emulators.iiod import IiodServer
from sim_backend.emulators.radio import VirtualRadio
from testbed.core.errors import BenchError, DeviceError, LimitError, ProtocolError, RadioFault
from testbed.core.hardware import PlutoSpec
from tests.benches import small_bench

NODE, RECEIVER = "node-00", "receiver-0"
SETTINGS = PlutoSettings(2_450_000_000, 1_000_000, 800_000, 30.0, -10.0)
RATE_HZ = SETTINGS.sample_rate_hz


@pytest.fixture
def bench() -> Iterator[Emulators]:
    """One receiver with two channels and one node, in virtual time, with a trigger line."""
    spec = small_bench(
        array={
            "origin_m": [0.0, 4.0, 1.0],
            "region_m": [[0.0, 0.375], [0.0, 0.375]],
            "min_spacing_m": 0.0625,
            "antennas": [{"home_m": [0.05, 0.05]}, {"home_m": [0.15, 0.05]}],
            "radios": [{"channels": 2}],
        },
        nodes=[{"name": NODE}],
        radio={"trigger": "clock"},
    )
    with Emulators(spec) as emulators:
        yield emulators


def open_port(bench: Emulators, name: str, **options: Any) -> NativePort:
    return NativePort(bench.addresses["radios"][name], **options)


@pytest.fixture
def node(bench: Emulators) -> Iterator[NativePort]:
    port = open_port(bench, NODE, timeout_s=0.3)
    yield port
    port.close()


@pytest.fixture
def receiver(bench: Emulators) -> Iterator[NativePort]:
    port = open_port(bench, RECEIVER)
    yield port
    port.close()


def state(bench: Emulators, name: str = NODE) -> dict[str, Any]:
    found: dict[str, Any] = bench.state()["radios"][name]
    return found


def chip(bench: Emulators, name: str = NODE) -> Chip:
    return bench.radios[name].chip


def tone(num_samples: int, level: float = 0.5, frequency_hz: float = 50e3) -> np.ndarray:
    wave = 32_767 * level * np.exp(2j * np.pi * frequency_hz / RATE_HZ * np.arange(num_samples))
    return np.stack([wave.real, wave.imag], 1).round().astype(np.int16)


def power(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(float) ** 2).sum(1)


# --- who answers ------------------------------------------------------------------------------------------------------


def test_it_is_a_port_and_knows_its_radio(receiver: NativePort, node: NativePort) -> None:
    assert isinstance(receiver, PlutoPort)
    assert (receiver.facts.num_rx, receiver.facts.num_tx, receiver.facts.triggered) == (2, 2, True)
    assert (node.facts.num_rx, node.facts.num_tx) == (1, 1)
    assert node.facts.serial
    assert "Pluto" in node.facts.model
    assert node.facts.firmware


def test_another_serial_number_is_refused(bench: Emulators) -> None:
    serial = chip(bench).identity.serial
    open_port(bench, NODE, serial=serial).close()
    with pytest.raises(DeviceError, match=f"serial number {serial} answers, not 1044") as caught:
        open_port(bench, NODE, serial="1044")
    assert "radio.serial" in str(caught.value.remedy)


def test_a_radio_without_the_trigger_says_so(bench: Emulators) -> None:
    plain = Chip(Identity(serial="plain"))
    radio = VirtualRadio("plain", plain, bench.ether, spec=PlutoSpec(), antennas=(0,))
    server = IiodServer(radio)
    port = NativePort(server.uri)
    try:
        assert not port.facts.triggered
        port.configure(SETTINGS)
        with pytest.raises(DeviceError, match="has no external trigger") as caught:
            port.capture(64, triggered=True)
        assert "0.38" in str(caught.value.remedy)
        port.capture(64).close()
    finally:
        port.close()
        server.close()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_everything_is_set_and_read_back(bench: Emulators, node: NativePort) -> None:
    found = node.configure(SETTINGS)
    assert found == replace(SETTINGS, xo_correction=40_000_000)
    assert node.settings() == found
    real = chip(bench)
    assert real.sample_rate_hz == pytest.approx(RATE_HZ, abs=2)
    assert real.tx_lo_hz == pytest.approx(SETTINGS.frequency_hz, abs=5)
    assert real.rx_lo_hz == pytest.approx(SETTINGS.frequency_hz, abs=5)
    assert real.gain_mode(0) == "manual"
    assert real.rx_gain_db(0) == SETTINGS.rx_gain_db
    assert real.tx_gain_db(0) == SETTINGS.tx_gain_db  # the rate has not reset it
    assert not real.tx_powerdown
    assert not any(tone.enabled for channel in real.dds_tones for tone in channel)


def test_what_is_set_already_is_not_set_again(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    real = chip(bench)
    before = real.tunings, real.rx_tunings, len(real.calibrations)
    node.configure(replace(SETTINGS, rx_gain_db=40.0))
    assert (real.tunings, real.rx_tunings, len(real.calibrations)) == before
    assert real.rx_gain_db(0) == 40.0


@pytest.mark.parametrize("rate_hz", [520_834, 1_000_000, 2_083_333, 2_083_334, 4_000_000, 30_720_000, 61_440_000])
def test_every_rate_is_reached_from_every_other(node: NativePort, rate_hz: int) -> None:
    for before_hz in (61_440_000, 600_000):
        node.configure(replace(SETTINGS, sample_rate_hz=before_hz))
        found = node.configure(replace(SETTINGS, sample_rate_hz=rate_hz))
        assert found.sample_rate_hz == pytest.approx(rate_hz, abs=4)


def test_the_filters_keep_the_level(bench: Emulators, node: NativePort) -> None:
    levels_dbm = []
    for rate_hz in (1_000_000, 4_000_000):
        node.configure(replace(SETTINGS, sample_rate_hz=rate_hz))
        burst = node.cyclic(np.full((64, 2), 8_000, np.int16))
        levels_dbm.append(state(bench)["radiated_dbm"])
        burst.close()
    assert levels_dbm[0] == pytest.approx(levels_dbm[1], abs=0.02)


def test_the_filters_pass_the_band_and_stop_its_images() -> None:
    transmit, receive = fir_taps()
    assert transmit.sum() == pytest.approx(FACTOR * 32_768, rel=1e-3)
    frequency = np.arange(0, 2048) / 2048 * FACTOR / 2  # in sample rates
    response = np.abs(np.fft.rfft(receive / 32_768, 4096))[:2048]
    assert response[frequency < 0.38] == pytest.approx(1.0, abs=2e-3)
    assert response[frequency > 0.5].max() < 10 ** (-58 / 20)
    lines = fir_config().splitlines()
    assert lines[:2] == ["RX 3 GAIN 0 DEC 4", "TX 3 GAIN 0 INT 4"]
    assert lines[2:] == [f"{tx},{rx}" for tx, rx in zip(transmit, receive, strict=True)]


def test_whole_numbers_of_any_type_are_taken(node: NativePort) -> None:
    odd: Any = PlutoSettings(np.int64(2_450_000_000), 1e6, np.float64(8e5), np.float32(30.0), np.float32(-10.1))  # type: ignore[arg-type]
    found = node.configure(odd)
    assert found == replace(SETTINGS, tx_gain_db=-10.25, xo_correction=40_000_000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frequency_hz": 7_000_000_000}, "frequency_hz = 7000000000 is beyond this radio"),
        ({"frequency_hz": 2_450_000_000.5}, "frequency_hz = 2450000000.5 is no whole number"),
        ({"frequency_hz": float("nan")}, "is no whole number"),
        ({"sample_rate_hz": 520_000}, "sample_rate_hz = 520000 is beyond"),
        ({"sample_rate_hz": 61_440_001}, "sample_rate_hz = 61440001 is beyond"),
        ({"bandwidth_hz": 100_000}, "bandwidth_hz = 100000 is beyond"),
        ({"bandwidth_hz": 50_000_000}, "bandwidth_hz = 50000000 is beyond"),
        ({"rx_gain_db": 90.0}, "rx_gain_db = 90 is beyond"),
        ({"rx_gain_db": float("nan")}, "rx_gain_db = nan is beyond"),
        ({"tx_gain_db": 0.25}, "tx_gain_db = 0.25 is beyond"),
        ({"tx_gain_db": -90.0}, "tx_gain_db = -90 is beyond"),
        ({"xo_correction": 41_000_000}, "xo_correction = 41000000 is beyond"),
    ],
)
def test_what_the_chip_cannot_do_is_refused_before_anything_is_written(
    bench: Emulators, node: NativePort, change: dict[str, Any], words: str
) -> None:
    written: list[str] = []
    chip(bench).changed = written.append
    with pytest.raises(LimitError, match=words) as caught:
        node.configure(replace(SETTINGS, **change))
    assert caught.value.remedy
    assert not written


def test_a_setting_that_does_not_stick_is_a_fault_and_mutes(bench: Emulators, node: NativePort) -> None:
    real = chip(bench)
    noticed = real.changed
    assert noticed is not None

    def meddle(attribute: str) -> None:
        real.changed = noticed
        noticed(attribute)
        if real.tx_gain_db(0) == -20.0:
            real.write("ad9361-phy", "altvoltage1", True, "frequency", "", "2400000000")
        else:
            real.changed = meddle

    node.configure(SETTINGS)
    real.changed = meddle
    with pytest.raises(
        RadioFault, match="did not take its settings: transmit frequency in Hz is 2400000000, not 245000"
    ):
        node.configure(replace(SETTINGS, tx_gain_db=-20.0))
    assert state(bench)["tx_gain_db"] == MUTED_DB
    with pytest.raises(RadioFault, match="is silenced"):
        node.burst(tone(64))


def test_a_far_step_with_a_live_burst_is_refused(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    burst = node.cyclic(tone(64))
    with pytest.raises(LimitError, match=r"a step of the carrier by 150.0 MHz would calibrate"):
        node.configure(replace(SETTINGS, frequency_hz=2_600_000_000))
    with pytest.raises(LimitError, match="another sample rate would lose the transmit gain"):
        node.configure(replace(SETTINGS, sample_rate_hz=4_000_000))
    assert state(bench)["transmitting"]
    assert node.configure(replace(SETTINGS, frequency_hz=2_500_000_000)).frequency_hz == 2_500_000_000
    assert state(bench)["transmitting"]
    burst.close()
    node.configure(replace(SETTINGS, frequency_hz=2_600_000_000))
    assert not any(each.buffer_open for each in chip(bench).calibrations)


# --- captures ---------------------------------------------------------------------------------------------------------


def test_a_capture_has_its_shape_and_is_read_once(receiver: NativePort) -> None:
    receiver.configure(SETTINGS)
    for num_samples, channels in ((1, 1), (1001, 1), (4096, 2)):
        capture = receiver.capture(num_samples, channels=channels)
        samples = capture.wait(2.0)
        assert samples.shape == (num_samples, 2 * channels)
        assert samples.dtype == np.int16
        assert np.abs(samples.astype(int)).max() <= 2048
        with pytest.raises(RadioFault, match="was read already"):
            capture.wait(2.0)
        capture.close()
        capture.close()


def test_no_capture_holds_anything_older_than_itself(bench: Emulators, receiver: NativePort, node: NativePort) -> None:
    """The kernel of a real radio keeps four blocks; a fresh buffer of one block has none of them."""
    receiver.configure(SETTINGS)
    node.configure(SETTINGS)
    for level in (0.5, 0.05, 0.5):
        burst = node.cyclic(tone(80, level))
        bench.advance(bench.now() + 0.01)
        capture = receiver.capture(512)
        bench.advance(bench.now() + 0.1)  # nobody reads meanwhile
        bit = power(capture.wait(2.0))
        if level == 0.5:
            loud = bit.mean()
        else:
            assert bit.max() < loud / 30
        capture.close()
        burst.close()


def test_both_directions_start_at_the_trigger(bench: Emulators, receiver: NativePort, node: NativePort) -> None:
    receiver.configure(SETTINGS)
    node.configure(SETTINGS)
    for delay in (0, 1000, 1500):
        capture = receiver.capture(4096, triggered=True, channels=2)
        burst = node.burst(tone(2000, 1.0), delay_samples=delay)
        bench.advance(bench.now() + 0.05)
        assert not state(bench)["transmitting"]
        bench.pulse(bench.now() + 0.01)
        heard = power(capture.wait(2.0)[:, 2:])
        on = np.flatnonzero(heard > heard.max() / 4)
        assert abs(int(on[0]) - delay) <= 2
        assert abs(int(on[-1]) - delay - 2000) <= 2
        burst.close()
        capture.close()


def test_a_trigger_that_never_comes_is_said(receiver: NativePort) -> None:
    receiver.configure(SETTINGS)
    capture = receiver.capture(64, triggered=True)
    with pytest.raises(RadioFault, match=r"no samples came within 0.1 s of waiting for the trigger") as caught:
        capture.wait(0.1)
    assert "trigger line" in str(caught.value.remedy)
    free = receiver.capture(64)
    assert len(free.wait(2.0)) == 64


def test_a_second_transfer_does_not_disturb_one_that_waits_for_the_trigger(receiver: NativePort) -> None:
    receiver.configure(SETTINGS)
    capture = receiver.capture(64, triggered=True)
    with pytest.raises(RadioFault, match="another transfer of this radio waits for the trigger"):
        receiver.burst(tone(64))
    capture.close()
    receiver.burst(tone(64), delay_samples=0).close()
    with pytest.raises(LimitError, match="-1 samples after the trigger"):
        receiver.burst(tone(64), delay_samples=-1)


def test_impossible_captures_are_refused(node: NativePort) -> None:
    with pytest.raises(LimitError, match="a capture of 0 samples"):
        node.capture(0)
    with pytest.raises(LimitError, match="2 receive channels are asked of a radio with 1") as caught:
        node.capture(64, channels=2)
    assert "2r2t" in str(caught.value.remedy)


def test_a_buffer_that_another_client_holds_is_said(bench: Emulators, node: NativePort) -> None:
    other = open_port(bench, NODE)
    try:
        other.configure(SETTINGS)
        capture, burst = other.capture(64), other.cyclic(tone(64))
        node.configure(SETTINGS)
        with pytest.raises(RadioFault, match="another client holds the receive buffer") as caught:
            node.capture(64)
        assert "end the other program" in str(caught.value.remedy)
        with pytest.raises(RadioFault, match="another client holds the transmit buffer"):
            node.burst(tone(64))
        capture.close()
        burst.close()
        node.capture(64).close()
        node.burst(tone(64)).close()
    finally:
        other.close()


# --- bursts -----------------------------------------------------------------------------------------------------------


def test_a_burst_waits_for_its_release_and_is_followed_by_silence(
    bench: Emulators, receiver: NativePort, node: NativePort
) -> None:
    receiver.configure(SETTINGS)
    node.configure(SETTINGS)
    burst = node.burst(tone(2000))
    bench.advance(bench.now() + 0.1)
    assert not state(bench)["transmitting"]
    capture = receiver.capture(4096)
    burst.release()
    heard = power(capture.wait(2.0))
    assert heard[100:1900].min() > 20 * heard[2200:].mean()
    with pytest.raises(ProtocolError, match="was released already"):
        burst.release()
    burst.close()
    burst.close()
    assert state(bench)["buffers"] == 0


def test_a_burst_that_waits_for_the_trigger_is_not_released(node: NativePort) -> None:
    node.configure(SETTINGS)
    burst = node.burst(tone(64), delay_samples=0)
    with pytest.raises(ProtocolError, match="waits for the trigger"):
        burst.release()


@pytest.mark.parametrize("triggered", [True, False])
def test_a_burst_that_is_closed_before_its_start_never_radiates(
    bench: Emulators, node: NativePort, triggered: bool
) -> None:
    node.configure(SETTINGS)
    burst = node.burst(tone(64), delay_samples=0 if triggered else None)
    burst.close()
    bench.pulse(bench.now() + 0.01)
    assert not state(bench)["transmitting"]
    node.burst(tone(64)).close()  # the buffer is free again


def test_a_waveform_repeats_without_a_gap_whatever_its_length(
    bench: Emulators, receiver: NativePort, node: NativePort
) -> None:
    receiver.configure(SETTINGS)
    node.configure(SETTINGS)
    burst = node.cyclic(tone(20, 1.0))  # blocks are multiples of eight samples
    bench.advance(bench.now() + 0.01)
    capture = receiver.capture(2000)
    wave = capture.wait(2.0)[:, 0].astype(float)
    np.testing.assert_allclose(wave[20:], wave[:-20], atol=np.abs(wave).max() * 0.1)
    burst.close()
    assert not state(bench)["transmitting"]


def test_the_tones_of_the_chip_are_off_before_a_burst(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    chip(bench).write("cf-ad9361-dds-core-lpc", "altvoltage0", True, "scale", "", "0.5")
    chip(bench).write("cf-ad9361-dds-core-lpc", "altvoltage0", True, "raw", "", "1")
    assert state(bench)["dds"]
    node.burst(tone(64)).close()
    assert not state(bench)["dds"]


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (np.zeros((0, 2), np.int16), "codes of shape"),
        (np.zeros(8, np.int16), "codes of shape"),
        (np.zeros((8, 4), np.int16), "codes of shape"),
        (np.full((8, 2), 0.5), "float64 from 0.5 to 0.5 was given"),
        (np.full((8, 2), 40_000), "int64 from 40000 to 40000 was given"),
        (np.full((8, 2), 40_000, np.uint16), "uint16"),
        (np.full((8, 2), -40_000, np.int32), "-40000"),
    ],
)
def test_codes_that_would_be_cut_or_wrap_are_refused(node: NativePort, codes: np.ndarray, words: str) -> None:
    node.configure(SETTINGS)
    for send in (node.burst, node.cyclic):
        with pytest.raises(LimitError, match=words):
            send(codes)


# --- silence ----------------------------------------------------------------------------------------------------------


def test_silence_ends_everything_and_lasts(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    burst = node.cyclic(tone(64))
    assert state(bench)["transmitting"]
    for _ in range(2):
        node.silence()
        now = state(bench)
        assert not now["transmitting"]
        assert (now["tx_gain_db"], now["powerdown"], now["dds"], now["buffers"]) == (MUTED_DB, True, False, 0)
    assert node.settings().tx_gain_db == MUTED_DB
    for send in (node.burst, node.cyclic):
        with pytest.raises(RadioFault, match="the radio is silenced"):
            send(tone(64))
    burst.close()
    node.unsilence()
    assert node.settings() == replace(SETTINGS, xo_correction=40_000_000)
    assert not state(bench)["powerdown"]
    node.cyclic(tone(64)).close()


def test_silence_does_not_wait_for_a_data_path_that_hangs(bench: Emulators, receiver: NativePort) -> None:
    receiver.configure(SETTINGS)
    receiver.cyclic(tone(64))
    capture = receiver.capture(64, triggered=True)
    caught: list[RadioFault] = []

    def wait() -> None:
        try:
            capture.wait(20.0)
        except RadioFault as error:
            caught.append(error)

    hangs = threading.Thread(target=wait)
    hangs.start()
    began = time.monotonic()
    receiver.silence()
    assert time.monotonic() - began < 1.0
    assert not state(bench, RECEIVER)["transmitting"]
    capture.abort()
    hangs.join(5.0)
    assert not hangs.is_alive()
    assert caught


def test_silence_works_while_the_attributes_hang(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    node.cyclic(tone(64))
    plan = bench.radios[NODE].faults
    plan.add("stall", seconds=5.0)
    caught: list[BenchError] = []

    def ask() -> None:
        try:
            node.settings()
        except BenchError as error:
            caught.append(error)

    asks = threading.Thread(target=ask)
    asks.start()
    deadline = time.monotonic() + 5.0
    while plan.pending() and time.monotonic() < deadline:
        pass
    began = time.monotonic()
    node.silence()
    assert time.monotonic() - began < 0.25
    assert not state(bench)["transmitting"]
    asks.join(5.0)
    assert "is silenced until it is tuned anew" in caught[0].message


def test_silence_finds_a_fresh_connection_where_its_own_was_lost(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    node.cyclic(tone(64))
    bench.radios[NODE].faults.add("disconnect")
    node.silence()
    assert state(bench)["tx_gain_db"] == MUTED_DB


def test_a_radio_that_cannot_be_silenced_is_said(bench: Emulators) -> None:
    port = open_port(bench, NODE)
    port.configure(SETTINGS)
    bench.servers[NODE].close()
    began = time.monotonic()
    with pytest.raises(RadioFault, match="could not be silenced") as caught:
        port.silence()
    with pytest.raises(RadioFault, match="could not be silenced"):
        port.close()
    port.close()
    assert time.monotonic() - began < 3.0
    assert "switch the radio off" in str(caught.value.remedy)


def test_closing_mutes(bench: Emulators) -> None:
    port = open_port(bench, NODE)
    port.configure(SETTINGS)
    port.cyclic(tone(64))
    port.capture(64)
    port.close()
    port.close()
    now = state(bench)
    assert (now["transmitting"], now["tx_gain_db"], now["powerdown"]) == (False, MUTED_DB, True)
    for use in (port.settings, lambda: port.configure(SETTINGS), lambda: port.capture(64)):
        with pytest.raises(RadioFault, match="the radio is closed"):
            use()


# --- links that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("stall", {"seconds": 1.0}),
        ("late-reply", {"seconds": 1.0}),
        ("duplicate-reply", {}),
        ("disconnect", {}),
        ("garbage", {}),
        ("nan", {}),
    ],
)
@pytest.mark.parametrize("after", [0, 3])
def test_no_fault_of_the_link_ever_gives_a_wrong_setting(
    bench: Emulators, node: NativePort, fault: str, options: dict[str, Any], after: int
) -> None:
    expected = node.configure(SETTINGS)
    bench.radios[NODE].faults.add(fault, after=after, **options)
    with pytest.raises(RadioFault, match="the link is open again and the settings hold") as caught:
        node.settings()
    assert "reading the settings" in caught.value.message
    for _ in range(3):
        assert node.settings() == expected


def test_a_radio_that_restarted_is_set_anew(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    bench.radios[NODE].faults.add("brown-out")
    with pytest.raises(
        RadioFault,
        match=r"settings had changed and were set anew \(.*receive frequency in Hz is 2400000000, not 2450000000",
    ):
        node.settings()
    assert node.settings() == replace(SETTINGS, xo_correction=40_000_000)
    assert not state(bench)["dds"]


def test_a_radio_that_was_silenced_from_outside_stays_silent(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    chip(bench).write("ad9361-phy", "voltage0", True, "hardwaregain", "", "-89.75")
    bench.radios[NODE].faults.add("disconnect")
    with pytest.raises(RadioFault, match="is silenced until it is tuned anew"):
        node.settings()
    assert state(bench)["tx_gain_db"] == MUTED_DB
    with pytest.raises(RadioFault, match="the radio is silenced"):
        node.burst(tone(64))
    node.configure(SETTINGS)
    node.burst(tone(64)).close()


def test_another_radio_behind_the_address_is_noticed(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    plan = bench.radios[NODE].faults
    plan.add("disconnect")
    plan.add("wrong-serial", text="impostor")
    with pytest.raises(RadioFault, match="could not be reached again .*serial number impostor answers"):
        node.settings()
    plan.add("wrong-serial", text="impostor")
    with pytest.raises(RadioFault, match="opening the receive buffer: .*serial number impostor answers"):
        node.capture(64)
    node.capture(64).close()


def test_a_radio_that_comes_back_later_is_verified_before_it_is_used(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    plan = bench.radios[NODE].faults
    plan.add("disconnect")
    plan.add("wrong-serial", text="impostor")
    with pytest.raises(RadioFault, match="could not be reached again"):
        node.settings()
    for attribute, value in (("frequency", "2400000000"), ("powerdown", "0")):
        chip(bench).write("ad9361-phy", "altvoltage0", True, attribute, "", value)
    node.capture(64).close()
    assert chip(bench).rx_lo_hz == pytest.approx(SETTINGS.frequency_hz, abs=5)


def test_a_radio_that_was_never_set_does_not_transmit(node: NativePort) -> None:
    with pytest.raises(RadioFault, match="has not been set"):
        node.burst(tone(64))
    node.silence()
    node.unsilence()
    with pytest.raises(RadioFault, match="is silenced"):
        node.cyclic(tone(64))


def test_a_link_that_fails_while_setting_mutes(bench: Emulators, node: NativePort) -> None:
    node.configure(SETTINGS)
    bench.radios[NODE].faults.add("disconnect", after=25)
    with pytest.raises(RadioFault, match="setting the radio: .*is silenced until it is tuned anew"):
        node.configure(replace(SETTINGS, frequency_hz=2_440_000_000))
    assert state(bench)["tx_gain_db"] == MUTED_DB
    assert node.configure(SETTINGS).tx_gain_db == SETTINGS.tx_gain_db


@pytest.mark.parametrize("fault", ["short-read", "disconnect", "stall"])
def test_a_capture_over_a_failing_link_is_a_fault_and_the_next_is_whole(
    bench: Emulators, receiver: NativePort, fault: str
) -> None:
    receiver.configure(SETTINGS)
    capture = receiver.capture(4096)
    bench.radios[RECEIVER].faults.add(fault, seconds=1.0)
    began = time.monotonic()
    with pytest.raises(RadioFault, match=r"receiving: .*settings hold|no samples came"):
        capture.wait(0.2)
    assert time.monotonic() - began < 2.0
    assert not capture.open
    capture.close()
    again = None
    while again is None and time.monotonic() < began + 5.0:
        with suppress(RadioFault):  # a stalled server holds the buffer until it sees that its client has gone
            again = receiver.capture(4096)
    assert again is not None
    assert again.wait(2.0).shape == (4096, 2)


def test_a_radio_that_went_is_given_up_in_time(bench: Emulators) -> None:
    port = open_port(bench, NODE)
    port.configure(SETTINGS)
    bench.servers[NODE].close()
    began = time.monotonic()
    with pytest.raises(RadioFault, match="could not be reached again"):
        port.settings()
    assert time.monotonic() - began < 3.0
    with pytest.raises(RadioFault, match="could not be silenced"):
        port.close()


def test_nothing_behind_the_address_is_said_at_once(bench: Emulators) -> None:
    uri = bench.addresses["radios"][NODE]
    bench.servers[NODE].close()
    began = time.monotonic()
    with pytest.raises(TransportClosed, match="connection refused"):
        NativePort(uri)
    assert time.monotonic() - began < 3.0


# --- recordings -------------------------------------------------------------------------------------------------------


def converse(uri: str, wire: RecordingWire | ReplayWire, gain_db: float) -> tuple[PlutoSettings, np.ndarray]:
    """A session as a run has it; what came."""
    port = NativePort(uri, wire=wire)
    try:
        found = port.configure(replace(SETTINGS, rx_gain_db=gain_db))
        burst = port.burst(tone(64))
        burst.release()
        capture = port.capture(256)
        samples = capture.wait(2.0)
        capture.close()
        burst.close()
        return found, samples
    finally:
        port.close()


def test_a_recorded_session_is_played_back_without_the_radio(bench: Emulators, tmp_path: Path) -> None:
    uri = bench.addresses["radios"][NODE]
    found, samples = converse(uri, RecordingWire(tmp_path), 30.0)
    bench.servers[NODE].close()
    replay = ReplayWire(tmp_path)
    again, same = converse(uri, replay, 30.0)
    assert again == found
    np.testing.assert_array_equal(same, samples)
    replay.check_complete()


def test_a_session_that_differs_is_noticed_at_its_first_byte(bench: Emulators, tmp_path: Path) -> None:
    uri = bench.addresses["radios"][NODE]
    converse(uri, RecordingWire(tmp_path), 30.0)
    port = NativePort(uri, wire=ReplayWire(tmp_path))
    with pytest.raises(ProtocolError, match=r"sent differs: expected b'0.000000.*got b'1.000000"):
        port.configure(replace(SETTINGS, rx_gain_db=31.0))


def test_an_attribute_of_the_chip_can_be_read_by_hand(bench: Emulators) -> None:
    client = IiodClient(bench.addresses["radios"][NODE])
    assert client.version()[:2] == (0, 24)
    assert client.trigger_of("cf-ad9361-lpc") is None
    client.close()
