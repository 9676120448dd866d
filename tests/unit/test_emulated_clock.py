"""Emulated time passes when all wait, and only then."""

import threading

import pytest

from sim_backend.emulated_clock import EmulatedClock
from testbed.core.devices import Clock
from testbed.core.errors import DeviceError
from testbed.engine.checks import check_clock


class Emulators:
    """The time part of a control port."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.advanced: list[float] = []
        self.dead = False

    def ask(self, do: str, to_s: float = 0.0) -> dict[str, float]:
        if self.dead:
            raise DeviceError("gone")
        if do == "advance":
            self.advanced.append(to_s)
            self.now_s = max(self.now_s, to_s)
        return {"now_s": self.now_s}


@pytest.fixture
def emulators() -> Emulators:
    return Emulators()


@pytest.fixture
def clock(emulators: Emulators) -> EmulatedClock:
    return EmulatedClock(emulators)  # type: ignore[arg-type]


def test_it_is_a_clock_that_never_runs_back(clock: EmulatedClock) -> None:
    assert isinstance(clock, Clock)
    clock.wait_until(2.0)
    clock.wait_until(1.0)
    assert clock.now_s() == 2.0
    clock.set(5.0)
    assert clock.now_s() == 5.0


def test_tasks_take_turns_by_the_instants_they_wait_for(clock: EmulatedClock, emulators: Emulators) -> None:
    seen: list[tuple[str, float]] = []

    def task(name: str, *instants_s: float) -> str:
        for at_s in instants_s:
            clock.wait_until(at_s)
            seen.append((name, clock.now_s()))
        return name

    results = clock.concurrently([lambda: task("a", 0.3, 0.4, 1.0), lambda: task("b", 0.1, 0.35), lambda: task("c")])
    assert results == ["a", "b", "c"]
    assert seen == [("b", 0.1), ("a", 0.3), ("b", 0.35), ("a", 0.4), ("a", 1.0)]
    assert clock.now_s() == 1.0


def test_a_task_that_computes_holds_time_still(clock: EmulatedClock) -> None:
    computed = threading.Event()
    at_s: list[float] = []

    def compute() -> None:
        at_s.append(clock.now_s())
        threading.Timer(0.05, computed.set).start()
        assert computed.wait(5.0)
        at_s.append(clock.now_s())
        clock.wait_until(3.0)

    def move() -> None:
        clock.wait_until(2.0)
        assert computed.is_set(), "time passed while the other task computed"

    clock.concurrently([compute, move])
    assert at_s == [0.0, 0.0]
    assert clock.now_s() == 3.0


def test_side_by_side_inside_side_by_side(clock: EmulatedClock) -> None:
    seen: list[tuple[str, float]] = []

    def wait(name: str, at_s: float) -> None:
        clock.wait_until(at_s)
        seen.append((name, clock.now_s()))

    def moves() -> None:
        clock.concurrently([lambda: wait("x", 1.0), lambda: wait("y", 3.0)])
        wait("moved", 3.5)

    clock.concurrently([moves, lambda: wait("trained", 2.0)])
    assert seen == [("x", 1.0), ("trained", 2.0), ("y", 3.0), ("moved", 3.5)]


def test_the_first_failure_is_raised_when_all_have_ended(clock: EmulatedClock) -> None:
    ended: list[str] = []

    def fail(name: str, at_s: float) -> None:
        clock.wait_until(at_s)
        ended.append(name)
        raise ValueError(name)

    with pytest.raises(ValueError, match="first"):
        clock.concurrently([lambda: fail("first", 2.0), lambda: fail("second", 1.0)])
    assert ended == ["second", "first"]
    clock.wait_until(4.0)
    assert clock.now_s() == 4.0


def test_dead_emulators_and_a_closed_clock_end_every_wait(clock: EmulatedClock, emulators: Emulators) -> None:
    emulators.dead = True
    with pytest.raises(DeviceError, match="gone"):
        clock.concurrently([lambda: clock.wait_until(1.0), lambda: clock.wait_until(2.0)])
    emulators.dead = False
    clock.close()
    clock.close()
    with pytest.raises(DeviceError, match="closed"):
        clock.wait_until(9.0)


def test_the_common_check(clock: EmulatedClock, emulators: Emulators) -> None:
    check_clock(clock)
    before_s = emulators.now_s
    clock.set(0.0)
    clock.wait_until(1.0)
    assert clock.now_s() == pytest.approx(1.0)
    assert emulators.now_s == pytest.approx(before_s + 1.0), "the emulators' world does not run back"
