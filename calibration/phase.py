"""For how long the phase of each node's channel can be foretold, and whether that is long enough for coherent sums."""

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
from testbed.phy import sounding
from testbed.phy.coherence import (
    HOLD_S,
    LARGEST_FLOOR,
    SOUNDING_PILOTS,
    misalignment_mse,
    phase_std_of_jitter,
    phase_std_of_offset,
)
from testbed.phy.holding import Foretold, foretell
from testbed.phy.ofdm import in_band_noise_w

_LARGEST_VARIANCE = -2.0 * math.log(1.0 - LARGEST_FLOOR / 2.0)
"""Squared phase error at which a coherent sum has lost `LARGEST_FLOOR` of its power."""
_PAUSE_EVERY = 5


class PhaseOptions(Spec):
    """What may be chosen for `phase`."""

    captures: int = Field(40, ge=8, description="soundings of all nodes")
    num_pilots: int = Field(SOUNDING_PILOTS, ge=2, description="pilot blocks of a sounding, as runs have them")
    hold_s: float = Field(HOLD_S, gt=0, description="time from a sounding to the data that rely on it")
    longest_s: float = Field(0.2, gt=0, description="phases are foretold for at most so long")
    search_s: float = Field(2e-5, gt=0, description="bursts are looked for within so many seconds of their time")
    power_share: float = Field(1.0, gt=0, le=1, description="of each node's highest average power")


@dataclass(frozen=True)
class _Course:
    """One node's soundings.

    Attributes:
        at_s: instants for which the channels hold, shape [num_soundings].
        channel: shape [num_soundings, num_antennas].
        noise: variance of one antenna's channel estimate.
        offset_hz: carrier offsets as each sounding tells them, shape [num_soundings].
        late_s: delays, shape [num_soundings].
        restless: power of what differs from one pilot block to the next beyond the receiver's noise, relative to the
            signal: phase noise too quick for pilots to follow.
        restless_std: of it.
        asked: soundings that were sent.
    """

    at_s: np.ndarray
    channel: np.ndarray
    noise: float
    offset_hz: np.ndarray
    late_s: np.ndarray
    restless: float
    restless_std: float
    asked: int


class Phase:
    """All nodes sound in turn, again and again; each sounding foretells the phases of those after it.

    error = arg(h_l^H h_k exp(j 2 pi f_k (t_l - t_k))): channel h_k and carrier offset f_k as runs learn them from a
    sounding. Its mean rotation over the time between both says how long phases hold.
    """

    name: ClassVar[str] = "phase"
    about: ClassVar[str] = "how long every node's phase holds, and whether coherent sums are possible"
    Options: ClassVar[type[Spec]] = PhaseOptions
    validity: ClassVar[tuple[str, ...]] = ("frequency_hz", "sample_rate_hz", "array")
    lasts_s: ClassVar[float] = 86400.0

    def next_step(
        self, bench: BenchSpec, options: PhaseOptions, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """Captures as quickly as they come, and now and then a pause."""
        if len(done) >= options.captures:
            return None
        pauses, rest = divmod(len(done), _PAUSE_EVERY)
        return {"pause_s": 0.0 if rest or not pauses else options.hold_s * 2.0 ** (pauses % 4 - 1)}

    def num_steps(self, bench: BenchSpec, options: PhaseOptions) -> int:
        """One for each capture."""
        return options.captures

    def measure(self, access: Access, options: PhaseOptions, step: Step) -> Raw:
        """Every node sounds once, in its own slot.

        Raises:
            ConfigError: the bench has no samples.
            DeviceError: a device failed.
        """
        bench = access.bench
        require_samples(bench)
        if step["pause_s"]:
            access.wait(float(step["pause_s"]))
        margin, slot = _layout(bench, options, access.guard)
        bursts = {
            node: sounding.build(options.num_pilots, bench.waveform, burst_power_w(bench, node, options.power_share))
            for node in bench.node_names
        }
        offsets = {node: index * slot + margin for index, node in enumerate(bench.node_names)}
        heard = access.capture(slot * len(bursts), bursts, offsets=offsets)
        return {
            "samples": heard.samples,
            "guard": np.array(heard.guard),
            "at_s": np.array(heard.at_s),
            "shared_clock": np.array(access.devices.radio.capabilities.shared_clock),
        }

    def fit(self, bench: BenchSpec, options: PhaseOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """Phase error over time of every node, and what follows for coherent sums."""
        if not done:
            return Fit({}, False, "nothing was measured: run `testbed calibrate phase` again")
        courses = {node: _course(bench, options, done, index) for index, node in enumerate(bench.node_names)}
        troubles = []
        for node, course in courses.items():
            if 2 * len(course.at_s) <= course.asked or len(course.at_s) < 4:
                why = why_unheard(done[-1][1]["samples"], bench)
                troubles.append(f"of {course.asked} soundings of {node} {len(course.at_s)} were found: {why}")
        if any(saturated(raw["samples"]) for _, raw in (done[0], done[-1])):
            troubles = [f"the phases mean nothing: {why_unheard(done[0][1]['samples'], bench)}"]
        if troubles:
            return Fit({}, False, "; ".join(troubles))
        foretold = {
            node: foretell(
                course.channel, course.at_s, course.offset_hz, noise=course.noise, longest_s=options.longest_s
            )
            for node, course in courses.items()
        }
        values: dict[str, Quantity] = {"at": Quantity(float(next(iter(courses.values())).at_s[0]), "s", 0.0)}
        for node, course in courses.items():
            values[f"{node}.phase"] = _first_phase(course, foretold[node])
            values[f"{node}.coherence"] = _coherence(foretold[node])
        floors = {node: _floor(bench, options, courses[node], foretold[node]) for node in courses}
        possible = all(floor + 2 * std < LARGEST_FLOOR for floor, std in floors.values())
        values["phase_coherent"] = Quantity(float(possible), "1", 0.0)
        curves = tuple(_curve(node, found) for node, found in foretold.items())
        return Fit(values, True, _decision(options, courses, foretold, floors, possible), curves)


def _layout(bench: BenchSpec, options: PhaseOptions, guard: int) -> tuple[int, int]:
    """Samples before a burst in which it may begin early, and samples of a whole slot."""
    margin = guard + math.ceil(options.search_s * bench.sample_rate_hz) + bench.waveform.cyclic_prefix
    return margin, sounding.length(options.num_pilots, bench.waveform) + 2 * margin


def _course(bench: BenchSpec, options: PhaseOptions, done: Sequence[tuple[Step, Raw]], index: int) -> _Course:
    node = bench.node_names[index]
    power_w = burst_power_w(bench, node, options.power_share)
    found: list[sounding.Heard] = []
    at_s, quiet_w = [], []
    for _, raw in done:
        guard = int(raw["guard"])
        margin, slot = _layout(bench, options, guard)
        # nobody sends yet, however early the first burst begins
        quiet_w.append(float(np.mean(np.var(raw["samples"][:, : guard + margin // 2], axis=1))))
        part = raw["samples"][:, index * slot : (index + 1) * slot + 2 * guard]
        heard = sounding.read(
            part,
            bench.waveform,
            options.num_pilots,
            power_w,
            start=margin + guard,
            guard=margin,
            correct_cfo=not bool(raw["shared_clock"]),
        )
        if heard is not None:
            found.append(heard)
            at_s.append(float(raw["at_s"]) + (index * slot + margin + heard.centre) / bench.sample_rate_hz)
    channel = np.array([heard.channel for heard in found])
    noise_w = np.array([heard.noise_w for heard in found])
    restless, restless_std = _restless(bench, channel, noise_w, np.array(quiet_w), power_w)
    return _Course(
        np.array(at_s),
        channel,
        float(noise_w.mean()) / (power_w * options.num_pilots * bench.waveform.num_active) if found else 0.0,
        bench.sample_rate_hz * np.array([heard.cfo for heard in found]),
        np.array([heard.lag for heard in found]) / bench.sample_rate_hz,
        restless,
        restless_std,
        len(done),
    )


def _restless(
    bench: BenchSpec, channel: np.ndarray, noise_w: np.ndarray, quiet_w: np.ndarray, power_w: float
) -> tuple[float, float]:
    """What blocks differ by beyond the noise of the receiver alone, relative to the signal; and its accuracy."""
    if len(noise_w) < 2:
        return 0.0, math.inf
    thermal_w = in_band_noise_w(float(quiet_w.mean()), bench.waveform)
    signal_w = power_w * float(np.mean(np.abs(channel) ** 2))
    scatter_w = math.hypot(float(noise_w.std(ddof=1)) / math.sqrt(len(noise_w)), thermal_w * _relative_std(quiet_w))
    return max(float(noise_w.mean()) - thermal_w, 0.0) / signal_w, scatter_w / signal_w


def _relative_std(powers_w: np.ndarray) -> float:
    """Of the mean."""
    mean_w = float(powers_w.mean())
    return float(powers_w.std(ddof=1)) / math.sqrt(len(powers_w)) / mean_w if mean_w > 0 else 0.0


def _first_phase(course: _Course, foretold: Foretold) -> Quantity:
    """Phase at the first antenna in the first sounding."""
    gain = course.channel[0, 0]
    if foretold.lost:
        return Quantity(float(np.angle(gain)), "rad", math.inf)
    noise = course.noise / (2 * max(abs(gain) ** 2, 1e-300))
    return Quantity(float(np.angle(gain)), "rad", math.sqrt(noise + foretold.constant / 2))


def _coherence(foretold: Foretold) -> Quantity:
    """Time after which phases can no longer be foretold well enough for a coherent sum."""
    time_s, std_s = foretold.time_until(_LARGEST_VARIANCE)
    return Quantity(time_s, "s", std_s)


def _floor(bench: BenchSpec, options: PhaseOptions, course: _Course, foretold: Foretold) -> tuple[float, float]:
    """Share of a coherent sum's power that is lost after `hold_s`, and its standard deviation."""
    if foretold.lost:
        return misalignment_mse(np.ones(1), math.inf), 0.0
    jitter_s = math.sqrt(2) * float(course.late_s.std(ddof=1))
    slope = phase_std_of_jitter(jitter_s, bench.waveform, bench.sample_rate_hz) ** 2
    variance, std = foretold.variance_at(options.hold_s)
    lost = misalignment_mse(np.ones(1), math.sqrt(variance + slope))
    return lost + course.restless, math.hypot(std, course.restless_std)


def _curve(node: str, found: Foretold) -> Curve:
    fitted = None if found.lost else np.exp(-0.5 * (found.constant + found.growth * found.lag_s**2))
    return Curve(
        f"{node}: how well a sounding foretells the phase", "time since the sounding in s", "mean rotation",
        found.lag_s, found.rotation, fitted,
    )  # fmt: skip


def _decision(
    options: PhaseOptions,
    courses: Mapping[str, _Course],
    foretold: Mapping[str, Foretold],
    floors: Mapping[str, tuple[float, float]],
    possible: bool,
) -> str:
    worst = max(floors, key=lambda node: floors[node][0])
    floor, std = floors[worst]
    hold = f"{1e3 * options.hold_s:g} ms after a sounding"
    alone = "; no reciprocity constants: the receiver of this bench does not transmit"
    lost = [node for node, found in foretold.items() if found.lost]
    if lost:
        shortest_s = min(float(foretold[node].lag_s[0]) for node in lost)
        return (
            f"phase_coherent cannot be claimed: {1e3 * shortest_s:.3g} ms after a sounding, the shortest time "
            f"measured, nothing is left of the phase of {listed(lost)}{alone}"
        )
    share = f"{100 * floor:.2g} +- {100 * std:.2g} %"
    scatter_hz = float(courses[worst].offset_hz.std(ddof=1))
    built = phase_std_of_offset(scatter_hz, options.hold_s)
    offset = f" ({built:.2g} rad of that because soundings tell its carrier to {scatter_hz:.2g} Hz)" if built else ""
    verb = "may" if possible else "cannot"
    return (
        f"phase_coherent {verb} be claimed: {hold} {worst} has lost {share} of its share of a coherent sum, "
        f"where {100 * LARGEST_FLOOR:g} % are allowed{offset}{alone}"
    )
