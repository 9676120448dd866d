"""Commands beside runs: node, schemes, presets, config-schema, pretrain."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.cli.runs import Json


def node(
    connect: Annotated[str, typer.Option(metavar="tcp://HOST:PORT", help="address of the controller")],
    id_: Annotated[list[str], typer.Option("--id", metavar="NAME", help="name of the node; may be repeated")],
    bench: Annotated[str | None, typer.Option(metavar="FILE", help="this board's bench, not the run's")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads for training")] = None,
    timeout_s: Annotated[float, typer.Option(metavar="S", min=0.1, help="how long to knock before giving up")] = 60.0,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="end when standard input reaches its end")
    ] = False,
) -> None:
    """Be one node, or several: train and transmit as the controller says, until it says goodbye."""
    from testbed.core.backends import NODE_AGENT, resolve

    own_bench = None
    if bench is not None:
        from testbed.engine.config import load_bench

        own_bench = load_bench(bench)
    resolve(NODE_AGENT)(
        connect, id_, bench=own_bench, threads=threads, exit_with_parent=exit_with_parent, connect_timeout_s=timeout_s
    )


def schemes(as_json: Json = False) -> None:
    """List the schemes with their parameters."""
    from testbed.engine.plain_words import toml_value
    from testbed.engine.scheme_names import scheme_class
    from testbed.schemes import SCHEMES

    listed = {name: scheme_class(name).model_json_schema() for name in sorted(SCHEMES)}
    if as_json:
        _print_json(listed)
        return
    for name, schema in listed.items():
        print(f"{name:16} {first_line(schema.get('description', ''))}")
        for key, facts in schema.get("properties", {}).items():
            default = "" if facts.get("default") is None else f" = {toml_value(facts['default'])}"
            print(f"    {key + default:28} {facts.get('description', '')}".rstrip())


def presets(as_json: Json = False) -> None:
    """List the experiments, benches and problem instances that ship with the testbed, and where they lie."""
    from testbed.engine.preset_files import Kind, preset_file, preset_names

    kinds: tuple[Kind, ...] = ("experiment", "bench", "instance")
    listed = {
        kind: {name: (preset_file(name, kind), about(preset_file(name, kind))) for name in preset_names(kind)}
        for kind in kinds
    }
    if as_json:
        _print_json({kind: {name: str(file) for name, (file, _) in names.items()} for kind, names in listed.items()})
        return
    for kind, names in listed.items():
        folder = next(iter(names.values()))[0].parent
        print(f"{'benches' if kind == 'bench' else kind + 's'} in {folder}")
        for name, (_, text) in names.items():
            print(f"    {name:20} {text}")


def config_schema() -> None:
    """Print the JSON Schema of experiment and bench files, for editors."""
    from testbed.engine.config_schema import config_schema as schema

    _print_json(schema())


def pretrain(
    out: Annotated[Path, typer.Option(metavar="DIR", help="receives model, tokenizer and pretraining.json")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="steps=3000, layers=6, ...; may be repeated")
    ] = None,
    list_options: Annotated[bool, typer.Option("--list", help="list the keys of --set, and end")] = False,
    as_json: Json = False,
) -> None:
    """Pre-train a small base model on the documentation of the installed packages, or go on with it."""
    from testbed.core.backends import PRETRAIN, PRETRAIN_OPTIONS, resolve
    from testbed.engine.config import check_options
    from testbed.engine.plain_words import toml_value

    options = resolve(PRETRAIN_OPTIONS)
    if list_options:
        for key, facts in options.model_json_schema()["properties"].items():
            if key != "out":
                print(f"{key} = {toml_value(facts.get('default'))}".ljust(28), facts.get("description", ""))
        return
    checked = check_options(options, set_ or (), {"out": str(out)})
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    facts = resolve(PRETRAIN)(checked, report=report)
    if as_json:
        _print_json(facts)
    else:
        print(f"done: {out}")


COMMANDS: dict[str, Callable[..., None]] = {
    "node": node,
    "schemes": schemes,
    "presets": presets,
    "config-schema": config_schema,
    "pretrain": pretrain,
}


def about(file: Path) -> str:
    """The comment on top of a preset, up to its first full stop."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line == "#":
            break
        lines.append(line.removeprefix("#").strip())
    return first_line(" ".join(lines))


def first_line(text: str) -> str:
    """The first sentence of a text, on one line."""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))
