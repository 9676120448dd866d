"""How a run opens its bench: the backend's devices, with recordings and corrections in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from testbed.core.backends import (
    CAPTURE,
    CHECK_SERIALS,
    CORRECTED,
    CORRECTIONS,
    PLAYBACK,
    resolve,
)
from testbed.core.backends import backend as backend_of
from testbed.core.bench import BenchSpec
from testbed.core.corrections import Corrections
from testbed.core.devices import Devices
from testbed.engine.config import ExperimentSpec
from testbed.engine.live import antenna_positions_m
from testbed.engine.recorder import write_json


def corrections_of(
    experiment: ExperimentSpec, bench: BenchSpec, backend: str, yes_transmit: bool
) -> dict[str, Any] | None:
    """What the profiles that an experiment uses put right, as `start.json` keeps it; None where it uses none.

    Raises:
        ConfigError: a profile is absent, stale or of another bench; with the command that renews it.
        DeviceError: it was made anew, and that failed.
    """
    if not experiment.calibrations:
        return None
    found: Corrections = resolve(CORRECTIONS)(
        bench,
        experiment.calibrations,
        backend=backend,
        seed=experiment.seed,
        bench_file=experiment.bench,
        renew=experiment.auto_calibrate,
        yes_transmit=yes_transmit,
    )
    return found.model_dump(mode="json")


@dataclass(frozen=True)
class Opening:
    """Opens the bench of one run.

    Args:
        folder: of the run.
        bench: the bench.
        start: the run's `start.json`: backend, capture, playback, record_wire, corrections.
        seed: of the simulated world.
        node_processes: see the backend.
        steal_leases: see the backend.
    """

    folder: Path
    bench: BenchSpec
    start: Mapping[str, Any]
    seed: int
    node_processes: int | None = None
    steal_leases: bool = False

    @property
    def backend(self) -> str:
        """Who plays the devices."""
        return str(self.start["backend"])

    @property
    def corrections(self) -> Corrections:
        """Of the profiles in use; empty where there are none."""
        return Corrections.model_validate(self.start.get("corrections") or {})

    def devices(self) -> Devices:
        """The backend's devices: the receiver put right, its captures played back or kept as the run was asked.

        Raises:
            BenchError: see the backend.
        """
        devices: Devices = resolve(backend_of(self.backend).bench)(
            self.bench,
            seed=self.seed,
            folder=self.folder,
            node_processes=self.node_processes,
            record_wire=self.folder / "wire" if self.start.get("record_wire") else None,
            steal_leases=self.steal_leases,
        )
        found, radio = self.corrections, devices.radio
        if self.start.get("playback") is not None:
            radio = resolve(PLAYBACK)(Path(self.start["playback"]))
        if self.start.get("capture"):

            def facts() -> dict[str, Any]:
                return {
                    "bench": self.bench.name,
                    "serials": dict(devices.serials),
                    "calibration_ids": list(found.calibration_ids),
                    "positions_m": antenna_positions_m(devices, self.bench).tolist(),
                }

            # what is kept is what the radio delivered
            radio = resolve(CAPTURE)(radio, self.folder / "captures", facts=facts, waveform=self.bench.waveform)
        if found.antennas:
            radio = resolve(CORRECTED)(radio, found.antennas)
        return replace(
            devices,
            radio=radio,
            node_devices={**devices.node_devices, "corrections": found.for_nodes()},
            calibration_ids=found.calibration_ids,
            advance_s=max((0.0, *(one.delay_s for one in found.nodes.values()))),
        )

    def ready(self, devices: Devices, node_serials: Mapping[str, str]) -> None:
        """Write down which devices answered and what they claim, and refuse profiles of others.

        Raises:
            ConfigError: a profile in use speaks of another radio.
        """
        serials = {**devices.serials, **node_serials}
        facts = {
            "serials": serials,
            "firmware": dict(devices.firmware),
            "calibration_ids": list(devices.calibration_ids),
            "receiver": asdict(devices.radio.capabilities),
            "notes": list(devices.notes),
        }
        write_json(self.folder / "devices.json", facts)
        if devices.calibration_ids:
            resolve(CHECK_SERIALS)(devices.calibration_ids, serials)
