"""LoRA factors, and the order in which they become one vector.

An adapted layer computes W x + (alpha / rank) B A x with A of shape [rank, in] and B of shape [out, rank]
(Hu et al., arXiv 2106.09685). Everything that travels is the flat float32 vector of the trained factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from testbed.core.errors import ProtocolError


class Factor(BaseModel):
    """One trained tensor: its key in `adapter_model.safetensors`, its shape, and the module it adapts.

    Kinds: A and B of LoRA; down, up and their bias of a bottleneck adapter. Biases have one axis, all others two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=2)]
    kind: Literal["A", "B", "down", "up", "bias"]
    module: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Layout(BaseModel):
    """The order of the factors inside the flat vector: module by module, A before B."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factors: tuple[Factor, ...]

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(factor.size for factor in self.factors)

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Where each factor lies in the flat vector."""
        slices: dict[str, slice] = {}
        start = 0
        for factor in self.factors:
            slices[factor.name] = slice(start, start + factor.size)
            start += factor.size
        return slices

    def unpack(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Views of the factors inside the vector, without a copy.

        Args:
            vector: flat adapter, shape [size].

        Returns:
            Factor name -> view of shape `factor.shape`.

        Raises:
            ProtocolError: the vector has another length.
        """
        if vector.shape != (self.size,):
            raise ProtocolError(
                f"an adapter vector of shape {vector.shape} does not fit a layout of {self.size} values"
            )
        return {factor.name: vector[self.slices[factor.name]].reshape(factor.shape) for factor in self.factors}

    def pack(self, factors: Mapping[str, np.ndarray], out: np.ndarray | None = None) -> np.ndarray:
        """The flat float32 vector of the factors.

        Args:
            factors: factor name -> array of that factor's shape.
            out: vector to fill, shape [size]; a new one by default.

        Returns:
            The filled vector, shape [size].

        Raises:
            ProtocolError: a factor is missing, unknown, or of another shape.
        """
        if set(factors) != set(self.slices):
            odd = sorted(set(factors) ^ set(self.slices))
            raise ProtocolError(f"factors do not match the layout: {', '.join(odd[:4])}")
        vector = np.empty(self.size, np.float32) if out is None else out
        for factor in self.factors:
            if factors[factor.name].shape != factor.shape:
                raise ProtocolError(
                    f"{factor.name} has shape {factors[factor.name].shape}, the layout says {factor.shape}"
                )
            vector[self.slices[factor.name]] = factors[factor.name].ravel()
        return vector


class Adapter(BaseModel):
    """What a scheme knows of the adapter before the first round.

    Attributes:
        layout: order of the trained factors.
        initial: flat vector all nodes start from, shape [layout.size], float32.
        frozen_layout: order of the factors that are not trained (A under `freeze_a`).
        frozen: their values, shape [frozen_layout.size], float32.
        peft_config: content of `adapter_config.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    layout: Layout
    initial: np.ndarray
    frozen_layout: Layout = Layout(factors=())
    frozen: np.ndarray = Field(default_factory=lambda: np.zeros(0, np.float32))
    peft_config: dict[str, Any] = Field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of trained values."""
        return self.layout.size
