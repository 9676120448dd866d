"""Antenna places and combiners by the methods of the literature, as baselines of `testbed.problems.ma_ota.placement`.

    maximise over f, r   min_m |f^H h_m(r)|^2     ||f|| = 1, r_n in the region, ||r_i - r_j|| >= D

- fixed: the array stays at home and only the combiner is optimised, the key ablation;
- random: one random layout;
- grid: port selection, greedy and then by exchange (Wang, Shen, Han, Tao, arXiv 2409.03386, find that greedy selection
  of measured ports reaches 99 % of their optimum);
- pso: a particle swarm over positions with the combiner in an inner loop (Li et al., arXiv 2409.10351);
- sdr: positions by penalty dual decomposition, the combiner by semidefinite relaxation and Gaussian randomisation
  (Sidiropoulos, Davidson, Luo, IEEE Trans. Signal Process. 2006; Kalarde et al., arXiv 2302.14336);
- pdd, sca, ao: `placement.place`.

The sources' bodies are not available: grid step, swarm size, penalties and stopping rules are our reading, chosen so
that each baseline does as well as its method can. All methods end with the same combiner
(`testbed.problems.multicast.multicast`) unless the combiner is what they differ in, and only `random` and `sdr` may end
below the fixed array.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import numpy as np

from testbed.core.errors import ConfigError
from testbed.opt.solution import Solution, Status
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.placement import STATIONARY, Placement, place, placement_kkt
from testbed.problems.ma_ota.port_search import exchanged_ports, grown_ports, port_grid
from testbed.problems.ma_ota.starts import random_layouts
from testbed.problems.ma_ota.swarm import fly
from testbed.problems.multicast import multicast, weakest_gain

_PORT_STEP = 0.125  # wavelengths
_PARTICLES, _COMPARED = 8, 6
_SAMPLES = 1000


class Placer(Protocol):
    """A way to place the antennas."""

    def __call__(
        self,
        paths: PathSet,
        aperture: Aperture,
        *,
        rng: np.random.Generator,
        num_starts: int = 6,
        warm: np.ndarray | None = None,
    ) -> Solution[Placement]:
        """Positions, combiner and the gain of the weakest client.

        Args:
            paths: auxiliary channels, sqrt(P_m) h_m / (D_m nu_m).
            aperture: where antennas may be.
            rng: draws.
            num_starts: searches that the method begins, where it has any.
            warm: places to begin at as well, shape [num_antennas, 2].

        Raises:
            ValueError: a client's channel is zero or not finite, or fewer than one start.
        """
        ...


def fixed_array(
    paths: PathSet,
    aperture: Aperture,
    *,
    rng: np.random.Generator,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
) -> Solution[Placement]:
    """The fixed array with the best combiner. See `Placer`."""
    return _ended(paths, aperture, aperture.home_m, (), moves=False)


def random_places(
    paths: PathSet,
    aperture: Aperture,
    *,
    rng: np.random.Generator,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
) -> Solution[Placement]:
    """One random layout with the best combiner; it may be worse than the fixed array. See `Placer`."""
    layouts_m = random_layouts(aperture, 8, rng)
    if not len(layouts_m):
        return _crowded(paths, aperture)
    return _ended(paths, aperture, layouts_m[0], ())


def grid_ports(
    paths: PathSet,
    aperture: Aperture,
    *,
    rng: np.random.Generator,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
    step: float = _PORT_STEP,
) -> Solution[Placement]:
    """Ports of a grid, chosen greedily and exchanged one at a time until no exchange helps. See `Placer`.

    One search grows the array port by port, each time by the one that helps the weakest client most; another begins at
    the fixed array, a third at the warm start; see `port_search`.

    Args:
        paths: auxiliary channels.
        aperture: where antennas may be.
        rng: draws a layout to begin at where neither the fixed array nor the grown one is legal.
        num_starts: not used.
        warm: places to begin at as well, shape [num_antennas, 2].
        step: distance of neighbouring ports, wavelengths.

    Reference:
        arXiv 2409.03386 (greedy selection of ports).
    """
    ports_m = port_grid(aperture, step * aperture.wavelength_m)
    starts = [aperture.home_m] if _legal(aperture, aperture.home_m) else []
    starts += [warm] if warm is not None and _legal(aperture, warm) else []
    grown = grown_ports(paths, aperture, ports_m)
    starts += [] if grown is None else [grown]
    starts = starts or list(random_layouts(aperture, 8, rng)[:1])
    if not starts:
        return _crowded(paths, aperture)
    ends = [exchanged_ports(paths, aperture, ports_m, start_m) for start_m in starts]
    # ports are compared with quick combiners: the start may be as good with the best ones
    ends += [(start_m, []) for start_m in starts]
    layout_m, trace = max(ends, key=lambda end: multicast(paths.channel(end[0])).value)
    return _ended(paths, aperture, layout_m, tuple(trace), iterations=sum(len(end[1]) for end in ends))


def particle_swarm(
    paths: PathSet,
    aperture: Aperture,
    *,
    rng: np.random.Generator,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
) -> Solution[Placement]:
    """A swarm of layouts; each is worth its weakest client's gain, less a penalty for spacings that are too small.

    The swarm has 8 particles for each start, and the fixed array and the warm start besides. Each particle keeps its
    combiner and improves it as it flies, the inner loop; the best layouts are compared with the best combiners there
    are. See `swarm` and `Placer`.

    Reference:
        arXiv 2409.10351 (a swarm over positions outside, alternating optimisation inside); J. Kennedy, R. Eberhart,
        "Particle swarm optimization", 1995.
    """
    size = max(_PARTICLES * num_starts, 2)
    swarm_m = random_layouts(aperture, 4 * size, rng)[:size]
    given = [one for one in (aperture.home_m, warm) if one is not None and _legal(aperture, one)]
    if not len(swarm_m) and not given:
        return _crowded(paths, aperture)
    swarm_m = np.concatenate([np.array(given).reshape(-1, *aperture.home_m.shape), swarm_m])
    best_m, worth, trace = fly(paths, aperture, swarm_m, rng)
    legal = [index for index in np.argsort(-worth)[:_COMPARED] if _legal(aperture, best_m[index])]
    candidates = [best_m[index] for index in legal] + given
    layout_m = max(candidates, key=lambda places_m: multicast(paths.channel(places_m)).value)
    return _ended(paths, aperture, layout_m, trace, iterations=len(trace) - 1)


def relaxed_combiner(channel: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Combiner by semidefinite relaxation and Gaussian randomisation.

    maximise t s.t. h_k^H F h_k >= t, tr F = 1, F positive semidefinite;   f ~ CN(0, F), the best of 1000 draws and of
    the top eigenvector

    Args:
        channel: h_k, shape [num_antennas, num_nodes].
        rng: draws.

    Returns:
        f, unit norm, shape [num_antennas]; the relaxation's optimum, an upper bound of every combiner's gain.

    Raises:
        ConfigError: cvxpy is not installed, or its solver fails.

    Reference:
        N. Sidiropoulos, T. Davidson, Z.-Q. Luo, IEEE Trans. Signal Process. 2006.
    """
    try:
        import cvxpy
    except ImportError as error:
        raise ConfigError(
            "semidefinite relaxation needs cvxpy, which is not installed",
            key="method",
            remedy="install it (pip install cvxpy), or choose another method: pdd needs no solver",
        ) from error
    scale = float(np.sqrt(np.min(np.sum(np.abs(channel) ** 2, axis=0))))
    outer = [np.outer(column, column.conj()) for column in (channel / scale).T]
    lifted, level = cvxpy.Variable((len(channel), len(channel)), hermitian=True), cvxpy.Variable()
    kept = [cvxpy.real(cvxpy.trace(one @ lifted)) >= level for one in outer]
    problem = cvxpy.Problem(cvxpy.Maximize(level), [*kept, lifted >> 0, cvxpy.real(cvxpy.trace(lifted)) == 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an inaccurate end is seen in the status
        problem.solve(solver=cvxpy.CLARABEL)
    if problem.status not in ("optimal", "optimal_inaccurate") or lifted.value is None:
        raise ConfigError(
            f"the semidefinite relaxation ended with {problem.status}",
            key="method",
            remedy="choose another method: pdd needs no solver",
        )
    values, vectors = np.linalg.eigh((lifted.value + lifted.value.conj().T) / 2)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    normal = rng.standard_normal((2, len(channel), _SAMPLES))
    # [num_antennas, 1 + num_samples]
    drawn = np.column_stack([vectors[:, -1], root @ (normal[0] + 1j * normal[1])])
    drawn /= np.linalg.norm(drawn, axis=0)
    weakest = np.min(np.abs(drawn.conj().T @ channel) ** 2, axis=1)
    return drawn[:, int(np.argmax(weakest))], float(level.value) * scale**2


def semidefinite(
    paths: PathSet,
    aperture: Aperture,
    *,
    rng: np.random.Generator,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
) -> Solution[Placement]:
    """Positions by penalty dual decomposition, the combiner by `relaxed_combiner`. See `Placer`.

    The message tells the relaxation's upper bound at these positions.
    """
    placed = place(paths, aperture, rng=rng, num_starts=num_starts, warm=warm, method="pdd")
    positions_m = placed.point.positions_m
    channel = paths.channel(positions_m)
    combiner, bound = relaxed_combiner(channel, rng)
    found = Placement(positions_m, combiner, weakest_gain(channel, combiner))
    message = f"randomised combiner reaches {found.gain / bound:.4f} of the relaxation's bound {bound:.6g}"
    if not placed.found:
        return Solution(found, found.gain, "infeasible", feasibility=placed.feasibility, message=placed.message)
    residual = placement_kkt(paths, aperture, found)
    status: Status = "stationary" if residual < STATIONARY else "stalled"
    trace = (*placed.trace, found.gain)
    return Solution(found, found.gain, status, residual, placed.feasibility, placed.iterations, trace, message)


PLACERS: Mapping[str, Placer] = {
    "pdd": partial(place, method="pdd"),
    "sca": partial(place, method="sca"),
    "ao": partial(place, method="ao"),
    "pso": particle_swarm,
    "grid": grid_ports,
    "sdr": semidefinite,
    "random": random_places,
    "fixed": fixed_array,
}
"""Name -> placement."""


def _legal(aperture: Aperture, layout_m: np.ndarray) -> bool:
    return aperture.violation_m(layout_m) <= 1e-9 * max(aperture.min_spacing_m, aperture.wavelength_m)


def _ended(
    paths: PathSet,
    aperture: Aperture,
    layout_m: np.ndarray,
    trace: tuple[float, ...],
    *,
    iterations: int = 0,
    moves: bool = True,
) -> Solution[Placement]:
    """The layout with its best combiner; the residual is that of the whole problem, or of the combiner alone."""
    combined = multicast(paths.channel(layout_m))
    found = Placement(layout_m.copy(), combined.point, combined.value)
    residual = placement_kkt(paths, aperture, found) if moves else combined.kkt_residual
    violation_m = aperture.violation_m(layout_m)
    feasibility = violation_m / max(aperture.min_spacing_m, 1e-3 * aperture.wavelength_m)
    if not _legal(aperture, layout_m):
        message = f"spacing and region: the fixed array breaks them by {violation_m:.3g} m"
        return Solution(found, found.gain, "infeasible", residual, feasibility, message=message)
    status: Status = "stationary" if residual < STATIONARY else "stalled"
    return Solution(found, found.gain, status, residual, feasibility, iterations, (*trace, found.gain))


def _crowded(paths: PathSet, aperture: Aperture) -> Solution[Placement]:
    """The fixed array, where no layout keeps the aperture."""
    home = _ended(paths, aperture, aperture.home_m, (), moves=False)
    message = (
        f"spacing and region: no layout of {aperture.num_antennas} antennas with {aperture.min_spacing_m:.4g} m "
        f"between them was found; the fixed array breaks them by {aperture.violation_m(aperture.home_m):.3g} m"
    )
    return Solution(home.point, home.value, "infeasible", home.kkt_residual, home.feasibility, message=message)
