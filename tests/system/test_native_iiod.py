"""The native client against Debian's own iiod: alone, and between it and an emulated radio."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivers.iiod_buffer import IiodBuffer
from drivers.iiod_client import IiodClient, IiodRefusal
from drivers.pluto_native import NativePort
from drivers.pluto_port import MUTED_DB, PlutoSettings
from sim_backend.emulators.chip import Chip, Identity
from sim_backend.emulators.context_xml import context_xml
from sim_backend.emulators.host import Emulators
from testbed.core.errors import LimitError, RadioFault
from tests.benches import small_bench

pytestmark = pytest.mark.skipif(shutil.which("iiod") is None, reason="needs the real server: apt-get install iiod")

SETTINGS = PlutoSettings(2_450_000_000, 1_000_000, 800_000, 30.0, -10.0)


@pytest.fixture
def iiod() -> Iterator[Callable[[str], str]]:
    """Starts the real server over a context, and gives its address."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(context: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["iiod", "-u", context, "-p", str(port)]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 10.0
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                return f"ip:127.0.0.1:{port}"
            except OSError:
                assert time.monotonic() < deadline, "iiod does not listen"
                assert servers[-1].poll() is None, "iiod ended"
                threading.Event().wait(0.02)

    yield start
    for server in servers:
        server.kill()
        server.wait(10.0)


def test_a_description_without_a_radio_behind_it(iiod: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "pluto.xml"
    path.write_text(context_xml(Chip(Identity(serial="paper"))))
    client = IiodClient(iiod(f"xml:{path}"))
    try:
        assert client.version() == (0, 24, "v0.24")
        assert client.context.attributes["hw_serial"] == "paper"
        phy = client.context.device("ad9361-phy").identity
        for device, code in ((phy, errno.ENOSYS), ("nobody", errno.ENODEV)):
            with pytest.raises(IiodRefusal) as caught:
                client.read(device, "calib_mode")
            assert caught.value.code == code
            assert client.version() == (0, 24, "v0.24")
        with pytest.raises(IiodRefusal, match="there is no such device"):
            client.write("nobody", "calib_mode", "manual")
        assert client.version() == (0, 24, "v0.24")
        buffer = IiodBuffer(client, client.context.device("cf-ad9361-lpc"))
        with pytest.raises(IiodRefusal):
            buffer.open(64, 0b11)
        buffer.close()
    finally:
        client.close()


@pytest.fixture
def port(iiod: Callable[[str], str]) -> Iterator[tuple[NativePort, Emulators]]:
    """A radio behind the real server, and the world it is in."""
    bench = small_bench(nodes=[{"name": "node-00"}], radio={"trigger": "clock"})
    with Emulators(bench) as emulators:
        port = NativePort(iiod(emulators.addresses["radios"]["node-00"]))
        try:
            yield port, emulators
        finally:
            port.close()


def test_a_whole_session_through_the_real_server(port: tuple[NativePort, Emulators]) -> None:
    radio, bench = port

    def state() -> dict[str, object]:
        found: dict[str, object] = bench.state()["radios"]["node-00"]
        return found

    assert radio.facts.triggered
    assert radio.configure(SETTINGS) == replace(SETTINGS, xo_correction=40_000_000)
    for num_samples in (1, 1000, 65_536):
        capture = radio.capture(num_samples)
        assert capture.wait(2.0).shape == (num_samples, 2)
        capture.close()
    codes = np.full((64, 2), 8_000, np.int16)
    for _ in range(5):
        burst = radio.cyclic(codes)
        assert state()["transmitting"]
        with pytest.raises(LimitError):
            radio.configure(replace(SETTINGS, frequency_hz=2_600_000_000))
        burst.close()
        # the real server closes its own connection when it comes to it
        deadline_s = time.monotonic() + 5.0
        while state()["transmitting"] and time.monotonic() < deadline_s:
            pass
        assert not state()["transmitting"]
    radio.burst(codes).close()
    assert not state()["transmitting"]
    burst = radio.burst(codes)
    burst.release()
    burst.close()
    radio.cyclic(codes)
    radio.silence()
    now = state()
    assert (now["transmitting"], now["tx_gain_db"], now["powerdown"]) == (False, MUTED_DB, True)
    radio.unsilence()
    assert radio.settings() == replace(SETTINGS, xo_correction=40_000_000)


def test_a_triggered_capture_through_the_real_server(port: tuple[NativePort, Emulators]) -> None:
    radio, bench = port
    radio.configure(SETTINGS)
    capture = radio.capture(1000, triggered=True)
    with pytest.raises(RadioFault, match="waiting for the trigger"):
        capture.wait(0.2)
    capture = radio.capture(1000, triggered=True)
    bench.pulse(1.0)
    assert capture.wait(2.0).shape == (1000, 2)
    capture.close()
