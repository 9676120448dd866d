"""Where the antennas go and how they are combined, so that the node heard worst is heard as well as can be.

    maximise over f, r   q(r, f) = min_m |f^H h_m(r)|^2     ||f|| = 1, r_n in the region, ||r_i - r_j|| >= D

over auxiliary channels, which carry what a node's transmit power and weight are worth, so that no power variable is
left. Three methods, each from several starts, the fixed array among them:

    pdd   penalty dual decomposition on v_m = f^H h_m(r) with successive convex approximation inside, then joint climb
    sca   the joint climb alone: f and r move at once under a model with exact slopes and curvature
    ao    combiner and positions in turn; with two nodes or more it stops short of a stationary point, since at the
          ridge where several nodes are heard alike no move of one block alone helps: the baseline

Published are the problem's kind and that successive convex approximation and penalty dual decomposition solve it (arXiv
2506.00011, abstract only); model, blocks, starts and stopping rules are this project's reconstruction.

Reference: Y. Zhao, Y. Xiu et al., arXiv 2506.00011; the field-response model: arXiv 2210.05396.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from testbed.opt.sca import climb
from testbed.opt.solution import Solution, Status
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.coupled import decomposed
from testbed.problems.ma_ota.joint import Antennas, JointGain
from testbed.problems.ma_ota.positions import Freedom, improve_positions
from testbed.problems.ma_ota.starts import promising_layouts
from testbed.problems.multicast import improve_combiner, multicast, start_combiners

STATIONARY = 1e-4
"""Residual of the first-order conditions below which a placement counts as stationary."""

Method = Literal["pdd", "sca", "ao"]

_POLISHED = 1e-7
_TURNS, _STEPS = 40, 20
_FIRST_DAMPING, _LATER_DAMPING = 0.1, 1e-3
_FINISHED = 2
_ALTERNATIONS, _ALTERNATED = 300, 1e-6


@dataclass(frozen=True)
class Placement:
    """Antennas and combiner.

    Attributes:
        positions_m: array frame, shape [num_antennas, 2].
        combiner: f, unit norm, shape [num_antennas].
        gain: q, of the node heard worst.
    """

    positions_m: np.ndarray
    combiner: np.ndarray
    gain: float


@dataclass(frozen=True)
class _End:
    """Where one start led."""

    antennas: Antennas
    value: float
    trace: tuple[float, ...]
    iterations: int


def place(
    paths: PathSet,
    aperture: Aperture,
    *,
    rng: np.random.Generator,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
    method: Method = "pdd",
) -> Solution[Placement]:
    """Positions and combiner with the largest gain to the node heard worst.

    Args:
        paths: auxiliary channels h_m sqrt(P_m) / (D_m nu_m); see `PathSet.scaled`.
        aperture: region, spacing, fixed array, and which antennas move.
        rng: draws the starts.
        num_starts: searches: from the fixed array, from `warm`, and from the best of groups of random layouts.
        warm: positions to begin from too, shape [num_antennas, 2]; brought into the region, and left out where they
            break the spacing.
        method: "pdd", "sca" or "ao".

    Returns:
        the best end, never below the fixed array with its best combiner where that keeps the aperture. Status
        "stationary" where the first-order conditions hold to 1e-4 of the gain, "stalled" where they do not, and
        "infeasible" where no layout keeps region and spacing; the message then says by how much the fixed array breaks
        them. `trace` is the winner's gain: after every round of the decomposition its level, which may fall, then
        after every step of the climb, which never does.

    Raises:
        ValueError: a node's channel is zero or not finite, the wavelengths of paths and aperture differ, a method or
            number of starts that is none, or a warm start of another shape.

    Reference:
        as the module.
    """
    _check(paths, aperture, num_starts, warm, method)
    inner_paths, inner, scale, unit_m = _normalised(paths, aperture)
    joint = JointGain(inner_paths, Freedom(inner))
    starts = _starts(joint, inner, num_starts, None if warm is None else warm / unit_m, rng)
    if not starts:
        return _infeasible(paths, aperture)
    begun = [_served(joint, layout, exact=index == 0) for index, layout in enumerate(starts)]
    ends = [_searched(joint, antennas, method) for antennas in begun]
    if method != "ao":
        order = sorted(range(len(ends)), key=lambda index: -ends[index].value)
        ends = [_finished(joint, ends[index]) if rank < _FINISHED else ends[index] for rank, index in enumerate(order)]
    best = max(ends, key=lambda end: end.value)
    home = begun[0]
    if joint.value(home) > best.value:
        best = _End(home, joint.value(home), (joint.value(home),), 0)
    positions_m = _back(aperture, best.antennas.positions_m * unit_m)
    gain = best.value * scale**2
    placement = Placement(positions_m, best.antennas.combiner, gain)
    residual = joint.kkt(best.antennas)
    status: Status = "stationary" if residual < STATIONARY else "stalled"
    return Solution(
        point=placement,
        value=gain,
        status=status,
        kkt_residual=residual,
        feasibility=aperture.violation_m(positions_m) / max(aperture.min_spacing_m, 1e-3 * aperture.wavelength_m),
        iterations=sum(end.iterations for end in ends),
        trace=tuple(level * scale**2 for level in best.trace),
        message="" if status == "stationary" else _stalled(method, residual),
    )


def placement_kkt(paths: PathSet, aperture: Aperture, placement: Placement) -> float:
    """What the first-order conditions of a placement leave, relative to its gain; positions count in wavelengths.

    min over mu >= 0, sum mu = 1, nu >= 0 of || sum_m mu_m grad q_m + sum_b nu_b grad g_b || / q

    over gains q_m active to 1e-6, edges and pairs active to 1e-6 wavelengths, and gradients along ||f|| = 1.

    Args:
        paths: auxiliary channels.
        aperture: where antennas may be.
        placement: keeps the aperture.
    """
    inner_paths, inner, _, unit_m = _normalised(paths, aperture)
    joint = JointGain(inner_paths, Freedom(inner))
    return joint.kkt(joint.start(placement.positions_m / unit_m, placement.combiner))


def _check(paths: PathSet, aperture: Aperture, num_starts: int, warm: np.ndarray | None, method: str) -> None:
    power = np.sum(np.abs(paths.gains) ** 2, axis=1)
    if power.size == 0:
        raise ValueError("a placement needs at least one node")
    if not (np.isfinite(power).all() and np.isfinite(paths.directions).all()):
        raise ValueError(f"the paths of nodes {np.flatnonzero(~np.isfinite(power)).tolist()} are not finite")
    if power.min() == 0.0:
        raise ValueError(f"the channels of nodes {np.flatnonzero(power == 0).tolist()} are zero: leave these nodes out")
    if not np.isclose(paths.wavelength_m, aperture.wavelength_m, rtol=1e-9):
        raise ValueError(f"paths have a wavelength of {paths.wavelength_m} m, the aperture {aperture.wavelength_m} m")
    if num_starts < 1:
        raise ValueError(f"{num_starts} starts: at least 1, the fixed array")
    if warm is not None and (warm.shape != aperture.home_m.shape or not np.isfinite(warm).all()):
        raise ValueError(f"a warm start of shape {warm.shape}: {aperture.home_m.shape}, all finite, is asked")
    if method not in ("pdd", "sca", "ao"):
        raise ValueError(f"method {method!r} is none of pdd, sca, ao")


def _normalised(paths: PathSet, aperture: Aperture) -> tuple[PathSet, Aperture, float, float]:
    """Lengths in lambda / 2 pi and the weakest node's mean power 1: what tolerances and penalties are made for."""
    unit_m = aperture.wavelength_m / (2.0 * np.pi)
    scale = float(np.sqrt(np.min(np.sum(np.abs(paths.gains) ** 2, axis=1))))
    inner = replace(
        aperture,
        home_m=aperture.home_m / unit_m,
        region_m=aperture.region_m / unit_m,
        min_spacing_m=aperture.min_spacing_m / unit_m,
        wavelength_m=2.0 * np.pi,
    )
    return PathSet(paths.directions, paths.gains / scale, 2.0 * np.pi), inner, scale, unit_m


def _back(aperture: Aperture, positions_m: np.ndarray) -> np.ndarray:
    """Positions in metres, free of the rounding of the change of unit."""
    clipped = np.clip(positions_m, aperture.region_m[:, 0], aperture.region_m[:, 1])
    return np.where(aperture.movable[:, None], clipped, aperture.home_m)


def _starts(
    joint: JointGain, inner: Aperture, num_starts: int, warm: np.ndarray | None, rng: np.random.Generator
) -> list[np.ndarray]:
    """Layouts that keep the aperture: the fixed array first where it does, then the warm one, then random ones."""
    least = 1e-9 * inner.min_spacing_m
    starts = [inner.home_m] if inner.violation_m(inner.home_m) <= least else []
    if warm is not None:
        brought = _back(inner, warm)
        if joint.freedom.kept(brought):
            starts.append(brought)
    return starts + promising_layouts(joint.paths, inner, num_starts - len(starts), rng)


def _served(joint: JointGain, layout: np.ndarray, *, exact: bool) -> Antennas:
    """A layout with its best combiner, or with the best that one climb from a simple one reaches."""
    channel = joint.channel(layout)
    if exact:
        return joint.start(layout, multicast(channel).point)
    begun = start_combiners(channel)
    heard = begun.conj() @ channel
    simple = begun[np.argmax(np.min(heard.real**2 + heard.imag**2, axis=1))]
    return joint.start(layout, improve_combiner(channel, simple))


def _infeasible(paths: PathSet, aperture: Aperture) -> Solution[Placement]:
    """The fixed array with its best combiner, and by how much it breaks the aperture."""
    found = multicast(paths.channel(aperture.home_m))
    short_m = aperture.violation_m(aperture.home_m)
    return Solution(
        point=Placement(aperture.home_m, found.point, found.value),
        value=found.value,
        status="infeasible",
        feasibility=short_m / max(aperture.min_spacing_m, 1e-3 * aperture.wavelength_m),
        message=f"spacing and region: no layout of {aperture.num_antennas} antennas with "
        f"{aperture.min_spacing_m:.4g} m between them was found inside the region; the fixed array breaks them by "
        f"{short_m:.3g} m",
    )


def _stalled(method: str, residual: float) -> str:
    if method == "ao":
        return f"neither combiner nor positions alone raise the gain, together they would: residual {residual:.2g}"
    return f"the climb ended with a residual of {residual:.2g}; more starts may help"


def _searched(joint: JointGain, antennas: Antennas, method: Method) -> _End:
    if method == "ao":
        return _alternated(joint, antennas)
    if method == "sca":
        return _End(antennas, joint.value(antennas), (), 0) if joint.freedom.count == 0 else _climbed(joint, antennas)
    return _decomposed(joint, antennas)


def _climbed(joint: JointGain, antennas: Antennas, damping: float = _FIRST_DAMPING) -> _End:
    solution = climb(joint, antennas, max_steps=_STEPS, tolerance=1e-10, damping=damping)
    return _End(solution.point, solution.value, solution.trace, solution.iterations)


def _decomposed(joint: JointGain, antennas: Antennas) -> _End:
    """Penalty dual decomposition, then the joint climb from where it ends."""
    solution = decomposed(joint, antennas)
    reached = solution.point.point.antennas
    end = joint.start(reached.positions_m, reached.combiner)
    trace = tuple(level**2 for level in solution.trace)
    more = _climbed(joint, end)
    return replace(more, trace=trace + more.trace, iterations=more.iterations + solution.iterations)


def _finished(joint: JointGain, end: _End) -> _End:
    """Climb and Newton steps in turn until the first-order conditions hold, then once more under the best combiner."""
    end = _settled(joint, end)
    channel = joint.channel(end.antennas.positions_m)
    other = multicast(channel, start=end.antennas.combiner)
    if other.value > end.value * (1.0 + 1e-9):
        antennas = joint.start(end.antennas.positions_m, other.point)
        end = _settled(joint, replace(end, antennas=antennas, value=other.value, trace=(*end.trace, other.value)))
    return end


def _settled(joint: JointGain, end: _End) -> _End:
    for _ in range(_TURNS):
        antennas = joint.polished(end.antennas)
        value = joint.value(antennas)
        end = replace(end, antennas=antennas, value=value, trace=(*end.trace, value))
        if joint.kkt(antennas) < _POLISHED:
            break
        more = _climbed(joint, antennas, _LATER_DAMPING)
        end = _End(more.antennas, more.value, end.trace + more.trace[1:], end.iterations + more.iterations)
    return end


def _alternated(joint: JointGain, antennas: Antennas) -> _End:
    """Best combiner for the positions, one convex step of the positions for the combiner, and so on."""
    value = joint.value(antennas)
    trace = [value]
    positions_m, combiner, weights = antennas.positions_m, antennas.combiner, antennas.weights
    for _ in range(_ALTERNATIONS):
        positions_m, weights = improve_positions(joint.paths, joint.freedom, positions_m, combiner, weights=weights)
        combiner = improve_combiner(joint.channel(positions_m), combiner)
        before, value = value, joint.gain(positions_m, combiner)
        trace.append(value)
        if value - before <= _ALTERNATED * value:
            break
    return _End(joint.start(positions_m, combiner), value, tuple(trace), len(trace) - 1)
