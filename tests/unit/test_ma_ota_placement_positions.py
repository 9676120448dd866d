"""Gains as functions of positions: slopes, minorant, the convex step, random layouts."""

import cvxpy as cp
import numpy as np
import pytest

from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.positions import Freedom, curvature, gains, gradient, improve_positions, minorant
from testbed.problems.ma_ota.starts import promising_layouts, quick_gain, random_layouts
from testbed.problems.multicast import multicast

WAVELENGTH_M = 0.125


def square(num_antennas: int, side: float = 3.0) -> Aperture:
    home = np.stack([0.5 * np.arange(num_antennas), np.zeros(num_antennas)], axis=1) * WAVELENGTH_M
    region = np.array([[0.0, side], [0.0, side]]) * WAVELENGTH_M
    return Aperture(home, np.ones(num_antennas, bool), region, 0.5 * WAVELENGTH_M, WAVELENGTH_M)


def drawn(seed: int, num_antennas: int = 4, num_nodes: int = 3) -> tuple[PathSet, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([21, seed])
    paths = PathSet.draw(rng, num_nodes, 5, WAVELENGTH_M)
    positions_m = random_layouts(square(num_antennas), 4, rng)[0]
    combiner = rng.standard_normal((num_antennas, 2)) @ np.array([1.0, 1.0j])
    return paths, positions_m, combiner / np.linalg.norm(combiner)


def test_gains_are_those_of_the_channel() -> None:
    paths, positions_m, combiner = drawn(0)
    by_hand = [
        abs(
            sum(
                combiner[n].conjugate() * a * np.exp(2j * np.pi / WAVELENGTH_M * (u @ positions_m[n]))
                for n in range(4)
                for a, u in zip(paths.gains[m], paths.directions[m], strict=True)
            )
        )
        ** 2
        for m in range(3)
    ]
    np.testing.assert_allclose(gains(paths, positions_m, combiner), by_hand, rtol=1e-12)


def test_slopes_are_finite_differences() -> None:
    paths, positions_m, combiner = drawn(1)
    slope = gradient(paths, positions_m, combiner)
    step_m = 1e-6 * WAVELENGTH_M
    for n in range(4):
        for axis in range(2):
            shift = np.zeros((4, 2))
            shift[n, axis] = step_m
            rise = gains(paths, positions_m + shift, combiner) - gains(paths, positions_m - shift, combiner)
            np.testing.assert_allclose(
                rise / (2 * step_m) * WAVELENGTH_M, slope[:, n, axis] * WAVELENGTH_M, rtol=0, atol=1e-7
            )


def test_batches_agree_with_single_layouts() -> None:
    paths, _, combiner = drawn(2)
    layouts = random_layouts(square(4), 6, np.random.default_rng(0))
    many = np.repeat(combiner[None], len(layouts), axis=0)
    one = [minorant(paths, layout, combiner) for layout in layouts]
    np.testing.assert_allclose(gains(paths, layouts, many), np.stack([each.values for each in one]), rtol=1e-10)
    np.testing.assert_allclose(gradient(paths, layouts, many), np.stack([each.slopes for each in one]), atol=1e-8)
    np.testing.assert_allclose(
        curvature(paths, layouts, many), np.stack([each.curvature for each in one]), rtol=1e-9, atol=1e-9
    )


def test_the_minorant_touches_and_is_nowhere_above() -> None:
    rng = np.random.default_rng(22)
    for seed in range(20):
        paths, positions_m, combiner = drawn(seed)
        below = minorant(paths, positions_m, combiner)
        np.testing.assert_allclose(below.at(positions_m), gains(paths, positions_m, combiner), rtol=1e-10)
        # 1000 layouts from near to across the region: 20,000 in all
        spread_m = WAVELENGTH_M * np.geomspace(1e-3, 3.0, 1000)[:, None, None]
        tried = positions_m + spread_m * rng.standard_normal((1000, 4, 2))
        true = gains(paths, tried, np.broadcast_to(combiner, (1000, 4)))
        assert np.all(below.at(tried) <= true + 1e-9)
        near = positions_m + 1e-7 * WAVELENGTH_M * rng.standard_normal((4, 2))
        np.testing.assert_allclose(below.at(near), gains(paths, near, combiner), atol=1e-10)


def test_the_convex_step_has_the_optimum_of_an_interior_point_solver() -> None:
    aperture = square(4, side=2.0)
    freedom = Freedom(aperture)
    touched = 0
    for seed in range(6):
        rng = np.random.default_rng([23, seed])
        paths = PathSet.draw(rng, 3, 5, WAVELENGTH_M)
        start_m = random_layouts(aperture, 4, rng)[0] if seed else aperture.home_m
        combiner = multicast(paths.channel(start_m)).point
        below = minorant(paths, start_m, combiner)
        found_m, weights = improve_positions(paths, freedom, start_m, combiner)
        level, step = cp.Variable(), cp.Variable((4, 2))  # in wavelengths
        rows = []
        for m in range(3):
            linear = cp.sum(cp.multiply(below.slopes[m] * WAVELENGTH_M, step))
            bend = sum(cp.quad_form(step[n], below.curvature[m, n] * WAVELENGTH_M**2 / 2) for n in range(4))
            rows.append(below.values[m] + linear - bend >= level)
        start, least = start_m / WAVELENGTH_M, 0.5
        for i in range(4):
            for j in range(i + 1, 4):
                unit = (start[i] - start[j]) / np.linalg.norm(start[i] - start[j])
                rows.append(unit @ (start[i] + step[i] - start[j] - step[j]) >= least)
        rows += [start + step >= 0.0, start + step <= 2.0]
        cp.Problem(cp.Maximize(level), rows).solve(cp.CLARABEL)
        assert below.at(found_m).min() == pytest.approx(float(level.value), rel=2e-6)
        assert gains(paths, found_m, combiner).min() >= below.at(found_m).min() - 1e-12
        assert weights.sum() == pytest.approx(1.0)
        assert aperture.violation_m(found_m) < 1e-9 * WAVELENGTH_M
        touched += int(np.any((found_m <= 1e-9) | (found_m >= 0.25 - 1e-9)))
    assert touched > 0  # the fixed array at least begins at the region's edge


def test_convex_steps_never_fall_and_keep_the_aperture_at_every_iterate() -> None:
    aperture = square(6, side=2.0)  # crowded: the spacing binds
    freedom = Freedom(aperture)
    for seed in range(4):
        rng = np.random.default_rng([24, seed])
        paths = PathSet.draw(rng, 3, 6, WAVELENGTH_M)
        places_m = random_layouts(aperture, 4, rng)[0]
        combiner = multicast(paths.channel(places_m)).point
        level = gains(paths, places_m, combiner).min()
        for _ in range(15):
            places_m, _ = improve_positions(paths, freedom, places_m, combiner)
            before, level = level, gains(paths, places_m, combiner).min()
            assert level >= before * (1 - 1e-9)
            assert aperture.violation_m(places_m) < 1e-9 * WAVELENGTH_M


def test_fixed_antennas_and_a_line_have_no_columns() -> None:
    aperture = square(3)
    line = Aperture(
        aperture.home_m,
        np.array([True, False, True]),
        np.array([[0.0, 3.0], [0.0, 0.0]]) * WAVELENGTH_M,
        aperture.min_spacing_m,
        WAVELENGTH_M,
    )
    freedom = Freedom(line)
    assert freedom.count == 2
    paths, _, _ = drawn(3)
    found_m, _ = improve_positions(paths, freedom, line.home_m, np.ones(3) / np.sqrt(3.0))
    np.testing.assert_array_equal(found_m[1], line.home_m[1])
    np.testing.assert_array_equal(found_m[:, 1], 0.0)


def test_random_layouts_keep_the_aperture_even_where_hardly_any_fits() -> None:
    rng = np.random.default_rng(25)
    roomy = random_layouts(square(4), 50, rng)
    assert len(roomy) >= 40
    # nine antennas in a square of one wavelength at half a wavelength: only the lattice is left
    crowded = Aperture(np.zeros((9, 2)), np.ones(9, bool), np.array([[0, 1.0], [0, 1.0]]), 0.5, 1.0)
    dense = random_layouts(crowded, 50, rng)
    assert len(dense) == 50
    assert all(crowded.violation_m(layout) <= 1e-9 for layout in dense)
    assert all(square(4).violation_m(layout) <= 0.0 for layout in roomy)
    too_many = Aperture(np.zeros((10, 2)), np.ones(10, bool), np.array([[0, 1.0], [0, 1.0]]), 0.5, 1.0)
    assert len(random_layouts(too_many, 20, rng)) == 0


def test_quick_gains_bound_the_best_from_below_and_promising_layouts_beat_random_ones() -> None:
    aperture, rng = square(4), np.random.default_rng(26)
    for num_nodes in (1, 2, 4):
        paths = PathSet.draw(rng, num_nodes, 6, WAVELENGTH_M)
        layouts = random_layouts(aperture, 10, rng)
        quick = quick_gain(paths.channel(layouts))
        best = np.array([multicast(paths.channel(layout)).value for layout in layouts])
        assert np.all(quick <= best * (1 + 1e-9))
        if num_nodes <= 2:
            np.testing.assert_allclose(quick, best, rtol=1e-9)
        chosen = promising_layouts(paths, aperture, 3, rng)
        assert len(chosen) == 3
        assert all(aperture.violation_m(layout) <= 1e-12 for layout in chosen)
        assert np.min(quick_gain(paths.channel(np.stack(chosen)))) > np.median(quick)
    assert promising_layouts(paths, aperture, 0, rng) == []
