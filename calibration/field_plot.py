"""Maps of the field: the channel over the array's region and how well it is known, as SVG that needs nothing else."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Mapping

import numpy as np

from calibration.field_result import POSITIONS, field_models
from calibration.routine import Quantity
from calibration.svg_plot import ticks
from testbed.core.bench import Interval
from testbed.phy.field_model import FieldModel

_PIXELS = 121  # along the longer side of the region
_SIZE, _LEFT, _TOP, _BOTTOM, _GAP, _BAR = 330, 66, 46, 52, 120, 16
_RANGE_DB = 40.0  # below the strongest point everything has one colour
_RAMP = np.array(
    [(24, 15, 62), (45, 62, 128), (38, 115, 142), (49, 163, 134), (122, 202, 98), (247, 228, 71)], np.float64
)


def field_maps(values: Mapping[str, Quantity], region_m: tuple[Interval, Interval]) -> dict[str, str]:
    """A map of every node's field.

    Args:
        values: of a `field` calibration.
        region_m: what is shown, array frame: the bench's `array.region_m`.

    Returns:
        node -> an `<svg>` element.

    Raises:
        KeyError: the values are not those of a field.
    """
    positions_m = np.array(values[POSITIONS].value, np.float64).reshape(-1, 2)
    return {name: field_map(name, model, region_m, positions_m) for name, model in field_models(values).items()}


def field_map(
    title: str, model: FieldModel, region_m: tuple[Interval, Interval], positions_m: np.ndarray | None = None
) -> str:
    """Gain and its uncertainty over a region, side by side.

    Args:
        title: above both.
        model: the field.
        region_m: what is shown, array frame.
        positions_m: where it was measured, shape [num_positions, 2].

    Returns:
        an `<svg>` element that needs nothing else.
    """
    size_m = np.array([high - low for low, high in region_m])
    width, height = np.round(_SIZE * size_m / size_m.max()).astype(int)
    columns, rows = np.maximum(np.round(_PIXELS * size_m / size_m.max()).astype(int), 2)
    across_m = np.linspace(region_m[0][0], region_m[0][1], columns)
    up_m = np.linspace(region_m[1][1], region_m[1][0], rows)  # the first row of an image is the uppermost
    channel, std = model.predict(np.stack(np.meshgrid(across_m, up_m), axis=-1))
    gain_db = _decibels(np.abs(channel) ** 2)
    error_db = _decibels(std**2 / max(float(np.mean(np.abs(channel) ** 2)), 1e-300))
    whole = _LEFT + 2 * width + _GAP + 84
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {_TOP + height + _BOTTOM}" width="{whole}" '
        f'height="{_TOP + height + _BOTTOM}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<text x="{_LEFT}" y="18" font-size="14" font-weight="bold">{html.escape(title)}</text>',
    ]
    panels = (("gain of the channel, dB", gain_db), ("variance over mean power, dB", error_db))
    for index, (label, shown_db) in enumerate(panels):
        left = _LEFT + index * (width + _GAP)
        parts += _panel(label, shown_db, region_m, positions_m, (left, width, height))
    return "\n".join([*parts, "</svg>"])


def _decibels(ratio: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(ratio, 1e-30))


def _panel(
    label: str,
    shown_db: np.ndarray,
    region_m: tuple[Interval, Interval],
    positions_m: np.ndarray | None,
    place: tuple[int, int, int],
) -> list[str]:
    """One image with axes in millimetres and a scale; `place` is left edge, width and height."""
    left, width, height = place
    high_db = float(shown_db.max())
    low_db = max(float(shown_db.min()), high_db - _RANGE_DB)
    share = (shown_db - low_db) / max(high_db - low_db, 1e-9)
    parts = [
        f'<text x="{left}" y="{_TOP - 8}">{html.escape(label)}</text>',
        _image(_colours(share), left, _TOP, width, height),
        f'<rect x="{left}" y="{_TOP}" width="{width}" height="{height}" fill="none" stroke="#222"/>',
    ]
    (first_m, last_m), (bottom_m, top_m) = region_m

    def across(value_m: float) -> float:
        return left + width * (value_m - first_m) / (last_m - first_m)

    def up(value_m: float) -> float:
        return _TOP + height * (top_m - value_m) / (top_m - bottom_m)

    for x_m, y_m in () if positions_m is None else positions_m:
        parts.append(
            f'<circle cx="{across(x_m):.1f}" cy="{up(y_m):.1f}" r="2.2" fill="#fff" stroke="#000" stroke-width="0.7"/>'
        )
    foot = _TOP + height
    for value in ticks(1e3 * first_m, 1e3 * last_m, 5):
        x = across(value / 1e3)
        parts.append(f'<line x1="{x:.1f}" y1="{foot}" x2="{x:.1f}" y2="{foot + 4}" stroke="#222"/>')
        parts.append(f'<text x="{x:.1f}" y="{foot + 17}" text-anchor="middle">{value:g}</text>')
    for value in ticks(1e3 * bottom_m, 1e3 * top_m, 5):
        y = up(value / 1e3)
        parts.append(f'<line x1="{left - 4}" y1="{y:.1f}" x2="{left}" y2="{y:.1f}" stroke="#222"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts.append(
        f'<text x="{left + width / 2:.1f}" y="{foot + 36}" text-anchor="middle">first array axis, mm</text>'
        f'<text transform="translate({left - 42},{_TOP + height / 2:.1f}) rotate(-90)" text-anchor="middle">'
        "second array axis, mm</text>"
    )
    return parts + _scale(low_db, high_db, left + width + 10, height)


def _scale(low_db: float, high_db: float, left: int, height: int) -> list[str]:
    ramp = _colours(np.linspace(1.0, 0.0, 64)[:, None])
    parts = [_image(ramp, left, _TOP, _BAR, height)]
    for value in ticks(low_db, high_db, 6):
        y = _TOP + height * (high_db - value) / max(high_db - low_db, 1e-9)
        parts.append(f'<text x="{left + _BAR + 4}" y="{y + 4:.1f}">{value:g}</text>')
    return parts


def _colours(share: np.ndarray) -> np.ndarray:
    """Shares of the range as colours, [rows, columns, 3], uint8."""
    place = np.clip(share, 0.0, 1.0) * (len(_RAMP) - 1)
    stops = np.arange(len(_RAMP))
    return np.stack([np.interp(place, stops, _RAMP[:, part]) for part in range(3)], axis=-1).round().astype(np.uint8)


def _image(colours: np.ndarray, left: int, top: int, width: int, height: int) -> str:
    data = base64.b64encode(_png(colours)).decode()
    return (
        f'<image x="{left}" y="{top}" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{data}"/>'
    )


def _png(colours: np.ndarray) -> bytes:
    """A PNG of 8-bit colours [rows, columns, 3] (ISO/IEC 15948: header, one zlib stream of unfiltered rows, end)."""
    rows, columns, _ = colours.shape
    raw = b"".join(b"\0" + row.tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
