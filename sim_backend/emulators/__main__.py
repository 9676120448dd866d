"""The emulators of one bench as a child process: prints their addresses as a line of JSON, and ends with its parent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sim_backend.emulators.host import serve
from testbed.core.bench import BenchSpec


def main() -> None:
    """Emulate the bench of a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m sim_backend.emulators", description=__doc__)
    parser.add_argument("bench", type=Path, help="a resolved bench file, JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time", choices=("real", "virtual"), default="virtual")
    parser.add_argument("--start", type=float, default=0.0, metavar="S")
    given = parser.parse_args()
    serve(
        BenchSpec.model_validate_json(given.bench.read_text(encoding="utf-8")),
        seed=given.seed,
        mode=given.time,
        start_s=given.start,
        on_ready=lambda addresses: print(json.dumps(addresses), flush=True),
        end_with_parent=True,
    )


if __name__ == "__main__":
    main()
