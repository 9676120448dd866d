"""From the visits of a sweep to the samples of each node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from calibration.routine import Raw, Step
from testbed.core.bench import BenchSpec
from testbed.phy.coherence import radio_flags
from testbed.phy.field_model import Samples

_ROUNDING = 1e-8  # of the channel's power: no radio is better


def phases_held(bench: BenchSpec, options: Any) -> bool:
    """Whether a node's phase is taken as the same at every visit."""
    if options.phases == "auto":
        return bool(radio_flags(bench)["phase_coherent"])
    return bool(options.phases == "held")


def known_shared_clock(bench: BenchSpec) -> bool:
    """Whether carrier offsets need no estimate."""
    return bool(radio_flags(bench)["shared_clock"])


def reference_of(bench: BenchSpec, options: Any) -> int | None:
    """The antenna whose standing still tells a node's phase: the chosen one, or where phases are free one of several.

    An antenna without a stage stands still anyway; else the last one that has others beside it.
    """
    if options.reference is not None:
        return int(options.reference)
    fixed = [index for index, antenna in enumerate(bench.array.antennas) if antenna.stage is None]
    if fixed:
        return fixed[0]
    if phases_held(bench, options) or len(bench.array.antennas) < 2:
        return None
    return len(bench.array.antennas) - 1


def gather(bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]]) -> dict[str, Samples]:
    """What each node's visits say; nodes that were never heard are absent.

    The variance of a sample is what noise leaves of its estimate, and what not knowing the antenna's position adds:
    (2 pi sigma / lambda)^2 times the channel's power.

    Args:
        bench: the bench.
        options: of the calibration.
        done: steps and what they measured.

    Returns:
        node -> samples, visit by visit.
    """
    found: dict[str, Samples] = {}
    unsure = (2 * math.pi * options.position_std_m / bench.wavelength_m) ** 2 + _ROUNDING
    for index, name in enumerate(bench.node_names):
        visits = [visit for visit, (_, raw) in enumerate(done) if bool(raw["heard"][index])]
        if not visits:
            continue
        # [num_visits, num_antennas]
        channel = np.array([done[visit][1]["channel"][:, index] for visit in visits], np.complex128)
        noise = np.array([float(done[visit][1]["variance"][index]) for visit in visits])
        count = channel.shape[1]
        power = float(np.mean(np.abs(channel) ** 2))
        found[name] = Samples(
            channel.reshape(-1),
            np.concatenate([np.asarray(done[visit][1]["positions_m"], np.float64) for visit in visits]),
            np.repeat(noise, count) + unsure * power,
            np.tile(np.arange(count), len(visits)),
            np.repeat(np.array(visits, np.int64), count),
        )
    return found


def phases_at_reference(samples: Samples, reference: int | None) -> np.ndarray:
    """The phase of each visit relative to the first, as the antenna that stands still tells it, shape [num_visits]."""
    phases_rad = np.zeros(int(samples.visit.max()) + 1)
    if reference is not None:
        own = samples.antenna == reference
        turned = samples.channel[own] * np.conj(samples.channel[own][0])
        phases_rad[samples.visit[own]] = np.angle(turned)
    return phases_rad
