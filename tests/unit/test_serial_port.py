"""Serial ports, over pseudo-terminals and TCP on this machine."""

import errno
import os
import pty
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator

import pytest

from drivers import serial_port
from drivers.serial_port import list_ports, open_serial
from drivers.transport import LiveWire, TcpTransport, Transport, TransportClosed, TransportTimeout
from testbed.core.errors import ConfigError, DeviceError

serial = pytest.importorskip("serial")


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The far end's descriptor and the port's name."""
    far, near = pty.openpty()
    tty.setraw(near)
    name = os.ttyname(near)
    yield far, name
    for descriptor in (far, near):
        try:
            os.close(descriptor)
        except OSError:
            pass  # closed by the test


def test_bytes_go_both_ways(terminal):
    far, name = terminal
    port = LiveWire().serial(name, baud=115_200)
    assert isinstance(port, Transport)
    assert name in port.description
    port.send(b"?", memoryview(b"!"), bytearray(b"\x85"))
    assert os.read(far, 10) == b"?!\x85"
    os.write(far, b"<Idle>\r\n")
    said = b""
    while len(said) < 6:
        part = port.receive(3, timeout_s=1.0)
        assert 1 <= len(part) <= 3
        said += part
    view = bytearray(10)
    while len(said) < 8:
        count = port.receive_into(memoryview(view), timeout_s=1.0)
        said += view[:count]
    assert said == b"<Idle>\r\n"
    assert os.isatty(port.fileno())
    port.close()
    port.close()
    with pytest.raises(TransportClosed, match="closed here"):
        port.receive(1, timeout_s=0.1)


def test_silence_ends_in_time(terminal):
    port = open_serial(terminal[1])
    begun_s = time.monotonic()
    with pytest.raises(TransportTimeout, match=r"no answer within 0.1 s"):
        port.receive(10, timeout_s=0.1)
    assert 0.05 < time.monotonic() - begun_s < 1.0
    begun_s = time.monotonic()
    with pytest.raises(TransportTimeout):
        port.receive(10, timeout_s=0.0)
    assert time.monotonic() - begun_s < 0.02
    port.close()


def test_a_port_that_goes_away(terminal):
    far, name = terminal
    port = open_serial(name)
    os.close(far)
    with pytest.raises(TransportClosed, match="the serial connection broke") as caught:
        port.receive(10, timeout_s=1.0)
    assert "cable" in str(caught.value)
    assert caught.value.__cause__ is not None
    with pytest.raises(TransportClosed):
        port.send(b"?")
    port.close()


def test_one_owner(terminal):
    port = open_serial(terminal[1])
    with pytest.raises(TransportClosed, match="another process uses this serial port") as caught:
        open_serial(terminal[1])
    assert "fuser -v" in str(caught.value)
    port.close()
    open_serial(terminal[1]).close()


def test_closing_leaves_dtr_raised(terminal):
    with open(terminal[1], "rb", buffering=0) as near:
        attributes = termios.tcgetattr(near)
        attributes[2] |= termios.HUPCL
        termios.tcsetattr(near, termios.TCSANOW, attributes)
    port = open_serial(terminal[1])
    assert not termios.tcgetattr(port.fileno())[2] & termios.HUPCL
    port.close()


def test_no_such_port():
    with pytest.raises(TransportClosed, match="/dev/ttyNONE: no such serial port") as caught:
        open_serial("/dev/ttyNONE")
    assert "remedy:" in str(caught.value)
    assert "serial ports" in str(caught.value)


def test_the_ports_that_exist_are_named(monkeypatch):
    ports = (serial_port.PortEntry("/dev/ttyUSB7", "CH340", None),)
    monkeypatch.setattr(serial_port, "list_ports", lambda: ports)
    with pytest.raises(TransportClosed, match="serial ports here: /dev/ttyUSB7"):
        open_serial("/dev/ttyNONE")


def test_no_permission(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise serial.SerialException(errno.EACCES, "could not open port: Permission denied")

    monkeypatch.setattr(serial, "serial_for_url", refuse)
    with pytest.raises(TransportClosed, match="no permission.*\n.*usermod -aG dialout"):
        open_serial("/dev/ttyUSB0")


@pytest.mark.parametrize(
    "url", ["nonsense://x", "", "  ", "socket://", "socket://host", "socket://host:port", "spy://"]
)
def test_names_that_cannot_be_understood(url):
    with pytest.raises((ConfigError, DeviceError), match="remedy:"):
        open_serial(url)


def test_a_file_is_no_port(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(TransportClosed, match="this is no serial port"):
        open_serial(str(path))


def test_a_socket_that_nobody_listens_at():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        number = unused.getsockname()[1]
    begun_s = time.monotonic()
    for scheme in ("socket", "rfc2217"):
        with pytest.raises(TransportClosed, match=str(number)):
            open_serial(f"{scheme}://127.0.0.1:{number}")
    assert time.monotonic() - begun_s < 3.0


@pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")  # pyserial 3.5's own
def test_a_server_that_is_no_serial_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        begun_s = time.monotonic()
        with pytest.raises(TransportClosed, match="cannot be opened.*RFC2217"):
            open_serial(f"rfc2217://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - begun_s < 3.0


def test_a_socket_is_plain_tcp():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = open_serial(f"socket://127.0.0.1:{server.getsockname()[1]}")
        assert isinstance(port, TcpTransport)
        far, _ = server.accept()
        with far:
            port.send(b"?")
            assert far.recv(10) == b"?"
            far.sendall(b"ok")
            assert port.receive(10, timeout_s=1.0) == b"ok"
        port.close()


def test_other_urls_of_pyserial(terminal, capsys):
    port = open_serial("loop://")
    port.send(b"ping")
    assert port.receive(10, timeout_s=1.0) == b"ping"
    assert port.fileno() == -1
    port.close()
    port = open_serial(f"spy://{terminal[1]}")
    port.send(b"hello")
    port.close()
    assert "hello" in capsys.readouterr().err


def test_without_pyserial(monkeypatch):
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(ConfigError, match="pyserial, which is not installed.*\n.*pip install"):
        open_serial("/dev/ttyUSB0")
    monkeypatch.setitem(sys.modules, "serial.tools", None)
    assert list_ports() == ()


def test_ports_are_listed():
    entries = list_ports()
    assert list(entries) == sorted(entries, key=lambda entry: entry.device)
