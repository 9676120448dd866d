"""Profiles for people: decibels, parts per million, microseconds, millimetres; files keep SI."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from calibration.profile import Profile, StoredQuantity
from testbed.core.units import to_db, w_to_dbm
from testbed.report.table import grid

_DECIBELS_PER_RATIO = 10.0 / math.log(10.0)
_IN_DECIBELS = {"gain_error", "power_error", "noise_figure", "image_before", "image_after", "error"}
_LONGEST_OPTION = 60
_MANY = 6
"""Longer lists are summed up."""
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"))
_SCALED = {"s", "m", "Hz", "W", "J", "sqrt(W)"}


@dataclass(frozen=True)
class Shown:
    """A quantity in words: value, standard deviation, unit."""

    value: str
    std: str
    unit: str


@dataclass(frozen=True)
class _Scale:
    """How numbers of one quantity are shown: both turn SI into what stands before `unit`."""

    unit: str
    value: Callable[[float], float]
    std: Callable[[float, float], float]


def shown(name: str, quantity: StoredQuantity) -> Shown:
    """One value of a profile as people write it.

    Args:
        name: dotted; its last part says what a ratio is.
        quantity: in SI.
    """
    last = name.rsplit(".", 1)[-1]
    value, std = quantity.value, quantity.std
    if last in ("image", "dc", "leak") and _is_pair(value) and _is_pair(std):
        return _pair(last, value, std)
    values, stds = _flat(value), _flat(std)
    scale = _scale(last, quantity.unit, (*values, *stds))
    if len(values) != 1 and (len(values) > _MANY or _depth(value) > 1 or len(stds) != len(values)):
        return _summary(values, stds, scale)
    if not values:
        return Shown("none", "-", scale.unit)
    texts = [_rounded(scale.value(one), scale.std(one, two)) for one, two in zip(values, stds, strict=True)]
    if len(values) == 1 and not isinstance(value, tuple):
        return Shown(*texts[0], scale.unit)
    return Shown(f"[{', '.join(text for text, _ in texts)}]", f"[{', '.join(text for _, text in texts)}]", scale.unit)


def value_lines(profile: Profile) -> list[str]:
    """The values as a table."""
    rows = [(name, *_cells(shown(name, one))) for name, one in profile.values.items()]
    return grid([("value", "", "std", "unit")], rows, left=1) if rows else ["no values"]


def profile_lines(profile: Profile, now: datetime) -> list[str]:
    """A whole profile: verdict, what it is valid for, values."""
    facts = [(name, text) for name, text in fact_rows(profile, now) if text]
    width = max(len(name) for name, _ in facts)
    return [*(f"{name:{width}}  {text}" for name, text in facts), "", *value_lines(profile)]


def fact_rows(profile: Profile, now: datetime) -> list[tuple[str, str]]:
    """What a profile says of itself, beside its values."""
    own = profile.validity
    valid = [
        "" if own.frequency_hz is None else f"carrier {own.frequency_hz / 1e6:.9g} MHz",
        "" if own.sample_rate_hz is None else f"rate {own.sample_rate_hz / 1e6:g} MHz",
        "" if own.gain is None else f"gain {', '.join(f'{to_db(gain):g}' for gain in own.gain)} dB",
        "" if own.array is None else f"array {own.array[:8]}",
    ]
    made = f"{profile.made:%Y-%m-%d %H:%M:%S} UTC, {span(profile.age(now))} ago"
    return [
        ("calibration", f"{profile.routine} {profile.id}"),
        ("verdict", f"{'passed' if profile.passed else 'FAILED'}: {profile.why}"),
        ("bench", f"{profile.bench} ({profile.bench_sha256[:8]}), {profile.backend}, seed {profile.seed}"),
        ("made", made),
        ("expires", _expires(profile, now)),
        ("valid at", ", ".join(text for text in valid if text) or "all settings"),
        ("radios", _some(profile.serials)),
        ("firmware", _some(profile.firmware)),
        ("options", ", ".join(f"{key} = {_cut(str(value))}" for key, value in profile.options.items())),
        ("raw data", f"{len(profile.raw)} steps"),
    ]


def state(profile: Profile, now: datetime) -> str:
    """One word."""
    return "failed" if not profile.passed else "expired" if profile.expired(now) else "valid"


def difference_lines(one: Profile, other: Profile) -> list[str]:
    """Two profiles beside each other.

    Returns:
        first the settings that differ, then for every value both, and their distance in standard deviations,
        |a - b| / sqrt(std_a^2 + std_b^2): some 3 and more mean that something changed.
    """
    settings = [
        (key, str(getattr(one, key)), str(getattr(other, key)))
        for key in ("routine", "bench", "bench_sha256", "backend", "seed", "options", "validity", "serials", "firmware")
        if getattr(one, key) != getattr(other, key)
    ]
    lines = [f"{key}: {left}  ->  {right}" for key, left, right in settings]
    rows = []
    for name in dict.fromkeys((*one.values, *other.values)):
        left_value, right_value = one.values.get(name), other.values.get(name)
        left = None if left_value is None else shown(name, left_value)
        right = None if right_value is None else shown(name, right_value)
        far = sigmas(left_value, right_value)
        unit = "" if (told := right or left) is None else told.unit
        if left is not None and right is not None and left.unit != right.unit:
            left, right, unit = _with_unit(left), _with_unit(right), ""
        texts = ("-" if text is None else text.value for text in (left, right))
        rows.append((name, *texts, unit, "-" if far is None else f"{far:.1f}"))
    table = grid([("value", one.id, other.id, "unit", "sigmas")], rows, left=1) if rows else ["no values"]
    return [*lines, *([""] if lines else []), *table]


def sigmas(one: StoredQuantity | None, other: StoredQuantity | None) -> float | None:
    """Largest distance of two values in standard deviations; None where they cannot be compared."""
    if one is None or other is None or one.unit != other.unit:
        return None
    columns = [_flat(part) for part in (one.value, other.value, one.std, other.std)]
    if len({len(column) for column in columns}) != 1 or not columns[0]:
        return None
    far = []
    for left, right, left_std, right_std in zip(*columns, strict=True):
        std = math.hypot(left_std, right_std)
        gap = abs(left - right)
        far.append(0.0 if gap == 0 else gap / std if std > 0 else math.inf)
    return None if any(math.isnan(one) for one in far) else max(far)


def span(length: timedelta) -> str:
    """A stretch of time in one figure: 3 h."""
    seconds = abs(length.total_seconds())
    for unit_s, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _some(named: Mapping[str, str]) -> str:
    """The first few of many; the file has them all."""
    texts = [f"{name} {text}" for name, text in named.items()]
    more = [f"{len(texts) - 3} more"] if len(texts) > 4 else []
    return ", ".join([*(texts[:3] if more else texts), *more])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_OPTION else f"{text[: _LONGEST_OPTION - 3]}..."


def _expires(profile: Profile, now: datetime) -> str:
    if profile.expires is None:
        return "never"
    left = span(profile.expires - now)
    when = f"{profile.expires:%Y-%m-%d %H:%M} UTC"
    return f"{when}, {left} ago" if profile.expired(now) else f"{when}, in {left}"


def _scale(last: str, unit: str, values: Sequence[float]) -> _Scale:
    """How the numbers of one quantity are shown."""
    if unit == "W" and not last.endswith("power"):
        return _Scale("dBm", w_to_dbm, _std_of_ratio)
    if unit == "1" and last in _IN_DECIBELS:
        return _Scale("dB", to_db, _std_of_ratio)
    if unit == "1" and last.endswith("offset"):
        per, unit_shown = _parts(values)
        return _Scale(unit_shown, lambda value: per * value, lambda _, std: per * std)
    if unit == "1" and last == "scale":
        return _Scale("ppm above 1", lambda value: 1e6 * (value - 1.0), lambda _, std: 1e6 * std)
    if unit == "1/s" and last.endswith("drift"):
        per, unit_shown = _parts(values)
        return _Scale(f"{unit_shown}/s", lambda value: per * value, lambda _, std: per * std)
    if unit == "rad":
        return _Scale("deg", math.degrees, lambda _, std: math.degrees(std))
    if unit in _SCALED:
        factor, prefix = _prefix(values)
        return _Scale(prefix + unit, lambda value: value / factor, lambda _, std: std / factor)
    return _Scale("" if unit == "1" else unit, float, lambda _, std: std)


def _parts(values: Sequence[float]) -> tuple[float, str]:
    """Parts per million, or per billion where they are few."""
    return (1e9, "ppb") if 0.0 < _largest(values) < 1e-8 else (1e6, "ppm")


def _largest(values: Sequence[float]) -> float:
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def _prefix(values: Sequence[float]) -> tuple[float, str]:
    """The prefix under which the largest number is between 1 and 1000."""
    largest = _largest(values)
    if largest == 0.0:
        return 1.0, ""
    return next(((factor, prefix) for factor, prefix in _PREFIXES if largest >= factor), _PREFIXES[-1])


def _std_of_ratio(value: float, std: float) -> float:
    """Decibels of one standard deviation, to first order."""
    return _DECIBELS_PER_RATIO * std / abs(value) if value else math.inf


def _pair(last: str, value: tuple[float, float], std: tuple[float, float]) -> Shown:
    """A complex amplitude by its power."""
    power = value[0] ** 2 + value[1] ** 2
    size = math.sqrt(power)
    spread = math.hypot(value[0] * std[0], value[1] * std[1]) / size if size else math.inf
    level = to_db(power) if last == "image" else w_to_dbm(power)
    return Shown(*_rounded(level, _std_of_ratio(power, 2 * size * spread)), "dB" if last == "image" else "dBm")


def _rounded(value: float, std: float) -> tuple[str, str]:
    """Value and deviation to two figures of the deviation."""
    if not math.isfinite(value):
        return str(value), "-" if math.isnan(std) else f"{std:.2g}"
    if not math.isfinite(std) or std <= 0:
        return f"{value:.6g}", "-" if math.isnan(std) else f"{std:g}"
    digits = 1 - math.floor(math.log10(std))
    if not -6 <= digits <= 9 or abs(value) >= 1e9:
        return f"{value:.6g}", f"{std:.2g}"
    return f"{round(value, digits):.{max(digits, 0)}f}", f"{round(std, digits):.{max(digits, 0)}f}"


def _summary(values: Sequence[float], stds: Sequence[float], scale: _Scale) -> Shown:
    finite = [scale.value(value) for value in values if math.isfinite(value)]
    if not finite:
        return Shown(f"{len(values)} values, none finite", "-", scale.unit)
    spread = [scale.std(value, std) for value, std in zip(values, stds, strict=False) if math.isfinite(std)]
    deviation = f"<= {max(spread):.2g}" if spread and len(stds) == len(values) else "-"
    return Shown(f"{len(values)} values, {min(finite):.6g} to {max(finite):.6g}", deviation, scale.unit)


def _cells(text: Shown) -> tuple[str, str, str]:
    return text.value, text.std, text.unit


def _with_unit(text: Shown) -> Shown:
    return Shown(f"{text.value} {text.unit}".rstrip(), text.std, "")


def _flat(value: Any) -> list[float]:
    return [number for one in value for number in _flat(one)] if isinstance(value, tuple) else [value]


def _depth(value: Any) -> int:
    return 1 + max((_depth(one) for one in value), default=0) if isinstance(value, tuple) else 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and not any(isinstance(one, tuple) for one in value)
