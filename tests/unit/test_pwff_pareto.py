"""The oracle of the trade between two rewards against brute force, and rewards read off a path at a common KL."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pwff_pareto import at_budget, tilted


def divergence(shares: np.ndarray) -> np.ndarray:
    return (shares * np.log(np.maximum(shares, 1e-300) * shares.shape[-1])).sum(-1)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_no_table_at_that_distance_has_a_larger_reward(weight: float) -> None:
    """A thousand random tables for each of two prompts, mixed with the reference until their mean KL is the budget."""
    rng, budget, mix = np.random.default_rng(3), 0.4, np.array([weight, 1 - weight])
    scores = rng.normal(size=(2, 6, 2))
    best = float(np.array(tilted(scores, weight, budget)) @ mix)
    others = rng.dirichlet(np.full(6, 0.3), size=(1000, 2))
    low, high = np.zeros(1000), np.ones(1000)
    for _ in range(50):
        share = 0.5 * (low + high)
        mixed = share[:, None, None] * others + (1 - share)[:, None, None] / 6
        near = divergence(mixed).mean(1) < budget
        low, high = np.where(near, share, low), np.where(near, high, share)
    gains = np.einsum("tpn,pnj,j->t", mixed, scores, mix) / 2
    assert divergence(mixed).mean(1).max() < budget + 1e-6
    assert gains.max() < best
    assert gains.max() > 0.5 * best + 0.5 * float(scores.mean((0, 1)) @ mix), "some come near"


def test_two_answers_tilt_as_a_logistic() -> None:
    """With rewards 1 and -1 the best table at KL d has share p of the better answer, d = ln 2 - H(p)."""
    scores = np.array([[[1.0, 0.0], [-1.0, 0.0]]])
    p = 0.8
    budget = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    assert tilted(scores, 1.0, budget)[0] == pytest.approx(2 * p - 1, abs=1e-9)


def test_weights_move_along_the_front() -> None:
    """B-8: a larger weight of safety never lowers safety, nor raises helpfulness."""
    scores = np.random.default_rng(1).normal(size=(3, 40, 2))
    front = np.array([tilted(scores, weight, 0.5) for weight in (0.1, 0.3, 0.5, 0.7, 0.9)])
    assert np.all(np.diff(front[:, 0]) > 0)
    assert np.all(np.diff(front[:, 1]) < 0)


def test_a_path_is_read_where_it_first_reaches_the_budget() -> None:
    path = [
        {"kl": kl, "helpfulness": one, "safety": -one}
        for kl, one in ((0.0, 0.0), (0.5, 1.0), (1.5, 2.0), (0.8, 9.0), (1.2, 5.0))
    ]
    share = (1 - 0.5**0.5) / (1.5**0.5 - 0.5**0.5)
    assert at_budget(path, 1.0) == pytest.approx((1 + share, -1 - share))
    assert at_budget(path, 0.5) == pytest.approx((1.0, -1.0))
    assert at_budget(path, 2.0) is None
