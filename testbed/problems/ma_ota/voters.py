"""Who votes when signs are counted by energy, and where the antennas stand for that.

Votes arrive equally loud, each with the energy of the weakest voter, p_m = P_m min_j E_j / E_m. Under Rayleigh fading
the two energies of a value are Gamma(N) variables of mean N (1 + K_plus snr) and N (1 + K_minus snr), so their
difference counts the votes without bias, E(e_plus - e_minus) / (N snr) = K_plus - K_minus, with the variance

    [(1 + K_plus snr)^2 + (1 + K_minus snr)^2] / (N snr^2),   snr = 2 min_{m in S} E_m / (N noise).

What noise adds to it, relative to |S|^2, does not depend on how the votes fall, and takes the place of the
aggregation's error in Phi:

    Phi_vote(S, r) = 4 (1 - D_S / D)^2 + (2 / N) [1 / (|S| snr) + 1 / (|S| snr)^2]

From the literature: the detector and the law of its energies (Sahin, Everette, Hoque, arXiv 2111.01850), and the price
of leaving data out (Liu, Yuan, Zhang, arXiv 2011.10282). Our reading: their sum as objective, and its alternation with
the antennas' places. What the votes do to each other, (K_plus^2 + K_minus^2) / (N |S|^2), no places and hardly any
choice of voters remove; it is left out. The best set of any size is a prefix of the clients, the loudest first: whoever
is louder than the weakest voter adds data and costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from testbed.opt.solution import Solution
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.energy import energies, energy_conditions, place_for_energy


@dataclass(frozen=True)
class Vote:
    """Places and voters.

    Attributes:
        positions_m: shape [num_antennas, 2].
        voters: indices of the clients that vote, ascending.
        energy_w: of each client, all antennas together, watts at full power, shape [num_nodes].
        score: Phi_vote.
    """

    positions_m: np.ndarray
    voters: tuple[int, ...]
    energy_w: np.ndarray
    score: float


def noise_share(num_voters: int, snr: float, num_antennas: int) -> float:
    """Variance that noise adds to the count of equally loud votes, over |S|^2: (2/N) [1/(|S| snr) + 1/(|S| snr)^2].

    Args:
        num_voters: |S|, at least 1.
        snr: of one voter's active subcarrier at one antenna; infinite share where it is 0.
        num_antennas: N.
    """
    if not snr > 0:
        return math.inf
    return 2.0 / num_antennas * (1.0 / (num_voters * snr) + 1.0 / (num_voters * snr) ** 2)


def vote_score(
    voters: tuple[int, ...], energy_w: np.ndarray, weights: np.ndarray, noise_w: float, num_antennas: int
) -> float:
    """Phi_vote; lower is better. See the module.

    Args:
        voters: indices of the clients in S, at least one.
        energy_w: E_m, watts at full power, all antennas together, shape [num_nodes].
        weights: D_m, shape [num_nodes].
        noise_w: of one symbol at one antenna.
        num_antennas: N.
    """
    chosen = list(voters)
    left_out = 1.0 - float(np.sum(weights[chosen]) / np.sum(weights))
    snr = 2.0 * float(np.min(energy_w[chosen])) / (num_antennas * noise_w)
    return 4.0 * left_out**2 + noise_share(len(chosen), snr, num_antennas)


def choose_voters(
    energy_w: np.ndarray, weights: np.ndarray, noise_w: float, num_antennas: int, *, count: int | None = None
) -> tuple[tuple[int, ...], float]:
    """The set of clients with the smallest Phi_vote.

    For a given number of voters and a given weakest one, those with most data among the louder ones are the best; every
    client is tried for the weakest.

    Args:
        energy_w: E_m, watts at full power, all antennas together, shape [num_nodes].
        weights: D_m, shape [num_nodes].
        noise_w: of one symbol at one antenna.
        num_antennas: N.
        count: |S|; any if None.

    Returns:
        indices, ascending; Phi_vote.

    Raises:
        ValueError: no client is heard, `count` is not from 1 to the number of those that are, or noise is not positive.
    """
    energy_w, weights = np.asarray(energy_w, np.float64), np.asarray(weights, np.float64)
    order = np.argsort(-energy_w, kind="stable")
    heard = int(np.sum(energy_w > 0))
    if heard == 0 or not np.all(np.isfinite(energy_w)) or not noise_w > 0:
        raise ValueError("a vote needs finite energies, at least one above zero, and positive noise")
    if count is not None and not 1 <= count <= heard:
        raise ValueError(f"{count} clients are to vote, {heard} are heard: lower the number")
    best: tuple[tuple[int, ...], float] | None = None
    for size in range(count or 1, heard + 1):
        louder = order[:size]
        chosen = louder if count is None else louder[np.argsort(-weights[louder], kind="stable")[:count]]
        voters = tuple(sorted(int(client) for client in chosen))
        score = vote_score(voters, energy_w, weights, noise_w, num_antennas)
        if best is None or score < best[1]:
            best = voters, score
    assert best is not None  # at least one client is heard
    return best


def plan_vote(
    paths: PathSet,
    aperture: Aperture,
    weights: np.ndarray,
    noise_w: float,
    *,
    rng: np.random.Generator,
    count: int | None = None,
    num_starts: int = 6,
    warm: np.ndarray | None = None,
) -> Solution[Vote]:
    """Places and voters together, by a descent over the number of clients that the places serve.

    The antennas first serve everybody. Then the client with the largest weight in the first-order conditions, the one
    that holds the weakest energy down most, is no longer served and the antennas are placed anew, until `count` or one
    is left. At each of these places, and at the fixed array, the voters are chosen; the best pair is kept.

    Args:
        paths: channels, sqrt(P_m) h_m.
        aperture: where antennas may be.
        weights: D_m, shape [num_nodes].
        noise_w: of one symbol at one antenna.
        rng: draws starts.
        count: |S|; any if None.
        num_starts: of the first placement; later ones begin where the one before ended, and at the fixed array.
        warm: where an earlier search ended, shape [num_antennas, 2].

    Returns:
        the plan; `value` is Phi_vote, `trace` the best so far after each placement, the fixed array first; the residual
        is that of the places, for the clients that they serve.

    Raises:
        ValueError: as `place_for_energy` and `choose_voters`.
    """

    def judged(positions_m: np.ndarray) -> Vote:
        energy_w = energies(paths, positions_m)
        voters, score = choose_voters(energy_w, weights, noise_w, len(positions_m), count=count)
        return Vote(positions_m, voters, energy_w, score)

    best = judged(aperture.home_m)
    trace, placed, served = [best.score], None, np.arange(paths.num_nodes)
    chosen: Solution[np.ndarray] | None = None
    iterations = 0
    while True:
        starts = num_starts if placed is None else 1
        placed = place_for_energy(paths.part(served), aperture, rng=rng, num_starts=starts, warm=warm)
        iterations += placed.iterations
        if not placed.found:
            break
        tried = judged(placed.point)
        if tried.score < best.score:
            best, chosen = tried, placed
        trace.append(best.score)
        warm = placed.point
        if len(served) <= (count or 1) or not aperture.movable.any():
            break
        _, prices = energy_conditions(paths.part(served), aperture, placed.point)
        served = np.delete(served, int(np.argmax(prices)))
    last = chosen or placed
    return Solution(
        best, best.score, last.status, last.kkt_residual, last.feasibility, iterations, tuple(trace), last.message
    )
