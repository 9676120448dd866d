"""Which clients send at once, with antennas where they are: exact over all subsets of up to twelve clients.

minimise over S with |S| = K   Phi(S) - omega sum_{m in S} Q_m,    q_S = max_{||f|| = 1} min_{m in S} |f^H h~_m|^2

Phi is the relatives' objective (arXiv 2011.10282, arXiv 2302.14336; `bound.phi`). What the paper calls hybrid and how
it measures fairness is not available: virtual queues Q_m of missed turns, and Jain's index, are our reading.

For a fixed combiner and no K the best set is a prefix of the clients in the order of their gains (`best_prefix`). With
a combiner for each set, sets are discarded by a bound: for every w on the simplex

    q_S <= lambda_max(sum_m w_m h~_m h~_m^H),

which multiplicative steps in w tighten for all sets at once (at its minimum it is the semidefinite relaxation, and the
top eigenvector is a combiner, so that q_S is enclosed from below too). What is left is solved one by one, the most
promising first, until no bound of the rest is better than what was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from testbed.opt.solution import Solution
from testbed.problems.ma_ota.bound import phi
from testbed.problems.multicast import multicast

EXACT_CLIENTS = 12
"""Most clients whose subsets are all looked at."""

_STEPS = (1.0, 0.7, 0.5, 0.5, 0.35, 0.35, 0.25, 0.25, 0.18, 0.18, 0.12, 0.12)
"""Of the logarithm of the weights w."""


@dataclass(frozen=True)
class Selection:
    """Clients that send at once, and what that is worth.

    Attributes:
        selected: their indices, ascending.
        combiner: f, unit norm, shape [num_antennas].
        gain: q_S, gain of the weakest of them.
        phi: Phi(S).
        score: Phi(S) - omega sum of their queues; lower is better.
    """

    selected: tuple[int, ...]
    combiner: np.ndarray
    gain: float
    phi: float
    score: float


@dataclass(frozen=True)
class Criterion:
    """What a set of clients is judged by.

    Attributes:
        weights: D_m, shape [num_clients].
        num_values: d.
        noise_w: sigma^2, watts.
        gradient_square: G^2, what the aggregation's error is relative to.
        queues: Q_m, shape [num_clients]; none if None.
        fairness: omega, in units of Phi for each missed turn.
    """

    weights: np.ndarray
    num_values: int
    noise_w: float
    gradient_square: float = 1.0
    queues: np.ndarray | None = None
    fairness: float = 0.0

    def credit(self, selected: Sequence[int] | np.ndarray) -> float:
        """omega sum_{m in S} Q_m."""
        if self.queues is None or self.fairness == 0.0:
            return 0.0
        return self.fairness * float(np.asarray(self.queues)[np.asarray(selected, np.int64)].sum())

    def judge(self, selected: Sequence[int] | np.ndarray, gain: float) -> tuple[float, float]:
        """Phi(S) and the score, for a set whose weakest client has the gain q."""
        gains = np.full(len(self.weights), gain)
        value = phi(selected, self.weights, gains, self.num_values, self.noise_w, gradient_square=self.gradient_square)
        return value, value - self.credit(selected)

    def scores(self, sets: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """The scores of many sets of one size, shape [num_sets].

        Args:
            sets: indices, shape [num_sets, size].
            gains: q_S, shape [num_sets].
        """
        weights = np.asarray(self.weights, np.float64)
        total = weights[sets].sum(axis=1)
        error = self.num_values * self.noise_w / (total**2 * self.gradient_square)
        noise = np.divide(error, gains, out=np.full(len(sets), np.inf), where=gains > 0)
        value = 4.0 * np.maximum(0.0, 1.0 - total / weights.sum()) ** 2 + noise
        if self.queues is not None and self.fairness != 0.0:
            value = value - self.fairness * np.asarray(self.queues, np.float64)[sets].sum(axis=1)
        return value


def best_prefix(criterion: Criterion, gains: np.ndarray) -> tuple[int, ...]:
    """The best set of any size for given gains: without queues it is a prefix of the clients, the loudest first.

    With the weakest client given, whoever is louder adds data and costs nothing: the optimum is among the M prefixes.

    Args:
        criterion: weights, d, sigma^2; its queues must not count (`fairness` 0).
        gains: |f^H h~_m|^2 for a given combiner, shape [num_clients].

    Returns:
        indices, ascending.

    Raises:
        ValueError: the criterion counts queues, or gains are not finite or nobody is heard.

    Reference:
        arXiv 2302.14336.
    """
    gains = np.asarray(gains, np.float64)
    if criterion.queues is not None and criterion.fairness != 0.0:
        raise ValueError("prefixes are optimal for Phi alone; with queues compare sets with `select`")
    if not np.isfinite(gains).all() or gains.max(initial=0.0) <= 0:
        raise ValueError("gains must be finite, and at least one client must be heard")
    order = np.argsort(-gains, kind="stable")
    best = min(range(1, len(order) + 1), key=lambda size: criterion.judge(order[:size], gains[order[size - 1]])[0])
    return tuple(sorted(int(client) for client in order[:best]))


def select(criterion: Criterion, channel: np.ndarray, concurrency: int | None) -> Solution[Selection]:
    """The best set of K clients, each set with its own combiner.

    Args:
        criterion: what sets are judged by.
        channel: auxiliary channels h~_m at the antennas' places, shape [num_antennas, num_clients].
        concurrency: K; any size if None.

    Returns:
        the best set; "infeasible" where fewer than K clients are heard. `value` is the score.

    Raises:
        ValueError: shapes do not fit, or a channel is not finite.
    """
    ranked = rank(criterion, channel, concurrency, kept=1)
    point = ranked.point[0] if ranked.point else _nobody(channel)
    return Solution(
        point, ranked.value, ranked.status, feasibility=ranked.feasibility, iterations=ranked.iterations,
        message=ranked.message,
    )  # fmt: skip


def rank(
    criterion: Criterion, channel: np.ndarray, concurrency: int | None, *, kept: int = 5
) -> Solution[tuple[Selection, ...]]:
    """The best few sets of K clients, best first, each with its own combiner.

    Args:
        criterion: what sets are judged by.
        channel: auxiliary channels h~_m at the antennas' places, shape [num_antennas, num_clients].
        concurrency: K; any size if None.
        kept: how many sets.

    Returns:
        the sets; status "optimal" where every set was solved or discarded by its bound (up to `EXACT_CLIENTS`, with
        combiners as `multicast` finds them), "stationary" where no exchange of one client helps, "infeasible" where
        fewer than K clients are heard. `value` is the best score, `iterations` counts the combiners that were solved.

    Raises:
        ValueError: shapes do not fit, or a channel is not finite.
    """
    channel = np.asarray(channel, np.complex128)
    if channel.ndim != 2 or channel.shape[1] != len(criterion.weights):
        raise ValueError(f"{len(criterion.weights)} weights do not go with channels of shape {channel.shape}")
    if not np.isfinite(channel).all():
        raise ValueError("a channel is not finite")
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; at least one client has to send")
    heard = np.flatnonzero(np.linalg.norm(channel, axis=0) > 0)
    if len(heard) < (concurrency or 1):
        silent = sorted(set(range(channel.shape[1])) - set(heard.tolist()))
        names = f"; the channels of these are zero: {', '.join(map(str, silent))}" if silent else ""
        wanted = concurrency or 1
        message = f"selection: {wanted} clients are to send at once, only {len(heard)} can be heard{names}"
        return Solution((), math.inf, "infeasible", feasibility=1.0 - len(heard) / wanted, message=message)
    sizes = range(1, len(heard) + 1) if concurrency is None else range(concurrency, concurrency + 1)
    if len(heard) <= EXACT_CLIENTS:
        sets = [heard[np.array(list(combinations(range(len(heard)), size)))] for size in sizes]
        found, solved = _best_of(criterion, channel, sets, kept)
        return Solution(found, found[0].score, "optimal", iterations=solved)
    sets = [_exchange(criterion, channel, heard, chosen, kept) for chosen in _greedy(criterion, channel, heard, sizes)]
    found, solved = _best_of(criterion, channel, sets, kept)
    message = f"{len(heard)} clients are too many to compare all sets: greedy choice, then exchanges of one client"
    return Solution(found, found[0].score, "stationary", iterations=solved, message=message)


def update_queues(queues: np.ndarray, selected: Sequence[int], concurrency: float | None = None) -> np.ndarray:
    """Missed turns after a round: Q_m <- [Q_m + K / M - 1{m in S}]^+.

    Args:
        queues: Q_m, shape [num_clients].
        selected: who sent.
        concurrency: K, each client's turns are K / M of the rounds; the number that sent if None.

    Returns:
        shape [num_clients].
    """
    queues = np.asarray(queues, np.float64)
    sent = np.zeros(len(queues))
    sent[np.asarray(selected, np.int64)] = 1.0
    share = (len(selected) if concurrency is None else concurrency) / len(queues)
    return np.maximum(queues + share - sent, 0.0)


def missed_turns(counts: np.ndarray) -> np.ndarray:
    """Queues that fit to counts of past rounds alone, whatever their order: Q_m = [mean of all c - c_m]^+.

    Args:
        counts: c_m, how often each took part, shape [num_clients].

    Returns:
        shape [num_clients].
    """
    counts = np.asarray(counts, np.float64)
    return np.maximum(counts.mean() - counts, 0.0)


def jain(counts: np.ndarray) -> float:
    """Jain's index of how evenly clients take part: (sum c_m)^2 / (M sum c_m^2), between 1 / M and 1.

    Args:
        counts: c_m, how often each took part, shape [num_clients].

    Returns:
        the index; 1 where nobody took part yet.
    """
    counts = np.asarray(counts, np.float64)
    square = float(counts @ counts)
    return float(counts.sum()) ** 2 / (len(counts) * square) if square > 0 else 1.0


def _nobody(channel: np.ndarray) -> Selection:
    return Selection((), np.zeros(np.shape(channel)[0], np.complex128), 0.0, math.inf, math.inf)


def _best_of(
    criterion: Criterion, channel: np.ndarray, sets: Sequence[np.ndarray], kept: int
) -> tuple[tuple[Selection, ...], int]:
    """The best `kept` of all sets, and how many combiners were solved for that.

    Args:
        sets: for each size, shape [num_sets, size].
    """
    enclosed: list[tuple[float, tuple[int, ...]]] = []
    ceiling = math.inf
    for group in sets:
        best_score, worst_score = _enclose(criterion, channel, group, kept, ceiling)
        ceiling = min(ceiling, _kept_th(worst_score, kept))
        enclosed += [(float(low), tuple(map(int, members))) for low, members in zip(best_score, group, strict=True)]
    enclosed.sort()
    found: list[Selection] = []
    solved = 0
    for low, members in enclosed:
        # the bound is computed in floating point: a margin keeps ties
        if len(found) >= kept and low > found[kept - 1].score + 1e-9 * abs(found[kept - 1].score):
            break
        found.append(_solve(criterion, channel, members))
        found.sort(key=lambda item: (item.score, item.selected))
        found = found[:kept]
        solved += 1
    return tuple(found), solved


def _solve(criterion: Criterion, channel: np.ndarray, members: tuple[int, ...]) -> Selection:
    combined = multicast(channel[:, list(members)])
    value, score = criterion.judge(members, combined.value)
    return Selection(members, combined.point, combined.value, value, score)


def _enclose(
    criterion: Criterion, channel: np.ndarray, sets: np.ndarray, kept: int, ceiling: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the scores of sets of one size, shape [num_sets] each.

    With B = W^(1/2) G W^(1/2), G the Gram matrix of the set and W = diag(w), the top eigenpair (lambda, v) gives the
    bound lambda and the combiner f ~ H W^(1/2) v with the gains lambda |v_m|^2 / w_m. Sets that surely are not among
    the best `kept`, or are above `ceiling`, are tightened no further.
    """
    # [num_sets, size, size]
    gram = (channel.conj().T @ channel)[sets[:, :, None], sets[:, None, :]]
    weights = 1.0 / np.real(np.einsum("smm->sm", gram))
    lower, upper = np.zeros(len(sets)), np.full(len(sets), np.inf)
    below, above = np.full(len(sets), -np.inf), np.full(len(sets), np.inf)
    part = np.arange(len(sets))
    for step in _STEPS:
        weights[part] /= weights[part].sum(axis=1, keepdims=True)
        root = np.sqrt(weights[part])
        values, vectors = np.linalg.eigh(gram[part] * (root[:, :, None] * root[:, None, :]))
        top = values[:, -1]
        # [num_part, size]: gains relative to the bound
        heard = np.abs(vectors[:, :, -1]) ** 2 / weights[part]
        lower[part] = np.maximum(lower[part], top * heard.min(axis=1))
        upper[part] = np.minimum(upper[part], top)
        below[part] = criterion.scores(sets[part], upper[part])
        above[part] = criterion.scores(sets[part], lower[part])
        open_sets = below[part] <= min(ceiling, _kept_th(above, kept))
        open_sets &= upper[part] > lower[part] * (1 + 1e-6)
        part, heard = part[open_sets], heard[open_sets]
        if len(part) == 0:
            break
        # bounded steps keep every weight above zero
        weights[part] *= np.exp(-step * np.clip(heard - 1.0, -2.0, 2.0))
    return below, above


def _kept_th(scores: np.ndarray, kept: int) -> float:
    return float(np.partition(scores, kept - 1)[kept - 1]) if len(scores) >= kept else math.inf


def _greedy(criterion: Criterion, channel: np.ndarray, heard: np.ndarray, sizes: range) -> Iterator[np.ndarray]:
    """For each size the set that grew by the best client each time, shape [size]."""
    chosen = np.zeros(0, np.int64)
    for size in range(1, sizes[-1] + 1):
        rest = np.setdiff1d(heard, chosen)
        grown = np.column_stack([np.tile(chosen, (len(rest), 1)), rest])
        chosen = grown[int(np.argmin(_enclose(criterion, channel, grown, len(grown), math.inf)[1]))]
        if size in sizes:
            yield chosen


def _exchange(
    criterion: Criterion, channel: np.ndarray, heard: np.ndarray, chosen: np.ndarray, kept: int
) -> np.ndarray:
    """The best `kept` sets around one that no exchange of one client improves, shape [kept or fewer, size]."""
    best = math.inf
    while True:
        rest = np.setdiff1d(heard, chosen)
        swapped = np.array(
            [np.append(np.delete(chosen, place), client) for place in range(len(chosen)) for client in rest]
        ).reshape(-1, len(chosen))
        tried = np.sort(np.vstack([chosen, swapped]).astype(np.int64), axis=1)
        scores = _enclose(criterion, channel, tried, len(tried), math.inf)[1]
        order = np.argsort(scores, kind="stable")
        if not scores[order[0]] < best - 1e-12 * abs(best if math.isfinite(best) else 0.0):
            return tried[order[:kept]]
        best, chosen = float(scores[order[0]]), tried[order[0]]
