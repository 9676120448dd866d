"""Plans of schemes over real packets: what soft-tsfa reckons with is what modem, radios and room take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core.fleet import Fleet
from testbed.core.orders import (
    Collect,
    Collected,
    LocalResult,
    Order,
    Publish,
    Published,
    Reply,
    Train,
    Trained,
)
from testbed.engine.perform import perform
from testbed.lora.sparse_orthogonal import RankPairs
from testbed.phy.coding_schemes import scheme_named
from testbed.schemes.soft_tsfa import SoftTsfa
from tests.benches import small_bench
from tests.digital_bench import lora_adapter, lora_layout
from tests.loopback import Loopback, loopback

RANK = 8
LAYOUT = lora_layout(RANK, ("q_proj", "v_proj"), 256)
ADAPTER = lora_adapter(LAYOUT)
PAIRS = RankPairs.of(LAYOUT)
SECONDS = {"node-00": 0.02, "node-01": 0.03, "node-02": 0.01}
"""Of training."""


class Rounds:
    """Rounds of a scheme over simulated radios; training is made up, and so is one node's code."""

    def __init__(self, bench: Loopback, scheme: SoftTsfa) -> None:
        self.bench, self.scheme = bench, scheme
        self.adapter, self.index, self.slow = ADAPTER.initial, 0, ""
        self.collected: list[Collected] = []
        self.state = scheme.start(Fleet.of(bench.bench, dict.fromkeys(SECONDS, 10)), ADAPTER)

    def round(self, slow: str = "") -> dict[str, Any]:
        """One round, in which a node sends in the slowest code there is.

        Returns:
            the round's figures.
        """
        self.index, self.slow = self.index + 1, slow
        self.state = perform(self.scheme.round(self.state, np.random.default_rng(self.index)), self._answer)
        return dict(self.state.figures)

    def _answer(self, order: Order) -> Reply:
        match order:
            case Train():
                return Trained({name: self._trained(name) for name in order.work})
            case Publish():
                self.adapter = order.adapter
                return Published()
            case Collect():
                if self.slow:
                    late = replace(order.uplinks[self.slow], scheme="bpsk-golay-rep3")  # type: ignore[type-var]
                    order = replace(order, uplinks={**order.uplinks, self.slow: late})
                self.collected.append(self.bench.collect(order))
                return self.collected[-1]
        return self.bench.answer(order)

    def _trained(self, name: str) -> LocalResult:
        rng = np.random.default_rng([int(name[-2:]), self.index])
        update = np.zeros(LAYOUT.size, np.float32)
        for down, up in PAIRS.factors(update):
            down[:] = 0.01 * 0.7 ** np.arange(RANK)[:, None] * rng.standard_normal(down.shape)
            up[:] = 0.1 * 0.7 ** np.arange(RANK) * rng.standard_normal(up.shape)
        self.bench.link._worker._node(name).uplink.trained(update, self.adapter, LAYOUT)
        return LocalResult(2.0, 2.0, 2.0, 10, 100, 0.0, 1.0, SECONDS[name], 1.0)


def rounds_of(bench: Loopback, **changes: Any) -> Rounds:
    bench.live._layout = LAYOUT
    scheme = {"latency_s": 0.14, "tradeoff": 0.2, "slack": 1.25, "uplink": {"snr_gap": 4.0}, **changes}
    return Rounds(bench, SoftTsfa.model_validate(scheme))


def opened(folder: Path) -> Any:
    """Three boards of unlike powers in a narrow band of many subcarriers."""
    waveform = {"num_subcarriers": 512, "num_active": 384, "cyclic_prefix": 32}
    nodes = [{"name": f"node-{i:02d}", "max_power_dbm": power} for i, power in enumerate((10.0, -4.0, 3.0))]
    bench = small_bench(nodes=nodes, waveform=waveform, sample_rate_hz=2e6, world={"excess_loss_db": 40.0})
    return loopback(bench, dict.fromkeys(bench.node_names, np.zeros(LAYOUT.size, np.float32)), folder)


def test_measured_seconds_are_the_planned_ones_and_nobody_is_late(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        run = rounds_of(bench)
        figures = [run.round() for _ in range(5)]
    assert figures[-1]["keep"] < figures[0]["keep"] == 1.0
    for one in figures[1:]:
        assert one["late"] == ""
        assert 0.85 < one["round_s"] / one["planned_s"] < 1.25
    assert run.state.queue.backlog[0] == figures[-1]["backlog_s"]


def test_a_board_that_sends_too_slowly_is_lost_to_the_round_and_named(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        run = rounds_of(bench)
        run.round()
        before = run.adapter
        figures = run.round(slow="node-02")
    assert figures["late"] == "node-02"
    collected = run.collected[-1]
    assert collected.missing == ("node-02",)
    assert set(collected.updates) == {"node-00", "node-01"}
    assert figures["round_s"] <= 1.25 * figures["planned_s"] * (1 + 1e-6)
    # everybody owns as many rows; what nobody sent counts as zero
    mean = np.mean([collected.updates[name] for name in ("node-00", "node-01")], axis=0)
    np.testing.assert_allclose(run.adapter - before, mean, rtol=1e-4, atol=1e-7)


def test_a_board_whose_packets_fail_gets_a_more_robust_code(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        run = rounds_of(bench, deadline=False)
        run.round()
        links = run.state.links
        codes = [run.collected[-1].deliveries["node-00"].scheme]
        run.state = replace(run.state, links=replace(links, margin={**links.margin, "node-00": 10.0}))
        run.round()
        codes.append(run.collected[-1].deliveries["node-00"].scheme)
    first, second = (scheme_named(code).bits_per_symbol for code in codes)
    assert second < first
    assert run.state.links.margin["node-00"] < 10.0, "a quiet round gives some of it back"


def test_queues_of_each_board_are_kept_in_the_state(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        run = rounds_of(bench, queues="each", own_latency_s=[0.12, 0.3])
        figures = [run.round() for _ in range(3)]
    assert run.state.queue.limit.tolist() == [0.12, 0.3, 0.12]
    assert len(str(figures[-1]["backlogs_s"]).split()) == 3
    longest_s = max(SECONDS.values())
    for collected in run.collected:
        assert collected.missing == ()
    sent_s = sum(
        np.array([one.energy_j[name] / run.state.fleet.node(name).max_power_w for name in SECONDS])
        for one in run.collected
    )
    np.testing.assert_allclose(run.state.queue.total, 3 * longest_s + sent_s, rtol=1e-9)
