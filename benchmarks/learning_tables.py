"""Tables and figure of a learning benchmark: what methods reach over seeds, and what it costs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.campaign import Finished
from benchmarks.line_figure import Line, Panel, figure

REFERENCE = "error-free FedAvg"
SHARE = 0.9
"""Of the way of error-free FedAvg, in logarithms, that leads to the target."""
CONFIDENCE = 0.95
COSTS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "rounds": lambda row: 1.0,
    "seconds": lambda row: row["latency_s"],
    "joules": lambda row: row["energy_j"],
}


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval; not a number where nothing is known, an endless interval for one seed."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Mean of independent values with Student's interval."""
        if not values:
            return cls(math.nan, math.nan, math.nan)
        mean = float(np.mean(values))
        if len(values) < 2:
            return cls(mean, -math.inf, math.inf)
        half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
        return cls(mean, mean - half, mean + half)

    def exp(self) -> Estimate:
        """Of the exponential: a geometric mean and its interval."""
        return Estimate(*(math.exp(min(value, 700.0)) for value in (self.mean, self.low, self.high)))


@dataclass(frozen=True)
class Study:
    """All runs of one base and one data set.

    Attributes:
        title: of tables and figure.
        methods: names, in the order of the tables.
        selecting: those of which K boards send at a time.
        concurrency: values of K.
        snrs_db: the sweep.
        table_snr_db: SNR of the tables of costs.
        seeds: asked for.
        runs: (method, K, SNR) -> seed -> run; seeds whose run failed are absent.
        steps: (method, SNR) -> override that sets the step size.
    """

    title: str
    methods: tuple[str, ...]
    selecting: frozenset[str]
    concurrency: tuple[int, ...]
    snrs_db: tuple[float, ...]
    table_snr_db: float
    seeds: tuple[int, ...]
    runs: Mapping[tuple[str, int, float], Mapping[int, Finished]]
    steps: Mapping[tuple[str, float], str]

    def losses(self, method: str, number: int, snr_db: float) -> dict[int, float]:
        """Seed -> loss after the last round, nats a token."""
        runs = self.runs.get((method, number, snr_db), {})
        return {seed: one.rows[-1]["loss"] for seed, one in runs.items()}

    def perplexity(self, method: str, number: int, snr_db: float) -> Estimate:
        """Final perplexity, geometric mean over seeds."""
        return Estimate.of(list(self.losses(method, number, snr_db).values())).exp()

    def best_fixed(self, number: int, snr_db: float) -> str | None:
        """The method with antennas that stand still and K boards at a time whose final perplexity is lowest."""
        known = {
            name: float(np.mean(list(losses.values())))
            for name in self.methods
            if name.startswith("fixed") and name in self.selecting and (losses := self.losses(name, number, snr_db))
        }
        return min(known, key=lambda name: known[name], default=None)

    def ratio(self, method: str, against: str, number: int, snr_db: float) -> Estimate:
        """Final perplexity over another method's, seed by seed."""
        mine, other = self.losses(method, number, snr_db), self.losses(against, number, snr_db)
        return Estimate.of([mine[seed] - other[seed] for seed in mine if seed in other]).exp()

    @cached_property
    def targets(self) -> dict[int, float]:
        """Seed -> loss that counts as reached."""
        best: dict[int, float] = {}
        before: dict[int, float] = {}
        for snr_db in self.snrs_db:
            for seed, one in self.runs.get((REFERENCE, self.concurrency[0], snr_db), {}).items():
                best[seed] = min(best.get(seed, math.inf), one.rows[-1]["loss"])
                before[seed] = one.rows[0]["loss"]
        return {seed: before[seed] - SHARE * (before[seed] - best[seed]) for seed in best}

    def costs(self, method: str, number: int, snr_db: float) -> tuple[int, dict[str, Estimate]]:
        """How many seeds reached the target, and what it took those: rounds, seconds, joules."""
        spent: dict[str, list[float]] = {name: [] for name in COSTS}
        for seed, one in self.runs.get((method, number, snr_db), {}).items():
            reached = [
                row["round"] for row in one.rows if row["loss"] is not None and row["loss"] <= self.targets[seed]
            ]
            if reached:
                rows = [row for row in one.rows if 0 < row["round"] <= reached[0]]
                for name, cost in COSTS.items():
                    spent[name].append(sum(cost(row) for row in rows))
        return len(spent["rounds"]), {name: Estimate.of(values) for name, values in spent.items()}

    def jain(self, method: str, number: int, snr_db: float) -> Estimate:
        """(sum_m c_m)^2 / (M sum_m c_m^2) of how often each board's update arrived."""
        return Estimate.of([_jain(one) for one in self.runs.get((method, number, snr_db), {}).values()])


def _jain(one: Finished) -> float:
    arrived = [name for row in one.rows for name in row["participants"]]
    counts = np.array([arrived.count(name) for name in set(arrived)], np.float64)
    return float(counts.sum() ** 2 / (_num_boards(one) * (counts**2).sum())) if len(counts) else math.nan


def _num_boards(one: Finished) -> int:
    return len(one.cell.load().bench.node_names)


def print_tables(study: Study) -> None:
    """Final perplexity, its ratio to the best fixed array, costs to the target, fairness."""
    print(f"\n== {study.title}: {len(study.seeds)} seeds, {CONFIDENCE:.0%} confidence")
    for number in study.concurrency:
        print(f"\nFinal perplexity, K = {number}")
        _table(study, number, study.perplexity, with_all=number == study.concurrency[0])
        print(f"\nFinal perplexity over that of the best fixed array with K = {number}, seed by seed")
        print(" " * 24 + "".join(f"{study.best_fixed(number, snr_db) or '-':>26}" for snr_db in study.snrs_db))

        def over_best(method: str, number: int, snr_db: float) -> Estimate:
            best = study.best_fixed(number, snr_db)
            return Estimate.of([]) if best is None else study.ratio(method, best, number, snr_db)

        _table(study, number, over_best, with_all=True)
    snr_db = study.table_snr_db
    print(f"\nUntil the target, {snr_db:g} dB; seeds that reached it, and what it took those")
    print(
        f"{'':24}{'K':>4}{'reached':>9}" + "".join(f"{name:>24}" for name in COSTS) + f"{'Jain index':>14}{'step':>34}"
    )
    for number in study.concurrency:
        for method in study.methods:
            if not study.runs.get((method, number, snr_db)):
                continue
            if method not in study.selecting and number != study.concurrency[0]:
                continue
            count, costs = study.costs(method, number, snr_db)
            asked = len(study.runs[method, number, snr_db])
            print(
                f"{method:24}{number if method in study.selecting else '-':>4}{f'{count} of {asked}':>9}"
                + "".join(f"{_text(estimate):>24}" for estimate in costs.values())
                + f"{study.jain(method, number, snr_db).mean:14.3f}{study.steps[method, snr_db]:>34}"
            )


def _table(study: Study, number: int, value: Callable[[str, int, float], Estimate], *, with_all: bool) -> None:
    print(f"{'':24}" + "".join(f"{f'{snr_db:g} dB':>26}" for snr_db in study.snrs_db))
    for method in study.methods:
        if method not in study.selecting and not with_all:
            continue
        values = [value(method, number, snr_db) for snr_db in study.snrs_db]
        if all(math.isnan(estimate.mean) for estimate in values):
            continue
        lost = [
            len(study.seeds) - len(study.runs[method, number, snr_db])
            for snr_db in study.snrs_db
            if (method, number, snr_db) in study.runs
        ]
        failed = f"  ({sum(lost)} runs failed)" if sum(lost) else ""
        print(f"{method:24}" + "".join(f"{_text(estimate):>26}" for estimate in values) + failed)


def _text(estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "-"
    digits = f"{estimate.mean:.4g}"
    if not math.isfinite(estimate.high - estimate.low):
        return digits
    return f"{digits} [{estimate.low:.3g}, {estimate.high:.3g}]"


def write_figure(studies: Sequence[Study], path: Path) -> None:
    """Per study a row of panels with the final perplexity over the SNR, K by K, and a row with rounds to the target."""
    rows = []
    for study in studies:
        shown = [
            name
            for name in study.methods
            if sum((name, study.concurrency[0], snr) in study.runs for snr in study.snrs_db) > 1
        ]
        rows.append([_panel(study, number, shown) for number in study.concurrency])
        rows.append([_rounds_panel(study, number, shown) for number in study.concurrency])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(figure("Learning over the air with movable antennas", rows) + "\n", encoding="utf-8")


def _panel(study: Study, number: int, shown: Sequence[str]) -> Panel:
    lines = []
    for name in shown:
        found = [study.perplexity(name, number, snr_db) for snr_db in study.snrs_db]
        lines.append(_line(name, study.snrs_db, found))
    return Panel(f"{study.title}, K = {number}", "SNR of the median board, dB", "final perplexity", lines, log=True)


def _rounds_panel(study: Study, number: int, shown: Sequence[str]) -> Panel:
    lines = []
    for name in shown:
        found = []
        for snr_db in study.snrs_db:
            count, costs = study.costs(name, number, snr_db)
            all_reached = count and count == len(study.runs.get((name, number, snr_db), {}))
            found.append(costs["rounds"] if all_reached else Estimate.of([]))
        lines.append(_line(name, study.snrs_db, found))
    return Panel("every seed reached the target", "SNR of the median board, dB", "rounds to the target", lines)


def _line(name: str, snrs_db: Sequence[float], found: Sequence[Estimate]) -> Line:
    columns = np.array([[one.mean, one.low, one.high] for one in found])
    return Line(name, np.array(snrs_db), columns[:, 0], columns[:, 1], columns[:, 2])
