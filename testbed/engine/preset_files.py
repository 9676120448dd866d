"""Presets that ship with the testbed, and the file behind a name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from testbed.core.errors import ConfigError
from testbed.engine.plain_words import closest

_PRESETS = Path(__file__).parent.parent / "presets"
FOLDERS = {"experiment": _PRESETS / "experiments", "bench": _PRESETS / "benches", "instance": _PRESETS / "instances"}
Kind = Literal["experiment", "bench", "instance"]


def preset_names(kind: Kind = "experiment") -> tuple[str, ...]:
    """The presets that ship with the testbed."""
    return tuple(sorted(path.stem for path in FOLDERS[kind].glob("*.toml")))


def preset_file(name: str, kind: Kind = "experiment") -> Path:
    """Where a preset lies, to be read or copied."""
    return FOLDERS[kind] / f"{name}.toml"


def find(name_or_path: str, kind: Kind, folder: Path | None = None) -> Path:
    """The file behind a preset's name or a path.

    Raises:
        ConfigError: there is neither; the message lists the presets.
    """
    presets = preset_names(kind)
    if name_or_path in presets:
        return preset_file(name_or_path, kind)
    path = Path(name_or_path).expanduser()
    for candidate in ((folder / path,) if folder is not None else ()) + (path,):
        if _exists(candidate):
            return candidate
    looks_like_file = path.suffix == ".toml" or len(path.parts) != 1
    shown = name_or_path if len(name_or_path) <= 200 else f"{name_or_path[:200]}..."
    what = f"there is no file {shown}" if looks_like_file else f"there is no {kind} preset {shown!r}"
    raise ConfigError(what, remedy=f"give a TOML file or a preset; {closest(path.stem, presets)}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False
