"""How many rounds, and how much in each: the integers of the whole problem, searched exhaustively.

For given clients and antenna places, which enter through the weakest gain and the powers alone,

    minimise    Psi(T, N_p, b_0, b, f_cpu, beta) = rho^T Delta_0 + (1 - rho^T) / (1 - rho) c          (bound (4))
    subject to  T_p + T (T_dl + max(T_cmp, T_mv) + T_up) <= T_max
                E_p + E_mv + T sum_m (E_m^cmp + E_m^up) <= E_max

The numbers of rounds T and N_p and the batch b_0 of pre-training are a grid; for each of its points the window
tau = (T_max - T_p) / T - T_dl - T_up and the energy of a round are known, and batches, frequencies and scale are in
closed form (`budget`). The exhaustive search is that of the two-stage relatives (Lyu et al.); the paper's own form of
the constraints is not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from testbed.opt.solution import Solution
from testbed.problems.ma_ota.bound import Constants, LossBound, contraction, rounds_mass, static_loss
from testbed.problems.ma_ota.budget import Batches, ClientCosts, allocate, choose_batches, importance

_TOLERANCE = 1e-9
_BLOCK = 128
"""Cases that are solved together."""


@dataclass(frozen=True)
class Server:
    """What pre-training costs.

    Attributes:
        cycles_per_sample: C_0.
        capacitance: kappa_0, joules per cycle and Hz^2.
        cpu_hz: f_0.
    """

    cycles_per_sample: float
    capacitance: float
    cpu_hz: float

    def pretraining(self, num_samples: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """T_p and E_p of N_p b_0 samples, any shape."""
        cycles = np.asarray(num_samples, np.float64) * self.cycles_per_sample
        return cycles / self.cpu_hz, self.capacitance * cycles * self.cpu_hz**2


@dataclass(frozen=True)
class Grid:
    """The integers that are tried.

    Attributes:
        rounds: T.
        pretraining_rounds: N_p.
        pretraining_batches: b_0.
    """

    rounds: tuple[int, ...]
    pretraining_rounds: tuple[int, ...] = (0,)
    pretraining_batches: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name, low in (("rounds", 1), ("pretraining_rounds", 0), ("pretraining_batches", 1)):
            values = getattr(self, name)
            if not values or min(values) < low:
                raise ValueError(f"{name} must hold at least one number, and none below {low}; it holds {values}")


@dataclass(frozen=True)
class Budget:
    """What all rounds together may take.

    Attributes:
        latency_s: T_max.
        energy_j: E_max; infinite without a limit.
    """

    latency_s: float
    energy_j: float = math.inf


@dataclass(frozen=True)
class Air:
    """What communication takes, for given clients and antenna places.

    Attributes:
        uplink_s: T_up.
        transmit_j: e_m = p_m T_up at the full scale, shape [num_selected].
        error: E||e||^2 at the full scale.
        downlink_s: T_dl.
        motion_s: T_mv, hidden behind the clients' computing where that takes longer.
        motion_j: E_mv.
        moves_every_round: antennas travel that far in every round, not in the first alone.
    """

    uplink_s: float
    transmit_j: np.ndarray
    error: float
    downlink_s: float = 0.0
    motion_s: float = 0.0
    motion_j: float = 0.0
    moves_every_round: bool = False


@dataclass(frozen=True)
class Schedule:
    """How long, and how much in each round.

    Attributes:
        fine_tuning: T.
        pre_training: N_p.
        pretraining_batch: b_0.
        batches: of one round.
        bound: Psi, term by term.
        error: E||e||^2 at the chosen scale.
        latency_s: of everything.
        energy_j: of everything.
    """

    fine_tuning: int
    pre_training: int
    pretraining_batch: int
    batches: Batches
    bound: LossBound
    error: float
    latency_s: float
    energy_j: float


@dataclass(frozen=True)
class _Cases:
    """The grid, flattened: shape [num_cases] each."""

    rounds: np.ndarray
    pretraining_rounds: np.ndarray
    pretraining_batch: np.ndarray
    spent_s: np.ndarray
    spent_j: np.ndarray
    window_s: np.ndarray
    energy_j: np.ndarray
    constants: Constants = field(repr=False)


def best_rounds(
    constants: Constants,
    costs: ClientCosts,
    weights: np.ndarray,
    left_out: float,
    *,
    air: Air,
    budget: Budget,
    grid: Grid,
    server: Server,
) -> Solution[Schedule | None]:
    """Numbers of rounds, batches and frequencies for given clients and places: every point of the grid is tried.

    Args:
        constants: of the bound.
        costs: of the clients that take part.
        weights: D_m of these clients, shape [num_selected].
        left_out: s = 1 - D_S / D.
        air: what communication takes.
        budget: latency and energy of everything.
        grid: the integers that are tried.
        server: what pre-training costs.

    Returns:
        `value` is Psi; "optimal" where no energy limit binds in any case that could be better, else "stationary"
        (whole batches are then rounded, see `budget`); "infeasible" with the limit that is broken least and by how
        much. `iterations` counts the cases.
    """
    case = _cases(constants, air, budget, grid, server)
    parts = importance(weights, constants.gradient_variance)
    num_cases = len(case.rounds)
    psi, rough = _search(case, costs, parts, left_out, air)
    best = int(np.argmin(psi))
    if not np.isfinite(psi[best]):
        message, excess = _lacking(case, costs, air, budget)
        return Solution(None, math.inf, "infeasible", feasibility=excess, iterations=num_cases, message=message)
    batches = choose_batches(
        costs, float(case.window_s[best]), importance=parts, transmit_j=air.transmit_j, noise=air.error,
        energy_j=float(case.energy_j[best]),
    ).point  # fmt: skip
    schedule = _schedule(case, best, batches, left_out, parts, air)
    trace = tuple(float(value) for value in np.minimum.accumulate(psi[np.isfinite(psi)]))
    return Solution(schedule, float(psi[best]), "stationary" if rough else "optimal", iterations=num_cases, trace=trace)


def _search(case: _Cases, costs: ClientCosts, parts: np.ndarray, left_out: float, air: Air) -> tuple[np.ndarray, bool]:
    """Psi of every case, infinite where it is impossible or surely not the best; and whether energy limits bind.

    Without limits on energy every case has a lower bound that costs nothing: all but the promising ones are left out.
    """
    num_cases = len(case.rounds)
    at_ease = allocate(
        replace(costs, max_energy_j=np.full(len(parts), np.inf)), case.window_s, np.full(num_cases, np.inf),
        importance=parts, transmit_j=air.transmit_j, noise=air.error,
    )  # fmt: skip
    every = np.arange(num_cases)
    optimistic = np.where(
        np.isfinite(at_ease.value), np.asarray(_bound(case, _finite(at_ease.value), 0.0, left_out, every).total), np.inf
    )
    order = np.argsort(optimistic, kind="stable")
    psi, rough = np.full(num_cases, np.inf), False
    for begin in range(0, num_cases, _BLOCK):
        part = order[begin : begin + _BLOCK]
        if not optimistic[part[0]] <= psi.min() * (1 + _TOLERANCE) or not np.isfinite(optimistic[part[0]]):
            break
        found = allocate(
            costs, case.window_s[part], case.energy_j[part], importance=parts, transmit_j=air.transmit_j,
            noise=air.error,
        )  # fmt: skip
        bound = np.asarray(_bound(case, _finite(found.value), 0.0, left_out, part).total)
        psi[part] = np.where(np.isfinite(found.value), bound, np.inf)
        rough = rough or bool(found.binding.any())
    return psi, rough


def _finite(value: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(value), value, 0.0)


def turn_worth(constants: Constants, left_out: float, num_rounds: int) -> float:
    """What one unit of Phi in every round adds to Psi: gamma alpha_1 / 2 (1 - rho^T) / (1 - rho).

    Args:
        constants: gamma, alpha_1, and what rho needs.
        left_out: s.
        num_rounds: T.
    """
    mass = rounds_mass(float(contraction(constants, left_out)), num_rounds)
    return float(constants.step_size * constants.alpha1 / 2.0 * mass)


def _cases(constants: Constants, air: Air, budget: Budget, grid: Grid, server: Server) -> _Cases:
    mesh = np.meshgrid(
        np.array(grid.rounds), np.array(grid.pretraining_rounds), np.array(grid.pretraining_batches), indexing="ij"
    )
    rounds, stages, batch = (axis.ravel() for axis in mesh)
    pretraining_s, pretraining_j = server.pretraining(stages * batch)
    moved_j = air.motion_j * (rounds if air.moves_every_round else 1)
    # seconds that computing (and motion behind it) may take in all rounds together
    left_s = budget.latency_s - pretraining_s - rounds * (air.uplink_s + air.downlink_s)
    window_s = left_s / rounds
    if air.motion_s > 0:
        # a motion that takes longer than computing uses up the round; in the first round alone, the others gain
        waits = window_s < air.motion_s
        later_s = np.where(rounds > 1, (left_s - air.motion_s) / np.maximum(rounds - 1, 1), -math.inf)
        window_s = np.where(waits, -math.inf if air.moves_every_round else np.minimum(later_s, window_s), window_s)
    energy_j = (budget.energy_j - pretraining_j - moved_j) / rounds
    return _Cases(
        rounds, stages, batch, pretraining_s, pretraining_j + moved_j, window_s, energy_j, constants
    )  # fmt: skip


def _bound(
    case: _Cases, variance: np.ndarray | float, error: np.ndarray | float, left_out: float, which: np.ndarray | int
) -> LossBound:
    return static_loss(
        case.constants, left_out, variance, error, case.rounds[which],
        pretraining_rounds=case.pretraining_rounds[which], pretraining_batch=case.pretraining_batch[which],
    )  # fmt: skip


def _schedule(case: _Cases, best: int, batches: Batches, left_out: float, parts: np.ndarray, air: Air) -> Schedule:
    rounds = int(case.rounds[best])
    error = air.error / batches.backoff
    terms = _bound(case, float(np.sum(parts / batches.batch_sizes)), error, left_out, best)
    numbers = LossBound(*(float(getattr(terms, name)) for name in LossBound.__dataclass_fields__))
    # everybody computes as slowly as the window allows
    window_s = float(case.window_s[best])
    first_s = max(window_s, air.motion_s)
    later_s = first_s if air.moves_every_round else window_s
    per_round_j = float(batches.compute_j.sum() + batches.transmit_j.sum())
    return Schedule(
        fine_tuning=rounds,
        pre_training=int(case.pretraining_rounds[best]),
        pretraining_batch=int(case.pretraining_batch[best]),
        batches=batches,
        bound=numbers,
        error=error,
        latency_s=float(case.spent_s[best])
        + rounds * (air.uplink_s + air.downlink_s)
        + first_s
        + (rounds - 1) * later_s,
        energy_j=float(case.spent_j[best]) + rounds * per_round_j,
    )


def _lacking(case: _Cases, costs: ClientCosts, air: Air, budget: Budget) -> tuple[str, float]:
    """Which limit is broken least over the grid, and by which share of it."""
    sample_s = float(costs.fastest_s.max())
    behind_s = max(sample_s, air.motion_s)
    computing_s = case.rounds * behind_s if air.moves_every_round else (case.rounds - 1) * sample_s + behind_s
    need_s = case.spent_s + case.rounds * (air.uplink_s + air.downlink_s) + computing_s
    least = int(np.argmin(need_s))
    in_time = np.flatnonzero((case.window_s > 0) & (need_s <= budget.latency_s * (1 + _TOLERANCE)))
    if len(in_time) == 0:
        need = f"{_plan(case, least)} {need_s[least]:.4g} s at the highest CPU frequency"
        excess = float(need_s[least] / budget.latency_s - 1)
        return f"latency: {need}, {budget.latency_s:.4g} s are allowed", excess
    # [num_cases, num_clients]
    each_j = costs.least_j(case.window_s[in_time])
    shares = each_j / costs.max_energy_j
    over = shares.max(axis=1)
    if (row := int(np.argmin(over))) >= 0 and over[row] >= 1:
        client = int(np.argmax(shares[row]))
        need = f"{_plan(case, int(in_time[row]))} {each_j[row, client]:.4g} J a round for a single sample"
        limit_j = float(costs.max_energy_j[client])
        return f"energy of one client: {need}, {limit_j:.4g} J are allowed", float(over[row]) - 1
    need_j = case.spent_j[in_time] + case.rounds[in_time] * each_j.sum(axis=1)
    row = int(np.argmin(np.where(over < 1, need_j, np.inf)))
    need = f"{_plan(case, int(in_time[row]))} {need_j[row]:.4g} J for one sample per client and round"
    return f"energy: {need}, {budget.energy_j:.4g} J are allowed", float(need_j[row] / budget.energy_j - 1)


def _plan(case: _Cases, index: int) -> str:
    """The beginning of a sentence on what a case takes."""
    rounds, stages = int(case.rounds[index]), int(case.pretraining_rounds[index])
    before = f" after {stages} of pre-training" if stages else ""
    return f"{rounds} rounds{before} need" if rounds > 1 else f"1 round{before} needs"
