"""Fixtures that every test may use."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# rich and typer look at these; what a test reads must not depend on who runs it
SCREEN = ("COLUMNS", "LINES", "TERMINAL_WIDTH", "FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
for variable in (*SCREEN, "GITHUB_ACTIONS", "TESTBED_DEBUG"):
    os.environ.pop(variable, None)
os.environ["NO_COLOR"] = "1"
os.environ["TERM"] = "dumb"
# who holds a bench, and what was measured of one, is no matter of the user's own benches
for variable in ("TESTBED_LEASES", "TESTBED_CALIBRATIONS"):
    os.environ[variable] = tempfile.mkdtemp(prefix="testbed-tests-")
# one thread in each process: what is computed then depends on no core count, and processes do not fight for cores
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"


@pytest.fixture
def experiment_text() -> str:
    """The shortest experiment file."""
    return 'name = "short"\nrounds = 2\n\n[scheme]\nname = "fedavg"\n'


@pytest.fixture
def experiment_file(tmp_path: Path, experiment_text: str) -> Path:
    """The shortest experiment file, on disk."""
    path = tmp_path / "short.toml"
    path.write_text(experiment_text)
    return path
