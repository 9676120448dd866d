"""The command line: arguments, output, errors and exit codes, with a stand-in for the engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli_tables import row

from drivers.emergency import StopReport
from drivers.findings import Finding
from testbed.cli import main
from testbed.core.errors import (
    BenchError,
    DeviceError,
    LimitError,
    LinkTimeout,
    ProtocolError,
    RadioFault,
    ReplayDeparture,
    StageFault,
)
from testbed.engine import dry, experiment
from testbed.engine.experiment import RunResult
from testbed.engine.observe import Observer
from testbed.engine.signals import Terminated
from testbed.schemes import SCHEMES

SUMMARY = {
    "name": "short", "status": "done", "scheme": "fedavg", "seed": 0, "loss_before": 4.5, "loss_after": 4.3,
    "perplexity_after": 73.7, "accuracy_after": None, "air_time_s": 0.03, "latency_s": 37.5, "energy_j": 90.0,
    "travel_m": 1.5, "adapter": "adapter",
}  # fmt: skip


class Engine:
    """Remembers what it was asked, plays three rounds to the observer, and leaves a run folder behind."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.error: BaseException | None = None

    def run(self, spec: Any, scheme: Any, bench: Any, *, out: Path, observer: Observer, **options: Any) -> RunResult:
        self.asked = {"spec": spec, "scheme": scheme, "bench": bench, "out": out, **options}
        return self._play(out / "short-1", observer)

    def replay(self, folder: Path, observer: Observer) -> RunResult:
        self.asked = {"folder": folder}
        return self._play(folder, observer)

    def resume(self, folder: Path, *, observer: Observer, **options: Any) -> RunResult:
        self.asked = {"folder": folder, **options}
        return self._play(folder, observer)

    def _play(self, folder: Path, observer: Observer) -> RunResult:
        rows = [row(0), row(1), row(2)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "start.json").write_text("{}")
        observer.phase("opening the bench")
        observer.run_started(folder, 2)
        with (folder / "rounds.jsonl").open("w") as file:
            for figures in rows:
                observer.round_started(figures["round"])
                observer.node_progress("node-00", "training", 0.5)
                if self.error is not None and figures["round"] == 2:
                    raise self.error
                file.write(json.dumps(figures) + "\n")
                file.flush()
                observer.round_ended(figures)
        observer.run_ended(SUMMARY)
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
        return RunResult(folder, dict(SUMMARY), rows)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    """A stand-in engine; the current folder is an empty one."""
    stand_in = Engine()
    monkeypatch.setattr(experiment, "run_experiment", stand_in.run)
    monkeypatch.setattr(experiment, "replay_experiment", stand_in.replay)
    monkeypatch.setattr(experiment, "resume_experiment", stand_in.resume)
    monkeypatch.chdir(tmp_path)
    return stand_in


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command; exit code, standard output, standard error."""

    def go(*words: str) -> tuple[int, str, str]:
        code = main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return go


def test_run_prints_the_table_and_where_the_run_is(engine: Engine, call: Call, experiment_file: Path) -> None:
    code, out, err = call("run", str(experiment_file))
    assert code == 0
    assert out.splitlines()[0].split()[:2] == ["round", "loss"]
    assert out.splitlines()[-2:] == ["done: runs/short-1", "adapter: runs/short-1/adapter"]
    assert err.splitlines() == [
        "opening the bench",
        "round 0/2  loss 4.5000",
        "round 1/2  loss 4.4000  8 nodes  error -20.0 dB",
        "round 2/2  loss 4.3000  8 nodes  error -20.0 dB",
    ]


def test_run_hands_its_options_to_the_engine(engine: Engine, call: Call, experiment_file: Path) -> None:
    code, _, _ = call(
        "run", str(experiment_file), "--backend", "sim", "--bench", "fixed", "--out", "elsewhere", "--seed", "5",
        "--set", "rounds=9", "--set", "bench.world.num_paths=2", "--node-processes", "3",
    )  # fmt: skip
    assert code == 0
    assert (engine.asked["spec"].seed, engine.asked["spec"].rounds) == (5, 9)
    assert (engine.asked["bench"].name, engine.asked["bench"].world.num_paths) == ("fixed", 2)
    assert (engine.asked["out"], engine.asked["node_processes"]) == (Path("elsewhere"), 3)


def test_json_is_all_there_is_on_standard_output(engine: Engine, call: Call, experiment_file: Path) -> None:
    code, out, err = call("run", str(experiment_file), "--json")
    content = json.loads(out)
    assert (code, err) == (0, "")
    assert content["summary"] == SUMMARY
    assert [figures["round"] for figures in content["rounds"]] == [0, 1, 2]
    assert content["folder"] == "runs/short-1"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BenchError("b"), 1),
        (LimitError("l", remedy="r"), 3),
        (DeviceError("d"), 4),
        (LinkTimeout("t"), 4),
        (StageFault("s"), 4),
        (RadioFault("r"), 4),
        (ProtocolError("p"), 5),
        (ReplayDeparture("x"), 6),
        (ZeroDivisionError("unexpected"), 1),
    ],
)
def test_errors_have_their_exit_codes(
    engine: Engine, call: Call, experiment_file: Path, error: Exception, code: int
) -> None:
    engine.error = error
    got, out, err = call("run", str(experiment_file))
    assert got == code
    assert out == ""
    assert "Traceback" not in err
    assert "to go on    testbed resume runs/short-1" in err
    got, out, err = call("run", str(experiment_file), "--json")
    assert got == code
    assert json.loads(out)["error"]["exit_code"] == code


def test_an_error_is_one_block_with_its_remedy(engine: Engine, call: Call, experiment_file: Path) -> None:
    engine.error = LimitError("too far", file="bench.toml", key="array.region_m", remedy="stay inside")
    _, _, err = call("run", str(experiment_file))
    assert "error: bench.toml: array.region_m: too far\n       stay inside\n" in err


def test_a_traceback_is_shown_on_request(
    engine: Engine, call: Call, experiment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_DEBUG", "1")
    engine.error = ZeroDivisionError("unexpected")
    assert "Traceback" in call("run", str(experiment_file))[2]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (Terminated(signal.SIGTERM), 143)])
def test_an_interrupted_run_says_how_it_goes_on(
    engine: Engine, call: Call, experiment_file: Path, error: BaseException, code: int
) -> None:
    engine.error = error
    got, out, err = call("run", str(experiment_file))
    assert got == code
    assert out == ""
    assert "interrupted; everything is still and mute" in err
    assert "testbed resume runs/short-1" in err
    assert json.loads(call("run", str(experiment_file), "--json")[1])["error"]["exit_code"] == code


def test_all_errors_of_a_file_are_shown(engine: Engine, call: Call, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("rounds = 0\n")
    code, out, err = call("run", str(bad))
    assert (code, out) == (2, "")
    assert err.count("error: ") == 3
    assert f"{bad}:1: rounds: 0 is out of range" in err
    assert engine.asked == {}
    keys = [one["key"] for one in json.loads(call("run", str(bad), "--json")[1])["error"]["errors"]]
    assert keys == ["name", "rounds", "scheme"]


@pytest.mark.parametrize(
    "words",
    [
        ["run"], ["run", "quickstart", "--foo"], ["nope"], ["run", "quickstart", "--seed", "x"], ["run", "a", "b"],
        ["run", "quickstart", "--seed", "-1"], ["run", "quickstart", "--backend", "fpga"], ["run", "nope"],
        ["run", "quickstart", "--node-processes", "-1"], ["run", "quickstart", "--set", "rounds"], ["node"],
        ["node", "--connect", "tcp://127.0.0.1:1"], ["show", "nope"], ["show", "."], ["replay", "nope"],
        ["resume", "nope"], ["run", "gsm8k"], ["--foo"], ["node", "--connect", "udp://x", "--id", "a"],
        ["node", "--connect", "tcp://127.0.0.1:1", "--id", "a", "--bench", "nope"],
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused(engine: Engine, call: Call, words: list[str]) -> None:
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert engine.asked == {}
    assert not Path("runs").exists()


def test_without_a_command_the_help_is_shown(call: Call) -> None:
    code, out, _ = call()
    assert code == 2
    assert "Usage: testbed" in out


@pytest.mark.parametrize("command", [[], ["run"], ["dry"], ["replay"], ["resume"], ["show"], ["node"], ["pretrain"]])
def test_every_command_has_help(call: Call, command: list[str]) -> None:
    code, out, _ = call(*command, "--help")
    assert code == 0
    assert "Usage:" in out


def test_the_help_lists_the_exit_codes(call: Call) -> None:
    out = call("--help")[1]
    assert all(f" {code}  " in out for code in (0, 1, 2, 3, 4, 5, 6, 130, 143))


def test_show_reads_a_run_and_compares_two(engine: Engine, call: Call, experiment_file: Path) -> None:
    table = call("run", str(experiment_file), "--out", "one")[1]
    call("run", str(experiment_file), "--out", "two")
    assert call("show", "one/short-1")[1] == table
    assert call("show", "one")[1] == table
    assert json.loads(call("show", "one", "--json")[1])["summary"] == SUMMARY
    code, out, _ = call("show", "one", "--against", "two")
    assert code == 0
    assert "mean aggregation error" in out
    compared = json.loads(call("show", "one", "--against", "two", "--json")[1])["comparison"]
    assert {"name": "loss after", "unit": "nats", "run": 4.3, "against": 4.3, "difference": 0.0} in compared


def test_show_of_a_run_that_is_not_complete(engine: Engine, call: Call, experiment_file: Path) -> None:
    engine.error = DeviceError("gone")
    call("run", str(experiment_file))
    code, out, _ = call("show", "runs")
    assert code == 0
    assert "running, or cut off: runs/short-1" in out


def test_replay_and_resume_reach_the_engine(engine: Engine, call: Call, experiment_file: Path) -> None:
    call("run", str(experiment_file))
    code, out, _ = call("replay", "runs")
    assert (code, engine.asked) == (0, {"folder": Path("runs/short-1")})
    assert out.splitlines()[-1] == "every decision is the recorded one: runs/short-1"
    assert call("resume", "runs/short-1", "--node-processes", "2")[0] == 0
    assert engine.asked == {
        "folder": Path("runs/short-1"), "node_processes": 2, "yes_transmit": False, "steal_leases": False
    }  # fmt: skip


def test_a_real_bench_is_announced_before_it_is_opened(engine: Engine, call: Call) -> None:
    words = ("run", "quickstart-digital", "--bench", "desk", "--backend", "lab", "--set", "rounds=2")
    code, _, err = call(*words, "--yes-transmit", "--record-wire", "--steal-leases")
    assert code == 0
    assert all(engine.asked[option] for option in ("yes_transmit", "record_wire", "steal_leases"))
    announced = err[: err.index("opening the bench")]
    assert "radiates: 2 transmitters of up to -10 dBm each, 2438 to 2442 MHz" in announced
    assert "moves:    1 stage, homed first where needed" in announced
    assert "testbed stop desk" in announced


def test_doctor_and_stop_end_with_what_they_found(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("ok", "pyserial 3.5"), Finding("warn", "no libiio", "apt-get install libiio0")]
    monkeypatch.setattr("drivers.doctor.check", lambda bench: findings)
    code, out, _ = call("doctor")
    assert code == 0
    assert "apt-get install libiio0" in out
    findings.append(Finding("fail", "nothing answers at ip:192.0.2.1", "check its power"))
    assert call("doctor", "desk")[0] == 4
    assert json.loads(call("doctor", "--json")[1])["findings"][2]["remedy"] == "check its power"
    reports = [StopReport(("radio ip:a",), {}), StopReport((), {"radio ip:b": "no answer"})]
    monkeypatch.setattr("drivers.emergency.stop_bench", lambda bench: reports[0])
    assert call("stop", "desk")[:2] == (0, "stopped      radio ip:a\n")
    reports.reverse()
    code, _, err = call("stop", "desk")
    assert code == 4
    assert "NOT STOPPED  radio ip:b" in err


def test_dry_prints_orders(engine: Engine, call: Call, experiment_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = dry.DryStep(0, 1, "Move 4 antennas", 2.5, 0.0, 1.0, 30.0, "times are estimates")
    monkeypatch.setattr(dry, "dry_experiment", lambda *_: [step])
    code, out, _ = call("dry", str(experiment_file))
    assert code == 0
    assert "Move 4 antennas" in out
    content = json.loads(call("dry", str(experiment_file), "--json")[1])
    assert content["steps"][0]["order"] == "Move 4 antennas"


def test_lists_of_schemes_presets_and_keys(call: Call) -> None:
    assert "ota-fedavg" in call("schemes")[1]
    assert set(json.loads(call("schemes", "--json")[1])) == set(SCHEMES)
    assert "quickstart" in call("presets")[1]
    assert Path(json.loads(call("presets", "--json")[1])["bench"]["tabletop"]).is_file()
    assert json.loads(call("config-schema")[1])["title"]


def test_a_node_is_served(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import nodes.agent

    served: list[Any] = []
    monkeypatch.setattr(nodes.agent, "serve", lambda *words, **options: served.append((words, options)))
    code, _, _ = call(
        "node", "--connect", "tcp://127.0.0.1:5", "--id", "a", "--id", "b", "--bench", "fixed", "--exit-with-parent"
    )
    ((words, options),) = served
    assert code == 0
    assert (words[0], list(words[1])) == ("tcp://127.0.0.1:5", ["a", "b"])
    assert options["bench"].name == "fixed"
    assert options["exit_with_parent"] is True


ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONWARNINGS", "TESTBED_DEBUG")}


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from testbed.cli import main; main(['--help'])\n"
        "print(sorted({'torch', 'numpy', 'zmq'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_controller_never_imports_torch() -> None:
    code = (
        "import sys; from testbed.cli import main\n"
        "import testbed.engine.experiment, testbed.engine.dry, testbed.engine.config_schema\n"
        "main(['schemes']); print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "testbed", "run", "nope"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: there is no experiment preset 'nope'")


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "testbed", "config-schema"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_faults_are_ordered_by_address_or_run(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = []

    class Control:
        def __init__(self, address: str) -> None:
            self.address = address

        def ask(self, do: str, **facts: Any) -> Any:
            asked.append((self.address, do, facts))
            return {"faults": [{"device": "node-00", "kind": "stall", "count": 2, "after": 1}]}

        def close(self) -> None:
            asked.append((self.address, "close", {}))

    monkeypatch.setattr("sim_backend.control_client.ControlClient", Control)
    code, out, _ = call("fault", "127.0.0.1:9", "node-00", "stall", "--seconds", "2", "--count", "2", "--after", "1")
    assert code == 0
    assert out.split() == ["node-00", "stall", "left:", "2", "after:", "1"]
    assert [(address, do) for address, do, _ in asked] == [("127.0.0.1:9", do) for do in ("fault", "faults", "close")]
    assert asked[0][2]["seconds"] == 2.0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "start.json").write_text("{}")
    code, _, err = call("fault", str(tmp_path / "run"))
    assert code == 2
    assert "this run has no emulators" in err
    (tmp_path / "run" / "emulators.json").write_text('{"control": "127.0.0.1:8"}')
    asked.clear()
    assert call("fault", str(tmp_path / "run"), "--clear")[0] == 0
    assert [(address, do) for address, do, _ in asked] == [("127.0.0.1:8", do) for do in ("clear", "faults", "close")]
