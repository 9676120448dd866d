"""What all pilots of a combined segment have in common: phase, slow turn, delay. It is taken out; amplitude is not.

The pilots' sum through aligned nodes is one real amplitude on every subcarrier. A phase is estimated at every pilot
block, unwrapped and interpolated between them; a delay once for every frame; the rate at which the delay drifts, as two
sampling clocks do, once for the segment. Few parameters from many pilots: with the default waveform they add less than
1 % of the noise to the data. A frame counts by the power of its pilots, and not at all where they are absent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft

from testbed.core.bench import WaveformSpec
from testbed.phy.estimate import delay_response, estimate_delay
from testbed.phy.segment import block_elements

# A delay drifts by less than this, in samples, between the pilot blocks of one frame.
LARGEST_DRIFT = 4.0
# Carrier offsets this many standard deviations from zero, or fewer, are taken for zero.
SIGNIFICANT = 3.5
# The turn after the last pilot block follows the line through this many pilot blocks.
TAIL_KNOTS = 4
# Noise alone resembles a pilot by this many times its mean power, at any delay, with a probability below 1e-3.
CHANCE = 16.0
# Amplitudes over the reference: pilots above the first are present, pilots below the second are absent.
PRESENT, ABSENT = 1 / 2, 1 / 8
# A later pilot block is judged where it resembles a pilot by this many times more than noise does.
LATER = 5.0


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
    is_pilot = _is_pilot(pilots, waveform)
    response, frame, element = pilots.response[is_pilot], pilots.frame[is_pilot], pilots.element[is_pilot]
    frames, first, member = np.unique(frame, return_index=True, return_inverse=True)
    second = first + 1
    noise_w, head = _pair(response[first], response[second])
    if not correct:
        gain = complex(response.mean(dtype=np.complex128))
        lag = estimate_delay(head[:, None], waveform, limit=max(waveform.cyclic_prefix, 1))
        empty = np.zeros(0)
        return Track(0.0, empty, empty, 0.0, frames, lag, element[first], 0.0, gain, noise_w)
    origin = element[first]
    since = (element - origin[member]).astype(np.float64)
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
    # the variance of a phase falls with the power behind it
    power = np.square(np.abs(values)) / weights
    tail = _slope(knots[-TAIL_KNOTS:], phase[-TAIL_KNOTS:], power[-TAIL_KNOTS:])
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
        shape [num_blocks, num_active], complex64.
    """
    at = np.asarray(element, dtype=np.float64)
    phase = np.interp(at, track.knots, track.phase) + track.turn * np.maximum(at - track.knots[-1], 0.0)
    # [num_blocks, 1]
    factor = np.exp(-1j * phase - 2j * np.pi * (track.cfo * at % 1.0)).astype(np.complex64)[:, None]
    index = np.searchsorted(track.frames, frame)
    lag = track.lag[index] + track.drift * (at - track.origin[index])
    product: np.ndarray = factor * delay_response(lag, waveform).conj()
    return product


def absent(pilots: Pilots, waveform: WaveformSpec, reference: float) -> np.ndarray:
    """Frames whose pilots are not there: some resemble delayed pilots no better than noise does, or hardly.

    R(h) <= max(32 K sigma^2, (2 K A)^2 / 64)   or   R(r_b) <= 16 sum_k |r_b[k]|^2,
    R(r) = max_d |sum_k r[k] exp(j 2 pi k d / num_subcarriers)|^2

    with the head's two pilot blocks h = r_1 + r_2 turned to one phase, every later pilot block r_b, any delay d and K
    subcarriers. A head is judged where noise does not hide pilots of half the amplitude, K A^2 >= 32 sigma^2, a later
    block where the whole stands out, K A^2 >= 80 (A^2 + sigma^2): with 192 subcarriers from -7.8 and -1.5 dB a symbol
    on. A frame of amplitude A is taken for absent with a probability below 1e-6, one of half of it at -5 dB with
    one of 0.1, and one of noise for present with one below 1e-3.

    Args:
        pilots: the segment's known blocks; every frame that appears brings its head.
        waveform: numerology.
        reference: A, amplitude of the pilots where all nodes are aligned, square-root watts.

    Returns:
        the frames' numbers, shape [num_absent].
    """
    is_pilot, active = _is_pilot(pilots, waveform), waveform.num_active
    response = pilots.response[is_pilot]
    frames, first, member = np.unique(pilots.frame[is_pilot], return_index=True, return_inverse=True)
    noise_w, head = _pair(response[first], response[first + 1])
    missing = np.zeros(len(frames), bool)
    chance, full = CHANCE * 2 * active * noise_w, (2 * active * reference) ** 2
    if chance <= PRESENT**2 * full:
        missing |= _resemblance(head, waveform) <= max(chance, ABSENT**2 * full)
    later = np.ones(len(response), bool)
    later[first], later[first + 1] = False, False
    if LATER * CHANCE * (reference**2 + noise_w) <= active * reference**2:
        energy = np.einsum("bk,bk->b", response[later].conj(), response[later], dtype=np.complex128).real
        missing[member[later][_resemblance(response[later], waveform) <= CHANCE * energy]] = True
    gone: np.ndarray = frames[missing]
    return gone


def _resemblance(response: np.ndarray, waveform: WaveformSpec) -> np.ndarray:
    """Energy that a delay explains, the largest over a grid of half samples, shape [num_blocks]."""
    half, size = waveform.num_active // 2, 2 * waveform.num_subcarriers
    grid = np.zeros((len(response), size), np.complex64)
    grid[:, 1 : half + 1], grid[:, size - half :] = response[:, :half], response[:, half:]
    delayed = scipy.fft.ifft(grid, norm="forward", overwrite_x=True)
    largest: np.ndarray = np.square(np.abs(delayed).max(axis=-1).astype(np.float64))
    return largest


def _is_pilot(pilots: Pilots, waveform: WaveformSpec) -> np.ndarray:
    """Which blocks are pilot blocks; at level symbols one stands for the short-training block."""
    return np.ones(len(pilots.frame), bool) if waveform.level == "symbols" else ~pilots.short


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
    return np.einsum("bk,bk->b", response, delay_response(lag, waveform).conj(), dtype=np.complex128)


def _delays(
    response: np.ndarray, head: np.ndarray, member: np.ndarray, since: np.ndarray, waveform: WaveformSpec
) -> tuple[np.ndarray, float]:
    """Delay of each frame at its first pilot block, and the drift that all frames share."""
    limit, num_frames = max(waveform.cyclic_prefix, 1), len(head)
    coarse = estimate_delay(head[:, None], waveform, limit=limit)
    later = np.flatnonzero(since > 1.5 * block_elements(waveform))
    if not len(later):
        return coarse, 0.0
    owner = member[later]
    turned = response[later] * delay_response(coarse[owner], waveform).conj()
    moved = estimate_delay(turned[:, None], waveform, limit=LARGEST_DRIFT)
    # the variance of a delay falls with the power of its pilots: a head that is hardly there does not drive the drift
    weight = np.square(np.abs(_straighten(turned, moved, waveform)))
    weight += np.finfo(np.float32).eps * weight.max() + np.finfo(np.float32).tiny
    # the head is measured at delay 0 from two blocks, midway between them
    half_block = 0.5 * block_elements(waveform)
    head_weight = 0.5 * np.square(np.abs(_straighten(head, coarse, waveform)))
    total = head_weight + np.bincount(owner, weight, num_frames)
    mean_time = (head_weight * half_block + np.bincount(owner, weight * since[later], num_frames)) / total
    mean_move = np.bincount(owner, weight * moved, num_frames) / total
    time, move = since[later] - mean_time[owner], moved - mean_move[owner]
    head_time = half_block - mean_time
    covariance = float((weight * time) @ move) + float((head_weight * head_time) @ -mean_move)
    variance = float((weight * time) @ time) + float((head_weight * head_time) @ head_time)
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
    # at level symbols the head's first block is a pilot block and its second the last
    distance = block_elements(waveform) * (1 if waveform.level == "symbols" else 2)
    turn = np.vdot(opening, closing)
    left = float(np.angle(turn)) / (2 * np.pi * distance)
    # the variance of the difference of two phases, each noise / (2 power) over `num_active` symbols and all frames
    power_w = max(float(np.abs(turn)), float(np.finfo(np.float32).tiny))
    deviation = math.sqrt(noise_w * waveform.num_active / power_w) / (2 * np.pi * distance)
    return -cfo if abs(left + cfo) < SIGNIFICANT * deviation else left


def _slope(knots: np.ndarray, phase: np.ndarray, weights: np.ndarray) -> float:
    """Slope of the weighted line through the knots; 0 where there are fewer than three."""
    if len(knots) < 3:
        return 0.0
    total = weights.sum()
    time, value = knots - weights @ knots / total, phase - weights @ phase / total
    return float((weights * time) @ value / ((weights * time) @ time))
