"""Client selections of the literature, against enumeration and on channels whose best set is plain to see."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from testbed.problems.ma_ota.dc_selection import dc_candidates
from testbed.problems.ma_ota.selection import Criterion
from testbed.problems.ma_ota.selectors import SELECTORS, WITHOUT_K, choose
from testbed.problems.multicast import multicast

COUNTED = sorted(set(SELECTORS) - WITHOUT_K)
"""Methods that go by K."""


def draw(seed: int, num_clients: int, num_antennas: int) -> tuple[Criterion, np.ndarray]:
    """Auxiliary channels with 20 dB between clients, unequal data, and noise from faint to overwhelming."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((2, num_antennas, num_clients)) / np.sqrt(2)
    channel = (normal[0] + 1j * normal[1]) * 10 ** (rng.uniform(-1, 1, num_clients) / 2)
    weights = rng.integers(20, 200, num_clients).astype(float)
    return Criterion(weights, 1, 10 ** rng.uniform(-0.5, 2.5)), channel / weights


def every_gain(channel: np.ndarray) -> dict[tuple[int, ...], float]:
    """q_S of all sets."""
    clients = range(channel.shape[1])
    every = [members for size in clients for members in combinations(clients, size + 1)]
    return {members: multicast(channel[:, list(members)]).value for members in every}


def score(criterion: Criterion, members: tuple[int, ...], gain: float) -> float:
    """4 (1 - D_S / D)^2 + sigma^2 / (D_S^2 q_S), written out."""
    part = criterion.weights[list(members)].sum()
    return float(4 * (1 - part / criterion.weights.sum()) ** 2 + criterion.noise_w / (part**2 * gain))


def chosen(name: str, criterion: Criterion, channel: np.ndarray, count: int | None, seed: int = 0) -> tuple[int, ...]:
    return choose(name, criterion, channel, count, np.random.default_rng(seed))


# mean excess over the optimum of Phi, for any number of clients and for three of them
EXCESS = {
    "exact": (1e-6, 1e-6),
    "gibbs": (1e-3, 1e-3),
    "dc": (0.01, 0.25),
    "gsds": (0.1, 1.0),
    "adsbf": (0.6, 1.0),
    "strongest": (0.1, 1.0),
}


def test_selections_come_as_close_to_the_optimum_as_they_should() -> None:
    excess: dict[tuple[str, int | None], list[float]] = {}
    for seed in range(8):
        criterion, channel = draw(seed, 6, 3)
        gains = every_gain(channel)
        scores = {members: score(criterion, members, gain) for members, gain in gains.items()}
        for count in (None, 3):
            optimum = min(worth for members, worth in scores.items() if count in (None, len(members)))
            for name in SELECTORS:
                members = choose(name, criterion, channel, count, np.random.default_rng(seed), gain=gains.__getitem__)
                assert members == tuple(sorted(set(members)))
                if name in COUNTED and count is not None:
                    assert len(members) == count
                if len(members) == (count or len(members)):
                    assert scores[members] >= optimum * (1 - 1e-9)
                excess.setdefault((name, count), []).append(scores[members] / optimum - 1)
    for name, limits in EXCESS.items():
        assert np.mean(excess[name, None]) <= limits[0], name
        assert np.mean(excess[name, 3]) <= limits[1], name
    for count in (None, 3):
        assert np.mean(excess["random", count]) > np.mean(excess["gsds", count]) + 0.2, "chance is told from choice"


def test_everybody_the_strongest_and_random_ones() -> None:
    criterion, channel = draw(1, 5, 3)
    strength = np.linalg.norm(channel * criterion.weights, axis=0)
    order = np.argsort(-strength)
    assert chosen("all", criterion, channel, 2) == (0, 1, 2, 3, 4)
    assert chosen("top-one", criterion, channel, 2) == (int(order[0]),)
    assert chosen("strongest", criterion, channel, 2) == tuple(sorted(order[:2].tolist()))
    drawn = [chosen("random", criterion, channel, 2, seed) for seed in range(400)]
    assert chosen("random", criterion, channel, 2, 7) == drawn[7]
    shares = np.bincount(np.ravel(drawn), minlength=5) / 400
    assert np.all(np.abs(shares - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 400))


def test_turns_come_round_and_queues_come_first() -> None:
    criterion, channel = draw(2, 5, 3)
    turns = [choose("round-robin", criterion, channel, 2, np.random.default_rng(0), turn=turn) for turn in range(5)]
    assert turns == [(0, 1), (2, 3), (0, 4), (1, 2), (3, 4)]
    queued = Criterion(criterion.weights, 1, 1.0, queues=np.array([0.2, 1.0, 0.0, 0.4, 0.1]), fairness=1.0)
    assert chosen("round-robin", queued, channel, 2) == (1, 3)
    waiting = Criterion(criterion.weights, 1, 1e-6, queues=np.array([0.0, 0.0, 9.0, 0.0, 9.0]), fairness=10.0)
    for name in ("exact", "gibbs"):
        assert chosen(name, waiting, channel, 2) == (2, 4), name


def test_greedy_spatial_selection_prefers_channels_along_those_it_has() -> None:
    """Strongest 0; 1 points the same way, 2 and 3 do not, though they are louder than 1."""
    channel = np.array([[3.0, 1.0, 0.1, 0.0], [0.0, 0.0, 2.0, 0.3], [0.0, 0.0, 0.0, 2.0]], dtype=complex)
    criterion = Criterion(np.ones(4), 1, 1.0)
    assert chosen("gsds", criterion, channel, 2) == (0, 1)
    assert chosen("strongest", criterion, channel, 2) == (0, 3)
    # 2 has 0.1 within the span of 0 and 1, and 3 nothing
    assert chosen("gsds", criterion, channel, 3) == (0, 1, 2)


def test_a_planted_group_is_found_by_sparse_slacks() -> None:
    """Three clients nearly in line are loud; three others lie across and are faint."""
    rng = np.random.default_rng(5)
    common, across = np.linalg.qr(rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))[0][:, :2].T
    noise = rng.standard_normal((4, 3)) + 1j * rng.standard_normal((4, 3))
    loud = common[:, None] * np.exp(2j * np.arange(3)) + 0.05 * noise
    faint = 0.05 * across[:, None] * np.exp(1j * np.arange(3))
    channel = np.column_stack([faint[:, :2], loud, faint[:, 2:]])
    criterion = Criterion(np.ones(6), 1, 1.0)
    assert chosen("dc", criterion, channel, 3) == (2, 3, 4)
    served = np.abs(dc_candidates(channel, 3).conj() @ channel) ** 2
    assert served[:, 2:5].min(axis=1).max() > 0.85
    assert np.allclose(np.linalg.norm(dc_candidates(channel, None), axis=1), 1.0)


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"random", "round-robin"}))
def test_names_of_clients_do_not_matter(name: str) -> None:
    criterion, channel = draw(11, 5, 3)
    order = np.array([3, 0, 4, 2, 1])
    renamed = Criterion(criterion.weights[order], 1, criterion.noise_w)
    for count in (None, 2):
        there = chosen(name, renamed, channel[:, order], count)
        assert {int(order[member]) for member in there} == set(chosen(name, criterion, channel, count))


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_who_is_not_heard_is_not_chosen(name: str) -> None:
    criterion, channel = draw(3, 5, 3)
    channel = channel.copy()
    channel[:, [0, 3]] = 0.0
    assert set(chosen(name, criterion, channel, 2)) <= {1, 2, 4}
    assert set(chosen(name, criterion, channel, None)) <= {1, 2, 4}
    if name in COUNTED:
        assert chosen(name, criterion, channel, 4) == ()
    assert chosen(name, criterion, np.zeros_like(channel), None) == ()
    with pytest.raises(ValueError, match="finite"):
        chosen(name, criterion, np.full_like(channel, np.nan), 2)
    with pytest.raises(ValueError, match="do not go with"):
        chosen(name, criterion, channel[:, :3], 2)


@pytest.mark.parametrize("name", ["gibbs", "gsds", "strongest"])
def test_sets_are_judged_by_the_gain_that_is_handed_in(name: str) -> None:
    """Antennas that move serve any four clients a billion times better, where noise is all that counts."""
    criterion, channel = draw(4, 5, 3)
    criterion = Criterion(criterion.weights, 1, 1e6 * criterion.noise_w)

    def moved(members: tuple[int, ...]) -> float:
        return (1e9 if len(members) == 4 else 1.0) * multicast(channel[:, list(members)]).value

    assert len(chosen(name, criterion, channel, None)) != 4
    assert len(choose(name, criterion, channel, None, np.random.default_rng(0), gain=moved)) == 4
