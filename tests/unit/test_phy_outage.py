"""Losses of a fixed rate in fading equal draws and closed forms, and psi has the slopes and the shape it claims."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.phy.outage import load_of_hz, outage, required_power_slopes, required_power_w, waterfall_loss


def test_outage_equals_draws_of_the_channel() -> None:
    bandwidth_hz, payload_bit, window_s, gain, density_w_hz, power_w = 3e5, 2.4e6, 5.0, 2e-12, 4e-21, 0.02
    required_w = required_power_w(
        np.array(bandwidth_hz), load_of_hz(np.array(payload_bit), np.array(window_s)), np.array(density_w_hz / gain)
    )
    loss = float(outage(required_w, np.array(power_w)))
    fading = np.random.default_rng(0).exponential(size=400_000)
    snr = power_w * gain * fading / (density_w_hz * bandwidth_hz)
    lost = float(np.mean(window_s * bandwidth_hz * np.log2(1 + snr) < payload_bit))
    assert 0.05 < loss < 0.95
    assert abs(lost - loss) < 4 * np.sqrt(loss * (1 - loss) / 400_000)


def test_slopes_equal_differences_from_narrow_to_wide_bands() -> None:
    load_hz = 1e5
    for y in (30.0, 5.0, 1.0, 0.1, 1.01e-2, 0.99e-2, 1e-4):
        band_hz = load_hz / y
        slope, curvature = required_power_slopes(np.array(band_hz), np.array(load_hz), np.array(1e-9))
        step = band_hz * 1e-3
        low, middle, high = (
            float(required_power_w(np.array(b), np.array(load_hz), np.array(1e-9)))
            for b in (band_hz - step, band_hz, band_hz + step)
        )
        # central differences err by about (step y / b)^2, and by what rounding leaves of them
        rounding = 1e-13 * middle / (step * abs(float(slope)))
        assert slope == pytest.approx((high - low) / (2 * step), rel=1e-2 * min(1, y) + 1e-6 + rounding)
        if y > 0.05:
            assert curvature == pytest.approx((high - 2 * middle + low) / step**2, rel=1e-2)


def test_psi_is_convex_and_log_convex_in_the_band() -> None:
    band_hz = np.geomspace(1e3, 1e7, 400)
    required_w = required_power_w(band_hz, np.array(1e5), np.array(1e-9))
    slope, curvature = required_power_slopes(band_hz, np.array(1e5), np.array(1e-9))
    assert np.all(slope < 0)
    assert np.all(required_w * curvature >= slope**2)
    assert required_power_w(np.zeros(1), np.ones(1), np.ones(1))[0] == np.inf
    assert required_w[-1] == pytest.approx(
        1e5 * 1e-9, rel=0.01
    )  # an unlimited band still asks for N0 S ln 2 / (tau beta)


def test_edges() -> None:
    assert outage(np.array([0.0, 1.0, np.inf]), np.array([1.0, 0.0, 1.0])).tolist() == [0.0, 1.0, 1.0]
    assert load_of_hz(np.array([1.0, 1.0, 0.0]), np.array([0.0, -1.0, 0.0])).tolist() == [np.inf, np.inf, 0.0]


def test_averaged_waterfall() -> None:
    assert waterfall_loss(np.array(0.3)) == pytest.approx(0.43743, abs=5e-4)
    fading = np.random.default_rng(1).exponential(size=400_000)
    drawn = 1 - np.exp(-0.3 / fading)
    assert abs(drawn.mean() - waterfall_loss(np.array(0.3))) < 4 * drawn.std() / np.sqrt(400_000)
