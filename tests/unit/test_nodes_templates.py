"""Every template on a made row of its format, and what it says about rows it cannot use."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nodes.templates import TEMPLATES, Example, Row
from testbed.core.errors import ConfigError

SHARED = Path(os.environ.get("TESTBED_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def fill(template: str, values: dict[str, Any], **fields: str) -> Example:
    return TEMPLATES[template](Row(values=values, fields=fields, place="made.jsonl, line 7"))


def whole(example: Example) -> str:
    return example.prompt + example.cue + example.response


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("text", {"text": "An array."}, "An array."),
        ("topic", {"text": "Fit a line.", "label": 3}, "Fit a line.\n\nTopic: optimization"),
        (
            "gsm8k",
            {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
            "Question: 2 + 3?\nAnswer: 2 + 3 = 5\n#### 5",
        ),
        (
            "yahoo",
            {"question_title": "Why?", "question_content": "", "best_answer": "So.", "topic": 5},
            "Question: Why?\nAnswer: So.\nTopic: Sports",
        ),
        (
            "yahoo",
            {"question_title": "Why", "question_content": "is it?", "best_answer": None, "topic": "Health"},
            "Question: Why is it?\nTopic: Health",
        ),
        ("sst2", {"sentence": "dull . ", "label": 0}, "Review: dull .\nSentiment: negative"),
        ("qnli", {"question": "Who?", "sentence": "I.", "label": 0}, "Question: Who?\nSentence: I.\nAnswered: yes"),
        (
            "alpaca",
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3",
        ),
        (
            "dolly",
            {"instruction": "Sing.", "context": "", "response": "La."},
            "### Instruction:\nSing.\n\n### Response:\nLa.",
        ),
        (
            "preference",
            {"prompt": "Human: hi\n\nAssistant:", "chosen": " Hello.", "rejected": " No."},
            "Human: hi\n\nAssistant: Hello.",
        ),
        ("dbpedia14", {"text": "A river.", "label": 7}, "A river.\nCategory: Natural Place"),
        (
            "dbpedia14",
            {"title": "Rhine", "content": "A river.", "label": 7},
            "Rhine. A river.\nCategory: Natural Place",
        ),
    ],
)
def test_made_row(template: str, values: dict[str, Any], expected: str) -> None:
    assert whole(fill(template, values)) == expected


def test_label_words_hold_the_response() -> None:
    example = fill("sst2", {"sentence": "fine", "label": "Positive"})
    assert example.label == 1
    assert example.label_words[example.label] == example.response == " positive"
    pair = fill("preference", {"prompt": "p", "chosen": "good", "rejected": "bad"})
    assert pair.label == 0
    assert pair.label_words == ("good", "bad")


def test_fields_name_other_columns() -> None:
    example = fill("gsm8k", {"q": "1?", "a": "1"}, question="q", answer="a")
    assert whole(example) == "Question: 1?\nAnswer: 1"


def test_missing_field_names_line_field_and_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        fill("gsm8k", {"problem": "1?", "answer": "1"})
    message = str(caught.value)
    assert "made.jsonl, line 7" in message
    assert "'question'" in message
    assert "data.fields" in message
    assert '{ question = "problem" }' in message


@pytest.mark.parametrize("label", [2, -1, "so-so"])
def test_unknown_label_is_refused(label: object) -> None:
    with pytest.raises(ConfigError, match="negative, positive"):
        fill("sst2", {"sentence": "fine", "label": label})


@pytest.mark.parametrize("name", ["gsm8k", "sst2", "qnli", "preference", "dolly", "dbpedia14"])
def test_real_rows(name: str) -> None:
    path = SHARED / name / "test.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        examples = [fill(name, json.loads(line)) for line in lines]
    assert len(examples) > 100
    for example in examples:
        assert example.prompt
        assert example.response.strip()
        assert example.label is None or example.label_words[example.label] == example.response
