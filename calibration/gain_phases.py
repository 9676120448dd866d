"""By how much the phase turns from one receive gain to another, where phases hold from burst to burst."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from calibration.gain_levels import Level

_COHERENT = 0.3  # radians that phases of equal gains may scatter, for steps of the phase to be believed
_CHANCE = 1e-3
_TRIALS = 8


def phases_over_gains(swept: Sequence[Level], gains: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Phase at each gain, [num_antennas, num_gains], and how much it scatters; None where phases do not hold.

    The second sweep runs through the gains in the opposite order, so the times between equal gains all differ, and an
    oscillator's offset cannot pass for steps. Gains at which nothing was heard have the phase nan.
    """
    pairs = [[level for level in swept if float(level.step["rx_gain"]) == gain] for gain in gains]
    heard = np.array([len(pair) == 2 and all(np.isfinite(level.std).any() for level in pair) for pair in pairs])
    if not heard.any():
        return None
    chosen = [pair for pair, is_heard in zip(pairs, heard, strict=True) if is_heard]
    at_s = np.array([[level.at_s for level in pair] for pair in chosen])
    tones = np.array([[level.tones for level in pair] for pair in chosen])
    clearest = int(np.argmin([min(level.std.min() for level in pair) for pair in chosen]))
    # [num_heard, 2, num_antennas], against the tones of one capture: the delay is common
    vectors = np.einsum("gsat,at->gsa", tones, tones[clearest, 0].conj())
    # antennas that hear nothing at a gain have no say
    vectors = np.where([[np.isfinite(level.std) for level in pair] for pair in chosen], vectors, 0.0)
    vectors = vectors / np.maximum(np.abs(vectors), 1e-300)
    turns_hz = np.array([[level.turns for level in pair] for pair in chosen])
    found = _steady_turn(vectors, at_s, float(np.median(turns_hz[..., 0])), float(np.median(turns_hz[..., 1])))
    if found is None:
        return None
    turn_hz, scatter_rad = found
    steady = (vectors * np.exp(-2j * np.pi * turn_hz * (at_s - at_s[0, 0]))[..., None]).sum(axis=1)
    phases_rad = np.full((vectors.shape[-1], len(gains)), np.nan)
    phases_rad[:, heard] = np.angle(steady).T
    return phases_rad, max(scatter_rad, 1e-3) / math.sqrt(2)


def _steady_turn(vectors: np.ndarray, at_s: np.ndarray, middle_hz: float, std_hz: float) -> tuple[float, float] | None:
    """The carrier offset at which both sweeps agree, and how much their phases scatter; None where they never do.

    Args:
        vectors: phases as unit vectors, shape [num_gains, 2, num_antennas].
        at_s: shape [num_gains, 2].
        middle_hz: the offset as single captures tell it.
        std_hz: standard deviation of that.
    """
    count, lag_s = len(vectors), at_s[:, 1] - at_s[:, 0]
    apart = (vectors[:, 1] * vectors[:, 0].conj()).sum(axis=-1)
    apart = apart / np.maximum(np.abs(apart), 1e-300)
    step_hz = 1 / (_TRIALS * max(float(np.ptp(at_s)), 1e-12))
    reach = math.ceil(min(5 * std_hz / step_hz, 4096.0))
    tries = [middle_hz + step_hz * np.arange(-reach, reach + 1)]
    if abs(middle_hz) < 3 * std_hz:
        tries.insert(0, np.zeros(1))  # a common clock needs no search
    for trials_hz in tries:
        together = np.abs(np.exp(-2j * np.pi * np.outer(trials_hz, lag_s)) @ apart) / count
        best_hz, length = float(trials_hz[int(np.argmax(together))]), float(together.max())
        # of pairs that scatter by s, the mean of exp(j phase) has the length exp(-s^2 / 2)
        scatter_rad = math.sqrt(max(-2 * math.log(max(length, 1e-12)), 0.0))
        # phases of chance reach a length r in one of m trials with the probability m exp(-n r^2)
        if scatter_rad <= _COHERENT and len(trials_hz) * math.exp(-count * length**2) <= _CHANCE:
            return best_hz, scatter_rad
    return None
