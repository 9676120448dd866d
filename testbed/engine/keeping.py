"""Which nodes have values of their own: what a checkpoint must hold, and what a node that comes back has lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from testbed.core.orders import WHOLE, MovedAndTrained, Order, Part, Publish, Reply, Together, Train, Trained

_BESIDE = "beside"


@dataclass
class Keeping:
    """Nodes that went on from what they trained, and what they still share.

    Attributes:
        nodes: who trained with `Work.keep` since everything was broadcast.
        copies: who trained a copy with `Work.beside`, which no broadcast changes.
        shared: values that they have from the last broadcast; None if there are none.
        stored: node -> arrays of `testbed.core.messages.Own`, as of the last checkpoint.
        stored_beside: what was shared then, which those arrays leave out.
    """

    nodes: set[str] = field(default_factory=set)
    copies: set[str] = field(default_factory=set)
    shared: Part | None = WHOLE
    stored: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    stored_beside: Part | None = WHOLE

    @property
    def holders(self) -> set[str]:
        """Who has anything for itself."""
        return self.nodes | self.copies

    def note(self, order: Order, reply: Reply) -> None:
        """Follow an order and its reply."""
        if isinstance(order, Publish):
            self.shared = order.part
            if order.part == WHOLE:
                self.nodes.clear()
                self.stored = {name: {_BESIDE: own[_BESIDE]} for name, own in self.stored.items() if _BESIDE in own}
            return
        train = order.train if isinstance(order, Together) else order
        trained = reply.trained if isinstance(reply, MovedAndTrained) else reply
        if isinstance(train, Train) and isinstance(trained, Trained):
            for name in trained.results:
                work = train.work[name]
                if work.beside:
                    self.copies.add(name)
                elif work.keep:
                    self.nodes.add(name)
                    # ranks that rest take nothing from what is shared
                    if self.shared is not None and replace(work.part, ranks=None) != outside(self.shared):
                        self.shared = None

    def lost(self, names: Iterable[str]) -> list[str]:
        """Those of these nodes, just come back, whose own values nobody has."""
        return sorted(name for name in names if name in self.holders and name not in self.stored)


def outside(part: Part) -> Part:
    """The values that a part of kinds and names leaves out."""
    return replace(part, others=not part.others)


def to_file(stored: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One flat mapping of what all nodes have for themselves."""
    return {f"{what}/{name}": array for name, arrays in stored.items() for what, array in arrays.items()}


def from_file(content: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """What `to_file` was given."""
    stored: dict[str, dict[str, np.ndarray]] = {}
    for key, array in content.items():
        what, name = key.split("/", 1)
        stored.setdefault(name, {})[what] = array
    return stored
