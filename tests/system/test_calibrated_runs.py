"""What calibration is for: crooked radios, measured and put right, aggregate as well as straight ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.session import calibrate
from testbed.core.errors import ConfigError
from testbed.engine.config import Loaded
from testbed.engine.experiment import RunResult, replay_experiment
from tests.system.small_runs import run, small

CROOKED = "{start_offset_s=1.5e-7, tx_iq_gain_db=1.0, tx_iq_phase_deg=5.0, rx_iq_gain_db=1.0, rx_iq_phase_deg=4.0}"
ANTENNAS = "[{home_m=[0.09, 0.19]}, {home_m=[0.19, 0.19]}, {home_m=[0.29, 0.19]}]"


def experiment(*changes: str, impairments: str = CROOKED) -> Loaded:
    bench = {
        "array.antennas": ANTENNAS,
        "radio": "{start_jitter_s=1e-8, timed_tx=true, phase_coherent=true}",
        "world.excess_loss_db": "45.0",
        "world.impairments": impairments,
    }
    return small("ota-fedavg", *(f"bench.{key}={value}" for key, value in bench.items()), "rounds=2", *changes)


def mean_error(result: RunResult) -> float:
    errors = [row["aggregation_error"] for row in result.rounds[1:]]
    return sum(errors) / len(errors)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESTBED_CALIBRATIONS", str(tmp_path / "store"))
    return tmp_path / "store"


def test_a_calibrated_bench_aggregates_as_a_perfect_one_does(store: Path, tmp_path: Path) -> None:
    crooked = experiment('calibrations=["timing", "iq"]')
    for routine in ("timing", "iq"):
        outcome = calibrate(routine, crooked.bench, backend="sim", seed=crooked.spec.seed, node_processes=1)
        assert outcome.passed, outcome.profiles[-1].why
    ids = [path.parent.name for routine in ("timing", "iq") for path in store.rglob(f"{routine}/*/profile.json")]
    calibrated = run(crooked, tmp_path / "calibrated")
    perfect = mean_error(run(experiment(impairments="{}"), tmp_path / "perfect"))
    uncalibrated = mean_error(run(experiment(), tmp_path / "uncalibrated"))
    one_decibel = 10**0.1
    assert mean_error(calibrated) < perfect * one_decibel
    assert uncalibrated > perfect * one_decibel**3, "nothing to put right"
    devices = (calibrated.folder / "devices.json").read_text()
    assert ids
    assert all(id_ in devices for id_ in ids)
    assert replay_experiment(calibrated.folder).rounds == calibrated.rounds


def test_a_run_refuses_profiles_that_are_not_its_own(store: Path, tmp_path: Path) -> None:
    crooked = experiment('calibrations=["timing"]')
    with pytest.raises(ConfigError, match="there is no calibration timing") as absent:
        run(crooked, tmp_path)
    assert "testbed calibrate timing --bench" in str(absent.value.remedy)
    assert absent.value.key == "calibrations"
    with pytest.raises(ConfigError, match="there is no calibration 'timming'") as unknown:
        run(experiment('calibrations=["timming"]'), tmp_path)
    assert "timing" in str(unknown.value.remedy)
    renewed = run(experiment('calibrations=["timing"]', "auto_calibrate=true", "rounds=1"), tmp_path)
    assert renewed.summary["status"] == "done"
    with pytest.raises(ConfigError, match="speaks of other radios"):
        run(experiment('calibrations=["timing"]', impairments="{start_offset_s=3e-7}"), tmp_path)
