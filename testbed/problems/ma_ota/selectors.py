"""Client selections of the literature, as baselines of `testbed.problems.ma_ota.selection`.

All look for a set S with a small Phi(S) - omega sum Q_m (`selection.Criterion`), for a K that is given or free:

- greedy spatial device selection (GSDS) and alternating device selection and beamforming (ADSBF): Kalarde, Dong, Liang
  et al., arXiv 2302.14336;
- Gibbs sampling: Liu, Yuan, Zhang, arXiv 2011.10282;
- difference-of-convex selection: Yang, Jiang, Shi, Ding, arXiv 1812.11750, in `testbed.problems.ma_ota.dc_selection`;
- everybody, the strongest, the K strongest, K at random, turn by turn: common practice.

Our reading, where the sources know neither K nor a score with queues: the growing or alternating set stops at K; the
sampler exchanges two clients instead of adding or removing one; methods that pass many sets return the best of them,
not the last. Combiners are computed from the auxiliary channels, h~_m = sqrt(P_m) h_m / (D_m nu_m); strong or near is
meant of sqrt(P_m) h_m / nu_m, without the weight of the data, as in arXiv 2302.14336. A client whose channel is zero
is never selected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from testbed.problems.ma_ota.dc_selection import dc_candidates
from testbed.problems.ma_ota.selection import Criterion, best_prefix, select
from testbed.problems.multicast import multicast

Gain = Callable[[tuple[int, ...]], float]
"""Set, ascending -> q_S, what the weakest of it is heard with."""

_ROUNDS = 20
_SETTLED = 1e-9
_SAMPLES = 50
_COOLING = 0.9
_TRIED = 8


class Selector(Protocol):
    """A way to choose the clients that send at once."""

    def __call__(
        self,
        criterion: Criterion,
        channel: np.ndarray,
        concurrency: int | None,
        rng: np.random.Generator,
        *,
        turn: int = 0,
        gain: Gain | None = None,
    ) -> tuple[int, ...]:
        """Indices of the selected clients, ascending; empty where nobody is heard, or fewer than K are.

        Args:
            criterion: what sets are judged by.
            channel: auxiliary channels at the antennas' places, shape [num_antennas, num_clients].
            concurrency: K; any size if None.
            rng: draws, where the method draws.
            turn: number of the round, where the method goes by turns.
            gain: q_S of a set; the best combiner for `channel` if None. With a gain that moves the antennas for every
                set the methods select for that.

        Raises:
            ValueError: shapes do not fit, a channel is not finite, or K is below 1.
        """
        ...


class _Judge:
    """Scores of sets, each computed once."""

    def __init__(self, criterion: Criterion, channel: np.ndarray, concurrency: int | None, gain: Gain | None) -> None:
        self.criterion, self.channel = criterion, np.asarray(channel, np.complex128)
        if self.channel.ndim != 2 or self.channel.shape[1] != len(criterion.weights):
            raise ValueError(f"{len(criterion.weights)} weights do not go with channels of shape {self.channel.shape}")
        self.spatial = self.channel * criterion.weights
        self.norms = np.linalg.norm(self.spatial, axis=0)
        if not np.isfinite(self.norms).all():
            raise ValueError("a channel is not finite")
        self.heard = np.flatnonzero(self.norms > 0)
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; at least one client has to send")
        self.enough = len(self.heard) >= (concurrency or 1)
        self._gain = gain or self._combined
        self._scores: dict[tuple[int, ...], float] = {}

    def _combined(self, members: tuple[int, ...]) -> float:
        return multicast(self.channel[:, list(members)]).value

    def score(self, members: Sequence[int] | np.ndarray) -> float:
        """Phi(S) - omega sum Q_m, with the best combiner for the set."""
        key = _ascending(members)
        if key not in self._scores:
            self._scores[key] = self.criterion.judge(key, self._gain(key))[1]
        return self._scores[key]

    def best(self, sets: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The set with the smallest score."""
        return min(sets, key=self.score)

    def strongest(self) -> np.ndarray:
        """Clients that are heard, the strongest channel first."""
        return self.heard[np.argsort(-self.norms[self.heard], kind="stable")]


def select_all(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """Everybody who is heard, whatever K is. See `Selector`."""
    return _ascending(_Judge(criterion, channel, None, gain).heard)


def top_one(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """The client with the strongest channel alone, whatever K is. See `Selector`."""
    return _ascending(_Judge(criterion, channel, None, gain).strongest()[:1])


def strongest(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """The K clients with the strongest channels; for a free K the best number of them. See `Selector`."""
    judge = _Judge(criterion, channel, concurrency, gain)
    if not judge.enough:
        return ()
    order = judge.strongest()
    sizes = range(1, len(order) + 1) if concurrency is None else (concurrency,)
    return judge.best([_ascending(order[:size]) for size in sizes])


def random_choice(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """K clients at random; for a free K a random number of them. See `Selector`."""
    judge = _Judge(criterion, channel, concurrency, gain)
    if not judge.enough:
        return ()
    size = int(rng.integers(1, len(judge.heard) + 1)) if concurrency is None else concurrency
    return _ascending(rng.choice(judge.heard, size, replace=False))


def round_robin(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """The next K clients, one for a free K: those with the longest queues, or where none are kept in their order.

    Round t then begins after the last one of round t - 1. See `Selector`.
    """
    judge = _Judge(criterion, channel, concurrency, gain)
    if not judge.enough:
        return ()
    size = concurrency or 1
    if criterion.queues is not None:
        waiting = np.asarray(criterion.queues, np.float64)[judge.heard]
        return _ascending(judge.heard[np.argsort(-waiting, kind="stable")[:size]])
    places = (turn * size + np.arange(size)) % len(judge.heard)
    return _ascending(judge.heard[places])


def gsds(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """Greedy spatial device selection.

    S_1 holds the strongest channel; S_{k+1} = S_k and the client with the largest ||P_k h_m||, P_k the projection on
    the span of the channels in S_k. The set of size K, or the one with the smallest score. See `Selector`.

    Reference:
        arXiv 2302.14336.
    """
    judge = _Judge(criterion, channel, concurrency, gain)
    if not judge.enough:
        return ()
    chosen = [int(judge.strongest()[0])]
    basis = np.zeros((len(judge.channel), 0), np.complex128)
    sets = [_ascending(chosen)]
    while len(chosen) < (concurrency or len(judge.heard)):
        newest = judge.spatial[:, chosen[-1]] / judge.norms[chosen[-1]]
        rest_of_newest = newest - basis @ (basis.conj().T @ newest)
        length = float(np.linalg.norm(rest_of_newest))
        if length > 1e-9:
            basis = np.column_stack([basis, rest_of_newest / length])
        rest = np.setdiff1d(judge.heard, chosen)
        within = np.linalg.norm(basis.conj().T @ judge.spatial[:, rest], axis=0)
        chosen.append(int(rest[int(np.argmax(within))]))
        sets.append(_ascending(chosen))
    return sets[-1] if concurrency is not None else judge.best(sets)


def adsbf(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """Alternating device selection and beamforming, from the combiner that serves everybody.

    S <- the best set for f (for a free K a prefix of the clients in the order of |f^H h~_m|),
    f <- the best combiner for S, until the score settles. See `Selector`.

    Reference:
        arXiv 2302.14336.
    """
    judge = _Judge(criterion, channel, concurrency, gain)
    if not judge.enough:
        return ()
    members = _ascending(judge.heard)
    visited: list[tuple[int, ...]] = [members] if concurrency in (None, len(members)) else []
    for _ in range(_ROUNDS):
        combiner = multicast(judge.channel[:, list(members)]).point
        members = _for_combiner(judge, np.abs(combiner.conj() @ judge.channel) ** 2, concurrency)
        if members in visited:
            break
        visited.append(members)
    return judge.best(visited)


def gibbs(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """Gibbs sampling: the next set is drawn from the present one and its neighbours, P(S) ~ exp(-score(S) / T).

    Neighbours differ by one client; with a fixed K by an exchange of one. It begins with everybody (the K strongest),
    the temperature T at the spread of the first neighbourhood's scores, and cools by 0.9 each of 50 times. The best set
    that was looked at. See `Selector`.

    Reference:
        arXiv 2011.10282.
    """
    judge = _Judge(criterion, channel, concurrency, gain)
    if not judge.enough:
        return ()
    present = _ascending(judge.heard if concurrency is None else judge.strongest()[:concurrency])
    best, temperature = present, 0.0
    for sample in range(_SAMPLES):
        tried = [present, *_neighbours(present, judge.heard, concurrency)]
        scores = np.array([judge.score(members) for members in tried])
        best = judge.best([best, tried[int(scores.argmin())]])
        if sample == 0:
            temperature = max(float(np.ptp(scores[np.isfinite(scores)])), 1e-300)
        chances = np.exp(-(scores - scores.min()) / temperature)
        present = tried[int(rng.choice(len(tried), p=chances / chances.sum()))]
        temperature *= _COOLING
    return best


def difference_of_convex(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """Sparse slacks by differences of convex functions; see `dc_selection`. See `Selector`.

    The combiners that it ends with offer a set each, as in `adsbf`; the eight that are best with these combiners are
    judged with the best combiner for the set.

    Reference:
        arXiv 1812.11750.
    """
    judge = _Judge(criterion, channel, concurrency, gain)
    if not judge.enough:
        return ()
    offered: dict[tuple[int, ...], float] = {}
    for combiner in dc_candidates(judge.channel[:, judge.heard], concurrency):
        gains = np.abs(combiner.conj() @ judge.channel) ** 2
        members = _for_combiner(judge, gains, concurrency)
        score = criterion.judge(members, float(gains[list(members)].min()))[1]
        offered[members] = min(score, offered.get(members, np.inf))
    return judge.best(sorted(offered, key=lambda members: offered[members])[:_TRIED])


def exact(
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """The best set, by `selection.select`; the present places of the antennas count, not `gain`. See `Selector`."""
    return select(criterion, channel, concurrency).point.selected


def _for_combiner(judge: _Judge, gains: np.ndarray, concurrency: int | None) -> tuple[int, ...]:
    """The best set for a combiner that hears the clients with these gains.

    With a fixed K and a weakest gain that must be kept, the K clients with most data are the best; every client's gain
    is tried for the weakest. Exact for Phi; queues only judge between these sets.
    """
    criterion = judge.criterion
    if concurrency is None and (criterion.queues is None or criterion.fairness == 0.0):
        return best_prefix(criterion, gains)
    order = judge.heard[np.argsort(-gains[judge.heard], kind="stable")]
    if concurrency is None:
        sets = [_ascending(order[:size]) for size in range(1, len(order) + 1)]
    else:
        weights = np.asarray(criterion.weights, np.float64)
        offers = [order[:size] for size in range(concurrency, len(order) + 1)]
        sets = [_ascending(offer[np.argsort(-weights[offer], kind="stable")[:concurrency]]) for offer in offers]
    return min(sets, key=lambda members: criterion.judge(members, float(gains[list(members)].min()))[1])


def _neighbours(members: tuple[int, ...], heard: np.ndarray, concurrency: int | None) -> list[tuple[int, ...]]:
    inside, outside = list(members), [int(client) for client in heard if client not in members]
    if concurrency is not None:
        return [_ascending({*inside, new} - {old}) for old in inside for new in outside]
    fewer = [_ascending(set(inside) - {old}) for old in inside if len(inside) > 1]
    return fewer + [_ascending({*inside, new}) for new in outside]


def _ascending(members: Sequence[int] | np.ndarray | set[int]) -> tuple[int, ...]:
    return tuple(sorted(int(client) for client in members))


SELECTORS: Mapping[str, Selector] = {
    "exact": exact,
    "all": select_all,
    "top-one": top_one,
    "strongest": strongest,
    "random": random_choice,
    "round-robin": round_robin,
    "gsds": gsds,
    "adsbf": adsbf,
    "gibbs": gibbs,
    "dc": difference_of_convex,
}
"""Name -> selection."""
