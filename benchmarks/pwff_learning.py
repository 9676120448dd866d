"""Personal against global models, the trade between two rewards, and what reward models from few pairs are worth.

    .venv/bin/python -m benchmarks.pwff_learning [DATA] [--quick] [--parts learning alignment pareto rewards]
        [--seeds N] [--base FOLDER]

DATA is a folder with dbpedia14/, dolly/, preference/ and models/stories260K; without it the benchmark is skipped.

- learning: four boards that hold some labels of a classification each (dbpedia14), or instructions whose categories
  differ (dolly, Dirichlet), error-free links; every method's loss is that of each board's own adapter on held-out rows
  like its own. Methods share seeds, so each is compared seed by seed with the global model (all factors averaged): mean
  difference with its 95 % t-interval. Bits, air time, joules and seconds of the whole run stand beside it: methods do
  not spend the same. `--base FOLDER` takes a base of `benchmarks.prepared_base` with its rows, and scores hits.
- alignment: PWFF's alignment against one reward, the same weights for all, PFIT, FedDPO and FedPPO, by what each
  client's own weights make of both rewards; rewards are learned heads on the scale of the base model's samples.
- pareto: one client aligns with weights from (0.9, 0.1) to (0.1, 0.9), several seeds, under opposed and under learned
  rewards, compared at a common KL to the reference beside the best that a table could do there, with a figure; see
  `benchmarks.pwff_pareto`. The slope of (safety - helpfulness) over the weight of safety says whether the trade moves.
- rewards: accuracy of the learned heads on held-out pairs against the length heuristic, with Wilson intervals at the
  number of independent pairs, and the verdict.

Finished runs are kept (--store). `--quick` takes a few minutes and shows no more than that everything works.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.campaign import Cell, Finished, run_campaign
from benchmarks.pwff_pareto import BUDGETS, Sweep, draw, report, run
from testbed.core.specs import AlignmentSpec, DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec
from testbed.problems.preference_weights import client_weights

GLOBAL = "pwff-all-shared"
METHODS = (
    "pwff", GLOBAL, "pwff-local", "pwff-adapters-only", "pwff-fedit", "pwff-swap", "pwff-fedsa", "pwff-fedper",
    "pwff-ditto",
)  # fmt: skip
QUICK = ("pwff", GLOBAL, "pwff-ditto")
ALIGNED = ("pwff-dolly", "pwff-one-reward", "pwff-same-weights", "pwff-pfit", "pwff-feddpo", "pwff-fedppo")
AVERAGED = ("pwff-pfit", "pwff-feddpo", "pwff-fedppo")
_COMMON = ("bench.nodes=[{count=4}]", "scheme.uplink.link=ideal", "audit=false")
_ALIGN = {
    "learning_rate": 5e-3, "beta": 0.2, "batch_size": 4, "group": 4, "max_tokens": 12, "length": 64, "max_pairs": 200,
    "reference_prompts": 16, "measure_prompts": 12,
}  # fmt: skip
WEIGHTS: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)


def overrides(data: Path, name: str, rounds: int, base: Path | None = None) -> tuple[str, ...]:
    """What all learning runs on a data set have in common; a prepared base brings its rows and is scored by hits."""
    dealt = {
        "dbpedia14": "partition={kind='label', labels_per_node=4}",
        "dolly": "partition={kind='dirichlet', alpha=0.1}, fields={label='category'}",
        "sst2": "partition={kind='dirichlet', alpha=0.1}",
    }
    model, source = (data / "models/stories260K", data / name) if base is None else (base, base / "data")
    task, length = ("language", 64) if base is None else ("classification", 96)
    return (
        f"model.base={model}",
        f"data={{source='{source}', template='{name}', max_train=600, max_test=160, {dealt[name]}}}",
        f"training={{task='{task}', local_steps=8, batch_size=4, sequence_length={length}, learning_rate=1e-2, "
        "loss_on='response'}",
        *_COMMON,
        f"rounds={rounds}",
        f"scheme.tuning_rounds={rounds}",
        f"evaluate_every={rounds}",
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % t-interval; infinite for one value."""
    if len(values) < 2:
        return float(np.mean(values)), float("inf")
    spread = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def learning(cells: Sequence[Cell], title: str, methods: Sequence[str], store: Path, workers: int) -> bool:
    """Run and print the comparison on one data set; whether all runs succeeded."""
    results = run_campaign(cells, store, workers=workers)
    runs: dict[str, dict[int, Finished]] = {}
    for cell, one in results.items():
        runs.setdefault(cell.label, {})[cell.seed] = one
    print(f"\n{title}: personal held-out loss, nats a token, and its difference to {GLOBAL}")
    print(
        f"{'':20}{'loss':>8}{'worst':>8}{'difference':>22}{'p':>8}{'hits':>7}{'Mbit':>8}{'air s':>8}{'energy J':>10}"
        f"{'time s':>8}{'CPU s':>7}"
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
            f"{_hits(own):>7}{bits:8.2f}{summed[0]:8.2f}{summed[1]:10.1f}{summed[2]:8.1f}"
            f"{np.mean([one.cpu_s for one in own.values()]):7.0f}"
        )
    return len(results) == len(cells)


def _loss(one: Finished) -> float:
    """Mean over nodes: every client counts the same."""
    return float(np.mean([*one.rows[-1]["node_loss"].values()]))


def _hits(runs: Mapping[int, Finished]) -> str:
    """Mean share of held-out rows whose label is the likeliest; a dash where nobody classifies."""
    found = [one.rows[-1]["accuracy"] for one in runs.values()]
    return "-" if None in found else f"{np.mean(found):.3f}"


def _megabit(one: Finished) -> float:
    """All that was sent up."""
    return _sent(one.rows)


def _sent(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(8e-6 * (row["uplink_bytes"] or 0) for row in rows)


def alignment_cells(data: Path, methods: Sequence[str], seeds: Sequence[int], steps: int) -> list[Cell]:
    """Two rounds of tuning and two of alignment on instructions and preferences, four boards.

    What is averaged is measured by its boards when the next round begins, so that methods that average align once more.
    """
    cells = []
    for name in methods:
        tuned, aligned = (0 if name == "pwff-pfit" else 2), (3 if name in AVERAGED else 2)
        changes = (
            f"model.base={data / 'models/stories260K'}",
            f"data.source={data / 'dolly'}",
            "data.max_train=200",
            "data.max_test=40",
            f"alignment.source={data / 'preference'}",
            "training={local_steps=4, batch_size=4, sequence_length=64, learning_rate=1e-2, loss_on='response'}",
            *(f"alignment.{key}={value}" for key, value in {"steps": steps, **_ALIGN}.items()),
            *_COMMON,
            f"rounds={tuned + aligned}",
            f"scheme.tuning_rounds={tuned}",
            f"scheme.alignment_rounds={aligned}",
            f"evaluate_every={tuned + aligned}",
        )
        cells += [Cell(name, name, changes, seed) for seed in seeds]
    return cells


def aligned_table(cells: Sequence[Cell], store: Path, workers: int) -> bool:
    """Run and print what alignment gave every client by its own weights, 0.9 to 0.1; whether all runs succeeded."""
    results = run_campaign(cells, store, workers=workers)
    print("\nalignment: gain of R_k by each client's own weights, deviations of the base's samples, learned rewards")
    print(
        f"{'':20}{'mean R_k gain':>20}{'worst client':>16}{'helpful':>16}{'safety':>16}{'KL':>7}{'div':>5}{'Mbit':>8}"
        f"{'energy J':>10}{'time s':>8}{'CPU s':>7}"
    )
    for name in dict.fromkeys(cell.label for cell in cells):
        own = [one for cell, one in results.items() if cell.label == name]
        if not own:
            continue
        facts = [_gains(one, name in AVERAGED) for one in own]
        told = [interval([one[place] for one in facts]) for place in range(4)]
        kept = [one.rows[:-1] if name in AVERAGED else one.rows for one in own]
        summed = [np.mean([sum(row[key] for row in rows) for rows in kept]) for key in ("energy_j", "latency_s")]
        print(
            f"{name:20}{_told(told[0]):>20}{_told(told[1]):>16}{_told(told[2]):>16}{_told(told[3]):>16}"
            f"{np.mean([one[4] for one in facts]):7.1f}{sum(one[5] for one in facts):5.0f}"
            f"{np.mean([_sent(rows) for rows in kept]):8.2f}{summed[0]:10.1f}{summed[1]:8.1f}"
            f"{np.mean([one.cpu_s for one in own]):7.0f}"
        )
    return len(results) == len(cells)


def _told(one: tuple[float, float]) -> str:
    return f"{one[0]:+.2f} +- {one[1]:.2f}"


def _gains(one: Finished, averaged: bool) -> tuple[float, ...]:
    """Gain of R_k, mean and worst client; of both rewards; mean KL; how many diverged."""
    rows = [row["alignment"] for row in one.rows if row.get("alignment")]
    names = sorted(rows[0].keys() & rows[-1].keys())
    after = "_before" if averaged else ""
    both = np.array(
        [
            [rows[-1][name][f"{what}{after}"] - rows[0][name][f"{what}_before"] for what in ("helpfulness", "safety")]
            for name in names
        ]
    )
    weights = np.array(client_weights((), len(names)))
    own = (weights * both).sum(1)
    measured = rows[-2] if averaged and len(rows) > 1 else rows[-1]
    kl = float(np.mean([measured[name].get("kl", np.nan) for name in names if name in measured]))
    wild = float(sum(row[name]["diverged"] for row in rows for name in row))
    return float(own.mean()), float(own.min()), float(both[:, 0].mean()), float(both[:, 1].mean()), kl, wild


def aligning(data: Path, seed: int, steps: int, beta: float, rewards: str = "learned") -> JobSpec:
    """One client with all pairs."""
    return JobSpec(
        seed=seed,
        nodes=("node-00",),
        model=ModelSpec(base=str(data / "models/stories260K")),
        lora=LoraSpec(rank=8, bottleneck=16),
        data=DataSpec(source=str(data / "dolly"), template="dolly", max_train=20, max_test=10),
        training=TrainingSpec(sequence_length=64),
        alignment=AlignmentSpec(
            source=str(data / "preference"), rewards=rewards, method="ppo", steps=steps, learning_rate=5e-3,
            beta=beta, batch_size=4, group=8, max_tokens=12, length=64, max_pairs=200, reference_prompts=24,
            measure_prompts=16,
        ),
    )  # fmt: skip


_TRAINERS: dict[str, Any] = {}


def _trainer(job: JobSpec) -> Any:
    """Kept between weights, with its reward models."""
    from nodes.trainer import Trainer

    key = job.model_dump_json()
    if key not in _TRAINERS:
        _TRAINERS.clear()
        _TRAINERS[key] = Trainer(job)
    return _TRAINERS[key]


def pareto(data: Path, sweep_of: Any, steps: int, beta: float, store: Path, out: Path) -> bool:
    """Sweep the weights under both kinds of rewards, print and draw; whether the trade moves under opposed rewards."""
    rows, moves = [], True
    for kind in ("opposed", "learned"):
        sweep = sweep_of(kind)
        done = run(sweep, lambda seed, kind=kind: aligning(data, seed, steps, beta, kind), store)
        moved, panels = report(sweep, done, interval)
        moves &= moved or kind == "learned"
        rows.append(panels)
    draw(rows, out)
    return moves


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
    parser.add_argument("--parts", nargs="+", choices=("learning", "alignment", "pareto", "rewards"), default=None)
    parser.add_argument("--sets", nargs="+", choices=("dbpedia14", "dolly", "sst2"), default=("dbpedia14",))
    parser.add_argument("--base", type=Path, default=None, help="folder of `benchmarks.prepared_base`, of the one set")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="of alignment, between two measures")
    parser.add_argument("--stretches", type=int, default=4, help="of steps, in the trade between rewards")
    parser.add_argument(
        "--budget", type=float, default=1.0, choices=BUDGETS, help="KL at which the trade is compared, nats a response"
    )
    parser.add_argument("--figure", type=Path, default=Path("runs/pwff_pareto.svg"), help="of the trade, SVG")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="of helpfulness, in alignment")
    parser.add_argument("--beta", type=float, default=0.2, help="leash of alignment")
    parser.add_argument("--store", type=Path, default=Path("runs/pwff_learning.jsonl"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two rounds of three methods, two seeds, three steps")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return 0
    data, seeds = options.data.resolve(), range(1, options.seeds + 1)
    base = None if options.base is None else options.base.resolve()
    methods, rounds, steps, weights, pairs = options.methods, options.rounds, options.steps, options.weights, None
    stretches = options.stretches
    if options.quick:
        methods, seeds, rounds, steps, weights, pairs = QUICK, range(1, 3), 2, 3, (0.1, 0.9), 100
        stretches = 2
    if GLOBAL not in methods:
        methods = (*methods, GLOBAL)
    parts = options.parts or ("learning", "alignment", "pareto", "rewards")
    complete = True
    if "learning" in parts:
        for name in options.sets[:1] if options.quick else options.sets:
            changes = overrides(data, name, rounds, base)
            cells = [Cell(method, method, changes, seed) for method in methods for seed in seeds]
            title = f"{name}, {len(seeds)} seeds, {rounds} rounds"
            complete &= learning(cells, title, methods, options.store, options.workers)
    if "alignment" in parts:
        aligned, some = (ALIGNED[::3], seeds[:1]) if options.quick else (ALIGNED, seeds)
        cells = alignment_cells(data, aligned, some, steps)
        complete &= aligned_table(cells, options.store, options.workers)
    if "pareto" in parts:
        store = options.store.with_suffix(".pareto.jsonl")

        def sweep_of(kind: str) -> Sweep:
            return Sweep(kind, tuple(weights), tuple(seeds), stretches, options.budget)

        complete &= pareto(data, sweep_of, steps, options.beta, store, options.figure) or options.quick
    if "rewards" in parts:
        rewards(data, pairs)
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
