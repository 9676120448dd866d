"""Two runs side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.core.units import to_db
from testbed.report.table import Row, grid, number


@dataclass(frozen=True)
class Recorded:
    """What a run left behind.

    Attributes:
        label: short name for headings.
        summary: of `summary.json`.
        rows: of `rounds.jsonl`.
    """

    label: str
    summary: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def mean_error(self) -> float | None:
        """Mean aggregation error over the rounds that measured it, as a power ratio."""
        errors = [row["aggregation_error"] for row in self.rows if row["aggregation_error"] is not None]
        return sum(errors) / len(errors) if errors else None


@dataclass(frozen=True)
class Difference:
    """One compared quantity; None where a run does not have it.

    Attributes:
        relative: whether the difference is also shown in per cent.
        digits: after the point; as many as fit if None.
    """

    name: str
    unit: str
    one: float | None
    other: float | None
    relative: bool = True
    digits: int | None = None

    @property
    def difference(self) -> float | None:
        return None if self.one is None or self.other is None else self.one - self.other

    def shown(self, value: float | None) -> str:
        """One of the figures, as a cell."""
        return number(value) if value is None or self.digits is None else f"{value:.{self.digits}f}"


def differences(one: Recorded, other: Recorded) -> list[Difference]:
    """Everything two runs are compared by, where at least one of them has it."""

    def figure(name: str, unit: str, key: str, digits: int | None = None) -> Difference:
        return Difference(name, unit, one.summary.get(key), other.summary.get(key), digits=digits)

    def error(run: Recorded) -> float | None:
        return to_db(run.mean_error) if run.mean_error else None

    compared = [
        figure("loss after", "nats", "loss_after", 4),
        figure("perplexity after", "", "perplexity_after", 2),
        figure("accuracy after", "", "accuracy_after", 4),
        Difference("mean aggregation error", "dB", error(one), error(other), relative=False, digits=2),
        figure("air time", "s", "air_time_s"),
        figure("latency", "s", "latency_s"),
        figure("energy", "J", "energy_j"),
        figure("antenna travel", "m", "travel_m"),
    ]
    return [line for line in compared if line.one is not None or line.other is not None]


def render_comparison(one: Recorded, other: Recorded) -> str:
    """Figures of both runs with their difference, in ASCII, then the gain in one sentence."""
    cells = []
    lines = differences(one, other)
    for line in lines:
        change = line.difference
        percent = ""
        if change and line.relative and line.other:
            percent = f"{100 * change / abs(line.other):+.1f} %"
        signed = "-" if change is None else "0" if change == 0 else f"{'+' if change > 0 else ''}{line.shown(change)}"
        cells.append([line.name, line.unit, line.shown(line.one), line.shown(line.other), signed, percent])
    table = grid([["", "", one.label, other.label, "difference", ""]], cells, left=2)
    return "\n".join([*table, *_sentence(one, other, {line.name: line for line in lines})]) + "\n"


def _sentence(one: Recorded, other: Recorded, lines: Mapping[str, Difference]) -> list[str]:
    clauses = []
    error = lines["mean aggregation error"].difference if "mean aggregation error" in lines else None
    if error:
        clauses.append(f"aggregates with {abs(error):.1f} dB {'less' if error < 0 else 'more'} error")
    loss = lines["loss after"].difference if "loss after" in lines else None
    if loss and abs(loss) >= 5e-5:
        clauses.append(f"ends with a loss {abs(loss):.4f} nats {'lower' if loss < 0 else 'higher'}")
    if not clauses:
        return []
    travel = lines["antenna travel"].difference if "antenna travel" in lines else None
    price = f", for {number(travel)} m more antenna travel" if travel and travel > 0 else ""
    return ["", *textwrap.wrap(f"{one.label} {' and '.join(clauses)} than {other.label}{price}.", 80)]
