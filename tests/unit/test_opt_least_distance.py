"""Quadratic programmes with inequalities against an independent solver and their first-order conditions."""

import cvxpy as cp
import numpy as np
import pytest

from testbed.opt.least_distance import least_distance, quadratic, raise_least


def test_the_nearest_point_of_a_corner_is_the_corner() -> None:
    # z_1 >= 1, z_2 >= 2: both rows hold with equality, and z is its own multipliers
    nearest = least_distance(np.eye(2), np.array([1.0, 2.0]))
    assert nearest is not None
    np.testing.assert_allclose(nearest.point, [1.0, 2.0], atol=1e-12)
    np.testing.assert_allclose(nearest.multipliers, [1.0, 2.0], atol=1e-12)


def test_rows_that_the_origin_keeps_leave_it() -> None:
    nearest = least_distance(np.array([[1.0, 1.0], [-1.0, 0.0]]), np.array([-1.0, 0.0]))
    assert nearest is not None
    np.testing.assert_array_equal(nearest.point, 0.0)


def test_rows_that_contradict_one_another_have_no_point() -> None:
    assert least_distance(np.array([[1.0], [-1.0]]), np.array([1.0, 1.0])) is None


def test_the_first_order_conditions_hold_on_hundreds_of_draws() -> None:
    rng = np.random.default_rng(1)
    bound = 0
    for _ in range(300):
        rows, bounds = rng.standard_normal((5, 8)), rng.standard_normal(5)
        nearest = least_distance(rows, bounds)
        assert nearest is not None  # fewer rows than variables: always feasible
        slack = rows @ nearest.point - bounds
        assert slack.min() > -1e-10
        assert nearest.multipliers.min() >= 0.0
        np.testing.assert_allclose(rows.T @ nearest.multipliers, nearest.point, atol=1e-10)
        np.testing.assert_allclose(nearest.multipliers * slack, 0.0, atol=1e-9)
        bound += int((nearest.multipliers > 1e-9).sum())
    assert bound > 300  # most draws have rows that bind


@pytest.mark.parametrize("seed", range(4))
def test_a_programme_with_many_rows_has_the_optimum_of_an_interior_point_solver(seed: int) -> None:
    rng = np.random.default_rng([2, seed])
    root = rng.standard_normal((6, 6)) + 2.0 * np.eye(6)
    gradient, rows = rng.standard_normal(6), rng.standard_normal((40, 6))
    bounds = -rng.uniform(0.0, 0.5, 40)
    nearest = quadratic(root, gradient, rows, bounds)
    assert nearest is not None
    d = cp.Variable(6)
    # B = (R R^T)^-1
    problem = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(np.linalg.inv(root) @ d) + gradient @ d), [rows @ d >= bounds]
    )
    problem.solve(cp.CLARABEL)
    np.testing.assert_allclose(nearest.point, d.value, atol=1e-5)
    assert (rows @ nearest.point - bounds).min() > -1e-9
    hessian = np.linalg.inv(root @ root.T)
    np.testing.assert_allclose(hessian @ nearest.point + gradient, rows.T @ nearest.multipliers, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_raising_step_has_the_optimum_of_an_interior_point_solver(seed: int) -> None:
    rng = np.random.default_rng([3, seed])
    values, slopes = rng.uniform(1.0, 1.2, 4), rng.standard_normal((4, 6))
    root = np.linalg.inv(rng.standard_normal((6, 6)) + 3.0 * np.eye(6))
    rows, bounds = rng.standard_normal((20, 6)), -rng.uniform(0.0, 0.2, 20)
    raised = raise_least(values, slopes, root, rows, bounds)
    assert raised is not None
    d, t = cp.Variable(6), cp.Variable()
    charge = 0.5 * cp.sum_squares(np.linalg.inv(root) @ d) + 0.005 / values.min() * cp.square(t - values.min())
    problem = cp.Problem(cp.Maximize(t - charge), [values + slopes @ d >= t, rows @ d >= bounds])
    problem.solve(cp.CLARABEL)
    np.testing.assert_allclose(raised.step, d.value, atol=1e-5)
    assert raised.level == pytest.approx(float(t.value), abs=1e-6)
    assert raised.weights.sum() == pytest.approx(1.0)
    # the weights and multipliers balance the charge, up to the level's own small charge
    hessian = np.linalg.inv(root @ root.T)
    left = hessian @ raised.step / (1.0 - 0.01 / values.min() * (raised.level - values.min()))
    np.testing.assert_allclose(left, raised.weights @ slopes + raised.multipliers @ rows, atol=1e-7)
