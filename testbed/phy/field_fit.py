"""From channels measured at scattered positions to the plane waves that explain them, and to the channel anywhere.

    h(r) = sum_l a_l exp(j 2 pi / lambda r . u_l)

Directions come from matching pursuit on a grid, each new one followed by a joint least-squares refinement of all, and
their number from the Bayesian information criterion. `testbed.phy.field_checks` tells how far the result is to be
believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from testbed.phy.array import field_response
from testbed.phy.field_model import PER_PATH, PathField, Samples, path_slopes

_GRID = 0.2  # step of directions, of the resolution wavelength / aperture
_PATIENCE = 2  # paths that are tried beyond the best number
_STARTS = 2  # peaks of the residual that are followed for each new path
_ITERATIONS = 40
_SHAKES, _SHAKE = 8, 0.35  # how many times, and how far in resolutions
_EXPLAINED = 1.5  # times the noise: while more is left, paths are added
_SEARCH, _LAST = 1e-3, 1e-7  # shares of the cost below which a step ends a refinement
_PRIOR_POWERS = 4.0  # prior variance of a path's gain, in mean powers of the channel: it decides nothing that data do


@dataclass(frozen=True)
class PathFit:
    """What `fit_paths` found.

    Attributes:
        field: the plane waves; its covariance is the Cramer-Rao bound times `scatter` where that is above 1.
        factors: of each antenna relative to antenna 0, shape [num_antennas], complex128; ones unless they were fitted.
        phases_rad: of each visit relative to the first, shape [num_visits]; zeros unless they were fitted.
        residual: measured minus explained, shape [num_samples].
        scatter: squared residuals over what the variances of the samples explain: 1 where the model holds.
        freedom: real degrees of freedom that `scatter` rests on; at most 0 where there are too few samples to tell.
        criterion: Bayesian information criterion, lower is better.
    """

    field: PathField
    factors: np.ndarray
    phases_rad: np.ndarray
    residual: np.ndarray
    scatter: float
    freedom: int
    criterion: float


@dataclass(frozen=True)
class _State:
    """Unknowns: directions [L, 2], gains [L], factors [num_antennas], phases [num_visits]."""

    directions: np.ndarray
    gains: np.ndarray
    factors: np.ndarray
    phases_rad: np.ndarray


class _Problem:
    """Weighted least squares of one set of samples; channels are scaled to unit mean power.

    Args:
        samples: measured.
        wavelength_m: metres.
        free_factors: whether each antenna but the first has a complex factor of its own.
        free_phases: whether each visit but the first has a phase of its own.
    """

    def __init__(self, samples: Samples, wavelength_m: float, *, free_factors: bool, free_phases: bool) -> None:
        self.samples, self.wavelength_m = samples, wavelength_m
        self.scale = math.sqrt(max(float(np.mean(np.abs(samples.channel) ** 2)), 1e-300))
        self.measured = samples.channel / self.scale
        # residuals are divided by it: real and imaginary parts then have unit variance
        self.deviation = np.sqrt(np.maximum(samples.variance, 1e-14 * self.scale**2) / 2) / self.scale
        self.antennas, self.visits = int(samples.antenna.max()) + 1, int(samples.visit.max()) + 1
        self.factor_index = np.unique(samples.antenna)[1:] if free_factors else np.zeros(0, np.int64)
        self.phase_index = np.unique(samples.visit)[1:] if free_phases else np.zeros(0, np.int64)
        self.prior_precision = 2.0 / _PRIOR_POWERS
        # of direction cosines along the two axes
        self.resolution = wavelength_m / np.maximum(np.ptp(samples.positions_m, axis=0), 0.25 * wavelength_m)
        self.grid = _disc(_GRID * self.resolution)
        self.grid_waves = field_response(samples.positions_m, self.grid, wavelength_m) / self.deviation[:, None]

    @property
    def nuisances(self) -> int:
        """Real unknowns beside those of the paths."""
        return 2 * len(self.factor_index) + len(self.phase_index)

    def start(self, phases_rad: np.ndarray | None) -> _State:
        """No path yet."""
        phases = np.zeros(self.visits) if phases_rad is None or not len(self.phase_index) else phases_rad
        return _State(np.zeros((0, 2)), np.zeros(0, np.complex128), np.ones(self.antennas, np.complex128), phases)

    def turn(self, state: _State) -> np.ndarray:
        """Factor and phase of each sample, [num_samples]."""
        own: np.ndarray = state.factors[self.samples.antenna] * np.exp(1j * state.phases_rad[self.samples.visit])
        return own

    def waves(self, state: _State) -> np.ndarray:
        """[num_samples, num_paths]."""
        return field_response(self.samples.positions_m, state.directions, self.wavelength_m)

    def residual(self, state: _State) -> np.ndarray:
        """Measured minus explained, [num_samples]."""
        return self.measured - self.turn(state) * (self.waves(state) @ state.gains)

    def cost(self, state: _State) -> float:
        """Squares of the whitened residuals, and of the gains over their prior."""
        residual = np.abs(self.residual(state)) / self.deviation
        return float(residual @ residual) + self.prior_precision * float(np.sum(np.abs(state.gains) ** 2))

    def with_gains(self, state: _State) -> _State:
        """The state with the best gains for its directions."""
        matrix = (self.turn(state) / self.deviation)[:, None] * self.waves(state)
        gram = matrix.conj().T @ matrix + self.prior_precision * np.eye(matrix.shape[1])
        return replace(state, gains=np.linalg.solve(gram, matrix.conj().T @ (self.measured / self.deviation)))

    def slopes(self, state: _State) -> np.ndarray:
        """Derivatives of what is explained, whitened, [num_samples, num_unknowns], complex."""
        waves, turn = self.waves(state), self.turn(state)
        columns = [
            turn[:, None] * path_slopes(waves, self.samples.positions_m, state.gains, self.wavelength_m),
        ]
        explained = turn * (waves @ state.gains)
        if len(self.factor_index):
            own = self.samples.antenna[:, None] == self.factor_index
            relative = own * (explained / state.factors[self.samples.antenna])[:, None]
            columns += [relative, 1j * relative]
        if len(self.phase_index):
            columns.append(1j * explained[:, None] * (self.samples.visit[:, None] == self.phase_index))
        return np.concatenate(columns, axis=1) / self.deviation[:, None]

    def stepped(self, state: _State, step: np.ndarray) -> _State:
        """The state a step further, directions kept within the unit disc, with the best gains."""
        count, factors, phases_rad = len(state.gains), state.factors.copy(), state.phases_rad.copy()
        directions = state.directions + step[: 2 * count].reshape(2, count).T
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1.0)
        rest = step[PER_PATH * count :]
        own = len(self.factor_index)
        factors[self.factor_index] += rest[:own] + 1j * rest[own : 2 * own]
        phases_rad[self.phase_index] += rest[2 * own :]
        return self.with_gains(replace(state, directions=directions, factors=factors, phases_rad=phases_rad))

    def precision(self, state: _State) -> np.ndarray:
        """Fisher information of all unknowns, with the prior, real."""
        slopes = self.slopes(state)
        information = (slopes.conj().T @ slopes).real
        count = len(state.gains)
        prior = np.zeros(len(information))
        prior[: 2 * count] = 1.0  # direction cosines lie in the unit disc
        prior[2 * count : PER_PATH * count] = self.prior_precision
        prior[PER_PATH * count :] = 1e-6
        return information + np.diag(prior)


def fit_paths(
    samples: Samples,
    wavelength_m: float,
    *,
    max_paths: int = 10,
    free_factors: bool = False,
    free_phases: bool = False,
    phases_rad: np.ndarray | None = None,
) -> PathFit:
    """The plane waves that explain the samples best, their number chosen by the Bayesian information criterion.

    minimise over L, u, a, c, phi:  2 M f(X / 2 M) + p ln(2 M)
    X = sum_m 2 |y_m - c_n(m) exp(j phi_v(m)) h(r_m)|^2 / s_m^2

    with p unknowns in all, and f(x) = x - 1 up to 1, where the samples' variances s_m^2 explain the residuals, and ln x
    beyond, where their true scale has to be estimated. Each new path starts where the residual correlates best with a
    plane wave; then all unknowns are refined together by Levenberg-Marquardt steps, the gains solved for anew at each
    (Kaufman's variable projection). In the end the directions are shaken, since paths closer than the resolution have
    many local optima. With the right number of paths the error reaches the Cramer-Rao bound.

    Args:
        samples: of one node.
        wavelength_m: metres.
        max_paths: no more are tried; nor more than leave as many real samples as there are unknowns.
        free_factors: give each antenna but the first a complex factor of its own.
        free_phases: give each visit but the first a phase of its own.
        phases_rad: where these begin, shape [num_visits].

    Returns:
        the fit.

    Raises:
        ValueError: no samples, some that are not finite, or too few for one path.

    Reference:
        B. Mamandipoor, D. Ramasamy, U. Madhow, "Newtonized orthogonal matching pursuit", IEEE Trans. Signal Process.
        2016 (refinement after every new wave); L. Kaufman, "A variable projection method for solving separable
        nonlinear least squares problems", BIT 1975; L. Zhu, W. Ma, R. Zhang, IEEE Trans. Wireless Commun. 2024 (the
        model).
    """
    if not (len(samples) and np.all(np.isfinite(samples.channel)) and np.all(np.isfinite(samples.positions_m))):
        raise ValueError(f"no fit to {len(samples)} samples, or to some that are not finite")
    problem = _Problem(samples, wavelength_m, free_factors=free_factors, free_phases=free_phases)
    most = min(max_paths, most_paths(len(samples), problem.nuisances))
    if most < 1:
        raise ValueError(
            f"{len(samples)} samples for {PER_PATH} unknowns of one path and {problem.nuisances} others; measure more"
        )
    state = _grown(problem, phases_rad, most)
    while len(state.gains) < most:
        more = _shaken(problem, _with_another(problem, state))
        if _criterion(problem, more) >= _criterion(problem, state):
            break
        state = more
    state = _refined(problem, state, _LAST)
    return _finished(problem, state, _criterion(problem, state))


def most_paths(num_samples: int, nuisances: int = 0) -> int:
    """Paths that so many samples can tell, leaving a quarter of the real samples to judge the fit."""
    return int((1.5 * num_samples - nuisances) // PER_PATH)


def straightened(samples: Samples, fit: PathFit) -> Samples:
    """The samples without the factors of antennas and the phases of visits."""
    factor = fit.factors[samples.antenna]
    turned = samples.channel / (factor * np.exp(1j * fit.phases_rad[samples.visit]))
    return replace(samples, channel=turned, variance=samples.variance / np.abs(factor) ** 2)


def _disc(steps: np.ndarray) -> np.ndarray:
    """Direction cosines on a grid of these steps within the unit disc, and on its rim, [num_directions, 2]."""
    axes = [np.arange(-math.floor(1 / step), math.floor(1 / step) + 1) * step for step in steps]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    angle_rad = np.arange(0.0, 2 * np.pi, float(steps.min()))
    rim = np.stack([np.cos(angle_rad), np.sin(angle_rad)], axis=1)
    return np.concatenate([grid[np.sum(grid**2, axis=1) <= 1.0], rim])


def _grown(problem: _Problem, phases_rad: np.ndarray | None, most: int) -> _State:
    """Path after path; the number with the lowest criterion."""
    state = problem.start(phases_rad)
    best: tuple[float, _State] | None = None
    worse = 0
    for _ in range(most):
        state = _with_another(problem, state)
        criterion = _criterion(problem, state)
        if best is None or criterion < best[0]:
            best, worse = (criterion, state), 0
        else:
            worse += 1
        if worse > _PATIENCE and problem.cost(state) < _EXPLAINED * 2 * len(problem.measured):
            break
    assert best is not None  # most is at least 1
    return _shaken(problem, best[1])


def _with_another(problem: _Problem, state: _State) -> _State:
    """The state with one more path, refined; the best of several starts."""
    found: list[_State] = []
    for direction in _peaks(problem, state):
        begun = replace(
            state,
            directions=np.concatenate([state.directions, direction[None]]),
            gains=np.append(state.gains, 0.0),
        )
        if not len(state.gains) and len(problem.factor_index):
            begun = _first_factors(problem, begun)
        found.append(_refined(problem, problem.with_gains(begun)))
    return min(found, key=problem.cost)


def _shaken(problem: _Problem, state: _State) -> _State:
    """The best of refinements from directions a little off: paths closer than the resolution have many local optima."""
    generator = np.random.default_rng(len(problem.measured))
    cost = problem.cost(state)
    for _ in range(_SHAKES):
        off = _SHAKE * problem.resolution * generator.standard_normal(state.directions.shape)
        directions = state.directions + off
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1.0)
        tried = _refined(problem, problem.with_gains(replace(state, directions=directions)))
        if (tried_cost := problem.cost(tried)) < cost:
            state, cost = tried, tried_cost
    return state


def _peaks(problem: _Problem, state: _State) -> list[np.ndarray]:
    """Directions of the largest correlations with the residual, apart from each other."""
    turned = problem.residual(state) * problem.turn(state).conj() / problem.deviation
    if len(problem.factor_index) and not len(state.gains):
        # nothing is known of the antennas' factors: their powers add
        own = problem.samples.antenna[:, None] == np.unique(problem.samples.antenna)
        strength = np.sum(np.abs(problem.grid_waves.conj().T @ (turned[:, None] * own)) ** 2, axis=1)
    else:
        strength = np.abs(problem.grid_waves.conj().T @ turned) ** 2
    peaks: list[np.ndarray] = []
    for _ in range(_STARTS):
        peaks.append(problem.grid[int(np.argmax(strength))])
        strength = np.where(np.sum(((problem.grid - peaks[-1]) / problem.resolution) ** 2, axis=1) < 1.0, 0.0, strength)
        if not np.any(strength > 0):
            break
    return peaks


def _first_factors(problem: _Problem, state: _State) -> _State:
    """Factors of the antennas as one path tells them."""
    heard = (
        problem.measured
        * field_response(problem.samples.positions_m, state.directions, problem.wavelength_m)[:, 0].conj()
        * np.exp(-1j * state.phases_rad[problem.samples.visit])
    )
    means = np.bincount(problem.samples.antenna, heard.real, problem.antennas) + 1j * np.bincount(
        problem.samples.antenna, heard.imag, problem.antennas
    )
    means /= np.maximum(np.bincount(problem.samples.antenna, minlength=problem.antennas), 1)
    first = means[int(problem.samples.antenna.min())]
    factors = state.factors.copy()
    factors[problem.factor_index] = means[problem.factor_index] / (first if first != 0 else 1.0)
    return replace(state, factors=factors)


def _refined(problem: _Problem, state: _State, tolerance: float = _SEARCH) -> _State:
    """Levenberg-Marquardt until a step gains less than this share of the cost."""
    cost, damping = problem.cost(state), 1e-3
    for _ in range(_ITERATIONS):
        slopes = problem.slopes(state)
        count = len(state.gains)
        pull = (slopes.conj().T @ (problem.residual(state) / problem.deviation)).real
        gains = slice(2 * count, PER_PATH * count)
        pull[gains] -= problem.prior_precision * np.concatenate([state.gains.real, state.gains.imag])
        curvature = (slopes.conj().T @ slopes).real
        diagonal = np.diag(curvature).copy()
        diagonal[gains] += problem.prior_precision
        curvature[np.diag_indices_from(curvature)] = diagonal + damping * np.maximum(diagonal, 1e-9)
        tried = problem.stepped(state, np.linalg.solve(curvature, pull))
        tried_cost = problem.cost(tried)
        if tried_cost < cost:
            gained = cost - tried_cost
            state, cost, damping = tried, tried_cost, max(damping / 5, 1e-9)
            if gained < tolerance * cost:
                break
        else:
            damping *= 8
            if damping > 1e6:
                break
    return state


def _criterion(problem: _Problem, state: _State) -> float:
    count = 2 * len(problem.measured)
    squares = float(np.sum((np.abs(problem.residual(state)) / problem.deviation) ** 2))
    unknowns = PER_PATH * len(state.gains) + problem.nuisances
    ratio = squares / count
    # squares beyond what the samples' variances explain scale the noise; those below are not rewarded for it
    return count * (math.log(ratio) if ratio > 1 else ratio - 1) + unknowns * math.log(count)


def _finished(problem: _Problem, state: _State, criterion: float) -> PathFit:
    residual = problem.residual(state)
    count = len(state.gains)
    freedom = 2 * len(residual) - PER_PATH * count - problem.nuisances
    scatter = float(np.sum((np.abs(residual) / problem.deviation) ** 2)) / max(freedom, 1)
    used = PER_PATH * count
    covariance = np.linalg.inv(problem.precision(state))[:used, :used] * max(scatter, 1.0)
    units = np.repeat([1.0, problem.scale], 2 * count)
    field = PathField(
        state.directions, state.gains * problem.scale, covariance * np.outer(units, units), problem.wavelength_m
    )
    return PathFit(field, state.factors, state.phases_rad, residual * problem.scale, scatter, freedom, criterion)
