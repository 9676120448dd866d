"""What a run shows while it runs: rounds, the order of the moment, and what each node does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, assert_never

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from testbed.core.orders import Collect, Evaluate, Move, Order, Publish, Reply, Sound, Together, Train
from testbed.engine.observe import Observer
from testbed.report.table import decibels, percent

MOST_LINES = 12
"""With more nodes than this, one line stands for all of them."""

Style = Literal["live", "lines", "quiet"]


def words_for(order: Order) -> str:
    """What happens while an order is carried out."""
    match order:
        case Sound():
            return "nodes send pilots"
        case Move():
            return "antennas move"
        case Train(work=work):
            return f"{len(work)} nodes train"
        case Together(train=train):
            return f"antennas move while {len(train.work)} nodes train"
        case Collect(uplinks=uplinks):
            return f"{len(uplinks)} updates travel"
        case Publish():
            return "the new adapter is broadcast"
        case Evaluate():
            return "held-out text is scored"
        case _:
            assert_never(order)


class RunProgress(Observer):
    """Shows a run on standard error: live bars on a terminal, one line a round elsewhere, nothing when quiet.

    Attributes:
        folder: the run's folder, once it is known.
        display: what the live screen shows.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.folder: Path | None = None
        self._console = console or Console(stderr=True, highlight=False)
        self._style: Style = "quiet" if quiet else "live" if self._console.is_terminal else "lines"
        self._rounds = 0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
        )
        self._round_task = self._bar.add_task("rounds", total=None, note="")
        self._busy = Progress(
            TextColumn("  {task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[activity]}"),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._fractions: dict[str, float] = {}
        self.display = Group(self._bar, self._busy)
        self._live = Live(self.display, console=self._console, refresh_per_second=5, transient=True)

    def __enter__(self) -> RunProgress:
        if self._style == "live":
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def phase(self, text: str) -> None:
        self._note(text)
        self._line(text)

    def warning(self, text: str) -> None:
        if self._style != "quiet":
            self._console.print(f"warning: {text}", soft_wrap=True, markup=False)

    def run_started(self, folder: Path | None, rounds: int) -> None:
        self.folder, self._rounds = folder, rounds
        self._bar.update(self._round_task, total=rounds)

    def round_started(self, index: int) -> None:
        self._note("base model" if index == 0 else f"round {index}")

    def order_started(self, order: Order) -> None:
        self._clear()
        self._note(words_for(order))

    def order_ended(self, order: Order, reply: Reply) -> None:
        self._clear()

    def node_progress(self, node: str, activity: str, fraction: float) -> None:
        self._fractions[node] = fraction
        if self._style != "live":
            return
        if len(self._fractions) > MOST_LINES:
            self._summarise(activity)
            return
        if node not in self._tasks:
            self._tasks[node] = self._busy.add_task(node, total=1.0, activity=activity)
        self._busy.update(self._tasks[node], completed=fraction, activity=activity)

    def round_ended(self, row: Mapping[str, Any]) -> None:
        self._bar.update(self._round_task, completed=row["round"])
        parts = [f"round {row['round']}/{self._rounds}"]
        if row["loss"] is not None:
            parts.append(f"loss {row['loss']:.4f}")
        if row["accuracy"] is not None:
            parts.append(f"accuracy {100 * row['accuracy']:.1f} %")
        if row["participants"]:
            parts.append(f"{len(row['participants'])} nodes")
        if row["missing"]:
            parts.append(f"{len(row['missing'])} silent")
        if row["aggregation_error"] is not None:
            error = row["aggregation_error"]
            parts.append(f"error {decibels(error)} dB" if error > 0 else "no error")
        if row.get("vote_error") is not None:
            parts.append(f"{percent(row['vote_error'])} of the votes wrong")
        self._line("  ".join(parts))

    def run_ended(self, summary: Mapping[str, Any]) -> None:
        self._clear()
        self._note("")

    def _summarise(self, activity: str) -> None:
        """One line for all nodes, where a line for each would not fit the screen."""
        if "" not in self._tasks:
            self._clear_lines()
            self._tasks[""] = self._busy.add_task("nodes", total=1.0, activity="")
        done = sum(fraction >= 1.0 for fraction in self._fractions.values())
        mean = sum(self._fractions.values()) / len(self._fractions)
        words = f"{activity}: {done} of {len(self._fractions)} done"
        self._busy.update(self._tasks[""], completed=mean, activity=words)

    def _clear(self) -> None:
        self._fractions.clear()
        self._clear_lines()

    def _clear_lines(self) -> None:
        for task in self._tasks.values():
            self._busy.remove_task(task)
        self._tasks.clear()

    def _note(self, text: str) -> None:
        self._bar.update(self._round_task, note=text)

    def _line(self, text: str) -> None:
        if self._style == "lines":
            self._console.print(text, soft_wrap=True, markup=False)
