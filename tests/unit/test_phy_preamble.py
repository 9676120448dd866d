import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm, papr, preamble
from testbed.phy.estimate import pilot_symbols

WAVEFORM = WaveformSpec()
BLOCK = 320
HEAD = np.concatenate([preamble.short_training(WAVEFORM), ofdm.modulate(pilot_symbols(2, WAVEFORM), WAVEFORM)])


def noise(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Circular Gaussian of unit power, complex64."""
    normals = generator.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    return normals * np.float32(np.sqrt(0.5))


def capture(
    generator: np.random.Generator, snr_db: float, num_antennas: int = 1, length: int = 3000
) -> tuple[np.ndarray, int, float]:
    """A preamble in unit noise at a random place, offset up to 50 ppm of 2.4 GHz at 5 MS/s: samples, start, offset."""
    samples = noise(generator, num_antennas, length)
    start, cfo = int(generator.integers(200, length - 1200)), generator.uniform(-0.024, 0.024)
    gain = 10 ** (snr_db / 20) * np.exp(2j * np.pi * generator.uniform(size=(num_antennas, 1)))
    samples[:, start : start + len(HEAD)] += gain * HEAD * np.exp(2j * np.pi * cfo * np.arange(len(HEAD)))
    return samples, start, cfo


@pytest.mark.parametrize(
    "waveform",
    [
        WAVEFORM,
        WaveformSpec(num_subcarriers=64, num_active=48, cyclic_prefix=16),
        WaveformSpec(num_subcarriers=1024, num_active=800, cyclic_prefix=0),
        WaveformSpec(num_subcarriers=64, num_active=32, cyclic_prefix=64),
    ],
)
def test_the_short_training_repeats_itself_with_unit_power_and_low_peaks(waveform):
    samples = preamble.short_training(waveform)
    period = waveform.num_subcarriers // 16
    assert samples.dtype == np.complex64
    assert len(samples) == waveform.num_subcarriers + waveform.cyclic_prefix
    np.testing.assert_allclose(samples[period:], samples[:-period], atol=1e-5)
    assert np.mean(np.abs(samples) ** 2) == pytest.approx(1.0, rel=1e-5)
    assert papr.papr(samples) < 2.1
    carried = np.flatnonzero(np.abs(np.fft.fft(samples[-waveform.num_subcarriers :])) > 1e-3)
    signed = np.where(carried > waveform.num_subcarriers // 2, carried - waveform.num_subcarriers, carried)
    assert np.all(signed % 16 == 0)
    assert np.abs(signed).min() > 0
    assert np.abs(signed).max() <= waveform.num_active // 2


def test_a_waveform_without_a_sixteenth_subcarrier_is_refused():
    for waveform in (
        WaveformSpec(num_subcarriers=32, num_active=30, cyclic_prefix=8),
        WaveformSpec(num_subcarriers=72, num_active=48, cyclic_prefix=8),
    ):
        with pytest.raises(ValueError, match="carry no preamble"):
            preamble.short_training(waveform)


def test_without_noise_start_and_offset_are_exact():
    for start in (0, 1, 777):
        for cfo in (-0.0275, 0.0, 0.0123, 0.0275):
            samples = np.zeros(2500, np.complex64)
            samples[start : start + len(HEAD)] = 1e-6 * HEAD * np.exp(2j * np.pi * cfo * np.arange(len(HEAD)) + 1j)
            arrival = preamble.detect(samples, WAVEFORM)
            assert arrival is not None
            assert arrival.start == start
            assert arrival.cfo == pytest.approx(cfo, abs=1e-6)
            assert arrival.metric == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("num_antennas", "snr_db"), [(1, -4.0), (1, 20.0), (4, -7.0), (4, 20.0)])
def test_nine_hundred_ninety_of_a_thousand_are_found_where_they_are(num_antennas, snr_db):
    generator = np.random.default_rng(1)
    num_draws, starts, offsets = 300, [], []
    for _ in range(num_draws):
        samples, start, cfo = capture(generator, snr_db, num_antennas)
        arrival = preamble.detect(samples, WAVEFORM)
        if arrival is not None:
            starts.append(arrival.start - start)
            offsets.append(arrival.cfo - cfo)
    assert len(starts) >= 0.99 * num_draws
    assert np.max(np.abs(starts)) <= 4
    # two blocks of 320 samples: variance (1 / snr + 1 / (2 snr^2)) / 320 of the phase between them
    snr = 10 ** (snr_db / 10) * num_antennas
    deviation = np.sqrt((1 / snr + num_antennas / (2 * snr**2)) / BLOCK) / (2 * np.pi * BLOCK)
    assert 0.8 * deviation < np.std(offsets) < 1.2 * deviation
    assert np.max(np.abs(offsets)) < 5 * deviation


def test_the_metric_is_the_share_of_the_signal_in_what_is_received():
    generator = np.random.default_rng(2)
    metrics = []
    for _ in range(100):
        arrival = preamble.detect(capture(generator, 0.0)[0], WAVEFORM)
        metrics.append(0.0 if arrival is None else arrival.metric)
    assert np.mean(metrics) == pytest.approx(0.5, abs=0.02)


def test_the_first_look_passes_noise_as_often_as_it_says():
    generator = np.random.default_rng(3)
    for num_antennas in (1, 3):
        # independent blocks: each tells one start
        exceeded, trials = 0, 0
        for _ in range(20):
            samples = noise(generator, num_antennas, 400 * BLOCK)
            metric = preamble._self_correlation(samples, WAVEFORM)[::BLOCK]
            exceeded += int(np.sum(metric > preamble.candidate_threshold(num_antennas, WAVEFORM)))
            trials += len(metric)
        expected = preamble.CANDIDATE * trials
        assert abs(exceeded - expected) < 4 * np.sqrt(expected) + 1


def test_the_second_look_agrees_with_the_distribution_of_its_threshold():
    # the tail of the Erlang distribution, by the independent route of its integral
    for num_antennas in (1, 2, 4):
        terms = 2 * num_antennas
        point = preamble.confirmation_threshold(num_antennas, WAVEFORM) * terms * BLOCK
        grid = np.linspace(point, point + 80, 200_001)
        factorial = np.prod(np.arange(1.0, terms))
        tail = np.trapezoid(grid ** (terms - 1) * np.exp(-grid) / factorial, grid)
        assert tail == pytest.approx(preamble.FALSE_ALARM, rel=1e-3)


def test_noise_alone_is_silence_in_four_million_starts():
    generator = np.random.default_rng(4)
    for num_antennas in (1, 2):
        assert preamble.detect(noise(generator, num_antennas, 2_000_000), WAVEFORM) is None


def test_a_constant_offset_and_a_tone_are_no_preamble():
    generator = np.random.default_rng(5)
    samples = noise(generator, 1, 200_000)
    assert preamble.detect(samples + np.complex64(5.0), WAVEFORM) is None
    tone = 5 * np.exp(2j * np.pi * 0.0731 * np.arange(200_000)).astype(np.complex64)
    assert preamble.detect(samples + tone, WAVEFORM) is None
    found, start, _ = capture(generator, 10.0)
    arrival = preamble.detect(found + np.complex64(1.0), WAVEFORM)
    assert arrival is not None
    assert abs(arrival.start - start) <= 1


def test_data_are_no_preamble():
    generator = np.random.default_rng(6)
    symbols = np.sign(generator.standard_normal((192 * 1000, 2))) @ np.array([1, 1j]) / np.sqrt(2)
    assert preamble.detect(ofdm.modulate(symbols, WAVEFORM), WAVEFORM) is None


def test_several_nodes_at_once_are_found_at_the_earliest_of_them():
    generator = np.random.default_rng(7)
    num_draws, found, early = 200, 0, 0
    for _ in range(num_draws):
        delays = generator.integers(0, 48, 5)
        samples = noise(generator, 4, 3000)
        for delay in delays:
            gain = 10 ** (0 / 20) * noise(generator, 4, 1)
            at = 900 + int(delay)
            turn = np.exp(2j * np.pi * generator.normal(0, 2e-5) * np.arange(len(HEAD)))
            samples[:, at : at + len(HEAD)] += gain * HEAD * turn
        arrival = preamble.detect(samples, WAVEFORM)
        if arrival is not None:
            found += 1
            early += int(abs(arrival.start - 900 - delays.min()) <= 2)
            assert 900 - 3 <= arrival.start <= 900 + delays.max() + 2
            assert arrival.start + arrival.spread <= 900 + delays.max() + 3
    assert found >= 0.995 * num_draws
    # the earliest node is below a seventh of the strongest one now and then
    assert early >= 0.8 * num_draws


def test_the_first_of_two_preambles_is_returned():
    generator = np.random.default_rng(8)
    samples = noise(generator, 1, 200_000)
    for start in (70_001, 150_000):
        samples[:, start : start + len(HEAD)] += 3 * HEAD
    arrival = preamble.detect(samples, WAVEFORM)
    assert arrival is not None
    assert arrival.start == 70_001
    later = preamble.search(samples, WAVEFORM, 100_000, 199_000)
    assert later is not None
    assert later.start == 150_000
    assert preamble.search(samples, WAVEFORM, 71_000, 149_000) is None


def test_a_threshold_of_ones_own_is_kept():
    samples, start, _ = capture(np.random.default_rng(9), 0.0)
    assert preamble.detect(samples, WAVEFORM, threshold=0.9) is None
    arrival = preamble.detect(samples, WAVEFORM, threshold=0.3)
    assert arrival is not None
    assert abs(arrival.start - start) <= 1


def test_silence_is_no_preamble():
    assert preamble.detect(np.zeros(5000, np.complex64), WAVEFORM) is None


def test_wrong_captures_are_refused():
    with pytest.raises(ValueError, match="fewer than the preamble"):
        preamble.detect(np.zeros(959, np.complex64), WAVEFORM)
    with pytest.raises(ValueError, match="shape"):
        preamble.detect(np.zeros((2, 2, 2000), np.complex64), WAVEFORM)
    with pytest.raises(ValueError, match="shape"):
        preamble.detect(np.zeros((0, 2000), np.complex64), WAVEFORM)
    for bad in (np.nan, np.inf):
        samples = noise(np.random.default_rng(10), 2, 3000)
        samples[1, 1500] = bad
        with pytest.raises(ValueError, match="not finite"):
            preamble.detect(samples, WAVEFORM)
