"""Fixtures that every test may use, and which tests share a process where several run side by side."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

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

RUNS = ("test_runs", "test_radio_runs", "test_campaign_runs")
"""Share whole runs, which every process would have to make for itself."""
SIMULATED = (
    "test_air", "test_calibrated_runs", "test_folds", "test_head_start", "test_local_work", "test_packet_plans",
    "test_packet_shares", "test_personal_runs", "test_precodings", "test_schemes", "test_uplinks",
)  # fmt: skip
"""Of the system tests those that know no real time."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What runs side by side, `pytest -n 2`: files, and all that keeps real time as if it were one file.

    Real processes and devices that answer, stop or die in real time stand in `contract` and `system`: no two of those
    compete for cores.
    """
    from xdist.scheduler import LoadScopeScheduling

    class SideBySide(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            if file.stem in RUNS:
                return "runs"
            real_time = file.parent.name in ("contract", "system") and file.stem not in SIMULATED
            return "real time" if real_time else str(file)

    return SideBySide(config, log)


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
