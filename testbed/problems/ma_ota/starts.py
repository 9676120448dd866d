"""Layouts of antennas to begin a search from: drawn at random inside the aperture, the promising ones kept."""

from __future__ import annotations

import numpy as np

from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.multicast import pair_gain, start_combiners

_TRIES = 16
"""Draws of each antenna before a layout is given up."""


def random_layouts(aperture: Aperture, num_layouts: int, rng: np.random.Generator) -> np.ndarray:
    """Layouts uniform over the region, one antenna after the other, each drawn again until it keeps the spacing.

    Where hardly any draw succeeds the antennas are put on points of a lattice with the least spacing instead. Antennas
    that cannot move stand where they are.

    Args:
        aperture: region, spacing, and which antennas move.
        num_layouts: to draw.
        rng: draws.

    Returns:
        shape [num_found, num_antennas, 2] in the aperture's unit; fewer than asked where the region is crowded, none
        where no layout was found.
    """
    low, high = aperture.region_m[:, 0], aperture.region_m[:, 1]
    layouts = np.broadcast_to(aperture.home_m, (num_layouts, *aperture.home_m.shape)).copy()
    alive = np.ones(num_layouts, bool)
    placed = list(np.flatnonzero(~aperture.movable))
    for antenna in np.flatnonzero(aperture.movable):
        # [num_layouts, tries, 2]
        drawn = rng.uniform(low, high, (num_layouts, _TRIES, 2))
        apart = drawn[:, :, None, :] - layouts[:, None, placed, :]
        clear = np.all(np.sum(apart**2, axis=-1) >= aperture.min_spacing_m**2, axis=-1)
        alive &= clear.any(axis=1)
        layouts[:, antenna] = drawn[np.arange(num_layouts), np.argmax(clear, axis=1)]
        placed.append(antenna)
    if alive.sum() >= num_layouts // 8:
        return layouts[alive]
    return np.concatenate([layouts[alive], _lattice_layouts(aperture, num_layouts, rng)])


def _lattice_layouts(aperture: Aperture, num_layouts: int, rng: np.random.Generator) -> np.ndarray:
    """Random choices among the points of a square lattice that are clear of the antennas that cannot move."""
    low, high = aperture.region_m[:, 0], aperture.region_m[:, 1]
    spacing = aperture.min_spacing_m * (1.0 + 1e-9)
    counts = np.floor((high - low) / spacing * (1.0 + 1e-6)).astype(int) + 1
    axes = [np.minimum(low[i] + aperture.min_spacing_m * np.arange(counts[i]), high[i]) for i in range(2)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    fixed = aperture.home_m[~aperture.movable]
    apart = np.linalg.norm(points[:, None] - fixed[None], axis=-1)
    points = points[np.all(apart >= aperture.min_spacing_m, axis=1)]
    movable = np.flatnonzero(aperture.movable)
    if len(points) < len(movable):
        return np.zeros((0, *aperture.home_m.shape))
    layouts = np.broadcast_to(aperture.home_m, (num_layouts, *aperture.home_m.shape)).copy()
    for layout in layouts:
        layout[movable] = points[rng.choice(len(points), len(movable), replace=False)]
    kept = np.array([aperture.violation_m(layout) <= 1e-12 * aperture.min_spacing_m for layout in layouts])
    return layouts[kept]


def quick_gain(channel: np.ndarray) -> np.ndarray:
    """Gain of the node heard worst: exact for one and two nodes, for more under the best of a few simple combiners.

    Args:
        channel: shape [..., num_antennas, num_nodes].

    Returns:
        a lower bound of the best combiner's, shape [...].
    """
    power = np.sum(channel.real**2 + channel.imag**2, axis=-2)
    if channel.shape[-1] == 1:
        return power[..., 0]
    if channel.shape[-1] == 2:
        cross = np.abs(np.sum(channel[..., 0].conj() * channel[..., 1], axis=-1))
        return pair_gain(power[..., 0], power[..., 1], cross)
    heard = start_combiners(channel).conj() @ channel
    return np.max(np.min(heard.real**2 + heard.imag**2, axis=-1), axis=-1)


def relocated(
    paths: PathSet,
    aperture: Aperture,
    layouts: np.ndarray,
    rng: np.random.Generator,
    *,
    num_places: int,
    num_passes: int,
) -> np.ndarray:
    """Layouts with one antenna after the other put where `quick_gain` is largest among places drawn for it.

    Args:
        paths: auxiliary channels.
        aperture: where antennas may be.
        layouts: keep the aperture, shape [num_layouts, num_antennas, 2].
        rng: draws places.
        num_places: for each antenna and pass.
        num_passes: over the antennas.

    Returns:
        shape as `layouts`; no quick gain is smaller than before.
    """
    layouts = layouts.copy()
    rows = np.arange(len(layouts))
    low, high = aperture.region_m[:, 0], aperture.region_m[:, 1]
    channel = paths.channel(layouts)
    best = quick_gain(channel)
    for antenna in np.tile(np.flatnonzero(aperture.movable), num_passes):
        others = np.delete(layouts, antenna, axis=1)
        # [num_layouts, num_places, 2]
        drawn = rng.uniform(low, high, (len(layouts), num_places, 2))
        apart = drawn[:, :, None, :] - others[:, None]
        clear = np.all(np.sum(apart**2, axis=-1) >= aperture.min_spacing_m**2, axis=-1)
        tried = np.repeat(channel[:, None], num_places, axis=1)
        tried[:, :, antenna] = paths.channel(drawn)
        gain = np.where(clear, quick_gain(tried), -1.0)
        choice = np.argmax(gain, axis=1)
        better = gain[rows, choice] > best
        layouts[better, antenna] = drawn[rows, choice][better]
        channel[better, antenna] = tried[rows, choice, antenna][better]
        best = np.maximum(best, gain[rows, choice])
    return layouts


def promising_layouts(
    paths: PathSet,
    aperture: Aperture,
    num_layouts: int,
    rng: np.random.Generator,
    *,
    draws_each: int = 64,
    num_places: int = 48,
    num_passes: int = 2,
) -> list[np.ndarray]:
    """The best of each of several groups of random layouts, their antennas then relocated one after the other.

    Args:
        paths: auxiliary channels.
        aperture: where antennas may be.
        num_layouts: groups, and layouts returned at most.
        rng: draws.
        draws_each: layouts of each group.
        num_places, num_passes: of `relocated`.

    Returns:
        layouts, each of shape [num_antennas, 2].
    """
    if num_layouts <= 0:
        return []
    layouts = random_layouts(aperture, num_layouts * draws_each, rng)
    if not len(layouts):
        return []
    gain = quick_gain(paths.channel(layouts))
    groups = np.array_split(np.arange(len(layouts)), min(num_layouts, len(layouts)))
    begun = np.stack([layouts[group[np.argmax(gain[group])]] for group in groups])
    return list(relocated(paths, aperture, begun, rng, num_places=num_places, num_passes=num_passes))
