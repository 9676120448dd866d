"""A run that names a field calibration: its plane waves reach the scheme, live and in a replay."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from calibration.profile import Profile
from calibration.use import combined
from testbed.core.corrections import Corrections
from testbed.core.fleet import Fleet
from tests.benches import small_bench

WAVES = [[0.1, 0.2, 1e-4, 2e-4], [-0.5, 0.3, -3e-5, 4e-5]]


def test_the_waves_of_a_field_profile_reach_the_fleet() -> None:
    bench = small_bench()
    first, second, *_ = bench.node_names
    quantity = {"value": WAVES, "unit": "1", "std": np.zeros((2, 4)).tolist()}
    covariance = {"value": np.eye(8).tolist(), "unit": "1", "std": np.zeros((8, 8)).tolist()}
    profile = Profile.model_validate(
        {
            "id": "20260101-000000-field", "routine": "field", "options": {}, "bench": bench.name, "bench_sha256": "0",
            "backend": "sim", "seed": 0, "made": datetime(2026, 1, 1, tzinfo=UTC), "passed": True, "why": "",
            "values": {f"{first}.paths": quantity, f"{first}.covariance": covariance},
        }
    )  # fmt: skip
    found = combined(bench, [profile])
    assert found.calibration_ids == (profile.id,)
    # what start.json keeps, and a replay reads again
    kept = Corrections.model_validate_json(found.model_dump_json())
    fleet = Fleet.of(bench, dict.fromkeys(bench.node_names, 1), kept.fields)
    known = fleet.node(first).paths
    assert known is not None
    np.testing.assert_array_equal(known, WAVES)
    assert fleet.node(second).paths is None
