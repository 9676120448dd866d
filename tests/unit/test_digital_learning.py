"""Target, costs, paired estimates and verdicts of the benchmark of digital uplinks, on made-up runs."""

import math

import pytest

from benchmarks.campaign import Cell, Finished
from benchmarks.digital_learning import FEDIT, IDEAL, METHODS, Study, _less, megabytes, seconds
from benchmarks.learning_tables import Estimate
from testbed.engine.config import load_experiment


def run(seed: int, losses: list[float | None], second: float) -> Finished:
    rows = [
        {"round": index, "loss": loss, "accuracy": None, "latency_s": second * (index > 0), "uplink_bytes": 10**6}
        for index, loss in enumerate(losses)
    ]
    return Finished(Cell("", "", (), seed), "", rows, {}, 1.0, 8.0, "")


def study() -> Study:
    # the target is 3 - 0.9 * 2 = 1.2
    ideal = {1: run(1, [3.0, 2.0, 1.0], 5.0), 2: run(2, [3.0, 2.0, 1.0], 5.0)}
    fedit = {1: run(1, [3.0, 1.1, 1.0], 4.0), 2: run(2, [3.0, 1.5, 1.0], 4.0)}
    late = {1: run(1, [3.0, None, 1.2], 1.0), 2: run(2, [3.0, 2.0, 1.9], 1.0)}
    return Study("", {IDEAL: ideal, FEDIT: fedit, "late": late}, 2)


def test_costs_count_to_the_round_that_reaches_the_target() -> None:
    one = study()
    assert one.target(1) == pytest.approx(1.2)
    assert one.until(FEDIT, seconds) == {1: 4.0, 2: 8.0}
    assert one.until("late", seconds) == {1: 2.0}
    assert one.until("late", megabytes) == {1: 3.0}


def test_ratios_are_taken_seed_by_seed() -> None:
    one = study()
    ratio = one.ratio(one.until(IDEAL, seconds), one.until(FEDIT, seconds))
    # 10 / 4 and 10 / 8
    assert ratio.mean == pytest.approx(math.sqrt(2.5 * 1.25))
    assert one.ratio({1: 3.0}, {1: 2.0}) == Estimate(pytest.approx(1.5), -math.inf, math.inf)
    assert one.apart({1: 3.0, 2: 5.0}, {1: 1.0, 2: 1.0, 3: 9.0}).mean == pytest.approx(3.0)


def test_a_verdict_needs_the_whole_interval() -> None:
    assert _less(Estimate(0.5, 0.2, 0.8), 1.0, "less", "more") == "less"
    assert _less(Estimate(0.9, 0.7, 1.1), 1.0, "less", "more") == "no difference shown"
    assert _less(Estimate(1.5, 1.2, 1.8), 1.0, "less", "more") == "more"
    assert _less(Estimate.of([0.5]), 1.0, "less", "more") == "one seed says nothing"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_is_a_valid_experiment(method) -> None:
    assert load_experiment(method.preset, method.changes, 1).scheme is not None
