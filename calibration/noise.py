"""Noise floor and figure at every gain, who else is in the band, and which carriers are quiet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from calibration.access import Access
from calibration.gain_levels import nominal_gains
from calibration.reception import listed, require_samples, saturated
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError, ConfigError, RadioFault
from testbed.core.specs import Spec
from testbed.core.units import from_db, to_db, w_to_dbm
from testbed.phy.spectrum import Band, survey

_BOLTZMANN_J_K = 1.380649e-23
_ROOM_K = 290.0
_MOST_CARRIERS = 64
_CROWDED = 0.5  # share of the band, or of the time, that others fill, beyond which no floor can be told
_ALIKE = from_db(1.0)  # floors of quiet carriers
_FEW_VALUES = 4  # of a branch: the noise does not move the converter
_LOOK = 4096


class NoiseOptions(Spec):
    """What may be chosen."""

    num_samples: int = Field(65536, ge=4096, le=1 << 20, description="of each capture")
    num_bins: int = Field(512, ge=64, description="of the spectrum; 8 segments or more must fit into a capture")
    gains_db: tuple[float, ...] = Field((), description="receive gains to visit beside the bench's own, in dB")
    carriers: bool = Field(True, description="listen on all carriers that limits.frequencies_hz allows")
    false_alarm: float = Field(
        1e-3, gt=0, lt=1, description="probability that noise alone shows an interferer in a capture"
    )
    level_std: float = Field(
        0.26,
        ge=0,
        description="relative standard deviation of levels in watts; 0.26 is 1 dB; smaller after gain with a reading",
    )
    highest_figure: float = Field(
        1000.0, gt=1, description="noise figure, a ratio, beyond which it is no noise but somebody's signal"
    )


@dataclass(frozen=True)
class _Heard:
    """One capture: its settings, and what it shows."""

    gain: float | None
    carrier_hz: float
    band: Band
    deaf: np.ndarray


class Noise:
    """Captures while nobody sends: at the bench's setting, at other gains, and on other carriers.

    Powers are those of one sample over the whole sample rate, at the antenna port as far as the bench's levels are
    true; the converter's own noise is part of them. The figure is noise_w / (k 290 K rate).
    """

    name: ClassVar[str] = "noise"
    about: ClassVar[str] = "noise floor and figure, interferers in the band, quiet carriers"
    Options: ClassVar[type[Spec]] = NoiseOptions
    validity: ClassVar[tuple[str, ...]] = ("frequency_hz", "sample_rate_hz", "gain")
    lasts_s: ClassVar[float] = 86400.0

    def next_step(
        self, bench: BenchSpec, options: NoiseOptions, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """The bench's own setting, then gains, then carriers."""
        # where the first gain is refused, the others are as well
        refused = any("refused" in raw for _, raw in done)
        steps = [step for step in _steps(bench, options) if not refused or step["gain"] is None]
        finished = sum("refused" not in raw for _, raw in done) if refused else len(done)
        return steps[finished] if finished < len(steps) else None

    def num_steps(self, bench: BenchSpec, options: NoiseOptions) -> int:
        """How many there will be, at most."""
        return len(_steps(bench, options))

    def measure(self, access: Access, options: NoiseOptions, step: Step) -> Raw:
        """Tune, listen, and tune back."""
        bench, radio = access.bench, access.devices.radio
        require_samples(bench)
        changed = step["gain"] is not None or step["carrier_hz"] is not None
        try:
            if step["carrier_hz"] is not None:
                radio.tune(frequency_hz=step["carrier_hz"], sample_rate_hz=bench.sample_rate_hz)
            if step["gain"] is not None:
                access.adjust(rx_gain=step["gain"])
            return {"samples": access.capture(options.num_samples).samples}
        except ConfigError:
            return {"refused": np.array(True)}
        except RadioFault:
            if not changed:
                raise
            # a loud carrier, or a gain too high for the band, clips; that is what one wants to know of it
            return {"faulted": np.array(True)}
        finally:
            if changed:
                radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz)

    def fit(self, bench: BenchSpec, options: NoiseOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """Floors and figures of the bench's setting and of other gains; who is in the band; who is on no carrier."""
        try:
            heard = [_heard(bench, options, step, raw) for step, raw in done if "samples" in raw]
            return _result(bench, options, heard, sum("faulted" in raw for _, raw in done))
        except _Useless as reason:
            return Fit({}, False, reason.message)


class _Useless(BenchError):
    """The captures say nothing; the message is the reason."""


def _steps(bench: BenchSpec, options: NoiseOptions) -> list[Step]:
    own: Step = {"gain": None, "carrier_hz": None}
    gains: list[Step] = [{"gain": from_db(gain), "carrier_hz": None} for gain in sorted(options.gains_db)]
    others: list[Step] = [{"gain": None, "carrier_hz": carrier_hz} for carrier_hz in _carriers_hz(bench)]
    return [own, *gains, *(others if options.carriers else [])]


def _carriers_hz(bench: BenchSpec) -> list[float]:
    """Carriers half a sample rate apart, or farther where there are many, the bench's own not among them."""
    half_hz = bench.sample_rate_hz / 2
    spans = [(low + half_hz, high - half_hz) for low, high in bench.limits.frequencies_hz if high - low >= 2 * half_hz]
    step_hz = max(half_hz, sum(high - low for low, high in spans) / _MOST_CARRIERS)
    found = [
        low + index * step_hz for low, high in spans for index in range(math.floor((high - low) / step_hz + 1e-9) + 1)
    ]
    return [carrier_hz for carrier_hz in found if abs(carrier_hz - bench.carrier_hz) > 1.0][:_MOST_CARRIERS]


def _heard(bench: BenchSpec, options: NoiseOptions, step: Step, raw: Raw) -> _Heard:
    samples = raw["samples"]
    carrier_hz = bench.carrier_hz if step["carrier_hz"] is None else float(step["carrier_hz"])
    own = step["gain"] is None and step["carrier_hz"] is None
    if not np.isfinite(samples).all():
        raise _Useless("a capture holds values that are not finite; restart the receiver, then start again")
    if own and saturated(samples):
        raise _Useless(
            "the receiver saturates while no node sends: somebody else is loud, lower gain_db of array.radios, choose "
            "another carrier_hz, or put a filter in front"
        )
    try:
        band = survey(samples, num_bins=options.num_bins, false_alarm=options.false_alarm)
    except ValueError as error:
        raise _Useless(f"{error}: raise num_samples or lower num_bins") from error
    few = [np.unique(np.ascontiguousarray(row[:_LOOK]).view(np.float32)).size < _FEW_VALUES for row in samples]
    return _Heard(None if step["gain"] is None else float(step["gain"]), carrier_hz, band, np.array(few))


def _result(bench: BenchSpec, options: NoiseOptions, heard: Sequence[_Heard], num_faults: int) -> Fit:
    own = next((item for item in heard if item.gain is None and item.carrier_hz == bench.carrier_hz), None)
    if own is None:
        raise _Useless("the bench's own setting was not measured; resume the calibration")
    values: dict[str, Quantity] = {}
    thermal_w = _BOLTZMANN_J_K * _ROOM_K * bench.sample_rate_hz
    for antenna, nominal in enumerate(nominal_gains(bench)):
        name = f"antenna-{antenna}"
        floor_w, std = _floor(own, antenna, options)
        values[f"{name}.noise_w"] = Quantity(floor_w, "W", std * floor_w if math.isfinite(std) else math.inf)
        figure = floor_w / thermal_w
        values[f"{name}.noise_figure"] = Quantity(figure, "1", std * figure if math.isfinite(std) else math.inf)
        others = [(nominal, own)] + [(item.gain, item) for item in heard if item.gain is not None]
        if len(others) > 1:
            rows = sorted((float(gain), *_floor(item, antenna, options)) for gain, item in others)
            values[f"{name}.noise_curve"] = Quantity(
                tuple((gain, power_w) for gain, power_w, _ in rows),
                "W",
                tuple((0.0, own_std * power_w if math.isfinite(own_std) else math.inf) for _, power_w, own_std in rows),
            )
    found_hz, width_hz = _interferers_hz(bench, own), bench.sample_rate_hz / options.num_bins
    values["interferers_hz"] = Quantity(tuple(found_hz), "Hz", (width_hz / 2,) * len(found_hz))
    values["bursts"] = Quantity(own.band.bursts, "1", 0.0)
    quiet_hz = _quiet_hz([item for item in heard if item.gain is None])
    values["quiet_hz"] = Quantity(tuple(quiet_hz), "Hz", (0.0,) * len(quiet_hz))
    curves = (_spectrum(bench, own), *_levels(heard))
    refusal = _refusal(own, values, options)
    why = refusal or _verdict(bench, own, found_hz, quiet_hz)
    if num_faults:
        why += f"; {num_faults} other settings could not be captured: the receiver clips there, or failed"
    return Fit(values, refusal is None, why, curves)


def _floor(item: _Heard, antenna: int, options: NoiseOptions) -> tuple[float, float]:
    """Noise power, and its relative standard deviation."""
    std = math.inf if item.deaf[antenna] else math.hypot(item.band.floor_std, options.level_std)
    return float(item.band.floor_w[antenna]), std


def _refusal(own: _Heard, values: dict[str, Quantity], options: NoiseOptions) -> str | None:
    """Why the floor cannot be believed."""
    names = [f"antenna-{antenna}" for antenna in range(len(own.deaf))]
    if own.deaf.any():
        deaf = listed([name for name, is_deaf in zip(names, own.deaf, strict=True) if is_deaf])
        return f"the noise of {deaf} does not move the converter, so it cannot be told: raise gain_db of array.radios"
    share = max(float(np.mean(own.band.occupied)), own.band.bursts)
    if share > _CROWDED:
        return (
            f"others fill {100 * share:.0f} % of the band or of the time, so no floor can be told: choose a carrier_hz "
            "among quiet_hz, or find who sends"
        )
    for name in names:
        figure = values[f"{name}.noise_figure"]
        if figure.value > options.highest_figure:
            return (
                f"{name} hears {to_db(figure.value):.1f} dB more than thermal noise: a signal fills the whole band, or "
                "rx_full_scale_dbm of array.radios is wrong; choose another carrier_hz, or calibrate gain"
            )
        if figure.value + 3 * figure.std < 1:
            return (
                f"{name} hears {-to_db(figure.value):.1f} dB less than thermal noise, which nothing can: "
                "rx_full_scale_dbm of array.radios is wrong; calibrate gain with a reading"
            )
    return None


def _verdict(bench: BenchSpec, own: _Heard, found_hz: Sequence[float], quiet_hz: Sequence[float]) -> str:
    floors = ", ".join(f"{w_to_dbm(float(power_w)):.1f}" for power_w in own.band.floor_w)
    said = (
        f"the floor is {floors} dBm over {bench.sample_rate_hz / 1e6:g} MHz; levels in watts rest on the bench's scale"
    )
    if not found_hz and own.band.bursts == 0:
        return f"{said}; nobody else is in the band"
    others = [f"{frequency_hz / 1e6:.3f} MHz" for frequency_hz in found_hz[:8]]
    seen = f"somebody sends at {listed(others)}" if others else "somebody sends in bursts"
    advice = f"; {quiet_hz[0] / 1e6:.3f} MHz is quiet" if quiet_hz else ""
    return f"{said}; {seen}{advice}"


def _interferers_hz(bench: BenchSpec, item: _Heard) -> list[float]:
    """Middle of each run of occupied bins, weighted by power."""
    occupied = np.flatnonzero(item.band.occupied)
    if occupied.size == 0:
        return []
    runs = np.split(occupied, np.flatnonzero(np.diff(occupied) > 1) + 1)
    middles = [float(np.average(item.band.places[run], weights=item.band.excess[run])) for run in runs]
    return [item.carrier_hz + middle * bench.sample_rate_hz for middle in middles]


def _quiet_hz(heard: Sequence[_Heard]) -> list[float]:
    """Carriers with nobody on them and a floor like the lowest, the quietest first."""
    free = [item for item in heard if not item.band.occupied.any() and item.band.bursts == 0 and not item.deaf.any()]
    if not free:
        return []
    levels = [float(item.band.floor_w.mean()) for item in free]
    order = np.argsort(levels)
    return [free[index].carrier_hz for index in order if levels[index] <= _ALIKE * min(levels)]


def _spectrum(bench: BenchSpec, own: _Heard) -> Curve:
    floor_w = float(own.band.floor_w.mean())
    return Curve(
        "Band at the bench's carrier, mean of all antennas, and its floor",
        "frequency / MHz",
        "power over the sample rate / dBm",
        (own.carrier_hz + own.band.places * bench.sample_rate_hz) / 1e6,
        10 * np.log10(np.maximum(own.band.spectrum_w.mean(axis=0), 1e-30)) + 30,
        np.full(len(own.band.places), 10 * math.log10(max(floor_w, 1e-30)) + 30),
    )


def _levels(heard: Sequence[_Heard]) -> list[Curve]:
    """Total power on each carrier."""
    items = sorted((item for item in heard if item.gain is None), key=lambda item: item.carrier_hz)
    if len(items) < 2:
        return []
    return [
        Curve(
            "Power on each carrier (measured) and the noise floor there (fitted)",
            "carrier / MHz",
            "power / dBm",
            np.array([item.carrier_hz for item in items]) / 1e6,
            np.array([10 * math.log10(max(float(item.band.spectrum_w.mean()), 1e-30)) + 30 for item in items]),
            np.array([10 * math.log10(max(float(item.band.floor_w.mean()), 1e-30)) + 30 for item in items]),
        )
    ]
