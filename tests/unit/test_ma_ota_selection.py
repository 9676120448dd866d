"""Selections against enumeration, and fairness."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from testbed.problems.ma_ota.bound import phi
from testbed.problems.ma_ota.selection import (
    Criterion,
    best_prefix,
    jain,
    missed_turns,
    rank,
    select,
    update_queues,
)
from testbed.problems.multicast import multicast


def draw(seed: int, num_clients: int, num_antennas: int = 4) -> tuple[Criterion, np.ndarray]:
    """A criterion in which data and noise both matter, and auxiliary channels."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(50, 200, num_clients).astype(float)
    channel = rng.normal(size=(2, num_antennas, num_clients))
    criterion = Criterion(weights, 1000, 10 ** rng.uniform(-4.5, -2.0))
    return criterion, (channel[0] + 1j * channel[1]) / math.sqrt(2) / weights


def subsets(num_clients: int, size: int | None = None) -> list[tuple[int, ...]]:
    sizes = range(1, num_clients + 1) if size is None else [size]
    return [one for count in sizes for one in combinations(range(num_clients), count)]


def test_prefixes_equal_enumeration_of_all_subsets() -> None:
    masks = (np.arange(1, 256)[:, None] >> np.arange(8)) & 1 == 1
    sizes = set()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        weights, gains = rng.integers(50, 200, 8).astype(float), rng.exponential(size=8) * 10 ** rng.uniform(-5.0, -2.0)
        found = best_prefix(Criterion(weights, 1000, 0.1), gains)
        # Phi of all 255 subsets, written out
        total = masks @ weights
        worst = np.where(masks, 1 / gains, 0.0).max(axis=1)
        values = 4 * (1 - total / weights.sum()) ** 2 + 1000 * 0.1 / total**2 * worst
        best = int(np.argmin(values))
        assert np.flatnonzero(masks[best]).tolist() == list(found)
        assert phi(found, weights, gains, 1000, 0.1) == pytest.approx(values[best], rel=1e-9)
        sizes.add(len(found))
    assert len(sizes) >= 5, "the draws must not all have one answer"


@pytest.mark.parametrize("size", [1, 2, 4, None])
def test_ranking_equals_solving_every_set(size: int | None) -> None:
    for seed in range(2):
        criterion, channel = draw(seed, 6)
        queues = np.random.default_rng(seed).uniform(0, 2, 6)
        criterion = replace(criterion, queues=queues, fairness=0.2)
        scores = {}
        for one in subsets(6, size):
            gain = multicast(channel[:, list(one)]).value
            value = phi(one, criterion.weights, np.full(6, gain), criterion.num_values, criterion.noise_w)
            scores[one] = value - 0.2 * queues[list(one)].sum()
        found = rank(criterion, channel, size, kept=3)
        assert found.status == "optimal"
        best = sorted(scores.values())[:3]
        np.testing.assert_allclose([item.score for item in found.point], best, rtol=1e-6)
        assert found.value == found.point[0].score
        top = found.point[0]
        heard = np.abs(top.combiner.conj() @ channel[:, list(top.selected)]) ** 2
        assert heard.min() == pytest.approx(top.gain, rel=1e-9)


def test_most_sets_are_discarded_by_their_bound() -> None:
    criterion, channel = draw(2, 12)
    found = rank(criterion, channel, 6, kept=1)
    assert found.status == "optimal"
    assert found.iterations <= 30, "of 924 sets"


def test_too_many_clients_are_chosen_greedily_and_well() -> None:
    gaps = []
    for seed in range(4):
        criterion, channel = draw(seed, 13)
        found = select(criterion, channel, 2)
        assert found.status == "stationary"
        best = min(
            criterion.judge(one, multicast(channel[:, list(one)]).value)[1] for one in subsets(13, 2)
        )  # fmt: skip
        gaps.append(found.value - best)
    assert min(gaps) > -1e-9
    assert sum(gap < 1e-6 for gap in gaps) >= 3
    any_size = select(*draw(1, 13), None)
    assert any_size.found


def test_queues_bring_back_who_was_left_out() -> None:
    criterion, channel = draw(0, 6)
    first = select(criterion, channel, 2).point.selected
    queues, counts = np.zeros(6), np.zeros(6)
    for _ in range(60):
        chosen = select(replace(criterion, queues=queues, fairness=0.5), channel, 2).point.selected
        counts[list(chosen)] += 1
        queues = update_queues(queues, chosen)
    assert len(first) == 2
    assert counts.min() >= 15, "each client's share is 20 of 60 rounds"
    assert jain(counts) > 0.97


def test_queue_and_index_by_hand() -> None:
    np.testing.assert_allclose(update_queues(np.array([0.0, 1.0, 0.2, 0.0]), [1, 3], 2), [0.5, 0.5, 0.7, 0.0])
    np.testing.assert_allclose(update_queues(np.array([0.0, 0.0]), [0], 2), [0.0, 1.0])
    assert jain(np.array([4, 4, 4])) == pytest.approx(1.0)
    assert jain(np.array([5, 0, 0, 0])) == pytest.approx(0.25)
    assert jain(np.array([1, 2])) == pytest.approx(0.9)
    assert jain(np.zeros(3)) == 1.0
    np.testing.assert_allclose(missed_turns(np.array([6, 2, 4])), [0.0, 2.0, 0.0])


def test_law_of_selected_clients_under_a_random_combiner() -> None:
    """Rayleigh channels, any unit combiner: P(|f^H h|^2 >= 1 / gamma) = e^(-1 / gamma), M times that in the mean."""
    rng = np.random.default_rng(4)
    channel = (rng.normal(size=(20_000, 4, 10)) + 1j * rng.normal(size=(20_000, 4, 10))) / math.sqrt(2)
    combiner = rng.normal(size=4) + 1j * rng.normal(size=4)
    heard = np.abs(np.einsum("n,tnm->tm", combiner.conj() / np.linalg.norm(combiner), channel)) ** 2
    for gamma in (0.5, 1.0, 3.0):
        assert np.mean(np.sum(heard >= 1 / gamma, axis=1)) == pytest.approx(10 * math.exp(-1 / gamma), abs=0.06)


def test_order_and_scale_do_not_matter() -> None:
    criterion, channel = draw(5, 7)
    found = select(criterion, channel, 3).point
    order = np.random.default_rng(0).permutation(7)
    moved = select(replace(criterion, weights=criterion.weights[order]), channel[::-1][:, order], 3).point
    assert sorted(order[list(moved.selected)].tolist()) == list(found.selected)
    assert moved.gain == pytest.approx(found.gain, rel=1e-6)
    louder = select(replace(criterion, noise_w=4 * criterion.noise_w), 2 * channel, 3).point
    assert louder.selected == found.selected
    assert louder.phi == pytest.approx(found.phi, rel=1e-6)


def test_identical_clients_are_no_trouble() -> None:
    channel = np.tile(np.array([[1.0 + 1j], [0.5], [2j]]), (1, 5))
    found = select(Criterion(np.ones(5), 10, 0.1), channel, 3)
    assert found.status == "optimal"
    assert found.point.gain == pytest.approx(np.linalg.norm(channel[:, 0]) ** 2)


def test_clients_that_cannot_be_heard_are_not_selected() -> None:
    criterion, channel = draw(6, 5)
    channel[:, [1, 3]] = 0.0
    assert select(criterion, channel, 3).point.selected == (0, 2, 4)
    lacking = select(criterion, channel, 4)
    assert lacking.status == "infeasible"
    assert lacking.message == (
        "selection: 4 clients are to send at once, only 3 can be heard; the channels of these are zero: 1, 3"
    )
    assert lacking.feasibility == pytest.approx(0.25)
    assert "only 5 can be heard" in select(*draw(6, 5), 9).message


def test_wrong_arguments_are_refused() -> None:
    criterion, channel = draw(7, 5)
    with pytest.raises(ValueError, match="not finite"):
        select(criterion, channel * math.nan, 2)
    with pytest.raises(ValueError, match="5 weights"):
        select(criterion, channel[:, :4], 2)
    with pytest.raises(ValueError, match="at least one"):
        select(criterion, channel, 0)
    with pytest.raises(ValueError, match="queues"):
        best_prefix(replace(criterion, queues=np.ones(5), fairness=1.0), np.ones(5))
    with pytest.raises(ValueError, match="heard"):
        best_prefix(criterion, np.zeros(5))
