"""From the codes that a radio's converter plays to what its antenna radiates.

Modelled: the converter's twelve bits, the attenuator, and all that `sim_backend.transmit_chain` does. A waveform that
repeats, or that follows another without a gap, keeps the start, the phase and the oscillator that it began with; it has
no phase noise and its clock does not slip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from drivers.pluto_port import FULL_SCALE_TX
from sim_backend.emulators.converters import Tone
from sim_backend.emulators.history import Window
from sim_backend.level_error import LevelError
from sim_backend.transmit_chain import TransmitChain
from testbed.core.bench import BenchSpec
from testbed.core.units import dbm_to_w, from_db

_UNUSED_BITS = 4  # of sixteen: the converter takes the twelve most significant
_HEADROOM_DB = 13.0
_FAINT_DB = -70.0  # gains below leave nothing that an amplifier or a leak would shape


class TransmitPath:
    """Converter, attenuator and transmit chain of one radio.

    Args:
        full_scale_dbm: radiated power of a tone that fills the converter at 0 dB gain.
        chain: all that the radio does to its signal.
        shape: the part of it that does not depend on time.
        carrier_hz: to which the oscillator's offset refers.
        level: what its gain is off.
    """

    def __init__(
        self,
        full_scale_dbm: float,
        *,
        chain: TransmitChain | None = None,
        shape: TransmitChain | None = None,
        carrier_hz: float = 0.0,
        level: LevelError | None = None,
    ) -> None:
        self.full_scale_w = dbm_to_w(full_scale_dbm)
        self._chain, self._shape, self._level = chain, shape, level
        self.offset_hz = chain.crystal.offset * carrier_hz if chain else 0.0
        """Of the oscillator, at time 0."""
        self.drift_hz_s = chain.crystal.drift_s * carrier_hz if chain else 0.0
        """Of the oscillator."""

    @classmethod
    def of_node(cls, bench: BenchSpec, node: str, seed: int) -> TransmitPath:
        """A node's, with the impairments of the bench.

        Args:
            bench: the bench.
            node: its name.
            seed: of the transmit chain.

        Returns:
            its path.

        Raises:
            StopIteration: a stranger.
        """
        index, board = next((index, board) for index, board in enumerate(bench.boards) if board.name == node)
        limit_w = min(dbm_to_w(board.max_power_dbm), dbm_to_w(bench.limits.max_power_dbm))
        full_scale_dbm = board.radio.tx_full_scale_dbm
        if full_scale_dbm is None:
            full_scale_dbm = board.max_power_dbm + _HEADROOM_DB
        everything = _bench_with(bench, dac_bits=None)
        steady = {"oscillator_ppm": 0.0, "drift_ppm_s": 0.0, "start_offset_s": 0.0, "phase_noise_deg": 0.0}
        timeless = _bench_with(bench, dac_bits=None, phase_jumps="never", start_jitter_s=0.0, **steady)
        return cls(
            full_scale_dbm,
            chain=TransmitChain(everything, node_index=index, seed=seed, max_power_w=limit_w),
            shape=TransmitChain(timeless, node_index=index, seed=seed, max_power_w=limit_w),
            carrier_hz=bench.carrier_hz,
            level=LevelError.of_node(bench, index, seed),
        )

    def amplitude(self, gain_db: float) -> float:
        """Square-root watts that a full-scale code radiates at this gain."""
        return math.sqrt(self.power_w(1.0, gain_db))

    def burst(self, codes: np.ndarray, gain_db: float, at_s: float, num_tunings: int) -> tuple[np.ndarray, float]:
        """One burst, all effects included.

        Args:
            codes: I and Q, shape [num_samples, 2], int16.
            gain_db: of the attenuator, 0 or below.
            at_s: instant of the first sample.
            num_tunings: writes of the synthesiser's frequency before it.

        Returns:
            square-root watts at the antenna, shape [num_radiated], complex64, and the instant of the first.
        """
        samples = self._converted(codes, gain_db)
        if self._chain is None or gain_db < _FAINT_DB:
            return samples, at_s
        return self._chain.radiate(samples, at_s, num_tunings)

    def steady(self, codes: np.ndarray, gain_db: float) -> np.ndarray:
        """A waveform as it leaves the amplifier, shape [num_samples], complex64; without start and oscillator."""
        samples = self._converted(codes, gain_db)
        if self._shape is None or gain_db < _FAINT_DB:
            return samples
        return self._shape.radiate(samples, 0.0, 0)[0]

    def start(self, at_s: float, num_tunings: int) -> tuple[float, complex]:
        """By how many seconds a waveform is late that was ordered for this instant, and its synthesiser's phase."""
        if self._chain is None:
            return 0.0, 1.0
        phase_rad = self._chain.jump_rad(at_s, num_tunings)
        return self._chain.delay_s(at_s), complex(math.cos(phase_rad), math.sin(phase_rad))

    def power_w(self, mean_square: float, gain_db: float) -> float:
        """Radiated power of codes with this mean square, relative to full scale squared."""
        gain = from_db(gain_db)
        error = 1.0 if self._level is None else self._level.ratio(gain)
        return mean_square * self.full_scale_w * gain * error

    def _converted(self, codes: np.ndarray, gain_db: float) -> np.ndarray:
        samples = ((codes >> _UNUSED_BITS) << _UNUSED_BITS).astype(np.float32).view(np.complex64)[:, 0]
        samples *= np.float32(self.amplitude(gain_db) / FULL_SCALE_TX)
        return samples


def tone_codes(settings: Sequence[Tone], window: Window) -> np.ndarray:
    """What a direct digital synthesiser plays, as codes.

    I = sum_(k = 1, 2) s_k sin(2 pi f_k t + phi_k),   Q = sum_(k = 3, 4) of the same

    Args:
        settings: of the four tones.
        window: when.

    Returns:
        shape [window.count, 2], int16.
    """
    since = window.first + np.arange(window.count)
    branches = np.zeros((window.count, 2))
    for index, (frequency_hz, scale, phase_rad, enabled) in enumerate(settings):
        if enabled and scale > 0:
            # whole turns go while the numbers are exact
            turns = np.fmod(frequency_hz * window.origin_s, 1.0) + np.fmod(since * (frequency_hz / window.rate_hz), 1.0)
            branches[:, index // 2] += scale * np.sin(2 * np.pi * turns + phase_rad)
    return np.rint(np.clip(branches * FULL_SCALE_TX, -FULL_SCALE_TX, FULL_SCALE_TX - 1)).astype(np.int16)


def _bench_with(bench: BenchSpec, *, start_jitter_s: float | None = None, **impairments: object) -> BenchSpec:
    """The bench with other impairments."""
    own = bench.world.impairments.model_copy(update=impairments)
    world = bench.world.model_copy(update={"impairments": own})
    radio = bench.radio
    if start_jitter_s is not None:
        radio = radio.model_copy(update={"start_jitter_s": start_jitter_s})
    return bench.model_copy(update={"world": world, "radio": radio})
