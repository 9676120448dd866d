"""What there is of calibrations: routines, profiles, their history and differences, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from calibration.names import ROUTINES, routine_named
from calibration.profile import Profile, utc_now
from calibration.raw_steps import step_files
from calibration.shown import difference_lines, profile_lines, shown, sigmas, state
from calibration.store import PROFILE, Store, unusable
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.engine.config import load_bench
from testbed.engine.plain_words import toml_value
from testbed.engine.preset_files import preset_names
from testbed.report.table import grid

_COLUMNS = 4
"""Profiles beside each other in a history."""


@dataclass(frozen=True)
class Listing:
    """An answer.

    Attributes:
        lines: for people.
        content: for programs, as JSON.
    """

    lines: list[str]
    content: dict[str, Any]


def routines() -> Listing:
    """Every calibration with its options."""
    lines: list[str] = []
    content: dict[str, Any] = {}
    for name in ROUTINES:
        routine = routine_named(name)
        schema = routine.Options.model_json_schema()
        content[name] = {"about": routine.about, "lasts_s": routine.lasts_s, "options": schema.get("properties", {})}
        lines.append(f"{name:10} {routine.about}")
        for key, facts in schema.get("properties", {}).items():
            default = "" if facts.get("default") is None else f" = {toml_value(facts['default'])}"
            lines.append(f"    {key + default:28} {facts.get('description', '')}".rstrip())
    return Listing(lines, content)


def show(
    first: str | None = None, second: str | None = None, *, store: Store | None = None, now: datetime | None = None
) -> Listing:
    """Profiles, or one of them.

    Args:
        first: bench (preset, file, or name of one that was calibrated) or id; every bench if None.
        second: routine, or id; the newest of every routine if None.

    Raises:
        ConfigError: there is no such bench, routine or id.
    """
    place, at = store or Store(), now or utc_now()
    if first is None:
        return _overview(place, place.profiles(), None, place.unfinished(), at)
    found = _bench(first)
    name = first if found is None else found.name
    known = found is not None or any(one.bench == name for one in place.profiles())
    if second is None and known:
        return _overview(place, place.profiles(name), found, place.unfinished(name), at)
    if second is None:
        return _one(place, first, at)
    of_routine = place.profiles(name, second)
    if not of_routine:
        return _one(place, second, at)
    return _full(of_routine[-1], place.locate(of_routine[-1].id), at)


def difference(one: str, other: str, *, store: Store | None = None) -> Listing:
    """Two profiles beside each other. Raises ConfigError where there is no such id, or one is not complete."""
    place = store or Store()
    left, right = (place.read(_complete(place.locate(id_))) for id_ in (one, other))
    content = {
        name: {
            "one": None if name not in left.values else left.values[name].model_dump(mode="json"),
            "other": None if name not in right.values else right.values[name].model_dump(mode="json"),
            "sigmas": _finite(sigmas(left.values.get(name), right.values.get(name))),
        }
        for name in dict.fromkeys((*left.values, *right.values))
    }
    return Listing(difference_lines(left, right), {"one": left.id, "other": right.id, "values": content})


def history(bench: str, routine: str, *, store: Store | None = None, now: datetime | None = None) -> Listing:
    """All profiles of one routine, oldest first, and how its values went.

    Raises:
        ConfigError: there is none.
    """
    place, at = store or Store(), now or utc_now()
    found = _bench(bench)
    name = bench if found is None else found.name
    profiles = place.profiles(name, routine)
    if not profiles:
        raise ConfigError(
            f"there is no calibration {routine} of {name}",
            file=place.root,
            remedy="`testbed calibrate show` lists what there is",
        )
    rows = [(one.id, _made(one), one.backend, str(one.seed), state(one, at)) for one in profiles]
    lines = grid([("id", "made", "backend", "seed", "state")], rows, left=5)
    newest = profiles[-_COLUMNS:]
    names = list(dict.fromkeys(value for one in newest for value in one.values))
    if names:
        cells = [(value, *(_with_std(one, value) for one in newest)) for value in names]
        lines += ["", *grid([("value", *(one.id for one in newest))], cells, left=1)]
    return Listing(lines, {"profiles": [one.model_dump(mode="json", exclude={"curves"}) for one in profiles]})


def _overview(
    store: Store, profiles: Sequence[Profile], bench: BenchSpec | None, unfinished: Sequence[Path], now: datetime
) -> Listing:
    """The newest profile of each bench, routine and backend."""
    newest = {(one.bench, one.routine, one.backend, one.seed): one for one in profiles}
    rows, content = [], []
    for one in newest.values():
        status = state(one, now)
        if bench is not None:
            reason = unusable(one, bench, backend=one.backend, seed=one.seed, serials=None, now=now)
            status = "valid" if reason is None else reason.kind
        rows.append((one.bench, one.routine, one.id, _made(one), one.backend, str(one.seed), status))
        facts = one.model_dump(mode="json", include={"id", "bench", "routine", "backend", "seed", "made", "expires"})
        content.append({**facts, "state": status, "why": one.why})
    heads = ("bench", "routine", "id", "made", "backend", "seed", "state")
    lines = grid([heads], rows, left=7) if rows else [f"no calibrations in {store.root}"]
    if unfinished:
        lines.append("")
    for folder in unfinished:
        done = len(step_files(folder))
        lines.append(f"unfinished, {done} steps: testbed calibrate {folder.parent.name} --resume {folder.name}")
    return Listing(lines, {"profiles": content, "unfinished": [str(folder) for folder in unfinished]})


def _one(store: Store, id_: str, now: datetime) -> Listing:
    folder = _complete(store.locate(id_))
    return _full(store.read(folder), folder, now)


def _full(profile: Profile, folder: Path, now: datetime) -> Listing:
    lines = [*profile_lines(profile, now), "", f"report: {folder / 'report.html'}"]
    return Listing(lines, {"folder": str(folder), "profile": profile.model_dump(mode="json")})


def _complete(folder: Path) -> Path:
    if not (folder / PROFILE).is_file():
        raise ConfigError(
            "this calibration is not complete",
            file=folder,
            remedy=f"go on with it: testbed calibrate {folder.parent.name} --resume {folder.name}",
        )
    return folder


def _bench(word: str) -> BenchSpec | None:
    """The bench file behind a word; None where it is the name of a bench, or an id."""
    return load_bench(word) if word in preset_names("bench") or Path(word).expanduser().is_file() else None


def _made(profile: Profile) -> str:
    return f"{profile.made:%Y-%m-%d %H:%M}"


def _with_std(profile: Profile, name: str) -> str:
    if name not in profile.values:
        return "-"
    text = shown(name, profile.values[name])
    return f"{text.value} +- {text.std} {text.unit}".rstrip()


def _finite(value: float | None) -> float | str | None:
    return str(value) if value is not None and value == float("inf") else value
