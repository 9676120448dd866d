"""Tables on the screen: figures, names, columns, comparisons."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.report.comparison import Recorded, differences, render_comparison
from testbed.report.orders_table import render_orders
from testbed.report.table import compact, decibels, number, render_plain

NAMES = [f"node-{index:02d}" for index in range(8)]


def row(index: int, **figures: Any) -> dict[str, Any]:
    """One row of `rounds.jsonl`."""
    base: dict[str, Any] = {
        "round": index,
        "loss": 4.5 - index / 10,
        "perplexity": 90.0 - index,
        "accuracy": None,
        "participants": NAMES if index else [],
        "missing": [],
        "train_loss": 4.0 if index else None,
        "aggregation_error": 0.01 if index else None,
        "expected_error": 0.011 if index else None,
        "air_time_s": 0.0123 if index else 0.0,
        "latency_s": 12.5,
        "energy_j": 30.25,
        "travel_m": 1.5 if index == 1 else 0.0,
        "clock_s": 12.5 * index,
        "scheme": {},
    }
    return {**base, **figures}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.01234, "0.0123"),
        (0.00042, "4e-04"),
        (1.23456, "1.235"),
        (-0.5, "-0.500"),
        (123.45, "123.5"),
        (12345.6, "12346"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("ratio", "text"), [(None, "-"), (0.0, "exact"), (0.01, "-20.0"), (2.0, "3.0")])
def test_errors_are_in_decibels(ratio: float | None, text: str) -> None:
    assert decibels(ratio) == text


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["node-00"], "node-00"),
        (["node-01", "node-00"], "node-00,01"),
        (NAMES, "node-00..07"),
        (["node-00", "node-02", "node-03", "node-04", "pi"], "node-00,02..04 pi"),
        (["a", "b"], "a b"),
    ],
)
def test_names_are_compact(names: list[str], text: str) -> None:
    assert compact(names) == text


def test_the_table_of_an_over_the_air_run() -> None:
    table = render_plain([row(0), row(1), row(2)])
    lines = table.splitlines()
    assert lines[0].split() == [
        "round",
        "loss",
        "perpl.",
        "nodes",
        "error",
        "expected",
        "air",
        "latency",
        "energy",
        "travel",
    ]
    assert lines[4].split() == ["1", "4.4000", "89.0", "8/8", "-20.0", "-19.6", "0.0123", "12.5", "30.2", "1.500"]
    assert lines[-1].split() == ["total", "0.0246", "37.5", "90.8", "1.500"]


def test_columns_that_say_nothing_are_left_out() -> None:
    table = render_plain([row(1, aggregation_error=None, expected_error=None)])
    assert "error" not in table
    assert "expected" not in table


def test_accuracy_takes_the_place_of_perplexity() -> None:
    table = render_plain([row(0, accuracy=0.5), row(1, accuracy=0.625)])
    assert "accuracy" in table
    assert "62.5" in table
    assert "perpl." not in table


def test_silent_and_chosen_nodes_are_named() -> None:
    table = render_plain([row(1), row(2, participants=NAMES[:7], missing=["node-07"]), row(3, participants=NAMES[:2])])
    assert "round 2: silent node-07" in table
    assert "round 3: took part node-00,01" in table
    assert "7/8" in table
    assert "2/8" in table


def test_rounds_that_were_not_scored_show_a_dash() -> None:
    assert render_plain([row(1, loss=None, perplexity=None)]).splitlines()[3].split()[:3] == ["1", "-", "-"]


def test_figures_of_the_scheme_stand_below() -> None:
    table = render_plain([row(1, scheme={"gain": 2.5, "ports": 32.0, "mode": "search"}), row(2)])
    assert table.splitlines()[-1].split() == ["1", "2.500", "32", "search"]


def test_a_table_of_no_rounds_is_no_error() -> None:
    assert render_plain([]).splitlines()[0].startswith("round")


@given(
    st.lists(st.fixed_dictionaries({"loss": st.none() | st.floats(0, 20), "energy_j": st.floats(0, 1e6)}), max_size=6)
)
def test_every_line_is_as_wide_as_its_rule(figures: list[dict[str, Any]]) -> None:
    lines = render_plain([row(index, **some) for index, some in enumerate(figures)]).splitlines()
    assert all(len(line) <= len(lines[2]) for line in lines)


def _recorded(label: str, error: float, loss: float, travel: float) -> Recorded:
    summary = {
        "loss_after": loss, "perplexity_after": 60.0, "accuracy_after": None, "air_time_s": 0.1, "latency_s": 60.0,
        "energy_j": 0.0, "travel_m": travel,
    }  # fmt: skip
    return Recorded(label, summary, [row(0), row(1, aggregation_error=error), row(2, aggregation_error=error)])


def test_a_comparison_says_what_moving_earns() -> None:
    text = render_comparison(_recorded("moving", 0.01, 4.2, 2.0), _recorded("fixed", 0.02, 4.3, 0.0))
    words = " ".join(text.split())
    assert "mean aggregation error dB -20.00 -16.99 -3.01" in words
    assert "moving aggregates with 3.0 dB less error and ends with a loss 0.1000 nats lower than fixed" in words
    assert "2.000 m more antenna travel" in words
    assert max(map(len, text.splitlines())) <= 80


def test_a_comparison_leaves_out_what_neither_has() -> None:
    names = {line.name for line in differences(_recorded("a", 0.01, 4, 0), _recorded("b", 0.01, 4, 0))}
    assert "accuracy after" not in names
    assert render_comparison(_recorded("a", 0.01, 4, 0), _recorded("b", 0.01, 4, 0)).count("\n") == len(names) + 2


def test_a_comparison_with_an_error_free_run() -> None:
    text = render_comparison(_recorded("air", 0.01, 4.2, 2.0), _recorded("wire", 0.0, 4.2, 0.0))
    assert " ".join(text.split()).count("mean aggregation error dB -20.00 - -") == 1


def test_orders_of_a_dry_run() -> None:
    step = {
        "index": 0, "round_index": 1, "order": "Move 4 antennas", "seconds": 2.5, "air_time_s": 0.0, "travel_m": 1.0,
        "joules": 30.0, "note": "times are estimates",
    }  # fmt: skip
    lines = render_orders([step, {**step, "index": 1}]).splitlines()
    assert lines[3].split() == ["0", "1", "Move", "4", "antennas", "2.500", "0", "1.000", "30.0"]
    assert lines[6].split() == ["total", "5.000", "0", "2.000", "60.0"]
    assert lines[-1] == "times are estimates"
