"""A radio as far as its iiod shows attributes, in a few lines of the text protocol; tests stall it and look at it."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

GAINS = ("voltage0", "voltage1")
TONES = tuple(f"altvoltage{index}" for index in range(4))


def description(serial: str, *, chip: str = "ad9361-phy", triggered: bool = False) -> str:
    """The XML of a radio with two transmit channels and four tones."""
    gains = "".join(
        f'<channel id="{name}" type="{kind}"><attribute name="hardwaregain"/><attribute name="sampling_frequency"/>'
        "</channel>"
        for name in GAINS
        for kind in ("output", "input")
    )
    synthesisers = "".join(
        f'<channel id="altvoltage{index}" name="{name}" type="output"><attribute name="frequency"/>'
        '<attribute name="frequency_available"/><attribute name="powerdown"/></channel>'
        for index, name in enumerate(("RX_LO", "TX_LO"))
    )
    tones = "".join(f'<channel id="{name}" type="output"><attribute name="raw"/></channel>' for name in TONES)
    trigger = '<device id="iio:device9" name="adi-iio-fakedev" label="iio-axi-tdd-0"></device>' if triggered else ""
    return (
        '<?xml version="1.0" encoding="utf-8"?><context name="network" description="test">'
        f'<context-attribute name="hw_serial" value="{serial}"/>'
        '<context-attribute name="hw_model" value="a radio for tests"/>'
        '<context-attribute name="fw_version" value="v0.39"/>'
        f'<device id="iio:device0" name="{chip}">{gains}{synthesisers}</device>'
        f'<device id="iio:device2" name="cf-ad9361-dds-core-lpc">{tones}</device>{trigger}</context>'
    )


class FakeIiod:
    """Serves attributes on a free port of this machine until it is closed.

    Args:
        serial: its hw_serial.
        chip: name of its first device.
        triggered: whether it has a transfer trigger.
    """

    def __init__(self, serial: str = "one", *, chip: str = "ad9361-phy", triggered: bool = False) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()
        self.connections = 0
        self._description = description(serial, chip=chip, triggered=triggered).encode()
        self._answering = threading.Event()
        self._answering.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"ip:127.0.0.1:{self._listener.getsockname()[1]}"
        for name in GAINS:
            self.values[f"ad9361-phy OUTPUT {name} hardwaregain"] = "0.000000 dB"
        self.values["ad9361-phy OUTPUT altvoltage1 powerdown"] = "0"
        self.values["ad9361-phy OUTPUT altvoltage1 frequency"] = "2440000000"
        self.values["ad9361-phy OUTPUT altvoltage1 frequency_available"] = "[325000000 1 3800000000]"
        self.values["ad9361-phy INPUT voltage0 sampling_frequency"] = "5000000"
        for name in TONES:
            self.values[f"cf-ad9361-dds-core-lpc OUTPUT {name} raw"] = "1"
        self._start(self._accept)

    @property
    def muted(self) -> bool:
        """Whether nothing radiates: lowest gains, synthesiser down, tones off."""
        return (
            all(self.values[f"ad9361-phy OUTPUT {name} hardwaregain"].startswith("-89.75") for name in GAINS)
            and self.values["ad9361-phy OUTPUT altvoltage1 powerdown"] == "1"
            and all(self.values[f"cf-ad9361-dds-core-lpc OUTPUT {name} raw"] == "0" for name in TONES)
        )

    def wait_until_muted(self, timeout_s: float) -> bool:
        """Whether it is muted within so long."""
        with self.changed:
            return self.changed.wait_for(lambda: self.muted, timeout_s)

    def unmute(self) -> None:
        """As somebody who transmits again."""
        self.values["ad9361-phy OUTPUT voltage0 hardwaregain"] = "-10.000000 dB"

    def stall(self) -> None:
        """Answer nothing from now on."""
        self._answering.clear()

    def drop(self) -> None:
        """Break every connection that is open."""
        for connection in list(self._sockets):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def __enter__(self) -> FakeIiod:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answering.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in list(self._threads):
            thread.join(5.0)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while line := stream.readline():
                    words = line.decode().split()
                    payload = stream.read(int(words[-1])) if words and words[0] == "WRITE" else b""
                    self._answering.wait()
                    connection.sendall(self._answer(words, payload))
            except (OSError, ValueError):
                pass  # the client went away, or makes no sense

    def _answer(self, words: list[str], payload: bytes) -> bytes:
        match words:
            case [] | ["EXIT"]:
                return b""
            case ["PRINT"]:
                return b"%d\n%b\n" % (len(self._description), self._description)
            case ["READ", *path]:
                key = " ".join(path)
                if key not in self.values:
                    return b"-2\n"
                value = self.values[key].encode() + b"\0"
                return b"%d\n%b\n" % (len(value), value)
            case ["WRITE", *path, size]:
                key = " ".join(path)
                if key not in self.values:
                    return b"-2\n"
                with self.changed:
                    self.values[key] = payload.rstrip(b"\0").decode()
                    self.changed.notify_all()
                return f"{size}\n".encode()
            case _:
                return b"-22\n"
