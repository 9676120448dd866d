"""Seconds and joules of sending and of computing."""

from __future__ import annotations

from testbed.core.bench import WaveformSpec
from testbed.phy.ofdm import burst_length, num_symbols_of


def analogue_air_time_s(num_values: int, waveform: WaveformSpec, sample_rate_hz: float) -> float:
    """Duration of the burst that carries a vector as uncoded symbols, two values each.

    t = (num_subcarriers + cyclic_prefix) ceil(ceil(d / 2) / num_active) / f_s

    Args:
        num_values: length d of the vector.
        waveform: numerology.
        sample_rate_hz: f_s.

    Returns:
        seconds, the same for any number of nodes that send at once.
    """
    return burst_length(num_symbols_of(num_values), waveform) / sample_rate_hz


def pilot_air_time_s(num_pilots: int, waveform: WaveformSpec, sample_rate_hz: float) -> float:
    """Duration of one node's pilot burst.

    Args:
        num_pilots: OFDM blocks.
        waveform: numerology.
        sample_rate_hz: samples in a second.

    Returns:
        seconds.
    """
    return burst_length(num_pilots * waveform.num_active, waveform) / sample_rate_hz


def digital_air_time_s(num_bits: float, rate_bit_s: float) -> float:
    """Duration of a packet uplink.

    t = bits / R

    Args:
        num_bits: payload.
        rate_bit_s: R; positive.

    Returns:
        seconds.
    """
    return num_bits / rate_bit_s


def compute_seconds(num_tokens: float, cycles_per_token: float, cpu_hz: float) -> float:
    """Duration of training on so many tokens.

    t = C n / f

    Args:
        num_tokens: n.
        cycles_per_token: C.
        cpu_hz: f; positive.

    Returns:
        seconds.
    """
    return num_tokens * cycles_per_token / cpu_hz


def compute_joules(num_tokens: float, cycles_per_token: float, cpu_hz: float, kappa: float) -> float:
    """Energy of training on so many tokens.

    E = kappa C n f^2

    Args:
        num_tokens: n.
        cycles_per_token: C.
        cpu_hz: f.
        kappa: effective switched capacitance, J s^2 per cycle.

    Returns:
        joules.

    Reference:
        A. Chandrakasan et al., "Low-power CMOS digital design", IEEE J. Solid-State Circuits 1992.
    """
    return kappa * num_tokens * cycles_per_token * cpu_hz**2
