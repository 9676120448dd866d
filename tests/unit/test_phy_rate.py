"""Rates over a share of the band: value, slope and inverse agree with definitions and with each other."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.phy.rate import bandwidth_for_hz, capacity_bit_s, shared_rate_bit_s, shared_rate_slope, snr_bandwidth_hz


def test_a_share_as_wide_as_gamma_carries_a_bit_per_hertz() -> None:
    assert shared_rate_bit_s(2e6, 2e6) == pytest.approx(2e6)
    assert shared_rate_bit_s(1e6, 3e6) == pytest.approx(2e6)
    assert shared_rate_bit_s(0.0, 3e6) == 0.0
    assert shared_rate_bit_s(1e15, 3e6) == pytest.approx(3e6 / np.log(2), rel=1e-8)


def test_it_is_the_capacity_of_a_power_that_is_spread() -> None:
    power_w, gain, noise_w_per_hz, share_hz = 0.1, 1e-12, 4e-21, 2e5
    gamma_hz = snr_bandwidth_hz(power_w, gain, noise_w_per_hz)
    assert gamma_hz == pytest.approx(2.5e7)
    expected = capacity_bit_s(share_hz, power_w * gain / (noise_w_per_hz * share_hz))
    assert shared_rate_bit_s(share_hz, gamma_hz) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="not positive"):
        snr_bandwidth_hz(power_w, gain, 0.0)


def test_slope_is_the_derivative() -> None:
    rng = np.random.default_rng(0)
    share_hz, gamma_hz = 10 ** rng.uniform(3, 7, 500), 10 ** rng.uniform(3, 9, 500)
    step = 1e-5 * share_hz
    rise = shared_rate_bit_s(share_hz + step, gamma_hz) - shared_rate_bit_s(share_hz - step, gamma_hz)
    # the difference of two rates keeps about ten digits
    np.testing.assert_allclose(shared_rate_slope(share_hz, gamma_hz), rise / (2 * step), rtol=1e-6, atol=1e-8)


def test_slope_keeps_its_digits_where_the_band_is_wide() -> None:
    # E(u) = u^2 / 2 - 2 u^3 / 3 + O(u^4)
    snr = np.array([1e-4, 1e-8, 1e-12])
    np.testing.assert_allclose(shared_rate_slope(1.0 / snr, 1.0), (snr**2 / 2 - 2 * snr**3 / 3) / np.log(2), rtol=1e-7)


def test_inverse_returns_over_two_hundred_decades() -> None:
    rng = np.random.default_rng(1)
    level = np.concatenate(
        [rng.uniform(0, 1, 5000), 10 ** rng.uniform(-200, 0, 2000), 1 - 10 ** rng.uniform(-13, 0, 2000)]
    )
    gamma_hz = 10 ** rng.uniform(-3, 9, len(level))
    rate_bit_s = level * gamma_hz / np.log(2)
    share_hz = bandwidth_for_hz(rate_bit_s, gamma_hz)
    np.testing.assert_allclose(shared_rate_bit_s(share_hz, gamma_hz), rate_bit_s, rtol=1e-13)


def test_no_band_carries_more_than_the_reach() -> None:
    assert np.isinf(bandwidth_for_hz(1e6 / np.log(2) * (1 + 1e-12), 1e6))
    assert np.isinf(bandwidth_for_hz(1.0, 0.0))
    np.testing.assert_array_equal(bandwidth_for_hz(np.zeros(2), np.array([0.0, 1e6])), 0.0)
