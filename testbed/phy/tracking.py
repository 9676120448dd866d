"""What all pilots of a combined segment have in common: phase, slow turn, delay. It is taken out; amplitude is not.

The pilots' sum through aligned nodes is one real amplitude on every subcarrier. A phase is estimated at every pilot
block, unwrapped and interpolated between them; a delay once for every frame; the rate at which the delay drifts, as two
sampling clocks do, once for the segment. Few parameters from many pilots: with the default waveform they add less than
1 % of the noise to the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from testbed.core.bench import WaveformSpec
from testbed.phy.estimate import delay_response, estimate_delay

# A delay drifts by less than this, in samples, between the pilot blocks of one frame.
LARGEST_DRIFT = 4.0
# Carrier offsets this many standard deviations from zero, or fewer, are taken for zero.
SIGNIFICANT = 3.5
# The turn after the last pilot block follows the line through this many pilot blocks.
TAIL_KNOTS = 4


@dataclass(frozen=True)
class Pilots:
    """Known blocks of a segment as they were received, over what was sent.

    Attributes:
        response: y p*, shape [num_blocks, num_active], complex64.
        frame: of each block, shape [num_blocks].
        short: which blocks are short-training blocks, shape [num_blocks].
        element: first element of each block, shape [num_blocks].
    """

    response: np.ndarray
    frame: np.ndarray
    short: np.ndarray
    element: np.ndarray


@dataclass(frozen=True)
class Track:
    """What is taken out of the data.

    Attributes:
        cfo: carrier offset that is left in the pilots, cycles per element.
        knots: elements at which the phase is known, shape [num_knots].
        phase: unwrapped phase there without the carrier offset's, radians, shape [num_knots].
        turn: of the phase after the last knot, radians per element.
        frames: frames with a delay, shape [num_found].
        lag: at each frame's first pilot block, samples, shape [num_found].
        origin: element of that pilot block, shape [num_found].
        drift: of the delay, samples per element.
        gain: mean amplitude of the pilots after the corrections, square-root watts.
        noise_w: noise power of one symbol.
    """

    cfo: float
    knots: np.ndarray
    phase: np.ndarray
    turn: float
    frames: np.ndarray
    lag: np.ndarray
    origin: np.ndarray
    drift: float
    gain: complex
    noise_w: float

    def delay_of(self, num_frames: int) -> np.ndarray:
        """Delay of every frame, 0 where it is unknown, shape [num_frames]."""
        delays = np.zeros(num_frames)
        delays[self.frames] = self.lag
        return delays


def follow(pilots: Pilots, waveform: WaveformSpec, cfo: float, *, correct: bool) -> Track:
    """Estimate what the known blocks have in common.

    y_b[k] p*[k] = A exp(j phi_b - j 2 pi k (d_f + r (t_b - t_f)) / num_subcarriers) + noise

    with the phase phi_b of every pilot block, the delay d_f of every frame and one drift r.

    Args:
        pilots: the segment's known blocks; every frame that appears brings its head.
        waveform: numerology.
        cfo: carrier offset that has been taken out of the blocks, cycles per element.
        correct: False measures gain and noise alone.

    Returns:
        the track.
    """
    # at level symbols a pilot block stands for the short-training block
    is_pilot = ~pilots.short if waveform.level == "samples" else np.ones(len(pilots.frame), bool)
    response, frame, element = pilots.response[is_pilot], pilots.frame[is_pilot], pilots.element[is_pilot]
    frames, first, member = np.unique(frame, return_index=True, return_inverse=True)
    second = first + 1
    noise_w, head = _pair(response[first], response[second])
    if not correct:
        gain = complex(response.mean(dtype=np.complex128))
        lag = np.zeros(len(frames))
        if waveform.level == "samples":
            lag = estimate_delay(head[:, None], waveform, limit=max(waveform.cyclic_prefix, 1))
        empty = np.zeros(0)
        return Track(0.0, empty, empty, 0.0, frames, lag, element[first], 0.0, gain, noise_w)
    origin = element[first]
    since = (element - origin[member]).astype(np.float64)
    lag, drift = np.zeros(len(frames)), 0.0
    if waveform.level == "samples":
        lag, drift = _delays(response, head, member, since, waveform)
    straight = _straighten(response, lag[member] + drift * since, waveform)
    opening = _opening(pilots, is_pilot, straight, first, lag, waveform)
    turn = _carrier(opening, straight[second], cfo, noise_w, waveform)
    # the head's two blocks make one knot of double weight
    keep = np.ones(len(frame), bool)
    keep[second] = False
    values, weights = straight.copy(), np.ones(len(frame))
    ahead = np.exp(-2j * np.pi * turn * (element[second] - element[first]))
    values[first], weights[first] = straight[first] + straight[second] * ahead, 2.0
    values, weights, knots = values[keep], weights[keep], element[keep].astype(np.float64)
    phase = np.unwrap(np.angle(values * np.exp(-2j * np.pi * (turn * knots % 1.0))))
    gain = complex(np.abs(values).sum() / (weights.sum() * waveform.num_active))
    tail = _slope(knots[-TAIL_KNOTS:], phase[-TAIL_KNOTS:], weights[-TAIL_KNOTS:])
    return Track(turn, knots, phase, tail, frames, lag, origin, drift, gain, noise_w)


def correction(track: Track, frame: np.ndarray, element: np.ndarray, waveform: WaveformSpec) -> np.ndarray:
    """Factor that takes the track out of data blocks.

    exp(-j phi_b + j 2 pi k (d_f + r (t_b - t_f)) / num_subcarriers), phi linear between the pilot blocks

    Args:
        track: what `follow` found.
        frame: of each block, one that the track knows, shape [num_blocks].
        element: first element of each block, shape [num_blocks].
        waveform: numerology.

    Returns:
        shape [num_blocks, num_active], or [num_blocks, 1] at level symbols, complex64.
    """
    at = np.asarray(element, dtype=np.float64)
    phase = np.interp(at, track.knots, track.phase) + track.turn * np.maximum(at - track.knots[-1], 0.0)
    # [num_blocks, 1]
    factor = np.exp(-1j * phase - 2j * np.pi * (track.cfo * at % 1.0)).astype(np.complex64)[:, None]
    if waveform.level == "symbols":
        return factor
    index = np.searchsorted(track.frames, frame)
    lag = track.lag[index] + track.drift * (at - track.origin[index])
    product: np.ndarray = factor * delay_response(lag, waveform).conj()
    return product


def _pair(early: np.ndarray, late: np.ndarray) -> tuple[float, np.ndarray]:
    """Noise from two blocks that differ in a phase and in noise, and their aligned sum [num_frames, num_active]."""
    turn = np.einsum("fk,fk->f", early.conj(), late)
    aligned = late * np.exp(-1j * np.angle(turn)).astype(np.complex64)[:, None]
    # one phase of each pair is fitted: half of a complex degree of freedom
    freedom = 2 * len(early) * (early.shape[-1] - 0.5)
    difference = early - aligned
    return float(np.vdot(difference, difference).real) / freedom, early + aligned


def _straighten(response: np.ndarray, lag: np.ndarray, waveform: WaveformSpec) -> np.ndarray:
    """Sum over the subcarriers without the delay, shape [num_blocks], complex128."""
    if waveform.level == "symbols":
        return response.sum(axis=-1, dtype=np.complex128)
    return np.einsum("bk,bk->b", response, delay_response(lag, waveform).conj(), dtype=np.complex128)


def _delays(
    response: np.ndarray, head: np.ndarray, member: np.ndarray, since: np.ndarray, waveform: WaveformSpec
) -> tuple[np.ndarray, float]:
    """Delay of each frame at its first pilot block, and the drift that all frames share."""
    limit = max(waveform.cyclic_prefix, 1)
    coarse = estimate_delay(head[:, None], waveform, limit=limit)
    later = np.flatnonzero(since > 1.5 * (waveform.num_subcarriers + waveform.cyclic_prefix))
    if not len(later):
        return coarse, 0.0
    turned = response[later] * delay_response(coarse[member[later]], waveform).conj()
    moved = estimate_delay(turned[:, None], waveform, limit=LARGEST_DRIFT)
    # the head is measured at delay 0 with the weight of two blocks, midway between them
    half_block = 0.5 * (waveform.num_subcarriers + waveform.cyclic_prefix)
    count = 2.0 + np.bincount(member[later], minlength=len(head))
    mean_time = (2 * half_block + np.bincount(member[later], since[later], minlength=len(head))) / count
    mean_move = np.bincount(member[later], moved, minlength=len(head)) / count
    time, move = since[later] - mean_time[member[later]], moved - mean_move[member[later]]
    covariance = float(time @ move) + 2 * float((half_block - mean_time) @ -mean_move)
    variance = float(time @ time) + 2 * float(np.sum((half_block - mean_time) ** 2))
    drift = covariance / variance
    return coarse + mean_move - drift * mean_time, drift


def _opening(
    pilots: Pilots,
    is_pilot: np.ndarray,
    straight: np.ndarray,
    first: np.ndarray,
    lag: np.ndarray,
    waveform: WaveformSpec,
) -> np.ndarray:
    """Sum of each frame's first block, the one before the two pilot blocks of the head, shape [num_frames]."""
    if waveform.level == "symbols":
        return straight[first]
    return _straighten(pilots.response[~is_pilot], lag, waveform)


def _carrier(opening: np.ndarray, closing: np.ndarray, cfo: float, noise_w: float, waveform: WaveformSpec) -> float:
    """Carrier offset that is left between the first and the last block of the heads, cycles per element."""
    if waveform.level == "symbols":
        distance, active = waveform.num_active, waveform.num_active
    else:
        distance, active = 2 * (waveform.num_subcarriers + waveform.cyclic_prefix), waveform.num_active
    turn = np.vdot(opening, closing)
    left = float(np.angle(turn)) / (2 * np.pi * distance)
    # the variance of the difference of two phases, each noise / (2 power) over `num_active` symbols and all frames
    power_w = max(float(np.abs(turn)), float(np.finfo(np.float32).tiny))
    deviation = math.sqrt(noise_w * active / power_w) / (2 * np.pi * distance)
    return -cfo if abs(left + cfo) < SIGNIFICANT * deviation else left


def _slope(knots: np.ndarray, phase: np.ndarray, weights: np.ndarray) -> float:
    """Slope of the weighted line through the knots; 0 where there are fewer than three."""
    if len(knots) < 3:
        return 0.0
    total = weights.sum()
    time, value = knots - weights @ knots / total, phase - weights @ phase / total
    return float((weights * time) @ value / ((weights * time) @ time))
