"""Emulators in a process of their own: they answer, they forget clients that vanish, and they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benches import small_bench

SERVE = """
import json, sys
from pathlib import Path
from sim_backend.emulators.host import serve
from testbed.core.bench import BenchSpec
serve(
    BenchSpec.model_validate_json(Path(sys.argv[1]).read_text()),
    seed=2, mode=sys.argv[2], links=Path(sys.argv[3]), end_with_parent=True,
    on_ready=lambda addresses: print(json.dumps(addresses), flush=True),
)
"""
TRANSMIT = """
import socket, sys
host, port = sys.argv[1].split(":")
wire = socket.create_connection((host, int(port)))
replies = wire.makefile("rb")
def ask(request):
    wire.sendall(request)
    return replies.readline()
assert ask(b"WRITE ad9361-phy OUTPUT voltage0 hardwaregain 4\\r\\n-10\\0") == b"4\\n"
assert ask(b"OPEN cf-ad9361-dds-core-lpc 8 00000003 CYCLIC\\r\\n") == b"0\\n"
assert ask(b"WRITEBUF cf-ad9361-dds-core-lpc 32\\r\\n") == b"0\\n"
assert ask(b"\\x00\\x40" * 16) == b"32\\n"
print("radiating", flush=True)
sys.stdin.read()
"""


class Emulated:
    """The process, its addresses, and its control port."""

    def __init__(self, folder: Path, mode: str) -> None:
        bench, self.links = folder / "bench.json", folder / "links"
        self.links.mkdir()
        bench.write_text(small_bench().model_dump_json())
        command = [sys.executable, "-c", SERVE, str(bench), mode, str(self.links)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert self.process.stdout is not None
        self.addresses: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.control = _connect(self.addresses["control"])

    def ask(self, do: str, **facts: object) -> dict[str, Any]:
        """One request of the control port."""
        self.control.sendall(json.dumps({"do": do, **facts}).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            got = self.control.recv(1 << 16)
            assert got, "the emulators are gone"
            answer += got
        return dict(json.loads(answer))

    def hang_up(self) -> None:
        """The parent's end of its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        """Kill what is left."""
        self.control.close()
        with self.process:
            self.process.kill()


def _connect(place: str) -> socket.socket:
    host, _, port = place.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10.0)


@pytest.fixture
def virtual(tmp_path: Path) -> Iterator[Emulated]:
    made = Emulated(tmp_path, "virtual")
    yield made
    made.close()


ENDS: dict[str, Callable[[Emulated], object]] = {
    "SIGTERM": lambda emulated: emulated.process.send_signal(signal.SIGTERM),
    "SIGINT": lambda emulated: emulated.process.send_signal(signal.SIGINT),
    "the control port": lambda emulated: emulated.ask("end"),
    "the parent": Emulated.hang_up,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("mode", ["virtual", "real"])
def test_they_end_when_they_should_and_leave_nothing_open(tmp_path: Path, mode: str, end: str) -> None:
    emulated, opened = Emulated(tmp_path, mode), list[socket.socket]()
    try:
        assert sorted(link.name for link in emulated.links.iterdir()) == ["stage-0", "stage-1"]
        opened.append(waiting := _connect(emulated.addresses["radios"]["receiver-0"].removeprefix("ip:")))
        # one who waits for a trigger that never comes
        for request, answer in (
            (b"WRITE iio-axi-tdd-0 OUTPUT channel1 enable 2\r\n1\0", b"2\n"),
            (b"WRITE iio-axi-tdd-0 enable 2\r\n1\0", b"2\n"),
            (b"OPEN cf-ad9361-lpc 4096 00000003\r\n", b"0\n"),
        ):
            waiting.sendall(request)
            assert waiting.recv(16) == answer
        waiting.sendall(b"READBUF cf-ad9361-lpc 16384\r\n")
        ENDS[end](emulated)
        assert emulated.process.wait(timeout=20.0) == 0
        assert list(emulated.links.iterdir()) == []
        with pytest.raises(OSError, match="refused"):
            _connect(emulated.addresses["control"])
    finally:
        for left in opened:
            left.close()
        emulated.close()


def test_a_client_that_is_killed_radiates_no_more(virtual: Emulated) -> None:
    place = virtual.addresses["radios"]["node-01"].removeprefix("ip:")
    with subprocess.Popen(
        [sys.executable, "-c", TRANSMIT, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"radiating\n"
        state = virtual.ask("state")["radios"]["node-01"]
        assert state["transmitting"]
        assert state["radiated_dbm"] == pytest.approx(23 - 10 - 3.01, abs=0.01)
        client.kill()
    with subprocess.Popen(["sleep", "10"]) as patience:
        while (state := virtual.ask("state")["radios"]["node-01"])["transmitting"] and patience.poll() is None:
            pass
        patience.kill()
    assert not state["transmitting"]
    assert state["radiated_dbm"] is None
    assert state["buffers"] == 0


def test_a_killed_client_of_a_receiver_makes_room_for_the_next(virtual: Emulated) -> None:
    place = virtual.addresses["radios"]["receiver-1"].removeprefix("ip:")
    for _ in range(3):
        wire = _connect(place)
        wire.sendall(b"OPEN cf-ad9361-lpc 4096 00000003\r\n")
        assert wire.recv(16) == b"0\n"
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset instead of a farewell
        wire.close()


def test_reading_makes_virtual_time_pass_and_noise_is_noise(virtual: Emulated) -> None:
    wire = _connect(virtual.addresses["radios"]["receiver-0"].removeprefix("ip:"))
    replies = wire.makefile("rb")
    request = b"WRITE ad9361-phy INPUT voltage0 sampling_frequency 8\r\n5000000\0"
    for text, answer in ((request, b"8\n"), (b"OPEN cf-ad9361-lpc 5000 00000003\r\n", b"0\n")):
        wire.sendall(text)
        assert replies.readline() == answer
    wire.sendall(b"READBUF cf-ad9361-lpc 60000\r\n")
    blocks = []
    for number in range(3):
        assert replies.readline() == b"20000\n"
        if number == 0:
            assert replies.readline() == b"00000003\n"
        blocks.append(np.frombuffer(replies.read(20_000), "<i2"))
    assert 0.003 <= virtual.ask("now")["now_s"] <= 0.004
    codes = np.concatenate(blocks).astype(float)
    assert 1 < codes.std() < 1000
    assert abs(np.corrcoef(codes[:-10_000], codes[10_000:])[0, 1]) < 0.05
    replies.close()
    wire.close()
