"""The published systems' optimisation problems: mathematics that a scheme and `testbed solve` share."""

from __future__ import annotations

from collections.abc import Mapping

PROBLEMS: Mapping[str, str] = {}
"""Name on the command line -> `module:Class` of its `Instance`."""
