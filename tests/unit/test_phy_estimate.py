import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm
from testbed.phy.estimate import (
    delay_response,
    estimate_channel,
    estimate_delay,
    estimate_rotation,
    pilot_symbols,
    within_prefix,
)

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


FULL = WaveformSpec()
SUBCARRIERS = np.concatenate([np.arange(1, 97), np.arange(-96, 0)])


def noise(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Circular Gaussian of unit power."""
    return generator.standard_normal((*shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)


def test_the_response_of_a_delay_is_a_linear_phase():
    delay = np.array([[0.0, 1.5], [-3.25, 63.9]])
    expected = np.exp(-2j * np.pi * delay[..., None] * SUBCARRIERS / 256)
    response = delay_response(delay, FULL)
    assert response.shape == (2, 2, 192)
    np.testing.assert_allclose(response, expected, atol=2e-6)
    odd = WaveformSpec(num_subcarriers=64, num_active=50, cyclic_prefix=0)
    bins = np.concatenate([np.arange(1, 26), np.arange(-25, 0)])
    np.testing.assert_allclose(delay_response(2.0, odd), np.exp(-2j * np.pi * 2 * bins / 64), atol=1e-6)


def test_a_whole_delay_of_samples_is_the_response_of_that_delay():
    sent = ofdm.modulate(pilot_symbols(1, FULL), FULL)
    received = ofdm.demodulate(np.concatenate([np.zeros(7), sent])[:320], FULL)
    np.testing.assert_allclose(received * pilot_symbols(1, FULL).conj(), delay_response(7.0, FULL), atol=1e-4)


@pytest.mark.parametrize("num_antennas", [1, 3])
def test_the_error_of_the_delay_reaches_the_cramer_rao_bound(num_antennas):
    generator = np.random.default_rng(11)
    num_draws, snr = 3000, 1.0
    delay = generator.uniform(-40, 40, num_draws)
    gain = np.exp(2j * np.pi * generator.uniform(size=(num_draws, num_antennas, 1)))
    response = gain * delay_response(delay, FULL)[:, None] + noise(generator, num_draws, num_antennas, 192)
    error = estimate_delay(response, FULL, limit=64) - delay
    bound = (256 / (2 * np.pi)) ** 2 / (2 * snr * num_antennas * np.sum(SUBCARRIERS.astype(float) ** 2))
    # the ratio's own standard deviation is sqrt(2 / 3000) = 2.6 %; at 0 dB the estimate lies a little above the bound
    assert 0.92 < np.mean(error**2) / bound < 1.12
    assert abs(error.mean()) < 4 * np.sqrt(bound / num_draws)


def test_delays_are_looked_for_up_to_the_limit_only():
    response = delay_response(np.array([20.0, -20.0]), FULL)[:, None]
    np.testing.assert_allclose(estimate_delay(response, FULL, limit=64), [20.0, -20.0], atol=1e-4)
    assert np.all(np.abs(estimate_delay(response, FULL, limit=4)) <= 4)


@pytest.mark.parametrize("num_blocks", [2, 3, 8])
def test_the_error_of_the_rotation_reaches_the_cramer_rao_bound(num_blocks):
    generator = np.random.default_rng(12)
    num_antennas, snr, errors = 2, 10.0, []
    for _ in range(400):
        angle = generator.uniform(-np.pi, np.pi)
        # a channel of its own on every subcarrier
        channel = noise(generator, num_antennas, 1, 192)
        channel *= np.sqrt(snr * channel.size / np.vdot(channel, channel).real)
        turn = np.exp(1j * angle * np.arange(num_blocks))[:, None]
        blocks = channel * turn + noise(generator, num_antennas, num_blocks, 192)
        errors.append(np.angle(np.exp(1j * (estimate_rotation(blocks) - angle))))
    bound = 6 / (snr * num_antennas * 192 * num_blocks * (num_blocks**2 - 1))
    # the ratio's own standard deviation is sqrt(2 / 400) = 7 %
    assert 0.75 < np.mean(np.square(errors)) / bound < 1.3


def test_a_single_block_does_not_tell_a_rotation():
    with pytest.raises(ValueError, match="two or more"):
        estimate_rotation(np.ones((1, 1, 48)))


def test_echoes_within_the_prefix_pass_and_noise_does_not():
    waveform, generator = WaveformSpec(), np.random.default_rng(41)
    index = np.concatenate([np.arange(1, 97), np.arange(-96, 0)])
    # windows begin 16 samples early: delays from -16 to 48 suffer no inter-symbol interference
    delays = generator.uniform(-12, 44, (200, 5))
    gains = generator.standard_normal((200, 5, 2)) @ np.array([1, 1j])
    response = np.einsum("np,npk->nk", gains, np.exp(-2j * np.pi * delays[:, :, None] * index / 256))
    error = within_prefix(response, waveform) - response
    assert np.linalg.norm(error) < 1e-3 * np.linalg.norm(response)
    noise = generator.standard_normal((400, 192, 2)) @ np.array([1, 1j])
    left = np.mean(np.abs(within_prefix(noise, waveform)) ** 2) / np.mean(np.abs(noise) ** 2)
    # 65 of 256 delays in 192 subcarriers: 49 degrees of freedom and a few for the edges
    assert 49 / 192 < left < 62 / 192
    far = np.exp(-2j * np.pi * 120 * index / 256)[None]
    assert np.linalg.norm(within_prefix(far, waveform)) < 0.2 * np.linalg.norm(far)
