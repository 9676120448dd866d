"""Time of the antennas' placement, beside cvxpy on the same subproblems, and how it grows with N, K and L.

    .venv/bin/python -m benchmarks.placement [--instances 8] [--seed 0] [--plot FILE.svg]

N = 8 antennas in a square of four wavelengths, K = 8 nodes of L = 6 waves, six starts; CPU time of this process, so run
it with OMP_NUM_THREADS=1. Subproblems are taken where the search takes them: the combiner's programme, the positions'
programme with the minorants of all nodes (quadratically constrained), the joint step, and the block of the penalty
decomposition. cvxpy solves each with Clarabel, compiled once with parameters (DPP); its time is that of setting the
parameters and solving, ours that of the call which gets the same numbers (for the positions: which also computes them).
`apart` is the largest relative difference of the two optima. The last lines weigh the subproblems by how often one
placement solves them: first subproblem against subproblem, then cvxpy's part alone against our whole placement.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import cvxpy as cp
import numpy as np

from benchmarks.antenna_gain import WAVELENGTH_M, square
from calibration.svg_plot import svg
from testbed.opt.least_distance import least_distance, quadratic, raise_least
from testbed.opt.solution import Solution
from testbed.phy.aperture import PathSet
from testbed.problems.ma_ota.joint import Antennas, Expansion, JointGain
from testbed.problems.ma_ota.placement import Placement, place
from testbed.problems.ma_ota.positions import Freedom, improve_positions, minorant
from testbed.problems.ma_ota.starts import promising_layouts
from testbed.problems.multicast import improve_combiner, multicast, weakest_gain

NUM_ANTENNAS, NUM_NODES, NUM_PATHS, SIDE, STARTS = 8, 8, 6, 4.0, 6
METHODS = ("pdd", "sca", "ao")
CALLS = {
    "combiner": "testbed.problems.multicast.least_distance",
    "positions": "testbed.problems.ma_ota.placement.improve_positions",
    "joint step": "testbed.problems.ma_ota.joint.raise_least",
    "block of pdd": "testbed.problems.ma_ota.coupled.quadratic",
}


@dataclass
class Race:
    """Seconds of both for one kind of subproblem, and how far their optima are apart."""

    ours_s: list[float] = field(default_factory=list)
    theirs_s: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - begun) / repeats


def solved(problem: cp.Problem, values: dict[cp.Parameter, np.ndarray]) -> float:
    """CPU seconds of setting the parameters and solving."""
    begun = time.process_time()
    for parameter, value in values.items():
        parameter.value = value
    problem.solve(cp.CLARABEL)
    return time.process_time() - begun


class Peers:
    """Each subproblem in cvxpy, compiled once."""

    def __init__(self, num_rows: int) -> None:
        nodes, count = NUM_NODES, 2 * NUM_ANTENNAS
        wide = 2 * count
        self.z, self.rows, self.bounds = cp.Variable(count), cp.Parameter((nodes, count)), cp.Parameter(nodes)
        self.combiner = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(self.z)), [self.rows @ self.z >= self.bounds])
        self.values, self.slopes = cp.Parameter(nodes), cp.Parameter((nodes, count))
        self.bends = [cp.Parameter((count, count)) for _ in range(nodes)]
        self.walls, self.edges = cp.Parameter((num_rows, count)), cp.Parameter(num_rows)
        step, level = cp.Variable(count), cp.Variable()
        models = [
            self.values[m] + self.slopes[m] @ step - 0.5 * cp.sum_squares(self.bends[m] @ step) >= level
            for m in range(nodes)
        ]
        self.positions = cp.Problem(cp.Maximize(level), [*models, self.walls @ step >= self.edges])
        self.all_slopes, self.charge = cp.Parameter((nodes, wide)), cp.Parameter((wide, wide))
        self.weight = cp.Parameter(nonneg=True)
        whole, risen = cp.Variable(wide), cp.Variable()  # risen: the level less the least value
        charge = 0.5 * cp.sum_squares(self.charge @ whole) + 0.5 * self.weight * cp.square(risen)
        self.joint = cp.Problem(
            cp.Maximize(risen - charge),
            [self.values + self.all_slopes @ whole >= risen, self.walls @ whole[count:] >= self.edges],
        )
        self.table, self.left = cp.Parameter((2 * nodes, wide)), cp.Parameter(2 * nodes)
        follow = cp.Variable(wide)
        self.block = cp.Problem(
            cp.Minimize(0.5 * cp.sum_squares(self.table @ follow + self.left) + 0.05 * cp.sum_squares(follow)),
            [self.walls @ follow[count:] >= self.edges],
        )


def race(peers: Peers, joint: JointGain, point: Antennas, races: dict[str, Race], repeats: int) -> None:
    """Every kind of subproblem around one point, once by each."""
    channel = joint.channel(point.positions_m)
    count = 2 * NUM_ANTENNAS
    # combiner
    z = point.combiner / np.sqrt(weakest_gain(channel, point.combiner))
    heard = z.conj() @ channel
    turned = (channel * heard.conj()).T
    rows, bounds = np.hstack([turned.real, turned.imag]), 0.5 * (1.0 + np.abs(heard) ** 2)
    mine = least_distance(rows, bounds)
    assert mine is not None
    theirs = solved(peers.combiner, {peers.rows: rows, peers.bounds: bounds})
    ours = seconds(lambda: least_distance(rows, bounds), repeats)
    note(races["combiner"], ours, theirs, 0.5 * mine.point @ mine.point, peers.combiner.value)
    # positions, one turn of the alternation on: with the weights that the turn before gave
    moved_m, weights = improve_positions(joint.paths, joint.freedom, point.positions_m, point.combiner)
    point = joint.start(moved_m, improve_combiner(joint.channel(moved_m), point.combiner))
    below = minorant(joint.paths, point.positions_m, point.combiner)

    def improve() -> np.ndarray:
        found = improve_positions(joint.paths, joint.freedom, point.positions_m, point.combiner, weights=weights)
        return found[0]

    walls, edges = joint.freedom.rows(point.positions_m)
    values = {peers.values: below.values, peers.slopes: below.slopes.reshape(NUM_NODES, -1)}
    for m, bend in enumerate(peers.bends):
        size, axes = np.linalg.eigh(below.curvature[m])
        root = np.zeros((NUM_ANTENNAS, 2, NUM_ANTENNAS, 2))
        index = np.arange(NUM_ANTENNAS)
        root[index, :, index, :] = np.sqrt(np.maximum(size, 0.0))[:, :, None] * np.swapaxes(axes, 1, 2)
        values[bend] = root.reshape(count, count)
    theirs = solved(peers.positions, {**values, peers.walls: walls, peers.edges: edges})
    ours = seconds(improve, repeats)
    note(races["positions"], ours, theirs, below.at(improve()).min(), peers.positions.value)
    # joint step
    expansion = Expansion(joint, point.positions_m, point.combiner)
    level = float(expansion.values.min())
    size, axes = np.linalg.eigh(-joint.curvature(expansion, point))
    size = np.abs(size) + 0.1 * level
    wide = np.hstack([np.zeros((len(walls), count)), walls])
    root = axes / np.sqrt(size)
    raised = raise_least(expansion.values, expansion.slopes, root, wide, edges)
    assert raised is not None
    steps = {peers.values: expansion.values - level, peers.all_slopes: expansion.slopes, peers.walls: walls}
    steps |= {peers.charge: np.sqrt(size)[:, None] * axes.T, peers.edges: edges, peers.weight: 0.01 / level}
    theirs = solved(peers.joint, steps)
    ours = seconds(lambda: raise_least(expansion.values, expansion.slopes, root, wide, edges), repeats)
    risen = raised.level - level
    charged = 0.5 * np.sum((raised.step @ axes) ** 2 * size) + 0.005 / level * risen**2
    note(races["joint step"], ours, theirs, level + risen - charged, level + peers.joint.value)
    # block of the decomposition: every node is to be heard a fifth louder
    table = np.concatenate([expansion.turning.real, expansion.turning.imag])
    short = -0.2 * np.concatenate([expansion.heard.real, expansion.heard.imag])

    def follow() -> np.ndarray:
        charged = table.T @ table + 0.1 * np.eye(2 * count)
        nearest = quadratic(np.linalg.inv(np.linalg.cholesky(charged)).T, table.T @ short, wide, edges)
        assert nearest is not None
        return nearest.point

    theirs = solved(peers.block, {peers.table: table, peers.left: short, peers.walls: walls, peers.edges: edges})
    moved = follow()
    reached = 0.5 * np.sum((table @ moved + short) ** 2) + 0.05 * moved @ moved
    note(races["block of pdd"], seconds(follow, repeats), theirs, float(reached), peers.block.value)


def note(one: Race, ours_s: float, theirs_s: float, mine: float, other: float) -> None:
    """Add a pair of measurements."""
    one.ours_s.append(ours_s)
    one.theirs_s.append(theirs_s)
    one.apart.append(abs(mine - other) / abs(other))


def subproblems(instances: int, seed: int) -> dict[str, Race]:
    """Both solvers around points of a climb."""
    aperture = square(NUM_ANTENNAS, SIDE, 2.0 * np.pi)
    freedom = Freedom(aperture)
    peers = Peers(len(freedom.rows(aperture.home_m)[1]))
    races = {kind: Race() for kind in CALLS}
    for index in range(instances + 1):
        rng = np.random.default_rng([seed, index])
        joint = JointGain(PathSet.draw(rng, NUM_NODES, NUM_PATHS, 2.0 * np.pi), freedom)
        layout = promising_layouts(joint.paths, aperture, 1, rng)[0]
        point = joint.start(layout, multicast(joint.channel(layout)).point)
        # the first instance compiles
        race(peers, joint, point, races if index else {kind: Race() for kind in CALLS}, 20)
    return races


def counted(method: str, instances: int, seed: int) -> tuple[dict[str, float], list[float], list[Solution[Placement]]]:
    """How often one placement solves each subproblem, and seconds and solutions of uncounted placements."""
    counts = dict.fromkeys(CALLS, 0.0)
    times, found = [], []
    aperture = square(NUM_ANTENNAS, SIDE)
    for index in range(instances):
        paths = PathSet.draw(np.random.default_rng([seed, index]), NUM_NODES, NUM_PATHS, WAVELENGTH_M)

        def run(paths: PathSet = paths, index: int = index) -> Solution[Placement]:
            rng = np.random.default_rng([seed, index, 1])
            return place(paths, aperture, rng=rng, num_starts=STARTS, method=method)  # type: ignore[arg-type]

        begun = time.process_time()
        found.append(run())
        times.append(time.process_time() - begun)
        for kind, target in CALLS.items():
            module, name = target.rsplit(".", 1)
            whole = getattr(__import__(module, fromlist=[name]), name)
            with patch(target, side_effect=whole) as watched:
                run()
            counts[kind] += watched.call_count / instances
    return counts, times, found


def cost(num_antennas: int, num_nodes: int, num_paths: int, instances: int, seed: int, method: str) -> float:
    """Median CPU seconds of a placement."""
    times = []
    for index in range(instances):
        rng = np.random.default_rng([seed, index])
        paths = PathSet.draw(rng, num_nodes, num_paths, WAVELENGTH_M)
        aperture = square(num_antennas, max(SIDE, 0.5 * num_antennas))
        begun = time.process_time()
        place(paths, aperture, rng=rng, num_starts=STARTS, method=method)  # type: ignore[arg-type]
        times.append(time.process_time() - begun)
    return float(np.median(times))


def growth(instances: int, seed: int) -> dict[str, tuple[list[int], list[float]]]:
    """Cost along each size, the others held."""
    curves = {}
    print(f"\ncost, ms (median of {instances}; N = 8, K = 8, L = 6 where held)")
    for name, sizes in (("N", [2, 4, 8, 12, 16]), ("K", [1, 2, 4, 8, 12]), ("L", [1, 2, 6, 12, 24])):
        for method in ("pdd", "sca"):
            held = {"N": NUM_ANTENNAS, "K": NUM_NODES, "L": NUM_PATHS}
            shapes = [{**held, name: size} for size in sizes]
            costs = [1e3 * cost(one["N"], one["K"], one["L"], instances, seed, method) for one in shapes]
            print(f"{method}  {name} = " + "   ".join(f"{a}: {b:.0f}" for a, b in zip(sizes, costs, strict=True)))
            curves[f"{method}, {name}"] = (sizes, costs)
    return curves


def figure(curves: dict[str, tuple[list[int], list[float]]]) -> str:
    """One panel for each curve, with a straight line through it."""
    parts, top, height = [], 0, 440
    for name, (sizes, costs) in curves.items():
        x, y = np.array(sizes, float), np.array(costs)
        method, size = name.split(", ")
        line = np.polyval(np.polyfit(x, y, 1), x)
        panel = svg(f"A placement ({method}) over {size}", size, "CPU time, ms", x, y, line)
        parts.append(f'<g transform="translate(0,{top})">{panel}</g>')
        top += height
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="740" height="{top}">' + "".join(parts) + "</svg>"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="figure of the cost over N, K and L, as SVG")
    options = parser.parse_args()
    if options.instances < 1:
        parser.error("at least 1 instance")
    warnings.simplefilter("ignore")  # cvxpy's doubts about accuracy show in `apart`
    print(
        f"N = {NUM_ANTENNAS}, K = {NUM_NODES}, L = {NUM_PATHS}, {STARTS} starts; "
        f"{options.instances} instances, CPU time of one core"
    )
    print("subproblem       ours, ms   cvxpy, ms   ratio   apart")
    races = subproblems(options.instances, options.seed)
    ours, theirs = {}, {}
    for kind, one in races.items():
        ours[kind], theirs[kind] = float(np.median(one.ours_s)), float(np.median(one.theirs_s))
        ratio = theirs[kind] / ours[kind]
        print(f"{kind:14s} {1e3 * ours[kind]:10.3f} {1e3 * theirs[kind]:11.2f} {ratio:7.1f}   {max(one.apart):.1e}")
    print("\nmethod   placement, ms: median, most   worst residual   mean gain   cvxpy/ours: subproblems   whole")
    for method in METHODS:
        counts, times, found = counted(method, options.instances, options.seed)
        mine = sum(counts[kind] * ours[kind] for kind in CALLS)
        peer = sum(counts[kind] * theirs[kind] for kind in CALLS)
        print(
            f"{method:6s} {1e3 * np.median(times):14.0f} {1e3 * max(times):14.0f} "
            f"{max(one.kkt_residual for one in found):19.1e} {np.mean([one.value for one in found]):11.3f} "
            f"{peer / mine:25.1f} {peer / np.median(times):17.1f}",
            flush=True,
        )
    curves = growth(max(2, options.instances // 2), options.seed)
    if options.plot:
        options.plot.write_text(figure(curves), encoding="utf-8")
        print(f"figure in {options.plot}")


if __name__ == "__main__":
    main()
