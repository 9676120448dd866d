"""The phase calibration says how long phases hold, and claims coherence only where it is there."""

import json
import math

import numpy as np
import pytest

from calibration.access import Access
from calibration.phase import Phase, PhaseOptions
from calibration.routine import Routine
from sim_backend.emulated import open_bench as open_emulated
from sim_backend.open import open_bench
from testbed.core.errors import ConfigError
from testbed.phy.coherence import offset_std_hz, radio_flags
from testbed.phy.holding import foretell
from tests.benches import small_bench
from tests.closed_form_access import ClosedFormAccess, Transmitter, calibrate

BENCH = small_bench()
POWER_W = 10e-3 * 1e-8
AT_20_DB = POWER_W / 100
OPTIONS = PhaseOptions(captures=24)


def senders(**changes):
    return {name: Transmitter(**changes) for name in BENCH.node_names}


# --- the pure part ----------------------------------------------------------------------------------------------------


def soundings(generator, count=60, *, constant_rad=0.0, offset_std_hz=0.0, num_antennas=2):
    """Channels of one path whose phases jitter, and offsets that err."""
    at_s = np.cumsum(generator.uniform(2e-3, 4e-3, count))
    phase_rad = constant_rad / np.sqrt(2) * generator.standard_normal(count) + 2 * np.pi * 100.0 * at_s
    channel = np.exp(1j * phase_rad)[:, None] * np.ones(num_antennas)
    return channel, at_s, 100.0 + offset_std_hz * generator.standard_normal(count)


def test_errors_of_offsets_grow_with_time_and_what_jumps_stays():
    generator = np.random.default_rng(1)
    channel, at_s, offset_hz = soundings(generator, 200, constant_rad=0.2, offset_std_hz=8.0)
    found = foretell(channel, at_s, offset_hz, noise=0.0, longest_s=0.05)
    assert math.sqrt(found.constant) == pytest.approx(0.2, rel=0.3)
    assert math.sqrt(found.growth) == pytest.approx(2 * np.pi * 8.0, rel=0.2)
    variance, std = found.variance_at(5e-3)
    truth = 0.2**2 + (2 * np.pi * 8.0 * 5e-3) ** 2
    assert abs(variance - truth) < max(4 * std, 0.2 * truth)
    time_s, time_std_s = found.time_until(0.1)
    assert time_s == pytest.approx(math.sqrt(0.1 - 0.04) / (2 * np.pi * 8.0), rel=0.2)
    assert 0 < time_std_s < time_s


def test_random_phases_leave_nothing_and_steady_ones_everything():
    generator = np.random.default_rng(2)
    channel, at_s, offset_hz = soundings(generator)
    steady = foretell(channel, at_s, offset_hz, noise=0.0, longest_s=0.1)
    assert not steady.lost
    assert steady.variance_at(0.1)[0] < 1e-6
    assert steady.time_until(0.1) == (float(steady.lag_s[-1]), math.inf)
    for _ in range(20):
        jumped = channel * np.exp(2j * np.pi * generator.random((len(at_s), 1)))
        lost = foretell(jumped, at_s, offset_hz, noise=0.0, longest_s=0.1)
        assert lost.lost
        assert lost.variance_at(1e-3) == (math.inf, 0.0)
        assert lost.time_until(0.1) == (0.0, float(lost.lag_s[0]))
    with pytest.raises(ValueError, match="too few"):
        foretell(channel[:3], at_s[:3], offset_hz[:3], noise=0.0, longest_s=0.1)


# --- the routine ------------------------------------------------------------------------------------------------------


def test_it_is_a_routine_whose_steps_are_json_and_known_in_number():
    routine: Routine = Phase()
    fit, done = calibrate(routine, ClosedFormAccess(BENCH, senders(), noise_w=AT_20_DB), OPTIONS)
    assert fit.passed, fit.why
    assert len(done) == routine.num_steps(BENCH, OPTIONS)
    assert [json.loads(json.dumps(step)) for step, _ in done] == [dict(step) for step, _ in done]
    assert not vars(routine)


def test_with_a_shared_clock_phases_hold_for_as_long_as_was_measured():
    access = ClosedFormAccess(BENCH, senders(gains=(1e-4j, 1e-4, 1e-4)), noise_w=AT_20_DB, shared_clock=True)
    fit, _ = calibrate(Phase(), access, OPTIONS)
    assert fit.values["phase_coherent"].value == 1.0
    assert "phase_coherent may be claimed" in fit.why
    assert "no reciprocity constants" in fit.why
    phase = fit.values["node-00.phase"]
    assert phase.value == pytest.approx(math.pi / 2, abs=5 * phase.std)
    assert phase.std < 0.02
    assert fit.values["node-00.coherence"].value > 0.01
    assert math.isinf(fit.values["node-00.coherence"].std)


def test_without_one_they_hold_for_as_long_as_a_sounding_tells_the_offset():
    # three antennas, each at -80 dB of the full power: 20 dB at one, 25 dB together
    access = ClosedFormAccess(BENCH, senders(offset_hz=3000.0), noise_w=AT_20_DB, seed=3)
    fit, _ = calibrate(Phase(), access, PhaseOptions(captures=60))
    bound_hz = offset_std_hz(4, 300.0 * 256 / 192, BENCH.waveform, BENCH.sample_rate_hz)
    expected_s = math.sqrt(-2 * math.log(0.95)) / (2 * np.pi * bound_hz)
    for name in BENCH.node_names:
        assert fit.values[f"{name}.coherence"].value == pytest.approx(expected_s, rel=0.35)
    assert fit.values["phase_coherent"].value == 1.0


@pytest.mark.parametrize(
    ("changes", "noise_w", "sentence"),
    [
        ({"jumps": True}, AT_20_DB, "nothing is left of the phase of node-00, node-01 and node-02"),
        ({"phase_noise_rad": 0.35}, AT_20_DB, "% are allowed"),
        ({"offset_hz": 3000.0}, 30 * AT_20_DB, "soundings tell its carrier to"),
    ],
)
def test_coherence_is_not_claimed_where_it_is_not_there(changes, noise_w, sentence):
    fit, _ = calibrate(Phase(), ClosedFormAccess(BENCH, senders(**changes), noise_w=noise_w), OPTIONS)
    assert fit.passed
    assert fit.values["phase_coherent"].value == 0.0
    assert "phase_coherent cannot be claimed" in fit.why
    assert sentence in fit.why


def test_phases_that_jump_have_no_phase_and_no_coherence_time():
    fit, _ = calibrate(Phase(), ClosedFormAccess(BENCH, senders(jumps=True), noise_w=AT_20_DB), OPTIONS)
    assert math.isinf(fit.values["node-01.phase"].std)
    coherence = fit.values["node-01.coherence"]
    assert coherence.value == 0.0
    assert 0 < coherence.std < 0.01


@pytest.mark.parametrize(
    ("changes", "world", "sentence"),
    [
        ({"silent": True}, {}, "of 24 soundings of node-00 0 were found: nothing but noise arrives"),
        ({}, {"rail": 1e-6}, "the phases mean nothing: the receiver saturates"),
        ({}, {"noise_w": 1e-8}, "the band is occupied"),
        ({"silent": True}, {"jammer": (1e-6, 0.1)}, "somebody else transmits at 2450.500 MHz"),
    ],
)
def test_what_cannot_be_measured_is_no_number_but_a_sentence(changes, world, sentence):
    settings = {"noise_w": AT_20_DB, **world}
    fit, _ = calibrate(Phase(), ClosedFormAccess(BENCH, senders(**changes), **settings), OPTIONS)
    assert not fit.passed
    assert not fit.values
    assert sentence in fit.why


def test_nothing_measured_is_nothing_found_and_a_bench_without_samples_is_refused():
    assert not Phase().fit(BENCH, OPTIONS, []).passed
    with pytest.raises(ConfigError, match="level"):
        calibrate(Phase(), ClosedFormAccess(small_bench(waveform={"level": "symbols"}), senders()), OPTIONS)


@pytest.mark.parametrize("impairments", [{}, {"phase_noise_deg": 20.0}, {"phase_jumps": "burst"}])
def test_the_simulated_bench_keeps_what_its_figures_promise(tmp_path, impairments):
    bench = small_bench(world={"excess_loss_db": 30.0, "impairments": impairments})
    fit = opened_fit(tmp_path, "sim", open_bench, bench)
    assert fit.passed, fit.why
    assert bool(fit.values["phase_coherent"].value) is radio_flags(bench)["phase_coherent"]


def test_the_emulated_bench_keeps_what_its_figures_promise(tmp_path):
    bench = small_bench(world={"excess_loss_db": 30.0, "impairments": {"phase_jumps": "burst"}})
    fit = opened_fit(tmp_path, "emulated", open_emulated, bench)
    assert fit.passed, fit.why
    assert fit.values["phase_coherent"].value == 0.0


def opened_fit(folder, backend, opened, bench):
    devices = opened(bench, seed=1, folder=folder, node_processes=1)
    try:
        access = Access(bench, devices, backend)
        access.open_nodes()
        return calibrate(Phase(), access, OPTIONS)[0]
    finally:
        devices.close()
