"""What the documentation shows, rendered from the code: tables of keys, of options, of a recorded run.

`python tests/golden/rendered.py` writes all of it into the pages again. With a run's folder and that of the same run
with fixed antennas, it first takes their rows as the README's example.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from testbed.cli.app import EXIT_CODES, app
from testbed.core.backends import BACKENDS
from testbed.engine.config_schema import config_schema
from testbed.engine.key_table import HEADINGS, key_table
from testbed.report.comparison import Recorded, render_comparison
from testbed.report.table import render_plain

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "recorded"
PAGES = ("README.md", "docs/cli.md", "docs/experiment-file.md", "docs/bench-file.md", "docs/tutorial.md")


def recorded(name: str) -> Recorded:
    """A run kept beside this file: `moving` or `fixed`."""
    rows = [json.loads(line) for line in (RECORDED / f"{name}.rounds.jsonl").read_text().splitlines()]
    summary = json.loads((RECORDED / f"{name}.summary.json").read_text())
    return Recorded(summary["name"], summary, rows)


def blocks() -> dict[str, str]:
    """Everything that stands between markers in a page, by the marker's name."""
    moving, fixed = recorded("moving"), recorded("fixed")
    schema = config_schema()
    rendered = {
        "table": f"```text\n{render_plain(moving.rows)}```\n",
        "comparison": f"```text\n{render_comparison(moving, fixed)}```\n",
        "exit-codes": _grid(("code", "meaning"), [(str(code), words) for code, words in EXIT_CODES.items()]),
        "commands": _commands(),
        "backends": _grid(("`--backend`", "devices"), [(f"`{name}`", one.describe) for name, one in BACKENDS.items()]),
        "experiment": _keys(schema, "ExperimentSpec"),
        "bench": _keys(schema, "BenchSpec"),
    }
    for name in schema["$defs"]:
        if name.startswith("scheme-") and name != "scheme-of-your-own":
            rendered[name] = _keys(schema, name)
    return rendered


def filled(page: str, content: Mapping[str, str]) -> str:
    """The page with every block between `<!-- begin NAME -->` and `<!-- end NAME -->` as it has to be."""
    for name, block in content.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin in page:
            before, _, rest = page.partition(begin)
            page = before + begin + block + end + rest.partition(end)[2]
    return page


def _grid(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _keys(schema: Mapping[str, Any], name: str) -> str:
    """Every key of a table and of the tables inside it."""
    part = {**schema["$defs"][name], "$defs": schema["$defs"]}
    rows = [
        (f"`{key}`", kind, f"`{default}`" if default not in ("", "required") else default, meaning)
        for key, kind, default, meaning in key_table(part)
    ]
    return _grid(HEADINGS, rows)


def _walk_commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, those of groups too, with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _walk_commands(command, (*words, name))
        else:
            yield (*words, name), command


def _commands() -> str:
    """Every command with its arguments and options."""
    lines = []
    for words, command in _walk_commands(typer.main.get_command(app)):
        arguments = [one.metavar for one in command.params if one.param_type_name == "argument"]
        title = " ".join(["testbed", *words, *(one for one in arguments if one != words[-1])])
        lines.append(f"### `{title}`\n\n{command.help}\n\n")
        options = [
            (f"`{', '.join(one.opts)}{' ' + one.metavar if one.metavar else ''}`", one.help or "", _option_default(one))
            for one in command.params
            if one.param_type_name == "option"
        ]
        lines.append(_grid(("option", "meaning", "default"), options) + "\n")
    return "".join(lines).rstrip("\n") + "\n"


def _option_default(option: Any) -> str:
    if option.required:
        return "required"
    return "" if option.default in (None, False) or callable(option.default) else f"`{option.default}`"


def keep(name: str, folder: Path) -> None:
    """Take a run's rows and summary as the example `name`."""
    RECORDED.mkdir(exist_ok=True)
    shutil.copyfile(folder / "rounds.jsonl", RECORDED / f"{name}.rounds.jsonl")
    shutil.copyfile(folder / "summary.json", RECORDED / f"{name}.summary.json")


if __name__ == "__main__":
    from testbed.cli.runs import run_folder

    for example, given in zip(("moving", "fixed"), sys.argv[1:], strict=False):
        keep(example, run_folder(Path(given)))
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8"), blocks()), encoding="utf-8")
