"""A calibration of few steps: how loud each node is heard, and from how many metres up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from calibration.access import Access
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.specs import Spec

_LENGTH = 512


class TinyOptions(Spec):
    """Options of `Tiny`."""

    repeats: int = Field(2, ge=1, description="captures of each node")
    least_w: float = Field(0.0, ge=0, description="fail below this power")
    refuse: bool = Field(False, description="refuse the bench at the first step")


class Tiny:
    """Sends a tone from each node and moves the antennas a little each time."""

    name: ClassVar[str] = "tiny"
    about: ClassVar[str] = "How loud each node is heard"
    Options: ClassVar[type[Spec]] = TinyOptions
    validity: ClassVar[tuple[str, ...]] = ("frequency_hz", "sample_rate_hz", "gain")
    lasts_s: ClassVar[float] = 3600.0

    before_step: ClassVar[Callable[[int], None] | None] = None
    """Called with the number of each step before it is measured."""

    def next_step(
        self, bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        if len(done) >= self.num_steps(bench, options):
            return None
        node = bench.node_names[len(done) % len(bench.node_names)]
        return {"index": len(done), "node": node, "up_m": rng.uniform(0.0, 0.02), "two": (1, 2)}

    def num_steps(self, bench: BenchSpec, options: Any) -> int:
        return int(options.repeats * len(bench.node_names))

    def measure(self, access: Access, options: Any, step: Step) -> Raw:
        if options.refuse:
            raise ConfigError("this bench has no bells", remedy="hang some")
        if (before_step := type(self).before_step) is not None:
            before_step(step["index"])
        home_m = np.array([antenna.home_m for antenna in access.bench.array.antennas])
        access.move(home_m + np.array([0.0, step["up_m"]]))
        tone = (0.003 * np.exp(2j * np.pi * 0.05 * np.arange(_LENGTH))).astype(np.complex64)
        heard = access.capture(_LENGTH, {step["node"]: tone})
        return {"samples": heard.samples, "at_s": np.array(heard.at_s)}

    def fit(self, bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]]) -> Fit:
        powers_w: Mapping[str, list[float]] = {name: [] for name in bench.node_names}
        for step, raw in done:
            powers_w[step["node"]].append(float(np.mean(np.abs(raw["samples"]) ** 2)))
        values = {f"{name}.heard": Quantity(np.mean(one), "W", np.std(one)) for name, one in powers_w.items() if one}
        least_w = min(one.value for one in values.values())
        passed = bool(least_w >= options.least_w)
        why = "limited by the receiver's noise" if passed else f"a node is heard with {least_w:.3g} W only"
        at_s = np.array([float(raw["at_s"]) for _, raw in done])
        every_w = np.array([one for ones in zip(*powers_w.values(), strict=True) for one in ones])
        curve = Curve("Power heard", "time, s", "power, W", at_s, every_w, np.full(len(done), every_w.mean()))
        return Fit(values, passed, why, (curve,))
