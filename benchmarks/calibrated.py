"""What calibration is worth: the aggregation error of crooked radios, before and after, beside that of perfect ones.

    .venv/bin/python -m benchmarks.calibrated [--backend emulated] [--seeds 0 1 2]

Four nodes, three fixed antennas, the over-the-air mean of two rounds. Crooked radios start 150 ns apart (standard
deviation) and have branches that differ by 1 dB and 4 to 5 degrees. Every figure is measured against the nodes' true
updates.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from pathlib import Path

from calibration.session import calibrate
from testbed.engine.config import Loaded, load_experiment
from testbed.engine.experiment import run_experiment

CROOKED = "{start_offset_s=1.5e-7, tx_iq_gain_db=1.0, tx_iq_phase_deg=5.0, rx_iq_gain_db=1.0, rx_iq_phase_deg=4.0}"
CHANGES = (
    "rounds=2",
    "training.local_steps=2",
    "training.batch_size=4",
    "training.sequence_length=64",
    "lora.rank=4",
    "bench.nodes=[{count=4}]",
    "bench.array.antennas=[{home_m=[0.09, 0.19]}, {home_m=[0.19, 0.19]}, {home_m=[0.29, 0.19]}]",
    "bench.radio={start_jitter_s=1e-8, timed_tx=true, phase_coherent=true}",
    "bench.world.excess_loss_db=45.0",
)
CASES = {
    "perfect radios": ("{}", ()),
    "crooked": (CROOKED, ()),
    "crooked, timing calibrated": (CROOKED, ("timing",)),
    "crooked, timing and iq calibrated": (CROOKED, ("timing", "iq")),
}


def experiment(impairments: str, calibrations: tuple[str, ...], seed: int) -> Loaded:
    """The experiment of one case."""
    used = ", ".join(f'"{name}"' for name in calibrations)
    return load_experiment(
        "quickstart",
        ["scheme={name='ota-fedavg'}", *CHANGES, f"bench.world.impairments={impairments}", f"calibrations=[{used}]"],
        seed,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="emulated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TESTBED_CALIBRATIONS"] = str(Path(folder) / "store")
        for seed in given.seeds:
            bench = experiment(CROOKED, (), seed).bench
            for routine in ("timing", "iq"):
                calibrate(routine, bench, backend=given.backend, seed=seed)
            for name, (impairments, calibrations) in CASES.items():
                loaded = experiment(impairments, calibrations, seed)
                result = run_experiment(
                    loaded.spec, loaded.scheme, loaded.bench, backend=given.backend, out=Path(folder) / f"{seed}"
                )
                errors = [row["aggregation_error"] for row in result.rounds[1:]]
                found[name].append(10 * math.log10(statistics.fmean(errors)))
    print(f"aggregation error on {given.backend}, dB, by seed {given.seeds}, and its mean")
    for name, values in found.items():
        print(f"{name:36}", *(f"{value:7.1f}" for value in values), f"{statistics.fmean(values):9.1f}")


if __name__ == "__main__":
    main()
