"""Benches for tests."""

from __future__ import annotations

from typing import Any

from testbed.core.bench import BenchSpec


def small_bench(**changes: Any) -> BenchSpec:
    """Two movable antennas and one fixed one, three nodes; keys of the bench file may be replaced."""
    stage = {"speed_m_s": 0.1, "acceleration_m_s2": 1.0, "settle_s": 0.1}
    content: dict[str, Any] = {
        "name": "small",
        "array": {
            "origin_m": [0.0, 4.0, 1.0],
            "region_m": [[0.0, 0.375], [0.0, 0.375]],
            "min_spacing_m": 0.0625,
            "antennas": [
                {"home_m": [0.05, 0.05], "stage": stage},
                {"home_m": [0.15, 0.05], "stage": stage},
                {"home_m": [0.25, 0.05]},
            ],
        },
        "nodes": [{"count": 3}],
    }
    return BenchSpec.model_validate({**content, **changes})
