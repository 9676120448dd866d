"""Other people's software against the emulated PlutoSDRs: libiio's own tools, its server as a proxy, and pyadi-iio."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from sim_backend.emulators.host import Emulators
from tests.benches import small_bench

TOOLS = ("iio_info", "iio_attr", "iio_readdev", "iio_writedev")
needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason="needs: apt-get install -y libiio-utils"
)
needs_iiod = pytest.mark.skipif(shutil.which("iiod") is None, reason="needs: apt-get install -y iiod")
needs_adi = pytest.mark.skipif(
    importlib.util.find_spec("adi") is None or importlib.util.find_spec("iio") is None,
    reason="needs: apt-get install -y libiio0 && pip install pyadi-iio==0.0.21 pylibiio==0.25",
)
PATIENCE_S = 30.0

# pyadi-iio may end in a segmentation fault when its objects go in the wrong order: it runs in a process of its own.
TONE = """
import json, sys
import adi, numpy as np
kind, uri = sys.argv[1:]
sdr = (adi.Pluto if kind == "Pluto" else adi.ad9361)(uri=uri)
said = {}
try:
    sdr.sample_rate = 1_000_000
    sdr.rx_lo = sdr.tx_lo = 2_400_000_000
    sdr.rx_rf_bandwidth = sdr.tx_rf_bandwidth = 1_000_000
    sdr.gain_control_mode_chan0 = "slow_attack"
    said["automatic"] = sdr.rx_hardwaregain_chan0
    sdr.rx_hardwaregain_chan0 = 33.0
    said["ignored"] = sdr.rx_hardwaregain_chan0
    sdr.gain_control_mode_chan0 = "manual"
    sdr.rx_hardwaregain_chan0 = 20.0
    sdr.tx_hardwaregain_chan0 = -10.1
    said |= {"rate": sdr.sample_rate, "rx_lo": sdr.rx_lo, "tx_lo": sdr.tx_lo, "rx_gain": sdr.rx_hardwaregain_chan0}
    said |= {"tx_gain": sdr.tx_hardwaregain_chan0, "filter": sdr.filter, "text": repr(sdr) if kind == "Pluto" else ""}
    sdr.tx_cyclic_buffer = True
    sdr.rx_buffer_size = 4096
    wave = 2**14 * np.exp(2j * np.pi * 50 * np.arange(1000) / 1000)
    channels = len(sdr.tx_enabled_channels)
    sdr.tx(wave if channels == 1 else [wave] * channels)
    for _ in range(5):
        heard = sdr.rx()
    first = heard if channels == 1 else heard[0]
    spectrum = np.abs(np.fft.fft(first))
    said["channels"] = 1 if channels == 1 else len(heard)
    said["peak_hz"] = float(np.fft.fftfreq(4096, 1e-6)[spectrum.argmax()])
    said["level"] = float(np.abs(first).mean())
    try:
        sdr.tx(wave if channels == 1 else [wave] * channels)
    except Exception as error:
        said["second"] = str(error)
    sdr.tx_destroy_buffer()
    sdr.rx_destroy_buffer()
    for _ in range(5):
        quiet = sdr.rx()
    said["quiet"] = float(np.abs(quiet if channels == 1 else quiet[0]).mean())
    sdr.rx_destroy_buffer()
    sdr.dds_single_tone(100_000, 0.5)
    said["tones_hz"] = sdr.dds_frequencies
finally:
    sdr.disable_dds()
    sdr.tx_destroy_buffer()
    sdr.rx_destroy_buffer()
    del sdr
print(json.dumps(said))
"""
TRIGGER = """
import json, sys
import adi
tdd = adi.tddn(uri=sys.argv[1])
tdd.enable = 0
tdd.startup_delay_raw = 7
tdd.frame_length_ms = 2.5
tdd.burst_count = 1
tdd.sync_external = 1
tdd.channel[1].enable = 1
tdd.channel[1].on_raw = 5
tdd.enable = 1
said = {"delay": tdd.startup_delay_raw, "frame_ms": tdd.frame_length_ms, "bursts": tdd.burst_count}
said |= {"external": tdd.sync_external, "enable": tdd.enable, "state": tdd.state, "channels": len(tdd.channel)}
said |= {"on": tdd.channel[1].on_raw, "on_ms": tdd.channel[1].on_ms, "polarity": tdd.channel[1].polarity}
tdd.sync_soft = 1
tdd.enable = 0
pins = adi.one_bit_adc_dac(uri=sys.argv[1])
pins.gpio_phaser_enable = 1
said["pins"] = [pins.gpio_phaser_enable, pins.gpio_tdd_ext_sync]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def emulators() -> Iterator[Emulators]:
    """One receiver with two channels and one node, at 2.4 GHz."""
    array = {
        "origin_m": [0.0, 4.0, 1.0],
        "region_m": [[0.0, 0.375], [0.0, 0.375]],
        "min_spacing_m": 0.0625,
        "antennas": [{"home_m": [0.05, 0.05]}, {"home_m": [0.25, 0.05]}],
        "radios": [{"channels": 2}],
    }
    with Emulators(small_bench(array=array, nodes=[{"count": 1}]), seed=1) as emulators:
        yield emulators


@pytest.fixture
def node(emulators: Emulators) -> str:
    """URI of the node's radio, which has one channel."""
    return next(server.uri for name, server in emulators.servers.items() if not name.startswith("receiver"))


@pytest.fixture
def receiver(emulators: Emulators) -> str:
    """URI of the receiver, which has two."""
    return emulators.servers["receiver-0"].uri


def run(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words, input=given, capture_output=True, timeout=PATIENCE_S, check=False)


def python(script: str, *words: str) -> dict[str, Any]:
    """What a script prints, in a process of its own that has to end well."""
    done = run(sys.executable, "-c", script, *words)
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


@contextmanager
def proxy(uri: str) -> Iterator[str]:
    """Debian's own iiod in front of a radio."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["iiod", "-u", uri, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port, process)
        yield f"ip:127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            assert process.poll() is None, "iiod ended"
            assert time.monotonic() < deadline_s, "iiod does not answer"
        else:
            return


def answers(uri: str, requests: Sequence[bytes]) -> list[bytes]:
    """What a server answers on one connection, up to the mark that each answer is followed by."""
    host, port = uri.removeprefix("ip:").rsplit(":", 1)
    said = []
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        file = connection.makefile("rb")
        for request in requests:
            connection.sendall(request + b"VERSION\r\n")
            answer = b""
            while not answer.endswith(b"0.24.v0.24  \n"):
                answer += file.readline() or pytest.fail(f"{uri} left at {request!r} after {answer!r}")
            said.append(answer)
        file.close()
    return said


# --- libiio-utils ----------------------------------------------------------------------------------------------------


@needs_tools
def test_iio_info_reads_everything_without_a_complaint(node: str) -> None:
    done = run("iio_info", "-u", node)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    for line in (
        "IIO context has 6 devices:",
        "hw_serial: emulated-",
        "ad9361-phy,xo_correction: 40000000",
        "altvoltage0: RX_LO (output)",
        "attr  1: frequency value: 2400000000",
        "attr  1: hardwaregain_available value: [-89.750000 0.250000 0.000000]",
        "voltage0:  (input, index: 0, format: le:S12/16>>0)",
        "voltage0:  (output, index: 0, format: le:S16/16>>0)",
        "adi-iio-fakedev (label: iio-axi-tdd-0)",
    ):
        assert line in text
    errors = [line.strip() for line in text.splitlines() if "ERROR" in line and "trigger" not in line]
    assert errors == ["attr  4: sync_soft ERROR: Permission denied (13)"]


@needs_tools
def test_iio_attr_reads_writes_and_is_refused(receiver: str) -> None:
    carrier = ("iio_attr", "-u", receiver, "-c", "-o", "ad9361-phy", "altvoltage1", "frequency")
    assert run(*carrier, "2450000000").stdout.strip() == b"2450000000"
    assert run(*carrier).stdout.strip() == b"2450000000"
    refused = run(*carrier, "5")
    assert b"Invalid argument (22)" in refused.stdout + refused.stderr
    gain = ("iio_attr", "-u", receiver, "-c", "-o", "ad9361-phy", "voltage1", "hardwaregain")
    assert run(*gain, "-20.1").stdout.strip() == b"-20.000000 dB"
    assert run("iio_attr", "-u", receiver, "-d", "ad9361-phy", "ensm_mode").stdout.strip() == b"fdd"
    assert run("iio_attr", "-u", receiver, "-D", "ad9361-phy", "loopback", "0").returncode == 0
    pins = run("iio_attr", "-u", receiver, "-C", "hw_serial")
    assert b"emulated-receiver-0" in pins.stdout


@needs_tools
@pytest.mark.parametrize(("channels", "sample_bytes"), [((), 8), (("voltage0", "voltage1"), 4)])
def test_iio_readdev_captures(receiver: str, channels: tuple[str, ...], sample_bytes: int) -> None:
    done = run("iio_readdev", "-u", receiver, "-b", "1024", "-s", "5000", "cf-ad9361-lpc", *channels)
    assert (done.returncode, len(done.stdout)) == (0, 5000 * sample_bytes)
    codes = np.frombuffer(done.stdout, "<i2")
    assert np.all(np.abs(codes) <= 2048)


@needs_tools
def test_iio_writedev_plays(node: str) -> None:
    samples = (8192 * np.ones(2000)).astype("<i2").tobytes()
    done = run("iio_writedev", "-u", node, "-b", "500", "-s", "1000", "cf-ad9361-dds-core-lpc", given=samples)
    assert done.returncode == 0, done.stderr.decode()


# --- pyadi-iio -------------------------------------------------------------------------------------------------------


def check_tone(said: dict[str, Any], channels: int) -> None:
    assert said["ignored"] == said["automatic"] != 33
    assert (said["rate"], said["rx_lo"], said["tx_lo"]) == (1_000_000, 2_400_000_000, 2_400_000_000)
    assert (said["rx_gain"], said["tx_gain"]) == (20, -10)
    assert said["filter"] == [128.0, 4.0, 128.0, 4.0]
    assert said["channels"] == channels
    assert said["peak_hz"] == pytest.approx(50e3, abs=250)
    assert said["level"] > 10 * said["quiet"]
    assert "must be destroyed first" in said["second"]
    assert abs(float(said["tones_hz"][0]) - 100e3) < 20


@needs_adi
def test_pluto_hears_its_own_tone(node: str) -> None:
    said = python(TONE, "Pluto", node)
    check_tone(said, 1)
    assert "rx_lo:                   2400.0" in said["text"]


@needs_adi
def test_two_channels_hear_their_own_tone(receiver: str) -> None:
    check_tone(python(TONE, "ad9361", receiver), 2)


@needs_adi
def test_the_trigger_is_pyadis(node: str) -> None:
    said = python(TRIGGER, node)
    assert said.pop("on_ms") > 0
    assert said == {
        "delay": 7,
        "frame_ms": 2.5,
        "bursts": 1,
        "external": True,
        "enable": True,
        "state": 1,
        "channels": 3,
        "on": 5,
        "polarity": False,
        "pins": [1, 0],
    }


# --- the real iiod ---------------------------------------------------------------------------------------------------


@needs_iiod
@needs_adi
def test_pluto_hears_its_own_tone_through_the_real_iiod(node: str) -> None:
    with proxy(node) as uri:
        check_tone(python(TONE, "Pluto", uri), 1)


@needs_iiod
@needs_adi
def test_two_channels_hear_their_own_tone_through_the_real_iiod(receiver: str) -> None:
    with proxy(receiver) as uri:
        check_tone(python(TONE, "ad9361", uri), 2)


@needs_iiod
def test_the_real_iiod_answers_alike(node: str) -> None:
    """The real server in front of the emulated one, and the emulated one alone: the same answers and errors."""
    device = b"cf-ad9361-lpc"
    requests = [
        *(b"", b"   \r\n", b" VERSION\r\n", b"Version\r\n", b"version 2\r\n", b"BINARY\r\n", b"ZPRINT\r\n", b"FOO\r\n"),
        *(b"READ\r\n", b"READ nothing x\r\n", b"READ ad9361-phy nothing\r\n", b"READ ad9361-phy DEBUG nothing\r\n"),
        *(b"READ iio:device0 INPUT\r\n", b"READ iio:device0 INPUT voltage9 x\r\n", b"read iio:device0 ensm_mode\r\n"),
        *(b"READ iio-axi-tdd-0 enable\r\n", b"READ iio-axi-tdd-0 sync_soft\r\n", b"READ xadc\r\n"),
        *(b"READ ad9361-phy OUTPUT altvoltage0\r\n", b"READ ad9361-phy OUTPUT RX_LO frequency\r\n"),
        *(b"READ ad9361-phy DEBUG loopback\r\n", b"READ cf-ad9361-lpc BUFFER direction\r\n"),
        *(b"WRITE ad9361-phy nothing 2\r\n1\0", b"WRITE ad9361-phy ensm_mode 5\r\nrest\0"),
        *(
            b"WRITE nothing x 0\r\n",
            b"WRITE ad9361-phy ensm_mode -1\r\n",
            b"WRITE ad9361-phy OUTPUT voltage9 x 2\r\n1\0",
        ),
        *(b"WRITE ad9361-phy OUTPUT altvoltage0 frequency 2\r\n5\0", b"WRITE ad9361-phy ensm_mode 4\r\nfdd\0"),
        *(b"OPEN nothing 10 00000003\r\n", b"OPEN ad9361-phy 10 00000003\r\n", b"OPEN " + device + b" 10 3\r\n"),
        *(b"OPEN " + device + b" 0 00000003\r\n", b"OPEN " + device + b" 10 00000003 TWICE\r\n"),
        *(b"READBUF " + device + b" 40\r\n", b"WRITEBUF " + device + b" 40\r\n", b"CLOSE " + device + b"\r\n"),
        *(b"OPEN " + device + b" 10 00000003\r\n", b"READBUF " + device + b" 3\r\n", b"CLOSE " + device + b"\r\n"),
        *(b"CLOSE " + device + b"\r\n", b"CLOSE nothing\r\n", b"GETTRIG xadc\r\n", b"GETTRIG nothing\r\n"),
        *(b"SETTRIG xadc\r\n", b"SETTRIG xadc nothing\r\n", b"SETTRIG nothing x\r\n", b"SET xadc FOO 4\r\n"),
        *(b"SET " + device + b" BUFFERS_COUNT 0\r\n", b"SET nothing BUFFERS_COUNT 4\r\n"),
        *(b"SET " + device + b" BUFFERS_COUNT 4\r\n", b"SET xadc BUFFERS_COUNT 4\r\n", b"TIMEOUT 1000\r\n"),
    ]
    with proxy(node) as uri:
        theirs = dict(zip(requests, answers(uri, requests), strict=True))
    ours = dict(zip(requests, answers(node, requests), strict=True))
    assert ours == theirs


@needs_iiod
@needs_tools
def test_a_second_buffer_is_refused_through_the_real_iiod(node: str) -> None:
    device, opening = b"cf-ad9361-dds-core-lpc", b"OPEN cf-ad9361-dds-core-lpc 10 00000003 CYCLIC\r\n"
    with proxy(node) as uri:
        host, port = uri.removeprefix("ip:").rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as first:
            first.sendall(opening)
            assert first.recv(16) == b"0\n"
            assert answers(uri, [opening])[0].startswith(b"-16\n")
            assert answers(node, [opening])[0].startswith(b"-16\n")
            first.sendall(b"CLOSE " + device + b"\r\n")
            assert first.recv(16) == b"0\n"
