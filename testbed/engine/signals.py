"""Signals end a run as Ctrl-C does, and never cut its clean-up short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any] | int | None
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal other than Ctrl-C."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@contextmanager
def _handlers(handlers: Mapping[signal.Signals, _Handler]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def signals_interrupt() -> AbstractContextManager[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does."""

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    return _handlers({signal.SIGTERM: terminate, signal.SIGHUP: terminate})


def signals_wait() -> AbstractContextManager[None]:
    """No signal cuts the clean-up short."""
    return _handlers(dict.fromkeys(_SIGNALS, signal.SIG_IGN))
