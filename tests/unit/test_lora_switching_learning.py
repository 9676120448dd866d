"""What the learning benchmark of LoRA switching reads out of runs, by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.learning_tables import Estimate
from benchmarks.switching_learning import Course, Measure, difference, measures, verdict


def run(losses: list[float], accuracies: list[float], joules: float) -> Course:
    rows = [
        {
            "loss": loss,
            "accuracy": accuracy,
            "energy_j": joules * (index > 0),
            "scheme": {"modules": "0 2 8", "phi": 0.5, "arrived": 2.0, "queue_per_round_j": 0.1, "over_limit_j": 0.05}
            if index
            else {},
        }
        for index, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    return Course.of(rows)


def test_energy_is_counted_up_to_the_round_that_reached_the_target() -> None:
    ours, free = run([4.0, 2.0, 1.0], [0.5, 0.6, 0.7], 10.0), run([4.0, 1.5, 1.0], [0.5, 0.5, 0.9], 30.0)
    assert ours.spent_j == (0.0, 10.0, 20.0)
    assert ours.ranks == 5.0
    assert ours.loss_fall_per_j == pytest.approx(3.0 / 20.0)
    assert ours.last_within(15.0) == 1
    found = {one.name: one for one in measures({"switching": {1: ours}, "unconstrained": {1: free}}, 15.0)}
    # 70 % of the way from 4 to 1 is 1.9: the second round; 70 % of that from 0.5 to 0.9 is 0.78: never
    assert found["J to loss"].of(ours, 1) == 20.0
    assert found["J to loss"].of(free, 1) == 30.0
    assert found["J to accuracy"].of(ours, 1) == math.inf
    assert found["loss at 15 J"].of(ours, 1) == 2.0
    assert found["acc. at 15 J"].of(free, 1) == 0.5


def test_a_base_that_learns_nothing_sets_no_target() -> None:
    flat = run([4.0, 3.0, 2.0], [0.5, 0.5, 0.4], 10.0)
    found = {one.name: one for one in measures({"unconstrained": {1: flat}}, 10.0)}
    assert found["J to accuracy"].of(flat, 1) == math.inf


def test_claims_are_paired_and_open_where_the_interval_spans_zero() -> None:
    loss = Measure("loss", lambda course, _: course.loss[-1], -1)
    ours = {seed: run([4.0, 1.0 + seed], [0.5, 0.5], 1.0) for seed in range(5)}
    worse = {seed: run([4.0, 1.5 + seed + 0.01 * seed], [0.5, 0.5], 1.0) for seed in range(5)}
    assert verdict(loss, difference(loss, ours, worse)).startswith("held: -0.52")
    assert verdict(loss, difference(loss, worse, ours)).startswith("NOT held: +0.52")
    assert verdict(loss, Estimate(0.1, -0.2, 0.4)).startswith("open")
    assert verdict(loss, difference(loss, ours, {})) == "nothing to compare"
