"""Images, combs and compression against closed forms and Cramer-Rao bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.core.corrections import ReceiveCorrection
from testbed.phy.combs import FOUND, Comb, burst_start, fit_comb, turning
from testbed.phy.compression import PEAK_OVER_MEAN, fit_compression, pulse
from testbed.phy.corrections import equalised
from testbed.phy.widely_linear import estimate_blind, estimate_known, image_equations

KAPPA = 0.012 * np.exp(2.1j)


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Circular, of unit power."""
    return np.asarray(rng.standard_normal((*shape, 2)) @ [1, 1j]) / math.sqrt(2)


def test_the_blind_estimate_reaches_its_bound_and_takes_the_image_out() -> None:
    rng = np.random.default_rng(1)
    clean = noise(rng, 400, 4096)
    heard = clean + KAPPA * clean.conj() + 0.1j
    found = estimate_blind(heard)
    error = float(np.mean(np.abs(found.image - KAPPA) ** 2))
    assert error == pytest.approx(1 / (2 * 4096), rel=0.2)
    assert found.image_std == pytest.approx(np.full(400, math.sqrt(error)), rel=0.2)
    assert np.mean(np.abs(found.dc - 0.1j) ** 2) == pytest.approx(1 / 4096, rel=0.2)
    long = noise(rng, 1 << 20)
    heard = (long + KAPPA * long.conj() + 0.1j).astype(np.complex64)
    found = estimate_blind(heard)
    correction = ReceiveCorrection(dc=(found.dc.real, found.dc.imag), image=(found.image.real, found.image.imag))
    left = estimate_known(equalised(heard, correction)[None], long)
    assert abs(left.image[0]) ** 2 < abs(KAPPA) ** 2 / 100


def test_a_blind_estimate_of_silence_knows_nothing() -> None:
    found = estimate_blind(np.zeros((2, 64), np.complex64))
    assert np.isinf(found.image_std).all()
    assert not found.image.any()


def test_a_known_signal_tells_image_and_offset_at_the_bound() -> None:
    rng = np.random.default_rng(2)
    sent = noise(rng, 2048)
    clean = 0.3j * sent
    heard = clean + KAPPA * clean.conj() - 0.02 + 0.1 * noise(rng, 300, 2048)
    found = estimate_known(heard, sent)
    bound = 0.01 / (2048 * 0.09 * np.mean(np.abs(sent) ** 2))
    assert np.mean(np.abs(found.image - KAPPA) ** 2) == pytest.approx(bound, rel=0.2)
    assert np.mean(found.image_std**2) == pytest.approx(bound, rel=0.1)
    assert abs(found.dc.mean() + 0.02) < 3 * found.dc_std[0] / math.sqrt(300)


@pytest.mark.parametrize("num_tones", [12, 16, 24, 32])
def test_a_comb_has_no_mirrors_and_fits_above_its_mean_power(num_tones: int) -> None:
    comb = Comb.of(num_tones, 2.0)
    wave = comb.samples(20_000)
    power_w = np.mean(np.abs(wave) ** 2)
    assert power_w == pytest.approx(2.0, rel=0.01)
    assert np.max(np.abs(wave) ** 2) < 10 * power_w
    apart = np.abs(comb.places[:, None] + comb.places)
    assert apart.min() > 1e-3
    third = comb.places[:, None, None] + comb.places[:, None] - comb.places
    rows, columns, _ = np.indices(third.shape)
    # products of three tones fall on no image
    distances = np.abs(third[rows != columns][:, None] + comb.places)
    assert np.count_nonzero(distances < 1 / 20_000) < 0.02 * distances.shape[0]
    np.testing.assert_allclose(comb.samples(300, first=100), comb.samples(400)[100:], rtol=0, atol=1e-6)


def test_offset_and_amplitudes_of_a_comb_reach_their_bounds() -> None:
    rng = np.random.default_rng(3)
    comb, length, offset, stretch = Comb.of(12, 1.0), 4096, 1.7e-3, 2e-6
    wave = turning(comb.places * (1 + stretch) + offset, length) @ comb.coefficients
    errors, amplitudes, claimed = [], [], []
    for _ in range(60):
        heard = np.array([[0.5], [0.3j]]) * wave + 0.1 * noise(rng, 2, length)
        fit = fit_comb(heard, comb.places, limit=0.01)
        assert fit.found
        errors.append(fit.offset - offset)
        amplitudes.append(fit.amplitudes[0] - 0.5 * comb.coefficients)
        claimed.append(fit.offset_std)
    snr = (0.25 + 0.09) / 0.01
    bound = math.sqrt(6 / (4 * math.pi**2 * length**3 * snr))
    assert np.mean(claimed) == pytest.approx(bound, rel=0.1)
    assert np.sqrt(np.mean(np.square(errors))) < 1.26 * bound  # 2 dB
    # phases at the first sample also bear the error of the frequency: four times the bound of a known one
    assert np.mean(np.abs(amplitudes) ** 2) < 4 * 0.01 / length


def test_neither_noise_nor_a_loud_carrier_passes_for_a_comb() -> None:
    rng = np.random.default_rng(4)
    comb = Comb.of(12, 1.0)
    evidence = []
    for _ in range(50):
        heard = noise(rng, 1, 4096)
        evidence.append(fit_comb(heard, comb.places, limit=1 / 32).evidence)
        heard += 30 * turning(np.array([rng.uniform(-0.4, 0.4)]), 4096)[:, 0]
        evidence.append(fit_comb(heard, comb.places, limit=1 / 32).evidence)
    assert max(evidence) < FOUND
    heard = noise(rng, 1, 16_384) + 0.1 * comb.samples(16_384)
    fit = fit_comb(heard, comb.places, limit=1 / 32)
    assert fit.found  # 20 dB below the noise
    assert abs(fit.offset) < 6 * fit.offset_std


def test_a_burst_is_found_by_its_energy() -> None:
    rng = np.random.default_rng(5)
    heard = noise(rng, 2, 20_000)
    heard[:, 7_654 : 7_654 + 8_000] += Comb.of(12, 1.0).samples(8_000)
    assert abs(burst_start(heard, 8_000) - 7_654) < 100


def captured(
    rng: np.random.Generator, comb: Comb, length: int, offset: float, channel: np.ndarray, noise_w: float
) -> np.ndarray:
    """A comb and its mirror through two images, a leak and an offset; shape [num_antennas, 2 length]."""
    burst = np.concatenate([comb.samples(length), comb.mirrored.samples(length, first=length)]).astype(np.complex128)
    sent = burst - 0.008j * burst.conj() + 0.005
    arrived = channel[:, None] * sent * turning(np.array([offset]), 2 * length)[:, 0]
    heard = arrived + KAPPA * arrived.conj() + 0.01j
    return heard + math.sqrt(noise_w) * noise(rng, len(channel), 2 * length)


def test_both_images_are_told_apart_by_the_carriers_offset_at_the_bound() -> None:
    rng = np.random.default_rng(6)
    comb, length = Comb.of(12, 1.0), 4096
    errors = []
    for _ in range(60):
        heard = captured(rng, comb, length, 2e-3, np.array([0.5 * np.exp(1j * rng.uniform(0, 6))]), 0.0025)
        equations = image_equations((heard[:, :length], heard[:, length:]), (0, length), comb, limit=0.01, latest=2)
        assert equations.found
        found = np.linalg.solve(equations.matrix[0], equations.right[0])
        errors.append(found - [KAPPA, -0.008j, 0.005, 0.01j])
    bound = 0.0025 / (2 * length * 0.25)
    mean = np.mean(np.abs(errors) ** 2, axis=0)
    assert bound / 1.6 < mean[0] < 1.6 * bound  # 2 dB
    assert bound / 1.6 < mean[1] < 1.6 * bound
    assert mean[2] < 2 * bound


def test_where_carriers_agree_one_capture_says_that_it_cannot_tell() -> None:
    rng = np.random.default_rng(7)
    comb, length = Comb.of(12, 1.0), 4096
    total, right = np.zeros((4, 4), np.complex128), np.zeros(4, np.complex128)
    for phase in (0.0, 1.2):
        heard = captured(rng, comb, length, 0.0, np.array([0.5 * np.exp(1j * phase)]), 0.0025)
        equations = image_equations((heard[:, :length], heard[:, length:]), (0, length), comb, limit=0.01, latest=2)
        alone = np.linalg.inv(equations.matrix[0] + 1e-9 * np.eye(4))
        assert math.sqrt(alone[0, 0].real) > 0.05
        total, right = total + equations.matrix[0], right + equations.right[0]
    std = np.sqrt(np.diagonal(np.linalg.inv(total)).real)
    assert std[0] < 2e-3
    assert abs(np.linalg.solve(total, right)[0] - KAPPA) < 4 * std[0]


@pytest.mark.parametrize(("guard", "late"), [(10, 3), (3000, -700)])
def test_the_compression_point_is_found(guard: int, late: int) -> None:
    rng = np.random.default_rng(8)
    length, saturation_w, smoothness = 8192, 8.0, 2.0
    sent = pulse(length, 1.0)
    assert np.mean(np.abs(sent) ** 2) == pytest.approx(1.0, rel=1e-3)
    assert np.max(np.abs(sent) ** 2) == pytest.approx(PEAK_OVER_MEAN, rel=0.01)
    fallen = sent / (1 + (np.abs(sent) ** 2 / saturation_w) ** smoothness) ** (0.5 / smoothness)
    heard = 0.03 * noise(rng, 2, length + 2 * guard)
    heard[:, guard + late : guard + late + length] += np.array([[0.4], [0.2j]]) * fallen
    found = fit_compression(heard, 1.0, num_samples=length, guard=guard, limit=1 / 32)
    point_w = saturation_w * (10 ** (0.1 * smoothness) - 1) ** (1 / smoothness)
    assert found.reached
    assert found.point_w == pytest.approx(point_w, rel=0.02)
    assert abs(found.point_w - point_w) < 5 * found.point_std_w


def test_an_amplifier_that_does_not_compress_is_not_said_to() -> None:
    rng = np.random.default_rng(9)
    heard = 0.5 * pulse(8192, 1.0)[None] + 0.01 * noise(rng, 1, 8192)
    found = fit_compression(heard, 1.0, num_samples=8192, guard=0, limit=1 / 32)
    assert not found.reached
    assert found.point_w == pytest.approx(PEAK_OVER_MEAN)
    assert math.isinf(found.point_std_w)
    with pytest.raises(ValueError, match="weak"):
        fit_compression(noise(rng, 1, 8192), 1.0, num_samples=8192, guard=0, limit=1 / 32)
