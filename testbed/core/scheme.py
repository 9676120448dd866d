"""What a scheme is: a frozen configuration whose rounds are generators of orders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from testbed.core.adapter import Adapter
from testbed.core.fleet import Fleet
from testbed.core.orders import Steps

State = TypeVar("State")


class Scheme(BaseModel, ABC, Generic[State]):
    """A scheme. Its fields are its parameters in the experiment file: the configured scheme is its own configuration.

    A scheme is pure: the same fleet, adapter, replies and generator give the same orders. Whatever it remembers between
    rounds is in the state it returns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset()
    """Capabilities the bench's radios must have, of `Capabilities.FLAGS`."""
    instead: ClassVar[str] = ""
    """The scheme that does the like on a bench without them, if there is one."""

    @property
    def personal(self) -> bool:
        """Whether nodes keep values of their own: each is then scored with its adapter on its held-out rows."""
        return False

    @property
    def aligns(self) -> bool:
        """Whether it asks boards to align, for which an experiment needs `[alignment]`."""
        return False

    @abstractmethod
    def start(self, fleet: Fleet, adapter: Adapter) -> State:
        """The state before the first round."""

    @abstractmethod
    def round(self, state: State, rng: np.random.Generator) -> Steps[State]:
        """One round: yields orders, receives replies, returns the next state.

        Args:
            state: what `start` or the previous round returned.
            rng: this round's generator, seeded by the experiment's seed and the round's number.
        """

    def done(self, state: State) -> bool:
        """Whether the scheme has had all the rounds it wants; the experiment's `rounds` is the most it gets."""
        return False

    def report(self, state: State) -> Mapping[str, float | str]:
        """Figures of the last round worth a column in the run's table. No figures by default."""
        return {}
