"""Devices that are absent, wrong or taken: a typed error in time that says what to check, and all stays quiet."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from drivers.lab import open_bench, open_node
from drivers.leases import Leases
from drivers.pluto_native import NativePort
from drivers.pluto_port import PlutoSettings
from drivers.zmq_link import ZmqLink
from sim_backend.emulators.host import Emulators
from testbed.core import messages
from testbed.core.bench import BenchSpec
from testbed.core.errors import (
    BenchError,
    ConfigError,
    ConfigErrors,
    DeviceError,
    LimitError,
    LinkTimeout,
    ProtocolError,
    StageFault,
)
from testbed.engine.consent import check_consent
from tests.addressed import addressed
from tests.benches import small_bench
from tests.fake_iiod import FakeIiod, description

PATIENCE_S = 3.0
SPEED = 25.0
"""Emulated seconds in a real one, so that homing takes no time."""
TRANSMITTER = '<device id="iio:device2" name="cf-ad9361-dds-core-lpc">'
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE context [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True))
    + ']><context name="&i;" description="boom"></context>'
)

Content = dict[str, Any]
Breaks = Callable[[Content], None]


class Talker:
    """A server that is no iiod: greets, and answers every line with the same bytes."""

    def __init__(self, greeting: bytes, answer: bytes) -> None:
        self._greeting, self._answer = greeting, answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.uri = f"ip:127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Talker:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._connections):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client hung up first
        self._listener.close()
        for thread in self._threads:
            thread.join(5.0)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            try:
                connection.sendall(self._greeting)
                while lines.readline():
                    connection.sendall(self._answer)
            except OSError:
                pass  # the client has seen enough


def described(xml: str) -> bytes:
    """As iiod answers PRINT."""
    return b"%d\n%b\n" % (len(xml), xml.encode())


@pytest.fixture(autouse=True)
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leases:
    """Leases of this test alone; none may be left at its end."""
    monkeypatch.setenv("TESTBED_LEASES", str(tmp_path / "leases"))
    return Leases()


@pytest.fixture(scope="module")
def emulators() -> Iterator[Emulators]:
    with Emulators(plain(), mode="real", speed=SPEED) as emulators:
        yield emulators


def plain(**changes: Any) -> BenchSpec:
    """One antenna on a stage, one fixed, two nodes; a message on the network starts bursts."""
    content = small_bench(nodes=[{"count": 2}], radio={"trigger": "network", "start_jitter_s": 5e-3}).model_dump()
    content["array"]["antennas"] = [content["array"]["antennas"][0], content["array"]["antennas"][2]]
    return BenchSpec.model_validate({**content, **changes})


def content_of(emulators: Emulators) -> Content:
    """The bench file with the emulators' addresses."""
    return addressed(plain(), emulators.addresses).model_dump()


def stage_of(content: Content) -> Content:
    """The stage's table."""
    stage: Content = content["array"]["antennas"][0]["stage"]
    return stage


def quiet(emulators: Emulators) -> bool:
    """Nothing radiates or moves, says who must know."""
    state = emulators.state()
    loud = [each for each in state["radios"].values() if each["radiated_dbm"] is not None]
    return not loud and not any(each["moving"] for each in state["stages"].values())


def refused(content: Mapping[str, Any], folder: Path, emulators: Emulators, leases: Leases) -> BenchError:
    """What opening this bench says, in time; afterwards nothing moves, radiates or is leased."""
    began_s = time.monotonic()
    with pytest.raises(BenchError) as raised:
        open_bench(BenchSpec.model_validate(content), seed=0, folder=folder).close()
    assert time.monotonic() - began_s < PATIENCE_S
    assert quiet(emulators)
    assert leases.held() == ()
    return raised.value


def assert_helpful(error: BenchError, kind: type[BenchError], words: str, remedy: str) -> None:
    """It has the type, says what is wrong, and what to do about it."""
    assert isinstance(error, kind), repr(error)
    assert words in str(error)
    errors = error.errors if isinstance(error, ConfigErrors) else (error,)
    assert all(remedy in (each.remedy or "") for each in errors), error


def receiver(**changes: Any) -> Breaks:
    """Changes keys of the first receiver."""
    return lambda content: content["array"]["radios"][0].update(changes)


def port(**changes: Any) -> Breaks:
    """Changes keys of the stage's port."""
    return lambda content: stage_of(content)["device"].update(changes)


WRONG_KEYS: dict[str, tuple[Breaks, type[BenchError], str, str]] = {
    "no uri": (receiver(uri=None), ConfigError, "array.radios.0.uri", "docs/hardware.md"),
    "nothing at the uri": (receiver(uri="ip:127.0.0.1:1"), DeviceError, "127.0.0.1:1: connection refused", "30431"),
    "no such host": (receiver(uri="ip:no-such-host.invalid"), DeviceError, "no-such-host.invalid", "spelling"),
    "another serial number": (receiver(serial="1044"), DeviceError, "emulated-receiver-0", "serial"),
    "two channels of a 1R1T radio": (
        lambda content: content["array"].update(radios=[{**content["array"]["radios"][0], "channels": 2}]),
        ConfigError,
        "1 receive channel",
        "2r2t",
    ),
    "no stage port": (port(port=None), ConfigError, "antennas.0.stage.device.port", "docs/hardware.md"),
    "no such tty": (port(port="/dev/ttyNothing"), DeviceError, "/dev/ttyNothing", "serial ports here"),
    "no tty": (port(port="/dev/null"), DeviceError, "/dev/null", "port"),
    "nothing at the stage's socket": (port(port="socket://127.0.0.1:1"), DeviceError, "127.0.0.1:1", "listen"),
    "a stage faster than its controller": (
        lambda content: stage_of(content).update(speed_m_s=0.4),
        ConfigError,
        "$110",
        "speed_m_s",
    ),
    "a home beyond the travel": (
        lambda content: stage_of(content).update(travel_m=((0.2, 0.375), (0.2, 0.375))),
        BenchError,
        "0.05",
        "",
    ),
    "no such trigger line": (
        lambda content: content["radio"].update(trigger="clock", trigger_line="rts:/dev/ttyNothing"),
        DeviceError,
        "rts:/dev/ttyNothing",
        "list_ports",
    ),
    "a trigger nobody pulls": (
        lambda content: content["radio"].update(trigger="clock"),
        ConfigError,
        "trigger_line",
        "rts:/dev/ttyUSB0",
    ),
    "a beacon": (
        lambda content: content["radio"].update(trigger="beacon"),
        ConfigError,
        "beacon",
        'radio.trigger = "clock"',
    ),
}


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_a_bench_file_that_does_not_fit(name: str, emulators: Emulators, tmp_path: Path, leases: Leases) -> None:
    breaks, kind, words, remedy = WRONG_KEYS[name]
    content = content_of(emulators)
    breaks(content)
    assert_helpful(refused(content, tmp_path, emulators, leases), kind, words, remedy)


OTHERS: dict[str, tuple[type[BenchError], bytes, bytes, str]] = {
    "ssh": (ProtocolError, b"SSH-2.0-dropbear\r\n", b"Protocol mismatch.\r\n", "no iiod"),
    "http": (ProtocolError, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", "no iiod"),
    "another device": (DeviceError, b"", described(description("1", chip="adxl345")), "is this a PlutoSDR"),
    "a radio without transmitter": (
        DeviceError,
        b"",
        described(description("1").replace(TRANSMITTER, '<device id="iio:device2" name="xadc">')),
        "cf-a",
    ),
    "a bomb": (ProtocolError, b"", described(BOMB), "entit"),
    "half a description": (ProtocolError, b"", described(description("1")[:300]), "description"),
    "an endless description": (ProtocolError, b"", b"99999999999\n", "99999999999"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_something_else_behind_the_uri(name: str, emulators: Emulators, tmp_path: Path, leases: Leases) -> None:
    kind, greeting, answer, words = OTHERS[name]
    content = content_of(emulators)
    with Talker(greeting, answer) as other:
        content["array"]["radios"][0]["uri"] = other.uri
        error = refused(content, tmp_path, emulators, leases)
        assert_helpful(error, kind, words, "check")
        assert other.uri in str(error)
        node = {**content["nodes"][0], "radio": {"uri": other.uri}}
        with pytest.raises(kind, match=other.uri):
            open_node(BenchSpec.model_validate({**content, "nodes": [node]}), "node-00", {})
    assert leases.held() == ()


def test_a_radio_that_says_nothing(emulators: Emulators, tmp_path: Path, leases: Leases) -> None:
    content = content_of(emulators)
    with FakeIiod() as silent:
        silent.stall()
        content["array"]["radios"][0]["uri"] = silent.uri
        assert_helpful(refused(content, tmp_path, emulators, leases), LinkTimeout, silent.uri, "power")


GOOD = PlutoSettings(2_450_000_000, 5_000_000, 5_000_000, 30.0, -89.75)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (replace(GOOD, frequency_hz=6_500_000_000), "frequency_hz = 6500000000"),
        (replace(GOOD, frequency_hz=100_000_000), "frequency_hz = 100000000"),
        (replace(GOOD, sample_rate_hz=70_000_000), "sample_rate_hz = 70000000"),
        (replace(GOOD, sample_rate_hz=100_000), "sample_rate_hz = 100000"),
        (replace(GOOD, rx_gain_db=90.0), "rx_gain_db = 90"),
        (replace(GOOD, tx_gain_db=3.0), "tx_gain_db = 3"),
    ],
)
def test_what_the_chip_cannot_do(order: PlutoSettings, words: str, emulators: Emulators) -> None:
    radio = NativePort(emulators.addresses["radios"]["node-00"])
    try:
        before = radio.settings()
        with pytest.raises(LimitError, match=radio.facts.uri) as raised:
            radio.configure(order)
        assert words in str(raised.value)
        assert "choose" in (raised.value.remedy or "")
        assert radio.settings() == before
    finally:
        radio.close()
    assert quiet(emulators)


def test_a_stage_that_is_not_homed_may_refuse(emulators: Emulators, tmp_path: Path, leases: Leases) -> None:
    emulators.fault("stage-0", "brown-out")
    content = content_of(emulators)
    stage_of(content)["device"]["home"] = False
    before_m = emulators.state()["stages"]["stage-0"]["position_m"]
    assert_helpful(refused(content, tmp_path, emulators, leases), StageFault, "home", "home")
    assert emulators.state()["stages"]["stage-0"]["position_m"] == before_m


def test_a_place_out_of_travel_moves_nothing(emulators: Emulators, tmp_path: Path, leases: Leases) -> None:
    devices = open_bench(BenchSpec.model_validate(content_of(emulators)), seed=0, folder=tmp_path)
    try:
        stage = devices.stages[0]
        assert stage is not None
        with pytest.raises(LimitError, match=r"0\.4"):
            stage.move_to(stage.position_m + 0.4)
        assert quiet(emulators)
    finally:
        devices.close()
    assert leases.held() == ()


def test_a_port_that_this_user_may_not_open(
    emulators: Emulators, tmp_path: Path, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = emulators.addresses["stages"]["stage-0"]["pty"]
    really = os.open

    def forbidden(name: Any, *arguments: Any, **options: Any) -> int:
        if name == path:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return really(name, *arguments, **options)

    monkeypatch.setattr(os, "open", forbidden)
    assert_helpful(refused(content_of(emulators), tmp_path, emulators, leases), DeviceError, path, "dialout")


def test_a_port_in_use(emulators: Emulators, tmp_path: Path, leases: Leases) -> None:
    import serial

    path = emulators.addresses["stages"]["stage-0"]["pty"]
    with serial.Serial(path, exclusive=True):
        error = refused(content_of(emulators), tmp_path, emulators, leases)
    assert_helpful(error, DeviceError, "another process uses this serial port", f"fuser -v {path}")


def test_an_address_in_use(emulators: Emulators, tmp_path: Path, leases: Leases) -> None:
    content = content_of(emulators)
    # without stages: homed again and again they would only take time
    content["array"]["antennas"][0]["stage"] = None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        content["link"]["listen"] = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        error = refused(content, tmp_path, emulators, leases)
        assert_helpful(error, DeviceError, "in use", "free port")
        with pytest.raises(BenchError, match="cannot|in use"):
            Emulators(plain(), mode="real", first_port=taken.getsockname()[1])


@pytest.mark.parametrize(
    ("module", "breaks", "install"),
    [
        ("serial", port(), "pyserial"),
        ("zaber_motion", port(driver="zaber", microstep_m=1e-6), "zaber-motion"),
        ("adi", receiver(driver="pyadi"), "pyadi-iio"),
        ("iio", receiver(driver="pyadi"), "pylibiio"),
    ],
)
def test_a_package_that_is_missing(
    module: str,
    breaks: Breaks,
    install: str,
    emulators: Emulators,
    tmp_path: Path,
    leases: Leases,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    # the driver of pyadi-iio lives in a process of its own
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module named {module}', name='{module}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    content = content_of(emulators)
    breaks(content)
    error = refused(content, tmp_path, emulators, leases)
    assert install in (error.remedy or "")
    assert "install" in (error.remedy or "")


def test_a_node_that_leaves_an_order_for_a_burst_unanswered_is_dismissed() -> None:
    """What it makes ready too late must not wait for a trigger that is meant for others."""
    link = ZmqLink()
    import zmq

    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        peer.connect(link.address)
        peer.send_multipart(messages.encode(messages.Hello(nodes=("a",))))
        link.wait_for(["a"], timeout_s=5)
        assert link.ask({"a": (messages.SendUpdate(node="a"), {})}, timeout_s=0.05) == {}
        assert link.nodes == ("a",), "only its burst is dangerous"
        burst = messages.SendPilots(node="a", at_s=0.0, power_w=1e-3, num_pilots=2, waveform=plain().waveform)
        assert link.ask({"a": (burst, {})}, timeout_s=0.05) == {}
        assert not link.nodes
        heard = []
        while peer.poll(2000):
            heard.append(messages.decode(peer.recv_multipart()).message.kind)
        assert heard[-1] == "bye"
    finally:
        peer.close(0)
        link.close()
        context.term()


def test_consent_names_its_word() -> None:
    with pytest.raises(ConfigError, match="--yes-transmit"):
        check_consent("lab", yes_transmit=False)
    check_consent("lab", yes_transmit=True)
    check_consent("emulated", yes_transmit=False)
