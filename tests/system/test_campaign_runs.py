"""A campaign plays what `testbed run` plays."""

import pytest

from benchmarks.campaign import play
from testbed.core.errors import ConfigError
from testbed.engine.experiment import RunResult
from tests.system.small_runs import small


def test_a_campaigns_rows_are_those_of_a_run(ota_run: RunResult) -> None:
    for _ in range(2):  # the second run finds its trainer ready
        rows, summary = play(small("ota-fedavg"))
        assert rows == ota_run.rounds
        assert summary == ota_run.summary


def test_a_run_that_fails_leaves_the_process_ready_for_the_next(ota_run: RunResult) -> None:
    with pytest.raises(ConfigError, match="/no/such/model"):
        play(small("fedavg", "model.base='/no/such/model'"))
    with pytest.raises(ConfigError, match="phase_coherent"):
        play(small("ota-fedavg", "bench.radio.phase_coherent=false"))
    assert play(small("ota-fedavg"))[0] == ota_run.rounds
