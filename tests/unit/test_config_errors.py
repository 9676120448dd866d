"""Bad experiment and bench files: every error names file, line and key, says what is wrong and how to mend it."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.core.errors import ConfigError, ConfigErrors
from testbed.engine.config import load_bench, load_experiment
from testbed.engine.preset_files import preset_file

HEAD = 'name = "a"\nrounds = 3\n'
SCHEME = '[scheme]\nname = "fedavg"\n'
JARGON = ("pydantic", "validation", "value_error", "Input should", "loc", "NoneType", "dict", "tuple", "Traceback")


def errors_of(path: Path | str, changes: list[str] | None = None, seed: int | None = None) -> list[ConfigError]:
    """What loading that file complains about; each complaint is checked for plain words."""
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, changes or [], seed)
    errors = list(caught.value.errors) if isinstance(caught.value, ConfigErrors) else [caught.value]
    for error in errors:
        assert error.remedy, f"no remedy: {error}"
        words = f"{error.message} {error.remedy}"
        assert not [word for word in JARGON if word in words.split()], words
        assert "pydantic" not in words.lower()
    return errors


@pytest.fixture
def written(tmp_path: Path):
    """Write an experiment file and return its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "bad.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


BAD_VALUES = [
    # content, key, line, part of the message, part of the remedy
    ('name = "a"\nrounds = 0\n' + SCHEME, "rounds", 2, "0 is out of range", "at least 1"),
    ('name = "a"\nrounds = "5"\n' + SCHEME, "rounds", 2, 'must be a whole number, not "5"', "rounds = 5"),
    ('name = "a"\nrounds = 2.5\n' + SCHEME, "rounds", 2, "must be a whole number, not 2.5", "rounds = 5"),
    ('name = "a"\nrounds = true\n' + SCHEME, "rounds", 2, "must be a whole number, not true", "rounds = 5"),
    ("name = 3\nrounds = 3\n" + SCHEME, "name", 1, "must be text in quotes, not 3", 'name = "my-experiment"'),
    ('name = ""\nrounds = 3\n' + SCHEME, "name", 1, "has 0 characters, needs at least 1", "name ="),
    ("rounds = 3\n" + SCHEME, "name", None, "missing", 'name = "my-experiment"'),
    ('name = "a"\n' + SCHEME, "rounds", None, "missing", "rounds = 5"),
    (HEAD, "scheme", None, "missing", 'scheme = { name = "ota-fedavg" }'),
    (HEAD + "[scheme]\n", "scheme.name", 3, "missing", 'name = "ota-fedavg"'),
    (HEAD + 'scheme = "fedavg"\n', "scheme", 3, 'must be a table, not "fedavg"', "scheme = {"),
    (HEAD + "[scheme]\nname = 3\n", "scheme.name", 4, "must be text", '"ota-fedavg"'),
    (HEAD + "nmae = 3\n" + SCHEME, "nmae", 3, "unknown key", "did you mean name?"),
    (HEAD + "[lora]\nrnk = 3\n" + SCHEME, "lora.rnk", 4, "unknown key", "did you mean rank?"),
    (HEAD + "[lora]\nrank = 2000\n" + SCHEME, "lora.rank", 4, "2000 is out of range", "at least 1 and at most 1024"),
    (HEAD + "[lora]\ndropout = 1.0\n" + SCHEME, "lora.dropout", 4, "out of range", "at least 0 and below 1"),
    (HEAD + "[lora]\nalpha = nan\n" + SCHEME, "lora.alpha", 4, "finite number, not nan", "alpha = 16"),
    (HEAD + "[lora]\nalpha = inf\n" + SCHEME, "lora.alpha", 4, "finite number, not inf", "alpha = 16"),
    (HEAD + "[lora]\ntargets = []\n" + SCHEME, "lora.targets", 4, "0 entries, needs at least 1", '["q_proj"'),
    (HEAD + '[lora]\ntargets = "q"\n' + SCHEME, "lora.targets", 4, "must be a list", '["q_proj"'),
    (HEAD + "[lora]\ntargets = [1]\n" + SCHEME, "lora.targets.0", 4, "must be text", '"text"'),
    (HEAD + "[data]\ntemplate = 'gsm'\n" + SCHEME, "data.template", 4, "not one of the choices", "mean gsm8k?"),
    (HEAD + "[data.partition]\nkind = 'IID'\n" + SCHEME, "data.partition.kind", 4, "choices", "did you mean iid?"),
    (HEAD + "[data.fields]\nquestion = 3\n" + SCHEME, "data.fields.question", 4, "must be text", '"text"'),
    (
        HEAD + "[training]\nlocal_steps = 1\nlocal_epochs = 1\n" + SCHEME,
        "training",
        3,
        "cannot both be given",
        "leave one out",
    ),
    (HEAD + "[budget]\nlatency_s = 0\n" + SCHEME, "budget.latency_s", 4, "out of range", "above 0"),
    (HEAD + SCHEME + "num_pilots = 0\n", "scheme.num_pilots", 5, "out of range", "at least 2"),
    (HEAD + SCHEME + "pilots = 4\n", "scheme.pilots", 5, "unknown key", "did you mean num_pilots?"),
    (HEAD + '[scheme]\nname = "fedavgg"\n', "scheme.name", 4, "no scheme 'fedavgg'", "did you mean fedavg?"),
    (HEAD + '[scheme]\nname = "no.py:X"\n', "scheme.name", 4, "no file no.py", "path"),
    (HEAD + '[scheme]\nname = "no_such:X"\n', "scheme.name", 4, "no module 'no_such'", "spelling"),
    (HEAD + '[scheme]\nname = "json:loads"\n', "scheme.name", 4, "is no scheme", "schemes"),
    (HEAD + '[scheme]\nname = "json:Absent"\n', "scheme.name", 4, "does not exist", "schemes"),
    (HEAD + 'bench = "tabeltop"\n' + SCHEME, "bench", 3, "no bench preset 'tabeltop'", "did you mean tabletop?"),
    (HEAD + 'bench = "no/such.toml"\n' + SCHEME, "bench", 3, "no file no/such.toml", "preset"),
]


@pytest.mark.parametrize(("content", "key", "line", "message", "remedy"), BAD_VALUES)
def test_a_bad_value_is_explained(written, content: str, key: str, line: int | None, message: str, remedy: str) -> None:
    path = written(content)
    (error,) = errors_of(path)
    assert error.key == key
    assert error.file == (f"{path}:{line}" if line else str(path))
    assert message in error.message
    assert error.remedy
    assert remedy in error.remedy


BAD_FILES = [
    (b"", "empty", "preset"),
    (b"# only a comment\n", "empty", "preset"),
    (b"name = \xff\n", "byte 8 is not UTF-8", "UTF-8"),
    (b"rounds = three\n", "line 1, column 10", 'rounds = "three"'),
    (b"name: a\n", "line 1, column 5", "equals sign"),
    (b"rounds =\n", "line 1", "value after the equals sign"),
    (b'x = 1\nname = "a\n', "line 2", "close the quotes"),
    (b"[scheme\n", "line 1", "close the bracket"),
    (b"x = 1\nx = 2\n", "line 2", "once"),
    (b"[a]\n[a]\n", "line 2", "once"),
    (b"x = [1,\n", "end of the file", "key = value"),
    (b"x = " + b"[" * 5000, "", ""),
]


@pytest.mark.parametrize(("content", "message", "remedy"), BAD_FILES)
def test_a_malformed_file_is_explained(written, content: bytes, message: str, remedy: str) -> None:
    path = written(content)
    (error,) = errors_of(path)
    assert error.file is not None
    assert error.file.startswith(str(path))
    assert message in error.message
    assert error.remedy
    assert remedy in error.remedy


def test_all_errors_of_a_file_come_at_once(written) -> None:
    content = (
        'rounds = 0\nbench = "nope"\nfoo = 1\n[lora]\nrank = 0\n[training]\nlearning_rate = -1\n[scheme]\nname = "x"\n'
    )
    keys = {error.key for error in errors_of(written(content))}
    assert keys == {"name", "rounds", "bench", "foo", "lora.rank", "training.learning_rate", "scheme.name"}


def test_experiment_and_bench_errors_come_together(written) -> None:
    keys = {error.key for error in errors_of(written("rounds = 3\n" + SCHEME), ["bench.nodes.0.count=0"])}
    assert keys == {"name", "--set bench.nodes.0.count=0"}


@pytest.mark.parametrize("name", ["quikstart", "quickstart.toml", "./quickstart"])
def test_an_unknown_experiment_lists_the_presets(name: str) -> None:
    (error,) = errors_of(name)
    assert error.remedy
    assert "did you mean quickstart?" in error.remedy


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path)
    assert "folder" in error.message


@pytest.mark.parametrize("name", ["", " ", "a\0b", "x" * 5000])
def test_odd_names_are_refused(name: str) -> None:
    assert errors_of(name)


BAD_CHANGES = [
    ("rounds", "not key=value"),
    ("=3", "not key=value"),
    ("a..b=3", "not key=value"),
    ("rounds=0", "out of range"),
    ("rounds=many", "whole number"),
    ("rounds.x=3", "nothing inside"),
    ("lora.rank.x.y=3", "nothing inside"),
    ("training.lr=3", "unknown key"),
    ("scheme.num_pilots=-1", "out of range"),
    ("scheme.name=ota", "no scheme"),
    ("bench=tabel", "no bench preset"),
    ("bench.nodes.5.count=2", "no entry 5"),
    ("bench.nodes.x=2", "no entry x"),
    ("bench.carier_hz=2.4e9", "unknown key"),
    ("data.template=nope", "choices"),
    ("lora.alpha=nan", "finite"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CHANGES)
def test_a_bad_change_names_the_option(written, change: str, message: str) -> None:
    (error,) = errors_of(written(HEAD + "[lora]\nrank = 4\n" + SCHEME), [change])
    assert error.key == f"--set {change}"
    assert error.file is None
    assert message in error.message


def test_a_negative_seed_names_the_option(written) -> None:
    (error,) = errors_of(written(HEAD + SCHEME), seed=-1)
    assert error.key == "--seed"


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ("carrier_hz=5e9", "carrier_hz", "outside the allowed bands"),
        ("nodes.0.max_power_dbm=30", "nodes.0.max_power_dbm", "exceeds limits.max_power_dbm"),
        ("array.min_spacing_m=0.2", "array", "two antennas stand"),
        ("array.region_m=[[0, 0.1], [0, 0.375]]", "array.antennas.1.home_m", "outside the region"),
        ("array.axes=[[1,0,0],[1,0,0]]", "array", "orthonormal"),
        ("waveform.num_active=193", "waveform", "even"),
        ("nodes.0.position_m=[1,1,1]", "nodes.0.position_m", "cannot stand at one point"),
        ("nodes.0.name=board", "nodes.0.name", "pattern"),
    ],
)
def test_a_bench_that_contradicts_itself_is_explained(change: str, key: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_bench("tabletop", overrides=[change])
    (error,) = caught.value.errors
    assert error.key is not None
    assert error.key.startswith((key, f"--set {key}"))
    assert change in error.key or error.key == key
    assert message in error.message
    assert error.remedy


def test_a_scheme_file_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "failing.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "half.py").write_text(
        "from testbed.core.scheme import Scheme\nclass Half(Scheme[int]):\n    x: int = 1\n"
    )
    experiment = tmp_path / "experiment.toml"
    for name, message in (
        ("broken.py:X", "line 1"),
        ("failing.py:X", "no_such_module"),
        ("half.py:Half", "not complete"),
    ):
        experiment.write_text(f'{HEAD}[scheme]\nname = "{name}"\n')
        (error,) = errors_of(experiment)
        assert error.key == "scheme.name"
        assert message in error.message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=string.printable, max_size=80))
def test_no_text_crashes_the_loader(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.toml"
    path.write_text(text, encoding="utf-8")
    assert errors_of(path)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.floats() | st.text(string.ascii_letters, max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["rounds", "seed", "lora.targets", "lora.rank", "training", "data.partition", "scheme.name",
                            "bench.array.antennas", "bench.room_m", "bench.nodes", "bench.world.doppler_hz"]),
       value=_VALUES)  # fmt: skip
def test_any_value_loads_or_is_explained(tmp_path: Path, key: str, value: object) -> None:
    from testbed.engine.plain_words import toml_value

    path = tmp_path / "any.toml"
    path.write_text(HEAD + SCHEME)
    change = f"{key}={'' if value is None else toml_value(value)}"
    try:
        load_experiment(path, [change])
    except ConfigError:
        errors_of(path, [change])


def test_presets_are_valid_for_every_reader(tmp_path: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_bytes(preset_file("quickstart").read_bytes())
    assert load_experiment(copy).spec == load_experiment("quickstart").spec
