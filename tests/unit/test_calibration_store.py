"""Where profiles lie, which one a run may use, and why none where there is none."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.fingerprint import bench_sha256, validity_of
from calibration.profile import Profile, StoredQuantity
from calibration.raw_steps import Facts, checked_raw, plain_step, read_steps, step_files, write_step
from calibration.store import PROFILE, START, Kind, Reason, Store, alone, calibrations_folder, renewal
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError, ProtocolError
from tests.benches import small_bench

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SERIALS = {"receiver": "r-1", "node-00": "n-0"}


def stored(store: Store, bench: BenchSpec, made: datetime = NOW, **changes: Any) -> Profile:
    """A profile of the bench in the store."""
    folder = store.create(bench.name, changes.get("routine", "tiny"), made)
    (folder / START).write_text("{}")
    content: dict[str, Any] = {
        "id": folder.name,
        "routine": "tiny",
        "options": {},
        "bench": bench.name,
        "bench_sha256": bench_sha256(bench, "sim"),
        "backend": "sim",
        "seed": 1,
        "serials": SERIALS,
        "validity": validity_of(("frequency_hz", "sample_rate_hz", "gain", "array"), bench),
        "made": made,
        "expires": made + timedelta(hours=1),
        "values": {"a": StoredQuantity(value=1.0, unit="1", std=0.1)},
        "passed": True,
        "why": "",
    }
    profile = Profile.model_validate({**content, **changes})
    store.write_profile(folder, profile)
    return profile


def find(store: Store, bench: BenchSpec, **changes: Any) -> Profile | Reason:
    """As a run that begins ten minutes later asks."""
    asked = {"backend": "sim", "seed": 1, "serials": SERIALS, "now": NOW + timedelta(minutes=10), **changes}
    return store.find(bench, "tiny", **asked)


def test_the_newest_profile_that_holds_is_found(tmp_path: Path) -> None:
    store, bench = Store(tmp_path), small_bench()
    stored(store, bench, NOW - timedelta(minutes=20))
    wanted = stored(store, bench, NOW)
    stored(store, bench, NOW + timedelta(minutes=1), passed=False)
    stored(store, small_bench(name="other"), NOW + timedelta(minutes=2))
    stored(store, bench, NOW + timedelta(minutes=3), routine="other")
    assert find(store, bench) == wanted
    assert find(store, bench, serials=None) == wanted
    assert find(store, bench, serials={"receiver": "r-1"}) == wanted


@pytest.mark.parametrize(
    ("kind", "now", "ask", "told"),
    [
        ("expired", {}, {"now": NOW + timedelta(hours=2)}, "expired on 2026-03-01 13:00 UTC"),
        ("other radio", {}, {"serials": {**SERIALS, "node-00": "n-9"}}, "node-00 was n-0 and is n-9"),
        ("other radio", {}, {"serials": {**SERIALS, "node-07": "n-7"}}, "node-07 came new"),
        ("other radio", {}, {"seed": 2}, "seed 1, not of seed 2"),
        ("other bench", {}, {"backend": "emulated"}, "was made on the backend sim"),
        ("other bench", {"nodes": [{"count": 2}]}, {}, "other radios or another world"),
        ("other carrier", {"carrier_hz": 2.41e9}, {}, "holds at 2450 MHz, the bench is at 2410 MHz"),
        ("other rate", {"sample_rate_hz": 4e6}, {}, "holds at 5 MHz, the bench samples at 4 MHz"),
        ("other array", {"array": {"origin_m": [0, 0, 0]}}, {}, "another place of antennas"),
    ],
)
def test_a_profile_that_does_not_hold_says_why_and_how_it_is_renewed(
    tmp_path: Path, kind: Kind, now: dict[str, Any], ask: dict[str, Any], told: str
) -> None:
    store, bench = Store(tmp_path), small_bench()
    made = stored(store, bench)
    if "array" in now:
        now = {"array": {**bench.array.model_dump(mode="json"), **now["array"]}}
    reason = find(store, small_bench(**now), **ask)
    assert isinstance(reason, Reason)
    assert told in reason.text
    assert reason.kind == kind
    assert reason.id == made.id
    assert reason.command.startswith("testbed calibrate tiny --bench small --backend")
    assert str(reason.error()).endswith(f"remedy: calibrate: {reason.command}")


def test_another_gain_of_the_same_radios_is_another_gain(tmp_path: Path) -> None:
    def bench(gain_db: float) -> BenchSpec:
        array = small_bench().array.model_dump(mode="json")
        return small_bench(array={**array, "radios": [{"gain_db": gain_db}] * 3})

    store = Store(tmp_path)
    stored(store, bench(40.0))
    assert isinstance(find(store, bench(40.0)), Profile)
    reason = find(store, bench(50.0))
    assert isinstance(reason, Reason)
    assert reason.kind == "other gain"


def test_a_profile_holds_whatever_it_does_not_depend_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored(store, small_bench(), validity=validity_of((), small_bench()))
    assert isinstance(find(store, small_bench(carrier_hz=2.41e9, sample_rate_hz=4e6)), Profile)


def test_of_several_reasons_the_nearest_is_told(tmp_path: Path) -> None:
    store, bench = Store(tmp_path), small_bench()
    assert find(store, bench) == Reason(
        "missing",
        "there is no calibration tiny of small",
        "testbed calibrate tiny --bench small --backend sim --seed 1",
    )
    stored(store, bench, NOW - timedelta(hours=5))
    stored(store, small_bench(carrier_hz=2.41e9))
    stored(store, bench, backend="lab")
    reason = find(store, bench, bench_file="my bench.toml")
    assert isinstance(reason, Reason)
    assert reason.kind == "expired"
    assert reason.command == "testbed calibrate tiny --bench 'my bench.toml' --backend sim --seed 1"
    stored(store, bench, NOW - timedelta(hours=4), passed=False, why="no signal")
    reason = find(store, bench)
    assert isinstance(reason, Reason)
    assert (reason.kind, reason.text) == ("failed", "the calibration tiny of small failed: no signal")


def test_real_benches_are_renewed_with_consent_and_have_no_seed(tmp_path: Path) -> None:
    assert renewal("desk", "iq", backend="lab", seed=3).endswith("--backend lab --yes-transmit")
    store, bench = Store(tmp_path), small_bench()
    stored(store, bench, backend="lab", bench_sha256=bench_sha256(bench, "lab"))
    assert isinstance(find(store, bench, backend="lab", seed=99), Profile)


def test_ids_sort_by_time_and_never_collide(tmp_path: Path) -> None:
    store, made = Store(tmp_path), []
    lock = threading.Lock()

    def create() -> None:
        for _ in range(20):
            folder = store.create("small", "tiny", NOW)
            with lock:
                made.append(folder)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 80
    later = store.create("a bench / with signs", "tiny", NOW + timedelta(seconds=1))
    assert later.parent.parent.name == "a-bench-with-signs"
    assert later.name > max(folder.name for folder in made)
    assert store.create("..", "tiny", NOW).is_relative_to(tmp_path / "-")


def test_profiles_appear_whole_while_they_are_written(tmp_path: Path) -> None:
    store, bench = Store(tmp_path), small_bench()
    made = stored(store, bench)
    folder = store.locate(made.id)
    ended = threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        while not ended.is_set():
            try:
                store.profiles("small")
            except ConfigError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        store.write_profile(folder, made)
    ended.set()
    reader.join()
    assert not failures
    assert [path.name for path in folder.iterdir()] != []
    assert not list(folder.glob("*.partial"))


def test_a_calibration_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    store, bench = Store(tmp_path), small_bench()
    one, two = stored(store, bench), stored(store, bench, NOW + timedelta(seconds=1))
    assert store.locate(one.id[:15]).name == one.id
    assert store.locate(two.id).name == two.id
    with pytest.raises(ConfigError, match=f"several.*{one.id}, {two.id}"):
        store.locate("2026")
    for absent in ("2027", "", "../small"):
        with pytest.raises(ConfigError, match="there is no calibration"):
            store.locate(absent)


def test_damage_is_named_by_its_file_and_other_formats_are_passed_over(tmp_path: Path) -> None:
    store, bench = Store(tmp_path), small_bench()
    made = stored(store, bench)
    path = store.locate(made.id) / PROFILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 2}))
    assert store.profiles() == ()
    assert getattr(find(store, bench), "kind", None) == "missing"
    with pytest.raises(ConfigError, match="format"):
        store.read(path.parent)
    path.write_text(json.dumps({**content, "passed": "perhaps"}))
    with pytest.raises(ConfigError, match=r"profile.json: passed: this is no profile"):
        find(store, bench)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"profile.json: the file cannot be read"):
        store.profiles()


def test_only_one_process_works_on_a_calibration(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ConfigError, match="under way in another process"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made.*\n.*TESTBED_CALIBRATIONS"):
        Store(tmp_path / "file").create("small", "tiny", NOW)


def test_unfinished_calibrations_are_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored(store, small_bench())
    folder = store.create("small", "tiny", NOW + timedelta(seconds=5))
    assert store.unfinished() == ()
    (folder / START).write_text("{}")
    assert store.unfinished("small") == (folder,)
    assert store.unfinished("other") == ()


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("TESTBED_CALIBRATIONS", raising=False)
    assert calibrations_folder() == tmp_path / "testbed/calibrations"
    monkeypatch.setenv("TESTBED_CALIBRATIONS", "~/elsewhere")
    assert Store().root == Path.home() / "elsewhere"


# raw data -------------------------------------------------------------------------------------------------------------


def facts(index: int) -> Facts:
    return Facts(index, {"node": "a", "gains": [1.0, 2.0]}, 0.1 + index, [[0.0, 0.1]], NOW.isoformat(), "id", "tiny")


def test_raw_data_come_back_bit_for_bit(tmp_path: Path) -> None:
    raw = checked_raw({"x": np.arange(6, dtype=np.complex64).reshape(2, 3), "n": np.array(0.1), "empty": np.zeros(0)})
    for index in (0, 1):
        write_step(tmp_path, facts(index), raw)
    (tmp_path / "raw" / "00002.partial").write_bytes(b"cut off")
    back = read_steps(tmp_path)
    assert [one for one, _ in back] == [facts(0), facts(1)]
    for name, array in raw.items():
        assert back[1][1][name].dtype == array.dtype
        np.testing.assert_array_equal(back[1][1][name], array)
    assert len(step_files(tmp_path)) == 2


def test_steps_are_what_json_gives_back() -> None:
    step = {"a": np.float64(0.1), "b": (1, np.int64(2)), "c": np.arange(2), "d": {"e": "f"}}
    assert plain_step(step) == {"a": 0.1, "b": [1, 2], "c": [0, 1], "d": {"e": "f"}}
    for bad in ({"a": float("nan")}, {"a": 1j}, {"a": {1, 2}}):
        with pytest.raises(ProtocolError, match="cannot be written down"):
            plain_step(bad)


@pytest.mark.parametrize(
    "raw", [{"step": np.zeros(1)}, {"file": np.zeros(1)}, {"a": np.array([object()])}, {"a": np.array([{}, 1])}]
)
def test_raw_data_that_a_file_cannot_hold_are_refused(raw: dict[str, np.ndarray]) -> None:
    with pytest.raises(ProtocolError, match="cannot be kept"):
        checked_raw(raw)


def test_damaged_and_missing_raw_data_are_named(tmp_path: Path) -> None:
    paths = [write_step(tmp_path, facts(index), {"x": np.zeros(3)}) for index in range(3)]
    paths[1].unlink()
    with pytest.raises(ConfigError, match="step 1 is missing"):
        read_steps(tmp_path)
    paths[0].write_bytes(b"no zip")
    with pytest.raises(ConfigError, match=r"00000.npz: the raw data are damaged"):
        read_steps(tmp_path)
