"""Seconds and joules of a round, and the batches and CPU frequencies that make the most of them.

The standard forms of the field; which of them the paper uses is not known.

    computing     T_m = b_m C_m / f_m,       E_m = kappa_m b_m C_m f_m^2
    sending       T_up = (d / 2) (1 + o) / B,    E_up = p_m T_up,     two values on each symbol
    broadcasting  T_dl = bits / (B log2(1 + SNR))
    moving        T_mv = max_n ||r_n - r_n'|| / v,   E_mv = P_mot sum_n ||r_n - r_n'|| / v     (our addition, optional)
    a round       T_dl + max(max_m T_m, T_mv) + T_up
    pre-training  T_p = N_p b_0 C_0 / f_0,   E_p = kappa_0 N_p b_0 C_0 f_0^2

A frequency is best as low as the window tau for computing allows, f_m = b_m C_m / tau, so that a batch costs
c_m b_m^3 joules with c_m = kappa_m C_m^3 / tau^2. What is left is convex (our derivation):

    minimise    sum_m A_m / b_m + M / beta          A_m = (D_m / D_S)^2 sigma_g^2,   M = E||e||^2 at full scale
    subject to  1 <= b_m <= min(f_m^max tau / C_m, D_m),   0 < beta <= 1
                c_m b_m^3 + beta e_m <= E_m for every client,   sum_m c_m b_m^3 + beta sum_m e_m <= E

e_m = p_m T_up is what sending costs at the full scale eta*, and beta = eta / eta* scales every client's power. Given
beta the batches are closed form, b_m = clip(x_m t, 1, cap_m) with x_m = (A_m / 3 c_m)^(1/4) and t from the cubic of the
segment where the energy is spent; beta is found on a line. Batches are then rounded down, what is left of the energy
goes where it lowers the objective most, and samples are exchanged while that helps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.opt.solution import Solution
from testbed.problems.ma_ota.energy_limits import ROUNDING, EnergyLimits, whole_batches


@dataclass(frozen=True)
class ClientCosts:
    """What computing costs each client, shape [num_clients] each.

    Attributes:
        num_samples: D_m, the largest batch.
        cycles_per_sample: C_m; measured, since language models take orders of magnitude more than the images of the
            literature.
        capacitance: kappa_m, joules per cycle and Hz^2.
        max_cpu_hz: f_m^max.
        max_energy_j: E_m of one round, computing and sending; infinite where there is no limit.
    """

    num_samples: np.ndarray
    cycles_per_sample: np.ndarray
    capacitance: np.ndarray
    max_cpu_hz: np.ndarray
    max_energy_j: np.ndarray

    def part(self, clients: Sequence[int] | np.ndarray) -> ClientCosts:
        """The costs of some clients, in that order."""
        index = np.asarray(clients, np.int64)
        return ClientCosts(
            np.asarray(self.num_samples)[index],
            np.asarray(self.cycles_per_sample)[index],
            np.asarray(self.capacitance)[index],
            np.asarray(self.max_cpu_hz)[index],
            np.asarray(self.max_energy_j)[index],
        )

    @property
    def fastest_s(self) -> np.ndarray:
        """Seconds of one sample at the highest frequency, shape [num_clients]."""
        return np.asarray(self.cycles_per_sample, np.float64) / self.max_cpu_hz

    def least_j(self, window_s: float | np.ndarray) -> np.ndarray:
        """c_m = kappa_m C_m^3 / tau^2, joules of one sample computed as slowly as the window allows.

        Args:
            window_s: tau, any shape.

        Returns:
            shape [..., num_clients].
        """
        cube = np.asarray(self.capacitance, np.float64) * np.asarray(self.cycles_per_sample, np.float64) ** 3
        return cube / np.asarray(window_s, np.float64)[..., None] ** 2


@dataclass(frozen=True)
class Batches:
    """Each client's work in a round, shape [num_clients] unless stated otherwise.

    Attributes:
        batch_sizes: b_m, whole numbers.
        cpu_hz: f_m.
        backoff: beta = eta / eta*, a number.
        compute_j: c_m b_m^3.
        transmit_j: beta e_m.
    """

    batch_sizes: np.ndarray
    cpu_hz: np.ndarray
    backoff: float
    compute_j: np.ndarray
    transmit_j: np.ndarray


def uplink_s(num_values: int, bandwidth_hz: float, *, overhead: float = 0.0) -> float:
    """Air time of an update, whoever sends: (d / 2) (1 + o) / B.

    Args:
        num_values: d.
        bandwidth_hz: B, symbols in a second.
        overhead: o, cyclic prefixes and pilots relative to data.
    """
    return num_values / 2.0 * (1.0 + overhead) / bandwidth_hz


def downlink_rate_bit_s(bandwidth_hz: float, snr: float) -> float:
    """Rate of a broadcast that everybody understands: B log2(1 + SNR).

    Args:
        bandwidth_hz: B.
        snr: P min_m |h_m^H w|^2 / sigma_m^2 of the weakest client, linear.
    """
    return bandwidth_hz * math.log2(1.0 + snr)


def motion(
    positions_m: np.ndarray, before_m: np.ndarray, *, speed_m_s: float, motor_power_w: float
) -> tuple[float, float]:
    """Seconds until the last antenna has arrived, and joules of all motors.

    Args:
        positions_m: target, shape [num_antennas, 2].
        before_m: where they are, shape [num_antennas, 2].
        speed_m_s: v.
        motor_power_w: P_mot of one antenna's motors while they run.

    Returns:
        T_mv and E_mv.
    """
    each_s = np.linalg.norm(positions_m - before_m, axis=1) / speed_m_s
    return float(each_s.max(initial=0.0)), float(each_s.sum() * motor_power_w)


def transmit_powers_w(max_power_w: np.ndarray, gains: np.ndarray, *, backoff: float = 1.0) -> np.ndarray:
    """What zero-forcing makes each client send: p_m = beta P_m min_j |f^H h~_j|^2 / |f^H h~_m|^2.

    Args:
        max_power_w: P_m, shape [num_clients].
        gains: |f^H h~_m|^2 of those who send, shape [num_clients].
        backoff: beta.

    Returns:
        shape [num_clients]; at beta = 1 the weakest client sends with all of its power, nobody with more.
    """
    gains = np.asarray(gains, np.float64)
    return backoff * np.asarray(max_power_w, np.float64) * (gains.min() / gains)


def importance(weights: np.ndarray, gradient_variance: float) -> np.ndarray:
    """A_m = (D_m / D_S)^2 sigma_g^2, what a batch of one sample adds to the variance V.

    Args:
        weights: D_m of those who send, shape [num_clients].
        gradient_variance: sigma_g^2.
    """
    weights = np.asarray(weights, np.float64)
    return (weights / weights.sum()) ** 2 * gradient_variance


def choose_batches(
    costs: ClientCosts,
    window_s: float,
    *,
    importance: np.ndarray,
    transmit_j: np.ndarray | None = None,
    noise: float = 0.0,
    energy_j: float = math.inf,
    whole: bool = True,
) -> Solution[Batches]:
    """Batches, CPU frequencies and transmit scale of one round within its window and its energy.

    Args:
        costs: of the clients that take part.
        window_s: tau, seconds for computing.
        importance: A_m, shape [num_clients].
        transmit_j: e_m, joules of sending at the full scale, shape [num_clients]; free if None.
        noise: M, E||e||^2 at the full scale.
        energy_j: E, joules of all clients together in the round.
        whole: batches are whole numbers; false gives the optimum of the relaxed problem.

    Returns:
        `value` is V + E||e||^2; "optimal" (for whole batches: where no energy limit binds; "stationary" where one
        does: rounding is then a local search), or "infeasible" with the limit that a single sample per client
        breaks.
    """
    free_j = np.zeros(len(importance)) if transmit_j is None else np.asarray(transmit_j, np.float64)
    message, excess = _lacking(costs, window_s, energy_j)
    if message:
        zeros = np.zeros(len(free_j))
        nothing = Batches(zeros.astype(np.int64), zeros, 0.0, zeros, zeros)
        return Solution(nothing, math.inf, "infeasible", feasibility=excess, message=message)
    found = allocate(
        costs, np.array([window_s]), np.array([energy_j]), importance=importance, transmit_j=free_j, noise=noise,
        whole=whole,
    )  # fmt: skip
    batch, scale = found.batch_sizes[0], float(found.backoff[0])
    plan = Batches(
        batch.astype(np.int64) if whole else batch,
        batch * costs.cycles_per_sample / window_s,
        scale,
        costs.least_j(window_s) * batch**3,
        scale * free_j,
    )
    exact = not whole or not bool(found.binding[0])
    return Solution(plan, float(found.value[0]), "optimal" if exact else "stationary")


@dataclass(frozen=True)
class Allocation:
    """The answers for many windows and energies at once.

    Attributes:
        batch_sizes: b_m, shape [num_cases, num_clients]; 0 where there is no answer.
        backoff: beta, shape [num_cases].
        value: sum_m A_m / b_m + M / beta, shape [num_cases]; infinite where there is no answer.
        binding: whether an energy limit binds, shape [num_cases], bool.
    """

    batch_sizes: np.ndarray
    backoff: np.ndarray
    value: np.ndarray
    binding: np.ndarray


def allocate(
    costs: ClientCosts,
    window_s: np.ndarray,
    energy_j: np.ndarray,
    *,
    importance: np.ndarray,
    transmit_j: np.ndarray,
    noise: float,
    whole: bool = True,
) -> Allocation:
    """`choose_batches` for many windows and energies at once.

    Args:
        costs: of the clients that take part.
        window_s: tau, shape [num_cases].
        energy_j: E of one round, shape [num_cases].
        importance: A_m, shape [num_clients].
        transmit_j: e_m, shape [num_clients].
        noise: M.
        whole: batches are whole numbers.
    """
    num_cases, num_clients = len(window_s), len(importance)
    batch, scale = np.zeros((num_cases, num_clients)), np.zeros(num_cases)
    binding = np.zeros(num_cases, bool)
    # [num_cases, num_clients]
    most = np.minimum(np.maximum(window_s, 0.0)[:, None] / costs.fastest_s, costs.num_samples)
    each_j = costs.least_j(np.where(window_s > 0, window_s, 1.0))
    possible = (window_s > 0) & (most >= 1 - ROUNDING).all(axis=1) & (each_j < costs.max_energy_j).all(axis=1)
    possible &= each_j.sum(axis=1) < energy_j
    most = np.maximum(most, 1.0)
    plenty = (each_j * most**3 + transmit_j <= costs.max_energy_j).all(axis=1)
    plenty &= (each_j * most**3 + transmit_j).sum(axis=1) <= energy_j
    at_ease, short = np.flatnonzero(possible & plenty), np.flatnonzero(possible & ~plenty)
    batch[at_ease], scale[at_ease] = (whole_batches(most) if whole else most)[at_ease], 1.0
    if len(short):
        limits = EnergyLimits(
            each_j[short], most[short], np.asarray(costs.max_energy_j, np.float64), energy_j[short],
            np.asarray(importance, np.float64), np.asarray(transmit_j, np.float64), noise,
        )  # fmt: skip
        batch[short], scale[short] = limits.relaxed()
        if whole:
            batch[short], scale[short] = limits.rounded(batch[short], scale[short])
        binding[short] = True
    value = np.full(num_cases, np.inf)
    solved = np.flatnonzero(possible)
    value[solved] = (importance / batch[solved]).sum(axis=1) + noise / scale[solved]
    return Allocation(batch, scale, value, binding)


def _lacking(costs: ClientCosts, window_s: float, energy_j: float) -> tuple[str, float]:
    """Which limit one sample per client breaks, and by which share; empty if none."""
    slowest = int(np.argmax(costs.fastest_s))
    need_s = float(costs.fastest_s[slowest])
    if need_s > window_s * (1 + ROUNDING):
        text = (
            f"latency: one sample takes {need_s:.4g} s at the highest CPU frequency, the round leaves {window_s:.4g} s"
        )
        return text, (need_s - window_s) / need_s
    each_j = costs.least_j(window_s)
    over = each_j / costs.max_energy_j
    if (worst := int(np.argmax(over))) >= 0 and over[worst] >= 1:
        limit_j = float(costs.max_energy_j[worst])
        text = f"energy of one client: a sample takes {each_j[worst]:.4g} J, {limit_j:.4g} J are allowed in a round"
        return text, float(1 - 1 / over[worst])
    if (total_j := float(each_j.sum())) >= energy_j:
        text = f"energy: one sample per client takes {total_j:.4g} J a round, {energy_j:.4g} J are left"
        return text, (total_j - energy_j) / total_j
    return "", 0.0
