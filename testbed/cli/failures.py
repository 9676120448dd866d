"""How an error looks: a few lines on standard error, or one JSON object on standard output."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from testbed.core.errors import BenchError, ConfigErrors


def fail(error: Exception, *, as_json: bool) -> int:
    """Show an error and return its exit code."""
    if os.environ.get("TESTBED_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    code = int(getattr(error, "exit_code", 1))
    parts = _parts(error)
    if as_json:
        _say_json({"kind": type(error).__name__, "exit_code": code, "errors": parts})
    else:
        for part in parts:
            _say(part)
        _notes(error)
    return code


def interrupted(error: KeyboardInterrupt, *, as_json: bool) -> int:
    """Say that the run ended early and how it goes on; 130 for Ctrl-C, 128 + n for signal n."""
    code = 128 + int(getattr(error, "signal_number", 2))
    if as_json:
        _say_json({"kind": "Interrupted", "exit_code": code, "errors": [{"message": "interrupted"}]})
    else:
        print("\ninterrupted; everything is still and mute", file=sys.stderr)
        _notes(error)
    return code


def _notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        print(note, file=sys.stderr)


def _parts(error: Exception) -> list[dict[str, Any]]:
    if isinstance(error, ConfigErrors):
        return [part for one in error.errors for part in _parts(one)]
    if isinstance(error, BenchError):
        return [{"message": error.message, "file": error.file, "key": error.key, "remedy": error.remedy}]
    message = getattr(error, "message", None)
    if getattr(error, "exit_code", None) == 2:  # the command line could not be understood
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "testbed"
        text = error.format_message() if hasattr(error, "format_message") else str(message or error)
        return [{"message": text, "file": None, "key": None, "remedy": f"{command} --help shows what there is"}]
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    return [{"message": text, "file": None, "key": None, "remedy": "TESTBED_DEBUG=1 shows where it happened"}]


def _say_json(content: dict[str, Any]) -> None:
    print(json.dumps({"error": content}, indent=2))


def _say(part: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    where = ": ".join(str(part[key]) for key in ("file", "key") if part[key])
    text = Text("error: ", style="bold red")
    text.append(f"{where}: " if where else "", style="bold")
    text.append(part["message"], style="default not bold")
    if part["remedy"]:
        text.append(f"\n       {part['remedy']}", style="default not bold")
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)
