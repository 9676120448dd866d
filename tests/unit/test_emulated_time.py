"""Emulated time, what is remembered of it, and faults."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from sim_backend.emulators.faults import STAGE_FAULTS, Fault, FaultPlan
from sim_backend.emulators.history import History, Track, Window
from sim_backend.emulators.timebase import Timebase
from testbed.core.errors import ConfigError


class Bell:
    """Rings at given times and notes when it was settled."""

    def __init__(self, *at_s: float) -> None:
        self._at_s = at_s
        self.settled_s: list[float] = []

    def settle(self, now_s: float) -> None:
        self.settled_s.append(now_s)

    def next_event_s(self, now_s: float) -> float | None:
        return min((at_s for at_s in self._at_s if at_s > now_s), default=None)


def test_virtual_time_stands_still_and_jumps_over_events_in_order() -> None:
    timebase, early, late = Timebase(), Bell(0.5, 2.0, 9.0), Bell(1.0)
    timebase.add(early)
    timebase.add(late)
    assert timebase.now_s() == 0.0
    assert timebase.advance(3.0) == 3.0
    assert early.settled_s == late.settled_s == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert timebase.advance(1.0) == timebase.now_s() == 3.0  # never back


def test_a_listener_that_was_removed_is_left_alone() -> None:
    timebase, bell = Timebase(), Bell(1.0)
    timebase.add(bell)
    timebase.add(bell)
    timebase.remove(bell)
    timebase.remove(bell)
    timebase.advance(2.0)
    assert bell.settled_s == []


def test_a_reader_makes_virtual_time_jump_unless_it_gives_up() -> None:
    timebase = Timebase()
    assert timebase.wait_until(4.0, lambda: False)
    assert timebase.now_s() == 4.0
    assert not timebase.wait_until(5.0, lambda: True)
    assert timebase.now_s() == 4.0


def test_real_time_passes_at_its_speed_and_settles_by_itself() -> None:
    timebase, rung = Timebase("real", speed=100.0), threading.Event()

    class Waiting(Bell):
        def settle(self, now_s: float) -> None:
            if now_s >= 5.0:
                rung.set()

    timebase.add(Waiting(5.0))
    began_s = time.monotonic()
    assert rung.wait(10.0)
    assert timebase.now_s() >= 5.0
    reached_s = timebase.advance(timebase.now_s() + 2.0)
    assert reached_s <= timebase.now_s()
    assert time.monotonic() - began_s < 5.0
    timebase.close()
    timebase.close()


def test_real_time_can_be_given_up_and_ends_every_wait() -> None:
    timebase = Timebase("real")
    patience = iter((False, False, False, True))
    assert not timebase.wait_until(1e6, lambda: next(patience))
    waiting = threading.Thread(target=timebase.advance, args=(1e6,))
    waiting.start()
    timebase.close()
    waiting.join(10.0)
    assert not waiting.is_alive()


@pytest.mark.parametrize("to_s", [float("nan"), float("inf")])
def test_time_goes_to_no_impossible_instant(to_s: float) -> None:
    with pytest.raises(ConfigError, match="time cannot be"):
        Timebase().advance(to_s)


def test_impossible_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="no time 'warp'"):
        Timebase("warp")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="speed of 0"):
        Timebase("real", speed=0.0)


def test_windows_count_samples_from_their_origin() -> None:
    window = Window(origin_s=2.0, first=10, count=5, rate_hz=10.0)
    assert (window.start_s, window.stop_s) == (3.0, 3.5)
    assert window.index(3.2) == 2
    assert window.index(2.9) == -1
    assert window.index(float("-inf")) < -(10**12) < 10**12 < window.index(float("inf"))
    assert window.part(1, 3) == Window(2.0, 11, 2, 10.0)
    assert window.following() == Window(2.0, 15, 5, 10.0)


def test_a_history_knows_what_held_when() -> None:
    history = History("a")
    history.record(1.0, "b")
    history.record(1.0, "c")  # nothing ever held for no time at all
    history.record(2.0, "c")
    history.record(3.0, "d")
    assert history.latest == "d"
    assert [value for *_, value in history.between(0.0, 4.0)] == ["a", "c", "d"]
    assert history.between(1.5, 1.6) == [(1.0, 3.0, "c")]
    history.forget_before(3.5)
    assert [value for *_, value in history.between(0.0, 4.0)] == ["d"]


def test_a_track_is_straight_between_looks_and_still_while_nothing_moves() -> None:
    here = np.array([[0.0, 0.0]])
    track = Track(lambda: here)
    assert not track.look(1.0)
    here = np.array([[0.2, 0.0]])
    assert track.look(2.0)
    assert not track.look(5.0)
    here = np.array([[0.4, 0.0]])
    assert track.look(6.0)
    seen = [float(track.at(at_s)[0, 0]) for at_s in (0.0, 1.0, 1.5, 2.0, 4.0, 5.0, 5.5, 6.0, 9.0)]
    np.testing.assert_allclose(seen, [0.0, 0.0, 0.1, 0.2, 0.2, 0.2, 0.3, 0.4, 0.4], atol=1e-12)
    assert track.at(2.5) is track.at(4.5)
    track.forget_before(5.5)
    assert float(track.at(5.75)[0, 0]) == pytest.approx(0.35)


def test_faults_strike_in_order_after_their_opportunities_and_so_often() -> None:
    plan = FaultPlan()
    plan.add("stall", seconds=0.5, after=1, count=2)
    plan.add("garbage", text="x")
    assert plan.take("stall") is None
    assert plan.take("garbage", "stall") == Fault("stall", seconds=0.5)
    assert plan.take("garbage") == Fault("garbage", text="x")
    assert plan.take("nan", "stall") == Fault("stall", seconds=0.5)
    assert plan.take("stall", "garbage") is None
    assert plan.pending() == []


def test_faults_can_be_seen_and_forgotten() -> None:
    plan = FaultPlan()
    plan.add("late-reply", seconds=1.0, after=2)
    assert plan.pending() == [{"kind": "late-reply", "seconds": 1.0, "value": 0.0, "text": "", "count": 1, "after": 2}]
    plan.clear()
    assert plan.pending() == []


@pytest.mark.parametrize(
    ("kind", "parameters", "word"),
    [
        ("earthquake", {}, "no fault 'earthquake'"),
        ("nan", {}, "no fault 'nan'"),
        ("stall", {"count": 0}, "strikes 0 times"),
        ("stall", {"after": -1}, "after -1"),
        ("stall", {"seconds": -1.0}, "-1.0 s"),
        ("stall", {"value": float("nan")}, "nan"),
    ],
)
def test_impossible_faults_are_refused(kind: str, parameters: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        FaultPlan(STAGE_FAULTS).add(kind, **parameters)  # type: ignore[arg-type]
