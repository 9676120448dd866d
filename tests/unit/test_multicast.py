"""The combiner that serves the node heard worst: closed forms, semidefinite bounds, brute force, symmetry."""

import cvxpy as cp
import numpy as np
import pytest

from testbed.phy.combiner import max_min_combiner
from testbed.problems.multicast import (
    combiner_kkt,
    improve_combiner,
    multicast,
    pair_gain,
    polish,
    start_combiners,
    weakest_gain,
)


def rayleigh(num_antennas: int, num_nodes: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((num_antennas, num_nodes, 2)) @ np.array([1.0, 1.0j]) / np.sqrt(2.0)


class Relaxation:
    """max q over X >= 0, trace X = 1, h_k^H X h_k >= q: an upper bound, tight for up to three nodes."""

    def __init__(self, num_antennas: int, num_nodes: int) -> None:
        self.forms = [cp.Parameter((2 * num_antennas, 2 * num_antennas), PSD=True) for _ in range(num_nodes)]
        # the real embedding [[Re X, -Im X], [Im X, Re X]]; its structure costs nothing, since the forms average it out
        whole = cp.Variable((2 * num_antennas, 2 * num_antennas), PSD=True)
        self.level = cp.Variable()
        rows = [cp.trace(form @ whole) / 2.0 >= self.level for form in self.forms]
        self.problem = cp.Problem(cp.Maximize(self.level), [cp.trace(whole) == 2.0, *rows])

    def bound(self, channel: np.ndarray) -> float:
        for form, h in zip(self.forms, channel.T, strict=True):
            outer = np.outer(h, h.conj())
            form.value = np.block([[outer.real, -outer.imag], [outer.imag, outer.real]])
        self.problem.solve(cp.CLARABEL)
        return float(self.level.value)


def test_two_nodes_have_the_known_gain() -> None:
    channel = np.array([[1.0, 1.0j, 0.5, -0.2], [0.3, 0.8, -0.6j, 1.0]]).T
    found = multicast(channel)
    assert found.value == pytest.approx(1.6426617, abs=5e-8)
    assert abs(np.vdot(*channel.T)) == pytest.approx(1.1045361, abs=5e-8)
    assert found.status == "optimal"
    assert weakest_gain(channel, found.point) == pytest.approx(found.value, rel=1e-12)


def test_one_node_is_served_by_its_own_channel() -> None:
    channel = rayleigh(5, 1, np.random.default_rng(0))
    found = multicast(channel)
    assert found.value == pytest.approx(np.vdot(channel, channel).real, rel=1e-12)
    assert abs(np.vdot(found.point, channel)) == pytest.approx(np.linalg.norm(channel), rel=1e-12)


def test_aligned_nodes_are_served_by_the_weaker_one() -> None:
    weak = rayleigh(4, 1, np.random.default_rng(1))[:, 0]
    assert multicast(np.stack([3.0 * weak, weak], axis=1)).value == pytest.approx(np.vdot(weak, weak).real)
    assert pair_gain(np.array(9.0), np.array(1.0), np.array(3.0)) == 1.0


@pytest.mark.parametrize("num_nodes", [2, 3])
def test_up_to_three_nodes_reach_the_semidefinite_bound(num_nodes: int) -> None:
    rng = np.random.default_rng([2, num_nodes])
    relaxation = Relaxation(6, num_nodes)
    for _ in range(25):
        channel = rayleigh(6, num_nodes, rng)
        assert multicast(channel).value == pytest.approx(relaxation.bound(channel), rel=1e-6)


@pytest.mark.parametrize(("num_antennas", "num_nodes"), [(4, 4), (8, 8)])
def test_many_nodes_come_near_the_semidefinite_bound(num_antennas: int, num_nodes: int) -> None:
    rng = np.random.default_rng([3, num_nodes])
    relaxation = Relaxation(num_antennas, num_nodes)
    shares = []
    for _ in range(10):
        channel = rayleigh(num_antennas, num_nodes, rng)
        shares.append(multicast(channel).value / relaxation.bound(channel))
    assert max(shares) < 1.0 + 1e-6
    # the bound itself is loose for so many nodes
    assert np.mean(shares) > 0.93
    assert min(shares) > 0.85


def test_two_antennas_are_as_good_as_the_whole_sphere() -> None:
    rng = np.random.default_rng(4)
    angle, phase = np.meshgrid(np.linspace(0.0, np.pi / 2, 361), np.linspace(0.0, 2 * np.pi, 721))
    sphere = np.stack([np.cos(angle), np.sin(angle) * np.exp(1j * phase)]).reshape(2, -1)
    for num_nodes in (2, 3, 5):
        channel = rayleigh(2, num_nodes, rng)
        grid = np.min(np.abs(sphere.conj().T @ channel) ** 2, axis=1).max()
        assert grid <= multicast(channel).value * (1 + 1e-9)
        assert grid >= multicast(channel).value * 0.98


def test_first_order_conditions_hold_and_tell_a_worse_combiner() -> None:
    rng = np.random.default_rng(5)
    worse = []
    for num_antennas, num_nodes in ((4, 3), (4, 4), (4, 8), (8, 8)):
        for _ in range(15):
            channel = rayleigh(num_antennas, num_nodes, rng)
            found = multicast(channel)
            assert found.kkt_residual < 1e-6
            assert found.status == "stationary"
            worse.append(combiner_kkt(channel, max_min_combiner(channel)))
            assert found.value >= weakest_gain(channel, max_min_combiner(channel)) * (1.0 - 1e-9)
            rising = np.diff(found.trace)
            assert rising.min() >= -1e-7 * found.value
    # a plain ascent stops short of them
    assert np.median(worse) > 1e-2


def test_scale_order_and_phase_change_nothing() -> None:
    rng = np.random.default_rng(6)
    channel = rayleigh(5, 4, rng)
    found = multicast(channel)
    order, turns = rng.permutation(4), np.exp(2j * np.pi * rng.random(4))
    assert multicast(channel[:, order] * turns).value == pytest.approx(found.value, rel=1e-6)
    assert multicast(channel[rng.permutation(5)]).value == pytest.approx(found.value, rel=1e-6)
    for factor in (1e-7, 1e150):
        scaled = multicast(channel * factor)
        np.testing.assert_allclose(scaled.point, found.point, atol=1e-9)
        assert scaled.value / factor**2 == pytest.approx(found.value, rel=1e-9)


def test_orthogonal_nodes_share_the_combiner() -> None:
    # no node's own channel reaches another: q = 1 / sum 1 / n_k
    found = multicast(np.diag([1.0, 2.0, 4.0]))
    assert found.value == pytest.approx(1.0 / (1.0 + 0.25 + 1.0 / 16.0), rel=1e-9)


def test_identical_nodes_are_served_like_one() -> None:
    channel = np.repeat(rayleigh(4, 1, np.random.default_rng(7)), 5, axis=1)
    assert multicast(channel).value == pytest.approx(np.sum(np.abs(channel[:, 0]) ** 2), rel=1e-9)


def test_a_far_node_beside_a_near_one() -> None:
    channel = rayleigh(4, 3, np.random.default_rng(8)) * np.array([1.0, 1e-6, 1.0])
    found = multicast(channel)
    # only the far node counts
    assert found.value == pytest.approx(np.sum(np.abs(channel[:, 1]) ** 2), rel=1e-6)


def test_a_start_and_one_climb_are_never_worse_than_where_they_begin() -> None:
    rng = np.random.default_rng(9)
    channel = rayleigh(4, 6, rng)
    begun = start_combiners(channel)
    np.testing.assert_allclose(np.linalg.norm(begun, axis=1), 1.0)
    assert multicast(channel, start=begun[0]).value >= multicast(channel).value * (1 - 1e-9)
    for start in begun:
        if weakest_gain(channel, start) > 1e-9:
            assert weakest_gain(channel, improve_combiner(channel, start)) >= weakest_gain(channel, start)
            assert weakest_gain(channel, polish(channel, start)) >= weakest_gain(channel, start) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("channel", "told"),
    [
        (np.zeros((4, 0)), "shape"),
        (np.ones(4), "shape"),
        (np.array([[1.0, 0.0], [1.0, 0.0]]), r"nodes \[1\] are zero"),
        (np.array([[1.0, np.nan], [1.0, 0.0]]), r"nodes \[1\] are not finite"),
    ],
)
def test_a_channel_that_is_none_is_an_error(channel: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        multicast(channel)


def test_a_start_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="start"):
        multicast(np.ones((4, 3)), start=np.ones(3))
