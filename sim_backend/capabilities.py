"""What the simulated radios can honestly do, and what they refuse."""

from __future__ import annotations

import math

from testbed.core.bench import BenchSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import ConfigError
from testbed.phy.coherence import radio_flags

_SAMPLES_ONLY = ("rx_iq_gain_db", "rx_iq_phase_deg", "rx_dc_dbm", "adc_bits", "stale_samples", "dropped_buffers")


def radio_capabilities(bench: BenchSpec, *, num_antennas: int, max_power_w: float) -> Capabilities:
    """Capabilities of one radio of a simulated bench.

    Args:
        bench: the bench.
        num_antennas: receive channels; 0 for a transmitter.
        max_power_w: highest average transmit power; 0 for a receiver.

    Returns:
        its capabilities; the flags are those of `testbed.phy.coherence.radio_flags`.
    """
    return Capabilities(
        **radio_flags(bench),
        num_antennas=num_antennas,
        max_power_w=max_power_w,
        frequencies_hz=bench.limits.frequencies_hz,
        sample_rate_hz=(bench.sample_rate_hz, bench.sample_rate_hz),
    )


def check_level(bench: BenchSpec) -> None:
    """Refuse impairments that cannot be had without samples where the waveform is simulated symbol by symbol.

    Receive converters, imbalance and buffers act on samples that level symbols does not form. Delays are phases over
    the subcarriers there, which holds within the cyclic prefix only, and carrier offsets are phases of whole blocks,
    which says nothing of offsets near the subcarriers' spacing.

    Raises:
        ConfigError: names the key.
    """
    if bench.waveform.level == "samples":
        return
    impairments = bench.world.impairments
    silent = type(impairments)()
    remedy = 'set waveform.level = "samples", or leave the key out'
    for key in _SAMPLES_ONLY:
        if getattr(impairments, key) != getattr(silent, key):
            raise ConfigError(
                'has no effect on symbols; level = "samples" is needed', key=f"world.impairments.{key}", remedy=remedy
            )
    if bench.world.jammer_dbm is not None:
        raise ConfigError(
            'has no effect on symbols; level = "samples" is needed', key="world.jammer_dbm", remedy=remedy
        )
    if impairments.agc == "block" and impairments.phase_flip_gain_db is not None:
        raise ConfigError(
            'depends on the power of samples with agc = "block"; level = "samples" is needed',
            key="world.impairments.phase_flip_gain_db",
            remedy=remedy,
        )
    spacing_hz = bench.sample_rate_hz / bench.waveform.num_subcarriers
    offset_hz = 3e-6 * impairments.oscillator_ppm * bench.carrier_hz
    if offset_hz > spacing_hz / 2:
        raise ConfigError(
            f"carriers are up to {offset_hz:.3g} Hz off, beyond half of the subcarriers' spacing of "
            f'{spacing_hz:.3g} Hz; level = "samples" is needed',
            key="world.impairments.oscillator_ppm",
            remedy=remedy,
        )
    prefix_s = bench.waveform.cyclic_prefix / bench.sample_rate_hz
    spread_s = 6 * math.hypot(bench.start_std_s, impairments.start_offset_s)
    if spread_s > prefix_s:
        later = impairments.start_offset_s > bench.radio.start_jitter_s
        raise ConfigError(
            f"bursts start up to {spread_s:.3g} s apart, beyond the cyclic prefix of {prefix_s:.3g} s; "
            'level = "samples" is needed',
            key="world.impairments.start_offset_s" if later else "radio.start_jitter_s",
            remedy='set waveform.level = "samples", or lengthen waveform.cyclic_prefix',
        )
