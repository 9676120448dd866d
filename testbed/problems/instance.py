"""One instance of a system's problem, read from a TOML file and solved offline by `testbed solve`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from testbed.opt.solution import Solution


class InstanceSpec(BaseModel):
    """A table of an instance file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Answer:
    """A solved instance.

    Attributes:
        solution: value, status, residuals, trace.
        decisions: what was decided, JSON-ready (numbers, texts, lists, nested by name), in the order it is printed.
    """

    solution: Solution[Any]
    decisions: Mapping[str, Any]


class Instance(InstanceSpec, ABC):
    """An instance file as a whole. Its fields are the file's keys; their descriptions are its documentation."""

    methods: ClassVar[tuple[str, ...]]
    """What `--method` may say; the first is the default."""

    @abstractmethod
    def solve(self, method: str) -> Answer:
        """Solve the instance.

        Args:
            method: one of `methods`.

        Raises:
            ConfigError: keys that are valid one by one do not go together (more antennas than fit, K above M, ...),
                with key and remedy. An instance that merely has no solution is answered with status "infeasible".
        """
