"""Every key of a configuration, for reference pages and for `--schema`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from testbed.engine.plain_words import schema_at, toml_value

HEADINGS = ("key", "value", "default", "meaning")


def key_table(schema: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Key, kind of value with its bounds, default and meaning of every key, tables inside tables included.

    Args:
        schema: JSON Schema of the model, with its definitions under `$defs`.
    """
    return [
        (key, _type(facts), _default(facts, required), facts.get("description", ""))
        for key, facts, required in _walk(schema, ())
    ]


def _walk(schema: Mapping[str, Any], path: tuple[str | int, ...]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    here = schema_at(schema, path)
    for key, raw in here.get("properties", {}).items():
        facts = schema_at(schema, (*path, key))
        shown = ".".join(str(part) for part in (*path, key)).replace(".0", "[]")
        if "anyOf" in raw and key == "scheme":
            yield shown, {"type": "object", "description": "`name`, and the scheme's own keys, below"}, True
            continue
        yield shown, facts, key in here.get("required", ())
        if facts.get("properties"):
            yield from _walk(schema, (*path, key))
        elif schema_at(schema, (*path, key, 0)).get("properties"):
            yield from _walk(schema, (*path, key, 0))


def _type(facts: Mapping[str, Any]) -> str:
    if "const" in facts:
        return toml_value(facts["const"])
    if "enum" in facts:
        return ", ".join(str(one) for one in facts["enum"])
    kind = {"integer": "whole number", "array": "list", "object": "table", "string": "text", "boolean": "true, false"}
    word = kind.get(facts.get("type", ""), facts.get("type", ""))
    bounds = [
        f"{sign} {facts[bound]:g}"
        for bound, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if bound in facts
    ]
    return " ".join([word, *bounds])


def _default(facts: Mapping[str, Any], required: bool) -> str:
    default = facts.get("default")
    if required or facts.get("type") == "object" or isinstance(default, Mapping):
        return "required" if required else ""
    return "" if default is None else toml_value(default)
