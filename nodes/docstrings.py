"""Documentation of installed packages, read from their source files with `ast`: no package is imported.

The text has the licence of the package it comes from; it is read where it is installed and never copied into this
project.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MIN_CHARACTERS = 80
"""Shorter texts are left out."""

_SKIPPED_FOLDERS = frozenset(
    [
        "test",
        "tests",
        "testing",
        "_tests",
        "__pycache__",
        "site-packages",
        "dist-packages",
        "idlelib",
        "lib2to3",
        "vendor",
        "_vendor",
        "_vendored",
        "_external",
        "array_api_compat",
        "array_api_extra",
        "array_api_extra_lite",
        "highspy",
        "ensurepip",
        "turtledemo",
    ]
)
_DOC_CALLS = frozenset(("add_docstr", "add_newdoc", "add_docstr_all", "add_docstring"))


@dataclass(frozen=True)
class Docstring:
    """One documentation string.

    Attributes:
        name: qualified name, for instance `scipy.signal._signaltools.convolve`.
        source: module it stands in, `package.module`.
        text: cleaned text.
    """

    name: str
    source: str
    text: str


def _root(package: str) -> Path | None:
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            yield path


_Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Qualified name and raw text of every docstring in a module, in the order of the file.

    A definition inside a branch goes by the name of what encloses the branch.
    """
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, ast.Module | _Named):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield name, text
            stack.extend(
                (f"{name}.{child.name}" if isinstance(child, _Named) else name, child) for child in reversed(node.body)
            )
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _given(node.value, name)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            stack.extend((name, child) for child in reversed(node.body))


def _given(call: ast.Call, module: str) -> Iterator[tuple[str, str]]:
    """Documentation handed to a compiled function: `add_newdoc("numpy", "exp", text)`."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function.lstrip("_") not in _DOC_CALLS:
        return
    parts = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    text = max(parts, key=len, default="")
    label = next(
        (part for part in parts if part.isidentifier() and part not in ("numpy", "scipy")),
        ast.unparse(call.args[0]) if call.args else "",
    )
    yield f"{module}.{label}", text


_DIRECTIVE = re.compile(
    r"^\s*\.\. (?:versionadded|versionchanged|deprecated|currentmodule|index|autosummary|plot|note|warning|math"
    r"|code\S*|testcode|doctest\S*)::.*$",
    re.M,
)
_ROLE = re.compile(r":[a-z:]+:`~?([^`<]*)(?:<[^`]*>)?`")
_PROMPT = re.compile(r"^\s*(?:>>>|\.\.\.) .*$", re.M)
_RULE = re.compile(r"^\s*[-=~^*+|#.]{3,}[-=~^*+|#.\s]*$", re.M)
_BLANKS = re.compile(r"\n\s*\n+")
_HEADINGS = frozenset(
    [
        "example",
        "examples",
        "references",
        "reference",
        "see also",
        "notes",
        "note",
        "returns",
        "parameters",
        "explanation",
        "raises",
        "args",
        "usage",
        "warning",
    ]
)


def _clean(raw: str) -> str:
    """Readable text: no markup, no doctest, paragraphs separated by one blank line."""
    text = inspect.cleandoc(raw).replace("``", "`")
    text = _ROLE.sub(r"\1", text)
    text = _DIRECTIVE.sub("", text)
    paragraphs = []
    for paragraph in _BLANKS.split(text):
        if _PROMPT.search(paragraph):
            continue
        paragraph = _RULE.sub("", paragraph)
        paragraph = "\n".join(line.rstrip() for line in paragraph.strip("\n").splitlines() if line.strip())
        letters = sum(character.isalpha() or character == " " for character in paragraph)
        if paragraph and letters >= 0.7 * len(paragraph):
            paragraphs.append(paragraph)
    # a heading whose content was dropped goes with it
    kept: list[str] = []
    for paragraph in reversed(paragraphs):
        if paragraph.lower().strip(":") not in _HEADINGS or (kept and kept[-1].lower().strip(":") not in _HEADINGS):
            kept.append(paragraph)
    return "\n\n".join(reversed(kept))


def normal(text: str) -> str:
    """Lower-case words alone: what two copies of one paragraph have in common."""
    return re.sub(r"[\W\d_]+", " ", text.lower()).strip()


@lru_cache(maxsize=64)
def docstrings(package: str) -> tuple[Docstring, ...]:
    """Cleaned documentation strings of one installed package, in the order of its files.

    Args:
        package: top-level name, or `stdlib`.

    Returns:
        Its docstrings of at least 80 characters; none where the package is not installed.
    """
    root = _root(package)
    found: list[Docstring] = []
    for path in _files(root) if root else ():
        parts = path.relative_to(root).with_suffix("").parts if root else ()
        module = ".".join(part for part in ((package, *parts) if package != "stdlib" else parts) if part != "__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for name, raw in _documented(tree, module):
            if len(raw) >= MIN_CHARACTERS:
                text = _clean(raw)
                if len(text) >= MIN_CHARACTERS:
                    found.append(Docstring(name=name, source=module, text=text))
    return tuple(found)


_COMMENT_BLOCK = re.compile(rb"(?:^[ \t]*#[ \t][^\n]*\n){3,}", re.M)
_HASH = re.compile(r"^\s*#+ ?", re.M)


@lru_cache(maxsize=64)
def comments(package: str) -> tuple[Docstring, ...]:
    """Comment blocks of three lines and more that read like prose, in the order of the files."""
    root = _root(package)
    found: list[Docstring] = []
    for path in _files(root) if root else ():
        module = ".".join(path.relative_to(root).with_suffix("").parts) if root else ""
        for number, match in enumerate(_COMMENT_BLOCK.finditer(path.read_bytes())):
            text = _clean(_HASH.sub("", match.group().decode("utf-8", "replace")))
            words = sum(character.isalpha() or character in " \n,'-" for character in text)
            if len(text) >= MIN_CHARACTERS and words >= 0.93 * len(text) and "opyright" not in text:
                found.append(Docstring(name=f"{module}#{number}", source=module, text=text))
    return tuple(found)


def manual() -> tuple[Docstring, ...]:
    """Sections of the Python language manual that `help()` shows."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return ()
    tree = ast.parse(path.read_bytes())
    sections = next((node for node in ast.walk(tree) if isinstance(node, ast.Dict)), None)
    pairs = zip(sections.keys, sections.values, strict=True) if sections else ()
    return tuple(
        Docstring(name=f"manual.{key.value!s}", source="manual", text=_clean(value.value))
        for key, value in pairs
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str)
    )
