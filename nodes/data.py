"""Data sets: from a file, a folder, a hub or the built-in text to rows that a template understands."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nodes import corpus
from nodes.hub import hub_may_answer
from nodes.partition import dealt_alike, partition
from nodes.templates import TEMPLATES, Example, Row
from testbed.core.errors import ConfigError
from testbed.core.specs import DataSpec

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz")
_PARTITION_DRAW, _TRAIN_DRAW, _TEST_DRAW = 1, 2, 3
_TEST_PARTITION_DRAW = 6


@dataclass(frozen=True)
class Dataset:
    """Training and held-out examples, and which node holds which training rows.

    Attributes:
        train: training examples.
        test: held-out examples, not dealt to nodes.
        shares: one ascending array of training row numbers per node.
        test_shares: the same of held-out rows: each class is dealt as its training rows are.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    shares: tuple[np.ndarray, ...]
    test_shares: tuple[np.ndarray, ...] = ()


def load(spec: DataSpec, num_nodes: int, seed: int) -> Dataset:
    """Read the rows, fill the template, deal the training rows to the nodes.

    All draws come from `numpy.random.default_rng([seed, purpose])`, so every process gets the same result.

    Args:
        spec: source, template and partition.
        num_nodes: number of nodes of the experiment.
        seed: seed of the experiment.

    Raises:
        ConfigError: source, row, field or partition is not usable; names file and line.
    """
    train, test = read(spec)
    train = _draw(train, spec.max_train, np.random.default_rng([seed, _TRAIN_DRAW]))
    test = _draw(test, spec.max_test, np.random.default_rng([seed, _TEST_DRAW]))
    for rows, split in ((train, spec.train), (test, spec.test)):
        if not rows:
            raise ConfigError(
                f"split {split!r} has no rows", file=spec.source, key="data", remedy="give another source"
            )
    template = TEMPLATES[spec.template]
    examples, held_out = (tuple(template(row) for row in rows) for rows in (train, test))
    labels, test_labels = (
        [_class(row, example) for row, example in zip(rows, made, strict=True)]
        for rows, made in ((train, examples), (test, held_out))
    )
    sources, test_sources = ([row.get("source") for row in rows] for rows in (train, test))
    shares = partition(
        spec.partition,
        num_nodes,
        len(train),
        np.random.default_rng([seed, _PARTITION_DRAW]),
        labels=labels,
        sources=sources,
    )
    classes, test_classes = (sources, test_sources) if spec.partition.kind == "source" else (labels, test_labels)
    test_shares = dealt_alike(shares, classes, test_classes, np.random.default_rng([seed, _TEST_PARTITION_DRAW]))
    return Dataset(train=examples, test=held_out, shares=tuple(shares), test_shares=tuple(test_shares))


def _class(row: Row, example: Example) -> Any:
    """Label for the partition: the column `label` if the rows have one, else what the template read."""
    given = row.get("label")
    return example.label if given is None else given


def _draw(rows: list[Row], most: int | None, rng: np.random.Generator) -> list[Row]:
    if most is None or most >= len(rows):
        return rows
    return [rows[index] for index in np.sort(rng.choice(len(rows), most, replace=False))]


def read(spec: DataSpec) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows of a source, in file order.

    A single file has no test part: the rows whose SHA-256 is divisible by ten are held out.

    Raises:
        ConfigError: the source is not there or not readable.
    """
    if spec.source.startswith("builtin:"):
        return _builtin(spec)
    path = Path(spec.source).expanduser()
    if path.is_file():
        return _divided(_file(path, spec))
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return _datasets_folder(path, spec)
    if path.is_dir():
        return list(_file(_split_file(path, spec.train), spec)), list(_file(_split_file(path, spec.test), spec))
    if spec.source.startswith((".", "/", "~")) or spec.source.endswith(_SUFFIXES):
        raise ConfigError(
            "this data file or folder does not exist on this machine",
            file=path.absolute(),
            key="data.source",
            remedy="give the path of a JSONL or CSV file, or of a folder with train and test files",
        )
    return _hub(spec)


def _rows(items: Iterable[tuple[Mapping[str, Any], str]], spec: DataSpec) -> list[Row]:
    return [Row(values=values, fields=spec.fields, place=place) for values, place in items]


def _builtin(spec: DataSpec) -> tuple[list[Row], list[Row]]:
    if spec.source != "builtin:docstrings":
        raise ConfigError(f"unknown built-in data {spec.source!r}", key="data.source", remedy="use builtin:docstrings")
    train, test = corpus.shifted()
    if not train or not test:
        raise ConfigError(
            "the sources of numpy and scipy are not installed", key="data.source", remedy="pip install numpy scipy"
        )
    return (
        _rows(((passage.row(), passage.name) for passage in train), spec),
        _rows(((passage.row(), passage.name) for passage in test), spec),
    )


def _divided(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    train: list[Row] = []
    test: list[Row] = []
    for row in rows:
        content = json.dumps(row.values, sort_keys=True, default=str).encode()
        held_out = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % 10 == 0
        (test if held_out else train).append(row)
    return train, test


def _split_file(folder: Path, split: str) -> Path:
    for suffix in _SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return folder / f"{split}{suffix}"
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise ConfigError(
        f"no {split}.jsonl, {split}.jsonl.gz or {split}.csv in this folder; it holds {there}",
        file=folder,
        key="data.source",
        remedy="name the splits with data.train and data.test, or give a single file",
    )


def _file(path: Path, spec: DataSpec) -> Iterator[Row]:
    reader = _csv if path.name.endswith((".csv", ".csv.gz")) else _json_lines
    try:
        raw = path.read_bytes()
        content = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot be read: {error}", file=path, key="data.source", remedy="give UTF-8 text, plain or gzipped"
        ) from error
    for number, values in reader(content, path):
        yield Row(values=values, fields=spec.fields, place=f"{path}, line {number}")


def _json_lines(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if content.lstrip().startswith("["):
        yield from _json_list(content, path)
        return
    # not str.splitlines: a JSON string may hold U+2028 and other marks that it takes for the end of a line
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise _malformed(path, number, str(error)) from error
        if not isinstance(values, dict):
            raise _malformed(path, number, f"a {type(values).__name__} instead of an object")
        yield number, values


def _json_list(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        items = json.loads(content)
    except json.JSONDecodeError as error:
        raise _malformed(path, error.lineno, str(error)) from error
    for number, values in enumerate(items, 1):
        if not isinstance(values, dict):
            raise _malformed(path, number, f"a {type(values).__name__} instead of an object")
        yield number, values


def _malformed(path: Path, number: int, what: str) -> ConfigError:
    return ConfigError(
        f"line {number} is not a JSON object: {what}", file=path, key="data.source", remedy="mend or delete that line"
    )


def _csv(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(content, newline=""))
    for values in reader:
        if None in values or None in values.values():
            raise ConfigError(
                f"line {reader.line_num} has not as many columns as the heading",
                file=path,
                key="data.source",
                remedy="mend that line; the first line must name the columns",
            )
        yield reader.line_num, values


def _datasets_folder(path: Path, spec: DataSpec) -> tuple[list[Row], list[Row]]:
    from datasets import Dataset as Table
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"cannot be read as a datasets folder: {error}",
            file=path,
            key="data.source",
            remedy="write it anew with Dataset.save_to_disk",
        ) from error
    if isinstance(loaded, Table):
        return _divided(_table(loaded, str(path), spec))
    return _splits(loaded, spec)


def _hub(spec: DataSpec) -> tuple[list[Row], list[Row]]:
    """`owner/name` or `owner/name:configuration` of the Hugging Face hub, or of its cache on this machine."""
    if not hub_may_answer():
        raise ConfigError(
            "neither a file or folder on this machine, nor can the Hugging Face hub be reached to look there",
            file=spec.source,
            key="data.source",
            remedy="check path and network; a data set in this machine's cache is found with HF_HUB_OFFLINE=1 in the "
            "environment",
        )
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, _, configuration = spec.source.partition(":")
    try:
        loaded = load_dataset(name, configuration or None)
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError, HFValidationError) as error:
        raise ConfigError(
            f"neither a file or folder on this machine nor a data set that the hub hands out "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})",
            file=spec.source,
            key="data.source",
            remedy="check the name (owner/name or owner/name:configuration); without network, save it elsewhere with "
            "save_to_disk and give the folder",
        ) from error
    return _splits(loaded, spec)


def _splits(loaded: Mapping[str, Any], spec: DataSpec) -> tuple[list[Row], list[Row]]:
    for key, split in (("data.train", spec.train), ("data.test", spec.test)):
        if split not in loaded:
            raise ConfigError(
                f"no split {split!r}; there are {', '.join(map(repr, loaded))}",
                file=spec.source,
                key=key,
                remedy=f"name one of them with {key}",
            )
    train, test = (_table(loaded[split], f"{spec.source}, {split}", spec) for split in (spec.train, spec.test))
    return train, test


def _table(table: Iterable[Mapping[str, Any]], place: str, spec: DataSpec) -> list[Row]:
    return _rows(((dict(values), f"{place}, row {number}") for number, values in enumerate(table, 1)), spec)
