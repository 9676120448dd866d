"""The transmitter above a port: levels, limits, starts, and what a mute leaves behind."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drivers.pluto_port import MUTED_DB
from drivers.pluto_radio import PlutoTransmitter
from drivers.pluto_scale import TransmitScale, changed, check_codes, receive_scale, received
from testbed.core.bench import BenchSpec
from testbed.core.devices import Radio
from testbed.core.errors import ConfigError, LimitError, RadioFault
from testbed.core.hardware import PlutoSpec
from testbed.core.units import dbm_to_w, from_db
from testbed.engine.checks import check_radio
from testbed.phy.coherence import claimed_flags
from tests.benches import small_bench
from tests.fake_pluto import FakeAir, FakePort, JumpingClock

CARRIER_HZ, RATE_HZ = 2.45e9, 5e6


def bench_of(**changes: Any) -> BenchSpec:
    radio = {"tx_full_scale_dbm": 23.0}
    return small_bench(**{"nodes": [{"count": 3, "radio": radio}], **changes})


def transmitter(bench: BenchSpec, port: FakePort, clock: JumpingClock | None = None) -> PlutoTransmitter:
    return PlutoTransmitter(bench, "node-01", port, flags=claimed_flags(bench), clock=clock or JumpingClock())


def tuned(bench: BenchSpec, port: FakePort, clock: JumpingClock | None = None) -> PlutoTransmitter:
    radio = transmitter(bench, port, clock)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    return radio


def noise(power_w: float, count: int = 640, seed: int = 1) -> np.ndarray:
    draws = np.random.default_rng(seed).standard_normal((count, 2)).astype(np.float32).view(np.complex64)[:, 0]
    return draws * np.float32(np.sqrt(power_w / np.mean(np.abs(draws) ** 2)))


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("full_scale_dbm", "limit_dbm", "gain_db"),
    [(23.0, 10.0, 0.0), (23.25, 10.0, -0.25), (23.3, 10.0, -0.25), (7.0, -10.0, -4.0), (7.0, -6.1, 0.0)],
)
def test_full_scale_lies_at_the_headroom_or_less_than_a_step_above(
    full_scale_dbm: float, limit_dbm: float, gain_db: float
) -> None:
    bench = bench_of(nodes=[{"max_power_dbm": limit_dbm, "radio": {"tx_full_scale_dbm": full_scale_dbm}}])
    scale = TransmitScale.of(bench, bench.boards[0])
    assert scale.gain_db == gain_db
    assert scale.limit_w == pytest.approx(dbm_to_w(limit_dbm))
    assert 13.0 - 1e-9 <= 10 * np.log10(scale.full_scale_w / scale.limit_w) < 13.25


def test_a_radio_too_weak_for_the_headroom_is_refused_with_the_power_that_fits() -> None:
    bench = bench_of(nodes=[{"count": 3}])
    with pytest.raises(ConfigError, match="radiates 7 dBm at full scale, -3 dB above its limit of 10 dBm") as caught:
        TransmitScale.of(bench, bench.boards[0])
    assert "max_power_dbm to at most -6" in str(caught.value)


def test_a_power_limit_below_the_attenuators_reach_is_refused() -> None:
    bench = bench_of(nodes=[{"max_power_dbm": -100.0}])
    with pytest.raises(ConfigError, match="94 dB are needed, it has 89.5 dB"):
        TransmitScale.of(bench, bench.boards[0])


def test_codes_are_twelve_bits_rounded_and_never_wrap() -> None:
    scale = TransmitScale("node", 1.0, 0.0, 4.0)
    codes = scale.codes(np.array([1 + 0j, -2j, 2 - 2j, 1e-3, 2 / 2048 * 0.51, 2 / 2048 * 0.49], np.complex64))
    assert codes.dtype == np.int16
    assert codes.tolist() == [[16384, 0], [0, -32768], [32752, -32768], [16, 0], [16, 0], [0, 0]]
    for beyond in (2.001, -2.001j, np.nan, np.inf):
        with pytest.raises(LimitError, match="beyond the transmit converter's full scale"):
            scale.codes(np.array([beyond], np.complex64))


def test_the_rarest_peaks_are_cut_at_full_scale_and_anything_more_is_refused() -> None:
    scale = TransmitScale("node", 1.0, 0.0, 4.0)
    burst = np.full(1000, 0.5 + 0.5j, np.complex64)
    burst[[10, 20]] = 2.5, -3j
    codes = scale.codes(burst)
    assert codes[10].tolist() == [32752, 0]
    assert codes[20].tolist() == [0, -32768]
    burst[30] = 2.5
    with pytest.raises(LimitError, match="full scale"):
        scale.codes(burst)
    burst[[10, 20, 30]] = 0.5, 0.5, np.nan
    with pytest.raises(LimitError, match="full scale"):
        scale.codes(burst)


def test_received_codes_become_square_root_watts_channel_by_channel() -> None:
    radio = PlutoSpec(gain_db=40.0, rx_full_scale_dbm=-10.0)
    out = np.empty((2, 2), np.complex64)
    received(np.array([[1024, 0, 0, -2048], [1, 2, 3, 4]], np.int16), receive_scale(radio), out)
    full_scale = np.sqrt(dbm_to_w(-50.0))
    np.testing.assert_allclose(out[:, 0] / full_scale, [0.5, -1j], rtol=1e-6)
    np.testing.assert_allclose(out[:, 1] / full_scale, [(1 + 2j) / 2048, (3 + 4j) / 2048], rtol=1e-6)


def test_clipping_is_told_with_the_gain_and_a_rare_peak_is_not_clipping() -> None:
    codes = np.zeros((1000, 2), np.int16)
    codes[:2] = [[2047, -2048]] * 1 + [[0, 0]]
    check_codes(codes, PlutoSpec(gain_db=61.0), "receiver-0")
    codes[:3, 0] = 2047
    with pytest.raises(RadioFault, match=r"receiver-0 clips: 0.2 % .* gain_db = 61, where -61 dBm fill"):
        check_codes(codes, PlutoSpec(gain_db=61.0), "receiver-0")


def test_codes_that_no_converter_of_twelve_bits_delivers_are_refused() -> None:
    with pytest.raises(RadioFault, match="codes from 0 to 2048; its converter has twelve bits"):
        check_codes(np.array([[0, 2048]], np.int16), PlutoSpec(), "receiver-0")


# --- bursts -----------------------------------------------------------------------------------------------------------


def test_it_is_a_radio_and_does_what_a_transmitter_must() -> None:
    bench, port = bench_of(), FakePort(FakeAir())
    radio = transmitter(bench, port)
    assert isinstance(radio, Radio)
    check_radio(radio, frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ, soon_s=lambda: 1.0)
    assert port.silent
    assert port.log[-1] == "close"


def test_flags_that_are_not_claimed_are_false() -> None:
    radio = transmitter(bench_of(radio={"timed_tx": True}), FakePort(FakeAir()))
    can = radio.capabilities
    assert (can.timed_tx, can.shared_clock, can.phase_coherent, can.full_duplex) == (True, False, False, False)


@pytest.mark.parametrize("samples_later", [0, 64, 1000])
def test_a_burst_leaves_so_many_samples_after_the_trigger_at_its_power(samples_later: int) -> None:
    air = FakeAir(gain=0.5)
    port = FakePort(air)
    radio = tuned(bench_of(), port)
    burst = noise(0.01)
    radio.transmit(burst, at_s=3.0 + samples_later / RATE_HZ, trigger_s=3.0)
    assert not air.emissions
    air.pulse(3.0)
    heard = air.heard(samples_later + len(burst))
    np.testing.assert_array_equal(heard[:samples_later], 0)
    error = heard[samples_later:] - 0.5 * burst
    # rounding to 4096 codes over twice the amplitude at full scale
    step = 0.5 * 2 * np.sqrt(dbm_to_w(23.0)) / 4096
    assert max(np.abs(error.real).max(), np.abs(error.imag).max()) <= 0.501 * step


def test_without_a_trigger_time_the_burst_leaves_at_the_trigger() -> None:
    port = FakePort(FakeAir())
    tuned(bench_of(), port).transmit(noise(0.01), at_s=3.0)
    assert port.bursts[-1].delay_samples == 0


def test_a_burst_before_its_trigger_is_refused() -> None:
    port = FakePort(FakeAir())
    with pytest.raises(LimitError, match="begins before its trigger"):
        tuned(bench_of(), port).transmit(noise(0.01), at_s=3.0, trigger_s=3.1)
    assert "burst" not in port.log


def test_every_burst_ends_the_one_before_it() -> None:
    port = FakePort(FakeAir())
    radio = tuned(bench_of(), port)
    for at_s in (1.0, 2.0):
        radio.transmit(noise(0.01), at_s=at_s)
    assert [burst.closed for burst in port.bursts] == [True, False]
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    assert port.bursts[-1].closed


def test_the_chip_is_set_to_carrier_rate_and_the_nodes_attenuation() -> None:
    port = FakePort(FakeAir(), full_scale_dbm=30.0)
    bench = bench_of(nodes=[{"count": 3, "radio": {"tx_full_scale_dbm": 30.0, "xo_correction": 40_000_111}}])
    tuned(bench, port)
    assert port.set is not None
    assert (port.set.frequency_hz, port.set.sample_rate_hz) == (2_450_000_000, 5_000_000)
    assert type(port.set.frequency_hz) is int
    assert port.set.tx_gain_db == -7.0
    assert port.set.xo_correction == 40_000_111


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((2, 8), np.complex64), "one row of samples"),
        (np.zeros(0, np.complex64), "one row of samples"),
        (np.zeros(8, np.complex128), "complex64"),
        (np.full(8, np.nan, np.complex64), "not finite"),
        (np.full(8, 0.11, np.complex64), "its limit is 0.01 W"),
        (np.array([0.5] * 2 + [0] * 638, np.complex64), "full scale of 23.00 dBm"),
    ],
)
def test_bursts_against_the_limits_never_reach_the_radio(samples: np.ndarray, words: str) -> None:
    port = FakePort(FakeAir())
    radio = tuned(bench_of(), port)
    with pytest.raises(LimitError, match=words):
        radio.transmit(samples, at_s=1.0)
    assert "burst" not in port.log


def test_carriers_outside_the_allowed_bands_never_reach_the_radio() -> None:
    port = FakePort(FakeAir())
    radio = transmitter(bench_of(), port)
    with pytest.raises(LimitError, match="outside the allowed bands"):
        radio.tune(frequency_hz=2.4001e9, sample_rate_hz=RATE_HZ)
    with pytest.raises(LimitError, match="a sample rate of"):
        radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=2 * RATE_HZ)
    assert not port.log


def test_it_neither_receives_nor_sends_untuned_nor_after_closing() -> None:
    port = FakePort(FakeAir())
    radio = transmitter(bench_of(), port)
    with pytest.raises(RadioFault, match="was not tuned"):
        radio.transmit(noise(0.01), at_s=1.0)
    for action in (lambda: radio.arm(8, at_s=1.0), radio.read):
        with pytest.raises(RadioFault, match="does not receive"):
            action()
    radio.close()
    with pytest.raises(RadioFault, match="was closed"):
        radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)


# --- triggers ---------------------------------------------------------------------------------------------------------


def test_a_beacon_and_a_missing_trigger_are_refused_with_what_to_set() -> None:
    with pytest.raises(ConfigError, match="beacon") as caught:
        transmitter(bench_of(radio={"trigger": "beacon"}), FakePort(FakeAir()))
    assert '"network"' in str(caught.value)
    with pytest.raises(ConfigError, match="no transfer trigger") as caught:
        transmitter(bench_of(), FakePort(FakeAir(), triggered=False))
    assert '"network"' in str(caught.value)


def test_symbols_without_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="level symbols has none"):
        transmitter(bench_of(waveform={"level": "symbols"}), FakePort(FakeAir()))


NETWORK = {"trigger": "network", "start_jitter_s": 1e-3}


def test_over_the_network_the_burst_is_let_go_when_it_is_time() -> None:
    clock, port = JumpingClock(), FakePort(FakeAir(), triggered=False)
    radio = tuned(bench_of(radio=NETWORK), port, clock)
    radio.transmit(noise(0.01), at_s=2.5, trigger_s=2.4)
    assert port.bursts[-1].released.wait(5.0)
    assert clock.now_s() == pytest.approx(2.5)
    assert port.bursts[-1].delay_samples is None
    assert len(port.air.emissions) == 1


def test_an_order_returns_while_its_burst_waits_for_its_time() -> None:
    clock, port = HeldClock(), FakePort(FakeAir(), triggered=False)
    radio = tuned(bench_of(radio=NETWORK), port, clock)
    radio.transmit(noise(0.01), at_s=1e6)
    assert clock.waiting.wait(5.0)
    assert "release" not in port.log
    clock.go_on.set()
    radio.close()


def test_late_orders_are_refused_and_the_burst_is_gone() -> None:
    clock, port = JumpingClock(), FakePort(FakeAir(), triggered=False)
    radio = tuned(bench_of(radio=NETWORK), port, clock)
    clock.wait_until(2.0)
    radio.transmit(noise(0.01), at_s=2.0 - 5.9e-3)
    assert port.bursts[-1].released.wait(5.0)
    with pytest.raises(RadioFault, match="ready 6.1 ms late, where radio.start_jitter_s allows 6 ms; it was not sent"):
        radio.transmit(noise(0.01), at_s=2.0 - 6.1e-3)
    assert port.log.count("release") == 1
    assert port.bursts[-1].closed


class HeldClock(JumpingClock):
    """Time stands until somebody says go on."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.go_on = threading.Event(), threading.Event()

    def wait_until(self, at_s: float) -> None:
        self.waiting.set()
        assert self.go_on.wait(5.0)
        super().wait_until(at_s)


@pytest.mark.parametrize("end", ["mute", "close", "tune"])
def test_what_ends_a_burst_ends_its_wait(end: str) -> None:
    port, clock = FakePort(FakeAir(), triggered=False), HeldClock()
    radio = tuned(bench_of(radio=NETWORK), port, clock)
    radio.transmit(noise(0.01), at_s=1e6)
    assert clock.waiting.wait(5.0)
    if end == "mute":
        radio.mute()
    clock.go_on.set()
    if end == "tune":
        radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radio.close()
    assert port.bursts[-1].closed or port.silent
    assert "release" not in port.log
    assert not port.air.emissions


def test_a_burst_that_could_not_be_let_go_is_told_with_the_next_order() -> None:
    port = FakePort(FakeAir(), triggered=False)
    port.failing = {"release"}
    radio = tuned(bench_of(radio=NETWORK), port)
    radio.transmit(noise(0.01), at_s=1.0)
    assert port.bursts[-1].released.wait(5.0)
    port.failing = set()
    with pytest.raises(RadioFault, match="the burst before this one was not sent: the fake radio fails at release"):
        radio.transmit(noise(0.01), at_s=2.0)
    assert port.bursts[-1].closed
    radio.transmit(noise(0.01), at_s=3.0)
    assert port.bursts[-1].released.wait(5.0)
    assert len(port.air.emissions) == 1


# --- mute -------------------------------------------------------------------------------------------------------------


def test_a_muted_radio_sends_nothing_until_it_is_tuned() -> None:
    port = FakePort(FakeAir())
    radio = tuned(bench_of(), port)
    radio.transmit(noise(0.01), at_s=1.0)
    for _ in range(2):
        radio.mute()
    with pytest.raises(RadioFault, match="was muted; it sends nothing until it is tuned anew"):
        radio.transmit(noise(0.01), at_s=2.0)
    port.air.pulse(1.0)
    assert not port.air.emissions
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radio.transmit(noise(0.01), at_s=3.0)
    port.air.pulse(3.0)
    assert len(port.air.emissions) == 1


def test_a_mute_from_outside_is_noticed_and_stays() -> None:
    port = FakePort(FakeAir())
    radio = tuned(bench_of(), port)
    assert port.chip is not None
    before, port.chip = port.chip, replace(port.chip, tx_gain_db=MUTED_DB)
    with pytest.raises(RadioFault, match="was muted from outside"):
        radio.transmit(noise(0.01), at_s=1.0)
    port.chip = before
    with pytest.raises(RadioFault, match="was muted"):
        radio.transmit(noise(0.01), at_s=1.0)
    assert "burst" not in port.log


def test_settings_that_somebody_else_changed_are_told() -> None:
    port = FakePort(FakeAir())
    radio = tuned(bench_of(), port)
    assert port.chip is not None
    port.chip = replace(port.chip, frequency_hz=2_440_000_000, tx_gain_db=-3.0)
    with pytest.raises(RadioFault, match="frequency 2440000000 instead of 2450000000 Hz, transmit gain -3 instead of"):
        radio.transmit(noise(0.01), at_s=1.0)
    assert port.set is not None
    assert changed(port.set, port.set) == []


def test_a_mute_that_comes_while_tuning_wins() -> None:
    class Muted(FakePort):
        def configure(self, settings):  # type: ignore[no-untyped-def]
            radio.mute()
            return super().configure(settings)

    port = Muted(FakeAir())
    radio = transmitter(bench_of(), port)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    assert port.log[-1] == "silence"
    with pytest.raises(RadioFault, match="was muted"):
        radio.transmit(noise(0.01), at_s=1.0)


@pytest.mark.parametrize("failing", ["configure", "unsilence"])
def test_a_radio_that_cannot_be_tuned_is_left_mute(failing: str) -> None:
    port = FakePort(FakeAir())
    port.failing = {failing}
    radio = transmitter(bench_of(), port)
    with pytest.raises(RadioFault, match=f"fails at {failing}"):
        radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    assert port.log[-1] == "silence"
    with pytest.raises(RadioFault, match="was muted"):
        radio.transmit(noise(0.01), at_s=1.0)


def test_more_gain_than_was_set_is_no_tuning() -> None:
    class Strong(FakePort):
        def configure(self, settings):  # type: ignore[no-untyped-def]
            return replace(super().configure(settings), tx_gain_db=settings.tx_gain_db + 0.25)

    port = Strong(FakeAir())
    radio = transmitter(bench_of(), port)
    with pytest.raises(RadioFault, match="transmit gain is 0.25 dB"):
        radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    assert port.silent


def test_full_scale_of_a_radio_that_says_nothing_can_be_handed_in() -> None:
    bench = bench_of(nodes=[{"count": 3}])
    port = FakePort(FakeAir(), full_scale_dbm=23.0)
    radio = PlutoTransmitter(
        bench, "node-00", port, flags=claimed_flags(bench), clock=JumpingClock(), full_scale_dbm=23.0
    )
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    assert port.set is not None
    assert port.set.tx_gain_db == 0.0
    assert radio.capabilities.max_power_w == pytest.approx(0.01)
    assert from_db(13.0) == pytest.approx(dbm_to_w(23.0) / radio.capabilities.max_power_w)
