"""What a sweep says of the field, and whether it may be believed; and the field again from what a profile keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from calibration.field_samples import gather, phases_at_reference, phases_held, reference_of
from calibration.reception import listed
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.units import to_db
from testbed.phy.field_alternatives import GaussianField, fit_isotropic, fit_sparse
from testbed.phy.field_checks import cross_validated, displaced, robust_fit
from testbed.phy.field_fit import PathFit, fit_paths, most_paths, straightened
from testbed.phy.field_model import FieldModel, PathField, Samples

_SIGMAS = 5.0
_MENDED = 0.5  # of the squares that are left: a displacement that leaves more does not explain them
_ASKED = 3  # nodes whose samples are searched for a displacement: those that the model explains least
_WAVELENGTH = "field.wavelength"
POSITIONS = "field.positions"
"""Where the antennas measured."""


@dataclass(frozen=True)
class NodeField:
    """What is known of one node's field.

    Attributes:
        samples: without factors of antennas and phases of visits.
        paths: the plane waves, whatever the method.
        model: of the method asked for.
        error: cross-validated, a share of the channel's power.
        own_factors: whether antennas have factors of their own.
    """

    samples: Samples
    paths: PathFit
    model: FieldModel
    error: float
    own_factors: bool

    @property
    def unexplained(self) -> bool:
        """Whether more than noise is left."""
        return _unexplained(self.paths)

    @property
    def snr(self) -> float:
        """Of one sample, a power ratio."""
        return float(np.mean(np.abs(self.samples.channel) ** 2) / np.mean(self.samples.variance))


def fit_field(bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]]) -> Fit:
    """The field of every node; see `calibration.routine.Routine`.

    Args:
        bench: the bench.
        options: `calibration.field.FieldOptions`.
        done: steps and what they measured.

    Returns:
        values, and why they may not be used or what limits them.
    """
    gathered = gather(bench, options, done)
    against = _against_everything(bench, options, done, gathered)
    if against:
        return Fit({}, False, against)
    fields: dict[str, NodeField] = {}
    wrong: list[str] = []
    silent = [name for name in bench.node_names if name not in gathered]
    if silent:
        wrong.append(f"{listed(silent)} never heard: look at transmitters, cables and antennas")
    for name, samples in gathered.items():
        try:
            fields[name] = _node_field(bench, options, samples)
        except ValueError:
            wrong.append(f"{name}: {len(samples)} samples are too few for one path: raise num_measurements")
    wrong += [] if not fields else _doubts(bench, options, done, fields)
    positions_m = np.unique(np.concatenate([np.asarray(raw["positions_m"], np.float64) for _, raw in done]), axis=0)
    values = {
        _WAVELENGTH: Quantity(bench.wavelength_m, "m", 0.0),
        POSITIONS: Quantity(_nested(positions_m), "m", _nested(np.full_like(positions_m, options.position_std_m))),
    }
    for name, field in fields.items():
        values.update(_values(name, field))
    values.update(_factors(bench, fields))
    curves = tuple(_curve(name, field) for name, field in fields.items())
    return Fit(values, bool(fields) and not wrong, "; ".join(wrong) if wrong else _limits(fields), curves)


def explained(bench: BenchSpec, options: Any, samples: Samples, *, free_factors: bool) -> PathFit:
    """The plane waves behind one node's samples.

    Args:
        bench: the bench.
        options: `calibration.field.FieldOptions`.
        samples: of the node.
        free_factors: whether antennas have factors of their own.

    Raises:
        ValueError: the samples are too few.
    """
    return fit_paths(
        samples,
        bench.wavelength_m,
        max_paths=options.max_paths,
        free_factors=free_factors,
        free_phases=not phases_held(bench, options),
        phases_rad=phases_at_reference(samples, reference_of(bench, options)),
    )


def field_models(values: Mapping[str, Quantity]) -> dict[str, FieldModel]:
    """Every node's field, from the values of a profile.

    Args:
        values: of a `field` calibration.

    Returns:
        node -> model, in the order of the values.

    Raises:
        KeyError: the values are not those of a field.
    """
    wavelength_m = float(values[_WAVELENGTH].value)
    models: dict[str, FieldModel] = {}
    for key, quantity in values.items():
        name, _, what = key.rpartition(".")
        if what == "paths":
            covariance = np.array(values[f"{name}.covariance"].value, np.float64)
            models[name] = PathField.of_rows(np.array(quantity.value, np.float64), covariance, wavelength_m)
        elif what == "spectrum":
            spectrum = np.array(quantity.value, np.float64).reshape(-1, 3)
            measured = np.array(values[f"{name}.measured"].value, np.float64).reshape(-1, 5)
            models[name] = GaussianField(
                measured[:, 2] + 1j * measured[:, 3],
                measured[:, :2],
                measured[:, 4],
                spectrum[:, :2],
                spectrum[:, 2],
                wavelength_m,
                stretch=float(values[f"{name}.stretch"].value),
            )
    return models


def predict(values: Mapping[str, Quantity], positions_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The channels at any positions, from the values of a profile.

    Args:
        values: of a `field` calibration.
        positions_m: array frame, shape [..., 2].

    Returns:
        h, shape [..., num_nodes], complex128, and its standard deviation, likewise; nodes as in `field_models`.

    Raises:
        KeyError: the values are not those of a field.
    """
    told = [model.predict(positions_m) for model in field_models(values).values()]
    return np.stack([channel for channel, _ in told], axis=-1), np.stack([std for _, std in told], axis=-1)


def _against_everything(
    bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]], gathered: Mapping[str, Samples]
) -> str:
    """Why there can be no field at all; empty if there may be one."""
    if any(bool(raw["saturated"][0]) for _, raw in done):
        return "the receiver saturates: lower gain_db of array.radios, or attenuate, and measure again"
    if not gathered:
        return "no node was heard: are transmitters connected, and is the band clean (`testbed calibrate noise`)?"
    if not phases_held(bench, options) and len(bench.array.antennas) < 2:
        return (
            "the phase is new at every visit, and one antenna alone cannot tell it from the field's: "
            "add an antenna that stands still, or share a clock and set radio.phase_coherent = true"
        )
    return ""


def _node_field(bench: BenchSpec, options: Any, samples: Samples) -> NodeField:
    own = options.antennas == "own"
    fit = explained(bench, options, samples, free_factors=own)
    several = len(np.unique(samples.antenna)) > 1
    if options.antennas == "auto" and several and _unexplained(fit):
        other = explained(bench, options, samples, free_factors=True)
        if other.criterion < fit.criterion:
            fit, own = other, True
    straight = straightened(samples, fit)
    build = _builder(bench, options)
    error, surprise = cross_validated(straight, build)
    doubt = min(max(surprise, 1.0), 1e6)
    if options.method == "paths":
        # factors and phases of their own are part of this covariance
        model: FieldModel = replace(fit.field, covariance=fit.field.covariance * doubt)
    else:
        model = replace(build(straight), stretch=doubt)
    return NodeField(straight, fit, model, error, own)


def _builder(bench: BenchSpec, options: Any) -> Callable[[Samples], Any]:
    if options.method == "gaussian":
        return partial(fit_isotropic, wavelength_m=bench.wavelength_m)
    if options.method == "sparse":
        return partial(fit_sparse, wavelength_m=bench.wavelength_m)
    return lambda samples: fit_paths(samples, bench.wavelength_m, max_paths=options.max_paths).field


def _doubts(
    bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]], fields: Mapping[str, NodeField]
) -> list[str]:
    """Why the fields may not be used; none if they may."""
    doubts: list[str] = []
    missed = {name: field for name, field in fields.items() if not field.error <= options.worst_error}
    suspects = [field for name, field in fields.items() if field.unexplained or name in missed]
    for field in sorted(suspects, key=lambda field: -field.paths.scatter)[:_ASKED]:
        if lost := _displacement(bench, options, field):
            doubts.append(lost)
            break
    if not doubts:
        doubts += _changes(options, done, fields)
    if missed:
        name, field = max(missed.items(), key=lambda item: item[1].error)
        doubts.append(_why_missed(bench, options, name, field))
    return doubts


def _why_missed(bench: BenchSpec, options: Any, name: str, field: NodeField) -> str:
    said = (
        f"{name}: on unseen positions the field misses {_decibels(field.error)} of the channel's power, where "
        f"{_decibels(options.worst_error)} are allowed"
    )
    count, places = len(field.paths.field.gains), len(np.unique(np.round(field.samples.positions_m, 6), axis=0))
    if field.snr * options.worst_error < 1:
        return f"{said}; its signal-to-noise ratio is {to_db(field.snr):.0f} dB: raise num_pilots or its power"
    if count >= min(options.max_paths, most_paths(places)) or options.method != "paths" or 6 * count > places:
        return f"{said}; {places} positions are too few for {count} paths or more: raise num_measurements"
    if field.unexplained:
        return (
            f"{said}; {count} plane waves leave {field.paths.scatter:.3g} times the noise: something is near the "
            "antennas, they couple, or the room does not stand still"
        )
    return f"{said}: raise num_measurements"


def _displacement(bench: BenchSpec, options: Any, field: NodeField) -> str:
    """The stage whose antenna stood elsewhere than it said; empty if there is none."""
    samples = field.samples
    try:
        fit, _ = robust_fit(samples, bench.wavelength_m, max_paths=options.max_paths)
    except ValueError:
        return ""
    guess, _ = fit.field.predict(samples.positions_m)
    scale = float(np.median(np.abs(samples.channel - guess) ** 2 / samples.variance)) / math.log(2.0)
    found = displaced(samples, fit.field, scale=scale)
    if found is None or bench.array.antennas[found.antenna].stage is None:
        return ""
    # believed only if the model holds, or holds much better, once the antenna is taken to stand there
    moved = (samples.antenna == found.antenna) & (samples.visit >= found.visit)
    there_m = samples.positions_m + np.where(moved[:, None], found.offset_m, 0.0)
    mended = fit_paths(replace(samples, positions_m=there_m), bench.wavelength_m, max_paths=options.max_paths)
    if mended.scatter > _MENDED * field.paths.scatter and _unexplained(mended):
        return ""
    return (
        f"antenna {found.antenna} stood {1e3 * float(np.linalg.norm(found.offset_m)):.2g} mm from where its stage "
        f"said, from visit {found.visit} on: it lost steps; home it and measure again"
    )


def _unexplained(fit: PathFit) -> bool:
    """Whether more than noise is left."""
    return fit.scatter > 1 + _SIGMAS * math.sqrt(2 / max(fit.freedom, 1))


def _changes(options: Any, done: Sequence[tuple[Step, Raw]], fields: Mapping[str, NodeField]) -> list[str]:
    """What differed when antennas came back to where they had been."""
    for visit, (step, _) in enumerate(done):
        earlier = step.get("repeats")
        if earlier is None:
            continue
        for name, field in fields.items():
            then = field.samples.part(np.flatnonzero(field.samples.visit == earlier))
            now = field.samples.part(np.flatnonzero(field.samples.visit == visit))
            if not len(then) or not len(now):
                continue
            change, turn, left = _change(field, then, now)
            allowed = options.worst_error + 2 * _SIGMAS / field.snr
            if float(np.max(change)) < allowed:
                continue
            between = f"between visits {earlier} and {visit}"
            alone = np.flatnonzero(change > allowed)
            if len(change) > 2 and len(alone) == 1:
                antenna = int(then.antenna[alone[0]])
                return [f"antenna {antenna} alone did not come back to where it had been {between}: home its stage"]
            if left < allowed:
                return [
                    f"{name}: its phase turned by {turn:.2g} rad {between}: "
                    "set phases = free, with an antenna that stands still"
                ]
            return [
                f"{name}: at the same positions the channel changed by {_decibels(float(np.mean(change)))} of its "
                f"power {between}: the room does not stand still; measure faster, or when nobody is about"
            ]
    return []


def _change(field: NodeField, then: Samples, now: Samples) -> tuple[np.ndarray, float, float]:
    """Of each antenna's channel, over the mean power; the common turn, rad; and what it leaves of the change."""
    power = float(np.mean(np.abs(field.samples.channel) ** 2))
    change = np.abs(now.channel - then.channel) ** 2 / power
    turn = float(np.angle(np.vdot(then.channel, now.channel)))
    left = float(np.mean(np.abs(now.channel * np.exp(-1j * turn) - then.channel) ** 2)) / power
    return change, turn, left


def _values(name: str, field: NodeField) -> dict[str, Quantity]:
    freedom = max(field.paths.freedom, 1)
    spread = math.sqrt(2 / max(len(field.samples), 1))
    values = {
        f"{name}.error": Quantity(field.error, "1", field.error * spread),
        f"{name}.scatter": Quantity(field.paths.scatter, "1", math.sqrt(2 / freedom) * field.paths.scatter),
    }
    match field.model:
        case PathField() as model:
            std = np.sqrt(np.maximum(np.diag(model.covariance), 0.0)).reshape(4, -1).T
            values[f"{name}.paths"] = Quantity(_nested(model.rows), "1", _nested(std))
            values[f"{name}.covariance"] = Quantity(
                _nested(model.covariance), "1", _nested(np.zeros_like(model.covariance))
            )
        case GaussianField() as model:
            spectrum = np.column_stack([model.directions, model.powers])
            measured = np.column_stack([model.positions_m, model.channel.real, model.channel.imag, model.variance])
            values[f"{name}.spectrum"] = Quantity(_nested(spectrum), "1", _nested(np.zeros_like(spectrum)))
            values[f"{name}.measured"] = Quantity(_nested(measured), "1", _nested(np.zeros_like(measured)))
            values[f"{name}.stretch"] = Quantity(model.stretch, "1", model.stretch * spread)
    return values


def _factors(bench: BenchSpec, fields: Mapping[str, NodeField]) -> dict[str, Quantity]:
    """Factors of the antennas, averaged over the nodes that tell them."""
    told = np.array([field.paths.factors for field in fields.values() if field.own_factors])
    if not len(told):
        return {}
    mean = told.mean(axis=0)
    # one node tells a factor about as well as it tells a gain
    noise = np.mean([field.paths.scatter / (field.snr * len(field.samples)) for field in fields.values()])
    std = math.sqrt(float(noise) * len(bench.array.antennas) / len(told))
    return {
        f"antenna-{index}.factor": Quantity((float(value.real), float(value.imag)), "1", (std, std))
        for index, value in enumerate(mean)
    }


def _curve(name: str, field: NodeField) -> Curve:
    explained_channel, _ = field.model.predict(field.samples.positions_m)
    return Curve(
        f"{name}: amplitude at the measured positions",
        "measurement",
        "channel amplitude (1)",
        np.arange(len(field.samples), dtype=np.float64),
        np.abs(field.samples.channel),
        np.abs(explained_channel),
    )


def _limits(fields: Mapping[str, NodeField]) -> str:
    name, worst = max(fields.items(), key=lambda item: item[1].error)
    counts = listed([f"{len(field.paths.field.gains)} of {key}" for key, field in fields.items()])
    limit = (
        f"the model leaves {worst.paths.scatter:.3g} times the noise"
        if worst.unexplained
        else f"noise limits it, {to_db(worst.snr):.0f} dB below one measurement"
    )
    return f"plane waves: {counts}; at worst {_decibels(worst.error)} of the channel is missed, of {name}; {limit}"


def _decibels(share: float) -> str:
    return f"{to_db(share):.0f} dB" if share > 1e-6 else "less than -60 dB"


def _nested(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in values)
