import numpy as np
import pytest

from testbed.core.bench import BenchSpec, WaveformSpec
from testbed.core.devices import Capabilities
from testbed.phy import coherence, ofdm

WAVEFORM = WaveformSpec()
RATE_HZ = 5e6


def complex_normal(generator, *shape):
    return generator.standard_normal((*shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)


def bench(impairments=None, waveform=None, **radio):
    return BenchSpec.model_validate(
        {
            "name": "bench",
            "radio": radio,
            "waveform": waveform or {},
            "array": {
                "origin_m": [0, 0, 0],
                "region_m": [[0, 1], [0, 1]],
                "min_spacing_m": 0.0,
                "antennas": [{"home_m": [0, 0]}],
            },
            "nodes": [{"count": 2}],
            "world": {"impairments": impairments or {}},
        }
    )


# --- phases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase_std_rad", [0.05, 0.3, 1.0, 2.0])
def test_random_phases_leave_the_mean_amplitude_of_the_closed_form(phase_std_rad):
    phases = np.random.default_rng(1).normal(0, phase_std_rad, 200_000)
    assert np.mean(np.exp(1j * phases)) == pytest.approx(float(coherence.mean_rotation(phase_std_rad)), abs=0.009)


@pytest.mark.parametrize("phase_std_rad", [0.1, 0.5, 1.5])
def test_misaligned_nodes_leave_the_error_of_the_closed_form_in_every_value(phase_std_rad):
    generator = np.random.default_rng(2)
    amplitude = np.array([0.3, 1.0, 0.7, 0.1])
    draws, num_values = 40_000, 10
    values = generator.standard_normal((draws, 4, num_values)) * amplitude[:, None]
    phases = generator.normal(0, phase_std_rad, (draws, 4, 1))
    symbols = ofdm.pack_values(values)
    received = ofdm.unpack_values(np.sum(symbols * np.exp(1j * phases), axis=1), num_values)
    error = received - np.sum(values, axis=1)
    assert np.mean(error**2) == pytest.approx(coherence.misalignment_mse(amplitude**2, phase_std_rad), rel=0.03)


def test_misalignment_is_shrinkage_and_scatter_and_adds_over_nodes():
    power, phase_std_rad = np.array([1.0, 2.0]), np.array([0.4, 0.9])
    rotation = coherence.mean_rotation(phase_std_rad)
    expected = power @ ((1 - rotation) ** 2 + 1 - rotation**2)
    assert coherence.misalignment_mse(power, phase_std_rad) == pytest.approx(expected, rel=1e-12)
    # small angles: their variance; lost phases: twice the power; exact where the difference to 1 is not representable
    assert coherence.misalignment_mse(np.ones(1), 1e-9) == pytest.approx(1e-18, rel=1e-12)
    assert coherence.misalignment_mse(np.ones(3), 50.0) == pytest.approx(6.0)
    with pytest.raises(ValueError, match="negative"):
        coherence.misalignment_mse(np.array([-1.0]), 0.1)
    with pytest.raises(ValueError, match="negative"):
        coherence.misalignment_mse(np.array([np.nan]), 0.1)


def test_ten_hertz_for_ten_milliseconds_turn_by_36_degrees():
    assert np.rad2deg(coherence.phase_std_of_offset(10.0, 10e-3)) == pytest.approx(36.0)


def test_a_drift_turns_the_phase_with_the_square_of_time():
    # the phase is 2 pi times the integral of a frequency that grows steadily
    steps = np.linspace(0, 20e-3, 200_001)
    turned = 2 * np.pi * np.sum(700.0 * steps[1:]) * 20e-3 / 200_000
    assert coherence.phase_std_of_drift(700.0, 20e-3) == pytest.approx(turned, rel=1e-4)


@pytest.mark.parametrize("start_jitter_s", [10e-9, 100e-9])
def test_a_late_start_turns_the_subcarriers_as_the_closed_form_says(start_jitter_s):
    # a start late by whole samples inside the prefix, seen through the modem; late by any time it is proportional
    symbols = np.ones(WAVEFORM.num_active)
    late = np.roll(ofdm.modulate(symbols, WAVEFORM), 1)
    ordered = np.argsort(np.fft.fftfreq(WAVEFORM.num_active))
    phases = np.unwrap(np.angle(ofdm.demodulate(late, WAVEFORM)[ordered]))
    per_second = (phases - np.mean(phases)) * RATE_HZ
    measured = np.sqrt(np.mean(per_second**2)) * start_jitter_s
    assert coherence.phase_std_of_jitter(start_jitter_s, WAVEFORM, RATE_HZ) == pytest.approx(measured, rel=1e-4)


@pytest.mark.parametrize("elapsed_s", [2e-6, 20e-6, 200e-6])
def test_phase_noise_moves_between_two_instants_as_the_closed_form_says(elapsed_s):
    generator = np.random.default_rng(3)
    rms_rad, corner_hz, steps, draws = 0.05, 1e4, 200, 40_000
    # small Euler steps of dtheta = -2 pi f_c theta dt + dW, for transmitter and receiver
    step = 2 * np.pi * corner_hz * elapsed_s / steps
    start = rms_rad * generator.standard_normal((2, draws))
    phase = start.copy()
    for _ in range(steps):
        phase += -step * phase + rms_rad * np.sqrt(2 * step) * generator.standard_normal((2, draws))
    moved = np.std(np.sum(phase - start, axis=0))
    assert coherence.phase_std_of_noise(rms_rad, corner_hz, elapsed_s, num_synthesisers=2) == pytest.approx(
        moved, rel=0.02
    )


def test_phase_noise_has_its_limits():
    assert coherence.phase_std_of_noise(0.1, 1e4, 0.0) == 0.0
    assert coherence.phase_std_of_noise(0.1, 1e4, 1.0) == pytest.approx(0.1 * np.sqrt(2))
    assert coherence.phase_std_of_noise(0.1, 1e4, 1.0, num_synthesisers=2) == pytest.approx(0.2)


@pytest.mark.parametrize("num_pilots", [2, 4, 8])
def test_the_likeliest_offset_scatters_as_its_bound_says(num_pilots):
    generator = np.random.default_rng([4, num_pilots])
    draws, snr, true_hz = 20_000, 10.0, 37.0
    block_s = 320 / RATE_HZ
    turns = np.exp(2j * np.pi * true_hz * block_s * np.arange(num_pilots))
    # correlation of each block with its pilots: 192 symbols add up
    blocks = turns + complex_normal(generator, draws, num_pilots) / np.sqrt(snr * WAVEFORM.num_active)
    # maximum likelihood by Newton steps on the periodogram, from the truth
    estimate = np.full(draws, 2 * np.pi * true_hz * block_s)
    index = np.arange(num_pilots)
    for _ in range(4):
        turned = blocks * np.exp(-1j * estimate[:, None] * index)
        total, first, second = (np.sum(turned * index**power, axis=1) for power in (0, 1, 2))
        slope = 2 * np.imag(np.conj(total) * first)
        bend = 2 * (np.abs(first) ** 2 - np.real(np.conj(total) * second))
        estimate -= slope / bend
    scatter_hz = np.std(estimate) / (2 * np.pi * block_s)
    assert coherence.offset_std_hz(num_pilots, snr, WAVEFORM, RATE_HZ) == pytest.approx(scatter_hz, rel=0.03)


def test_an_offset_needs_two_pilots_and_a_signal():
    for num_pilots, snr in [(1, 10.0), (4, 0.0), (4, np.nan)]:
        with pytest.raises(ValueError, match="no offset"):
            coherence.offset_std_hz(num_pilots, snr, WAVEFORM, RATE_HZ)


# --- converters and mixers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacings", [0.02, 0.2, 0.5, 1.3])
@pytest.mark.parametrize("num_active", [192, 254, 128])
def test_a_carrier_offset_leaks_between_subcarriers_as_the_closed_form_says(spacings, num_active):
    waveform = WaveformSpec(num_active=num_active)
    generator = np.random.default_rng(5)
    blocks, size, prefix = 400, waveform.num_subcarriers, waveform.cyclic_prefix
    symbols = np.exp(0.5j * np.pi * generator.integers(0, 4, blocks * num_active))
    # every block meets the offset with the same phase at the start of its body
    turn = np.exp(2j * np.pi * spacings / size * (np.arange(prefix + size) - prefix))
    samples = ofdm.modulate(symbols, waveform).reshape(blocks, -1) * turn
    received = ofdm.demodulate(samples.reshape(-1), waveform)
    own = np.mean(turn[prefix:])
    leaked = np.mean(np.abs(received - own * symbols) ** 2)
    predicted = coherence.intercarrier_interference(spacings * RATE_HZ / size, waveform, RATE_HZ)
    assert predicted == pytest.approx(leaked, rel=0.02)


def test_small_offsets_leak_a_third_of_their_phase_squared_and_whole_ones_everything():
    full = WaveformSpec(num_active=254)
    spacing_hz = RATE_HZ / full.num_subcarriers
    predicted = coherence.intercarrier_interference(0.01 * spacing_hz, full, RATE_HZ)
    assert predicted == pytest.approx((np.pi * 0.01) ** 2 / 3, rel=0.02)
    assert coherence.intercarrier_interference(0.0, full, RATE_HZ) == pytest.approx(0.0, abs=1e-25)
    # one spacing off: all but the two subcarriers beside the gap at DC and the edge hear their neighbour
    assert coherence.intercarrier_interference(spacing_hz, full, RATE_HZ) == pytest.approx(252 / 254)


@pytest.mark.parametrize(
    ("bits", "headroom_db"), [(1, 3.0), (2, 3.0), (4, 0.0), (4, 9.0), (8, 12.0), (12, 6.0), (12, 12.0)]
)
def test_converters_round_and_clip_as_much_as_the_closed_form_says(bits, headroom_db):
    generator = np.random.default_rng([6, bits])
    signal = complex_normal(generator, 1_000_000)
    full_scale = 10 ** (headroom_db / 20)
    step = 2 * full_scale / 2**bits
    codes = np.clip(np.rint(signal.view(np.float64) / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    error = np.mean((step * codes - signal.view(np.float64)) ** 2) / np.mean(np.abs(signal) ** 2) * 2
    assert coherence.quantisation_noise(bits, 10 ** (headroom_db / 10)) == pytest.approx(error, rel=0.03)


def test_many_bits_leave_a_twelfth_of_the_step_squared():
    headroom = 10**1.5
    step = 2 * np.sqrt(2 * headroom) / 2**10
    assert coherence.quantisation_noise(10, headroom) == pytest.approx(step**2 / 12, rel=1e-3)
    finest = coherence.quantisation_noise(16, headroom)
    assert finest == pytest.approx((step / 64) ** 2 / 12, rel=1e-2)
    # clipping alone does not depend on bits
    assert coherence.quantisation_noise(14, 0.5) == pytest.approx(coherence.quantisation_noise(10, 0.5), rel=1e-2)


def test_an_image_is_rejected_as_the_mixer_says():
    generator = np.random.default_rng(7)
    signal = complex_normal(generator, 200_000)
    gain, phase_rad = 10 ** (0.5 / 20), np.deg2rad(3.0)
    received = signal.real + 1j * gain * (signal.imag * np.cos(phase_rad) + signal.real * np.sin(phase_rad))
    # least squares on the signal and its mirror image
    basis = np.stack([signal, signal.conj()], axis=1)
    wanted, image = np.linalg.lstsq(basis, received, rcond=None)[0]
    measured = abs(wanted) ** 2 / abs(image) ** 2
    assert coherence.image_rejection(gain, phase_rad) == pytest.approx(measured, rel=1e-6)
    assert coherence.image_rejection(1.0, 0.0) == np.inf
    assert coherence.image_rejection(1.0, 1e-9) == pytest.approx(4e18, rel=1e-6)


def test_converters_and_mixers_that_cannot_be_are_refused():
    for bits, headroom in [(0, 1.0), (21, 1.0), (8, 0.0), (8, -1.0), (8, np.inf), (8, np.nan)]:
        with pytest.raises(ValueError, match="no converter"):
            coherence.quantisation_noise(bits, headroom)
    with pytest.raises(ValueError, match="gain"):
        coherence.image_rejection(0.0, 0.1)


# --- what a bench's radios can promise --------------------------------------------------------------------------------


def test_radios_without_impairments_can_do_all_but_duplex():
    flags = coherence.radio_flags(bench())
    assert flags == {"timed_tx": True, "shared_clock": True, "phase_coherent": True, "full_duplex": False}
    assert tuple(flags) == Capabilities.FLAGS
    assert coherence.misalignment_floor(bench()) == 0.0


@pytest.mark.parametrize("flag", Capabilities.FLAGS)
def test_a_flag_in_the_file_wins_over_what_figures_imply(flag):
    broken = {"oscillator_ppm": 20.0, "phase_jumps": "burst"}
    assert coherence.radio_flags(bench(broken, start_jitter_s=1e-3, **{flag: True}))[flag]
    assert not coherence.radio_flags(bench(**{flag: False}))[flag]


def test_six_deviations_of_jitter_have_to_fit_into_the_prefix():
    # 64 samples at 5 MS/s are 12.8 us
    assert coherence.radio_flags(bench(start_jitter_s=2.1e-6))["timed_tx"]
    late = bench(start_jitter_s=2.2e-6, trigger="network")
    assert not coherence.radio_flags(late)["timed_tx"]
    assert coherence.radio_flags(bench(start_jitter_s=2.2e-6, waveform={"cyclic_prefix": 128}))["timed_tx"]
    sentence = coherence.why_not(late, "timed_tx")
    for part in ("radio.start_jitter_s = 2.2e-06", "network", "13.2 us", "12.8 us"):
        assert part in sentence


@pytest.mark.parametrize("impairments", [{"oscillator_ppm": 0.4}, {"drift_ppm_s": 0.01}])
def test_oscillators_that_differ_or_drift_share_no_clock(impairments):
    flags = coherence.radio_flags(bench(impairments))
    assert not flags["shared_clock"]
    assert flags["timed_tx"]
    sentence = coherence.why_not(bench(impairments), "shared_clock")
    assert "oscillator_ppm" in sentence
    assert "drift_ppm_s" in sentence
    assert ("980 Hz apart" in sentence) == ("oscillator_ppm" in impairments)


def test_phases_that_jump_with_every_burst_are_not_coherent_but_those_that_jump_when_tuned_are():
    jumping = bench({"phase_jumps": "burst"})
    assert not coherence.radio_flags(jumping)["phase_coherent"]
    assert "phase_jumps" in coherence.why_not(jumping, "phase_coherent")
    assert coherence.radio_flags(bench({"phase_jumps": "tune"}))["phase_coherent"]


def test_the_floor_is_the_sum_of_independent_phase_errors():
    spec = bench({"phase_noise_deg": 2.0, "oscillator_ppm": 1.0}, start_jitter_s=10e-9)
    generator = np.random.default_rng(8)
    errors = coherence.predicted_phase_errors(spec)
    # 4 blocks of 192 pilots at 20 dB, 64 us apart, bound the offset to 5.7 Hz, which is 0.18 rad in 5 ms
    assert errors["world.impairments.oscillator_ppm"] == pytest.approx(0.1785, abs=0.001)
    # start of the sounding and start of the data
    assert errors["radio.start_jitter_s"] == pytest.approx(2 * np.pi * 1.091e6 * 10e-9 * np.sqrt(2), rel=1e-3)
    # independent at two instants
    assert errors["world.impairments.phase_noise_deg"] == pytest.approx(np.sqrt(2) * np.deg2rad(2.0), rel=1e-6)
    phases = sum(std * generator.standard_normal(400_000) for std in errors.values())
    measured = np.mean(np.abs(np.exp(1j * phases) - 1) ** 2)
    assert coherence.misalignment_floor(spec) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(
    ("impairments", "radio", "key"),
    [
        (
            {"oscillator_ppm": 20.0, "phase_noise_deg": 7.0, "drift_ppm_s": 0.9},
            {"start_jitter_s": 18e-9},
            "world.impairments.oscillator_ppm",
        ),
        ({"drift_ppm_s": 9.0, "oscillator_ppm": 1.0}, {}, "world.impairments.drift_ppm_s"),
        ({}, {"start_jitter_s": 100e-9}, "radio.start_jitter_s"),
        ({"phase_noise_deg": 15.0}, {}, "world.impairments.phase_noise_deg"),
    ],
)
def test_a_floor_above_a_tenth_is_refused_with_its_largest_cause(impairments, radio, key):
    spec = bench(impairments, **radio)
    assert coherence.misalignment_floor(spec) > 0.1
    assert not coherence.radio_flags(spec)["phase_coherent"]
    sentence = coherence.why_not(spec, "phase_coherent")
    assert f"come from {key}" in sentence
    assert "10 % are allowed" in sentence
    assert f"{100 * coherence.misalignment_floor(spec):.3g} %" in sentence


def test_clocks_closer_than_an_estimate_could_tell_stay_coherent():
    assert coherence.radio_flags(bench({"oscillator_ppm": 1e-3}))["phase_coherent"]
    assert coherence.radio_flags(bench({"oscillator_ppm": 20.0}, shared_clock=True))["phase_coherent"]
    # an offset that is said to be there and not how large is as good as its estimate
    errors = coherence.predicted_phase_errors(bench(shared_clock=False))
    assert errors["world.impairments.oscillator_ppm"] == pytest.approx(0.1785, abs=0.001)
    assert coherence.misalignment_floor(bench({"oscillator_ppm": 20.0})) < 0.1
    # what is left of the offset goes on turning
    assert coherence.misalignment_floor(bench({"oscillator_ppm": 20.0}), hold_s=10e-3) > 0.1


def test_fixed_delays_count_for_timing_as_jitter_does():
    assert coherence.radio_flags(bench({"start_offset_s": 1e-6}))["timed_tx"]
    assert not coherence.radio_flags(bench({"start_offset_s": 1.5e-6}, start_jitter_s=1.6e-6))["timed_tx"]
    assert "start_offset_s" in coherence.why_not(bench({"start_offset_s": 1e-3}), "timed_tx")


def test_reasons_name_what_the_file_says_and_what_only_simulation_derives():
    assert coherence.why_not(bench(phase_coherent=False), "phase_coherent") == "radio.phase_coherent = false says so"
    assert coherence.why_not(bench(), "full_duplex") == "radio.full_duplex = false says so"
    assert "measure it" in coherence.why_not(bench(), "timed_tx")
    with pytest.raises(ValueError, match="no capability telepathy"):
        coherence.why_not(bench(), "telepathy")


def test_alternatives_are_what_timing_and_phases_leave():
    assert coherence.alternatives(bench()) == (
        "these radios can carry coherent sums and one-bit votes (Analogue, OneBit), "
        "non-coherent majority votes (MajorityVote) and packets (Digital)"
    )
    assert coherence.alternatives(bench({"phase_jumps": "burst"})) == (
        "these radios can carry non-coherent majority votes (MajorityVote) and packets (Digital)"
    )
    assert coherence.alternatives(bench(start_jitter_s=1e-3)) == "these radios can carry packets (Digital)"
