"""Driving a scheme's round: orders out, replies in."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from testbed.core.errors import ConfigError, ReplayDeparture
from testbed.core.orders import Order, Reply, Steps
from testbed.core.record import difference
from testbed.engine.recorder import Step

State = TypeVar("State")


class Answerer(Protocol):
    """Whoever answers orders: devices, a dry run, or a record.

    Attributes:
        round_index: set by the engine before each round.
        last_audit: what the audit of the latest order measured; empty where it measured nothing.
    """

    round_index: int
    last_audit: dict[str, float]

    def answer(self, order: Order) -> Reply:
        """The reply to one order. Raises LimitError before anything happens."""

    def now_s(self) -> float:
        """The run's clock."""

    def residuals(self) -> Mapping[str, np.ndarray]:
        """Node -> what its payloads have left out so far, shape [num_values], for payloads with error feedback."""

    def own_values(self) -> Mapping[str, np.ndarray]:
        """What nodes have for themselves, by `testbed.engine.keeping.to_file`."""


def perform(steps: Steps[State], answer: Callable[[Order], Reply]) -> State:
    """Run one round to its end and return the next state.

    Raises:
        ConfigError: the round is no generator.
        BenchError: whatever `answer` raises; the round is closed first.
    """
    if not isinstance(steps, Generator):
        raise ConfigError(
            "the scheme's round is no generator", remedy="write it with `yield from sound()` and the like"
        )
    try:
        order = next(steps)
        while True:
            order = steps.send(answer(order))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()


@dataclass
class Replay:
    """Answers from a record and compares each order with the recorded one.

    Args:
        steps: recorded steps, in order.
    """

    steps: list[Step]
    round_index: int = 0
    last_audit: dict[str, float] = field(default_factory=dict)
    _next: int = 0
    _clock_s: float = 0.0

    def now_s(self) -> float:
        return self._clock_s

    def residuals(self) -> Mapping[str, np.ndarray]:
        """None: the record holds what came of them."""
        return {}

    def own_values(self) -> Mapping[str, np.ndarray]:
        """None, as for residuals."""
        return {}

    def answer(self, order: Order) -> Reply:
        """The recorded reply.

        Raises:
            ReplayDeparture: the scheme asks something else than it did, or more than was recorded.
        """
        if self._next == len(self.steps):
            raise ReplayDeparture(
                f"round {self.round_index} asks a {type(order).__name__} after the last recorded step ({self._next})",
                remedy="the scheme, its parameters or the code changed since the run; run it anew",
            )
        step = self.steps[self._next]
        found = difference(order, step.order)
        if found or step.round_index != self.round_index:
            where = f"step {step.index} (round {step.round_index}, {type(step.order).__name__})"
            detail = found or f"the record is in round {step.round_index}, the scheme in round {self.round_index}"
            raise ReplayDeparture(
                f"the scheme departs from the record at {where}: {detail}",
                remedy="the scheme, its parameters or the code changed since the run; run it anew",
            )
        self._next += 1
        self._clock_s = step.clock_s
        self.last_audit = dict(step.audit)
        return step.reply
