"""Seconds and joules of sending and of computing."""

from __future__ import annotations


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
