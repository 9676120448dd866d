"""`--backend lab` on emulated devices as a lab would use it, and everything that can end a run.

The emulators run in a process of their own, in real time; what counts is what their control port says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drivers.leases import Leases
from sim_backend.control_client import ControlClient
from testbed.engine.recorder import read_rows
from tests.child import ROOT
from tests.system import small_runs

TESTBED = (sys.executable, "-m", "testbed")
DEAD_MAN_S = 1.0
MARGIN_S = 2.0
"""What a busy machine may add."""
BENCH = f"""
name = "lab-test"
carrier_hz = 2.44e9
sample_rate_hz = 4e6
room_m = [3.0, 2.0, 2.5]

[radio]
trigger = "network"
start_jitter_s = 1e-2

[array]
origin_m = [1.5, 1.0, 1.0]
axes = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
region_m = [[0.0, 0.06], [0.0, 0.06]]
min_spacing_m = 0.0

[[array.radios]]
uri = "{{receiver-0}}"
gain_db = 30.0

[[array.antennas]]
home_m = [0.01, 0.01]

[array.antennas.stage]
speed_m_s = 0.05
acceleration_m_s2 = 0.1
settle_s = 0.05

[array.antennas.stage.device]
driver = "grbl"
port = "{{stage-0}}"

[[nodes]]
name = "node-00"
max_power_dbm = -10.0
radio = {{{{ uri = "{{node-00}}" }}}}

[[nodes]]
name = "node-01"
max_power_dbm = -10.0
radio = {{{{ uri = "{{node-01}}" }}}}

[limits]
frequencies_hz = [[2.4e9, 2.4835e9]]
max_power_dbm = 0.0
max_speed_m_s = 0.05
dead_man_s = {DEAD_MAN_S}

[world]
path_loss_exponent = 2.0
noise_figure_db = 7.0
"""
_GLANCE = threading.Event()


def until(happened: Callable[[], object], within_s: float) -> bool:
    """Whether it happens within so long."""
    deadline_s = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > deadline_s:
            return False
        _GLANCE.wait(0.01)
    return True


@dataclass
class Lab:
    """Emulated devices, the bench file that names them, and the folder of leases."""

    folder: Path
    environment: dict[str, str]
    control: ControlClient
    file: Path

    def state(self) -> dict[str, Any]:
        """What is true."""
        state: dict[str, Any] = self.control.ask("state")
        return state

    @property
    def stage(self) -> dict[str, Any]:
        """The stage's state."""
        stage: dict[str, Any] = self.state()["stages"]["stage-0"]
        return stage

    def quiet(self) -> bool:
        """Nothing radiates, nothing moves."""
        state = self.state()
        radiates = any(each["radiated_dbm"] is not None for each in state["radios"].values())
        return not radiates and not any(each["moving"] for each in state["stages"].values())

    def loaded(self) -> bool:
        """A node has a burst in its radio."""
        return any(each["buffers"] for name, each in self.state()["radios"].items() if name.startswith("node"))

    def lose_position(self) -> None:
        """At the next word to the stage, so that the next run homes."""
        self.control.ask("fault", device="stage-0", kind="brown-out")

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command, to its end."""
        return subprocess.run(
            [*TESTBED, *words], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180
        )


@dataclass
class Run:
    """A run in processes of its own; `until` waits on it."""

    lab: Lab
    process: subprocess.Popen[bytes]
    out: Path
    mark: bytes
    left: list[int] = field(default_factory=list)

    @property
    def printed(self) -> str:
        """What it printed so far."""
        return (self.out / "printed").read_text()

    @property
    def run_folder(self) -> Path:
        """The folder that it records in."""
        return next(path for path in self.out.iterdir() if path.is_dir())

    def rows(self) -> int:
        """Complete rounds, the one before the first included."""
        return sum(len(path.read_text().splitlines()) for path in self.out.glob("*/rounds.jsonl"))

    def processes(self, words: str = "") -> list[int]:
        """Its living processes whose command line holds these words."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (folder / "environ").read_bytes().split(b"\0"):
                    living = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
                    if living and words.encode() in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
            except OSError:
                continue  # it has ended meanwhile
        return found

    def reaches(self, phase: str) -> None:
        """Wait until it is there."""
        phases: dict[str, Callable[[], object]] = {
            "homing": lambda: self.lab.stage["state"] == "Home" and self.lab.stage["moving"],
            "loading": lambda: "load model" in self.printed,
            "moving": lambda: self.rows() >= 1 and self.lab.stage["moving"],
            "sending": lambda: self.rows() >= 1 and self.lab.loaded(),
        }
        assert until(lambda: phases[phase]() or self.process.poll() is not None, 120.0), self.printed
        assert self.process.poll() is None, self.printed

    def signal(self, number: signal.Signals, words: Sequence[str]) -> None:
        """Send it to the processes whose command lines hold one of these words."""
        for pid in [pid for word in words for pid in self.processes(word)]:
            os.kill(pid, number)

    def ended(self, within_s: float = 20.0) -> int:
        """The exit code, when neither a process nor a lease of it is left."""
        assert until(lambda: self.process.poll() is not None and not self.processes(), within_s), self.processes()
        assert Leases(self.lab.folder / "leases").held() == ()
        return int(self.process.returncode)


CONTROLLER, NODES, WATCHDOGS = "--yes-transmit", "--exit-with-parent", "drivers.watchdog"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    names = ("receiver-0", "node-00", "node-01")
    plain = folder / "plain.toml"
    plain.write_text(BENCH.format_map({**dict.fromkeys(names, "ip:192.168.2.1"), "stage-0": "/dev/ttyUSB0"}))
    environment = {**os.environ, "TESTBED_LEASES": str(folder / "leases"), "COLUMNS": "120"}
    command = [*TESTBED, "emulate", str(plain), "--links", str(folder / "links"), "--exit-with-parent"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(6)]
        places = {line[0]: line[1] for line in lines if len(line) > 1}
        assert lines[-1][0] == "Ctrl-C"
        places["stage-0"] = str(folder / "links" / "stage-0")
        file = folder / "lab.toml"
        file.write_text(BENCH.format_map(places))
        control = ControlClient(places["control"])
        yield Lab(folder, environment, control, file)
        control.close()


@pytest.fixture
def start(lab: Lab, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts runs, and sees that nothing of them outlives the test."""
    runs: list[Run] = []

    def begin(*more: str, rounds: int = 50) -> Run:
        changes = [one for one in small_runs.CHANGES if not one.startswith(("bench.", "rounds="))]
        scheme = f"scheme={{name='{Path(__file__).with_name('wandering.py')}:Wandering', payload='int8'}}"
        words = [word for one in (*changes, scheme, f"rounds={rounds}") for word in ("--set", one)]
        out = tmp_path / f"run-{len(runs)}"
        out.mkdir()
        mark = f"TESTBED_TEST_RUN={out}"
        command = [*TESTBED, "run", "quickstart-digital", "--bench", str(lab.file), "--backend", "lab"]
        command += ["--node-processes", "1", "--out", str(out), "--yes-transmit", *words, *more]
        # who runs the tests in the background of a shell ignores interrupts, and a child would inherit that
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with (out / "printed").open("wb") as printed:
            process = subprocess.Popen(
                command,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env={**lab.environment, "TESTBED_TEST_RUN": str(out)},
                cwd=ROOT,
                start_new_session=True,
            )
        signal.signal(signal.SIGINT, before)
        runs.append(Run(lab, process, out, mark.encode()))
        return runs[-1]

    yield begin
    lab.control.ask("clear")
    for run in runs:
        run.signal(signal.SIGKILL, [""])
        run.process.wait()


def test_what_a_user_sees_before_anything_radiates(lab: Lab) -> None:
    doctor = lab.command("doctor", str(lab.file))
    assert doctor.returncode == 0, doctor.stdout
    assert "serial emulated-node-01" in doctor.stdout
    assert "GRBL 1.1h" in doctor.stdout
    shy = lab.command("run", "quickstart-digital", "--bench", str(lab.file), "--backend", "lab")
    assert shy.returncode == 2
    announced = shy.stderr.splitlines()
    assert announced[1].startswith("radiates: 2 transmitters of up to -10 dBm each, 2438 to 2442 MHz, about 0.")
    assert announced[2] == "moves:    1 stage, homed first where needed, then 0 m in all, at 0.05 m/s"
    assert announced[3] == f"stop it:  testbed stop {lab.file}"
    assert "--yes-transmit" in announced[4]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_stage_that_homes_stops_with_its_controller(
    lab: Lab, start: Callable[..., Run], number: signal.Signals
) -> None:
    lab.lose_position()
    run = start()
    run.reaches("homing")
    run.signal(number, [CONTROLLER])
    assert until(lab.quiet, DEAD_MAN_S + MARGIN_S if number == signal.SIGSTOP else MARGIN_S)
    code = run.ended(2 * DEAD_MAN_S + 10.0)
    assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert lab.stage["state"] == "Alarm", "nobody may think that it knows where it is"


def test_an_interrupt_stops_a_move_at_once_and_the_run_goes_on(lab: Lab, start: Callable[..., Run]) -> None:
    run = start(rounds=1)
    run.reaches("moving")
    assert "stay near the stop button" in run.printed
    run.process.send_signal(signal.SIGINT)
    assert until(lab.quiet, 0.6), "before the node processes are waited for"
    assert run.ended() == 130, run.printed
    rows = read_rows(run.run_folder)
    assert json.loads((run.run_folder / "summary.json").read_text())["status"] == "interrupted"
    lab.lose_position()
    resumed = lab.command("resume", str(run.run_folder), "--node-processes", "1", "--yes-transmit")
    assert resumed.returncode == 0, resumed.stderr
    after = read_rows(run.run_folder)
    assert after[: len(rows)] == rows
    assert after[1]["participants"] == ["node-00", "node-01"]
    assert after[1]["travel_m"] == pytest.approx(2 * 0.04 * 2**0.5, abs=1e-4)
    assert lab.quiet()


def test_node_processes_that_are_killed_end_the_run(lab: Lab, start: Callable[..., Run]) -> None:
    run = start()
    run.reaches("sending")
    run.signal(signal.SIGKILL, [NODES])
    assert until(lab.quiet, MARGIN_S)
    assert run.ended() == 4, run.printed
    assert "to go on" in run.printed
    assert read_rows(run.run_folder)


def test_watchdogs_that_are_killed_end_the_run_and_are_named(lab: Lab, start: Callable[..., Run]) -> None:
    lab.lose_position()
    run = start()
    run.reaches("homing")
    run.signal(signal.SIGKILL, [WATCHDOGS])
    assert until(lab.quiet, MARGIN_S)
    assert run.ended() == 4
    assert "error: the dead man's process is gone" in run.printed


def test_the_emergency_stop_needs_nobody_else(lab: Lab, start: Callable[..., Run]) -> None:
    """Controller and watchdog are frozen, and the controller holds the stage's port."""
    lab.lose_position()
    run = start()
    run.reaches("homing")
    run.signal(signal.SIGSTOP, [WATCHDOGS, CONTROLLER])
    stopped = lab.command("stop", str(lab.file))
    assert lab.quiet()
    assert lab.stage["state"] == "Alarm"
    assert stopped.returncode == 4
    assert "what the dead man of" in stopped.stderr
    assert "past the program that holds its port" in stopped.stderr
    assert stopped.stderr.count("stopped      radio") == 3


def test_a_bench_has_one_run_until_it_is_taken_away(lab: Lab, start: Callable[..., Run]) -> None:
    lab.lose_position()
    first = start()
    first.reaches("homing")
    second = start()
    assert until(lambda: second.process.poll() is not None, 20.0)
    assert second.process.returncode == 4
    assert "add --steal-leases to the command" in second.printed
    assert first.process.poll() is None
    third = start("--steal-leases")
    assert until(lambda: first.process.poll() is not None, 30.0), "it was not ended"
    # it is told by a signal, and finds its lease gone: whichever comes first
    assert first.process.returncode in (4, 143)
    third.reaches("loading")
    assert not first.processes()
    assert ("the lease of bench lab-test was lost" in first.printed) or ("interrupted" in first.printed)
    log = (lab.folder / "leases" / "log.jsonl").read_text().splitlines()
    assert any("stolen by" in line and str(first.out) in line for line in log)
    third.process.send_signal(signal.SIGTERM)
    assert third.ended() == 143


def test_a_radio_that_restarts_in_the_middle_of_a_round(lab: Lab, start: Callable[..., Run]) -> None:
    run = start()
    run.reaches("sending")
    lab.control.ask("fault", device="node-00", kind="brown-out")
    assert run.ended(30.0) == 4, run.printed
    assert lab.quiet()
    assert "node-00" in run.printed
    assert "settings had changed and were set anew" in run.printed
