"""A model's complaints in plain words: what is wrong with a key, and what to write instead."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from testbed.core.errors import ConfigError
from testbed.engine.toml_files import KeyPath, dotted

_OWN_KEY = re.compile(r"^((?:[a-z_][a-z0-9_]*)(?:\.[a-z0-9_]+)*): (.*)$", re.DOTALL)

_KINDS = {
    "string": ("text in quotes", '"text"'),
    "integer": ("a whole number", "10"),
    "number": ("a number", "0.5"),
    "boolean": ("true or false", "true"),
    "array": ("a list", "[1, 2]"),
    "object": ("a table", "{ key = 1 }"),
}


def closest(word: str, words: Iterable[str]) -> str:
    """`did you mean ...?` followed by all there are."""
    there = sorted(words)
    near = difflib.get_close_matches(word.lower(), there, n=1, cutoff=0.55)
    listing = ", ".join(there) or "none"
    return f"did you mean {near[0]}? There are: {listing}" if near else f"there are: {listing}"


def schema_at(schema: Mapping[str, Any], path: Sequence[str | int]) -> Mapping[str, Any]:
    """The part of a JSON Schema that describes one key; empty where nothing does."""
    root, here = schema, _plain(schema, schema)
    for part in path:
        inside: Any = None
        if isinstance(part, int) or here.get("type") == "array":
            prefix = here.get("prefixItems", ())
            inside = prefix[part] if isinstance(part, int) and part < len(prefix) else here.get("items")
        else:
            inside = here.get("properties", {}).get(part) or here.get("additionalProperties")
        if not isinstance(inside, Mapping):
            return {}
        here = _plain(root, inside)
    return here


def _plain(root: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part with its reference followed and `or null` dropped; what stands beside them is kept."""
    while True:
        beside = {key: value for key, value in part.items() if key not in ("$ref", "anyOf")}
        if "$ref" in part:
            part = {**root["$defs"][part["$ref"].rsplit("/", 1)[1]], **beside}
        elif "anyOf" in part and len(choices := [one for one in part["anyOf"] if one.get("type") != "null"]) == 1:
            part = {**choices[0], **beside}
        else:
            return part


def explain(
    error: ValidationError,
    schema: Mapping[str, Any],
    place: Callable[[KeyPath], tuple[str | None, str]],
    *,
    under: KeyPath = (),
) -> list[ConfigError]:
    """Every complaint of a model in plain words.

    Args:
        error: what the model said.
        schema: JSON Schema of that model.
        place: key path -> the file (with its line) and the key as the user wrote them.
        under: path of the model's table inside the file.
    """
    return [
        _explain_one(detail, schema, place, under)
        for detail in error.errors(include_url=False)
        if not _follows(detail, schema)
    ]


def _follows(detail: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Whether a list is called too short only because an entry of it is wrong."""
    least = schema_at(schema, detail["loc"]).get("minItems", 0)
    return detail["type"] == "too_short" and len(detail["input"]) >= least


def _explain_one(
    detail: Mapping[str, Any],
    schema: Mapping[str, Any],
    place: Callable[[KeyPath], tuple[str | None, str]],
    under: KeyPath,
) -> ConfigError:
    path: KeyPath = tuple(detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        text = str(context.get("error", detail["msg"]))
        if (own := _OWN_KEY.match(text)) and schema_at(schema, (*path, *_numbers(own[1]))):
            path, text = (*path, *_numbers(own[1])), own[2]
        message, _, remedy = text.partition("; ")
        if not remedy and ", for instance " in text:
            message, _, remedy = text.partition(", for instance ")
            remedy = f"write for instance {remedy}"
        remedy = remedy or "`testbed config-schema` and docs/ describe every key"
    else:
        message, remedy = _words(kind, context, path, detail.get("input"), schema)
    file, key = place((*under, *path))
    return ConfigError(message, file=file, key=key or None, remedy=remedy)


def _numbers(key: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _words(
    kind: str, context: Mapping[str, Any], path: KeyPath, value: Any, schema: Mapping[str, Any]
) -> tuple[str, str]:
    """What is wrong, and what to write instead."""
    here = schema_at(schema, path)
    name = str(path[-1]) if path else ""
    example = f"{name} = {_example(here)}" if isinstance(path[-1] if path else "", str) else _example(here)
    if kind == "missing" and here.get("properties") and not here.get("examples"):
        return "this table is missing", f"add a table [{dotted(path)}]{_described(here)}"
    if kind == "missing" and schema_at(schema, (*path, 0)).get("properties"):
        return "this list of tables is missing", f"add a table [[{dotted(path)}]]{_described(here)}"
    if kind == "missing":
        return "this key is missing", f"add {example}{_described(here)}"
    if kind == "extra_forbidden":
        return "unknown key", closest(name, schema_at(schema, path[:-1]).get("properties", {}))
    if kind in ("literal_error", "enum"):
        choices = [str(one) for one in here.get("enum", [here.get("const", "")])]
        return f"{_shown(value)} is not one of the choices", closest(str(value), choices)
    if kind == "finite_number" or (isinstance(value, float) and not math.isfinite(value)):
        return f"must be a finite number, not {_shown(value)}", f"write for instance {example}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"):
        return f"{_shown(value)} is out of range", f"give {_range(here)}{_described(here)}"
    if kind in ("string_too_short", "too_short", "string_too_long", "too_long"):
        return _length(here, value), f"write for instance {example}"
    wanted = _KINDS.get(str(here.get("type")), ("another kind of value", ""))[0]
    return f"must be {wanted}, not {_shown(value)}", f"write for instance {example}{_described(here)}"


def _length(here: Mapping[str, Any], value: Any) -> str:
    what = "character" if here.get("type") == "string" else "entry"
    plural = "characters" if what == "character" else "entries"
    low, high = here.get("minItems", here.get("minLength", 0)), here.get("maxItems", here.get("maxLength"))
    wanted = (
        f"exactly {low}"
        if low == high
        else f"at least {low}"
        if high is None or len(value) < low
        else f"at most {high}"
    )
    return f"has {len(value)} {plural if len(value) != 1 else what}, needs {wanted}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return f'"{value[:57]}..."' if len(value) > 60 else f'"{value}"'
    return "an empty value" if value is None else f"{value}"


def _range(here: Mapping[str, Any]) -> str:
    what = "a whole number" if here.get("type") == "integer" else "a number"
    bounds = []
    for key, words in (
        ("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below"),
    ):  # fmt: skip
        if key in here:
            bounds.append(f"{words} {here[key]:g}")
    return f"{what} {' and '.join(bounds)}" if bounds else what


def _example(here: Mapping[str, Any]) -> str:
    """A value that could stand here, as TOML."""
    if here.get("enum"):
        return json.dumps(here["enum"][0])
    default = here.get("default")
    if here.get("examples"):
        return toml_value(here["examples"][0])
    if default not in (None, [], {}):
        return toml_value(default)
    kind = here.get("type")
    if kind == "array" and "prefixItems" in here:
        return "[" + ", ".join(_example(one) for one in here["prefixItems"]) + "]"
    if kind in ("integer", "number"):
        low = here.get("minimum", here.get("exclusiveMinimum"))
        fitting = 10 if kind == "integer" else 0.5
        bad = (low is not None and fitting <= low) or fitting > here.get("maximum", math.inf)
        return f"{low + 1:g}" if bad and low is not None else f"{fitting:g}"
    return _KINDS.get(str(kind), ("", "..."))[1]


def toml_value(value: Any) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key} = {toml_value(one)}" for key, one in value.items() if one is not None)
        return "{ " + inside + " }" if inside else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(one) for one in value) + "]"
    if isinstance(value, float):
        return f"{value:g}" if f"{value:g}" not in ("inf", "nan") and float(f"{value:g}") == value else repr(value)
    return json.dumps(value, ensure_ascii=False)


def _described(here: Mapping[str, Any]) -> str:
    return f" ({here['description']})" if here.get("description") else ""
