"""Placements of the literature: legal, honest, and as good as their methods can be."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from testbed.core.errors import ConfigError
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.batch_gains import climbed_gains
from testbed.problems.ma_ota.placements import PLACERS, grid_ports, relaxed_combiner
from testbed.problems.ma_ota.port_search import free_ports, port_grid
from testbed.problems.multicast import multicast

WAVELENGTH_M = 0.125
BASELINES = ("fixed", "random", "grid", "pso")


def aperture(num_antennas: int, *, side: float = 3.0, flat: bool = False, fixed: int = 0) -> Aperture:
    """A line at half-wavelength spacing on the lower edge of a square, or of a line."""
    home_m = WAVELENGTH_M * np.stack([0.5 * np.arange(num_antennas), np.zeros(num_antennas)], axis=1)
    region_m = WAVELENGTH_M * np.array([[0.0, side], [0.0, 0.0 if flat else side]])
    movable = np.arange(num_antennas) >= fixed
    return Aperture(home_m, movable, region_m, 0.5 * WAVELENGTH_M, WAVELENGTH_M)


def room(seed: int, num_nodes: int, num_paths: int = 6) -> PathSet:
    return PathSet.draw(np.random.default_rng(seed), num_nodes, num_paths, WAVELENGTH_M)


def drawn_channels(num_antennas: int, num_nodes: int, count: int = 30) -> np.ndarray:
    normal = np.random.default_rng(1).standard_normal((2, count, num_antennas, num_nodes))
    return normal[0] + 1j * normal[1]


@pytest.mark.parametrize("name", sorted(PLACERS))
def test_every_placement_is_legal_and_worth_what_it_says(name: str) -> None:
    array = aperture(3, fixed=1)
    for seed in range(2):
        paths = room(seed, 3)
        found = PLACERS[name](paths, array, rng=np.random.default_rng(seed), num_starts=2, warm=array.home_m)
        assert found.found
        point = found.point
        assert array.violation_m(point.positions_m) <= 1e-9
        assert np.array_equal(point.positions_m[0], array.home_m[0]), "the first antenna has no stage"
        assert np.linalg.norm(point.combiner) == pytest.approx(1.0)
        heard = np.abs(point.combiner.conj() @ paths.channel(point.positions_m)) ** 2
        assert found.value == point.gain == pytest.approx(float(heard.min()))
        if name not in ("random", "sdr"):
            assert found.value >= multicast(paths.channel(array.home_m)).value * (1 - 1e-9)
        again = PLACERS[name](paths, array, rng=np.random.default_rng(seed), num_starts=2, warm=array.home_m)
        assert np.array_equal(again.point.positions_m, point.positions_m)


@pytest.mark.parametrize("name", BASELINES)
def test_scale_does_not_matter(name: str) -> None:
    paths, array = room(5, 2), aperture(2)
    louder = paths.scaled(np.full(2, 1e3))
    here, there = (PLACERS[name](one, array, rng=np.random.default_rng(1), num_starts=2) for one in (paths, louder))
    assert np.allclose(here.point.positions_m, there.point.positions_m, atol=1e-9)
    assert there.value == pytest.approx(1e6 * here.value, rel=1e-6)


def test_a_fine_grid_reaches_the_optimum_of_two_antennas() -> None:
    """One client on a line of 3 wavelengths: all pairs of a 0.01-wavelength grid, at least half a wavelength apart."""
    array = aperture(2, flat=True)
    ratios = []
    for seed in range(10):
        paths = room(seed, 1)
        ports_m = port_grid(array, 0.01 * WAVELENGTH_M)
        energy = np.abs(paths.channel(ports_m)[:, 0]) ** 2
        first, second = np.triu_indices(len(ports_m), 50)
        found = grid_ports(paths, array, rng=np.random.default_rng(0), step=0.01)
        ratios.append(found.value / float(np.max(energy[first] + energy[second])))
    assert max(ratios) <= 1 + 1e-9
    assert min(ratios) > 0.97
    assert np.median(ratios) > 1 - 1e-9


def test_one_antenna_takes_the_best_port() -> None:
    array = aperture(1)
    for seed in range(5):
        paths = room(seed, 4)
        ports = np.abs(paths.channel(port_grid(array, 0.125 * WAVELENGTH_M))) ** 2
        found = PLACERS["grid"](paths, array, rng=np.random.default_rng(0))
        assert found.value == pytest.approx(float(ports.min(axis=1).max()))


def test_ports_fill_the_region_and_keep_the_spacing() -> None:
    array = aperture(2)
    ports_m = port_grid(array, 0.4 * WAVELENGTH_M)
    assert len(ports_m) == 9 * 9
    assert np.array_equal(ports_m.min(axis=0), array.region_m[:, 0])
    assert np.array_equal(ports_m.max(axis=0), array.region_m[:, 1])
    free = free_ports(ports_m, array.home_m, array.min_spacing_m)
    apart_m = np.linalg.norm(ports_m[:, None] - array.home_m, axis=2).min(axis=1)
    assert np.array_equal(free, apart_m >= array.min_spacing_m)
    with pytest.raises(ValueError, match="widen it"):
        port_grid(array, 1e-3 * WAVELENGTH_M)
    with pytest.raises(ValueError, match="positive step"):
        port_grid(array, 0.0)


def test_a_swarm_beats_chance_and_comes_near_the_decomposition() -> None:
    """Two antennas, two clients, means over eight rooms."""
    array, gains = aperture(2), dict.fromkeys(("fixed", "random", "pso", "grid", "pdd"), 0.0)
    for seed in range(8):
        for name in gains:
            found = PLACERS[name](room(seed, 2), array, rng=np.random.default_rng(seed), num_starts=4)
            gains[name] += 10 * np.log10(found.value) / 8
    assert gains["pso"] > gains["random"] + 3
    assert gains["pso"] > gains["fixed"] + 3
    assert abs(gains["pso"] - gains["pdd"]) < 0.7
    assert abs(gains["grid"] - gains["pdd"]) < 0.7
    assert gains["random"] < gains["grid"] - 3


def test_the_relaxation_bounds_the_combiner_and_is_tight_for_three_nodes() -> None:
    for index, channel in enumerate(drawn_channels(4, 3, 4)):
        combiner, bound = relaxed_combiner(channel, np.random.default_rng(index))
        reached = float(np.min(np.abs(combiner.conj() @ channel) ** 2))
        best = multicast(channel).value
        assert best <= bound * (1 + 1e-6)
        assert best == pytest.approx(bound, rel=1e-4)
        assert 0.9 * bound < reached <= bound * (1 + 1e-6)
        assert np.linalg.norm(combiner) == pytest.approx(1.0)


def test_the_relaxation_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ConfigError, match="needs cvxpy, which is not installed") as caught:
        PLACERS["sdr"](room(0, 2), aperture(2), rng=np.random.default_rng(0), num_starts=1)
    assert caught.value.remedy is not None
    assert "pip install cvxpy" in caught.value.remedy


@pytest.mark.parametrize("name", BASELINES)
def test_too_many_antennas_are_refused(name: str) -> None:
    crowded = aperture(4, side=0.4)
    found = PLACERS[name](room(0, 2), crowded, rng=np.random.default_rng(0))
    assert found.status == "infeasible"
    assert "spacing and region" in found.message
    assert f"{crowded.violation_m(crowded.home_m):.3g} m" in found.message
    assert found.feasibility > 0


@pytest.mark.parametrize("name", ["random", "grid", "pso"])
def test_four_antennas_find_the_corners(name: str) -> None:
    corners = aperture(4, side=0.5)
    found = PLACERS[name](room(0, 2), corners, rng=np.random.default_rng(0))
    assert found.found
    assert corners.violation_m(found.point.positions_m) <= 1e-9


@pytest.mark.parametrize("name", ["grid", "pso"])
def test_an_illegal_fixed_array_may_still_be_placed(name: str) -> None:
    whole = aperture(3)
    array = Aperture(np.zeros((3, 2)), whole.movable, whole.region_m, whole.min_spacing_m, WAVELENGTH_M)
    found = PLACERS[name](room(0, 2), array, rng=np.random.default_rng(0), num_starts=2)
    assert found.found
    assert array.violation_m(found.point.positions_m) <= 1e-9


def test_quick_gains_are_there_and_near_the_best() -> None:
    for num_nodes, least in ((1, 1 - 1e-9), (2, 1 - 1e-9), (4, 0.9)):
        channel = drawn_channels(4, num_nodes)
        gains, combiners = climbed_gains(channel)
        best = np.array([multicast(one).value for one in channel])
        assert np.all(gains <= best * (1 + 1e-3))
        assert np.median(gains / best) > least
        if num_nodes > 2:
            heard = np.min(np.abs(np.einsum("bn,bnk->bk", combiners.conj(), channel)) ** 2, axis=1)
            assert np.allclose(heard, gains)
            assert np.all(climbed_gains(channel, combiners=combiners)[0] >= gains)
