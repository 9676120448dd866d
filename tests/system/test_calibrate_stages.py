"""Stages and costs on opened benches: what the routines find against the truth of the world."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.access import Access
from calibration.axes import Axes, AxesOptions
from calibration.cost import Cost, CostOptions
from calibration.routine import Fit
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.specs import DataSpec
from tests.benches import small_bench
from tests.system import small_runs

BACKLASH_M = (1.2e-4, 8e-5)
OPTIONS = AxesOptions(
    stages=(0,), wavelengths=1.0, points=8, looks=24, arrivals=1, homings=2, listen_s=0.3, rest_s=0.25,
    num_samples=16384,
)  # fmt: skip


def stage_bench(**truth: Any) -> BenchSpec:
    nodes = [{"name": "a", "position_m": [7.0, 2.0, 1.2]}, {"name": "b", "position_m": [3.0, 6.0, 2.9]}]
    truth = {"backlash_m": BACKLASH_M, "rotation_deg": 2.0, **truth}
    return small_bench(nodes=nodes, world={"num_paths": 1, "stages": truth})


@contextlib.contextmanager
def opened(bench: BenchSpec, name: str, folder: Path) -> Iterator[Access]:
    devices = resolve(backend(name).bench)(bench, seed=1, folder=folder, node_processes=1)
    try:
        access = Access(bench, devices, name)
        access.open_nodes()
        yield access
    finally:
        devices.close()


def calibrated(routine: Axes | Cost, access: Access, options: Any) -> Fit:
    done: list[Any] = []
    while (step := routine.next_step(access.bench, options, done, np.random.default_rng(0))) is not None:
        done.append((step, routine.measure(access, options, step)))
    return routine.fit(access.bench, options, done)


def check_geometry(fit: Fit) -> None:
    assert fit.passed, fit.why
    backlash = fit.values["stage-0.backlash"]
    error_m = np.abs(np.subtract(backlash.value, BACKLASH_M))
    assert (error_m < np.maximum(4e-6, 4 * np.array(backlash.std))).all()
    assert max(backlash.std) < 8e-6
    frame = fit.values["stage-0.frame"]
    assert frame.value[2] == pytest.approx(math.radians(2.0), abs=math.radians(0.5))


def test_simulated_stages_show_their_play_and_their_rotation(tmp_path: Path) -> None:
    with opened(stage_bench(), "sim", tmp_path) as access:
        fit = calibrated(Axes(), access, OPTIONS)
    check_geometry(fit)
    assert math.isinf(fit.values["stage-0.homing_std"].std)


def test_emulated_stages_show_their_play_vibration_and_homing(tmp_path: Path) -> None:
    truth = {"ring_m": 2e-4, "ring_s": 0.04, "ring_hz": 40.0, "homing_std_m": 5e-5}
    with opened(stage_bench(**truth), "emulated", tmp_path) as access:
        fit = calibrated(Axes(), access, OPTIONS)
    check_geometry(fit)
    assert fit.values["stage-0.settle"].value == pytest.approx(0.04 * math.log(2e-4 / 2e-5), rel=0.1)
    homing = fit.values["stage-0.homing_std"]
    assert 0 < homing.value < 2e-4
    assert math.isfinite(homing.std)


def test_simulated_stages_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="world.stages.ring_m"), opened(stage_bench(ring_m=1e-4), "sim", tmp_path):
        pass


def test_a_nodes_cost_model_is_found(tmp_path: Path) -> None:
    bench = small_bench(nodes=[{"name": "a", "cycles_per_token": 3e6, "kappa": 2e-28}])
    source = next(change for change in small_runs.CHANGES if change.startswith("data.source=")).partition("=")[2]
    options = CostOptions(
        data=DataSpec(source=source), batch_sizes=(1, 2), steps=(1, 2), frequency_share=(0.5, 1.0), link_values=(1000,)
    )
    with opened(bench, "sim", tmp_path) as access:
        fit = calibrated(Cost(), access, options)
    assert fit.passed, fit.why
    assert fit.values["a.cycles_per_token"].value == pytest.approx(3e6, rel=1e-3)
    assert fit.values["a.kappa"].value == pytest.approx(2e-28, rel=1e-3)
