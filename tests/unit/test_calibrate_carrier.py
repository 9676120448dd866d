"""The carrier calibration finds oscillators as exactly as noise allows, and says so where it cannot."""

import json
import math

import numpy as np
import pytest

from calibration.access import Access
from calibration.carrier import Carrier, CarrierOptions
from calibration.reception import saturated
from calibration.routine import Routine
from sim_backend.emulated import open_bench as open_emulated
from sim_backend.open import open_bench
from sim_backend.transmit_chain import Crystal
from testbed.core.errors import ConfigError
from testbed.phy.tone import frequency_bound
from tests.benches import small_bench
from tests.closed_form_access import ClosedFormAccess, Transmitter, calibrate

RATE_HZ, CARRIER_HZ = 5e6, 2.45e9
BENCH = small_bench()
POWER_W = 0.5 * 10e-3 * 1e-8  # half of the limit, through a channel of -80 dB
QUICK = CarrierOptions(seconds=0.01, repeats=2, interval_s=0.1)


def senders(**first):
    return {
        "node-00": Transmitter(**{"offset_hz": 1234.5, **first}),
        "node-01": Transmitter(offset_hz=-3000.25),
        "node-02": Transmitter(offset_hz=0.0),
    }


def test_it_is_a_routine_whose_steps_are_json_and_known_in_number():
    routine: Routine = Carrier()
    access = ClosedFormAccess(BENCH, senders(), noise_w=POWER_W / 100)
    fit, done = calibrate(routine, access, QUICK)
    assert fit.passed, fit.why
    assert len(done) == routine.num_steps(BENCH, QUICK) == 6
    assert [json.loads(json.dumps(step)) for step, _ in done] == [dict(step) for step, _ in done]
    assert not vars(routine)


def test_a_tenth_of_a_second_at_20_db_tells_the_offset_within_a_hertz_and_two_decibels_of_the_bound():
    errors_hz, stds_hz = [], []
    options = CarrierOptions(seconds=0.1, repeats=1)
    # the antenna that is kept hears 20 dB
    bound_hz = RATE_HZ * frequency_bound(100.0, 500_000)
    for seed in range(5):
        nodes = senders()
        fit, _ = calibrate(Carrier(), ClosedFormAccess(BENCH, nodes, noise_w=POWER_W / 100, seed=seed), options)
        assert fit.passed, fit.why
        for name, sender in nodes.items():
            found = fit.values[f"{name}.offset"]
            errors_hz.append(found.value * CARRIER_HZ - sender.offset_hz)
            stds_hz.append(found.std * CARRIER_HZ)
    assert max(map(abs, errors_hz)) < 1.0
    # 15 draws: 2 dB, and what chance adds to a mean of so few squares
    assert np.mean(np.square(errors_hz)) < 10**0.2 * bound_hz**2 * 1.3
    assert np.sqrt(np.mean(np.square(stds_hz))) == pytest.approx(bound_hz, rel=0.25)


def test_drift_is_told_from_repeats_and_offsets_hold_for_the_instant_that_is_named():
    access = ClosedFormAccess(BENCH, senders(drift_hz_s=24.5), noise_w=POWER_W / 100)
    fit, _ = calibrate(Carrier(), access, CarrierOptions(seconds=0.01, repeats=3, interval_s=0.5))
    drift, offset = fit.values["node-00.drift"], fit.values["node-00.offset"]
    assert drift.unit == "1/s"
    assert drift.value * CARRIER_HZ == pytest.approx(24.5, abs=0.2)
    assert abs(drift.value * CARRIER_HZ - 24.5) < 5 * drift.std * CARRIER_HZ
    assert offset.value * CARRIER_HZ == pytest.approx(1234.5 + 24.5 * fit.values["at"].value, abs=0.1)
    assert fit.curves[0].measured.shape == (3,)


def test_one_measurement_knows_no_drift_and_says_so():
    access = ClosedFormAccess(BENCH, senders(), noise_w=POWER_W / 100)
    fit, _ = calibrate(Carrier(), access, CarrierOptions(seconds=0.01, repeats=1, temperature_k=296.15))
    assert fit.passed
    assert math.isinf(fit.values["node-00.drift"].std)
    assert "23.0 degrees" in fit.why
    assert "leave the radios' xo_correction" in fit.why


def test_crystals_are_set_and_what_is_left_is_measured():
    nodes = senders()
    options = QUICK.model_copy(update={"correct": "crystal"})
    fit, done = calibrate(Carrier(), ClosedFormAccess(BENCH, nodes, noise_w=POWER_W / 100), options)
    assert fit.passed, fit.why
    assert len(done) == 12
    assert set(nodes["node-00"].crystal_hz) == {round(40e6 * (1 + 1234.5 / CARRIER_HZ))}
    left = fit.values["node-00.offset"]
    # a hertz of the crystal is 61 Hz of the carrier
    assert abs(left.value * CARRIER_HZ) < 31
    assert left.value * CARRIER_HZ == pytest.approx(nodes["node-00"].offset_hz, abs=0.1)
    assert "xo_correction (node-00 40000020" in fit.why
    assert "digital" not in fit.why


def test_nobody_corrects_where_nobody_shall():
    access = ClosedFormAccess(BENCH, senders(), noise_w=POWER_W / 100)
    fit, _ = calibrate(Carrier(), access, QUICK.model_copy(update={"correct": "none"}))
    assert "nobody corrects" in fit.why


@pytest.mark.parametrize(
    ("first", "world", "sentence"),
    [
        ({"silent": True}, {}, "node-00 is not heard within 30 ppm: nothing but noise arrives"),
        ({"drift_hz_s": 2450.0}, {}, "node-00 drifts by 1 ppm a second"),
        ({}, {"rail": 3e-6}, "saturates the receiver: lower gain_db"),
        ({}, {"jammer": (5e-6, 0.1105)}, "somebody else transmits at 2450.55"),
        ({}, {"noise_w": 1e-5}, "the band is occupied"),
        ({"offset_hz": 100e3}, {}, "node-00 is not heard within 30 ppm"),
    ],
)
def test_what_cannot_be_measured_is_no_number_but_a_sentence(first, world, sentence):
    settings = {"noise_w": POWER_W / 100, **world}
    fit, _ = calibrate(Carrier(), ClosedFormAccess(BENCH, senders(**first), **settings), QUICK)
    assert not fit.passed
    assert sentence in fit.why


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_a_converter_that_clips_is_told_from_one_that_is_just_filled(bits):
    generator = np.random.default_rng(4)
    top = 2 ** (bits - 1)
    for amplitude in (0.2, 0.5, 0.9, 0.99):
        wave = top * amplitude * np.exp(2j * np.pi * (generator.random() + 0.1237 * np.arange(20_000)))
        assert not saturated((np.rint(wave.real) + 1j * np.rint(wave.imag)).astype(np.complex64))
    for amplitude in (1.3, 3.0, 100.0):
        wave = top * amplitude * np.exp(2j * np.pi * 0.1237 * np.arange(20_000))
        clipped = np.clip(wave.real, -top, top - 1) + 1j * np.clip(wave.imag, -top, top - 1)
        assert saturated((np.rint(clipped.real) + 1j * np.rint(clipped.imag)).astype(np.complex64)[None])
    noise = generator.standard_normal(20_000)
    assert not saturated((noise + 1j * noise[::-1]).astype(np.complex64))
    assert not saturated(np.zeros((1, 1000), np.complex64))


def test_nothing_measured_is_nothing_found():
    assert not Carrier().fit(BENCH, QUICK, []).passed


def test_a_bench_without_samples_is_refused():
    access = ClosedFormAccess(small_bench(waveform={"level": "symbols"}), senders())
    with pytest.raises(ConfigError, match="level"):
        calibrate(Carrier(), access, QUICK)


@pytest.mark.parametrize(("backend", "opened"), [("sim", open_bench), ("emulated", open_emulated)])
def test_opened_benches_give_the_oscillators_that_were_drawn(tmp_path, backend, opened):
    impairments = {"oscillator_ppm": 2.0, "drift_ppm_s": 0.01, "phase_noise_deg": 1.0}
    bench = small_bench(world={"excess_loss_db": 30.0, "impairments": impairments})
    devices = opened(bench, seed=1, folder=tmp_path, node_processes=1)
    try:
        access = Access(bench, devices, backend)
        access.open_nodes()
        fit, _ = calibrate(Carrier(), access, CarrierOptions(seconds=0.05, repeats=2, interval_s=0.5))
    finally:
        devices.close()
    assert fit.passed, fit.why
    at_s = fit.values["at"].value
    for index, name in enumerate(bench.node_names):
        truth = Crystal.draw(bench, index, 1)
        found = fit.values[f"{name}.offset"]
        error = found.value - truth.offset - truth.drift_s * at_s
        assert abs(error) * bench.carrier_hz < 0.1
        assert abs(error) < 5 * found.std
        assert fit.values[f"{name}.clock_offset"].value == pytest.approx(truth.offset + truth.drift_s * at_s, abs=2e-8)
