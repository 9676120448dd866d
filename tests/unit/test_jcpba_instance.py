"""`testbed solve jcpba`: the examples that ship, what they decide, and what a file may not say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.core.backends import resolve
from testbed.core.errors import ConfigError
from testbed.problems import PROBLEMS
from testbed.problems.jcpba.instance import JcpbaInstance

PRESETS = Path(__file__).parents[2] / "testbed" / "presets" / "instances"


def preset(name: str, **changes: Any) -> JcpbaInstance:
    return JcpbaInstance.model_validate({**tomllib.loads((PRESETS / f"{name}.toml").read_text()), **changes})


def two(**changes: Any) -> dict[str, Any]:
    return {"scalable_s": 3.0, "payload_bits": 1e6, "gamma_hz": 1e6, **changes}


def test_it_is_listed() -> None:
    assert resolve(PROBLEMS["jcpba"]) is JcpbaInstance
    assert JcpbaInstance.methods == ("joint", "bcd", "uniform", "none", "equal", "random", "brute")


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("jcpba-*.toml")))
def test_every_example_solves_and_can_be_printed(name: str) -> None:
    answer = preset(name).solve("joint")
    assert answer.solution.status in ("optimal", "stationary")
    assert len(json.loads(json.dumps(answer.decisions))["clients"]) >= 2


def test_two_clients_by_every_method() -> None:
    instance = preset("jcpba-two-clients")
    answers = {method: instance.solve(method) for method in instance.methods}
    value = {method: answer.solution.value for method, answer in answers.items()}
    # by nested scalar searches over plain formulas (tests.jcpba_cases.two_client_optimum)
    assert value["joint"] == pytest.approx(12.706822051612683, rel=1e-9)
    assert value["brute"] == pytest.approx(value["joint"], rel=1e-9)
    assert value["none"] == pytest.approx(18.0 + 16e6 / (5e5 * np.log2(1 + 400)))
    assert value["joint"] < value["bcd"] < value["uniform"] < value["none"]
    assert answers["bcd"].solution.status == "stalled"
    assert answers["bcd"].decisions["gap_to_joint"] == pytest.approx(value["bcd"] / value["joint"] - 1)
    assert answers["joint"].decisions["round_s_by_method"]["bcd"] == value["bcd"]
    told = answers["joint"].decisions["clients"]
    assert list(told) == ["near-and-slow", "far-and-fast"]
    assert told["near-and-slow"]["latency_s"] == pytest.approx(told["far-and-fast"]["latency_s"], rel=1e-12)
    assert sum(one["bandwidth_hz"] for one in told.values()) == pytest.approx(1e6)
    assert sum(one["pruning_ratio"] for one in told.values()) / 2 == pytest.approx(0.3)


def test_bandwidth_first_stalls_farther_off() -> None:
    first = preset("jcpba-cell").solve("bcd").decisions["gap_to_joint"]
    second = preset("jcpba-cell", first="bandwidth").solve("bcd").decisions["gap_to_joint"]
    assert 0 < first < second


def test_draws_are_those_of_the_seed() -> None:
    first, again = preset("jcpba-cell").costs(), preset("jcpba-cell").costs()
    np.testing.assert_array_equal(first.scalable_s, again.scalable_s)
    table = tomllib.loads((PRESETS / "jcpba-cell.toml").read_text())["draw"]
    moved = preset("jcpba-cell", draw={**table, "seed": 2}).costs()
    assert np.all(first.scalable_s != moved.scalable_s)
    assert np.all((first.scalable_s >= 8192 * 3.9e9 / 2e12) & (first.scalable_s <= 8192 * 3.9e9 / 2e11))


def test_a_missed_deadline_is_told_with_the_best_there_is() -> None:
    answer = preset("jcpba-cell", deadline_s=40.0).solve("joint")
    assert answer.solution.status == "infeasible"
    assert "40 s" in answer.solution.message
    assert answer.solution.value > 40
    assert "gap_to_joint" in answer.decisions


def test_a_target_too_close_leaves_no_budget() -> None:
    table = tomllib.loads((PRESETS / "jcpba-total.toml").read_text())
    short = preset("jcpba-total", objective="round", learning={**table["learning"], "rounds": 150})
    for method in ("joint", "bcd", "uniform", "none", "equal", "random", "brute"):
        answer = short.solve(method)
        assert answer.solution.status == "infeasible"
        assert "learning constraint" in answer.solution.message


def test_linear_rates_and_curves_may_be_written() -> None:
    client = {"scalable_s": 3.0, "payload_bits": 1e6, "efficiency": 2.0}
    curved = {**client, "curve": [[0, 0], [0.5, 0.1], [1, 1]]}
    instance = JcpbaInstance(bandwidth_hz=1e6, penalty_budget=0.1, clients=[client, curved])
    answer = instance.solve("joint")
    assert answer.solution.status == "optimal"
    assert answer.solution.value == pytest.approx(instance.solve("brute").solution.value, rel=1e-6)


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        ({}, "clients", "no clients"),
        ({"clients": [two()], "draw": {}}, "clients", "given twice"),
        ({"clients": [two(gamma_hz=None)]}, "clients.0", "gamma_hz or"),
        ({"clients": [two(efficiency=1.0)]}, "clients.0", "gamma_hz or"),
        ({"clients": [two(), two(gamma_hz=None, efficiency=1.0)]}, "clients.1", "others an efficiency"),
        ({"clients": [two(), two(payload_bits=0.0)]}, "clients.1", "sends nothing"),
        ({"clients": [two(), two(curve=[[0, 0], [0.5, 0.9], [1, 1]])]}, "clients.1.curve", "convex"),
        ({"clients": [two()], "penalty_budget": None}, "penalty_budget", "no learning constraint"),
        ({"clients": [two()], "objective": "total"}, "learning", "how fast learning"),
        ({"draw": {"payload_bits": 0}}, "draw.payload_bits", "send nothing"),
    ],
)
def test_keys_that_do_not_go_together_are_named(content: dict, key: str, words: str) -> None:
    instance = JcpbaInstance.model_validate({"bandwidth_hz": 1e6, "penalty_budget": 0.1, **content})
    with pytest.raises(ConfigError, match=words) as raised:
        instance.solve("joint")
    assert raised.value.key == key
    assert raised.value.remedy


def test_brute_force_knows_its_limit_and_the_bound_its_step() -> None:
    with pytest.raises(ConfigError, match="10 clients are too many"):
        preset("jcpba-cell").solve("brute")
    table = tomllib.loads((PRESETS / "jcpba-total.toml").read_text())["learning"]
    with pytest.raises(ConfigError, match="above 1 / smoothness"):
        preset("jcpba-total", learning={**table, "step": 20.0}).solve("joint")
    with pytest.raises(ConfigError, match="no method bcd"):
        preset("jcpba-total").solve("bcd")


@pytest.mark.parametrize(
    "change",
    [{"max_ratio": 1.0}, {"max_ratio": -0.1}, {"bandwidth_hz": 0.0}, {"draw": {"distance_m": [5.0, 2.0]}}, {"typo": 1}],
)
def test_ranges_are_checked_as_the_file_is_read(change: dict) -> None:
    with pytest.raises(ValueError, match="jcpba|Jcpba"):
        preset("jcpba-cell", **change)


def test_bounds_of_the_shares_are_kept_and_told() -> None:
    content = {"bandwidth_hz": 1e6, "penalty_budget": 0.3, "draw": {"num_clients": 6, "seed": 3}}
    free = JcpbaInstance.model_validate(content).solve("joint")
    bounded = JcpbaInstance.model_validate({**content, "least_share_hz": 1e5, "least_snr": 8.0})
    answer = bounded.solve("joint")
    assert answer.solution.status == "optimal"
    gamma_hz = JcpbaInstance.model_validate(content).costs().uplink.gamma_hz
    shares_hz = np.array([one["bandwidth_hz"] for one in answer.decisions["clients"].values()])
    assert np.all(shares_hz >= 1e5 * (1 - 1e-9))
    assert np.all(shares_hz <= np.maximum(gamma_hz / 8.0, 1e5) * (1 + 1e-9))
    assert np.any(shares_hz <= 1e5 * (1 + 1e-9))
    assert answer.solution.value > free.solution.value
    crowded = JcpbaInstance.model_validate({**content, "least_share_hz": 2e5}).solve("joint")
    assert crowded.solution.status == "infeasible"
    assert "200000 Hz more than the 1e+06 Hz there are" in crowded.solution.message


def test_a_fixed_efficiency_has_no_edge() -> None:
    clients = [{"scalable_s": 1.0, "payload_bits": 1e6, "efficiency": 2.0}]
    content = {"bandwidth_hz": 1e6, "penalty_budget": 0.3, "clients": clients, "least_snr": 2.0}
    with pytest.raises(ConfigError, match="knows no signal-to-noise ratio"):
        JcpbaInstance.model_validate(content).solve("joint")
