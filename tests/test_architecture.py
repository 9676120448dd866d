"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("testbed", "drivers", "nodes", "sim_backend", "calibration")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]

LENGTH_LIMIT = 450
"""Lines of a file; the aim is 300."""

UNIT = re.compile(
    r"_(hz|hz2|s|m|w|j|bit|bit_s|rad|deg|db|dbm|k|m_s|m_s2|ms|ns|v|a|per_[a-z]+|share|ratio|tokens?|symbols?)$"
)
PHYSICAL = re.compile(
    r"(^|_)(power|powers|bandwidth|frequency|frequencies|duration|energy|distance|position|positions|speed|carrier|wavelength"
    r"|latency|delay|timeout|travel|temperature|velocity|acceleration)($|_)"
)
WITHOUT_UNIT = {
    # name -> why it has none
    "position_ids": "places of tokens in a sequence",
    "speed": "emulated seconds in a real one",
    "power_error": "true over nominal",
    "powers": "shares of a channel's power",
}

DECIBEL = re.compile(r"(^|_)(db|dbm)$")
DECIBEL_AT_THE_EDGE = (
    "testbed/core/units.py", "testbed/core/bench.py", "testbed/core/world_specs.py", "testbed/engine/config",
    "testbed/report/", "testbed/cli/",
    "testbed/schemes/",  # a scheme's fields are keys of the experiment file
    "testbed/core/hardware.py", "drivers/pluto", "drivers/ad9361", "sim_backend/emulat",  # as the chip writes its gains
    "drivers/lab.py",
    "calibration/gain.py", "calibration/noise.py", "calibration/field_plot.py",  # options and figures for people
)  # fmt: skip


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_every_import_contract_holds() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 broken" in ended.stdout


def test_the_contracts_see_the_libraries_they_forbid() -> None:
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)
    assert "torch" in graph.modules
    assert "zmq" in graph.modules
    assert "time" in graph.modules, "the standard library is part of the graph"
    packages_with_torch = {module.split(".")[0] for module in graph.find_modules_that_directly_import("torch")}
    assert packages_with_torch == {"nodes"}


def public_definitions(module: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and public methods of those classes."""
    for item in module.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not item.name.startswith("_"):
            yield item.name, item


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_says_what_it_is(name: str) -> None:
    module = tree(ROOT / name)
    assert ast.get_docstring(module), "the module has no docstring"
    silent = [title for title, item in public_definitions(module) if not ast.get_docstring(item)]  # type: ignore[arg-type]
    assert not silent, f"without a docstring: {', '.join(silent)}"


def float_names(module: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of parameters and fields that hold a number or an array."""
    for item in ast.walk(module):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            for one in (*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs):
                if one.annotation is not None and is_number(one.annotation):
                    yield one.arg, one.lineno
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and is_number(item.annotation):
            yield item.target.id, item.lineno


def is_number(annotation: ast.expr) -> bool:
    """Whether an annotation says float, array, or an alias that holds floats."""
    words = set(re.findall(r"[A-Za-z0-9_]+", ast.unparse(annotation)))
    return bool(words & {"float", "ndarray", "Positive", "Point2", "Point3", "Interval"}) and not words & {
        "Callable",
        "dict",
    }


@pytest.mark.parametrize("name", NAMES)
def test_physical_scalars_carry_their_unit(name: str) -> None:
    bare = [
        f"{word} (line {line})"
        for word, line in float_names(tree(ROOT / name))
        if PHYSICAL.search(word) and not UNIT.search(word) and word not in WITHOUT_UNIT
    ]
    assert not bare, f"without a unit suffix: {', '.join(bare)}"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(DECIBEL_AT_THE_EDGE)])
def test_decibels_stay_at_the_edge(name: str) -> None:
    module = tree(ROOT / name)
    named = [word for word, _ in float_names(module) if DECIBEL.search(word)]
    stored = [
        item.id
        for item in ast.walk(module)
        if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store) and DECIBEL.search(item.id)
    ]
    assert not named + stored, f"decibels inside: {', '.join(named + stored)}"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_test_sleeps(path: Path) -> None:
    calls = [item for item in ast.walk(tree(path)) if isinstance(item, ast.Attribute) and item.attr == "sleep"]
    assert not calls


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_pickled(path: Path) -> None:
    pickles = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for item in ast.walk(tree(path)):
        if isinstance(item, ast.Import):
            assert not pickles & {alias.name.split(".")[0] for alias in item.names}
        elif isinstance(item, ast.ImportFrom):
            assert (item.module or "").split(".")[0] not in pickles
        elif isinstance(item, ast.keyword) and item.arg == "allow_pickle":
            assert isinstance(item.value, ast.Constant)
            assert item.value.value is False
        elif isinstance(item, ast.Attribute) and item.attr in ("send_pyobj", "recv_pyobj"):
            pytest.fail(f"line {item.lineno}: {item.attr} pickles")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_one_idea(name: str) -> None:
    path = ROOT / name
    assert not re.search(r"(^|_)(utils?|helpers?|manager|misc|tmp|data2)(_|$)", path.stem)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LENGTH_LIMIT


@pytest.mark.parametrize("path", sorted((ROOT / "testbed" / "schemes").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_scheme_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250


def test_every_scheme_file_is_listed() -> None:
    from testbed.schemes import SCHEMES

    files = {f"testbed.schemes.{path.stem}" for path in (ROOT / "testbed" / "schemes").glob("[!_]*.py")}
    assert {target.partition(":")[0] for target in SCHEMES.values()} == files
