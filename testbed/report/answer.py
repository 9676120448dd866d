"""A solved instance as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from testbed.report.table import grid

_TRACE = 6


def render_answer(content: Mapping[str, Any]) -> str:
    """Value and residuals, then every decision: single figures in lines, lists of one length side by side, in ASCII.

    Args:
        content: what `--json` prints: `value`, `status`, `kkt_residual`, `feasibility`, decisions, `trace`.
    """
    lines, lists = [], []
    for key, entry in content.items():
        if key == "trace":
            continue
        for name, value in _flat(key, entry):
            if isinstance(value, list) and value and len(value) > 1:
                lists.append((name, value))
            else:
                lines.append((name, _shown(value[0] if isinstance(value, list) and len(value) == 1 else value)))
    width = max(len(name) for name, _ in lines)
    blocks = ["\n".join(f"{name.ljust(width)}  {text}".rstrip() for name, text in lines)]
    for size in dict.fromkeys(len(value) for _, value in lists):
        block = [(name, value) for name, value in lists if len(value) == size]
        cells = [[str(row), *(_shown(value[row]) for _, value in block)] for row in range(size)]
        blocks.append("\n".join(grid([["", *(name for name, _ in block)]], cells)))
    trace: Sequence[float] = content.get("trace", ())
    if trace:
        few = trace if len(trace) <= _TRACE else (*trace[: _TRACE - 1], trace[-1])
        gap = "" if len(few) == len(trace) else f" ({len(trace)} values)"
        blocks.append(f"trace{gap}  " + " ".join(_shown(value) for value in few))
    return "\n\n".join(blocks) + "\n"


def _flat(name: str, entry: Any) -> list[tuple[str, Any]]:
    if isinstance(entry, Mapping):
        return [pair for key, value in entry.items() for pair in _flat(f"{name}.{key}", value)]
    return [(name, entry)]


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return "-" if math.isnan(value) else f"{value:.5g}"
        case list() | tuple():
            return " ".join(_shown(one) for one in value) or "none"
        case _:
            return str(value)
