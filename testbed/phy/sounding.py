"""Soundings: a node's preamble and pilots alone on the air, and the channel that a receiver learns from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm, preamble
from testbed.phy.estimate import (
    delay_response,
    estimate_channel,
    estimate_delay,
    estimate_rotation,
    pilot_symbols,
    within_prefix,
)
from testbed.phy.segment import block_elements


@dataclass(frozen=True)
class Heard:
    """What one sounding says of a node's channel.

    Attributes:
        channel: least-squares estimate of the flat channel, shape [num_antennas], complex128.
        response: channel on every active subcarrier, shape [num_antennas, num_active], complex64; a delay after the
            nominal start is part of it as a linear phase, as long as it is at most a quarter of the prefix; with a
            larger one the response refers to the start that was found.
        noise_w: noise power of one symbol and antenna.
        lag: elements after nominal; at level symbols from the slope of `response`.
        cfo: carrier offset, cycles per sample.
        centre: middle of the pilots' FFT windows, elements after the nominal start: the instant for which the phases of
            `channel` and `response` hold.
    """

    channel: np.ndarray
    response: np.ndarray
    noise_w: float
    lag: float
    cfo: float
    centre: float


def length(num_pilots: int, waveform: WaveformSpec) -> int:
    """Elements of a sounding: one block of preamble, then the pilot blocks."""
    return (1 + num_pilots) * block_elements(waveform)


def build(num_pilots: int, waveform: WaveformSpec, power_w: float) -> np.ndarray:
    """The short-training block and the pilot blocks of a sounding; at level symbols one more pilot block instead.

    Args:
        num_pilots: pilot blocks, at least 2.
        waveform: numerology.
        power_w: average transmit power.

    Returns:
        shape [length(num_pilots)], complex64.

    Raises:
        ValueError: too few pilots, a power that is not positive, or a waveform that carries no preamble.
    """
    _check(num_pilots, power_w)
    amplitude = np.float32(math.sqrt(power_w))
    if waveform.level == "symbols":
        return amplitude * pilot_symbols(1 + num_pilots, waveform)
    symbols = np.concatenate([preamble.short_symbols(waveform), pilot_symbols(num_pilots, waveform)])
    return ofdm.modulate(amplitude * symbols, waveform)


def read(
    samples: np.ndarray,
    waveform: WaveformSpec,
    num_pilots: int,
    power_w: float,
    *,
    start: int,
    guard: int,
    correct_cfo: bool,
) -> Heard | None:
    """Estimate the channel of the node that sounded.

    H_n[k] = sum_b y_nb[k] p*[k] / (sqrt(P) B), then the part of it that is `within_prefix`
    noise = sum_nbk |y_nb[k] - sqrt(P) H_n[k] p[k]|^2 / (N K (B - 1))

    The noise is what differs from block to block, so a channel that varies in frequency does not add to it. Where the
    start was looked for, its delay is taken out before the flat `channel` is estimated; where timing is scheduled, the
    flat channel is the one seen from the nominal start.

    Args:
        samples: shape [num_antennas, num_elements].
        waveform: numerology.
        num_pilots: pilot blocks B that were sent, at least 2.
        power_w: average transmit power P.
        start: nominal index of the first element.
        guard: the sounding may begin this many samples earlier or later; 0 takes timing as scheduled. At level symbols
            the blocks always are where they are scheduled, and only their delay is looked for.
        correct_cfo: estimate the carrier offset and take it out; otherwise it is 0.

    Returns:
        the estimates, or None where nothing was found.

    Raises:
        ValueError: a shape is wrong, a scheduled sounding lies outside the capture, an argument is out of range, or a
            sample is not finite.
    """
    _check(num_pilots, power_w)
    samples = np.asarray(samples)
    if samples.ndim != 2 or not len(samples) or guard < 0:
        raise ValueError(f"no sounding in samples of shape {samples.shape} with guard = {guard}")
    if not np.all(np.isfinite(samples)):
        raise ValueError("the capture has samples that are not finite")
    whole = length(num_pilots, waveform)
    used, arrival = start, None
    searched = guard > 0 and waveform.level == "samples"
    if searched:
        arrival = preamble.search(samples, waveform, start - guard, min(start + guard, samples.shape[-1] - whole))
        if arrival is None:
            return None
        near = abs(arrival.start - start) <= ofdm.window_advance(waveform)
        used = start if near and start >= 0 else arrival.start
    if used < 0 or used + whole > samples.shape[-1]:
        if searched:
            return None
        raise ValueError(f"elements {used} to {used + whole} of the sounding lie outside {samples.shape[-1]} elements")
    if waveform.level == "symbols":
        return _read_symbols(
            samples[:, used : used + whole], waveform, num_pilots, power_w, correct_cfo, flat_delay=guard > 0
        )
    cfo = 0.0
    if correct_cfo:
        cfo = preamble.estimate_cfo(samples, start, waveform) if arrival is None else arrival.cfo
    blocks, cfo, centre = _blocks(samples, waveform, num_pilots, used, cfo, correct_cfo)
    return _heard(blocks, waveform, power_w, used - start, cfo, centre - start, flat_delay=searched)


def _check(num_pilots: int, power_w: float) -> None:
    if num_pilots < 2 or not 0 < power_w < math.inf:
        raise ValueError(f"no sounding of {num_pilots} pilots and {power_w:g} W; give 2 or more and a positive power")


def _blocks(
    samples: np.ndarray, waveform: WaveformSpec, num_pilots: int, used: int, cfo: float, correct_cfo: bool
) -> tuple[np.ndarray, float, float]:
    """Pilot blocks [num_antennas, num_pilots, num_active] turned to one instant, carrier offset, and that instant."""
    block, advance = preamble.block_length(waveform), ofdm.window_advance(waveform)
    starts = used + block * np.arange(1, num_pilots + 1)
    centre = float(starts.mean()) + waveform.cyclic_prefix - advance + (waveform.num_subcarriers - 1) / 2
    blocks = ofdm.demodulate_at(samples, starts, waveform, advance=advance, cfo=cfo)
    if correct_cfo:
        left = estimate_rotation(blocks)
        # what the pilots still turn, relative to the middle block, [num_pilots]
        turn = np.exp(-1j * left * (np.arange(num_pilots) - (num_pilots - 1) / 2))
        blocks = blocks * (turn * np.exp(2j * np.pi * (cfo * centre % 1.0))).astype(np.complex64)[:, None]
        cfo += left / (2 * np.pi * block)
    return blocks, cfo, centre


def _heard(
    blocks: np.ndarray,
    waveform: WaveformSpec,
    power_w: float,
    moved: int,
    cfo: float,
    centre: float,
    *,
    flat_delay: bool,
) -> Heard:
    num_pilots = blocks.shape[1]
    pilots = pilot_symbols(1, waveform)
    mean = blocks.mean(axis=1)
    response = within_prefix(mean * pilots.conj() / np.float32(math.sqrt(power_w)), waveform)
    residual = blocks - mean[:, None]
    noise_w = float(np.vdot(residual, residual).real) / (mean.size * (num_pilots - 1))
    lag = float(estimate_delay(response, waveform, limit=max(waveform.cyclic_prefix, 1)))
    straight = blocks * delay_response(lag, waveform).conj() if flat_delay else blocks
    channel, _ = estimate_channel(straight.reshape(len(blocks), -1), np.tile(pilots, num_pilots), power_w)
    return Heard(channel, response, noise_w, moved + lag, cfo, centre)


def _read_symbols(
    elements: np.ndarray,
    waveform: WaveformSpec,
    num_pilots: int,
    power_w: float,
    correct_cfo: bool,
    *,
    flat_delay: bool,
) -> Heard:
    """Without OFDM a delay is a phase over the subcarriers, and a carrier offset turns one block against the next."""
    blocks = elements.reshape(len(elements), 1 + num_pilots, waveform.num_active)[:, 1:].astype(np.complex64)
    turn = estimate_rotation(blocks) if correct_cfo else 0.0
    # relative to the middle block, [num_pilots]
    turned = np.exp(-1j * turn * (np.arange(num_pilots) - (num_pilots - 1) / 2)).astype(np.complex64)
    centre = (1 + num_pilots) / 2 * waveform.num_active + ofdm.body_middle(waveform)
    heard = _heard(blocks * turned[:, None], waveform, power_w, 0, 0.0, centre, flat_delay=flat_delay)
    block = preamble.block_length(waveform)
    # a delay is measured in samples
    lag = heard.lag * block_elements(waveform) / block
    return Heard(heard.channel, heard.response, heard.noise_w, lag, turn / (2 * np.pi * block), centre)
