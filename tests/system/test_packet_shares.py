"""JCPBA over packets on unlike boards: planned seconds come true, nobody is lost, and rules take longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.core.orders import Collect, Digital
from testbed.engine.config import load_experiment
from testbed.engine.recorder import read_rows, read_steps
from tests.system.small_runs import CHANGES, run

BOARDS = (
    "bench.nodes=["
    "{name='strong', max_power_dbm=10.0, cpu_hz=6e9},"
    "{name='slow', max_power_dbm=10.0, cpu_hz=6e8},"
    "{name='faint', max_power_dbm=-2.0, cpu_hz=1.5e9}]"
)
SMALL = (
    "rounds=2", BOARDS, "lora.targets=['q_proj','v_proj']", "training.local_steps=2", "training.sequence_length=64",
    "data.max_train=60", "data.max_test=4",
)  # fmt: skip


def rounds_of(folder: Path, *changes: str) -> tuple[list[dict[str, Any]], list[Collect]]:
    """Figures of the scheme, round by round, and the orders to send."""
    source = next(change for change in CHANGES if change.startswith("data.source="))
    found = run(load_experiment("jcpba-packets", [*SMALL, source, *changes], 1), folder)
    rows = [row["scheme"] for row in read_rows(found.folder) if row["round"] > 0]
    return rows, [step.order for step in read_steps(found.folder) if isinstance(step.order, Collect)]


def test_plans_over_packets_come_true_and_end_sooner_than_a_rule(tmp_path: Path) -> None:
    planned, orders = rounds_of(tmp_path / "joint")
    ruled, _ = rounds_of(tmp_path / "rule", "scheme.allocation=none", "scheme.bandwidth=equal")
    for row in (*planned, *ruled):
        assert row["late"] == ""
    # from the second round on each board's part of the rate is known
    assert planned[1]["round_s"] == pytest.approx(planned[1]["planned_s"], rel=0.25)
    assert {row["status"] for row in ruled} == {"feasible"}
    assert planned[1]["round_s"] < 0.9 * ruled[1]["round_s"]
    # whoever is hardly heard has the widest share, and no share is narrower than the modem's
    shares_hz = {name: one.bandwidth_hz for name, one in orders[-1].uplinks.items() if isinstance(one, Digital)}
    assert max(shares_hz, key=lambda name: shares_hz[name]) == "faint"
