"""A base prepared on rows that no client sees: who gets which rows, where it stops, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lora_gain import lora_gain
from benchmarks.prepared_base import NEW, Recipe, divided, prepare, score
from nodes import data
from nodes.likelihood import Likelihood
from nodes.model import load_base
from nodes.templates import TEMPLATES
from nodes.tokens import Encoder
from testbed.core.errors import ConfigError
from testbed.core.specs import DataSpec, ModelSpec

RECIPE = Recipe("sst2", 24, 40, batch_size=16, measure_every=10, num_validation=60, vocab_size=320)
GOOD, BAD = ("fine", "warm", "bright"), ("dull", "flat", "weak")


def folder(path: Path, *, count: int = 400, noise: bool = False) -> Path:
    """Short reviews whose one telling word decides, or nothing does."""
    rng = np.random.default_rng(3)
    path.mkdir()
    for name, rows in (("train", count), ("test", 80)):
        lines = []
        for index in range(rows):
            label = int(rng.integers(2))
            telling = (BAD, GOOD)[int(rng.integers(2)) if noise else label][int(rng.integers(3))]
            # a third of the sentences occurs twice
            number = index if index % 3 else index // 6
            lines.append(json.dumps({"sentence": f"a {telling} film {number}", "label": label}))
        (path / f"{name}.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("prepared")
    source = folder(root / "reviews")
    facts = prepare(source, NEW, root / "base", RECIPE, lambda line: None)
    assert facts.full > 0.9, "the rows can be learnt"
    return source, root / "base"


def sentences(source: Path, split: int) -> list[str]:
    return [row["sentence"] for row in data.read(DataSpec(source=str(source), template="sst2"))[split]]


def test_clients_get_the_rows_that_did_not_prepare_and_the_same_held_out_split(made: tuple[Path, Path]) -> None:
    source, base = made
    everything = data.read(DataSpec(source=str(source), template="sst2"))[0]
    ours, theirs = divided(everything, "sst2", RECIPE.share, RECIPE.seed)
    assert len(ours) + len(theirs) == len(everything)
    assert not {row["sentence"] for row in ours} & {row["sentence"] for row in theirs}
    # five standard deviations of 400 draws; pairs of equal rows widen them a little
    assert abs(len(ours) / len(everything) - 0.6) < 5 * np.sqrt(0.24 / 300)
    assert sentences(base / "data", 0) == [row["sentence"] for row in theirs]
    assert sentences(base / "data", 1) == sentences(source, 1)
    facts = json.loads((base / "prepared.json").read_text())
    assert facts["rows"] == {"prepare": len(ours) - 60, "measure": 60, "clients": len(theirs), "held_out": 80}
    assert divided(everything, "sst2", RECIPE.share, 1)[0] != ours


def test_it_is_taken_back_to_the_way_from_chance_and_the_folder_holds_that_state(made: tuple[Path, Path]) -> None:
    source, base = made
    facts = json.loads((base / "prepared.json").read_text())
    assert facts["full"] == max(accuracy for _, _, accuracy in facts["course"])
    goal = facts["chance"] + RECIPE.way * (facts["full"] - facts["chance"])
    assert facts["accuracy"] >= goal
    assert 0 < facts["kept"] < 1
    model, tokenizer = load_base(ModelSpec(base=str(base)))
    rows = data.read(DataSpec(source=str(source), template="sst2"))[1]
    encoded = Encoder(tokenizer, RECIPE.length).encode_all([TEMPLATES["sst2"](row) for row in rows])
    likelihood = Likelihood(model, int(tokenizer.pad_token_id), "response", True, torch.device("cpu"))
    found = score(likelihood, encoded)
    assert (found.num_correct or 0) / found.num_rows == facts["held_out"]
    assert found.loss_sum / found.num_tokens == pytest.approx(facts["held_out_loss"], rel=1e-6)


def test_a_seed_decides_everything(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, base = made
    again, other = tmp_path / "again", tmp_path / "other"
    prepare(source, NEW, again, RECIPE, lambda line: None)
    prepare(source, NEW, other, replace(RECIPE, seed=1), lambda line: None)
    weights = [(one / "model.safetensors").read_bytes() for one in (base, again, other)]
    assert weights[0] == weights[1] != weights[2]
    left = [(one / "data" / "train.jsonl").read_bytes() for one in (base, again, other)]
    assert left[0] == left[1] != left[2]


def test_lora_on_the_clients_rows_learns_what_is_left(made: tuple[Path, Path]) -> None:
    gain = lora_gain(made[1], learning_rate=1e-2, parts=1, samples=200, rank=4)
    facts = json.loads((made[1] / "prepared.json").read_text())
    assert gain.accuracy[0] == facts["held_out"]
    assert gain.accuracy[-1] - gain.accuracy[0] == pytest.approx((gain.gained - gain.lost) / 80)
    assert gain.loss[-1] < gain.loss[0]


def test_data_that_teach_nothing_are_told(tmp_path: Path) -> None:
    source = folder(tmp_path / "noise", noise=True)
    with pytest.raises(ConfigError, match="full training reaches .* the commonest label alone"):
        prepare(source, NEW, tmp_path / "base", replace(RECIPE, steps=5, num_validation=100), lambda line: None)
    with pytest.raises(ConfigError, match="60 of them only measure"):
        prepare(folder(tmp_path / "few", count=80), NEW, tmp_path / "base", RECIPE, lambda line: None)


@pytest.mark.parametrize("change", [{"way": 1.5}, {"share": 0.0}])
def test_parts_out_of_range_are_refused_before_anything_is_trained(change: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no part of 1"):
        prepare(tmp_path, "new", tmp_path / "out", Recipe("sst2", 16, 10, **change))
    assert not (tmp_path / "out").exists()
