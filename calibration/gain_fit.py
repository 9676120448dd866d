"""What follows from the bursts of a gain calibration: pure functions of what was captured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibration.gain_levels import LIMIT, Level, comb_of, margins, nominal_gains, received_comb
from calibration.gain_phases import phases_over_gains
from calibration.reception import listed, saturated, why_unheard
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError
from testbed.core.units import from_db, to_db, w_to_dbm
from testbed.phy.compression import Compression, fit_compression

WORST = from_db(0.04) - 1
"""Largest standard deviation of a ratio that may be used: two of them are less than a tenth of a decibel."""
_DRIFT = from_db(0.1) - 1  # of levels, from the first to the last
_STEADY = 6.0  # standard deviations by which levels may change by chance
_LOOK, _FEW_CODES = 4096, 8  # samples, and how many values there are where a branch's deviation is one code


class _Useless(BenchError):
    """The measurements say nothing; the message is the reason."""


@dataclass
class _Found:
    """Grows while the fit goes through its parts."""

    values: dict[str, Quantity] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    worst: float = 0.0


def fit_gains(bench: BenchSpec, done: Sequence[tuple[Step, Raw]], reference: Mapping[str, Any]) -> Fit:
    """All curves and levels.

    Args:
        bench: the bench.
        done: what was measured.
        reference: `node`, `read_w` watts at its highest power or None, relative `std` of the reading, `loss` or None,
            `num_samples` of bursts, receive `gains` that were asked for.
    """
    found = _Found()
    try:
        levels, pulses = _levels(bench, done, int(reference["num_samples"]))
        base, drift = _base(bench, levels)
        found.worst = drift
        _receive(bench, levels, found)
        _transmit(bench, levels, base, drift, found)
        _compression(bench, pulses, found)
        _absolute(bench, base, drift, reference, found)
    except _Useless as reason:
        return Fit(found.values, False, reason.message, tuple(found.curves))
    _remarks(done, reference["gains"], found)
    accuracy = f"ratios are known to {to_db(1 + found.worst):.3f} dB or better"
    return Fit(found.values, True, "; ".join([accuracy, *found.remarks]), tuple(found.curves))


def _remarks(done: Sequence[tuple[Step, Raw]], gains: Sequence[float], found: _Found) -> None:
    """What was asked for and could not be measured."""
    if any("refused" in raw for _, raw in done):
        found.remarks.append("the radios of this backend have no gains to set: no curves over settings")
        return
    visited = {round(float(step["rx_gain"]), 9) for step, _ in done if step["kind"] == "receive"}
    if loud := [to_db(gain) for gain in gains if visited and round(gain, 9) not in visited]:
        found.remarks.append(
            f"gains from {min(loud):.0f} dB up are not measured: the nodes are too loud for them, even at "
            "a ten-thousandth of their power"
        )
    if lost := {to_db(step["rx_gain"]) for step, raw in done if "faulted" in raw}:
        found.remarks.append(f"the receiver clips, or failed, at {listed([f'{gain:.0f}' for gain in sorted(lost)])} dB")


def _levels(
    bench: BenchSpec, done: Sequence[tuple[Step, Raw]], length: int
) -> tuple[list[Level], list[tuple[str, Compression | None]]]:
    levels: list[Level] = []
    pulses: list[tuple[str, Compression | None]] = []
    for step, raw in done:
        if "samples" not in raw:
            continue
        node, samples = step["node"], raw["samples"]
        if not bool(raw["sent"]):
            raise _Useless(f"{node} did not answer; look at its log, then start again")
        if not np.isfinite(samples).all():
            raise _Useless("a capture holds values that are not finite; restart the receiver, then start again")
        if saturated(samples):
            raise _Useless(
                f"the receiver saturates while {node} sends ({_setting(step)}): lower gain_db of array.radios"
            )
        if step["kind"] == "compression":
            pulses.append((node, _pulse(samples, raw, length)))
        else:
            levels.append(_level(bench, step, raw, length))
    return levels, pulses


def _level(bench: BenchSpec, step: Step, raw: Raw, length: int) -> Level:
    begin, end = margins(raw, length)
    part = raw["samples"][:, begin:end]
    fit = received_comb(part, limit=LIMIT)
    if not fit.found and step["kind"] == "level":
        raise _Useless(f"{step['node']} was not heard: {why_unheard(raw['samples'], bench)}")
    power_w, count = float(raw["power_w"]), part.shape[-1]
    noise_w = fit.noise_w / count
    num_tones = fit.amplitudes.shape[-1]
    received_w = np.maximum(fit.power_w - num_tones * noise_w, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = noise_w / received_w
    # E|a + e|^2 summed over tones has the variance 2 P v + K v^2
    std = np.sqrt(2 * share + num_tones * share**2)
    # less than a code or so in each branch: steps of the converter, and nothing to round them off
    hidden = np.array([np.unique(row[:_LOOK].view(np.float32)).size < _FEW_CODES for row in part])
    std = np.where(hidden | ~np.isfinite(std) | (not fit.found), np.inf, std)
    rate_hz = bench.sample_rate_hz
    tones = fit.amplitudes / comb_of(power_w).coefficients
    # phases as of the nominal instant of the burst's first sample
    tones = tones * np.exp(-2j * np.pi * fit.places * (begin - int(raw["guard"])))
    turns = (fit.offset * rate_hz, fit.offset_std * rate_hz)
    return Level(step, received_w / power_w, std, tones, float(raw["at_s"]), turns)


def _pulse(samples: np.ndarray, raw: Raw, length: int) -> Compression | None:
    try:
        return fit_compression(samples, float(raw["power_w"]), num_samples=length, guard=int(raw["guard"]), limit=LIMIT)
    except ValueError:
        return None


def _base(bench: BenchSpec, levels: Sequence[Level]) -> tuple[dict[str, Level], float]:
    """Each node at the bench's settings, and by how much that changed from the first to the last."""
    base: dict[str, Level] = {}
    drift = 0.0
    for level in levels:
        if level.step["kind"] != "level":
            continue
        node = level.step["node"]
        if node not in base:
            base[node] = level
            continue
        before = base[node]
        std = np.hypot(before.std, level.std)
        change = np.abs(level.ratio / before.ratio - 1)
        sure = np.isfinite(std) & (change > _STEADY * std)
        drift = max(drift, float(change[sure].max(initial=0.0)))
    if missing := [node for node in bench.node_names if node not in base]:
        raise _Useless(f"{listed(missing)} were not measured; resume the calibration")
    if drift > _DRIFT:
        raise _Useless(
            f"levels changed by {to_db(1 + drift):.2f} dB from the first measurement to the last: the channel does not "
            "hold still; keep people away, or join the radios by cables"
        )
    return base, drift


def _receive(bench: BenchSpec, levels: Sequence[Level], found: _Found) -> None:
    """`antenna-<n>.gain_curve`, relative to the bench's gain, and steps of the phase."""
    swept = [level for level in levels if level.step["kind"] == "receive"]
    if not swept:
        return
    gains = np.array(sorted({float(level.step["rx_gain"]) for level in swept}))
    phases = phases_over_gains(swept, gains)
    for antenna, nominal in enumerate(nominal_gains(bench)):
        name, own = f"antenna-{antenna}", int(np.argmin(np.abs(np.log(gains / nominal))))
        if abs(math.log(gains[own] / nominal)) > 1e-6:
            found.remarks.append(f"the bench's gain of {name} was not among those measured, so it has no curve")
            continue
        known = _gain_curve(name, swept, gains, antenna, own, found)
        if phases is not None and known.any():
            turn_rad, scatter_rad = phases[0][antenna] - phases[0][antenna][own], phases[1]
            turn_rad = np.angle(np.exp(1j * turn_rad))
            known = known & np.isfinite(turn_rad)
            if not known.any():
                continue
            found.values[f"{name}.phase_curve"] = Quantity(
                tuple((float(gain), float(turn)) for gain, turn in zip(gains[known], turn_rad[known], strict=True)),
                "rad",
                ((0.0, float(scatter_rad)),) * int(known.sum()),
            )
    if not any(name.endswith(".gain_curve") for name in found.values):
        raise _Useless(f"no antenna hears enough to compare gains; {found.remarks[-1]}")
    if phases is None:
        found.remarks.append("phases do not hold from one burst to the next, so steps of the phase cannot be seen")


def _gain_curve(
    name: str, swept: Sequence[Level], gains: np.ndarray, antenna: int, own: int, found: _Found
) -> np.ndarray:
    """One antenna's curve, relative to that of index `own`; which of the gains are known, shape [num_gains]."""
    ratios, stds = _over_gains(swept, gains, antenna)
    ratios = ratios / ratios[own] if math.isfinite(stds[own]) else np.full_like(ratios, np.nan)
    stds = np.hypot(stds, np.where(np.arange(len(gains)) == own, 0.0, stds[own]))
    known = stds <= WORST
    if not known[own] or known.sum() < 2:
        found.remarks.append(
            f"{name} hears too little of {swept[0].step['node']} to compare gains: bring a node nearer, or raise "
            "num_samples"
        )
        return np.zeros_like(known)
    found.values[f"{name}.gain_curve"] = _curve_quantity(gains[known], ratios[known], stds[known])
    found.worst = max(found.worst, float(stds[known].max()))
    found.curves.append(
        Curve(
            f"Receive gain of {name} over nominal, relative to the bench's setting",
            "nominal gain / dB",
            "true over nominal / dB",
            10 * np.log10(gains[known]),
            10 * np.log10(ratios[known]),
        )
    )
    if not known.all():
        lost = listed([f"{to_db(float(gain)):.0f}" for gain in gains[~known]])
        found.remarks.append(f"{name}: the signal is too faint or too unsteady at {lost} dB, which are left out")
    return known


def _over_gains(swept: Sequence[Level], gains: np.ndarray, antenna: int) -> tuple[np.ndarray, np.ndarray]:
    """Ratio at each gain over both sweeps, and its relative standard deviation, their disagreement included."""
    ratios, stds = np.full(len(gains), np.nan), np.full(len(gains), np.inf)
    for index, gain in enumerate(gains):
        here = [level for level in swept if float(level.step["rx_gain"]) == gain and math.isfinite(level.std[antenna])]
        if not here:
            continue
        own = np.array([level.ratio[antenna] for level in here])
        each = np.array([level.std[antenna] for level in here])
        weights = 1 / np.maximum(each, 1e-9) ** 2
        ratios[index] = float(own @ weights / weights.sum())
        apart = float(np.ptp(own) / ratios[index]) / 2 if len(own) > 1 else 0.0
        chance = math.sqrt(1 / weights.sum())
        stds[index] = max(chance, apart) if apart > _STEADY / 2 * chance else chance
    return ratios, stds


def _transmit(
    bench: BenchSpec, levels: Sequence[Level], base: Mapping[str, Level], drift: float, found: _Found
) -> None:
    """`<node>.attenuation_curve`, relative to the gain that the node was tuned with."""
    for node in bench.node_names:
        swept = [level for level in levels if level.step["kind"] == "transmit" and level.step["node"] == node]
        if not swept:
            continue
        own = base[node]
        gains, ratios, stds = [], [], []
        for level in swept:
            each = np.hypot(np.hypot(level.std, own.std), drift)
            weights = 1 / each**2
            if weights.sum() == 0 or math.sqrt(1 / weights.sum()) > WORST:
                continue
            gains.append(float(level.step["tx_gain"]))
            ratios.append(float((level.ratio / own.ratio) @ weights / weights.sum()))
            stds.append(math.sqrt(1 / float(weights.sum())))
        if len(gains) < 2:
            found.remarks.append(
                f"{node} is too faint to compare its attenuations: bring it nearer, or raise num_samples"
            )
            continue
        if lost := len(swept) - len(gains):
            found.remarks.append(f"{node}: {lost} attenuations are too faint and are left out")
        found.worst = max(found.worst, max(stds))
        found.values[f"{node}.attenuation_curve"] = _curve_quantity(np.array(gains), np.array(ratios), np.array(stds))
        found.curves.append(
            Curve(
                f"Transmit gain of {node} over nominal, relative to its setting",
                "nominal gain / dB",
                "true over nominal / dB",
                10 * np.log10(gains),
                10 * np.log10(ratios),
            )
        )


def _compression(bench: BenchSpec, pulses: Sequence[tuple[str, Compression | None]], found: _Found) -> None:
    """`<node>.compression`; where it lies beyond the peak, the peak with an infinite standard deviation."""
    for node, pulse in pulses:
        if pulse is None:
            found.remarks.append(f"{node}: the pulse is too faint to see its amplifier compress")
            continue
        found.values[f"{node}.compression"] = Quantity(pulse.point_w, "W", pulse.point_std_w)
        if not pulse.reached:
            found.remarks.append(f"{node} does not compress by 1 dB up to {w_to_dbm(pulse.tested_w):.1f} dBm")
        order = np.argsort(pulse.sent_w)
        found.curves.append(
            Curve(
                f"Compression of {node}",
                "power as ordered / dBm",
                "gain / dB",
                10 * np.log10(pulse.sent_w[order]) + 30,
                10 * np.log10(np.maximum(pulse.gain[order], 1e-6)),
                10 * np.log10(np.maximum(pulse.fitted[order], 1e-6)),
            )
        )


def _absolute(
    bench: BenchSpec, base: Mapping[str, Level], drift: float, reference: Mapping[str, Any], found: _Found
) -> None:
    """Levels in watts, as far as a reading and a known loss tell them."""
    node, read_w, loss, std = reference["node"], reference["read_w"], reference["loss"], float(reference["std"])
    if node not in base:
        raise _Useless(f"the bench has no node {node!r} whose power was read; set reference_node to one of its nodes")
    board = next(board for board in bench.boards if board.name == node)
    limit_w = from_db(min(board.max_power_dbm, bench.limits.max_power_dbm) - 30.0)
    power_error = dict.fromkeys(base, (1.0, math.inf))
    gain_error = [(1.0, math.inf) for _ in base[node].ratio]
    if read_w is not None:
        power_error[node] = (read_w / limit_w, std * read_w / limit_w)
        if loss is not None:
            gains = base[node].ratio * loss / power_error[node][0]
            gain_error = [
                (float(gain), float(gain * math.hypot(std, own, drift)))
                for gain, own in zip(gains, base[node].std, strict=True)
            ]
            for name, level in base.items():
                if name != node:
                    power_error[name] = _of_cable(level, base[node], power_error[node][0], std, drift)
    for antenna, (value, own) in enumerate(gain_error):
        found.values[f"antenna-{antenna}.gain_error"] = Quantity(value, "1", own)
    for name, (value, own) in power_error.items():
        found.values[f"{name}.power_error"] = Quantity(value, "1", own)
    if read_w is None:
        found.remarks.append("levels in watts are not known: read the power of one node and give reference_dbm")
    elif loss is None:
        found.remarks.append("receive levels in watts are not known: give loss_db of cables, if cables join the radios")


def _of_cable(level: Level, own: Level, error: float, std: float, drift: float) -> tuple[float, float]:
    """Another node's power error, through cables of equal loss."""
    each = np.hypot(level.std, own.std)
    weights = 1 / each**2
    value = error * float((level.ratio / own.ratio) @ weights / weights.sum())
    return value, value * math.hypot(std, math.sqrt(1 / float(weights.sum())), drift)


def _curve_quantity(gains: np.ndarray, ratios: np.ndarray, stds: np.ndarray) -> Quantity:
    """[[gain, ratio], ...], gains ascending."""
    order = np.argsort(gains)
    return Quantity(
        tuple((float(gains[index]), float(ratios[index])) for index in order),
        "1",
        tuple((0.0, float(stds[index] * ratios[index])) for index in order),
    )


def _setting(step: Step) -> str:
    if step.get("rx_gain") is not None:
        return f"at {to_db(step['rx_gain']):.0f} dB of gain"
    return f"at {-to_db(step['tx_gain']):.2f} dB of attenuation" if "tx_gain" in step else "at the bench's gain"
