"""Square-root watts to converter codes and back, and what an AD936x may be ordered to do.

A radio's gains are fixed for a run, so one number a direction turns samples into codes: transmit attenuation is chosen
once so that full scale lies `HEADROOM_DB` above the node's power limit, where peaks of OFDM fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from drivers.pluto_port import FULL_SCALE_RX, FULL_SCALE_TX, MUTED_DB, PlutoSettings
from testbed.core.bench import BenchSpec, NodeSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import ConfigError, LimitError, RadioFault
from testbed.core.hardware import PlutoSpec
from testbed.core.units import dbm_to_w, w_to_dbm

HEADROOM_DB = 13.0
"""Full scale of the transmit converter above the highest average power."""
STEP_DB = 0.25
"""Step of the transmit attenuation."""
PLUTO_FULL_SCALE_DBM = 7.0
"""The most that is known of a PlutoSDR at 0 dB attenuation, whatever its frequency."""
MOST_ATTENUATION_DB = -MUTED_DB - STEP_DB
"""The largest attenuation that is no mute."""
CLIPPED_SHARE = 1e-3
"""Codes of a capture that may lie at the rails, and of a burst beyond them."""

_WIDEST_HZ = 40_000_000  # rf_bandwidth of the transmitter; the receiver's goes to 56 MHz
_DAC_CODES = 2_048  # the twelve most significant bits of a code count
_DAC_STEP = FULL_SCALE_TX // _DAC_CODES


@dataclass(frozen=True)
class TransmitScale:
    """How a node's samples become codes.

    Attributes:
        node: whose they are, for messages.
        limit_w: highest average power.
        gain_db: the output channels' `hardwaregain`, 0 or less.
        full_scale_w: power of a tone that fills the converter at that gain.
    """

    node: str
    limit_w: float
    gain_db: float
    full_scale_w: float

    @classmethod
    def of(cls, bench: BenchSpec, board: NodeSpec, *, full_scale_dbm: float = PLUTO_FULL_SCALE_DBM) -> TransmitScale:
        """The attenuation, in steps of 0.25 dB, that puts full scale least above the headroom over the node's limit.

        Args:
            bench: its limits hold as well as the node's.
            board: the node.
            full_scale_dbm: radiated at 0 dB attenuation, where the node's radio does not say.

        Raises:
            ConfigError: full scale at 0 dB attenuation is too weak for the headroom, or too strong for the attenuator.
        """
        radio_dbm = board.radio.tx_full_scale_dbm
        if radio_dbm is None:
            radio_dbm = full_scale_dbm
        limit_dbm = min(board.max_power_dbm, bench.limits.max_power_dbm)
        # a hair, so that an exact step stays that step in floating point
        steps = math.floor((radio_dbm - limit_dbm - HEADROOM_DB) / STEP_DB + 1e-6)
        attenuation_db = STEP_DB * steps
        if attenuation_db < 0:
            raise ConfigError(
                f"{board.name} radiates {radio_dbm:g} dBm at full scale, {radio_dbm - limit_dbm:g} dB above its limit "
                f"of {limit_dbm:g} dBm; peaks of OFDM need {HEADROOM_DB:g} dB",
                key="nodes.max_power_dbm",
                remedy=f"set max_power_dbm to at most {radio_dbm - HEADROOM_DB:g}, or, if the radio was measured or "
                "has an amplifier, nodes.radio.tx_full_scale_dbm",
            )
        if attenuation_db > MOST_ATTENUATION_DB:
            raise ConfigError(
                f"{board.name} radiates {radio_dbm:g} dBm at full scale and cannot be attenuated to {HEADROOM_DB:g} dB "
                f"above its limit of {limit_dbm:g} dBm: {attenuation_db:g} dB are needed, "
                f"it has {MOST_ATTENUATION_DB:g} dB",
                key="nodes.max_power_dbm",
                remedy="put an attenuator behind the radio and lower nodes.radio.tx_full_scale_dbm by its loss",
            )
        return cls(board.name, dbm_to_w(limit_dbm), 0.0 - attenuation_db, dbm_to_w(radio_dbm - attenuation_db))

    def at(self, gain: float) -> TransmitScale:
        """The scale at another transmit gain.

        Args:
            gain: power ratio, at most 1; rounded down to the chip's steps.

        Raises:
            LimitError: the attenuator has no such gain, or full scale would lie below the node's power limit.
        """
        if not 0 < gain <= 1:
            raise LimitError(f"{self.node}: a transmit gain of {gain:g}; it is above 0 and at most 1")
        gain_db = math.floor(10 * math.log10(gain) / STEP_DB + 1e-6) * STEP_DB
        if gain_db < -MOST_ATTENUATION_DB:
            raise LimitError(
                f"{self.node}: the attenuator ends at {MOST_ATTENUATION_DB:g} dB; {-gain_db:g} was ordered"
            )
        full_scale_w = self.full_scale_w * 10 ** ((gain_db - self.gain_db) / 10)
        return replace(self, gain_db=gain_db, full_scale_w=full_scale_w, limit_w=min(self.limit_w, full_scale_w))

    def codes(self, samples: np.ndarray) -> np.ndarray:
        """Transmit codes of a burst, rounded to the converter's twelve bits.

        code = 16 rint(2048 x / sqrt(full_scale_w)) on each branch

        Peaks of a thousandth of all branches may lie beyond full scale and are cut there, as the converter would wrap
        them to the other sign; the rarest peaks of an OFDM burst do.

        Args:
            samples: square-root watts, shape [num_samples], complex64.

        Returns:
            I and Q, shape [num_samples, 2], int16.

        Raises:
            LimitError: more than that is beyond full scale.
        """
        # [num_samples, 2]
        scaled = np.ascontiguousarray(samples).view(np.float32).reshape(-1, 2) * np.float32(
            _DAC_CODES / math.sqrt(self.full_scale_w)
        )
        np.rint(scaled, out=scaled)
        largest, least = float(scaled.max()), float(scaled.min())
        within = least >= -_DAC_CODES and largest <= _DAC_CODES
        if not within and (
            math.isnan(largest) or np.count_nonzero(np.abs(scaled) > _DAC_CODES) > CLIPPED_SHARE * scaled.size
        ):
            peak_w = self.full_scale_w * (max(largest, -least) / _DAC_CODES) ** 2
            raise LimitError(
                f"{self.node}: a sample of {w_to_dbm(peak_w):.2f} dBm is beyond the transmit converter's full scale of "
                f"{w_to_dbm(self.full_scale_w):.2f} dBm",
                remedy=f"bursts have {HEADROOM_DB:g} dB for their peaks above max_power_dbm; order less power",
            )
        # the top code is one step below full scale
        np.clip(scaled, -_DAC_CODES, _DAC_CODES - 1, out=scaled)
        codes = scaled.astype(np.int16)
        codes *= _DAC_STEP
        return codes


def receive_scale(radio: PlutoSpec) -> float:
    """Square-root watts of a receive code of 1: sqrt(P) / 2048, P = rx_full_scale_dbm - gain_db in watts."""
    return math.sqrt(dbm_to_w(radio.rx_full_scale_dbm - radio.gain_db)) / FULL_SCALE_RX


def received(codes: np.ndarray, scale: float, out: np.ndarray) -> None:
    """Turn receive codes into square-root watts.

    Args:
        codes: shape [num_samples, 2 num_channels], int16.
        scale: see `receive_scale`.
        out: gets the samples, shape [num_channels, num_samples], complex64.
    """
    num_channels, num_samples = out.shape
    # [num_channels, num_samples, 2] on both sides
    branches = codes.reshape(num_samples, num_channels, 2).transpose(1, 0, 2)
    for row, branch in zip(out, branches, strict=True):
        np.multiply(branch, np.float32(scale), out=row.view(np.float32).reshape(num_samples, 2))


def check_codes(codes: np.ndarray, radio: PlutoSpec, name: str) -> None:
    """Refuse a capture whose codes say nothing about what was received.

    Args:
        codes: shape [num_samples, 2 num_channels], int16.
        radio: which received them.
        name: of the radio, for messages.

    Raises:
        RadioFault: more than a thousandth of the codes clip, or there are codes that twelve bits cannot hold.
    """
    highest, lowest = int(codes.max()), int(codes.min())
    if highest >= FULL_SCALE_RX or lowest < -FULL_SCALE_RX:
        raise RadioFault(
            f"{name} delivered codes from {lowest} to {highest}; its converter has twelve bits",
            remedy="something else than samples came: check that no other program uses this radio, and restart it",
        )
    if highest < FULL_SCALE_RX - 1 and lowest > -FULL_SCALE_RX:
        return
    share = (np.count_nonzero(codes == FULL_SCALE_RX - 1) + np.count_nonzero(codes == -FULL_SCALE_RX)) / codes.size
    if share > CLIPPED_SHARE:
        raise RadioFault(
            f"{name} clips: {100 * share:.3g} % of its codes lie at the rails with gain_db = {radio.gain_db:g}, where "
            f"{radio.rx_full_scale_dbm - radio.gain_db:g} dBm fill the converter",
            remedy="lower gain_db of this radio in array.radios, or the nodes' power",
        )


def pluto_capabilities(
    bench: BenchSpec, flags: Mapping[str, bool], *, num_antennas: int, max_power_w: float
) -> Capabilities:
    """Capabilities of one radio.

    Args:
        bench: its limits and sample rate.
        flags: timed_tx, shared_clock, phase_coherent and full_duplex.
        num_antennas: receive channels; 0 for a transmitter.
        max_power_w: highest average transmit power; 0 for a receiver.
    """
    return Capabilities(
        timed_tx=flags["timed_tx"],
        shared_clock=flags["shared_clock"],
        phase_coherent=flags["phase_coherent"],
        full_duplex=flags["full_duplex"],
        num_antennas=num_antennas,
        max_power_w=max_power_w,
        frequencies_hz=bench.limits.frequencies_hz,
        sample_rate_hz=(bench.sample_rate_hz, bench.sample_rate_hz),
    )


def check_samples_level(bench: BenchSpec) -> None:
    """Refuse a bench whose waveform has no samples.

    Raises:
        ConfigError: names the key.
    """
    if bench.waveform.level != "samples":
        raise ConfigError(
            "real radios send samples, and level symbols has none",
            key="waveform.level",
            remedy='set waveform.level = "samples"; symbols are for backend sim',
        )


def settings_for(radio: PlutoSpec, frequency_hz: float, sample_rate_hz: float, *, tx_gain_db: float) -> PlutoSettings:
    """What to set: one carrier and one rate for both directions, analogue filters as wide as the rate or as they go."""
    return PlutoSettings(
        frequency_hz=round(frequency_hz),
        sample_rate_hz=round(sample_rate_hz),
        bandwidth_hz=min(round(sample_rate_hz), _WIDEST_HZ),
        rx_gain_db=radio.gain_db,
        tx_gain_db=tx_gain_db,
        xo_correction=radio.xo_correction,
    )


def changed(before: PlutoSettings, now: PlutoSettings) -> list[str]:
    """What differs between two readings, in words; empty where nothing does."""
    pairs = (
        ("frequency", before.frequency_hz, now.frequency_hz, "Hz"),
        ("sample rate", before.sample_rate_hz, now.sample_rate_hz, "Hz"),
        ("bandwidth", before.bandwidth_hz, now.bandwidth_hz, "Hz"),
        ("receive gain", before.rx_gain_db, now.rx_gain_db, "dB"),
        ("transmit gain", before.tx_gain_db, now.tx_gain_db, "dB"),
        ("xo_correction", before.xo_correction, now.xo_correction, "Hz"),
    )
    return [
        f"{name} {value:.12g} instead of {wanted:.12g} {unit}"
        for name, wanted, value, unit in pairs
        if wanted is not None and value is not None and abs(value - wanted) > 0.01
    ]
