"""Reading documentation without importing it, and pre-training that resumes and writes what a node can load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nodes import corpus, docstrings
from nodes.model import load_base
from nodes.pretrain import PretrainOptions, pretrain
from testbed.core.errors import ConfigError
from testbed.core.specs import ModelSpec

PACKAGE = '''"""This module explains at some length what the package is for, so that it is long enough to be kept."""
raise RuntimeError("imported")


def solve(a):
    """Solve the ``system`` and return :func:`~numpy.array` whatever the condition number of it may be.

    .. versionadded:: 1.2

    Examples
    --------
    >>> solve(3)
    4
    """


class Short:
    """Too short."""

    def method(self):
        """A method whose documentation is certainly longer than the eighty characters that are asked for."""


if True:

    def inner():
        """A function inside a branch is found as well, and its text is long enough to be taken along too."""


add_newdoc("pkg.core", "compiled", """A compiled function whose documentation comes from outside,
as those of numpy do, is read like any other.""")
'''


def test_docstrings_are_read_without_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "documented_package"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "tests" / "test_it.py").write_text(PACKAGE)
    (folder / "broken.py").write_text("def (")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = docstrings.docstrings("documented_package")
    assert [item.name.removeprefix("documented_package") for item in found] == [
        "",
        ".solve",
        ".Short.method",
        "",  # inside a branch
        ".compiled",
    ]
    assert found[1].text == "Solve the `system` and return numpy.array whatever the condition number of it may be."
    assert docstrings.docstrings("no_such_package_here") == ()


def test_topics() -> None:
    names = [name for name, _ in corpus.TOPICS]
    assert names[corpus.topic_of("scipy.signal._peak_finding")] == "signals"
    assert names[corpus.topic_of("numpy.fft._pocketfft")] == "signals"
    assert names[corpus.topic_of("numpy.lib._index_tricks_impl")] == "arrays"


def test_manual_is_prose() -> None:
    assert sum(len(section.text) for section in docstrings.manual()) > 100_000


def test_pretraining_keeps_clear_of_the_shifted_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(package: str) -> tuple[docstrings.Docstring, ...]:
        text = "the same paragraph about arrays stands in two packages, and it must be trained on in neither"
        own = f"a paragraph of its own that only {package} has, long enough to be kept, and it is kept indeed"
        return (docstrings.Docstring(f"{package}.f", package, f"{text}\n\n{own}"),)

    monkeypatch.setattr(corpus, "docstrings", given)
    monkeypatch.setattr(corpus, "comments", lambda package: ())
    monkeypatch.setattr(corpus, "manual", lambda: ())
    train, test = corpus.pretraining.__wrapped__()
    texts = [*train, *test]
    assert len(texts) == len(corpus.PRETRAINING_PACKAGES)
    assert not any("the same paragraph" in text for text in texts)


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = ["antenna", "signal", "the", "of", "moves", "node", "round", "array", "returns", "value", "model"]
    texts = tuple(" ".join(rng.choice(words, 40)) for _ in range(60))
    passages = tuple(
        corpus.Passage(text, 0, "arrays", "numpy", f"numpy.{index}") for index, text in enumerate(texts[:5])
    )
    monkeypatch.setattr(corpus, "pretraining", lambda: (texts[:50], texts[50:]))
    monkeypatch.setattr(corpus, "shifted", lambda: (passages, passages))


def options(out: Path, **other: object) -> PretrainOptions:
    small = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "mlp": 32, "context": 32, "vocab_size": 300}
    return PretrainOptions.model_validate(
        {"out": out, "steps": 12, "warmup_steps": 2, "batch_size": 4, "checkpoint_every": 4, **small, **other}
    )


@pytest.mark.usefixtures("small_corpus")
def test_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("step 8 held-out"):
            raise Stopped

    whole = pretrain(options(tmp_path / "whole"), lambda line: None)
    with pytest.raises(Stopped):
        pretrain(options(tmp_path / "parts"), stop)
    parts = pretrain(options(tmp_path / "parts"), lambda line: None)
    assert parts["held_out"] == whole["held_out"]
    assert json.loads((tmp_path / "parts" / "pretraining.json").read_text())["trained_tokens"] == 12 * 4 * 32
    base, tokenizer = load_base(ModelSpec(base=str(tmp_path / "parts")))
    assert base.config.vocab_size == len(tokenizer) == 300
    with pytest.raises(ConfigError, match="other options"):
        pretrain(options(tmp_path / "parts", seed=1), lambda line: None)
    with pytest.raises(ConfigError, match="already falls for 12 steps"):
        pretrain(options(tmp_path / "parts", steps=40), lambda line: None)


@pytest.mark.usefixtures("small_corpus")
def test_corpus_smaller_than_a_batch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="smaller than one batch"):
        pretrain(options(tmp_path, batch_size=4000), lambda line: None)
