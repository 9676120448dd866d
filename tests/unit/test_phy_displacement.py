"""How far antennas moved, from their channels: against closed forms and Cramer-Rao bounds."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.phy.displacement import displacement, estimate_shift, fit_vibration, read_tones, tone

WAVELENGTH_M = 0.1224


def noise(rng: np.random.Generator, shape: tuple[int, ...], variance: np.ndarray | float) -> np.ndarray:
    return np.sqrt(np.asarray(variance) / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def waves(rng: np.random.Generator, num_nodes: int, num_paths: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Direction cosines and gains, [num_nodes, num_paths] each, of unit mean power."""
    cosines = rng.uniform(-1, 1, (num_nodes, num_paths))
    return cosines, noise(rng, (num_nodes, num_paths), 1 / num_paths)


def along(x_m: np.ndarray, cosines: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """[num_places, num_nodes]."""
    return np.einsum("nkl,kl->nk", np.exp(2j * np.pi / WAVELENGTH_M * x_m[:, None, None] * cosines), gains)


def test_amplitudes_of_tones_reach_the_bound() -> None:
    rng, count, draws = np.random.default_rng(1), 2048, 100
    wanted, true = np.array([0.07, 0.21, 0.33]), np.array([[1.0, 0.5j, -0.3], [0.2, 1j, 0.9]])
    errors, said, found = [], [], []
    for _ in range(draws):
        off = wanted + rng.uniform(-0.01, 0.01)
        turns = np.exp(2j * np.pi * np.outer(off, np.arange(count) - (count - 1) / 2))
        heard = true @ turns + noise(rng, (2, count), 0.1)
        amplitudes, frequencies, variance = read_tones(heard, wanted, 0.02)
        errors.append(np.abs(amplitudes - true) ** 2)
        said.append(variance)
        found.append(frequencies - off)
    bound = 0.1 / count
    assert np.mean(errors) < 1.1 * bound
    assert np.mean(said) == pytest.approx(bound, rel=0.05)
    # Rife and Boorstyn: var(f) >= 6 / ((2 pi)^2 snr N^3) cycles^2 in a sample, snr of the antennas together
    snr = np.sum(np.abs(true) ** 2, axis=0) / 0.1
    limit = np.sqrt(6 / ((2 * np.pi) ** 2 * snr * count**3))
    assert (np.sqrt(np.mean(np.square(found), axis=0)) < 4 * limit).all()


def test_a_tone_has_the_power_that_was_asked_for() -> None:
    burst = tone(1000, 0.13, 2e-3)
    assert burst.dtype == np.complex64
    assert np.mean(np.abs(burst) ** 2) == pytest.approx(2e-3, rel=1e-6)


def test_a_shift_among_many_waves_reaches_the_bound() -> None:
    """65 dB for each place and node, six waves: some 3 um, less than a motor step of 4 um."""
    rng, x_m, variance = np.random.default_rng(2), np.linspace(0.02, 0.17, 16), np.array([3e-7, 6e-7, 3e-7])
    errors, said = [], []
    for _ in range(150):
        cosines, gains = waves(rng, 3)
        shift_m = rng.uniform(-1e-4, 5e-4)
        first, second = (along(x_m + b, cosines, gains) + noise(rng, (16, 3), variance) for b in (0.0, shift_m))
        found = estimate_shift(x_m, first, second, variance, WAVELENGTH_M)
        errors.append((found.shift_m - shift_m) / found.std_m)
        said.append(found.std_m)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(1.0, abs=0.25)
    assert np.median(said) < 4e-6


def test_a_curve_that_is_no_curve_says_so_by_its_standard_deviation() -> None:
    rng, x_m = np.random.default_rng(3), np.linspace(0.0, 0.15, 16)
    cosines, gains = waves(rng, 2)
    jumping = np.exp(2j * np.pi * rng.uniform(size=(2, 16, 2)))
    first, second = (along(x_m, cosines, gains) * turned for turned in jumping)
    found = estimate_shift(x_m, first, second, np.full(2, 1e-6), WAVELENGTH_M)
    assert found.scatter > 1e3
    assert found.std_m > 3e-4


def test_too_few_places_are_refused() -> None:
    three = np.ones((3, 1), complex)
    with pytest.raises(ValueError, match="four"):
        estimate_shift(np.arange(3) * 0.01, three, three, np.ones(1), WAVELENGTH_M)


def test_a_displacement_in_the_plane_needs_two_directions() -> None:
    slopes = 50j * np.array([[0.9, 0.1], [-0.3, 0.8]])
    moved_m = np.array([2e-5, -1e-5])
    found_m, covariance = displacement(slopes, slopes @ moved_m, np.full(2, 1e-8))
    assert found_m == pytest.approx(moved_m, rel=1e-9)
    assert np.sqrt(np.diag(covariance)) == pytest.approx(np.full(2, 1e-4 / np.sqrt(2) / 50), rel=0.3)
    _, unknown = displacement(slopes[:1], slopes[:1] @ moved_m, np.full(1, 1e-8))
    assert np.isinf(np.diag(unknown)).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_vibration_of_twenty_times_the_noise_gives_the_settle_time_within_ten_percent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    since_s = np.tile(0.6 * ((np.arange(40) + rng.uniform(size=40)) / 40) ** 1.5, 2)
    arrival = np.repeat([0, 1], 40)
    decay_s, frequency_hz, amplitude_m = rng.uniform(0.03, 0.1), rng.uniform(15, 90), 3e-4
    rest_m = np.array([1e-3, -2e-3])[arrival]
    swing = np.exp(-since_s / decay_s) * np.sin(2 * np.pi * frequency_hz * since_s + 0.3)
    places_m = rest_m + amplitude_m * swing + 1.5e-5 * rng.standard_normal(80)
    found = fit_vibration(since_s, places_m, arrival)
    assert found.evidence > 60
    assert found.frequency_hz == pytest.approx(frequency_hz, rel=0.02)
    assert found.settle_s(2e-5) == pytest.approx(decay_s * np.log(amplitude_m / 2e-5), rel=0.1)
    assert abs(found.decay_s - decay_s) < 4 * found.decay_std_s


def test_noise_is_no_vibration() -> None:
    rng = np.random.default_rng(9)
    since_s = 0.6 * (np.sort(rng.uniform(size=40))) ** 1.5
    evidence = [fit_vibration(since_s, 1e-5 * rng.standard_normal(40), np.zeros(40, int)).evidence for _ in range(15)]
    assert max(evidence) < 60


def test_too_few_looks_are_refused() -> None:
    since_s = np.linspace(0, 0.5, 20)
    with pytest.raises(ValueError, match="looks"):
        fit_vibration(since_s, since_s, np.repeat([0, 1, 2, 3], 5))
