"""From the `name` in a `[scheme]` table to a scheme's class."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from testbed.core.backends import resolve
from testbed.core.errors import ConfigError
from testbed.core.scheme import Scheme
from testbed.engine.plain_words import closest
from testbed.schemes import SCHEMES


def scheme_class(name: str) -> type[Scheme[Any]]:
    """The class behind a scheme's name.

    Args:
        name: one of `SCHEMES`, `package.module:Class`, or `path/to/file.py:Class`.

    Raises:
        ConfigError: there is no such scheme, it cannot be imported, or it is no scheme.
    """
    if name in SCHEMES:
        return resolve(SCHEMES[name])
    where, colon, class_name = name.rpartition(":")
    if not colon or not where or not class_name:
        raise ConfigError(
            f"there is no scheme {name!r}",
            remedy=f"{closest(name, SCHEMES)}; one of your own is named module:Class or path.py:Class",
        )
    module = _file_module(Path(where)) if where.endswith(".py") else _named_module(where)
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Scheme)):
        fault = "is no scheme" if found is not None else "does not exist"
        raise ConfigError(
            f"{class_name} in {where} {fault}", remedy=f"of schemes, {closest(class_name, _schemes_in(module))}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f"the scheme {name} is not complete", remedy=f"write its method {missing}")
    return found


def anchored(name: str, folder: Path | None) -> str:
    """The name with a relative path to a scheme's file made absolute: beside the experiment file, or from here."""
    where, colon, class_name = name.rpartition(":")
    if not colon or not where.endswith(".py"):
        return name
    for base in (folder, Path.cwd()):
        if base is not None and (base / where).is_file():
            return f"{(base / where).resolve()}:{class_name}"
    return name


def _schemes_in(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Scheme) and value.__module__ == module.__name__
    ]


def _named_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"there is no module {name!r}", remedy="check the spelling, or name the file itself: path.py:Class"
            ) from error
        raise _broken(name, error) from error
    except Exception as error:
        raise _broken(name, error) from error


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", remedy="give the path from the experiment file, or from here")
    name = f"scheme_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations of the class are looked up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _broken(str(path), error) from error
    return module


def _broken(where: str, error: Exception) -> ConfigError:
    line = f" at line {error.lineno}" if isinstance(error, SyntaxError) else ""
    return ConfigError(
        f"{where} cannot be imported{line}: {type(error).__name__}: {getattr(error, 'msg', None) or error}",
        remedy="mend that file; TESTBED_DEBUG=1 shows where it fails",
    )
