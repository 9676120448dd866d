"""The run folder: everything a run did, appended as it happens.

start.json      RunStart: resolved configuration, backend, versions, commit, seed, when it began
steps.jsonl     Step: one line for each order with its reply, what it took and the clock
arrays.bin      the arrays of those lines, appended
rounds.jsonl    one row of figures for each round
adapters/       the global adapter after each round, as a PEFT folder
summary.json    RunStop: written last; without it, or with a status other than done, the run is not complete
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from testbed.core.errors import ConfigError, ProtocolError
from testbed.core.orders import Order, Reply
from testbed.core.record import from_plain, to_plain

FORMAT = 1


@dataclass(frozen=True)
class Step:
    """One order and its reply.

    Attributes:
        clock_s: the run's clock after the reply.
        audit: of a `Collect`: squared norms of the true weighted mean and of the error, where nodes reported the truth.
    """

    index: int
    round_index: int
    clock_s: float
    order: Order
    reply: Reply
    audit: Mapping[str, float]


class Recorder:
    """Appends to one run folder.

    Args:
        folder: must exist.
        keep_steps: on resume, how many steps of the record stay; later ones belong to the round that was cut off.
    """

    def __init__(self, folder: Path, *, keep_steps: int | None = None, keep_rounds: int | None = None) -> None:
        self.folder = folder
        if keep_steps is not None:
            _truncate_lines(folder / "steps.jsonl", keep_steps)
        if keep_rounds is not None:
            _truncate_lines(folder / "rounds.jsonl", keep_rounds)
        self._steps: TextIO = (folder / "steps.jsonl").open("a", encoding="utf-8")
        self._rounds: TextIO = (folder / "rounds.jsonl").open("a", encoding="utf-8")
        self._arrays: BinaryIO = (folder / "arrays.bin").open("ab")
        self._index = keep_steps or 0

    def step(self, round_index: int, clock_s: float, order: Order, reply: Reply, audit: Mapping[str, float]) -> Step:
        """Append one step; its arrays reach the disk before its line does."""
        step = Step(self._index, round_index, clock_s, order, reply, audit)
        line = {
            "index": step.index,
            "round": round_index,
            "clock_s": clock_s,
            "order": to_plain(order, self._store),
            "reply": to_plain(reply, self._store),
            "audit": to_plain(audit, self._store),
        }
        self._arrays.flush()
        self._steps.write(json.dumps(line, allow_nan=False) + "\n")
        self._steps.flush()
        self._index += 1
        return step

    def round(self, row: Mapping[str, Any]) -> None:
        """Append one row of figures."""
        self._rounds.write(json.dumps(row, allow_nan=False) + "\n")
        self._rounds.flush()

    def close(self) -> None:
        """May be repeated."""
        for file in (self._steps, self._rounds, self._arrays):
            file.close()

    def _store(self, array: np.ndarray) -> int:
        offset = self._arrays.tell()
        self._arrays.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
        return offset


def create_folder(out: Path, name: str, stamp: str) -> Path:
    """A new run folder `out/NAME-STAMP`, numbered where that exists. Raises ConfigError where it cannot be made."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name}-{stamp}").strip("-")
    for attempt in range(1, 1000):
        folder = out / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"the run folder cannot be made: {error.strerror}",
                file=folder,
                key="--out",
                remedy="choose a writable folder",
            ) from error
        return folder
    raise ConfigError(
        "the output folder is full of runs of this name", file=out, key="--out", remedy="choose another --out"
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run folder. Raises ConfigError where the folder is not a run, or the file is damaged."""
    path = folder / name
    if not folder.is_dir():
        raise ConfigError(
            "there is no such folder", file=folder, remedy="give the folder of a run, as `testbed run` prints it"
        )
    if not path.is_file():
        raise ConfigError(
            f"this folder holds no {name}", file=folder, remedy="give the folder of a run, as `testbed run` prints it"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"not valid JSON: {error}", file=path, remedy="the file is damaged; repeat the run"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError("not a JSON object", file=path, remedy="the file is damaged; repeat the run")
    return content


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `rounds.jsonl`; a last line that was cut off is left out."""
    return [row for _, row in _lines(folder / "rounds.jsonl")]


def read_steps(folder: Path) -> list[Step]:
    """All recorded steps, arrays mapped from disk; a last line that was cut off is left out.

    Raises:
        ConfigError: a line in the middle is damaged, named by its number, or arrays are missing.
    """
    path = folder / "arrays.bin"
    arrays = np.memmap(path, np.uint8, "r") if path.is_file() and path.stat().st_size else np.zeros(0, np.uint8)

    def load(offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if offset + size > len(arrays):
            raise ConfigError(f"the array at byte {offset} is missing", file=path, remedy="the record is damaged")
        return np.frombuffer(arrays[offset : offset + size].tobytes(), dtype).reshape(shape)

    steps = []
    for number, line in _lines(folder / "steps.jsonl"):
        try:
            steps.append(
                Step(
                    line["index"],
                    line["round"],
                    line["clock_s"],
                    from_plain(line["order"], load),
                    from_plain(line["reply"], load),
                    from_plain(line["audit"], load),
                )
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"line {number} is no recorded step: {error}",
                file=folder / "steps.jsonl",
                remedy="the record is damaged",
            ) from error
        except ProtocolError as error:
            raise ConfigError(
                f"line {number}: {error.message}", file=folder / "steps.jsonl", remedy=error.remedy
            ) from error
    return steps


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number >= len(lines) - 1 and lines[-1] != b"":
                return
            raise ConfigError(
                f"line {number} is not valid JSON: {error}", file=path, remedy="the record is damaged"
            ) from error


def _truncate_lines(path: Path, keep: int) -> None:
    if path.is_file():
        lines = path.read_bytes().split(b"\n")[:keep]
        scratch = path.with_suffix(".partial")
        scratch.write_bytes(b"".join(line + b"\n" for line in lines))
        os.replace(scratch, path)
