"""How far each node's oscillator is from the receiver's, and how that drifts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from calibration.access import Access
from calibration.reception import burst_power_w, listed, require_samples, saturated, why_unheard
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.specs import Spec
from testbed.phy.tone import Tone, energy_at, estimate_tone, frequency_bound, turning

CRYSTAL_HZ = 40_000_000
"""Of a PlutoSDR whose `xo_correction` was never set."""
_TONES = (0.11, -0.14)
"""Cycles per sample. They are no mirror images of each other, and far from the receiver's DC offset."""
_LONGEST = 1 << 20
_QUIET = 1 << 14
_MARGIN = 256
"""Samples left out where the burst begins and ends."""
_ALIKE = 1e-5
"""By how much a sampling clock may differ from its own radio's carrier: both come from one crystal."""
_JAMMED = 0.03
"""Share of a tone's power that may stand at its frequency while nobody sends."""


class CarrierOptions(Spec):
    """What may be chosen for `carrier`."""

    seconds: float = Field(0.1, gt=0, description="length of one measurement; two to the 20 samples at most")
    repeats: int = Field(3, ge=1, description="measurements of each node; one tells no drift")
    interval_s: float = Field(1.0, ge=0, description="from one round of measurements to the next")
    power_share: float = Field(0.5, gt=0, le=1, description="of each node's highest average power")
    largest_ppm: float = Field(30.0, gt=0, description="offsets are looked for within so many parts per million")
    largest_drift_ppm_s: float = Field(0.1, gt=0, description="faster drift means radios that are still warming up")
    correct: Literal["digital", "crystal", "none"] = Field(
        "digital",
        description="digital: bursts are turned back before they are sent; crystal: the crystal's figure is set and "
        "what is left is measured again; none: nobody corrects",
    )
    temperature_k: float | None = Field(None, gt=0, description="of the room, as read; kept with the profile")


@dataclass(frozen=True)
class _Reading:
    """One measurement: frequency of the oscillator and of the sampling clock against the receiver's, as ratios."""

    at_s: float
    offset: float
    std: float
    clock: float
    clock_std: float
    snr: float
    residual_rad: np.ndarray


class Carrier:
    """Each node alone sends two tones; the receiver tells by how much both are off.

    m_i = f_i + delta + eps f_i: the carrier's offset delta and the sampling clock's eps follow from two tones, whether
    or not one crystal feeds both.
    """

    name: ClassVar[str] = "carrier"
    about: ClassVar[str] = "oscillator offset and drift of every node against the receiver"
    Options: ClassVar[type[Spec]] = CarrierOptions
    validity: ClassVar[tuple[str, ...]] = ("frequency_hz", "sample_rate_hz")
    lasts_s: ClassVar[float] = 3600.0

    def next_step(
        self, bench: BenchSpec, options: CarrierOptions, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """Round after round over the nodes; with `correct = "crystal"` again with the crystals set."""
        names = bench.node_names
        per_pass = options.repeats * len(names)
        repeat, index = divmod(len(done) % per_pass, len(names))
        if len(done) < per_pass:
            return {"node": names[index], "repeat": repeat, "crystals_hz": {}}
        if options.correct != "crystal" or len(done) >= 2 * per_pass:
            return None
        if len(done) > per_pass:
            return {"node": names[index], "repeat": repeat, "crystals_hz": dict(done[per_pass][0]["crystals_hz"])}
        before = _summaries(bench, options, done)
        crystals_hz = {
            name: round(_crystal_hz(bench, name) * (1 + found.offset))
            for name, found in before.items()
            if isinstance(found, _Summary)
        }
        if len(crystals_hz) < len(names):
            return None
        return {"node": names[index], "repeat": repeat, "crystals_hz": crystals_hz}

    def num_steps(self, bench: BenchSpec, options: CarrierOptions) -> int:
        """Repeats times nodes, twice where crystals are set."""
        return options.repeats * len(bench.node_names) * (2 if options.correct == "crystal" else 1)

    def measure(self, access: Access, options: CarrierOptions, step: Step) -> Raw:
        """Hear nothing for a while, then the node's two tones.

        Raises:
            ConfigError: the bench has no samples, or its radios no crystal to set.
            DeviceError: a device failed.
        """
        bench, node = access.bench, str(step["node"])
        require_samples(bench)
        if step["repeat"] and node == bench.node_names[0]:
            access.wait(options.interval_s)
        if step["crystals_hz"]:
            access.adjust(node, crystal_hz=int(step["crystals_hz"][node]))
        length = _length(bench, options, access.guard)
        amplitude = math.sqrt(burst_power_w(bench, node, options.power_share) / len(_TONES))
        burst = np.float32(amplitude) * np.sum([turning(tone, length) for tone in _TONES], axis=0)
        heard = access.capture(_QUIET + length, {node: burst.astype(np.complex64)}, offsets={node: _QUIET})
        # one antenna is enough, and eight nodes fill no disk
        power_w = np.mean(np.square(np.abs(heard.samples[:, heard.guard + _QUIET :])), axis=1, dtype=np.float64)
        best = int(np.argmax(power_w))
        return {
            "samples": heard.samples[best],
            "start": np.array(heard.guard + _QUIET),
            "margin": np.array(heard.guard + _MARGIN),
            "length": np.array(length),
            "at_s": np.array(heard.at_s + _QUIET / bench.sample_rate_hz),
            "antenna": np.array(best),
        }

    def fit(self, bench: BenchSpec, options: CarrierOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """Offset at the middle of the measurements, and drift, by least squares over the repeats."""
        passes = [[item for item in done if bool(item[0]["crystals_hz"]) is late] for late in (False, True)]
        measured = passes[1] or passes[0]
        if not measured:
            return Fit({}, False, "nothing was measured: run `testbed calibrate carrier` again")
        found = _summaries(bench, options, measured)
        summaries = {node: summary for node, summary in found.items() if isinstance(summary, _Summary)}
        at_s = float(np.mean([summary.at_s for summary in summaries.values()])) if summaries else 0.0
        values = {"at": Quantity(at_s, "s", 0.0)}
        for node, summary in summaries.items():
            values[f"{node}.offset"] = Quantity(*summary.then(at_s))
            values[f"{node}.drift"] = Quantity(summary.drift_s, "1/s", summary.drift_std_s)
            values[f"{node}.clock_offset"] = Quantity(summary.clock, "1", summary.clock_std)
        troubles = [summary for summary in found.values() if isinstance(summary, str)]
        absent = sorted(set(bench.node_names) - set(found))
        if absent:
            troubles.append(f"{listed(absent)} was never measured")
        troubles += [trouble for node, summary in summaries.items() if (trouble := summary.trouble(node, options))]
        curves = tuple(curve for node, summary in summaries.items() for curve in summary.curves(node, bench))
        if troubles:
            return Fit(values, False, "; ".join(troubles), curves)
        return Fit(values, True, _limits(bench, options, summaries, measured[0][0]["crystals_hz"]), curves)


@dataclass(frozen=True)
class _Summary:
    """What all readings of a node say: offset at `at_s`, drift, clock."""

    readings: tuple[_Reading, ...]
    at_s: float
    offset: float
    std: float
    drift_s: float
    drift_std_s: float
    clock: float
    clock_std: float

    @classmethod
    def of(cls, readings: Sequence[_Reading]) -> _Summary:
        """A straight line through the readings; where they scatter more than each claims, all are believed less."""
        at_s = np.array([reading.at_s for reading in readings])
        offsets = np.array([reading.offset for reading in readings])
        weights = 1 / np.array([max(reading.std, 1e-18) for reading in readings]) ** 2
        middle_s = float(weights @ at_s / weights.sum())
        offset, variance = float(weights @ offsets / weights.sum()), 1 / float(weights.sum())
        drift, drift_variance = 0.0, math.inf
        spread = float(weights @ (at_s - middle_s) ** 2)
        if len(readings) > 1 and spread > 0:
            drift, drift_variance = float(weights @ ((at_s - middle_s) * (offsets - offset)) / spread), 1 / spread
        left = offsets - offset - drift * (at_s - middle_s)
        freedom = len(readings) - 2
        excess = max(1.0, float(weights @ left**2) / freedom) if freedom > 0 else 1.0
        clocks = np.array([(reading.clock, reading.clock_std) for reading in readings])
        return cls(
            tuple(readings),
            middle_s,
            offset,
            math.sqrt(variance * excess),
            drift,
            math.sqrt(drift_variance * excess),
            float(clocks[:, 0].mean()),
            float(np.linalg.norm(clocks[:, 1])) / len(readings),
        )

    def then(self, at_s: float) -> tuple[float, str, float]:
        """The offset at another instant, its unit and its standard deviation; unmoved where no drift is known."""
        if not math.isfinite(self.drift_std_s):
            return self.offset, "1", self.std
        since_s = at_s - self.at_s
        return self.offset + self.drift_s * since_s, "1", math.hypot(self.std, self.drift_std_s * since_s)

    def trouble(self, node: str, options: CarrierOptions) -> str | None:
        """What forbids the use of the values, if anything."""
        known = math.isfinite(self.drift_std_s)
        if known and abs(self.drift_s) - 3 * self.drift_std_s > 1e-6 * options.largest_drift_ppm_s:
            return (
                f"{node} drifts by {1e6 * self.drift_s:.2g} ppm a second, so its offset holds for no time: let the "
                "radios warm up for a quarter of an hour, away from draughts, and repeat"
            )
        if abs(self.clock - self.offset) > _ALIKE + 5 * math.hypot(self.clock_std, self.std):
            return (
                f"the two tones of {node} disagree: its carrier is off by {1e6 * self.offset:.3g} ppm and its samples "
                f"by {1e6 * self.clock:.3g} ppm, which one crystal cannot do; look for another transmitter in the band"
            )
        return None

    def curves(self, node: str, bench: BenchSpec) -> tuple[Curve, ...]:
        """The offset over time, and what is left of the last reading's phase."""
        at_s = np.array([reading.at_s for reading in self.readings])
        line = self.offset + self.drift_s * (at_s - self.at_s)
        residual_rad = self.readings[-1].residual_rad
        return (
            Curve(
                f"{node}: offset over time",
                "time in s",
                "offset in ppm",
                at_s,
                1e6 * np.array([reading.offset for reading in self.readings]),
                1e6 * line,
            ),
            Curve(
                f"{node}: phase left over in the last measurement",
                "share of the measurement",
                "phase in rad",
                (np.arange(len(residual_rad)) + 0.5) / len(residual_rad),
                residual_rad,
                np.zeros(len(residual_rad)),
            ),
        )


def _summaries(
    bench: BenchSpec, options: CarrierOptions, done: Sequence[tuple[Step, Raw]]
) -> dict[str, _Summary | str]:
    """Node -> what its measurements say, or why they say nothing."""
    found: dict[str, _Summary | str] = {}
    for node in bench.node_names:
        own = [_read(bench, options, node, raw) for step, raw in done if step["node"] == node]
        readings = [reading for reading in own if isinstance(reading, _Reading)]
        if not own:
            continue
        # a node may miss one trigger; where most are missing, something is wrong
        if 2 * len(readings) > len(own):
            found[node] = _Summary.of(readings)
        else:
            found[node] = next(str(reading) for reading in own if not isinstance(reading, _Reading))
    return found


def _read(bench: BenchSpec, options: CarrierOptions, node: str, raw: Raw) -> _Reading | str:
    """One measurement, or the sentence that says why there is none."""
    samples, start, margin = raw["samples"], int(raw["start"]), int(raw["margin"])
    length = int(raw["length"]) - 2 * margin
    tones = samples[start + margin : start + margin + length]
    quiet = samples[: start - margin]
    if saturated(tones):
        return f"{node} saturates the receiver: lower gain_db of array.radios, or its power_share"
    reach = 1e-6 * options.largest_ppm * bench.carrier_hz / bench.sample_rate_hz
    found = [estimate_tone(tones, about=tone, reach=reach) for tone in _TONES]
    one, other = found
    if one is None or other is None:
        return f"{node} is not heard within {options.largest_ppm:g} ppm: {why_unheard(quiet[None], bench)}"
    for tone in (one, other):
        power_w = float(np.sum(np.abs(tone.amplitude) ** 2))
        # noise alone has its peaks too
        near = 4.0 / len(quiet)
        there_w, density_w = energy_at(quiet, about=tone.cycles, reach=near)
        if there_w > _JAMMED * power_w and there_w > 20 * density_w / len(quiet):
            at_hz = bench.carrier_hz + tone.cycles * bench.sample_rate_hz
            return (
                f"somebody else transmits at {1e-6 * at_hz:.3f} MHz while {node} is silent: silence it, or choose a "
                "carrier that `testbed calibrate noise` found clean; or, if it is the node itself, raise "
                "radio.start_jitter_s, since its bursts begin earlier than that allows"
            )
    first, second = _TONES
    apart = first - second
    clock, clock_std, _ = _combined(one, other, 1 / apart, -1 / apart)
    # the offset of the carrier itself: where the line through both tones crosses zero frequency
    cfo, cfo_std, residual_rad = _combined(one, other, -second / apart, first / apart)
    to_ratio = bench.sample_rate_hz / bench.carrier_hz
    at_s = float(raw["at_s"]) + (margin + length / 2) / bench.sample_rate_hz
    return _Reading(at_s, cfo * to_ratio, cfo_std * to_ratio, clock - 1, clock_std, one.snr + other.snr, residual_rad)


def _combined(one: Tone, other: Tone, weight: float, other_weight: float) -> tuple[float, float, np.ndarray]:
    """A sum of two frequencies, its standard deviation, and what is left of the same sum of phases.

    The synthesiser's noise turns both tones alike, so the phases are added before their scatter is taken.
    """
    frequency = weight * one.cycles + other_weight * other.cycles
    if len(one.residual_rad) != len(other.residual_rad):
        std = abs(weight) * one.cycles_std + abs(other_weight) * other.cycles_std
        return frequency, std, one.residual_rad
    residual_rad = weight * one.residual_rad + other_weight * other.residual_rad
    scatter = math.sqrt(float(np.sum(residual_rad**2) / max(np.sum(one.residual_rad**2), 1e-300)))
    return frequency, one.cycles_std * scatter, residual_rad


def _length(bench: BenchSpec, options: CarrierOptions, guard: int) -> int:
    """Samples of a burst."""
    wanted = round(options.seconds * bench.sample_rate_hz) + 2 * (guard + _MARGIN)
    return min(max(wanted, 4096 + 2 * (guard + _MARGIN)), _LONGEST - _QUIET - 2 * guard)


def _crystal_hz(bench: BenchSpec, node: str) -> int:
    board = next(board for board in bench.boards if board.name == node)
    return board.radio.xo_correction or CRYSTAL_HZ


def _limits(
    bench: BenchSpec, options: CarrierOptions, summaries: dict[str, _Summary], crystals_hz: Mapping[str, int]
) -> str:
    """What the accuracy hangs on, and what to do with the values."""
    worst = max(summaries, key=lambda node: summaries[node].std)
    reading = summaries[worst].readings[-1]
    count = round(options.seconds * bench.sample_rate_hz)
    bound_hz = frequency_bound(reading.snr, count) * bench.sample_rate_hz
    text = (
        f"{worst} is known worst, to {summaries[worst].std * bench.carrier_hz:.2g} Hz; noise alone would allow "
        f"{bound_hz / math.sqrt(len(summaries[worst].readings)):.2g} Hz"
    )
    if options.temperature_k is not None:
        text += f"; at {options.temperature_k - 273.15:.1f} degrees Celsius"
    match options.correct:
        case "digital":
            text += "; bursts are turned back digitally: leave the radios' xo_correction as it is"
        case "crystal":
            found = ", ".join(f"{node} {crystal_hz}" for node, crystal_hz in crystals_hz.items())
            text += f"; the offsets are what is left with radio.xo_correction ({found}): write that to the bench file"
        case "none":
            text += "; nobody corrects the offsets"
    return text
