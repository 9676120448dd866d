"""Five federated rounds on real data: GSM8K and SST-2, four nodes, digital and through the air.

    .venv/bin/python -m benchmarks.real_data [DATA] [--rounds 5] [--nodes 4] [--seeds 0 1 2]

DATA is a folder with gsm8k/, sst2/ (train.jsonl.gz, test.jsonl.gz) and models/stories260K, by default what
TESTBED_SHARED_DATA names, else ../shared/data. Each line gives held-out
loss before and after, per seed, and the mean with its spread; the loss must fall in every run, else it ends with 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from testbed.engine.config import load_experiment
from testbed.engine.experiment import run_experiment

TASKS = {
    "gsm8k": ["data.template=gsm8k", "training.task=language", "training.sequence_length=256"],
    "sst2": ["data.template=sst2", "training.task=classification", "training.sequence_length=128"],
}
SCHEMES = {
    "fedavg": "{name='fedavg', link='ideal'}",  # packets bring the same bits and take longer to simulate
    "ota-fedavg": "{name='ota-fedavg'}",
}


def main() -> int:
    """Run every combination and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TESTBED_SHARED_DATA", "../shared/data"))
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return 0
    fell = True
    print(f"{'task':8}{'scheme':12}{'loss before -> after, by seed':58}{'fall':>16}  accuracy after")
    for task, settings in TASKS.items():
        for scheme, table in SCHEMES.items():
            pairs, falls, accuracies = [], [], []
            for seed in options.seeds:
                loaded = load_experiment(
                    "quickstart",
                    [
                        f"rounds={options.rounds}",
                        f"model.base={options.data / 'models/stories260K'}",
                        f"data.source={options.data / task}",
                        "data.max_train=2000",
                        "data.max_test=400",
                        "data.partition={kind='iid'}",
                        f"scheme={table}",
                        f"bench.nodes=[{{count={options.nodes}}}]",
                        "training={local_steps=20, batch_size=8, learning_rate=3e-3}",
                        *settings,
                    ],
                    seed,
                )
                with tempfile.TemporaryDirectory() as out:
                    result = run_experiment(loaded.spec, loaded.scheme, loaded.bench, backend="sim", out=Path(out))
                before, after = result.summary["loss_before"], result.summary["loss_after"]
                pairs.append(f"{before:.3f} -> {after:.3f}")
                falls.append(before - after)
                accuracies.append(result.summary["accuracy_after"])
                fell &= after < before
            spread = statistics.stdev(falls) if len(falls) > 1 else 0.0
            known = [value for value in accuracies if value is not None]
            accuracy = f"{statistics.mean(known):.3f}" if known else "-"
            print(
                f"{task:8}{scheme:12}{'   '.join(pairs):58}{statistics.mean(falls):8.3f} +- {spread:.3f}  {accuracy}",
                flush=True,
            )
    return 0 if fell else 1


if __name__ == "__main__":
    sys.exit(main())
