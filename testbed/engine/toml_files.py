"""Reading TOML files: what is wrong with one, at which line and column, and where each of its keys stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from testbed.core.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Where a value stands in a file: names of tables and keys, numbers of list entries."""

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_ASSIGNMENT = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PLACE = re.compile(r"\(at (?:line (\d+), column (\d+)|end of document)\)")


def read_text(path: Path, *, what: str, remedy: str) -> str:
    """The text of a file. Raises ConfigError where there is none, or what is there is no UTF-8 text."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no such {what} file", file=path, remedy=remedy) from error
    except IsADirectoryError as error:
        raise ConfigError("this is a folder, not a file", file=path, remedy=f"name the {what} file itself") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"byte {error.start + 1} is not UTF-8 text", file=path, remedy="save the file with the encoding UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the file cannot be read: {reason}", file=repr(str(path)).strip("'"), remedy=remedy
        ) from error


def parse_toml(text: str, file: str, *, what: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ConfigError with line and column where it is malformed, or empty."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _malformed(text, file, str(error)) from error
    except RecursionError as error:
        raise ConfigError("the tables are nested too deeply", file=file, remedy="flatten the file") from error
    if not content:
        raise ConfigError(
            f"the {what} file is empty",
            file=file,
            remedy="start from a copy of a preset; testbed presets lists them",
        )
    return content


def _malformed(text: str, file: str, message: str) -> ConfigError:
    lines = text.splitlines() or [""]
    place = _PLACE.search(message)
    number = int(place[1]) if place and place[1] else len(lines)
    where = f"line {number}, column {place[2]}" if place and place[2] else f"line {number}, the end of the file"
    reason = _PLACE.sub("", message).strip()
    line = lines[min(number, len(lines)) - 1].rstrip()
    shown = f": {line.strip()[:80]}" if line.strip() else ""
    return ConfigError(
        f"malformed TOML at {where}{shown} ({reason[:1].lower()}{reason[1:]})",
        file=f"{file}:{number}",
        remedy=_toml_remedy(line, reason),
    )


def _toml_remedy(line: str, reason: str) -> str:
    _, equals, value = line.partition("=")
    if "overwrite" in reason or "twice" in reason:
        return "a key or table may stand once in a file: remove or rename one of the two"
    if equals and (quoted := re.fullmatch(r"\s*([A-Za-z_][\w./:-]*)\s*(#.*)?", value)):
        return f'text stands in quotes: {line.partition("=")[0].strip()} = "{quoted[1]}"'
    if equals and not value.strip():
        return "write a value after the equals sign"
    if not equals and re.fullmatch(r"\s*[\w.-]+\s*:.*", line):
        return "TOML writes key = value, with an equals sign"
    if line.count('"') % 2 or line.count("'") % 2:
        return "close the quotes"
    if line.lstrip().startswith("[") and "]" not in line:
        return "close the bracket of the table's name"
    return "write key = value, text in quotes, lists in brackets; https://toml.io shows all forms"


def line_numbers(text: str) -> dict[KeyPath, int]:
    """The line of every table and key that starts on a line of its own.

    The search is line by line: keys inside inline tables are not found, and their table's line stands for them.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _anchored(_split(header[2]), counts)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault((*table, *_split(assignment[1])), number)
    return lines


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _anchored(names: Iterable[str], counts: Mapping[KeyPath, int]) -> KeyPath:
    """The names with the number of the newest entry behind each list of tables but the last name."""
    path: KeyPath = ()
    for name in names:
        if path in counts:
            path = (*path, counts[path])
        path = (*path, name)
    return path


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of a key, or of the innermost table around it that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def dotted(path: KeyPath) -> str:
    """`("nodes", 0, "name")` as `nodes.0.name`."""
    return ".".join(str(part) for part in path)
