"""An instance of TSFA as a TOML file, and its answer, for `testbed solve tsfa`."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from testbed.core.errors import ConfigError
from testbed.lora.sparse_orthogonal import EnergyCurve, residual_curve
from testbed.opt.solution import Solution, Status
from testbed.problems.cell import cell_gain
from testbed.problems.instance import Answer, Instance
from testbed.problems.tsfa.bound import convergence_bound
from testbed.problems.tsfa.horizon import POLICIES, Outcome, queue_bound, run, unmeetable
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.rank import Candidate, weigh_ranks
from testbed.problems.tsfa.tables import BoundSpec, ClientSpec, DrawSpec, OfflineSpec, UpdateSpec


class TsfaInstance(Instance):
    """Rank pairs and bandwidth under a mean latency limit, in one round or many, and the rank before the first."""

    methods: ClassVar[tuple[str, ...]] = (*POLICIES, "brute")

    seed: int = Field(1, ge=0, description="of drawn clients and channels")
    rounds: int = Field(1, ge=1, le=10_000, description="T; 1 solves a single round")
    tradeoff: float = Field(20.0, gt=0, description="V; large ones favour learning, small ones short queues")
    latency_s: float = Field(8.0, gt=0, description="T_bar, mean seconds of a round")
    backlog_s: float = Field(0.0, ge=0, description="Q of the latency queue before the first round")
    queues: Literal["one", "each"] = Field(
        "one", description="latency queues: one for the round's end, or one for each client's own"
    )
    bandwidth_hz: float = Field(1e6, gt=0, description="B")
    noise_w_hz: float = Field(3.981e-21, gt=0, description="N0, noise density at the receiver, W/Hz")
    least_share_hz: float = Field(0.0, ge=0, description="narrowest share of the band that can be sent in")
    edge_snr: float = Field(
        0.0, ge=0, description="signal-to-noise ratio, linear, down to which more band helps; 0 for no such edge"
    )
    fading: bool = Field(True, description="gains are the mean's times an exponential draw of each round, at least 0.1")
    rank: int | None = Field(None, ge=1, description="structural rank; the offline stage chooses it if absent")
    whole_pairs: bool = Field(True, description="send whole rank pairs: kappa is rounded down")
    update: UpdateSpec = UpdateSpec()
    offline: OfflineSpec = OfflineSpec()
    clients: tuple[ClientSpec, ...] = Field((), description="one table for each client")
    draw: DrawSpec | None = Field(None, description="draws clients where none are listed")
    bound: BoundSpec = BoundSpec()

    @model_validator(mode="after")
    def _clients_fit(self) -> TsfaInstance:
        if bool(self.clients) == (self.draw is not None):
            raise ValueError("clients: list [[clients]] or add [draw] with num_clients, one of the two")
        for row, client in enumerate(self.clients):
            if (client.distance_m is None) == (client.gain is None):
                raise ValueError(f"clients.{row}: its channel is not clear; give distance_m or gain, one of the two")
        if self.queues == "one" and any(client.latency_s is not None for client in self.clients):
            raise ValueError('clients: a limit of its own needs a queue of its own; set queues = "each"')
        if self.bound.step > 1.0 / self.bound.smoothness * (1 + 1e-12):
            raise ValueError(
                f"bound.step: {self.bound.step:g} is above 1 / L; lower it to {1 / self.bound.smoothness:g}"
            )
        return self

    def solve(self, method: str) -> Answer:
        """Both stages by one policy.

        Args:
            method: one of `methods`; brute tries ends and splits of the band on a grid, for one round of two clients.

        Raises:
            ConfigError: method brute with more than one round, other than two clients, or a queue for each.
        """
        rng = np.random.default_rng(self.seed)
        weight, compute_s, reach_hz = self._population(rng)
        candidates = (
            ()
            if self.rank is not None
            else self._candidates(compute_s, self._faded(reach_hz, self.offline.samples, rng))
        )
        best = min(candidates, key=lambda one: one.score) if candidates else None
        if best is not None and not np.isfinite(best.score):
            nearest = min(candidates, key=lambda one: one.excess_s)
            message = (
                f"latency_s: no rank is fast enough; the nearest, {nearest.rank}, exceeds the limit of"
                f" {self.latency_s:g} s by {nearest.excess_s:.4g} s at its least share"
            )
            return self._infeasible(message, nearest.excess_s, candidates)
        rank = self.rank if best is None else best.rank
        assert rank is not None
        rounds = self._rounds(rank, weight, compute_s, self._faded(reach_hz, self.rounds, rng))
        if shortage := rounds[0].shortage(self.bandwidth_hz):
            message = f"least_share_hz: {shortage}"
            excess = self.least_share_hz * len(weight) / self.bandwidth_hz - 1.0
            return self._infeasible(message, excess * self.latency_s, candidates)
        each, limit_s = self.queues == "each", self._limits_s()
        message = unmeetable(rounds, self.bandwidth_hz, limit_s, each=each) if self.rounds > 1 else ""
        if message:
            earliest_s = float(np.mean([one.earliest(one.least, self.bandwidth_hz)[0] for one in rounds]))
            return self._infeasible(message, max(earliest_s - self.latency_s, 0.0), candidates)
        if method == "brute":
            return self._brute(rank, rounds, candidates)
        outcome = run(
            rounds,
            self.bandwidth_hz,
            limit_s,
            self.tradeoff,
            method,
            self.backlog_s,
            whole_pairs=self.whole_pairs,
            each=each,
        )
        return Answer(self._solution(outcome, method), self._decisions(rank, outcome, rounds, candidates))

    def _limits_s(self) -> float | np.ndarray:
        """T_bar: one, or with a queue for each listed client one for each."""
        if self.queues == "one" or not self.clients:
            return self.latency_s
        return np.array([self.latency_s if one.latency_s is None else one.latency_s for one in self.clients])

    def _population(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, computing times and mean gamma, shape [num_clients] each."""
        if self.draw is not None:
            spec = self.draw
            distance_m = rng.uniform(*spec.distance_m, spec.num_clients)
            compute_s = rng.uniform(*spec.compute_s, spec.num_clients)
            return np.ones(spec.num_clients), compute_s, spec.power_w * cell_gain(distance_m) / self.noise_w_hz
        gain = np.array(
            [one.gain if one.gain is not None else cell_gain(one.distance_m or 0.0) for one in self.clients]
        )
        power_w = np.array([one.power_w for one in self.clients])
        weight, compute_s = (
            np.array([getattr(one, name) for one in self.clients]) for name in ("samples", "compute_s")
        )
        return weight, compute_s, power_w * gain / self.noise_w_hz

    def _faded(self, reach_hz: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """gamma of each round, shape [count, num_clients]."""
        if not self.fading:
            return np.broadcast_to(reach_hz, (count, len(reach_hz)))
        return reach_hz * np.maximum(rng.exponential(size=(count, len(reach_hz))), 0.1)

    def _energies(self, rank: int) -> np.ndarray:
        """I_i^2 of the first pairs, shape [rank]; zero beyond a given spectrum."""
        whole = self._spectrum(rank)
        return np.square(np.pad(whole[:rank], (0, max(rank - len(whole), 0))))

    def _spectrum(self, most: int) -> np.ndarray:
        if self.update.spectrum is not None:
            return np.array(self.update.spectrum)
        return self.update.decay ** np.arange(max(2 * most, 64))

    def _candidates(self, compute_s: np.ndarray, gamma_hz: np.ndarray) -> tuple[Candidate, ...]:
        offline, update = self.offline, self.update
        covariance = offline.covariance or tuple(0.002 * rank for rank in offline.ranks)
        return weigh_ranks(
            offline.ranks,
            self._spectrum(max(offline.ranks)),
            covariance,
            update.values_per_rank,
            update.value_bit,
            update.num_modules,
            compute_s,
            gamma_hz,
            self.bandwidth_hz,
            self.latency_s,
            offline.costs,
        )

    def _rounds(self, rank: int, weight: np.ndarray, compute_s: np.ndarray, gamma_hz: np.ndarray) -> list[Clients]:
        update = self.update
        curve: EnergyCurve = residual_curve(self._energies(rank), np.ones(rank))
        payload_bit = float(rank * update.values_per_rank * update.value_bit)
        least = 1.0 / rank if update.least_keep is None else update.least_keep
        first = Clients.of(weight, compute_s, gamma_hz[0], payload_bit, float(rank * update.num_modules), curve, least)
        edges = np.inf if self.edge_snr == 0 else np.maximum(gamma_hz / self.edge_snr, self.least_share_hz)
        most_hz = np.broadcast_to(edges, gamma_hz.shape)
        return [
            replace(first.at(row), least_hz=self.least_share_hz, most_hz=most)
            for row, most in zip(gamma_hz, most_hz, strict=True)
        ]

    def _solution(self, outcome: Outcome, method: str) -> Solution[Any]:
        one = self.rounds == 1
        value = float(outcome.values[0]) if one else float(np.mean([one.penalty for one in outcome.decisions]))
        trace = outcome.trace if one else tuple(one.penalty for one in outcome.decisions)
        if method != "tsfa":
            message = f"{method} is a rule to compare with: nothing says how far it is from an optimum"
            return Solution(outcome, value, "feasible", iterations=self.rounds, trace=trace, message=message)
        excess = float(np.max(outcome.queue.excess / outcome.queue.limit))
        over = max(float(one.bandwidth_hz.sum()) / self.bandwidth_hz - 1.0 for one in outcome.decisions)
        feasibility = max(over, 0.0 if one else excess, 0.0)
        if self.queues == "each":
            message = next((text for text in outcome.messages if text), "")
            own: Status = "stationary" if message else "optimal"
            return Solution(
                outcome, value, own, feasibility=feasibility, iterations=len(trace), trace=trace, message=message
            )
        rounded = "kappa is rounded down to whole rank pairs after the optimum" if self.whole_pairs else ""
        status: Status = "stationary" if self.whole_pairs else "optimal"
        return Solution(
            outcome, value, status, feasibility=feasibility, iterations=len(trace), trace=trace, message=rounded
        )

    def _decisions(
        self, rank: int, outcome: Outcome, rounds: list[Clients], candidates: tuple[Candidate, ...]
    ) -> dict[str, Any]:
        decided = outcome.decisions
        content: dict[str, Any] = {"rank": rank, **_table(candidates)}
        lost = np.array([float(np.dot(rounds[0].weight, np.sqrt(rounds[0].lost(one.share)))) for one in decided])
        bound, energy = self.bound, self.bound.update_square
        covariance = next((one.covariance for one in candidates if one.rank == rank), 0.002 * rank)
        whole = np.square(self._spectrum(rank))
        beyond = float(whole[rank:].sum() / whole.sum())
        terms = convergence_bound(
            bound.smoothness,
            bound.step,
            bound.initial_gap,
            np.full(len(decided), beyond * energy),
            lost * np.sqrt(energy),
            np.full(len(decided), np.sqrt(covariance * energy)),
            bound.variance,
        )
        content["bound"] = {
            "start": terms.start,
            "rank": terms.rank,
            "sparsification": terms.sparsification,
            "covariance": terms.covariance,
            "noise": terms.noise,
            "total": terms.total,
        }
        if self.rounds == 1:
            return content | self._one_round(outcome, rounds[0])
        return content | self._horizon(outcome, rounds)

    def _one_round(self, outcome: Outcome, clients: Clients) -> dict[str, Any]:
        only = outcome.decisions[0]
        sent_bit = only.share * clients.payload_bit + clients.header_bit
        content: dict[str, Any] = {
            "round_latency_s": only.latency_s,
            "earliest_s": only.earliest_s,
            "latest_s": only.latest_s,
            "penalty": only.penalty,
            "queue_s": float(outcome.queue.backlog.max()),
            "keep": only.share.tolist(),
            "bandwidth_hz": only.bandwidth_hz.tolist(),
            "sent_bit": sent_bit.tolist(),
        }
        if self.queues == "each":
            ended_s = clients.end_s(only.share, only.bandwidth_hz)
            content |= {"client_latency_s": ended_s.tolist(), "client_queue_s": outcome.queue.backlog.tolist()}
        return content

    def _horizon(self, outcome: Outcome, rounds: list[Clients]) -> dict[str, Any]:
        """Figures of many rounds; of several queues those of the client that is worst off."""
        decided, queue = outcome.decisions, outcome.queue
        worst = int(np.argmax(queue.mean - queue.limit))
        content: dict[str, Any] = {
            "mean_latency_s": float(queue.mean[worst]),
            "limit_s": float(queue.limit[worst]),
            "excess_bound_s": float(queue.excess_bound.max()),
            "queue_s": float(queue.backlog.max()),
            "largest_queue_s": float(outcome.backlog_s.max()),
        }
        if self.queues == "each":
            content |= {
                "client_mean_latency_s": queue.mean.tolist(),
                "client_limit_s": queue.limit.tolist(),
                "client_queue_s": queue.backlog.tolist(),
            }
        else:
            content["queue_bound_s"] = queue_bound(outcome, rounds, self.tradeoff, self.latency_s)
        return content | {
            "mean_keep": np.mean([one.share for one in decided], axis=0).tolist(),
            "round_latency_s": [one.latency_s for one in decided],
            "round_queue_s": outcome.backlog_s[1:].max(axis=1).tolist(),
            "keep": [one.share.tolist() for one in decided],
            "round_bandwidth_hz": [one.bandwidth_hz.tolist() for one in decided],
        }

    def _infeasible(self, message: str, excess_s: float, candidates: tuple[Candidate, ...]) -> Answer:
        solution: Solution[Any] = Solution(
            None, np.inf, "infeasible", feasibility=excess_s / self.latency_s, message=message
        )
        return Answer(solution, _table(candidates))

    def _brute(self, rank: int, rounds: list[Clients], candidates: tuple[Candidate, ...]) -> Answer:
        clients = rounds[0]
        if self.queues == "each":
            raise ConfigError(
                "the grid knows one queue only",
                key="--method",
                remedy='set queues = "one", or use the method tsfa, whose answer states its gap',
            )
        if len(rounds) != 1 or len(clients.weight) != 2:
            raise ConfigError(
                f"{len(rounds)} rounds of {len(clients.weight)} clients are too many for a grid",
                key="--method",
                remedy="set rounds = 1 and list two clients, or use the method tsfa",
            )
        first_s = clients.earliest(clients.least, self.bandwidth_hz)[0]
        last_s = clients.earliest(np.ones(2), self.bandwidth_hz)[0]
        tried = itertools.product(np.linspace(first_s, last_s, 401), np.linspace(0.001, 0.999, 999))
        points = np.array(list(tried))
        split_hz = self.bandwidth_hz * np.stack([points[:, 1], 1.0 - points[:, 1]], axis=1)
        keep = clients.sent(split_hz, points[:, :1])
        values = self.tradeoff * clients.penalty(np.maximum(keep, clients.least)) + self.backlog_s * points[:, 0]
        fits = np.all((keep >= clients.least - 1e-12) & (split_hz >= self.least_share_hz), axis=1)
        values = np.where(fits, values, np.inf)
        at = int(np.argmin(values))
        decisions = {
            "rank": rank,
            **_table(candidates),
            "round_latency_s": float(points[at, 0]),
            "keep": keep[at].tolist(),
            "bandwidth_hz": split_hz[at].tolist(),
        }
        return Answer(Solution(None, float(values[at]), "unfinished", iterations=len(points)), decisions)


def _table(candidates: tuple[Candidate, ...]) -> dict[str, Any]:
    """The offline stage, a column for each number."""
    if not candidates:
        return {}
    columns = ("rank", "score", "keep", "latency_s", "excess_s", "rank_residual", "sparsification", "covariance")
    return {"offline": {name: [getattr(one, name) for one in candidates] for name in columns}}
