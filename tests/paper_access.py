"""A bench on paper for calibrations: closed-form captures through `Access`' methods, without processes or devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from calibration.access import Access, Heard
from calibration.routine import Raw, Routine, Step
from testbed.core.bench import BenchSpec
from testbed.core.errors import RadioFault

_LEAD = 8
_NONE: Mapping[str, np.ndarray] = {}


def _true(gain: float) -> float:
    return 1.0


@dataclass
class PaperAccess:
    """Radios whose faults are all known.

    Args:
        bench: the bench.
        channel: gains, shape [num_antennas, num_nodes].
        noise_w: of a sample.
        offset: of each node's carrier, cycles in a sample.
        rx_image, tx_image: kappa of each antenna and of each node.
        leak, dc: of each node and of each antenna, square-root watts.
        rx_error, tx_error: true over nominal power gain at a nominal gain.
        flip: receive gain from which on the sign is turned.
        amplifier: what it makes of a transmitted waveform.
        codes_w: power of a full-scale tone at no gain; None for no converter.
        rail: RadioFault where the converter clips; else it clips in silence.
        steady: the phase of bursts goes on from one to the next.
        others: adds what somebody else sends, from samples, instant and carrier.
    """

    bench: BenchSpec
    channel: np.ndarray
    noise_w: float = 0.0
    offset: tuple[float, ...] = ()
    rx_image: tuple[complex, ...] = ()
    tx_image: tuple[complex, ...] = ()
    leak: tuple[complex, ...] = ()
    dc: tuple[complex, ...] = ()
    rx_error: Callable[[float], float] = _true
    tx_error: Callable[[float], float] = _true
    flip: float = math.inf
    amplifier: Callable[[np.ndarray], np.ndarray] = np.asarray
    codes_w: float | None = None
    rail: bool = True
    steady: bool = True
    seed: int = 0
    silent: tuple[str, ...] = ()
    others: Callable[[np.ndarray, float], None] | None = None
    tuned: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.rx_gain, self.carrier_hz, self.now = 1e3, self.bench.carrier_hz, 0.0
        self.tx_gains: dict[str, float] = {}
        self.devices: Any = self
        self.radio: Any = self

    @property
    def access(self) -> Access:
        """As a calibration takes it."""
        return cast(Access, self)

    def open_nodes(self) -> None:
        self.tx_gains.clear()
        self.tune(frequency_hz=self.bench.carrier_hz, sample_rate_hz=self.bench.sample_rate_hz)

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        self.rx_gain, self.carrier_hz = 1e3, frequency_hz
        self.tuned.append(("receiver", frequency_hz))

    def adjust(self, node: str | None = None, *, rx_gain: float | None = None, tx_gain: float | None = None) -> None:
        if rx_gain is not None:
            self.rx_gain = rx_gain
        if node is not None and tx_gain is not None:
            self.tx_gains[node] = tx_gain

    def capture(self, num_samples: int, bursts: Mapping[str, np.ndarray] = _NONE) -> Heard:
        num_antennas, length = len(self.channel), num_samples + 2 * _LEAD
        time = np.arange(length) - _LEAD
        heard = np.zeros((num_antennas, length), np.complex128)
        for name, burst in bursts.items():
            node = self.bench.node_names.index(name)
            if name in self.silent:
                continue
            gain = self.tx_gains.get(name, 1.0)
            sent = np.zeros(length, np.complex128)
            sent[_LEAD : _LEAD + burst.size] = burst
            sent += self._of(self.tx_image, node) * sent.conj()
            sent[_LEAD : _LEAD + burst.size] += self._of(self.leak, node)
            sent = self.amplifier(math.sqrt(self.tx_error(gain)) * sent)
            turns = self._of(self.offset, node).real * (time + self.now * self.bench.sample_rate_hz)
            phase = 0.0 if self.steady else self.rng.uniform()
            heard += self.channel[:, node, None] * sent * np.exp(2j * np.pi * (turns + phase))
        noise = self.rng.standard_normal((num_antennas, length, 2)) @ [1, 1j]
        heard += math.sqrt(self.noise_w / 2) * noise
        if self.others is not None:
            self.others(heard, self.carrier_hz)
        heard *= math.sqrt(self.rx_error(self.rx_gain)) * (-1 if self.rx_gain >= self.flip else 1)
        for antenna, row in enumerate(heard):
            row += self._of(self.rx_image, antenna) * row.conj() + self._of(self.dc, antenna)
        at_s = self.now
        self.now += length / self.bench.sample_rate_hz + 1e-3
        return Heard(self._converted(heard), at_s, _LEAD, np.zeros((num_antennas, 2)), tuple(bursts))

    def run(self, routine: Routine, options: Any) -> list[tuple[Step, Raw]]:
        """All steps of a calibration."""
        done: list[tuple[Step, Raw]] = []
        while (step := routine.next_step(self.bench, options, done, self.rng)) is not None:
            assert len(done) < routine.num_steps(self.bench, options)
            done.append((step, routine.measure(self.access, options, step)))
        return done

    def _converted(self, heard: np.ndarray) -> np.ndarray:
        if self.codes_w is None:
            return heard.astype(np.complex64)
        code = math.sqrt(self.codes_w / self.rx_gain) / 2048
        codes = np.rint(heard / code)
        clipped = np.clip(codes.real, -2048, 2047) + 1j * np.clip(codes.imag, -2048, 2047)
        if self.rail and np.mean(codes != clipped) > 1e-3:
            raise RadioFault("the receiver clips")
        return (clipped * code).astype(np.complex64)

    @staticmethod
    def _of(values: tuple[complex, ...], index: int) -> complex:
        return complex(values[index]) if values else 0j
