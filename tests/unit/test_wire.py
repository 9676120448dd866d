"""Recorded wires, and their replay as fakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from drivers.transport import Data, Transport, TransportClosed, TransportTimeout, Wire
from drivers.wire import RecordingWire, ReplayWire
from testbed.core.errors import ConfigError, ProtocolError


class Parrot:
    """A device that answers each line with itself in capitals; "?" gets no answer, "bye" ends it."""

    description = "parrot"

    def __init__(self) -> None:
        self._answers = b""
        self.closed = False

    def send(self, *parts: Data) -> None:
        for line in b"".join(parts).splitlines(keepends=True):
            if not line.startswith(b"?"):
                self._answers += line.upper()

    def receive(self, most: int, *, timeout_s: float) -> bytes:
        if self._answers.startswith(b"BYE"):
            raise TransportClosed("gone")
        if not self._answers:
            raise TransportTimeout("silent")
        data, self._answers = self._answers[:most], self._answers[most:]
        return data

    def receive_into(self, view: memoryview, *, timeout_s: float) -> int:
        data = self.receive(len(view), timeout_s=timeout_s)
        view[: len(data)] = data
        return len(data)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


class Parrots:
    """A wire to parrots; port 1 refuses."""

    def tcp(self, host: str, port: int, *, connect_timeout_s: float) -> Transport:
        if port == 1:
            raise TransportClosed(f"{host}:1: connection refused", remedy="check the port")
        return Parrot()

    def serial(self, url: str, *, baud: int) -> Transport:
        return Parrot()


def take(transport: Transport, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += transport.receive(count - len(data), timeout_s=1.0)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording of one conversation."""
    folder = tmp_path / "wire"
    transport = RecordingWire(folder, Parrots()).tcp("radio", 30_431, connect_timeout_s=1.0)
    transport.send(b"one\n")
    assert take(transport, 4) == b"ONE\n"
    transport.send(b"two\n", b"\x00\xff\n")
    buffer = bytearray(8)
    assert transport.receive_into(memoryview(buffer), timeout_s=1.0) == 7
    assert buffer == b"TWO\n\x00\xff\n\0"
    transport.close()
    return folder


def test_a_recording_can_be_read_by_eye(folder: Path) -> None:
    (path,) = folder.iterdir()
    assert path.name == "00000-tcp-radio-30431.jsonl"
    header, *entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["opened"] == "tcp"
    assert header["target"] == "radio:30431"
    assert [next(key for key in entry if key != "t") for entry in entries] == [
        "sent",
        "received",
        "sent64",
        "received64",
    ]
    assert entries[0]["sent"] == "one\n"
    times = [entry["t"] for entry in entries]
    assert times == sorted(times)


def test_a_replay_answers_as_recorded_however_it_is_cut(folder: Path) -> None:
    transport = ReplayWire(folder).tcp("radio", 30_431, connect_timeout_s=1.0)
    transport.send(b"on")
    transport.send(b"e\n")
    assert [transport.receive(1, timeout_s=1.0) for _ in range(4)] == [b"O", b"N", b"E", b"\n"]
    transport.send(b"two\n")
    transport.send(b"\x00")
    transport.send(b"\xff\n")
    buffer = bytearray(4)
    assert transport.receive_into(memoryview(buffer), timeout_s=1.0) == 4
    assert buffer == b"TWO\n"
    assert take(transport, 3) == b"\x00\xff\n"


def test_a_replay_fails_at_the_first_differing_byte(folder: Path) -> None:
    transport = ReplayWire(folder).tcp("radio", 30_431, connect_timeout_s=1.0)
    transport.send(b"one\n")
    expected = re.escape(r"byte 6 sent differs: expected b'o\n\x00\xff\n', got b'e\n'")
    with pytest.raises(ProtocolError, match=f"00000-tcp-radio-30431.jsonl: {expected}"):
        transport.send(b"twe\n")


def test_whatever_is_tried_after_a_departure_tells_the_first(tmp_path: Path) -> None:
    recording = RecordingWire(tmp_path, Parrots())
    for url in ("/dev/one", "/dev/two"):
        transport = recording.serial(url, baud=115_200)
        transport.send(b"a\n")
        assert take(transport, 2) == b"A\n"
        transport.close()
    wire = ReplayWire(tmp_path)
    one, two = (wire.serial(url, baud=115_200) for url in ("/dev/one", "/dev/two"))
    for attempt in (
        lambda: one.send(b"b\n"),
        lambda: two.send(b"c\n"),
        lambda: two.receive(1, timeout_s=1.0),
        lambda: wire.serial("/dev/three", baud=115_200),
    ):
        with pytest.raises(ProtocolError, match=re.escape(r"dev-one.jsonl: byte 0 sent differs: expected b'a\n'")):
            attempt()


def test_a_replay_fails_where_more_is_sent(folder: Path) -> None:
    transport = ReplayWire(folder).tcp("radio", 30_431, connect_timeout_s=1.0)
    transport.send(b"one\n", b"two\n\x00\xff\n")
    with pytest.raises(ProtocolError, match="byte 11 sent differs: expected 'nothing more', got b'x'"):
        transport.send(b"x")


def test_no_answer_comes_before_its_question(folder: Path) -> None:
    transport = ReplayWire(folder).tcp("radio", 30_431, connect_timeout_s=1.0)
    with pytest.raises(ProtocolError, match="after 0 bytes sent .* came only after 4 bytes"):
        transport.receive(1, timeout_s=1.0)
    transport = ReplayWire(folder).tcp("radio", 30_431, connect_timeout_s=1.0)
    transport.send(b"one\n")
    assert take(transport, 4) == b"ONE\n"
    transport.send(b"two\n\x00\xff\n")
    assert take(transport, 7) == b"TWO\n\x00\xff\n"
    with pytest.raises(ProtocolError, match="the recording ends"):
        transport.receive(1, timeout_s=1.0)


def test_what_was_never_said_is_found(folder: Path) -> None:
    wire = ReplayWire(folder)
    with pytest.raises(ProtocolError, match="recorded, but never opened"):
        wire.check_complete()
    transport = wire.tcp("radio", 30_431, connect_timeout_s=1.0)
    transport.send(b"one\ntwo\n")
    with pytest.raises(ProtocolError, match=re.escape(r"byte 8 was never sent: expected b'\x00\xff\n'")):
        wire.check_complete()
    transport.send(b"\x00\xff\n")
    wire.check_complete()


def test_timeouts_and_ends_come_again(tmp_path: Path) -> None:
    for open_wire in (lambda: RecordingWire(tmp_path, Parrots()), lambda: ReplayWire(tmp_path)):
        wire: Wire = open_wire()
        transport = wire.serial("/dev/ttyUSB0", baud=115_200)
        transport.send(b"?")
        for _ in range(2):
            with pytest.raises(TransportTimeout):
                transport.receive(1, timeout_s=0.1)
        transport.send(b"\nhello\n")
        assert take(transport, 7) == b"\nHELLO\n"
        transport.send(b"bye\n")
        with pytest.raises(TransportClosed):
            transport.receive(1, timeout_s=0.1)
        transport.close()
        if isinstance(wire, RecordingWire):
            continue
        with pytest.raises(TransportClosed, match="closed here"):
            transport.send(b"x")


def test_a_timeout_lasts_until_more_is_sent_and_no_longer(tmp_path: Path) -> None:
    transport = RecordingWire(tmp_path, Parrots()).serial("/dev/ttyUSB0", baud=115_200)
    transport.send(b"?\n")
    with pytest.raises(TransportTimeout):
        transport.receive(1, timeout_s=0.1)
    transport.send(b"x\n")
    assert take(transport, 2) == b"X\n"
    transport.close()
    patient = ReplayWire(tmp_path).serial("/dev/ttyUSB0", baud=115_200)
    patient.send(b"?\n")
    for _ in range(3):
        with pytest.raises(TransportTimeout):
            patient.receive(1, timeout_s=0.1)
    patient.send(b"x\n")
    assert take(patient, 2) == b"X\n"
    hasty = ReplayWire(tmp_path).serial("/dev/ttyUSB0", baud=115_200)
    hasty.send(b"?\nx\n")
    assert take(hasty, 2) == b"X\n"


def test_connections_to_one_target_come_in_their_order(tmp_path: Path) -> None:
    recording = RecordingWire(tmp_path, Parrots())
    for word in (b"first\n", b"second\n"):
        transport = recording.tcp("radio", 2, connect_timeout_s=1.0)
        transport.send(word)
        transport.close()
    replay = ReplayWire(tmp_path)
    replay.tcp("radio", 2, connect_timeout_s=1.0).send(b"first\n")
    replay.tcp("radio", 2, connect_timeout_s=1.0).send(b"second\n")
    with pytest.raises(ProtocolError, match="holds no further tcp connection to radio:2"):
        replay.tcp("radio", 2, connect_timeout_s=1.0)


def test_a_refused_connection_is_refused_again(tmp_path: Path) -> None:
    for open_wire in (lambda: RecordingWire(tmp_path, Parrots()), lambda: ReplayWire(tmp_path)):
        wire: Wire = open_wire()
        with pytest.raises(TransportClosed, match="radio:1: connection refused") as caught:
            wire.tcp("radio", 1, connect_timeout_s=1.0)
        assert caught.value.remedy == "check the port"


def test_two_recordings_share_a_folder(tmp_path: Path) -> None:
    for wire in (RecordingWire(tmp_path, Parrots()), RecordingWire(tmp_path, Parrots())):
        wire.serial("a", baud=1).close()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_without_a_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recorded connections") as caught:
        ReplayWire(tmp_path)
    assert caught.value.file == str(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", '{"opened": "tcp"}\n', '{"opened": "tcp", "target": "a:1"}\n{"sent64": "!"}\n']
)
def test_a_damaged_recording_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "00000-tcp-a-1.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="no recorded connection") as caught:
        ReplayWire(tmp_path)
    assert caught.value.file == str(tmp_path / "00000-tcp-a-1.jsonl")
