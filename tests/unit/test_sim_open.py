import functools
import os
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import sim_backend.open
from drivers.node_processes import NodeProcesses, num_processes
from sim_backend.open import open_bench, open_node
from sim_backend.stage import SimStage
from testbed.core.bench import AntennaSpec, ArraySpec, BenchSpec, LinkSpec, NodeSpec, StageSpec
from testbed.core.errors import ConfigError, DeviceError, LinkTimeout
from testbed.phy import estimate, ofdm

BENCH = BenchSpec(
    name="room",
    carrier_hz=2.44e9,
    array=ArraySpec(
        origin_m=(5.0, 0.1, 1.5),
        region_m=((0.0, 0.5), (0.0, 0.5)),
        min_spacing_m=0.0,
        antennas=(AntennaSpec(home_m=(0.1, 0.1), stage=StageSpec(origin_m=(0.1, 0.0))),),
    ),
    nodes=(NodeSpec(count=3),),
    link=LinkSpec(connect_timeout_s=0.1),
)
PATIENT = (sys.executable, "-c", "import sys; sys.stdin.read()")
HASTY = (sys.executable, "-c", "print('cannot find the model'); raise SystemExit(3)")


@pytest.fixture
def fleet(tmp_path):
    fleets = []

    def start(agent, names=("a", "b", "c"), processes=2, **kwargs):
        fleet = NodeProcesses(tmp_path / "logs", agent=agent)
        fleets.append(fleet)
        fleet.start(names, "tcp://127.0.0.1:1", processes)
        return fleet

    yield start
    for fleet in fleets:
        fleet.stop(patience_s=0.1)


def wait_for_fault(fleet: NodeProcesses) -> None:
    while True:
        fleet.check()


def test_processes_are_at_most_the_nodes_and_the_cores():
    assert num_processes(1) == 1
    assert 1 <= num_processes(1000) <= os.cpu_count()


def test_nodes_are_dealt_over_the_processes(fleet, tmp_path):
    echo = (sys.executable, "-c", "import os, sys; print(sys.argv[1:], os.environ['OMP_NUM_THREADS'])")
    running = fleet(echo)
    with pytest.raises(DeviceError):
        wait_for_fault(running)
    running.stop()
    logs = [(tmp_path / "logs" / f"nodes-{k}.log").read_text() for k in (0, 1)]
    assert (
        logs[0].strip()
        == str(["--connect", "tcp://127.0.0.1:1", "--id", "a", "--id", "c", "--exit-with-parent"]) + " 1"
    )
    assert "'--id', 'b'" in logs[1]


def test_a_process_that_ends_early_is_told_with_its_log(fleet):
    with pytest.raises(DeviceError, match=r"exit code 3(?s:.*)cannot find the model"):
        wait_for_fault(fleet(HASTY))


def test_stop_ends_patient_and_stubborn_processes(fleet):
    patient = fleet(PATIENT)
    patient.check()
    patient.stop()
    patient.stop()
    stubborn = fleet((sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"))
    stubborn.stop(patience_s=0.2)
    stubborn.check()  # nothing is left to check


def test_a_command_that_does_not_exist_is_a_device_error(fleet):
    with pytest.raises(DeviceError, match="cannot start"):
        fleet(("/nonexistent/agent",))


def test_no_process_survives_a_killed_controller(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        told = (
            f"import sys, socket; sys.stdin.read(); socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        )
        code = (
            "import os, sys, pathlib\n"
            "from drivers.node_processes import NodeProcesses\n"
            f"fleet = NodeProcesses(pathlib.Path({str(tmp_path)!r}), agent=(sys.executable, '-c', {told!r}))\n"
            "fleet.start(['a', 'b'], 'tcp://127.0.0.1:1', 2)\n"
            f"os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        )
        assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
        for _ in range(2):  # both processes saw the end of their standard input
            connection, _ = server.accept()
            connection.close()


def test_an_open_bench_sounds_and_closes(tmp_path):
    before = threading.active_count()
    devices = open_bench(BENCH, seed=1, folder=tmp_path, node_processes=0)
    (stage,) = devices.stages
    stage.move_to(np.array([0.2, 0.3]))
    node = open_node(BENCH, "node-01", devices.node_devices)
    symbols = estimate.pilot_symbols(2, BENCH.waveform)
    pilots = np.float32(0.1) * ofdm.modulate(symbols, BENCH.waveform)
    at_s = devices.clock.now_s() + 1e-3
    devices.radio.arm(len(pilots), at_s=at_s)
    node.radio.transmit(pilots, at_s=at_s)
    received = ofdm.demodulate(devices.radio.read(), BENCH.waveform)
    channel, _ = estimate.estimate_channel(received, symbols, 0.01)
    world = sim_backend.open.World(BENCH, 1)
    # the stage's zero lies at (0.1, 0) of the array
    expected = world.channel("node-01", np.array([[0.3, 0.3]]), at_s)
    np.testing.assert_allclose(channel, expected, rtol=0.05)
    node.close()
    node.close()
    devices.close()
    devices.close()
    assert threading.active_count() == before


def test_an_antenna_without_a_stage_stands_at_home(tmp_path):
    fixed = BENCH.array.model_copy(update={"antennas": (AntennaSpec(home_m=(0.1, 0.1)),)})
    devices = open_bench(BENCH.model_copy(update={"array": fixed}), seed=1, folder=tmp_path, node_processes=0)
    assert devices.stages == (None,)
    devices.radio.arm(10, at_s=0.0)
    assert devices.radio.read().shape == (1, 10)
    devices.close()


@pytest.mark.parametrize(("agent", "error"), [(HASTY, DeviceError), (PATIENT, LinkTimeout)])
def test_a_bench_whose_nodes_do_not_come_leaves_nothing_behind(tmp_path, monkeypatch, agent, error):
    before = threading.active_count()
    monkeypatch.setattr(sim_backend.open, "NodeProcesses", functools.partial(NodeProcesses, agent=agent))
    seconds = 30.0 if error is DeviceError else 0.05
    bench = BENCH.model_copy(update={"link": LinkSpec(connect_timeout_s=seconds)})
    told = "cannot find the model" if error is DeviceError else r"within 0\.05 s: node-00, node-01, node-02"
    with pytest.raises(error, match=told):
        open_bench(bench, seed=1, folder=tmp_path, node_processes=1)
    assert threading.active_count() == before


def test_a_failing_device_does_not_keep_the_others_from_closing(tmp_path, monkeypatch):
    def fail(stage: SimStage) -> None:
        raise DeviceError("stuck")

    before = threading.active_count()
    monkeypatch.setattr(SimStage, "stop", fail)
    devices = open_bench(BENCH, seed=1, folder=tmp_path, node_processes=0)
    with pytest.raises(DeviceError, match="stuck"):
        devices.close()
    devices.close()
    assert threading.active_count() == before


def test_a_node_opens_only_what_the_bench_has():
    with pytest.raises(ConfigError, match="no node 'x'"):
        open_node(BENCH, "x", {"air": "tcp://127.0.0.1:1"})
    with pytest.raises(ConfigError, match="absent"):
        open_node(BENCH, "node-00", {})
