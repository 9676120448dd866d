"""A bench of formulas for calibrations: what nodes send arrives turned, late, and in noise, at once and exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from calibration.access import Access, Heard
from calibration.routine import Fit, Raw, Routine, Step
from sim_backend.resample import HALF_TAPS, resampled
from testbed.core.bench import BenchSpec

_NOTHING: Mapping[str, np.ndarray] = {}


@dataclass
class Transmitter:
    """What is wrong with one node, and how it is heard."""

    offset_hz: float = 0.0
    drift_hz_s: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    jumps: bool = False
    silent: bool = False
    phase_noise_rad: float = 0.0
    gains: tuple[complex, ...] = (1e-4, 1e-4j, -1e-4)
    crystal_hz: list[int] = field(default_factory=list)


class ClosedFormAccess(Access):
    """See `calibration.access.Access`.

    Args:
        bench: the bench.
        transmitters: node -> what is wrong with it.
        noise_w: of a sample of one antenna.
        seed: of noise and jitter.
        rail: largest value of a branch that the receiver delivers.
        jammer: amplitude, and cycles per sample, of somebody else.
        shared_clock: what the receiver claims.
    """

    def __init__(
        self,
        bench: BenchSpec,
        transmitters: Mapping[str, Transmitter],
        *,
        noise_w: float = 0.0,
        seed: int = 1,
        rail: float = math.inf,
        jammer: tuple[float, float] = (0.0, 0.0),
        shared_clock: bool = False,
    ) -> None:
        radio = SimpleNamespace(capabilities=SimpleNamespace(shared_clock=shared_clock))
        devices: Any = SimpleNamespace(radio=radio, stages=[None] * len(bench.array.antennas))
        super().__init__(bench, devices, "closed-form")
        self.transmitters, self.noise_w, self.rail, self.jammer = transmitters, noise_w, rail, jammer
        self.generator = np.random.default_rng(seed)
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def wait(self, seconds: float) -> None:
        self.time_s += seconds

    def adjust(
        self,
        node: str | None = None,
        *,
        rx_gain: float | None = None,
        tx_gain: float | None = None,
        crystal_hz: int | None = None,
    ) -> None:
        assert node is not None
        assert crystal_hz is not None
        sender = self.transmitters[node]
        before_hz = sender.crystal_hz[-1] if sender.crystal_hz else 40_000_000
        sender.offset_hz -= self.bench.carrier_hz * (crystal_hz / before_hz - 1)
        sender.crystal_hz.append(crystal_hz)

    def capture(
        self,
        num_samples: int,
        bursts: Mapping[str, np.ndarray] = _NOTHING,
        *,
        offsets: Mapping[str, int] | None = None,
    ) -> Heard:
        rate_hz, guard = self.bench.sample_rate_hz, self.guard
        begin_s = self.time_s + 1e-3 + guard / rate_hz
        count = num_samples + 2 * guard
        samples = np.sqrt(self.noise_w / 2) * (self.generator.standard_normal((3, count, 2)) @ np.array([1, 1j]))
        since_s = begin_s + (np.arange(count) - guard) / rate_hz
        samples += self.jammer[0] * np.exp(2j * np.pi * self.jammer[1] * np.arange(count))
        for node, burst in bursts.items():
            sender = self.transmitters[node]
            if sender.silent:
                continue
            late = rate_hz * (sender.delay_s + sender.jitter_s * self.generator.standard_normal())
            stretch = sender.offset_hz / self.bench.carrier_hz
            moved = resampled(burst, fraction=late - math.floor(late), stretch=stretch)
            at = guard + (offsets or {}).get(node, 0) + math.floor(late) - HALF_TAPS
            first, last = max(at, 0), min(at + moved.size, count)
            if last <= first:
                continue
            own_s = since_s[first:last]
            turns = np.fmod(sender.offset_hz * own_s + sender.drift_hz_s * own_s**2 / 2, 1.0)
            phase_rad = 2 * np.pi * turns + sender.phase_noise_rad * self.generator.standard_normal(last - first)
            phase_rad += self.generator.uniform(0, 2 * np.pi) if sender.jumps else 0.0
            samples[:, first:last] += np.outer(sender.gains, moved[first - at : last - at] * np.exp(1j * phase_rad))
        self.time_s = begin_s + (num_samples + guard) / rate_hz
        branches = np.clip(samples.astype(np.complex64).view(np.float32), -self.rail, self.rail)
        return Heard(branches.view(np.complex64), begin_s, guard, np.zeros((3, 2)), tuple(bursts))


def calibrate(routine: Routine, access: Access, options: Any) -> tuple[Fit, list[tuple[Step, Raw]]]:
    """Every step, and the fit."""
    done: list[tuple[Step, Raw]] = []
    while True:
        step = routine.next_step(access.bench, options, done, np.random.default_rng(len(done)))
        if step is None:
            return routine.fit(access.bench, options, done), done
        done.append((step, routine.measure(access, options, step)))
