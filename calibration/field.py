"""The field over the antennas' travel: from a few measured positions to the channel at any position.

Antennas sweep side by side; at every visit each node sends pilots in its own slot. `testbed.phy.field_fit` makes plane
waves of what was heard, `testbed.phy.field_alternatives` assumes less and needs more. The sweep ends where it began:
what has changed meanwhile no model of a standing room explains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field as Described

from calibration.access import Access
from calibration.field_result import explained, fit_field
from calibration.field_samples import gather, known_shared_clock, reference_of
from calibration.field_sweep import Layout, areas_m, movers, planned_visits, uncertain_positions
from calibration.reception import burst_power_w, require_samples, saturated
from calibration.routine import Fit, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.specs import Spec
from testbed.phy import sounding
from testbed.phy.field_fit import straightened
from testbed.phy.field_model import PathField

_LONGEST = 1 << 20  # samples of one capture
_BEGINNING = 0.4  # of an adaptive sweep, that is laid out before anything is known


class FieldOptions(Spec):
    """What may be chosen."""

    method: Literal["paths", "gaussian", "sparse"] = Described(
        "paths",
        description="paths: a handful of plane waves, directions and gains fitted; sparse: powers on a grid of "
        "directions; gaussian: waves from everywhere, which needs many more measurements",
    )
    layout: Layout = Described(
        "latin",
        description="raster and serpentine: a grid, row by row; latin: a Latin hypercube; adaptive: begins as latin "
        "and goes on where the plane waves found so far are least certain",
    )
    num_measurements: int = Described(60, ge=1, description="positions, over all antennas")
    num_revisits: int = Described(2, ge=0, description="visits that are repeated at the end, to see what has changed")
    num_pilots: int = Described(4, ge=2, description="pilot blocks that each node sends at each visit")
    power_share: float = Described(1.0, gt=0, le=1, description="of each node's highest power")
    max_paths: int = Described(10, ge=1, description="most plane waves of a node")
    antennas: Literal["auto", "alike", "own"] = Described(
        "auto",
        description="own: antennas differ by a complex factor, which is fitted; alike: they do not; auto: what the "
        "measurements say",
    )
    phases: Literal["auto", "held", "free"] = Described(
        "auto",
        description="held: a node's phase is the same at every visit; free: a new one at each visit, told by an "
        "antenna that stands still; auto: held where the bench's radios are phase_coherent",
    )
    reference: int | None = Described(
        None, ge=0, description="antenna that stands still; one without a stage is taken by itself"
    )
    position_std_m: float = Described(5e-5, ge=0, description="how well stages know where they are")
    worst_error: float = Described(
        0.01, gt=0, description="largest share of the channel's power that may be missed on unseen positions"
    )
    draw: int = Described(0, ge=0, description="another number draws other positions")


class Field:
    """See `calibration.routine.Routine`."""

    name: ClassVar[str] = "field"
    about: ClassVar[str] = "the channel from each node at any position of the antennas, from a sparse sweep"
    Options: ClassVar[type[Spec]] = FieldOptions
    validity: ClassVar[tuple[str, ...]] = ("frequency_hz", "array")
    lasts_s: ClassVar[float] = 3600.0

    def next_step(
        self, bench: BenchSpec, options: FieldOptions, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """The next visit; the first ones again at the end.

        Raises:
            ConfigError: the bench's antennas cannot sweep, or a chosen reference does not exist.
        """
        visits = self._num_visits(bench, options)
        if len(done) >= visits + _revisits(options, visits):
            return None
        if len(done) >= visits:
            repeated = (len(done) - visits) * max(visits // 2, 1) % visits
            return {"positions_m": done[repeated][0]["positions_m"], "repeats": repeated}
        reference = reference_of(bench, options)
        sweeping = movers(bench, reference)
        shared = options.antennas != "own" or options.layout in ("raster", "serpentine")
        areas = areas_m(bench, sweeping, shared=shared)
        begun = visits if options.layout != "adaptive" else max(1, round(_BEGINNING * visits))
        if len(done) < begun:
            plan = planned_visits(bench, options.layout, areas, begun, np.random.default_rng(options.draw))
            return _step(plan[len(done)])
        return _step(_adaptive(bench, options, areas, done, rng))

    def num_steps(self, bench: BenchSpec, options: FieldOptions) -> int:
        """Visits, and those that are repeated.

        Raises:
            ConfigError: as `next_step`.
        """
        visits = self._num_visits(bench, options)
        return visits + _revisits(options, visits)

    def measure(self, access: Access, options: FieldOptions, step: Step) -> Raw:
        """Move, settle, and hear every node's pilots.

        Returns:
            positions_m [num_antennas, 2]; channel [num_antennas, num_nodes] complex, where a node was heard; variance
            [num_nodes] of each of its channels; heard [num_nodes]; saturated, one flag; at_s, instant of the capture.

        Raises:
            ConfigError: the bench's waveform has no samples.
            LimitError: a position is beyond the end stops.
            StageFault, RadioFault: a device failed.
        """
        bench = access.bench
        require_samples(bench)
        access.move(np.array(step["positions_m"], np.float64))
        length = sounding.length(options.num_pilots, bench.waveform) + 2 * access.guard
        together = max(1, _LONGEST // length)
        names = bench.node_names
        raw = {
            "channel": np.zeros((len(bench.array.antennas), len(names)), np.complex128),
            "variance": np.full(len(names), np.inf),
            "heard": np.zeros(len(names), bool),
            "saturated": np.zeros(1, bool),
            "at_s": np.array([access.now_s()]),
        }
        for first in range(0, len(names), together):
            _hear(access, options, names[first : first + together], first, raw)
        raw["positions_m"] = access.positions_m
        return raw

    def fit(self, bench: BenchSpec, options: FieldOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """What follows from the measurements; see `calibration.field_result.fit_field`."""
        return fit_field(bench, options, done)

    def _num_visits(self, bench: BenchSpec, options: FieldOptions) -> int:
        if options.reference is not None and options.reference >= len(bench.array.antennas):
            raise ConfigError(
                f"the bench has {len(bench.array.antennas)} antennas, and no antenna {options.reference}",
                key="reference",
                remedy="count antennas from 0",
            )
        return -(-options.num_measurements // len(movers(bench, reference_of(bench, options))))


def _revisits(options: FieldOptions, visits: int) -> int:
    return min(options.num_revisits, visits)


def _step(positions_m: np.ndarray) -> Step:
    return {"positions_m": np.round(positions_m, 7).tolist(), "repeats": None}


def _hear(
    access: Access, options: FieldOptions, names: Sequence[str], first: int, raw: Mapping[str, np.ndarray]
) -> None:
    """One capture of nodes that send one after the other; fills in what was heard of them."""
    bench, guard = access.bench, access.guard
    waveform, num_pilots = bench.waveform, options.num_pilots
    slot = sounding.length(num_pilots, waveform) + 2 * guard
    powers_w = {name: burst_power_w(bench, name, options.power_share) for name in names}
    heard = access.capture(
        slot * len(names) - 2 * guard,
        {name: sounding.build(num_pilots, waveform, powers_w[name]) for name in names},
        offsets={name: index * slot for index, name in enumerate(names)},
    )
    raw["saturated"][0] |= saturated(heard.samples)
    for index, name in enumerate(names):
        if name not in heard.sent:
            continue
        found = sounding.read(
            heard.samples[:, index * slot : (index + 1) * slot],
            waveform,
            num_pilots,
            powers_w[name],
            start=guard,
            guard=guard,
            correct_cfo=not known_shared_clock(bench),
        )
        if found is None:
            continue
        raw["channel"][:, first + index] = found.channel
        raw["variance"][first + index] = found.noise_w / (powers_w[name] * num_pilots * waveform.num_active)
        raw["heard"][first + index] = True


def _adaptive(
    bench: BenchSpec,
    options: FieldOptions,
    areas: dict[int, np.ndarray],
    done: Sequence[tuple[Step, Raw]],
    rng: np.random.Generator,
) -> np.ndarray:
    """Where the plane waves found so far are least certain; anywhere where there are none yet."""
    known: list[tuple[PathField, float, float]] = []
    for samples in gather(bench, options, done).values():
        try:
            fit = explained(bench, options, samples, free_factors=options.antennas == "own")
        except ValueError:
            continue
        power = float(np.mean(np.abs(samples.channel) ** 2))
        known.append((fit.field, power, float(np.mean(straightened(samples, fit).variance)) * max(fit.scatter, 1.0)))

    def uncertainty(positions_m: np.ndarray) -> np.ndarray:
        if not known:
            return np.ones(len(positions_m))
        shares = [np.square(field.predict(positions_m)[1]) / max(power, 1e-300) for field, power, _ in known]
        return np.max(shares, axis=0)

    def measured(position_m: np.ndarray) -> None:
        known[:] = [(field.after(position_m, variance), power, variance) for field, power, variance in known]

    here_m = np.array(done[-1][1]["positions_m"], np.float64)
    return uncertain_positions(bench, areas, here_m, uncertainty, measured, rng)
