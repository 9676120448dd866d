import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm
from testbed.phy.estimate import estimate_channel, pilot_symbols

WAVEFORM = WaveformSpec(num_subcarriers=64, num_active=48, cyclic_prefix=16)


def test_pilots_have_unit_modulus_and_a_flat_envelope():
    pilots = pilot_symbols(3, WaveformSpec())
    assert pilots.dtype == np.complex64
    np.testing.assert_allclose(np.abs(pilots), 1.0, rtol=1e-6)
    samples = ofdm.modulate(pilots, WaveformSpec())
    assert np.max(np.abs(samples) ** 2) < 2.0  # random symbols reach about 8


def test_a_channel_without_noise_is_found_exactly():
    channel = np.array([1e-4 * (1 + 2j), -3e-5j, 2e-6])
    sent = 0.1 * ofdm.modulate(pilot_symbols(2, WAVEFORM), WAVEFORM)
    received = ofdm.demodulate(np.outer(channel, sent), WAVEFORM)
    estimate, noise_w = estimate_channel(received, pilot_symbols(2, WAVEFORM), 0.01)
    np.testing.assert_allclose(estimate, channel, rtol=1e-6)
    assert noise_w < 1e-18


def test_variance_of_the_estimate_is_noise_over_power_times_count():
    generator = np.random.default_rng(5)
    num_draws, power_w, noise_w, channel = 6000, 0.02, 1e-11, 1e-4 * np.exp(0.7j)
    pilots = pilot_symbols(2, WAVEFORM)
    noise = np.sqrt(noise_w / 2) * generator.standard_normal((num_draws, len(pilots), 2)) @ np.array([1, 1j])
    # every draw stands as an antenna of its own
    received = np.sqrt(power_w) * channel * pilots + noise
    estimate, noise_estimate_w = estimate_channel(received, pilots, power_w)
    error = estimate - channel
    variance = noise_w / (power_w * len(pilots))
    assert np.mean(np.abs(error) ** 2) == pytest.approx(variance, rel=0.05)
    assert abs(np.mean(error)) < 4 * np.sqrt(variance / num_draws)
    assert noise_estimate_w == pytest.approx(noise_w, rel=0.01)


@pytest.mark.parametrize(("count", "power_w"), [(0, 1.0), (1, 1.0), (47, 1.0), (48, 0.0), (48, float("nan"))])
def test_what_gives_no_estimate_is_refused(count, power_w):
    pilots = pilot_symbols(1, WAVEFORM)
    with pytest.raises(ValueError, match="no estimate"):
        estimate_channel(np.zeros((2, count)), pilots[: max(count, 1)] if count < 2 else pilots, power_w)
