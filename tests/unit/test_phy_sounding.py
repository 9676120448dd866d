import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm, preamble, sounding
from testbed.phy.estimate import estimate_channel, pilot_symbols

WAVEFORM = WaveformSpec()
SYMBOLS = WaveformSpec(level="symbols")
SUBCARRIERS = np.concatenate([np.arange(1, 97), np.arange(-96, 0)])


def noise(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Circular Gaussian of unit power."""
    return generator.standard_normal((*shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)


def received(
    generator: np.random.Generator,
    num_pilots: int,
    *,
    channel: np.ndarray,
    delay: float = 0.0,
    cfo: float = 0.0,
    noise_w: float = 0.0,
    power_w: float = 1.0,
) -> np.ndarray:
    """A sounding that begins at sample 1000 + delay, fractions by a phase ramp in frequency."""
    burst = np.concatenate([np.zeros(1000), sounding.build(num_pilots, WAVEFORM, power_w), np.zeros(1000)])
    spectrum = np.fft.fft(burst) * np.exp(-2j * np.pi * np.fft.fftfreq(len(burst)) * delay)
    late = np.fft.ifft(spectrum) * np.exp(2j * np.pi * cfo * np.arange(len(burst)))
    # noise_w of a symbol is noise_w * 256 / 192 of a sample
    samples = np.outer(channel, late) + np.sqrt(noise_w * 256 / 192) * noise(generator, len(channel), len(burst))
    return samples.astype(np.complex64)


def test_a_sounding_is_a_short_training_and_pilots_of_its_power():
    samples = sounding.build(3, WAVEFORM, 0.02)
    assert len(samples) == sounding.length(3, WAVEFORM) == 4 * 320
    assert samples.dtype == np.complex64
    assert ofdm.body_power_w(samples, WAVEFORM) == pytest.approx(0.02, rel=1e-5)
    np.testing.assert_allclose(samples[:320], np.sqrt(0.02) * preamble.short_training(WAVEFORM), rtol=1e-5)
    symbols = ofdm.demodulate(samples[320:], WAVEFORM)
    np.testing.assert_allclose(symbols, np.sqrt(0.02) * pilot_symbols(3, WAVEFORM), atol=1e-6)


@pytest.mark.parametrize("correct_cfo", [False, True])
@pytest.mark.parametrize("guard", [0, 300])
def test_a_scheduled_sounding_without_noise_is_exact(guard, correct_cfo):
    channel = 1e-4 * np.array([1, -0.5j, 0.3 + 0.2j])
    samples = received(np.random.default_rng(1), 4, channel=channel, power_w=0.01)
    heard = sounding.read(samples, WAVEFORM, 4, 0.01, start=1000, guard=guard, correct_cfo=correct_cfo)
    assert heard is not None
    np.testing.assert_allclose(heard.channel, channel, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(heard.response, channel[:, None] * np.ones(192), rtol=1e-4, atol=1e-9)
    assert heard.noise_w < 1e-16
    assert heard.lag == pytest.approx(0.0, abs=1e-3)
    assert abs(heard.cfo) < 1e-8
    assert correct_cfo or heard.cfo == 0.0


def test_the_variance_of_the_channel_and_the_noise_are_those_of_the_flat_estimate():
    generator = np.random.default_rng(2)
    errors, delays, noises = [], [], []
    for _ in range(200):
        channel = np.exp(2j * np.pi * generator.uniform(size=2))
        samples = received(generator, 3, channel=channel, noise_w=1.0)
        heard = sounding.read(samples, WAVEFORM, 3, 1.0, start=1000, guard=0, correct_cfo=False)
        assert heard is not None
        errors.append(heard.channel - channel)
        delays.append(heard.lag)
        noises.append(heard.noise_w)
        flat, _ = estimate_channel(ofdm.demodulate(samples[:, 1320:2280], WAVEFORM), pilot_symbols(3, WAVEFORM), 1.0)
        assert np.abs(heard.channel - flat).max() < 0.1
    # 400 complex draws: 5 % standard deviation of the ratio
    assert np.mean(np.abs(errors) ** 2) == pytest.approx(1 / (3 * 192), rel=0.2)
    assert np.mean(noises) == pytest.approx(1.0, abs=4 / np.sqrt(200 * 2 * 2 * 192))
    bound = (256 / (2 * np.pi)) ** 2 / (2 * 2 * 3 * np.sum(SUBCARRIERS.astype(float) ** 2))
    assert 0.7 < np.mean(np.square(delays)) / bound < 1.4


def test_a_selective_channel_is_measured_and_does_not_count_as_noise():
    generator = np.random.default_rng(3)
    taps = np.array([1.0, 0.0, 0.6j, 0.0, 0.0, -0.4])
    burst = np.convolve(sounding.build(8, WAVEFORM, 1.0), taps)[: sounding.length(8, WAVEFORM)]
    expected = np.exp(-2j * np.pi / 256 * np.outer(SUBCARRIERS, np.arange(6))) @ taps
    noises, responses = [], []
    for _ in range(20):
        samples = (burst + np.sqrt(0.01 * 256 / 192) * noise(generator, 2, len(burst))).astype(np.complex64)
        heard = sounding.read(samples, WAVEFORM, 8, 1.0, start=0, guard=0, correct_cfo=False)
        assert heard is not None
        noises.append(heard.noise_w)
        responses.append(heard.response - expected)
    assert np.mean(noises) == pytest.approx(0.01, rel=0.03)
    # the noise of echoes that the prefix could hold is left, a third of all
    assert 49 / 192 < np.mean(np.abs(responses) ** 2) / (0.01 / 8) < 64 / 192


@pytest.mark.parametrize("delay", [-12.0, 3.0, 14.0])
def test_a_real_delay_stays_in_the_response_from_the_nominal_start(delay):
    samples = received(np.random.default_rng(4), 2, channel=np.ones(2), delay=delay, noise_w=1e-4)
    expected = np.exp(-2j * np.pi / 256 * SUBCARRIERS * delay)
    for guard in (0, 200):
        heard = sounding.read(samples, WAVEFORM, 2, 1.0, start=1000, guard=guard, correct_cfo=False)
        assert heard is not None
        assert np.mean(np.abs(heard.response - expected) ** 2) < 2e-4
        assert heard.lag == pytest.approx(delay, abs=0.005)
        if guard:
            # the delay is taken out before the flat estimate
            np.testing.assert_allclose(heard.channel, 1.0, atol=5e-3)


def test_a_larger_delay_moves_the_window():
    samples = received(np.random.default_rng(5), 2, channel=np.ones(1), delay=150.3, noise_w=1e-4)
    heard = sounding.read(samples, WAVEFORM, 2, 1.0, start=1000, guard=200, correct_cfo=False)
    assert heard is not None
    assert heard.lag == pytest.approx(150.3, abs=0.005)
    expected = np.exp(-2j * np.pi / 256 * SUBCARRIERS * 0.3)
    assert np.mean(np.abs(heard.response - expected) ** 2) < 2e-4


@pytest.mark.parametrize("num_pilots", [2, 4, 8])
def test_the_offset_of_the_carrier_comes_near_its_bound_and_the_phase_holds_at_the_centre(num_pilots):
    generator = np.random.default_rng(6)
    num_antennas, snr = 2, 10.0
    offsets, errors = [], []
    for _ in range(120):
        channel = np.exp(2j * np.pi * generator.uniform(size=num_antennas))
        cfo, delay = generator.uniform(-0.024, 0.024), generator.uniform(-100, 100)
        samples = received(generator, num_pilots, channel=channel, delay=delay, cfo=cfo, noise_w=1 / snr)
        heard = sounding.read(samples, WAVEFORM, num_pilots, 1.0, start=1000, guard=150, correct_cfo=True)
        assert heard is not None
        offsets.append(heard.cfo - cfo)
        errors.append(heard.channel - channel * np.exp(2j * np.pi * cfo * (1000 + heard.centre)))
    # of one phase for each block, all antennas and subcarriers together
    bound = 6 / (snr * num_antennas * 192 * num_pilots * (num_pilots**2 - 1)) / (2 * np.pi * 320) ** 2
    assert np.mean(np.square(offsets)) < 1.5 * bound
    assert np.max(np.abs(offsets)) < 5 * np.sqrt(bound)
    assert np.mean(np.abs(errors) ** 2) == pytest.approx(1 / (snr * 192 * num_pilots), rel=0.35)


def test_what_is_not_sent_is_not_heard():
    generator = np.random.default_rng(7)
    silence = noise(generator, 2, 40_000).astype(np.complex64)
    assert sounding.read(silence, WAVEFORM, 4, 1.0, start=18_000, guard=17_000, correct_cfo=True) is None
    # it is there, but not where it is looked for
    samples = received(generator, 2, channel=np.ones(1), delay=400, noise_w=0.01)
    assert sounding.read(samples, WAVEFORM, 2, 1.0, start=1000, guard=300, correct_cfo=True) is None
    # it begins in the capture and ends after it
    cut = samples[:, : 1400 + sounding.length(2, WAVEFORM) - 200]
    assert sounding.read(cut, WAVEFORM, 2, 1.0, start=1300, guard=300, correct_cfo=True) is None


def test_without_ofdm_the_flat_estimate_is_left():
    generator = np.random.default_rng(8)
    burst = sounding.build(4, SYMBOLS, 2.0)
    assert len(burst) == sounding.length(4, SYMBOLS) == 5 * 192
    np.testing.assert_allclose(np.abs(burst) ** 2, 2.0, rtol=1e-5)
    # the same seconds as at level samples
    seconds = [sounding.length(4, level) / level.elements_per_second(5e6) for level in (SYMBOLS, WAVEFORM)]
    assert seconds[0] == pytest.approx(seconds[1])
    channel = np.array([0.5, 1j])
    samples = np.zeros((2, 1000), np.complex64)
    samples[:, 40:1000] = np.outer(channel, burst) + 0.1 * noise(generator, 2, 960)
    heard = sounding.read(samples, SYMBOLS, 4, 2.0, start=40, guard=100, correct_cfo=True)
    assert heard is not None
    np.testing.assert_allclose(heard.channel, channel, atol=0.01)
    assert heard.noise_w == pytest.approx(0.01, rel=0.1)
    assert heard.lag == pytest.approx(0.0, abs=0.02)
    assert abs(heard.cfo) < 1e-5
    # between the bodies of the second and third of four pilot blocks, after one block more
    assert heard.centre / SYMBOLS.elements_per_second(5e6) == pytest.approx((2.5 * 320 + 64 + 128) / 5e6)


def test_wrong_arguments_are_refused():
    samples = np.zeros((2, 2000), np.complex64)
    for num_pilots, power_w in ((1, 1.0), (2, 0.0), (2, np.nan), (2, np.inf)):
        with pytest.raises(ValueError, match="no sounding"):
            sounding.build(num_pilots, WAVEFORM, power_w)
        with pytest.raises(ValueError, match="no sounding"):
            sounding.read(samples, WAVEFORM, num_pilots, power_w, start=0, guard=0, correct_cfo=False)
    for shape in ((2000,), (0, 2000)):
        with pytest.raises(ValueError, match="no sounding"):
            sounding.read(np.zeros(shape), WAVEFORM, 2, 1.0, start=0, guard=0, correct_cfo=False)
    with pytest.raises(ValueError, match="outside"):
        sounding.read(samples, WAVEFORM, 2, 1.0, start=1100, guard=0, correct_cfo=False)
    with pytest.raises(ValueError, match="outside"):
        sounding.read(samples, WAVEFORM, 2, 1.0, start=-1, guard=0, correct_cfo=False)
    samples[1, 700] = np.nan
    for guard in (0, 100):
        with pytest.raises(ValueError, match="not finite"):
            sounding.read(samples, WAVEFORM, 2, 1.0, start=200, guard=guard, correct_cfo=False)


def test_without_ofdm_an_offset_turns_block_by_block():
    cfo, channel = 2e-4, np.array([1.0, -0.5j])
    burst = sounding.build(4, SYMBOLS, 1.0)
    # the middle of every block's body, in samples
    middle = 320 * np.arange(5) + 64 + 128
    turned = burst * np.repeat(np.exp(2j * np.pi * cfo * middle), 192)
    samples = np.outer(channel, turned) + 0.01 * noise(np.random.default_rng(12), 2, len(burst))
    heard = sounding.read(samples.astype(np.complex64), SYMBOLS, 4, 1.0, start=0, guard=0, correct_cfo=True)
    assert heard is not None
    assert heard.cfo == pytest.approx(cfo, abs=1e-6)
    held = heard.centre * 320 / 192
    np.testing.assert_allclose(heard.channel, channel * np.exp(2j * np.pi * cfo * held), atol=2e-3)
    kept = sounding.read(samples.astype(np.complex64), SYMBOLS, 4, 1.0, start=0, guard=0, correct_cfo=False)
    assert kept is not None
    assert kept.cfo == 0.0


@pytest.mark.parametrize("guard", [0, 40])
@pytest.mark.parametrize("delay", [-9.0, 0.25, 12.5])
def test_both_levels_say_how_late_a_sounding_is(delay, guard):
    generator = np.random.default_rng(13)
    channel = np.array([1.0, -0.5j])
    samples = received(generator, 4, channel=channel, delay=delay, noise_w=1e-4)
    blocks = sounding.build(4, SYMBOLS, 1.0).reshape(-1, 192) * np.exp(-2j * np.pi / 256 * SUBCARRIERS * delay)
    symbols = np.outer(channel, blocks.reshape(-1)) + 0.01 * noise(generator, 2, 960)
    late = sounding.read(samples, WAVEFORM, 4, 1.0, start=1000, guard=guard, correct_cfo=False)
    fast = sounding.read(symbols.astype(np.complex64), SYMBOLS, 4, 1.0, start=0, guard=guard, correct_cfo=False)
    assert late is not None
    assert fast is not None
    seconds = [heard.lag / level.elements_per_second(5e6) for heard, level in ((late, WAVEFORM), (fast, SYMBOLS))]
    assert seconds[0] == pytest.approx(delay / 5e6, abs=0.01 / 5e6)
    assert seconds[1] == pytest.approx(delay / 5e6, abs=0.01 / 5e6)
    # the flat channel too is the same: without the delay where the start is not as scheduled
    np.testing.assert_allclose(fast.channel, late.channel, atol=6e-3)
    np.testing.assert_allclose(fast.response, late.response, atol=0.03)
    left = 1.0 if guard else np.mean(np.exp(-2j * np.pi / 256 * SUBCARRIERS * delay))
    np.testing.assert_allclose(fast.channel, channel * left, atol=6e-3)
