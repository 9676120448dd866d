"""Target, costs, paired estimates and verdicts of the benchmark of digital uplinks, on made-up runs."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.campaign import Cell, Finished
from benchmarks.digital_learning import COMMON, FEDIT, IDEAL, METHODS, QUICK, Study, _less, jobs, megabytes, seconds
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


def test_the_boards_are_those_of_cell_but_for_the_cycles_of_a_token() -> None:
    cell, ours = (load_experiment("soft-ideal", changes, 1).bench for changes in ((), COMMON))
    for name in ("name", "cpu_hz"):
        assert [getattr(one, name) for one in ours.boards] == [getattr(one, name) for one in cell.boards]
    assert [one.max_power_dbm for one in ours.boards] == [one.max_power_dbm for one in cell.boards]
    assert {one.cycles_per_token for one in ours.boards} == {1e7}
    assert len(load_experiment("soft-ideal", COMMON, 1).spec.lora.targets) == 7


def test_quick_names_methods_that_exist() -> None:
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)


def options(data: Path, **changes: Any) -> argparse.Namespace:
    given = {"data": data, "bases": ["tiny"], "base": None, "sets": ["sst2", "gsm8k"], "limit_s": None, **changes}
    return argparse.Namespace(**given)


def test_a_prepared_base_goes_with_the_rows_it_left(tmp_path: Path) -> None:
    assert [title for title, *_ in jobs(options(tmp_path))] == ["sst2, tiny", "gsm8k, tiny"]
    plain, made = tmp_path / "plain", tmp_path / "made"
    for folder in (plain, made):
        folder.mkdir()
    (made / "prepared.json").write_text(json.dumps({"recipe": {"template": "dbpedia14", "length": 40}}))
    found = {title: overrides for title, overrides, _ in jobs(options(tmp_path, base=[plain, made]))}
    assert list(found) == ["sst2, plain", "gsm8k, plain", "dbpedia14, made"]
    spec = load_experiment("soft-ideal", found["dbpedia14, made"], 1).spec
    assert (spec.model.base, spec.data.source) == (str(made), str(made / "data"))
    assert (spec.data.template, spec.training.sequence_length) == ("dbpedia14", 40)
    with pytest.raises(SystemExit, match="there is no such folder"):
        list(jobs(options(tmp_path, base=[tmp_path / "none"])))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_is_a_valid_experiment(method) -> None:
    assert load_experiment(method.preset, method.changes, 1).scheme is not None
