"""The penalty on the last ranks of a board's LoRA modules, under which ranks that do not matter fade (HetLoRA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from testbed.core.adapter import Layout
from testbed.core.orders import Tail


@dataclass(frozen=True)
class TailPenalty:
    """The gradient of lambda R, in closed form on the flat vector.

        R = sum over modules ||B_tail||_F ||A_tail||_F
        dR / dB_tail = ||A_tail|| B_tail / ||B_tail||   (0 where B_tail = 0),   and alike for A

    Attributes:
        weight: lambda.
        first, last: the tail is ranks first <= i < last, counted from 0.
        modules: place, rank and length of A, and place, height and rank of B, in the flat vector.
    """

    weight: float
    first: int
    last: int
    modules: tuple[tuple[slice, tuple[int, ...], slice, tuple[int, ...]], ...]

    @classmethod
    def of(cls, layout: Layout, tail: Tail) -> TailPenalty:
        """The penalty on a layout; modules that lack one of their factors have none."""
        found: dict[str, dict[str, tuple[slice, tuple[int, ...]]]] = {}
        for factor in layout.factors:
            if factor.kind in ("A", "B"):
                found.setdefault(factor.module, {})[factor.kind] = (layout.slices[factor.name], factor.shape)
        pairs = tuple((*kinds["A"], *kinds["B"]) for kinds in found.values() if len(kinds) == 2)
        return cls(tail.weight, tail.first, tail.last, pairs)

    def add_gradient(self, flat: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add it to a gradient in place.

        Args:
            flat: adapter, shape [layout.size].
            gradient: shape [layout.size].
        """
        ranks = slice(self.first, self.last)
        for where_a, shape_a, where_b, shape_b in self.modules:
            down, up = flat[where_a].view(shape_a)[ranks], flat[where_b].view(shape_b)[:, ranks]
            size_a, size_b = float(torch.linalg.norm(down)), float(torch.linalg.norm(up))
            if size_a > 0:
                gradient[where_a].view(shape_a)[ranks].add_(down, alpha=self.weight * size_b / size_a)
            if size_b > 0:
                gradient[where_b].view(shape_b)[:, ranks].add_(up, alpha=self.weight * size_a / size_b)
