"""The receiver above its ports: fresh buffers, levels, combination, and what one failing radio does to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drivers.pluto_array import PlutoArray
from drivers.pluto_port import MUTED_DB
from drivers.pluto_radio import PlutoTransmitter
from testbed.core.bench import BenchSpec
from testbed.core.devices import Radio
from testbed.core.errors import ConfigError, DeviceError, LimitError, ProtocolError, RadioFault
from testbed.core.units import dbm_to_w
from testbed.engine.checks import check_radio
from testbed.phy.coherence import claimed_flags
from tests.benches import small_bench
from tests.fake_pluto import FakeAir, FakeCapture, FakePort, JumpingClock

CARRIER_HZ, RATE_HZ = 2.45e9, 5e6
GAIN_DB = 30.0
STEP = float(np.sqrt(dbm_to_w(-GAIN_DB))) / 2048
TRANSMIT_STEP = float(np.sqrt(dbm_to_w(23.0))) / 2048
NETWORK = {"trigger": "network", "start_jitter_s": 1e-3}


def bench_of(**changes: Any) -> BenchSpec:
    """A radio with two channels and one with one behind three antennas."""
    array = small_bench().array.model_dump()
    array["radios"] = changes.pop("radios", [{"channels": 2, "gain_db": GAIN_DB}, {"gain_db": GAIN_DB}])
    return small_bench(array=array, nodes=[{"count": 3, "radio": {"tx_full_scale_dbm": 23.0}}], **changes)


def ports_of(bench: BenchSpec, air: FakeAir, **changes: Any) -> list[FakePort]:
    return [FakePort(air, spec=spec, num_rx=spec.channels, **changes) for spec in bench.array.radios]


def receiver(
    bench: BenchSpec, air: FakeAir, ports: Sequence[FakePort], clock: JumpingClock | None = None
) -> PlutoArray:
    return PlutoArray(bench, ports, flags=claimed_flags(bench), clock=clock or JumpingClock(), trigger=air)


@pytest.fixture
def air() -> FakeAir:
    return FakeAir(gain=0.001)


@pytest.fixture
def ports(air: FakeAir) -> list[FakePort]:
    return ports_of(bench_of(), air)


@pytest.fixture
def array(air: FakeAir, ports: list[FakePort]) -> Iterator[PlutoArray]:
    radio = receiver(bench_of(), air, ports)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    yield radio
    radio.close()


def test_it_is_a_radio_and_does_what_a_receiver_must(air: FakeAir, ports: list[FakePort]) -> None:
    radio = receiver(bench_of(), air, ports)
    assert isinstance(radio, Radio)
    check_radio(radio, frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ, soon_s=lambda: 1.0)
    for port in ports:
        assert port.silent
        assert all(capture.closed for capture in port.captures)


def test_a_burst_arrives_at_its_sample_and_level_at_every_antenna(array: PlutoArray, air: FakeAir) -> None:
    bench = bench_of()
    sender = PlutoTransmitter(bench, "node-00", FakePort(air), flags=claimed_flags(bench), clock=JumpingClock())
    sender.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    burst = np.exp(2j * np.pi * 0.01 * np.arange(640)).astype(np.complex64) * np.float32(0.1)
    array.arm(1000, at_s=2.0)
    sender.transmit(burst, at_s=2.0 + 200 / RATE_HZ, trigger_s=2.0)
    heard = array.read()
    assert air.pulses_s == [2.0]
    assert heard.shape == (3, 1000)
    expected = np.zeros(1000, np.complex128)
    expected[200:840] = 0.001 * burst
    # the second channel of a fake radio hears the same upside down
    for row, sign in zip(heard, (1, -1, 1), strict=True):
        error = row - sign * expected
        # half a receive code, and half a transmit code that arrives
        assert max(np.abs(error.real).max(), np.abs(error.imag).max()) < 0.501 * (STEP + 0.001 * TRANSMIT_STEP)


def test_a_combination_is_that_of_all_antennas(array: PlutoArray, air: FakeAir) -> None:
    air.emissions.append((0, np.full(64, 0.2 + 0.1j)))
    array.arm(64, at_s=1.0)
    rows = array.read()
    array.arm(64, at_s=1.0)
    combiner = np.array([1 + 1j, 0.5j, -2])
    np.testing.assert_allclose(array.read(combiner), combiner.conj()[None] @ rows, rtol=1e-5)


def test_every_capture_has_fresh_buffers_opened_after_it_was_armed(array: PlutoArray, ports: list[FakePort]) -> None:
    for index in range(1, 4):
        array.arm(64, at_s=float(index))
        assert all(len(port.captures) == index for port in ports)
        assert all(capture.triggered for port in ports for capture in port.captures)
        array.read()
        assert all(capture.closed for port in ports for capture in port.captures)
        assert array.sequence == index


def test_arming_again_discards_what_was_armed(array: PlutoArray, ports: list[FakePort]) -> None:
    array.arm(64, at_s=1.0)
    array.arm(32, at_s=2.0)
    assert [[capture.closed for capture in port.captures] for port in ports] == [[True, False]] * 2
    assert array.read().shape == (3, 32)


def test_nothing_is_read_that_was_not_armed(array: PlutoArray) -> None:
    array.arm(64, at_s=1.0)
    array.read()
    spoilers: list[Callable[[], None]] = [
        lambda: None,
        array.mute,
        lambda: array.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ),
    ]
    for spoil in spoilers:
        spoil()
        with pytest.raises(RadioFault, match="before it was armed"):
            array.read()
        array.arm(64, at_s=1.0)


def test_orders_that_make_no_sense_are_refused(array: PlutoArray) -> None:
    with pytest.raises(LimitError, match="0 samples"):
        array.arm(0, at_s=1.0)
    with pytest.raises(LimitError, match="nan"):
        array.arm(8, at_s=float("nan"))
    with pytest.raises(LimitError, match="does not transmit"):
        array.transmit(np.zeros(8, np.complex64), at_s=1.0)
    with pytest.raises(LimitError, match="outside the allowed bands"):
        array.tune(frequency_hz=1e9, sample_rate_hz=RATE_HZ)
    array.arm(8, at_s=1.0)
    with pytest.raises(ProtocolError, match="3 finite weights"):
        array.read(np.ones(2))
    assert array.read(np.ones(3)).shape == (1, 8)


def test_it_does_not_listen_untuned_nor_after_closing(air: FakeAir, ports: list[FakePort]) -> None:
    radio = receiver(bench_of(), air, ports)
    with pytest.raises(RadioFault, match="before it was tuned"):
        radio.arm(8, at_s=1.0)
    radio.close()
    with pytest.raises(RadioFault, match="was closed"):
        radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)


def test_gains_are_set_and_the_transmitters_stay_muted(array: PlutoArray, ports: list[FakePort]) -> None:
    for port in ports:
        assert port.set is not None
        assert (port.set.rx_gain_db, port.set.tx_gain_db) == (GAIN_DB, MUTED_DB)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["capture", "wait"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_failing_radio_closes_all_others(array: PlutoArray, ports: list[FakePort], failing: str, which: int) -> None:
    ports[which].failing = {failing}

    def capture() -> None:
        array.arm(64, at_s=1.0)
        array.read()

    with pytest.raises(RadioFault, match=f"fails at {failing}"):
        capture()
    assert all(capture.closed for port in ports for capture in port.captures)
    ports[which].failing = set()
    array.arm(64, at_s=2.0)
    assert array.read().shape == (3, 64)


def test_a_failing_radio_wakes_those_that_still_wait(air: FakeAir) -> None:
    class Patient(FakeCapture):
        def __init__(self, *details: Any) -> None:
            super().__init__(*details)
            self.woken = threading.Event()

        def wait(self, timeout_s: float) -> np.ndarray:
            assert self.woken.wait(5.0), "nobody closed the capture"
            raise RadioFault("closed elsewhere")

        def close(self) -> None:
            super().close()
            self.woken.set()

    class PatientPort(FakePort):
        def capture(self, num_samples: int, *, triggered: bool = False, channels: int = 1) -> FakeCapture:
            self.captures.append(Patient(self, num_samples, triggered, channels))
            return self.captures[-1]

    bench = bench_of()
    ports = [PatientPort(air, spec=bench.array.radios[0], num_rx=2), FakePort(air, spec=bench.array.radios[1])]
    ports[1].failing = {"wait"}
    radio = receiver(bench, air, ports)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radio.arm(64, at_s=1.0)
    with pytest.raises(RadioFault, match="fails at wait"):
        radio.read()
    radio.close()


def test_a_trigger_line_that_fails_leaves_no_buffer_open(ports: list[FakePort]) -> None:
    class Broken(FakeAir):
        def pulse(self, at_s: float) -> None:
            raise DeviceError("the line is cut")

    broken = Broken()
    radio = receiver(bench_of(), broken, ports)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radio.arm(64, at_s=1.0)
    with pytest.raises(DeviceError, match="line is cut"):
        radio.read()
    assert all(capture.closed for port in ports for capture in port.captures)
    radio.close()


def test_clipping_is_told_with_radio_and_gain(array: PlutoArray, air: FakeAir) -> None:
    air.emissions.append((0, np.full(64, 4.0)))  # 42 dBm arrive 60 dB weaker, above the -30 dBm that fill it
    array.arm(64, at_s=1.0)
    with pytest.raises(RadioFault, match=r"receiver-[01] clips: .* gain_db = 30"):
        array.read()


def test_settings_that_somebody_else_changed_spoil_the_capture(array: PlutoArray, ports: list[FakePort]) -> None:
    array.arm(64, at_s=1.0)
    assert ports[1].chip is not None
    ports[1].chip = replace(ports[1].chip, rx_gain_db=20.0)
    with pytest.raises(RadioFault, match="receiver-1: another program changed .* receive gain 20 instead of 30 dB"):
        array.read()


def test_a_capture_of_another_length_is_told(array: PlutoArray, ports: list[FakePort]) -> None:
    array.arm(64, at_s=1.0)
    ports[1].captures[-1].codes = np.zeros((63, 2), np.int16)
    with pytest.raises(RadioFault, match=r"receiver-1: capture 1 has shape \(63, 2\) where 64 samples"):
        array.read()


@pytest.mark.parametrize("verb", ["mute", "close"])
def test_muting_goes_on_after_a_radio_that_cannot_be_reached(air: FakeAir, ports: list[FakePort], verb: str) -> None:
    radio = receiver(bench_of(), air, ports)
    ports[0].failing = {"silence", "close"}
    with pytest.raises(RadioFault, match="fails at"):
        getattr(radio, verb)()
    assert ports[1].silent
    ports[0].failing = set()
    radio.close()


# --- without a trigger ------------------------------------------------------------------------------------------------


def test_over_the_network_buffers_open_when_it_is_time() -> None:
    opened_s: list[float] = []

    class Timed(FakePort):
        def capture(self, num_samples: int, *, triggered: bool = False, channels: int = 1) -> FakeCapture:
            opened_s.append(clock.now_s())
            return super().capture(num_samples, triggered=triggered, channels=channels)

    clock, air, bench = JumpingClock(), FakeAir(), bench_of(radio=NETWORK)
    ports = [Timed(air, spec=spec, num_rx=spec.channels, triggered=False) for spec in bench.array.radios]
    radio = receiver(bench, air, ports, clock)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radio.arm(64, at_s=3.0)
    assert radio.read().shape == (3, 64)
    assert not air.pulses_s
    assert min(opened_s) >= 3.0
    assert len(opened_s) == 2
    radio.close()


def test_over_the_network_a_capture_that_comes_too_late_is_told() -> None:
    clock, air, bench = JumpingClock(), FakeAir(), bench_of(radio=NETWORK)
    ports = ports_of(bench, air, triggered=False)
    radio = receiver(bench, air, ports, clock)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    clock.wait_until(1.0)
    radio.arm(64, at_s=1.0 - 7e-3)
    with pytest.raises(RadioFault, match="capture 1 was ordered 7 ms late, where .* allows 6 ms"):
        radio.read()
    assert not any(port.captures for port in ports)
    radio.close()


def test_what_is_given_up_is_not_opened_later() -> None:
    class Held(JumpingClock):
        def __init__(self) -> None:
            super().__init__()
            self.waiting, self.go_on = threading.Semaphore(0), threading.Event()

        def wait_until(self, at_s: float) -> None:
            self.waiting.release()
            assert self.go_on.wait(5.0)
            super().wait_until(at_s)

    clock, air, bench = Held(), FakeAir(), bench_of(radio=NETWORK)
    ports = ports_of(bench, air, triggered=False)
    radio = receiver(bench, air, ports, clock)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radio.arm(64, at_s=60.0)
    for _ in ports:
        assert clock.waiting.acquire(timeout=5.0)
    radio.mute()
    clock.go_on.set()
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)  # after the threads that waited
    assert not any(port.captures for port in ports)
    radio.close()


# --- benches that do not fit ------------------------------------------------------------------------------------------


def test_radios_that_are_not_named_are_one_for_each_antenna(air: FakeAir) -> None:
    bench = small_bench()
    radio = PlutoArray(
        bench, [FakePort(air) for _ in range(3)], flags=claimed_flags(bench), clock=JumpingClock(), trigger=air
    )
    assert radio.capabilities.num_antennas == 3
    radio.close()


def test_missing_radios_channels_and_triggers_are_told(air: FakeAir) -> None:
    bench = bench_of()
    with pytest.raises(ConfigError, match="1 receivers were opened and the bench has 2"):
        receiver(bench, air, ports_of(bench, air)[:1])
    with pytest.raises(ConfigError, match="receiver-0 at ip:fake has 1 receive channel; 2 are in use"):
        receiver(bench, air, [FakePort(air), FakePort(air)])
    with pytest.raises(ConfigError, match="no transfer trigger"):
        receiver(bench, air, ports_of(bench, air, triggered=False))
    with pytest.raises(ConfigError, match="a line that starts all radios"):
        PlutoArray(bench, ports_of(bench, air), flags=claimed_flags(bench), clock=JumpingClock())
    beacon = bench_of(radio={"trigger": "beacon"})
    with pytest.raises(ConfigError, match="beacon"):
        receiver(beacon, air, ports_of(beacon, air))
