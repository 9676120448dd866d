"""What analogue hardware does to a signal: pure functions on arrays, one effect each.

Signals are complex64 in square-root watts. Random effects draw from a generator that is handed in; `stream` gives one
that depends on nothing but its key, so a run that is resumed meets the same impairments.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import lfilter

_RADIO = 0x5241_4449  # keeps the radios' draws apart from the world's


def stream(seed: int, *key: int) -> np.random.Generator:
    """Random numbers of one effect, a function of seed and key.

    Args:
        seed: of the run.
        key: names effect, node and instant.

    Returns:
        a new generator.
    """
    entropy = (seed, _RADIO, *(value % 2**63 for value in key))
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))


def transmit_imbalance(gain: float, phase_rad: float) -> tuple[complex, complex]:
    """Gains of the wanted signal and of its image in a transmitter whose branches are unequal.

    y = I + g exp(j phi) j Q = mu x + nu conj(x),   mu, nu = (1 +- g exp(j phi)) / 2

    Image rejection: |mu|^2 / |nu|^2 = (1 + 2 g cos(phi) + g^2) / (1 - 2 g cos(phi) + g^2).

    Args:
        gain: g, amplitude of the Q branch over I.
        phase_rad: phi, the angle missing between the branches.

    Returns:
        (mu, nu).

    Reference:
        M. Valkama, M. Renfors, V. Koivunen, "Advanced methods for I/Q imbalance compensation in communication
        receivers", 2001.
    """
    skew = gain * np.exp(1j * phase_rad)
    return complex(1 + skew) / 2, complex(1 - skew) / 2


def receive_imbalance(gain: float, phase_rad: float) -> tuple[complex, complex]:
    """Gains of the wanted signal and of its image in a receiver whose branches are unequal.

    y = I + j g (Q cos(phi) - I sin(phi)) = mu x + nu conj(x),   mu, nu = (1 +- g exp(-+ j phi)) / 2

    Args:
        gain: g, amplitude of the Q branch over I.
        phase_rad: phi, the angle missing between the branches.

    Returns:
        (mu, nu).

    Reference:
        as `transmit_imbalance`.
    """
    turn = np.exp(1j * phase_rad)
    return complex(1 + gain / turn) / 2, complex(1 - gain * turn) / 2


def add_image(samples: np.ndarray, wanted: complex, image: complex) -> None:
    """x <- mu x + nu conj(x), in place; shape [num_samples], complex64."""
    mirrored = np.conj(samples)
    mirrored *= np.complex64(image)
    samples *= np.complex64(wanted)
    samples += mirrored


def quantise(samples: np.ndarray, full_scale: float, bits: int) -> None:
    """Round and clip both branches to a converter's codes, in place.

    q = step clip(round(v / step), -2^(b-1), 2^(b-1) - 1),   step = 2 full_scale / 2^b

    A sine that fills the scale keeps a signal-to-noise ratio of 6.02 b + 1.76 dB.

    Args:
        samples: shape [num_samples], complex64, contiguous.
        full_scale: largest value of a branch, square-root watts.
        bits: b.
    """
    step = 2.0 * full_scale / 2**bits
    # [2 num_samples]
    branches = samples.view(np.float32)
    branches *= np.float32(1.0 / step)
    np.rint(branches, out=branches)
    np.clip(branches, -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1.0, out=branches)
    branches *= np.float32(step)


def rapp(samples: np.ndarray, saturation_w: float, smoothness: float) -> None:
    """Compress the amplitude as a solid-state amplifier does, in place; the phase stays.

    y = x / (1 + (|x| / A)^(2p))^(1 / (2p)),   A = sqrt(saturation)

    Args:
        samples: shape [num_samples], complex64.
        saturation_w: output power that is not exceeded, watts.
        smoothness: p.

    Reference:
        C. Rapp, "Effects of HPA-nonlinearity on a 4-DPSK/OFDM-signal for a digital sound broadcasting system", 1991.
    """
    # [num_samples], float64: powers of large ratios leave the range of float32
    ratio = np.square(samples.real, dtype=np.float64) + np.square(samples.imag, dtype=np.float64)
    ratio /= saturation_w
    samples /= ((1.0 + ratio**smoothness) ** (0.5 / smoothness)).astype(np.float32)


def rotation(
    num_samples: int, *, at_s: float, rate_hz: float, offset_hz: float, drift_hz_s: float, first: int = 0
) -> np.ndarray:
    """What an oscillator that is off and drifts does to a signal, in the time of the run.

    r[n] = exp(j 2 pi (f t + f' t^2 / 2)),   t = at + (first + n) / rate

    The phase is that of the run's time, so it goes on between a sounding and the data that follow.

    Args:
        num_samples: length.
        at_s: instant of sample 0.
        rate_hz: samples in a second.
        offset_hz: f, at time 0.
        drift_hz_s: f'.
        first: index of the first sample returned.

    Returns:
        shape [num_samples], complex64.
    """
    begin_s = at_s + first / rate_hz
    start = math.fmod(offset_hz * begin_s + 0.5 * drift_hz_s * begin_s**2, 1.0)
    since_s = np.arange(num_samples) / rate_hz
    cycles = start + since_s * ((offset_hz + drift_hz_s * begin_s) + 0.5 * drift_hz_s * since_s)
    # whole turns go while the numbers are float64
    cycles -= np.rint(cycles)
    return turned((2 * np.pi * cycles).astype(np.float32))


def turned(phase_rad: np.ndarray) -> np.ndarray:
    """exp(j phase), any shape, complex64."""
    out = np.empty(np.shape(phase_rad), np.complex64)
    np.cos(phase_rad, out=out.real)
    np.sin(phase_rad, out=out.imag)
    return out


class PhaseNoise:
    """A synthesiser's phase as a stationary Ornstein-Uhlenbeck process.

    E{theta(t) theta(t + tau)} = rms^2 exp(-2 pi corner |tau|):  theta[n] = a theta[n-1] + rms sqrt(1 - a^2) w[n]

    Args:
        rms_rad: standard deviation of the phase.
        corner_hz: where its spectrum falls by 3 dB.
        rate_hz: samples in a second.
        generator: of the w[n], standard normal.
    """

    def __init__(self, rms_rad: float, *, corner_hz: float, rate_hz: float, generator: np.random.Generator) -> None:
        self._keep = math.exp(-2 * math.pi * corner_hz / rate_hz)
        self._push = rms_rad * math.sqrt(-math.expm1(-4 * math.pi * corner_hz / rate_hz))
        self._generator = generator
        self._kept = self._keep * rms_rad * generator.standard_normal(1)

    def take(self, num_samples: int) -> np.ndarray:
        """The phase of the next samples, rad, shape [num_samples], float32."""
        pushes = self._push * self._generator.standard_normal(num_samples)
        phase_rad, self._kept = lfilter([1.0], [1.0, -self._keep], pushes, zi=self._kept)
        return phase_rad.astype(np.float32)
