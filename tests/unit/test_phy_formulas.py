import numpy as np
import pytest

from testbed.core.bench import StageSpec
from testbed.core.frames import to_array, to_stage
from testbed.phy import array, budget, rate


def test_two_waves_interfere_with_the_known_period():
    # gains .8 and .5 at direction cosines .3 and -.5: maxima 1.69, minima .09, period 1.25 wavelengths
    wavelength_m = 0.125
    positions_m = np.stack([np.linspace(0, 1.25 * wavelength_m, 1001), np.zeros(1001)], axis=1)
    directions, gains = np.array([[0.3, 0.1], [-0.5, 0.2]]), np.array([0.8, 0.5j])
    power = np.abs(array.channel(positions_m, directions, gains, wavelength_m)) ** 2
    assert power.max() == pytest.approx(1.69, abs=1e-4)
    assert power.min() == pytest.approx(0.09, abs=1e-4)
    assert power[0] == pytest.approx(power[-1])


def test_one_wave_is_as_strong_everywhere():
    positions_m = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    power = np.abs(array.channel(positions_m, np.array([[0.3, 0.4]]), np.array([2.0]), 0.1)) ** 2
    assert np.ptp(power) < 1e-12


def test_channel_of_several_instants():
    gains = np.random.default_rng(0).standard_normal((7, 3))
    directions, positions_m = np.full((3, 2), 0.1), np.ones((4, 2))
    several = array.channel(positions_m, directions, gains, 0.1)
    assert several.shape == (7, 4)
    np.testing.assert_allclose(several[2], array.channel(positions_m, directions, gains[2], 0.1))


def test_rate_and_combining():
    assert rate.capacity_bit_s(1e6, 3.0) == pytest.approx(2e6)
    assert rate.capacity_bit_s(1e6, 6.0, gap=2.0) == pytest.approx(2e6)
    channel = np.array([[3e-4, 0.0], [4e-4j, 1e-4]])
    np.testing.assert_allclose(rate.mrc_snr(channel, np.array([0.01, 0.02]), 1e-10), [25.0, 2.0])


def test_budgets():
    assert budget.digital_air_time_s(1e6, 2e6) == 0.5
    assert budget.compute_seconds(1000, 2e6, 1e9) == pytest.approx(2.0)
    assert budget.compute_joules(1000, 2e6, 1e9, 1e-28) == pytest.approx(0.2)


def test_frames_are_each_others_inverse():
    spec = StageSpec(origin_m=(0.2, -0.1), rotation_deg=90.0)
    np.testing.assert_allclose(to_array(np.array([1.0, 0.0]), spec), [0.2, 0.9], atol=1e-12)
    points = np.random.default_rng(0).standard_normal((5, 2))
    np.testing.assert_allclose(to_stage(to_array(points, spec), spec), points, atol=1e-12)
