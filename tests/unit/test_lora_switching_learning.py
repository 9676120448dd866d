"""What the learning benchmark of LoRA switching reads out of runs, by hand."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning_tables import Estimate
from benchmarks.switching_learning import Course, Measure, difference, measures, plan_of, verdict


def run(losses: list[float], accuracies: list[float], joules: float) -> Course:
    rows = [
        {
            "loss": loss,
            "accuracy": accuracy,
            "energy_j": joules * (index > 0),
            "scheme": {
                "modules": "0 2 8",
                "phi": 0.5,
                "arrived": 2.0,
                "queue_j": 0.2 * index,
                "queue_per_round_j": 0.1,
                "over_limit_j": 0.05,
            }
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
    longer = run([1.0] * 11, [0.1] + [0.5] * 8 + [0.6, 0.8], 1.0)
    assert longer.rise_j == pytest.approx(0.2)
    # ten rounds: means of two; what was before the first is by itself
    assert longer.smooth[:3] == (0.1, 0.5, 0.5)
    assert longer.smooth[-3:] == pytest.approx((0.5, 0.55, 0.7))
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


def test_frugal_boards_may_always_train_and_hungry_ones_must_rest(tmp_path: Path) -> None:
    options = argparse.Namespace(
        base="tiny", data=tmp_path, quick=False, rounds=25, link="outage", upload_s=2.0, loss_db=65.0,
        learning_rate=2e-3, held_out=100, tradeoff=1.0, sweep=[0.3, 1.0], seeds=2, initial_queue=0.5,
    )  # fmt: skip
    plan = plan_of("sst2", options)
    # two seeds of ten policies, and V = 0.3; V = 1 is there already
    assert len(plan.cells()) == 2 * (10 + 1)
    loaded = plan.cell("switching", 1.0, 1).load()
    # 4 steps of 8 rows of 48 tokens, 2e5 cycles each, at 1.5 GHz: 1e-28 * 3.072e8 * 2.25e18 J
    tokens, training_j = 1536, 0.06912
    scheme = loaded.scheme.model_dump()
    assert scheme["tokens"] == tokens
    assert scheme["tradeoff"] == pytest.approx(8 * training_j**2)
    took = [tokens * node.kappa * node.cycles_per_token * node.cpu_hz**2 for node in loaded.bench.nodes]
    np.testing.assert_allclose(np.array(took), [training_j, 3 * training_j])
    assert scheme["mean_energy_j"] == pytest.approx(1.1 * training_j)
    assert scheme["initial_queue_j"] == pytest.approx(0.5 * training_j)
    assert scheme["compute_s"] > tokens * 2e5 / 1.5e9, "nobody is too slow"
    # half of what eight boards may take in 25 rounds
    assert plan.budget_j == pytest.approx(0.5 * 25 * 8 * 1.1 * training_j, rel=0.05)
