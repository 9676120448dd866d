"""Experiment and bench files that are good, and how their content is resolved."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path

import pytest

from testbed.core.errors import ConfigError, ConfigErrors
from testbed.core.units import dbm_to_w
from testbed.engine.config import (
    ExperimentSpec,
    build_scheme,
    check_options,
    config_sha256,
    load_bench,
    load_experiment,
    require_local_files,
)
from testbed.engine.config_schema import config_schema
from testbed.engine.overrides import parse_value
from testbed.engine.plain_words import toml_value
from testbed.engine.preset_files import preset_file, preset_names
from testbed.engine.toml_files import line_numbers
from testbed.schemes import SCHEMES

SCHEME_FILE = '''
from testbed.core.scheme import Scheme

class Sleepy(Scheme[int]):
    """Does nothing."""

    naps: int = 3

    def start(self, fleet, adapter):
        return 0

    def round(self, state, rng):
        return state
        yield
'''


@pytest.mark.parametrize("name", preset_names("experiment"))
def test_every_experiment_preset_loads(name: str) -> None:
    loaded = load_experiment(name)
    assert loaded.spec.rounds >= 1
    assert type(loaded.scheme).__name__
    assert loaded.file == preset_file(name)


@pytest.mark.parametrize("name", preset_names("bench"))
def test_every_bench_preset_loads(name: str) -> None:
    assert load_bench(name).name == name


def test_the_tabletop_is_as_described() -> None:
    bench = load_bench("tabletop")
    assert len(bench.node_names) == 8
    assert bench.movable
    assert len(bench.array.antennas) == 4
    side_m = bench.array.region_m[0][1]
    assert side_m == pytest.approx(3 * bench.wavelength_m, rel=0.03)
    assert bench.array.min_spacing_m == pytest.approx(bench.wavelength_m / 2, rel=0.01)


def test_fixed_is_the_tabletop_without_stages() -> None:
    tabletop, fixed = load_bench("tabletop").model_dump(), load_bench("fixed").model_dump()
    for antenna in tabletop["array"]["antennas"]:
        antenna["stage"] = None
    assert {**tabletop, "name": "fixed"} == fixed


def test_the_resolved_experiment_holds_every_parameter_of_the_scheme(experiment_file: Path) -> None:
    loaded = load_experiment(experiment_file)
    assert loaded.spec.scheme.parameters == loaded.scheme.model_dump(mode="json")
    again = ExperimentSpec.model_validate(json.loads(json.dumps(loaded.spec.model_dump(mode="json"))))
    assert again == loaded.spec
    assert build_scheme(again.scheme) == loaded.scheme


def test_overrides_are_toml_values_and_bare_words_are_text(experiment_file: Path) -> None:
    changes = [
        "training.local_steps=4",
        "training.learning_rate=5e-4",
        'lora.targets=["k_proj"]',
        "data.partition.kind=iid",
        "name=2024",
        "audit=false",
    ]
    spec = load_experiment(experiment_file, changes).spec
    assert spec.training.learning_rate == 5e-4
    assert spec.lora.targets == ("k_proj",)
    assert spec.name == "2024"
    assert spec.audit is False


def test_an_empty_override_removes_a_key(experiment_file: Path) -> None:
    changes = ["training.local_steps=3", "training.local_epochs=1", "training.local_steps="]
    training = load_experiment(experiment_file, changes).spec.training
    assert (training.local_steps, training.local_epochs) == (None, 1)


def test_overrides_reach_the_bench(experiment_file: Path) -> None:
    changes = ["bench.nodes.0.count=3", "bench.world.temperature_k=0", "bench.name=quiet"]
    bench = load_experiment(experiment_file, changes).bench
    assert (bench.name, len(bench.node_names), bench.world.temperature_k) == ("quiet", 3, 0.0)


def test_seed_and_bench_options_win_over_the_file(experiment_file: Path) -> None:
    loaded = load_experiment(experiment_file, ["seed=3"], seed=7, bench="fixed")
    assert loaded.spec.seed == 7
    assert loaded.spec.bench == loaded.bench.name == "fixed"


def test_a_bench_file_is_found_beside_its_experiment(tmp_path: Path, experiment_text: str) -> None:
    (tmp_path / "mine.toml").write_text(preset_file("fixed", "bench").read_text())
    experiment = tmp_path / "experiment.toml"
    experiment.write_text('bench = "mine.toml"\n' + experiment_text)
    loaded = load_experiment(experiment)
    assert loaded.spec.bench == str((tmp_path / "mine.toml").resolve())


def test_paths_beside_the_experiment_become_absolute_and_names_stay(tmp_path: Path, experiment_text: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(experiment_text + '[data]\nsource = "rows.jsonl"\n[model]\nbase = "owner/model"\n')
    loaded = load_experiment(experiment)
    assert loaded.spec.data.source == str((tmp_path / "rows.jsonl").resolve())
    assert loaded.spec.model.base == "owner/model"
    require_local_files(loaded)


def test_paths_that_lead_nowhere_are_refused(experiment_file: Path) -> None:
    loaded = load_experiment(experiment_file, ["data.source=./nowhere", "model.base=/no/model"])
    with pytest.raises(ConfigErrors) as caught:
        require_local_files(loaded)
    assert [error.key for error in caught.value.errors] == ["model.base", "data.source"]


def test_a_scheme_of_ones_own_is_a_file_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text(SCHEME_FILE)
    experiment = tmp_path / "experiment.toml"
    experiment.write_text('name = "nap"\nrounds = 1\n[scheme]\nname = "sleepy.py:Sleepy"\nnaps = 4\n')
    loaded = load_experiment(experiment)
    assert loaded.spec.scheme.name == f"{(tmp_path / 'sleepy.py').resolve()}:Sleepy"
    assert build_scheme(loaded.spec.scheme).model_dump() == {"naps": 4}


def test_the_fingerprint_depends_on_content_not_on_where_the_bench_lies(tmp_path: Path, experiment_file: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_text(preset_file("tabletop", "bench").read_text())
    original, copied = load_experiment(experiment_file), load_experiment(experiment_file, bench=str(copy))
    other = load_experiment(experiment_file, ["bench.world.num_paths=7"])
    sha = config_sha256(original.spec, original.bench)
    assert len(sha) == 64
    assert sha == config_sha256(copied.spec, copied.bench)
    assert sha != config_sha256(other.spec, other.bench)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path, experiment_text: str) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + experiment_text.replace("\n", "\r\n").encode())
    assert load_experiment(path).spec.name == "short"


def test_the_schema_describes_every_scheme_and_both_kinds_of_file() -> None:
    schema = config_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert {reference["$ref"] for reference in schema["anyOf"]} == {"#/$defs/ExperimentSpec", "#/$defs/BenchSpec"}
    for name in SCHEMES:
        assert schema["$defs"][f"scheme-{name}"]["properties"]["name"]["const"] == name
    references = set(_references(schema))
    assert all(reference.removeprefix("#/$defs/") in schema["$defs"] for reference in references)


def _references(part: object) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [one for value in part.values() for one in _references(value)]
    if isinstance(part, list):
        return [one for value in part for one in _references(value)]
    return []


def test_options_of_a_command_are_checked_like_a_file() -> None:
    from testbed.core.specs import LoraSpec

    assert check_options(LoraSpec, ["rank=4"], {"alpha": 2.0}) == LoraSpec(rank=4, alpha=2.0)
    with pytest.raises(ConfigError, match="--set rnk=4: unknown key"):
        check_options(LoraSpec, ["rnk=4"], {})


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("true", True), ("word", "word"), ('"3"', "3"), ("[1, 2]", [1, 2]), ("", None),
     ("a = b", "a = b"), ("1\nother = 2", "1\nother = 2"), ("[1, ", "[1, ")],
)  # fmt: skip
def test_values_on_the_command_line(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_lines_of_keys_are_found() -> None:
    text = textwrap.dedent("""\
        # comment
        name = "x"
        a.b = 1
        [table]
        key = [
          1,
        ]
        [[list]]
        first = 1
        [[list]]
        first = 2
        [list.inside]
        deep = 3
        "quoted key" = 4
        """)
    lines = line_numbers(text)
    assert lines[("name",)] == 2
    assert lines[("a", "b")] == 3
    assert lines[("table", "key")] == 5
    assert lines[("list", 0, "first")] == 9
    assert lines[("list", 1, "first")] == 11
    assert lines[("list", 1, "inside", "deep")] == 13
    assert lines[("list", 1, "inside", "quoted key")] == 14


def test_toml_values_are_what_tomllib_reads() -> None:
    import tomllib

    values = {"a": 1, "b": [1.5, 2e9], "c": {"d": 'text "quoted"'}, "e": True, "f": 2.44e9, "g": 0.1 + 0.2}
    assert tomllib.loads(f"v = {toml_value(values)}")["v"] == values


def test_the_node_power_of_the_tabletop_is_ten_milliwatts() -> None:
    assert math.isclose(dbm_to_w(load_bench("tabletop").boards[0].max_power_dbm), 0.01)


def test_a_file_that_extends_another_changes_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'extends = "quickstart"\nname = "mine"\n[training]\nlocal_steps = 3\n[scheme]\nvisits = 2\n'
    )
    (tmp_path / "votes.toml").write_text('extends = "mine.toml"\nname = "votes"\n[scheme]\nname = "obda"\n')
    mine, base = load_experiment(tmp_path / "mine.toml"), load_experiment("quickstart")
    kept = {"name": "mine", "training": {**base.spec.training.model_dump(), "local_steps": 3}}
    changed = {**base.spec.model_dump(), **kept, "scheme": {**base.spec.scheme.model_dump(), "visits": 2}}
    assert mine.spec.model_dump() == changed
    votes = load_experiment(tmp_path / "votes.toml")
    assert votes.spec.training.local_steps == 3
    assert "visits" not in votes.spec.scheme.parameters, "a scheme of another name takes no parameters over"
    (tmp_path / "bench.toml").write_text('extends = "tabletop"\nname = "long"\nroom_m = [9.0, 5.0, 3.0]\n')
    assert load_bench(tmp_path / "bench.toml").array == load_bench("tabletop").array
    assert load_bench("ten").array == load_bench("tabletop").array
    assert len(load_bench("ten").boards) == 10


def test_a_fault_in_an_extended_file_is_named_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('name = "base"\nrounds = 0\nbench = "nowhere"\n[scheme]\nname = "fedavg"\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\nname = "mine"\n\n[scheme]\nlink = "wire"\n')
    with pytest.raises(ConfigErrors) as caught:
        load_experiment(tmp_path / "mine.toml")
    places = {(error.key, Path(str(error.file)).name) for error in caught.value.errors}
    assert places == {("rounds", "base.toml:2"), ("scheme.link", "mine.toml:5"), ("bench", "base.toml:3")}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ('"mine.toml"', "extends itself by way of this file"),
        ('"other.toml"', "extends itself by way of this file"),
        ('"quickstrat"', "did you mean quickstart"),
        ("3", "extends names no file"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, named: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(f'name = "mine"\nextends = {named}\n')
    (tmp_path / "other.toml").write_text('name = "other"\nextends = "mine.toml"\n')
    with pytest.raises(ConfigError, match=message) as caught:
        load_experiment(tmp_path / "mine.toml")
    assert caught.value.key == "extends"
