"""Bandwidth and pruning allocation against cvxpy: the same problem solved three ways in one run, and ratios.

    .venv/bin/python -m benchmarks.allocation [--seed 0] [--repeats 30] [--quick]

1. Min-max bandwidth, K clients with offsets, works and reaches of a usual cell: closed steps (`testbed.opt.share`), one
   instance at a time and in batches of 1,000, against cvxpy with Clarabel, the problem rebuilt for each instance, and
   against its parametrised form (DPP), which is compiled once. Processor time, medians; `apart` is the largest relative
   difference of the values.
2. 1,000 clients, one instance.
3. JCPBA's joint optimum and its block descent, K clients, both penalty curves.
4. What block descent loses: final round over the joint optimum, 40 random instances each.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np

from testbed.opt.share import concave_rate, min_max_share
from testbed.phy.rate import snr_bandwidth_hz
from testbed.problems.cell import cell_gain
from testbed.problems.jcpba.baselines import allocate_for, uniform_pruning
from testbed.problems.jcpba.descent import solve_bcd
from testbed.problems.jcpba.joint import solve_joint
from testbed.problems.jcpba.model import ClientCosts, equal_shares_hz
from testbed.problems.jcpba.penalty import chord, magnitude
from testbed.problems.jcpba.uplink import Shannon

BAND_HZ = 1e6
BUDGET = 0.3


@dataclass(frozen=True)
class Batch:
    """Instances in rows; work in Mbit, reach in MHz, so that the band is 1."""

    work: np.ndarray
    offset: np.ndarray
    reach: np.ndarray


def drawn(num: int, num_clients: int, rng: np.random.Generator) -> Batch:
    """Clients at 50 to 500 m with Rayleigh fading, 16 Mbit, 2 to 20 s of computing before."""
    shape = (num, num_clients)
    gain = cell_gain(rng.uniform(50, 500, shape)) * rng.exponential(1.0, shape)
    return Batch(np.full(shape, 16.0), rng.uniform(2, 20, shape), snr_bandwidth_hz(0.1, gain, 3.98e-21) / 1e6)


def clients(num_clients: int, rng: np.random.Generator, curved: bool) -> ClientCosts:
    """The same cell as costs of JCPBA."""
    batch, ones = drawn(1, num_clients, rng), np.ones(num_clients)
    weights = [rng.standard_normal(2000) / np.sqrt(2000) for _ in range(num_clients)]
    return ClientCosts(
        fixed_s=0.0 * ones,
        scalable_s=batch.offset[0],
        payload_bits=16e6 * ones,
        uplink=Shannon(1e6 * batch.reach[0]),
        weight=ones / num_clients,
        penalty=magnitude(weights) if curved else chord(ones),
        max_ratio=0.9 * ones,
        fixed_payload_bits=0.0 * ones,
    )


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return float(np.median(times))


class Parametrised:
    """The conic problem with parameters, compiled once.

    rate (tau - o) >= work as a second-order cone, |(rate - (tau - o), 2 sqrt(work))| <= rate + (tau - o): a product of
    a parameter with the inverse would have to be compiled for every instance.
    """

    def __init__(self, num_clients: int) -> None:
        self.share, self.end, rate = cp.Variable(num_clients), cp.Variable(), cp.Variable(num_clients)
        self.root, self.offset = cp.Parameter(num_clients, nonneg=True), cp.Parameter(num_clients)
        self.reach = cp.Parameter(num_clients, nonneg=True)
        left = self.end - self.offset
        self.problem = cp.Problem(
            cp.Minimize(self.end),
            [
                -cp.rel_entr(self.share, self.share + self.reach) >= np.log(2) * rate,
                cp.SOC(rate + left, cp.vstack([rate - left, 2 * self.root]), axis=0),
                cp.sum(self.share) <= 1.0,
            ],
        )
        if not self.problem.is_dpp():
            raise RuntimeError("the peer would be compiled anew for every instance")

    def solve(self, batch: Batch, row: int) -> float:
        """The shortest common end."""
        self.root.value, self.offset.value = np.sqrt(batch.work[row]), batch.offset[row]
        self.reach.value = batch.reach[row]
        return solved(self.problem)


def rebuilt(batch: Batch, row: int) -> float:
    """The same, written anew for every instance."""
    share, end = cp.Variable(batch.work.shape[1]), cp.Variable()
    rate = -cp.rel_entr(share, share + batch.reach[row]) / np.log(2)
    rows = [
        rate >= cp.multiply(batch.work[row], cp.inv_pos(end - batch.offset[row])),
        cp.sum(share) <= 1.0,
        end >= float(batch.offset[row].max()),
    ]
    return solved(cp.Problem(cp.Minimize(end), rows))


def solved(problem: cp.Problem) -> float:
    """Its value; NaN where Clarabel fails or doubts."""
    try:
        problem.solve(solver=cp.CLARABEL)
    except cp.error.SolverError:
        return float("nan")
    return float(problem.value) if problem.status == cp.OPTIMAL else float("nan")


def bandwidth(num_clients: int, rng: np.random.Generator, repeats: int) -> None:
    """Part 1 for one number of clients."""
    batch = drawn(1000, num_clients, rng)
    rows, turn = min(repeats, 1000), iter(range(10**9))

    def one() -> None:
        row = next(turn) % 1000
        min_max_share(batch.work[row], batch.offset[row], batch.reach[row], 1.0)

    ours = seconds(one, 20 * repeats)
    whole = min_max_share(batch.work, batch.offset, batch.reach, 1.0)
    many = seconds(lambda: min_max_share(batch.work, batch.offset, batch.reach, 1.0), 7) / 1000
    conic = Parametrised(num_clients)
    conic.solve(batch, 0)
    values: list[float] = []
    compiled = seconds(lambda: values.append(conic.solve(batch, len(values))), rows)
    anew = seconds(lambda: rebuilt(batch, next(turn) % 1000), max(3, rows // 3))
    apart = float(np.nanmax(np.abs(np.array(values) / whole.value[: len(values)] - 1.0)))
    ends = batch.offset + batch.work / concave_rate(whole.share, batch.reach)
    waiting = float(np.max(np.abs(ends / whole.value[:, None] - 1.0)))
    failed = int(np.isnan(values).sum())
    print(
        f"{num_clients:5d} {1e3 * ours:9.3f} {1e3 * many:9.4f} {1e3 * compiled:9.2f} {1e3 * anew:9.2f}"
        f" {compiled / ours:8.0f} x {compiled / many:7.0f} x {anew / ours:7.0f} x   {apart:.0e}   {waiting:.0e}"
        f"   {failed}/{len(values)}"
    )


def losses(num_clients: int, rng: np.random.Generator, num: int) -> None:
    """Part 4 for one number of clients."""
    gaps: dict[str, list[float]] = {}
    for _ in range(num):
        costs = clients(num_clients, rng, curved=False)
        joint = solve_joint(costs, BAND_HZ, BUDGET).value
        none, equal_hz, even = np.zeros(num_clients), equal_shares_hz(costs, BAND_HZ), uniform_pruning(costs, BUDGET)
        found = {
            "descent, pruning first": solve_bcd(costs, BAND_HZ, BUDGET),
            "descent, bandwidth first": solve_bcd(costs, BAND_HZ, BUDGET, first="bandwidth"),
            "uniform pruning, best shares": allocate_for(costs, BAND_HZ, BUDGET, even),
            "uniform pruning, equal shares": allocate_for(costs, BAND_HZ, BUDGET, even, equal_hz),
            "no pruning, best shares": allocate_for(costs, BAND_HZ, BUDGET, none),
            "no pruning, equal shares": allocate_for(costs, BAND_HZ, BUDGET, none, equal_hz),
        }
        for name, solution in found.items():
            gaps.setdefault(name, []).append(100 * (solution.value / joint - 1))
    for name, values in gaps.items():
        print(f"{num_clients:5d}  {name:30s} {np.mean(values):7.1f} % {np.max(values):8.1f} %")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="few repeats and instances")
    options = parser.parse_args()
    repeats, num = (6, 8) if options.quick else (options.repeats, 40)
    warnings.simplefilter("ignore", UserWarning)  # Clarabel's doubts are counted instead
    rng = np.random.default_rng(options.seed)
    print("min-max bandwidth, ms of processor time an instance")
    print("    K       one  in 1,000  cvxpy DPP  rebuilt   DPP/one  DPP/1,000  rebuilt/one  apart  waiting  failed")
    for num_clients in (5, 20, 100):
        bandwidth(num_clients, rng, repeats)
    large = drawn(1, 1000, rng)
    spent = seconds(lambda: min_max_share(large.work[0], large.offset[0], large.reach[0], 1.0), 5 * repeats)
    print(f"\n1,000 clients, one instance: {1e3 * spent:.2f} ms")
    print("\nJCPBA, ms of processor time:      joint   descent")
    for num_clients in (5, 20, 100):
        for curved in (False, True):
            costs = clients(num_clients, rng, curved)
            budget = 0.05 if curved else BUDGET
            joint = seconds(lambda costs=costs, budget=budget: solve_joint(costs, BAND_HZ, budget), repeats)  # type: ignore[misc]
            descent = seconds(lambda costs=costs, budget=budget: solve_bcd(costs, BAND_HZ, budget), repeats)  # type: ignore[misc]
            curve = "16 pieces" if curved else "a line"
            print(f"{num_clients:5d}  penalty {curve:12s} {1e3 * joint:12.2f} {1e3 * descent:9.2f}")
    print("\nlonger than the joint optimum:            mean      largest")
    for num_clients in (3, 10):
        losses(num_clients, rng, num)


if __name__ == "__main__":
    main()
