"""Loading the base model, token arrays, and the sentences a user gets where a model cannot be used."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from nodes import model as models
from nodes.templates import Example
from nodes.tokens import Encoder, collate, collate_candidates
from testbed.core.errors import ConfigError
from testbed.core.specs import ModelSpec
from tests import tiny_llama

SHARED = Path(os.environ.get("TESTBED_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.make(tmp_path_factory.mktemp("llama"))


def encoder(folder: Path, length: int = 64) -> Encoder:
    return Encoder(models.load_base(ModelSpec(base=str(folder)))[1], length)


def test_builtin_model_is_small_and_complete() -> None:
    base, tokenizer = models.load_base(ModelSpec())
    assert 2e6 < base.num_parameters() < 5e6
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert not any(parameter.requires_grad for parameter in base.parameters())
    text = "def solve(a, b):\n    return 12.5  # naïve"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert sum(path.stat().st_size for path in models.BUILTIN["tiny"].iterdir()) < 10e6


def test_missing_pad_token_is_set(folder: Path) -> None:
    base, tokenizer = models.load_base(ModelSpec(base=str(folder), dtype="bfloat16"))
    assert tokenizer.pad_token_id == base.config.pad_token_id == tokenizer.eos_token_id
    assert str(base.dtype) == "torch.bfloat16"


def test_real_folder_without_pad_token() -> None:
    path = SHARED / "models" / "stories260K"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    base, tokenizer = models.load_base(ModelSpec(base=str(path)))
    assert tokenizer.pad_token_id is not None
    assert base.num_parameters() == 260032


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("builtin:huge", "unknown built-in model"),
        ("./nowhere", "does not exist on this machine"),
        ("/nowhere/model", "does not exist on this machine"),
        ("somebody/unheard-of", "the hub cannot be reached"),
    ],
)
def test_unknown_base(base: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "hub_may_answer", lambda: False)
    with pytest.raises(ConfigError, match=words) as caught:
        models.load_base(ModelSpec(base=base))
    assert caught.value.key == "model.base"
    assert "builtin:tiny" in str(caught.value.remedy)


def test_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        models.load_base(ModelSpec(base=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded as a causal language model"):
        models.load_base(ModelSpec(base=str(tmp_path)))


def test_four_bits_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="bitsandbytes, which is not installed here") as caught:
        models.load_base(ModelSpec(base=str(folder), dtype="nf4"))
    assert caught.value.key == "model.dtype"
    assert "testbed[quantized]" in str(caught.value.remedy)


def test_four_bits_where_the_library_does_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # its import then fails
    with pytest.raises(ConfigError, match="bitsandbytes, which does not run here") as caught:
        models.load_base(ModelSpec(base=str(folder), dtype="nf4"))
    assert caught.value.key == "model.dtype"


def test_unknown_targets_list_what_there_is(folder: Path) -> None:
    base, _ = models.load_base(ModelSpec(base=str(folder)))
    models.check_targets(base, ("q_proj", "mlp.up_proj"))
    with pytest.raises(ConfigError, match="'query'") as caught:
        models.check_targets(base, ("q_proj", "query"))
    assert caught.value.remedy == "choose from q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def test_long_rows_keep_cue_and_label(folder: Path) -> None:
    encode = encoder(folder, 24)
    row = encode.encode(
        Example(prompt="word " * 50, cue="\nTopic:", response=" yes", label=0, label_words=(" yes", " no"))
    )
    assert len(row) <= 24
    assert encode.tokenizer.decode(row.prompt).endswith("\nTopic:")
    np.testing.assert_array_equal(row.response, row.candidates[0])
    assert encode.tokenizer.decode(row.response) == " yes"


def test_long_response_is_cut_and_prompt_keeps_half(folder: Path) -> None:
    row = encoder(folder, 20).encode(Example(prompt="word " * 50, response="answer " * 50, ends=True))
    assert (len(row.prompt), len(row)) == (10, 20)


def test_masks(folder: Path) -> None:
    encode = encoder(folder)
    rows = encode.encode_all([Example(prompt="", response="good film"), Example(prompt="Review:", response=" good")])
    begin = encode.tokenizer.bos_token_id
    assert rows[0].prompt.tolist() == [begin]
    batch = collate(rows, pad=1, loss_on="response")
    assert batch.input_ids.shape == batch.loss_mask.shape == (2, max(map(len, rows)))
    np.testing.assert_array_equal(batch.attention_mask.sum(axis=1), [len(row) for row in rows])
    np.testing.assert_array_equal(batch.loss_mask.sum(axis=1), [len(row.response) for row in rows])
    everything = collate(rows, pad=1, loss_on="all")
    assert everything.num_targets == everything.num_tokens - 2
    assert not everything.loss_mask[:, 0].any()


def test_candidates_are_blind_to_each_other(folder: Path) -> None:
    words = (" yes", " no answer")
    row = encoder(folder).encode(Example(prompt="Review:", response=words[1], label=1, label_words=words))
    batch = collate_candidates([row], pad=1)
    first, second = (np.flatnonzero(batch.owner[0] == number) for number in (0, 1))
    assert not batch.sees[0, 0][np.ix_(second, first)].any()
    assert batch.sees[0, 0][second][:, : len(row.prompt)].all()
    assert batch.position_ids[0, first[0]] == batch.position_ids[0, second[0]] == len(row.prompt)
    assert batch.predecessor[0, second[0]] == len(row.prompt) - 1
