"""Where an amplifier's output falls behind: a pulse that runs through all amplitudes, and what is read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from testbed.phy.combs import burst_start, fit_comb, turning

_EXPONENT = 8
"""Of the pulse: its peak lies 12.3 dB above its mean, and a quarter of it within 20 dB of the peak."""
_PLACE = 0.09  # of the sample rate: where the pulse's carrier lies, off DC and off its own image
_BLOCK = 32
_FALL = 10 ** (-1 / 10)  # one decibel
_STRONG = 5.0  # standard deviations of the noise above which blocks count
PEAK_OVER_MEAN = 2.0 * _EXPONENT + 1
"""Power of the pulse's peak over its mean."""


@dataclass(frozen=True)
class Compression:
    """What a pulse shows.

    Attributes:
        point_w: power at the amplifier's input, as ordered, at which the output is 1 dB short; if that lies beyond the
            pulse's peak, the peak.
        point_std_w: standard deviation; infinite where the point lies beyond the peak.
        tested_w: the pulse's peak.
        reached: whether the point lies below the peak.
        sent_w: powers of blocks, shape [num_blocks].
        gain: power gain of each block over that of small signals, shape [num_blocks].
        fitted: Rapp's law there, shape [num_blocks].
    """

    point_w: float
    point_std_w: float
    tested_w: float
    reached: bool
    sent_w: np.ndarray
    gain: np.ndarray
    fitted: np.ndarray


def pulse(num_samples: int, power_w: float) -> np.ndarray:
    """A carrier whose amplitude rises from nothing and falls again, a[n] = A (1 - |2 n / N - 1|)^8.

    Args:
        num_samples: N.
        power_w: average power, watts; the peak has `PEAK_OVER_MEAN` times as much.

    Returns:
        shape [num_samples], complex64.
    """
    shape = _envelope(num_samples)
    carrier = turning(np.array([_PLACE]), num_samples)[:, 0]
    return (math.sqrt(power_w / np.mean(np.square(shape))) * shape * carrier).astype(np.complex64)


def fit_compression(received: np.ndarray, power_w: float, *, num_samples: int, guard: int, limit: float) -> Compression:
    """The 1 dB compression point from one received pulse.

    |z| = c a / (1 + (a^2 / S)^p)^(1 / (2 p)) is fitted to the amplitudes of blocks; the point is
    S (10^(p / 10) - 1)^(1 / p). The pulse is symmetric, so a start that is off by a few samples cancels.

    Args:
        received: shape [num_antennas, guard + num_samples + guard or more].
        power_w: average power of the pulse that was sent.
        num_samples: of the pulse.
        guard: where it nominally begins; it may be as much earlier or later.
        limit: largest carrier offset, cycles in a sample.

    Returns:
        the point, and its standard deviation from how the blocks scatter.

    Raises:
        ValueError: the pulse is too weak to say anything.

    Reference:
        C. Rapp, "Effects of HPA-nonlinearity on a 4-DPSK/OFDM-signal for a digital sound broadcasting system", 1991.
    """
    core = num_samples // 4
    start = guard
    if guard > _BLOCK:
        start = max(burst_start(received, core) - (num_samples - core) // 2, 0)
    part = received[:, start : start + num_samples]
    usable = part.shape[-1] // _BLOCK * _BLOCK
    offset = fit_comb(part, np.array([_PLACE]), limit=limit).offset
    turned = part[:, :usable] * turning(np.array([-_PLACE - offset]), usable)[:, 0]
    # [num_antennas, num_blocks]
    blocks = turned.reshape(len(part), -1, _BLOCK)
    means = blocks.mean(axis=-1)
    noise_w = float(np.mean(np.square(np.abs(blocks - means[..., None])).sum(axis=0)[_quiet(usable)])) / _BLOCK
    heard = np.sqrt(np.maximum(np.square(np.abs(means)).sum(axis=0) - noise_w, 0.0))
    sent = _amplitudes(num_samples, usable, power_w)
    strong = heard > _STRONG * math.sqrt(noise_w)
    if np.count_nonzero(strong) < 16:
        raise ValueError("the pulse is too weak")
    return _fitted(sent[strong], heard[strong], power_w)


def _fitted(sent: np.ndarray, heard: np.ndarray, power_w: float) -> Compression:
    tested_w = power_w * PEAK_OVER_MEAN

    def law(parameters: np.ndarray) -> np.ndarray:
        gain, saturation_w, smoothness = np.exp(parameters)
        fall: np.ndarray = gain * sent / (1 + (sent**2 / saturation_w) ** smoothness) ** (0.5 / smoothness)
        return fall

    small = sent**2 < tested_w / 30
    scale = float(np.median((heard / sent)[small] if small.any() else heard / sent))
    best = None
    for guess in (0.3, 3.0):
        found = least_squares(
            lambda parameters: law(parameters) / scale - heard / scale,
            np.array([math.log(scale), math.log(guess * tested_w), math.log(2.0)]),
            bounds=(
                [math.log(scale) - 2, math.log(tested_w / 300), math.log(0.5)],
                [math.log(scale) + 2, math.log(tested_w * 300), math.log(12.0)],
            ),
        )
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    point_w = _point(best.x)
    variance = 2 * best.cost / max(len(sent) - 3, 1)
    slopes = np.array([(math.log(_point(best.x + step)) - math.log(point_w)) / 1e-5 for step in 1e-5 * np.eye(3)])
    curvature = best.jac.T @ best.jac
    std = point_w * math.sqrt(max(variance * float(slopes @ np.linalg.pinv(curvature) @ slopes), 0.0))
    reached = point_w <= tested_w
    gain = np.exp(best.x[0])
    return Compression(
        point_w=point_w if reached else tested_w,
        point_std_w=std if reached else math.inf,
        tested_w=tested_w,
        reached=reached,
        sent_w=sent**2,
        gain=(heard / sent / gain) ** 2,
        fitted=(law(best.x) / sent / gain) ** 2,
    )


def _point(parameters: np.ndarray) -> float:
    """The 1 dB compression point of Rapp's law."""
    _, saturation_w, smoothness = np.exp(parameters)
    return float(saturation_w * (_FALL**-smoothness - 1) ** (1 / smoothness))


def _envelope(num_samples: int) -> np.ndarray:
    middle = (num_samples - 1) / 2
    shape: np.ndarray = (1 - np.abs(np.arange(num_samples) - middle) / (middle + 1)) ** _EXPONENT
    return shape


def _amplitudes(num_samples: int, usable: int, power_w: float) -> np.ndarray:
    """Mean amplitude of each block as sent, shape [num_blocks]."""
    shape = _envelope(num_samples)
    blocks = shape[:usable].reshape(-1, _BLOCK).mean(axis=-1)
    amplitudes: np.ndarray = math.sqrt(power_w / np.mean(np.square(shape))) * blocks
    return amplitudes


def _quiet(usable: int) -> np.ndarray:
    """The first eighth and the last of the blocks, where next to nothing is sent."""
    count = usable // _BLOCK
    edge = max(count // 8, 1)
    return np.r_[:edge, count - edge : count]
