"""A dry run's orders as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from testbed.report.table import grid, number


def render_orders(steps: Sequence[Mapping[str, Any]]) -> str:
    """What would be asked of the bench, with what it would take, in ASCII.

    Args:
        steps: one for each order: index, round_index, order, seconds, air_time_s, travel_m, joules, note.
    """
    headings = [["step", "round", "order", "time", "air", "travel", "energy"], ["", "", "", "s", "s", "m", "J"]]
    keys = ("seconds", "air_time_s", "travel_m", "joules")
    cells = [
        [str(step["index"]), str(step["round_index"]), step["order"], *(number(step[key]) for key in keys)]
        for step in steps
    ]
    totals = ["", "", "total", *(number(sum(step[key] for step in steps)) for key in keys)]
    lines = grid(headings, [*cells, totals], left=3)
    lines.insert(len(lines) - 1, lines[2])
    notes = dict.fromkeys(step["note"] for step in steps if step["note"])
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"
