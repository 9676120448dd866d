"""What one client of an emulated iiod asks and gets: attributes, buffers, and the errors of the real server.

Answers were compared with iiod 0.24, errno for errno; see tests/system/test_libiio_clients.py.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from sim_backend.emulators.attribute_tree import refusal
from sim_backend.emulators.context_xml import VERSION, context_xml
from sim_backend.emulators.faults import Fault
from sim_backend.emulators.iiod_buffers import ClientBuffers
from sim_backend.emulators.iiod_connection import ClientGone, Connection, LineTooLong
from sim_backend.emulators.iiod_request import NotUnderstood, Place, Request, parse
from sim_backend.emulators.iiod_shared import Shared

_LARGEST_VALUE_BYTES = 1 << 20
_HELP = """Requests:

\tHELP | VERSION | PRINT | EXIT
\tTIMEOUT <milliseconds>
\tREAD <device> [DEBUG | BUFFER | INPUT <channel> | OUTPUT <channel>] [<attribute>]
\tWRITE <device> [DEBUG | BUFFER | INPUT <channel> | OUTPUT <channel>] [<attribute>] <bytes>
\tOPEN <device> <samples> <mask> [CYCLIC]
\tREADBUF <device> <bytes>
\tWRITEBUF <device> <bytes>
\tCLOSE <device>
\tSET <device> BUFFERS_COUNT <count>
\tGETTRIG <device>
\tSETTRIG <device> [<trigger>]
"""


class Session:
    """One client.

    Args:
        connection: to it.
        shared: the server.
    """

    def __init__(self, connection: Connection, shared: Shared) -> None:
        self._connection = connection
        self._shared = shared
        self._chip = shared.radio.chip
        self._buffers = ClientBuffers(connection, shared)
        self._verbs: dict[str, Callable[[Request], bytes]] = {
            "VERSION": lambda _: "{}.{}.{:<7.7}\n".format(*VERSION).encode(),
            "HELP": lambda _: _HELP.encode(),
            "PRINT": self._print,
            "TIMEOUT": self._timeout,
            "READ": self._read,
            "WRITE": self._write,
            "OPEN": lambda request: _number(self._buffers.open(request)),
            "CLOSE": lambda request: _number(self._buffers.close(request)),
            "READBUF": self._read_buffer,
            "WRITEBUF": lambda request: _number(self._buffers.write(request)),
            "SET": lambda request: _number(self._buffers.set_blocks(request)),
            "GETTRIG": self._get_trigger,
            "SETTRIG": self._set_trigger,
        }

    def serve(self) -> None:
        """Answer until the client leaves; its buffers are gone then."""
        try:
            while self._serve_line():
                pass
        except ClientGone:
            pass
        finally:
            self._buffers.close_all()

    def _serve_line(self) -> bool:
        """Answer one line; False after EXIT."""
        try:
            request = parse(self._connection.line())
        except (NotUnderstood, LineTooLong):
            self._connection.send(_number(-errno.EINVAL))
            return True
        if request is None:
            return True
        if request.verb in ("EXIT", "QUIT"):
            return False
        fault = self._shared.faults.take("stall", "disconnect", "late-reply", "duplicate-reply", "brown-out")
        self._before(fault)
        try:
            reply = self._verbs[request.verb](request)
        except NotUnderstood:
            reply = _number(-errno.EINVAL)
        except OSError as error:
            reply = _number(-(error.errno or errno.EIO))
        self._after(fault, reply)
        return True

    def _before(self, fault: Fault | None) -> None:
        if fault is None:
            return
        if fault.kind == "stall":
            self._shared.pause(fault.seconds)
        elif fault.kind == "disconnect":
            raise ClientGone
        elif fault.kind == "brown-out":
            self._chip.reset()
            self._shared.drop_all()
            raise ClientGone

    def _after(self, fault: Fault | None, reply: bytes) -> None:
        if fault is not None and fault.kind == "late-reply":
            self._shared.pause(fault.seconds)
        self._connection.send(reply)
        if fault is not None and fault.kind == "duplicate-reply":
            self._connection.send(reply)

    # --- attributes -------------------------------------------------------------------------------------------------

    def _print(self, _: Request) -> bytes:
        fault = self._shared.faults.take("wrong-serial")
        serial = None if fault is None else fault.text or "another-radio"
        xml = context_xml(self._chip, serial=serial).encode()
        return b"%d\n%s\n" % (len(xml), xml)

    def _timeout(self, request: Request) -> bytes:
        self._shared.timeout_s = max(request.number, 0) / 1000
        return _number(0)

    def _read(self, request: Request) -> bytes:
        place = request.place(counted=False)
        if place.attribute is not None:
            value = self._text(place, place.attribute)
            fault = self._shared.faults.take("garbage", "nan")
            if fault is not None:
                value = fault.text.encode() or (b"nan" if fault.kind == "nan" else b"\xff#garbage")
            return _counted(value + b"\0")
        device = self._chip.device(place.device)
        packed = b""
        for attribute in device.attributes_of(place.channel, place.output, place.kind):
            try:
                value = self._text(place, attribute.name) + b"\0"
            except OSError as error:
                packed += struct.pack(">i", -(error.errno or errno.EIO))
            else:
                packed += struct.pack(">i", len(value)) + value + bytes(-len(value) % 4)
        return _counted(packed)

    def _text(self, place: Place, attribute: str) -> bytes:
        return self._chip.read(place.device, place.channel, place.output, attribute, place.kind).encode()

    def _write(self, request: Request) -> bytes:
        place = request.place(counted=True)
        size = request.number
        if not 0 <= size <= _LARGEST_VALUE_BYTES:
            raise refusal(errno.ENOMEM)
        # The real server leaves the payload of a write to an unknown device in the stream, where it is no request.
        device = self._chip.device(place.device)
        payload = self._connection.payload(size)
        if place.attribute is not None:
            self._store(place, place.attribute, payload)
            return _number(size)
        for attribute in device.attributes_of(place.channel, place.output, place.kind):
            if len(payload) < 4:
                break
            (length,) = struct.unpack_from(">i", payload)
            if length > 0:
                self._store(place, attribute.name, payload[4 : 4 + length])
            del payload[: 4 + length + -length % 4 if length > 0 else 4]
        return _number(size)

    def _store(self, place: Place, attribute: str, payload: bytearray) -> None:
        try:
            value = payload.partition(b"\0")[0].decode("ascii")
        except UnicodeDecodeError:
            raise refusal(errno.EINVAL) from None
        self._chip.write(place.device, place.channel, place.output, attribute, place.kind, value)

    def _read_buffer(self, request: Request) -> bytes:
        rest = self._buffers.read(request)
        return b"" if rest is None else _number(rest)

    def _get_trigger(self, request: Request) -> bytes:
        self._chip.device(request.words[0])
        raise refusal(errno.ENODEV)  # no device of this context has a trigger

    def _set_trigger(self, request: Request) -> bytes:
        self._chip.device(request.words[0])
        try:
            self._chip.device(request.words[-1] if len(request.words) > 1 else "")
        except OSError:
            raise refusal(errno.ENOENT) from None
        raise refusal(errno.EINVAL)  # that device is no trigger


def _number(value: int) -> bytes:
    return b"%d\n" % value


def _counted(data: bytes) -> bytes:
    return b"%d\n%s\n" % (len(data), data)
