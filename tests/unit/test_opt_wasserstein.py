"""The distance is exact on a line and for translated laws, never above W1, and says when two laws are one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from testbed.opt.wasserstein import matched, sliced, sphere_factor, wasserstein


@pytest.mark.parametrize(("num_x", "num_y"), [(7, 7), (3, 50), (200, 31), (1, 1)])
def test_on_a_line_it_equals_an_independent_computation(num_x: int, num_y: int) -> None:
    rng = np.random.default_rng(num_x)
    x, y = rng.normal(size=num_x), rng.standard_t(3, size=num_y) + 0.3
    assert wasserstein(x, y) == pytest.approx(wasserstein_distance(x, y), rel=1e-12)


def test_ties_count_once() -> None:
    assert wasserstein(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])) == pytest.approx(0.25)


def test_pairing_equals_the_line_in_one_dimension() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 1)), rng.normal(1, 2, size=(40, 1))
    assert matched(x, y) == pytest.approx(wasserstein(x[:, 0], y[:, 0]), rel=1e-12)


def test_factor_of_the_sphere() -> None:
    assert sphere_factor(1) == pytest.approx(1.0)
    assert sphere_factor(2) == pytest.approx(2 / np.pi)
    assert sphere_factor(3) == pytest.approx(0.5)
    drawn = np.random.default_rng(0).normal(size=(20_000, 64))
    assert sphere_factor(64) == pytest.approx(np.mean(np.abs(drawn[:, 0]) / np.linalg.norm(drawn, axis=1)), rel=0.02)


@pytest.mark.parametrize("dimension", [1, 5, 48])
def test_the_same_points_moved_are_that_far_apart(dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    x, shift = rng.normal(size=(300, dimension)), rng.normal(size=dimension)
    found = sliced(x, x + shift, rng, num_directions=2000)
    assert found.value == pytest.approx(np.linalg.norm(shift), rel=0.05)
    assert abs(found.value - np.linalg.norm(shift)) < 3 * found.std


def test_translated_laws_lie_within_the_stated_spread() -> None:
    far = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shift = np.full(12, 0.4)
        found = sliced(rng.normal(size=(400, 12)), rng.normal(size=(500, 12)) + shift, rng, num_directions=200)
        far.append((found.value - np.linalg.norm(shift)) / found.std)
    assert np.mean(np.abs(far) < 2) >= 0.85
    assert abs(np.mean(far)) < 1.0


def test_mean_gradients_of_squared_distances_are_as_far_apart_as_the_laws() -> None:
    """For l(w; xi) = ||w - xi||^2 / 2 the gradients of F_p and F differ by the shift of xi, whatever w: W1 is tight."""
    rng = np.random.default_rng(8)
    before, shift, point = rng.normal(size=(250, 7)), rng.normal(size=7), rng.normal(size=7)
    after = before + shift
    apart = np.linalg.norm((point - before).mean(axis=0) - (point - after).mean(axis=0))
    assert matched(before, after) == pytest.approx(apart, rel=1e-12)
    found = sliced(before, after, rng, num_directions=2000)
    assert found.value == pytest.approx(apart, abs=2 * found.std)
    assert found.std < 0.1 * apart


def test_one_law_twice_is_not_told_apart() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = sliced(rng.normal(size=(150, 20)), rng.normal(size=(100, 20)), rng, num_directions=100)
        assert found.raw == pytest.approx(found.floor, rel=0.3)
        assert found.value < 2 * found.std, "zero, the truth, lies within two standard deviations"


def test_it_stays_below_the_pairing() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(120, 6)), 2 * rng.normal(size=(120, 6)) + 0.2
    found = sliced(x, y, rng, num_directions=500)
    assert 0.3 * matched(x, y) < found.value < matched(x, y)


def test_more_data_lower_the_floor() -> None:
    rng = np.random.default_rng(4)
    few, many = (sliced(rng.normal(size=(n, 8)), rng.normal(size=(n, 8)), rng).floor for n in (50, 800))
    assert many == pytest.approx(few / 4, rel=0.2)


def test_a_seed_repeats_it() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 30, 4))
    assert sliced(x, y, np.random.default_rng(9)) == sliced(x, y, np.random.default_rng(9))


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((0, 2)), np.zeros((3, 2)), "empty"),
        (np.zeros((3, 2)), np.zeros((3, 3)), "no common space"),
        (np.array([[0.0], [np.nan]]), np.zeros((3, 1)), "not finite"),
        (np.zeros((1, 2)), np.zeros((3, 2)), "one point"),
    ],
)
def test_samples_that_say_nothing_are_refused(x: np.ndarray, y: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sliced(x, y, np.random.default_rng(0))


def test_pairing_needs_equal_sizes() -> None:
    with pytest.raises(ValueError, match="paired"):
        matched(np.zeros((2, 1)), np.zeros((3, 1)))
