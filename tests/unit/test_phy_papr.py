import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm, papr

WAVEFORM = WaveformSpec()


def burst(num_blocks: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    symbols = generator.standard_normal((num_blocks * WAVEFORM.num_active, 2)) @ np.array([1, 1j]) / np.sqrt(2)
    return ofdm.modulate(symbols, WAVEFORM)


def test_peaks_of_known_signals():
    assert papr.papr(np.exp(1j * np.arange(100))) == pytest.approx(1.0, abs=1e-9)
    # n equal tones in phase: a peak of n^2 over an average of n
    tones = np.exp(2j * np.pi * np.outer(np.arange(64), np.arange(8)) / 64).sum(axis=1)
    assert papr.papr(tones) == pytest.approx(8.0, abs=1e-9)


def test_clipping_limits_the_peaks_and_keeps_the_phase():
    samples = 3e-4 * burst(200, 1)
    clipped = papr.clip(samples, 2.5)
    assert clipped.dtype == np.complex64
    limit = np.sqrt(np.mean(np.abs(samples) ** 2) * 2.5)
    assert np.abs(clipped).max() <= limit * (1 + 1e-6)
    np.testing.assert_array_equal(clipped[np.abs(samples) < 0.999 * limit], samples[np.abs(samples) < 0.999 * limit])
    np.testing.assert_allclose(np.angle(clipped * samples.conj()), 0.0, atol=1e-6)
    assert np.mean(np.abs(samples) > limit) == pytest.approx(np.exp(-2.5), rel=0.1)


def test_a_signal_without_peaks_passes_unchanged_and_is_not_touched():
    samples = np.exp(1j * np.arange(500)).astype(np.complex64)
    np.testing.assert_array_equal(papr.clip(samples, 1.02), samples)
    loud = burst(20, 2)
    before = loud.copy()
    papr.clip(loud, 2.0)
    np.testing.assert_array_equal(loud, before)
    assert not papr.clip(np.zeros(10), 2.0).any()


@pytest.mark.parametrize("ratio", [0.01, 1.0, 2.0, 4.0])
def test_gain_and_distortion_of_ofdm_agree_with_the_closed_form(ratio):
    samples = burst(3000, 3)
    clipped = papr.clip(samples, ratio)
    power_w = np.vdot(samples, samples).real
    alpha = np.vdot(samples, clipped) / power_w
    distortion = np.sum(np.abs(clipped - alpha * samples) ** 2) / power_w
    expected_alpha, expected_distortion = papr.clipping(ratio)
    assert alpha.real == pytest.approx(expected_alpha, rel=2e-3)
    assert abs(alpha.imag) < 1e-3
    assert distortion == pytest.approx(expected_distortion, rel=0.03)


def test_clipping_at_its_limits():
    assert papr.clipping(1e4) == (1.0, 0.0)
    # g -> 0: the envelope is constant, alpha / g = sqrt(pi) / 2
    alpha, distortion = papr.clipping(1e-6)
    assert alpha == pytest.approx(np.sqrt(np.pi) / 2 * 1e-3, rel=1e-3)
    assert distortion == pytest.approx((1 - np.pi / 4) * 1e-6, rel=1e-2)
    distortions = [papr.clipping(ratio)[1] for ratio in np.geomspace(1, 16, 25)]
    assert np.all(np.diff(distortions) < 0)


def test_what_has_no_power_or_is_not_finite_is_refused():
    for bad in (np.zeros(8), np.zeros(0), np.array([1, np.nan]), np.array([1, np.inf])):
        with pytest.raises(ValueError, match="finite"):
            papr.papr(bad)
    with pytest.raises(ValueError, match="finite"):
        papr.clip(np.array([1, np.nan]), 2.0)
    for ratio in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="clipping ratio"):
            papr.clip(np.ones(4), ratio)
        with pytest.raises(ValueError, match="clipping ratio"):
            papr.clipping(ratio)
