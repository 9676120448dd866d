"""The emergency stop, and the dead man, against emulated radios and stages: what counts is what the emulators say."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers.emergency import stop_bench
from drivers.leases import Leases
from drivers.transport import LiveWire
from sim_backend.emulators.host import Emulators
from testbed.core.bench import BenchSpec
from tests.addressed import addressed
from tests.benches import small_bench
from tests.child import Child
from tests.fake_iiod import FakeIiod

TIMEOUT_S = 0.8
MARGIN_S = 1.5

RUN = """
import os, sys
from pathlib import Path
import numpy as np
from drivers.dead_man import GRBL_HOLD, DeadMan, HeldStage
from drivers.leases import Leases, bench_resources
from drivers.pluto_native import NativePort
from drivers.pluto_port import PlutoSettings
from drivers.transport import LiveWire
from testbed.core.bench import BenchSpec

bench = BenchSpec.model_validate_json(sys.argv[1])
lease = Leases(Path(sys.argv[2])).acquire(bench_resources(bench), bench=bench.name, purpose="test")
radio = NativePort(bench.boards[0].radio.uri)
radio.configure(PlutoSettings(2_450_000_000, 5_000_000, 5_000_000, 30.0, -10.0))
stage = LiveWire().serial(bench.array.antennas[0].stage.device.port, baud=115200)
stage.send(b"$X\\n")
dead_man = DeadMan(
    [radio.facts.uri], [HeldStage("stage-0", stage.fileno(), GRBL_HOLD)], float(sys.argv[3]),
    stop=lambda: print("stopped", flush=True), log=Path(sys.argv[2]) / "watchdog.log",
)
lease.guard(dead_man.socket_path)
radio.unsilence()
tone = np.exp(2j * np.pi * np.arange(1000) / 20)
radio.cyclic((16_000 * np.stack([tone.real, tone.imag], axis=1)).astype(np.int16))
stage.send(b"$J=G91X-300F60\\n")
print("radiating and moving", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def emulators() -> Iterator[Emulators]:
    with Emulators(small_bench(), mode="real") as emulators:
        yield emulators


@pytest.fixture
def bench(emulators: Emulators) -> BenchSpec:
    return addressed(small_bench(), emulators.addresses)


@pytest.fixture
def runs(bench: BenchSpec, tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Starts processes that radiate and move."""
    started: list[Child] = []

    def start(timeout_s: float = TIMEOUT_S) -> Child:
        started.append(Child(RUN, bench.model_dump_json(), str(tmp_path), str(timeout_s)))
        assert started[-1].hear(20.0) == "radiating and moving"
        return started[-1]

    yield start
    for run in started:
        run.end()


def radiates(emulators: Emulators) -> bool:
    return emulators.state()["radios"]["node-00"]["radiated_dbm"] is not None


def moves(emulators: Emulators) -> bool:
    return bool(emulators.state()["stages"]["stage-0"]["moving"])


def silent_and_still(emulators: Emulators, within_s: float) -> bool:
    """Whether the emulators themselves say so within that time; braking takes a moment."""
    deadline = time.monotonic() + within_s
    while radiates(emulators) or moves(emulators):
        if time.monotonic() > deadline:
            return False
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_cyclic_waveform_ends_with_its_owner(
    emulators: Emulators, runs: Callable[..., Child], number: signal.Signals
) -> None:
    run = runs()
    assert radiates(emulators)
    assert moves(emulators)
    run.process.send_signal(number)
    assert silent_and_still(emulators, TIMEOUT_S + MARGIN_S)
    if number == signal.SIGSTOP:
        assert emulators.state()["radios"]["node-00"]["tx_gain_db"] == -89.75
        assert run.process.wait(timeout=2 * TIMEOUT_S + MARGIN_S) == -signal.SIGKILL


@pytest.mark.parametrize("frozen", [False, True])
def test_the_emergency_stop_goes_past_a_run_that_hangs(
    emulators: Emulators, bench: BenchSpec, runs: Callable[..., Child], tmp_path: Path, frozen: bool
) -> None:
    run = runs(timeout_s=30.0)
    if frozen:
        run.process.send_signal(signal.SIGSTOP)
    assert radiates(emulators)
    began_s = time.monotonic()
    report = stop_bench(bench, leases=Leases(tmp_path))
    assert time.monotonic() - began_s < 3.0
    assert silent_and_still(emulators, MARGIN_S)
    assert report.complete, report.lines()
    by = f"(by the dead man of process {run.process.pid})"
    uris = [emulators.addresses["radios"][name] for name in emulators.addresses["radios"]]
    assert {f"radio {uri}" for uri in uris} < set(report.done)
    assert f"stage-0 {by}" in report.done
    assert f"stage {emulators.addresses['stages']['stage-1']['pty']}" in report.done
    assert all(state["tx_gain_db"] == -89.75 for state in emulators.state()["radios"].values())
    if not frozen:
        assert run.hear() == "stopped"


def test_it_needs_no_run_and_no_lease(emulators: Emulators, bench: BenchSpec, tmp_path: Path) -> None:
    report = stop_bench(bench, leases=Leases(tmp_path / "none"))
    assert report.complete
    assert len(report.done) == 3 + 3 + 2
    assert report.lines()[0].startswith("stopped      ")
    assert stop_bench(bench, leases=Leases(tmp_path / "none")).done, "it may be repeated"


def test_a_stage_that_is_homing_stops_too(emulators: Emulators, bench: BenchSpec, tmp_path: Path) -> None:
    port = bench.array.antennas[0].stage
    assert port is not None
    assert port.device.port is not None
    stage = LiveWire().serial(port.device.port, baud=115_200)
    stage.send(b"$H\n")
    deadline = time.monotonic() + 5.0
    while not moves(emulators):
        assert time.monotonic() < deadline
    stage.close()
    stop_bench(bench, leases=Leases(tmp_path))
    assert silent_and_still(emulators, MARGIN_S)
    assert emulators.state()["stages"]["stage-0"]["state"] == "Alarm"


def test_what_cannot_be_reached_is_said(tmp_path: Path) -> None:
    with FakeIiod() as good, FakeIiod() as stalled:
        bench = small_bench(
            nodes=[
                {"name": "good", "radio": {"uri": good.uri}},
                {"name": "gone", "radio": {"uri": "ip:127.0.0.1:1"}},
                {"name": "stalled", "radio": {"uri": stalled.uri}},
            ]
        )
        antennas = [{**each, "stage": None} for each in bench.model_dump()["array"]["antennas"]]
        antennas[0]["stage"] = {"device": {"port": "/dev/ttyNothing"}}
        bench = BenchSpec.model_validate(
            {**bench.model_dump(), "array": {**bench.model_dump()["array"], "antennas": antennas}}
        )
        stalled.stall()
        (tmp_path / "broken.json").write_text("{")
        began_s = time.monotonic()
        report = stop_bench(bench, leases=Leases(tmp_path))
        assert time.monotonic() - began_s < 5.0
        assert good.muted
    assert report.done == (f"radio {good.uri}",)
    assert not report.complete
    assert set(report.failed) == {
        "radio ip:127.0.0.1:1",
        f"radio {stalled.uri}",
        "stage /dev/ttyNothing",
        f"a run whose lease cannot be read ({tmp_path / 'broken.json'})",
    }
    assert all(line.startswith("NOT STOPPED") for line in report.lines()[:4])
    assert report.as_dict()["complete"] is False


def test_a_bench_without_devices(tmp_path: Path) -> None:
    report = stop_bench(small_bench(), leases=Leases(tmp_path))
    assert report.complete
    assert "nothing to stop" in report.lines()[0]


def test_a_run_on_another_machine_is_named(tmp_path: Path) -> None:
    book = Leases(tmp_path)
    lease = book.acquire([], bench="small", purpose="test")
    lease.guard("/tmp/socket")
    path = tmp_path / f"{lease.grant.token}.json"
    content: dict[str, Any] = {**lease.grant.__dict__, "resources": [], "machine": "elsewhere", "host": "bench-2"}
    path.write_text(json.dumps(content))
    report = stop_bench(small_bench(), leases=book)
    lease.close()
    ((name, why),) = report.failed.items()
    assert "on bench-2" in name
    assert why == "it runs on another machine: log in to bench-2 and stop the bench there too"
