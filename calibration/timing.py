"""When each node's bursts really begin, and how well they line up once that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from calibration.access import Access
from calibration.reception import burst_power_w, listed, require_samples, saturated, why_unheard
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.specs import Spec
from testbed.phy import preamble, sounding
from testbed.phy.coherence import JITTER_DEVIATIONS
from testbed.phy.reference import Placed, delayed, place

_ALLOWED = 0.1
"""Samples by which bursts may still be off, beyond chance, once they were advanced."""
_SIGMAS = 4.0


class TimingOptions(Spec):
    """What may be chosen for `timing`."""

    repeats: int = Field(12, ge=3, description="bursts of each node alone")
    closed_repeats: int = Field(8, ge=2, description="captures of all nodes together, their bursts advanced")
    num_pilots: int = Field(8, ge=2, description="OFDM blocks of a burst that are known; more are more accurate")
    search_s: float = Field(2e-5, gt=0, description="bursts are looked for within so many seconds of their time")
    power_share: float = Field(0.5, gt=0, le=1, description="of each node's highest average power")


class Timing:
    """Every node alone sends a known burst again and again; then all in one capture, advanced by what was found.

    The delay is that of transmitter, air and receiver together: nothing in the bench tells them apart.
    """

    name: ClassVar[str] = "timing"
    about: ClassVar[str] = "delay and jitter of every node's bursts, and the alignment that is reached"
    Options: ClassVar[type[Spec]] = TimingOptions
    validity: ClassVar[tuple[str, ...]] = ("frequency_hz", "sample_rate_hz")
    lasts_s: ClassVar[float] = 7 * 86400.0

    def next_step(
        self, bench: BenchSpec, options: TimingOptions, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """Open loop node by node, then closed loop with what that found; none of it where a node was not heard."""
        names = bench.node_names
        alone = options.repeats * len(names)
        if len(done) < alone:
            return {"alone": names[len(done) % len(names)], "advance_s": {}}
        if len(done) >= alone + options.closed_repeats:
            return None
        if len(done) > alone:
            return {"alone": None, "advance_s": dict(done[alone][0]["advance_s"])}
        starts = _starts(bench, options, done)
        if any(2 * len(starts.late_s[name]) <= options.repeats for name in names):
            return None
        return {"alone": None, "advance_s": {name: float(np.mean(starts.late_s[name])) for name in names}}

    def num_steps(self, bench: BenchSpec, options: TimingOptions) -> int:
        """One for each burst alone, and the closed loop's captures."""
        return options.repeats * len(bench.node_names) + options.closed_repeats

    def measure(self, access: Access, options: TimingOptions, step: Step) -> Raw:
        """One capture.

        Raises:
            ConfigError: the bench has no samples.
            DeviceError: a device failed.
        """
        bench = access.bench
        require_samples(bench)
        margin, slot = _layout(bench, options, access.guard)
        nodes = bench.node_names if step["alone"] is None else (str(step["alone"]),)
        bursts: dict[str, np.ndarray] = {}
        offsets: dict[str, int] = {}
        for index, node in enumerate(nodes):
            late = float(step["advance_s"].get(node, 0.0)) * bench.sample_rate_hz
            whole = math.ceil(late)
            bursts[node], early = delayed(_burst(bench, node, options), whole - late)
            offsets[node] = index * slot + margin - whole - early
        heard = access.capture(slot * len(nodes), bursts, offsets=offsets)
        return {"samples": heard.samples, "guard": np.array(heard.guard), "at_s": np.array(heard.at_s)}

    def fit(self, bench: BenchSpec, options: TimingOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """Means and scatter of the starts, and what the closed loop leaves of them."""
        if not done:
            return Fit({}, False, "nothing was measured: run `testbed calibrate timing` again")
        starts = _starts(bench, options, done)
        values: dict[str, Quantity] = {}
        for node in bench.node_names:
            if len(starts.late_s[node]) > 1:
                values[f"{node}.delay"], values[f"{node}.jitter"] = _delay_and_jitter(starts, node)
        troubles = list(starts.troubles)
        troubles += [
            _beyond_guard(bench, node, starts) or "" for node in bench.node_names if f"{node}.jitter" in values
        ]
        troubles = [trouble for trouble in troubles if trouble]
        if starts.left_s.size == 0:
            troubles = troubles or ["the closed loop was not measured: run `testbed calibrate timing` again"]
        else:
            left = starts.left_s
            # of each capture its own mean is common to all nodes: the receiver may begin late
            apart_s = left - left.mean(axis=1, keepdims=True)
            count = max((left.shape[0]) * (left.shape[1] - 1), 1)
            reached_s = math.sqrt(float(np.sum(apart_s**2)) / count) if left.shape[1] > 1 else float(left.std())
            values["alignment"] = Quantity(reached_s, "s", reached_s / math.sqrt(2 * count))
            for node, column in zip(bench.node_names, left.T, strict=True):
                std_s = float(column.std(ddof=1)) / math.sqrt(len(column))
                values[f"{node}.residual"] = Quantity(float(column.mean()), "s", std_s)
            troubles += _not_closed(bench, values)
        curves = _curves(bench, starts)
        if troubles:
            return Fit(values, False, "; ".join(troubles), curves)
        return Fit(values, True, _summary(bench, values), curves)


@dataclass(frozen=True)
class _Starts:
    """By how much bursts began late.

    Attributes:
        late_s: node -> open loop, one for each burst that was found.
        std_s: node -> accuracy of one of them.
        left_s: closed loop, shape [num_captures, num_nodes]; captures in which a burst is missing are left out.
        troubles: sentences on nodes that were not heard.
    """

    late_s: Mapping[str, list[float]]
    std_s: Mapping[str, float]
    left_s: np.ndarray
    troubles: tuple[str, ...]


def _starts(bench: BenchSpec, options: TimingOptions, done: Sequence[tuple[Step, Raw]]) -> _Starts:
    late_s: dict[str, list[float]] = {name: [] for name in bench.node_names}
    std_s: dict[str, float] = dict.fromkeys(bench.node_names, 0.0)
    silent: dict[str, str] = {}
    left_s: list[list[float]] = []
    for step, raw in done:
        samples, guard = raw["samples"], int(raw["guard"])
        margin, slot = _layout(bench, options, guard)
        if step["alone"] is None:
            parts = [
                samples[:, index * slot : (index + 1) * slot + 2 * guard] for index in range(len(bench.node_names))
            ]
            found = [
                _find(bench, options, node, part, margin + guard)
                for node, part in zip(bench.node_names, parts, strict=True)
            ]
            row_s = [place_s for place_s in found if place_s is not None]
            if len(row_s) == len(found):
                left_s.append([late for late, _ in row_s])
            continue
        node = str(step["alone"])
        one = _find(bench, options, node, samples, margin + guard)
        if saturated(samples):
            silent[node] = why_unheard(samples, bench)
        elif one is None:
            silent.setdefault(node, why_unheard(samples, bench))
        else:
            late_s[node].append(one[0])
            std_s[node] = max(std_s[node], one[1])
    measured = {str(step["alone"]) for step, _ in done}
    troubles = [f"{node} was never measured" for node in bench.node_names if node not in measured]
    for node, why in silent.items():
        asked = sum(step["alone"] == node for step, _ in done)
        if 2 * len(late_s[node]) <= asked:
            troubles.append(f"of {asked} bursts of {node} {len(late_s[node])} were found: {why}")
    return _Starts(late_s, std_s, np.array(left_s), tuple(troubles))


def _find(
    bench: BenchSpec, options: TimingOptions, node: str, samples: np.ndarray, nominal: int
) -> tuple[float, float] | None:
    """By how many seconds a burst begins after its nominal sample, and how well that is known; None if it is absent."""
    reference = _burst(bench, node, options)
    coarse = preamble.search(samples, bench.waveform, 0, samples.shape[1] - reference.size)
    if coarse is None:
        return None
    first, last = coarse.start - preamble.MARGIN, coarse.start + coarse.spread + preamble.MARGIN
    placed: Placed | None = place(samples, reference, first=first, last=last, cfo=coarse.cfo)
    if placed is None:
        return None
    # the fit holds for the middle of the burst; a clock that runs fast has brought that nearer to its start
    stretch = placed.cfo * bench.sample_rate_hz / bench.carrier_hz
    late = placed.lag - nominal + stretch * (reference.size - 1) / 2
    return late / bench.sample_rate_hz, placed.lag_std / bench.sample_rate_hz


def _burst(bench: BenchSpec, node: str, options: TimingOptions) -> np.ndarray:
    return sounding.build(options.num_pilots, bench.waveform, burst_power_w(bench, node, options.power_share))


def _layout(bench: BenchSpec, options: TimingOptions, guard: int) -> tuple[int, int]:
    """Samples before a burst in which it may begin early, and samples of a whole slot."""
    # the closed loop moves bursts ahead by as much as they were found late
    margin = guard + 2 * math.ceil(options.search_s * bench.sample_rate_hz) + 64
    return margin, sounding.length(options.num_pilots, bench.waveform) + 2 * margin


def _delay_and_jitter(starts: _Starts, node: str) -> tuple[Quantity, Quantity]:
    late_s = np.array(starts.late_s[node])
    scatter_s, count = float(late_s.std(ddof=1)), len(late_s)
    # what the estimator itself scatters is no jitter
    jitter_s = math.sqrt(max(scatter_s**2 - starts.std_s[node] ** 2, 0.0))
    std_s = math.hypot(scatter_s, starts.std_s[node]) / math.sqrt(count)
    return (
        Quantity(float(late_s.mean()), "s", std_s),
        Quantity(jitter_s, "s", max(scatter_s, starts.std_s[node]) / math.sqrt(2 * (count - 1))),
    )


def _beyond_guard(bench: BenchSpec, node: str, starts: _Starts) -> str | None:
    """Whether bursts jitter beyond what captures leave room for."""
    _, jitter = _delay_and_jitter(starts, node)
    least_s = jitter.value - 2 * jitter.std
    guard_s = math.ceil(JITTER_DEVIATIONS * bench.start_std_s * bench.sample_rate_hz) / bench.sample_rate_hz
    if JITTER_DEVIATIONS * least_s <= guard_s + 1 / bench.sample_rate_hz:
        return None
    return (
        f"bursts of {node} jitter by {1e6 * jitter.value:.3g} us, and captures leave room for "
        f"{1e6 * guard_s / JITTER_DEVIATIONS:.3g} us: set radio.start_jitter_s = {jitter.value:.2g} in the bench file"
    )


def _not_closed(bench: BenchSpec, values: Mapping[str, Quantity]) -> list[str]:
    """Nodes whose bursts did not move to where they were sent."""
    troubles = []
    for node in bench.node_names:
        left, delay = values[f"{node}.residual"], values[f"{node}.delay"]
        chance_s = _SIGMAS * math.hypot(left.std, delay.std)
        if abs(left.value) > _ALLOWED / bench.sample_rate_hz + chance_s:
            troubles.append(
                f"bursts of {node} are still {left.value * bench.sample_rate_hz:.2f} samples late after they were "
                f"advanced by {delay.value * bench.sample_rate_hz:.2f}: something else starts them than the trigger"
            )
    return troubles


def _curves(bench: BenchSpec, starts: _Starts) -> tuple[Curve, ...]:
    rate_hz = bench.sample_rate_hz
    curves = [
        Curve(
            f"{node}: start of its bursts",
            "burst",
            "samples late",
            np.arange(len(late_s), dtype=np.float64),
            rate_hz * np.array(late_s),
            np.full(len(late_s), rate_hz * float(np.mean(late_s))),
        )
        for node, late_s in starts.late_s.items()
        if late_s
    ]
    if starts.left_s.size:
        left = rate_hz * starts.left_s.ravel()
        curves.append(
            Curve(
                "All nodes together, advanced by their delays",
                "burst",
                "samples late",
                np.arange(left.size, dtype=np.float64),
                left,
                np.zeros(left.size),
            )
        )
    return tuple(curves)


def _summary(bench: BenchSpec, values: Mapping[str, Quantity]) -> str:
    rate_hz, prefix = bench.sample_rate_hz, bench.waveform.cyclic_prefix
    reached = values["alignment"].value * rate_hz
    delays = [values[f"{node}.delay"].value * rate_hz for node in bench.node_names]
    jitters = [values[f"{node}.jitter"].value * rate_hz for node in bench.node_names]
    text = (
        f"bursts begin {min(delays):.2f} to {max(delays):.2f} samples late; advanced by that they line up to "
        f"{reached:.3f} samples, of {prefix} in the cyclic prefix"
    )
    if JITTER_DEVIATIONS * max(jitters) > prefix:
        worst = [node for node, jitter in zip(bench.node_names, jitters, strict=True) if jitter == max(jitters)]
        text += f"; {listed(worst)} jitters beyond the cyclic prefix: radio.timed_tx cannot be claimed"
    return text
