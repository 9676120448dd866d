"""Places and voters for a vote by energy, against grids, dynamic programming, enumeration and Monte-Carlo."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.core.orders import Sounding
from testbed.phy.aperture import Aperture, PathSet
from testbed.phy.voting import fsk_decide, fsk_symbols
from testbed.problems.ma_ota.energy import energies, energy_conditions, minoriser, place_for_energy
from testbed.problems.ma_ota.heard_energy import Heard, cautious_energy, trusted_field
from testbed.problems.ma_ota.survey import Survey
from testbed.problems.ma_ota.voters import choose_voters, noise_share, plan_vote, vote_score

WAVELENGTH_M = 0.125


def square(num_antennas: int, side: float = 3.0, *, fixed: int = 0) -> Aperture:
    """A line at half-wavelength spacing in the middle of a square; the first antennas have no stage."""
    home = np.stack([0.5 * np.arange(num_antennas), np.zeros(num_antennas)], axis=1)
    home += side / 2 - home.mean(axis=0)
    region_m = np.array([[0.0, side], [0.0, side]]) * WAVELENGTH_M
    movable = np.arange(num_antennas) >= fixed
    return Aperture(home * WAVELENGTH_M, movable, region_m, 0.5 * WAVELENGTH_M, WAVELENGTH_M)


def line(num_antennas: int, length: float = 3.0) -> Aperture:
    """The same along the first axis alone."""
    home_m = WAVELENGTH_M * np.stack([0.5 * np.arange(num_antennas), np.zeros(num_antennas)], axis=1)
    region_m = np.array([[0.0, length], [0.0, 0.0]]) * WAVELENGTH_M
    return Aperture(home_m, np.ones(num_antennas, bool), region_m, 0.5 * WAVELENGTH_M, WAVELENGTH_M)


def room(seed: int, num_nodes: int, num_paths: int = 6) -> PathSet:
    return PathSet.draw(np.random.default_rng(seed), num_nodes, num_paths, WAVELENGTH_M)


def best_on_a_grid(energy: np.ndarray, num_antennas: int, apart: int) -> float:
    """Largest sum of so many entries that are so many steps apart, by dynamic programming."""
    best = np.maximum.accumulate(energy)
    for _ in range(num_antennas - 1):
        following = np.full(len(energy), -np.inf)
        following[apart:] = best[:-apart] + energy[apart:]
        best = np.maximum.accumulate(following)
    return float(best[-1])


def test_the_minoriser_is_below_the_energy_everywhere_and_touches_it() -> None:
    rng = np.random.default_rng(1)
    for seed in range(5):
        paths, here_m = room(seed, 3), rng.uniform(0, 3 * WAVELENGTH_M, (2, 2))
        bound = minoriser(paths, here_m)
        for reach in (0.02, 0.3, 3.0):
            step_m = reach * WAVELENGTH_M * rng.standard_normal((500, 2, 2))
            there = np.abs(paths.channel(here_m + step_m)) ** 2
            below = bound.value + np.einsum("nmi,bni->bnm", bound.gradient, step_m)
            below -= 0.5 * np.einsum("bni,nmij,bnj->bnm", step_m, bound.curvature, step_m)
            assert np.all(there >= below - 1e-9)
        tiny_m = 1e-6 * WAVELENGTH_M
        for axis in range(2):
            ahead, behind = (np.abs(paths.channel(here_m + sign * tiny_m * np.eye(2)[axis])) ** 2 for sign in (1, -1))
            slope = (ahead - behind) / (2 * tiny_m)
            assert np.allclose(bound.gradient[:, :, axis], slope, atol=1e-6 * np.abs(slope).max())


def test_two_paths_are_made_to_add_up() -> None:
    """One antenna, one client, a = 0.8 and 0.5: the largest energy is (0.8 + 0.5)^2 = 1.69."""
    directions = np.array([[[0.3, 0.0], [-0.5, 0.0]]])
    paths = PathSet(directions, np.array([[0.8, 0.5 * np.exp(2j)]]), WAVELENGTH_M)
    found = place_for_energy(paths, line(1), rng=np.random.default_rng(0))
    assert found.value == pytest.approx(1.69, rel=1e-8)
    assert found.status == "stationary"


@pytest.mark.parametrize("num_antennas", [1, 2, 3])
def test_one_client_on_a_line_reaches_dynamic_programming(num_antennas: int) -> None:
    """On a grid of 0.01 wavelengths dynamic programming is globally optimal for one client."""
    aperture, reached = line(num_antennas), []
    grid_m = WAVELENGTH_M * np.stack([np.arange(301) * 0.01, np.zeros(301)], axis=1)
    for seed in range(10):
        paths = room(seed, 1)
        oracle = best_on_a_grid(np.abs(paths.channel(grid_m)[:, 0]) ** 2, num_antennas, 50)
        found = place_for_energy(paths, aperture, rng=np.random.default_rng(seed), num_starts=4)
        reached.append(found.value / oracle)
    assert min(reached) > 0.97
    assert sum(ratio >= 1 - 1e-6 for ratio in reached) == 10


def test_one_antenna_and_three_clients_reach_a_fine_grid() -> None:
    axis = np.linspace(0.0, 2.0, 161) * WAVELENGTH_M
    grid_m = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    for seed in range(5):
        paths = room(seed, 3)
        oracle = float(np.max(np.min(np.abs(paths.channel(grid_m)) ** 2, axis=1)))
        assert place_for_energy(paths, square(1, 2.0), rng=np.random.default_rng(seed)).value >= oracle * (1 - 1e-9)


@pytest.mark.parametrize(("num_antennas", "num_nodes", "fixed"), [(1, 5, 0), (3, 2, 1), (4, 4, 0)])
def test_places_are_stationary_legal_and_never_below_the_fixed_array(
    num_antennas: int, num_nodes: int, fixed: int
) -> None:
    aperture, rises = square(num_antennas, fixed=fixed), []
    for seed in range(4):
        paths = room(seed, num_nodes)
        found = place_for_energy(paths, aperture, rng=np.random.default_rng(seed), num_starts=3)
        assert aperture.violation_m(found.point) <= 1e-9
        assert found.status == "stationary"
        assert energy_conditions(paths, aperture, found.point)[0] < 1e-4
        assert found.value == pytest.approx(float(energies(paths, found.point).min()))
        assert np.all(np.diff(found.trace) >= -1e-9 * found.value)
        home = float(energies(paths, aperture.home_m).min())
        assert found.value >= home
        rises.append(found.value / home)
        assert energy_conditions(paths, aperture, aperture.home_m)[0] > 1e-2, "the test of stationarity can fail"
    assert np.mean(rises) > 1.5


def test_what_cannot_be_placed_is_said() -> None:
    crowded = Aperture(
        np.zeros((2, 2)), np.ones(2, bool), np.array([[0.0, 0.01], [0.0, 0.01]]), 0.5 * WAVELENGTH_M, WAVELENGTH_M
    )
    refused = place_for_energy(room(0, 2), crowded, rng=np.random.default_rng(0))
    assert refused.status == "infeasible"
    assert refused.message == "spacing: the fixed array breaks the aperture's limits by 0.0625 m"
    silent = room(0, 2).scaled(np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="not zero"):
        place_for_energy(silent, square(2), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least one start"):
        place_for_energy(room(0, 2), square(2), rng=np.random.default_rng(0), num_starts=0)


def test_noise_adds_what_it_should_to_the_count_of_votes() -> None:
    """Rayleigh fading, three antennas, 400 000 values: the count's mean and variance, however the votes fall."""
    rng, trials, snr, num_antennas = np.random.default_rng(3), 400_000, 0.8, 3
    for plus, minus in ((5, 0), (3, 2)):
        energies_plus = rng.gamma(num_antennas, 1.0 + plus * snr, trials)
        energies_minus = rng.gamma(num_antennas, 1.0 + minus * snr, trials)
        count = (energies_plus - energies_minus) / (num_antennas * snr)
        mutual = (plus**2 + minus**2) / (25 * num_antennas)
        assert np.mean(count) == pytest.approx(plus - minus, abs=0.03)
        assert np.var(count) / 25 - mutual == pytest.approx(noise_share(5, snr, num_antennas), rel=0.03)


def test_voters_are_the_best_of_all_sets() -> None:
    rng = np.random.default_rng(4)
    sizes = []
    for _ in range(60):
        energy, weights, num_antennas = 10 ** rng.uniform(-2, 1.5, 6), rng.uniform(1, 9, 6), int(rng.integers(1, 5))
        for count in (None, 3):
            voters, score = choose_voters(energy, weights, 1.0, num_antennas, count=count)
            every = []
            for size in (1, 2, 3, 4, 5, 6) if count is None else (count,):
                for members in combinations(range(6), size):
                    total = size * 2 * energy[list(members)].min() / num_antennas
                    left_out = 1 - weights[list(members)].sum() / weights.sum()
                    every.append(4 * left_out**2 + 2 / num_antennas * (1 / total + 1 / total**2))
            assert score == pytest.approx(min(every), rel=1e-12)
            assert score == pytest.approx(vote_score(voters, energy, weights, 1.0, num_antennas))
        sizes.append(len(choose_voters(energy, weights, 1.0, num_antennas)[0]))
    assert len(set(sizes)) >= 4, "the draws ask for few voters and for many"
    with pytest.raises(ValueError, match="5 clients are to vote, 2 are heard"):
        choose_voters(np.array([1.0, 0.0, 2.0]), np.ones(3), 1.0, 1, count=5)


def test_a_plan_is_no_worse_than_voting_at_the_fixed_array() -> None:
    data, gains = np.array([3.0, 2.0, 2.0, 1.0]), []
    for seed in range(2):
        paths, array = room(seed, 4).scaled(np.array([1.0, 1.0, 1.0, 0.05])), square(2)
        fixed = choose_voters(energies(paths, array.home_m), data, 0.2, 2)[1]
        plan = plan_vote(paths, array, data, 0.2, rng=np.random.default_rng(seed), num_starts=2)
        assert plan.value == plan.point.score <= fixed
        assert plan.trace[0] == pytest.approx(fixed)
        assert np.all(np.diff(plan.trace) <= 0)
        assert array.violation_m(plan.point.positions_m) <= 1e-9
        gains.append(fixed / plan.value)
        two = plan_vote(paths, array, data, 0.2, rng=np.random.default_rng(0), count=2, num_starts=1)
        assert len(two.point.voters) == 2
    assert min(gains) > 1.1


def test_better_places_make_fewer_vote_errors() -> None:
    """Five equally loud votes, the noise above the weakest at the fixed array: 1000 votes in each of six rooms.

    Where the majority is clear the errors fall to less than half; three against two stay close, since unlike votes
    disturb each other however loud they are.
    """
    waveform, num_values, snr = WaveformSpec(), 1000, 1.0
    share = {}
    for majority in (3, 4, 5):
        votes, errors = np.where(np.arange(5) < majority, 1, -1), {"fixed": 0.0, "placed": 0.0}
        sent = np.array([fsk_symbols(np.full(num_values, vote), waveform, seed=k) for k, vote in enumerate(votes)])
        for seed in range(6):
            paths, aperture = room(seed, 5), square(2)
            placed_m = place_for_energy(paths, aperture, rng=np.random.default_rng(seed), num_starts=1).point
            for name, layout_m in (("fixed", aperture.home_m), ("placed", placed_m)):
                channel, rng = paths.channel(layout_m), np.random.default_rng(seed)
                energy = np.sum(np.abs(channel) ** 2, axis=0)
                noise = rng.standard_normal((2, 2, 2 * num_values)) / np.sqrt(2)
                heard = (channel * np.sqrt(snr * energy.min() / energy)) @ sent + noise[0] + 1j * noise[1]
                errors[name] += float(np.mean(fsk_decide(heard, num_values)[0] < 0))
        share[majority] = errors["placed"] / errors["fixed"]
    assert share[5] < 0.2
    assert share[4] < 0.6
    assert share[3] < 1.0


# --- what soundings tell ----------------------------------------------------------------------------------------------


def sounded(paths: PathSet, layout_m: np.ndarray, rng: np.random.Generator, *, coherent: bool) -> Sounding:
    """A sounding at 40 dB; each node's phase is new unless the radios are coherent."""
    count = paths.num_nodes
    turn = np.ones(count) if coherent else np.exp(2j * np.pi * rng.random(count))
    noise = 0.01 * (rng.standard_normal((2, len(layout_m), count)) / np.sqrt(2))
    channel = paths.channel(layout_m) * turn + noise[0] + 1j * noise[1]
    none = np.zeros(count)
    names = tuple(f"n{index}" for index in range(count))
    return Sounding(names, channel, 1e-4, layout_m, none, none, none, variance=np.full(count, 1e-4))


def surveyed(paths: PathSet, num_visits: int, num_antennas: int, *, coherent: bool) -> Survey:
    rng, survey = np.random.default_rng(5), Survey()
    for _ in range(num_visits):
        layout_m = rng.uniform(0, 2 * WAVELENGTH_M, (num_antennas, 2))
        survey = survey.with_sounding(sounded(paths, layout_m, rng, coherent=coherent))
    return survey


def test_fields_are_trusted_where_they_predict() -> None:
    paths = room(3, 1, num_paths=2)
    several = surveyed(paths, 6, 3, coherent=True)
    field = trusted_field(several, "n0", WAVELENGTH_M, max_paths=3, max_error=0.1)
    assert field is not None
    places_m = np.random.default_rng(6).uniform(0, 2 * WAVELENGTH_M, (3, 2))
    true, sure = energies(paths, places_m), cautious_energy([field], np.array([2.0]), places_m)
    assert 0.8 * 2 * true[0] < sure[0] < 2.02 * true[0]
    alone = surveyed(paths, 10, 1, coherent=False)
    assert trusted_field(alone, "n0", WAVELENGTH_M, max_paths=3, max_error=0.1) is None
    rich = surveyed(room(3, 1, num_paths=12), 4, 2, coherent=True)
    assert trusted_field(rich, "n0", WAVELENGTH_M, max_paths=3, max_error=0.1) is None
    assert trusted_field(several, "stranger", WAVELENGTH_M, max_paths=3, max_error=0.1) is None


def test_measured_places_are_compared_by_their_energies() -> None:
    paths, aperture, rng = room(7, 3), square(2), np.random.default_rng(8)
    names, power_w = ("n0", "n1", "n2"), np.array([1.0, 2.0, 0.5])
    heard, layouts_m = Heard.nothing(3), []
    for _ in range(5):
        layouts_m.append(rng.uniform(0, 3 * WAVELENGTH_M, (2, 2)))
        heard = heard.with_sounding(sounded(paths, layouts_m[-1], rng, coherent=False), names, power_w)
    assert np.allclose(
        heard.at(layouts_m[2]), energies(paths.scaled(np.sqrt(power_w)), layouts_m[2]), rtol=0.2, atol=0.02
    )
    legal = [
        heard.energy_w[list(pair)].sum(axis=0).min()
        for pair in combinations(range(10), 2)
        if np.linalg.norm(np.subtract(*heard.places_m[list(pair)])) >= aperture.min_spacing_m
    ]
    reached = max(float(heard.at(heard.best(aperture, start_m)).min()) for start_m in layouts_m)
    assert 0.9 * max(legal) < reached <= max(legal) * (1 + 1e-12)
    with pytest.raises(ValueError, match="begin at a layout that was sounded"):
        heard.at(layouts_m[0] + 0.01)
    again = heard.with_sounding(sounded(paths, layouts_m[2], rng, coherent=False), names, power_w)
    assert len(again.places_m) == len(heard.places_m)
