"""Prompt templates: how a row of a data set becomes a prompt and the response that is learnt.

One function per format. A row's columns are found by the template's own names unless `data.fields` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nodes.corpus import TOPICS
from testbed.core.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """One training text.

    Attributes:
        prompt: what is given; cut first where the row is too long.
        response: what is learnt, directly after prompt and cue.
        cue: end of the prompt, never cut (`\\nTopic:`).
        label: index of the right word in `label_words`, or the row's class where the response is free text.
        label_words: responses among which classification decides; empty for free text.
        ends: whether the response is followed by the end mark.
    """

    prompt: str
    response: str
    cue: str = ""
    label: int | None = None
    label_words: tuple[str, ...] = ()
    ends: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a data set, with the names its columns go by and the place to name in an error.

    Attributes:
        values: column -> value.
        fields: template field = column, from `data.fields`.
        place: file and line or row.
    """

    values: Mapping[str, Any]
    fields: Mapping[str, str]
    place: str

    def get(self, field: str) -> Any:
        """Value of a template field, None where the row has no such column."""
        return self.values.get(self.fields.get(field, field))

    def __getitem__(self, field: str) -> str:
        """Text of a template field.

        Raises:
            ConfigError: the row has no such column, or it is empty.
        """
        column = self.fields.get(field, field)
        value = self.values.get(column)
        if value is None or value == "":
            what = "is empty" if column in self.values else f"is missing; the row has {_listed(self.values)}"
            raise ConfigError(
                f"column {column!r} (field {field!r} of the template) {what}",
                file=self.place,
                key="data.fields",
                remedy=f'name the column that holds it, for instance fields = {{ {field} = "{_first(self.values)}" }}',
            )
        return str(value).strip("\n")

    def label(self, words: tuple[str, ...], field: str = "label") -> int:
        """Class of the row: an index, or one of the words.

        Raises:
            ConfigError: it is neither.
        """
        text = self[field].strip()
        if text.lstrip("-").isdigit():
            index = int(text)
        else:
            known = [word.strip().lower() for word in words]
            index = known.index(text.lower()) if text.lower() in known else -1
        if not 0 <= index < len(words):
            raise ConfigError(
                f"label {text!r} is none of 0..{len(words) - 1} ({', '.join(word.strip() for word in words)})",
                file=self.place,
                key="data.fields",
                remedy=f"mend the row, or name another column: fields = {{ {field} = ... }}",
            )
        return index


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in values) or "no column at all"


def _first(values: Mapping[str, Any]) -> str:
    return next(iter(values), "column")


def _words(*names: str) -> tuple[str, ...]:
    return tuple(f" {name}" for name in names)


TOPIC_WORDS = _words(*(name for name, _ in TOPICS))
SST2_WORDS = _words("negative", "positive")
QNLI_WORDS = _words("yes", "no")
YAHOO_WORDS = _words(
    "Society & Culture",
    "Science & Mathematics",
    "Health",
    "Education & Reference",
    "Computers & Internet",
    "Sports",
    "Business & Finance",
    "Entertainment & Music",
    "Family & Relationships",
    "Politics & Government",
)
DBPEDIA_WORDS = _words(
    "Company",
    "Educational Institution",
    "Artist",
    "Athlete",
    "Office Holder",
    "Mean of Transportation",
    "Building",
    "Natural Place",
    "Village",
    "Animal",
    "Plant",
    "Album",
    "Film",
    "Written Work",
)

_CALCULATOR = re.compile(r"<<[^>]*>>")


def _classified(row: Row, prompt: str, cue: str, words: tuple[str, ...], field: str = "label") -> Example:
    label = row.label(words, field)
    return Example(prompt=prompt, response=words[label], cue=cue, label=label, label_words=words)


def text(row: Row) -> Example:
    """Plain text (`text`): every token is learnt."""
    return Example(prompt="", response=row["text"])


def topic(row: Row) -> Example:
    """Topic of a passage (`text`, `label` 0..9 or topic word) of builtin:docstrings."""
    return _classified(row, row["text"], "\n\nTopic:", TOPIC_WORDS)


def gsm8k(row: Row) -> Example:
    """Word problem (`question`) and worked answer (`answer`), without its calculator marks `<<...>>`."""
    return Example(
        prompt=f"Question: {row['question']}",
        cue="\nAnswer:",
        response=" " + _CALCULATOR.sub("", row["answer"]),
        ends=True,
    )


def yahoo(row: Row) -> Example:
    """Topic (`topic` 0..9 or its name) of a question (`question_title`, `question_content`) with its `best_answer`."""
    question = " ".join(str(row.get(name) or "").strip() for name in ("question_title", "question_content")).strip()
    answer = str(row.get("best_answer") or "").strip()
    # content and answer are often empty upstream; the title never is
    prompt = f"Question: {question or row['question_title']}"
    return _classified(row, f"{prompt}\nAnswer: {answer}" if answer else prompt, "\nTopic:", YAHOO_WORDS, "topic")


def sst2(row: Row) -> Example:
    """Sentiment (`label` 0 negative, 1 positive) of a `sentence`."""
    return _classified(row, f"Review: {row['sentence'].strip()}", "\nSentiment:", SST2_WORDS)


def qnli(row: Row) -> Example:
    """Whether the `sentence` answers the `question` (`label` 0 yes, 1 no)."""
    prompt = f"Question: {row['question'].strip()}\nSentence: {row['sentence'].strip()}"
    return _classified(row, prompt, "\nAnswered:", QNLI_WORDS)


def _instructed(instruction: str, given: str, response: str) -> Example:
    prompt = f"### Instruction:\n{instruction}" + (f"\n\n### Input:\n{given}" if given else "")
    return Example(prompt=prompt, cue="\n\n### Response:\n", response=response, ends=True)


def alpaca(row: Row) -> Example:
    """Instruction (`instruction`, optional `input`) and `output`."""
    return _instructed(row["instruction"], str(row.get("input") or "").strip(), row["output"])


def dolly(row: Row) -> Example:
    """Instruction (`instruction`, optional `context`) and `response`."""
    return _instructed(row["instruction"], str(row.get("context") or "").strip(), row["response"])


def preference(row: Row) -> Example:
    """A `prompt` with a `chosen` and a `rejected` response; the chosen one is learnt, classification compares."""
    pair = (row["chosen"], row["rejected"])
    return Example(prompt=row["prompt"], response=pair[0], label=0, label_words=pair, ends=True)


def dbpedia14(row: Row) -> Example:
    """Class (`label` 0..13 or its name) of an article (`text`, or `title` and `content`)."""
    if row.get("text") is None and row.get("content") is not None:
        return _classified(row, f"{row['title'].strip()}. {row['content'].strip()}", "\nCategory:", DBPEDIA_WORDS)
    return _classified(row, row["text"].strip(), "\nCategory:", DBPEDIA_WORDS)


TEMPLATES: Mapping[str, Callable[[Row], Example]] = {
    "text": text,
    "topic": topic,
    "gsm8k": gsm8k,
    "yahoo": yahoo,
    "sst2": sst2,
    "qnli": qnli,
    "alpaca": alpaca,
    "dolly": dolly,
    "preference": preference,
    "dbpedia14": dbpedia14,
}
"""The names that `data.template` may have."""
