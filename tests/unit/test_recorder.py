"""The run folder survives what interrupts a run, and names what is damaged."""

from pathlib import Path

import numpy as np
import pytest

from testbed.core.errors import ConfigError
from testbed.core.orders import Move, Moved, Publish, Published, Spent
from testbed.core.record import difference
from testbed.engine.recorder import Recorder, create_folder, read_json, read_rows, read_steps, write_json


def _record(folder: Path, count: int) -> list[Move]:
    recorder = Recorder(folder)
    orders = [Move(np.full((2, 2), index, np.float64)) for index in range(count)]
    for index, order in enumerate(orders):
        recorder.step(index, 0.5 * index, order, Moved(order.positions_m, Spent(1.0, 2.0)), {"error_norm2": 0.1})
        recorder.round({"round": index})
    recorder.close()
    return orders


def test_steps_come_back(tmp_path: Path) -> None:
    orders = _record(tmp_path, 3)
    steps = read_steps(tmp_path)
    assert [step.clock_s for step in steps] == [0.0, 0.5, 1.0]
    assert all(difference(step.order, order) is None for step, order in zip(steps, orders, strict=True))
    assert steps[0].audit == {"error_norm2": 0.1}


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    _record(tmp_path, 3)
    path = tmp_path / "steps.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read_steps(tmp_path)) == 2


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    _record(tmp_path, 3)
    path = tmp_path / "steps.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:-9]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ConfigError, match="line 2 is not valid JSON") as caught:
        read_steps(tmp_path)
    assert "steps.jsonl" in str(caught.value)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    _record(tmp_path, 2)
    (tmp_path / "arrays.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"arrays\.bin"):
        read_steps(tmp_path)


def test_resume_drops_the_round_that_was_cut_off(tmp_path: Path) -> None:
    _record(tmp_path, 3)
    recorder = Recorder(tmp_path, keep_steps=2, keep_rounds=2)
    vector = np.arange(5, dtype=np.float32)
    recorder.step(2, 9.0, Publish(vector), Published(), {})
    recorder.close()
    steps = read_steps(tmp_path)
    assert [step.index for step in steps] == [0, 1, 2]
    assert isinstance(steps[2].order, Publish)
    assert np.array_equal(steps[2].order.adapter, vector)
    assert [row["round"] for row in read_rows(tmp_path)] == [0, 1]


def test_folders_never_collide(tmp_path: Path) -> None:
    names = [create_folder(tmp_path, "my run/1", "20260101-000000").name for _ in range(3)]
    assert names == ["my-run-1-20260101-000000", "my-run-1-20260101-000000-2", "my-run-1-20260101-000000-3"]


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        read_json(tmp_path / "nowhere", "start.json")
    with pytest.raises(ConfigError, match=r"holds no start\.json"):
        read_json(tmp_path, "start.json")
    write_json(tmp_path / "start.json", {"format": 1})
    assert read_json(tmp_path, "start.json") == {"format": 1}
    (tmp_path / "start.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_json(tmp_path, "start.json")
