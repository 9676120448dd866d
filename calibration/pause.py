"""Ctrl-Z holds a calibration between two steps, where nothing moves or radiates, and Ctrl-Z again lets it go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Pause:
    """Whether a calibration shall hold; `SIGTSTP` turns it over while the context lasts.

    The process itself is not stopped: it goes on telling the devices that it lives, and keeps its leases. Outside the
    main thread nothing is installed.
    """

    def __init__(self) -> None:
        self._asked = False
        self._go_on = threading.Event()
        self._before: signal.Handlers | int | Callable[[int, FrameType | None], object] | None = None
        self._installed = False

    def __enter__(self) -> Pause:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTSTP, lambda number, frame: self.turn())
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL if self._before is None else self._before)

    def turn(self) -> None:
        """Hold at the next chance; or, if that was asked already, go on."""
        if self._asked:
            self._asked = False
            self._go_on.set()
        else:
            self._go_on.clear()
            self._asked = True

    def hold(self, begins: Callable[[], None], ends: Callable[[], None]) -> None:
        """Return at once, or, where a pause was asked for, after it: `begins` and `ends` are called around it."""
        if self._asked:
            begins()
            self._go_on.wait()
            ends()
