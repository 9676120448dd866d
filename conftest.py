"""Options of the test-suite; here and not in tests/, so that `pytest --bench lab.toml` finds them beside that file."""

from __future__ import annotations

import pytest

UNASKED = "moves antennas and transmits on a real bench: pytest --bench=lab.toml -m hardware --yes-transmit"


def pytest_addoption(parser: pytest.Parser) -> None:
    """What tests of real devices need to be told."""
    group = parser.getgroup("hardware")
    group.addoption("--bench", metavar="FILE", help="bench file of the real devices that tests marked hardware are for")
    group.addoption(
        "--yes-transmit", action="store_true", help="tests of real devices may move antennas and make radios transmit"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Nothing real moves or radiates unless both options say so."""
    if config.getoption("--bench") and config.getoption("--yes-transmit"):
        return
    for item in items:
        if item.get_closest_marker("hardware"):
            item.add_marker(pytest.mark.skip(reason=UNASKED))
