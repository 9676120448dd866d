"""The constants of convergence bounds, from gradients: curvature, variance, growth, the Polyak-Lojasiewicz constant.

Assumptions by their usual numbers: (A1) F is L-smooth, ||grad F(w) - grad F(v)|| <= L ||w - v||; (A3) the gradient of a
batch of b rows has variance at most sigma^2 / b; (A4) ||grad l(w; xi)||^2 <= alpha1 + alpha2 ||grad F(w)||^2; (A5)
||grad F(w)||^2 >= 2 mu (F(w) - F*). All of them are asked for everywhere; what is measured here is what holds where the
measurements were taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.stats import linregress

_NEARLY = 1.1
"""A line that costs at most so many times the best one is as good."""
_AT_REST = 1e-6
_ROUNDED = 1e-4
"""Differences of gradients in single precision, as a share of them, below which rounding is seen."""


@dataclass(frozen=True)
class Estimate:
    """A number and its standard deviation; infinite where nothing is known."""

    value: float
    std: float


@dataclass(frozen=True)
class Curvature:
    """The eigenvalue of largest size of a Hessian.

    Attributes:
        value: the Ritz value; with its sign.
        residual: some eigenvalue lies within this of the Ritz value.
        direction: the unit vector that belongs to it, shape [size].
        products: Hessian products that it took.
    """

    value: float
    residual: float
    direction: np.ndarray
    products: int


def top_curvature(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, *, most: int, tolerance: float = 0.01
) -> Curvature:
    """Largest eigenvalue, by size, of a symmetric matrix that is known by its products: Lanczos' method.

    Args:
        product: v -> H v, both of shape [size]; from differences of gradients, for instance.
        start: any vector that is not orthogonal to the eigenvector, shape [size].
        most: products, at most.
        tolerance: residual, as a share of the value, at which it ends.

    Raises:
        ValueError: the start is zero, or a product is not finite.
    """
    length = float(np.linalg.norm(start))
    if not length > 0 or not math.isfinite(length):
        raise ValueError("the first vector has no direction")
    basis = [np.asarray(start, np.float64) / length]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = np.asarray(product(basis[-1]), np.float64)
        if not np.isfinite(image).all():
            raise ValueError("a product is not finite")
        diagonal.append(float(basis[-1] @ image))
        known = np.stack(basis)
        # twice, since rounding brings back what was taken out
        for _ in range(2):
            image = image - known.T @ (known @ image)
        rest = float(np.linalg.norm(image))
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        best = int(np.argmax(np.abs(values)))
        value, residual = float(values[best]), rest * float(abs(vectors[-1, best]))
        enough = residual <= tolerance * abs(value) or len(basis) in (most, len(start))
        if enough or rest <= 1e-12 * abs(value):
            return Curvature(value, residual, known.T @ vectors[:, best], len(basis))
        basis.append(image / rest)
        beside.append(rest)


def secants(points: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """||g_i+1 - g_i|| / ||w_i+1 - w_i|| of neighbours; NaN where single precision leaves nothing of the differences.

    Args:
        points: shape [num_points, size].
        gradients: at the points, same shape.

    Returns:
        shape [num_points - 1].
    """
    ways = np.linalg.norm(np.diff(np.asarray(points, np.float64), axis=0), axis=1)
    changes = np.linalg.norm(np.diff(np.asarray(gradients, np.float64), axis=0), axis=1)
    far = ways > _ROUNDED * np.linalg.norm(points, axis=1).max()
    clear = changes > _ROUNDED * np.linalg.norm(gradients, axis=1).max()
    return np.divide(changes, ways, out=np.full_like(ways, np.nan), where=far & clear)


def descend(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, *, rate: float, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient descent without noise, whose step follows the curvature that it meets.

    A step of more than 2 / L climbs, and curvature grows on the way of many models; so the rate is lowered to one over
    the largest change of gradient over distance so far.

    Args:
        loss: w -> its value and gradient [size].
        start: shape [size].
        rate: first step size, 1 / L as far as L is known.
        steps: how many.

    Returns:
        points [steps + 1, size], losses [steps + 1], gradients [steps + 1, size].
    """
    points, losses, gradients = [np.asarray(start, np.float64)], [], []
    for step in range(steps + 1):
        value, gradient = loss(points[-1])
        losses.append(value)
        gradients.append(np.asarray(gradient, np.float64))
        if step and (met := secants(np.stack(points[-2:]), np.stack(gradients[-2:]))[0]) * rate > 1:
            rate = 1 / float(met)
        if step < steps:
            points.append(points[-1] - rate * gradients[-1])
    return np.stack(points), np.array(losses), np.stack(gradients)


def gradient_variance(pairs: Sequence[tuple[int, np.ndarray]]) -> Estimate:
    """sigma^2 of (A3): the variance of a gradient, times the rows of its batch.

    Half the squared distance of two gradients of independent batches has the variance as its mean, without bias.

    Args:
        pairs: batch size, and half the squared distance of each pair's gradients, shape [num_pairs].
    """
    drawn = np.concatenate([size * np.asarray(half, np.float64).ravel() for size, half in pairs])
    return mean_of(drawn)


def variance_exponent(pairs: Sequence[tuple[int, np.ndarray]]) -> Estimate:
    """p of variance ~ b^-p, fitted over batch sizes: 1 where rows are drawn independently.

    Args:
        pairs: as of `gradient_variance`.
    """
    sizes = np.array([size for size, _ in pairs], np.float64)
    found = [mean_of(half) for _, half in pairs]
    means = np.array([one.value for one in found])
    if len(np.unique(sizes)) < 2 or (means <= 0).any():
        return Estimate(math.nan, math.inf)
    spread = np.array([one.std for one in found]) / means
    spread = np.where(np.isfinite(spread) & (spread > 0), spread, 1.0)
    x, weights = np.log(sizes), spread**-2
    middle = np.average(x, weights=weights)
    scatter = float(weights @ (x - middle) ** 2)
    return Estimate(-float(weights @ ((x - middle) * np.log(means))) / scatter, 1 / math.sqrt(scatter))


def growth(
    squared_means: Sequence[Estimate], squared_rows: Sequence[np.ndarray], *, quantile: float, rng: np.random.Generator
) -> tuple[Estimate, Estimate]:
    """alpha1 and alpha2 of (A4): the lowest line above an upper quantile of the rows' squared gradients.

    A linear program: the smallest alpha1 + alpha2 mean(x) with alpha1 + alpha2 x_j >= Q_j at every point, both >= 0,
    where x_j is as small as two standard deviations allow: a mean gradient that hardly stands out of the noise must not
    excuse long gradients of rows. The spread is that of resampled rows and x, and of lines that are nearly as low:
    where the points' mean gradients are of one length nothing tells alpha1 from alpha2.

    Args:
        squared_means: x_j = ||grad F(w_j)||^2 at each point.
        squared_rows: ||grad l(w_j; xi)||^2 of rows at each point, shape [num_rows] each.
        quantile: of the rows; 1 is the largest seen.
        rng: draws resamples.
    """
    stds = np.array([one.std for one in squared_means])
    x = np.maximum(np.array([one.value for one in squared_means]) - 2 * stds, 0.0)
    tops = np.array([np.quantile(rows, quantile) for rows in squared_rows])
    best = _lowest_line(x, tops)
    resampled = np.array(
        [
            _lowest_line(
                np.maximum(x + stds * rng.standard_normal(len(x)), 0.0),
                np.array([np.quantile(rng.choice(rows, len(rows)), quantile) for rows in squared_rows]),
            )
            for _ in range(40)
        ]
    )
    spread = resampled.std(axis=0, ddof=1)
    cost = best[0] + best[1] * x.mean()
    others = [(tops.max(), 0.0)]
    if (x > 0).all():
        others.append((0.0, float((tops / x).max())))
    for first, second in others:
        if first + second * x.mean() <= _NEARLY * cost:
            spread = np.maximum(spread, np.abs([first - best[0], second - best[1]]))
    return Estimate(float(best[0]), float(spread[0])), Estimate(float(best[1]), float(spread[1]))


def polyak(losses: np.ndarray, squared: np.ndarray) -> tuple[Estimate, Estimate]:
    """mu and F* of (A5), from a descent without noise.

    (A5) with equality is a line, ||grad F||^2 / 2 = mu (F - F*). It is fitted over the second half of the way down,
    where the slowest directions are what is left; mu is then lowered until the inequality holds at every point of that
    half. F* is where the line meets zero: an extrapolation.

    Args:
        losses: F along the way, shape [num_points].
        squared: ||grad F||^2 there, same shape.

    Returns:
        mu, and F*; with infinite spread where the points lie on no rising line.
    """
    unknown = Estimate(0.0, math.inf), Estimate(math.nan, math.inf)
    half = len(losses) // 2
    value, gain = np.asarray(losses, np.float64)[half:], np.asarray(squared, np.float64)[half:] / 2
    if len(value) < 4 or not (np.isfinite(value).all() and np.isfinite(gain).all()):
        return unknown
    # single precision: what differs by less has come to rest
    if not np.ptp(value) > _AT_REST * np.abs(value).max():
        return unknown
    found = linregress(value, gain)
    if not found.slope > 3 * found.stderr:
        return unknown
    lowest = -found.intercept / found.slope
    above = value - lowest
    held = gain[above > 0] / above[above > 0]
    mu = float(min(found.slope, held.min())) if len(held) else float(found.slope)
    spread = math.hypot(found.stderr, found.slope - mu)
    return Estimate(mu, spread), Estimate(float(lowest), float(found.intercept_stderr / found.slope))


def mean_gradients(products: np.ndarray, weights: np.ndarray) -> tuple[Estimate, Estimate]:
    """||grad F||^2 and the dissimilarity sum_m rho_m ||grad F_m - grad F||^2, without bias.

    Inner products of gradients from different blocks of rows have no share of the sampling noise in their mean; the
    spread is the jackknife's over blocks. An estimate of something small may be below zero.

    Args:
        products: of the gradient of node m on block b with that of node n on block c, shape
            [num_nodes, num_blocks, num_nodes, num_blocks].
        weights: rho_m, shape [num_nodes], sum 1.
    """
    num_blocks = products.shape[1]
    if num_blocks < 2:
        nothing = Estimate(math.nan, math.inf)
        return nothing, nothing

    def both(kept: list[int]) -> np.ndarray:
        picked = products[:, kept][:, :, :, kept]
        apart = ~np.eye(len(kept), dtype=bool)
        # [num_nodes, num_nodes]
        means = np.moveaxis(picked, 1, 2)[..., apart].mean(axis=-1)
        whole = weights @ means @ weights
        return np.array([whole, weights @ np.diag(means) - whole])

    every = list(range(num_blocks))
    found = both(every)
    if num_blocks < 3:
        return Estimate(float(found[0]), math.inf), Estimate(float(found[1]), math.inf)
    without = np.stack([both([block for block in every if block != left]) for left in every])
    std = np.sqrt((num_blocks - 1) * without.var(axis=0))
    return Estimate(float(found[0]), float(std[0])), Estimate(float(found[1]), float(std[1]))


def mean_of(drawn: np.ndarray) -> Estimate:
    """Mean of independent numbers and the standard deviation of that mean."""
    values = np.asarray(drawn, np.float64).ravel()
    if values.size == 0:
        return Estimate(math.nan, math.inf)
    std = float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.inf
    return Estimate(float(values.mean()), std)


def _lowest_line(x: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """(alpha1, alpha2), both scaled to their own size while they are sought."""
    x_size, top_size = float(x.max()) or 1.0, float(tops.max()) or 1.0
    found = linprog(
        c=[1.0, float(x.mean()) / x_size],
        A_ub=-np.column_stack([np.ones_like(x), x / x_size]),
        b_ub=-tops / top_size,
        bounds=[(0, None), (0, None)],
    )
    return np.array([found.x[0] * top_size, found.x[1] * top_size / x_size])
