"""Movable antennas gain over a fixed array what the literature's reconstruction says they gain."""

import itertools

import numpy as np
import pytest

from testbed.phy.array import channel
from tests.antenna_positions import (
    SPACING,
    MaxMin,
    Paths,
    best_positions,
    channels,
    fixed_array,
    isotropic_paths,
    line_of_sight,
    scattered,
    weakest_gain,
)

NUM_CHANNELS, NUM_STARTS, BAND_DB = 20, 6, 0.5


def gains_db(num_nodes: int, num_paths: int) -> np.ndarray:
    """Gain of four antennas in a square of three wavelengths, one for each channel."""
    gains = []
    for index in range(NUM_CHANNELS):
        generator = np.random.default_rng([11, index])
        paths = isotropic_paths(num_nodes, num_paths, generator)
        _, moved = best_positions(4, 3.0, paths, NUM_STARTS, generator)
        gains.append(10.0 * np.log10(moved / weakest_gain(fixed_array(4), paths)))
    return np.array(gains)


@pytest.mark.parametrize(("num_nodes", "expected_db"), [(1, 5.1), (2, 5.0), (4, 4.6)])
def test_four_antennas_gain_about_five_decibels_over_a_fixed_array(num_nodes: int, expected_db: float) -> None:
    gains = gains_db(num_nodes, num_paths=6)
    # the reference is good to half a decibel; a mean of 20 channels adds its own standard error, about 0.4 dB
    error = np.std(gains, ddof=1) / np.sqrt(gains.size)
    assert error < 0.5
    assert abs(np.mean(gains) - expected_db) < BAND_DB + error
    # the fixed array is one of the starts
    assert np.min(gains) >= 0.0


def test_one_node_in_line_of_sight_gains_nothing() -> None:
    # its channel has the same magnitude everywhere
    gains = gains_db(1, num_paths=1)
    np.testing.assert_allclose(gains, 0.0, atol=1e-6)
    sighted = line_of_sight(1, np.random.default_rng(3))
    assert weakest_gain(scattered(4, 3.0, np.random.default_rng(4)), sighted) == pytest.approx(4.0, rel=1e-9)


def test_with_two_waves_from_one_node_every_antenna_finds_the_crest() -> None:
    # the crests of two waves are lines across the square: all antennas reach N (|a_1| + |a_2|)^2
    paths = Paths(directions=np.array([[[0.3, 0.1], [-0.5, 0.4]]]), gains=np.array([[0.8, 0.5j]]))
    positions, gain = best_positions(4, 3.0, paths, NUM_STARTS, np.random.default_rng(1))
    assert gain == pytest.approx(4 * 1.3**2, rel=1e-6)
    np.testing.assert_allclose(np.abs(channel(positions, paths.directions[0], paths.gains[0], 1.0)), 1.3, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_no_pair_of_places_on_a_grid_serves_two_nodes_better(seed: int) -> None:
    generator = np.random.default_rng([12, seed])
    paths = isotropic_paths(2, 3, generator)
    _, found = best_positions(2, 1.5, paths, 40, generator)
    axis = np.linspace(0.0, 1.5, 31)
    # [961, 2]
    grid = np.array(list(itertools.product(axis, axis)))
    heard = channels(grid, paths)
    first, second = np.triu_indices(len(grid), 1)
    apart = np.linalg.norm(grid[first] - grid[second], axis=1) >= SPACING
    # [num_pairs, num_antennas, num_nodes]
    pairs = np.stack([heard[first[apart]], heard[second[apart]]], axis=1)
    # closed form of two nodes: n_1, n_2 their powers, c their correlation
    power = np.sum(np.abs(pairs) ** 2, axis=1)
    cross = np.abs(np.sum(pairs[..., 0].conj() * pairs[..., 1], axis=1))
    weaker = np.min(power, axis=1)
    both = (np.prod(power, axis=1) - cross**2) / np.maximum(np.sum(power, axis=1) - 2 * cross, 1e-12)
    best = np.max(np.where(cross >= weaker, weaker, both))
    assert found >= best
    assert found <= 1.1 * best  # the grid is fine: a better place is near one of its points


def test_the_derivatives_are_those_of_the_constraints() -> None:
    generator = np.random.default_rng(5)
    problem = MaxMin(4, isotropic_paths(3, 4, generator))
    x = problem.pack(scattered(4, 3.0, generator)) + 0.1 * generator.standard_normal(17)
    step = 1e-6
    slopes = [
        (problem.constraints(x + step * unit) - problem.constraints(x - step * unit)) / (2 * step)
        for unit in np.eye(17)
    ]
    np.testing.assert_allclose(problem.derivatives(x), np.stack(slopes, axis=1), atol=1e-7)


def test_antennas_stay_inside_and_apart() -> None:
    generator = np.random.default_rng(6)
    for side in (1.5, 3.0):
        positions, gain = best_positions(4, side, isotropic_paths(4, 6, generator), 3, generator)
        assert np.all((positions >= -1e-9) & (positions <= side + 1e-9))
        for one, other in itertools.combinations(positions, 2):
            assert np.linalg.norm(one - other) >= SPACING - 1e-6
        assert gain > 0.0
