"""What a run shows while it runs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_cli_tables import row

from testbed.cli.progress import MOST_LINES, RunProgress, words_for
from testbed.core.orders import Collect, Evaluate, Ideal, Move, Order, Publish, Scores, Sound, Together, Train, Work


def terminal(width: int = 80) -> Console:
    """A terminal that keeps what it was given."""
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40, highlight=False)


def shown(progress: RunProgress, console: Console) -> str:
    """What is on the screen now, without colours."""
    with console.capture() as captured:
        console.print(progress.display)
    return "".join(character for character in captured.get() if character.isprintable() or character == "\n")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (Sound(), "nodes send pilots"),
        (Move(np.zeros((4, 2))), "antennas move"),
        (Train({"a": Work(), "b": Work()}), "2 nodes train"),
        (Together(Move(np.zeros((4, 2))), Train({"a": Work()})), "antennas move while 1 nodes train"),
        (Collect({"a": Ideal(1.0, 1.0, 1.0, 1.0)}), "1 updates travel"),
        (Publish(np.zeros(3, np.float32)), "the new adapter is broadcast"),
        (Evaluate(), "held-out text is scored"),
    ],
)
def test_every_order_has_words(order: Order, words: str) -> None:
    assert words_for(order) == words


def test_each_node_has_a_line_while_it_is_busy() -> None:
    console = terminal()
    with RunProgress(console=console) as progress:
        progress.run_started(Path("run"), 5)
        progress.round_ended(row(2))
        order = Train({f"node-{index:02d}": Work() for index in range(8)})
        progress.order_started(order)
        for index in range(8):
            progress.node_progress(f"node-{index:02d}", "training", index / 8)
        screen = shown(progress, console)
        assert "2/5" in screen
        assert "8 nodes train" in screen
        assert screen.count("training") == 8
        progress.order_ended(Evaluate(), Scores(1.0, 1, 1))
        assert "training" not in shown(progress, console)
    assert progress.folder == Path("run")


def test_a_hundred_nodes_share_one_line() -> None:
    console = terminal()
    with RunProgress(console=console) as progress:
        for index in range(100):
            progress.node_progress(f"node-{index:03d}", "training", 1.0 if index < 30 else 0.5)
        screen = shown(progress, console)
        assert "training: 30 of 100 done" in screen
        assert len(screen.splitlines()) < MOST_LINES


def test_lines_elsewhere_than_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    with RunProgress(console=console) as progress:
        progress.phase("opening")
        progress.run_started(Path("run"), 2)
        progress.node_progress("node-00", "training", 0.5)
        progress.round_ended(row(1, accuracy=0.5, missing=["node-07"]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text == "opening\nround 1/2  loss 4.4000  accuracy 50.0 %  8 nodes  1 silent  error -20.0 dB\n"


def test_quiet_says_nothing() -> None:
    console = terminal()
    with RunProgress(quiet=True, console=console) as progress:
        progress.phase("opening")
        progress.run_started(Path("run"), 2)
        progress.node_progress("node-00", "training", 0.5)
        progress.round_ended(row(1))
        progress.run_ended({})
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
