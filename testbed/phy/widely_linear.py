"""DC offsets and mirror images of receivers and transmitters: estimated blindly, from a known signal, and from combs.

A receiver with unequal branches delivers y = s + kappa conj(s) + dc, a transmitter radiates x + kappa conj(x) + leak.
`testbed.phy.corrections` takes both out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from testbed.phy.combs import Comb, CombFit, fit_comb, solve, turning

UNKNOWNS = ("receiver's image", "transmitter's image", "leak", "dc")
"""What `ImageEquations` are about, in their order."""
_NEAR = 0.2  # tones so near the carrier tell the channel there
_PER_SAMPLE = 4  # delays tried


@dataclass(frozen=True)
class WidelyLinear:
    """Departures of one or more signals, each of shape [...].

    Attributes:
        image: kappa, complex.
        image_std: standard deviation of each part of it, times sqrt(2): E|error|^2 = image_std^2.
        dc: square-root watts, complex.
        dc_std: as `image_std`.
    """

    image: np.ndarray
    image_std: np.ndarray
    dc: np.ndarray
    dc_std: np.ndarray


def estimate_blind(received: np.ndarray) -> WidelyLinear:
    """Image and DC of a signal that is unknown but circular: E{s^2} = 0, as noise, OFDM and QPSK are.

    rho = mean((y - dc)^2) / mean|y - dc|^2,   kappa = rho / (1 + sqrt(1 - |rho|^2))

    The maximum-likelihood estimate of white Gaussian signals; it reaches the Cramer-Rao bound E|error|^2 = 1 / (2 N)
    for small kappa. Signals that are not white have fewer independent samples than N.

    Args:
        received: y, shape [..., num_samples].

    Returns:
        shapes [...].

    Reference:
        L. Anttila, M. Valkama, M. Renfors, "Circularity-based I/Q imbalance compensation in wideband direct-conversion
        receivers", IEEE Trans. Veh. Technol. 2008.
    """
    received = np.asarray(received, np.complex128)
    count = received.shape[-1]
    dc = received.mean(axis=-1)
    centred = received - dc[..., None]
    power_w = np.square(np.abs(centred)).mean(axis=-1)
    rho = np.square(centred).mean(axis=-1) / np.where(power_w > 0, power_w, 1.0)
    image = rho / (1 + np.sqrt(np.maximum(1 - np.abs(rho) ** 2, 0.0)))
    known = power_w > 0
    return WidelyLinear(image, np.where(known, 1 / math.sqrt(2 * count), np.inf), dc, np.sqrt(power_w / count))


def estimate_known(received: np.ndarray, reference: np.ndarray) -> WidelyLinear:
    """Image and DC of a known signal, by least squares.

    y = a x + b conj(x) + d + noise,   kappa = b / conj(a);   E|error|^2 >= noise / (N |a|^2 P) where x is circular

    Args:
        received: y, shape [num_antennas, num_samples].
        reference: x as it arrived but for one complex factor: in time, and turned by the oscillators; [num_samples].

    Returns:
        shapes [num_antennas].
    """
    columns = np.stack([reference, np.conj(reference), np.ones_like(reference)], axis=-1).astype(np.complex128)
    # [3, num_antennas]
    found = solve(columns, np.asarray(received).T)
    left = np.asarray(received).T - columns @ found
    noise_w = np.square(np.abs(left)).sum(axis=0) / (len(columns) - 3)
    variances = np.diagonal(np.linalg.inv(columns.conj().T @ columns)).real
    wanted = np.abs(found[0])
    known = wanted > 0
    image = np.where(known, found[1] / np.where(known, found[0].conj(), 1.0), 0.0)
    image_std = np.where(known, np.sqrt(noise_w * variances[1]) / np.where(known, wanted, 1.0), np.inf)
    return WidelyLinear(image, image_std, found[2], np.sqrt(noise_w * variances[2]))


@dataclass(frozen=True)
class ImageEquations:
    """What one burst tells of images, leak and DC: least squares' normal equations, divided by the noise.

    Attributes:
        matrix: shape [num_antennas, 4, 4]; the unknowns are `UNKNOWNS`.
        right: shape [num_antennas, 4].
        fits: the comb, and the mirrored comb.
    """

    matrix: np.ndarray
    right: np.ndarray
    fits: tuple[CombFit, CombFit]

    @property
    def found(self) -> bool:
        """Whether both combs are there."""
        return all(fit.found for fit in self.fits)


def image_equations(parts: tuple[np.ndarray, np.ndarray], firsts: tuple[int, int], comb: Comb, *, limit: float,
                    latest: float) -> ImageEquations:  # fmt: skip
    """Equations for both images, from a burst that is a comb and then, without a gap, the mirrored comb.

    A tone x = c exp(j w t) that arrives with amplitude a(w) on a carrier that is d off leaves

        kappa_r conj(a(w)) exp(-j (w + d) t) + kappa_t a(-w) conj(c) / c' exp(j (d - w) t) + leak a(0) exp(j d t) + dc

    The mirrored comb tells a(-w), so the transmitter's image is read through the channel where it lies. The two images
    lie 2 d apart. Where oscillators agree, both fall on one place, and only captures with other phases of the channel,
    from other nodes or at other antennas, tell them apart: hence equations instead of a solution. Bound for each kappa,
    the other known: E|error|^2 >= noise / (N P) of all samples in use, P received.

    Args:
        parts: received during the comb and during its mirror, each of shape [num_antennas, num_samples].
        firsts: where the parts begin, samples since the burst's nominal begin.
        comb: as sent.
        limit: largest carrier offset, cycles in a sample.
        latest: the burst's largest delay, or advance, samples.

    Returns:
        the equations; they mean nothing where a comb was not found.
    """
    fits = (
        fit_comb(parts[0], comb.places, limit=limit),
        fit_comb(parts[1], -comb.places, limit=limit),
    )
    offset = (fits[0].offset + fits[1].offset) / 2
    # the channel at the comb's places and at its mirror's, phases as if the carriers agreed, [2, antennas, tones]
    gains = np.stack(
        [
            fit.amplitudes * np.exp(-2j * np.pi * fit.places * first) / comb.coefficients
            for fit, first in zip(fits, firsts, strict=True)
        ]
    )
    middle = _gain_at_carrier(gains, comb.places, latest)
    num_antennas = len(parts[0])
    matrix, right = np.zeros((num_antennas, 4, 4), np.complex128), np.zeros((num_antennas, 4), np.complex128)
    for index, (part, first, fit) in enumerate(zip(parts, firsts, fits, strict=True)):
        side = 1 - 2 * index
        mirror = offset - side * comb.places * (1 + fit.stretch)
        # [num_antennas, num_tones], at the part's first sample
        images = gains[1 - index] * np.conj(comb.coefficients) * np.exp(2j * np.pi * mirror * first)
        own, added = _equations(part, fit, images, mirror, middle * np.exp(2j * np.pi * offset * first), offset)
        matrix, right = matrix + own, right + added
    return ImageEquations(matrix, right, fits)


def _equations(
    part: np.ndarray, fit: CombFit, images: np.ndarray, mirror: np.ndarray, middle: np.ndarray, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of one part, shapes [num_antennas, 4, 4] and [num_antennas, 4]."""
    num_samples = part.shape[-1]
    waves = turning(fit.places, num_samples)
    # [num_antennas, 4, num_samples]
    regressors = np.stack(
        [
            fit.amplitudes.conj() @ waves.conj().T,
            images @ turning(mirror, num_samples).T,
            middle[:, None] * turning(np.array([offset]), num_samples).T,
            np.ones((len(part), num_samples)),
        ],
        axis=1,
    )
    # what tones of unknown amplitudes explain is of no use: [num_samples, 5 num_antennas]
    stacked = np.concatenate([regressors, part[:, None]], axis=1).reshape(-1, num_samples).T
    clean = (stacked - waves @ solve(waves, stacked)).T.reshape(len(part), 5, num_samples)
    left, rows = clean[:, 4], clean[:, :4]
    matrix = rows.conj() @ rows.transpose(0, 2, 1)
    right = np.einsum("aun,an->au", rows.conj(), left)
    # [num_antennas]
    explained = np.array([np.vdot(own, np.linalg.pinv(square, hermitian=True) @ own).real
                          for square, own in zip(matrix, right, strict=True)])  # fmt: skip
    energy = np.square(np.abs(left)).sum(axis=-1)
    noise_w = np.maximum(energy - explained, 1e-12 * energy) / (num_samples - waves.shape[1] - 4)
    noise_w = np.maximum(noise_w, 1e-300)
    return matrix / noise_w[:, None, None], right / noise_w[:, None]


def _gain_at_carrier(gains: np.ndarray, places: np.ndarray, latest: float) -> np.ndarray:
    """The channel between the innermost tones: its delay taken out, a parabola over frequency; [num_antennas]."""
    places = np.concatenate([places, -places])
    # [num_antennas, 2 num_tones]
    known = np.concatenate(list(gains), axis=-1)
    reach = max(int(_PER_SAMPLE * latest), _PER_SAMPLE)
    lags = np.arange(-reach, reach + 1) / _PER_SAMPLE
    steered = known @ np.exp(2j * np.pi * np.outer(places, lags))
    lag = lags[int(np.argmax(np.square(np.abs(steered)).sum(axis=0)))]
    near = np.abs(places) <= _NEAR
    flat = (known * np.exp(2j * np.pi * places * lag))[:, near]
    powers = np.stack([np.ones(near.sum()), places[near], places[near] ** 2], axis=-1)
    parabola, *_ = np.linalg.lstsq(powers.astype(np.complex128), flat.T, rcond=None)
    middle: np.ndarray = parabola[0]
    return middle
