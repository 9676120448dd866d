"""Which values of the flat adapter all nodes share, phi, and which stay private, psi: global partial aggregation.

From the abstract of "Personalized Wireless Federated Learning for Large Language Models" (arXiv 2404.13238): global
partial aggregation, and in its first version shared adapters with LoRA that is never aggregated. The paper's body is
not available; the update rule below and the selection by kind, name and block are our reading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from testbed.core.adapter import Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.uplinks import WHOLE, Part
from testbed.lora.aggregate import weighted_mean

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Sharing:
    """A division of the flat vector theta into a shared part phi and a private part psi.

    Attributes:
        layout: order of all factors, shared and private.
        shared: order of the shared factors; the order of phi.
        private: order of the private factors; the order of psi.
        slices: where phi lies in theta, ascending, neighbours joined.
    """

    layout: Layout
    shared: Layout
    private: Layout
    slices: tuple[slice, ...]

    @property
    def private_slices(self) -> tuple[slice, ...]:
        """Where psi lies in theta, ascending, neighbours joined."""
        return _joined(self.layout, self.private.factors)

    def phi(self, vector: np.ndarray) -> np.ndarray:
        """A copy of the shared part: what an uplink carries.

        Args:
            vector: theta, shape [layout.size].

        Returns:
            Shape [shared.size].

        Raises:
            ProtocolError: theta has another length.
        """
        return self._part(vector, self.slices)

    def psi(self, vector: np.ndarray) -> np.ndarray:
        """A copy of the private part.

        Args:
            vector: theta, shape [layout.size].

        Returns:
            Shape [private.size].

        Raises:
            ProtocolError: theta has another length.
        """
        return self._part(vector, self.private_slices)

    def with_phi(self, vector: np.ndarray, phi: np.ndarray) -> np.ndarray:
        """A copy of theta with another shared part; psi keeps every byte.

        Args:
            vector: theta, shape [layout.size].
            phi: new shared part, shape [shared.size].

        Returns:
            Shape [layout.size], of theta's type.

        Raises:
            ProtocolError: theta or phi has another length.
        """
        self.layout.unpack(vector)
        self.shared.unpack(phi)
        merged = vector.copy()
        start = 0
        for where in self.slices:
            stop = start + where.stop - where.start
            merged[where] = phi[start:stop]
            start = stop
        return merged

    def merge(self, phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
        """theta of its two parts.

        Args:
            phi: shape [shared.size].
            psi: shape [private.size].

        Returns:
            Shape [layout.size], of phi's type.

        Raises:
            ProtocolError: a part has another length.
        """
        self.private.unpack(psi)
        whole = np.zeros(self.layout.size, phi.dtype)
        start = 0
        for where in self.private_slices:
            stop = start + where.stop - where.start
            whole[where] = psi[start:stop]
            start = stop
        return self.with_phi(whole, phi)

    @property
    def part(self) -> Part:
        """The shared values in the words of orders: kinds where these say it, else names of factors.

        Raises:
            ValueError: nothing is shared.
        """
        if not self.shared.factors:
            raise ValueError("a division without a shared part has nothing that an uplink could carry")
        if not self.private.factors:
            return WHOLE
        kinds = tuple(dict.fromkeys(factor.kind for factor in self.shared.factors))
        if all(factor.kind not in kinds for factor in self.private.factors):
            return Part(kinds=kinds)
        return Part(patterns=tuple(factor.name for factor in self.shared.factors))

    def _part(self, vector: np.ndarray, slices: Sequence[slice]) -> np.ndarray:
        if vector.shape != (self.layout.size,):
            self.layout.unpack(vector)  # raises the error that names both sizes
        return np.concatenate([vector[where] for where in slices]) if slices else vector[:0].copy()


def divide(
    layout: Layout,
    *,
    kinds: Sequence[str] = (),
    patterns: Sequence[str] = (),
    last_blocks: int | None = None,
    private_blocks: int | None = None,
) -> Sharing:
    """Share the factors that are of a named kind or whose name fits a pattern, inside the last blocks if asked.

    `kinds = ("down", "up", "bias")` shares bottleneck adapters and keeps LoRA private (PFTT); `("A", "B")` with
    private bottlenecks is the swap baseline; `("A",)` alone is FedSA-LoRA (arXiv 2410.01463); `last_blocks = 2` with
    patterns `("*",)` is PFIT's rule on adapters. Neither kinds nor patterns share nothing: local training only.

    Args:
        layout: order of all factors.
        kinds: of `Factor.kind`.
        patterns: shell-style patterns of factor names, case-sensitive: `*` fits any characters.
        last_blocks: share only inside so many of the model's last blocks; in all of them if None.
        private_blocks: share nothing inside so many of its last blocks, as FedPer keeps the top of a network.

    Returns:
        The division.

    Raises:
        ConfigError: a kind or pattern that fits no factor, or more blocks than the model has.
    """
    for kind in kinds:
        if not any(factor.kind == kind for factor in layout.factors):
            there = ", ".join(dict.fromkeys(factor.kind for factor in layout.factors)) or "none"
            raise ConfigError(
                f"the adapter has no factor of kind {kind!r}; it has {there}",
                key="scheme.shared",
                remedy="share a kind that the adapter has, or add the modules that have this kind",
            )
    for pattern in patterns:
        if not any(fnmatchcase(factor.name, pattern) for factor in layout.factors):
            first = layout.factors[0].name if layout.factors else "none"
            raise ConfigError(
                f"no factor's name fits {pattern!r}; the first factor is {first}",
                key="scheme.shared",
                remedy="write the pattern with * for the parts that vary, for instance '*.bottleneck.*'",
            )
    inside = _blocks_from(layout, last_blocks, "last_blocks")
    outside = _blocks_from(layout, private_blocks, "private_blocks")
    picked = tuple(
        factor
        for factor in layout.factors
        if (factor.kind in kinds or any(fnmatchcase(factor.name, pattern) for pattern in patterns))
        and (inside is None or _block(factor) >= inside)
        and (outside is None or _block(factor) < outside)
    )
    names = {factor.name for factor in picked}
    rest = tuple(factor for factor in layout.factors if factor.name not in names)
    return Sharing(layout, Layout(factors=picked), Layout(factors=rest), _joined(layout, picked))


def mean_of_received(
    received: Mapping[str, np.ndarray], weights: Mapping[str, float], *, otherwise: np.ndarray
) -> np.ndarray:
    """The shared part after a round: weighted mean over the nodes whose upload arrived.

        phi^{t+1} = sum_{k received} D_k phi_k / sum_{k received} D_k      (B4)

    Args:
        received: node -> its phi_k, shape [shared.size], float32; lost uploads are not in it.
        weights: node -> D_k, positive.
        otherwise: phi^t, kept where nothing arrived, shape [shared.size].

    Returns:
        Shape [shared.size], float32.

    Raises:
        ValueError: the weights of the received nodes do not add up to a positive number.

    Reference: McMahan et al., AISTATS 2017, on a part of the vector; FedPer, arXiv 1912.00818.
    """
    return weighted_mean(received, weights) if received else otherwise.copy()


def _block(factor: Factor) -> int:
    found = _BLOCK.search(factor.module)
    return int(found.group(1)) if found else -1


def _blocks_from(layout: Layout, last_blocks: int | None, field: str) -> int | None:
    """Number of the first block that counts; None for all."""
    if last_blocks is None:
        return None
    count = 1 + max((_block(factor) for factor in layout.factors), default=-1)
    if not 1 <= last_blocks <= count:
        raise ConfigError(
            f"the last {last_blocks} blocks cannot be {'shared' if field == 'last_blocks' else 'private'}: the adapter "
            f"spans {count}",
            key=f"scheme.{field}",
            remedy=f"give 1 to {count}" if count else "adapt layers that stand in numbered blocks",
        )
    return count - last_blocks


def _joined(layout: Layout, factors: Sequence[Factor]) -> tuple[slice, ...]:
    joined: list[slice] = []
    for factor in factors:
        where = layout.slices[factor.name]
        if joined and joined[-1].stop == where.start:
            joined[-1] = slice(joined[-1].start, where.stop)
        else:
            joined.append(where)
    return tuple(joined)
