"""From profiles to corrections: what a run applies of what calibrations have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibration.names import routine_named
from calibration.profile import Profile, utc_now
from calibration.session import calibrate
from calibration.store import Reason, Store
from testbed.core.bench import BenchSpec
from testbed.core.corrections import Complex, Corrections, ReceiveCorrection, TransmitCorrection
from testbed.core.errors import ConfigError

_KEY = "calibrations"
APPLIED = ("carrier", "timing", "iq", "gain")
"""Routines whose values correct samples; `field` tells schemes the channels; of the others a run records the ids."""


def corrections_for(
    bench: BenchSpec,
    routines: Sequence[str],
    *,
    backend: str,
    seed: int,
    bench_file: str | None = None,
    renew: bool = False,
    yes_transmit: bool = False,
    store: Store | None = None,
) -> Corrections:
    """What the newest valid profiles of these routines put right.

    Args:
        bench: the bench of the run.
        routines: by name.
        backend: who plays its devices.
        seed: of the simulated world.
        bench_file: what to write after --bench in messages.
        renew: make a profile anew where none holds.
        yes_transmit: consent, where renewing really moves and radiates.
        store: where profiles lie.

    Returns:
        the corrections, and the ids they come from.

    Raises:
        ConfigError: there is no such routine, or no profile holds; it says why and with which command to renew it.
        DeviceError: renewing failed.
    """
    for routine in routines:
        try:
            routine_named(routine)
        except ConfigError as error:
            raise ConfigError(error.message, key=_KEY, remedy=error.remedy) from error
    place = store or Store()
    profiles: list[Profile] = []
    for routine in routines:
        found = place.find(
            bench, routine, backend=backend, seed=seed, serials=None, now=utc_now(), bench_file=bench_file
        )
        if isinstance(found, Reason) and renew:
            outcome = calibrate(routine, bench, backend=backend, seed=seed, yes_transmit=yes_transmit, store=place)
            found = outcome.profiles[-1]
            if not found.passed:
                raise ConfigError(
                    f"the calibration {routine} was made anew and failed: {found.why}", key="auto_calibrate"
                )
        if isinstance(found, Reason):
            refusal = found.error()
            raise ConfigError(refusal.message, key=_KEY, remedy=refusal.remedy)
        profiles.append(found)
    return combined(bench, profiles)


def check_serials(ids: Sequence[str], serials: Mapping[str, str], store: Store | None = None) -> None:
    """Refuse profiles of other radios than those that answer.

    Raises:
        ConfigError: names the radio.
    """
    place = store or Store()
    for id_ in ids:
        profile = place.read(place.locate(id_))
        for name, serial in serials.items():
            if profile.serials.get(name, serial) != serial:
                raise ConfigError(
                    f"the calibration {profile.routine} ({id_}) speaks of the radio {profile.serials[name]} as {name}, "
                    f"and {serial} answers",
                    remedy=f"calibrate: testbed calibrate {profile.routine} --bench {profile.bench} "
                    f"--backend {profile.backend}",
                )


def combined(bench: BenchSpec, profiles: Sequence[Profile]) -> Corrections:
    """What profiles put right together; a later one of the same routine wins."""
    values: dict[str, Any] = {}
    for profile in profiles:
        if profile.routine in APPLIED:
            values |= {name: quantity.value for name, quantity in profile.quantities.items()}
    fields: dict[str, Any] = {}
    for profile in profiles:
        if profile.routine == "field":
            ends = ((key.rpartition("."), quantity.value) for key, quantity in profile.quantities.items())
            fields |= {name: value for (name, _, what), value in ends if what == "paths"}
    nodes = {name: _transmit(name, values) for name in bench.node_names}
    antennas = tuple(_receive(f"antenna-{index}", values) for index in range(len(bench.array.antennas)))
    return Corrections(
        nodes={name: one for name, one in nodes.items() if one != TransmitCorrection()},
        antennas=antennas if any(one != ReceiveCorrection() for one in antennas) else (),
        fields=fields,
        calibration_ids=tuple(profile.id for profile in profiles),
    )


def _transmit(name: str, values: Mapping[str, Any]) -> TransmitCorrection:
    return TransmitCorrection(
        offset=values.get(f"{name}.offset", 0.0),
        delay_s=values.get(f"{name}.delay", 0.0),
        image=_pair(values.get(f"{name}.image")),
        leak=_pair(values.get(f"{name}.leak")),
        power_error=values.get(f"{name}.power_error", 1.0),
    )


def _receive(name: str, values: Mapping[str, Any]) -> ReceiveCorrection:
    return ReceiveCorrection(
        dc=_pair(values.get(f"{name}.dc")),
        image=_pair(values.get(f"{name}.image")),
        gain_error=values.get(f"{name}.gain_error", 1.0),
    )


def _pair(value: Sequence[float] | None) -> Complex:
    return (0.0, 0.0) if value is None else (float(value[0]), float(value[1]))
