import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm

WAVEFORM = WaveformSpec(num_subcarriers=64, num_active=48, cyclic_prefix=16)


def complex_normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return (generator.standard_normal((*shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)).astype(np.complex64)


@pytest.mark.parametrize("waveform", [WAVEFORM, WaveformSpec(), WaveformSpec(num_active=2, cyclic_prefix=0)])
@pytest.mark.parametrize("shape", [(1,), (48,), (3, 100)])
def test_demodulate_undoes_modulate(waveform, shape):
    symbols = complex_normal(np.random.default_rng(1), *shape)
    samples = ofdm.modulate(symbols, waveform)
    assert samples.dtype == np.complex64
    assert samples.shape == (*shape[:-1], ofdm.burst_length(shape[-1], waveform))
    back = ofdm.demodulate(samples, waveform, shape[-1])
    assert back.dtype == np.complex64
    np.testing.assert_allclose(back, symbols, atol=2e-6)


def test_unit_power_symbols_give_unit_power_samples_and_leave_dc_empty():
    generator = np.random.default_rng(2)
    symbols = np.exp(2j * np.pi * generator.random(48 * 50)).astype(np.complex64)
    samples = ofdm.modulate(symbols, WAVEFORM)
    assert ofdm.body_power_w(samples, WAVEFORM) == pytest.approx(1.0, rel=1e-6)
    assert np.mean(np.abs(samples) ** 2) == pytest.approx(1.0, rel=0.05)
    spectrum = np.fft.fft(samples.reshape(-1, 80)[:, 16:], axis=1)
    assert np.abs(spectrum[:, [0, *range(25, 40)]]).max() < 1e-4


def test_the_prefix_repeats_the_end_of_every_block():
    blocks = ofdm.modulate(complex_normal(np.random.default_rng(3), 96), WAVEFORM).reshape(2, 80)
    np.testing.assert_array_equal(blocks[:, :16], blocks[:, -16:])


def test_white_noise_loses_the_share_of_the_idle_subcarriers():
    noise = complex_normal(np.random.default_rng(4), 80 * 4000) * np.float32(np.sqrt(2.5))
    symbols = ofdm.demodulate(noise, WAVEFORM)
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(ofdm.in_band_noise_w(2.5, WAVEFORM), rel=0.01)


def test_a_burst_that_is_no_whole_number_of_blocks_is_averaged_over_all_samples():
    assert ofdm.body_power_w(np.array([1, 1j, 2]), WAVEFORM) == pytest.approx(2.0)
    assert ofdm.body_power_w(np.zeros(0), WAVEFORM) == 0.0


def test_too_few_samples_and_too_long_a_prefix_are_refused():
    with pytest.raises(ValueError, match="49 symbols need 2"):
        ofdm.demodulate(np.zeros(80, np.complex64), WAVEFORM, 49)
    with pytest.raises(ValueError, match="cyclic_prefix"):
        ofdm.modulate(np.ones(2), WaveformSpec(num_subcarriers=8, num_active=2, cyclic_prefix=9))
