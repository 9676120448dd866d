"""The field from few measurements: plane waves, their uncertainty, and what gives away that they do not hold."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline
from scipy.special import j0

from testbed.phy.array import field_response
from testbed.phy.field_alternatives import fit_isotropic, fit_sparse
from testbed.phy.field_checks import cross_validated, displaced, robust_fit
from testbed.phy.field_fit import fit_paths, most_paths, straightened
from testbed.phy.field_model import PathField, Samples, path_slopes

WAVELENGTH_M = 0.125
SIDE_M = 3 * WAVELENGTH_M
AXIS_M = np.linspace(0.0, SIDE_M, 25)
UNSEEN_M = np.stack(np.meshgrid(AXIS_M, AXIS_M, indexing="ij"), axis=-1).reshape(-1, 2)


class Room:
    """Plane waves from the half-space before the array, every measurement 25 dB above its noise."""

    def __init__(self, seed: int, num_paths: int, *, snr: float = 10**2.5) -> None:
        self.rng = np.random.default_rng([seed, num_paths])
        cosine, azimuth_rad = self.rng.uniform(-1, 1, num_paths), self.rng.uniform(0, np.pi, num_paths)
        self.directions = np.stack([np.sqrt(1 - cosine**2) * np.cos(azimuth_rad), cosine], axis=1)
        self.gains = complex_normal(self.rng, num_paths) * math.sqrt(1 / num_paths)
        self.variance = float(np.sum(np.abs(self.gains) ** 2)) / snr

    def channel(self, positions_m: np.ndarray) -> np.ndarray:
        return field_response(positions_m, self.directions, WAVELENGTH_M) @ self.gains

    def positions_m(self, count: int) -> np.ndarray:
        shares = [(self.rng.permutation(count) + self.rng.random(count)) / count for _ in range(2)]
        return SIDE_M * np.stack(shares, axis=1)

    def noisy(self, channel: np.ndarray) -> np.ndarray:
        return channel + math.sqrt(self.variance) * complex_normal(self.rng, len(channel))

    def samples(self, count: int) -> Samples:
        positions_m = self.positions_m(count)
        return Samples.of(self.noisy(self.channel(positions_m)), positions_m, self.variance)

    def error(self, guess: np.ndarray) -> float:
        true = self.channel(UNSEEN_M)
        return float(np.sum(np.abs(guess - true) ** 2) / np.sum(np.abs(true) ** 2))


def complex_normal(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.standard_normal((count, 2)) @ np.array([1, 1j]) / math.sqrt(2)


def by_antennas(room: Room, num_visits: int, num_antennas: int, *, standing: bool = False) -> Samples:
    """Noiseless samples of several antennas; the last one stands still if asked."""
    count = num_visits * num_antennas
    positions_m = room.positions_m(count)
    antenna = np.tile(np.arange(num_antennas), num_visits)
    if standing:
        positions_m[antenna == num_antennas - 1] = SIDE_M / 2
    return Samples(
        room.channel(positions_m),
        positions_m,
        np.full(count, room.variance),
        antenna,
        np.repeat(np.arange(num_visits), num_antennas),
    )


def test_sixty_measurements_tell_the_field_anywhere() -> None:
    """The stated aim: 3 to 6 paths, 3 x 3 wavelengths, 25 dB, below -20 dB; here in every room, with 6 dB to spare."""
    errors = []
    for seed in range(3):
        for num_paths in (3, 4, 5, 6):
            room = Room(seed, num_paths)
            errors.append(room.error(fit_paths(room.samples(60), WAVELENGTH_M).field.predict(UNSEEN_M)[0]))
    assert 10 * math.log10(max(errors)) < -26
    assert 10 * math.log10(np.median(errors)) < -30


def test_a_raster_at_half_a_wavelength_does_not() -> None:
    """49 points and cubic splines are not enough; 169 points, a quarter of a wavelength apart, are."""
    levels = {}
    for per_side in (7, 13):
        axis_m = np.linspace(0.0, SIDE_M, per_side)
        grid_m = np.stack(np.meshgrid(axis_m, axis_m, indexing="ij"), axis=-1).reshape(-1, 2)
        errors = []
        for seed in range(10):
            room = Room(seed, 3 + seed % 4)
            measured = room.noisy(room.channel(grid_m)).reshape(per_side, per_side)
            parts = [
                RectBivariateSpline(axis_m, axis_m, part)(AXIS_M, AXIS_M) for part in (measured.real, measured.imag)
            ]
            errors.append(room.error((parts[0] + 1j * parts[1]).reshape(-1)))
        levels[per_side] = 10 * math.log10(np.median(errors))
    assert levels[7] > -10
    assert levels[13] < -20


def test_the_fit_reaches_the_cramer_rao_bound() -> None:
    room = Room(3, 4)
    positions_m = room.positions_m(60)
    slopes = path_slopes(
        field_response(positions_m, room.directions, WAVELENGTH_M), positions_m, room.gains, WAVELENGTH_M
    )
    bound = np.linalg.inv(2 / room.variance * (slopes.conj().T @ slopes).real)
    unseen = path_slopes(field_response(UNSEEN_M, room.directions, WAVELENGTH_M), UNSEEN_M, room.gains, WAVELENGTH_M)
    least = float(np.einsum("ni,ij,nj->", unseen, bound, unseen.conj()).real)
    squares = []
    for _ in range(24):
        samples = Samples.of(room.noisy(room.channel(positions_m)), positions_m, room.variance)
        guess, _ = fit_paths(samples, WAVELENGTH_M).field.predict(UNSEEN_M)
        squares.append(float(np.sum(np.abs(guess - room.channel(UNSEEN_M)) ** 2)))
    assert 0.75 < np.mean(squares) / least < 1.35


def test_directions_gains_and_their_number_are_found() -> None:
    for seed in range(4):
        room = Room(seed, 3)
        field = fit_paths(room.samples(60), WAVELENGTH_M).field
        assert len(field.gains) == 3
        nearest = np.argmin(np.linalg.norm(field.directions[:, None] - room.directions, axis=-1), axis=0)
        std = np.sqrt(np.diag(field.covariance)).reshape(4, -1)[:, nearest]
        missed = np.abs(field.directions[nearest] - room.directions).T
        assert np.all(missed < 4.5 * std[:2])
        assert np.all(np.abs(field.gains[nearest] - room.gains) < 4.5 * np.hypot(std[2], std[3]))


def test_the_uncertainty_is_honest_on_positions_that_were_not_seen() -> None:
    surprise = []
    for seed in range(12):
        room = Room(seed, 3 + seed % 4)
        guess, std = fit_paths(room.samples(40), WAVELENGTH_M).field.predict(UNSEEN_M)
        surprise.append(np.mean(np.abs(guess - room.channel(UNSEEN_M)) ** 2 / std**2))
    assert 0.6 < np.mean(surprise) < 1.6


def test_slopes_are_the_derivatives() -> None:
    room = Room(1, 3)
    positions_m = room.positions_m(5)

    def explained(unknowns: np.ndarray) -> np.ndarray:
        directions, gains = unknowns[:6].reshape(2, 3).T, unknowns[6:9] + 1j * unknowns[9:]
        return field_response(positions_m, directions, WAVELENGTH_M) @ gains

    start = np.concatenate([room.directions.T.reshape(-1), room.gains.real, room.gains.imag])
    slopes = path_slopes(
        field_response(positions_m, room.directions, WAVELENGTH_M), positions_m, room.gains, WAVELENGTH_M
    )
    for index in range(12):
        step = np.zeros(12)
        step[index] = 1e-6
        numeric = (explained(start + step) - explained(start - step)) / 2e-6
        np.testing.assert_allclose(slopes[:, index], numeric, atol=1e-7)


def test_another_measurement_narrows_what_is_known_there() -> None:
    room = Room(2, 5)
    field = fit_paths(room.samples(30), WAVELENGTH_M).field
    _, before = field.predict(UNSEEN_M)
    worst = int(np.argmax(before))
    _, after = field.after(UNSEEN_M[worst], room.variance).predict(UNSEEN_M)
    assert after[worst] < before[worst]
    assert after[worst] ** 2 < room.variance
    assert np.all(after <= before * (1 + 1e-9))


def test_factors_of_antennas_and_phases_of_visits_are_told_apart_from_the_field() -> None:
    for seed in range(3):
        room = Room(seed, 4)
        clean = by_antennas(room, 20, 4, standing=True)
        factors = np.exp(2j * np.pi * room.rng.random(4)) * (1 + 0.2 * room.rng.standard_normal(4))
        phases_rad = 2 * np.pi * room.rng.random(20)
        turned = clean.channel * factors[clean.antenna] * np.exp(1j * phases_rad[clean.visit])
        samples = Samples(room.noisy(turned), clean.positions_m, clean.variance, clean.antenna, clean.visit)
        own = samples.channel[samples.antenna == 3]
        fit = fit_paths(
            samples, WAVELENGTH_M, free_factors=True, free_phases=True, phases_rad=np.angle(own * own[0].conj())
        )
        np.testing.assert_allclose(fit.factors, factors / factors[0], atol=0.1)
        common = factors[0] * np.exp(1j * phases_rad[0])
        assert room.error(fit.field.predict(UNSEEN_M)[0] / common) < 10**-2.0
        straight = straightened(samples, fit)
        assert np.mean(np.abs(straight.channel / common - clean.channel) ** 2) < 4 * room.variance
        blind = fit_paths(samples, WAVELENGTH_M)
        assert blind.scatter > 20


def test_cross_validation_tells_the_error_on_unseen_positions() -> None:
    fit = partial(fit_paths, wavelength_m=WAVELENGTH_M)
    for count, least, most in ((60, 0.0, 0.005), (10, 0.03, math.inf)):
        room = Room(5, 6)
        error, surprise = cross_validated(room.samples(count), lambda samples: fit(samples).field)
        assert least <= error <= most
        assert surprise > 0


def test_too_few_samples_are_refused_or_not_believed() -> None:
    room = Room(0, 3)
    with pytest.raises(ValueError, match="measure more"):
        fit_paths(room.samples(2), WAVELENGTH_M)
    assert cross_validated(room.samples(3), lambda samples: fit_paths(samples, WAVELENGTH_M).field) == (
        math.inf,
        math.inf,
    )
    assert most_paths(60) == 22
    samples = room.samples(20)
    samples.channel[3] = np.nan
    for fit in (fit_paths, fit_isotropic, fit_sparse):
        with pytest.raises(ValueError, match="not finite"):
            fit(samples, WAVELENGTH_M)


def test_a_spherical_wave_is_not_taken_for_plane_ones() -> None:
    """A node half a metre away: its wave fronts are curved over the aperture."""
    rng = np.random.default_rng(0)
    room = Room(0, 3)
    positions_m = room.positions_m(60)
    way_m = np.linalg.norm(np.column_stack([positions_m, np.zeros(60)]) - np.array([0.1, 0.1, 0.4]), axis=1)
    channel = np.exp(2j * np.pi * way_m / WAVELENGTH_M) / way_m
    variance = float(np.mean(np.abs(channel) ** 2)) * 1e-4
    samples = Samples.of(channel + math.sqrt(variance) * complex_normal(rng, 60), positions_m, variance)
    fit = fit_paths(samples, WAVELENGTH_M, max_paths=4)
    assert fit.scatter > 1 + 5 * math.sqrt(2 / fit.freedom)


@pytest.mark.parametrize(("offset_m", "first"), [((0.01, -0.004), 8), ((0.06, 0.03), 8), ((0.01, 0.004), 3)])
def test_an_antenna_that_lost_steps_is_named(offset_m: tuple[float, float], first: int) -> None:
    room = Room(1, 4)
    clean = by_antennas(room, 15, 4)
    lost = (clean.antenna == 2) & (clean.visit >= first)
    true_m = clean.positions_m + np.where(lost[:, None], offset_m, 0.0)
    samples = Samples(room.noisy(room.channel(true_m)), clean.positions_m, clean.variance, clean.antenna, clean.visit)
    fit, wrong = robust_fit(samples, WAVELENGTH_M)
    assert not np.any(wrong & ~lost)
    found = displaced(samples, fit.field)
    assert found is not None
    assert found.antenna == 2
    assert abs(found.visit - first) <= 1
    np.testing.assert_allclose(found.offset_m, offset_m, atol=4e-3)


def test_nobody_is_named_where_nothing_was_lost() -> None:
    for seed in range(2):
        room = Room(seed, 4)
        clean = by_antennas(room, 15, 4)
        samples = Samples(room.noisy(clean.channel), clean.positions_m, clean.variance, clean.antenna, clean.visit)
        fit, wrong = robust_fit(samples, WAVELENGTH_M)
        assert not np.any(wrong)
        assert displaced(samples, fit.field) is None


def test_sparse_powers_and_waves_from_everywhere_answer_too() -> None:
    """Medians of eight rooms; waves from everywhere need twice the measurements for the same error."""
    sparse, everywhere, surprise = [], [], []
    for seed in range(8):
        room = Room(seed, 3 + seed % 4)
        samples = room.samples(60)
        sparse.append(room.error(fit_sparse(samples, WAVELENGTH_M).predict(UNSEEN_M)[0]))
        guess, std = fit_isotropic(samples, WAVELENGTH_M).predict(UNSEEN_M)
        everywhere.append(room.error(guess))
        surprise.append(np.mean(np.abs(guess - room.channel(UNSEEN_M)) ** 2 / std**2))
    assert np.median(sparse) < 10**-2.2
    assert 10**-2.0 < np.median(everywhere) < 10**-1.0
    assert 0.4 < np.mean(surprise) < 2.5


def test_waves_from_everywhere_have_the_covariance_of_clarke() -> None:
    room = Room(0, 6)
    samples = room.samples(30)
    field = fit_isotropic(samples, WAVELENGTH_M)
    apart_m = np.linspace(0.0, SIDE_M, 20)
    waves = field_response(np.column_stack([apart_m, 0 * apart_m]), field.directions, WAVELENGTH_M)
    covariance = waves @ field.powers / np.sum(field.powers)
    turns = 2 * np.pi * apart_m / WAVELENGTH_M
    ring, sphere = j0(turns), np.sinc(turns / np.pi)
    assert min(np.max(np.abs(covariance - ring)), np.max(np.abs(covariance - sphere))) < 0.02


def test_rows_are_a_field_again() -> None:
    field = fit_paths(Room(0, 3).samples(30), WAVELENGTH_M).field
    again = PathField.of_rows(field.rows, field.covariance, WAVELENGTH_M)
    for one, other in zip(again.predict(UNSEEN_M), field.predict(UNSEEN_M), strict=True):
        np.testing.assert_allclose(one, other)
