"""Real time, on a clock that the tests turn by hand and, for a few milliseconds, on the true one."""

import threading
import time

import pytest

from drivers.clock import NodeClock, WallClock
from testbed.core.devices import Clock
from testbed.engine.checks import check_clock


class Hands:
    """A monotonic clock that passes only while somebody pauses, and creeps on when it is looked at."""

    def __init__(self, creep_s: float = 0.0) -> None:
        self.at_s = 500.0
        self.creep_s = creep_s
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        self.at_s += self.creep_s
        return self.at_s

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.at_s += seconds


def test_the_true_clock_passes_the_checks_of_every_clock() -> None:
    clock = WallClock()
    assert isinstance(clock, Clock)
    check_clock(clock)


def test_time_begins_where_it_is_set() -> None:
    hands = Hands()
    clock = WallClock(7.0, monotonic=hands.monotonic, pause=hands.pause)
    assert clock.now_s() == pytest.approx(7.0)
    clock.wait_until(9.5)
    assert clock.now_s() == pytest.approx(9.5)
    assert hands.pauses == pytest.approx([2.5])
    clock.wait_until(1.0)
    assert len(hands.pauses) == 1
    clock.set(3.0)
    assert clock.now_s() == pytest.approx(3.0)


def test_a_pause_that_ends_early_is_taken_up_again() -> None:
    hands = Hands()
    clock = WallClock(monotonic=hands.monotonic, pause=lambda seconds: hands.pause(seconds / 2 + 1e-6))
    clock.wait_until(1.0)
    assert clock.now_s() >= 1.0
    assert len(hands.pauses) > 5


def test_tasks_run_side_by_side_and_keep_their_order() -> None:
    meet = threading.Barrier(3, timeout=5.0)

    def task(number: int) -> int:
        meet.wait()  # passes only when all three are under way
        return number

    assert WallClock().concurrently([lambda number=number: task(number) for number in range(3)]) == [0, 1, 2]
    assert WallClock().concurrently([]) == []


def test_a_failure_waits_for_the_others() -> None:
    failed, ended = threading.Event(), threading.Event()

    def fails() -> None:
        failed.set()
        raise ValueError("stuck")

    def lasts() -> None:
        assert failed.wait(5.0)
        ended.set()

    def fails_too() -> None:
        assert ended.wait(5.0)
        raise KeyError("later in the list")

    with pytest.raises(ValueError, match="stuck"):
        WallClock().concurrently([lasts, fails, fails_too])
    assert ended.is_set()


def test_a_node_adds_the_offset() -> None:
    hands = Hands()
    clock = NodeClock(monotonic=hands.monotonic, pause=hands.pause)
    assert clock.now_s() == clock.own_s() == 500.0
    clock.offset_s = -480.0
    assert clock.now_s() == pytest.approx(20.0)
    assert clock.own_s() == 500.0


def test_a_node_sleeps_all_but_the_last_millisecond() -> None:
    hands = Hands(creep_s=1e-5)
    clock = NodeClock(-500.0, monotonic=hands.monotonic, pause=hands.pause)
    clock.wait_until(0.2)
    assert hands.pauses == pytest.approx([0.199], abs=1e-4)
    assert 0.2 <= clock.now_s() < 0.2 + 5e-5
    clock.wait_until(0.1)
    assert len(hands.pauses) == 1


def test_a_node_is_on_time() -> None:
    """The best of several waits: a busy machine may disturb some of them, never make one early."""
    clock = NodeClock()
    late_s = []
    for _ in range(20):
        at_s = clock.now_s() + 3e-3
        clock.wait_until(at_s)
        late_s.append(clock.now_s() - at_s)
    assert min(late_s) >= 0
    assert min(late_s) < 2e-4
    assert time.monotonic() - clock.own_s() < 1.0
