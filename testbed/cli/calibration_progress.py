"""What a calibration shows while it runs: the step of the moment, how many are left, and how long that may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class CalibrationProgress:
    """Shows a calibration on standard error: a bar on a terminal, a line now and then elsewhere, nothing when quiet.

    Args:
        quiet: show nothing.
        console: standard error by default.
        now_s: a clock, seconds.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._live = self._console.is_terminal and not quiet
        self._now_s = now_s
        self.display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=self._console,
            transient=True,
        )
        self._task = self.display.add_task("calibration", total=None, note="")
        self._routine, self._done, self._total = "", 0, 0
        self._before, self._began_s, self._said_s = 0, 0.0, 0.0

    def __enter__(self) -> CalibrationProgress:
        if self._live:
            self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away; may be repeated."""
        if self._live:
            self.display.stop()

    def phase(self, text: str) -> None:
        """Something that takes a while begins."""
        self.display.update(self._task, note=text)
        self._line(text)

    def warning(self, text: str) -> None:
        """Something that whoever watches should know."""
        if not self._quiet:
            self._console.print(f"warning: {text}", soft_wrap=True, markup=False)

    def began(self, routine: str, folder: Path, done: int, total: int) -> None:
        """Devices are ready."""
        self._routine, self._done, self._total, self._before = routine, done, total, done
        self._began_s = self._said_s = self._now_s()
        self.display.reset(self._task, description=routine, total=total, completed=done, note="")
        self._line(f"{routine}: {total - done} steps at most, {folder}")

    def step_started(self, index: int, step: Mapping[str, Any]) -> None:
        """A measurement begins."""
        self.display.update(self._task, note=step_words(step))

    def step_ended(self, index: int) -> None:
        """It is on the disk."""
        self._done = index + 1
        self._total = max(self._total, self._done)
        self.display.update(self._task, completed=self._done, total=self._total)
        if self._now_s() - self._said_s >= _LINE_EVERY_S:
            self._said_s = self._now_s()
            self._line(f"{self._routine}: {self._done}/{self._total}, {self._remaining()} left")

    def paused(self) -> None:
        """Nothing moves or radiates until Ctrl-Z comes again."""
        text = "held: nothing moves or radiates; Ctrl-Z goes on, Ctrl-C ends"
        self.display.update(self._task, note=text)
        self._line(text)

    def goes_on(self) -> None:
        """After a pause."""
        self._before, self._began_s = self._done, self._now_s()
        self._line("goes on")

    def ended(self, profile: Any) -> None:
        """The profile is on the disk."""
        self._line(f"{profile.routine}: {'passed' if profile.passed else 'failed'}")

    def skipped(self, routine: str, why: str) -> None:
        """This bench cannot be calibrated so."""
        self._line(f"{routine}: skipped, {why}")

    def _remaining(self) -> str:
        """At the pace so far."""
        done = self._done - self._before
        left_s = (self._now_s() - self._began_s) / done * (self._total - self._done) if done else 0.0
        return f"{left_s / 60:.0f} min" if left_s >= 120 else f"{left_s:.0f} s"

    def _line(self, text: str) -> None:
        if not self._live and not self._quiet:
            self._console.print(text, soft_wrap=True, markup=False)


def step_words(step: Mapping[str, Any]) -> str:
    """A step on one line: node node-00, gain 1e+05."""
    words = []
    for key, value in step.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        words.append(f"{key} {text}" if len(text) <= 40 else f"{key} {text[:37]}...")
    return ", ".join(words)
