"""Penalty dual decomposition: coupled blocks, solved one after the other, tied ever tighter.

maximise f(x) subject to c(x) = 0 (complex) by blocks of the augmented Lagrangian

    L(x; lambda, rho) = -f(x) + 1 / (2 rho) || c(x) + rho lambda ||^2

A sweep improves every block once; sweeps go on until the Lagrangian settles. Then either the multipliers are updated,
lambda <- lambda + c(x) / rho, where the violation h = max |c(x)| has fallen below eta, or the penalty grows,
rho <- shrink rho. In both cases eta becomes a share of the violation.

Reference: Q. Shi, M. Hong, "Penalty dual decomposition method for nonsmooth nonconvex optimization", IEEE Trans. Signal
Process. 2020, arXiv 1712.04767.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from testbed.opt.solution import Solution

Point = TypeVar("Point")


class Coupled(Protocol[Point]):
    """A problem in blocks, tied by equalities."""

    def objective(self, point: Point) -> float:
        """f(x), which is maximised."""
        ...

    def coupling(self, point: Point) -> np.ndarray:
        """c(x), complex or real, shape [num_couplings]; zero where the blocks agree."""
        ...

    def sweep(self, point: Point, multipliers: np.ndarray, penalty: float) -> Point:
        """One pass over the blocks; never raises the augmented Lagrangian.

        Args:
            point: x.
            multipliers: lambda, shape [num_couplings].
            penalty: rho.
        """
        ...


@dataclass(frozen=True)
class Tied(Generic[Point]):
    """Where penalty dual decomposition ends, with its multipliers, for a warm start.

    Attributes:
        point: x.
        multipliers: lambda, shape [num_couplings].
        penalty: rho.
    """

    point: Point
    multipliers: np.ndarray
    penalty: float


def augmented_lagrangian(problem: Coupled[Point], point: Point, multipliers: np.ndarray, penalty: float) -> float:
    """-f(x) + 1 / (2 rho) || c(x) + rho lambda ||^2.

    Args:
        problem: objective and coupling.
        point: x.
        multipliers: lambda, shape [num_couplings].
        penalty: rho.
    """
    apart = problem.coupling(point) + penalty * multipliers
    return -problem.objective(point) + float(np.vdot(apart, apart).real) / (2.0 * penalty)


def decompose(
    problem: Coupled[Point],
    start: Point,
    *,
    penalty: float = 1.0,
    shrink: float = 0.8,
    keep: float = 0.9,
    tolerance: float = 1e-7,
    sweep_tolerance: float = 1e-6,
    max_sweeps: int = 60,
    max_rounds: int = 60,
) -> Solution[Tied[Point]]:
    """Maximise a problem in blocks.

    Args:
        problem: objective, coupling and sweep.
        start: of all blocks.
        penalty: rho at first.
        shrink: factor of rho where the violation has not fallen enough, below 1.
        keep: eta as a share of the last violation.
        tolerance: violation max |c| at which the blocks count as one.
        sweep_tolerance: relative fall of the augmented Lagrangian at which sweeps end.
        max_sweeps: of each round.
        max_rounds: updates of multipliers or penalty.

    Returns:
        the blocks; `feasibility` is the violation, `trace` the objective after every round, `iterations` counts sweeps.
        The status is "stationary" where the violation is below the tolerance, else "unfinished" with a message.
    """
    point = start
    multipliers = np.zeros_like(problem.coupling(point))
    target = np.inf
    trace: list[float] = []
    sweeps = 0
    violation = np.inf
    for _ in range(max_rounds):
        level = augmented_lagrangian(problem, point, multipliers, penalty)
        for _ in range(max_sweeps):
            sweeps += 1
            point = problem.sweep(point, multipliers, penalty)
            before, level = level, augmented_lagrangian(problem, point, multipliers, penalty)
            if before - level <= sweep_tolerance * abs(level):
                break
        apart = problem.coupling(point)
        violation = float(np.max(np.abs(apart), initial=0.0))
        trace.append(problem.objective(point))
        if violation < tolerance:
            break
        if violation <= target:
            multipliers = multipliers + apart / penalty
        else:
            penalty *= shrink
        target = keep * violation
    tied = violation < tolerance
    return Solution(
        point=Tied(point, multipliers, penalty),
        value=problem.objective(point),
        status="stationary" if tied else "unfinished",
        feasibility=violation,
        iterations=sweeps,
        trace=tuple(trace),
        message=""
        if tied
        else f"the blocks differ by {violation:.3g} after {max_rounds} rounds, {tolerance:.3g} is asked",
    )
