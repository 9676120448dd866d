"""The instance file of `testbed solve jcpba`: one round's pruning and bandwidth, or a whole fine-tuning's.

Clients are written out (`[[clients]]`) or drawn (`[draw]`); the learning constraint is a penalty budget or follows from
a target of the convergence bound (`[learning]`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from testbed.core.errors import ConfigError
from testbed.opt.solution import Solution
from testbed.phy.rate import snr_bandwidth_hz
from testbed.problems.cell import cell_gain
from testbed.problems.instance import Answer, Instance, InstanceSpec
from testbed.problems.jcpba.baselines import allocate_for, random_pruning, uniform_pruning
from testbed.problems.jcpba.brute import MAX_CLIENTS, solve_brute
from testbed.problems.jcpba.descent import least_pruning, solve_bcd
from testbed.problems.jcpba.joint import solve_joint
from testbed.problems.jcpba.learning import Campaign, Learning, solve_total
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz
from testbed.problems.jcpba.penalty import PenaltyCurves, chord, magnitude
from testbed.problems.jcpba.uplink import Bounded, FixedEfficiency, Shannon, Uplink

_KNOTS = 16


class ClientSpec(InstanceSpec):
    """One client: T = fixed_s + (1 - ratio) scalable_s + ((1 - ratio) payload_bits + fixed_payload_bits) / rate."""

    name: str = Field("", description="in the answer; client-1, client-2, ... if empty")
    fixed_s: float = Field(0.0, ge=0, description="beta: seconds of computing that pruning does not shorten")
    scalable_s: float = Field(gt=0, description="alpha: seconds of computing that shrink with what is kept")
    payload_bits: float = Field(0.0, ge=0, description="V: bits of the update that shrink with what is kept")
    fixed_payload_bits: float = Field(0.0, ge=0, description="bits that are sent whatever is pruned")
    gamma_hz: float | None = Field(None, ge=0, description="transmit power x gain / noise density; Shannon rate")
    efficiency: float | None = Field(None, ge=0, description="bit/s per hertz, however wide the share; for all or none")
    weight: float | None = Field(None, ge=0, description="p: of the client in the bound; equal weights if absent")
    squared_norm: float = Field(
        1.0, ge=0, description="squared norm of the weights that may be pruned: penalty at ratio 1"
    )
    curve: tuple[tuple[float, float], ...] | None = Field(
        None, description="penalty by ratio, [[0, 0], ..., [1, squared_norm]], convex; a straight line if absent"
    )


class DrawSpec(InstanceSpec):
    """Clients at random places in a cell (path loss of 3GPP TR 36.814), with random processors and Rayleigh fading."""

    num_clients: int = Field(10, ge=1, le=10_000)
    seed: int = Field(1, ge=0, description="of places, processors and fading")
    distance_m: tuple[float, float] = Field((50.0, 500.0), description="from the base station, uniform")
    speed_flop_s: tuple[float, float] = Field((2e11, 2e12), description="effective, uniform")
    tokens: float = Field(8192.0, gt=0, description="trained on in a round")
    flop_per_token: float = Field(4e9, gt=0, description="of the parts that may be pruned: 4 per parameter for LoRA")
    fixed_flop_per_token: float = Field(0.0, ge=0, description="of the parts that may not, embedding and head")
    payload_bits: float = Field(16e6, ge=0, description="update of the unpruned model, shrinking with it")
    fixed_payload_bits: float = Field(0.0, ge=0, description="of an update that does not shrink")
    power_w: float = Field(0.1, gt=0, description="transmit power")
    noise_w_per_hz: float = Field(3.98e-21, gt=0, description="noise density; -174 dBm/Hz")
    fading: bool = Field(True, description="power gain Exp(1); false leaves the path loss alone")
    penalty: Literal["line", "magnitude"] = Field(
        "line",
        description="line: ratio x squared norm; magnitude: that of the smallest of normally distributed weights",
    )

    @model_validator(mode="after")
    def _ordered(self) -> DrawSpec:
        for key in ("distance_m", "speed_flop_s"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key} goes from a positive value to one that is not smaller")
        return self


class LearningSpec(InstanceSpec):
    """The learning constraint: an average squared gradient and, for objective round, the rounds that may reach it."""

    target: float = Field(gt=0, description="eps: average squared gradient that is to be reached")
    rounds: float | None = Field(None, gt=0, description="within which; gives the penalty budget of objective round")
    initial_gap: float = Field(gt=0, description="F_0 - F*: how far the loss may fall")
    step: float = Field(gt=0, description="eta: learning rate, at most 1 / smoothness")
    smoothness: float = Field(gt=0, description="L")
    gradient_variance: float = Field(0.0, ge=0, description="sigma^2: of a client's stochastic gradient")
    cross_smoothness: float | None = Field(
        None, gt=0, description="M: gradient by pruned weights; smoothness if absent"
    )


class JcpbaInstance(Instance):
    """Low-latency federated fine-tuning (arXiv 2602.01024): pruning ratios and shares of the band."""

    methods: ClassVar[tuple[str, ...]] = ("joint", "bcd", "uniform", "none", "equal", "random", "brute")

    objective: Literal["round", "total"] = Field(
        "round", description="round: the slowest client's time; total: rounds x time, with [learning]; method joint"
    )
    bandwidth_hz: float = Field(gt=0, description="B: of the uplink, shared by all clients")
    max_ratio: float = Field(0.9, ge=0, lt=1, description="largest pruning ratio")
    least_share_hz: float = Field(0.0, ge=0, description="narrowest share of a client")
    least_snr: float | None = Field(
        None, gt=0, description="gamma / share, a power ratio, below which more band makes no client faster; 4 is 6 dB"
    )
    penalty_budget: float | None = Field(None, description="Gamma: largest sum of weight x penalty; or [learning]")
    deadline_s: float | None = Field(None, gt=0, description="longest acceptable round, if there is one")
    first: Literal["pruning", "bandwidth"] = Field("pruning", description="method bcd: the block that begins")
    seed: int = Field(1, ge=0, description="method random: of the ratios")
    clients: tuple[ClientSpec, ...] = Field((), description="written out; or [draw]")
    draw: DrawSpec | None = Field(None, description="drawn at random; or [[clients]]")
    learning: LearningSpec | None = None

    def solve(self, method: str) -> Answer:
        costs = self.costs()
        learning = self._bound()
        if self.objective == "total":
            return self._total(costs, learning, method)
        budget = self._budget(costs, learning)
        if method == "brute" and costs.num_clients > MAX_CLIENTS:
            raise ConfigError(
                f"{costs.num_clients} clients are too many for brute force",
                key="clients",
                remedy=f"keep at most {MAX_CLIENTS} clients, or take --method joint",
            )
        solution = self._round(costs, budget, method)
        found = solution.status != "infeasible" or bool(np.isfinite(solution.feasibility))
        decisions: dict[str, Any] = {"method": method, "penalty_budget": budget, **_told(self._names(), solution.point)}
        if found:
            compared = {name: self._round(costs, budget, name).value for name in self.methods if name != "brute"}
            decisions["round_s_by_method"] = compared
            decisions["gap_to_joint"] = solution.value / compared["joint"] - 1.0
        return Answer(solution, decisions)

    def costs(self) -> ClientCosts:
        """The clients' costs.

        Raises:
            ConfigError: clients are missing, given twice, or do not go together.
        """
        if bool(self.clients) == (self.draw is not None):
            raise ConfigError(
                "clients are given twice" if self.clients else "there are no clients",
                key="clients",
                remedy="write them out as [[clients]], or have them drawn by [draw]; one of the two",
            )
        costs = self._drawn(self.draw) if self.draw is not None else self._written()
        return replace(costs, uplink=self._bounded(costs.uplink))

    def _bounded(self, free: Uplink) -> Uplink:
        """The rate with the bounds of its shares."""
        if isinstance(free, Bounded) or (self.least_share_hz <= 0 and self.least_snr is None):
            return free
        most_hz = np.full(len(free.reach_bit_s), np.inf)
        if self.least_snr is not None:
            if isinstance(free, FixedEfficiency):
                raise ConfigError(
                    "a fixed efficiency knows no signal-to-noise ratio",
                    key="least_snr",
                    remedy="leave it out, or give every client its gamma_hz",
                )
            # a client that is not heard at all is told by its rate
            most_hz = np.where(free.gamma_hz > 0, free.gamma_hz / self.least_snr, np.inf)
        least_hz = np.full(len(most_hz), self.least_share_hz)
        return Bounded(free, least_hz, np.maximum(least_hz, most_hz) if self.least_share_hz > 0 else most_hz)

    def _round(self, costs: ClientCosts, budget: float, method: str) -> Solution[Allocation]:
        band_hz, deadline_s = self.bandwidth_hz, self.deadline_s
        if method == "joint":
            return solve_joint(costs, band_hz, budget, deadline_s=deadline_s)
        if method == "bcd":
            return solve_bcd(costs, band_hz, budget, first=self.first, deadline_s=deadline_s)
        if method == "brute":
            return solve_brute(costs, band_hz, budget, deadline_s=deadline_s)
        equal_hz = equal_shares_hz(costs, band_hz)
        shares_hz = equal_hz if method in ("none", "equal") else None
        if method == "uniform":
            pruning = uniform_pruning(costs, budget)
        elif method == "random":
            pruning = random_pruning(costs, budget, np.random.default_rng(self.seed))
        elif method == "equal" and budget >= 0 and np.all(costs.uplink.reach_bit_s > 0):
            pruning = least_pruning(costs, equal_hz, budget)
        else:
            pruning = np.zeros(costs.num_clients)
        return allocate_for(costs, band_hz, budget, pruning, shares_hz, deadline_s=deadline_s)

    def _total(self, costs: ClientCosts, learning: Learning | None, method: str) -> Answer:
        if learning is None or self.learning is None:
            raise ConfigError(
                "the total time depends on how fast learning goes", key="learning", remedy="add a [learning] table"
            )
        if method != "joint":
            raise ConfigError(
                f"objective total has no method {method}", key="objective", remedy='take --method joint, or "round"'
            )
        solution: Solution[Campaign] = solve_total(costs, self.bandwidth_hz, learning, self.learning.target)
        point = solution.point
        told = _told(self._names(), point.allocation)
        return Answer(
            solution,
            {"method": method, "penalty_budget": point.penalty_budget, "rounds": point.num_rounds, **told},
        )

    def _budget(self, costs: ClientCosts, learning: Learning | None) -> float:
        if (self.penalty_budget is None) == (learning is None or self.learning is None or self.learning.rounds is None):
            raise ConfigError(
                "the learning constraint is given twice" if learning else "there is no learning constraint",
                key="penalty_budget",
                remedy="give penalty_budget, or [learning] with rounds; one of the two",
            )
        if self.penalty_budget is not None:
            return self.penalty_budget
        assert learning is not None
        assert self.learning is not None
        assert self.learning.rounds is not None
        return learning.penalty_budget(costs.weight, self.learning.target, self.learning.rounds)

    def _bound(self) -> Learning | None:
        spec = self.learning
        if spec is None:
            return None
        if spec.step * spec.smoothness > 1.0:
            raise ConfigError(
                f"a step of {spec.step:g} is above 1 / smoothness = {1 / spec.smoothness:g}: the bound does not hold",
                key="learning.step",
                remedy="lower the step",
            )
        return Learning(spec.initial_gap, spec.step, spec.smoothness, spec.gradient_variance, spec.cross_smoothness)

    def _names(self) -> list[str]:
        count = self.draw.num_clients if self.draw is not None else len(self.clients)
        written = [client.name for client in self.clients] or [""] * count
        return [name or f"client-{index + 1}" for index, name in enumerate(written)]

    def _written(self) -> ClientCosts:
        clients = self.clients
        for index, client in enumerate(clients):
            key = f"clients.{index}"
            if (client.gamma_hz is None) == (client.efficiency is None):
                raise ConfigError(
                    "a client's rate follows from gamma_hz or from efficiency, one of them", key=key, remedy="give one"
                )
            if client.payload_bits + client.fixed_payload_bits <= 0:
                raise ConfigError("this client sends nothing", key=key, remedy="give payload_bits, or leave it out")
        linear = [client.efficiency is not None for client in clients]
        if any(linear) and not all(linear):
            raise ConfigError(
                "some clients have a gamma_hz, others an efficiency",
                key=f"clients.{linear.index(not linear[0])}",
                remedy="describe all rates in one way",
            )
        uplink: Uplink = (
            FixedEfficiency(np.array([client.efficiency for client in clients], np.float64))
            if linear[0]
            else Shannon(np.array([client.gamma_hz for client in clients], np.float64))
        )
        even = 1.0 / len(clients)
        return ClientCosts(
            fixed_s=np.array([client.fixed_s for client in clients]),
            scalable_s=np.array([client.scalable_s for client in clients]),
            payload_bits=np.array([client.payload_bits for client in clients]),
            uplink=uplink,
            weight=np.array([even if client.weight is None else client.weight for client in clients]),
            penalty=_curves(clients),
            max_ratio=np.full(len(clients), self.max_ratio),
            fixed_payload_bits=np.array([client.fixed_payload_bits for client in clients]),
        )

    def _drawn(self, draw: DrawSpec) -> ClientCosts:
        if draw.payload_bits + draw.fixed_payload_bits <= 0:
            raise ConfigError("the clients send nothing", key="draw.payload_bits", remedy="give it a positive number")
        rng, count = np.random.default_rng(draw.seed), draw.num_clients
        distance_m = rng.uniform(*draw.distance_m, count)
        speed_flop_s = rng.uniform(*draw.speed_flop_s, count)
        faded = rng.exponential(1.0, count) if draw.fading else np.ones(count)
        gamma_hz = snr_bandwidth_hz(draw.power_w, cell_gain(distance_m) * faded, draw.noise_w_per_hz)
        ones = np.ones(count)
        if draw.penalty == "line":
            penalty = chord(ones)
        else:
            weights = rng.standard_normal(20_000)
            penalty = magnitude([weights / np.linalg.norm(weights)] * count, _KNOTS)
        return ClientCosts(
            fixed_s=draw.tokens * draw.fixed_flop_per_token / speed_flop_s,
            scalable_s=draw.tokens * draw.flop_per_token / speed_flop_s,
            payload_bits=draw.payload_bits * ones,
            uplink=Shannon(gamma_hz),
            weight=ones / count,
            penalty=penalty,
            max_ratio=self.max_ratio * ones,
            fixed_payload_bits=draw.fixed_payload_bits * ones,
        )


def _curves(clients: tuple[ClientSpec, ...]) -> PenaltyCurves:
    """Penalty curves of clients, padded to one number of knots."""
    knots = [client.curve or ((0.0, 0.0), (1.0, client.squared_norm)) for client in clients]
    longest = max(len(curve) for curve in knots)
    padded = np.array([[*curve, *[curve[-1]] * (longest - len(curve))] for curve in knots], np.float64)
    for index in range(len(clients)):
        try:
            PenaltyCurves(padded[index : index + 1, :, 0], padded[index : index + 1, :, 1])
        except ValueError as error:
            raise ConfigError(
                str(error),
                key=f"clients.{index}.curve",
                remedy="write [[0, 0], ..., [1, squared_norm]] with growing slopes",
            ) from error
    return PenaltyCurves(padded[:, :, 0], padded[:, :, 1])


def _told(names: list[str], point: Allocation) -> Mapping[str, Any]:
    """An allocation, client by client, JSON-ready."""
    return {
        "penalty": point.penalty,
        "seconds_per_penalty": None if math.isnan(point.price_s) else point.price_s,
        "clients": {
            name: {
                "pruning_ratio": float(point.pruning[index]),
                "bandwidth_hz": float(point.bandwidth_hz[index]),
                "latency_s": float(point.latency_s[index]),
            }
            for index, name in enumerate(names)
        },
    }
