"""Gradient steps of alignment on a part of the flat adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from nodes.adapters import FlatAdapter
from nodes.alignment_losses import mgda_weight
from nodes.alignment_recipe import Aligned, Recipe, Status, StepRecord


class Descent:
    """AdamW on the trained part of the flat adapter, with the zeta-term, and the last vector inside all limits.

    Args:
        adapter: the model and its values, set to `start`.
        start: flat adapter to begin with, shape [layout.size].
        recipe: learning rate, zeta, combination and longest gradient.
        trained: parts of the vector that change; all if None.
        anchored: parts that the zeta-term pulls back to `start`.
    """

    def __init__(
        self,
        adapter: FlatAdapter,
        start: np.ndarray,
        recipe: Recipe,
        trained: Sequence[slice] | None,
        anchored: Sequence[slice],
    ) -> None:
        adapter.write(start)
        adapter.model.eval()  # dropout would make the ratio to the sampling policy a random number
        self._adapter, self._recipe, self._anchored = adapter, recipe, tuple(anchored)
        self._anchor = adapter.values.clone()
        self._still = torch.zeros_like(adapter.values, dtype=torch.bool)
        if trained is not None:
            self._still.fill_(True)
            for where in trained:
                self._still[where] = False
        self._flat = torch.nn.Parameter(adapter.values)
        self._flat.grad = adapter.gradient
        # without weight decay a value whose gradient is zero keeps every byte
        self._optimizer = torch.optim.AdamW([self._flat], recipe.learning_rate, weight_decay=0.0)
        self._good = start.astype(np.float32)

    def step(self, parts: Sequence[Callable[[], torch.Tensor]]) -> tuple[float, float]:
        """One step on the sum of the losses, or on MGDA's combination of two; the loss and the first one's weight."""
        gradient, mixing, total = self._adapter.gradient, math.nan, 0.0
        gradient.zero_()
        if self._recipe.combine == "mgda" and len(parts) == 2:
            apart = []
            for part in parts:
                gradient.zero_()
                total += self._backward(part)
                apart.append(gradient.masked_fill(self._still, 0.0))
            mixing = mgda_weight(*apart)
            gradient.copy_(mixing * apart[0] + (1.0 - mixing) * apart[1])
        else:
            total = sum(self._backward(part) for part in parts)
        for where in self._anchored:
            away = self._adapter.values[where] - self._anchor[where]
            gradient[where] += self._recipe.zeta * away
            total += 0.5 * self._recipe.zeta * float(away @ away)
        gradient.masked_fill_(self._still, 0.0)
        if not bool(torch.isfinite(gradient).all()):
            return math.nan, mixing
        torch.nn.utils.clip_grad_norm_([self._flat], self._recipe.max_grad_norm)
        self._optimizer.step()
        return total, mixing

    def commit(self) -> None:
        """Take the present values as inside all limits."""
        self._good = self._adapter.read()

    def ended(self, status: Status, trace: list[StepRecord], num_tokens: int) -> Aligned:
        """The present values as the end."""
        return Aligned(self._adapter.read(), status, "", tuple(trace), num_tokens)

    def diverged(self, message: str, trace: list[StepRecord], num_tokens: int) -> Aligned:
        """The last values inside all limits as the end, which the model gets back."""
        self._adapter.write(self._good)
        told = f"alignment diverged in step {len(trace) + 1}: {message}"
        return Aligned(self._good, "diverged", told, tuple(trace), num_tokens)

    @staticmethod
    def _backward(part: Callable[[], torch.Tensor]) -> float:
        loss = part()
        loss.backward()
        return float(loss.detach())
