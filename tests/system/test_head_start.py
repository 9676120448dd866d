"""Error-free links whose nodes began to send while others still trained, through the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.core.errors import LimitError
from testbed.core.orders import Collect, Ideal, Payload
from testbed.phy import payload as payloads
from tests.system.test_uplinks import NUM_VALUES, opened

NUM_BITS = 8 * payloads.num_bytes(Payload("float16"), NUM_VALUES)
AHEAD_S = {"node-00": 0.0, "node-01": 0.05, "node-02": 1.0}


def order(deadline_s: float | None = None) -> Collect:
    """Everybody needs 0.1 s."""
    rate_bit_s = NUM_BITS / 0.1
    uplinks = {name: Ideal(1.0, 1e6, 0.01, rate_bit_s, Payload("float16"), ahead) for name, ahead in AHEAD_S.items()}
    return Collect(uplinks, deadline_s=deadline_s)


def test_who_began_sooner_ends_sooner_and_pays_for_all_of_it(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        start_s = bench.live.now_s()
        collected = bench.collect(order())
        assert collected.missing == ()
        assert bench.live.now_s() - start_s == pytest.approx(0.1)
        assert collected.spent.air_time_s == pytest.approx(0.1)
        assert list(collected.energy_j.values()) == pytest.approx([1e-3, 1e-3, 1e-3])


def test_a_deadline_counts_from_the_order(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        start_s = bench.live.now_s()
        collected = bench.collect(order(deadline_s=0.06))
        assert collected.missing == ("node-00",)
        assert bench.live.now_s() - start_s == pytest.approx(0.06)
        assert collected.energy_j["node-00"] == pytest.approx(0.6e-3)
        assert collected.energy_j["node-01"] == pytest.approx(1e-3)
        assert bench.collect(order(deadline_s=0.04)).missing == ("node-00", "node-01")


def test_a_head_start_is_no_debt(tmp_path: Path) -> None:
    with opened(tmp_path) as bench, pytest.raises(LimitError, match="head_start_s = -1.0; it cannot be negative"):
        bench.collect(Collect({"node-00": Ideal(1.0, 1e6, 0.01, 1e6, Payload(), -1.0)}))
