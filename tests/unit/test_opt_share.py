"""One resource among many: closed forms, an independent conic solver, and hard numbers."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import brentq

from testbed.opt.bounded_share import equal_split
from testbed.opt.roots import falling_root, rising_root
from testbed.opt.share import (
    MinMax,
    clearing_price,
    concave_rate,
    concave_rate_slope,
    min_max_linear,
    min_max_share,
    ratio_at,
    share_for,
)
from testbed.phy.rate import bandwidth_for_hz


def usual(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Works, offsets and reaches of ordinary size; a total of 1 fits them."""
    return rng.uniform(1, 16, shape), rng.uniform(2, 20, shape), 10 ** rng.uniform(-1, 3, shape)


def test_rate_and_inverse_know_each_other() -> None:
    assert concave_rate(1.0, 3.0) == pytest.approx(2.0)
    assert concave_rate(0.0, 3.0) == 0.0
    assert share_for(2.0, 3.0) == pytest.approx(1.0)
    np.testing.assert_array_equal(share_for([0.0, 1.0, 5.0], [0.0, 0.0, 1.0]), [0.0, np.inf, np.inf])
    share, reach = 1.7, 0.4
    rise = concave_rate(share + 1e-6, reach) - concave_rate(share - 1e-6, reach)
    assert concave_rate_slope(share, reach) == pytest.approx(rise / 2e-6, rel=1e-8)


def test_newton_equals_lambert_w() -> None:
    rng = np.random.default_rng(0)
    level, reach = (
        np.concatenate([rng.uniform(0, 1, 5000), 10 ** rng.uniform(-90, 0, 2000)]),
        10 ** rng.uniform(-3, 9, 7000),
    )
    rate = level * reach / np.log(2)
    # near its reach a rate says little about its share
    error = np.abs(share_for(rate, reach) / bandwidth_for_hz(rate, reach) - 1.0) * (1.0 - level)
    assert error.max() < 1e-13
    ratio = ratio_at(level)
    np.testing.assert_allclose(np.log1p(ratio), level * ratio, rtol=1e-12)


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 20])
def test_min_max_equals_a_conic_solver(num_tasks: int) -> None:
    rng = np.random.default_rng(num_tasks)
    for _ in range(3):
        work, offset, reach = usual(rng, num_tasks)
        found = min_max_share(work, offset, reach, 1.0)
        share, end = cp.Variable(num_tasks), cp.Variable()
        rate = -cp.rel_entr(share, share + reach) / np.log(2)
        rows = [rate >= cp.multiply(work, cp.inv_pos(end - offset)), cp.sum(share) <= 1.0, end >= offset.max()]
        cp.Problem(cp.Minimize(end), rows).solve(solver=cp.CLARABEL)
        assert float(found.value) == pytest.approx(float(end.value), rel=1e-6)
        # the conic solver's own shares are that good: tasks end apart by as much
        np.testing.assert_allclose(found.share, share.value, atol=2e-5)


def test_all_end_together_even_at_the_edge_of_double_precision() -> None:
    rng = np.random.default_rng(5)
    for _ in range(400):
        count = int(rng.integers(1, 30))
        work, reach = 10 ** rng.uniform(-3, 6, count), 10 ** rng.uniform(-4, 8, count)
        offset, total = 10 ** rng.uniform(-4, 4, count) * rng.integers(0, 2, count), 10 ** rng.uniform(-2, 6)
        found = min_max_share(work, offset, reach, total)
        ends = offset + work / concave_rate(found.share, reach)
        assert np.abs(ends / found.value - 1.0).max() < 1e-12
        assert found.share.sum() == pytest.approx(total, rel=1e-12)
        assert np.all(found.share > 0)


def test_where_newton_is_cut_off_bisection_finds_the_same() -> None:
    work, offset, reach = usual(np.random.default_rng(2), 50, 7)
    whole, cut = min_max_share(work, offset, reach, 1.0), min_max_share(work, offset, reach, 1.0, max_steps=1)
    np.testing.assert_allclose(cut.value, whole.value, rtol=1e-12)
    np.testing.assert_allclose(cut.share, whole.share, rtol=1e-9)


def test_like_tasks_get_like_shares() -> None:
    found = min_max_share(np.full(8, 3.0), np.full(8, 2.0), np.full(8, 5.0), 4.0)
    np.testing.assert_allclose(found.share, 0.5, rtol=1e-14)
    # 2 + 3 / (0.5 log2(1 + 10))
    assert float(found.value) == pytest.approx(2.0 + 6.0 / np.log2(11.0), rel=1e-14)


def test_batches_permutations_and_scales() -> None:
    rng = np.random.default_rng(3)
    work, offset, reach = usual(rng, 3, 400, 6)
    total = rng.uniform(0.5, 2, (3, 400))
    found = min_max_share(work, offset, reach, total)
    single = min_max_share(work[2, 390], offset[2, 390], reach[2, 390], total[2, 390])
    assert found.value[2, 390] == pytest.approx(float(single.value), rel=1e-13)
    np.testing.assert_allclose(found.share[2, 390], single.share, rtol=1e-11)
    order = rng.permutation(6)
    shuffled = min_max_share(work[..., order], offset[..., order], reach[..., order], total)
    np.testing.assert_allclose(shuffled.share, found.share[..., order], rtol=1e-11)
    longer = min_max_share(7 * work, 7 * offset, reach, total)
    np.testing.assert_allclose(longer.value, 7 * found.value, rtol=1e-12)
    wider = min_max_share(work, offset, 3 * reach, 3 * total)
    shared = min_max_share(work / 3, offset, reach, total)
    np.testing.assert_allclose(wider.value, shared.value, rtol=1e-12)
    assert np.all(min_max_share(work, offset, reach, 1.1 * total).value < found.value)
    assert np.all(min_max_share(work, offset, 1.1 * reach, total).value < found.value)


def test_tasks_without_work_and_tasks_out_of_reach() -> None:
    found = min_max_share([0.0, 1.0, 2.0], [5.0, 1.0, 1.0], [1.0, 1.0, 0.5], 10.0)
    assert float(found.value) == 5.0, "the idle task ends last"
    assert found.share[0] == 0.0
    assert found.share.sum() == pytest.approx(10.0)
    idle = min_max_share([0.0, 0.0], [1.0, 2.0], [1.0, 0.0], 10.0)
    assert float(idle.value) == 2.0
    dead = min_max_share([[1.0, 1.0], [1.0, 1.0]], np.ones((2, 2)), [[1.0, 0.0], [1.0, 1.0]], 10.0)
    assert np.isinf(dead.value[0])
    assert np.isnan(dead.share[0]).all()
    assert np.isfinite(dead.value[1])


@pytest.mark.parametrize("solve", [min_max_share, min_max_linear])
def test_a_work_too_small_to_tell_takes_next_to_nothing(solve: Callable[..., MinMax]) -> None:
    found = solve([1e-15, 1.0], [1e4, 1.0], [2.0, 1.0], 3.0)
    assert float(found.value) == pytest.approx(1e4)
    assert found.share.sum() == pytest.approx(3.0)
    assert np.all(found.share >= 0)


def test_linear_rates_equal_bisection_and_the_closed_form() -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        count = int(rng.integers(1, 12))
        work, offset, efficiency = rng.uniform(0.1, 5, count), rng.uniform(0, 9, count), rng.uniform(0.1, 8, count)
        found = min_max_linear(work, offset, efficiency, 2.0)

        def surplus(end: float, weight: np.ndarray = work / efficiency, offset: np.ndarray = offset) -> float:
            return float(np.sum(weight / (end - offset)) - 2.0)

        end = brentq(surplus, offset.max() + 1e-9, offset.max() + 1e3, xtol=1e-13, rtol=1e-15)
        assert float(found.value) == pytest.approx(end, rel=1e-11)
        np.testing.assert_allclose(offset + work / (efficiency * found.share), found.value, rtol=1e-12)
    together = min_max_linear(work, np.full(count, 3.0), efficiency, 2.0)
    assert float(together.value) == pytest.approx(3.0 + np.sum(work / efficiency) / 2.0, rel=1e-13)
    assert np.isinf(min_max_linear([1.0, 1.0], [0.0, 0.0], [1.0, 0.0], 1.0).value)
    assert float(min_max_linear([0.0, 1.0], [9.0, 1.0], [1.0, 1.0], 1.0).value) == 9.0


def test_a_price_clears_the_market() -> None:
    weight = np.array([[1.0, 2.0, 3.0], [5.0, 0.5, 0.1]])
    # logarithmic utilities demand w / price: the price is sum w / total
    price = clearing_price(lambda p: (weight / p[:, None]).sum(axis=1), np.array([2.0, 4.0]), 1e-6, 1e6)
    np.testing.assert_allclose(price, [3.0, 1.4], rtol=1e-12)
    assert clearing_price(lambda p: 1.0 / p, 10.0, 1.0, 5.0) == pytest.approx(1.0), "nobody wants all of it"
    assert clearing_price(lambda p: 1.0 / p, 0.1, 1.0, 5.0) == pytest.approx(5.0), "everybody wants more"
    with pytest.raises(ValueError, match="two positive"):
        clearing_price(lambda p: 1.0 / p, 1.0, 0.0, 5.0)


def test_roots_of_falling_functions() -> None:
    target = np.array([0.1, 5.0, 1e-5, 0.5])
    calls = []

    def fall(x: np.ndarray) -> np.ndarray:
        calls.append(1)
        return np.exp(-x) - target

    np.testing.assert_allclose(falling_root(fall, np.full(4, -3.0), np.full(4, 20.0)), -np.log(target), atol=1e-11)
    assert len(calls) < 20, "bisection alone takes 48"
    jump = falling_root(lambda x: np.where(x < 0.3, 1.0, -2.0), np.zeros(1), np.ones(1))
    assert jump[0] == pytest.approx(0.3, abs=1e-12)
    assert jump[0] >= 0.3, "on the side where the function is not positive"
    ends = falling_root(lambda x: 0.3 - x, np.array([0.4, 0.0]), np.array([1.0, 0.1]))
    np.testing.assert_array_equal(ends, [0.4, 0.1])


def test_roots_of_rising_functions() -> None:
    far = rising_root(lambda x: (np.exp(x) - 3.0, np.exp(x)), np.array([-40.0]), np.array([40.0]), np.array([30.0]))
    assert far[0] == pytest.approx(np.log(3.0), abs=1e-14)
    flat = rising_root(
        lambda x: (np.maximum(x - 1.0, 0.0) - 0.5, np.where(x > 1.0, 1.0, 0.0)),
        np.array([-9.0]), np.array([9.0]), np.array([-8.0]),
    )  # fmt: skip
    assert flat[0] == pytest.approx(1.5, abs=1e-12)
    ends = rising_root(
        lambda x: (x - 5.0, np.ones(2)), np.array([0.0, 6.0]), np.array([1.0, 7.0]), np.array([0.5, 6.5])
    )
    np.testing.assert_allclose(ends, [1.0, 6.0], atol=1e-9)


@pytest.mark.parametrize(
    ("work", "offset", "reach", "total", "words"),
    [
        ([1.0], [1.0, 2.0], [1.0], 1.0, "one shape"),
        ([], [], [], 1.0, "one shape"),
        ([1.0], [1.0], [1.0], 0.0, "positive and finite"),
        ([-1.0], [1.0], [1.0], 1.0, "not be negative"),
        ([np.inf], [1.0], [1.0], 1.0, "finite"),
        ([1.0], [np.nan], [1.0], 1.0, "finite"),
    ],
)
def test_bad_numbers_are_refused(work: list, offset: list, reach: list, total: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        min_max_share(work, offset, reach, total)
    with pytest.raises(ValueError, match=words):
        min_max_linear(work, offset, reach, total)


def bounds(rng: np.random.Generator, num_tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and most shares of a total of 1, many of which bind."""
    least = rng.uniform(0.3, 0.95, num_tasks) / num_tasks * rng.choice([0.0, 1.0], num_tasks)
    most = np.where(rng.uniform(size=num_tasks) < 0.5, np.inf, least + rng.uniform(0.05, 1.2, num_tasks) / num_tasks)
    return least, most


@pytest.mark.parametrize("num_tasks", [2, 5, 12])
@pytest.mark.parametrize("linear", [False, True])
def test_bounded_shares_equal_a_conic_solver(num_tasks: int, linear: bool) -> None:
    rng = np.random.default_rng(num_tasks)
    for _ in range(4):
        work, offset, reach = usual(rng, num_tasks)
        # slow rates would make ends that a conic solver finds hard to scale
        reach, (least, most) = np.maximum(reach, 1.0), bounds(rng, num_tasks)
        solve = min_max_linear if linear else min_max_share
        found = solve(work, offset, reach, 1.0, least=least, most=most)
        share, end = cp.Variable(num_tasks), cp.Variable()
        rate = cp.multiply(reach, share) if linear else -cp.rel_entr(share, share + reach) / np.log(2)
        rows = [rate >= cp.multiply(work, cp.inv_pos(end - offset)), cp.sum(share) <= 1.0, end >= offset.max()]
        limited = np.flatnonzero(np.isfinite(most))
        rows += [share >= least, share[limited] <= most[limited]]
        cp.Problem(cp.Minimize(end), rows).solve(solver=cp.CLARABEL)
        assert float(found.value) == pytest.approx(float(end.value), rel=1e-6)


def test_bounded_shares_are_those_of_one_common_end() -> None:
    """A scalar search over the end of whoever is between its bounds; many instances at once."""
    rng = np.random.default_rng(3)
    work, offset, reach = usual(rng, 100, 6)
    least, most = (np.stack(rows) for rows in zip(*(bounds(rng, 6) for _ in range(100)), strict=True))
    found = min_max_share(work, offset, reach, 1.0, least=least, most=most)
    assert np.sum(found.share <= least * (1 + 1e-9)) > 50
    assert np.sum(found.share >= most * (1 - 1e-9)) > 50
    for row in range(100):
        low, high = least[row], most[row]

        def shares(end: float, row: int = row, low: np.ndarray = low, high: np.ndarray = high) -> np.ndarray:
            left = np.maximum(end - offset[row], 1e-300)
            return np.clip(np.where(end > offset[row], share_for(work[row] / left, reach[row]), np.inf), low, high)

        if high.sum() <= 1.0:
            expected = high
        else:
            expected = shares(brentq(lambda end: np.minimum(shares(end), 9.0).sum() - 1.0, 0.0, 1e7, xtol=1e-12))
        np.testing.assert_allclose(found.share[row], expected, rtol=1e-6)


def test_bounds_at_their_ends() -> None:
    work, offset, reach = np.array([4.0, 4.0]), np.zeros(2), np.array([3.0, 3.0])
    # all at their least, all at their most, and least shares that do not fit
    np.testing.assert_allclose(min_max_share(work, offset, reach, 1.0, least=[0.25, 0.75]).share, [0.25, 0.75])
    found = min_max_share(work, offset, reach, 1.0, most=[0.125, 0.25])
    np.testing.assert_allclose(found.share, [0.125, 0.25])
    assert float(found.value) == pytest.approx(4.0 / (0.125 * np.log2(25.0)))
    none = min_max_share(work, offset, reach, 1.0, least=0.6)
    assert np.isinf(none.value)
    assert np.isnan(none.share).all()
    # a task without work keeps its least, and its offset counts
    idle = min_max_share(np.array([4.0, 0.0]), np.array([0.0, 99.0]), reach, 1.0, least=0.1)
    np.testing.assert_allclose(idle.share, [0.9, 0.1])
    assert float(idle.value) == 99.0
    with pytest.raises(ValueError, match="least shares must be finite"):
        min_max_share(work, offset, reach, 1.0, least=0.5, most=0.4)


def test_equal_parts_give_way_to_bounds() -> None:
    free = np.full(3, np.inf)
    np.testing.assert_allclose(equal_split(np.array([5.0, 0.0, 0.0]), free, 9.0), [5.0, 2.0, 2.0])
    # lifting the first leaves 2 each, which is too little for the second
    np.testing.assert_allclose(equal_split(np.array([5.0, 2.5, 0.0]), free, 9.0), [5.0, 2.5, 1.5])
    np.testing.assert_allclose(equal_split(np.zeros(3), np.array([1.0, np.inf, np.inf]), 9.0), [1.0, 3.0, 3.0])
    np.testing.assert_allclose(equal_split(np.full(3, 4.0), free, 9.0), 3.0)
