"""The whole problem: rounds, batches, CPU frequencies, clients, antenna places and beams, under latency and energy.

    minimise  Psi(T, N_p, b_0, b, f_cpu, S, r, f)      (bound (4) on the final loss, `bound`)
    subject to latency and energy of all rounds, positions in the region and D apart, |S| = K

The paper's problem is known by its abstract only: the variables follow it, the forms are our reading. It falls apart.
Positions and combiner enter through the weakest gain and the powers alone; given these, everything else is closed form
or a small grid of integers (`schedule`). Sets of clients are ranked at the antennas' places (`selection`), the best few
get places of their own, and the ranking is repeated at the winner's places until it names nobody new. Missed turns are
worth omega in units of Phi; Phi enters Psi with the factor gamma alpha_1 / 2 in every round, and so do they.

Places and combiner maximise the weakest gain, which is exact as long as no energy limit makes the clients send below
full scale. Where one does, every client's gain counts through its power, sum_m P_m / |f^H h~_m|^2, and the places found
here are good but not the best for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from testbed.opt.solution import Solution
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.beams import ClientArrays, Placer, broadcast_beam, place_with_beams, strongest_beams
from testbed.problems.ma_ota.bound import Constants, aggregation_error, unselected
from testbed.problems.ma_ota.budget import ClientCosts, downlink_rate_bit_s, motion, transmit_powers_w
from testbed.problems.ma_ota.placement import Placement
from testbed.problems.ma_ota.schedule import Air, Budget, Grid, Schedule, Server, best_rounds, turn_worth
from testbed.problems.ma_ota.selection import Criterion, rank
from testbed.problems.multicast import multicast

_RANKINGS = 3
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Broadcast:
    """The downlink by a beam of the base station.

    Attributes:
        bits: of the adapter.
        bandwidth_hz: B.
        power_w: of the base station.
        noise_w: sigma_m^2 at the clients, shape [num_clients].
    """

    bits: float
    bandwidth_hz: float
    power_w: float
    noise_w: np.ndarray


@dataclass(frozen=True)
class Motion:
    """What moving antennas takes, where that counts.

    Attributes:
        before_m: where they are, shape [num_antennas, 2].
        speed_m_s: v.
        motor_power_w: P_mot of each.
        every_round: they travel as far in every round, not in the first alone.
    """

    before_m: np.ndarray
    speed_m_s: float
    motor_power_w: float
    every_round: bool = False


@dataclass(frozen=True)
class Deployment:
    """Everything the whole problem is about.

    Attributes:
        paths: plane waves of all clients.
        aperture: where antennas may be.
        update_std: nu_m, shape [num_clients].
        max_power_w: P_m, shape [num_clients].
        num_values: d.
        noise_w: sigma^2 of one symbol.
        costs: of computing; its `num_samples` are the weights D_m.
        constants: of the bound.
        budget: latency and energy of everything.
        grid: rounds that are tried.
        server: what pre-training costs.
        uplink_s: T_up.
        downlink_s: T_dl where there is no `broadcast`.
        concurrency: K; any number of clients if None.
        queues: Q_m, missed turns, shape [num_clients]; none if None.
        fairness: omega.
        arrays: clients' own antennas; one each if None.
        broadcast: the downlink's beam; none if None.
        motion: counts antennas' travel; free if None.
    """

    paths: PathSet
    aperture: Aperture
    update_std: np.ndarray
    max_power_w: np.ndarray
    num_values: int
    noise_w: float
    costs: ClientCosts
    constants: Constants
    budget: Budget
    grid: Grid
    server: Server
    uplink_s: float
    downlink_s: float = 0.0
    concurrency: int | None = None
    queues: np.ndarray | None = None
    fairness: float = 0.0
    arrays: ClientArrays | None = None
    broadcast: Broadcast | None = None
    motion: Motion | None = None

    @property
    def weights(self) -> np.ndarray:
        """D_m, shape [num_clients]."""
        return np.asarray(self.costs.num_samples, np.float64)

    @property
    def auxiliary(self) -> PathSet:
        """Plane waves of h~_m = sqrt(P_m) h_m / (D_m nu_m): power is absorbed, and no longer a variable."""
        return self.paths.scaled(np.sqrt(self.max_power_w) / (self.weights * self.update_std))

    @property
    def criterion(self) -> Criterion:
        """What sets of clients are ranked by."""
        return Criterion(
            self.weights, self.num_values, self.noise_w, self.constants.alpha1, self.queues, self.fairness
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """All decisions.

    Attributes:
        selected: clients that send at once, ascending.
        placement: positions, combiner, and the weakest gain.
        gains: |f^H h~_m|^2 of the selected, shape [num_selected].
        power_w: p_m of the selected, shape [num_selected].
        schedule: rounds, batches, frequencies; what they take and are worth.
        credit: omega sum of the queues of the selected.
        client_beams: w_m of the selected, shape [num_selected, num_client_antennas]; None where they have one antenna.
        downlink_beam: w, shape [num_antennas]; None where it is not decided.
        downlink_rate_bit_s: of the broadcast; NaN where it is not decided.
        travel_s: T_mv.
    """

    selected: tuple[int, ...]
    placement: Placement
    gains: np.ndarray
    power_w: np.ndarray
    schedule: Schedule
    credit: float
    client_beams: np.ndarray | None = None
    downlink_beam: np.ndarray | None = None
    downlink_rate_bit_s: float = math.nan
    travel_s: float = 0.0


def solve(
    deployment: Deployment,
    placer: Placer,
    *,
    rng: np.random.Generator,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
    candidates: int = 5,
) -> Solution[Plan | None]:
    """Solve the whole problem.

    Args:
        deployment: its data.
        placer: finds positions and combiner for given clients.
        rng: for the placer.
        num_starts: of each placement.
        warm: positions of the round before, shape [num_antennas, 2]; the fixed array if None.
        candidates: sets of clients that get places of their own in each ranking.

    Returns:
        `value` is Psi; status and KKT residual are those of the winner's placement; `trace` is the best Psi (less what
        missed turns are worth) after each set that was placed; "infeasible" where no set meets the budgets, with the
        message of the set that breaks them least.

    Raises:
        ValueError: a channel is not finite.
    """
    auxiliary = deployment.auxiliary
    places_m = deployment.aperture.home_m if warm is None else warm
    tried: dict[tuple[int, ...], Solution[Plan | None]] = {}
    trace: list[float] = []
    for _ in range(_RANKINGS):
        ranked = rank(deployment.criterion, _heard_at(deployment, places_m), deployment.concurrency, kept=candidates)
        if not ranked.found:
            return Solution(None, math.inf, "infeasible", feasibility=ranked.feasibility, message=ranked.message)
        new = [item.selected for item in ranked.point if item.selected not in tried]
        if not new:
            break
        for selected in new:
            tried[selected] = _plan(deployment, auxiliary, selected, placer, rng, num_starts, warm)
            trace.append(min(_worth(deployment, one) for one in tried.values()))
        best = min(tried.values(), key=lambda one: (_worth(deployment, one), one.feasibility))
        if best.point is None:
            break
        places_m = best.point.placement.positions_m
    finite = tuple(value for value in trace if math.isfinite(value))
    return replace(best, iterations=len(tried), trace=finite)


def _heard_at(deployment: Deployment, positions_m: np.ndarray) -> np.ndarray:
    """Auxiliary channels at given places, shape [num_antennas, num_clients]; client arrays at their strongest beam."""
    if deployment.arrays is None:
        return deployment.auxiliary.channel(positions_m)
    channels = deployment.arrays.channels(deployment.auxiliary, positions_m)
    return np.einsum("mna,ma->nm", channels, strongest_beams(channels))


def _worth(deployment: Deployment, solution: Solution[Plan | None]) -> float:
    """Psi less what the selected clients' missed turns are worth."""
    plan = solution.point
    if plan is None:
        return math.inf
    left_out = unselected(plan.selected, deployment.weights)
    return solution.value - plan.credit * turn_worth(deployment.constants, left_out, plan.schedule.fine_tuning)


def _plan(
    deployment: Deployment,
    auxiliary: PathSet,
    selected: tuple[int, ...],
    placer: Placer,
    rng: np.random.Generator,
    num_starts: int,
    warm: np.ndarray | None,
) -> Solution[Plan | None]:
    """Everything else for one set of clients: antennas go to their best places, or stay where that is cheaper."""
    sending = auxiliary.part(selected)
    if deployment.arrays is not None:
        own = deployment.arrays.part(selected)
        placed, beams = place_with_beams(
            sending, own, deployment.aperture, placer, rng=rng, num_starts=num_starts, warm=warm
        )
        return _settled(deployment, selected, own.steered(sending, beams), placed, beams)
    placed = placer(sending, deployment.aperture, rng=rng, num_starts=num_starts, warm=warm)
    moved = _settled(deployment, selected, sending, placed, None)
    if deployment.motion is None or deployment.aperture.violation_m(deployment.motion.before_m) > _TOLERANCE:
        return moved
    here_m = deployment.motion.before_m
    combined = multicast(sending.channel(here_m))
    stay = replace(
        placed, point=Placement(here_m, combined.point, combined.value), status="stalled", kkt_residual=math.nan,
        message="the antennas stay: the way to better places takes more than these are worth",
    )  # fmt: skip
    stayed = _settled(deployment, selected, sending, stay, None)
    return stayed if (stayed.value, stayed.feasibility) < (moved.value, moved.feasibility) else moved


def _settled(
    deployment: Deployment,
    selected: tuple[int, ...],
    sending: PathSet,
    placed: Solution[Placement],
    beams: np.ndarray | None,
) -> Solution[Plan | None]:
    """Powers, downlink, rounds, batches and frequencies for given clients and antenna places."""
    members = list(selected)
    if not placed.found:
        return Solution(None, math.inf, "infeasible", feasibility=placed.feasibility, message=placed.message)
    placement, travel_s, travel_j = _travelled(deployment, placed.point)
    gains = np.abs(placement.combiner.conj() @ sending.channel(placement.positions_m)) ** 2
    if not gains.min() > 0:
        return Solution(None, math.inf, "infeasible", message="selection: a selected client is not heard at all")
    power_w = transmit_powers_w(deployment.max_power_w[members], gains)
    beam, rate_bit_s, downlink_s = _broadcast(deployment, members, placement)
    weights = deployment.weights[members]
    error = aggregation_error(float(gains.min()), float(weights.sum()), deployment.num_values, deployment.noise_w)
    every_round = deployment.motion is not None and deployment.motion.every_round
    air = Air(
        deployment.uplink_s, power_w * deployment.uplink_s, error, downlink_s, travel_s, travel_j, every_round
    )  # fmt: skip
    found = best_rounds(
        deployment.constants, deployment.costs.part(members), weights, unselected(selected, deployment.weights),
        air=air, budget=deployment.budget, grid=deployment.grid, server=deployment.server,
    )  # fmt: skip
    if found.point is None:
        return Solution(None, math.inf, "infeasible", feasibility=found.feasibility, message=found.message)
    plan = Plan(
        selected, placement, gains, power_w * found.point.batches.backoff, found.point,
        deployment.criterion.credit(selected), beams, beam, rate_bit_s, travel_s,
    )  # fmt: skip
    return Solution(
        plan, found.value, placed.status, placed.kkt_residual, _violation(deployment, plan), message=placed.message
    )  # fmt: skip


def _travelled(deployment: Deployment, placement: Placement) -> tuple[Placement, float, float]:
    """The placement with antennas in the order that travels least, and T_mv and E_mv; antennas are interchangeable."""
    if deployment.motion is None:
        return placement, 0.0, 0.0
    way = deployment.motion
    movable = np.flatnonzero(deployment.aperture.movable)
    far_m = np.linalg.norm(way.before_m[movable][:, None] - placement.positions_m[movable][None], axis=-1)
    order = np.arange(len(placement.positions_m))
    order[movable] = movable[linear_sum_assignment(far_m)[1]]
    ordered = replace(
        placement, positions_m=placement.positions_m[order], combiner=placement.combiner[order]
    )  # fmt: skip
    travel_s, travel_j = motion(
        ordered.positions_m, way.before_m, speed_m_s=way.speed_m_s, motor_power_w=way.motor_power_w
    )
    return ordered, travel_s, travel_j


def _broadcast(
    deployment: Deployment, members: list[int], placement: Placement
) -> tuple[np.ndarray | None, float, float]:
    """The downlink's beam, its rate, and T_dl."""
    down = deployment.broadcast
    if down is None:
        return None, math.nan, deployment.downlink_s
    channel = deployment.paths.part(members).channel(placement.positions_m)
    beam = broadcast_beam(channel, np.asarray(down.noise_w)[members])
    rate_bit_s = downlink_rate_bit_s(down.bandwidth_hz, down.power_w * beam.value)
    return beam.point, rate_bit_s, down.bits / rate_bit_s


def _violation(deployment: Deployment, plan: Plan) -> float:
    """Largest violation of any constraint, each relative to its own scale."""
    schedule, aperture, members = plan.schedule, deployment.aperture, list(plan.selected)
    batches, costs = schedule.batches, deployment.costs.part(members)
    spent_j = batches.compute_j + batches.transmit_j
    return max(
        0.0,
        aperture.violation_m(plan.placement.positions_m) / aperture.wavelength_m,
        schedule.latency_s / deployment.budget.latency_s - 1.0,
        schedule.energy_j / deployment.budget.energy_j - 1.0,
        float(np.max(spent_j / costs.max_energy_j)) - 1.0,
        float(np.max(plan.power_w / deployment.max_power_w[members])) - 1.0,
        float(np.max(batches.cpu_hz / costs.max_cpu_hz)) - 1.0,
        float(np.max(batches.batch_sizes / costs.num_samples)) - 1.0,
    )
