"""The command solve: one instance of a system's problem, offline."""

from __future__ import annotations

import json
import math
import textwrap
from typing import Annotated, Any

import typer

from testbed.cli.runs import Json, Set

_MEANING = 72  # columns


def solve(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help="ma-ota, jcpba, tsfa, lora-switching")],
    instance: Annotated[
        str | None, typer.Argument(metavar="INSTANCE", help="an instance of `testbed presets`, or a TOML file")
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="how it is solved; the first that --schema names by default")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="list the keys of an instance file, and end")] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Solve one instance of a system's optimisation problem, without a bench."""
    from testbed.core.backends import resolve
    from testbed.core.errors import ConfigError
    from testbed.engine.config import load_instance
    from testbed.engine.plain_words import closest
    from testbed.problems import PROBLEMS
    from testbed.report.answer import render_answer

    if system not in PROBLEMS:
        raise ConfigError(f"there is no system {system!r} to solve", key="SYSTEM", remedy=closest(system, PROBLEMS))
    model = resolve(PROBLEMS[system])
    if schema:
        _print_schema(system, model, as_json)
        return
    if instance is None:
        raise ConfigError(
            "no instance was named",
            key="INSTANCE",
            remedy="give a TOML file, or one of: " + ", ".join(instances_of(system)),
        )
    if method is not None and method not in model.methods:
        raise ConfigError(f"{system} has no method {method!r}", key="--method", remedy=closest(method, model.methods))
    answer = load_instance(model, instance, set_ or ()).solve(method or model.methods[0])
    solution = answer.solution
    content = {
        "value": solution.value,
        "status": solution.status,
        **({"message": solution.message} if solution.message else {}),
        "kkt_residual": solution.kkt_residual,
        "feasibility": solution.feasibility,
        **answer.decisions,
        "trace": list(solution.trace),
    }
    if as_json:
        print(json.dumps(_finite(content), indent=2, allow_nan=False))
    else:
        print(render_answer(content), end="")


def instances_of(system: str) -> list[str]:
    """The instances of a system that ship with the testbed."""
    from testbed.engine.preset_files import preset_names

    return [name for name in preset_names("instance") if name.startswith(f"{system}-")]


def _print_schema(system: str, model: Any, as_json: bool) -> None:
    from testbed.engine.key_table import HEADINGS, key_table
    from testbed.report.table import grid

    schema = model.model_json_schema()
    if as_json:
        print(json.dumps(schema, indent=2))
        return
    rows: list[tuple[str, ...]] = []
    for key, kind, default, meaning in key_table(schema):
        first, *more = textwrap.wrap(meaning, _MEANING) or [""]
        rows += [(key, kind, default, first), *(("", "", "", line) for line in more)]
    print("\n".join(grid([HEADINGS], rows, left=4)))
    print(f"\nmethods: {', '.join(model.methods)}\ninstances: {', '.join(instances_of(system)) or 'none'}")


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: null stands for both."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
