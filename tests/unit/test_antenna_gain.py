"""Movable antennas gain over a fixed array what the literature's reconstruction says they gain, or more."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from testbed.phy.aperture import Aperture, PathSet
from testbed.phy.array import channel
from testbed.problems.ma_ota.placement import place
from testbed.problems.multicast import multicast, pair_gain

NUM_CHANNELS, BAND_DB, SPACING = 20, 0.5, 0.5


def square(num_antennas: int, side: float) -> Aperture:
    """Lengths in wavelengths; the fixed array stands along the first axis at half a wavelength."""
    home = np.stack([SPACING * np.arange(num_antennas), np.zeros(num_antennas)], axis=1)
    return Aperture(home, np.ones(num_antennas, bool), np.array([[0.0, side], [0.0, side]]), SPACING, 1.0)


def gains_db(num_nodes: int, num_paths: int, rician_k: float = 0.0) -> np.ndarray:
    """Gain of four antennas in a square of three wavelengths, one for each channel."""
    gains = []
    aperture = square(4, 3.0)
    for index in range(NUM_CHANNELS):
        rng = np.random.default_rng([0, index])
        paths = PathSet.draw(rng, num_nodes, num_paths, 1.0, rician_k=rician_k)
        moved = place(paths, aperture, rng=rng, method="sca")
        gains.append(10.0 * np.log10(moved.value / multicast(paths.channel(aperture.home_m)).value))
    return np.array(gains)


# the references come from a search that moves combiner and positions in turn, from starts drawn blindly: it is behind
# the more, the more nodes there are
@pytest.mark.parametrize(("num_nodes", "expected_db", "ahead_db"), [(1, 5.1, 0.5), (2, 5.0, 1.0), (4, 4.6, 1.8)])
def test_four_antennas_gain_about_five_decibels_over_a_fixed_array(
    num_nodes: int, expected_db: float, ahead_db: float
) -> None:
    gains = gains_db(num_nodes, num_paths=6)
    # the reference is good to half a decibel; a mean of 20 channels adds its own standard error
    error = np.std(gains, ddof=1) / np.sqrt(gains.size)
    assert error < 0.7
    assert expected_db - BAND_DB - error < np.mean(gains) < expected_db + BAND_DB + ahead_db + error
    # the fixed array is one of the starts
    assert np.min(gains) >= -1e-9


def test_one_node_in_line_of_sight_gains_nothing_and_two_gain_something() -> None:
    # its channel has the same magnitude everywhere
    np.testing.assert_allclose(gains_db(1, num_paths=1, rician_k=1.0), 0.0, atol=1e-6)
    # two nodes: positions make their channels alike; never more than 4 antennas give one node
    two = gains_db(2, num_paths=1, rician_k=1.0)
    assert 1.8 - BAND_DB < np.mean(two) < 3.1


def test_with_two_waves_from_one_node_every_antenna_finds_the_crest() -> None:
    # the crests of two waves are lines across the square: all antennas reach N (|a_1| + |a_2|)^2
    paths = PathSet(np.array([[[0.3, 0.1], [-0.5, 0.4]]]), np.array([[0.8, 0.5j]]), 1.0)
    found = place(paths, square(4, 3.0), rng=np.random.default_rng(1))
    assert found.value == pytest.approx(4 * 1.3**2, rel=1e-6)
    heard = channel(found.point.positions_m, paths.directions[0], paths.gains[0], 1.0)
    np.testing.assert_allclose(np.abs(heard), 1.3, rtol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_no_pair_of_places_on_a_grid_serves_two_nodes_better(seed: int) -> None:
    rng = np.random.default_rng([12, seed])
    paths = PathSet.draw(rng, 2, 3, 1.0)
    found = place(paths, square(2, 1.5), rng=rng)
    axis = np.linspace(0.0, 1.5, 31)
    # [961, 2]
    grid = np.array(list(itertools.product(axis, axis)))
    heard = paths.channel(grid)
    first, second = np.triu_indices(len(grid), 1)
    apart = np.linalg.norm(grid[first] - grid[second], axis=1) >= SPACING
    # [num_pairs, num_antennas, num_nodes]
    pairs = np.stack([heard[first[apart]], heard[second[apart]]], axis=1)
    power = np.sum(np.abs(pairs) ** 2, axis=1)
    cross = np.abs(np.sum(pairs[..., 0].conj() * pairs[..., 1], axis=1))
    best = np.max(pair_gain(power[:, 0], power[:, 1], cross))
    assert found.value >= best
    assert found.value <= 1.1 * best  # the grid is fine: a better place is near one of its points


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
def test_sequential_quadratic_programming_finds_nothing_better_nearby(num_nodes: int) -> None:
    rng = np.random.default_rng([13, num_nodes])
    paths, aperture = PathSet.draw(rng, num_nodes, 4, 1.0), square(3, 2.0)
    found = place(paths, aperture, rng=rng)
    first, second = np.triu_indices(3, 1)

    def gains(x: np.ndarray) -> np.ndarray:
        combiner = x[:3] + 1j * x[3:6]
        return np.abs(combiner.conj() @ paths.channel(x[6:12].reshape(3, 2))) ** 2 / np.vdot(combiner, combiner).real

    def kept(x: np.ndarray) -> np.ndarray:
        apart = x[6:12].reshape(3, 2)[first] - x[6:12].reshape(3, 2)[second]
        return np.concatenate([gains(x) - x[-1], np.sum(apart**2, axis=1) - SPACING**2])

    start = np.concatenate(
        [found.point.combiner.real, found.point.combiner.imag, found.point.positions_m.ravel(), [found.value]]
    )
    ended = minimize(
        lambda x: -x[-1],
        start,
        bounds=[(None, None)] * 6 + [(0.0, 2.0)] * 6 + [(None, None)],
        constraints={"type": "ineq", "fun": kept},
        method="SLSQP",
        options={"maxiter": 100, "ftol": 1e-12},
    )
    assert gains(ended.x).min() <= found.value * (1 + 1e-5)
