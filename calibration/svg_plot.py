"""Figures of a calibration as SVG: what was measured, what the fit says, and what is left over."""

from __future__ import annotations

import html
import math

import numpy as np

_WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 88, 16, 34, 46
_DATA_HEIGHT, _REST_HEIGHT, _GAP = 250, 90, 14
_MOST_POINTS = 2000
_MEASURED, _FITTED = "#3b6ea5", "#c4473a"


def svg(
    title: str, x_label: str, y_label: str, x: np.ndarray, measured: np.ndarray, fitted: np.ndarray | None = None
) -> str:
    """One figure.

    Args:
        title: above it.
        x_label, y_label: with units.
        x: shape [num_points].
        measured: dots, shape [num_points]; what is not finite is left out.
        fitted: a line, shape [num_points]; below it a panel shows measured - fitted.

    Returns:
        an `<svg>` element that needs nothing else.
    """
    order = np.argsort(x, kind="stable")
    kept = order[:: max(1, math.ceil(order.size / _MOST_POINTS))]
    x, measured = x[kept], measured[kept]
    fitted = None if fitted is None else fitted[kept]
    height = _TOP + _DATA_HEIGHT + (0 if fitted is None else _GAP + _REST_HEIGHT) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{html.escape(title)}</text>',
    ]
    if fitted is None:
        parts += _panel(x, measured, None, _TOP, _DATA_HEIGHT, y_label, labelled=True)
    else:
        parts += _legend()
        parts += _panel(x, measured, fitted, _TOP, _DATA_HEIGHT, y_label, labelled=False)
        below = _TOP + _DATA_HEIGHT + _GAP
        parts += _panel(x, measured - fitted, np.zeros_like(x), below, _REST_HEIGHT, "residual", labelled=True)
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{height - 10}" text-anchor="middle">{html.escape(x_label)}</text>')
    return "\n".join([*parts, "</svg>"])


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers between two others, at most so many."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * size >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _panel(
    x: np.ndarray, dots: np.ndarray, line: np.ndarray | None, top: int, height: int, label: str, *, labelled: bool
) -> list[str]:
    """Axes, dots and line in a rectangle; `labelled`: numbers stand below it."""
    x_low, x_high = _range(x, 0.02)
    y_low, y_high = _range(dots if line is None else np.concatenate([dots, line]), 0.08)
    right, bottom = _WIDTH - _RIGHT, top + height

    def across(value: np.ndarray) -> np.ndarray:
        return _LEFT + (value - x_low) / (x_high - x_low) * (right - _LEFT)

    def up(value: np.ndarray) -> np.ndarray:
        return bottom - (value - y_low) / (y_high - y_low) * height

    parts = []
    for value, text in _numbered(ticks(x_low, x_high)):
        place = float(across(np.array(value)))
        parts.append(f'<line x1="{place:.1f}" y1="{top}" x2="{place:.1f}" y2="{bottom}" stroke="#ddd"/>')
        if labelled:
            parts.append(f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    for value, text in _numbered(ticks(y_low, y_high, max(4, height // 40))):
        place = float(up(np.array(value)))
        parts.append(f'<line x1="{_LEFT}" y1="{place:.1f}" x2="{right}" y2="{place:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(
        f'<rect x="{_LEFT}" y="{top}" width="{right - _LEFT}" height="{height}" fill="none" stroke="#888"/>'
        f'<text x="14" y="{top + height / 2:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {top + height / 2:.1f})">{html.escape(label)}</text>'
    )
    shown = np.isfinite(x) & np.isfinite(dots)
    for left, above in zip(across(x[shown]), up(dots[shown]), strict=True):
        parts.append(f'<circle cx="{left:.1f}" cy="{above:.1f}" r="2.5" fill="{_MEASURED}" fill-opacity="0.7"/>')
    if line is not None:
        there = np.isfinite(x) & np.isfinite(line)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across(x[there]), up(line[there]), strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_FITTED}" stroke-width="1.5"/>')
    return parts


def _legend() -> list[str]:
    right = _WIDTH - _RIGHT
    return [
        f'<circle cx="{right - 132}" cy="16" r="2.5" fill="{_MEASURED}"/>'
        f'<text x="{right - 124}" y="20">measured</text>',
        f'<line x1="{right - 58}" y1="16" x2="{right - 40}" y2="16" stroke="{_FITTED}" stroke-width="1.5"/>'
        f'<text x="{right - 34}" y="20">fitted</text>',
    ]


def _range(values: np.ndarray, margin: float) -> tuple[float, float]:
    """From a little below the smallest to a little above the largest."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    wide = high - low
    if wide <= 1e-12 * max(abs(low), abs(high), 1e-300):
        wide = abs(low) or 1.0
    return low - margin * wide, high + margin * wide


def _numbered(values: list[float]) -> list[tuple[float, str]]:
    """Each tick with its text; digits are as many as tell neighbours apart."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) or 1.0
    largest = max((abs(value) for value in values), default=0.0)
    if largest >= 1e5 or 0 < largest < 1e-3:
        figures = max(1, math.ceil(math.log10(largest / step)) + 2)
        return [(value, f"{value:.{figures}g}" if value else "0") for value in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if _leading(step) == 2.5 else 0))
    return [(value, f"{value:.{digits}f}") for value in values]


def _leading(step: float) -> float:
    return round(step / 10.0 ** math.floor(math.log10(step) + 1e-9), 6)
