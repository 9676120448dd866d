"""What every optimiser returns: a point, what it is worth, and how far it may be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Point = TypeVar("Point")

Status = Literal["optimal", "stationary", "stalled", "feasible", "unfinished", "infeasible"]
"""optimal: proven, within the tolerance. stationary: the first-order conditions hold. stalled: no step helped, and the
first-order conditions do not hold. feasible: the point of a rule that keeps the constraints and does not optimise.
unfinished: the iterations ran out. infeasible: no point keeps the constraints."""


@dataclass(frozen=True)
class Solution(Generic[Point]):
    """The end of an optimisation; hardness is reported here, never raised.

    Attributes:
        point: the best point that was found.
        value: the objective there, as the problem states it (maximised or minimised).
        status: see `Status`.
        kkt_residual: norm of what the first-order conditions leave, relative to the value; NaN where none was computed.
        feasibility: largest violation of a constraint, each divided by its own scale; 0 where all are kept.
        iterations: of the outermost loop, all starts together.
        trace: the objective after each of them, for the start that won.
        message: why there is no better end: which constraint fails, and by how much.
    """

    point: Point
    value: float
    status: Status
    kkt_residual: float = math.nan
    feasibility: float = 0.0
    iterations: int = 0
    trace: tuple[float, ...] = ()
    message: str = ""

    @property
    def found(self) -> bool:
        """Whether the point keeps the constraints."""
        return self.status != "infeasible"
