"""The built-in text: documentation that every installation of this project carries.

Pre-training reads everything except numpy and scipy; fine-tuning reads numpy and scipy only, so its text is shifted:
another domain, other words, unseen by the base model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from nodes.docstrings import MIN_CHARACTERS, Docstring, comments, docstrings, manual, normal

PRETRAINING_PACKAGES = (
    "stdlib",
    "torch",
    "sympy",
    "networkx",
    "transformers",
    "pandas",
    "cvxpy",
    "pydantic",
    "datasets",
    "huggingface_hub",
    "pyarrow",
    "peft",
    "accelerate",
    "tokenizers",
    "mpmath",
    "joblib",
    "rich",
    "click",
    "typer",
    "jinja2",
    "zmq",
    "fsspec",
    "psutil",
    "setuptools",
    "pip",
    "filelock",
    "yaml",
    "tqdm",
    "anyio",
    "multiprocess",
    "dill",
    "safetensors",
    "osqp",
    "clarabel",
    "scs",
)
"""Read in this order; one that is not installed is skipped."""

SHIFTED_PACKAGES = ("numpy", "scipy")

TOPICS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("statistics", ("scipy.stats", "numpy.random")),
    ("signals", ("scipy.signal", "scipy.fft", "scipy.fftpack", "numpy.fft")),
    ("matrices", ("scipy.linalg", "numpy.linalg", "numpy.matrixlib")),
    ("optimization", ("scipy.optimize",)),
    ("sparse", ("scipy.sparse",)),
    ("calculus", ("scipy.special", "scipy.integrate", "scipy.interpolate", "scipy.differentiate", "numpy.polynomial")),
    ("images", ("scipy.ndimage",)),
    ("geometry", ("scipy.spatial", "scipy.cluster")),
    ("files", ("scipy.io", "scipy.datasets", "numpy.f2py", "numpy.distutils", "scipy.constants")),
    ("arrays", ("numpy",)),
)
"""Topic word -> module prefixes; the first match counts. The index is the label."""

PASSAGE_CHARACTERS = 480
TEST_SHARE = 10
"""One docstring in so many is held out."""


@dataclass(frozen=True)
class Passage:
    """One row of the fine-tuning set."""

    text: str
    label: int
    topic: str
    source: str
    name: str

    def row(self) -> dict[str, object]:
        return {"text": self.text, "label": self.label, "topic": self.topic, "source": self.source}


def held_out(name: str, one_in: int = TEST_SHARE) -> bool:
    """Whether everything of this qualified name belongs to the test split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % one_in == 0


def _fresh(documents: Iterable[Docstring], seen: set[str]) -> Iterator[Docstring]:
    """The documents less every paragraph that stood in an earlier one; headings below 40 characters stay."""
    for document in documents:
        kept = []
        new = 0
        for paragraph in document.text.split("\n\n"):
            key = normal(paragraph)[:200]
            if len(key) < 40:
                kept.append(paragraph)
            elif key not in seen:
                seen.add(key)
                kept.append(paragraph)
                new += len(paragraph)
        text = "\n\n".join(kept)
        if new >= MIN_CHARACTERS and new >= 0.5 * len(text):
            yield Docstring(name=document.name, source=document.source, text=text)


@lru_cache(maxsize=1)
def pretraining() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts the base model is trained on, and held-out texts of the same kind (one docstring in fifty).

    No paragraph stands in it twice, and none that stands in the fine-tuning packages.
    """
    seen: set[str] = set()
    for package in SHIFTED_PACKAGES:
        for document in docstrings(package):
            seen.update(normal(paragraph)[:200] for paragraph in document.text.split("\n\n"))
    train: list[str] = []
    test: list[str] = []
    groups = [manual(), *(kind(package) for kind in (docstrings, comments) for package in PRETRAINING_PACKAGES)]
    for group in groups:
        for document in _fresh(group, seen):
            (test if held_out(document.name, 50) else train).append(document.text)
    return tuple(train), tuple(test)


def _passages(text: str) -> Iterator[str]:
    """Pieces of at most 480 characters, cut between paragraphs, else between sentences or words."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) + 2 > PASSAGE_CHARACTERS:
            yield piece
            piece = ""
        while len(paragraph) > PASSAGE_CHARACTERS:
            head = paragraph[:PASSAGE_CHARACTERS]
            cut = max(head.rfind(". ") + 1, head.rfind(".\n") + 1) or head.rfind("\n") or head.rfind(" ")
            cut = cut if cut > PASSAGE_CHARACTERS // 4 else PASSAGE_CHARACTERS
            yield paragraph[:cut].strip()
            paragraph = paragraph[cut:].strip()
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece:
        yield piece


def topic_of(source: str) -> int:
    """Index of the topic a module of numpy or scipy belongs to."""
    for label, (_, prefixes) in enumerate(TOPICS):
        if any(source == prefix or source.startswith(prefix + ".") for prefix in prefixes):
            return label
    return len(TOPICS) - 1


@lru_cache(maxsize=1)
def shifted() -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """Train and test passages of the fine-tuning set: numpy and scipy documentation, labelled by topic.

    A docstring lies wholly in one split (by the hash of its qualified name) and no text occurs twice.
    """
    seen: set[str] = set()
    train: list[Passage] = []
    test: list[Passage] = []
    for package in SHIFTED_PACKAGES:
        for document in docstrings(package):
            label = topic_of(document.source)
            # scipy.signal._signaltools -> scipy.signal
            source = ".".join(document.source.split(".")[:2])
            for text in _passages(document.text):
                key = normal(text)[:200]
                if len(text) < MIN_CHARACTERS or len(key) < MIN_CHARACTERS // 2 or key in seen:
                    continue
                seen.add(key)
                passage = Passage(text=text, label=label, topic=TOPICS[label][0], source=source, name=document.name)
                (test if held_out(document.name) else train).append(passage)
    return tuple(train), tuple(test)


def digest(texts: Iterable[str]) -> str:
    """SHA-256 of the texts, to tell whether two machines have the same corpus."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode())
        total.update(b"\0")
    return total.hexdigest()
