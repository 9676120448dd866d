"""What lies between a stage's motors and its antenna, simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sim_backend.clock import VirtualClock
from sim_backend.mechanics import Mechanics, check_still
from sim_backend.stage import SimStage
from testbed.core.bench import StageSpec
from testbed.core.errors import ConfigError
from testbed.core.world_specs import StageTruthSpec
from tests.benches import small_bench

SPEC = StageSpec(origin_m=(0.5, 0.2), rotation_deg=90.0)


def test_by_default_the_antenna_is_where_the_motors_are() -> None:
    mechanics = Mechanics(StageTruthSpec(), SPEC)
    mechanics.follow(np.array([0.1, 0.03]))
    assert mechanics.stage_m() == pytest.approx([0.1, 0.03], abs=1e-15)
    assert mechanics.array_m() == pytest.approx([0.47, 0.3], abs=1e-15)
    assert mechanics.next_look_s(0.0) is None


def test_play_keeps_the_carriage_above_where_it_was_pushed_down_from() -> None:
    mechanics = Mechanics(StageTruthSpec(backlash_m=(1e-3, 0.0)), SPEC)
    seen = []
    for place_m in (0.1, 0.2, 0.1995, 0.15, 0.1505, 0.16):
        mechanics.follow(np.array([place_m, 0.0]))
        seen.append(float(mechanics.stage_m()[0]))
    assert seen == pytest.approx([0.1, 0.2, 0.2, 0.151, 0.151, 0.16], abs=1e-12)


def test_scale_and_rotation_turn_about_the_frames_zero() -> None:
    mechanics = Mechanics(StageTruthSpec(scale=1.01, rotation_deg=90.0), SPEC)
    mechanics.follow(np.array([0.1, 0.0]))
    assert mechanics.array_m() == pytest.approx([0.5 - 0.101, 0.2], abs=1e-12)


def test_a_vibration_decays_along_the_way_from_the_arrival_on() -> None:
    truth = StageTruthSpec(ring_m=1e-3, ring_s=0.1, ring_hz=10.0)
    mechanics = Mechanics(truth, SPEC)
    mechanics.follow(np.zeros(2), 0.0)
    mechanics.follow(np.array([0.03, 0.04]), 0.9, moves=True)
    assert mechanics.next_look_s(0.9) is None, "moving antennas are looked at anyway"
    mechanics.follow(np.array([0.03, 0.04]), 1.0)
    swing_m = mechanics.stage_m(1.025) - [0.03, 0.04]
    assert swing_m == pytest.approx(1e-3 * math.exp(-0.25) * np.array([0.6, 0.8]))
    look_s = mechanics.next_look_s(1.025)
    assert look_s is not None
    assert 0 < look_s - 1.025 <= 0.1 / 16
    assert mechanics.next_look_s(3.0) is None
    assert mechanics.stage_m(3.0) == pytest.approx([0.03, 0.04], abs=1e-15)


def test_every_homing_draws_another_place_from_the_seed() -> None:
    def places(seed: int) -> np.ndarray:
        mechanics, found = Mechanics(StageTruthSpec(homing_std_m=1e-4), SPEC, seed=seed), []
        for _ in range(300):
            mechanics.follow(np.zeros(2), homes=True)
            mechanics.follow(np.zeros(2))
            found.append(mechanics.stage_m())
        return np.array(found)

    first = places(1)
    assert first.std(axis=0) == pytest.approx([1e-4, 1e-4], rel=0.15)
    assert np.array_equal(first, places(1))
    assert not np.array_equal(first, places(2))


def test_a_simulated_stage_has_play_that_it_does_not_report() -> None:
    truth = StageTruthSpec(backlash_m=(2e-4, 0.0))
    stage = SimStage(
        StageSpec(), region_m=((0.0, 0.3), (0.0, 0.3)), home_m=(0.2, 0.1), clock=VirtualClock(), truth=truth
    )
    stage.move_to(np.array([0.1, 0.1]))
    assert stage.position_m == pytest.approx([0.1, 0.1])
    assert stage.array_m == pytest.approx([0.1002, 0.1])


@pytest.mark.parametrize("key", ["ring_m", "homing_std_m"])
def test_what_simulated_stages_cannot_do_is_refused_by_key(key: str) -> None:
    with pytest.raises(ConfigError, match=f"world.stages.{key}"):
        check_still(small_bench(world={"stages": {key: 1e-4}}))
    check_still(small_bench(world={"stages": {"backlash_m": [1e-4, 1e-4]}}))
