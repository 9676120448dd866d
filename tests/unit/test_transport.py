"""TCP transports: bytes both ways, timeouts, ends, and errors that say what to check."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from drivers import transport
from drivers.transport import LiveWire, TcpTransport, Transport, TransportClosed, TransportTimeout
from testbed.core.errors import ConfigError, DeviceError, LinkTimeout


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def pair(listener: socket.socket) -> Iterator[tuple[Transport, socket.socket]]:
    """A transport and the device's end of it."""
    here = LiveWire().tcp("127.0.0.1", listener.getsockname()[1], connect_timeout_s=1.0)
    there, _ = listener.accept()
    yield here, there
    here.close()
    there.close()


def receive_all(there: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += there.recv(count - len(data))
    return data


def test_bytes_go_both_ways(pair: tuple[Transport, socket.socket]) -> None:
    here, there = pair
    here.send(b"one", memoryview(b" two"), bytearray(b" three"))
    assert receive_all(there, 13) == b"one two three"
    there.sendall(b"answer")
    assert here.receive(3, timeout_s=1.0) == b"ans"
    buffer = bytearray(10)
    assert here.receive_into(memoryview(buffer), timeout_s=1.0) == 3
    assert buffer[:4] == b"wer\0"


def test_long_parts_arrive_in_order(pair: tuple[Transport, socket.socket]) -> None:
    here, there = pair
    parts = [bytes([number]) * 300_000 for number in range(4)]
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(receive_all(there, 1_200_000)))
    reader.start()
    here.send(*parts)
    reader.join(5.0)
    assert got == [b"".join(parts)]


def test_small_packets_are_not_held_back(pair: tuple[Transport, socket.socket]) -> None:
    here, _ = pair
    with socket.socket(fileno=here.fileno()) as same:
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        same.detach()


def test_silence_is_a_timeout(pair: tuple[Transport, socket.socket]) -> None:
    here, _ = pair
    began = time.monotonic()
    with pytest.raises(TransportTimeout, match="no answer within 0.05 s") as caught:
        here.receive(1, timeout_s=0.05)
    assert time.monotonic() - began < 1.0
    assert isinstance(caught.value, LinkTimeout)
    with pytest.raises(TransportTimeout):
        here.receive_into(memoryview(bytearray(1)), timeout_s=0.0)


def test_the_other_end_going_is_said(pair: tuple[Transport, socket.socket]) -> None:
    here, there = pair
    there.close()
    with pytest.raises(TransportClosed, match="the device closed the connection"):
        here.receive(1, timeout_s=1.0)
    with pytest.raises(TransportClosed):
        here.receive_into(memoryview(bytearray(1)), timeout_s=1.0)


def test_a_device_that_takes_nothing_is_a_timeout(
    pair: tuple[Transport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = pair
    monkeypatch.setattr(transport, "SEND_TIMEOUT_S", 0.05)
    with pytest.raises(TransportTimeout, match="took no data"):
        here.send(bytes(50_000_000))


def test_close_may_be_repeated_and_ends_use(pair: tuple[Transport, socket.socket]) -> None:
    here, there = pair
    here.close()
    here.close()
    assert there.recv(1) == b""
    with pytest.raises(TransportClosed, match="closed here"):
        here.send(b"late")
    with pytest.raises(TransportClosed, match="closed here"):
        here.receive(1, timeout_s=1.0)
    assert here.fileno() == -1


def test_close_wakes_a_receive_of_another_thread(pair: tuple[Transport, socket.socket]) -> None:
    here, _ = pair
    caught: list[BaseException] = []
    waits = threading.Event()

    def wait() -> None:
        waits.set()
        try:
            here.receive(1, timeout_s=20.0)
        except DeviceError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(5.0)
    here.close()
    thread.join(5.0)
    assert not thread.is_alive()
    assert isinstance(caught[0], TransportClosed)


def test_nothing_listening_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(TransportClosed, match=f"127.0.0.1:{port}: connection refused") as caught:
        TcpTransport("127.0.0.1", port)
    assert time.monotonic() - began < 1.0
    assert "30431" in str(caught.value.remedy)


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="no TCP port"):
        TcpTransport("127.0.0.1", port)


def test_an_unknown_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TransportClosed, match="pluto.lan: no such host name") as caught:
        TcpTransport("pluto.lan", 30_431)
    assert "spelling" in str(caught.value.remedy)


def test_a_name_server_that_hangs_does_not_hang_us(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def hang(*_: object) -> list[object]:
        answered.wait(20.0)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    with pytest.raises(TransportClosed, match="not found within 0.1 s"):
        TcpTransport("pluto.lan", 30_431, connect_timeout_s=0.1)
    assert time.monotonic() - began < 2.0
    answered.set()


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (TimeoutError("timed out"), TransportTimeout, "no answer within"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), TransportClosed, "No route to host"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), TransportClosed, "Network is unreachable"),
    ],
)
def test_each_way_of_not_being_reached_has_its_words(
    failure: OSError, kind: type[DeviceError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreached(socket.socket):
        def connect(self, address: object) -> None:
            raise failure

    monkeypatch.setattr(socket, "socket", Unreached)
    with pytest.raises(kind, match=words) as caught:
        TcpTransport("192.0.2.1", 30_431)
    assert caught.value.__cause__ is failure
    assert caught.value.remedy
