import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sim_backend.sionna_channel import Profile, draw_cdl, draw_tdl, load_profile
from sim_backend.world import World
from testbed.core.bench import AntennaSpec, ArraySpec, BenchSpec, NodeSpec
from testbed.core.errors import ConfigError
from testbed.core.world_specs import WorldSpec

ARRAY = ArraySpec(
    origin_m=(5.0, 0.1, 1.5),
    axes=((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),  # the normal of the plane points into the room
    region_m=((0.0, 0.5), (0.0, 0.5)),
    min_spacing_m=0.0,
    antennas=(AntennaSpec(home_m=(0.1, 0.1)),),
)
TAPS = Profile(shares=np.array([0.5, 0.3, 0.2]), delays=np.array([0.0, 1.0, 2.5]), sight=False)
CLUSTERS = Profile(
    shares=np.array([0.6, 0.25, 0.15]),
    delays=np.array([0.0, 0.0, 2.0]),
    sight=True,
    azimuth_rad=np.radians([10.0, 10.0, -40.0]),
    zenith_rad=np.radians([95.0, 95.0, 80.0]),
    spread_rad=(np.radians(5.0), np.radians(3.0)),
)
installed = pytest.mark.skipif(importlib.util.find_spec("sionna") is None, reason="sionna-no-rt is not installed")


def generators(num: int) -> list[np.random.Generator]:
    return [np.random.default_rng((3, index)) for index in range(num)]


def bench_with(num_nodes: int = 1, **world) -> BenchSpec:
    nodes = (NodeSpec(name="n{}" if num_nodes > 1 else "n0", count=num_nodes),)
    return BenchSpec(name="room", carrier_hz=2.44e9, array=ARRAY, nodes=nodes, world=WorldSpec(**world))


def test_taps_have_the_powers_and_delays_of_the_profile():
    world = WorldSpec(num_paths=4, delay_spread_s=100e-9)
    drawn = [draw_tdl(TAPS, world, 2.0, generator) for generator in generators(3000)]
    # [num_draws, num_taps], from 4 waves each
    taps = np.stack([paths.gains for paths in drawn]).reshape(-1, 3, 4).sum(axis=2)
    np.testing.assert_allclose(drawn[0].delays_s, np.repeat([0.0, 100e-9, 250e-9], 4))
    power = np.abs(taps) ** 2 / (2.0 * TAPS.shares)
    np.testing.assert_allclose(power.mean(axis=0), 1.0, atol=4 / np.sqrt(3000))
    np.testing.assert_allclose(np.mean(power > np.log(2), axis=0), 0.5, atol=2 / np.sqrt(3000))  # Rayleigh
    np.testing.assert_allclose(drawn[0].scattered.sum(), 2.0)


def test_a_line_of_sight_is_one_steady_wave_with_its_share():
    world = WorldSpec(num_paths=4)
    tapped = draw_tdl(Profile(TAPS.shares, TAPS.delays, sight=True), world, 2.0, np.random.default_rng(1))
    assert len(tapped.gains) == 1 + 4 + 4
    clustered = draw_cdl(CLUSTERS, world, 2.0, np.array([0.3, -0.1]), np.random.default_rng(1))
    assert len(clustered.gains) == 1 + 20 + 20
    for paths, share in ((tapped, 0.5), (clustered, 0.6)):
        assert abs(paths.gains[0]) ** 2 == pytest.approx(2.0 * share)
        assert paths.scattered[0] == 0.0
        assert paths.scattered.sum() == pytest.approx(2.0 * (1 - share))


@pytest.mark.parametrize("towards", [(0.3, -0.1), (-0.7, 0.2), (0.0, 0.0), (0.0, 1.0)])
def test_the_line_of_sight_points_to_the_node(towards):
    paths = draw_cdl(CLUSTERS, WorldSpec(), 1.0, np.array(towards), np.random.default_rng(1))
    np.testing.assert_allclose(paths.directions[0], towards, atol=1e-6)
    assert np.all(np.linalg.norm(paths.directions, axis=1) <= 1 + 1e-12)


def test_rays_spread_around_their_cluster_as_the_standard_tells():
    # seen straight on and level, the azimuths and zeniths of the last cluster can be read from its cosines
    paths = draw_cdl(CLUSTERS, WorldSpec(), 1.0, np.array([0.0, 0.0]), np.random.default_rng(2))
    zenith_rad = np.arccos(paths.directions[-20:, 1])
    azimuth_rad = np.arcsin(paths.directions[-20:, 0] / np.sin(zenith_rad))
    # 50 degrees to the left of the line of sight, 15 degrees above
    assert np.degrees(azimuth_rad.mean()) == pytest.approx(-50.0)
    assert np.degrees(zenith_rad.mean()) == pytest.approx(75.0)
    # the offsets of table 7.5-3 have an rms of 1
    assert np.degrees(azimuth_rad.std()) == pytest.approx(5.0, rel=0.01)
    assert np.degrees(zenith_rad.std()) == pytest.approx(3.0, rel=0.01)


def test_without_a_line_of_sight_the_mean_angle_points_to_the_node():
    profile = Profile(
        shares=np.array([0.5, 0.5]),
        delays=np.array([0.0, 1.0]),
        sight=False,
        azimuth_rad=np.radians([170.0, -150.0]),
        zenith_rad=np.radians([100.0, 100.0]),
    )
    paths = draw_cdl(profile, WorldSpec(), 1.0, np.array([0.0, 0.0]), np.random.default_rng(1))
    expected = np.sin(np.radians(20.0)) * np.repeat([-1.0, 1.0], 20)
    np.testing.assert_allclose(paths.directions[:, 0], expected, atol=1e-12)
    np.testing.assert_allclose(paths.directions[:, 1], 0.0, atol=1e-12)


def test_rays_have_the_powers_of_their_clusters():
    drawn = [draw_cdl(CLUSTERS, WorldSpec(), 1.0, np.zeros(2), generator).gains for generator in generators(2000)]
    clusters = np.stack(drawn)[:, 1:].reshape(-1, 2, 20).sum(axis=2)
    power = np.mean(np.abs(clusters) ** 2, axis=0)
    np.testing.assert_allclose(power / CLUSTERS.shares[1:], 1.0, atol=4 / np.sqrt(2000))


def write_table(folder: Path, release: str, name: str, **changes) -> None:
    table = {"los": 0, "num_clusters": 2, "delays": [0.0, 1.0], "powers": [0.0, -3.0], **changes}
    path = folder / "sionna" / "phy" / "channel" / "tr38901" / "models" / release / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))


def test_tables_are_read_from_the_newest_release_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "sionna").mkdir()
    (tmp_path / "sionna" / "__init__.py").write_text("raise ImportError('only its data files are wanted')")
    write_table(tmp_path, "v16_1", "TDL-B.json", delays=[0.0, 9.0])
    write_table(tmp_path, "v19_2", "TDL-B.json")
    angles = {"aod": [0.0, 90.0], "zod": [90.0, 45.0], "cASD": 5.0, "cZSD": 3.0}
    write_table(tmp_path, "", "CDL-E.json", los=1, **angles)
    monkeypatch.syspath_prepend(tmp_path)
    taps = load_profile("tdl", "B")
    np.testing.assert_allclose(taps.shares, [1 / (1 + 10**-0.3), 1 / (1 + 10**0.3)])
    np.testing.assert_array_equal(taps.delays, [0.0, 1.0])
    assert not taps.sight
    clusters = load_profile("cdl", "E")
    assert clusters.sight
    np.testing.assert_allclose(clusters.azimuth_rad, [0.0, np.pi / 2])
    np.testing.assert_allclose(clusters.spread_rad, np.radians([5.0, 3.0]))
    with pytest.raises(ConfigError, match="no table CDL-A.json"):
        load_profile("cdl", "A")


@pytest.mark.parametrize("model", ["tdl", "cdl"])
def test_without_the_package_the_error_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed") as trouble:
        World(bench_with(model=model), 1)
    assert trouble.value.key == "world.model"
    assert "pip install 'testbed[sionna]'" in str(trouble.value.remedy)


@installed
@pytest.mark.parametrize("model", ["tdl", "cdl"])
@pytest.mark.parametrize("letter", "ABCDE")
def test_delays_of_the_profiles_have_unit_spread(model, letter):
    profile = load_profile(model, letter)
    assert profile.shares.sum() == pytest.approx(1.0)
    spread = np.sqrt(profile.shares @ profile.delays**2 - (profile.shares @ profile.delays) ** 2)
    # TR 38.901, section 7.7.3: the delays of every table are normalised to their rms spread
    assert spread == pytest.approx(1.0, abs=0.03)
    assert profile.sight == (letter in "DE")


@installed
@pytest.mark.parametrize("model", ["tdl", "cdl"])
@pytest.mark.parametrize(("letter", "factor_db"), [("D", 13.3), ("E", 22.0)])
def test_first_clusters_have_the_published_rician_factor(model, letter, factor_db):
    profile = load_profile(model, letter)
    assert profile.delays[1] == 0.0
    assert 10 * np.log10(profile.shares[0] / profile.shares[1]) == pytest.approx(factor_db, abs=0.05)


@installed
@pytest.mark.parametrize("model", ["tdl", "cdl"])
def test_frequencies_decorrelate_as_the_profile_tells(model):
    num_nodes = 1200
    settings = {"profile": "C", "num_paths": 2, "delay_spread_s": 100e-9, "selective": True}
    world = World(bench_with(num_nodes, model=model, **settings), 1)
    offset_hz = np.array([0.0, 0.3e6, 1e6, 2.5e6])
    response = world.response(tuple(world.paths), np.zeros((1, 2)), np.zeros(1), offset_hz)[0, :, 0]
    response = response / np.sqrt([world.path_gain(node) for node in world.paths])
    profile = load_profile(model, "C")
    expected = np.exp(-2j * np.pi * np.outer(offset_hz, profile.delays * 100e-9)) @ profile.shares
    correlation = np.mean(response * response[:1].conj(), axis=1)
    np.testing.assert_allclose(correlation, expected, atol=4 / np.sqrt(num_nodes))


@installed
@pytest.mark.parametrize("model", ["tdl", "cdl"])
@pytest.mark.parametrize("fading", ["static", "block", "jakes"])
def test_profiles_answer_as_every_other_world(model, fading):
    bench = bench_with(3, model=model, profile="D", fading=fading, doppler_hz=5.0, selective=True, coupling=True)
    positions_m = np.array([[0.0, 0.0], [0.06, 0.0], [0.0, 0.1]])
    at_s, offset_hz = np.array([0.0, 2.5]), np.array([0.0, 1e6])
    response = World(bench, 1).response(("n2", "n0"), positions_m, at_s, offset_hz)
    assert response.shape == (2, 2, 3, 2)
    again = World(bench, 1)
    np.testing.assert_allclose(again.channels(("n0",), positions_m, at_s), response[:, 0, :, 1:], rtol=1e-9)
    assert not np.allclose(again.channel("n1", positions_m, 0.0), response[0, 0, :, 1])
    assert not np.allclose(response[:, 0], response[:, 1])
