"""A run's rounds as a table: the same characters on the terminal, in a file and in the README."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from testbed.core.units import to_db

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: two lines of heading, and how a row fills it."""

    name: str
    unit: str
    cell: Callable[[Row], str]


def number(value: float | None) -> str:
    """A figure in at most six characters where it can be; `-` for none."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.001:
        return f"{value:.0e}"
    digits = 4 if size < 0.1 else 3 if size < 10 else 1 if size < 1000 else 0
    return f"{value:.{digits}f}"


def decibels(ratio: float | None) -> str:
    """A power ratio in dB; `exact` for an error of zero."""
    if ratio is None:
        return "-"
    return f"{to_db(ratio):.1f}" if ratio > 0 else "exact"


def percent(share: float | None) -> str:
    """A share of the whole, three figures."""
    return "-" if share is None else f"{100 * share:.3g} %"


def compact(names: Iterable[str]) -> str:
    """`node-00 node-01 node-02 node-05` as `node-00..02,05`."""
    parts = []
    split = [re.fullmatch(r"(.*?)(\d*)", name) for name in sorted(names)]
    for stem, group in groupby((match for match in split if match), key=lambda match: match[1]):
        numbers = [match[2] for match in group]
        runs: list[list[str]] = []
        for digits in numbers:
            if runs and digits and runs[-1][-1] and int(digits) == int(runs[-1][-1]) + 1:
                runs[-1].append(digits)
            else:
                runs.append([digits])
        words = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(run) for run in runs]
        parts.append(stem + ",".join(words))
    return " ".join(parts)


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that say something about these rows."""
    total = max((len(row["participants"]) + len(row["missing"]) for row in rows), default=0)

    def took_part(row: Row) -> str:
        return f"{len(row['participants'])}/{total}" if row["participants"] or row["missing"] else "-"

    def accuracy(row: Row) -> str:
        return "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"

    def resent(row: Row) -> str:
        if row.get("packets") is None:
            return "-"
        # a deadline may end sending before every packet was sent once
        return f"{max(row['transmissions'] - row['packets'], 0)}/{row['packets']}"

    def figure(key: str) -> Callable[[Row], str]:
        return lambda row: number(row[key])

    def error(key: str) -> Callable[[Row], str]:
        return lambda row: decibels(row[key])

    chosen = [
        Column("round", "", lambda row: str(row["round"])),
        Column("loss", "nats", lambda row: "-" if row["loss"] is None else f"{row['loss']:.4f}"),
    ]
    if any(row["accuracy"] is not None for row in rows):
        chosen.append(Column("accuracy", "%", accuracy))
    else:
        chosen.append(Column("perpl.", "", figure("perplexity")))
    chosen.append(Column("nodes", "", took_part))
    if any(row["aggregation_error"] is not None for row in rows):
        chosen.append(Column("error", "dB", error("aggregation_error")))
    if any(row["expected_error"] is not None for row in rows):
        chosen.append(Column("expected", "dB", error("expected_error")))
    if any(row.get("vote_error") is not None for row in rows):
        chosen.append(Column("wrong", "votes", lambda row: percent(row.get("vote_error"))))
    if any(row.get("packets") is not None for row in rows):
        chosen.append(Column("resent", "packets", resent))
    return [
        *chosen,
        Column("air", "s", figure("air_time_s")),
        Column("latency", "s", figure("latency_s")),
        Column("energy", "J", figure("energy_j")),
        Column("travel", "m", figure("travel_m")),
    ]


def render_plain(rows: Sequence[Row]) -> str:
    """The table in ASCII, at most 80 columns wide: one line a round, sums below, then what the columns cannot say.

    Args:
        rows: of `rounds.jsonl`.
    """
    chosen = columns(rows)
    cells = [[column.cell(row) for column in chosen] for row in rows]
    sums = {"air": "air_time_s", "latency": "latency_s", "energy": "energy_j", "travel": "travel_m"}
    totals = [number(sum(row[sums[column.name]] for row in rows)) if column.name in sums else "" for column in chosen]
    totals[0] = "total"
    lines = grid([[column.name for column in chosen], [column.unit for column in chosen]], [*cells, totals])
    lines.insert(len(lines) - 1, lines[2])
    blocks = [lines, _scheme_figures(rows), _notes(rows)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def grid(headings: Sequence[Sequence[str]], cells: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """Lines of a table: headings, a rule, rows; the first `left` columns flush left, the others flush right."""
    widths = [max(len(line[index]) for line in (*headings, *cells)) for index in range(len(headings[0]))]

    def line(texts: Sequence[str]) -> str:
        placed = (
            text.ljust(width) if index < left else text.rjust(width)
            for index, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        return "  ".join(placed).rstrip()

    return [*map(line, headings), "  ".join("-" * width for width in widths), *map(line, cells)]


def _scheme_figures(rows: Sequence[Row]) -> list[str]:
    """What the scheme reports of itself, where it does."""
    telling = [row for row in rows if row["scheme"]]
    names = list(dict.fromkeys(name for row in telling for name in row["scheme"]))
    if not names:
        return []
    cells = [[str(row["round"]), *(_plain(row["scheme"].get(name)) for name in names)] for row in telling]
    return grid([["round", *names]], cells)


def _plain(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if value is not None and float(value).is_integer() else number(value)


def _notes(rows: Sequence[Row]) -> list[str]:
    """Who was silent, and who took part where that is not everybody."""
    total = max((len(row["participants"]) + len(row["missing"]) for row in rows), default=0)
    notes = []
    for row in rows:
        if row["missing"]:
            notes.append(f"round {row['round']}: silent {compact(row['missing'])}")
        elif 0 < len(row["participants"]) < total:
            notes.append(f"round {row['round']}: took part {compact(row['participants'])}")
    return notes
