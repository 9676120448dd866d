"""The max-min gain in two coupled blocks, for penalty dual decomposition.

    maximise s   subject to   v_m = f^H h_m(r),   |v_m| >= s,   ||f|| = 1,   r in the aperture

Block one (v, s) is in closed form. Block two (f, r) takes one step of successive convex approximation on

    1/2 sum_m | f^H h_m(r) - y_m |^2,     y = v + rho lambda:

f^H h_m linearised along the sphere and the aperture, the spacing linearised inside, a damping charge that grows until
the sum falls. The amplitude s stands where the gain s^2 could: with s^2 the first block is unbounded for small
penalties. That penalty dual decomposition is used is published (arXiv 2506.00011, abstract); blocks and coupling are
this project's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from testbed.opt.least_distance import quadratic
from testbed.opt.pdd import Tied, decompose
from testbed.opt.solution import Solution
from testbed.problems.ma_ota.joint import Antennas, Expansion, JointGain

_LEAST_DAMPING, _MOST_DAMPING = 1e-6, 1e6
_PENALTY, _SHRINK = 1.0, 0.3
_SWEEPS, _SWEPT, _ROUNDS = 10, 1e-3, 60


@dataclass(frozen=True)
class Blocks:
    """A point of all blocks.

    Attributes:
        antennas: f and r.
        heard: f^H h_m(r), shape [num_nodes].
        targets: v, shape [num_nodes].
        level: s.
        damping: of the next step of (f, r).
    """

    antennas: Antennas
    heard: np.ndarray
    targets: np.ndarray
    level: float
    damping: float


def lift(aimed: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Block (v, s): maximise s - 1 / (2 rho) || v - a ||^2 subject to |v_m| >= s.

    s = (sum of the j least |a| + rho) / j for the first j with s <= the next |a|;   v_m = a_m max(1, s / |a_m|)

    Args:
        aimed: a, shape [num_nodes].
        penalty: rho.

    Returns:
        v, shape [num_nodes], and s.
    """
    size = np.abs(aimed)
    order = np.sort(size)
    levels = (np.cumsum(order) + penalty) / np.arange(1, len(order) + 1)
    following = np.append(order[1:], np.inf)
    level = float(levels[np.argmax(levels <= following)])
    turn = np.where(size > 0.0, aimed / np.maximum(size, 1e-300), 1.0)
    return np.where(size < level, level * turn, aimed), level


class CoupledGain:
    """The problem as penalty dual decomposition wants it.

    Args:
        joint: paths and freedom of the aperture.
    """

    def __init__(self, joint: JointGain) -> None:
        self.joint = joint

    def start(self, antennas: Antennas, penalty: float) -> Blocks:
        """All blocks from f and r."""
        heard = antennas.combiner.conj() @ self.joint.channel(antennas.positions_m)
        targets, level = lift(heard, penalty)
        return Blocks(antennas, heard, targets, level, 0.1)

    def objective(self, point: Blocks) -> float:
        """s."""
        return point.level

    def coupling(self, point: Blocks) -> np.ndarray:
        """v - f^H h(r), shape [num_nodes]."""
        return point.targets - point.heard

    def sweep(self, point: Blocks, multipliers: np.ndarray, penalty: float) -> Blocks:
        """Both blocks once."""
        targets, level = lift(point.heard - penalty * multipliers, penalty)
        return self._follow(replace(point, targets=targets, level=level), targets + penalty * multipliers)

    def _follow(self, point: Blocks, wanted: np.ndarray) -> Blocks:
        """f and r one step nearer to hearing what is wanted."""
        joint, antennas = self.joint, point.antennas
        expansion = Expansion(joint, antennas.positions_m, antennas.combiner)
        left = expansion.heard - wanted
        error = float(np.vdot(left, left).real)
        if error < 1e-24:
            return point
        table = np.concatenate([expansion.turning.real, expansion.turning.imag])
        gradient = table.T @ np.concatenate([left.real, left.imag])
        normal = table.T @ table
        rows, bounds = joint.freedom.rows(antennas.positions_m)
        wide = np.zeros((len(rows), len(normal)))
        wide[:, 2 * len(antennas.combiner) :] = rows
        damping = point.damping
        diagonal = np.arange(len(normal))
        while damping <= _MOST_DAMPING:
            charged = normal.copy()
            charged[diagonal, diagonal] += damping
            root = np.linalg.inv(np.linalg.cholesky(charged)).T
            nearest = quadratic(root, gradient, wide, bounds)
            if nearest is not None:
                after = joint.moved(antennas, nearest.point)
                heard = after.combiner.conj() @ joint.channel(after.positions_m)
                now = float(np.sum(np.abs(heard - wanted) ** 2))
                if now < error and joint.freedom.kept(after.positions_m):
                    promised = -2.0 * float(gradient @ nearest.point) - float(np.sum((table @ nearest.point) ** 2))
                    calm = error - now > 0.75 * promised
                    damping = max(damping / 4.0, _LEAST_DAMPING) if calm else damping
                    return replace(point, antennas=after, heard=heard, damping=damping)
            damping *= 5.0
        return replace(point, damping=1.0)


def decomposed(joint: JointGain, antennas: Antennas, *, tolerance: float = 1e-7) -> Solution[Tied[Blocks]]:
    """Penalty dual decomposition of the max-min gain, from one start.

    Args:
        joint: paths, of the weakest node's mean power 1, and freedom of the aperture.
        antennas: f and r to begin with.
        tolerance: violation max |v_m - f^H h_m(r)| at which it ends.

    Returns:
        all blocks; `trace` is the level s after each round, `feasibility` the violation.

    Reference:
        Q. Shi, M. Hong, arXiv 1712.04767; blocks and constants are this project's.
    """
    coupled = CoupledGain(joint)
    return decompose(
        coupled,
        coupled.start(antennas, _PENALTY),
        penalty=_PENALTY,
        shrink=_SHRINK,
        max_sweeps=_SWEEPS,
        sweep_tolerance=_SWEPT,
        max_rounds=_ROUNDS,
        tolerance=tolerance,
    )
