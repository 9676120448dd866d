"""The calibration of gains, levels and compression against what was put in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.access import Access
from calibration.gain import Gain, GainOptions
from calibration.routine import Fit
from sim_backend.impairments import stream
from sim_backend.level_error import LevelError
from testbed.core.backends import backend, resolve
from testbed.core.bench import BenchSpec
from testbed.core.units import dbm_to_w, from_db, to_db
from tests.benches import small_bench
from tests.paper_access import PaperAccess

NEAR = from_db(0.1) - 1
"""A tenth of a decibel."""
SEED = 1
SATURATION_W = dbm_to_w(16.0)


def bench_of(num_nodes: int = 2, **changes: Any) -> BenchSpec:
    """Two antennas that stand still behind one radio at 30 dB."""
    array = {
        "origin_m": [0.0, 4.0, 1.0],
        "region_m": [[0.0, 0.375], [0.0, 0.375]],
        "min_spacing_m": 0.0625,
        "antennas": [{"home_m": [0.05, 0.05]}, {"home_m": [0.15, 0.05]}],
        "radios": [{"gain_db": 30.0, "channels": 2}],
    }
    return small_bench(array=array, nodes=[{"count": num_nodes}], **changes)


def rapp(samples: np.ndarray) -> np.ndarray:
    """Compresses by 1 dB at 16 dBm."""
    fallen: np.ndarray = samples / (1 + (np.abs(samples) ** 2 / SATURATION_W) ** 3) ** (1 / 6)
    return fallen


def receive_error(gain: float) -> float:
    return float(from_db(0.8 * math.sin(to_db(gain) / 9)))


def transmit_error(gain: float) -> float:
    return float(from_db(0.5 + 0.6 * math.cos(to_db(gain) / 7)))


def paper(**changes: Any) -> PaperAccess:
    """Two nodes, two antennas, a converter of twelve bits at 0 dBm."""
    given: dict[str, Any] = {
        "channel": 2e-3 * np.array([[1.0, 0.4j], [0.6 - 0.5j, -0.5 + 0.1j]]),
        "noise_w": 1e-13, "offset": (1e-4, -2e-4), "codes_w": 1e-3, "amplifier": rapp, "flip": from_db(42.0),
        "rx_error": receive_error, "tx_error": transmit_error,
    }  # fmt: skip
    return PaperAccess(bench_of(), **{**given, **changes})


def fitted(made: PaperAccess, **options: Any) -> Fit:
    chosen = GainOptions.model_validate(options)
    return Gain().fit(made.bench, chosen, made.run(Gain(), chosen))


def test_curves_are_found_to_a_tenth_of_a_decibel() -> None:
    made = paper()
    fit = fitted(made)
    assert fit.passed, fit.why
    for antenna in range(2):
        curve = fit.values[f"antenna-{antenna}.gain_curve"]
        assert len(curve.value) >= 17
        for (gain, ratio), (_, std) in zip(curve.value, curve.std, strict=True):
            true = receive_error(gain) / receive_error(1e3)
            assert abs(ratio / true - 1) < min(NEAR, 5 * std / ratio + 1e-3)
        for gain, turn_rad in fit.values[f"antenna-{antenna}.phase_curve"].value:
            assert abs(np.angle(np.exp(1j * (turn_rad - math.pi * (gain >= from_db(42.0)))))) < 0.02
    for node in made.bench.node_names:
        curve = fit.values[f"{node}.attenuation_curve"]
        assert len(curve.value) == 11
        for gain, ratio in curve.value:
            assert abs(ratio / (transmit_error(gain) / transmit_error(1.0)) - 1) < NEAR
        point = fit.values[f"{node}.compression"]
        true_w = SATURATION_W * (10**0.3 - 1) ** (1 / 3) / transmit_error(1.0)
        assert abs(to_db(point.value / true_w)) < 0.1
        assert point.std < 0.02 * true_w
        # nobody read any power
        assert math.isinf(fit.values[f"{node}.power_error"].std)
    assert math.isinf(fit.values["antenna-0.gain_error"].std)
    assert "reference_dbm" in fit.why
    # the radios are left as the bench file has them
    assert made.rx_gain == 1e3
    assert not made.tx_gains


def test_levels_follow_from_a_reading_and_a_known_loss() -> None:
    loss = from_db(40.0)
    cables = np.full((2, 2), math.sqrt(1 / loss), np.complex128)
    reading_w = dbm_to_w(10.0) * transmit_error(1.0)
    read = {"reference_dbm": to_db(reading_w) + 30, "reference_std_db": 0.02, "parts": ["compression"]}
    fit = fitted(paper(channel=cables), loss_db=40.0, **read)
    assert fit.passed, fit.why
    for node in ("node-00", "node-01"):
        assert abs(fit.values[f"{node}.power_error"].value / transmit_error(1.0) - 1) < NEAR
        assert fit.values[f"{node}.power_error"].std < NEAR
    for antenna in range(2):
        assert abs(fit.values[f"antenna-{antenna}.gain_error"].value / receive_error(1e3) - 1) < NEAR
    # over the air the reading says nothing of receivers and other nodes
    fit = fitted(paper(), **read)
    assert math.isfinite(fit.values["node-00.power_error"].std)
    assert math.isinf(fit.values["node-01.power_error"].std)
    assert math.isinf(fit.values["antenna-0.gain_error"].std)
    assert "loss_db" in fit.why


def test_steps_of_the_phase_are_not_claimed_where_phases_do_not_hold() -> None:
    fit = fitted(paper(steady=False), parts=["receive"])
    assert fit.passed, fit.why
    assert "antenna-0.phase_curve" not in fit.values
    assert "phases do not hold" in fit.why


def test_an_amplifier_that_never_compresses_has_a_bound_only() -> None:
    fit = fitted(paper(amplifier=np.asarray), parts=["compression"])
    assert fit.passed, fit.why
    point = fit.values["node-00.compression"]
    assert math.isinf(point.std)
    assert to_db(point.value) + 30 == pytest.approx(22.1, abs=0.1)
    assert "node-00 does not compress" in fit.why


def test_gains_that_hide_the_signal_are_left_out() -> None:
    fit = fitted(paper(channel=np.full((2, 2), 3e-4 + 0j)), parts=["receive"])
    assert fit.passed, fit.why
    assert "too faint or too unsteady at 0" in fit.why
    gains = [gain for gain, _ in fit.values["antenna-0.gain_curve"].value]
    assert min(gains) > from_db(7.0)
    for gain, ratio in fit.values["antenna-0.gain_curve"].value:
        assert abs(ratio / (receive_error(gain) / receive_error(1e3)) - 1) < NEAR


class _Drifting(PaperAccess):
    """Somebody walks through the room."""

    def capture(self, num_samples: int, bursts: Any = None) -> Any:
        self.channel = self.channel * 1.01
        return super().capture(num_samples, bursts or {})


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (paper(silent=("node-01",)), "node-01 was not heard"),
        (paper(noise_w=1e-3, codes_w=None), "was not heard"),
        (paper(channel=np.full((2, 2), 0.3 + 0j), rail=False), "saturates"),
        (_Drifting(bench_of(), np.full((2, 2), 0.01 + 0j), noise_w=1e-13), "does not hold still"),
    ],
    ids=["silent", "noise", "saturated", "drifting"],
)
def test_what_cannot_be_known_is_refused(made: PaperAccess, why: str) -> None:
    fit = fitted(made, parts=["compression"])
    assert not fit.passed
    assert why in fit.why


def test_an_unknown_reference_node_is_refused() -> None:
    fit = fitted(paper(), parts=["compression"], reference_node="node-9")
    assert not fit.passed
    assert "reference_node" in fit.why


def test_level_errors_are_smooth_and_have_the_spread_that_is_asked_for() -> None:
    draws = [LevelError(1.5, stream(seed, 48, 0)) for seed in range(800)]
    for gain in (1e-3, 1.0, 1e5):
        assert np.std([to_db(draw.ratio(gain)) for draw in draws]) == pytest.approx(1.5, rel=0.1)
    steps = [to_db(draw.ratio(1.26) / draw.ratio(1.0)) for draw in draws]
    assert np.max(np.abs(steps)) < 1.0
    assert LevelError(0.0, stream(1, 48, 0)).ratio(1e3) == 1.0


def world_bench() -> BenchSpec:
    own = {"tx_gain_error_db": 0.8, "rx_gain_error_db": 1.2, "pa_saturation_dbm": 16.0, "phase_flip_gain_db": 38.0}
    return bench_of(1, world={"excess_loss_db": 10.0, "impairments": own})


def measured(name: str, bench: BenchSpec, options: GainOptions, folder: Path) -> Fit:
    devices = resolve(backend(name).bench)(bench, seed=SEED, folder=folder, node_processes=1)
    try:
        access = Access(bench, devices, name)
        access.open_nodes()
        done: list[Any] = []
        while (step := Gain().next_step(bench, options, done, np.random.default_rng(0))) is not None:
            done.append((step, Gain().measure(access, options, step)))
    finally:
        devices.close()
    return Gain().fit(bench, options, done)


def test_the_emulated_radios_gains_are_found(tmp_path: Path) -> None:
    bench = world_bench()
    sent = LevelError.of_node(bench, 0, SEED)
    options = GainOptions(
        gains_db=(20.0, 25.0, 35.0, 40.0, 45.0, 55.0),
        attenuations_db=(0.0, 5.0, 10.0),
        reference_dbm=10.0 + to_db(sent.ratio(1.0)),
    )
    fit = measured("emulated", bench, options, tmp_path)
    assert fit.passed, fit.why
    for antenna in range(2):
        true = LevelError.of_antenna(bench, antenna, SEED)
        curve = fit.values[f"antenna-{antenna}.gain_curve"].value
        assert len(curve) == 7
        for gain, ratio in curve:
            assert abs(ratio / (true.ratio(gain) / true.ratio(1e3)) - 1) < NEAR
        for gain, turn_rad in fit.values[f"antenna-{antenna}.phase_curve"].value:
            assert abs(abs(turn_rad) - math.pi * (gain >= from_db(38.0))) < 0.02
    for gain, ratio in fit.values["node-00.attenuation_curve"].value:
        assert abs(ratio / (sent.ratio(gain) / sent.ratio(1.0)) - 1) < NEAR
    assert abs(fit.values["node-00.power_error"].value / sent.ratio(1.0) - 1) < NEAR
    true_w = SATURATION_W * (10**0.3 - 1) ** (1 / 3) / sent.ratio(1.0)
    assert abs(to_db(fit.values["node-00.compression"].value / true_w)) < 0.1


def test_the_simulated_radios_have_no_gains_to_set_and_the_rest_is_found(tmp_path: Path) -> None:
    bench = world_bench()
    fit = measured("sim", bench, GainOptions(), tmp_path)
    assert fit.passed, fit.why
    assert "no gains to set" in fit.why
    assert "antenna-0.gain_curve" not in fit.values
    true_w = SATURATION_W * (10**0.3 - 1) ** (1 / 3) / LevelError.of_node(bench, 0, SEED).ratio(1.0)
    assert abs(to_db(fit.values["node-00.compression"].value / true_w)) < 0.1


def test_an_antenna_that_hears_too_little_has_no_curve_and_the_others_have_theirs() -> None:
    faint = paper(channel=np.array([[2e-3, 2e-3j], [1e-6, 1e-6j]]), codes_w=None)
    fit = fitted(faint, parts=["receive"], gains_db=[20.0, 40.0])
    assert fit.passed, fit.why
    assert "antenna-0.gain_curve" in fit.values
    assert "antenna-1.gain_curve" not in fit.values
    assert "antenna-1 hears too little" in fit.why
