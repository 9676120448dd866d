"""What a calibration is: steps that measure, and a fit that says how well it knows what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from calibration.access import Access
from testbed.core.bench import BenchSpec
from testbed.core.specs import Spec

Step = Mapping[str, Any]
"""One measurement, in words that JSON can hold: {"node": "node-00", "gain": 1e5}, for instance."""
Raw = Mapping[str, np.ndarray]
"""What one step measured."""


@dataclass(frozen=True)
class Quantity:
    """A value with its unit and how well it is known.

    Attributes:
        value: a number, or nested tuples of numbers.
        unit: SI, "1" for a ratio; power ratios and powers are linear.
        std: standard deviation, of the same shape; infinite where nothing is known.
    """

    value: Any
    unit: str
    std: Any


@dataclass(frozen=True)
class Curve:
    """A figure of the report: what was measured, and what the fit says.

    Attributes:
        title: of the figure.
        x_label, y_label: with units.
        x: shape [num_points].
        measured: shape [num_points].
        fitted: shape [num_points], or None.
    """

    title: str
    x_label: str
    y_label: str
    x: np.ndarray
    measured: np.ndarray
    fitted: np.ndarray | None = None


@dataclass(frozen=True)
class Fit:
    """What a calibration found.

    Attributes:
        values: name -> quantity; names are dotted, as in "node-00.offset".
        passed: whether the values may be used.
        why: if they may not, the sentence that says why, and what to do; else what limits their accuracy.
        curves: residuals and data, for the report.
    """

    values: Mapping[str, Quantity]
    passed: bool
    why: str
    curves: tuple[Curve, ...] = ()


class Routine(Protocol):
    """One calibration. Measuring acts through `Access` alone; fitting is pure.

    Class attributes:
        name: as on the command line.
        about: one sentence for lists.
        Options: frozen model of what may be chosen, with defaults and descriptions.
        validity: settings that a profile is valid for, of "frequency_hz", "sample_rate_hz", "gain", "array".
        lasts_s: how long a profile holds, seconds.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    Options: ClassVar[type[Spec]]
    validity: ClassVar[tuple[str, ...]]
    lasts_s: ClassVar[float]

    def next_step(
        self, bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """The measurement after those that are done; None when there are enough.

        Pure, and the generator is seeded by the calibration's seed and the number of steps done: a calibration that was
        cut off goes on with the same steps.
        """

    def num_steps(self, bench: BenchSpec, options: Any) -> int:
        """How many there will be, at most."""

    def measure(self, access: Access, options: Any, step: Step) -> Raw:
        """Carry out one step.

        Raises DeviceError where a device failed, LimitError before anything moved or radiated.
        """

    def fit(self, bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """What follows from the measurements. Never raises for bad data: it says `passed = False` and why."""
