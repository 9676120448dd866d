"""What code a run was made with."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

_VERSIONS_OF = ("testbed", "numpy", "scipy", "torch", "transformers", "peft", "pyzmq", "pydantic")


def versions() -> dict[str, str]:
    """Versions of this project and of what it computes with."""
    found = {}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """The git commit of this code, `-dirty` where files were changed since; unknown outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
