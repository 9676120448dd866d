"""What a run tells those who watch it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.core.orders import Order, Reply


class Observer:
    """Hears what a run does; every method does nothing until it is overridden."""

    def phase(self, text: str) -> None:
        """Something that takes a while begins."""

    def warning(self, text: str) -> None:
        """Something that whoever watches should know."""

    def run_started(self, folder: Path | None, rounds: int) -> None:
        """Nodes and devices are ready."""

    def round_started(self, index: int) -> None:
        """Round 0 scores the base model."""

    def order_started(self, order: Order) -> None:
        """An order goes out."""

    def order_ended(self, order: Order, reply: Reply) -> None:
        """Its reply is in."""

    def node_progress(self, node: str, activity: str, fraction: float) -> None:
        """How far a node is."""

    def round_ended(self, row: Mapping[str, Any]) -> None:
        """The round's row of `rounds.jsonl`."""

    def run_ended(self, summary: Mapping[str, Any]) -> None:
        """The run's `summary.json`."""
