"""pyadi-iio in its own process: what is missing, what crashes or hangs, and the whole port against emulated radios."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import drivers.pluto
from drivers.adi_child import AdiChild
from drivers.adi_install import installation_error
from drivers.pluto import AdiPort
from drivers.pluto_array import PlutoArray
from drivers.pluto_native import NativePort
from drivers.pluto_port import MUTED_DB, PlutoPort, PlutoSettings
from drivers.pluto_radio import PlutoTransmitter
from sim_backend.emulators.host import Emulators
from testbed.core.bench import BenchSpec
from testbed.core.devices import Radio
from testbed.core.errors import ConfigError, DeviceError, LimitError, RadioFault
from testbed.engine.checks import check_radio
from testbed.phy.coherence import claimed_flags
from tests.benches import small_bench

URI = "ip:192.0.2.1"
CARRIER_HZ, RATE_HZ = 2.45e9, 5e6
SETTINGS = PlutoSettings(2_450_000_000, 5_000_000, 5_000_000, 25.0, -3.0)
SET = replace(SETTINGS, xo_correction=40_000_000)

needs_libiio = pytest.mark.skipif(
    importlib.util.find_spec("adi") is None or find_library("iio") is None,
    reason='apt-get install libiio0; pip install "pyadi-iio==0.0.21" "pylibiio==0.25"',
)


# --- what is installed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "remedy"),
    [
        (ModuleNotFoundError("No module named 'adi'", name="adi"), "the Python module adi", "pyadi-iio==0.0.21"),
        (ModuleNotFoundError("No module named 'iio'", name="iio"), "the Python module iio", "pylibiio==0.25"),
        (
            FileNotFoundError("Could not find libiio C library"),
            "C library libiio is missing",
            "apt-get install -y libiio0",
        ),
        (
            AttributeError("python: undefined symbol: iio_get_backends_count"),
            "is missing",
            "apt-get install -y libiio0",
        ),
        (FileNotFoundError(2, "libiio version 1.x required, found version 0"), "do not fit", "pylibiio==0.25"),
        (AttributeError("undefined symbol: iio_context_get_version_patch"), "do not fit", "pylibiio==0.25"),
        (RuntimeError("odd"), "RuntimeError: odd", "pyadi-iio==0.0.21"),
    ],
)
def test_every_wrong_installation_says_what_to_install(error: Exception, words: str, remedy: str) -> None:
    told = installation_error(error)
    assert words in told.message
    assert remedy in (told.remedy or "")
    assert 'driver = "native"' in (told.remedy or "")


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], AdiChild]]:
    """A process whose pyadi-iio does as the test says when a context is opened."""
    opened: list[AdiChild] = []

    def start(body: str, version: str = "(0, 24, 'v0.24')") -> AdiChild:
        (tmp_path / "adi.py").write_text("")
        (tmp_path / "iio.py").write_text(
            f"import os, signal, threading\nversion = {version}\ndef Context(uri):\n    {body}\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        opened.append(AdiChild(URI))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


OPEN = {"do": "open", "uri": URI}


def test_a_segmentation_fault_over_there_is_a_radio_fault_here(child: Callable[[str], AdiChild]) -> None:
    process = child("os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(RadioFault, match=r"ended with signal 11 \(SIGSEGV\) during open; it said: Fatal Python error"):
        process.ask(OPEN, timeout_s=10.0)
    assert process.killed
    with pytest.raises(RadioFault, match="was ended"):
        process.ask(OPEN, timeout_s=10.0)


def test_an_exit_over_there_is_a_radio_fault_here(child: Callable[[str], AdiChild]) -> None:
    with pytest.raises(RadioFault, match="ended with exit code 3 during open; it said: goodbye"):
        child("os.write(2, b'goodbye'); os._exit(3)").ask(OPEN, timeout_s=10.0)


def test_a_hang_ends_in_time_and_with_it_the_process(child: Callable[[str], AdiChild]) -> None:
    process = child("signal.pause()")
    begun = time.monotonic()
    with pytest.raises(RadioFault, match="did not finish open within 0.3 s and was ended"):
        process.ask(OPEN, timeout_s=0.3)
    assert time.monotonic() - begun < 2.0
    assert process._process.wait(5.0) == -signal.SIGKILL


def test_a_kill_from_another_thread_wakes_whoever_waits(child: Callable[[str], AdiChild]) -> None:
    process = child("os.write(1, b'hanging'); signal.pause()")
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            process.ask(OPEN, timeout_s=30.0)
        except RadioFault as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    process.kill()
    thread.join(5.0)
    assert not thread.is_alive()
    assert "ended" in str(failures[0])


def test_what_libraries_print_does_not_meet_the_answers(child: Callable[[str], AdiChild]) -> None:
    process = child("print('ERROR: chatty'); os.write(1, b'more'); raise OSError(111, 'Connection refused')")
    with pytest.raises(DeviceError, match="libiio cannot open it: Connection refused"):
        process.ask(OPEN, timeout_s=10.0)


def test_a_foreign_exception_keeps_its_words_and_ends_the_process(child: Callable[[str], AdiChild]) -> None:
    process = child("raise KeyError('odd')")
    with pytest.raises(RadioFault, match=r"ip:192.0.2.1: KeyError: 'odd'"):
        process.ask(OPEN, timeout_s=10.0)
    assert process.killed


def test_libiio_1_is_refused(child: Callable[..., AdiChild]) -> None:
    with pytest.raises(ConfigError, match="libiio 1.0 is in use, .* first quarter of a cyclic waveform"):
        child("pass", version="(1, 0, 'v1.0')").ask(OPEN, timeout_s=10.0)


def test_orders_before_the_radio_is_open_are_refused(child: Callable[[str], AdiChild]) -> None:
    with pytest.raises(Exception, match="the radio is not open"):
        child("pass").ask({"do": "settings"}, timeout_s=10.0)


def test_the_process_ends_with_its_parent_even_while_it_hangs(tmp_path: Path) -> None:
    (tmp_path / "adi.py").write_text("")
    (tmp_path / "iio.py").write_text("import os, signal\nversion = (0, 24)\ndef Context(uri):\n    signal.pause()\n")
    program = (
        "from drivers.adi_child import AdiChild\n"
        "child = AdiChild('ip:x')\n"
        "print(child._process.pid, flush=True)\n"
        "child.ask({'do': 'open', 'uri': 'ip:x'}, timeout_s=60.0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        watched = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert select.select([watched], [], [], 5.0)[0], "the process outlived its parent"
        finally:
            os.close(watched)


def test_nothing_that_answers_is_told_before_libiio_is_asked() -> None:
    begun = time.monotonic()
    with pytest.raises(DeviceError, match="refused"):
        AdiPort("ip:127.0.0.1:1")
    with pytest.raises(ConfigError, match="no address"):
        AdiPort("usb:1.2.3")
    assert time.monotonic() - begun < 3.0


# --- against emulated radios ------------------------------------------------------------------------------------------


def emulated_bench(**changes: Any) -> BenchSpec:
    array = small_bench().array.model_dump()
    array["radios"] = [{"channels": 2, "gain_db": 25.0}, {"gain_db": 25.0}]
    return small_bench(**{"array": array, "nodes": [{"count": 2}], "world": {"temperature_k": 0.0}, **changes})


class EmulatedLine:
    """Time and trigger of emulators in this process."""

    def __init__(self, emulators: Emulators) -> None:
        self._emulators = emulators

    def now_s(self) -> float:
        return self._emulators.now()

    def wait_until(self, at_s: float) -> None:
        self._emulators.advance(at_s)

    def pulse(self, at_s: float) -> None:
        self._emulators.pulse(at_s)

    def close(self) -> None:
        pass


@pytest.fixture
def emulators() -> Iterator[Emulators]:
    with Emulators(emulated_bench()) as opened:
        yield opened


@pytest.fixture
def port(emulators: Emulators) -> Iterator[AdiPort]:
    opened = AdiPort(emulators.addresses["radios"]["node-00"])
    yield opened
    opened.close()


PORTS = [NativePort, pytest.param(AdiPort, marks=needs_libiio)]


@pytest.mark.parametrize("kind", PORTS)
def test_radios_over_every_port_do_what_they_must(kind: Callable[[str], PlutoPort], emulators: Emulators) -> None:
    bench, uris, line = emulated_bench(), emulators.addresses["radios"], EmulatedLine(emulators)
    flags = claimed_flags(bench)
    receivers = [kind(uris["receiver-0"]), kind(uris["receiver-1"])]
    array = PlutoArray(bench, receivers, flags=flags, clock=line, trigger=line)
    node = PlutoTransmitter(bench, "node-01", kind(uris["node-01"]), flags=flags, clock=line, full_scale_dbm=23.0)
    for radio in (array, node):
        check_radio(radio, frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ, soon_s=lambda: emulators.now() + 1e-3)
    assert all(radio["buffers"] == 0 for radio in emulators.state()["radios"].values())
    assert emulators.state()["radios"]["node-01"]["radiated_dbm"] is None


@pytest.mark.parametrize("kind", PORTS)
def test_a_burst_arrives_at_its_sample_through_the_rooms_channel(
    kind: Callable[[str], PlutoPort], emulators: Emulators
) -> None:
    bench, uris, line = emulated_bench(), emulators.addresses["radios"], EmulatedLine(emulators)
    flags = claimed_flags(bench)
    array = PlutoArray(
        bench, [kind(uris["receiver-0"]), kind(uris["receiver-1"])], flags=flags, clock=line, trigger=line
    )
    node = PlutoTransmitter(bench, "node-00", kind(uris["node-00"]), flags=flags, clock=line, full_scale_dbm=23.0)
    for radio in (array, node):
        radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    draws = np.random.default_rng(3).standard_normal((640, 2)).astype(np.float32).view(np.complex64)[:, 0]
    burst = np.float32(0.05) * draws
    for delay in (0, 333):
        at_s = emulators.now() + 1e-3
        array.arm(1001, at_s=at_s)
        node.transmit(burst, at_s=at_s + delay / RATE_HZ, trigger_s=at_s)
        heard = array.read()
        positions_m = np.array([antenna.home_m for antenna in bench.array.antennas])
        positions_m = emulators._positions_m() if bench.movable else positions_m
        channel = np.asarray(emulators.ether.world.channels(["node-00"], positions_m, np.array([at_s]))[0]).ravel()
        expected = np.zeros((3, 1001), np.complex128)
        expected[:, delay : delay + 640] = channel[:, None] * burst
        step = np.sqrt(1e-3 * 10**-2.5) / 2048
        assert np.abs(heard - expected).max() < 1.5 * step
    node.close()
    array.close()


@pytest.mark.parametrize("kind", PORTS)
def test_no_sample_is_older_than_its_capture(kind: Callable[[str], PlutoPort], emulators: Emulators) -> None:
    uris = emulators.addresses["radios"]
    receiver, node = kind(uris["receiver-1"]), kind(uris["node-00"])
    receiver.configure(replace(SETTINGS, tx_gain_db=MUTED_DB))
    node.configure(SETTINGS)
    tone = node.cyclic(np.full((64, 2), 8192, np.int16))
    heard = receiver.capture(4096)
    assert np.abs(heard.wait(5.0)).min() > 10
    forgotten = receiver.capture(4096)
    emulators.advance(emulators.now() + 1.0)  # the kernel fills every buffer that it has
    tone.close()
    fresh = receiver.capture(4096)
    assert not fresh.wait(5.0).any()
    for each in (heard, forgotten, fresh):
        each.close()
    receiver.close()
    node.close()


@pytest.mark.parametrize("kind", PORTS)
def test_over_the_network_a_burst_falls_into_its_window(kind: Callable[[str], PlutoPort]) -> None:
    rate_hz = 1e6
    radio = {"trigger": "network", "start_jitter_s": 0.03}
    bench = emulated_bench(radio=radio, sample_rate_hz=rate_hz)
    guard = round(6 * 0.03 * rate_hz)
    with Emulators(bench, mode="real") as emulators:
        uris, line, flags = emulators.addresses["radios"], EmulatedLine(emulators), claimed_flags(bench)
        array = PlutoArray(bench, [kind(uris["receiver-0"]), kind(uris["receiver-1"])], flags=flags, clock=line)
        nodes = [
            PlutoTransmitter(bench, name, kind(uris[name]), flags=flags, clock=line, full_scale_dbm=23.0)
            for name in bench.node_names
        ]
        radios: list[Radio] = [array, *nodes]
        for each in radios:
            each.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=rate_hz)
        at_s = emulators.now() + 0.5
        array.arm(2 * guard + 1000, at_s=at_s - guard / rate_hz)
        for node in nodes:
            node.transmit(np.full(1000, 0.1, np.complex64), at_s=at_s)
        heard = np.abs(array.read())
        for each in radios:
            each.close()
    loud = np.flatnonzero(heard[2] > 0.1 * heard[2].max())
    assert heard[2].max() > 0
    assert 1000 <= loud[-1] - loud[0] + 1 <= 2 * guard
    assert not heard[2, : loud[0] - 64].any()


@needs_libiio
def test_settings_are_read_back_and_refused_beyond_the_chip(port: AdiPort) -> None:
    assert port.facts.serial == "emulated-node-00"
    assert (port.facts.num_rx, port.facts.num_tx, port.facts.triggered) == (1, 1, True)
    assert port.configure(SETTINGS) == SET
    for wrong, words in (
        ({"frequency_hz": 7_000_000_000}, "outside the radio's range"),
        ({"sample_rate_hz": 100_000}, "100000 samples a second"),
        ({"rx_gain_db": 90.0}, "receive gain of 90 dB"),
        ({"tx_gain_db": 1.0}, "transmit gain of 1 dB"),
    ):
        with pytest.raises(LimitError, match=words):
            port.configure(replace(SETTINGS, **wrong))  # type: ignore[arg-type]
    assert port.settings() == SET
    slow = replace(SETTINGS, sample_rate_hz=1_000_000, bandwidth_hz=1_000_000, xo_correction=40_000_100)
    found = port.configure(slow)
    assert abs(found.sample_rate_hz - 1_000_000) < 10
    assert (found.tx_gain_db, found.xo_correction) == (-3.0, 40_000_100)
    assert port.configure(SET) == SET


@needs_libiio
def test_another_serial_number_is_refused(emulators: Emulators) -> None:
    with pytest.raises(DeviceError, match="serial number emulated-node-00; the bench file says 1234"):
        AdiPort(emulators.addresses["radios"]["node-00"], serial="1234")


@needs_libiio
def test_a_waveform_repeats_until_it_is_closed(port: AdiPort, emulators: Emulators) -> None:
    def radio() -> dict[str, Any]:
        return dict(emulators.state()["radios"]["node-00"])

    port.configure(SETTINGS)
    burst = port.cyclic(np.full((100, 2), 8192, np.int16))
    assert radio()["transmitting"]
    with pytest.raises(LimitError, match="carrier step of 150 MHz while a transmit buffer lives"):
        port.configure(replace(SETTINGS, frequency_hz=2_300_000_000))
    assert radio()["tx_lo_hz"] == pytest.approx(2.45e9, abs=10)
    emulators.advance(emulators.now() + 100.0)
    assert radio()["transmitting"]
    port.silence()
    assert (radio()["transmitting"], radio()["buffers"], radio()["tx_gain_db"]) == (False, 0, MUTED_DB)
    port.unsilence()
    assert (radio()["powerdown"], radio()["tx_gain_db"]) == (False, -3.0)
    burst.close()
    with pytest.raises(RadioFault, match="closed"):
        burst.release()


@needs_libiio
def test_an_old_burst_cannot_end_a_new_one(port: AdiPort, emulators: Emulators) -> None:
    port.configure(SETTINGS)
    codes = np.full((64, 2), 8192, np.int16)
    old = port.cyclic(codes)
    new = port.cyclic(codes)
    old.close()
    assert emulators.state()["radios"]["node-00"]["transmitting"]
    new.close()
    assert not emulators.state()["radios"]["node-00"]["transmitting"]
    for bad in (codes.astype(np.int32), codes[:, :1], codes[:0]):
        with pytest.raises(LimitError, match="int16 go out"):
            port.burst(bad)


@needs_libiio
def test_a_buffer_that_somebody_else_holds_is_told(port: AdiPort, emulators: Emulators) -> None:
    port.configure(SETTINGS)
    other = NativePort(emulators.addresses["radios"]["node-00"])
    held = other.capture(64)
    with pytest.raises(RadioFault, match="another program holds the receive buffer"):
        port.capture(64)
    held.close()
    capture = port.capture(64)
    assert capture.wait(5.0).shape == (64, 2)
    capture.close()
    other.close()


@needs_libiio
def test_silence_works_while_the_data_path_hangs(port: AdiPort, emulators: Emulators) -> None:
    port.configure(SETTINGS)
    port.cyclic(np.full((64, 2), 8192, np.int16))
    capture = port.capture(64, triggered=True)
    failures: list[str] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            capture.wait(60.0)  # for a trigger that never comes
        except RadioFault as error:
            failures.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(5.0)
    begun = time.monotonic()
    port.silence()
    assert time.monotonic() - begun < 2.0
    radio = emulators.state()["radios"]["node-00"]
    assert (radio["transmitting"], radio["tx_gain_db"]) == (False, MUTED_DB)
    capture.close()
    thread.join(10.0)
    assert not thread.is_alive()
    port.configure(SETTINGS)
    port.unsilence()
    assert port.settings() == SET


@needs_libiio
def test_a_capture_whose_trigger_never_comes_ends_in_time_and_the_next_one_works(port: AdiPort) -> None:
    port.configure(SETTINGS)
    with pytest.raises(RadioFault, match="did not finish receive within 0.3 s"):
        port.capture(64, triggered=True).wait(0.3)
    capture = port.capture(64)
    assert capture.wait(5.0).shape == (64, 2)
    capture.close()


@needs_libiio
def test_after_a_crash_the_settings_are_verified_before_anything_is_sent(port: AdiPort, emulators: Emulators) -> None:
    port.configure(SETTINGS)
    burst = port.burst(np.zeros((64, 2), np.int16))

    def crash() -> None:
        assert port._child is not None
        os.kill(port._child._process.pid, signal.SIGSEGV)
        with pytest.raises(RadioFault, match="SIGSEGV"):
            port.settings()

    crash()
    with pytest.raises(RadioFault, match="buffer is gone"):
        burst.release()
    assert port.settings() == SET
    emulators.fault("node-00", "wrong-serial", text="stranger")
    crash()
    with pytest.raises(DeviceError, match="serial number stranger, where it was emulated-node-00"):
        port.settings()
    assert port.settings() == SET
    other = NativePort(emulators.addresses["radios"]["node-00"])
    crash()
    other.configure(replace(SETTINGS, frequency_hz=2_440_000_000))
    other.close()
    for _ in range(2):
        with pytest.raises(RadioFault, match="while the link was broken the radio changed: frequency 2440000000"):
            port.burst(np.zeros((64, 2), np.int16))
    assert port.configure(SETTINGS) == SET
    port.unsilence()
    port.burst(np.zeros((64, 2), np.int16)).close()


@needs_libiio
def test_a_stall_is_a_fault_in_time_and_nothing_is_misread_after_it(
    port: AdiPort, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    port.configure(SETTINGS)
    monkeypatch.setattr(drivers.pluto, "ATTRIBUTE_TIMEOUT_S", 0.4)
    emulators.fault("node-00", "stall", seconds=1.0)
    with pytest.raises(RadioFault, match="did not finish settings within 0.4 s"):
        port.settings()
    monkeypatch.undo()
    for _ in range(3):
        assert port.settings() == SET


@needs_libiio
@pytest.mark.parametrize("fault", ["nan", "garbage"])
def test_what_is_no_number_is_never_a_setting(port: AdiPort, emulators: Emulators, fault: str) -> None:
    port.configure(SETTINGS)
    emulators.fault("node-00", fault)
    with pytest.raises(RadioFault):
        port.settings()
    assert port.settings() == SET


@needs_libiio
def test_a_closed_port_is_closed(emulators: Emulators) -> None:
    opened = AdiPort(emulators.addresses["radios"]["node-00"])
    opened.configure(SETTINGS)
    opened.cyclic(np.full((64, 2), 8192, np.int16))
    for _ in range(2):
        opened.close()
    radio = emulators.state()["radios"]["node-00"]
    assert (radio["transmitting"], radio["buffers"], radio["tx_gain_db"]) == (False, 0, MUTED_DB)
    with pytest.raises(RadioFault, match="closed"):
        opened.settings()
