"""Reading data sets, and the sentence a user gets where one cannot be read."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from nodes import corpus, data
from testbed.core.errors import ConfigError
from testbed.core.specs import DataSpec, PartitionSpec

SHARED = Path(os.environ.get("TESTBED_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROWS = [{"text": f"row number {index}", "label": index % 4, "source": f"s{index % 3}"} for index in range(60)]


def write_lines(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def texts(rows: list[data.Row]) -> list[str]:
    return [row["text"] for row in rows]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_folder_with_splits(tmp_path: Path, suffix: str) -> None:
    write_lines(tmp_path / f"train{suffix}", ROWS[:50])
    write_lines(tmp_path / f"validation{suffix}", ROWS[50:])
    train, test = data.read(DataSpec(source=str(tmp_path), test="validation"))
    assert texts(train) == [row["text"] for row in ROWS[:50]]
    assert texts(test) == [row["text"] for row in ROWS[50:]]


def test_single_file_is_divided_by_content(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "all.jsonl")
    train, test = data.read(DataSpec(source=str(path)))
    assert sorted(texts(train) + texts(test)) == sorted(str(row["text"]) for row in ROWS)
    assert 0 < len(test) < 20
    shuffled = write_lines(tmp_path / "other.jsonl", ROWS[::-1])
    assert set(texts(data.read(DataSpec(source=str(shuffled)))[1])) == set(texts(test))


def test_csv_and_quoted_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('text,label\n"two\nlines",1\nplain,0\n')
    (tmp_path / "test.csv").write_text("text,label\nheld out,1\n")
    train, test = data.read(DataSpec(source=str(tmp_path)))
    assert texts(train) == ["two\nlines", "plain"]
    assert texts(test) == ["held out"]


def test_json_list_and_line_separator_inside_a_string(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(ROWS))
    write_lines(tmp_path / "test.jsonl", [{"text": "one\u2028row"}])
    train, test = data.read(DataSpec(source=str(tmp_path)))
    assert len(train) == len(ROWS)
    assert texts(test) == ["one\u2028row"]


@pytest.mark.parametrize(("line", "what"), [('{"text": ', "not a JSON object"), ("[1, 2]", "a list instead")])
def test_malformed_line_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(ConfigError, match=f"line 3 .*{what}") as caught:
        data.read(DataSpec(source=str(path)))
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_csv_line_with_too_few_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("text,label\nfine,1\nshort\n")
    with pytest.raises(ConfigError, match="line 3 has not as many columns"):
        data.read(DataSpec(source=str(tmp_path / "all.csv")))


def test_broken_gzip(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="cannot be read"):
        data.read(DataSpec(source=str(tmp_path / "all.jsonl.gz")))


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "missing.jsonl"])
def test_missing_file(source: str) -> None:
    with pytest.raises(ConfigError, match="does not exist on this machine") as caught:
        data.read(DataSpec(source=source))
    assert caught.value.key == "data.source"


def test_folder_without_split_lists_what_is_there(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl")
    with pytest.raises(ConfigError, match=r"no test\.jsonl.*it holds train\.jsonl"):
        data.read(DataSpec(source=str(tmp_path)))


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "hub_may_answer", lambda: False)
    with pytest.raises(ConfigError, match="nor can the Hugging Face hub be reached") as caught:
        data.read(DataSpec(source="openai/gsm8k:main"))
    assert "HF_HUB_OFFLINE=1" in str(caught.value)


def test_datasets_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table.select(range(5))}).save_to_disk(str(tmp_path / "both"))
    train, test = data.read(DataSpec(source=str(tmp_path / "both")))
    assert (len(train), len(test)) == (60, 5)
    assert train[0].values == ROWS[0]
    with pytest.raises(ConfigError, match="no split 'validation'; there are 'train', 'test'"):
        data.read(DataSpec(source=str(tmp_path / "both"), test="validation"))
    table.save_to_disk(str(tmp_path / "one"))
    train, test = data.read(DataSpec(source=str(tmp_path / "one")))
    assert len(train) + len(test) == 60


def test_load_draws_and_deals_the_same_rows_everywhere(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl")
    write_lines(tmp_path / "test.jsonl", ROWS[:9])
    spec = DataSpec(source=str(tmp_path), max_train=40, max_test=5, partition=PartitionSpec(kind="label"))
    first, second = data.load(spec, 4, seed=3), data.load(spec, 4, seed=3)
    assert first.train == second.train
    assert first.test == second.test
    assert all(np.array_equal(a, b) for a, b in zip(first.shares, second.shares, strict=True))
    assert (len(first.train), len(first.test)) == (40, 5)
    assert data.load(spec, 4, seed=4).train != first.train


def test_label_and_source_columns_drive_the_partition(tmp_path: Path) -> None:
    rows = [{"instruction": "i", "response": "r", "category": f"c{index % 2}"} for index in range(20)]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "test.jsonl", rows[:2])
    spec = DataSpec(
        source=str(tmp_path),
        template="dolly",
        fields={"source": "category"},
        partition=PartitionSpec(kind="source"),
    )
    shares = data.load(spec, 2, seed=0).shares
    assert sorted(tuple(share % 2) for share in shares) == [(0,) * 10, (1,) * 10]
    with pytest.raises(ConfigError, match="needs a source for every row"):
        data.load(spec.model_copy(update={"fields": {}}), 2, seed=0)


def test_builtin_docstrings() -> None:
    train, test = corpus.shifted()
    assert len(train) > 8000
    assert len(test) > 800
    # no text and no docstring in both splits
    assert not {passage.text for passage in train} & {passage.text for passage in test}
    assert not {passage.name for passage in train} & {passage.name for passage in test}
    assert len({passage.text for passage in train}) == len(train)
    for split in (train, test):
        counts = np.bincount([passage.label for passage in split], minlength=len(corpus.TOPICS))
        assert counts.min() >= 10
        assert all(80 <= len(passage.text) <= 480 for passage in split)
    loaded = data.load(DataSpec(template="topic", max_train=100, max_test=20), 5, seed=0)
    assert loaded.train[0].label_words == tuple(f" {name}" for name, _ in corpus.TOPICS)


def test_unknown_builtin() -> None:
    with pytest.raises(ConfigError, match="unknown built-in data"):
        data.read(DataSpec(source="builtin:poems"))


@pytest.mark.parametrize(
    ("name", "rows"),
    [("gsm8k", (7473, 1319)), ("dolly", (5000, 1000)), ("preference", (1221, 311)), ("sst2", (20000, 872))],
)
def test_real_folders(name: str, rows: tuple[int, int]) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not here")
    train, test = data.read(DataSpec(source=str(SHARED / name)))
    assert (len(train), len(test)) == rows
