"""Campaigns of many short runs: what is kept, what is run again, and the figures that are made of them."""

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import campaign
from benchmarks.campaign import Cell, Finished, finished, run_campaign
from benchmarks.learning_tables import Estimate, Study, print_tables, write_figure
from benchmarks.line_figure import Line, Panel, figure


def cell(label: str, rounds: int, seed: int = 0) -> Cell:
    return Cell(label, "quickstart", (f"rounds={rounds}",), seed)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Workers that run nothing: they note what they are asked, and fail where three rounds are wanted."""
    noted: list[Cell] = []

    class Pretends:
        def ask(self, one: Cell) -> dict[str, Any]:
            noted.append(one)
            if "rounds=3" in one.overrides:
                return {"error": "no luck", "took_s": 0.1, "cpu_s": 0.1}
            summary = {"perplexity_after": 2.0}
            return {"rows": [{"round": 0}], "summary": summary, "took_s": 0.1, "cpu_s": 0.1}

        def end(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(campaign, "_Worker", Pretends)
    return noted


def test_what_is_finished_is_not_run_again(asked: list[Cell], tmp_path: Path) -> None:
    store, said = tmp_path / "deep" / "store.jsonl", []
    one, two = cell("one", 1), cell("two", 2)
    first = run_campaign([one], store, workers=2, say=said.append)
    assert asked == [one]
    # cut off in the middle of a line
    with store.open("a") as file:
        file.write('{"cell": {"la')
    again = run_campaign([one, two], store, workers=2, say=said.append)
    assert asked == [one, two]
    assert again[one] == first[one]
    assert [kept.cell for kept in finished(store).values()] == [one, two]


def test_labels_decide_nothing_and_seeds_do(asked: list[Cell], tmp_path: Path) -> None:
    found = run_campaign(
        [cell("one", 1), cell("another name", 1), cell("one", 1, seed=5)], tmp_path / "s.jsonl", say=lambda text: None
    )
    assert len(asked) == 2
    keys = [one.key for one in found.values()]
    assert keys[0] == keys[1] != keys[2]


def test_failures_are_told_and_stop_nobody(asked: list[Cell], tmp_path: Path) -> None:
    said: list[str] = []
    wrong = Cell("wrong", "quickstart", ("rounds=many",), 0)
    cells = [wrong, cell("three", 3), cell("four", 4)]
    found = run_campaign(cells, tmp_path / "s.jsonl", workers=1, say=said.append)
    assert list(found) == [cells[2]]
    assert "wrong, seed 0 cannot be run" in said[0]
    assert "rounds" in said[0]
    assert any("three, seed 0 failed: no luck" in text for text in said)
    assert any("1 of 2 cells failed" in text for text in said)
    run_campaign(cells, tmp_path / "s.jsonl", say=said.append)
    assert [one.label for one in asked].count("three") == 2, "tried once more"


def test_a_worker_that_dies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign.sys, "executable", "/bin/false")
    said: list[str] = []
    assert run_campaign([cell("one", 1)], tmp_path / "s.jsonl", workers=1, say=said.append) == {}
    assert "the worker process ended (1)" in said[0]


def test_the_interval_holds_its_share_of_means() -> None:
    rng = np.random.default_rng(0)
    draws = 2.0 + rng.standard_normal((4000, 5))
    inside = [one.low <= 2.0 <= one.high for one in map(Estimate.of, draws.tolist())]
    # binomial, four standard deviations
    assert abs(np.mean(inside) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)
    known = Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0])
    # t(0.975, 4) = 2.776445, standard deviation sqrt(2.5)
    assert known.high - known.mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert Estimate.of([3.0]).high == math.inf
    assert math.isnan(Estimate.of([]).mean)


def run_of(losses: list[float], participants: list[list[str]], seed: int) -> Finished:
    rows = [
        {"round": index, "loss": loss, "participants": who, "latency_s": 2.0 * index, "energy_j": 10.0}
        for index, (loss, who) in enumerate(zip(losses, participants, strict=True))
    ]
    one = Cell("x", "quickstart", ("bench.nodes=[{count=4}]",), seed)
    return Finished(one, f"{losses}", rows, {}, 1.0, 1.0, "abc")


def study() -> Study:
    turns = [[], ["node-00"], ["node-01"], ["node-00"]]
    whole = [[], ["node-00"], ["node-00"], ["node-00"]]
    runs = {
        ("error-free FedAvg", 1, 5.0): {
            1: run_of([4.0, 3.0, 2.2, 2.0], whole, 1),
            2: run_of([5.0, 4, 3.2, 3], whole, 2),
        },
        ("fixed", 1, 5.0): {1: run_of([4.0, 3.5, 3.0, 2.9], whole, 1), 2: run_of([5.0, 4.5, 4.0, 3.9], whole, 2)},
        ("pdd", 1, 5.0): {1: run_of([4.0, 3.0, 2.1, 2.5], turns, 1), 2: run_of([5.0, 4, 3.9, 3.5], turns, 2)},
    }
    steps = {(name, 5.0): "rate" for name, _, _ in runs}
    names = tuple(name for name, _, _ in runs)
    return Study("made up", names, frozenset(("fixed", "pdd")), (1,), (5.0,), 5.0, (1, 2), runs, steps)


def test_ratios_costs_and_fairness_of_known_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = study()
    assert made.best_fixed(1, 5.0) == "fixed"
    # the same difference at both seeds: no spread, although the seeds differ by a nat
    ratio = made.ratio("pdd", "fixed", 1, 5.0)
    assert [ratio.low, ratio.mean, ratio.high] == pytest.approx([math.exp(-0.4)] * 3)
    assert made.perplexity("pdd", 1, 5.0).mean == pytest.approx(math.exp(3.0))
    assert made.targets == pytest.approx({1: 4.0 - 0.9 * 2.0, 2: 5.0 - 0.9 * 2.0})
    count, costs = made.costs("pdd", 1, 5.0)
    # seed 1 is there after round 2, seed 2 never
    assert (count, costs["rounds"].mean, costs["seconds"].mean, costs["joules"].mean) == (1, 2.0, 6.0, 20.0)
    # node-00 twice and node-01 once of four boards: 9 / (4 * 5)
    assert made.jain("pdd", 1, 5.0).mean == pytest.approx(9 / 20)
    assert made.jain("fixed", 1, 5.0).mean == pytest.approx(1 / 4)
    print_tables(made)
    printed = capsys.readouterr().out
    assert "1 of 2" in printed
    assert "0.6703" in printed
    write_figure([made], tmp_path / "figure.svg")
    assert ElementTree.parse(tmp_path / "figure.svg").getroot().tag.endswith("svg")


def test_a_figure_puts_points_where_they_belong() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0])
    straight = Line("power", x, 10.0**x, 10.0**x / 2, 10.0**x * 2)
    missing = Line("gap", x, np.array([1.0, math.nan, 4.0, 8.0]))
    root = ElementTree.fromstring(figure("A & B", [[Panel("K < 2", "x", "y", [straight, missing], log=True)]]))
    assert "A & B" in [node.text for node in root.iter() if node.tag.endswith("text")]
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    assert len(circles) == 7, "what is not a number is left out"
    # on a logarithmic axis powers of ten lie on a straight line
    heights = np.array([float(node.get("cy", "nan")) for node in circles[:4]])
    assert np.ptp(np.diff(heights)) < 0.2
    assert heights[0] > heights[-1]


def test_a_store_is_plain_text(asked: list[Cell], tmp_path: Path) -> None:
    run_campaign([cell("one", 1)], tmp_path / "s.jsonl", say=lambda text: None)
    [line] = (tmp_path / "s.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert kept["cell"] == {"label": "one", "preset": "quickstart", "overrides": ["rounds=1"], "seed": 0}
    assert len(kept["key"]) == 64
