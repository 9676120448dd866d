"""What a scheme adds to local training: a pull towards the published adapter, a constant drift, factors at rest.

A step with data gradient g at the adapter w moves along

    clip(g + mu (w - w_published)) + drift        on the factors that are trained, 0 on the others

where clip shortens to `max_grad_norm`. The pull is the gradient of (mu / 2) ||w - w_published||^2, part of what is
minimised, so it is shortened with the rest (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv 1812.06127). The drift is added afterwards: SCAFFOLD's control variates are then means of the shortened gradients,
and c - c_m keeps its length (Karimireddy et al., ICML 2020, arXiv 1910.06378). The order of clip and drift is our
choice; without a limit on the gradient both are the papers' own steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nodes.adapters import FlatAdapter


@dataclass(frozen=True)
class LocalTerms:
    """The gradient of one round's steps, beyond that of the data.

    Attributes:
        published: adapter the round began with, shape [layout.size]; None where nothing asks for it.
        proximal: mu.
        drift: shape [layout.size], 0 where factors rest; None adds nothing.
        resting: places that are not trained, bool, shape [layout.size]; None if all are.
        max_norm: the data gradient with the pull is shortened to this; None leaves it as it is.
    """

    published: torch.Tensor | None
    proximal: float
    drift: torch.Tensor | None
    resting: torch.Tensor | None
    max_norm: float | None

    @classmethod
    def of(
        cls,
        adapter: FlatAdapter,
        *,
        proximal: float,
        drift: np.ndarray | None,
        resting: torch.Tensor | None,
        max_norm: float | None,
    ) -> LocalTerms:
        """The terms of a round that begins with what the adapter holds now.

        Raises:
            ProtocolError: a drift of another length.
        """
        added = None
        if drift is not None:
            adapter.layout.unpack(drift)  # raises the error that names both sizes
            added = torch.from_numpy(np.array(drift, np.float32)).to(adapter.values.device)
            if resting is not None:
                added.masked_fill_(resting, 0.0)
        keeps = proximal > 0 or resting is not None
        return cls(adapter.values.clone() if keeps else None, proximal, added, resting, max_norm)

    def bend(self, flat: torch.nn.Parameter) -> None:
        """Turn the gradient of the data into that of the step, in place."""
        gradient = flat.grad
        assert gradient is not None  # a view that the backward pass has filled
        if self.proximal > 0 and self.published is not None:
            gradient.add_(flat.detach() - self.published, alpha=self.proximal)
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_([flat], self.max_norm)
        if self.drift is not None:
            gradient.add_(self.drift)

    def rest(self, flat: torch.nn.Parameter) -> None:
        """Put factors that rest back to where they were: weight decay moves them without any gradient."""
        if self.resting is not None and self.published is not None:
            flat.data.copy_(torch.where(self.resting, self.published, flat.data))
