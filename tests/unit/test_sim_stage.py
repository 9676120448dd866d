import numpy as np
import pytest

from sim_backend.clock import VirtualClock
from sim_backend.meter import SimMeter
from sim_backend.stage import SimStage
from testbed.core.bench import NodeSpec, StageSpec
from testbed.core.devices import Clock, Meter, Stage
from testbed.core.errors import ConfigError, LimitError
from testbed.core.orders import Spent

REGION_M = ((0.0, 1.0), (0.0, 0.5))


def stage_with(clock: VirtualClock | None = None, home_m: tuple[float, float] = (0.0, 0.0), **spec) -> SimStage:
    spec = StageSpec(**{"speed_m_s": 0.1, "acceleration_m_s2": 0.5, "settle_s": 0.2, "power_w": 6.0, **spec})
    return SimStage(spec, region_m=REGION_M, home_m=home_m, clock=clock or VirtualClock())


def test_a_long_way_takes_cruise_and_ramps():
    clock = VirtualClock(3.0)
    stage = stage_with(clock)
    # 0.5 m at 0.1 m/s and one ramp time of 0.2 s
    assert stage.duration_s(np.array([0.3, 0.4])) == pytest.approx(5.2 + 0.2)
    spent = stage.move_to(np.array([0.3, 0.4]))
    assert (spent.seconds, spent.joules, spent.air_time_s, spent.travel_m) == pytest.approx((5.4, 31.2, 0.0, 0.5))
    assert clock.now_s() == pytest.approx(8.4)
    np.testing.assert_array_equal(stage.position_m, [0.3, 0.4])


def test_a_short_way_never_reaches_the_speed():
    # below v^2 / a = 0.02 m
    assert stage_with().duration_s(np.array([0.005, 0.0])) == pytest.approx(2 * np.sqrt(0.005 / 0.5) + 0.2)
    assert stage_with().duration_s(np.array([0.02, 0.0])) == pytest.approx(0.4 + 0.2)


def test_staying_costs_nothing():
    assert stage_with().move_to(np.zeros(2)) == Spent()


@pytest.mark.parametrize("target", [(1.2, 0.1), (0.1, -0.01), (np.nan, 0.1), (np.inf, 0.1)])
def test_beyond_an_end_stop_nothing_moves(target):
    clock = VirtualClock()
    stage = stage_with(clock, home_m=(0.5, 0.25))
    with pytest.raises(LimitError, match=r"axis [01]: .* m is outside \["):
        stage.move_to(np.array(target))
    np.testing.assert_array_equal(stage.position_m, [0.5, 0.25])
    assert clock.now_s() == 0.0


def test_end_stops_follow_the_region_through_a_turned_frame():
    stage = stage_with(home_m=(0.5, 0.25), origin_m=(1.0, 0.0), rotation_deg=90.0)
    # array (x, y) = (1 - q1, q0): q0 in [0, .5], q1 in [0, 1]
    np.testing.assert_allclose(stage.position_m, [0.25, 0.5], atol=1e-12)
    stage.move_to(np.array([0.5, 1.0]))
    with pytest.raises(LimitError, match="axis 0"):
        stage.move_to(np.array([0.6, 0.5]))


def test_a_home_beyond_the_end_stops_is_a_mistake_in_the_file():
    with pytest.raises(ConfigError, match="end stops"):
        stage_with(home_m=(0.5, 0.25), travel_m=((0.0, 0.1), (0.0, 0.1)))


def test_stop_and_close_may_be_repeated():
    stage = stage_with()
    for _ in range(2):
        stage.stop()
        stage.close()
    assert isinstance(stage, Stage)


def test_stages_move_side_by_side():
    clock = VirtualClock(1.0)
    stages = [stage_with(clock), stage_with(clock)]
    targets = [np.array([0.1, 0.0]), np.array([0.3, 0.0])]
    spent = clock.concurrently([lambda s=s, t=t: s.move_to(t) for s, t in zip(stages, targets, strict=True)])
    assert clock.now_s() == pytest.approx(1.0 + max(part.seconds for part in spent))


def test_time_never_runs_back_by_waiting():
    clock = VirtualClock()
    clock.wait_until(5.0)
    clock.wait_until(2.0)
    assert clock.now_s() == 5.0
    clock.set(2.0)
    assert clock.now_s() == 2.0
    assert isinstance(clock, Clock)


def test_side_by_side_tasks_start_together_and_nest():
    clock = VirtualClock(1.0)
    seen = []

    def task(seconds: float) -> float:
        seen.append(clock.now_s())
        clock.wait_until(clock.now_s() + seconds)
        return seconds

    result = clock.concurrently(
        [lambda: task(2.0), lambda: clock.concurrently([lambda: task(1.0), lambda: task(5.0)]), lambda: task(0.5)]
    )
    assert result == [2.0, [1.0, 5.0], 0.5]
    assert seen == [1.0] * 4
    assert clock.now_s() == 6.0
    assert clock.concurrently([]) == []


def test_a_failing_task_does_not_keep_the_others_from_running():
    clock = VirtualClock()

    def fail() -> None:
        raise LimitError("first")

    with pytest.raises(LimitError, match="first"):
        clock.concurrently([fail, lambda: clock.wait_until(4.0)])
    assert clock.now_s() == 4.0


def test_meter_follows_the_cost_model():
    board = NodeSpec(name="a", cpu_hz=1.5e9, cycles_per_token=2e6, kappa=1e-28)
    meter = SimMeter(board)
    assert isinstance(meter, Meter)
    meter.begin()
    slow, fast = meter.end(num_tokens=3000, cpu_hz=1e9), meter.end(num_tokens=3000, cpu_hz=None)
    assert (slow.seconds, slow.joules) == pytest.approx((6.0, 0.6))
    assert (fast.seconds, fast.joules) == pytest.approx((4.0, 1.35))
    pruned = meter.end(num_tokens=3000, cpu_hz=None, work_share=0.25)
    assert (pruned.seconds, pruned.joules) == pytest.approx((1.0, 0.3375))
    for cpu_hz in (1.6e9, 0.0, -1.0, float("nan")):
        with pytest.raises(LimitError, match=r"a cannot run at .*1\.5e\+09"):
            meter.end(num_tokens=1, cpu_hz=cpu_hz)
