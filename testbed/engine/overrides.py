"""`--set key=value`: changes to a file's content from the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from testbed.core.errors import ConfigError, ConfigErrors
from testbed.engine.toml_files import KeyPath


@dataclass(frozen=True)
class Override:
    """One change.

    Attributes:
        option: as the user wrote it, for errors.
        path: the key.
        value: parsed; None removes the key.
        text: the value before parsing.
    """

    option: str
    path: KeyPath
    value: Any
    text: str | None = None

    def below(self, table: str) -> Override:
        """The same change, seen from inside a table."""
        assert self.path[0] == table
        return Override(self.option, self.path[1:], self.value, self.text)

    def apply(self, content: dict[str, Any], is_text: bool) -> None:
        """Change the content in place; `is_text` keeps a value that looks like a number as it was written.

        Raises:
            ConfigError: a part of the key is no table.
        """
        here: Any = content
        for part in self.path[:-1]:
            here = here.setdefault(part, {}) if isinstance(here, dict) else self._entry(here, part)
        last = self.path[-1]
        if isinstance(here, list):
            self._entry(here, last)
        elif not isinstance(here, dict):
            raise self._no_table(last)
        elif self.value is None:
            here.pop(last, None)
            return
        here[last] = self.text if is_text and self.text is not None and not isinstance(self.value, str) else self.value

    def _entry(self, here: Any, part: str | int) -> Any:
        if not isinstance(here, list):
            raise self._no_table(part)
        if not isinstance(part, int) or part >= len(here):
            raise ConfigError(
                f"there is no entry {part}", key=self.option, remedy=f"entries are numbered from 0 to {len(here) - 1}"
            )
        return here[part]

    def _no_table(self, part: str | int) -> ConfigError:
        around = self.path[: self.path.index(part)]
        return ConfigError(
            f"{'.'.join(map(str, around))} is a single value, there is nothing inside it",
            key=self.option,
            remedy="`testbed config-schema` shows all keys",
        )


def parse_overrides(options: Sequence[str]) -> list[Override]:
    """Changes from `key=value` texts. Raises ConfigErrors naming every option that is none."""
    changes, errors = [], []
    for option in options:
        key, equals, text = option.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            errors.append(
                ConfigError(
                    "this is not key=value",
                    key=f"--set {option}",
                    remedy="write for instance --set rounds=20",
                )
            )
            continue
        path = tuple(int(part) if part.isdigit() else part for part in parts)
        changes.append(Override(f"--set {option}", path, parse_value(text.strip()), text.strip()))
    if errors:
        raise ConfigErrors(errors)
    return changes


def parse_value(text: str) -> Any:
    """A TOML value; a bare word is text, nothing at all is None."""
    if not text:
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text
