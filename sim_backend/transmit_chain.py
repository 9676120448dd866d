"""From the samples a node computes to what its antenna radiates.

In order: converter, unequal branches, carrier leak, filter, amplifier; then the start and the clock of the burst; then
the oscillator. The receiver's oscillator is the reference of all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sim_backend.impairments import (
    PhaseNoise,
    add_image,
    quantise,
    rapp,
    rotation,
    stream,
    transmit_imbalance,
    turned,
)
from sim_backend.resample import HALF_TAPS, resampled
from testbed.core.bench import BenchSpec, WaveformSpec
from testbed.core.errors import LimitError
from testbed.core.units import dbm_to_w, from_db
from testbed.phy import ofdm

_CHUNK = 8192
_SCALE_TOLERANCE = 1e-6
_CRYSTAL, _START, _NOISE, _JUMP, _LEAK = range(5)  # keep the draws apart


@dataclass(frozen=True)
class Crystal:
    """One transmitter's reference, drawn once from the seed.

    Attributes:
        offset: of its frequency from the receiver's at time 0, a ratio.
        drift_s: change of the offset in a second.
        delay_s: fixed delay of every burst.
        leak_rad: phase of the carrier leak.
    """

    offset: float
    drift_s: float
    delay_s: float
    leak_rad: float

    @classmethod
    def draw(cls, bench: BenchSpec, node_index: int, seed: int) -> Crystal:
        """Normal offset, drift and delay with the standard deviations of [world.impairments]."""
        impairments = bench.world.impairments
        offset, drift, delay = stream(seed, _CRYSTAL, node_index).standard_normal(3)
        return cls(
            offset=1e-6 * impairments.oscillator_ppm * offset,
            drift_s=1e-6 * impairments.drift_ppm_s * drift,
            delay_s=impairments.start_offset_s * delay,
            leak_rad=stream(seed, _LEAK, node_index).uniform(0.0, 2 * math.pi),
        )


class TransmitChain:
    """One node's transmit chain: a function of seed, node, instant and the number of times it was tuned.

    Args:
        bench: waveform and impairments.
        node_index: of the node on the bench.
        seed: of the run.
        max_power_w: the node's highest average power, to which converter and leak refer.
        level: amplitude of what leaves the converter over what was ordered.
    """

    def __init__(self, bench: BenchSpec, *, node_index: int, seed: int, max_power_w: float, level: float = 1.0) -> None:
        self._impairments = bench.world.impairments
        self._waveform: WaveformSpec = bench.waveform
        self._jitter_s = bench.radio.start_jitter_s
        self._rate_hz, self._carrier_hz = bench.sample_rate_hz, bench.carrier_hz
        self._index, self._seed = node_index, seed
        self.crystal = Crystal.draw(bench, node_index, seed)
        own = self._impairments
        self._full_scale = math.sqrt(max_power_w * from_db(own.dac_headroom_db))
        leak_w = 0.0 if own.tx_dc_db is None else max_power_w * from_db(own.tx_dc_db)
        self._leak = np.complex64(math.sqrt(leak_w) * np.exp(1j * self.crystal.leak_rad))
        self._wanted, self._image = transmit_imbalance(
            math.sqrt(from_db(own.tx_iq_gain_db)), math.radians(own.tx_iq_phase_deg)
        )
        self._level = np.float32(level)
        self._shapes = (
            own.dac_bits is not None
            or level != 1.0
            or self._image != 0
            or own.tx_dc_db is not None
            or own.fir_loss_db > 0
            or own.pa_saturation_dbm is not None
        )
        self._is_off = own.oscillator_ppm > 0 or own.drift_ppm_s > 0
        self._wanders = own.phase_noise_deg > 0 or own.phase_jumps != "never"

    def radiate(
        self, samples: np.ndarray, at_s: float, num_tunings: int, late_s: float = 0.0
    ) -> tuple[np.ndarray, float]:
        """What leaves the antenna, sample by sample.

        Args:
            samples: shape [num_samples], complex64.
            at_s: instant of the first, as ordered.
            num_tunings: times that the frequency was written.
            late_s: how late the trigger came.

        Returns:
            samples on the receiver's grid, possibly more, and the instant of the first.

        Raises:
            LimitError: a sample is beyond the converter's full scale.
        """
        self._check_scale(samples)
        late, stretch = (late_s + self.delay_s(at_s)) * self._rate_hz, self._stretch(at_s)
        whole = math.floor(late)
        if self._shapes:
            samples = samples.copy()
            for start in range(0, samples.size, _CHUNK):
                self._shape(samples[start : start + _CHUNK])
        if late != whole or stretch != 0.0:
            samples = resampled(samples, fraction=late - whole, stretch=stretch)
            whole -= HALF_TAPS
        elif (self._is_off or self._wanders) and not self._shapes:
            samples = samples.copy()
        begin_s = at_s + whole / self._rate_hz
        synthesiser = _Synthesiser(self, at_s, num_tunings) if self._wanders else None
        for start in range(0, samples.size, _CHUNK):
            chunk = samples[start : start + _CHUNK]
            if self._is_off:
                chunk *= self._rotation(chunk.size, begin_s, self._rate_hz, start)
            if synthesiser is not None:
                chunk *= synthesiser.take(chunk.size)
        return samples, begin_s

    def radiate_symbols(self, symbols: np.ndarray, at_s: float, num_tunings: int, late_s: float = 0.0) -> np.ndarray:
        """What a receiver's FFT sees of a burst of OFDM symbols while every delay lies within the cyclic prefix.

        Converter, branches, leak, amplifier and phase noise act on the samples of each block, so what falls on other
        subcarriers is there. A delay is a phase over the subcarriers, X[a] exp(-j 2 pi f_a tau), with tau falling from
        block to block as the clock runs. A carrier offset is the phase at the middle of each block's body: who takes
        it out, takes it out inside the block as well, so the interference between carriers that it makes is not there.

        Args:
            symbols: in block order, shape [num_symbols], complex64.
            at_s: instant of the first block.
            num_tunings: times that the frequency was written.
            late_s: how late the trigger came.

        Returns:
            symbols, shape [num_symbols].

        Raises:
            LimitError: a sample is beyond the converter's full scale.
        """
        delay_s, stretch = late_s + self.delay_s(at_s), self._stretch(at_s)
        if not (self._shapes or self._wanders or self._is_off or delay_s != 0.0 or stretch != 0.0):
            return symbols
        wave = self._waveform
        step = max(1, _CHUNK // (wave.num_subcarriers + wave.cyclic_prefix)) * wave.num_active
        synthesiser = _Synthesiser(self, at_s, num_tunings) if self._wanders else None
        out = np.empty(symbols.size, np.complex64)
        for start in range(0, symbols.size, step):
            part = symbols[start : start + step]
            if self._shapes or synthesiser is not None:
                part = self._through_samples(part, synthesiser)
            num_blocks = ofdm.num_blocks(part.size, wave)
            # [num_blocks, num_active]
            phases = self._block_phases(start // wave.num_active, num_blocks, at_s, delay_s, stretch)
            out[start : start + step] = part * phases.reshape(-1)[: part.size]
        return out

    def delay_s(self, at_s: float) -> float:
        """How late a burst starts that was ordered for this instant: fixed delay and jitter."""
        if self._jitter_s == 0.0:
            return self.crystal.delay_s
        return self.crystal.delay_s + self._jitter_s * self.draw(_START, at_s).standard_normal()

    def draw(self, effect: int, at_s: float) -> np.random.Generator:
        """Random numbers of one effect on the burst of this instant, counted in nanoseconds."""
        return stream(self._seed, effect, self._index, round(at_s * 1e9))

    def jump_rad(self, at_s: float, num_tunings: int) -> float:
        """Phase that the synthesiser has taken by itself."""
        match self._impairments.phase_jumps:
            case "never":
                return 0.0
            case "tune":
                return stream(self._seed, _JUMP, self._index, num_tunings).uniform(0.0, 2 * math.pi)
            case _:
                return self.draw(_JUMP, at_s).uniform(0.0, 2 * math.pi)

    def phase_noise(self, at_s: float) -> PhaseNoise | None:
        """The synthesiser's noise during one burst."""
        if self._impairments.phase_noise_deg == 0.0:
            return None
        return PhaseNoise(
            math.radians(self._impairments.phase_noise_deg),
            corner_hz=self._impairments.phase_noise_hz,
            rate_hz=self._rate_hz,
            generator=self.draw(_NOISE, at_s),
        )

    def _through_samples(self, symbols: np.ndarray, synthesiser: _Synthesiser | None) -> np.ndarray:
        """What acts on the samples of whole blocks, shape [num_symbols]."""
        samples = ofdm.modulate(symbols, self._waveform)
        self._check_scale(samples)
        if self._shapes:
            self._shape(samples)
        if synthesiser is not None:
            samples *= synthesiser.take(samples.size)
        return ofdm.demodulate(samples, self._waveform, symbols.size)

    def _block_phases(self, first: int, num_blocks: int, at_s: float, delay_s: float, stretch: float) -> np.ndarray:
        """Start, clock and oscillator as one factor for each subcarrier of each block, [num_blocks, num_active]."""
        wave = self._waveform
        block = wave.num_subcarriers + wave.cyclic_prefix
        # [num_blocks]
        late_s = delay_s - stretch * (first + np.arange(num_blocks)) * (block / self._rate_hz)
        phases = turned(-2 * np.pi * np.multiply.outer(late_s, subcarriers_hz(wave, self._rate_hz)))
        if self._is_off:
            # the clock that runs fast sends a block earlier; the oscillator turns in the time of the run
            rate_hz = self._rate_hz * (1 + stretch)
            middle_s = at_s + delay_s + (wave.cyclic_prefix + (wave.num_subcarriers - 1) / 2) / rate_hz
            phases *= self._rotation(num_blocks, middle_s, rate_hz / block, first)[:, None]
        return phases

    def _rotation(self, num_samples: int, at_s: float, rate_hz: float, first: int) -> np.ndarray:
        """The oscillator's turning, shape [num_samples], complex64."""
        return rotation(
            num_samples,
            at_s=at_s,
            rate_hz=rate_hz,
            offset_hz=self.crystal.offset * self._carrier_hz,
            drift_hz_s=self.crystal.drift_s * self._carrier_hz,
            first=first,
        )

    def _stretch(self, at_s: float) -> float:
        """How much faster than the receiver's this clock runs during a burst."""
        return self.crystal.offset + self.crystal.drift_s * at_s if self._impairments.sampling_offset else 0.0

    def _check_scale(self, samples: np.ndarray) -> None:
        if self._impairments.dac_bits is None:
            return
        peak = float(np.max(np.abs(samples.view(np.float32))))
        if peak > self._full_scale * (1 + _SCALE_TOLERANCE):
            raise LimitError(
                f"a sample of {peak:.4g} is beyond the transmit converter's full scale of {self._full_scale:.4g} "
                "square-root watts",
                remedy="send with less power, or raise world.impairments.dac_headroom_db",
            )

    def _shape(self, chunk: np.ndarray) -> None:
        """Converter, branches, leak, filter, amplifier, in place."""
        own = self._impairments
        if own.dac_bits is not None:
            quantise(chunk, self._full_scale, own.dac_bits)
        if self._level != 1.0:
            chunk *= self._level
        if self._image != 0:
            add_image(chunk, self._wanted, self._image)
        if self._leak != 0:
            chunk += self._leak
        if own.fir_loss_db > 0:
            chunk *= np.float32(1 / math.sqrt(from_db(own.fir_loss_db)))
        if own.pa_saturation_dbm is not None:
            rapp(chunk, dbm_to_w(own.pa_saturation_dbm), own.pa_smoothness)


class _Synthesiser:
    """Phase noise and jump during one burst, chunk after chunk."""

    def __init__(self, chain: TransmitChain, at_s: float, num_tunings: int) -> None:
        self._noise = chain.phase_noise(at_s)
        self._jump = np.complex64(np.exp(1j * chain.jump_rad(at_s, num_tunings)))

    def take(self, num_samples: int) -> np.ndarray:
        """exp(j phase) of the next samples, shape [num_samples], complex64."""
        if self._noise is None:
            return np.full(num_samples, self._jump)
        return turned(self._noise.take(num_samples)) * self._jump


def subcarriers_hz(waveform: WaveformSpec, sample_rate_hz: float) -> np.ndarray:
    """Baseband frequencies of the active subcarriers in the order of `ofdm.modulate`, shape [num_active]."""
    half = waveform.num_active // 2
    bins = np.concatenate([np.arange(1, half + 1), np.arange(-half, 0)])
    return bins * (sample_rate_hz / waveform.num_subcarriers)
