"""The ten tests that decide whether emulated hardware proves anything, and where each of them is.

====  ==================================================================================================================
No.   What, and where
====  ==================================================================================================================
1     Unmodified pyadi-iio against the emulators: `test_libiio_clients.test_pluto_hears_its_own_tone`,
      `..._two_channels_hear_their_own_tone`, `..._the_trigger_is_pyadis`. The same suite with both drivers:
      `tests/contract/test_emulated_devices.py`; each driver in depth: `tests/unit/test_pluto_native.py`, `..._adi.py`
2     Through Debian's real iiod as a proxy: `test_libiio_clients...through_the_real_iiod`, `test_native_iiod`, and
      both drivers here: `test_radios_through_the_real_iiod`
3     After a stall no attribute is ever misread: here, `test_after_a_stall_...`, with the trap itself beside it,
      `test_the_trap_that_a_stall_is`; every other fault of a link: `test_pluto_native.test_no_fault_of_the_link_...`
4     The first capture after a move is the new position's channel: here, `test_the_first_capture_...`, whole runs with
      both drivers; without the engine `test_pluto_native.test_no_capture_holds_anything_older_...`; and that emulated
      kernels do keep the past, `test_emulated_buffers.test_the_past_comes_first_after_a_move`
5     The recorded dialogue of the real GRBL: `test_emulated_grbl.test_the_dialogue_of_the_real_firmware`,
      `..._every_line_of_the_recording_is_reproduced`
6     SIGKILL in the middle of a round, resume, the same adapter bit for bit: here, `test_a_controller_killed_...`
7     The dead man mutes in time when its owner is frozen or killed: `test_emergency.test_a_cyclic_waveform_ends_...`,
      `test_watchdog`, and with both drivers here, `test_a_frozen_owner_is_mute_in_time`
8     A carrier step above 100 MHz while a transmit buffer lives is refused: here, `test_a_far_step_...`, both drivers
9     A second lease is refused: `test_leases.test_a_second_owner_is_told_everything`, `..._many_at_once_and_one_wins`;
      before a run opens anything: here, `test_a_bench_in_use_...`
10    An exception inside a run ends no process with a segmentation fault and leaves no buffer open: here,
      `test_an_exception_inside_a_run_...` and `test_an_exception_that_nobody_catches_...`, both drivers
====  ==================================================================================================================
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import drivers.pluto
from drivers.lab import open_bench
from drivers.leases import Leases, bench_resources
from drivers.pluto import AdiPort
from drivers.pluto_native import NativePort
from drivers.pluto_port import MUTED_DB, Burst, PlutoPort, PlutoSettings
from sim_backend.emulators.host import Emulators
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.errors import DeviceError, LimitError, RadioFault
from testbed.core.orders import Sounding
from testbed.engine.checks import check_radio
from testbed.engine.config import load_experiment
from testbed.engine.experiment import RunResult
from testbed.engine.recorder import read_rows, read_steps
from tests.child import Child
from tests.emulated_desk import Desk, bench_file, desk_bench, reached
from tests.system import small_runs
from tests.system.small_runs import run

TESTBED = (sys.executable, "-m", "testbed")
NODE = "node-00"
SETTINGS = PlutoSettings(2_450_000_000, 5_000_000, 5_000_000, 25.0, -3.0)
SET = replace(SETTINGS, xo_correction=40_000_000)
TONE = np.full((64, 2), 8192, np.int16)
NETWORK = {"trigger": "network", "start_jitter_s": 0.03}
DEAD_MAN_S = 0.8
MARGIN_S = 1.5

WITH_LIBIIO = importlib.util.find_spec("adi") is not None and find_library("iio") is not None
needs_libiio = pytest.mark.skipif(
    not WITH_LIBIIO,
    reason='needs: apt-get install -y libiio0 && pip install "pyadi-iio==0.0.21" "pylibiio==0.25"',
)
DRIVERS = ("native", "pyadi") if WITH_LIBIIO else ("native",)
"""Side by side in whole runs, which take long."""
both_drivers = pytest.mark.parametrize("driver", ["native", pytest.param("pyadi", marks=needs_libiio)])


@pytest.fixture
def emulators() -> Iterator[Emulators]:
    """One receiver and one node, in virtual time."""
    with Emulators(desk_bench()) as opened:
        yield opened


@pytest.fixture
def port(emulators: Emulators, driver: str) -> Iterator[PlutoPort]:
    """The node's radio."""
    uri = emulators.addresses["radios"][NODE]
    opened: PlutoPort = AdiPort(uri) if driver == "pyadi" else NativePort(uri, timeout_s=0.4)
    yield opened
    opened.close()


SCHEME = '''
from pathlib import Path

import numpy as np
from testbed.core.orders import move, sound
from testbed.core.scheme import Scheme


class Wanders(Scheme):
    """Sounds at home and at three other places."""

    def start(self, fleet, adapter):
        return fleet

    def round(self, state, rng):
        yield from sound()
        for away_m in ([0.02, 0.01], [-0.02, 0.02], [0.0, -0.02]):
            yield from move(state.array.home_m + np.array(away_m))
            yield from sound()
        return state


class Breaks(Scheme):
    """Sounds, moves, sounds, and divides by zero, but not in the rehearsal without devices that comes first."""

    def start(self, fleet, adapter):
        return fleet

    def round(self, state, rng):
        yield from sound()
        yield from move(state.array.home_m + 0.01)
        yield from sound()
        rehearsed = Path(__file__).with_name("rehearsed")
        if rehearsed.exists():
            1 / 0
        rehearsed.touch()
        return state
'''


def written(folder: Path, bench: BenchSpec, scheme: str) -> tuple[Path, list[str]]:
    """A bench file, and changes that make a run of the quickstart with this scheme take seconds."""
    (folder / "scheme.py").write_text(SCHEME)
    (folder / "bench.toml").write_text(bench_file(bench))
    kept = [change for change in small_runs.CHANGES if not change.startswith("bench.")]
    return folder / "bench.toml", [*kept, "rounds=1", f"scheme={{name='{folder / 'scheme.py'}:{scheme}'}}"]


# --- 2: through the real iiod -----------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[Callable[[str], str]]:
    """Starts Debian's iiod in front of a radio, and gives its uri."""
    started: list[subprocess.Popen[bytes]] = []

    def start(uri: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            place = free.getsockname()
        command = ["iiod", "-u", uri, "-p", str(place[1])]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 10.0
        while True:
            try:
                socket.create_connection(place, timeout=1.0).close()
            except OSError:
                assert started[-1].poll() is None, "iiod ended"
                assert time.monotonic() < deadline, "iiod does not answer"
            else:
                return f"ip:127.0.0.1:{place[1]}"

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(shutil.which("iiod") is None, reason="needs: apt-get install -y iiod")
@both_drivers
def test_radios_through_the_real_iiod(driver: str, proxy: Callable[[str], str], tmp_path: Path) -> None:
    with Desk(desk_bench(drivers=(driver,), receivers=(2,)), tmp_path) as desk:
        places = desk.emulators.addresses
        desk.bench = reached(desk.bench, {**places, "radios": {n: proxy(uri) for n, uri in places["radios"].items()}})
        for radio in (desk.controlled().radio, desk.node().radio):
            check_radio(radio, frequency_hz=2.45e9, sample_rate_hz=5e6, soon_s=desk.soon_s)
        desk.check_mute()


# --- 3: stalls --------------------------------------------------------------------------------------------------------

RAW = """
import sys, iio
phy = iio.Context(sys.argv[1])
phy.set_timeout(300)
phy = phy.find_device("ad9361-phy")
receive, transmit = (phy.find_channel(f"altvoltage{n}", True).attrs["frequency"] for n in (0, 1))
receive.value, transmit.value = "2410000000", "2460000000"
print("set", flush=True)
sys.stdin.readline()
while True:
    for attribute in (receive, transmit):
        try:
            print(attribute.value, flush=True)
        except OSError:
            print("failed", flush=True)
"""


@needs_libiio
def test_the_trap_that_a_stall_is(emulators: Emulators) -> None:
    """libiio 0.24 takes the answer that comes late for the answer to its next question, and so for ever."""
    child = Child(RAW, emulators.addresses["radios"][NODE])
    try:
        assert child.hear(20.0) == "set"
        emulators.fault(NODE, "stall", seconds=0.5)
        child.tell("go")
        answers = [child.hear() for _ in range(20)]
    finally:
        child.end()
    # receive, transmit, receive, ... as they were asked for
    right = ["2410000000", "2460000000"] * 10
    assert "failed" in answers
    assert any(given not in (due, "failed") for given, due in zip(answers, right, strict=True))


@both_drivers
def test_after_a_stall_no_attribute_is_ever_misread(
    driver: str, port: PlutoPort, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert port.configure(SETTINGS) == SET
    for after in (0, 1, 3) if driver == "native" else (0, 2):
        emulators.fault(NODE, "stall", seconds=1.0, after=after)
        with monkeypatch.context() as patched:
            patched.setattr(drivers.pluto, "ATTRIBUTE_TIMEOUT_S", 0.4)
            with pytest.raises(RadioFault):
                port.settings()
        for _ in range(3):
            assert port.settings() == SET
    assert emulators.faults() == []


# --- 4: stale buffers -------------------------------------------------------------------------------------------------


def test_the_first_capture_after_a_move_is_the_new_positions_channel(tmp_path: Path) -> None:
    bench = desk_bench(drivers=DRIVERS, receivers=(2, 1), stages=3, num_nodes=2, world={"temperature_k": 0.0})
    file, changes = written(tmp_path, bench, "Wanders")
    loaded = load_experiment("quickstart", changes, bench=str(file))
    result = run(loaded, tmp_path / "runs", backend="emulated")
    world = World(loaded.bench, loaded.spec.seed)
    soundings = [step.reply for step in read_steps(result.folder) if isinstance(step.reply, Sounding)]
    assert len(soundings) == 4

    def true(positions_m: np.ndarray) -> np.ndarray:
        # [num_antennas, num_nodes]
        return world.channels(soundings[0].nodes, positions_m, np.zeros(1))[0]

    def apart(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.linalg.norm(one - other) / np.linalg.norm(other))

    for old, new in pairwise(soundings):
        assert apart(true(old.positions_m), true(new.positions_m)) > 0.3
        assert apart(new.channel, true(new.positions_m)) < 0.03


# --- 6: kill -9 -------------------------------------------------------------------------------------------------------

KILLED = """
import json, os, signal, sys
from pathlib import Path
from testbed.core.orders import Collect
from testbed.engine.observe import Observer
from tests.system import small_runs

class Kill(Observer):
    round = 0
    def round_started(self, index):
        self.round = index
    def order_started(self, order):
        if self.round == 2 and isinstance(order, Collect):
            os.kill(os.getpid(), signal.SIGKILL)

small_runs.CHANGES[:] = json.loads(sys.argv[2])
loaded = small_runs.small("ota-fedavg")
small_runs.run(loaded, Path(sys.argv[1]), backend="emulated", observer=Kill())
"""


def test_a_controller_killed_in_a_round_resumes_bit_for_bit(emulated_run: RunResult, tmp_path: Path) -> None:
    whole = emulated_run
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), json.dumps(small_runs.CHANGES)]
    killed = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [folder] = (tmp_path / "cut").iterdir()
    assert not (folder / "summary.json").exists()
    assert [row["round"] for row in read_rows(folder)] == [0, 1]
    assert any(step.round_index == 2 for step in read_steps(folder))
    assert left_of(folder) == []
    resume = [*TESTBED, "resume", str(folder), "--node-processes", "1"]
    resumed = subprocess.run(resume, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert json.loads((folder / "summary.json").read_text()) == whole.summary
    assert read_rows(folder) == whole.rounds
    for file in sorted((whole.folder / "adapter").iterdir()):
        assert (folder / "adapter" / file.name).read_bytes() == file.read_bytes(), file.name


def left_of(folder: Path, patience_s: float = 15.0) -> list[str]:
    """Emulators that still run for this folder after a while."""
    deadline = time.monotonic() + patience_s
    while True:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
        left = [line.decode(errors="replace") for line in lines if str(folder).encode() in line]
        if not left or time.monotonic() > deadline:
            return left


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False  # it has ended meanwhile


# --- 7: the dead man --------------------------------------------------------------------------------------------------

RADIATE = """
import sys
import numpy as np
from drivers.dead_man import DeadMan
from drivers.lab import open_port
from drivers.pluto_port import PlutoSettings
from drivers.transport import LiveWire
from testbed.core.hardware import PlutoSpec

port = open_port(PlutoSpec(uri=sys.argv[1], driver=sys.argv[2]), LiveWire())
port.configure(PlutoSettings(2_450_000_000, 5_000_000, 5_000_000, 25.0, -3.0))
port.unsilence()
dead_man = DeadMan([sys.argv[1]], [], float(sys.argv[3]), stop=port.silence)
port.cyclic(np.full((64, 2), 8192, np.int16))
print("radiates", flush=True)
sys.stdin.read()
"""


@both_drivers
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_frozen_owner_is_mute_in_time(
    driver: str, number: signal.Signals, emulators: Emulators, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TESTBED_LEASES", str(tmp_path))
    owner = Child(RADIATE, emulators.addresses["radios"][NODE], driver, str(DEAD_MAN_S))
    try:
        assert owner.hear(20.0) == "radiates"
        assert emulators.state()["radios"][NODE]["radiated_dbm"] is not None
        owner.process.send_signal(number)
        deadline = time.monotonic() + DEAD_MAN_S + MARGIN_S
        while emulators.state()["radios"][NODE]["radiated_dbm"] is not None:
            assert time.monotonic() < deadline, "it still radiates"
        assert owner.process.wait(timeout=2 * DEAD_MAN_S + MARGIN_S) == -signal.SIGKILL
        await_no_buffers(emulators)
    finally:
        owner.end()


def await_no_buffers(emulators: Emulators, patience_s: float = 5.0) -> None:
    """Return when no radio has a buffer; a server notices the end of a client after a moment."""
    deadline = time.monotonic() + patience_s
    while any(radio["buffers"] for radio in emulators.state()["radios"].values()):
        assert time.monotonic() < deadline, f"buffers were left: {emulators.state()['radios']}"


# --- 8: far steps -----------------------------------------------------------------------------------------------------


@both_drivers
def test_a_far_step_is_refused_while_a_transmit_buffer_lives(
    driver: str, port: PlutoPort, emulators: Emulators
) -> None:
    chip = emulators.radios[NODE].chip
    port.configure(SETTINGS)
    port.unsilence()
    calibrations = len(chip.calibrations)
    openings: list[Callable[[], Burst]] = [
        lambda: port.cyclic(TONE),
        lambda: port.burst(TONE),
        lambda: port.burst(TONE, delay_samples=9),
    ]
    for open_buffer in openings:
        buffer = open_buffer()
        for far_hz in (2_600_000_000, 2_300_000_000):
            with pytest.raises(LimitError, match="150"):
                port.configure(replace(SETTINGS, frequency_hz=far_hz))
            assert port.settings() == SET
        buffer.close()
    assert len(chip.calibrations) == calibrations
    assert port.configure(replace(SETTINGS, frequency_hz=2_600_000_000)).frequency_hz == 2_600_000_000
    assert len(chip.calibrations) > calibrations
    assert not any(each.buffer_open for each in chip.calibrations)


# --- 9: leases --------------------------------------------------------------------------------------------------------


def test_a_bench_in_use_is_refused_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_LEASES", str(tmp_path / "leases"))
    bench = desk_bench(stages=1, radio=NETWORK)
    nowhere = {"radios": {"receiver-0": "ip:192.0.2.1", NODE: "ip:192.0.2.2"}}
    bench = reached(bench, {**nowhere, "stages": {"stage-0": {"url": "/dev/ttyNothing"}}})
    first = Leases().acquire(bench_resources(bench), bench=bench.name, purpose="somebody's run")
    try:
        begun = time.monotonic()
        with pytest.raises(DeviceError, match="somebody's run") as refused:
            open_bench(bench, seed=0, folder=tmp_path)
        assert time.monotonic() - begun < 1.0
        assert f"process {os.getpid()}" in str(refused.value)
    finally:
        first.close()


# --- 10: exceptions ---------------------------------------------------------------------------------------------------

RAISE = """
import sys
import numpy as np
from drivers.lab import open_port
from drivers.pluto_port import PlutoSettings
from drivers.transport import LiveWire
from testbed.core.hardware import PlutoSpec

class Held:
    pass

held = Held()
held.itself = held
held.port = open_port(PlutoSpec(uri=sys.argv[1], driver=sys.argv[2]), LiveWire())
held.port.configure(PlutoSettings(2_450_000_000, 5_000_000, 5_000_000, 25.0, -3.0))
held.port.unsilence()
held.burst = held.port.cyclic(np.full((64, 2), 8192, np.int16))
held.capture = held.port.capture(64)
print("radiates", flush=True)
sys.stdin.readline()
raise RuntimeError("odd")
"""


def test_an_exception_inside_a_run_leaves_everything_mute_and_still(tmp_path: Path) -> None:
    """A run on a bench that takes the emulators for real devices; they outlive it."""
    node = {"max_power_dbm": -6.0, "radio": {"tx_full_scale_dbm": 7.0}}
    plain = desk_bench(drivers=DRIVERS[::-1], receivers=(1, 1), stages=2, node=node, sample_rate_hz=1e6, radio=NETWORK)
    with Emulators(plain, mode="real") as emulators:
        file, changes = written(tmp_path, reached(plain, emulators.addresses), "Breaks")
        command = [*TESTBED, "run", "quickstart", "--backend", "lab", "--yes-transmit", "--node-processes", "1"]
        command += ["--bench", str(file), "--out", str(tmp_path / "runs")]
        command += [word for change in changes for word in ("--set", change)]
        environment = {**os.environ, "TESTBED_LEASES": str(tmp_path / "leases")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        await_no_buffers(emulators)
        state: dict[str, Any] = emulators.state()
    assert done.returncode == 1, done.stdout + done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    assert "ZeroDivisionError" in json.loads((folder / "summary.json").read_text())["error"]
    assert len([step for step in read_steps(folder) if isinstance(step.reply, Sounding)]) == 2
    for radio in state["radios"].values():
        assert (radio["transmitting"], radio["tx_gain_db"], radio["powerdown"]) == (False, MUTED_DB, True)
    assert [stage["state"] for stage in state["stages"].values()] == ["Idle", "Idle"]
    assert list((tmp_path / "leases").glob("*.json")) == []


@both_drivers
def test_an_exception_that_nobody_catches_is_no_segmentation_fault(driver: str, emulators: Emulators) -> None:
    """Everything in a cycle of references, which the interpreter takes apart in an order of its own at its end."""
    child = Child(RAISE, emulators.addresses["radios"][NODE], driver)
    try:
        assert child.hear(20.0) == "radiates"
        assert emulators.state()["radios"][NODE]["buffers"] == 2
        child.tell("raise")
        assert child.process.wait(timeout=20.0) == 1
        await_no_buffers(emulators)
        assert emulators.state()["radios"][NODE]["radiated_dbm"] is None
    finally:
        child.end()
