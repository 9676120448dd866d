"""Placement of antennas: known optima, exhaustive search, first-order conditions, and where the alternation stalls."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from testbed.opt.pdd import augmented_lagrangian, decompose
from testbed.opt.sca import climb
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.coupled import CoupledGain, decomposed, lift
from testbed.problems.ma_ota.joint import Expansion, JointGain
from testbed.problems.ma_ota.placement import Placement, place, placement_kkt
from testbed.problems.ma_ota.positions import Freedom
from testbed.problems.ma_ota.starts import random_layouts
from testbed.problems.multicast import multicast, pair_gain

WAVELENGTH_M = 0.125


def square(num_antennas: int, side: float = 3.0, wavelength_m: float = WAVELENGTH_M) -> Aperture:
    home = np.stack([0.5 * np.arange(num_antennas), np.zeros(num_antennas)], axis=1) * wavelength_m
    region = np.array([[0.0, side], [0.0, side]]) * wavelength_m
    return Aperture(home, np.ones(num_antennas, bool), region, 0.5 * wavelength_m, wavelength_m)


def line(num_antennas: int, length: float) -> Aperture:
    return replace(square(num_antennas), region_m=np.array([[0.0, length], [0.0, 0.0]]) * WAVELENGTH_M)


def joint_problem(seed: int, num_antennas: int, num_nodes: int) -> tuple[JointGain, np.ndarray]:
    """In the solver's own unit of length, wavelength 2 pi, with a random layout."""
    rng = np.random.default_rng([30, seed])
    aperture = square(num_antennas, wavelength_m=2.0 * np.pi)
    joint = JointGain(PathSet.draw(rng, num_nodes, 6, 2.0 * np.pi), Freedom(aperture))
    return joint, random_layouts(aperture, 4, rng)[0]


@pytest.mark.parametrize(("method", "draws"), [("pdd", 9), ("sca", 18)])  # times eight sizes: 216 instances
def test_hundreds_of_instances_are_stationary_feasible_and_no_worse_than_the_fixed_array(
    method: str, draws: int
) -> None:
    for num_antennas, num_nodes in itertools.product((4, 8), (1, 2, 4, 8)):
        for seed in range(draws):
            rng = np.random.default_rng([31, seed, num_antennas, num_nodes])
            paths = PathSet.draw(rng, num_nodes, 6, WAVELENGTH_M)
            aperture = square(num_antennas, side=3.0 + seed % 2)
            found = place(paths, aperture, rng=rng, num_starts=1 + seed % 2, method=method)  # type: ignore[arg-type]
            assert found.status == "stationary"
            assert placement_kkt(paths, aperture, found.point) < 1e-4
            assert found.kkt_residual < 1e-4
            assert aperture.violation_m(found.point.positions_m) <= 1e-9 * WAVELENGTH_M
            assert np.linalg.norm(found.point.combiner) == pytest.approx(1.0)
            heard = np.abs(found.point.combiner.conj() @ paths.channel(found.point.positions_m)) ** 2
            assert heard.min() == pytest.approx(found.value, rel=1e-9)
            assert found.value >= multicast(paths.channel(aperture.home_m)).value * (1 - 1e-12)


def test_moving_combiner_and_positions_in_turn_stalls_short_of_a_stationary_point() -> None:
    behind = []
    for num_nodes in (2, 4, 8):
        residuals = []
        for seed in range(5):
            rng = np.random.default_rng([32, seed, num_nodes])
            paths, aperture = PathSet.draw(rng, num_nodes, 6, WAVELENGTH_M), square(4)
            stalled = place(paths, aperture, rng=np.random.default_rng(seed), num_starts=1, method="ao")
            assert np.diff(stalled.trace).min() >= -1e-7 * stalled.value
            assert aperture.violation_m(stalled.point.positions_m) <= 1e-9 * WAVELENGTH_M
            residuals.append(placement_kkt(paths, aperture, stalled.point))
            # from where it stalled the joint climb goes on
            warm = stalled.point.positions_m
            onward = place(paths, aperture, rng=np.random.default_rng(seed), num_starts=2, warm=warm, method="sca")
            behind.append(onward.value / stalled.value)
            assert onward.value >= stalled.value * (1 - 1e-9)
        assert np.median(residuals) > 1e-2
        assert np.mean(np.array(residuals) > 1e-4) > 0.7
        assert stalled.status == "stalled"
        assert "together" in stalled.message
    assert np.mean(behind) > 1.01


@pytest.mark.parametrize("method", ["pdd", "sca"])
def test_small_instances_match_an_exhaustive_grid(method: str) -> None:
    aperture = line(2, 3.0)
    grid = np.arange(0.0, 3.0 + 1e-9, 0.005) * WAVELENGTH_M
    first, second = np.triu_indices(len(grid), 100)
    shares = []
    for seed in range(40):
        rng = np.random.default_rng([33, seed])
        paths = PathSet.draw(rng, 2, 2, WAVELENGTH_M)
        heard = paths.channel(np.stack([grid, np.zeros_like(grid)], axis=1))
        power = np.abs(heard) ** 2
        product = heard[:, 0].conj() * heard[:, 1]
        cross = np.abs(product[first] + product[second])
        both = power[first] + power[second]
        best = pair_gain(both[:, 0], both[:, 1], cross).max()
        found = place(paths, aperture, rng=rng, method=method)  # type: ignore[arg-type]
        shares.append(found.value / best)
        assert found.value <= 2.0 * np.min(np.sum(np.abs(paths.gains), axis=1)) ** 2 * (1 + 1e-12)
    assert np.mean(np.array(shares) >= 0.995) >= 0.95


def test_one_node_on_a_line_reaches_dynamic_programming() -> None:
    # sum_n |h(r_n)|^2 is separable: over a grid of 0.01 wavelengths dynamic programming is globally optimal
    aperture, step = line(4, 4.0), 0.01
    grid = np.arange(0.0, 4.0 + 1e-9, step) * WAVELENGTH_M
    apart = round(0.5 / step)
    reached = []
    for seed in range(20):
        rng = np.random.default_rng([34, seed])
        paths = PathSet.draw(rng, 1, 5, WAVELENGTH_M)
        power = np.abs(paths.channel(np.stack([grid, np.zeros_like(grid)], axis=1))[:, 0]) ** 2
        best = np.maximum.accumulate(power)
        for _ in range(3):
            chained = np.full_like(power, -np.inf)
            chained[apart:] = power[apart:] + best[:-apart]
            best = np.maximum.accumulate(chained)
        found = place(paths, aperture, rng=rng, num_starts=12, method="sca")
        reached.append(found.value / best[-1])
        # maximum-ratio combining
        channel = paths.channel(found.point.positions_m)[:, 0]
        assert found.value == pytest.approx(np.vdot(channel, channel).real, rel=1e-9)
    # the grid is optimal to its resolution; twelve starts meet it nearly always, and come near it always
    assert np.mean(np.array(reached) >= 1 - 1e-3) >= 0.9
    assert min(reached) >= 0.95


def test_a_single_wave_from_one_node_is_the_same_everywhere() -> None:
    paths = PathSet.draw(np.random.default_rng(1), 1, 1, WAVELENGTH_M, rician_k=1.0)
    for method in ("pdd", "sca", "ao"):
        found = place(paths, square(4), rng=np.random.default_rng(2), method=method)  # type: ignore[arg-type]
        assert found.value == pytest.approx(4.0, rel=1e-12)
        assert found.status == "stationary"


def test_one_antenna_and_two_waves_meet_at_the_crest_and_its_period() -> None:
    # a = .8, .5 and u = .3, -.5: 1.69 at the crest, 0.09 in the trough, period 1.25 wavelengths
    paths = PathSet(np.array([[[0.3, 0.0], [-0.5, 0.0]]]), np.array([[0.8, 0.5 + 0j]]), WAVELENGTH_M)
    aperture = replace(line(1, 3.0), home_m=np.array([[0.5, 0.0]]) * WAVELENGTH_M)
    found = place(paths, aperture, rng=np.random.default_rng(3))
    assert found.value == pytest.approx(1.69, rel=1e-9)
    at = found.point.positions_m[0, 0] / WAVELENGTH_M
    assert abs(at / 1.25 - round(at / 1.25)) < 1e-4
    trough_m = np.array([[0.625 * WAVELENGTH_M, 0.0]])
    assert abs(paths.channel(trough_m)[0, 0]) ** 2 == pytest.approx(0.09, rel=1e-9)


def test_the_decomposition_ties_its_blocks_and_ends_near_a_stationary_point() -> None:
    for num_antennas, num_nodes in itertools.product((4, 8), (1, 2, 4, 8)):
        joint, layout = joint_problem(num_nodes, num_antennas, num_nodes)
        antennas = joint.start(layout, multicast(joint.channel(layout)).point)
        found = decomposed(joint, antennas)
        assert found.status == "stationary"
        assert found.feasibility < 1e-6
        reached = found.point.point.antennas
        np.testing.assert_allclose(
            reached.combiner.conj() @ joint.channel(reached.positions_m), found.point.point.targets, atol=1e-6
        )
        assert joint.freedom.aperture.violation_m(reached.positions_m) < 1e-9
        # the level is what the weakest node is heard with
        assert joint.value(reached) == pytest.approx(found.value**2, rel=1e-5)


def test_a_tight_decomposition_alone_reaches_a_stationary_point() -> None:
    residuals = []
    for seed in range(3):
        joint, layout = joint_problem(seed, 4, 2)
        coupled = CoupledGain(joint)
        start = coupled.start(joint.start(layout, multicast(joint.channel(layout)).point), 1.0)
        found = decompose(coupled, start, max_sweeps=60, sweep_tolerance=1e-8, max_rounds=80)
        reached = found.point.point.antennas
        heard = np.abs(reached.combiner.conj() @ joint.channel(reached.positions_m)) ** 2
        slopes = Expansion(joint, reached.positions_m, reached.combiner).slopes
        # the multipliers are the weights: mu_m ~ Re(lambda_m^* c_m), and they balance the slopes off the edges
        weights = np.abs(found.point.multipliers) * np.sqrt(heard)
        weights /= weights.sum()
        rows, bounds = joint.freedom.rows(reached.positions_m)
        free = np.ones(slopes.shape[1], bool)
        touching = np.abs(rows[bounds > -1e-6]).sum(axis=0) > 0
        free[-joint.freedom.count :] = ~touching
        residuals.append(np.linalg.norm((weights @ slopes)[free]) / heard.min())
    assert np.median(residuals) < 1e-2


def test_sweeps_never_raise_the_augmented_lagrangian() -> None:
    joint, layout = joint_problem(7, 6, 4)
    coupled = CoupledGain(joint)
    point = coupled.start(joint.start(layout, multicast(joint.channel(layout)).point), 0.5)
    rng = np.random.default_rng(8)
    multipliers = 0.1 * rng.standard_normal((4, 2)) @ np.array([1.0, 1.0j])
    level = np.inf
    for _ in range(25):
        point = coupled.sweep(point, multipliers, 0.5)
        before, level = level, augmented_lagrangian(coupled, point, multipliers, 0.5)
        assert level <= before + 1e-10
        assert joint.freedom.kept(point.antennas.positions_m)


def test_the_level_block_is_optimal() -> None:
    rng = np.random.default_rng(9)
    for _ in range(100):
        aimed = rng.standard_normal((5, 2)) @ np.array([1.0, 1.0j])
        penalty = float(rng.uniform(0.01, 3.0))
        targets, level = lift(aimed, penalty)
        assert np.abs(targets).min() >= level * (1 - 1e-12)
        # best targets for any level are in closed form: a fine search over the level finds none better
        levels = np.linspace(0.0, 2.0 * level + 1.0, 4001)
        charge = np.sum(np.maximum(levels[:, None] - np.abs(aimed), 0.0) ** 2, axis=1)
        reached = level - np.sum(np.abs(targets - aimed) ** 2) / (2 * penalty)
        assert reached >= np.max(levels - charge / (2 * penalty)) - 1e-12


def test_slopes_and_curvature_of_the_joint_problem_are_finite_differences() -> None:
    joint, layout = joint_problem(1, 4, 3)
    rng = np.random.default_rng(10)
    combiner = rng.standard_normal((4, 2)) @ np.array([1.0, 1.0j])
    combiner /= np.linalg.norm(combiner)
    here = np.concatenate([combiner.real, combiner.imag, layout.ravel()])
    weights = np.array([0.2, 0.5, 0.3])

    def values(x: np.ndarray) -> np.ndarray:
        f = x[:4] + 1j * x[4:8]
        return np.abs(f.conj() @ joint.channel(x[8:].reshape(4, 2))) ** 2 / np.vdot(f, f).real

    expansion = Expansion(joint, layout, combiner)
    steps = 1e-5 * np.eye(16)
    slopes = np.stack([(values(here + step) - values(here - step)) / 2e-5 for step in steps], axis=1)
    np.testing.assert_allclose(expansion.slopes, slopes, atol=1e-7)
    steps = 1e-4 * np.eye(16)
    bend = [
        [
            weights @ (values(here + a + b) - values(here + a - b) - values(here - a + b) + values(here - a - b)) / 4e-8
            for a in steps
        ]
        for b in steps
    ]
    np.testing.assert_allclose(expansion.hessian(weights), bend, atol=1e-5)


def test_the_joint_climb_rises_and_keeps_the_spacing_at_every_iterate() -> None:
    for seed in range(4):
        joint, layout = joint_problem(seed, 8, 4)
        seen = []

        class Watched(JointGain):
            def model(self, point):  # type: ignore[no-untyped-def]
                seen.append(point.positions_m)  # noqa: B023
                return super().model(point)

        watched = Watched(joint.paths, joint.freedom)
        start = watched.start(layout, multicast(joint.channel(layout)).point)
        found = climb(watched, start, max_steps=60, tolerance=1e-10, damping=0.1)
        assert np.diff(found.trace).min() > 0.0
        assert max(joint.freedom.aperture.violation_m(each) for each in seen) < 1e-9 * 2 * np.pi
        assert len(seen) > 5


def test_scale_and_order_of_nodes_change_nothing() -> None:
    paths, aperture = PathSet.draw(np.random.default_rng(11), 3, 4, WAVELENGTH_M), square(4)
    found = place(paths, aperture, rng=np.random.default_rng(12), method="sca")
    loud = place(paths.scaled(np.full(3, 1e-4)), aperture, rng=np.random.default_rng(12), method="sca")
    np.testing.assert_allclose(loud.point.positions_m, found.point.positions_m, atol=1e-6 * WAVELENGTH_M)
    assert loud.value == pytest.approx(1e-8 * found.value, rel=1e-8)
    turned = place(paths.part([2, 0, 1]), aperture, rng=np.random.default_rng(12), method="sca")
    assert turned.value == pytest.approx(found.value, rel=1e-6)


def test_the_same_seed_gives_the_same_placement_and_a_warm_start_is_not_lost() -> None:
    paths, aperture = PathSet.draw(np.random.default_rng(13), 4, 6, WAVELENGTH_M), square(4)
    one = place(paths, aperture, rng=np.random.default_rng(14))
    two = place(paths, aperture, rng=np.random.default_rng(14))
    np.testing.assert_array_equal(one.point.positions_m, two.point.positions_m)
    warm = place(paths, aperture, rng=np.random.default_rng(15), num_starts=2, warm=one.point.positions_m, method="sca")
    assert warm.value >= one.value * (1 - 1e-6)
    # one that breaks the spacing is left out
    broken = place(paths, aperture, rng=np.random.default_rng(14), warm=np.zeros((4, 2)))
    assert broken.status == "stationary"


def test_antennas_without_a_stage_stay_where_they_are() -> None:
    paths = PathSet.draw(np.random.default_rng(16), 2, 6, WAVELENGTH_M)
    aperture = replace(square(4), movable=np.array([True, False, True, False]))
    for method in ("pdd", "sca", "ao"):
        found = place(paths, aperture, rng=np.random.default_rng(17), method=method)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.point.positions_m[[1, 3]], aperture.home_m[[1, 3]])
        assert aperture.violation_m(found.point.positions_m) <= 1e-9 * WAVELENGTH_M
        assert found.value > multicast(paths.channel(aperture.home_m)).value
    still = replace(aperture, movable=np.zeros(4, bool))
    for method in ("pdd", "sca", "ao"):
        found = place(paths, still, rng=np.random.default_rng(17), method=method)  # type: ignore[arg-type]
        assert found.value == pytest.approx(multicast(paths.channel(aperture.home_m)).value, rel=1e-9)


def test_identical_nodes_are_served_like_one() -> None:
    one = PathSet.draw(np.random.default_rng(18), 1, 5, WAVELENGTH_M)
    found = place(one.part([0, 0, 0]), square(4), rng=np.random.default_rng(19))
    alone = place(one, square(4), rng=np.random.default_rng(19))
    assert found.status == "stationary"
    assert found.value == pytest.approx(alone.value, rel=0.05)


def test_more_antennas_than_fit_are_infeasible_and_the_message_says_by_how_much() -> None:
    paths = PathSet.draw(np.random.default_rng(20), 2, 4, WAVELENGTH_M)
    crowded = line(8, 3.0)  # eight half wavelengths apart need 3.5 wavelengths
    found = place(paths, crowded, rng=np.random.default_rng(21))
    assert found.status == "infeasible"
    assert not found.found
    assert "8 antennas" in found.message
    assert f"{0.5 * WAVELENGTH_M:.3g} m" in found.message
    # eight fit into 3.5 wavelengths in one way only
    tight = place(paths, line(8, 3.5), rng=np.random.default_rng(21))
    assert tight.found
    np.testing.assert_allclose(np.sort(tight.point.positions_m[:, 0]), line(8, 3.5).home_m[:, 0], atol=1e-9)


def test_what_is_no_instance_is_an_error() -> None:
    paths, aperture = PathSet.draw(np.random.default_rng(22), 2, 4, WAVELENGTH_M), square(4)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"nodes \[1\] are zero"):
        place(paths.scaled(np.array([1.0, 0.0])), aperture, rng=rng)
    with pytest.raises(ValueError, match=r"nodes \[0\] are not finite"):
        place(paths.scaled(np.array([np.nan, 1.0])), aperture, rng=rng)
    with pytest.raises(ValueError, match="wavelength"):
        place(replace(paths, wavelength_m=1.0), aperture, rng=rng)
    with pytest.raises(ValueError, match="at least 1"):
        place(paths, aperture, rng=rng, num_starts=0)
    with pytest.raises(ValueError, match="warm"):
        place(paths, aperture, rng=rng, warm=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="none of pdd"):
        place(paths, aperture, rng=rng, method="guess")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one node"):
        place(paths.part([]), aperture, rng=rng)


def test_the_residual_sees_a_placement_that_is_not_stationary() -> None:
    paths, aperture = PathSet.draw(np.random.default_rng(23), 3, 6, WAVELENGTH_M), square(4)
    home = multicast(paths.channel(aperture.home_m))
    assert placement_kkt(paths, aperture, Placement(aperture.home_m, home.point, home.value)) > 1e-2
