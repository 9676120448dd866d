import dataclasses
import math

import numpy as np
import pytest

from sim_backend import impairments
from sim_backend.air import Burst
from sim_backend.open import open_bench, open_node
from sim_backend.radio import SimReceiver, SimTransmitter
from sim_backend.receive_chain import ReceiveChain
from sim_backend.resample import HALF_TAPS, resampled
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError, LimitError, ProtocolError, RadioFault
from testbed.core.world_specs import ImpairmentsSpec
from testbed.phy import ofdm

RATE_HZ = 5e6
POSITIONS_M = np.array([[0.0, 0.0], [0.1, 0.0], [0.1, 0.2]])


def bench_with(*, level: str = "samples", radio=None, selective: bool = False, noise: bool = False, **own) -> BenchSpec:
    world = {
        "impairments": own,
        "temperature_k": 290.0 if noise else 0.0,
        "selective": selective,
        "model": "isotropic",
        "delay_spread_s": 100e-9,
    }
    array = {
        "origin_m": [5.0, 0.1, 1.5],
        "region_m": [[0.0, 0.5], [0.0, 0.5]],
        "min_spacing_m": 0.0,
        "antennas": [{"home_m": point} for point in POSITIONS_M.tolist()],
    }
    return BenchSpec.model_validate(
        {
            "name": "hardware",
            "waveform": {"level": level},
            "radio": radio or {},
            "array": array,
            "nodes": [{"name": "n{:d}", "count": 3}],
            "world": world,
        }
    )


class Medium:
    """Both ends of a medium without sockets."""

    def __init__(self) -> None:
        self.posts: list[Burst] = []

    def post(self, node: str, at_s: float, samples: np.ndarray) -> None:
        self.posts.append(Burst(node, at_s, samples))

    def bursts(self, at_s: float, num_samples: int) -> list[Burst]:
        return list(self.posts)

    def drop_until(self, at_s: float) -> None:
        pass

    def close(self) -> None:
        pass


def radiated(bench: BenchSpec, samples: np.ndarray, *, at_s: float = 0.0, node: str = "n0", seed: int = 1) -> Burst:
    medium = Medium()
    SimTransmitter(bench, node=node, port=medium, seed=seed).transmit(samples, at_s=at_s)  # type: ignore[arg-type]
    return medium.posts[0]


def captured(
    bench: BenchSpec, num_elements: int, *, at_s: float = 0.0, bursts=(), combiner=None, seed: int = 1, world=None
) -> np.ndarray:
    medium = Medium()
    medium.posts.extend(bursts)
    world = world or World(bench, 1)
    radio = SimReceiver(bench, world=world, hub=medium, positions_m=lambda: POSITIONS_M, seed=seed)  # type: ignore[arg-type]
    radio.arm(num_elements, at_s=at_s)
    return radio.read(combiner)


def normals(seed: int, num_samples: int, power_w: float = 0.005) -> np.ndarray:
    pairs = np.random.default_rng(seed).standard_normal((num_samples, 2))
    return (math.sqrt(power_w / 2) * pairs @ np.array([1, 1j])).astype(np.complex64)


def tone(frequency: float, num_samples: int, amplitude: float = 0.05) -> np.ndarray:
    return (amplitude * np.exp(2j * np.pi * frequency * np.arange(num_samples))).astype(np.complex64)


def decibels(ratio: float) -> float:
    return 10 * math.log10(ratio)


def power(values: np.ndarray) -> float:
    return float(np.mean(np.abs(values) ** 2, dtype=np.float64))


# resampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stretch", [0.0, 2e-5, -2e-5, 3e-4, -2e-3])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.93])
def test_resampling_errs_below_minus_50_db_up_to_0_8_of_nyquist(fraction, stretch):
    generator = np.random.default_rng(1)
    frequencies = np.concatenate([generator.uniform(-0.4, 0.4, 20), [-0.4, 0.4]])
    gains = generator.standard_normal(22) + 1j * generator.standard_normal(22)

    def signal(instants: np.ndarray) -> np.ndarray:
        return np.exp(2j * np.pi * np.multiply.outer(instants, frequencies)) @ gains

    out = resampled(signal(np.arange(6_000)).astype(np.complex64), fraction=fraction, stretch=stretch)
    inside = np.arange(2 * HALF_TAPS, 5_900)
    expected = signal((1 + stretch) * (inside - HALF_TAPS - fraction))
    assert decibels(power(out[inside] - expected) / power(expected)) < -55
    for frequency in (-0.4, 0.4):  # each alone, at the edge
        alone = resampled(tone(frequency, 6_000, 1.0), fraction=fraction, stretch=stretch)[inside]
        expected = np.exp(2j * np.pi * frequency * (1 + stretch) * (inside - HALF_TAPS - fraction))
        assert decibels(power(alone - expected)) < -50


def test_a_resampled_burst_keeps_its_energy_and_its_edges():
    burst = np.hanning(501).astype(np.complex64)
    out = resampled(burst, fraction=0.5, stretch=0.0)
    assert np.vdot(out, out).real == pytest.approx(np.vdot(burst, burst).real, rel=5e-4)
    centre = np.sum(np.arange(out.size) * np.abs(out) ** 2) / np.sum(np.abs(out) ** 2)
    assert centre == pytest.approx(250 + HALF_TAPS + 0.5, abs=1e-4)


@pytest.mark.parametrize(("fraction", "stretch"), [(1.0, 0.0), (-0.1, 0.0), (0.0, 0.02), (float("nan"), 0.0)])
def test_resampling_refuses_what_it_cannot(fraction, stretch):
    with pytest.raises(ValueError, match=r"fraction =|stretch ="):
        resampled(np.ones(10, np.complex64), fraction=fraction, stretch=stretch)


# transmit side -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_ideal_radios_change_nothing(level):
    burst = normals(1, 1920)
    sent = radiated(bench_with(level=level), burst, at_s=1.25)
    assert sent.at_s == 1.25
    np.testing.assert_array_equal(sent.samples, burst)


@pytest.mark.parametrize(("gain_db", "phase_deg"), [(0.5, 0.0), (0.0, 3.0), (-1.0, 5.0)])
def test_unequal_branches_leave_an_image_of_the_known_strength(gain_db, phase_deg):
    g, phi = 10 ** (gain_db / 20), math.radians(phase_deg)
    rejection = (1 + 2 * g * math.cos(phi) + g**2) / (1 - 2 * g * math.cos(phi) + g**2)
    burst = tone(100 / 1000, 10_000)
    sent = radiated(bench_with(tx_iq_gain_db=gain_db, tx_iq_phase_deg=phase_deg), burst).samples
    received = burst[None].copy()
    ReceiveChain(ImpairmentsSpec(rx_iq_gain_db=gain_db, rx_iq_phase_deg=phase_deg), seed=0).receive(received)
    for out in (sent, received[0]):
        lines = np.abs(np.fft.fft(out[:10_000])) ** 2
        assert decibels(lines[1000] / lines[-1000]) == pytest.approx(decibels(rejection), abs=0.02)


def test_unequal_branches_act_on_the_branches():
    samples = normals(1, 100)
    sent = radiated(bench_with(tx_iq_gain_db=6.0, tx_iq_phase_deg=10.0), samples).samples
    g, phi = 10 ** (6.0 / 20), math.radians(10.0)
    np.testing.assert_allclose(sent, samples.real + 1j * g * np.exp(1j * phi) * samples.imag, rtol=1e-5)
    received = samples[None].copy()
    ReceiveChain(ImpairmentsSpec(rx_iq_gain_db=6.0, rx_iq_phase_deg=10.0), seed=0).receive(received)
    skewed = g * (samples.imag * math.cos(phi) - samples.real * math.sin(phi))
    np.testing.assert_allclose(received[0], samples.real + 1j * skewed, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [6, 8, 10])
def test_a_converter_keeps_6_decibels_a_bit(bits):
    # up to the highest code, which is one step below full scale; 997 turns, so that phases do not repeat
    share = 1 - 2 ** (1 - bits)
    burst = tone(997 / 40_000, 40_000, amplitude=share * math.sqrt(0.01))
    backoff_db = -20 * math.log10(share)
    sent = radiated(bench_with(dac_bits=bits, dac_headroom_db=0.0), burst).samples
    received = burst[None].copy()
    ReceiveChain(ImpairmentsSpec(adc_bits=bits, adc_full_scale_dbm=10.0), seed=0).receive(received)
    for out in (sent, received[0]):
        assert decibels(power(burst) / power(out - burst)) == pytest.approx(6.02 * bits + 1.76 - backoff_db, abs=0.3)


def test_quantisation_noise_is_that_of_uniform_errors():
    burst = normals(2, 100_000)
    sent = radiated(bench_with(dac_bits=10, dac_headroom_db=12.0), burst).samples
    step = 2 * math.sqrt(0.01 * 10**1.2) / 2**10
    assert power(sent - burst) == pytest.approx(2 * step**2 / 12, rel=0.02)
    assert np.abs((sent - burst).view(np.float32)).max() <= step / 2 * 1.001


def test_amplitudes_beyond_the_converters_scale_are_refused():
    bench = bench_with(dac_bits=12, dac_headroom_db=6.0)
    scale = math.sqrt(0.01 * 10**0.6)
    burst = np.full(320, 0.01, np.complex64)
    for spike in (1.001 * scale, -1.001j * scale):
        burst[200] = spike
        with pytest.raises(LimitError, match="full scale"):
            radiated(bench, burst)
    burst[200] = scale  # the highest code is one step below
    assert radiated(bench, burst).samples[200].real == pytest.approx(scale * (1 - 2 / 2**12))


def test_the_carrier_leak_and_the_filter_loss_are_as_told():
    silence = np.zeros(1000, np.complex64)
    leak = radiated(bench_with(tx_dc_db=-30.0), silence).samples
    assert power(leak) == pytest.approx(0.01 * 1e-3, rel=1e-5)
    assert np.ptp(leak.view(np.float32)[::2]) == 0
    burst = normals(3, 1000)
    np.testing.assert_allclose(radiated(bench_with(fir_loss_db=6.0), burst).samples, burst * 10**-0.3, rtol=1e-5)


@pytest.mark.parametrize("smoothness", [0.5, 1.0, 3.0, 20.0])
def test_the_amplifier_follows_rapps_curve_and_keeps_the_phase(smoothness):
    amplitude = np.geomspace(1e-4, 100, 200)
    samples = (amplitude * np.exp(0.7j)).astype(np.complex64)
    impairments.rapp(samples, 0.04, smoothness)
    expected = amplitude / (1 + (amplitude / 0.2) ** (2 * smoothness)) ** (1 / (2 * smoothness))
    np.testing.assert_allclose(np.abs(samples), expected, rtol=1e-5)
    np.testing.assert_allclose(np.angle(samples), 0.7, rtol=1e-5)
    assert np.abs(samples).max() <= 0.2 * 1.00001


def test_a_loud_burst_is_compressed_on_the_air():
    burst = normals(4, 5000, power_w=0.0099)
    sent = radiated(bench_with(pa_saturation_dbm=10.0, pa_smoothness=2.0), burst).samples
    expected = burst / (1 + np.abs(burst) ** 4 / 0.01**2) ** 0.25
    np.testing.assert_allclose(sent, expected, rtol=1e-5)


def test_an_oscillator_turns_in_the_time_of_the_run_across_two_bursts():
    bench = bench_with(oscillator_ppm=2.0, drift_ppm_s=0.1, sampling_offset=False)
    medium = Medium()
    radio = SimTransmitter(bench, node="n1", port=medium, seed=5)  # type: ignore[arg-type]
    crystal = radio._chain.crystal
    starts_s = (3.0, 3.0 + 20_000 / RATE_HZ)
    for at_s in starts_s:
        radio.transmit(np.full(20_000, 0.05, np.complex64), at_s=at_s)
    for at_s, burst in zip(starts_s, medium.posts, strict=True):
        assert burst.at_s == at_s
        t = at_s + np.arange(20_000) / RATE_HZ
        cycles = bench.carrier_hz * (crystal.offset * t + crystal.drift_s * t**2 / 2)
        np.testing.assert_allclose(burst.samples, 0.05 * np.exp(2j * np.pi * cycles), atol=0.05 * 1e-5)


def test_oscillators_have_the_spread_they_are_given():
    from sim_backend.transmit_chain import Crystal

    bench = bench_with(oscillator_ppm=5.0, drift_ppm_s=0.01, start_offset_s=2e-6)
    drawn = [Crystal.draw(bench, 0, seed) for seed in range(2000)]
    assert np.std([crystal.offset for crystal in drawn]) == pytest.approx(5e-6, rel=0.06)
    assert np.std([crystal.drift_s for crystal in drawn]) == pytest.approx(1e-8, rel=0.06)
    assert np.std([crystal.delay_s for crystal in drawn]) == pytest.approx(2e-6, rel=0.06)
    assert len({Crystal.draw(bench, node, 0).offset for node in range(5)}) == 5


def test_a_fast_clock_shortens_the_burst_and_shifts_its_tones():
    bench = bench_with(oscillator_ppm=20.0)
    still = bench_with(oscillator_ppm=20.0, sampling_offset=False)
    burst = tone(0.2, 300_000)
    stretched, turned = radiated(bench, burst), radiated(still, burst)
    offset = SimTransmitter(bench, node="n0", port=Medium(), seed=1)._chain.crystal.offset  # type: ignore[arg-type]
    assert turned.samples.size == 300_000
    begun = round((stretched.at_s - turned.at_s) * RATE_HZ)
    assert begun == -HALF_TAPS
    inside = np.arange(100, 299_900)
    # sample m of the receiver's clock is sample (1 + offset) m of the transmitter's
    expected = turned.samples[inside] * np.exp(2j * np.pi * 0.2 * offset * inside)
    error = stretched.samples[inside - begun] - expected
    assert decibels(power(error) / power(expected)) < -50


def test_phase_noise_has_its_rms_and_its_corner():
    rms_rad, corner_hz = math.radians(4.0), 2e4
    bench = bench_with(phase_noise_deg=4.0, phase_noise_hz=corner_hz)
    burst = np.full(20_000, 0.05, np.complex64)
    phases = np.array([np.angle(radiated(bench, burst, at_s=at_s).samples) for at_s in np.arange(60) / 100])
    # 60 bursts of some 250 correlation times each
    assert np.sqrt(np.mean(phases**2)) == pytest.approx(rms_rad, rel=0.03)
    assert np.sqrt(np.mean(phases[:, 0] ** 2)) == pytest.approx(rms_rad, rel=0.3)  # stationary from the start
    for lag in (10, 40, 80):
        kept = np.mean(phases[:, lag:] * phases[:, :-lag]) / np.mean(phases**2)
        assert kept == pytest.approx(math.exp(-2 * math.pi * corner_hz * lag / RATE_HZ), abs=0.03)


def test_phases_jump_when_they_are_told_to():
    burst = np.full(320, 0.05, np.complex64)

    def phases(jumps: str) -> list[float]:
        bench, medium = bench_with(phase_jumps=jumps), Medium()
        radio = SimTransmitter(bench, node="n0", port=medium, seed=1)  # type: ignore[arg-type]
        for index in range(4):
            if index == 2:
                radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=RATE_HZ)
            radio.transmit(burst, at_s=index / 10)
        return [float(np.angle(post.samples[7])) for post in medium.posts]

    assert phases("never") == [0.0] * 4
    first, second, third, fourth = phases("tune")
    assert (first, third) == (second, fourth)
    assert first != third
    assert len(set(phases("burst"))) == 4
    many = [radiated(bench_with(phase_jumps="burst"), burst, at_s=index / 10).samples[0] for index in range(400)]
    assert abs(np.mean(many)) < 0.05 * 4 / math.sqrt(400)  # uniform


def test_bursts_start_late_by_their_offset_and_their_jitter():
    bench = bench_with(radio={"start_jitter_s": 1e-6}, start_offset_s=3e-6)
    pulse = np.zeros(320, np.complex64)
    pulse[150:171] = np.hanning(21)

    def start_s(at_s: float) -> float:
        sent = radiated(bench, 0.1 * pulse, at_s=at_s, node="n2")
        weight = np.abs(sent.samples) ** 2
        return sent.at_s + (np.sum(np.arange(weight.size) * weight) / np.sum(weight) - 160) / RATE_HZ - at_s

    starts_s = np.array([start_s(at_s) for at_s in 1 + np.arange(1000) / 100])
    crystal = SimTransmitter(bench, node="n2", port=Medium(), seed=1)._chain.crystal  # type: ignore[arg-type]
    assert np.std(starts_s) == pytest.approx(1e-6, rel=0.08)
    assert np.mean(starts_s) == pytest.approx(crystal.delay_s, abs=4e-6 / math.sqrt(1000))
    assert crystal.delay_s != 0


EVERYTHING = {
    "oscillator_ppm": 1.0,
    "drift_ppm_s": 0.01,
    "phase_noise_deg": 2.0,
    "phase_jumps": "burst",
    "start_offset_s": 1e-6,
    "tx_iq_gain_db": 0.3,
    "tx_dc_db": -40.0,
    "dac_bits": 12,
    "pa_saturation_dbm": 20.0,
}


@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_the_same_burst_at_the_same_instant_is_radiated_alike_by_a_new_process(level):
    bench = bench_with(level=level, radio={"start_jitter_s": 1e-7}, **EVERYTHING)
    burst, medium = normals(6, 1920), Medium()
    radio = SimTransmitter(bench, node="n1", port=medium, seed=3)  # type: ignore[arg-type]
    for at_s in (0.5, 1.0, 1.5):
        radio.transmit(burst, at_s=at_s)
    again = radiated(bench, burst, at_s=1.5, node="n1", seed=3)
    assert again.at_s == medium.posts[2].at_s
    np.testing.assert_array_equal(again.samples, medium.posts[2].samples)
    assert burst.flags.writeable
    np.testing.assert_array_equal(burst, normals(6, 1920))  # the caller's samples stay
    for other in (
        radiated(bench, burst, at_s=1.0, node="n1", seed=3),
        radiated(bench, burst, at_s=1.5, node="n0", seed=3),
        radiated(bench, burst, at_s=1.5, node="n1", seed=4),
    ):
        assert other.samples.size != again.samples.size or not np.allclose(other.samples, again.samples)


@pytest.mark.parametrize(
    "samples",
    [
        np.ones(320, np.complex128),
        np.ones(320, np.float32),
        np.ones((2, 320), np.complex64),
        np.zeros(0, np.complex64),
        np.full(320, np.nan, np.complex64),
        np.array([0.1, np.inf], np.complex64),
        np.full(320, 1e30, np.complex64),
        np.full(320, 0.106, np.complex64),
    ],
)
@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_bad_bursts_are_refused_before_anything_radiates(samples, level):
    medium = Medium()
    radio = SimTransmitter(bench_with(level=level), node="n0", port=medium)  # type: ignore[arg-type]
    with pytest.raises(LimitError):
        radio.transmit(samples, at_s=0.0)
    with pytest.raises(LimitError):
        radio.transmit(np.full(320, 0.1, np.complex64), at_s=math.nan)
    assert medium.posts == []


# receive side --------------------------------------------------------------------------------------------------------


def test_the_receivers_offset_has_its_power():
    heard = np.zeros((2, 100), np.complex64)
    ReceiveChain(ImpairmentsSpec(rx_dc_dbm=-60.0), seed=0).receive(heard)
    np.testing.assert_allclose(np.abs(heard) ** 2, 1e-9, rtol=1e-5)


def test_a_strong_signal_clips_at_the_scale_the_gain_leaves():
    heard = normals(7, 20_000, power_w=1e-6)[None]
    loud = heard.copy()
    ReceiveChain(ImpairmentsSpec(adc_bits=12, adc_full_scale_dbm=0.0, rx_gain_db=27.0), seed=0).receive(loud)
    scale = math.sqrt(1e-3 / 10**2.7)
    np.testing.assert_allclose(loud.view(np.float32).min(), -scale, rtol=1e-6)
    inside = np.abs(heard.view(np.float32)) < scale * (1 - 2 / 2**11)
    assert np.abs((loud - heard).view(np.float32))[inside].max() <= scale / 2**12 * 1.01
    assert 0.01 < np.mean(~inside) < 0.2


@pytest.mark.parametrize("power_w", [1e-12, 1e-6, 1.0])
def test_automatic_gain_puts_a_capture_12_decibels_below_full_scale(power_w):
    bits = 10
    heard = np.stack([normals(8, 50_000, power_w), normals(9, 50_000, power_w / 100), np.zeros(50_000, np.complex64)])
    chain = ReceiveChain(ImpairmentsSpec(adc_bits=bits, agc="block", adc_full_scale_dbm=-10.0), seed=0)
    assert decibels(chain.gain(power_w) * power_w / 1e-4) == pytest.approx(-12)
    received = heard.copy()
    chain.receive(received)
    for before, after in zip(heard[:2], received[:2], strict=True):
        # of the steps in front of the converter: 12 dB below full scale, 2^10 steps over it
        step = 2 * math.sqrt(power(before) * 10**1.2) / 2**bits
        assert power(after - before) == pytest.approx(step**2 / 6, rel=0.03)
    assert not received[2].any()


def test_gains_from_a_step_on_turn_the_phase():
    heard = normals(10, 100)[None]
    for gain_db, sign in ((39.9, 1), (40.0, -1), (60.0, -1)):
        turned = heard.copy()
        ReceiveChain(ImpairmentsSpec(rx_gain_db=gain_db, phase_flip_gain_db=40.0), seed=0).receive(turned)
        np.testing.assert_array_equal(turned, sign * heard)
    both = np.stack([normals(11, 1000, 1e-3), normals(12, 1000, 1e-9)])
    turned = both.copy()
    ReceiveChain(ImpairmentsSpec(agc="block", phase_flip_gain_db=20.0), seed=0).receive(turned)
    np.testing.assert_array_equal(turned, both * np.array([[1], [-1]]))


def ramp_bench(**own) -> tuple[BenchSpec, Burst]:
    """A burst whose samples tell their place."""
    ramp = (np.arange(1, 60_001) / 1e6).astype(np.complex64)
    return bench_with(**own), Burst("n0", 1.0 - 1000 / RATE_HZ, ramp)


def places(capture: np.ndarray, bench: BenchSpec) -> np.ndarray:
    """Which sample of the ramp each sample of a capture is, counted from the capture's instant."""
    gain = World(bench, 1).channel("n0", POSITIONS_M, 1.0)[0]
    return np.rint((capture[0] / gain).real * 1e6).astype(int) - 1 - 1000


def test_stale_samples_come_first_and_delay_the_rest():
    bench, burst = ramp_bench(stale_samples=300)
    found = places(captured(bench, 5000, at_s=1.0, bursts=[burst]), bench)
    np.testing.assert_array_equal(found, np.arange(-300, 4700))


def test_lost_buffers_are_skipped_and_the_end_is_filled_from_later():
    bench, burst = ramp_bench(dropped_buffers=0.4, buffer_samples=1000)
    found = places(captured(bench, 20_500, at_s=1.0, bursts=[burst]), bench)
    buffers, first = np.divmod(found[::1000], 1000)
    assert not first.any()  # whole buffers, from their beginning
    np.testing.assert_array_equal(np.diff(found.reshape(-1, 500), axis=1), 1)
    assert found[0] >= 0
    assert np.all(np.diff(buffers) >= 1)
    assert found[-1] > 20_500
    again = places(captured(bench, 20_500, at_s=1.0, bursts=[burst]), bench)
    np.testing.assert_array_equal(found, again)
    chain = ReceiveChain(bench.world.impairments, seed=1)
    lengths = [chain.stretches(100_000, at_s)[-1] for at_s in np.arange(100.0)]
    seen = [last.source + last.stop - last.start for last in lengths]
    assert 1 - 100_000 / np.mean(seen) == pytest.approx(0.4, abs=0.02)


def test_noise_fills_a_capture_with_lost_buffers():
    bench = bench_with(noise=True, dropped_buffers=0.3, buffer_samples=4096)
    noise = captured(bench, 60_000, at_s=1.0)
    assert power(noise) == pytest.approx(World(bench, 1).noise_w, rel=0.02)
    for lag in (1, 4096):
        echo = np.vdot(noise[0, lag:], noise[0, :-lag]) / np.vdot(noise[0], noise[0]).real
        assert abs(echo) < 0.03


# combined reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize(
    ("level", "own"),
    [
        ("samples", {}),
        ("samples", {"phase_flip_gain_db": -10.0}),
        ("samples", {"adc_bits": 14, "agc": "block"}),
        ("symbols", {}),
        ("symbols", {"phase_flip_gain_db": -10.0}),
    ],
)
def test_a_combined_reading_is_the_combination_of_the_antennas(level, selective, own):
    bench = bench_with(level=level, selective=selective, **own)
    bursts = [Burst(f"n{k}", 1.0 + 192 * k / RATE_HZ, normals(k, 19_200)) for k in range(3)]
    combiner = np.array([0.5 - 1j, 0.3, -0.2 + 0.7j])
    antennas = captured(bench, 20_000, at_s=1.0, bursts=bursts)
    combined = captured(bench, 20_000, at_s=1.0, bursts=bursts, combiner=combiner)
    assert antennas.shape == (3, 20_000)
    assert combined.shape == (1, 20_000)
    assert combined.dtype == np.complex64
    expected = combiner.conj() @ antennas
    np.testing.assert_allclose(combined[0], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("level", "share"), [("samples", 1.0), ("symbols", 192 / 256)])
def test_noise_has_the_power_of_the_band(level, share):
    bench = bench_with(level=level, noise=True)
    noise_w = World(bench, 1).noise_w * share
    combiner = np.array([0.5 - 1j, 0.3, -0.2 + 0.7j])
    norm = float(np.sum(np.abs(combiner) ** 2))
    antennas, combined = captured(bench, 60_000), captured(bench, 60_000, combiner=combiner)
    assert power(antennas) == pytest.approx(noise_w, rel=0.01)
    assert power(combined) == pytest.approx(norm * noise_w, rel=0.02)
    assert not captured(bench, 100, combiner=np.zeros(3)).any()


@pytest.mark.parametrize("combiner", [np.ones(2), np.ones((3, 1)), np.array([1.0, np.nan, 0.0])])
def test_a_combiner_that_does_not_fit_is_refused(combiner):
    with pytest.raises(ProtocolError, match="3 finite weights"):
        captured(bench_with(), 10, combiner=combiner)


@pytest.mark.parametrize(("num_samples", "at_s"), [(0, 1.0), (10, math.inf)])
def test_an_empty_capture_is_refused(num_samples, at_s):
    with pytest.raises(LimitError):
        captured(bench_with(), num_samples, at_s=at_s)


def test_a_transmitter_does_not_read_with_a_combiner_either():
    radio = SimTransmitter(bench_with(), node="n0", port=Medium())  # type: ignore[arg-type]
    with pytest.raises(RadioFault):
        radio.read(np.ones(3))


# symbol level --------------------------------------------------------------------------------------------------------


def on_sample_grid(bench: BenchSpec) -> World:
    """A world whose paths are whole samples late: fractions would let each block reach into its neighbours."""
    world = World(bench, 1)
    for name, paths in world.paths.items():
        delays_s = np.rint(paths.delays_s * RATE_HZ * 20) / RATE_HZ
        assert 0 < delays_s.max() <= 64 / RATE_HZ
        world.paths[name] = dataclasses.replace(paths, delays_s=delays_s)
    return world


@pytest.mark.parametrize(
    ("selective", "world_of", "tolerance"),
    [
        (False, lambda bench: World(bench, 1), 1e-5),
        (True, on_sample_grid, 1e-5),
        (True, lambda bench: World(bench, 1), 1e-2),
    ],
)
def test_symbols_arrive_as_they_do_through_ofdm(selective, world_of, tolerance):
    symbols = {f"n{k}": normals(k, 192 * 20) for k in range(3)}
    by_level = {}
    for level in ("samples", "symbols"):
        bench = bench_with(level=level, selective=selective)
        sent = symbols if level == "symbols" else {n: ofdm.modulate(s, bench.waveform) for n, s in symbols.items()}
        bursts = [radiated(bench, burst, at_s=1.0, node=node) for node, burst in sent.items()]
        heard = captured(bench, bursts[0].samples.size, at_s=1.0, bursts=bursts, world=world_of(bench))
        by_level[level] = heard if level == "symbols" else ofdm.demodulate(heard, bench.waveform)
    difference = by_level["symbols"] - by_level["samples"]
    assert np.sqrt(power(difference) / power(by_level["symbols"])) < tolerance


TRANSMIT = [
    {"tx_iq_gain_db": 1.0, "tx_iq_phase_deg": 4.0},
    {"fir_loss_db": 1.0, "tx_dc_db": -10.0},
    {"dac_bits": 6},
    {"pa_saturation_dbm": 8.0, "fir_loss_db": 2.0},
    {"phase_noise_deg": 5.0},
    {"phase_jumps": "burst"},
]


@pytest.mark.parametrize("own", TRANSMIT, ids=lambda own: next(iter(own)))
def test_what_a_transmitter_does_to_samples_shows_in_the_symbols(own):
    symbols = normals(3, 192 * 60, power_w=0.0098)
    bench = bench_with(**own)
    samples = radiated(bench, ofdm.modulate(symbols, bench.waveform), at_s=2.0).samples
    expected = ofdm.demodulate(samples, bench.waveform)
    found = radiated(bench_with(level="symbols", **own), symbols, at_s=2.0).samples
    assert np.sqrt(power(found - expected) / power(expected)) < 1e-5
    assert np.sqrt(power(found - symbols) / power(symbols)) > 1e-2


def test_a_carrier_offset_is_the_phase_of_each_block():
    own = {"oscillator_ppm": 1.0, "drift_ppm_s": 0.1, "sampling_offset": False}
    symbols = normals(3, 192 * 200)
    bench = bench_with(**own)
    samples = radiated(bench, ofdm.modulate(symbols, bench.waveform), at_s=2.0).samples
    expected = ofdm.demodulate(samples, bench.waveform).reshape(200, 192)
    found = radiated(bench_with(level="symbols", **own), symbols, at_s=2.0).samples.reshape(200, 192)
    crystal = SimTransmitter(bench, node="n0", port=Medium(), seed=1)._chain.crystal  # type: ignore[arg-type]
    spacings = (crystal.offset + crystal.drift_s * 2.0) * bench.carrier_hz / (RATE_HZ / 256)
    assert 0.05 < abs(spacings) < 0.5
    common = np.sum(expected * found.conj(), axis=1) / np.sum(np.abs(found) ** 2, axis=1)
    # interference between carriers is averaged over 192 of them only
    assert np.abs(np.angle(common)).max() < 5 * np.pi * abs(spacings) / np.sqrt(3 * 192)
    assert np.mean(np.angle(common)) == pytest.approx(0.0, abs=0.005)
    # what the block's own turning costs the carrier itself; the rest goes to others
    assert np.mean(common.real) == pytest.approx(np.sinc(spacings), abs=0.01)


@pytest.mark.parametrize("own", [{"start_offset_s": 1e-6}, {"start_offset_s": 1e-6, "oscillator_ppm": 0.02}])
def test_a_delay_within_the_prefix_is_a_phase_over_the_subcarriers(own):
    # a seed whose delay is positive, so that every block's FFT stays within the block
    seed = next(
        seed
        for seed in range(50)
        if 1e-6 < SimTransmitter(bench_with(**own), node="n0", port=Medium(), seed=seed)._chain.crystal.delay_s < 5e-6  # type: ignore[arg-type]
    )
    symbols = normals(4, 192 * 40)
    bench = bench_with(**own)
    sent = radiated(bench, ofdm.modulate(symbols, bench.waveform), at_s=2.0, seed=seed)
    begun = round((sent.at_s - 2.0) * RATE_HZ)
    on_grid = np.zeros(320 * 40 + 200, np.complex64)
    on_grid[100 + begun :][: sent.samples.size] = sent.samples[: on_grid.size - 100 - begun]
    expected = ofdm.demodulate(on_grid[100 : 100 + 320 * 40], bench.waveform)
    found = radiated(bench_with(level="symbols", **own), symbols, at_s=2.0, seed=seed).samples
    # the resampler's own error, and inter-carrier interference of the stretch
    assert decibels(power(found - expected) / power(expected)) < -50


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ({"adc_bits": 12}, "adc_bits"),
        ({"rx_iq_gain_db": 0.1}, "rx_iq_gain_db"),
        ({"rx_iq_phase_deg": 0.1}, "rx_iq_phase_deg"),
        ({"rx_dc_dbm": -60.0}, "rx_dc_dbm"),
        ({"stale_samples": 1}, "stale_samples"),
        ({"dropped_buffers": 0.1}, "dropped_buffers"),
        ({"agc": "block", "phase_flip_gain_db": 30.0}, "phase_flip_gain_db"),
        ({"start_offset_s": 1e-5}, "start_offset_s"),
        ({"oscillator_ppm": 2.0}, "oscillator_ppm"),
    ],
)
def test_what_symbols_cannot_show_is_refused_at_opening(own, key):
    bench = bench_with(level="symbols", **own)
    with pytest.raises(ConfigError, match='level = "samples"') as caught:
        SimReceiver(bench, world=World(bench, 1), hub=Medium(), positions_m=lambda: POSITIONS_M)  # type: ignore[arg-type]
    assert caught.value.key == f"world.impairments.{key}"
    with pytest.raises(ConfigError):
        SimTransmitter(bench, node="n0", port=Medium())  # type: ignore[arg-type]


def test_jitter_beyond_the_prefix_is_refused_with_symbols():
    bench = bench_with(level="symbols", radio={"start_jitter_s": 3e-6})
    with pytest.raises(ConfigError) as caught:
        SimTransmitter(bench, node="n0", port=Medium())  # type: ignore[arg-type]
    assert caught.value.key == "radio.start_jitter_s"


def test_opening_refuses_what_symbols_cannot_show_and_needs_the_seed(tmp_path):
    with pytest.raises(ConfigError, match="adc_bits"):
        open_bench(bench_with(level="symbols", adc_bits=12), seed=1, folder=tmp_path, node_processes=0)
    for devices in ({"air": "tcp://127.0.0.1:1"}, {"air": "tcp://127.0.0.1:1", "seed": "1"}):
        with pytest.raises(ConfigError, match="seed"):
            open_node(bench_with(), "n0", devices)


def test_a_node_is_opened_with_the_seed_of_the_bench(tmp_path):
    bench = bench_with(oscillator_ppm=5.0)
    devices = open_bench(bench, seed=11, folder=tmp_path, node_processes=0)
    node = open_node(bench, "n1", devices.node_devices)
    devices.radio.arm(2000, at_s=1.0)
    node.radio.transmit(np.full(2000, 0.05, np.complex64), at_s=1.0)
    heard = devices.radio.read()[0, 200:1800]
    sent = radiated(bench, np.full(2000, 0.05, np.complex64), at_s=1.0, node="n1", seed=11)
    expected = World(bench, 11).channel("n1", POSITIONS_M, 1.0)[0] * sent.samples[200 + HALF_TAPS :][:1600]
    np.testing.assert_allclose(heard, expected, atol=1e-5 * np.abs(expected).max())
    node.close()
    devices.close()
