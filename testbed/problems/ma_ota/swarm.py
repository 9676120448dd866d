"""A particle swarm of layouts, each with a combiner that improves as it flies.

    v <- w v + c_1 a (own best - r) + c_2 b (common best - r),   r <- r + v inside the region,   a, b ~ U[0, 1]

A layout is worth its weakest client's gain, less a penalty for spacings that are too small.

Reference: J. Kennedy, R. Eberhart, "Particle swarm optimization", 1995; over antenna positions, with the combiner in an
inner loop, Li et al., arXiv 2409.10351. Inertia, pulls, penalty and the rule that ends the flight are our reading.
"""

from __future__ import annotations

import numpy as np

from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.batch_gains import climbed_gains

_FLIGHTS, _PATIENCE = 120, 30
_INERTIA, _OWN, _COMMON = (0.9, 0.4), 1.5, 1.5


def fly(
    paths: PathSet, aperture: Aperture, swarm_m: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """The swarm's flight.

    Args:
        paths: auxiliary channels.
        aperture: where antennas may be.
        swarm_m: where the particles begin, shape [num_particles, num_antennas, 2].
        rng: draws.

    Returns:
        best layout of every particle, shape [num_particles, num_antennas, 2]; what each is worth, shape
        [num_particles]; the worth of the best of all after each flight.
    """
    low_m, high_m = aperture.region_m[:, 0], aperture.region_m[:, 1]
    movable = aperture.movable[:, None]
    velocity = 0.1 * (high_m - low_m) * rng.uniform(-1.0, 1.0, swarm_m.shape)
    here_m = swarm_m.copy()
    gains, combiners = climbed_gains(paths.channel(here_m))
    # one spacing that is missing altogether costs as much as the best particle is worth at first
    penalty = float(gains.max())
    best_m, worth = here_m.copy(), gains - penalty * _crowding(aperture, here_m)
    trace, still = [float(worth.max())], 0
    for flight in range(_FLIGHTS):
        inertia = _INERTIA[0] + (_INERTIA[1] - _INERTIA[0]) * flight / (_FLIGHTS - 1)
        common_m = best_m[int(np.argmax(worth))]
        own, common = rng.uniform(size=here_m.shape), rng.uniform(size=here_m.shape)
        velocity = inertia * velocity + _OWN * own * (best_m - here_m) + _COMMON * common * (common_m - here_m)
        flown_m = np.clip(here_m + velocity, low_m, high_m)
        here_m = np.where(movable, flown_m, here_m)
        gains, combiners = climbed_gains(paths.channel(here_m), combiners=combiners, num_steps=3)
        now = gains - penalty * _crowding(aperture, here_m)
        better = now > worth
        best_m[better], worth[better] = here_m[better], now[better]
        still = 0 if worth.max() > trace[-1] * (1 + 1e-4) else still + 1
        trace.append(float(worth.max()))
        if still >= _PATIENCE:
            break
    return best_m, worth, tuple(trace)


def _crowding(aperture: Aperture, layouts_m: np.ndarray) -> np.ndarray:
    """What spacings lack, in spacings, and 1 for each that lacks anything; summed over pairs, shape [num_layouts]."""
    first, second = np.triu_indices(layouts_m.shape[1], 1)
    pairs = aperture.movable[first] | aperture.movable[second]
    apart_m = np.linalg.norm(layouts_m[:, first[pairs]] - layouts_m[:, second[pairs]], axis=2)
    lack = np.maximum(1.0 - apart_m / max(aperture.min_spacing_m, 1e-300), 0.0)
    return np.sum(lack + (lack > 1e-9), axis=1)
