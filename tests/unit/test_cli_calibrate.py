"""The command `testbed calibrate`: words, output, progress and exit codes."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from calibration import session
from calibration.store import Store
from nodes.worker import Worker
from testbed.cli import main
from testbed.cli.calibration_progress import CalibrationProgress, step_words
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.devices import Devices
from tests.benches import small_bench
from tests.loopback import LocalLink
from tests.tiny_routine import Tiny

TINY = "tests.tiny_routine:Tiny"
Call = Callable[..., tuple[int, str, str]]


def open_here(bench: BenchSpec, **asked: Any) -> Devices:
    """The simulated bench with its nodes in this process."""
    from dataclasses import replace

    devices: Devices = resolve(backend("sim").bench)(bench, **{**asked, "node_processes": 0})
    devices.link.close()
    link = LocalLink(Worker(say=lambda *_: None, should_stop=lambda: False), bench.node_names)

    def close() -> None:
        link.close()
        devices.close()

    return replace(devices, link=link, close=close)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `testbed calibrate`; exit code, standard output, standard error. `small.toml` lies in the current folder."""
    monkeypatch.setenv("TESTBED_CALIBRATIONS", str(tmp_path / "calibrations"))
    monkeypatch.setattr(session, "resolve", lambda _: open_here)
    monkeypatch.chdir(tmp_path)
    table = small_bench().model_dump(mode="json", exclude_defaults=True)
    antennas = "".join(f"[[array.antennas]]\nhome_m = {one['home_m']}\n" for one in table["array"]["antennas"])
    Path("small.toml").write_text(
        f'name = "small"\n[[nodes]]\ncount = 3\n[array]\norigin_m = {table["array"]["origin_m"]}\n'
        f"region_m = {table['array']['region_m']}\nmin_spacing_m = 0.0625\n{antennas}"
    )

    def go(*words: str) -> tuple[int, str, str]:
        code = main(["calibrate", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return go


def tiny(call: Call, *words: str) -> tuple[int, str, str]:
    return call(TINY, "--bench", "small.toml", "--set", "repeats=1", *words)


def ids() -> list[str]:
    return [profile.id for profile in Store().profiles()]


def test_a_calibration_prints_its_profile(call: Call) -> None:
    code, out, err = tiny(call, "--seed", "5")
    assert code == 0
    assert err.splitlines()[0] == "opening the bench"
    assert err.splitlines()[-1] == "tiny: passed"
    lines = out.splitlines()
    assert lines[0] == f"calibration  tiny {ids()[0]}"
    assert lines[1] == "verdict      passed: limited by the receiver's noise"
    assert "seed 5" in lines[2]
    assert re.search(r"^node-02\.heard +-\d+\.\d+ +0 +dBm$", out, re.MULTILINE)
    assert lines[-2].startswith("report: ")
    assert Path(lines[-2].removeprefix("report: ")).is_file()


def test_json_is_all_there_is_on_standard_output(call: Call) -> None:
    code, out, err = tiny(call, "--json")
    content = json.loads(out)
    assert (code, err, content["skipped"]) == (0, "", {})
    assert content["profiles"][0]["profile"]["passed"] is True
    assert Path(content["profiles"][0]["folder"]).is_dir()


def test_a_failed_fit_ends_with_code_4_and_says_where_the_raw_data_are(call: Call) -> None:
    code, out, err = tiny(call, "--set", "least_w=1")
    assert code == 4
    assert "FAILED: a node is heard with" in out
    assert "failed tiny: a node is heard with" in err
    assert err.splitlines()[-1] == f"raw data are kept: {Store().locate(ids()[0])}"
    assert tiny(call, "--set", "least_w=1", "--json")[0] == 4


def test_an_interrupted_calibration_names_the_command_that_goes_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(index: int) -> None:
        if index == 2:
            monkeypatch.setattr(Tiny, "before_step", None)
            raise KeyboardInterrupt

    monkeypatch.setattr(Tiny, "before_step", staticmethod(strike))
    code, out, err = tiny(call)
    assert (code, out) == (130, "")
    folder = Store().unfinished()[0]
    assert err.splitlines()[-3:] == [
        "interrupted; everything is still and mute",
        f"raw data  {folder}",
        f"to go on  testbed calibrate tiny --resume {folder.name}",
    ]
    code, out, _ = call("show")
    assert out.splitlines()[-1] == f"unfinished, 2 steps: testbed calibrate tiny --resume {folder.name}"
    code, out, _ = call("show", folder.name)
    assert code == 2
    code, _, err = call("iq", "--resume", folder.name)
    assert (code, "is a calibration tiny, not iq" in err) == (2, True)
    code, out, err = call("tiny", "--resume", folder.name)
    assert code == 0
    assert ids() == [folder.name]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((TINY,), "--bench: it does not say which bench"),
        (("carier", "--bench", "small.toml"), "there is no calibration 'carier'"),
        ((TINY, "--bench", "smal"), "there is no bench preset 'smal'"),
        ((TINY, "--bench", "small.toml", "--set", "repeat=2"), "repeat"),
        ((TINY, "--bench", "small.toml", "--set", "repeats=none"), "repeats"),
        ((TINY, "--bench", "small.toml", "--backend", "air"), "there is no backend 'air'"),
        ((TINY, "--bench", "small.toml", "--backend", "lab"), "nobody said that it may"),
        ((TINY, "--resume", "2099"), "there is no calibration '2099'"),
        ((TINY, "--resume", "2099", "--seed", "1"), "keeps its bench, options and seed"),
        (("show", "nonsense"), "there is no calibration 'nonsense'"),
        (("diff", "a", "b"), "there is no calibration 'a'"),
        (("diff", "a"), "Missing argument"),
        (("history", "small.toml", "tiny"), "there is no calibration tiny of small"),
    ],
)
def test_bad_questions_are_told_at_once(call: Call, words: tuple[str, ...], told: str) -> None:
    began = time.monotonic()
    code, out, err = call(*words)
    assert time.monotonic() - began < 3.0
    assert (code, out) == (2, "")
    assert told in err
    assert not list(Path("calibrations").rglob("*.json"))


def test_profiles_are_shown_by_bench_routine_and_id(call: Call) -> None:
    assert call("show")[1].startswith("no calibrations in ")
    tiny(call)
    tiny(call, "--set", "least_w=1")
    first, second = ids()
    table = call("show")[1].splitlines()
    assert table[2].split()[:3] == ["small", "tiny", second]
    assert table[2].split()[-1] == "failed"
    assert call("show", "small")[1].splitlines() == table
    assert call("show", "small.toml")[1].splitlines() == table
    Path("other.toml").write_text(Path("small.toml").read_text().replace("count = 3", "count = 4"))
    assert call("show", "other.toml")[1].splitlines()[2].endswith("other bench")
    for words in (("small", "tiny"), ("small.toml", second), (second,)):
        assert call("show", *words)[1].splitlines()[0] == f"calibration  tiny {second}"
    assert json.loads(call("show", first, "--json")[1])["profile"]["id"] == first
    listed = json.loads(call("show", "--json")[1])
    assert [one["id"] for one in listed["profiles"]] == [second]


def test_profiles_are_compared_and_their_history_told(call: Call) -> None:
    tiny(call)
    tiny(call, "--seed", "2")
    first, second = ids()
    code, out, _ = call("diff", first, second)
    assert code == 0
    assert "seed: 0  ->  2" in out.splitlines()
    assert re.search(r"^node-00\.heard .* dBm +inf$", out, re.MULTILINE)
    content = json.loads(call("diff", first, second, "--json")[1])
    assert content["values"]["node-00.heard"]["sigmas"] == "inf"
    code, out, _ = call("history", "small", "tiny")
    assert [line.split()[0] for line in out.splitlines()[2:4]] == [first, second]
    assert out.splitlines()[-1].count(" +- 0 dBm") == 2
    content = json.loads(call("history", "small", "tiny", "--json")[1])
    assert [one["id"] for one in content["profiles"]] == [first, second]


def test_the_calibrations_are_listed_with_their_options(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.listing.ROUTINES", {TINY: TINY})
    code, out, _ = call("list")
    assert code == 0
    assert "How loud each node is heard" in out
    assert "    repeats = 2                  captures of each node" in out
    assert json.loads(call("list", "--json")[1])[TINY]["options"]["repeats"]["default"] == 2


def test_the_help_names_what_there_is(call: Call) -> None:
    out = call("--help")[1]
    for word in ("NAME", "show", "diff", "history", "list"):
        assert re.search(rf"^. {word} ", out, re.MULTILINE)
    assert "--resume" in call("carrier", "--help")[1]
    assert "--resume" in call("NAME", "--help")[1]


# progress -------------------------------------------------------------------------------------------------------------


class Tick:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def __call__(self) -> float:
        return self.at_s


def test_elsewhere_than_on_a_terminal_a_line_tells_the_remaining_time_now_and_then() -> None:
    console, clock = Console(file=io.StringIO(), width=200), Tick()
    with CalibrationProgress(console=console, now_s=clock) as progress:
        progress.began("carrier", Path("there"), 20, 120)
        for index in range(20, 60):
            progress.step_started(index, {"node": "node-00"})
            clock.at_s += 1.0
            progress.step_ended(index)
        progress.paused()
        progress.goes_on()
        progress.skipped("axes", "no stages")
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "carrier: 100 steps at most, there",
        "carrier: 30/120, 90 s left",
        "carrier: 40/120, 80 s left",
        "carrier: 50/120, 70 s left",
        "carrier: 60/120, 60 s left",
        "held: nothing moves or radiates; Ctrl-Z goes on, Ctrl-C ends",
        "goes on",
        "axes: skipped, no stages",
    ]


def test_a_terminal_shows_a_bar_and_the_step() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=20, highlight=False)
    with CalibrationProgress(console=console) as progress:
        progress.began("carrier", Path("there"), 0, 8)
        progress.step_started(0, {"node": "[node]-00", "gain": 1e5})
        progress.step_ended(0)
        with console.capture() as captured:
            console.print(progress.display)
        assert "carrier" in captured.get()
        assert "1/8" in captured.get()
        assert "node [node]-00, gain 1e+05" in captured.get()


def test_a_quiet_display_says_nothing() -> None:
    console = Console(file=io.StringIO())
    with CalibrationProgress(quiet=True, console=console) as progress:
        progress.phase("opening the bench")
        progress.warning("careful")
        progress.began("carrier", Path("there"), 0, 8)
        progress.step_ended(0)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_step_is_put_into_words() -> None:
    assert (
        step_words({"node": "node-00", "gain": 123456.0, "at": [0.1, 0.2]})
        == "node node-00, gain 1.235e+05, at [0.1, 0.2]"
    )
    assert len(step_words({"positions": list(range(100))})) < 60
