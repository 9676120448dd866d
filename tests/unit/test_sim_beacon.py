"""A node that starts when it hears the beacon: how exactly, and what becomes of a beacon that it does not hear."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from sim_backend.beacon import Beacon
from testbed.core.bench import BenchSpec
from testbed.core.orders import Collect, MajorityVote, Sound, Sounding
from testbed.phy import coherence
from tests.benches import small_bench
from tests.loopback import loopback

INSTANTS_S = 1e-3 * np.arange(1, 301)


def bench(beacon_dbm: float = 0.0, excess_loss_db: float = 30.0, **impairments: float) -> BenchSpec:
    world = {"excess_loss_db": excess_loss_db, "impairments": impairments}
    return small_bench(radio={"trigger": "beacon", "beacon_dbm": beacon_dbm}, world=world)


def late(of: BenchSpec, offset: float = 0.0) -> list[float | None]:
    """In samples, at every instant."""
    beacon = Beacon(of, node="node-00", node_index=0, offset=offset, seed=3)
    return [None if (one := beacon.late_s(at_s)) is None else one * of.sample_rate_hz for at_s in INSTANTS_S]


@pytest.mark.parametrize("offset", [0.0, 20e-6])
def test_a_clear_beacon_is_found_to_the_sample(offset: float) -> None:
    errors = np.array(late(bench(), offset), dtype=np.float64)
    # the node's samples lie anywhere beside the beacon's: uniform over one sample, early rather than late
    assert np.ptp(errors) <= 1.0 + 1e-6
    assert np.abs(errors).max() < 1.0
    assert np.std(errors) == pytest.approx(1 / np.sqrt(12), rel=0.1)


def test_a_faint_beacon_is_found_less_exactly_and_at_last_not_at_all() -> None:
    strong, faint, lost = (late(bench(power)) for power in (-10.0, -25.0, -60.0))
    assert None not in strong
    found = np.array([one for one in faint if one is not None])
    assert len(found) > 200
    assert np.std(found) > 1.2 * np.std(np.array(strong, dtype=np.float64))
    assert set(lost) == {None}


def test_the_same_instant_gives_the_same_start() -> None:
    assert late(bench()) == late(bench())


def test_nodes_that_do_not_hear_the_beacon_are_missing(tmp_path: Path) -> None:
    updates = {name: np.ones(100, np.float32) for name in bench().node_names}
    nodes = [{"name": "near", "position_m": [0.5, 3.5, 1.0]}, {"name": "far", "position_m": [9.5, 0.5, 1.0]}]
    spec = bench(beacon_dbm=-20.0, excess_loss_db=30.0).model_dump()
    of = BenchSpec.model_validate(
        {**spec, "nodes": nodes, "world": {"excess_loss_db": 30.0, "path_loss_exponent": 4.0}}
    )
    with loopback(of, dict.fromkeys(of.node_names, updates["node-00"]), tmp_path) as air:
        sounding = air.answer(Sound())
        assert isinstance(sounding, Sounding)
        assert sounding.nodes == ("near",)
        assert sounding.missing == ("far",)


@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_votes_survive_what_a_beacon_leaves(tmp_path: Path, level: str) -> None:
    spec = bench().model_copy(update={"waveform": bench().waveform.model_copy(update={"level": level})})
    generator = np.random.default_rng(7)
    votes = generator.standard_normal(2000).astype(np.float32)
    with loopback(spec, dict.fromkeys(spec.node_names, votes), tmp_path) as air:
        sounding = air.answer(Sound())
        assert isinstance(sounding, Sounding)
        assert 0.02 < np.std(sounding.delay_s * spec.sample_rate_hz) < 0.6
        collected = air.collect(Collect({name: MajorityVote(0.01) for name in spec.node_names}))
        assert np.mean(collected.mean == np.sign(votes)) > 0.95


def test_a_beacon_times_votes_but_no_coherent_sum() -> None:
    flags = coherence.radio_flags(bench())
    assert flags["timed_tx"]
    assert not flags["phase_coherent"]


def test_a_beacon_keeps_the_limit_of_the_bench() -> None:
    with pytest.raises(ValidationError, match="beacon_dbm: 30 dBm exceeds"):
        bench(beacon_dbm=30.0)
