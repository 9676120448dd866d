"""The page of one calibration: verdict, values, figures; one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from calibration.field_plot import field_maps
from calibration.profile import Profile, StoredCurve
from calibration.shown import fact_rows, shown
from calibration.svg_plot import svg
from testbed.core.bench import BenchSpec

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 760px; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top }
.values td + td { text-align: right; font-variant-numeric: tabular-nums } .values td:last-child { text-align: left }
th { border-bottom: 1px solid #888; font-weight: 600 } .passed { color: #226b2f } .failed { color: #a11 }
svg { max-width: 100%; height: auto; margin: 1em 0 }
"""


def maps_of(profile: Profile, bench: BenchSpec) -> list[str]:
    """Figures that curves cannot be: the map of every node's channel, of a field that is known, as `<svg>` elements."""
    if profile.routine != "field" or not profile.passed:
        return []
    return list(field_maps(profile.quantities, bench.array.region_m).values())


def render_report(profile: Profile, maps: Sequence[str] = ()) -> str:
    """A profile with its figures.

    Args:
        profile: complete, passed or not.
        maps: `<svg>` elements that come before the curves.

    Returns:
        HTML without scripts and without anything from elsewhere.
    """
    word = "passed" if profile.passed else "failed"
    title = f"{profile.routine} of {profile.bench}, {profile.made:%Y-%m-%d}"
    facts = [
        (name, text) for name, text in fact_rows(profile, profile.made) if text and name not in ("verdict", "made")
    ]
    facts.insert(1, ("made", f"{profile.made:%Y-%m-%d %H:%M:%S} UTC"))
    values = []
    for name, quantity in profile.values.items():
        text = shown(name, quantity)
        values.append((name, text.value, text.std, text.unit))
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            f'<p class="{word}"><strong>{word}</strong>: {html.escape(profile.why)}</p>',
            *_table((), facts, ""),
            *(_table(("value", "", "std", "unit"), values, "values") if values else ()),
            *maps,
            *map(_figure, profile.curves),
            "</body></html>",
            "",
        ]
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> list[str]:
    head = f"<tr>{''.join(f'<th>{html.escape(text)}</th>' for text in headings)}</tr>" if headings else ""
    body = [f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows]
    return [f'<table class="{kind}">{head}', *body, "</table>"]


def _figure(curve: StoredCurve) -> str:
    fitted = None if curve.fitted is None else np.array(curve.fitted, dtype=np.float64)
    x, measured = (np.array(values, dtype=np.float64) for values in (curve.x, curve.measured))
    if x.ndim != 1 or x.shape != measured.shape or (fitted is not None and fitted.shape != x.shape):
        return f"<p>{html.escape(curve.title)}: the figure's arrays do not fit together</p>"
    return svg(curve.title, curve.x_label, curve.y_label, x, measured, fitted)
