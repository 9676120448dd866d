"""What the documentation shows is what the code prints: `python tests/golden/rendered.py` renders it again."""

from __future__ import annotations

import re

import pytest
from rendered import PAGES, ROOT, blocks, filled, recorded

from testbed.report.table import render_plain


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_the_code_prints(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == filled(text, blocks()), f"stale: run python tests/golden/rendered.py, then look at {page}"


@pytest.mark.parametrize("name", sorted(blocks()))
def test_everything_rendered_is_shown_somewhere(name: str) -> None:
    assert any(f"<!-- begin {name} -->" in (ROOT / page).read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


def test_the_tables_are_ascii_and_fit_eighty_columns() -> None:
    for name in ("moving", "fixed"):
        table = render_plain(recorded(name).rows)
        assert table.isascii()
        assert max(map(len, table.splitlines())) <= 80


def test_the_examples_are_runs_of_the_quickstart_on_two_benches() -> None:
    moving, fixed = recorded("moving"), recorded("fixed")
    assert moving.summary["seed"] == fixed.summary["seed"]
    assert moving.summary["scheme"] == fixed.summary["scheme"] == "ota-fedavg"
    assert moving.summary["loss_after"] < moving.summary["loss_before"]
