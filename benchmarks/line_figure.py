"""Figures of several lines with error bars in panels beside one another, as SVG that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.svg_plot import ticks

_WIDTH, _HEIGHT = 330, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 30, 42
_COLOURS = (
    "#c4473a",
    "#3b6ea5",
    "#4a9b5f",
    "#8a5fb0",
    "#d08a2e",
    "#3aa6a6",
    "#b0577f",
    "#777777",
    "#9a8a2e",
    "#222222",
)
_DASHES = ("", "6 3", "2 3")


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        name: in the legend; lines of one name look alike in every panel.
        x, y: shape [num_points]; what is not finite is left out.
        low, high: ends of the error bars, shape [num_points]; none if absent.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Panel:
    """Lines over common axes.

    Attributes:
        title: above it.
        x_label, y_label: with units.
        lines: what it shows.
        log: whether the vertical axis is logarithmic; all y are positive then.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log: bool = False


def figure(title: str, panels: Sequence[Sequence[Panel]]) -> str:
    """Rows of panels with one legend.

    Args:
        title: above everything.
        panels: row by row.

    Returns:
        an `<svg>` element.
    """
    names = list(dict.fromkeys(line.name for row in panels for panel in row for line in panel.lines))
    columns = max(len(row) for row in panels)
    per_row = max(1, columns * _WIDTH // 190)
    legend = 18 * math.ceil(len(names) / per_row)
    width, height = columns * _WIDTH, len(panels) * _HEIGHT + legend + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{html.escape(title)}</text>',
    ]
    for index, name in enumerate(names):
        x, y = 12 + 190 * (index % per_row), 40 + 18 * (index // per_row)
        parts.append(
            f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" {_stroke(index)}/>'
            f'<text x="{x + 30}" y="{y + 4}">{html.escape(name)}</text>'
        )
    for row, across in enumerate(panels):
        for column, panel in enumerate(across):
            parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT + legend + 36})">')
            parts += _panel(panel, names)
            parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


def _stroke(index: int) -> str:
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return f'stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="1.6" stroke-dasharray="{dash}" fill="none"'


def _panel(panel: Panel, names: Sequence[str]) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    middle = (_LEFT + right) / 2
    parts = [
        f'<text x="{middle}" y="{_TOP - 10}" text-anchor="middle" font-weight="bold">{html.escape(panel.title)}</text>',
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(panel.x_label)}</text>',
        f'<text x="12" y="{(_TOP + bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(_TOP + bottom) / 2})">{html.escape(panel.y_label)}</text>',
    ]
    x_all = np.concatenate([line.x for line in panel.lines] or [np.zeros(1)])
    y_all = np.concatenate(
        [values for line in panel.lines for values in (line.y, line.low, line.high) if values is not None]
        or [np.zeros(1)]
    )
    y_all = y_all[np.isfinite(y_all) & ((y_all > 0) | (not panel.log))]
    if not len(y_all):
        return [*parts, f'<text x="{middle}" y="{(_TOP + bottom) / 2}" text-anchor="middle">nothing to show</text>']
    x_low, x_high = _ends(float(x_all.min()), float(x_all.max()))
    low, high = float(y_all.min()), float(y_all.max())
    y_low, y_high = _ends(math.log10(low), math.log10(high)) if panel.log else _ends(low, high)

    def across(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (right - _LEFT)

    def up(value: float) -> float:
        level = math.log10(value) if panel.log else value
        return bottom - (level - y_low) / (y_high - y_low) * (bottom - _TOP)

    for value in ticks(x_low, x_high, 6):
        parts.append(
            f'<line x1="{across(value):.1f}" y1="{_TOP}" x2="{across(value):.1f}" y2="{bottom}" stroke="#e4e4e4"/>'
            f'<text x="{across(value):.1f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>'
        )
    for value in _log_ticks(y_low, y_high) if panel.log else ticks(y_low, y_high, 6):
        parts.append(
            f'<line x1="{_LEFT}" y1="{up(value):.1f}" x2="{right}" y2="{up(value):.1f}" stroke="#e4e4e4"/>'
            f'<text x="{_LEFT - 5}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    parts.append(
        f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" fill="none" stroke="#888"/>'
    )
    for line in panel.lines:
        stroke = _stroke(names.index(line.name))
        shown = [index for index in range(len(line.x)) if math.isfinite(line.y[index])]
        points = " ".join(f"{across(line.x[index]):.1f},{up(line.y[index]):.1f}" for index in shown)
        parts.append(f'<polyline points="{points}" {stroke}/>')
        for index in shown:
            x = across(line.x[index])
            parts.append(f'<circle cx="{x:.1f}" cy="{up(line.y[index]):.1f}" r="2.4" {stroke}/>')
            if line.low is not None and line.high is not None and math.isfinite(line.low[index] + line.high[index]):
                ends = up(line.low[index]), up(line.high[index])
                parts.append(f'<line x1="{x:.1f}" y1="{ends[0]:.1f}" x2="{x:.1f}" y2="{ends[1]:.1f}" {stroke}/>')
    return parts


def _ends(low: float, high: float) -> tuple[float, float]:
    wide = high - low or abs(low) or 1.0
    return low - 0.05 * wide, high + 0.05 * wide


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 in each decade, or powers of ten alone where there are many; round numbers where there is no decade."""
    values = [
        factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in (1.0, 2.0, 5.0)
    ]
    values = [value for value in values if low <= math.log10(value) <= high]
    if len(values) < 3:
        return [value for value in ticks(10.0**low, 10.0**high, 5) if value > 0]
    return values if len(values) <= 8 else [value for value in values if math.log10(value).is_integer()] or values[::3]
