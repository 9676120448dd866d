"""Carriages on one rail: the rail alone, then two drivers over emulated controllers."""

import threading
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest

from drivers.grbl import GrblStage
from drivers.rail import Carriage, Rail
from sim_backend.clock import VirtualClock
from sim_backend.emulators.grbl_firmware import GrblFirmware
from sim_backend.emulators.grbl_port import GrblPort
from sim_backend.emulators.grbl_settings import Eeprom
from sim_backend.emulators.timebase import Timebase
from testbed.core.bench import StageSpec
from testbed.core.errors import ConfigError, LimitError


class EventClock(VirtualClock):
    """Does something at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[float, Callable[[], object]]] = []

    def wait_until(self, at_s: float) -> None:
        for event in sorted(self.events, key=lambda event: event[0]):
            if event[0] <= at_s:
                self.events.remove(event)
                super().wait_until(event[0])
                event[1]()
        super().wait_until(at_s)


def rail_with(*places_m: float, clock: VirtualClock | None = None) -> list[Carriage]:
    rail = Rail("long", min_spacing_m=0.05, clock=clock or VirtualClock())
    carriages = [rail.add(f"stage-{index}", StageSpec()) for index in range(len(places_m))]
    for carriage, place_m in zip(carriages, places_m, strict=True):
        carriage.stands_at(place_m)
    return carriages


def test_a_clear_way_is_taken_at_once():
    clock = VirtualClock()
    first, second = rail_with(0.1, 0.5, clock=clock)
    with first.way([0.1, 0.45]):
        pass
    with second.way([0.5, 0.9]):
        pass
    assert clock.now_s() == 0.0


@pytest.mark.parametrize("points_m", [[0.1, 0.46], [0.1, 0.48, 0.4], [0.1, 0.7]])
def test_nobody_is_pushed(points_m):
    first, _ = rail_with(0.1, 0.5)
    with pytest.raises(LimitError, match="stage-0 was not moved: stage-1 stands in its way"), first.way(points_m):
        raise AssertionError("it moved")


def test_a_way_waits_for_the_neighbour_that_clears_it():
    clock = EventClock()
    first, second = rail_with(0.1, 0.2, clock=clock)
    with ExitStack() as under_way:
        under_way.enter_context(second.way([0.2, 0.6]))
        clock.events.append((3.0, under_way.close))
        with first.way([0.1, 0.5]):
            assert clock.now_s() == pytest.approx(3.0, abs=0.06)


def test_changing_places_is_refused_before_anything_waits():
    clock = VirtualClock()
    first, second = rail_with(0.1, 0.4, clock=clock)
    with (
        second.way([0.4, 0.3]),
        pytest.raises(LimitError, match="would have to pass each other"),
        first.way([0.1, 0.35]),
    ):
        raise AssertionError("it moved")
    assert clock.now_s() == 0.0
    with second.way([0.3, 0.2]):
        pass


def test_the_neighbour_may_be_sent_away_later():
    clock = EventClock()
    first, second = rail_with(0.1, 0.2, clock=clock)
    with ExitStack() as under_way:
        clock.events.append((0.5, lambda: under_way.enter_context(second.way([0.2, 0.6]))))
        clock.events.append((3.0, under_way.close))
        with first.way([0.1, 0.5]):
            assert clock.now_s() == pytest.approx(3.0, abs=0.06)


def test_a_refused_way_leaves_no_trace():
    first, second = rail_with(0.1, 0.4)
    with pytest.raises(LimitError), first.way([0.1, 0.9]):
        pass
    with second.way([0.4, 0.2]):
        pass


def test_an_unknown_neighbour_forbids_every_move():
    first, second = rail_with(0.1, 0.9)
    second.lost()
    unknown = r'where stage-1 stands on rail "long" is not known\s+remedy: home stage-1'
    with pytest.raises(LimitError, match=unknown), first.way([0.1, 0.2]):
        pass
    second.stands_at(0.9)
    with first.way([0.1, 0.2]):
        pass


def test_homing_waits_until_the_others_stand_and_keeps_them_so():
    clock = EventClock()
    first, second = rail_with(0.1, 0.9, clock=clock)
    with ExitStack() as under_way:
        under_way.enter_context(first.way([0.1, 0.3]))
        clock.events.append((2.0, under_way.close))
        second.search()
    assert clock.now_s() == pytest.approx(2.0, abs=0.06)
    clock.events.append((5.0, lambda: second.stands_at(1.0)))
    with first.way([0.3, 0.4]):
        assert clock.now_s() == pytest.approx(5.0, abs=0.06)


def test_a_failed_move_keeps_its_whole_way():
    first, second = rail_with(0.1, 0.6)
    with pytest.raises(ZeroDivisionError), first.way([0.1, 0.4]):
        raise ZeroDivisionError
    with pytest.raises(LimitError, match=r"between 0.1000 m and 0.4000 m"), second.way([0.6, 0.42]):
        pass
    first.stands_at(0.1)
    with second.way([0.6, 0.42]):
        pass


def test_carriages_may_be_mounted_the_other_way_round():
    rail = Rail("long", min_spacing_m=0.05, clock=VirtualClock())
    first = rail.add("stage-0", StageSpec(origin_m=(0.0, 0.0)))
    second = rail.add("stage-1", StageSpec(origin_m=(1.0, 0.0), rotation_deg=180.0))
    first.stands_at(0.1)
    second.stands_at(0.7)  # 0.3 m along the rail
    with first.way([0.1, 0.25]):
        pass
    with pytest.raises(LimitError, match=r"between 0.3000 m"), first.way([0.25, 0.26]):
        pass


def test_a_carriage_across_the_rail():
    rail = Rail("long", min_spacing_m=0.05, clock=VirtualClock())
    rail.add("stage-0", StageSpec())
    with pytest.raises(ConfigError, match='stage-1 is not parallel to the other carriages of rail "long"'):
        rail.add("stage-1", StageSpec(rotation_deg=45.0))


def test_two_drivers_keep_their_distance():
    """Both go right, then both go left; the one that comes first has to wait each time."""
    timebase = Timebase()
    clock = VirtualTime(timebase)
    rail = Rail("long", min_spacing_m=0.05, clock=clock)
    with ExitStack() as opened:
        opened.callback(timebase.close)
        ports, stages = [], []
        for index, place_m in enumerate((0.1, 0.25)):
            eeprom = Eeprom.for_stage(
                travel_m=(0.52, 0.01, 0.01), speed_m_s=0.4, acceleration_m_s2=2.0, hard_limits=True
            )
            eeprom.settings[23] = 1 - index  # the left one homes at the left end
            port = GrblPort(f"stage-{index}", GrblFirmware(eeprom), timebase)
            opened.callback(port.close)
            spec = StageSpec(
                speed_m_s=0.4,
                acceleration_m_s2=2.0,
                device={"port": port.url, "axes": "x", "rail": "long", "machine_zero_m": (-0.519, 0.0)},
            )
            stage = GrblStage(
                spec,
                region_m=((0.0, 0.5), (0.0, 0.0)),
                home_m=(place_m, 0.0),
                clock=clock,
                rail=rail,
                name=f"stage-{index}",
            )
            opened.callback(stage.close)
            stage.connect()
            ports.append(port)
            stages.append(stage)
        together([stage.make_ready for stage in stages])
        least = Watch(timebase, ports)
        together([lambda: stages[0].move_to(np.array([0.3, 0.0])), lambda: stages[1].move_to(np.array([0.4, 0.0]))])
        together([lambda: stages[0].move_to(np.array([0.05, 0.0])), lambda: stages[1].move_to(np.array([0.1, 0.0]))])
        assert least.spacing_m == pytest.approx(0.05, abs=1e-4)
        with pytest.raises(LimitError, match="stands in its way"):
            stages[0].move_to(np.array([0.2, 0.0]))
        np.testing.assert_allclose(stages[0].position_m, [0.05, 0.0], atol=1e-5)


class VirtualTime(VirtualClock):
    """The emulators' time as a run's clock."""

    def __init__(self, timebase: Timebase) -> None:
        super().__init__()
        self.timebase = timebase

    def now_s(self) -> float:
        return self.timebase.now_s()

    def wait_until(self, at_s: float) -> None:
        self.timebase.advance(at_s)


class Watch:
    """The smallest distance that two carriages ever had, looked at whenever time passes."""

    def __init__(self, timebase: Timebase, ports: list[GrblPort]) -> None:
        self.ports = ports
        self.spacing_m = np.inf
        timebase.add(self)

    def settle(self, now_s: float) -> None:
        first_m, second_m = (port.position_m[0] for port in self.ports)
        self.spacing_m = min(self.spacing_m, second_m - first_m)

    def next_event_s(self, now_s: float) -> float | None:
        return None


def together(tasks: list[Callable[[], object]]) -> None:
    failures: list[BaseException] = []

    def carry_out(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=carry_out, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    if failures:
        raise failures[0]
