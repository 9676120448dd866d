"""The parent's end of `drivers.adi_process`: one child process that is asked, watched, and killed when it is late."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from drivers.adi_process import KINDS, receive_frame, send_frame
from testbed.core.errors import BenchError, RadioFault

_COMMAND = (sys.executable, "-m", "drivers.adi_process")
_TAIL_BYTES = 4000
_REMEDY = "the next order starts it afresh; check the radio's power and its cable"


class AdiChild:
    """A process that holds one radio through libiio. One thread asks at a time; `kill` is legal from any.

    Args:
        uri: of the radio, for messages.

    Raises:
        RadioFault: the process cannot be started.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._killed = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
        self._link, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        try:
            self._process = subprocess.Popen(
                _COMMAND,
                stdin=theirs.fileno(),
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, "PYTHONPATH": path},
                # an interrupt at the keyboard reaches the parent alone
                start_new_session=True,
            )
        except OSError as error:
            self._link.close()
            self._log.close()
            raise RadioFault(f"{uri}: the process for pyadi-iio cannot be started: {error}") from error
        finally:
            theirs.close()

    @property
    def killed(self) -> bool:
        """Whether it was ended, here or by itself."""
        return self._killed

    def ask(
        self, order: dict[str, Any], data: bytes | memoryview = b"", *, timeout_s: float
    ) -> tuple[dict[str, Any], bytearray]:
        """What it answers. Whatever is out of order kills it.

        Args:
            order: for `drivers.adi_process`.
            data: raw bytes that belong to it.
            timeout_s: for the whole exchange; libiio hangs after that.

        Raises:
            BenchError: as it happened over there.
            RadioFault: it crashed or hangs; it is dead when this raises.
        """
        if self._killed:
            raise RadioFault(f"{self._uri}: the process for pyadi-iio was ended", remedy=_REMEDY)
        try:
            self._link.settimeout(timeout_s)
            send_frame(self._link, order, data)
            head, answer = receive_frame(self._link)
        except TimeoutError as error:
            self.kill()
            raise RadioFault(
                f"{self._uri}: pyadi-iio did not finish {order['do']} within {timeout_s:.3g} s and was ended",
                remedy=_REMEDY,
            ) from error
        except (OSError, EOFError) as error:
            raise self._crash(order["do"]) from error
        except BaseException:
            self.kill()  # an answer may still come, and would be taken for that to another question
            raise
        if "error" not in head:
            return head["answer"], answer
        if head["broken"]:
            self.kill()
        raise KINDS.get(head["error"], BenchError)(
            head["message"] if self._uri in head["message"] else f"{self._uri}: {head['message']}",
            key=head["key"],
            remedy=head["remedy"],
        )

    def kill(self) -> None:
        """End it at once, and with it its connections and its buffers at the radio; from any thread."""
        self._killed = True
        self._process.kill()
        try:
            self._link.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        except OSError:
            pass  # it has gone already

    def close(self) -> None:
        """Kill it and let go of everything; for the thread that asks; may be repeated."""
        self.kill()
        self._process.wait()
        self._link.close()
        self._log.close()

    def _crash(self, what: str) -> RadioFault:
        if self._killed:
            return RadioFault(f"{self._uri}: {what} was ended from elsewhere", remedy=_REMEDY)
        self.kill()
        code = self._process.wait()
        ended = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = f"; it said: {lines[0]}" if code < 0 and lines else f"; it said: {lines[-1]}" if lines else ""
        return RadioFault(f"{self._uri}: pyadi-iio's process ended with {ended} during {what}{said}", remedy=_REMEDY)
