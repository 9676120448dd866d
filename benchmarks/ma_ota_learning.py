"""Learning with movable antennas and over-the-air aggregation: who reaches which perplexity, at which SNR.

    .venv/bin/python -m benchmarks.ma_ota_learning [DATA] [--quick] [--bases tiny] [--figure FILE]

Ten boards, four antennas in a square of three wavelengths, isotropic channels of six waves without line of sight, drawn
anew for every seed; 30 rounds of two local steps, K of the ten boards at a time. DATA is a folder with dolly/, gsm8k/
and models/stories260K, by default what TESTBED_SHARED_DATA names, else ../shared/data. Dolly is dealt by its categories
(Dirichlet, 0.5), GSM8K at random.

Compared are `ma-ota` with every placement and every selection, and the baselines of federated learning with all ten
boards and antennas that stand still. Every method has the same budget for its step size: at each SNR the best of three,
found on a seed that is not used again. The SNR is that of the median board at one antenna, at full power, exact for
each seed. All runs of a seed share rooms, data, test rows and first adapter, so methods are compared seed by seed.

Printed are final perplexity (geometric mean over seeds with its 95 % confidence interval), its ratio to the best method
with fixed antennas and the same K, rounds, seconds and joules until the target, and the participants' Jain index. The
target is where error-free FedAvg has come nine tenths of its way, in logarithms. What is finished is kept (--store), so
the benchmark may be cut off. `--quick` takes a few minutes and shows no more than that everything works.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks.campaign import Cell, Finished, run_campaign
from benchmarks.learning_tables import REFERENCE, Study, print_tables, write_figure
from sim_backend.world import World
from testbed.engine.config import load_experiment

ADAMW = tuple(f"training.learning_rate={rate}" for rate in ("3e-3", "1e-2", "3e-2"))
SGD = tuple(f"training.learning_rate={rate}" for rate in ("0.1", "0.3", "1.0"))
PLACEMENTS = ("pdd", "ao", "pso", "grid", "random", "fixed")
SELECTIONS = ("all", "top-one", "gsds", "adsbf", "gibbs", "dc", "random", "strongest", "round-robin")
TUNING_SEED, TUNING_K = 1000, 2


@dataclass(frozen=True)
class Method:
    """One line of the tables.

    Attributes:
        name: of the line; names that start with "fixed" have antennas that stand still, and K boards at a time.
        scheme: the scheme's table; {K} stands for the boards that send at a time.
        changes: further overrides.
        steps: overrides among which the step size is chosen.
        selects: whether K boards send at a time; elsewhere it is all boards, or as many as the method says.
        broad: whether it is run at every SNR, or at that of the tables alone.
        tuned_as: name of the method whose step size it takes; its own if absent.
    """

    name: str
    scheme: str
    changes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ADAMW
    selects: bool = True
    broad: bool = True
    tuned_as: str | None = None


def ma_ota(placement: str, more: str = "") -> str:
    """The table of `ma-ota`."""
    return f"{{name='ma-ota', concurrency={{K}}, placement='{placement}'{more}}}"


def methods() -> tuple[Method, ...]:
    """Everything that is compared."""
    sgd = ("training.optimizer=sgd",)
    placed = [Method(name, ma_ota(name)) for name in PLACEMENTS]
    chosen = [
        Method(
            f"{place} {rule}",
            ma_ota(place, f", selection='{rule}'"),
            selects=rule not in ("all", "top-one"),
            broad=False,
            tuned_as=place,
        )
        for place in ("pdd", "fixed")
        for rule in SELECTIONS
    ]
    fair = [Method(f"{place} fair", ma_ota(place, ", fairness=0.3"), tuned_as=place) for place in ("pdd", "fixed")]
    links = [
        Method(REFERENCE, "{name='fedavg', link='ideal'}", selects=False),
        Method(
            "digital OFDMA",
            "{name='fedavg'}",
            ("bench.waveform.level=samples",),
            selects=False,
            broad=False,
            tuned_as=REFERENCE,
        ),
        Method("BAA", "{name='ota-fedavg', precoding='truncated', move=false}", selects=False),
        Method("COTAF", "{name='ota-fedavg', precoding='cotaf', move=false}", selects=False),
        Method("OBDA", "{name='obda'}", selects=False),
        Method("FSK-MV", "{name='fsk-mv'}", selects=False),
        Method("FedProx", "{name='fedavg', link='ideal', proximal=0.01}", selects=False),
        Method("SCAFFOLD", "{name='scaffold'}", sgd, SGD, selects=False),
    ]
    return (*placed, *fair, *chosen, *links)


@dataclass(frozen=True)
class Plan:
    """What is run for one base and one data set.

    Attributes:
        title: of tables and figure.
        common: overrides of every run.
        rounds: of every run.
        concurrency: values of K.
        snrs_db: the sweep.
        table_snr_db: where methods that are not broad are run.
        seeds: of the comparison.
        tunes: whether step sizes are chosen; else the middle one of each method is taken.
    """

    title: str
    common: tuple[str, ...]
    rounds: int
    concurrency: tuple[int, ...]
    snrs_db: tuple[float, ...]
    table_snr_db: float
    seeds: tuple[int, ...]
    tunes: bool
    methods: tuple[Method, ...] = field(default_factory=methods)

    def cell(self, method: Method, snr_db: float, concurrency: int, seed: int, step: str) -> Cell:
        """One run."""
        changes = (
            *self.common,
            f"rounds={self.rounds}",
            f"bench.world.excess_loss_db={loss_db(self.common, snr_db, seed):.3f}",
            f"scheme={method.scheme.replace('{K}', str(concurrency))}",
            *method.changes,
            step,
        )
        kind = f" K={concurrency}" if method.selects else ""
        return Cell(f"{self.title}: {method.name}{kind} {snr_db:g} dB", "quickstart", changes, seed)

    def snrs_of(self, method: Method) -> tuple[float, ...]:
        """Where a method is run."""
        return self.snrs_db if method.broad else (self.table_snr_db,)

    def numbers_of(self, method: Method) -> tuple[int, ...]:
        """K for which a method is run; one stands for all where it makes no difference."""
        return self.concurrency if method.selects else self.concurrency[:1]


@lru_cache(maxsize=1024)
def loss_db(common: tuple[str, ...], snr_db: float, seed: int) -> float:
    """Excess loss of the room at which P_m beta_m / sigma^2 of the median board is the SNR."""
    bench = load_experiment("quickstart", (*common, "bench.world.excess_loss_db=0"), seed).bench
    world = World(bench, seed)
    gains = [world.path_gain(board.name) * 10 ** (board.max_power_dbm / 10) / 1e3 for board in bench.boards]
    return float(10 * np.log10(np.median(gains) / world.noise_w)) - snr_db


def tune(plan: Plan, run: Callable[[Sequence[Cell]], Mapping[Cell, Finished]]) -> dict[tuple[str, float], str]:
    """The best of each method's steps at each SNR, by final perplexity on the tuning seed."""
    middle = {
        (method.name, snr_db): method.steps[len(method.steps) // 2]
        for method in plan.methods
        for snr_db in plan.snrs_db
    }
    if not plan.tunes:
        return middle
    trials = {
        (method, snr_db, step): plan.cell(method, snr_db, TUNING_K, TUNING_SEED, step)
        for method in plan.methods
        if method.tuned_as is None
        for snr_db in plan.snrs_of(method)
        for step in method.steps
    }
    results = run(list(trials.values()))
    best: dict[tuple[str, float], tuple[float, str]] = {}
    for (method, snr_db, step), cell in trials.items():
        if cell in results:
            reached = (results[cell].rows[-1]["loss"], step)
            best[method.name, snr_db] = min(best.get((method.name, snr_db), reached), reached)
    return {
        (method.name, snr_db): best.get((method.tuned_as or method.name, snr_db), (0.0, middle[method.name, snr_db]))[1]
        for method in plan.methods
        for snr_db in plan.snrs_db
    }


def study(plan: Plan, run: Callable[[Sequence[Cell]], Mapping[Cell, Finished]]) -> Study:
    """Tune, run everything, and sort what came out by method, K and SNR."""
    steps = tune(plan, run)
    cells = {
        (method.name, number, snr_db, seed): plan.cell(method, snr_db, number, seed, steps[method.name, snr_db])
        for method in plan.methods
        for snr_db in plan.snrs_of(method)
        for number in plan.numbers_of(method)
        for seed in plan.seeds
    }
    results = run(list(cells.values()))
    runs = {}
    for method in plan.methods:
        for snr_db in plan.snrs_of(method):
            for number in plan.concurrency:
                have = plan.numbers_of(method)
                of = number if number in have else have[0]
                runs[method.name, number, snr_db] = {
                    seed: results[cell]
                    for seed in plan.seeds
                    if (cell := cells[method.name, of, snr_db, seed]) in results
                }
    return Study(
        title=plan.title,
        methods=tuple(method.name for method in plan.methods),
        selecting=frozenset(method.name for method in plan.methods if method.selects),
        concurrency=plan.concurrency,
        snrs_db=plan.snrs_db,
        table_snr_db=plan.table_snr_db,
        seeds=plan.seeds,
        runs=runs,
        steps=steps,
    )


def bases(data: Path) -> dict[str, tuple[str, ...]]:
    """What a base model needs: its folder, and batches that a core trains in a few hundredths of a second."""
    return {
        "stories260K": (f"model.base={data / 'models/stories260K'}", "training.batch_size=4"),
        "tiny": ("model.base=builtin:tiny", "training.batch_size=2"),
    }


def sets(data: Path) -> dict[str, tuple[str, ...]]:
    """The data sets."""
    dealt = "partition={kind='dirichlet', alpha=0.5}, fields={label='category'}"
    size = "max_train=1000, max_test=48"
    return {
        "dolly": (f"data={{source='{data / 'dolly'}', template='dolly', {size}, {dealt}}}",),
        "gsm8k": (f"data={{source='{data / 'gsm8k'}', template='gsm8k', {size}}}",),
        "docstrings": (f"data={{source='builtin:docstrings', template='text', {size}}}", "training.loss_on=all"),
    }


COMMON = (
    "bench.nodes=[{count=10}]",
    "bench.waveform.level=symbols",
    "bench.world.model=isotropic",
    "bench.world.line_of_sight=false",
    "training={local_steps=2, sequence_length=64}",
)


def plans(options: argparse.Namespace) -> Iterable[Plan]:
    """What the command line asks for."""
    quick_methods = {"pdd", "random", "fixed", "pdd round-robin", "fixed round-robin", REFERENCE, "BAA"}
    for base in options.bases:
        for name in options.sets:
            plan = Plan(
                title=f"{name}, {base}",
                common=(*COMMON, *bases(options.data)[base], *sets(options.data)[name]),
                rounds=options.rounds,
                concurrency=tuple(options.concurrency),
                snrs_db=tuple(options.snr),
                table_snr_db=sorted(options.snr)[len(options.snr) // 2],
                seeds=tuple(range(1, options.seeds + 1)),
                tunes=not options.untuned,
            )
            if options.methods:
                plan = replace(plan, methods=tuple(one for one in plan.methods if one.name in options.methods))
            if options.quick:
                plan = replace(
                    plan,
                    rounds=8,
                    concurrency=(1, 4),
                    snrs_db=(-15.0, 5.0),
                    table_snr_db=-15.0,
                    seeds=(1, 2),
                    tunes=False,
                    methods=tuple(method for method in plan.methods if method.name in quick_methods),
                )
            yield plan


def main() -> int:
    """Run what is not yet finished, print the tables, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TESTBED_SHARED_DATA", "../shared/data"))
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--bases", nargs="+", choices=tuple(bases(default)), default=["stories260K"])
    parser.add_argument("--sets", nargs="+", choices=tuple(sets(default)), default=["dolly", "gsm8k"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K")
    parser.add_argument("--snr", type=float, nargs="+", default=[-25.0, -15.0, -5.0, 5.0, 15.0], metavar="DB")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument(
        "--methods", nargs="+", choices=[one.name for one in methods()], metavar="NAME", help="only these"
    )
    parser.add_argument("--untuned", action="store_true", help="the middle step size for everything")
    parser.add_argument("--store", type=Path, default=Path("runs/ma_ota_learning.jsonl"))
    parser.add_argument("--figure", type=Path, default=Path("runs/ma_ota_learning.svg"))
    parser.add_argument("--workers", type=int, help="processes; one for each core by default")
    parser.add_argument("--quick", action="store_true", help="eight rounds of a few methods, two seeds")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return 0
    options.data = options.data.resolve()
    if options.quick:
        options.sets = options.sets[:1]
    complete, studies = True, []

    def run(cells: Sequence[Cell]) -> Mapping[Cell, Finished]:
        nonlocal complete
        results = run_campaign(cells, options.store, workers=options.workers)
        complete &= len(results) == len(set(cells))
        return results

    for plan in plans(options):
        studies.append(study(plan, run))
        print_tables(studies[-1])
    write_figure(studies, options.figure)
    print(f"figure: {options.figure}")
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
