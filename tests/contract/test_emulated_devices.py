"""Every device that real drivers make of an emulated bench keeps the contract that simulated devices keep."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest

from testbed.core.devices import Clock, Radio, Stage
from testbed.engine.checks import check_clock, check_radio, check_stage
from tests.emulated_desk import Desk, Port, Time, bench_file, desk_bench, reached

ROOT = Path(__file__).parents[2]
NEEDS_LIBIIO = 'apt-get install -y libiio0 && pip install "pyadi-iio==0.0.21" "pylibiio==0.25"'
DRIVERS = [
    "native",
    pytest.param(
        "pyadi",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("adi") is None or find_library("iio") is None, reason=f"needs: {NEEDS_LIBIIO}"
        ),
    ),
]
WAYS: dict[str, tuple[tuple[int, ...], str, Time]] = {
    "one-channel": ((1, 1, 1), "clock", "virtual"),
    "two-channel": ((2, 1), "clock", "virtual"),
    "real-time": ((2, 1), "clock", "real"),
    "network": ((2, 1), "network", "real"),
}
"""Channels of the receivers, what starts bursts, and the emulators' time."""
JITTER_S = 0.03


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("receivers", "trigger", "time"), WAYS.values(), ids=WAYS)
def test_radios(driver: str, receivers: tuple[int, ...], trigger: str, time: Time, tmp_path: Path) -> None:
    radio = {"trigger": trigger, "start_jitter_s": JITTER_S if trigger == "network" else 0.0}
    bench = desk_bench(drivers=(driver,), receivers=receivers, radio=radio)
    with Desk(bench, tmp_path, time=time) as desk:
        opened: list[Radio] = [desk.controlled().radio, desk.node().radio]
        assert opened[0].capabilities.num_antennas == sum(receivers)
        for each in opened:
            assert isinstance(each, Radio)
            check_radio(each, frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz, soon_s=desk.soon_s)
        desk.check_mute()


@pytest.mark.parametrize("port", ["pty", "url"])
@pytest.mark.parametrize("time", ["virtual", "real"])
def test_stages_and_clock(port: Port, time: Time, tmp_path: Path) -> None:
    with Desk(desk_bench(stages=1), tmp_path, time=time, port=port) as desk:
        [stage] = desk.controlled().stages
        assert isinstance(stage, Stage)
        check_stage(stage, np.array([0.055, 0.01]), np.array([0.061, 0.01]))
        state = desk.emulators.state()["stages"]["stage-0"]
        np.testing.assert_allclose(state["position_m"], [0.03, 0.03], atol=1e-5)
        assert state["state"] == "Idle"
        assert isinstance(desk.clock, Clock)
        check_clock(desk.clock)


def test_the_checks_of_a_real_bench_pass_on_its_twin(tmp_path: Path) -> None:
    """`pytest --bench` as a lab calls it, where emulators stand in for the devices."""
    node = {"max_power_dbm": -6.0, "radio": {"tx_full_scale_dbm": 7.0}}
    radio = {"trigger": "network", "start_jitter_s": JITTER_S}
    bench = desk_bench(stages=1, node=node, sample_rate_hz=1e6, radio=radio)
    plain, file = tmp_path / "plain.toml", tmp_path / "lab.toml"
    plain.write_text(bench_file(bench))
    environment = {**os.environ, "TESTBED_LEASES": str(tmp_path / "leases")}
    emulate = [sys.executable, "-m", "testbed", "emulate", str(plain), "--json", "--exit-with-parent"]
    with subprocess.Popen(emulate, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as emulators:
        assert emulators.stdin is not None
        assert emulators.stdout is not None
        file.write_text(bench_file(reached(bench, json.loads(emulators.stdout.readline()))))
        done = lab_tests(environment, f"--bench={file}", "--yes-transmit")
        emulators.stdin.close()
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


@pytest.mark.parametrize("options", [(), ("--bench=desk",)])
def test_unasked_nothing_real_moves_and_the_tests_say_why(options: tuple[str, ...]) -> None:
    done = lab_tests(dict(os.environ), *options)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b[57] skipped", done.stdout)
    assert "pytest --bench=lab.toml -m hardware --yes-transmit" in done.stdout


def lab_tests(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """The hardware tests in a process of their own, as from the command line."""
    command = [sys.executable, "-m", "pytest", *options, "-m", "hardware", "-q", "-p", "no:cacheprovider"]
    command += ["-rsfE", "tests/hardware"]
    return subprocess.run(
        command, cwd=ROOT, env={**environment, "COLUMNS": "200"}, capture_output=True, text=True, check=False
    )
