"""The field from a sweep of a whole bench, simulated and emulated, against the room's true channels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from calibration.access import Access
from calibration.field import Field, FieldOptions
from calibration.field_result import predict
from calibration.routine import Fit, Raw, Step
from sim_backend.control_client import ControlClient
from sim_backend.world import World
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from tests.benches import small_bench

SEED = 3
OPTIONS = FieldOptions()


def bench(loss_db: float = 66.0) -> BenchSpec:
    """Two antennas that move and one that stands, three nodes of five waves each: 20 to 24 dB over the noise."""
    places_m = [(4.0, 4.0, 1.5), (3.0, 6.0, 1.0), (3.0, 2.0, 2.5)]
    nodes = [{"name": f"node-{index:02d}", "position_m": place} for index, place in enumerate(places_m)]
    return small_bench(nodes=nodes, world={"num_paths": 5, "excess_loss_db": loss_db})


@contextmanager
def opened(name: str, folder: Path, here: BenchSpec) -> Iterator[Access]:
    devices = resolve(backend(name).bench)(here, seed=SEED, folder=folder, node_processes=1)
    try:
        access = Access(here, devices, name)
        access.open_nodes()
        yield access
    finally:
        devices.close()


def sweep(access: Access, between: Callable[[int], None] = lambda count: None) -> Fit:
    routine = Field()
    done: list[tuple[Step, Raw]] = []
    while (step := routine.next_step(access.bench, OPTIONS, done, np.random.default_rng([0, len(done)]))) is not None:
        between(len(done))
        done.append((step, routine.measure(access, OPTIONS, step)))
    return routine.fit(access.bench, OPTIONS, done)


def errors(fit: Fit) -> np.ndarray:
    """Of every node on unseen positions, over the channel's power, in decibels; the uncertainty says so too."""
    here = bench()
    world = World(here, SEED)
    positions_m = np.random.default_rng(0).uniform(0.0, 0.375, (500, 2))
    guess, std = predict(fit.values, positions_m)
    true = np.stack([world.channel(name, positions_m, 0.0) for name in here.node_names], axis=-1)
    miss = np.mean(np.abs(guess - true) ** 2, axis=0)
    assert np.all(miss < 4 * np.mean(std**2, axis=0))
    levels_db: np.ndarray = 10 * np.log10(miss / np.mean(np.abs(true) ** 2, axis=0))
    return levels_db


@pytest.mark.parametrize("name", ["sim", "emulated"])
def test_sixty_positions_tell_the_channel_at_every_other(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path, bench()) as access:
        fit = sweep(access)
    assert fit.passed, fit.why
    assert errors(fit).max() < -20
    assert fit.values["node-00.scatter"].value == pytest.approx(1.0, abs=6 * math.sqrt(2 / 100))


def test_a_real_driver_cannot_see_that_its_stage_lost_steps_but_the_field_can(tmp_path: Path) -> None:
    with opened("emulated", tmp_path, bench(56.0)) as access:
        control = ControlClient(json.loads((tmp_path / "emulators.json").read_text())["control"])

        def between(count: int) -> None:
            if count == 14:
                control.ask("fault", device="stage-1", kind="lost-steps", value=0.03)

        try:
            fit = sweep(access, between)
        finally:
            control.close()
    assert not fit.passed
    assert "antenna 1" in fit.why
    assert "home" in fit.why
