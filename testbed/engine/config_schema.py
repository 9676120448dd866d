"""JSON Schema of experiment and bench files, for editors and for the reference pages."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from testbed.core.bench import BenchSpec
from testbed.engine.config import ExperimentSpec, SchemeSpec
from testbed.engine.scheme_names import scheme_class
from testbed.schemes import SCHEMES


def config_schema() -> dict[str, Any]:
    """One JSON Schema for experiment files (with every scheme's parameters) and bench files."""
    classes = {name: scheme_class(name) for name in sorted(SCHEMES)}
    models: list[type[BaseModel]] = [ExperimentSpec, BenchSpec, *classes.values()]
    places, shared = models_json_schema([(model, "validation") for model in models])
    definitions = shared["$defs"]

    def key(model: type[BaseModel]) -> str:
        return str(places[(model, "validation")]["$ref"]).rsplit("/", 1)[1]

    choices = []
    for name, cls in classes.items():
        own = definitions[key(cls)]
        properties = {"name": {"const": name, "description": own.get("description", "")}, **own.get("properties", {})}
        definitions[f"scheme-{name}"] = {
            **own,
            "properties": properties,
            "required": ["name", *own.get("required", [])],
        }
        choices.append({"$ref": f"#/$defs/scheme-{name}"})
    for name in {key(cls) for cls in classes.values()}:
        del definitions[name]
    other = definitions.pop(SchemeSpec.__name__)
    other["properties"]["name"]["pattern"] = ":"
    definitions["scheme-of-your-own"] = other
    experiment = definitions[key(ExperimentSpec)]
    experiment["properties"]["scheme"] = {"anyOf": [*choices, {"$ref": "#/$defs/scheme-of-your-own"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "experiment and bench files of the testbed",
        "anyOf": [{"$ref": f"#/$defs/{key(ExperimentSpec)}"}, {"$ref": f"#/$defs/{key(BenchSpec)}"}],
        "$defs": definitions,
    }
