"""One hundred simulated nodes on one machine: memory and time of a whole round.

    .venv/bin/python -m benchmarks.hundred_nodes [--nodes 100] [--node-processes 2]

Prints the proportional set size (memory shared between processes counted once) of the controller and its node processes
at its highest sample, seconds per round, and seconds of a round a node. Ends with 1 above the limit of 4 GiB.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from testbed.engine.config import load_experiment
from testbed.engine.experiment import run_experiment
from testbed.engine.observe import Observer

LIMIT_GIB = 4.0


class Stopwatch(Observer):
    """When each round began."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def round_started(self, index: int) -> None:
        """Note the time."""
        self.began.append(time.perf_counter())


def memory_gib() -> float:
    """Proportional set size of this process and its children."""
    total_kib = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            if os.getpid() in (parent, int(stat.parent.name)):
                lines = (stat.parent / "smaps_rollup").read_text().splitlines()
                total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, IndexError):
            continue
    return total_kib / 2**20


def main() -> int:
    """Run two rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--node-processes", type=int)
    options = parser.parse_args()
    changes = [
        "rounds=2",
        f"bench.nodes=[{{count={options.nodes}}}]",
        "training.local_steps=1",
        "data.max_train=2000",
        "data.partition={kind='iid'}",
        "scheme.move=false",
    ]
    loaded = load_experiment("quickstart", changes)
    watch, highest, stop = Stopwatch(), [0.0], threading.Event()

    def sample() -> None:
        while not stop.wait(0.5):
            highest[0] = max(highest[0], memory_gib())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        with tempfile.TemporaryDirectory() as out:
            run_experiment(
                loaded.spec,
                loaded.scheme,
                loaded.bench,
                backend="sim",
                out=Path(out),
                node_processes=options.node_processes,
                observer=watch,
            )
    finally:
        stop.set()
        sampler.join()
    seconds = watch.began[2] - watch.began[1]
    print(
        f"{options.nodes} nodes: {highest[0]:.2f} GiB at most, {seconds:.1f} s a round, "
        f"{seconds / options.nodes:.3f} s a node"
    )
    return int(highest[0] > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
