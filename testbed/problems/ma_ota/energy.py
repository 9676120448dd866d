"""Antenna places for a non-coherent vote: the weakest client is heard with as much energy as can be.

An energy detector adds |y_n|^2 over the antennas, so phases play no part and neither does a combiner:

    maximise over r   min_m E_m(r),   E_m(r) = P_m sum_n |h_m(r_n)|^2,   r_n in the region, ||r_n - r_n'|| >= D

The lone vote of client m over a channel that holds still is misread with the exponent E_m / noise
(`testbed.phy.voting.fsk_vote_error_awgn`), so the same places maximise the weakest client's error exponent.

From the literature: the field-response channel, and successive convex approximation with a curvature bound (W. Ma,
L. Zhu, R. Zhang, arXiv 2210.05396); the energy detector (A. Sahin, arXiv 2209.09954). Our reading, since the paper on
movable antennas and fine-tuning (arXiv 2506.00011) assumes coherent clients: this objective, and its global minoriser
from |h|^2 >= 2 Re{h0^* h} - |h0|^2 and cos x >= cos x0 - sin x0 (x - x0) - (x - x0)^2 / 2,

    |h_m(r_n)|^2 >= |h0|^2 + g^T d - d^T Q d / 2,   d = r_n - r0,
    g = 2 Re{h0^* sum_l j k u_ml a_ml e^{j k u_ml . r0}},   Q = 2 k^2 |h0| sum_l |a_ml| u_ml u_ml^T,   k = 2 pi / lambda

Every step maximises the smallest of these sums with one common curvature per antenna: a least-distance problem. A
shorter curvature is tried first and kept where the true energy grows as announced; the full one always does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.opt.kkt import stationarity
from testbed.opt.least_distance import raise_least
from testbed.opt.sca import Model, Proposal, climb
from testbed.opt.solution import Solution, Status
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.port_search import free_ports, port_grid
from testbed.problems.ma_ota.positions import Freedom
from testbed.problems.ma_ota.starts import random_layouts

_PORT_STEP = 0.125  # wavelengths; the energy's fastest ripple is half a wavelength long
_STEPS = 400
_FIRST_SHARE = 0.125  # of the curvature that is never too small
_TOLERANCE = 1e-11  # promised growth
_KKT = 1e-4
_ACTIVE = 1e-6


@dataclass(frozen=True)
class Minoriser:
    """|h_m(r_n)|^2 is at least value + gradient . d - d . curvature . d / 2, with equality at d = 0.

    Attributes:
        value: shape [num_antennas, num_nodes].
        gradient: per metre, shape [num_antennas, num_nodes, 2].
        curvature: per square metre, shape [num_antennas, num_nodes, 2, 2].
    """

    value: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray


def minoriser(paths: PathSet, positions_m: np.ndarray) -> Minoriser:
    """A concave quadratic below the energy of every client at every antenna, everywhere; see the module.

    Args:
        paths: channels, sqrt(P_m) h_m.
        positions_m: r0, shape [num_antennas, 2].
    """
    wavenumber = 2.0 * np.pi / paths.wavelength_m
    # [num_antennas, num_nodes, num_paths]
    waves = paths.waves(positions_m)
    channel = waves.sum(axis=-1)
    slope = 1j * wavenumber * np.einsum("nml,mli->nmi", waves, paths.directions)
    gradient = 2.0 * np.real(channel.conj()[..., None] * slope)
    # [num_nodes, 2, 2]
    spread = np.einsum("ml,mli,mlj->mij", np.abs(paths.gains), paths.directions, paths.directions)
    curvature = 2.0 * wavenumber**2 * np.abs(channel)[..., None, None] * spread
    return Minoriser(np.abs(channel) ** 2, gradient, curvature)


def energies(paths: PathSet, positions_m: np.ndarray) -> np.ndarray:
    """E_m(r) = sum_n |h_m(r_n)|^2, shape [num_nodes].

    Args:
        paths: channels, sqrt(P_m) h_m.
        positions_m: shape [num_antennas, 2].
    """
    return _each(paths, positions_m).sum(axis=0)


def place_for_energy(
    paths: PathSet,
    aperture: Aperture,
    *,
    rng: np.random.Generator,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
) -> Solution[np.ndarray]:
    """Places that give the weakest client as much energy as any start leads to, never less than the fixed array.

    Every start is taken as it is and after an exchange of ports on a grid of lambda / 8; both then climb by successive
    convex approximation.

    Args:
        paths: channels, sqrt(P_m) h_m.
        aperture: where antennas may be.
        rng: draws starts.
        num_starts: the fixed array, the warm start, and random layouts.
        warm: where an earlier search ended, shape [num_antennas, 2].

    Returns:
        positions [num_antennas, 2] and their weakest energy; stationary where the first-order conditions hold to 1e-4.

    Raises:
        ValueError: a channel is zero or not finite, or no start is asked for.

    Reference:
        see the module.
    """
    scale = _checked_scale(paths)
    scaled = paths.scaled(np.full(paths.num_nodes, 1.0 / np.sqrt(scale)))
    if aperture.violation_m(aperture.home_m) > 1e-9:
        home_m, short_m = aperture.home_m.copy(), aperture.violation_m(aperture.home_m)
        message = f"spacing: the fixed array breaks the aperture's limits by {short_m:g} m"
        return Solution(
            home_m, float(energies(paths, home_m).min()), "infeasible", feasibility=short_m, message=message
        )
    ports_m = port_grid(aperture, _PORT_STEP * aperture.wavelength_m)
    problem = _Weakest(scaled, Freedom(aperture))
    best: Solution[np.ndarray] | None = None
    iterations = 0
    offered = _each(scaled, ports_m)
    for start_m in _starts(aperture, rng, num_starts, warm):
        for begun_m in (start_m, exchanged(aperture, ports_m, offered, start_m, _each(scaled, start_m))):
            ended = climb(problem, begun_m, max_steps=_STEPS, tolerance=_TOLERANCE, damping=_FIRST_SHARE)
            iterations += ended.iterations
            if best is None or ended.value > best.value:
                best = ended
    assert best is not None  # the fixed array is always among the starts
    placed_m, trace = best.point, best.trace
    residual, _ = energy_conditions(paths, aperture, placed_m)
    status: Status = "stationary" if residual < _KKT else "stalled"
    value = float(energies(paths, placed_m).min())
    feasibility = aperture.violation_m(placed_m) / max(aperture.min_spacing_m, 1e-3 * aperture.wavelength_m)
    return Solution(placed_m, value, status, residual, feasibility, iterations, tuple(scale * v for v in trace))


def exchanged(
    aperture: Aperture, ports_m: np.ndarray, offered: np.ndarray, start_m: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """Antennas moved one at a time to the port that helps the weakest client most, until none helps.

    Args:
        aperture: where antennas may be.
        ports_m: where they may go, shape [num_ports, 2].
        offered: energy of every client there, shape [num_ports, num_nodes].
        start_m: where they begin, shape [num_antennas, 2].
        own: energy of every client there, shape [num_antennas, num_nodes].

    Returns:
        shape [num_antennas, 2]; its weakest energy is at least that of the start.
    """
    places_m, own = start_m.copy(), own.copy()
    improved = True
    while improved:
        improved = False
        for slot in np.flatnonzero(aperture.movable):
            others = np.arange(len(places_m)) != slot
            weakest = np.min(own[others].sum(axis=0) + offered, axis=1)
            weakest[~free_ports(ports_m, places_m[others], aperture.min_spacing_m)] = -np.inf
            port = int(np.argmax(weakest))
            if weakest[port] > float(own.sum(axis=0).min()) * (1 + 1e-9):
                places_m[slot], own[slot], improved = ports_m[port], offered[port], True
    return places_m


def energy_conditions(paths: PathSet, aperture: Aperture, positions_m: np.ndarray) -> tuple[float, np.ndarray]:
    """What the first-order conditions leave, per wavelength and energy, and each client's weight in them.

    minimise over mu, nu >= 0, sum mu = 1   || sum_m mu_m grad E_m + sum_i nu_i grad c_i || lambda / min_m E_m

    over the clients whose energy is the smallest and the region's edges and spacings c_i that are reached. A client's
    weight mu_m is its share in what holds the weakest energy down.

    Args:
        paths: channels, sqrt(P_m) h_m.
        aperture: where antennas may be.
        positions_m: shape [num_antennas, 2].

    Returns:
        the residual; weights mu, shape [num_nodes].
    """
    freedom = Freedom(aperture)
    bound = minoriser(paths, positions_m)
    energy = bound.value.sum(axis=0)
    active = np.flatnonzero(energy <= energy.min() * (1 + _ACTIVE))
    # [num_active, num_free], per wavelength
    uphill = np.swapaxes(bound.gradient, 0, 1)[active][:, freedom.free] * aperture.wavelength_m
    rows, bounds_m = freedom.rows(positions_m)
    reached = rows[bounds_m >= -_ACTIVE * aperture.wavelength_m]
    held = stationarity(uphill / max(float(energy.min()), 1e-300), reached)
    weights = np.zeros(paths.num_nodes)
    weights[active] = held.weights
    return held.residual, weights


@dataclass(frozen=True)
class _Weakest:
    """min_m E_m(r) and its minorisers, for `testbed.opt.sca.climb`; the damping is the share of the full curvature."""

    paths: PathSet
    freedom: Freedom

    def value(self, point: np.ndarray) -> float:
        return float(energies(self.paths, point).min())

    def model(self, point: np.ndarray) -> Model[np.ndarray]:
        bound = minoriser(self.paths, point)
        energy = bound.value.sum(axis=0)
        slopes = np.swapaxes(bound.gradient, 0, 1)[:, self.freedom.free]
        # the largest curvature of all clients, the same along both axes, [num_free]
        steepest = np.linalg.eigvalsh(bound.curvature)[..., -1].max(axis=1)
        steepest = np.broadcast_to(steepest[:, None], point.shape)[self.freedom.free]
        steepest = np.maximum(steepest, 1e-12 * max(float(steepest.max(initial=0.0)), 1e-300))
        rows, bounds_m = self.freedom.rows(point)

        def propose(share: float) -> Proposal[np.ndarray] | None:
            curvature = share * steepest
            raised = raise_least(energy, slopes, np.diag(curvature**-0.5), rows, bounds_m)
            if raised is None:
                return None
            tried_m = self.freedom.moved(point, raised.step)
            if not self.freedom.kept(tried_m):
                return None
            linear = float(np.min(energy + slopes @ raised.step)) - float(energy.min())
            promised = linear - 0.5 * float(curvature @ raised.step**2)
            return Proposal(tried_m, self.value(tried_m), promised)

        return propose


def _each(paths: PathSet, positions_m: np.ndarray) -> np.ndarray:
    """|h_m(r)|^2 at every place, shape [num_places, num_nodes]."""
    channel = paths.channel(positions_m)
    return np.asarray(channel.real**2 + channel.imag**2)


def _checked_scale(paths: PathSet) -> float:
    """The smallest client's sum of path powers, the unit of energy."""
    strength = np.sum(np.abs(paths.gains) ** 2, axis=1)
    if paths.num_nodes == 0 or not np.all(np.isfinite(paths.gains)) or not np.all(strength > 0):
        raise ValueError("places for energy need at least one client, and a finite channel that is not zero from each")
    return float(strength.min())


def _starts(aperture: Aperture, rng: np.random.Generator, num_starts: int, warm: np.ndarray | None) -> list[np.ndarray]:
    """The fixed array, the warm start where it is legal, and random layouts up to the number."""
    if num_starts < 1:
        raise ValueError(f"a search needs at least one start, not {num_starts}")
    starts = [aperture.home_m]
    if warm is not None and aperture.violation_m(warm) <= 1e-9:
        starts.append(np.array(warm, np.float64))
    missing = num_starts - len(starts)
    return starts + (list(random_layouts(aperture, missing, rng)) if missing > 0 and aperture.movable.any() else [])
