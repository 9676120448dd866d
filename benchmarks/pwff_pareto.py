"""The trade between two rewards at like distance from the reference, beside the best that any policy could do there.

One client aligns its private LoRA with weights of helpfulness from 0.9 to 0.1, in stretches after each of which both
rewards and the KL to the reference are measured on held-out prompts; rewards at a common KL are read off that path:
weights whose rewards are easier to raise run further in as many steps. The oracle is the optimum of (B6) in a table,

    pi*(y | x) proportional to pi_ref(y | x) exp(R_k(x, y) / beta),    R_k = l^h r_h + l^s r_s

with the table made of samples of pi_ref on the same prompts, each as likely as the others, and beta such that the mean
KL over prompts is the common one: no policy at that KL has a larger R_k, but for the error of the samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.line_figure import Line, Panel, figure
from testbed.core.orders import WHOLE, Alignment, Part
from testbed.core.specs import JobSpec

BUDGETS = (0.25, 0.5, 1.0, 2.0)
"""KL that points may be compared at, nats a response."""

TITLES = {
    "opposed": ("wanted words", "brevity"),
    "learned": ("helpfulness, learned", "safety, learned"),
}


@dataclass(frozen=True)
class Sweep:
    """What is swept.

    Attributes:
        rewards: opposed, or learned.
        weights: of helpfulness.
        seeds: of alignment, base samples and pairs.
        stretches: measures of each path.
        budget: KL at which points are compared, nats a response, one of `BUDGETS`.
    """

    rewards: str
    weights: Sequence[float]
    seeds: Sequence[int]
    stretches: int
    budget: float


def path_of(trainer: Any, weight: float, stretches: int) -> list[dict[str, float]]:
    """One client's alignment: measures before it, and after every stretch of `[alignment].steps`.

    Args:
        trainer: a `nodes.trainer.Trainer` whose job has `[alignment]`.
        weight: of helpfulness.
        stretches: how many.
    """
    start, vector, objective = trainer.initial, trainer.initial, Alignment((weight, 1.0 - weight))

    def measured(diverged: bool) -> dict[str, float]:
        found = trainer.aligner.measure(vector, start)
        helpful, safe = found.rewards
        return {"helpfulness": float(helpful), "safety": float(safe), "kl": found.kl, "diverged": float(diverged)}

    path = [measured(False)]
    for index in range(1, stretches + 1):
        aligned = trainer.aligner.align(
            "node-00", index, vector, objective, reference=start, part=Part(kinds=("A", "B")), pulled=WHOLE
        )
        vector = aligned.vector
        path.append(measured(aligned.status == "diverged"))
        if aligned.status == "diverged":
            break
    return path


def at_budget(path: Sequence[Mapping[str, float]], budget: float) -> tuple[float, float] | None:
    """Both rewards where the path first reaches a KL; None if it never does.

    Between two measures rewards are linear in the root of the KL, as near the reference: the gain is sqrt(2 KL var R).

    Args:
        path: as of `path_of`.
        budget: nats a response.
    """
    for first, second in pairwise(path):
        if first["kl"] <= budget <= second["kl"] and second["kl"] > first["kl"]:
            low, high = np.sqrt([first["kl"], second["kl"]])
            share = float((np.sqrt(budget) - low) / (high - low))
            helpful, safe = (first[one] + share * (second[one] - first[one]) for one in ("helpfulness", "safety"))
            return helpful, safe
    return None


def tilted(scores: np.ndarray, weight: float, budget: float) -> tuple[float, float]:
    """Mean rewards of the best table at a mean KL: equally likely samples, tilted by exp(R / beta), beta by bisection.

    Args:
        scores: r_h and r_s of samples of pi_ref, shape [num_prompts, num_samples, 2].
        weight: l^h.
        budget: mean KL over prompts, nats; below the log of the number of samples.

    Returns:
        E[r_h], E[r_s], means over prompts.
    """
    reward = scores @ np.array([weight, 1.0 - weight])

    def table(slope: float) -> tuple[np.ndarray, float]:
        exponent = slope * (reward - reward.max(1, keepdims=True))
        share = np.exp(exponent)
        share /= share.sum(1, keepdims=True)
        log = np.log(np.maximum(share, 1e-300) * share.shape[1])
        return share, float((share * log).sum(1).mean())

    low, high = 0.0, 1.0
    while table(high)[1] < budget and high < 1e6:
        high *= 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if table(middle)[1] < budget else (low, middle)
    means = np.einsum("pn,pnj->pj", table(high)[0], scores).mean(0)
    return float(means[0]), float(means[1])


def run(sweep: Sweep, job_of: Any, store: Path, *, num_samples: int = 128) -> tuple[dict[str, Any], ...]:
    """Every seed's paths and oracle; what is in the store is not run again.

    Args:
        sweep: what.
        job_of: seed -> `JobSpec` with `[alignment]`.
        store: JSON lines, appended to.
        num_samples: of the oracle's table, to each prompt.
    """
    from nodes.trainer import Trainer

    known = [json.loads(line) for line in store.read_text().splitlines()] if store.is_file() else []
    done: list[dict[str, Any]] = []
    for seed in sweep.seeds:
        job: JobSpec = job_of(seed)
        key = {
            "rewards": sweep.rewards,
            "seed": seed,
            "weights": list(sweep.weights),
            "stretches": sweep.stretches,
            "job": job.model_dump_json(),
        }
        one = next((one for one in known if key.items() <= one.items()), None)
        if one is None:
            trainer = Trainer(job, device="cpu")
            scores = trainer.aligner.scores_of_base(num_samples, np.random.default_rng([seed, 99]))
            one = {
                **key,
                "paths": [path_of(trainer, weight, sweep.stretches) for weight in sweep.weights],
                "oracle": {
                    str(budget): [tilted(scores, weight, budget) for weight in sweep.weights] for budget in BUDGETS
                },
                "base": scores.mean((0, 1)).tolist(),
            }
            store.parent.mkdir(parents=True, exist_ok=True)
            with store.open("a", encoding="utf-8") as file:
                file.write(json.dumps(one) + "\n")
        done.append(one)
    return tuple(done)


def report(sweep: Sweep, done: Sequence[Mapping[str, Any]], interval: Any) -> tuple[bool, list[Panel]]:
    """Print the comparison; whether both ends of the weights lie on their sides, and panels for the figure.

    Args:
        sweep: what was swept.
        done: as of `run`.
        interval: values -> mean and half width of its interval.
    """
    helpful, safe = TITLES[sweep.rewards]
    print(
        f"\n{sweep.rewards}: {len(done)} seeds, n came so far; means with 95 % t-intervals; {sweep.stretches} stretches"
    )
    print(
        f"{'l^h':>5}{'KL end':>15}{'div':>4}{'n':>3}{f'{helpful} at {sweep.budget:g} nats':>34}"
        f"{f'{safe} at {sweep.budget:g} nats':>34}{'R gain':>16}{'oracle R gain':>16}"
    )
    points, oracle, ends = [], [], []
    for index, weight in enumerate(sweep.weights):
        paths = [one["paths"][index] for one in done]
        share = np.array([weight, 1.0 - weight])
        found = [(at_budget(path, sweep.budget), path[0], one) for path, one in zip(paths, done, strict=True)]
        reached = [
            (np.array(at), np.array([path["helpfulness"], path["safety"]]), one) for at, path, one in found if at
        ]
        kl = interval([path[-1]["kl"] for path in paths])
        wild = sum(int(path[-1]["diverged"]) for path in paths)
        best = np.array([one["oracle"][str(sweep.budget)][index] for one in done])
        oracle.append(best.mean(0))
        ends.append([np.array([path[-1]["helpfulness"], path[-1]["safety"]]) for path in paths])
        if len(reached) < 2:
            print(f"{weight:5.1f}{f'{kl[0]:.1f} +- {kl[1]:.1f}':>15}{wild:4d}  reached by {len(reached)} seeds")
            continue
        first, second = (interval([at[axis] for at, _, _ in reached]) for axis in (0, 1))
        start = np.mean([before for _, before, _ in reached], axis=0)
        gain = interval([float(share @ (at - before)) for at, before, _ in reached])
        top = np.mean(
            [
                float(share @ (np.array(one["oracle"][str(sweep.budget)][index]) - np.array(one["base"])))
                for _, _, one in reached
            ]
        )
        points.append((weight, first, second))
        told = [
            f"{begin:+.2f} -> {mean:+.2f} +- {half:.2f}"
            for begin, (mean, half) in zip(start, (first, second), strict=True)
        ]
        print(
            f"{weight:5.1f}{f'{kl[0]:.1f} +- {kl[1]:.1f}':>15}{wild:4d}{len(reached):3d}{told[0]:>34}{told[1]:>34}"
            f"{f'{gain[0]:+.2f} +- {gain[1]:.2f}':>16}{top:+16.2f}"
        )
    slopes = []
    for number in range(len(done)):
        apart = [ends[index][number][1] - ends[index][number][0] for index in range(len(sweep.weights))]
        slopes.append(float(np.polyfit([1.0 - weight for weight in sweep.weights], apart, 1)[0]))
    mean, half = interval(slopes)
    print(f"slope of ({safe} - {helpful}) at the end over l^s: {mean:+.2f} +- {half:.2f}; the trade moves if positive")
    return mean > half, _panels(sweep, points, np.array(oracle), done, interval)


def _panels(
    sweep: Sweep, points: Sequence[Any], oracle: np.ndarray, done: Sequence[Mapping[str, Any]], interval: Any
) -> list[Panel]:
    helpful, safe = TITLES[sweep.rewards]
    order = np.argsort(oracle[:, 0])
    lines = [Line("oracle at this KL", oracle[order, 0], oracle[order, 1])]
    if points:
        ordered = sorted(points, key=lambda point: point[1][0])
        x = np.array([first[0] for _, first, _ in ordered])
        y, half = (np.array([second[place] for _, _, second in ordered]) for place in (0, 1))
        lines.append(Line("aligned", x, y, y - half, y + half))
    trade = Panel(f"{sweep.rewards}: at {sweep.budget:g} nats", f"{helpful}, deviations", f"{safe}, deviations", lines)
    gains = []
    for index, weight in enumerate(sweep.weights):
        paths = [one["paths"][index] for one in done]
        length = min(map(len, paths))
        kl = np.array([np.mean([path[place]["kl"] for path in paths]) for place in range(length)])
        value = [
            [weight * (path[place]["helpfulness"] - path[0]["helpfulness"])
             + (1 - weight) * (path[place]["safety"] - path[0]["safety"]) for path in paths]
            for place in range(length)
        ]  # fmt: skip
        y, half = (np.array(part) for part in zip(*(interval(one) for one in value), strict=True))
        gains.append(Line(f"l^h = {weight:g}", kl, y, y - half, y + half))
    return [trade, Panel(f"{sweep.rewards}: along alignment", "KL, nats a response", "gain of R_k, deviations", gains)]


def draw(panels: Sequence[Sequence[Panel]], file: Path) -> None:
    """Write the figure.

    Args:
        panels: a row for each kind of rewards.
        file: SVG.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(figure("The trade between two rewards", panels), encoding="utf-8")
    print(f"\nfigure: {file}")
