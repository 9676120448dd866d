"""How far an antenna moved, from what its channels did: tones, curves along a line, shifts, vibrations.

A channel h(x) along a line is band-limited: its waves have spatial frequencies between -1 / lambda and 1 / lambda. So a
few points give the whole curve, and a displacement d shows as h(x + d). Nothing here needs to know where waves come
from, or how many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEAST_LOOKS = 8
"""After each arrival: a vibration has five unknowns."""

_WIDEST = 1.1  # spatial frequencies up to so many in a wavelength: scales may be off
_ROUNDS = 30
_STRENGTH = 1e4  # prior variance of a curve's coefficients over the mean power: it decides nothing that data do


# --- tones ------------------------------------------------------------------------------------------------------------


def tone(num_samples: int, frequency_ratio: float, power_w: float) -> np.ndarray:
    """x[i] = sqrt(P) exp(j 2 pi f i).

    Args:
        num_samples: how many.
        frequency_ratio: f, cycles in a sample.
        power_w: P.

    Returns:
        square-root watts, shape [num_samples], complex64.
    """
    turns = frequency_ratio * np.arange(num_samples)
    return (math.sqrt(power_w) * np.exp(2j * np.pi * (turns % 1.0))).astype(np.complex64)


def read_tones(
    samples: np.ndarray, cycles_per_sample: np.ndarray, reach_ratio: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies of several tones, and their amplitudes at the middle of a capture.

    f_k = argmax sum_a |sum_i w[i] y_a[i] exp(-j 2 pi f i)|^2 near where it is expected, w Hann's window, then the
    amplitudes of all tones together by least squares. Their variance is noise / num_samples, as the Cramer-Rao bound of
    an amplitude says; an error of the frequency turns all antennas alike.

    Args:
        samples: y, shape [num_antennas, num_samples].
        cycles_per_sample: where the tones are expected, cycles in a sample, shape [num_tones].
        reach_ratio: how far off they may be.

    Returns:
        amplitudes, shape [num_antennas, num_tones], complex128; frequencies, shape [num_tones]; variance of the
        amplitudes, shape [num_antennas].

    Reference:
        D. Rife, R. Boorstyn, "Multiple tone parameter estimation from discrete-time observations", 1976.
    """
    samples = np.asarray(samples)
    count = samples.shape[1]
    size = 2 * count
    power = np.sum(np.abs(np.fft.fft(samples * np.hanning(count), size)) ** 2, axis=0)
    bins = np.fft.fftfreq(size)
    found = np.empty(len(cycles_per_sample))
    for index, expected in enumerate(cycles_per_sample):
        near = np.flatnonzero(np.abs(bins - expected) <= reach_ratio)
        peak = int(near[np.argmax(power[near])])
        # a parabola through the logarithms of three bins: exact to 1e-3 of a bin under this window
        left, middle, right = np.log(np.maximum(power[[peak - 1, peak, (peak + 1) % size]], 1e-300))
        bend = left - 2 * middle + right
        found[index] = bins[peak] + (0.5 * (left - right) / bend / size if bend < 0 else 0.0)
    # [num_samples, num_tones], zero phase in the middle
    waves = np.exp(2j * np.pi * np.outer(np.arange(count) - (count - 1) / 2, found))
    amplitudes = np.linalg.solve(waves.conj().T @ waves, waves.conj().T @ samples.T.astype(np.complex128)).T
    residual = samples - amplitudes @ waves.T
    noise_w = np.sum(np.abs(residual) ** 2, axis=1) / max(count - len(found), 1)
    return amplitudes, found, noise_w / count


# --- curves along a line ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Channels of several nodes along a line, as sums of waves.

    Attributes:
        wavenumbers: radians in a metre, shape [num_waves].
        coefficients: shape [num_waves, num_nodes].
    """

    wavenumbers: np.ndarray
    coefficients: np.ndarray

    def at(self, places_m: np.ndarray) -> np.ndarray:
        """Channels at some places, shape [num_places, num_nodes]."""
        return _waves(places_m, self.wavenumbers) @ self.coefficients

    def slope(self, places_m: np.ndarray) -> np.ndarray:
        """Their change in a metre, shape [num_places, num_nodes]."""
        return (_waves(places_m, self.wavenumbers) * (1j * self.wavenumbers)) @ self.coefficients


@dataclass(frozen=True)
class Shift:
    """A curve, and how far a second sweep over it was displaced.

    Attributes:
        curve: of the first sweep.
        shift_m: the second is the first at places + shift.
        std_m: its standard deviation: the Cramer-Rao bound, or more where residuals exceed the noise.
        scatter: squared residuals over what the noise explains, 1 where the model holds.
    """

    curve: Curve
    shift_m: float
    std_m: float
    scatter: float


def estimate_shift(
    places_m: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    variance: np.ndarray,
    wavelength_m: float,
) -> Shift:
    """By how much a second sweep over the same places was displaced.

    minimise over curves and b:  sum_k sum_i (|y_k[i] - h_k(x_i)|^2 + |z_k[i] - h_k(x_i + b)|^2) / s_k^2

    The curves are solved for at each step (variable projection). var(b) = 1 / (2 sum |d|^2 / s^2), with d the
    derivatives by b, less what the curves can explain: the Cramer-Rao bound. With dense samples it is
    s^2 / sum_i |h'(x_i)|^2.

    Args:
        places_m: x, shape [num_places].
        first: y, shape [num_places, num_nodes].
        second: z, same shape.
        variance: s_k^2 = E|error|^2, shape [num_nodes].
        wavelength_m: metres.

    Returns:
        the shift.

    Raises:
        ValueError: fewer than four places.

    Reference:
        G. Golub, V. Pereyra, "Separable nonlinear least squares: the variable projection method", 2003.
    """
    if len(places_m) < 4:
        raise ValueError(f"{len(places_m)} places are too few for a curve; measure at four or more")
    middle_m = float(np.mean(places_m))
    x = np.asarray(places_m, np.float64) - middle_m
    wavenumbers = _wavenumbers(x, wavelength_m)
    weights = 1 / np.sqrt(variance)
    # [2 num_places, num_nodes], white noise of variance 1
    values = np.concatenate([first, second]) * weights
    ridge = 1 / (_STRENGTH * max(float(np.mean(np.abs(values) ** 2)), 1e-300))
    shift_m, step_m = 0.0, math.inf
    for _ in range(_ROUNDS):
        basis = _waves(np.concatenate([x, x + shift_m]), wavenumbers)
        gram = basis.conj().T @ basis + ridge * np.eye(len(wavenumbers))
        coefficients = np.linalg.solve(gram, basis.conj().T @ values)
        residual = values - basis @ coefficients
        slopes = (basis * (1j * wavenumbers)) @ coefficients
        slopes[: len(x)] = 0
        free = slopes - basis @ np.linalg.solve(gram, basis.conj().T @ slopes)
        strength = float(np.sum(np.abs(free) ** 2))
        if strength <= 0 or abs(step_m) < 1e-9:
            break
        step_m = float(np.vdot(free, residual).real) / strength
        shift_m += float(np.clip(step_m, -0.05 * wavelength_m, 0.05 * wavelength_m))
    explained = float(np.trace(np.linalg.solve(gram, basis.conj().T @ basis)).real) * values.shape[1]
    freedom = max(values.size - explained - 0.5, 1.0)
    scatter = float(np.sum(np.abs(residual) ** 2)) / freedom
    std_m = math.sqrt(max(scatter, 1.0) / (2 * strength)) if strength > 0 else math.inf
    curve = Curve(wavenumbers, coefficients / weights * np.exp(-1j * wavenumbers * middle_m)[:, None])
    return Shift(curve, shift_m, std_m, scatter)


def displacement(slopes: np.ndarray, change: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares displacement that explains a change of channels.

    d = argmin sum_k |change_k - slopes_k . d|^2 / s_k^2,   covariance (2 Re sum_k slopes_k^H slopes_k / s_k^2)^-1

    Args:
        slopes: change of each node's channel in a metre along each axis, shape [num_nodes, num_axes].
        change: shape [..., num_nodes].
        variance: E|error|^2 of the change, shape [num_nodes].

    Returns:
        d, metres, shape [..., num_axes]; its covariance, shape [num_axes, num_axes], infinite on the diagonal where
        nothing is known.
    """
    weighted = slopes / variance[:, None]
    information = 2 * (weighted.conj().T @ slopes).real
    if np.linalg.matrix_rank(information, tol=1e-9 * max(float(np.trace(information)), 1e-300)) < len(information):
        shape = (*change.shape[:-1], slopes.shape[1])
        return np.zeros(shape), np.diag(np.full(slopes.shape[1], math.inf))
    covariance = np.linalg.inv(information)
    return 2 * (change @ weighted.conj()).real @ covariance, covariance


# --- vibrations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vibration:
    """x(t) = rest + A exp(-t / tau) sin(2 pi f t + phase).

    Attributes:
        amplitude_m: A at t = 0, the mean over the arrivals.
        amplitude_std_m: its standard deviation.
        decay_s: tau.
        decay_std_s: its standard deviation.
        frequency_hz: f.
        residual_m: rms of what is left.
        evidence: by how much squared residuals fall with the vibration, over their mean square afterwards; noise alone
            gives some 10 to 30, since the best of many vibrations is taken.
        fitted_m: shape [num_looks].
    """

    amplitude_m: float
    amplitude_std_m: float
    decay_s: float
    decay_std_s: float
    frequency_hz: float
    residual_m: float
    evidence: float
    fitted_m: np.ndarray

    def settle_s(self, tolerance_m: float) -> float:
        """When the envelope falls to the tolerance: tau ln(A / tolerance), at least 0."""
        return max(0.0, self.decay_s * math.log(max(self.amplitude_m, 1e-300) / tolerance_m))


def fit_vibration(
    since_s: np.ndarray, places_m: np.ndarray, arrival: np.ndarray, *, highest_hz: float = 200.0
) -> Vibration:
    """The decaying vibration that explains how an antenna came to rest, by least squares.

    Rest, amplitude and phase are each arrival's own, decay and frequency are common. Looks need not be equally spaced;
    where they are not, frequencies above half their rate are told apart as well.

    Args:
        since_s: time since the arrival, shape [num_looks].
        places_m: where the antenna was then, shape [num_looks].
        arrival: which arrival, shape [num_looks], integers from 0.
        highest_hz: highest frequency that is looked for.

    Returns:
        the vibration; without one its amplitude is no larger than its standard deviation allows.

    Raises:
        ValueError: fewer than `LEAST_LOOKS` after an arrival.
    """
    if not len(arrival) or np.bincount(arrival).min() < LEAST_LOOKS:
        raise ValueError(f"a vibration needs {LEAST_LOOKS} looks after each arrival")
    span_s = float(np.max(since_s) - np.min(since_s))
    frequencies_hz = np.arange(1 / span_s, highest_hz, 0.15 / span_s)
    decays_s = np.geomspace(0.02, 3.0, 14) * span_s
    best = (math.inf, float(decays_s[0]), float(frequencies_hz[0]))
    for decay_s in decays_s:
        errors = _errors(since_s, places_m, arrival, float(decay_s), frequencies_hz)
        least = int(np.argmin(errors))
        best = min(best, (float(errors[least]), float(decay_s), float(frequencies_hz[least])))
    unknowns = np.array([math.log(best[1]), 2 * math.pi * best[2]])
    steps = np.array([1e-4, 1e-4 / span_s])
    damping = 1e-3
    residual = _vibration(since_s, places_m, arrival, best[1], best[2])[1]
    for _ in range(_ROUNDS):
        jacobian = np.stack(
            [
                (_ring_residual(since_s, places_m, arrival, unknowns + step) - residual) / step[index]
                for index, step in enumerate(np.diag(steps))
            ],
            axis=1,
        )
        normal = jacobian.T @ jacobian
        change = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-300), -jacobian.T @ residual)
        tried = _ring_residual(since_s, places_m, arrival, unknowns + change)
        if tried @ tried < residual @ residual:
            unknowns, residual, damping = unknowns + change, tried, damping / 10
        else:
            damping *= 10
    decay_s = math.exp(min(unknowns[0], 50.0))
    coefficients, residual, spread = _vibration(since_s, places_m, arrival, decay_s, unknowns[1] / (2 * math.pi))
    count = len(coefficients)
    freedom = max(len(since_s) - 3 * count - 2, 1)
    variance = float(residual @ residual) / freedom
    still = float(np.sum(_at_rest(places_m, arrival) ** 2))
    amplitudes_m = np.hypot(coefficients[:, 1], coefficients[:, 2])
    covariance = variance * np.linalg.pinv(jacobian.T @ jacobian)
    return Vibration(
        amplitude_m=float(np.mean(amplitudes_m)),
        amplitude_std_m=math.sqrt(variance * spread / count),
        decay_s=decay_s,
        decay_std_s=decay_s * math.sqrt(max(float(covariance[0, 0]), 0.0)),
        frequency_hz=abs(float(unknowns[1])) / (2 * math.pi),
        residual_m=math.sqrt(variance),
        evidence=(still - float(residual @ residual)) / max(variance, 1e-300),
        fitted_m=places_m - residual,
    )


def _ring_residual(since_s: np.ndarray, places_m: np.ndarray, arrival: np.ndarray, unknowns: np.ndarray) -> np.ndarray:
    decay_s = math.exp(min(float(unknowns[0]), 50.0))
    return _vibration(since_s, places_m, arrival, decay_s, float(unknowns[1]) / (2 * math.pi))[1]


def _vibration(
    since_s: np.ndarray, places_m: np.ndarray, arrival: np.ndarray, decay_s: float, frequency_hz: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rest, sine and cosine of each arrival, [num_arrivals, 3]; residual, [num_looks]; variance of an amplitude."""
    swing = np.exp(-since_s / decay_s) * np.exp(2j * np.pi * frequency_hz * since_s)
    basis = np.stack([np.ones_like(since_s), swing.imag, swing.real], axis=1)
    coefficients, residual, spread = [], np.empty_like(places_m), 0.0
    for number in range(int(arrival.max()) + 1):
        rows = arrival == number
        gram = basis[rows].T @ basis[rows] + 1e-12 * np.eye(3)
        solved = np.linalg.solve(gram, basis[rows].T @ places_m[rows])
        residual[rows] = places_m[rows] - basis[rows] @ solved
        spread = max(spread, float(np.max(np.diag(np.linalg.inv(gram))[1:])))
        coefficients.append(solved)
    return np.array(coefficients), residual, spread


def _errors(
    since_s: np.ndarray, places_m: np.ndarray, arrival: np.ndarray, decay_s: float, frequencies_hz: np.ndarray
) -> np.ndarray:
    """Squared residuals of many frequencies at once, shape [num_frequencies]."""
    errors = np.zeros(len(frequencies_hz))
    for number in range(int(arrival.max()) + 1):
        rows = arrival == number
        swing = np.exp(2j * np.pi * np.outer(frequencies_hz, since_s[rows]) - since_s[rows] / decay_s)
        # [num_frequencies, num_looks, 3]
        basis = np.stack([np.ones(swing.shape), swing.imag, swing.real], axis=2)
        gram = basis.transpose(0, 2, 1) @ basis + 1e-12 * np.eye(3)
        projected = (places_m[rows] @ basis)[..., None]
        errors += float(places_m[rows] @ places_m[rows]) - (projected * np.linalg.solve(gram, projected)).sum((1, 2))
    return errors


def _at_rest(places_m: np.ndarray, arrival: np.ndarray) -> np.ndarray:
    """Distance from each arrival's mean place, shape [num_looks]."""
    counts = np.bincount(arrival)
    return places_m - (np.bincount(arrival, places_m) / np.maximum(counts, 1))[arrival]


def _wavenumbers(places_m: np.ndarray, wavelength_m: float) -> np.ndarray:
    """Enough waves for a curve of this length, shape [num_waves]."""
    most = 2 * np.pi * _WIDEST / wavelength_m
    length_m = float(np.ptp(places_m))
    degrees = 2 * _WIDEST * length_m / wavelength_m
    return np.linspace(-most, most, 2 * math.ceil(degrees) + 7)


def _waves(places_m: np.ndarray, wavenumbers: np.ndarray) -> np.ndarray:
    """exp(j k x), shape [num_places, num_waves]."""
    return np.exp(1j * np.outer(places_m, wavenumbers))
