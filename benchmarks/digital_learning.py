"""Learning over digital uplinks in a narrow band: JCPBA, SOFT with TSFA, and what they are compared with.

    .venv/bin/python -m benchmarks.digital_learning [DATA] [--quick] [--sets sst2] [--bases tiny] [--methods NAME ...]
    .venv/bin/python -m benchmarks.digital_learning --base FOLDER

Ten unlike boards share 150 kHz (bench `cell`, whose boards here take five times as many cycles for a token): training
and sending take about as long, powers differ by 20 dB and processors by ten. All seven projections of a layer are
adapted, so that pruning shrinks what is sent. Links are error-free at the Shannon rate less 3 dB; with every method a
board sends as soon as it has trained. The channel is simulated at the level of symbols. `--base` takes any local model
folder; of one that `benchmarks.prepared_base` made, the rows that it left for the boards are used.
DATA is a folder with gsm8k/, dbpedia14/, sst2/ and models/stories260K, by default what TESTBED_SHARED_DATA names, else
../shared/data. The topics of DBpedia stand in for those of Yahoo Answers, whose data may not be passed on. Classes are
dealt unevenly (Dirichlet, 0.5), GSM8K at random.

All methods share data, start, rounds and step size, seed by seed. Printed are, as means over seeds with 95 % intervals:
test loss and accuracy after the last round, megabytes on air, simulated seconds of a round; seconds, megabytes and core
seconds until the target, and how many seeds reached it; and, seed by seed, differences and ratios to the methods that
the papers' abstracts speak of. The target is where whole updates in 32 bits ("ideal") have come nine tenths of their
way. Seconds are those of the simulated clock: training by the bench's cycles, sending by the rates. Core seconds are
this machine's for the whole simulation of that many rounds, every board and the controller together; at the end stands
what a run of each method has cost, from which a campaign can be planned.

Whether an abstract's claim holds is decided by the interval, not by the mean; where it contains no difference, or ends
within it, that is said. What is finished is kept (--store). `--quick` takes a few minutes on two cores: every kind of
method, but so few rounds, seeds and test rows that it shows no more than that everything works.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.campaign import Cell, Finished, run_campaign
from benchmarks.learning_tables import Estimate
from benchmarks.line_figure import Line, Panel, figure

IDEAL, FEDIT, JCPBA, SOFT = "ideal", "FedIT", "JCPBA joint", "SOFT-TSFA"
SHARE = 0.9
"""Of the way of whole updates over error-free links that leads to the target."""


@dataclass(frozen=True)
class Method:
    """One line of the tables.

    Attributes:
        name: of the line.
        preset: that it extends.
        changes: overrides of the preset.
        limited: whether it follows the latency limit of SOFT's preset.
    """

    name: str
    preset: str
    changes: tuple[str, ...] = ()
    limited: bool = False


METHODS = (
    Method(IDEAL, "soft-ideal"),
    Method(FEDIT, "jcpba-none-equal"),
    Method(JCPBA, "jcpba"),
    Method("JCPBA bcd", "jcpba-bcd"),
    Method("no pruning, best shares", "jcpba-none"),
    Method("uniform, equal shares", "jcpba-uniform-equal"),
    Method("uniform, best shares", "jcpba-uniform"),
    Method("best, equal shares", "jcpba-equal-band"),
    Method("random, best shares", "jcpba-random"),
    Method(SOFT, "soft-tsfa", limited=True),
    Method("SOFT equal shares", "soft-equal-band", limited=True),
    Method("SOFT myopic", "soft-myopic", limited=True),
    Method("SOFT fixed keep", "soft-fixed-keep"),
    Method("no orthogonality", "soft-no-orthogonality", limited=True),
    Method("no error feedback", "soft-no-feedback", limited=True),
    Method("norms apart", "soft-separate", limited=True),
    Method("random pairs", "soft-random", limited=True),
    Method("FLASC values", "soft-flasc", limited=True),
    Method("FedSRD scores", "soft-scores", limited=True),
    Method("FFA-LoRA", "jcpba-none-equal", ("lora.freeze_a=true",)),
    Method("FlexLoRA", "soft-flexlora"),
    Method("HetLoRA", "soft-hetlora"),
    Method("HetLoRA, ranks fixed", "soft-hetlora-fixed"),
    Method("FSLoRA", "soft-fslora"),
    Method("FLoRA", "soft-flora"),
    Method("FedSVD", "soft-fedsvd"),
    Method("EcoLoRA", "soft-ecolora"),
    Method("FedSRD", "soft-fedsrd"),
    Method("FedSRD in turn", "soft-fedsrd", ("scheme.aggregation=alternating",)),
    Method("top-k", "soft-topk"),
    Method("top-k, feedback", "soft-topk-feedback"),
    Method("top-k, Golomb", "soft-topk-golomb"),
)
QUICK = (
    IDEAL, FEDIT, JCPBA, "JCPBA bcd", "uniform, best shares", SOFT, "random pairs", "FFA-LoRA", "FlexLoRA", "HetLoRA",
    "FSLoRA", "FLoRA", "FedSVD", "EcoLoRA", "FedSRD", "top-k, feedback",
)  # fmt: skip

DRAWN = (
    IDEAL,
    FEDIT,
    JCPBA,
    "JCPBA bcd",
    "uniform, best shares",
    SOFT,
    "FFA-LoRA",
    "FSLoRA",
    "FedSRD",
    "top-k, feedback",
)
"""Lines of the figure, where no methods are named: more than ten cannot be told apart."""

_BOARDS = ((2, 10, 6e9), (2, -10, 6e9), (4, 0, 1.5e9), (1, 10, 6e8), (1, -10, 6e8))
"""Of bench `cell`: how many, highest power in dBm, cycles a second."""
_CYCLES = 1e7
"""Of a token: with seven projections an update takes long to send, and so should training."""
_NODES = ", ".join(
    f"{{name='node-{{:02d}}', count={count}, max_power_dbm={power:.1f}, cpu_hz={speed}, cycles_per_token={_CYCLES}}}"
    for count, power, speed in _BOARDS
)

COMMON = (
    f"bench.nodes=[{_NODES}]",
    "bench.waveform.level=symbols",
    "audit=false",
)
LIMITS = {("sst2", True): (5.0, 10), ("dbpedia14", True): (18.5, 10), ("gsm8k", False): (14.0, 40)}
"""Data set, and whether its base is prepared -> SOFT's mean round in seconds, and V: between the rounds that send least
and those that send all. Updates of prepared bases are a third as long."""
LIMIT = (10.5, 40)
"""Of the others."""
PREPARED = ("training.learning_rate=2e-3", "data.max_test=200")
"""A base that knows its task takes smaller steps; its accuracy tells something, and so needs more rows."""
QUICKER = ("data.max_train=300", "data.max_test=20")
EXPECTED = ("scheme.tokens=400",)
"""What JCPBA assumes of a board's round until it has been measured: about what these trainings take."""


def prepared(base: Path) -> tuple[str, int] | None:
    """Data set and row length for which `benchmarks.prepared_base` made a folder; None of any other."""
    facts = base / "prepared.json"
    if not facts.is_file():
        return None
    recipe = json.loads(facts.read_text(encoding="utf-8"))["recipe"]
    return recipe["template"], recipe["length"]


def bases(data: Path) -> dict[str, str]:
    """Base models."""
    return {"stories260K": str(data / "models/stories260K"), "tiny": "builtin:tiny"}


def sets(data: Path) -> dict[str, tuple[str, ...]]:
    """The data sets with their training: batches that a core trains in a few hundredths of a second."""
    dealt, size = "partition={kind='dirichlet', alpha=0.5}", "max_train=1000, max_test=40"
    step = "optimizer='adamw', learning_rate=1e-2, loss_on='response'"

    def classes(name: str, length: int) -> tuple[str, ...]:
        return (
            f"data={{source='{data / name}', template='{name}', {size}, {dealt}}}",
            f"training={{task='classification', {step}, local_steps=3, batch_size=4, sequence_length={length}}}",
        )

    return {
        "dbpedia14": classes("dbpedia14", 48),
        "sst2": classes("sst2", 48),
        "gsm8k": (
            f"data={{source='{data / 'gsm8k'}', template='gsm8k', {size}}}",
            f"training={{{step}, local_steps=3, batch_size=2, sequence_length=128}}",
        ),
    }


@dataclass(frozen=True)
class Study:
    """All runs of one base and one data set.

    Attributes:
        title: of tables and figure.
        runs: method -> seed -> run, in the order of the tables; methods and seeds whose runs failed are absent.
        asked: number of seeds asked for.
    """

    title: str
    runs: Mapping[str, Mapping[int, Finished]]
    asked: int

    def target(self, seed: int) -> float | None:
        """Loss that counts as reached; None where the ideal run is missing."""
        one = self.runs.get(IDEAL, {}).get(seed)
        if one is None:
            return None
        first, last = one.rows[0]["loss"], one.rows[-1]["loss"]
        return float(first - SHARE * (first - last))

    def over(self, method: str, value: Callable[[Finished], float | None]) -> dict[int, float]:
        """Seed -> a figure of a method's run; where it is None the seed is absent."""
        found = {seed: value(one) for seed, one in self.runs.get(method, {}).items()}
        return {seed: known for seed, known in found.items() if known is not None}

    def until(self, method: str, cost: Callable[[Finished, int], float]) -> dict[int, float]:
        """Seed -> cost of a run up to the round that reached the target; seeds that did not are absent."""

        def reached(one: Finished) -> float | None:
            target = self.target(one.cell.seed)
            scored = [row for row in one.rows if row["loss"] is not None]
            rounds = [row["round"] for row in scored if target is not None and row["loss"] <= target]
            return cost(one, rounds[0]) if rounds else None

        return self.over(method, reached)

    def apart(self, mine: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
        """Mean difference, seed by seed."""
        return Estimate.of([mine[seed] - other[seed] for seed in mine if seed in other])

    def ratio(self, mine: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
        """Geometric mean of the ratio, seed by seed."""
        both = [seed for seed in mine if seed in other and mine[seed] > 0 and other[seed] > 0]
        found = Estimate.of([math.log(mine[seed] / other[seed]) for seed in both])
        # one seed has no interval, in logarithms or otherwise
        return Estimate(math.exp(found.mean), -math.inf, math.inf) if len(both) == 1 else found.exp()


def final_loss(one: Finished) -> float:
    """Test loss after the last round, nats a token."""
    return float(one.rows[-1]["loss"])


def final_accuracy(one: Finished) -> float | None:
    """Test accuracy after the last round; None where nothing is classified."""
    return one.rows[-1]["accuracy"]


def seconds(one: Finished, rounds: int | None = None) -> float:
    """Simulated seconds of the first rounds."""
    return float(sum(row["latency_s"] for row in one.rows if rounds is None or row["round"] <= rounds))


def megabytes(one: Finished, rounds: int | None = None) -> float:
    """On air, all boards together."""
    return 1e-6 * sum(row["uplink_bytes"] or 0 for row in one.rows if rounds is None or row["round"] <= rounds)


def core_seconds(one: Finished, rounds: int) -> float:
    """Of this machine, in proportion to the rounds."""
    return one.cpu_s * rounds / one.rows[-1]["round"]


def seconds_a_round(one: Finished) -> float:
    """Mean over the rounds."""
    return seconds(one) / float(one.rows[-1]["round"])


def text(estimate: Estimate, digits: int = 3) -> str:
    """Mean and interval."""
    if math.isnan(estimate.mean):
        return "-"
    shown = f"{estimate.mean:.{digits}g}"
    if not math.isfinite(estimate.high - estimate.low):
        return shown
    return f"{shown} [{estimate.low:.{digits}g}, {estimate.high:.{digits}g}]"


def print_tables(study: Study) -> None:
    """What every method reached, and what it cost."""
    print(f"\n== {study.title}: {study.asked} seeds, means and 95 % intervals; `apart` are differences to {IDEAL}")
    columns = ("test loss", "loss apart", "accuracy", "accuracy apart", "MB on air", "s a round")
    print(f"{'':25}" + "".join(f"{name:>25}" for name in columns))
    ideal_loss, ideal_accuracy = study.over(IDEAL, final_loss), study.over(IDEAL, final_accuracy)
    for name in study.runs:
        loss, accuracy = study.over(name, final_loss), study.over(name, final_accuracy)
        shown = (
            Estimate.of([*loss.values()]),
            study.apart(loss, ideal_loss),
            Estimate.of([*accuracy.values()]),
            study.apart(accuracy, ideal_accuracy),
            Estimate.of([*study.over(name, megabytes).values()]),
            Estimate.of([*study.over(name, seconds_a_round).values()]),
        )
        failed = study.asked - len(study.runs[name])
        told = f"  ({failed} runs failed)" if failed else ""
        print(f"{name:25}" + "".join(f"{text(one):>25}" for one in shown) + told)
    print(f"\n-- until the target ({SHARE:.0%} of the way of {IDEAL}); of the seeds that reached it")
    costs = ("rounds", "simulated s", "s over FedIT", "MB on air", "core s")
    print(f"{'':25}{'reached':>10}" + "".join(f"{name:>24}" for name in costs))
    for name, runs in study.runs.items():
        waited = study.until(name, seconds)
        spent = (
            Estimate.of([*study.until(name, lambda _, rounds: float(rounds)).values()]),
            Estimate.of([*waited.values()]),
            study.ratio(waited, study.until(FEDIT, seconds)),
            Estimate.of([*study.until(name, megabytes).values()]),
            Estimate.of([*study.until(name, core_seconds).values()]),
        )
        print(f"{name:25}{f'{len(waited)} of {len(runs)}':>10}" + "".join(f"{text(one):>24}" for one in spent))


def print_claims(study: Study) -> None:
    """What of the abstracts holds here."""
    print("\n-- JCPBA's abstract: significantly less time, equal or lower test loss")
    for name in ("JCPBA bcd", FEDIT, "no pruning, best shares", "uniform, best shares", "random, best shares"):
        if JCPBA not in study.runs or name not in study.runs:
            continue
        mine, other = study.until(JCPBA, seconds), study.until(name, seconds)
        ratio = study.ratio(mine, other)
        per_round = study.ratio(study.over(JCPBA, seconds_a_round), study.over(name, seconds_a_round))
        loss = study.apart(study.over(JCPBA, final_loss), study.over(name, final_loss))
        both = len(mine.keys() & other.keys())
        print(
            f"against {name}: a round lasts {text(per_round)} of its time; to the target {text(ratio)} ({both} seeds: "
            f"{_less(ratio, 1.0, 'less time', 'more time')}); test loss {text(loss)} apart "
            f"({_less(loss, 0.0, 'lower', 'higher')})"
        )
    print("-- SOFT's abstract: accuracy comparable to the ideal, less communication")
    for name in (IDEAL, FEDIT, "random pairs", "top-k, feedback"):
        if SOFT not in study.runs or name not in study.runs:
            continue
        loss = study.apart(study.over(SOFT, final_loss), study.over(name, final_loss))
        accuracy = study.apart(study.over(SOFT, final_accuracy), study.over(name, final_accuracy))
        sent = study.ratio(study.over(SOFT, megabytes), study.over(name, megabytes))
        right = "" if math.isnan(accuracy.mean) else (
            f"; accuracy {text(accuracy)} apart ({_less(accuracy, 0.0, 'lower', 'higher')})"
        )  # fmt: skip
        print(
            f"against {name}: {text(sent)} of its bytes ({_less(sent, 1.0, 'less', 'more')}); test loss {text(loss)} "
            f"apart ({_less(loss, 0.0, 'lower', 'higher')}){right}"
        )


def print_costs(study: Study, rounds: int) -> None:
    """What the runs took of this machine; the first of a process also imports and loads."""
    spent = {name: [one.cpu_s for one in runs.values()] for name, runs in study.runs.items() if runs}
    total = sum(sum(one) for one in spent.values())
    print(f"-- core seconds of a run of {rounds} rounds, median over seeds; all runs together {total / 60:.1f} minutes")
    print(", ".join(f"{name} {np.median(one):.1f}" for name, one in spent.items()))


def _less(estimate: Estimate, border: float, less: str, more: str) -> str:
    """What the interval says about a border."""
    if math.isnan(estimate.mean):
        return "no seed of both"
    if not math.isfinite(estimate.high - estimate.low):
        return "one seed says nothing"
    if estimate.high < border:
        return less
    return more if estimate.low > border else "no difference shown"


def write_figure(studies: Sequence[Study], names: Sequence[str], path: Path) -> None:
    """Per study the test loss of these methods over simulated seconds and over megabytes, mean over seeds."""
    rows = []
    for study in studies:
        panels = []
        for label, cost in (("simulated time, s", seconds), ("uplinks, MB", megabytes)):
            lines = [line for name in study.runs if name in names and (line := _curve(study, name, cost)) is not None]
            panels.append(Panel(study.title, label, "test loss, nats a token", lines, log=True))
        rows.append(panels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(figure("Learning over digital uplinks", rows) + "\n", encoding="utf-8")


def _curve(study: Study, name: str, cost: Callable[[Finished, int], float]) -> Line | None:
    """Mean loss of the rounds over their mean cost."""
    runs = list(study.runs[name].values())
    if not runs:
        return None
    places = [row["round"] for row in runs[0].rows if row["loss"] is not None]
    x = np.array([np.mean([cost(one, index) for one in runs]) for index in places])
    losses = [{row["round"]: row["loss"] for row in one.rows} for one in runs]
    return Line(name, x, np.array([np.mean([loss[index] for loss in losses]) for index in places]))


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Title, overrides and limit of every base with every data set; a prepared base goes with its own rows alone."""
    data, known = options.data.resolve(), bases(options.data.resolve())
    folders = {base: Path(known[base]) for base in options.bases}
    for folder in options.base or ():
        if not folder.is_dir():
            raise SystemExit(f"--base {folder}: there is no such folder; python -m benchmarks.prepared_base makes one")
    if options.base:
        folders = {folder.name: folder.resolve() for folder in options.base}
    for label, folder in folders.items():
        own = prepared(folder)
        for name in options.sets if own is None else [own[0]]:
            overrides = (f"model.base={known.get(label, folder)}", *sets(data)[name])
            if own is not None:
                source, length = folder / "data", own[1]
                overrides = (*overrides, f"data.source={source}", f"training.sequence_length={length}", *PREPARED)
            limit_s, tradeoff = LIMITS.get((name, own is not None), LIMIT)
            limit = (f"scheme.tradeoff={tradeoff}", f"scheme.latency_s={options.limit_s or limit_s}")
            yield f"{name}, {label}", overrides, limit


def main() -> int:
    """Run what is not yet finished, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TESTBED_SHARED_DATA", "../shared/data"))
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--bases", nargs="+", choices=tuple(bases(default)), default=["stories260K"])
    parser.add_argument(
        "--base",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="local model folders instead; prepared ones for their set",
    )
    parser.add_argument("--sets", nargs="+", choices=tuple(sets(default)), default=["dbpedia14", "gsm8k", "sst2"])
    parser.add_argument(
        "--methods", nargs="+", choices=[one.name for one in METHODS], metavar="NAME", help="only these"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument(
        "--limit-s", type=float, dest="limit_s", help="SOFT's limit on the mean round, seconds; by default what fits"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--store", type=Path, default=Path("runs/digital_learning.jsonl"))
    parser.add_argument("--figure", type=Path, default=Path("runs/digital_learning.svg"))
    parser.add_argument("--workers", type=int, help="processes; one for each core by default")
    parser.add_argument("--quick", action="store_true", help="two rounds of some methods, two seeds, one data set")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return 0
    wanted = options.methods or [one.name for one in METHODS]
    if options.quick:
        options.rounds, options.seeds, options.sets = 2, 2, options.sets[:1]
        wanted = options.methods or list(QUICK)
    chosen = [one for one in METHODS if one.name in {*wanted, IDEAL, FEDIT}]
    complete, studies = True, []
    for title, overrides, limit in jobs(options):
        cells = {
            (method.name, seed): Cell(
                f"{title}: {method.name}",
                method.preset,
                (
                    *COMMON,
                    *overrides,
                    f"rounds={options.rounds}",
                    *method.changes,
                    *(limit if method.limited else ()),
                    *(EXPECTED if method.preset.startswith("jcpba") else ()),
                    *(QUICKER if options.quick else ()),
                    *options.changes,
                ),
                seed,
            )
            for method in chosen
            for seed in range(1, options.seeds + 1)
        }
        results = run_campaign(list(cells.values()), options.store, workers=options.workers)
        complete &= len(results) == len(cells)
        runs: dict[str, dict[int, Finished]] = {}
        for (method, seed), cell in cells.items():
            if cell in results:
                runs.setdefault(method, {})[seed] = results[cell]
        studies.append(Study(title, runs, options.seeds))
        print_tables(studies[-1])
        print_claims(studies[-1])
        print_costs(studies[-1], options.rounds)
    write_figure(studies, options.methods or DRAWN, options.figure)
    print(f"figure: {options.figure}")
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
