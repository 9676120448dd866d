"""What the sweeps, arrivals and homings of `calibration.axes` say of each stage.

Backlash is the shift between a line swept upwards and downwards. A vibration is the displacement after an arrival, by
the slope of the channels there. Scale and rotation follow from the strongest wave of each node: its direction cosines g
as the stage counts and u as the room has them obey, as complex numbers, g = s exp(-j theta) u, so that logarithms make
all stages and nodes one linear problem. Where the frame's zero lies no phase can tell.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from calibration.courses import num_axes, stage_of
from calibration.frame_fit import Direction, fit_frames, known_directions, strongest_wave
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.phy.displacement import LEAST_LOOKS, Shift, Vibration, displacement, estimate_shift, fit_vibration

if TYPE_CHECKING:
    from calibration.axes import AxesOptions

RISING, FALLING, AGAIN = 0, 1, 2
"""How a place of a sweep was approached: from below, from above, from below once more."""

MOST_NODES = 4
"""Nodes that send where the options name none."""

_EXACT = 1e-12  # variance over power of a channel that numbers allow
_HEARD = 100.0  # power of a channel over the variance of its estimate: 20 dB
_SURE = 4.0  # standard deviations
_NO_CURVE = 0.02
"""Power of the residuals over that of the channels from which nothing can be told."""
_EVIDENCE = 60.0
"""Fall of the squared residuals, in their mean squares, from which a vibration is one."""
_FULLY = 0.1  # of a vibration's first amplitude may be left when the watch ends


@dataclass
class _Line:
    """One axis: where the lines cross, reported places of the upward sweep, channels there, and what follows."""

    base_m: float
    places_m: np.ndarray
    rising: np.ndarray
    falling: np.ndarray
    variance: np.ndarray
    shift: Shift
    step_back_m: float
    step_back_std_m: float


@dataclass
class _Found:
    """What is known of one stage so far."""

    lines: dict[int, _Line] = field(default_factory=dict)
    nodes: dict[int, str] = field(default_factory=dict)
    values: dict[str, Quantity] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    left_m: float = 0.0
    """Vibration that was left when places were measured."""


def fit_axes(bench: BenchSpec, options: AxesOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
    """Everything that the measurements say, see the module.

    Args:
        bench: the bench.
        options: of the routine.
        done: its measurements.

    Returns:
        for each stage homing_std, scale, backlash, settle and frame, and the array's min_spacing as the bench file has
        it. It has not passed where no node was heard, steps were lost, or a vibration outlasted the watch.
    """
    stages = sorted({int(step["stage"]) for step, _ in done})
    found = {index: _fit_stage(bench, options, index, done) for index in stages}
    waves = {index: _waves(bench, index, one) for index, one in found.items()}
    frames = fit_frames(
        waves,
        known_directions(bench, options.nodes or bench.node_names[:MOST_NODES], options.node_std_m),
        _references(options),
    )
    values: dict[str, Quantity] = {"array.min_spacing": Quantity(bench.array.min_spacing_m, "m", math.inf)}
    problems = [] if stages else ["nothing was measured; bring antennas with stages"]
    remarks: list[str] = []
    for index, one in found.items():
        frame, spec, name = frames[index], stage_of(bench, index), f"stage-{index}"
        values |= {f"{name}.{key}": value for key, value in one.values.items()}
        values[f"{name}.scale"] = Quantity(frame.scale, "1", frame.scale_std)
        turned_rad = math.radians(spec.rotation_deg) + frame.rotation_rad
        values[f"{name}.frame"] = Quantity(
            (*spec.origin_m, turned_rad), "m, m, rad", (math.inf, math.inf, frame.rotation_std_rad)
        )
        if abs(frame.rotation_rad) > max(5 * frame.rotation_std_rad, math.radians(0.5)):
            one.remarks.append(
                f"it is turned by {math.degrees(frame.rotation_rad):.2f} degrees against the bench file: set "
                f"array.antennas.{index}.stage.rotation_deg = {math.degrees(turned_rad):.2f}"
            )
        if not math.isfinite(frame.scale_std):
            one.remarks.append("its scale needs position_m of the nodes, or references_m")
        problems += [f"{name}: {text}" for text in one.problems]
        remarks += [f"{name}: {text}" for text in one.remarks]
    remarks.append(
        "frames' origins are the bench file's, since no phase tells where a zero lies; so is the least spacing"
    )
    curves = tuple(curve for one in found.values() for curve in one.curves)
    return Fit(values, not problems, "; ".join(problems or remarks), curves)


def _references(options: AxesOptions) -> dict[int, tuple[float, float]]:
    """Scale that an operator measured, and its standard deviation, by stage."""
    return {
        int(name.removeprefix("stage-")): (measured_m / ordered_m, options.reference_std_m / abs(ordered_m))
        for name, (ordered_m, measured_m) in options.references_m.items()
    }


def _fit_stage(bench: BenchSpec, options: AxesOptions, index: int, done: Sequence[tuple[Step, Raw]]) -> _Found:
    found = _Found()
    raws = [(step, raw) for step, raw in done if int(step["stage"]) == index]
    axes = num_axes(stage_of(bench, index))
    nothing = tuple([0.0] * axes), tuple([math.inf] * axes)
    found.values = {
        "backlash": Quantity(nothing[0], "m", nothing[1]),
        "settle": Quantity(0.0, "s", math.inf),
        "homing_std": Quantity(0.0, "m", math.inf),
    }
    sweeps = [(int(step["axis"]), raw) for step, raw in raws if step["what"] == "sweep"]
    heard = _heard([raw for _, raw in sweeps], index)
    names = options.nodes or bench.node_names[:MOST_NODES]
    found.nodes = {int(node): names[node] for node in np.flatnonzero(heard)}
    silent = [name for node, name in enumerate(names) if node not in found.nodes]
    if not heard.any():
        found.problems.append(
            "no node is heard 20 dB above the noise all along its way; look at the nodes' radios, or raise power_share"
        )
        return found
    if silent:
        found.remarks.append(f"{', '.join(silent)} was not heard well enough and tells nothing")
    for axis, raw in sweeps:
        found.lines[axis] = _line(bench, raw, (index, axis), heard)
        _judge_line(bench, options, index, axis, found)
    _settle(bench, options, index, raws, heard, found)
    _homings(raws, index, heard, found)
    if found.left_m > 1e-7:
        backlash, homing = found.values["backlash"], found.values["homing_std"]
        stds = tuple(math.hypot(std, found.left_m) for std in backlash.std)
        found.values["backlash"] = Quantity(backlash.value, "m", stds)
        found.values["homing_std"] = Quantity(homing.value, "m", math.hypot(homing.std, found.left_m))
        found.remarks.append(
            f"it still rang by {1e6 * found.left_m:.1f} um when places were measured: raise rest_s or settle_s"
        )
    return found


# --- channels ---------------------------------------------------------------------------------------------------------


def _steadied(raw: Raw, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The moving antenna's channels with the turning taken out that the still ones show, and their variance.

    Shapes [num_looks, num_nodes]. Without still antennas they are as they were heard.
    """
    channel, variance = raw["channel"], raw["variance"]
    moving, noise = channel[:, index], np.repeat(variance[:, index, None], channel.shape[2], axis=1)
    power = np.mean(np.abs(moving) ** 2, axis=0)
    noise = np.maximum(noise, _EXACT * power)
    still = [antenna for antenna in range(channel.shape[1]) if antenna != index]
    if not still:
        return moving, noise
    weighted = channel[:, still] / np.maximum(variance[:, still, None], 1e-300)
    turn = np.einsum("ak,nak->nk", channel[0, still].conj(), weighted)
    strength = np.sum(np.abs(channel[:, still]) ** 2 / np.maximum(variance[:, still, None], 1e-300), axis=1)
    steadied = moving * np.exp(-1j * np.angle(turn))
    return steadied, noise + np.abs(moving) ** 2 / np.maximum(2 * strength, 1e-300)


def _heard(raws: Sequence[Raw], index: int) -> np.ndarray:
    """Nodes that were heard well at every place, shape [num_nodes]."""
    if not raws:
        return np.zeros(1, bool)
    good = np.ones(raws[0]["channel"].shape[2], bool)
    for raw in raws:
        channel, variance = _steadied(raw, index)
        finite = np.isfinite(channel).all(axis=0) & np.isfinite(variance).all(axis=0)
        power = np.mean(np.abs(np.where(np.isfinite(channel), channel, 0)) ** 2, axis=0)
        noise = np.mean(np.where(np.isfinite(variance), variance, math.inf), axis=0)
        good &= finite & (power > _HEARD * noise)
    return good


# --- lines ------------------------------------------------------------------------------------------------------------


def _line(bench: BenchSpec, raw: Raw, which: tuple[int, int], heard: np.ndarray) -> _Line:
    index, axis = which
    channel, variance = _steadied(raw, index)
    channel, variance = channel[:, heard], np.mean(variance[:, heard], axis=0)
    approach, reported_m = raw["approach"], raw["reported_m"]
    places_m = reported_m[approach == RISING, axis]
    rising, falling = channel[approach == RISING], channel[approach == FALLING][::-1]
    shift = estimate_shift(places_m, rising, falling, variance, bench.wavelength_m)
    again_m = reported_m[approach == AGAIN, axis]
    same = [int(np.argmin(np.abs(places_m - place_m))) for place_m in again_m]
    slopes, change = shift.curve.slope(again_m), channel[approach == AGAIN] - rising[same]
    back, backs_std = np.zeros(len(same)), np.full(len(same), math.inf)
    for number in range(len(same)):
        moved_m, covariance = displacement(slopes[number][:, None], change[number], 2 * variance)
        back[number], backs_std[number] = moved_m[0], math.sqrt(covariance[0, 0])
    worst = int(np.argmax(np.abs(back)))
    base_m = float(raw["base_m"][axis])
    return _Line(base_m, places_m, rising, falling, variance, shift, float(back[worst]), float(backs_std[worst]))


def _judge_line(bench: BenchSpec, options: AxesOptions, index: int, axis: int, found: _Found) -> None:
    line, spec = found.lines[axis], stage_of(bench, index)
    strength = float(np.mean(np.abs(line.rising) ** 2 / line.variance))
    if line.shift.scatter > _NO_CURVE * strength:
        found.problems.append(
            f"along axis {axis} phases follow no curve: the room moves, or the transmitters' phases turn and no "
            "antenna stands still to show it; use a bench with shared clocks, or one antenna more"
        )
        return
    values, stds = (list(part) for part in (found.values["backlash"].value, found.values["backlash"].std))
    values[axis], stds[axis] = line.shift.shift_m, line.shift.std_m
    found.values["backlash"] = Quantity(tuple(values), "m", tuple(stds))
    if abs(line.step_back_m) > max(5 * line.step_back_std_m, spec.device.tolerance_m):
        found.problems.append(
            f"axis {axis} came back {1e6 * line.step_back_m:+.0f} um from where it had been: it lost steps, or the "
            "room changed; check load and acceleration, home the stage and calibrate again"
        )
    elif line.shift.shift_m > 0.8 * options.approach_m:
        found.problems.append(
            f"axis {axis} has {1e3 * line.shift.shift_m:.2f} mm of play, near the {1e3 * options.approach_m:g} mm from "
            "which places are approached; raise approach_m"
        )
    elif line.shift.scatter > _HEARD:
        found.remarks.append(
            f"along axis {axis} the phases scatter {math.sqrt(line.shift.scatter):.0f} times as much as noise does"
        )
    if spec.device.backlash_m > 0:
        found.remarks.append(f"its backlash is what device.backlash_m = {spec.device.backlash_m:g} leaves over")
    best = int(np.argmax(np.mean(np.abs(line.rising) ** 2, axis=0) / line.variance))
    explained = line.shift.curve.at(line.places_m)[:, best]
    name = f"stage-{index}"
    found.curves.append(
        Curve(
            f"{name}, axis {axis}: phase of the best node from below", "place / m", "phase / rad", line.places_m,
            np.unwrap(np.angle(line.rising[:, best])), np.unwrap(np.angle(explained)),
        )
    )  # fmt: skip


def _at_base(line: _Line) -> tuple[np.ndarray, np.ndarray]:
    """Channels at the base and their slopes relative to them, shape [num_nodes] each."""
    place_m = np.array([line.base_m])
    channel = line.shift.curve.at(place_m)[0]
    return channel, line.shift.curve.slope(place_m)[0] / channel


# --- arrivals ---------------------------------------------------------------------------------------------------------


def _settle(
    bench: BenchSpec,
    options: AxesOptions,
    index: int,
    raws: Sequence[tuple[Step, Raw]],
    heard: np.ndarray,
    found: _Found,
) -> None:
    spec = stage_of(bench, index)
    tolerance_m = options.tolerance_m or spec.device.tolerance_m
    worst: Quantity | None = None
    for step, raw in raws:
        axis = int(step.get("axis", -1))
        if step["what"] != "settle" or axis not in found.lines:
            continue
        after = raw["since_s"] >= 0
        if np.count_nonzero(after) < LEAST_LOOKS:
            found.remarks.append("too few looks after its arrivals to see it settle; raise arrivals")
            continue
        _, relative = _at_base(found.lines[axis])
        since_s, arrival = raw["since_s"][after], np.unique(raw["arrival"][after], return_inverse=True)[1]
        if np.bincount(arrival).min() < LEAST_LOOKS:
            arrival = np.zeros_like(arrival)  # too few each: every arrival is taken for the same
        places_m, std_m = _swing(raw, index, heard, relative)
        quantity, vibration = _settled(since_s, places_m[after], arrival, tolerance_m, std_m)
        _judge_vibration(found, axis, vibration, quantity, (float(since_s.max()), tolerance_m, spec.settle_s))
        order = np.argsort(since_s)
        found.curves.append(
            Curve(
                f"stage-{index}, axis {axis}: coming to rest", "time since the arrival / s", "way / m", since_s[order],
                places_m[after][order], vibration.fitted_m[order],
            )
        )  # fmt: skip
        if worst is None or (math.isfinite(quantity.std), quantity.value) > (math.isfinite(worst.std), worst.value):
            worst = quantity
        if vibration.evidence >= _EVIDENCE:
            waited_s = spec.settle_s + options.rest_s
            found.left_m = max(found.left_m, vibration.amplitude_m * math.exp(-waited_s / vibration.decay_s))
    if worst is not None:
        found.values["settle"] = worst


def _swing(raw: Raw, index: int, heard: np.ndarray, relative: np.ndarray) -> tuple[np.ndarray, float]:
    """Displacement along the way at every look, shape [num_looks], and its standard deviation by the noise."""
    channel, variance = _steadied(raw, index)
    channel, variance = channel[:, heard], np.mean(variance[:, heard], axis=0)
    late = raw["since_s"] >= np.quantile(raw["since_s"], 0.75)
    rest = np.mean(channel[late], axis=0)
    moved_m, covariance = displacement((relative * rest)[:, None], channel - rest, variance)
    return moved_m[:, 0], math.sqrt(covariance[0, 0])


def _settled(
    since_s: np.ndarray, places_m: np.ndarray, arrival: np.ndarray, tolerance_m: float, std_m: float
) -> tuple[Quantity, Vibration]:
    """When the vibration is below the tolerance."""
    vibration = fit_vibration(since_s, places_m, arrival)
    first_s = float(since_s.min())
    if vibration.evidence < _EVIDENCE:
        seen_m = _SURE * max(std_m, float(np.std(places_m)))
        return Quantity(first_s, "s", first_s if seen_m < tolerance_m else math.inf), vibration
    share = vibration.amplitude_std_m / vibration.amplitude_m
    depth = max(math.log(vibration.amplitude_m / tolerance_m), 0.0)
    std_s = math.hypot(depth * vibration.decay_std_s, vibration.decay_s * share)
    return Quantity(vibration.settle_s(tolerance_m), "s", max(std_s, 1e-4)), vibration


def _judge_vibration(
    found: _Found, axis: int, vibration: Vibration, quantity: Quantity, times: tuple[float, float, float]
) -> None:
    watched_s, tolerance_m, waits_s = times
    rings = vibration.evidence >= _EVIDENCE and vibration.amplitude_m > tolerance_m
    left_m = vibration.amplitude_m * math.exp(-watched_s / vibration.decay_s)
    if rings and left_m > max(tolerance_m, _FULLY * vibration.amplitude_m):
        found.problems.append(
            f"along axis {axis} it still rings by {1e6 * left_m:.0f} um {watched_s:.2f} s after its arrival, when the "
            "watch ended; stiffen it, or raise listen_s"
        )
    elif not math.isfinite(quantity.std):
        found.remarks.append(
            f"along axis {axis} a vibration of {1e6 * tolerance_m:.0f} um is hidden by noise; raise num_samples"
        )
    elif quantity.value > waits_s:
        found.remarks.append(
            f"settle_s = {waits_s:g} in the bench file is too short: along axis {axis} it takes {quantity.value:.3f} s"
        )


# --- homings ----------------------------------------------------------------------------------------------------------


def _homings(raws: Sequence[tuple[Step, Raw]], index: int, heard: np.ndarray, found: _Found) -> None:
    homed = [raw for step, raw in raws if step["what"] == "home" and int(raw["homed"]) == 1]
    if len(homed) < 2 or not found.lines:
        if any(step["what"] == "home" for step, _ in raws):
            found.remarks.append("its homing was not measured: it cannot home here, or would pass another antenna")
        return
    relative = np.stack([_at_base(line)[1] for _, line in sorted(found.lines.items())], axis=1)
    moved, noise = [], []
    for raw in homed:
        channel, variance = _steadied(raw, index)
        before, after = channel[:, heard]
        way_m, covariance = displacement(
            relative * before[:, None], after - before, 2 * np.mean(variance[:, heard], axis=0)
        )
        moved.append(way_m)
        noise.append(np.diag(covariance))
    # each way is the difference of two homings
    seen, expected = float(np.mean(np.square(moved))) / 2, float(np.mean(noise)) / 2
    value_m = math.sqrt(max(seen - expected, 0.0))
    std_m = math.sqrt((seen + expected) / (len(homed) * len(found.lines)))
    found.values["homing_std"] = Quantity(value_m, "m", std_m)


# --- directions -------------------------------------------------------------------------------------------------------


def _waves(bench: BenchSpec, index: int, found: _Found) -> dict[int, Direction]:
    """The strongest wave of every node, in the array frame as the bench file turns the stage; both lines together."""
    if len(found.lines) < 2:
        return {}
    turn = cmath.rect(1.0, math.radians(stage_of(bench, index).rotation_deg))
    first, second = found.lines[0], found.lines[1]
    # the lines were swept at different times: where they cross the channels are the same
    factor = _at_base(first)[0] / _at_base(second)[0]
    waves = {}
    for column, (node, name) in enumerate(found.nodes.items()):
        points, channels = [], []
        for axis, line in found.lines.items():
            for shift_m, swept in ((0.0, line.rising), (line.shift.shift_m, line.falling)):
                point_m = np.zeros((len(line.places_m), 2))
                point_m[:, axis] = line.places_m + shift_m - line.base_m
                points.append(point_m)
                channels.append(swept[:, column] * (factor[column] / abs(factor[column]) if axis else 1.0))
        variance = float((first.variance[column] + second.variance[column]) / 2)
        wave = strongest_wave(np.concatenate(points), np.concatenate(channels), variance, bench.wavelength_m)
        if wave is None:
            found.remarks.append(f"two waves of {name} are about as strong, so that it tells no direction")
        else:
            waves[node] = Direction(wave.cosines * turn, wave.relative_std, wave.std_rad)
    return waves
