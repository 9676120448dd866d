"""`testbed solve`: every instance that ships is answered, as text and as JSON; what is wrong is said with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.cli import main
from testbed.cli.solve import instances_of
from testbed.core.backends import resolve
from testbed.engine.preset_files import preset_names
from testbed.problems import PROBLEMS
from testbed.report.answer import render_answer

Call = Callable[..., tuple[int, str, str]]
LONG_TERM = 0.05
"""Share by which a mean over a short horizon may lie above its long-term limit."""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def owner(instance: str) -> str:
    return next(system for system in sorted(PROBLEMS, key=len, reverse=True) if instance.startswith(f"{system}-"))


@pytest.mark.parametrize("instance", preset_names("instance"))
def test_every_instance_is_answered(call: Call, instance: str) -> None:
    code, out, err = call("solve", owner(instance), instance, "--json")
    assert code == 0, err
    answer = json.loads(out)
    keys = list(answer)
    assert keys[:2] == ["value", "status"]
    assert keys[-1] == "trace"
    if answer["status"] == "infeasible":
        assert answer["message"]
        assert answer["feasibility"] is None or answer["feasibility"] > 0
    else:
        assert answer["status"] in ("optimal", "stationary")
        assert answer["feasibility"] < (LONG_TERM if instance.endswith("horizon") else 1e-6)
        assert math.isfinite(answer["value"])


def test_movable_antennas_answer_with_the_promised_keys(call: Call) -> None:
    answer: dict[str, Any] = json.loads(call("solve", "ma-ota", "ma-ota-line", "--json")[1])
    promised = {
        "value", "status", "kkt_residual", "feasibility", "positions_m", "combiner_re", "combiner_im", "selected",
        "batch_sizes", "cpu_hz", "rounds", "trace",
    }  # fmt: skip
    assert promised <= set(answer)
    combiner = [complex(*pair) for pair in zip(answer["combiner_re"], answer["combiner_im"], strict=True)]
    assert sum(abs(weight) ** 2 for weight in combiner) == pytest.approx(1.0)
    fixed = json.loads(call("solve", "ma-ota", "ma-ota-line", "--method", "fixed", "--json")[1])
    assert answer["value"] < fixed["value"], "moving lowers the bound"
    assert answer["gain"] > fixed["gain"]


@pytest.mark.parametrize("system", sorted(PROBLEMS))
def test_the_schema_names_keys_methods_and_instances(call: Call, system: str) -> None:
    code, out, _ = call("solve", system, "--schema")
    assert code == 0
    for method in resolve(PROBLEMS[system]).methods:
        assert method in out
    assert len(instances_of(system)) == 3
    assert all(name in out for name in instances_of(system))
    assert max(map(len, out.splitlines())) < 160
    assert "properties" in json.loads(call("solve", system, "--schema", "--json")[1])


def test_what_is_wrong_is_said_with_its_place(call: Call, tmp_path: Path) -> None:
    assert "did you mean jcpba" in call("solve", "jcpb", "x")[2]
    assert "jcpba-cell" in call("solve", "jcpba")[2]
    assert "there is no method" not in call("solve", "ma-ota", "ma-ota-line", "--method", "pdd")[2]
    assert "'ppd'" in call("solve", "ma-ota", "ma-ota-line", "--method", "ppd")[2]
    code, _, err = call("solve", "ma-ota", "ma-ota-line", "--set", "num_antennas=0")
    assert code == 2
    assert "num_antennas" in err
    file = tmp_path / "mine.toml"
    file.write_text("num_antennas = 2\nwavelenght_m = 0.1\n")
    code, _, err = call("solve", "ma-ota", str(file))
    assert code == 2
    assert f"{file}:2: wavelenght_m: unknown key" in err
    assert "did you mean wavelength_m" in err


def test_lists_of_one_length_stand_side_by_side() -> None:
    text = render_answer(
        {
            "value": 1.0,
            "status": "optimal",
            "names": ["a", "b"],
            "shares": [0.25, 0.75],
            "nested": {"x": 3},
            "trace": [],
        }
    )
    lines = text.splitlines()
    assert "nested.x  3" in lines
    assert [line.split() for line in lines[-2:]] == [["0", "a", "0.25"], ["1", "b", "0.75"]]
