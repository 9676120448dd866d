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


class Clients:
    """Whom a method chooses from, and what sets of them are worth; every score is computed once.

    Attributes:
        criterion: what sets are judged by.
        channel: auxiliary channels at the antennas' places, shape [num_antennas, num_clients].
        concurrency: K; any size if None.
        rng: draws, where the method draws.
        turn: number of the round, where the method goes by turns.
        spatial: sqrt(P_m) h_m / nu_m, the shape of the channels.
        norms: of these, shape [num_clients].
        heard: clients whose channel is not zero, ascending.
    """

    def __init__(
        self,
        criterion: Criterion,
        channel: np.ndarray,
        concurrency: int | None,
        rng: np.random.Generator,
        turn: int = 0,
        gain: Gain | None = None,
    ) -> None:
        self.criterion, self.channel = criterion, np.asarray(channel, np.complex128)
        self.concurrency, self.rng, self.turn = concurrency, rng, turn
        if self.channel.ndim != 2 or self.channel.shape[1] != len(criterion.weights):
            raise ValueError(f"{len(criterion.weights)} weights do not go with channels of shape {self.channel.shape}")
        self.spatial = self.channel * criterion.weights
        self.norms = np.linalg.norm(self.spatial, axis=0)
        if not np.isfinite(self.norms).all():
            raise ValueError("a channel is not finite")
        self.heard = np.flatnonzero(self.norms > 0)
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; at least one client has to send")
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


Selector = Callable[[Clients], tuple[int, ...]]
"""A way to choose the clients that send at once: their indices, ascending. At least K of them are heard."""


def choose(
    name: str,
    criterion: Criterion,
    channel: np.ndarray,
    concurrency: int | None,
    rng: np.random.Generator,
    *,
    turn: int = 0,
    gain: Gain | None = None,
) -> tuple[int, ...]:
    """The clients that send at once, by a method of `SELECTORS`.

    Args:
        name: of the method.
        criterion, channel, concurrency, rng, turn: as of `Clients`.
        gain: q_S of a set; the best combiner for `channel` if None. With a gain that moves the antennas for every set
            the methods select for that.

    Returns:
        indices, ascending; empty where nobody is heard, or fewer than K are.

    Raises:
        ValueError: shapes do not fit, a channel is not finite, or K is below 1.
    """
    clients = Clients(criterion, channel, None if name in WITHOUT_K else concurrency, rng, turn, gain)
    return SELECTORS[name](clients) if len(clients.heard) >= (clients.concurrency or 1) else ()


def select_all(clients: Clients) -> tuple[int, ...]:
    """Everybody who is heard, whatever K is."""
    return _ascending(clients.heard)


def top_one(clients: Clients) -> tuple[int, ...]:
    """The client with the strongest channel alone, whatever K is."""
    return _ascending(clients.strongest()[:1])


def strongest(clients: Clients) -> tuple[int, ...]:
    """The K clients with the strongest channels; for a free K the best number of them."""
    order = clients.strongest()
    sizes = range(1, len(order) + 1) if clients.concurrency is None else (clients.concurrency,)
    return clients.best([_ascending(order[:size]) for size in sizes])


def random_choice(clients: Clients) -> tuple[int, ...]:
    """K clients at random; for a free K a random number of them."""
    size = int(clients.rng.integers(1, len(clients.heard) + 1)) if clients.concurrency is None else clients.concurrency
    return _ascending(clients.rng.choice(clients.heard, size, replace=False))


def round_robin(clients: Clients) -> tuple[int, ...]:
    """The next K clients, one for a free K: those with the longest queues, or where none are kept in their order.

    Round t then begins after the last one of round t - 1.
    """
    size = clients.concurrency or 1
    if clients.criterion.queues is not None:
        waiting = np.asarray(clients.criterion.queues, np.float64)[clients.heard]
        return _ascending(clients.heard[np.argsort(-waiting, kind="stable")[:size]])
    places = (clients.turn * size + np.arange(size)) % len(clients.heard)
    return _ascending(clients.heard[places])


def gsds(clients: Clients) -> tuple[int, ...]:
    """Greedy spatial device selection.

    S_1 holds the strongest channel; S_{k+1} = S_k and the client with the largest ||P_k h_m||, P_k the projection on
    the span of the channels in S_k. The set of size K, or the one with the smallest score.

    Reference:
        arXiv 2302.14336.
    """
    chosen = [int(clients.strongest()[0])]
    basis = np.zeros((len(clients.channel), 0), np.complex128)
    sets = [_ascending(chosen)]
    while len(chosen) < (clients.concurrency or len(clients.heard)):
        newest = clients.spatial[:, chosen[-1]] / clients.norms[chosen[-1]]
        rest_of_newest = newest - basis @ (basis.conj().T @ newest)
        length = float(np.linalg.norm(rest_of_newest))
        if length > 1e-9:
            basis = np.column_stack([basis, rest_of_newest / length])
        rest = np.setdiff1d(clients.heard, chosen)
        within = np.linalg.norm(basis.conj().T @ clients.spatial[:, rest], axis=0)
        chosen.append(int(rest[int(np.argmax(within))]))
        sets.append(_ascending(chosen))
    return sets[-1] if clients.concurrency is not None else clients.best(sets)


def adsbf(clients: Clients) -> tuple[int, ...]:
    """Alternating device selection and beamforming, from the combiner that serves everybody.

    S <- the best set for f (for a free K a prefix of the clients in the order of |f^H h~_m|),
    f <- the best combiner for S, until the score settles.

    Reference:
        arXiv 2302.14336.
    """
    members = _ascending(clients.heard)
    visited: list[tuple[int, ...]] = [members] if clients.concurrency in (None, len(members)) else []
    for _ in range(_ROUNDS):
        combiner = multicast(clients.channel[:, list(members)]).point
        members = _for_combiner(clients, np.abs(combiner.conj() @ clients.channel) ** 2)
        if members in visited:
            break
        visited.append(members)
    return clients.best(visited)


def gibbs(clients: Clients) -> tuple[int, ...]:
    """Gibbs sampling: the next set is drawn from the present one and its neighbours, P(S) ~ exp(-score(S) / T).

    Neighbours differ by one client; with a fixed K by an exchange of one. It begins with everybody (the K strongest),
    the temperature T at the spread of the first neighbourhood's scores, and cools by 0.9 each of 50 times. The best set
    that was looked at.

    Reference:
        arXiv 2011.10282.
    """
    present = _ascending(clients.heard if clients.concurrency is None else clients.strongest()[: clients.concurrency])
    best, temperature = present, 0.0
    for sample in range(_SAMPLES):
        tried = [present, *_neighbours(present, clients.heard, clients.concurrency)]
        scores = np.array([clients.score(members) for members in tried])
        best = clients.best([best, tried[int(scores.argmin())]])
        if sample == 0:
            temperature = max(float(np.ptp(scores[np.isfinite(scores)])), 1e-300)
        chances = np.exp(-(scores - scores.min()) / temperature)
        present = tried[int(clients.rng.choice(len(tried), p=chances / chances.sum()))]
        temperature *= _COOLING
    return best


def difference_of_convex(clients: Clients) -> tuple[int, ...]:
    """Sparse slacks by differences of convex functions; see `dc_selection`.

    The combiners that it ends with offer a set each, as in `adsbf`; the eight that are best with these combiners are
    judged with the best combiner for the set.

    Reference:
        arXiv 1812.11750.
    """
    offered: dict[tuple[int, ...], float] = {}
    for combiner in dc_candidates(clients.channel[:, clients.heard], clients.concurrency):
        gains = np.abs(combiner.conj() @ clients.channel) ** 2
        members = _for_combiner(clients, gains)
        score = clients.criterion.judge(members, float(gains[list(members)].min()))[1]
        offered[members] = min(score, offered.get(members, np.inf))
    return clients.best(sorted(offered, key=lambda members: offered[members])[:_TRIED])


def exact(clients: Clients) -> tuple[int, ...]:
    """The best set, by `selection.select`; the present places of the antennas count, not `gain`."""
    return select(clients.criterion, clients.channel, clients.concurrency).point.selected


def _for_combiner(clients: Clients, gains: np.ndarray) -> tuple[int, ...]:
    """The best set for a combiner that hears the clients with these gains.

    With a fixed K and a weakest gain that must be kept, the K clients with most data are the best; every client's gain
    is tried for the weakest. Exact for Phi; queues only judge between these sets.
    """
    if clients.concurrency is None and (clients.criterion.queues is None or clients.criterion.fairness == 0.0):
        return best_prefix(clients.criterion, gains)
    order = clients.heard[np.argsort(-gains[clients.heard], kind="stable")]
    if clients.concurrency is None:
        sets = [_ascending(order[:size]) for size in range(1, len(order) + 1)]
    else:
        weights = np.asarray(clients.criterion.weights, np.float64)
        offers = [order[:size] for size in range(clients.concurrency, len(order) + 1)]
        sets = [
            _ascending(offer[np.argsort(-weights[offer], kind="stable")[: clients.concurrency]]) for offer in offers
        ]
    return min(sets, key=lambda members: clients.criterion.judge(members, float(gains[list(members)].min()))[1])


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

WITHOUT_K = frozenset({"all", "top-one"})
"""Selections that do not go by K."""
