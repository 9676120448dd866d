"""Instance files of MA-OTA: presets that solve, keys that are explained, and what does not go together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from testbed.core.errors import ConfigError
from testbed.engine.config import load_instance
from testbed.engine.key_table import key_table
from testbed.problems.instance import Answer
from testbed.problems.ma_ota.instance import MaOtaInstance
from testbed.problems.multicast import pair_gain

PRESETS = ["ma-ota-line", "ma-ota-square", "ma-ota-budgets"]
QUICK = ["candidates=1", "num_starts=2"]


def load(name: str | Path, *overrides: str) -> MaOtaInstance:
    return load_instance(MaOtaInstance, name, overrides)


def solved(name: str, *overrides: str, method: str = "fixed") -> Answer:
    return load(name, *QUICK, *overrides).solve(method)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_an_answer_with_all_its_keys(name: str) -> None:
    instance = load(name, *QUICK)
    answer = instance.solve("sca")
    decided = json.loads(json.dumps(dict(answer.decisions), allow_nan=False))
    assert answer.solution.status == "stationary", answer.solution.message
    assert answer.solution.kkt_residual < 1e-4
    assert answer.solution.feasibility <= 1e-9
    count = len(decided["selected"])
    assert count == (instance.concurrency or count) > 0
    for key in ("batch_sizes", "cpu_hz", "power_w"):
        assert len(decided[key]) == count
    combiner = np.array(decided["combiner_re"]) + 1j * np.array(decided["combiner_im"])
    assert np.linalg.norm(combiner) == pytest.approx(1.0)
    positions_m = np.array(decided["positions_m"])
    assert positions_m.shape == (instance.num_antennas, 2)
    assert instance.aperture.violation_m(positions_m) <= 1e-9
    assert sum(decided["bound"].values()) == pytest.approx(answer.solution.value, rel=1e-9)
    rounds = decided["rounds"]
    assert instance.rounds.fine_tuning[0] <= rounds["fine_tuning"] <= instance.rounds.fine_tuning[1]
    assert instance.rounds.pre_training[0] <= rounds["pre_training"] <= instance.rounds.pre_training[1]
    assert decided["latency_s"] <= instance.budget.latency_s * (1 + 1e-9)
    assert answer.solution.value <= solved(name).solution.value * (1 + 1e-9), "the fixed array is one of the starts"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_explains_itself(name: str) -> None:
    path = Path(__file__).parents[2] / "testbed" / "presets" / "instances" / f"{name}.toml"
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert sum("#" in line for line in lines) >= 10
    assert max(len(line) for line in lines) <= 120


@pytest.mark.parametrize("method", MaOtaInstance.methods)
def test_every_method_solves_the_small_instance(method: str) -> None:
    answer = solved("ma-ota-line", method=method)
    assert answer.solution.found
    assert answer.decisions["selected"] == [0, 1]
    best = solved("ma-ota-line", method="pdd").solution.value
    assert answer.solution.value >= best * (1 - 1e-3)


def test_the_small_instance_is_within_half_a_percent_of_every_place_tried() -> None:
    answer = load("ma-ota-line").solve("pdd")
    paths, grid_m = load("ma-ota-line").deployment().auxiliary, np.linspace(0.0, 0.375, 601)
    heard = paths.channel(np.stack([grid_m, 0 * grid_m], axis=1))
    first, second = np.nonzero(grid_m[None] - grid_m[:, None] >= 0.0625)
    # [num_layouts, num_clients]
    norms = np.abs(heard[first]) ** 2 + np.abs(heard[second]) ** 2
    cross = np.abs(np.sum(np.conj(heard[[first, second], 0]) * heard[[first, second], 1], axis=0))
    best = float(pair_gain(norms[:, 0], norms[:, 1], cross).max())
    assert answer.decisions["gain"] >= 0.995 * best


def test_the_first_method_is_the_papers() -> None:
    assert MaOtaInstance.methods[0] == "pdd"


def test_the_budgets_preset_shows_what_it_is_about() -> None:
    answer = solved("ma-ota-budgets")
    assert 0 < answer.decisions["backoff"] < 1
    assert answer.decisions["energy_j"] == pytest.approx(150.0, rel=0.01)
    assert len(set(answer.decisions["cpu_hz"])) > 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["budget.latency_s=60", "rounds.fine_tuning=[30, 30]"],
            ("latency: 30 rounds need 69.94 s", "60 s are allowed"),
        ),
        (["budget.energy_j=1e-7"], ("energy: ", "1e-07 J are allowed")),
        (["client.max_energy_j=1e-9", "client.max_power_w=1e-3"], ("energy of one client: ", "1e-09 J are allowed")),
    ],
)
def test_what_no_plan_can_keep_is_an_answer_not_an_error(overrides: list[str], words: Sequence[str]) -> None:
    answer = solved("ma-ota-budgets", *overrides)
    assert answer.solution.status == "infeasible"
    assert answer.solution.feasibility > 0
    for word in words:
        assert word in answer.solution.message
    assert answer.decisions["selected"] == []
    assert math.isinf(answer.solution.value)


def test_a_channel_of_zero_is_named() -> None:
    answer = solved("ma-ota-line", "clients=[{paths=[[0.1, 0, 0, 0]]}, {paths=[[0.1, 0, 1, 0]]}]")
    assert answer.solution.status == "infeasible"
    assert "2 clients are to send at once, only 1 can be heard" in answer.solution.message


def test_identical_clients_are_served_alike() -> None:
    one = "{paths=[[0.3, 0, 1, 0], [-0.5, 0, 0.5, 0]]}"
    answer = solved("ma-ota-line", f"clients=[{one}, {one}]", method="pdd")
    assert answer.solution.status == "stationary"
    assert answer.decisions["batch_sizes"][0] == answer.decisions["batch_sizes"][1]
    np.testing.assert_allclose(answer.decisions["power_w"], 1e-3)


@pytest.mark.parametrize(
    ("name", "overrides", "key", "words"),
    [
        (
            "square",
            ["num_antennas=60"],
            "num_antennas",
            "60 antennas 0.0625 m apart do not fit on 0.375 m x 0.375 m, 49",
        ),
        ("square", ["concurrency=11"], "concurrency", "11 clients cannot send at once, there are 10"),
        ("square", ["participation=[1, 2]"], "participation", "10 counts"),
        ("square", ["noise_w=nan"], "noise_w", "finite"),
        ("square", ["bound.pl=50"], "bound.pl", "above smoothness = 10"),
        ("square", ["bound.step_size=1.0"], "bound.step_size", "above 1 / smoothness = 0.1"),
        ("square", ["rounds.fine_tuning=[9, 3]"], "rounds.fine_tuning", "[9, 3] is no range"),
        ("square", ["reading='clients'"], "client_antennas", "several"),
        ("square", ["clients=[{}, {}]"], "draw.num_clients", "10 clients are drawn, 2 are listed"),
        ("line", ["clients=[{paths=[[0.1, 0, nan, 0]]}]", "concurrency=1"], "clients", "finite"),
        ("line", ["clients=[{paths=[[0.9, 0.9, 1, 0]]}]", "concurrency=1"], "paths", "outside the unit circle"),
        ("line", ["clients=[{paths=[[0.1, 1]]}]", "concurrency=1"], "paths", "2 numbers"),
        ("line", ["clients=[{}, {}]"], "clients", "no channel"),
        ("line", ["clients=[]"], "clients", "there are none"),
        ("line", ["home_m=[[0, 0], [0.01, 0]]"], "home_m", "0.0525 m"),
        ("line", ["home_m=[[0, 0]]"], "home_m", "1 places for 2 antennas"),
        ("line", ["region_m=[0, 0]"], "region_m", "a line or an area"),
        ("line", ["reading='clients'", "client_antennas=2"], "clients", "departures"),
    ],
)
def test_what_does_not_go_together_is_an_error_with_its_key(
    name: str, overrides: list[str], key: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        load(f"ma-ota-{name}", *overrides)
    assert words in str(caught.value)
    assert "remedy: " in str(caught.value)


def test_clients_readings_and_seeds_make_a_difference() -> None:
    plain = solved("ma-ota-square", "reading='receive'")
    assert "downlink" not in plain.decisions
    beam = solved("ma-ota-square")
    assert beam.decisions["downlink"]["rate_bit_s"] > 0
    several = solved("ma-ota-square", "reading='clients'", "client_antennas=2", "fairness=0")
    beams = np.array(several.decisions["client_beams_re"]) + 1j * np.array(several.decisions["client_beams_im"])
    np.testing.assert_allclose(np.linalg.norm(beams, axis=1), 1.0)
    other = solved("ma-ota-square", "seed=9")
    assert other.solution.value != beam.solution.value
    assert solved("ma-ota-square").decisions == beam.decisions


def test_fairness_prefers_who_took_part_less() -> None:
    counts = [6, 2, 4, 4, 1, 7, 3, 4, 5, 4]
    strict = solved("ma-ota-square", "fairness=5")
    assert set(strict.decisions["selected"]) > {1, 4, 6}
    without = solved("ma-ota-square", "fairness=0")
    assert strict.decisions["jain"] >= without.decisions["jain"]
    after = np.array(counts, float)
    after[strict.decisions["selected"]] += 1
    assert strict.decisions["jain"] == pytest.approx(after.sum() ** 2 / (10 * after @ after))


def test_the_fixed_array_is_half_a_wave_and_centred() -> None:
    line = load("ma-ota-line").aperture.home_m
    np.testing.assert_allclose(line, [[0.15625, 0.0], [0.21875, 0.0]])
    rows = load("ma-ota-square", "num_antennas=9").aperture.home_m
    assert len(np.unique(rows[:, 1])) == 2
    assert load("ma-ota-square", "num_antennas=49").aperture.violation_m(
        load("ma-ota-square", "num_antennas=49").aperture.home_m
    ) == pytest.approx(0.0, abs=1e-12)


def test_every_key_has_a_meaning() -> None:
    table = key_table(MaOtaInstance.model_json_schema())
    keys = {row[0] for row in table}
    assert {
        "clients[].paths",
        "bound.wasserstein",
        "budget.latency_s",
        "rounds.fine_tuning",
        "motion.speed_m_s",
    } <= keys
    silent = [row[0] for row in table if not row[3]]
    assert not silent
