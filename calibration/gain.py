"""Gains of receivers and transmitters over their settings, levels in watts, and where amplifiers compress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from calibration.access import Access, Heard
from calibration.gain_fit import fit_gains
from calibration.gain_levels import (
    LIMIT,
    comb_of,
    full_scale_w,
    linked_w,
    loudest,
    margins,
    nominal_gains,
    pulse_power_w,
    received_comb,
)
from calibration.reception import burst_power_w, require_samples
from calibration.routine import Fit, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError, ConfigError, RadioFault
from testbed.core.specs import Spec
from testbed.core.units import from_db, to_db
from testbed.phy.compression import PEAK_OVER_MEAN, pulse

_TARGET = from_db(-18.0)  # of the receive converter's full scale: noise-like combs have peaks of 8 dB
_WEAKEST = 1e-4  # of a node's limit: below it the transmit converter's steps show
_STRONGEST = 0.1  # of it: above, amplifiers may compress the peaks
_PEAK = 0.5  # of the receive converter's full scale, for the pulse's peak
_LEVEL = 0.1
_STEP = from_db(4.0)
_LOWEST, _HIGHEST, _HIGHEST_ABOVE_4_GHZ = 1.0, from_db(68.0), from_db(60.0)


class GainOptions(Spec):
    """What may be chosen."""

    parts: tuple[Literal["receive", "transmit", "compression"], ...] = Field(
        ("receive", "transmit", "compression"), description="which curves are measured"
    )
    gains_db: tuple[float, ...] | None = Field(
        None, description="receive gains, in dB; every 4 dB of the chip's range by default, and the bench's own"
    )
    attenuations_db: tuple[float, ...] = Field(
        (0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0, 24.0, 27.0, 30.0), description="transmit attenuations, in dB"
    )
    num_samples: int = Field(16384, ge=4096, le=1 << 18, description="of each burst")
    reference_node: str | None = Field(None, description="whose power was read; the first node by default")
    reference_dbm: float | None = Field(
        None,
        description="what a power meter shows while the reference node sends a burst at its highest average power as "
        "ordered: the power that its antenna port really gives",
    )
    reference_std_db: float = Field(0.1, ge=0, description="standard deviation of the reading, in dB")
    loss_db: float | None = Field(
        None, description="from each node's port to each antenna's port, where cables join them; None over the air"
    )


class Gain:
    """Combs at levels that suit every setting, and pulses that run through all amplitudes.

    Over the air only ratios can be seen: curves are relative to the bench's own settings. `antenna-<n>.gain_error`
    needs a reading and a known loss, `<node>.power_error` a reading and, for nodes other than the one that was read,
    the loss; what cannot be known has an infinite standard deviation.
    """

    name: ClassVar[str] = "gain"
    about: ClassVar[str] = "receive gain, transmit attenuation, levels in watts, compression, phase steps of gains"
    Options: ClassVar[type[Spec]] = GainOptions
    validity: ClassVar[tuple[str, ...]] = ("frequency_hz", "sample_rate_hz", "gain")
    lasts_s: ClassVar[float] = 30 * 86400.0

    def next_step(
        self, bench: BenchSpec, options: GainOptions, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """Levels first, since all others are chosen by them; then receivers, transmitters, pulses, and levels again."""
        if len(done) < len(bench.node_names):
            return {"kind": "level", "node": bench.node_names[len(done)]}
        plan = _plan(bench, options, done)
        return plan[len(done)] if len(done) < len(plan) else None

    def num_steps(self, bench: BenchSpec, options: GainOptions) -> int:
        """How many there will be, at most."""
        nodes = len(bench.node_names)
        return (
            2 * nodes
            + 2 * ("receive" in options.parts) * len(_receive_gains(bench, options))
            + ("transmit" in options.parts) * nodes * len(options.attenuations_db)
            + ("compression" in options.parts) * nodes
        )

    def measure(self, access: Access, options: GainOptions, step: Step) -> Raw:
        """Set the gain that the step names, and capture one burst; the last of a kind sets all gains back."""
        require_samples(access.bench)
        try:
            if not _adjusted(access, step):
                return {"refused": np.array(True)}
            raw = _captured(access, options, step)
        except RadioFault:
            _restore(access, step)
            if step["kind"] != "receive":
                raise
            return {"faulted": np.array(True)}  # too high a gain for what else is in the band
        except BenchError:
            _restore(access, step)
            raise
        if step.get("last"):
            _restore(access, step)
        return raw

    def fit(self, bench: BenchSpec, options: GainOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """Curves relative to the bench's settings, levels where a reading and a loss tell them, compression points."""
        return fit_gains(bench, done, _reference(bench, options))


def _reference(bench: BenchSpec, options: GainOptions) -> dict[str, Any]:
    """The reading in watts, as far as there is one."""
    return {
        "node": options.reference_node or bench.node_names[0],
        "read_w": None if options.reference_dbm is None else from_db(options.reference_dbm - 30.0),
        "std": from_db(options.reference_std_db) - 1.0,
        "loss": None if options.loss_db is None else from_db(options.loss_db),
        "num_samples": options.num_samples,
        "gains": _receive_gains(bench, options),
    }


def _receive_gains(bench: BenchSpec, options: GainOptions) -> list[float]:
    """Receive gains to visit, power ratios, from the lowest up."""
    if options.gains_db is not None:
        wanted = {round(from_db(gain), 12) for gain in options.gains_db}
    else:
        highest = _HIGHEST if bench.carrier_hz <= 4e9 else _HIGHEST_ABOVE_4_GHZ
        count = int(np.floor(np.log(highest / _LOWEST) / np.log(_STEP) + 1e-9)) + 1
        wanted = {round(_LOWEST * _STEP**index, 12) for index in range(count)}
    return sorted(wanted | {round(gain, 12) for gain in nominal_gains(bench)})


def _plan(bench: BenchSpec, options: GainOptions, done: Sequence[tuple[Step, Raw]]) -> list[Step]:
    """All steps, as the levels suggest them."""
    links = linked_w(bench, done)
    fixed = any("refused" in raw for _, raw in done)
    plan: list[Step] = [{"kind": "level", "node": node} for node in bench.node_names]
    if "receive" in options.parts and links:
        steps = _receive_steps(bench, options, links)
        plan += steps[:1] if fixed else steps
    if "transmit" in options.parts and not fixed:
        gains = sorted((from_db(-abs(value)) for value in options.attenuations_db), reverse=True)
        steps = [{"kind": "transmit", "node": node, "tx_gain": gain} for node in bench.node_names for gain in gains]
        plan += _closed(steps)
    if "compression" in options.parts:
        plan += list(_pulse_steps(bench, links, fixed))
    plan += [{"kind": "level", "node": node} for node in bench.node_names]
    return plan


def _receive_steps(bench: BenchSpec, options: GainOptions, links: dict[str, np.ndarray]) -> list[Step]:
    """Up through the gains and down again, so that a drift shows; each at a level that suits the converter."""
    node = loudest(links)
    limit_w, strongest = burst_power_w(bench, node, 1.0), float(links[node].max())
    steps: list[Step] = []
    for gain in _receive_gains(bench, options):
        power_w = min(_TARGET * min(full_scale_w(bench)) / gain / strongest, _STRONGEST * limit_w)
        if power_w >= _WEAKEST * limit_w:
            steps.append({"kind": "receive", "node": node, "rx_gain": gain, "power_w": power_w, "sweep": 0})
    return _closed(steps + [{**step, "sweep": 1} for step in reversed(steps)])


def _pulse_steps(bench: BenchSpec, links: dict[str, np.ndarray], fixed: bool) -> Iterator[Step]:
    """One pulse of every node, heard at the highest of the bench's gains, or below, that holds its peak."""
    for index, node in enumerate(bench.node_names):
        if node not in links:
            continue
        step: Step = {"kind": "compression", "node": node, "rx_gain": None}
        peak_w = pulse_power_w(bench, node) * PEAK_OVER_MEAN * float(links[node].max())
        most = _PEAK * min(full_scale_w(bench)) / peak_w
        if not fixed and max(nominal_gains(bench)) > most:
            step = {**step, "rx_gain": from_db(float(np.floor(to_db(most))))}
        yield {**step, "last": index == len(bench.node_names) - 1}


def _closed(steps: list[Step]) -> list[Step]:
    """The last step of a kind sets all gains back."""
    return [*steps[:-1], {**steps[-1], "last": True}] if steps else []


def _adjusted(access: Access, step: Step) -> bool:
    """Set the step's gain; False where the radios of this backend have none."""
    try:
        if step.get("rx_gain") is not None:
            access.adjust(rx_gain=step["rx_gain"])
    except ConfigError:
        return False
    if step.get("tx_gain") is not None:
        access.adjust(step["node"], tx_gain=step["tx_gain"])
    return True


def _restore(access: Access, step: Step) -> None:
    """Gains as the bench file has them."""
    bench = access.bench
    if step["kind"] == "transmit":
        access.open_nodes()
    else:
        access.devices.radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz)


def _captured(access: Access, options: GainOptions, step: Step) -> Raw:
    bench, node, length = access.bench, step["node"], options.num_samples
    heard: Heard
    if step["kind"] == "compression":
        power_w = pulse_power_w(bench, node)
        heard = access.capture(length, {node: pulse(length, power_w)})
        return {**_facts(heard, node), "power_w": np.array(power_w)}
    power_w = step.get("power_w", _LEVEL * burst_power_w(bench, node, 1.0) * step.get("tx_gain", 1.0))
    heard = access.capture(length, {node: comb_of(power_w).samples(length)})
    raw = {**_facts(heard, node), "power_w": np.array(power_w)}
    begin, end = margins(raw, length)
    fit = received_comb(heard.samples[:, begin:end], limit=LIMIT)
    return {**raw, "received_w": fit.power_w, "evidence": np.array(fit.evidence)}


def _facts(heard: Heard, node: str) -> dict[str, np.ndarray]:
    return {
        "samples": heard.samples,
        "guard": np.array(heard.guard),
        "at_s": np.array(heard.at_s),
        "sent": np.array(node in heard.sent),
    }
