"""One node of a process: its devices, the adapter it goes on from, and its update on its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nodes.uplink import Uplink
from testbed.core.adapter import Layout
from testbed.core.node_devices import NodeDevices
from testbed.core.orders import WHOLE, Alignment, Part
from testbed.lora.choice import part_mask
from testbed.lora.refactor import Stack


@dataclass
class HostedNode:
    """What a process knows of one of its nodes.

    Attributes:
        devices: its radio, meter and clock.
        adapter: what it goes on from, shape [num_values] float32: as published, but for values of its own.
        rate_hz: its radio's sample rate.
        uplink: its latest update, and what its payloads left out.
        folds: what the base weights under its adapter have been given.
        reference: its policy before its first alignment, shape [num_values]; None before that.
        beside: copy that it trains beside its adapter, shape [num_values]; None before the first time.
    """

    devices: NodeDevices
    adapter: np.ndarray
    rate_hz: float
    uplink: Uplink
    folds: tuple[Stack, ...] = ()
    reference: np.ndarray | None = None
    beside: np.ndarray | None = None

    @property
    def scored(self) -> np.ndarray:
        """What a personal score is that of, shape [num_values]."""
        return self.adapter if self.beside is None else self.beside

    def take(self, vector: np.ndarray, layout: Layout, *, keep: bool, beside: bool = False) -> np.ndarray:
        """What training made is the update to be sent from now on; the node goes on from there if it keeps.

        A copy beside the adapter leaves both as they were.

        Args:
            vector: trained adapter, shape [num_values].
            layout: its order.
            keep, beside: as of `testbed.core.orders.Work`.

        Returns:
            the update, shape [num_values]; of a copy, its distance from the adapter.
        """
        update = vector - self.adapter
        if beside:
            self.beside = vector
            return update
        self.uplink.trained(update, self.adapter, layout)
        if keep:
            self.adapter = vector
        return update

    def published(self, adapter: np.ndarray, layout: Layout, part: Part) -> np.ndarray:
        """What the node goes on from after a broadcast; its other values stay.

        Args:
            adapter: that was broadcast, shape [num_values].
            layout: its order.
            part: values that the node takes over.
        """
        return adapter if part == WHOLE else np.where(part_mask(layout, part), adapter, self.adapter)

    def leash(self, objective: Alignment) -> np.ndarray:
        """The policy that an alignment holds to, shape [num_values]; the first one is remembered."""
        if objective.reference == "start":
            return self.adapter
        if self.reference is None:
            self.reference = self.adapter
        return self.reference

    def own_values(self, layout: Layout, shared: Part | None) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of `testbed.core.messages.Own`."""
        own = _own(layout, shared)
        if own.any():
            yield "own", self.adapter[own]
        if own.any() and self.reference is not None:
            yield "reference", self.reference[own]
        if self.beside is not None:
            yield "beside", self.beside

    def give_back(self, arrays: Mapping[str, np.ndarray], layout: Layout, shared: Part | None) -> None:
        """Take back what `own_values` gave, in a process that has the shared values already."""
        own = _own(layout, shared)
        if "own" in arrays:
            self.adapter = self.adapter.copy()
            self.adapter[own] = arrays["own"]
        if "beside" in arrays:
            layout.unpack(arrays["beside"])  # raises the error that names both sizes
            self.beside = arrays["beside"].copy()
        if "reference" in arrays:
            # what is shared rests while nodes align for themselves
            self.reference = self.adapter.copy()
            self.reference[own] = arrays["reference"]


def _own(layout: Layout, shared: Part | None) -> np.ndarray:
    """Which values are a node's own, bool, shape [layout.size]."""
    return np.ones(layout.size, bool) if shared is None else ~part_mask(layout, shared)
