"""The iiod client against a server that follows a script: bytes, errors, and links that get out of step."""

from __future__ import annotations

import errno
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

from drivers.iiod_buffer import IiodBuffer
from drivers.iiod_client import BrokenLink, IiodClient, IiodRefusal, parse_uri
from drivers.iiod_context import ScanFormat, parse_context
from drivers.transport import TransportClosed, TransportTimeout
from testbed.core.errors import ConfigError, DeviceError, ProtocolError, RadioFault

XML = b"""<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE context [<!ELEMENT context (device | context-attribute)*><!ATTLIST context name CDATA #REQUIRED>]>
<context name="network" description="of a test">
<context-attribute name="hw_serial" value="1044"/>
<device id="iio:device0" name="ad9361-phy">
<channel id="altvoltage1" name="TX_LO" type="output"><attribute name="frequency" filename="out_tx"/></channel>
<channel id="voltage0" type="input"><attribute name="hardwaregain" filename="in_gain"/></channel>
<channel id="voltage0" type="output"><attribute name="hardwaregain" filename="out_gain"/></channel>
<attribute name="calib_mode"/><debug-attribute name="loopback"/></device>
<device id="iio:device3" name="cf-ad9361-lpc" label="receiver">
<channel id="voltage1" type="input"><scan-element index="1" format="le:S12/16&gt;&gt;0"/></channel>
<channel id="voltage0" type="input"><scan-element index="0" format="le:S12/16&gt;&gt;0"/></channel>
<buffer-attribute name="watermark"/></device>
</context>"""
PRINT = (b"PRINT\r\n", b"%d\n%s\n" % (len(XML), XML))
EXIT = (b"\r\nEXIT\r\n", b"")
CLOSE = None
"""An answer: the server closes the connection."""
Step = tuple[bytes, bytes | None]


class ScriptedServer:
    """Serves each connection by its own script: what is expected, and the answer to it."""

    def __init__(self, *scripts: list[Step]) -> None:
        self._scripts = list(scripts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"ip:127.0.0.1:{self._listener.getsockname()[1]}"
        self.failures: list[str] = []
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def wait_for(self, asked: bytes) -> None:
        while self._heard.get(timeout=5.0) != asked:
            pass

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5.0)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5.0)

    def _accept(self) -> None:
        for script in self._scripts:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection, script)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket, script: list[Step]) -> None:
        with connection, suppress(ConnectionError):  # a client that gives up leaves with a reset
            for expected, answer in script:
                got = b""
                while len(got) < len(expected) and (more := connection.recv(len(expected) - len(got))):
                    got += more
                if got != expected:
                    self.failures.append(f"expected {expected!r}, got {got!r}")
                    return
                self._heard.put(got)
                if answer is CLOSE:
                    return
                connection.sendall(answer)
            if rest := connection.recv(100):
                self.failures.append(f"unexpected {rest!r}")


Serve = Callable[..., ScriptedServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts scripted servers, and fails where a script was left."""
    servers: list[ScriptedServer] = []

    def start(*scripts: list[Step]) -> ScriptedServer:
        servers.append(ScriptedServer(*scripts))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
        assert not server.failures, server.failures


def read_step(path: bytes, value: bytes) -> Step:
    return b"READ " + path + b"\r\n", b"%d\n%s\0\n" % (len(value) + 1, value)


GAIN = read_step(b"iio:device0 INPUT voltage0 hardwaregain", b"71.000000 dB")


def read_gain(client: IiodClient) -> str:
    return client.read("iio:device0", "hardwaregain", channel="voltage0")


def test_every_question_is_asked_byte_for_byte(serve: Serve) -> None:
    server = serve(
        [
            PRINT,
            (b"VERSION\r\n", b"0.24.v0.24  \n"),
            (b"TIMEOUT 2500\r\n", b"0\n"),
            read_step(b"iio:device0 calib_mode", b"auto"),
            GAIN,
            read_step(b"iio:device0 OUTPUT altvoltage1 frequency", b"2400000000"),
            read_step(b"iio:device0 DEBUG loopback", b"0"),
            read_step(b"iio:device3 BUFFER watermark", b"1"),
            (b"WRITE iio:device0 OUTPUT altvoltage1 frequency 10\r\n915000000\0", b"10\n"),
            (b"WRITE iio:device0 INPUT voltage0 hardwaregain 5\r\n30.0\0", b"5\n"),
            (b"WRITE iio:device0 calib_mode 7\r\nmanual\0", b"7\n"),
            (b"WRITE iio:device0 DEBUG loopback 2\r\n1\0", b"2\n"),
            (b"SET iio:device3 BUFFERS_COUNT 1\r\n", b"0\n"),
            (b"GETTRIG iio:device3\r\n", b"0\n"),
            (b"GETTRIG iio:device3\r\n", b"-19\n"),
            (b"GETTRIG iio:device3\r\n", b"4\nsoft\n"),
            EXIT,
        ]
    )
    client = IiodClient(server.uri)
    assert client.version() == (0, 24, "v0.24")
    client.set_timeout(2.5)
    assert client.read("iio:device0", "calib_mode") == "auto"
    assert read_gain(client) == "71.000000 dB"
    assert client.read("iio:device0", "frequency", channel="altvoltage1", output=True) == "2400000000"
    assert client.read("iio:device0", "loopback", kind="DEBUG") == "0"
    assert client.read("iio:device3", "watermark", kind="BUFFER") == "1"
    client.write("iio:device0", "frequency", "915000000", channel="altvoltage1", output=True)
    client.write("iio:device0", "hardwaregain", "30.0", channel="voltage0")
    client.write("iio:device0", "calib_mode", "manual")
    client.write("iio:device0", "loopback", "1", kind="DEBUG")
    client.set_buffers_count("iio:device3", 1)
    assert client.trigger_of("iio:device3") is None
    assert client.trigger_of("iio:device3") is None
    assert client.trigger_of("iio:device3") == "soft"
    client.close()
    client.close()
    with pytest.raises(RadioFault, match="is closed"):
        client.version()


def test_empty_lines_before_a_number_are_skipped(serve: Serve) -> None:
    server = serve([PRINT, (b"TIMEOUT 1000\r\n", b"\n\r\n0\n"), EXIT])
    client = IiodClient(server.uri)
    client.set_timeout(1.0)
    client.close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOENT, r"reading iio:device0 INPUT voltage0 hardwaregain: there is no such attribute \(ENOENT 2\)"),
        (errno.EINVAL, r"invalid value.*\(EINVAL 22\)"),
        (errno.EBUSY, r"another client holds it \(EBUSY 16\)"),
        (errno.ENOSYS, r"this server cannot do it \(ENOSYS 38\)"),
        (errno.ENOTTY, r"Inappropriate ioctl for device \(ENOTTY 25\)"),
    ],
)
def test_a_refusal_has_words_and_keeps_the_link(serve: Serve, code: int, words: str) -> None:
    server = serve([PRINT, (GAIN[0], b"-%d\n" % code), GAIN, EXIT])
    client = IiodClient(server.uri)
    with pytest.raises(IiodRefusal, match=words) as caught:
        read_gain(client)
    assert caught.value.code == code
    assert caught.value.remedy
    assert read_gain(client) == "71.000000 dB"
    client.close()


def test_a_refused_write_leaves_no_value_on_the_link(serve: Serve) -> None:
    server = serve([PRINT, (b"WRITE nobody a 2\r\n1\0", b"-19\n")], [GAIN, EXIT])
    client = IiodClient(server.uri)
    with pytest.raises(IiodRefusal, match="writing nobody a = 1: there is no such device"):
        client.write("nobody", "a", "1")
    assert read_gain(client) == "71.000000 dB"
    client.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (CLOSE, "the device closed the connection"),
        (b"13\n71.000", "no answer within"),
        (b"", "no answer within"),
        (b"nan\n", "a number was expected, b'nan' came"),
        (b"\xff\x80#\n", "a number was expected"),
        (b"999999999\n", "a reply of 999999999 bytes was announced"),
        (b"4\n71.000000 dB\0\n", "not with its line"),
        (b"x" * 5000, "no line came"),
    ],
)
def test_whatever_is_out_of_step_ends_the_link_and_the_next_call_is_right(
    serve: Serve, answer: bytes | None, words: str
) -> None:
    server = serve([PRINT, (GAIN[0], answer)], [GAIN, EXIT])
    client = IiodClient(server.uri, timeout_s=0.2)
    with pytest.raises((TransportTimeout, BrokenLink), match=words) as caught:
        read_gain(client)
    assert "READ iio:device0 INPUT voltage0 hardwaregain" in caught.value.message
    assert caught.value.remedy
    assert client.broken
    assert read_gain(client) == "71.000000 dB"
    client.close()


def test_a_reply_that_nobody_asked_for_is_never_read(serve: Serve) -> None:
    twice = (GAIN[0], (GAIN[1] or b"") * 2)
    server = serve([PRINT, twice], [read_step(b"iio:device0 calib_mode", b"auto"), EXIT])
    client = IiodClient(server.uri)
    assert read_gain(client) == "71.000000 dB"
    with pytest.raises(BrokenLink, match="a reply came that nobody asked for"):
        client.read("iio:device0", "calib_mode")
    assert client.read("iio:device0", "calib_mode") == "auto"
    client.close()


def test_a_server_that_went_meanwhile_is_noticed(serve: Serve) -> None:
    server = serve([PRINT, (GAIN[0], CLOSE)])
    client = IiodClient(server.uri)
    with pytest.raises(BrokenLink):
        read_gain(client)
    server.close()
    began = time.monotonic()
    with pytest.raises(TransportClosed, match="refused"):
        read_gain(client)
    assert time.monotonic() - began < 3.0
    client.close()


def test_an_interrupted_exchange_ends_the_link(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve([PRINT, (GAIN[0], b"")], [GAIN, EXIT])
    client = IiodClient(server.uri)
    with monkeypatch.context() as patch:

        def interrupted(*_: object, **__: object) -> int:
            server.wait_for(GAIN[0])
            raise KeyboardInterrupt

        patch.setattr("drivers.iiod_client.IiodConnection.checked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_gain(client)
    assert client.broken
    assert read_gain(client) == "71.000000 dB"
    client.close()


def test_threads_never_get_each_others_answers() -> None:
    """A server that answers each READ with the name that was asked for, in two packets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                word = line.split()
                if word[:1] == [b"PRINT"]:
                    connection.sendall(PRINT[1] or b"")
                elif word[:1] == [b"READ"]:
                    connection.sendall(b"%d\n" % (len(word[-1]) + 1))
                    connection.sendall(word[-1] + b"\0\n")
                elif word[:1] == [b"EXIT"]:
                    return

    server = threading.Thread(target=answer)
    server.start()
    with listener:
        client = IiodClient(f"ip:127.0.0.1:{listener.getsockname()[1]}")
        wrong: list[str] = []

        def ask(name: str) -> None:
            wrong.extend(name for _ in range(200) if client.read("iio:device0", name) != name)

        threads = [threading.Thread(target=ask, args=(f"attribute{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10.0)
        client.close()
        server.join(5.0)
    assert not wrong


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", CLOSE])
def test_another_service_behind_the_address_is_named(serve: Serve, answer: bytes | None) -> None:
    server = serve([(b"PRINT\r\n", answer)])
    began = time.monotonic()
    with pytest.raises(ProtocolError, match="what answers there is no iiod") as caught:
        IiodClient(server.uri)
    assert time.monotonic() - began < 3.0
    assert "30431" in str(caught.value.remedy)


def test_a_server_that_never_answers_is_given_up(serve: Serve) -> None:
    server = serve([(b"PRINT\r\n", b"")])
    with pytest.raises(TransportTimeout, match="PRINT: .*no answer within"):
        IiodClient(server.uri, timeout_s=0.1)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("ip:192.168.2.1", ("192.168.2.1", 30_431)),
        ("ip:pluto.local:50001", ("pluto.local", 50_001)),
        ("ip:[fe80::1]:5", ("fe80::1", 5)),
    ],
)
def test_addresses(uri: str, address: tuple[str, int]) -> None:
    assert parse_uri(uri) == address


@pytest.mark.parametrize("uri", ["usb:1.2.3", "ip:", "192.168.2.1", "ip:a:b", "ip:fe80::1", "ip:a:123456"])
def test_what_is_no_address_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="no address of a radio") as caught:
        parse_uri(uri)
    assert "ip:HOST" in str(caught.value.remedy)


# --- buffers ----------------------------------------------------------------------------------------------------------

OPEN = (b"OPEN iio:device3 4 00000003\r\n", b"0\n")
PATIENCE = (b"TIMEOUT 1000\r\n", b"0\n")
SAMPLES = np.arange(8, dtype="<i2")
DATA = SAMPLES.tobytes()


@pytest.fixture
def link(serve: Serve) -> Iterator[Callable[..., IiodBuffer]]:
    """Opens a buffer whose own connection follows a script."""
    clients: list[IiodClient] = []

    def start(*steps: Step, opened: bool = True) -> IiodBuffer:
        server = serve([PRINT, EXIT], list(steps))
        clients.append(IiodClient(server.uri, timeout_s=0.3))
        buffer = IiodBuffer(clients[-1], clients[-1].context.device("receiver"))
        if opened:
            buffer.open(4, 0b11)
        return buffer

    yield start
    for client in clients:
        client.close()


def fill(buffer: IiodBuffer) -> np.ndarray:
    samples = np.zeros(8, "<i2")
    buffer.read_into(samples.data.cast("B"), timeout_s=1.0)
    return samples


def test_a_buffer_is_read_in_whatever_chunks_it_comes(link: Callable[..., IiodBuffer]) -> None:
    whole = b"16\n00000003\n" + DATA
    chunks = b"6\n00000003\n" + DATA[:6] + b"10\n" + DATA[6:]
    ask = b"READBUF iio:device3 16\r\n"
    buffer = link(OPEN, PATIENCE, (ask, whole), (ask, chunks), (b"CLOSE iio:device3\r\n", b"0\n"), EXIT)
    assert buffer.live
    assert buffer.sequence == 0
    np.testing.assert_array_equal(fill(buffer), SAMPLES)
    np.testing.assert_array_equal(fill(buffer), SAMPLES)
    assert buffer.sequence == 2
    buffer.close()
    buffer.close()
    assert not buffer.live
    with pytest.raises(RadioFault, match="is closed"):
        fill(buffer)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"-110\n", IiodRefusal, "no samples came in time"),
        (b"-9\n", IiodRefusal, "the buffer is not open"),
        (b"16\n0000000c\n" + DATA, BrokenLink, "samples of the channels 0xc came instead of 0x3"),
        (b"16\nzebra\n" + DATA, BrokenLink, "a mask was expected"),
        (b"17\n00000003\n" + DATA, BrokenLink, "17 bytes came where 16 were asked for"),
        (b"8\n00000003\n" + DATA[:8] + b"0\n", BrokenLink, "0 bytes came where 8 were asked for"),
        (b"16\n00000003\n" + DATA[:10], TransportTimeout, "no answer within"),
        (CLOSE, BrokenLink, "closed the connection"),
    ],
)
def test_a_block_that_goes_wrong_ends_the_buffer(
    link: Callable[..., IiodBuffer], answer: bytes | None, kind: type[DeviceError], words: str
) -> None:
    buffer = link(OPEN, (b"TIMEOUT 100\r\n", b"0\n"), (b"READBUF iio:device3 16\r\n", answer))
    with pytest.raises(kind, match=words):
        buffer.read_into(memoryview(bytearray(16)), timeout_s=0.1)
    assert not buffer.live
    assert buffer.sequence == 0
    buffer.close()


def test_a_busy_buffer_is_refused_and_may_be_opened_later(serve: Serve) -> None:
    busy = (OPEN[0], b"-16\n")
    server = serve([PRINT, EXIT], [busy], [OPEN, (b"CLOSE iio:device3\r\n", b"0\n"), EXIT])
    client = IiodClient(server.uri)
    buffer = IiodBuffer(client, client.context.device("iio:device3"))
    with pytest.raises(IiodRefusal, match="another client holds it") as caught:
        buffer.open(4, 0b11)
    assert caught.value.code == errno.EBUSY
    buffer.open(4, 0b11)
    buffer.close()
    client.close()


def test_a_cyclic_block_is_written_whole(link: Callable[..., IiodBuffer]) -> None:
    buffer = link(
        (b"OPEN iio:device3 4 00000003 CYCLIC\r\n", b"0\n"),
        (b"WRITEBUF iio:device3 16\r\n", b"0\n"),
        (DATA, b"16\n"),
        (b"CLOSE iio:device3\r\n", b"0\n"),
        EXIT,
        opened=False,
    )
    buffer.open(4, 0b11, cyclic=True)
    buffer.write(DATA)
    assert buffer.sequence == 1
    buffer.close()


def test_the_last_bytes_wait_for_the_release(serve: Serve) -> None:
    server = serve(
        [PRINT, EXIT],
        [OPEN, (b"WRITEBUF iio:device3 16\r\n", b"0\n"), (DATA[:12], b""), (DATA[12:], b"16\n")],
    )
    client = IiodClient(server.uri)
    buffer = IiodBuffer(client, client.context.device("iio:device3"))
    buffer.open(4, 0b11)
    pending = buffer.begin_write(DATA, held_back=4)
    assert buffer.sequence == 0
    pending.release()
    assert buffer.sequence == 1
    buffer.abort()
    client.close()


@pytest.mark.parametrize(("answer", "words"), [(b"12\n", "took 12 of 16 bytes"), (b"-5\n", "the chip does not answer")])
def test_a_block_that_is_not_taken_is_said(link: Callable[..., IiodBuffer], answer: bytes, words: str) -> None:
    buffer = link(OPEN, (b"WRITEBUF iio:device3 16\r\n", b"0\n"), (DATA, answer))
    with pytest.raises(RadioFault, match=words):
        buffer.write(DATA)
    assert not buffer.live


def test_a_read_that_hangs_can_be_ended_from_elsewhere(serve: Serve) -> None:
    server = serve([PRINT, EXIT], [OPEN, (b"TIMEOUT 20000\r\n", b"0\n"), (b"READBUF iio:device3 16\r\n", b"")])
    client = IiodClient(server.uri)
    buffer = IiodBuffer(client, client.context.device("iio:device3"))
    buffer.open(4, 0b11)
    caught: list[RadioFault] = []

    def read() -> None:
        try:
            buffer.read_into(memoryview(bytearray(16)), timeout_s=20.0)
        except RadioFault as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    server.wait_for(b"READBUF iio:device3 16\r\n")
    buffer.abort()
    thread.join(5.0)
    assert not thread.is_alive()
    assert "was ended from elsewhere" in caught[0].message
    with pytest.raises(RadioFault, match="is closed"):
        fill(buffer)
    client.close()


def test_an_aborted_buffer_never_opens(link: Callable[..., IiodBuffer]) -> None:
    buffer = link(opened=False)
    buffer.abort()
    with pytest.raises(RadioFault, match="was ended from elsewhere"):
        buffer.open(4, 0b11)


def test_closing_a_buffer_does_not_wait_for_a_stalled_server(link: Callable[..., IiodBuffer]) -> None:
    buffer = link(OPEN, (b"CLOSE iio:device3\r\n", b""))
    began = time.monotonic()
    buffer.close()
    assert time.monotonic() - began < 2.0


# --- descriptions -----------------------------------------------------------------------------------------------------


def test_a_description_is_read() -> None:
    context = parse_context(XML)
    assert context.attributes == {"hw_serial": "1044"}
    phy = context.device("ad9361-phy")
    assert phy is context.device("iio:device0")
    assert phy.attributes == {"calib_mode"}
    assert phy.debug_attributes == {"loopback"}
    assert phy.channel("TX_LO", output=True).identity == "altvoltage1"
    assert phy.channel("voltage0", output=False).attributes == {"hardwaregain"}
    assert phy.find("TX_LO", output=False) is None
    receiver = context.device("receiver")
    assert [each.identity for each in receiver.scanned(output=False)] == ["voltage0", "voltage1"]
    assert receiver.scanned(output=False)[0].scan_format == ScanFormat(True, True, 12, 16, 0)
    assert receiver.mask_words == 1
    assert receiver.buffer_attributes == {"watermark"}


def test_what_is_missing_is_named() -> None:
    context = parse_context(XML)
    words = "no device adrv9009 there, but ad9361-phy, receiver; is this a PlutoSDR?"
    with pytest.raises(DeviceError, match=re.escape(words)):
        context.device("adrv9009")
    with pytest.raises(DeviceError, match="ad9361-phy has no output channel voltage7"):
        context.device("ad9361-phy").channel("voltage7", output=True)
    with pytest.raises(DeviceError, match="no device at all"):
        parse_context(b"<context/>").device("ad9361-phy")


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (b'<!DOCTYPE context [<!ENTITY a "b">]><context/>', "declares XML entities"),
        (b"<context>", "ParseError"),
        (b"<html/>", "the root is <html>"),
        (b"<context><device/></context>", "KeyError"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"", "ParseError"),
        (XML.replace(b"le:S12/16", b"le:S12/16X2"), "sample format 'le:S12/16X2>>0' is not understood"),
        (XML.replace(b'index="1"', b'index="one"'), "ValueError"),
    ],
)
def test_a_description_that_cannot_be_read_is_said(xml: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        parse_context(xml)
    assert caught.value.remedy
