"""Combiner and positions moved at once: the max-min gain with exact slopes and curvature.

    maximise over f, r   min_m |f^H h_m(r)|^2 / ||f||^2

with x = (Re f, Im f, free coordinates of r). The model around a point takes the slopes of every gain, the Lagrangian's
curvature with the weights of the step before (its eigenvalues made positive), and the spacing linearised; a step
therefore follows the ridge along which several nodes are heard alike, where moving f and r in turn stops. Newton steps
on the first-order conditions end the climb.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from testbed.opt.kkt import Stationarity, newton, stationarity
from testbed.opt.least_distance import raise_least
from testbed.opt.sca import Model, Proposal
from testbed.phy.aperture import PathSet
from testbed.problems.ma_ota.positions import Freedom

_LEAST_CURVATURE = 1e-6
_ACTIVE_GAIN, _ACTIVE_ROW = 1e-6, 1e-6


@dataclass(frozen=True)
class Antennas:
    """A point of the joint climb.

    Attributes:
        positions_m: shape [num_antennas, 2].
        combiner: f, unit norm, shape [num_antennas].
        weights: mu of the gains, sum 1, shape [num_nodes].
        pushes: multipliers of the aperture's rows, shape [num_rows].
    """

    positions_m: np.ndarray
    combiner: np.ndarray
    weights: np.ndarray
    pushes: np.ndarray


class Expansion:
    """c_m = f^H h_m(r) to second order.

    Attributes:
        heard: c_m, shape [num_nodes].
        values: |c_m|^2, shape [num_nodes].
        slopes: of |c_m|^2 / ||f||^2, real, shape [num_nodes, num_variables].
        turning: of c_m / ||f|| (along the sphere), complex, shape [num_nodes, num_variables].
    """

    def __init__(self, problem: JointGain, positions_m: np.ndarray, combiner: np.ndarray) -> None:
        self._problem, self._combiner = problem, combiner
        count, nodes = len(combiner), problem.paths.num_nodes
        # [num_antennas, num_nodes, 6]: h and its derivatives x, y, xx, xy, yy
        self._field = problem.field(positions_m)
        channel, free = self._field[:, :, 0], problem.freedom.free
        conjugate = combiner.conj()
        self.heard = conjugate @ channel
        self.values = self.heard.real**2 + self.heard.imag**2
        raw = np.empty((nodes, 2 * count + problem.freedom.count), np.complex128)
        raw[:, :count] = channel.T
        raw[:, count : 2 * count] = -1j * channel.T
        moving = conjugate[:, None, None] * self._field[:, :, 1:3]
        raw[:, 2 * count :] = moving.transpose(1, 0, 2)[:, free]
        self._raw = raw
        self._slopes = 2.0 * (self.heard.conj()[:, None] * raw).real
        self._ray = np.zeros(raw.shape[1])
        self._ray[:count], self._ray[count : 2 * count] = combiner.real, combiner.imag
        self.turning = raw - self.heard[:, None] * self._ray
        self.slopes = self._slopes - 2.0 * self.values[:, None] * self._ray

    def hessian(self, weights: np.ndarray) -> np.ndarray:
        """Second derivative of sum_m mu_m |c_m|^2 / ||f||^2 at ||f|| = 1, shape [num_variables, num_variables]."""
        count, free = len(self._combiner), self._problem.freedom.free
        turned = weights * self.heard.conj()
        raw = self._raw * np.sqrt(weights)[:, None]
        result = 2.0 * (raw.real.T @ raw.real + raw.imag.T @ raw.imag)
        # [num_antennas, 6]
        mixed = turned @ self._field
        width = 2 * count
        cross = np.zeros((2 * count, count, 2))
        index = np.arange(count)
        cross[index, index] = 2.0 * mixed[:, 1:3].real
        cross[count + index, index] = 2.0 * mixed[:, 1:3].imag
        block = cross[:, free]
        result[:width, width:] += block
        result[width:, :width] += block.T
        bent = 2.0 * (self._combiner.conj()[:, None] * mixed[:, 3:]).real
        own = np.zeros((count, 2, count, 2))
        own[index, 0, index, 0], own[index, 1, index, 1] = bent[:, 0], bent[:, 2]
        own[index, 0, index, 1] = own[index, 1, index, 0] = bent[:, 1]
        result[width:, width:] += own[free][:, free]
        total, ray = float(weights @ self.values), self._ray
        pulled = np.outer(weights @ self._slopes, ray)
        result -= 2.0 * (pulled + pulled.T) - 8.0 * total * np.outer(ray, ray)
        result[np.arange(width), np.arange(width)] -= 2.0 * total
        return result


class JointGain:
    """The joint problem as one that can be climbed by successive approximation.

    Args:
        paths: auxiliary channels.
        freedom: of the aperture, in the same unit of length.
    """

    def __init__(self, paths: PathSet, freedom: Freedom) -> None:
        self.paths, self.freedom = paths, freedom
        u = paths.directions * (2.0 * np.pi / paths.wavelength_m)
        self._wave = np.ascontiguousarray(u.reshape(-1, 2).T)
        x, y = u[..., 0], u[..., 1]
        # [num_nodes, num_paths, 6]
        basis = np.stack([np.ones_like(x) + 0j, 1j * x, 1j * y, -x * x, -x * y, -y * y], axis=-1)
        self._basis = paths.gains[..., None] * basis

    def field(self, positions_m: np.ndarray) -> np.ndarray:
        """h and its derivatives (x, y, xx, xy, yy), shape [num_antennas, num_nodes, 6]."""
        phasors = np.exp(1j * (positions_m @ self._wave)).reshape(len(positions_m), *self._basis.shape[:2])
        return np.matmul(phasors[:, :, None, :], self._basis)[:, :, 0, :]

    def channel(self, positions_m: np.ndarray) -> np.ndarray:
        """h, shape [num_antennas, num_nodes]."""
        phasors = np.exp(1j * (positions_m @ self._wave)).reshape(len(positions_m), *self._basis.shape[:2])
        return np.einsum("nml,ml->nm", phasors, self._basis[..., 0])

    def gain(self, positions_m: np.ndarray, combiner: np.ndarray) -> float:
        """min_m |f^H h_m|^2 / ||f||^2."""
        heard = combiner.conj() @ self.channel(positions_m)
        return float(np.min(heard.real**2 + heard.imag**2) / np.vdot(combiner, combiner).real)

    def start(self, positions_m: np.ndarray, combiner: np.ndarray) -> Antennas:
        """A point to climb from, its weights concentrated on the nodes heard worst."""
        combiner = combiner / np.linalg.norm(combiner)
        gain = np.abs(combiner.conj() @ self.channel(positions_m)) ** 2
        weights = np.exp(-8.0 * (gain / max(float(gain.min()), 1e-300) - 1.0).clip(0.0, 50.0))
        rows = len(self.freedom.first) + 2 * self.freedom.count
        return Antennas(positions_m, combiner, weights / weights.sum(), np.zeros(rows))

    def value(self, point: Antennas) -> float:
        """The gain of the node heard worst."""
        return self.gain(point.positions_m, point.combiner)

    def curvature(self, expansion: Expansion, point: Antennas) -> np.ndarray:
        """Of the Lagrangian: the gains' with their weights and the spacing's with its multipliers."""
        result = expansion.hessian(point.weights)
        pushes = point.pushes[: len(self.freedom.first)]
        if pushes.any():
            width = 2 * len(point.combiner)
            result[width:, width:] += self.freedom.bend(point.positions_m, pushes)
        return result

    def model(self, point: Antennas) -> Model[Antennas]:
        """Slopes of every gain under the Lagrangian's curvature, made concave."""
        expansion = Expansion(self, point.positions_m, point.combiner)
        level = float(expansion.values.min())
        size, axes = np.linalg.eigh(-self.curvature(expansion, point))
        rows, bounds = self.freedom.rows(point.positions_m)
        width = 2 * len(point.combiner)
        wide = np.zeros((len(rows), len(size)))
        wide[:, width:] = rows
        size = np.maximum(np.abs(size), _LEAST_CURVATURE * level)

        def maximise(damping: float) -> Proposal[Antennas] | None:
            root = axes / np.sqrt(size + damping * level)
            raised = raise_least(expansion.values, expansion.slopes, root, wide, bounds)
            if raised is None:
                return None
            after = self.moved(point, raised.step)
            if not self.freedom.kept(after.positions_m):
                return None
            after = replace(after, weights=raised.weights, pushes=raised.multipliers)
            charge = 0.5 * float(np.sum((raised.step @ axes) ** 2 * (size + damping * level)))
            linear = float(np.min(expansion.values + expansion.slopes @ raised.step))
            return Proposal(after, self.value(after), linear - charge - level)

        return maximise

    def moved(self, point: Antennas, step: np.ndarray) -> Antennas:
        """The point after a step of all variables, the combiner brought back to unit norm."""
        count = len(point.combiner)
        combiner = point.combiner + step[:count] + 1j * step[count : 2 * count]
        positions_m = self.freedom.moved(point.positions_m, step[2 * count :])
        return replace(point, positions_m=positions_m, combiner=combiner / np.linalg.norm(combiner))

    def first_order(self, point: Antennas) -> tuple[Stationarity, np.ndarray, np.ndarray, Expansion]:
        """Weights and multipliers that fit best, which gains and which rows are active, and the expansion."""
        expansion = Expansion(self, point.positions_m, point.combiner)
        active = expansion.values <= expansion.values.min() * (1.0 + _ACTIVE_GAIN)
        rows, bounds = self.freedom.rows(point.positions_m)
        touching = bounds > -_ACTIVE_ROW * self.paths.wavelength_m
        wide = np.zeros((int(touching.sum()), expansion.slopes.shape[1]))
        wide[:, 2 * len(point.combiner) :] = rows[touching]
        # slopes per wavelength, so that all variables are of size one
        scale = np.ones(expansion.slopes.shape[1])
        scale[2 * len(point.combiner) :] = self.paths.wavelength_m
        fitted = stationarity(expansion.slopes[active] * scale, wide * scale)
        return fitted, active, touching, expansion

    def kkt(self, point: Antennas) -> float:
        """What the first-order conditions leave, relative to the gain; positions in wavelengths."""
        fitted, _, _, expansion = self.first_order(point)
        return fitted.residual / float(expansion.values.min())

    def polished(self, point: Antennas, *, max_steps: int = 8, tolerance: float = 1e-9) -> Antennas:
        """Newton steps on the first-order conditions; the point with the least residual that is no worse."""
        best, floor = point, self.value(point)
        residual = self.kkt(point)
        rows, bounds = self.freedom.rows(point.positions_m)
        expansion = Expansion(self, point.positions_m, point.combiner)
        level = expansion.values.min()
        held = (point.weights > 1e-5) & (expansion.values < level * 1.05)
        touching = (point.pushes > 1e-6 * level) & (bounds > -1e-2)
        count = len(point.combiner)
        for _ in range(max_steps):
            if residual < tolerance or not held.any():
                break
            rows, bounds = self.freedom.rows(point.positions_m)
            wide = np.zeros((int(touching.sum()), expansion.slopes.shape[1]))
            wide[:, 2 * count :] = rows[touching]
            free = np.zeros((2, wide.shape[1]))
            free[0, : 2 * count] = np.concatenate([point.combiner.real, point.combiner.imag])
            free[1, : 2 * count] = np.concatenate([-point.combiner.imag, point.combiner.real])
            # norm and phase of f change no gain; a charge on them makes the conditions regular
            matrix = self.curvature(expansion, point) - level * free.T @ free
            solved = newton(matrix, expansion.values[held], expansion.slopes[held], -bounds[touching], wide)
            if solved is None:
                break
            step, weights, pushes = solved
            if not np.abs(step).max() < 0.5:
                break
            all_weights, all_pushes = np.zeros(len(held)), np.zeros(len(touching))
            all_weights[held], all_pushes[touching] = np.maximum(weights, 0.0), np.maximum(pushes, 0.0)
            point = replace(self.moved(point, step), weights=all_weights, pushes=all_pushes)
            expansion = Expansion(self, point.positions_m, point.combiner)
            level = expansion.values.min()
            if not self.freedom.kept(point.positions_m) or level < floor * (1.0 - 1e-4):
                break
            after = self.kkt(point)
            if after < residual and level >= floor * (1.0 - 1e-9):
                best, residual, floor = point, after, max(floor, level)
        return best
