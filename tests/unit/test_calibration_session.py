"""Calibrations on the simulated bench: whole, cut off, held, failed; and that none of it changes what comes out."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import session
from calibration.begun import announcement, job_of, jobs_for
from calibration.fingerprint import VALIDITY
from calibration.names import ROUTINES, names_of, routine_named
from calibration.pause import Pause
from calibration.profile import Profile
from calibration.routine import Fit, Quantity
from calibration.session import Outcome, Watcher, calibrate, resume
from calibration.store import PROFILE, START, Store
from nodes.worker import Worker
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.devices import Devices
from testbed.core.errors import BenchError, ConfigError, DeviceError, ProtocolError, RadioFault
from tests.benches import small_bench
from tests.loopback import LocalLink
from tests.tiny_routine import Tiny

TINY = "tests.tiny_routine:Tiny"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Diary(Watcher):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.at_step: dict[int, Callable[[], None]] = {}

    def began(self, routine: str, folder: Path, done: int, total: int) -> None:
        self.words.append(f"{routine} {done}/{total}")

    def step_started(self, index: int, step: Mapping[str, Any]) -> None:
        self.words.append(f"step {index}")
        self.at_step.get(index, lambda: None)()

    def paused(self) -> None:
        self.words.append("paused")

    def goes_on(self) -> None:
        self.words.append("goes on")

    def skipped(self, routine: str, why: str) -> None:
        self.words.append(f"skipped {routine}: {why}")

    def ended(self, profile: Profile) -> None:
        self.words.append(f"{profile.routine} {'passed' if profile.passed else 'failed'}")


def open_here(bench: BenchSpec, **asked: Any) -> Devices:
    """The simulated bench with its nodes in this process."""
    devices: Devices = resolve(backend("sim").bench)(bench, **{**asked, "node_processes": 0})
    devices.link.close()
    worker = Worker(say=lambda answer, arrays: None, should_stop=lambda: False)
    link = LocalLink(worker, bench.node_names)

    def close() -> None:
        link.close()
        devices.close()

    return replace(devices, link=link, close=close)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(session, "resolve", lambda _: open_here)
    return Store(tmp_path / "calibrations")


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Let an error strike before step so-and-so is measured."""

    def arm(index: int, error: BaseException) -> None:
        def strike(step: int) -> None:
            if step == index:
                monkeypatch.setattr(Tiny, "before_step", None)
                raise error

        monkeypatch.setattr(Tiny, "before_step", staticmethod(strike))

    return arm


def measure(store: Store, *settings: str, bench: BenchSpec | None = None, **changes: Any) -> Outcome:
    asked: dict[str, Any] = {"seed": 3, "store": store, "now": lambda: NOW, **changes}
    return calibrate(TINY, bench or small_bench(), settings=settings, **asked)


def same(one: Profile, other: Profile) -> bool:
    """All but name and place."""
    return one.model_dump(exclude={"id"}) == other.model_dump(exclude={"id"})


def test_a_calibration_leaves_profile_raw_data_and_report(store: Store) -> None:
    diary = Diary()
    outcome = measure(store, "repeats=1", watcher=diary)
    (profile,), (folder,) = outcome.profiles, outcome.folders
    assert outcome.passed
    assert diary.words == ["tiny 0/3", "step 0", "step 1", "step 2", "tiny passed"]
    assert store.read(folder) == profile
    assert profile.serials["receiver"] == "simulated-small-3"
    assert profile.serials["node-02"] == "simulated-small-3-node-02"
    assert profile.validity.frequency_hz == small_bench().carrier_hz
    assert profile.validity.array is None
    assert (profile.made, profile.expires) == (NOW, NOW + timedelta(hours=1))
    assert profile.options == {"repeats": 1, "least_w": 0.0, "refuse": False}
    assert len(profile.raw) == 3
    with np.load(folder / profile.raw[0]) as file:
        told = json.loads(str(file["step"]))
        heard_w = np.mean(np.abs(file["samples"]) ** 2)
    assert (told["step"]["node"], told["step"]["two"]) == ("node-00", [1, 2])
    assert profile.values["node-00.heard"].value == pytest.approx(float(heard_w), rel=1e-6)
    assert "Power heard" in (folder / "report.html").read_text()
    found = store.find(
        small_bench(), "tiny", backend="sim", seed=3, serials=profile.serials, now=NOW + timedelta(minutes=1)
    )
    assert found == profile


def test_what_was_cut_off_goes_on_to_the_same_profile(
    store: Store, interrupt: Callable[[int, BaseException], None]
) -> None:
    whole = measure(store).profiles[0]
    for index, error in ((4, RadioFault("lost")), (1, KeyboardInterrupt())):
        interrupt(index, error)
        with pytest.raises(type(error)) as struck:
            measure(store)
        (folder,) = store.unfinished()
        assert struck.value.__notes__ == [
            f"raw data  {folder}\nto go on  testbed calibrate tiny --resume {folder.name}"
        ]
        assert len(list((folder / "raw").glob("*.npz"))) == index
        diary = Diary()
        outcome = resume(folder.name, store=store, watcher=diary, now=lambda: NOW)
        assert diary.words[:2] == [f"tiny {index}/6", f"step {index}"]
        assert same(outcome.profiles[0], whole)
        assert not store.unfinished()


def test_what_is_held_goes_on_to_the_same_profile(store: Store) -> None:
    whole = measure(store, "repeats=1").profiles[0]
    diary = Diary()

    def hold() -> None:
        os.kill(os.getpid(), signal.SIGTSTP)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTSTP)).start()

    diary.at_step[1] = hold
    before = signal.getsignal(signal.SIGTSTP)
    held = measure(store, "repeats=1", watcher=diary).profiles[0]
    assert diary.words == ["tiny 0/3", "step 0", "step 1", "paused", "goes on", "step 2", "tiny passed"]
    assert same(held, whole)
    assert signal.getsignal(signal.SIGTSTP) == before


def test_a_pause_that_is_taken_back_does_not_hold() -> None:
    pause, words = Pause(), []
    pause.turn()
    pause.turn()
    pause.hold(lambda: words.append("begins"), lambda: words.append("ends"))
    assert words == []


def test_a_failed_fit_keeps_everything_and_says_so(store: Store) -> None:
    outcome = measure(store, "repeats=1", "least_w=1")
    assert not outcome.passed
    profile = store.read(outcome.folders[0])
    assert not profile.passed
    assert profile.why.startswith("a node is heard with")
    assert len(list((outcome.folders[0] / "raw").glob("*.npz"))) == 3
    assert "failed" in (outcome.folders[0] / "report.html").read_text()
    with pytest.raises(ConfigError, match="is complete"):
        resume(profile.id, store=store)


def test_a_fit_that_no_profile_can_hold_keeps_the_raw_data(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as bad:
        bad.setattr(Tiny, "fit", lambda *_: Fit({"h": Quantity(1j, "1", 0.0)}, True, ""))
        with pytest.raises(ProtocolError, match="the fit of tiny gives what no profile can hold"):
            measure(store, "repeats=1")
    (folder,) = store.unfinished()
    assert resume(folder.name, store=store).passed


def test_what_never_measured_leaves_nothing_to_go_on_with(
    store: Store, interrupt: Callable[[int, BaseException], None]
) -> None:
    interrupt(0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as struck:
        measure(store)
    assert not getattr(struck.value, "__notes__", [])
    assert not store.unfinished()


def test_bad_questions_open_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "resolve", lambda _: pytest.fail("a bench is opened"))
    questions: dict[str, Callable[[], Any]] = {
        "there is no calibration 'carier'\n.*did you mean carrier": lambda: calibrate(
            "carier", small_bench(), store=store
        ),
        "cannot be loaded": lambda: calibrate("tests.tiny_routine:Absent", small_bench(), store=store),
        "is no calibration: it has no name": lambda: calibrate("tests.tiny_routine:TinyOptions", small_bench()),
        "repeat": lambda: measure(store, "repeat=2"),
        "repeats": lambda: measure(store, "repeats=0"),
        "there is no backend": lambda: measure(store, backend="air"),
        "nobody said that it may": lambda: measure(store, backend="lab"),
        "there is no calibration '2099": lambda: resume("2099", store=store),
    }
    for error, ask in questions.items():
        with pytest.raises(ConfigError, match=error):
            ask()
    assert not store.profiles()


def begun(store: Store, interrupt: Callable[[int, BaseException], None]) -> Path:
    """A calibration that was cut off after two steps."""
    interrupt(2, DeviceError("gone"))
    with pytest.raises(DeviceError):
        measure(store)
    return store.unfinished()[0]


def rewritten(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / START).read_text())
    (folder / START).write_text(json.dumps({**content, **changes}))


def test_other_radios_do_not_go_on(store: Store, interrupt: Callable[[int, BaseException], None]) -> None:
    folder = begun(store, interrupt)
    rewritten(folder, serials={"receiver": "simulated-small-3", "node-00": "another"})
    with pytest.raises(DeviceError, match="node-00 was another") as refused:
        resume(folder.name, store=store)
    assert "to go on" in refused.value.__notes__[0]


def test_a_routine_that_changed_does_not_go_on(store: Store, interrupt: Callable[[int, BaseException], None]) -> None:
    folder = begun(store, interrupt)
    rewritten(folder, seed=4, serials={})
    with pytest.raises(ConfigError, match="step 0 would be another one"):
        resume(folder.name, store=store)
    rewritten(folder, options={"repeats": 0})
    with pytest.raises(ConfigError, match="no longer what they were"):
        resume(folder.name, store=store)
    rewritten(folder, bench={"name": "small"})
    with pytest.raises(ConfigError, match="this version can go on with"):
        resume(folder.name, store=store)
    rewritten(folder, colour="red")
    with pytest.raises(ConfigError, match="this version can go on with"):
        resume(folder.name, store=store)


def test_node_processes_make_no_difference(
    store: Store, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[int, BaseException], None]
) -> None:
    whole = measure(store, "repeats=1").profiles[0]
    monkeypatch.setattr(session, "resolve", resolve)
    interrupt(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        measure(store, "repeats=1", node_processes=1)
    outcome = resume(store.unfinished()[0].name, node_processes=1, store=store, now=lambda: NOW)
    assert same(outcome.profiles[0], whole)
    assert (outcome.folders[0] / "devices" / "nodes-0.log").is_file()


def test_the_drivers_of_real_devices_make_no_difference_either(
    store: Store, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[int, BaseException], None]
) -> None:
    monkeypatch.setattr(session, "resolve", resolve)
    interrupt(1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        measure(store, "repeats=1", backend="emulated", node_processes=1)
    (profile,) = resume(store.unfinished()[0].name, node_processes=1, store=store, now=lambda: NOW).profiles
    assert (profile.passed, profile.backend, len(profile.raw)) == (True, "emulated", 3)
    assert profile.serials["receiver-0"] == "emulated-receiver-0-3"
    assert profile.serials["node-02"] == "emulated-node-02-3"
    monkeypatch.undo()
    simulated = Store(store.root)
    assert getattr(simulated.find(small_bench(), "tiny", backend="sim", seed=3, serials=None, now=NOW), "kind", "") == (
        "other bench"
    )


# all ------------------------------------------------------------------------------------------------------------------


class Bell(Tiny):  # a routine of another name
    name = "bell"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were two calibrations."""
    monkeypatch.setattr("calibration.names.ROUTINES", {"bell": f"{__name__}:Bell", "tiny": TINY})
    monkeypatch.setattr("calibration.begun.names_of", lambda name: ("bell", "tiny") if name == "all" else (name,))


def all_of(store: Store, *settings: str, **changes: Any) -> Outcome:
    asked: dict[str, Any] = {"seed": 3, "store": store, "now": lambda: NOW, **changes}
    return calibrate("all", small_bench(), settings=("bell.repeats=1", "tiny.repeats=1", *settings), **asked)


def test_all_goes_through_the_table_in_one_opening(store: Store, two: None) -> None:
    diary = Diary()
    outcome = all_of(store, watcher=diary)
    assert [profile.routine for profile in outcome.profiles] == ["bell", "tiny"]
    assert [word for word in diary.words if "step" not in word] == [
        "bell 0/3", "bell passed", "tiny 0/3", "tiny passed"
    ]  # fmt: skip
    assert [folder.parent.name for folder in outcome.folders] == ["bell", "tiny"]


def test_all_passes_over_what_a_bench_cannot_have_and_goes_on_after_a_failure(store: Store, two: None) -> None:
    diary = Diary()
    outcome = all_of(store, "bell.refuse=true", "tiny.least_w=1", watcher=diary)
    assert outcome.skipped == {"bell": "this bench has no bells"}
    assert "skipped bell: this bench has no bells" in diary.words
    assert [(profile.routine, profile.passed) for profile in outcome.profiles] == [("tiny", False)]
    assert not store.unfinished()
    with pytest.raises(ConfigError, match="no bells"):
        calibrate(f"{__name__}:Bell", small_bench(), settings=["refuse=true"], store=store)


def test_all_goes_on_with_what_was_to_follow(
    store: Store, two: None, interrupt: Callable[[int, BaseException], None]
) -> None:
    whole = all_of(store)
    for index in (0, 1):
        interrupt(index, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt) as struck:
            all_of(store)
        (folder,) = store.unfinished()
        assert f"testbed calibrate bell --resume {folder.name}" in struck.value.__notes__[0]
        outcome = resume(folder.name, store=store, now=lambda: NOW)
        assert len(outcome.profiles) == 2
        assert all(same(one, other) for one, other in zip(outcome.profiles, whole.profiles, strict=True))


def test_settings_for_all_name_their_routine(two: None) -> None:
    jobs = jobs_for("all", ["tiny.repeats=7"])
    assert [job.plain_options["repeats"] for job in jobs] == [2, 7]
    for bad in ("repeats=7", "gong.repeats=7"):
        with pytest.raises(ConfigError, match="which calibration"):
            jobs_for("all", [bad])


def test_the_names_of_all_are_the_table() -> None:
    assert names_of("all") == tuple(ROUTINES)[:-1]
    for name in ROUTINES:
        routine = routine_named(name)
        assert routine.name == name
        assert routine.about
        assert set(routine.validity) <= set(VALIDITY)
        assert job_of(name, routine.Options().model_dump(mode="json")).options == routine.Options()
    assert names_of("iq") == ("iq",)
    assert isinstance(routine_named(TINY), Tiny)


def test_a_real_bench_is_told_before_it_moves() -> None:
    text = announcement(TINY, small_bench(), [], "small.toml")
    assert "up to 6 steps" in text
    assert "3 transmitters of up to 10 dBm each, 2447.5 to 2452.5 MHz" in text
    assert "2 stages" in text
    assert "testbed stop small.toml" in text


def test_a_bench_that_does_not_open_is_not_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise DeviceError("no power")

    monkeypatch.setattr(session, "resolve", lambda _: broken)
    with pytest.raises(BenchError, match="no power"):
        measure(store)
    assert not store.unfinished()
    assert not list(store.root.rglob(PROFILE))
