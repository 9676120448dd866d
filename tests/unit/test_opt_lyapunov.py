"""Virtual queues keep their exact invariants on every path, and drift plus penalty trades penalty against backlog."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.opt.lyapunov import (
    VirtualQueues,
    backlog_limit,
    drift_constant,
    drift_plus_penalty,
    penalty_excess,
    worthwhile_limit,
)


def test_a_queue_by_hand() -> None:
    queues = VirtualQueues.at_most(np.array([2.0, 1.0]), np.array([0.0, 0.5]))
    for use in ([3.0, 0.0], [0.0, 2.0], [6.0, 1.0]):
        queues = queues.after(np.array(use))
    assert queues.backlog.tolist() == [4.0, 1.0]
    assert queues.mean.tolist() == [3.0, 1.0]
    assert queues.excess.tolist() == [1.0, 0.0]
    assert queues.left(5).tolist() == [1.0, 2.0]
    assert queues.slots == 3


def test_a_least_mean_is_a_most_mean_of_the_negative() -> None:
    queues = VirtualQueues.at_least(0.5)
    for use in (0.0, 0.25, 1.0):
        queues = queues.after(np.array([-use]))
    assert queues.backlog.tolist() == [0.25]
    assert queues.excess[0] == pytest.approx(0.5 - 1.25 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_sample_path_invariant_holds_for_every_sequence_of_uses(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limit, start = rng.uniform(-1, 1, 4), rng.uniform(0, 2, 4)
    queues = VirtualQueues.at_most(limit, start)
    uses = rng.standard_t(2, size=(300, 4))
    for use in uses:
        queues = queues.after(use)
        assert np.all(queues.mean <= limit + queues.excess_bound + 1e-9)
    # Lindley's recursion unrolled: Q(T) is the largest of all partial sums from the end, and the whole with Q(0)
    tails = np.cumsum((uses - limit)[::-1], axis=0)
    expected = np.maximum(tails.max(axis=0), 0.0)
    assert queues.backlog == pytest.approx(np.maximum(expected, start + tails[-1]), abs=1e-9)


def test_bad_queues_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        VirtualQueues.at_most(1.0, -0.1)
    with pytest.raises(ValueError, match="finite"):
        VirtualQueues.at_most(np.inf)
    with pytest.raises(ValueError, match="needs 1 finite uses"):
        VirtualQueues.at_most(1.0).after(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="room to spare"):
        backlog_limit(1.0, 1.0, 1.0, 0.0)


def test_the_objective_is_the_weighted_sum() -> None:
    use = np.array([[1.0, 0.0], [0.0, 2.0]])
    found = drift_plus_penalty(3.0, np.array([1.0, 0.5]), np.array([2.0, 4.0]), use)
    assert found.tolist() == [5.0, 9.5]


def _policy(tradeoff: float, states: np.ndarray, limit: float) -> tuple[float, float, VirtualQueues, float]:
    """Serve (use 1) or not: a slot in state s has the penalty s (1 - use). Mean penalty, mean and largest backlog."""
    queues = VirtualQueues.at_most(limit)
    penalty, backlog, largest = 0.0, 0.0, 0.0
    for state in states:
        use = np.array([[0.0], [1.0]])
        choice = int(np.argmin(drift_plus_penalty(tradeoff, state * np.array([1.0, 0.0]), queues.backlog, use)))
        penalty += state * (1 - choice)
        queues = queues.after(np.array([float(choice)]))
        backlog += float(queues.backlog[0])
        largest = max(largest, float(queues.backlog[0]))
    return penalty / len(states), backlog / len(states), queues, largest


def test_penalty_falls_as_one_over_v_and_backlog_grows_as_v() -> None:
    """States uniform on [0, 1], at most 30 % of the slots served: the best serves the largest 30 %, at (0.7^2)/2."""
    limit, best = 0.3, 0.245
    states = np.random.default_rng(0).uniform(size=6_000)
    constant = drift_constant(np.array([limit]), np.zeros(1), np.ones(1))
    assert constant == pytest.approx(0.245)
    gaps, backlogs = [], []
    for tradeoff in (1.0, 4.0, 16.0, 64.0):
        penalty, backlog, queues, largest = _policy(tradeoff, states, limit)
        gaps.append(penalty - best)
        backlogs.append(backlog)
        noise = 3 * 0.3 / np.sqrt(len(states))
        assert penalty <= best + penalty_excess(tradeoff, constant) + noise
        # never serving keeps the limit with 0.3 to spare, and the penalty's range is 1 at most
        assert backlog <= backlog_limit(tradeoff, constant, 1.0, limit)
        bound = worthwhile_limit(np.array([tradeoff]), np.ones(1), np.ones(1), np.array([limit]))
        assert largest <= bound[0]
        assert queues.excess[0] <= queues.excess_bound[0] + 1e-12
    assert gaps[0] > gaps[1] > gaps[2] > -0.01
    slope = np.polyfit(np.log([1.0, 4.0, 16.0, 64.0]), np.log(backlogs), 1)[0]
    assert 0.85 < slope < 1.1


def test_a_queue_with_nothing_to_gain_stays_at_one_use() -> None:
    assert worthwhile_limit(np.zeros(1), np.zeros(1), np.ones(1), np.array([0.25])).tolist() == [0.75]
    assert worthwhile_limit(np.ones(1), np.zeros(1), np.ones(1), np.array([0.25])).tolist() == [np.inf]
