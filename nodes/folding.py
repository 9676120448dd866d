"""Products of factors that join the frozen base weights for good, as FLoRA and FedEx-LoRA ask for.

    W <- W + (alpha / rank) B A     fold by fold, in the order of the run

A fold changes the bits of W by an addition in float32, so the same folds in the same order give the same weights on
every node, whenever it joined. Weights of lower precision are rounded from a float32 sum that is kept beside them: many
small folds then add up as they should. The weights before the first fold are kept, so that the process can go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nodes.adapters import FlatAdapter
from testbed.core.errors import ConfigError
from testbed.lora.refactor import Stack, stack_layout


@dataclass
class Folding:
    """The base weights of one process, and what has been folded into them.

    Args:
        adapter: its modules take the folds.
        scale: alpha / rank of the adapter.
    """

    adapter: FlatAdapter
    scale: float
    _done: tuple[Stack, ...] = ()
    _original: dict[str, torch.Tensor] = field(default_factory=dict)
    _sum: dict[str, torch.Tensor] = field(default_factory=dict)

    def bring(self, folds: Sequence[Stack]) -> bool:
        """Let the base weights have exactly these folds, whatever they had before.

        Returns:
            whether anything changed.

        Raises:
            ConfigError: weights of 4 bits cannot take a fold.
        """
        common = 0
        while common < min(len(folds), len(self._done)) and _same(folds[common], self._done[common]):
            common += 1
        if common == len(folds) == len(self._done):
            return False
        if common < len(self._done):
            self._reset()
        for fold in folds[len(self._done) :]:
            self._add(fold)
        return True

    def _reset(self) -> None:
        for module, original in self._original.items():
            self._weight(module).copy_(original)
            self._sum[module].copy_(original)
        self._done = ()

    def _add(self, fold: Stack) -> None:
        layout = stack_layout(self.adapter.layout, fold.rank)
        for down, up in zip(layout.factors[::2], layout.factors[1::2], strict=True):
            weight = self._weight(down.module)
            if not weight.is_floating_point():
                raise ConfigError(
                    "an update was to be folded into the base weights, and weights of 4 bits cannot take it",
                    key="model.dtype",
                    remedy='use dtype = "bfloat16" or "float32", or a scheme that does not fold',
                )
            if down.module not in self._original:
                self._original[down.module] = weight.clone()
                # of a float32 base the weight is its own sum
                self._sum[down.module] = weight if weight.dtype == torch.float32 else weight.float()
            a, b = (
                torch.from_numpy(np.array(fold.vector[layout.slices[one.name]].reshape(one.shape))).to(weight.device)
                for one in (down, up)
            )
            total = self._sum[down.module]
            # a weight that is stored [in, out] takes the transpose
            turned = self.adapter.peft_config.get("fan_in_fan_out", False)
            (total.t() if turned else total).addmm_(b, a, alpha=self.scale)
            if total is not weight:
                weight.copy_(total)
        self._done = (*self._done, fold)

    def _weight(self, module: str) -> torch.Tensor:
        return self.adapter.model.get_submodule(module).get_base_layer().weight.detach()


def _same(one: Stack, other: Stack) -> bool:
    return one is other or (one.rank == other.rank and np.array_equal(one.vector, other.vector))
