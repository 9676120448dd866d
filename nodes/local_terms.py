"""What a scheme adds to local training: a pull, a penalty, a constant drift, factors and ranks at rest.

A step with data gradient g at the adapter w moves along

    clip(g + mu (w - w_published) + lambda grad Omega(w)) + drift      on what is trained, 0 on the rest

where clip shortens to `max_grad_norm`. The pull is the gradient of (mu / 2) ||w - w_published||^2, part of what is
minimised, so it is shortened with the rest (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv 1812.06127); so is the penalty Omega on ranks that are not orthogonal (SOFT, arXiv 2505.00333, in the off-diagonal
form of `testbed.lora.sparse_orthogonal.penalty`). The drift is added afterwards: SCAFFOLD's control variates are then
means of the shortened gradients, and c - c_m keeps its length (Karimireddy et al., ICML 2020, arXiv 1910.06378). The
order of clip and drift is our choice; without a limit on the gradient both are the papers' own steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from nodes.adapters import FlatAdapter
from nodes.tail_penalty import TailPenalty
from testbed.core.adapter import Factor, Layout
from testbed.core.orders import WHOLE, Part, Tail
from testbed.lora.choice import part_mask


@dataclass(frozen=True)
class _Alike:
    """Factors of one kind and shape that lie in the flat vector at equal distances."""

    kind: str
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    first: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """A view of them, shape [num_factors, *factor.shape]."""
        return torch.as_strided(flat, self.shape, self.strides, self.first)


@dataclass(frozen=True)
class Orthogonality:
    """The gradient of lambda Omega, in closed form on the flat vector.

        Omega = (1 / modules) sum ||B^T B - diag(B^T B)||_F^2 + ||A A^T - diag(A A^T)||_F^2
        dOmega / dB = (4 / modules) B (G - diag G),  G = B^T B
        dOmega / dA = (4 / modules) (H - diag H) A,  H = A A^T

    Attributes:
        slope: 4 lambda / modules.
        groups: factors that are worked on together.
    """

    slope: float
    groups: tuple[_Alike, ...]

    @classmethod
    def of(cls, layout: Layout, weight: float) -> Orthogonality:
        """The penalty on a layout.

        Args:
            layout: order of the flat vector; a module may lack one of its factors.
            weight: lambda.
        """
        modules = {factor.module for factor in layout.factors}
        return cls(4.0 * weight / len(modules), tuple(_alike(layout)))

    def add_gradient(self, flat: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add it to a gradient in place.

        Args:
            flat: adapter, shape [layout.size].
            gradient: shape [layout.size].
        """
        for group in self.groups:
            factors, into = group.of(flat), group.of(gradient)
            # [num_factors, rank, rank]
            other = factors.transpose(1, 2)
            gram = factors @ other if group.kind == "A" else other @ factors
            gram.diagonal(dim1=1, dim2=2).zero_()
            left, right = (gram, factors) if group.kind == "A" else (factors, gram)
            into.baddbmm_(left, right, alpha=self.slope)


def _alike(layout: Layout) -> Iterator[_Alike]:
    """Factors of one kind, shape and place in the layers, in runs of equal distance."""
    families: dict[tuple[str, tuple[int, ...], str], list[Factor]] = {}
    for factor in layout.factors:
        if factor.kind in ("A", "B"):
            families.setdefault((factor.kind, factor.shape, factor.module.rsplit(".", 1)[-1]), []).append(factor)
    for (kind, (rows, columns), _), factors in families.items():
        starts = [layout.slices[factor.name].start for factor in factors]
        while starts:
            step = starts[1] - starts[0] if len(starts) > 1 else rows * columns
            count = 1
            while count < len(starts) and starts[count] - starts[count - 1] == step:
                count += 1
            yield _Alike(kind, (count, rows, columns), (step, columns, 1), starts[0])
            starts = starts[count:]


@dataclass(frozen=True)
class LocalTerms:
    """The gradient of one round's steps, beyond that of the data.

    Attributes:
        start: adapter the round began with, shape [layout.size]; None where nothing asks for it.
        published: adapter that the pull is to, shape [layout.size]; `start` if None.
        proximal: mu.
        drift: shape [layout.size], 0 where factors rest; None adds nothing.
        resting: places that are not trained, bool, shape [layout.size]; None if all are.
        max_norm: the data gradient with pull and penalty is shortened to this; None leaves it as it is.
        orthogonality: the penalty's gradient; None adds nothing.
        pulled: places to which the pull applies, 1 or 0, float32, shape [layout.size]; None for all.
        tail: the gradient of the penalty on the last ranks; None adds nothing.
    """

    start: torch.Tensor | None
    proximal: float
    drift: torch.Tensor | None
    resting: torch.Tensor | None
    max_norm: float | None
    orthogonality: Orthogonality | None = None
    pulled: torch.Tensor | None = None
    published: torch.Tensor | None = None
    tail: TailPenalty | None = None

    @classmethod
    def of(
        cls,
        adapter: FlatAdapter,
        *,
        proximal: float,
        drift: np.ndarray | None,
        resting: torch.Tensor | None,
        max_norm: float | None,
        orthogonality: float = 0.0,
        pulled: Part = WHOLE,
        published: np.ndarray | None = None,
        tail: Tail | None = None,
    ) -> LocalTerms:
        """The terms of a round that begins with what the adapter holds now.

        Raises:
            ProtocolError: a drift or published adapter of another length.
        """
        added = None
        if drift is not None:
            adapter.layout.unpack(drift)  # raises the error that names both sizes
            added = torch.from_numpy(np.array(drift, np.float32)).to(adapter.values.device)
            if resting is not None:
                added.masked_fill_(resting, 0.0)
        keeps = proximal > 0 or resting is not None
        start = adapter.values.clone() if keeps else None
        centre = None
        if published is not None and proximal > 0:
            adapter.layout.unpack(published)
            centre = torch.from_numpy(np.array(published, np.float32)).to(adapter.values.device)
        penalty = Orthogonality.of(adapter.layout, orthogonality) if orthogonality > 0 else None
        places = None
        if proximal > 0 and pulled != WHOLE:
            mask = part_mask(adapter.layout, pulled).astype(np.float32)
            places = torch.from_numpy(mask).to(adapter.values.device)
        last = None if tail is None else TailPenalty.of(adapter.layout, tail)
        return cls(start, proximal, added, resting, max_norm, penalty, places, centre, last)

    def bend(self, flat: torch.nn.Parameter) -> None:
        """Turn the gradient of the data into that of the step, in place."""
        gradient = flat.grad
        assert gradient is not None  # a view that the backward pass has filled
        centre = self.start if self.published is None else self.published
        if self.proximal > 0 and centre is not None:
            away = flat.detach() - centre
            gradient.add_(away if self.pulled is None else away * self.pulled, alpha=self.proximal)
        if self.orthogonality is not None:
            self.orthogonality.add_gradient(flat.detach(), gradient)
        if self.tail is not None:
            self.tail.add_gradient(flat.detach(), gradient)
        if self.resting is not None:
            gradient.masked_fill_(self.resting, 0.0)
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_([flat], self.max_norm)
        if self.drift is not None:
            gradient.add_(self.drift)

    def rest(self, flat: torch.nn.Parameter) -> None:
        """Put what rests back to where they were: weight decay moves them without any gradient."""
        if self.resting is not None and self.start is not None:
            flat.data.copy_(torch.where(self.resting, self.start, flat.data))
