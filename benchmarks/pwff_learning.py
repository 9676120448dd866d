"""Personal against global models, the trade between two rewards, and what reward models from few pairs are worth.

    .venv/bin/python -m benchmarks.pwff_learning [DATA] [--quick] [--parts learning pareto rewards] [--seeds N]

DATA is a folder with dbpedia14/, dolly/, preference/ and models/stories260K; without it the benchmark is skipped.

- learning: four boards that hold some labels of a classification each (dbpedia14), or instructions whose categories
  differ (dolly, Dirichlet), error-free links; every method's loss is that of each board's own adapter on held-out rows
  like its own. Methods share seeds, so each is compared seed by seed with
  the global model (all factors averaged): mean difference with its 95 % t-interval. Bits, air time, joules and seconds
  of the whole run stand beside it, since methods do not spend the same.
- pareto: one client aligns with weights from (0.9, 0.1) to (0.1, 0.9), several seeds; rewards are learned heads on the
  scale of the base model's samples. Printed are both rewards before and after, and the KL to the reference, which
  differs between weights: compare points at like KL. The slope of (safety - helpfulness) over the weight of safety says
  whether the trade moves with the weights.
- rewards: accuracy of the learned heads on held-out pairs against the length heuristic, with Wilson intervals at the
  number of independent pairs, and the verdict.

Finished runs are kept (--store). `--quick` takes a few minutes and shows no more than that everything works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.campaign import Cell, Finished, run_campaign
from testbed.core.orders import WHOLE, Alignment, Part
from testbed.core.specs import AlignmentSpec, DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec

GLOBAL = "pwff-all-shared"
METHODS = (
    "pwff", GLOBAL, "pwff-local", "pwff-adapters-only", "pwff-fedit", "pwff-swap", "pwff-fedsa", "pwff-fedper",
    "pwff-ditto",
)  # fmt: skip
QUICK = ("pwff", GLOBAL, "pwff-local")
WEIGHTS: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)


def overrides(data: Path, name: str, rounds: int) -> tuple[str, ...]:
    """What all learning runs on a data set have in common."""
    dealt = {
        "dbpedia14": "partition={kind='label', labels_per_node=4}",
        "dolly": "partition={kind='dirichlet', alpha=0.1}, fields={label='category'}",
    }
    return (
        f"model.base={data / 'models/stories260K'}",
        f"data={{source='{data / name}', template='{name}', max_train=600, max_test=160, {dealt[name]}}}",
        "training={local_steps=8, batch_size=4, sequence_length=64, learning_rate=1e-2, loss_on='response'}",
        "bench.nodes=[{count=4}]",
        "scheme.uplink.link=ideal",
        f"rounds={rounds}",
        f"scheme.tuning_rounds={rounds}",
        f"evaluate_every={rounds}",
        "audit=false",
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % t-interval; infinite for one value."""
    if len(values) < 2:
        return float(np.mean(values)), float("inf")
    spread = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def learning(
    data: Path, of: str, methods: Sequence[str], seeds: Sequence[int], rounds: int, store: Path, workers: int
) -> bool:
    """Run and print the comparison on one data set; whether all runs succeeded."""
    cells = [Cell(name, name, overrides(data, of, rounds), seed) for name in methods for seed in seeds]
    results = run_campaign(cells, store, workers=workers)
    runs: dict[str, dict[int, Finished]] = {}
    for cell, one in results.items():
        runs.setdefault(cell.label, {})[cell.seed] = one
    print(f"\n{of}: personal held-out loss, nats a token: {len(seeds)} seeds, {rounds} rounds, difference to {GLOBAL}")
    print(
        f"{'':20}{'loss':>8}{'worst':>8}{'difference':>22}{'p':>8}{'Mbit':>8}{'air s':>8}{'energy J':>10}{'time s':>8}"
    )
    for name in methods:
        own, other = runs.get(name, {}), runs.get(GLOBAL, {})
        common = sorted(own.keys() & other.keys())
        if not common:
            continue
        apart = [_loss(own[seed]) - _loss(other[seed]) for seed in common]
        mean, half = interval(apart)
        chance = 1.0 if name == GLOBAL or len(common) < 2 else float(stats.ttest_1samp(apart, 0.0).pvalue)
        worst = np.mean([own[seed].rows[-1]["scheme"]["worst_loss"] for seed in common])
        told = "-" if name == GLOBAL else f"{mean:+.4f} +- {half:.4f}"
        summed = [
            np.mean([one.summary[key] for one in own.values()]) for key in ("air_time_s", "energy_j", "latency_s")
        ]
        bits = np.mean([_megabit(one) for one in own.values()])
        print(
            f"{name:20}{np.mean([_loss(own[seed]) for seed in common]):8.4f}{worst:8.4f}{told:>22}{chance:8.4f}"
            f"{bits:8.2f}{summed[0]:8.2f}{summed[1]:10.1f}{summed[2]:8.1f}"
        )
    return len(results) == len(cells)


def _loss(one: Finished) -> float:
    """Mean over nodes: every client counts the same."""
    return float(np.mean([*one.rows[-1]["node_loss"].values()]))


def _megabit(one: Finished) -> float:
    """Payload of all uplinks, float16."""
    return sum(16e-6 * row["scheme"].get("shared", 0) * row["scheme"].get("arrived", 0) for row in one.rows)


def aligning(data: Path, seed: int, steps: int, beta: float) -> JobSpec:
    """One client with all pairs."""
    return JobSpec(
        seed=seed,
        nodes=("node-00",),
        model=ModelSpec(base=str(data / "models/stories260K")),
        lora=LoraSpec(rank=8, bottleneck=16),
        data=DataSpec(source=str(data / "dolly"), template="dolly", max_train=20, max_test=10),
        training=TrainingSpec(sequence_length=64),
        alignment=AlignmentSpec(
            source=str(data / "preference"), rewards="learned", method="ppo", steps=steps, learning_rate=2e-3,
            beta=beta, batch_size=4, group=4, max_tokens=16, length=80, max_pairs=400, reference_prompts=32,
            measure_prompts=24,
        ),
    )  # fmt: skip


def align_once(data: Path, seed: int, weight: float, steps: int, beta: float) -> dict[str, float]:
    """Measures of one alignment of private LoRA factors; `weight` is that of helpfulness."""
    trainer = _trainer(aligning(data, seed, steps, beta))
    start, objective = trainer.initial, Alignment((weight, 1.0 - weight))
    aligned = trainer.aligner.align(
        "node-00", 1, start, objective, reference=start, part=Part(kinds=("A", "B")), pulled=WHOLE
    )
    _, measures = trainer.aligner.measured(start, aligned, objective, start)
    return {"weight": weight, "seed": seed, **measures}


_TRAINERS: dict[str, Any] = {}


def _trainer(job: JobSpec) -> Any:
    """Kept between weights, with its reward models."""
    from nodes.trainer import Trainer

    key = job.model_dump_json()
    if key not in _TRAINERS:
        _TRAINERS.clear()
        _TRAINERS[key] = Trainer(job)
    return _TRAINERS[key]


def pareto(data: Path, seeds: Sequence[int], weights: Sequence[float], steps: int, beta: float, store: Path) -> None:
    """Align at every weight and seed, print both rewards, and draw them."""
    done = [json.loads(line) for line in store.read_text().splitlines()] if store.is_file() else []
    points: list[dict[str, float]] = []
    for seed in seeds:
        for weight in weights:
            key = {"seed": seed, "weight": weight, "steps": steps, "beta": beta}
            known = [one for one in done if key.items() <= one.items()]
            if not known:
                known = [{**key, **align_once(data, seed, weight, steps, beta)}]
                store.parent.mkdir(parents=True, exist_ok=True)
                with store.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[0]) + "\n")
            points.append(known[0])
    print(f"\nalignment, {len(seeds)} seeds, {steps} steps, beta {beta:g}: mean normalised rewards on held-out prompts")
    print(f"{'l^h':>5}{'helpfulness':>26}{'safety':>26}{'KL, nats':>18}{'diverged':>10}")
    for weight in weights:
        of = [point for point in points if point["weight"] == weight]
        cells = []
        for name in ("helpfulness", "safety"):
            mean, half = interval([point[name] for point in of])
            before = np.mean([point[f"{name}_before"] for point in of])
            cells.append(f"{before:+.2f} -> {mean:+.2f} +- {half:.2f}")
        kl, wide = interval([point["kl"] for point in of])
        count = int(sum(point["diverged"] for point in of))
        print(f"{weight:5.1f}{cells[0]:>26}{cells[1]:>26}{f'{kl:.1f} +- {wide:.1f}':>18}{count:10d}")
    slopes = [_slope([point for point in points if point["seed"] == seed]) for seed in seeds]
    mean, half = interval(slopes)
    print(
        f"slope of (safety - helpfulness) over the weight of safety: {mean:+.2f} +- {half:.2f}; it should be positive"
    )


def _slope(points: Sequence[Mapping[str, float]]) -> float:
    safety = [1.0 - point["weight"] for point in points]
    return float(np.polyfit(safety, [point["safety"] - point["helpfulness"] for point in points], 1)[0])


def rewards(data: Path, max_pairs: int | None) -> None:
    """Accuracy of learned heads against the length of the responses."""
    from nodes.preferences import KINDS, load, of_kind
    from nodes.reward_accuracy import length_accuracy, reward_accuracy, verdict
    from nodes.reward_model import Backbone
    from nodes.reward_training import train_heads

    trainer = _trainer(aligning(data, 1, 1, 0.05))
    train, test = load(DataSpec(source=str(data / "preference")))
    if max_pairs is not None:
        train, test = train[:max_pairs], test[:max_pairs]
    backbone = Backbone(trainer._adapter, trainer._tokenizer, trainer.initial, 256)
    model, _ = train_heads(backbone, train, KINDS, np.random.default_rng(1))
    print(f"\nreward models: heads on stories260K, {len(train)} training pairs")
    for kind in KINDS:
        held = of_kind(test, kind)
        found = reward_accuracy(model.objective(kind), held)
        print(verdict(kind, found, length_accuracy(of_kind(train, kind), held)))


def main() -> int:
    """Run what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TESTBED_SHARED_DATA", "../shared/data"))
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--parts", nargs="+", choices=("learning", "pareto", "rewards"), default=None)
    parser.add_argument("--sets", nargs="+", choices=("dbpedia14", "dolly"), default=("dbpedia14", "dolly"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="of alignment")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="of helpfulness, in alignment")
    parser.add_argument("--beta", type=float, default=0.05, help="leash of alignment")
    parser.add_argument("--store", type=Path, default=Path("runs/pwff_learning.jsonl"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two rounds of three methods, two seeds, three steps")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return 0
    data, seeds = options.data.resolve(), range(1, options.seeds + 1)
    methods, rounds, steps, weights, pairs = options.methods, options.rounds, options.steps, options.weights, None
    if options.quick:
        methods, seeds, rounds, steps, weights, pairs = QUICK, range(1, 3), 2, 3, (0.1, 0.9), 100
    if GLOBAL not in methods:
        methods = (*methods, GLOBAL)
    parts = options.parts or ("learning", "pareto", "rewards")
    complete = True
    if "learning" in parts:
        for name in options.sets[:1] if options.quick else options.sets:
            complete &= learning(data, name, methods, seeds, rounds, options.store, options.workers)
    if "pareto" in parts:
        store = options.store.with_suffix(".pareto.jsonl")
        pareto(data, seeds, weights, steps, options.beta, store)
    if "rewards" in parts:
        rewards(data, pairs)
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
