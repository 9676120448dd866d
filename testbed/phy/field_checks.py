"""How far a fitted field is to be believed: on unseen positions, and where samples do not come from where they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from testbed.phy.field_fit import PathFit, fit_paths
from testbed.phy.field_model import FieldModel, PathField, Samples

_FAR = 25.0  # |miss|^2 over its variance, which honest noise exceeds once in 10^11
_SIGNIFICANT = 40.0  # fall of the squares by which a displacement is believed: one false alarm in about 10^6
_REACH = 0.5  # largest displacement that is looked for along an axis, wavelengths
_STEPS = 17  # displacements that are tried along an axis
_DRAWS = 8
_HALVINGS = 3


def cross_validated(
    samples: Samples, fit: Callable[[Samples], FieldModel], *, num_folds: int = 5
) -> tuple[float, float]:
    """Error of the channel at positions that the fit has not seen.

    error = (sum |y_m - h_without(r_m)|^2 - sum s_m^2) / sum |y_m|^2
    surprise = mean |y_m - h_without(r_m)|^2 / (s_m^2 + std_without^2)

    over folds of positions, s_m^2 the samples' own variances.

    Args:
        samples: of one node, with factors and phases taken out.
        fit: makes a field of samples, or raises ValueError where they are too few.
        num_folds: parts that are left out in turn.

    Returns:
        error: power ratio, at least 0; infinite where the samples are too few.
        surprise: 1 where the field knows how well it knows; infinite likewise.
    """
    _, place = np.unique(np.round(samples.positions_m, 6), axis=0, return_inverse=True)
    # neighbours in the list of places are neighbours in space: dealing them out spreads each fold
    fold = np.asarray(place).reshape(-1) % num_folds
    missed, surprise = 0.0, 0.0
    for index in range(num_folds):
        kept, left = samples.part(fold != index), samples.part(fold == index)
        if not len(left):
            continue
        try:
            guess, std = fit(kept).predict(left.positions_m)
        except ValueError:
            return math.inf, math.inf
        squares = np.abs(left.channel - guess) ** 2
        missed += float(np.sum(squares))
        surprise += float(np.sum(squares / (left.variance + std**2)))
    power = max(float(np.sum(np.abs(samples.channel) ** 2)), 1e-300)
    return max(missed - float(np.sum(samples.variance)), 0.0) / power, surprise / len(samples)


def robust_fit(
    samples: Samples, wavelength_m: float, *, max_paths: int = 10, seed: int = 0
) -> tuple[PathFit, np.ndarray]:
    """A fit that a minority of samples at wrong positions cannot bend, and which samples these are.

    Least median of squares: fits to all and to random two thirds of the samples, each repeated with those that agree
    best, are judged by the median of all misses. The best one names the samples that lie far outside, and the rest is
    fitted again.

    Args:
        samples: of one node, with factors and phases taken out.
        wavelength_m: metres.
        max_paths: as in `fit_paths`.
        seed: of the draws.

    Returns:
        the fit to the samples that agree, and which samples do not, shape [num_samples], bool.

    Raises:
        ValueError: as `fit_paths`.

    Reference:
        P. Rousseeuw, "Least median of squares regression", J. Amer. Stat. Assoc. 1984.
    """
    generator = np.random.default_rng(seed)
    best: tuple[float, np.ndarray] | None = None
    for draw in range(_DRAWS):
        chosen = np.arange(len(samples))
        if draw:
            chosen = generator.permutation(len(samples))[: max(2 * len(samples) // 3, 3)]
        for _ in range(_HALVINGS):
            fit = fit_paths(samples.part(chosen), wavelength_m, max_paths=max_paths)
            guess, _ = fit.field.predict(samples.positions_m)
            missed = np.abs(samples.channel - guess) ** 2 / samples.variance
            # half of the squares of honest noise lie below ln 2 of their mean
            scale = float(np.median(missed)) / math.log(2.0)
            if best is None or scale < best[0]:
                best = scale, missed
            chosen = np.flatnonzero(missed <= np.quantile(missed, 0.6))
    assert best is not None
    scale, missed = best
    wrong = missed > _FAR * max(scale, 1.0)
    return fit_paths(samples.part(~wrong), wavelength_m, max_paths=max_paths), wrong


@dataclass(frozen=True)
class Displacement:
    """One antenna that stood elsewhere than its stage said.

    Attributes:
        antenna: which.
        visit: the first such visit.
        offset_m: true minus told position, array frame, shape [2].
        gain: squares of misses over their variances that it explains.
    """

    antenna: int
    visit: int
    offset_m: np.ndarray
    gain: float


def displaced(samples: Samples, field: PathField, *, scale: float = 1.0) -> Displacement | None:
    """The antenna and the visit from which on a constant displacement explains what it measured best.

    maximise over n, v, d:  sum over samples of n from visit v on of (|y - h(r)|^2 - |y - h(r + d)|^2) / s^2

    Args:
        samples: of one node, with factors and phases taken out.
        field: fitted to samples most of which are right, as by `robust_fit`.
        scale: squares of misses over their variances that are usual.

    Returns:
        what was found, or None where nothing is significant.
    """
    axis_m = np.linspace(-_REACH, _REACH, _STEPS) * field.wavelength_m
    # [num_offsets, 2]
    offsets_m = np.stack(np.meshgrid(axis_m, axis_m, indexing="ij"), axis=-1).reshape(-1, 2)
    best: Displacement | None = None
    for antenna in np.unique(samples.antenna):
        own = samples.part(np.flatnonzero(samples.antenna == antenna))
        own = own.part(np.argsort(own.visit, kind="stable"))
        found = _displacement(own, field, offsets_m, scale)
        fine_m = found.offset_m + offsets_m / (_STEPS - 1)
        found = _displacement(own, field, fine_m, scale)
        found = _displacement(own, field, found.offset_m + offsets_m / (_STEPS - 1) ** 2, scale)
        if found.gain > _SIGNIFICANT and (best is None or found.gain > best.gain):
            best = found
    return best


def _displacement(own: Samples, field: PathField, offsets_m: np.ndarray, scale: float) -> Displacement:
    """The best of these offsets for one antenna's samples, which are in the order of their visits."""
    here, _ = field.predict(own.positions_m)
    there, _ = field.predict(own.positions_m + offsets_m[:, None])
    # [num_offsets, num_samples]
    gain = np.abs(own.channel - here) ** 2 - np.abs(own.channel - there) ** 2
    gain /= own.variance * max(scale, 1.0)
    # what is gained from each sample on
    since = np.cumsum(gain[:, ::-1], axis=1)[:, ::-1]
    offset, first = np.unravel_index(int(np.argmax(since)), since.shape)
    return Displacement(int(own.antenna[0]), int(own.visit[first]), offsets_m[offset], float(since[offset, first]))
