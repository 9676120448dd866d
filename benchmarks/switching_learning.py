"""LoRA switching on SST-2 and QNLI: accuracy, loss and joules against every other way to decide a round.

    .venv/bin/python -m benchmarks.switching_learning [DATA] [--quick] [--sets sst2] [--base prepared]

Eight boards at different distances, four frugal and four hungry ones, Rayleigh block fading, losses drawn from the
outage formula (`--link packets`: as the modem has them); labels dealt unevenly (Dirichlet 0.5). A round of training
costs a frugal board E joules, a hungry one 3 E; sending takes up to 0.3 E more; every board may take 1.1 E on average.
So frugal boards may train in every round if they send with less than full power or smaller modules, hungry ones in a
third of the rounds; without queues hungry ones never train. V is told in units of K E^2: at V = v a frugal board rests
where its queue exceeds about v E, and T rounds settle where v is small against T. All runs of a seed share room, data
and starting weights, so methods are compared seed by seed. Interrupted, it goes on where it stopped.

The base is one of `benchmarks.prepared_base`, made where it is missing: it knows the words of a task and is part of the
way to telling what they say, from rows that no board has. Other bases (`stories260K`, `tiny`) stay at chance, and the
table says so; the loss of the label words still tells methods apart. Energy efficiency is counted three ways: joules
until a loss or an accuracy that the unconstrained run's way defines; loss and accuracy when a given energy is used up;
what a joule gained over the frozen model. Beside each result stand Q(T) / T, which no mean energy exceeds its limit by,
what it really did, and whether the longest queue still grew in the second half.

Policies without queues (large, small, random, unconstrained) overdraw; they are no fair competitors, but bounds.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.campaign import Cell, Finished, run_campaign
from benchmarks.learning_tables import CONFIDENCE, Estimate
from testbed.core.errors import ConfigError

OURS = "switching"
BOUND = "unconstrained"
KEEPING = ("switching", "myopic", "on-off", "equal-band", "full-power", "error-unaware")
"""Policies that heed the energy limits."""
POLICIES = (*KEEPING, "large", "small", "random", BOUND)
SHARE = 0.7
"""Of the unconstrained run's way that leads to the target."""

NUM_BOARDS = 8
CYCLES_PER_TOKEN, CPU_HZ, KAPPA = 2e5, 1.5e9, 1e-28
"""Of the frugal boards."""
HUNGER = 3.0
"""Joules of a hungry board's round of training, over those of a frugal one."""
LIMIT = 1.1
"""Mean energy limit of every board, over a frugal board's round of training."""
_BOARD = f"count=4, max_power_dbm=10.0, cpu_hz={CPU_HZ:g}, cycles_per_token={CYCLES_PER_TOKEN:g}"
COMMON = (
    f"bench.nodes=[{{name='frugal-{{:02d}}', kappa={KAPPA:g}, {_BOARD}}}, "
    f"{{name='hungry-{{:02d}}', kappa={HUNGER * KAPPA:g}, {_BOARD}}}]",
    "bench.world.fading=block",
    "bench.world.line_of_sight=false",
    "bench.world.shadowing_db=6.0",
    "data.partition={kind='dirichlet', alpha=0.5}",
    "lora={rank=8, alpha=16.0, targets=['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']}",
)


@dataclass(frozen=True)
class Plan:
    """What is run on one data set.

    Attributes:
        name: of the data set.
        common: overrides of every run.
        policies: that are compared.
        unit: K E^2, in which V is told, square joules.
        tradeoff: V of the comparison, in units.
        sweep: values of V for the policy switching, in units.
        seeds: of all.
        budget_j: energy at which loss and accuracy are compared: half of what the limits allow all boards together.
    """

    name: str
    common: tuple[str, ...]
    policies: tuple[str, ...]
    unit: float
    tradeoff: float
    sweep: tuple[float, ...]
    seeds: tuple[int, ...]
    budget_j: float

    def cell(self, policy: str, tradeoff: float, seed: int) -> Cell:
        """One run."""
        changes = (f"scheme.policy={policy}", f"scheme.tradeoff={tradeoff * self.unit:g}")
        return Cell(f"{self.name}: {policy}, V = {tradeoff:g}", "lora-switching", (*self.common, *changes), seed)

    def cells(self) -> list[Cell]:
        """All runs, each once."""
        compared = [self.cell(policy, self.tradeoff, seed) for policy in self.policies for seed in self.seeds]
        swept = [self.cell(OURS, tradeoff, seed) for tradeoff in self.sweep for seed in self.seeds]
        return list(dict.fromkeys([*compared, *swept]))


# --- figures of a run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """One run as its rows tell it, round 0 included.

    Attributes:
        spent_j: energy used until the end of each round.
        loss, accuracy: of the held-out split after each round.
        queue_j: Q(T) / T of the worst board.
        rise_j: what the longest queue grew by in a round of the second half; about 0 where queues have settled.
        over_j: what the worst board's mean energy lies above its limit.
        phi: mean penalty of the decisions.
        arrived: mean number of updates that arrived in a round.
        ranks: mean rank of the modules that were trained; 0 if none was.
    """

    spent_j: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    queue_j: float
    rise_j: float
    over_j: float
    phi: float
    arrived: float
    ranks: float

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Course:
        """Of the rows of a finished cell."""
        spent, spent_j = 0.0, []
        for row in rows:
            spent += row["energy_j"]
            spent_j.append(spent)
        told = [row["scheme"] for row in rows[1:]]
        ranks = [int(rank) for one in told for rank in one["modules"].split() if rank != "0"]
        return cls(
            tuple(spent_j),
            tuple(row["loss"] for row in rows),
            tuple(row["accuracy"] for row in rows),
            told[-1]["queue_per_round_j"],
            (told[-1]["queue_j"] - told[len(told) // 2]["queue_j"]) / max(len(told) - 1 - len(told) // 2, 1),
            told[-1]["over_limit_j"],
            sum(one["phi"] for one in told) / len(told),
            sum(one["arrived"] for one in told) / len(told),
            sum(ranks) / len(ranks) if ranks else 0.0,
        )

    @property
    def smooth(self) -> tuple[float, ...]:
        """Accuracy, each a mean over the last fifth of all rounds up to there, round 0 by itself: uneven labels make
        single rounds swing by a tenth.
        """
        width = max(1, (len(self.accuracy) - 1) // 5)
        spans = [self.accuracy[max(1, row - width + 1) : row + 1] for row in range(1, len(self.accuracy))]
        return (self.accuracy[0], *(sum(span) / len(span) for span in spans))

    def joules_until(self, reached: Callable[[int], bool]) -> float:
        """Energy until the first round that reached something; infinite where none did."""
        return next((self.spent_j[row] for row in range(len(self.loss)) if reached(row)), math.inf)

    def last_within(self, budget_j: float) -> int:
        """The last round that ended within an energy."""
        return max(row for row in range(len(self.loss)) if self.spent_j[row] <= budget_j)

    @property
    def loss_fall_per_j(self) -> float:
        """Nats a token gained over the frozen model for each joule; 0 where none was spent."""
        return (self.loss[0] - self.loss[-1]) / self.spent_j[-1] if self.spent_j[-1] > 0 else 0.0

    @property
    def accuracy_gain_per_j(self) -> float:
        """Accuracy gained over the frozen model for each joule; 0 where none was spent."""
        return (self.smooth[-1] - self.smooth[0]) / self.spent_j[-1] if self.spent_j[-1] > 0 else 0.0


Runs = Mapping[str, Mapping[int, Course]]
"""policy (or V, as a text) -> seed -> run."""


@dataclass(frozen=True)
class Measure:
    """One column: a number of each run.

    Attributes:
        name: of the column.
        of: run, its seed -> number; infinite or NaN where there is none.
        better: 1 where large is better, -1 where small is, 0 where neither is.
    """

    name: str
    of: Callable[[Course, int], float]
    better: int


def measures(runs: Runs, budget_j: float) -> tuple[Measure, ...]:
    """The columns; targets lie on the unconstrained run's way, seed by seed."""
    free = runs.get(BOUND, {})

    def loss_target(seed: int) -> float:
        way = free[seed].loss if seed in free else (math.nan,)
        return way[0] - SHARE * (way[0] - min(way))

    def accuracy_target(seed: int) -> float:
        way = free[seed].smooth if seed in free else (math.nan,)
        # a base that learns nothing sets no target
        return way[0] + SHARE * (max(way) - way[0]) if max(way) > way[0] else math.nan

    return (
        Measure("accuracy", lambda run, _: run.smooth[-1], 1),
        Measure("loss", lambda run, _: run.loss[-1], -1),
        Measure("joules", lambda run, _: run.spent_j[-1], 0),
        Measure("J to loss", lambda run, seed: run.joules_until(lambda row: run.loss[row] <= loss_target(seed)), -1),
        Measure(
            "J to accuracy",
            lambda run, seed: run.joules_until(lambda row: run.smooth[row] >= accuracy_target(seed)),
            -1,
        ),
        Measure(f"loss at {budget_j:g} J", lambda run, _: run.loss[run.last_within(budget_j)], -1),
        Measure(f"acc. at {budget_j:g} J", lambda run, _: run.smooth[run.last_within(budget_j)], 1),
        Measure("loss fall / kJ", lambda run, _: 1e3 * run.loss_fall_per_j, 1),
        Measure("acc. gain / kJ", lambda run, _: 1e3 * run.accuracy_gain_per_j, 1),
        Measure("Q(T)/T J", lambda run, _: run.queue_j, 0),
        Measure("rise of Q J", lambda run, _: run.rise_j, 0),
        Measure("over limit J", lambda run, _: run.over_j, 0),
        Measure("mean Phi", lambda run, _: run.phi, -1),
        Measure("arrived", lambda run, _: run.arrived, 0),
        Measure("mean rank", lambda run, _: run.ranks, 0),
    )


def estimate(values: Sequence[float]) -> tuple[Estimate, int]:
    """Mean and interval of the finite values, and how many there are."""
    finite = [value for value in values if math.isfinite(value)]
    return Estimate.of(finite), len(finite)


def difference(measure: Measure, ours: Mapping[int, Course], other: Mapping[int, Course]) -> Estimate:
    """Ours minus the other's, over the seeds in which both have a number."""
    both = [(measure.of(ours[seed], seed), measure.of(other[seed], seed)) for seed in ours if seed in other]
    return Estimate.of([mine - theirs for mine, theirs in both if math.isfinite(mine - theirs)])


def verdict(measure: Measure, found: Estimate) -> str:
    """Held, not held or open, and by how much."""
    if math.isnan(found.mean):
        return "nothing to compare"
    if not math.isfinite(found.high - found.low):
        return f"one seed: {found.mean:+.4g}"
    by = f"{found.mean:+.4g} [{found.low:+.3g}, {found.high:+.3g}]"
    gain_low, gain_high = sorted((measure.better * found.low, measure.better * found.high))
    return f"{'held' if gain_low > 0 else 'NOT held' if gain_high < 0 else 'open'}: {by}"


# --- tables ---------------------------------------------------------------------------------------------------------


def print_table(title: str, runs: Runs, columns: Sequence[Measure]) -> None:
    """A row for every policy, with 95 % intervals; in brackets the seeds where fewer than all have a number."""
    print(f"\n{title}\n{'':16}" + "".join(f"{measure.name:>30}" for measure in columns))
    for name, of_seed in runs.items():
        cells = []
        for measure in columns:
            found, count = estimate([measure.of(run, seed) for seed, run in of_seed.items()])
            some = "" if count == len(of_seed) else f" ({count} of {len(of_seed)})"
            cells.append(_text(found) + some)
        print(f"{name:16}" + "".join(f"{cell:>30}" for cell in cells))


def print_claims(runs: Runs, columns: Sequence[Measure]) -> None:
    """The abstract's claims, accuracy and energy efficiency, against every policy that heeds the limits."""
    print("\nThe abstract's claims, seed by seed: switching minus the other; 'open' where the interval spans zero")
    for other in runs:
        if other == OURS:
            continue
        kind = "" if other in KEEPING else "  (overdraws: no fair competitor)"
        print(f"  against {other}{kind}")
        for measure in columns:
            if measure.better and measure.name != "mean Phi":
                print(f"    {measure.name:18}{verdict(measure, difference(measure, runs[OURS], runs[other]))}")


def print_chance(runs: Runs, chance: float) -> None:
    """Whether accuracy lies above chance at all."""
    for name in (OURS, BOUND):
        found, _ = estimate([run.smooth[-1] for run in runs.get(name, {}).values()])
        if math.isnan(found.mean):
            continue
        above = found.low > chance
        print(
            f"{name}: accuracy of the last rounds {_text(found)} against {chance:.3f} by chance: "
            + ("above it" if above else "NOT shown to be above it; accuracies of this base say nothing about methods")
        )


def _text(found: Estimate) -> str:
    if math.isnan(found.mean):
        return "-"
    if not math.isfinite(found.high - found.low):
        return f"{found.mean:.4g}"
    return f"{found.mean:.4g} [{found.low:.3g}, {found.high:.3g}]"


def report(plan: Plan, results: Mapping[Cell, Finished]) -> None:
    """All tables of one data set."""

    def courses(policy: str, tradeoff: float) -> dict[int, Course]:
        found = {seed: results.get(plan.cell(policy, tradeoff, seed)) for seed in plan.seeds}
        return {seed: Course.of(run.rows) for seed, run in found.items() if run is not None}

    runs = {policy: found for policy in plan.policies if (found := courses(policy, plan.tradeoff))}
    if not runs:
        print(f"\n== {plan.name}: no run finished")
        return
    columns = measures(runs, plan.budget_j)
    print(f"\n== {plan.name}: {len(plan.seeds)} seeds, {CONFIDENCE:.0%} confidence, V = {plan.tradeoff:g} K E^2")
    print_chance(runs, CHANCE[plan.name])
    print_table("After the last round", runs, columns[:3] + columns[9:])
    print_table("Energy efficiency", runs, columns[3:9] + columns[9:12])
    if OURS in runs:
        print_claims(runs, columns)
    swept = {f"V = {value:g}": found for value in plan.sweep if (found := courses(OURS, value))}
    if swept:
        print_table("Switching, V from small to large", swept, (columns[1], columns[0], columns[2], *columns[9:]))


# --- what is run ----------------------------------------------------------------------------------------------------

CHANCE = {"sst2": 0.509, "qnli": 0.505}
"""Share of the commoner label of the held-out split."""

LENGTH = {"sst2": 48, "qnli": 96}


def base_of(name: str, options: argparse.Namespace) -> tuple[str, Path]:
    """Base and data of a set; a prepared base is made where it is missing."""
    if options.base == "tiny":
        return "builtin:tiny", options.data / name
    if options.base != "prepared":
        return str(options.data / "models" / options.base), options.data / name
    from benchmarks.prepared_base import NEW, RECIPES, prepare

    folder = (options.bases / name).resolve()
    if not (folder / "prepared.json").is_file():
        print(f"{folder}: is made, which takes a minute or two")
        prepare(options.data / name, NEW, folder, RECIPES[name], lambda line: None)
    return str(folder), folder / "data"


def plan_of(name: str, options: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    base, source = base_of(name, options)
    steps, batch, rounds = 4, 8, min(options.rounds, 8) if options.quick else options.rounds
    tokens = steps * batch * LENGTH[name]
    training_s = tokens * CYCLES_PER_TOKEN / CPU_HZ
    training_j = KAPPA * CYCLES_PER_TOKEN * tokens * CPU_HZ**2
    limit_j = LIMIT * training_j
    modem_share = 0.5 if options.link == "outage" else 0.33
    scheme = (
        f"scheme={{name='lora-switching', ranks=[2, 4, 8], link='{options.link}', modem_share={modem_share}, "
        f"compute_s={1.5 * training_s:g}, upload_s={options.upload_s:g}, tokens={tokens}, mean_energy_j={limit_j:g}, "
        f"initial_queue_j={options.initial_queue * training_j:g}}}"
    )
    common = (
        *COMMON,
        f"bench.waveform.level={'symbols' if options.link == 'outage' else 'samples'}",
        f"model.base={base}",
        f"data={{source='{source}', template='{name}', max_train=4000, max_test={options.held_out}, "
        "partition={kind='dirichlet', alpha=0.5}}",
        f"training={{task='classification', optimizer='adamw', learning_rate={options.learning_rate:g}, "
        f"local_steps={steps}, batch_size={batch}, sequence_length={LENGTH[name]}, loss_on='response'}}",
        scheme,
        f"bench.world.excess_loss_db={options.loss_db:g}",
        f"rounds={rounds}",
    )
    unit = NUM_BOARDS * training_j**2
    budget_j = float(f"{0.5 * rounds * NUM_BOARDS * limit_j:.2g}")
    if options.quick:
        return Plan(
            name,
            common,
            ("switching", "myopic", "large", BOUND),
            unit,
            options.tradeoff,
            (options.tradeoff, 10.0),
            (1, 2),
            budget_j,
        )
    seeds = tuple(range(1, options.seeds + 1))
    return Plan(name, common, POLICIES, unit, options.tradeoff, tuple(options.sweep), seeds, budget_j)


def main() -> int:
    """Run what is not yet finished, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TESTBED_SHARED_DATA", "../shared/data"))
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--sets", nargs="+", choices=tuple(CHANCE), default=["sst2"])
    parser.add_argument("--base", default="prepared", help="prepared, a folder in DATA/models, or tiny")
    parser.add_argument("--bases", type=Path, default=Path("runs/bases"), help="where prepared bases are, or are made")
    parser.add_argument(
        "--link",
        choices=("outage", "packets"),
        default="outage",
        help="losses of the formula or of the modem: 15 s a round, lower --loss-db for it",
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--sweep", type=float, nargs="*", default=[0.3, 1.0, 3.0, 10.0], metavar="V")
    parser.add_argument("--tradeoff", type=float, default=1.0, metavar="V", help="of the comparison, in units of K E^2")
    parser.add_argument("--initial-queue", type=float, default=0.0, help="Q(0) in units of E: careful from the start")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--held-out", type=int, default=872, help="rows that score")
    parser.add_argument("--upload-s", type=float, default=2.0)
    parser.add_argument("--loss-db", type=float, default=65.0, help="excess loss of the room")
    parser.add_argument("--store", type=Path, default=Path("runs/switching_learning.jsonl"))
    parser.add_argument("--workers", type=int, help="processes; one for each core by default")
    parser.add_argument("--quick", action="store_true", help="eight rounds of four policies on one set, two seeds")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return 0
    options.data = options.data.resolve()
    if options.quick:
        options.sets, options.held_out = options.sets[:1], min(options.held_out, 200)
    complete = True
    for name in options.sets:
        try:
            plan = plan_of(name, options)
        except ConfigError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            complete = False
            continue
        results = run_campaign(plan.cells(), options.store, workers=options.workers)
        complete &= len(results) == len(plan.cells())
        report(plan, results)
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
