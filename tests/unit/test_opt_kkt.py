"""First-order conditions of max-min problems."""

import numpy as np
import pytest

from testbed.opt.kkt import newton, stationarity


def test_two_opposite_slopes_are_stationary_with_the_weights_that_balance_them() -> None:
    found = stationarity(np.array([[1.0, 0.0], [-3.0, 0.0]]), np.zeros((0, 2)))
    assert found.residual == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(found.weights, [0.75, 0.25], atol=1e-9)


def test_a_slope_into_a_wall_is_stationary_and_one_away_from_it_is_not() -> None:
    wall = np.array([[-1.0, 0.0]])  # x <= edge
    into = stationarity(np.array([[2.0, 0.0]]), wall)
    assert into.residual == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(into.multipliers, [2.0], atol=1e-9)
    away = stationarity(np.array([[-2.0, 0.0]]), wall)
    assert away.residual == pytest.approx(2.0, rel=1e-6)


def test_the_residual_is_the_distance_of_the_origin_from_the_hull_of_the_slopes() -> None:
    # the segment from (1, 1) to (1, -1) is 1 away from the origin
    found = stationarity(np.array([[1.0, 1.0], [1.0, -1.0]]), np.zeros((0, 2)))
    assert found.residual == pytest.approx(1.0, rel=1e-5)


def test_no_function_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stationarity(np.zeros((0, 2)), np.zeros((0, 2)))


def test_newton_meets_the_optimum_of_quadratics_under_a_line() -> None:
    # maximise min(-x^2 - y^2 + 2x, -x^2 - y^2 - 2x) + y subject to y <= 0.2: x = 0, y = 0.2
    def at(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        common = -(x**2) - y**2 + y
        values = np.array([common + 2 * x, common - 2 * x])
        return values, np.array([[-2 * x + 2, 1 - 2 * y], [-2 * x - 2, 1 - 2 * y]])

    point = np.array([0.3, 0.1])
    for _ in range(3):
        values, slopes = at(*point)
        solved = newton(-2.0 * np.eye(2), values, slopes, np.array([0.2 - point[1]]), np.array([[0.0, -1.0]]))
        assert solved is not None
        step, weights, multipliers = solved
        point = point + step
    np.testing.assert_allclose(point, [0.0, 0.2], atol=1e-12)
    np.testing.assert_allclose(weights, [0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(multipliers, [0.6], atol=1e-12)


def test_newton_says_where_the_conditions_are_singular() -> None:
    assert newton(np.zeros((1, 1)), np.array([1.0]), np.zeros((1, 1)), np.zeros(0), np.zeros((0, 1))) is None
