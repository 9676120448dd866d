"""The calibration of images, leaks and DC offsets against what was put in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.access import Access
from calibration.iq import Iq, IqOptions
from calibration.routine import Fit, Routine
from sim_backend.impairments import receive_imbalance, transmit_imbalance
from sim_backend.transmit_chain import Crystal
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.units import dbm_to_w, from_db
from tests.benches import small_bench
from tests.paper_access import PaperAccess

RX = (0.01 - 0.004j, -0.006 + 0.012j)
TX = (0.008j, -0.011 + 0.002j)
LEAK, DC = (2e-3, -1e-3 + 1e-3j), (1e-6 + 2e-6j, -2e-6j)
SEED = 1
SHORT = IqOptions(num_samples=8192)


def bench_of(num_nodes: int = 2, num_antennas: int = 2, **changes: Any) -> BenchSpec:
    """Antennas that stand still behind one radio."""
    array = {
        "origin_m": [0.0, 4.0, 1.0],
        "region_m": [[0.0, 0.375], [0.0, 0.375]],
        "min_spacing_m": 0.0625,
        "antennas": [{"home_m": [0.05 + 0.1 * index, 0.05]} for index in range(num_antennas)],
        "radios": [{"gain_db": 30.0, "channels": num_antennas}],
    }
    return small_bench(array=array, nodes=[{"count": num_nodes}], **changes)


def paper(offset: tuple[float, ...] = (3e-4, -5e-4), snr: float = 100.0, **changes: Any) -> PaperAccess:
    """Two nodes, two antennas; `snr` of the first node at the first antenna, at the power that is sent."""
    channel = 1e-3 * np.array([[1.0, 0.7j], [0.6 - 0.5j, -0.9 + 0.3j]])
    sent_w = SHORT.power_share * dbm_to_w(10.0)
    given: dict[str, Any] = {"rx_image": RX, "tx_image": TX, "leak": LEAK, "dc": DC}
    return PaperAccess(bench_of(), channel, noise_w=1e-6 * sent_w / snr, offset=offset, **{**given, **changes})


def complex_of(fit: Fit, name: str) -> complex:
    return complex(*fit.values[name].value)


def std_of(fit: Fit, name: str) -> float:
    return math.hypot(*fit.values[name].std)


@pytest.mark.parametrize("offset", [(3e-4, -5e-4), (0.0, 0.0)], ids=["carriers apart", "carriers agree"])
def test_every_image_leak_and_offset_is_found(offset: tuple[float, ...]) -> None:
    made = paper(offset, snr=400.0)
    routine: Routine = Iq()
    fit = routine.fit(made.bench, SHORT, made.run(routine, SHORT))
    assert fit.passed, fit.why
    for index, (rx, tx) in enumerate(zip(RX, TX, strict=True)):
        for name, true in ((f"antenna-{index}.image", rx), (f"node-0{index}.image", tx)):
            found = complex_of(fit, name)
            assert abs(found - true) < 4.5 * std_of(fit, name) + abs(true) * 3e-3
            assert abs(found - true) ** 2 < abs(true) ** 2 / 100  # 20 dB
            before, after = fit.values[f"{name}_before"].value, fit.values[f"{name}_after"].value
            assert before == pytest.approx(abs(true) ** 2, rel=0.2)
            assert after < before / 100
        assert complex_of(fit, f"antenna-{index}.dc") == pytest.approx(DC[index], abs=2e-7)
        assert complex_of(fit, f"node-0{index}.leak") == pytest.approx(LEAK[index], abs=3e-5)
    assert len(fit.curves[0].measured) == 4


def test_the_standard_deviations_are_those_of_the_errors() -> None:
    errors, stds = [], []
    for seed in range(12):
        made = paper(snr=30.0, seed=seed)
        fit = Iq().fit(made.bench, SHORT, made.run(Iq(), SHORT))
        errors += [abs(complex_of(fit, f"antenna-{index}.image") - RX[index]) for index in (0, 1)]
        stds += [std_of(fit, f"antenna-{index}.image") for index in (0, 1)]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.sqrt(np.mean(np.square(stds))), rel=0.35)
    # the bound of four bursts of both combs, all at about the same level
    assert np.mean(stds) < 1.6 * math.sqrt(1 / (30.0 * 4 * 2 * 8192))


def test_faint_nodes_are_known_as_well_as_their_noise_lets_them() -> None:
    made = paper(snr=0.02)
    fit = Iq().fit(made.bench, SHORT, made.run(Iq(), SHORT))
    assert fit.passed, fit.why
    for index in range(2):
        assert 0.01 < std_of(fit, f"antenna-{index}.image") < 0.1
        assert abs(complex_of(fit, f"antenna-{index}.image") - RX[index]) < 4.5 * std_of(fit, f"antenna-{index}.image")


def test_one_antenna_and_one_node_that_agree_are_told_that_they_do() -> None:
    channel = np.array([[1e-3 + 0j]])
    made = PaperAccess(bench_of(1, 1), channel, noise_w=1e-11, rx_image=RX, tx_image=TX, offset=(0.0,))
    fit = Iq().fit(made.bench, SHORT, made.run(Iq(), SHORT))
    assert not fit.passed
    assert "oscillators agree" in fit.why
    assert std_of(fit, "antenna-0.image") > 0.01


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"snr": 1e-5}, "was not heard"),
        ({"silent": ("node-01",)}, "node-01 was not heard"),
        ({"codes_w": 3e-6, "rail": False}, "saturates"),
    ],
)
def test_what_cannot_be_known_is_refused(changes: dict[str, Any], why: str) -> None:
    made = paper(**changes)
    fit = Iq().fit(made.bench, SHORT, made.run(Iq(), SHORT))
    assert not fit.passed
    assert why in fit.why


def test_an_unfinished_measurement_is_not_fitted() -> None:
    made = paper()
    fit = Iq().fit(made.bench, SHORT, made.run(Iq(), SHORT)[:-3])
    assert not fit.passed
    assert "resume" in fit.why


def test_a_bench_without_samples_is_refused() -> None:
    made = paper()
    made.bench = bench_of(waveform={"level": "symbols"})
    with pytest.raises(ConfigError, match="samples"):
        Iq().measure(made.access, SHORT, {"node": None})


@pytest.mark.parametrize("name", ["sim", "emulated"])
def test_the_worlds_images_are_found(name: str, tmp_path: Path) -> None:
    own = {
        "tx_iq_gain_db": 0.2, "tx_iq_phase_deg": 1.0, "rx_iq_gain_db": 0.1, "rx_iq_phase_deg": -1.5, "tx_dc_db": -35.0,
        "rx_dc_dbm": -75.0, "oscillator_ppm": 1.0, "phase_noise_deg": 0.3,
    }  # fmt: skip
    bench = bench_of(world={"excess_loss_db": 10.0, "impairments": own})
    devices = resolve(backend(name).bench)(bench, seed=SEED, folder=tmp_path, node_processes=1)
    try:
        access = Access(bench, devices, name)
        access.open_nodes()
        done: list[Any] = []
        while (step := Iq().next_step(bench, SHORT, done, np.random.default_rng(0))) is not None:
            done.append((step, Iq().measure(access, SHORT, step)))
    finally:
        devices.close()
    fit = Iq().fit(bench, SHORT, done)
    assert fit.passed, fit.why
    wanted, image = transmit_imbalance(math.sqrt(from_db(0.2)), math.radians(1.0))
    heard, mirrored = receive_imbalance(math.sqrt(from_db(0.1)), math.radians(-1.5))
    for index in range(2):
        true = image / wanted
        assert abs(complex_of(fit, f"node-0{index}.image") - true) ** 2 < abs(true) ** 2 / 100
        true = mirrored / heard.conjugate()
        assert abs(complex_of(fit, f"antenna-{index}.image") - true) ** 2 < abs(true) ** 2 / 100
        leak = math.sqrt(dbm_to_w(10.0 - 35.0)) * np.exp(1j * Crystal.draw(bench, index, SEED).leak_rad)
        assert complex_of(fit, f"node-0{index}.leak") == pytest.approx(leak / wanted, abs=0.02 * abs(leak))
        dc = math.sqrt(dbm_to_w(-75.0) / 2) * (1 + 1j)
        assert complex_of(fit, f"antenna-{index}.dc") == pytest.approx(dc, abs=0.02 * abs(dc))
