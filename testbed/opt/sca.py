"""Successive convex approximation: climb by maximising a concave model again and again.

Around a point a problem offers a model that equals the objective there, value and slope, and whose maximiser is cheap.
Where the model is below the objective everywhere (a minoriser) every step rises. Where it is only an approximation, a
damping charge on the step's length is raised until the step rises, and lowered again where the model keeps what it
promises. Either way the objective never falls, and points that break a constraint are never taken.

Reference: B. Marks, G. Wright, "A general inner approximation algorithm for nonconvex mathematical programs", Oper.
Res. 1978; the damping rule is the ratio test of trust-region methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from testbed.opt.solution import Solution, Status

Point = TypeVar("Point")

_KEPT, _BROKEN = 0.75, 0.25
"""Shares of the promised rise above which the damping falls, and below which it grows."""
_LEAST_DAMPING, _MOST_DAMPING = 1e-8, 1e8


@dataclass(frozen=True)
class Proposal(Generic[Point]):
    """Where a model is largest.

    Attributes:
        point: keeps every constraint.
        value: the objective there (not the model).
        promised: by how much the model rises on the way; not positive where it offers no way up.
    """

    point: Point
    value: float
    promised: float


Model = Callable[[float], Proposal[Point] | None]
"""Damping -> the model's maximiser; None where there is none."""


class Approximated(Protocol[Point]):
    """A problem that knows concave models of itself."""

    def value(self, point: Point) -> float:
        """The objective."""
        ...

    def model(self, point: Point) -> Model[Point]:
        """A concave model around a point; called once for each point, its maximiser once for each damping."""
        ...


def climb(
    problem: Approximated[Point], start: Point, *, max_steps: int, tolerance: float, damping: float = 0.0
) -> Solution[Point]:
    """Maximise a problem by successive convex approximation.

    Args:
        problem: objective and models.
        start: keeps every constraint.
        max_steps: accepted and refused ones together.
        tolerance: ends where the model promises less than this share of the objective's size.
        damping: of the first step; 0 for models that are minorisers: a step that does not rise then ends the climb.

    Returns:
        the last point, with the objective after every accepted step as trace. The status is "stationary" where the
        model promises nothing more, "stalled" where no damping helps and "unfinished" where the steps ran out.
    """
    point, value = start, problem.value(start)
    trace = [value]
    status: Status = "unfinished"
    model = problem.model(point)
    steps = 0
    while steps < max_steps:
        steps += 1
        proposal = model(damping)
        if proposal is not None and proposal.promised <= tolerance * abs(value):
            status = "stationary"
            if proposal.value > value:
                point, value = proposal.point, proposal.value
                trace.append(value)
            break
        risen = -1.0 if proposal is None else proposal.value - value
        if proposal is None or risen <= 0.0:
            if damping == 0.0 or damping >= _MOST_DAMPING:
                status = "stalled"
                break
            damping *= 6.0
            continue
        if risen < _BROKEN * proposal.promised:
            damping *= 3.0
        elif risen > _KEPT * proposal.promised:
            damping = max(damping / 5.0, _LEAST_DAMPING) if damping else 0.0
        point, value = proposal.point, proposal.value
        trace.append(value)
        model = problem.model(point)
    return Solution(point=point, value=value, status=status, iterations=steps, trace=tuple(trace))
