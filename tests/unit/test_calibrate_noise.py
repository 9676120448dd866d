"""The calibration of floors, interferers and quiet carriers against what was put in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.access import Access
from calibration.noise import Noise, NoiseOptions
from calibration.routine import Fit
from sim_backend.capabilities import check_level
from sim_backend.world import World
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.units import dbm_to_w
from testbed.phy.spectrum import survey
from tests.benches import small_bench
from tests.paper_access import PaperAccess

RATE_HZ = 5e6
NOISE_W = 1.0e-13
SHORT = NoiseOptions(num_samples=16_384, num_bins=256, level_std=0.0)


def bench_of(**changes: Any) -> BenchSpec:
    """Two antennas that stand still behind one radio at 50 dB."""
    array = {
        "origin_m": [0.0, 4.0, 1.0],
        "region_m": [[0.0, 0.375], [0.0, 0.375]],
        "min_spacing_m": 0.0625,
        "antennas": [{"home_m": [0.05, 0.05]}, {"home_m": [0.15, 0.05]}],
        "radios": [{"gain_db": 50.0, "channels": 2}],
    }
    limits = {"frequencies_hz": [[2.44e9, 2.46e9]]}
    return small_bench(array=array, nodes=[{"count": 1}], limits=limits, **changes)


class Jammer:
    """Somebody's carrier, heard where it lies within the band."""

    def __init__(self, power_w: float, at_hz: float) -> None:
        self._amplitude, self._at_hz = math.sqrt(power_w), at_hz

    def __call__(self, heard: np.ndarray, carrier_hz: float) -> None:
        place = (self._at_hz - carrier_hz) / RATE_HZ
        if abs(place) < 0.5:
            heard += self._amplitude * np.exp(2j * np.pi * place * np.arange(heard.shape[-1]))


class Bursts:
    """Somebody's packets over the whole band, in a third of the time."""

    def __call__(self, heard: np.ndarray, carrier_hz: float) -> None:
        length = heard.shape[-1]
        packet = np.random.default_rng(9).standard_normal((length // 3, 2)) @ [1, 1j]
        heard[:, length // 2 : length // 2 + length // 3] += 3e-7 * packet


def paper(**changes: Any) -> PaperAccess:
    return PaperAccess(bench_of(), np.ones((2, 1), np.complex128), **{"noise_w": NOISE_W, **changes})


def fitted(made: PaperAccess, options: NoiseOptions = SHORT) -> Fit:
    return Noise().fit(made.bench, options, made.run(Noise(), options))


def test_floor_and_figure_of_an_empty_band() -> None:
    made = paper(dc=(1e-6, -1e-6j))
    fit = fitted(made)
    assert fit.passed, fit.why
    for antenna in range(2):
        noise = fit.values[f"antenna-{antenna}.noise_w"]
        assert abs(noise.value - NOISE_W) < 4.5 * noise.std
        assert noise.std < 0.02 * NOISE_W
        figure = fit.values[f"antenna-{antenna}.noise_figure"].value
        assert figure == pytest.approx(noise.value / (1.380649e-23 * 290 * RATE_HZ))
    assert fit.values["interferers_hz"].value == ()
    # half a sample rate apart, all but none of them disturbed
    assert set(fit.values["quiet_hz"].value) == {2.4425e9 + 2.5e6 * step for step in range(7)}
    assert made.carrier_hz == made.bench.carrier_hz


def test_a_false_alarm_is_as_rare_as_it_is_said_to_be() -> None:
    rng = np.random.default_rng(1)
    alarms = bursts = 0
    for _ in range(400):
        heard = rng.standard_normal((1, 8192, 2)) @ [1, 1j]
        band = survey(heard, num_bins=256, false_alarm=0.05)
        alarms += bool(band.occupied.any())
        bursts += band.bursts > 0
    assert 0.01 < alarms / 400 < 0.12
    assert bursts / 400 < 0.1


def test_the_floor_scatters_as_it_says() -> None:
    rng = np.random.default_rng(2)
    bands = [survey(rng.standard_normal((1, 8192, 2)) @ [1, 1j], num_bins=256, false_alarm=1e-3) for _ in range(300)]
    floors = np.array([band.floor_w[0] for band in bands])
    assert floors.mean() == pytest.approx(2.0, rel=0.005)
    assert floors.std() / 2 == pytest.approx(bands[0].floor_std, rel=0.2)
    # twice the variance of the bound, 1 / 8192
    assert floors.std() / 2 < 1.6 / math.sqrt(8192)


@pytest.mark.parametrize("over", [0.05, 1.0, 1e4])
def test_a_narrow_jammer_is_found_and_the_floor_holds(over: float) -> None:
    made = paper(others=Jammer(over * NOISE_W, 2.4512e9))
    fit = fitted(made)
    assert fit.passed, fit.why
    found = fit.values["interferers_hz"]
    assert len(found.value) == 1
    assert abs(found.value[0] - 2.4512e9) < found.std[0]
    assert fit.values["antenna-0.noise_w"].value == pytest.approx(NOISE_W, rel=0.05)
    quiet = fit.values["quiet_hz"].value
    assert quiet
    assert all(abs(carrier_hz - 2.4512e9) > RATE_HZ / 2 for carrier_hz in quiet)
    assert "somebody sends at 2451." in fit.why
    assert "is quiet" in fit.why


def test_bursts_are_seen_and_the_floor_is_that_of_the_pauses() -> None:
    fit = fitted(paper(others=Bursts()))
    assert fit.passed, fit.why
    assert fit.values["bursts"].value == pytest.approx(1 / 3, abs=0.05)
    assert fit.values["antenna-1.noise_w"].value == pytest.approx(NOISE_W, rel=0.05)
    assert "in bursts" in fit.why
    assert fit.values["quiet_hz"].value == ()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"noise_w": 1e-9}, "fills the whole band"),
        ({"noise_w": 1e-14}, "less than thermal noise"),
        ({"noise_w": 1e-17, "codes_w": 1e-3}, "does not move the converter"),
        ({"noise_w": 0.3, "codes_w": 1e-3, "rail": False}, "saturates"),
    ],
)
def test_a_floor_that_cannot_be_is_refused(changes: dict[str, Any], why: str) -> None:
    fit = fitted(paper(**changes))
    assert not fit.passed
    assert why in fit.why


def test_floors_at_other_gains_and_gains_that_clip() -> None:
    options = SHORT.model_copy(update={"gains_db": (20.0, 40.0, 65.0), "carriers": False})
    fit = fitted(paper(codes_w=1e-3, others=Jammer(dbm_to_w(-62.0), 2.4512e9)), options)
    assert fit.passed, fit.why
    curve = fit.values["antenna-0.noise_curve"].value
    # at 20 dB the converter's own steps are most of the noise; at 65 dB the carrier fills it
    assert [gain for gain, _ in curve] == pytest.approx([1e2, 1e4, 1e5])
    assert curve[0][1] > 2 * NOISE_W
    assert curve[1][1] == pytest.approx(NOISE_W, rel=0.15)
    assert "1 other settings" in fit.why


def test_what_does_not_fit_together_is_said() -> None:
    options = SHORT.model_copy(update={"num_bins": 4096})
    fit = fitted(paper(), options)
    assert not fit.passed
    assert "num_bins" in fit.why
    assert not Noise().fit(bench_of(), SHORT, ()).passed


def test_symbols_have_no_jammer() -> None:
    bench = bench_of(world={"jammer_dbm": -90.0}, waveform={"level": "symbols"})
    with pytest.raises(ConfigError, match="jammer_dbm"):
        check_level(bench)


@pytest.mark.parametrize("name", ["sim", "emulated"])
def test_the_worlds_noise_and_its_jammer_are_found(name: str, tmp_path: Path) -> None:
    bench = bench_of(world={"jammer_dbm": -98.0, "jammer_hz": 2.4512e9})
    options = NoiseOptions(level_std=0.0, gains_db=(60.0,))
    devices = resolve(backend(name).bench)(bench, seed=3, folder=tmp_path, node_processes=1)
    try:
        access = Access(bench, devices, name)
        access.open_nodes()
        done: list[Any] = []
        while (step := Noise().next_step(bench, options, done, np.random.default_rng(0))) is not None:
            done.append((step, Noise().measure(access, options, step)))
    finally:
        devices.close()
    fit = Noise().fit(bench, options, done)
    assert fit.passed, fit.why
    true_w = World(bench, 3).noise_w
    for antenna in range(2):
        # the converter adds half a percent
        assert fit.values[f"antenna-{antenna}.noise_w"].value == pytest.approx(true_w, rel=0.03)
    found = fit.values["interferers_hz"]
    assert len(found.value) == 1
    assert abs(found.value[0] - 2.4512e9) < found.std[0]
    assert all(abs(carrier_hz - 2.4512e9) > RATE_HZ / 2 for carrier_hz in fit.values["quiet_hz"].value)
    assert ("antenna-0.noise_curve" in fit.values) == (name == "emulated")
