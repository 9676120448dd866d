import numpy as np
import pytest

from sim_backend import threads
from sim_backend.world import World
from testbed.core.bench import AntennaSpec, ArraySpec, BenchSpec, NodeSpec
from testbed.core.world_specs import WorldSpec
from testbed.phy.coupling import coupling_matrix

ARRAY = ArraySpec(
    origin_m=(5.0, 0.1, 1.5),
    region_m=((0.0, 0.5), (0.0, 0.5)),
    min_spacing_m=0.0,
    antennas=(AntennaSpec(home_m=(0.1, 0.1)),),
)
LINE_M = np.stack([np.linspace(0.0, 0.5, 400), np.zeros(400)], axis=1)


def bench_with(num_nodes: int = 1, **world) -> BenchSpec:
    nodes = (NodeSpec(name="n{}" if num_nodes > 1 else "n0", count=num_nodes),)
    return BenchSpec(name="room", carrier_hz=2.44e9, array=ARRAY, nodes=nodes, world=WorldSpec(**world))


def test_mean_power_is_the_path_loss():
    world = World(bench_with(2000, num_paths=5, rician_k_db=0.0), seed=1)
    origin_m = np.zeros((1, 2))
    ratio = [abs(world.channel(node, origin_m, 0.0)[0]) ** 2 / world.path_gain(node) for node in world.paths]
    assert np.mean(ratio) == pytest.approx(1.0, abs=0.06)


def test_line_of_sight_carries_its_rician_share():
    world = World(bench_with(3, num_paths=4, rician_k_db=3.0), seed=1)
    for node, paths in world.paths.items():
        share = abs(paths.gains[0]) ** 2 / world.path_gain(node)
        assert share == pytest.approx(10**0.3 / (1 + 10**0.3))


def test_path_loss_is_free_space_at_one_metre_and_falls_with_the_exponent():
    node = NodeSpec(name="a", position_m=(5.0, 4.1, 1.5))
    bench = BenchSpec(
        name="x",
        carrier_hz=2.44e9,
        array=ARRAY,
        nodes=(node,),
        world=WorldSpec(path_loss_exponent=3.0, excess_loss_db=10),
    )
    expected = (bench.wavelength_m / (4 * np.pi)) ** 2 * 4.0**-3 / 10
    assert World(bench, 0).path_gain("a") == pytest.approx(expected)
    fixed = bench.model_copy(update={"world": WorldSpec(reference_loss_db=40.0, path_loss_exponent=2.0)})
    assert World(fixed, 0).path_gain("a") == pytest.approx(1e-4 / 16)


def test_nodes_stand_where_the_bench_says_or_in_the_room():
    world = World(bench_with(50), seed=2)
    positions_m = np.stack(list(world.positions_m.values()))
    assert np.all((positions_m >= 0) & (positions_m <= (10.0, 8.0, 3.0)))
    node = NodeSpec(name="a", position_m=(9.0, 0.1, 1.5))
    fixed = World(BenchSpec(name="x", carrier_hz=2.44e9, array=ARRAY, nodes=(node,)), 0)
    # along the first array axis: grazing incidence
    np.testing.assert_allclose(fixed.paths["a"].directions[0], [1.0, 0.0], atol=1e-12)


def test_one_path_is_as_strong_everywhere():
    power = np.abs(World(bench_with(num_paths=1), seed=3).channel("n0", LINE_M, 0.0)) ** 2
    assert np.ptp(power) < 1e-12 * power[0]


def test_two_paths_beat_with_the_period_of_their_directions():
    bench = bench_with(num_paths=2, rician_k_db=0.0)
    world = World(bench, seed=4)
    paths = world.paths["n0"]
    period_m = bench.wavelength_m / abs(paths.directions[0, 0] - paths.directions[1, 0])
    line_m = np.stack([np.linspace(0.0, period_m, 2001), np.zeros(2001)], axis=1)
    power = np.abs(world.channel("n0", line_m, 0.0)) ** 2
    strong, weak = np.abs(paths.gains)
    assert power[0] == pytest.approx(power[-1])
    assert power.max() == pytest.approx((strong + weak) ** 2, rel=1e-4)
    assert power.min() == pytest.approx((strong - weak) ** 2, rel=1e-2)


def test_a_static_room_does_not_change_and_doppler_rotates_each_path():
    static = World(bench_with(), seed=5)
    np.testing.assert_array_equal(static.channel("n0", LINE_M, 0.0), static.channel("n0", LINE_M, 1e4))
    moving = World(bench_with(num_paths=1, doppler_hz=2.0), seed=5)
    shift_hz = moving.paths["n0"].doppler_hz[0]
    assert 0 < abs(shift_hz) <= 2.0
    turned = moving.channel("n0", LINE_M, 3.7) / moving.channel("n0", LINE_M, 0.0)
    np.testing.assert_allclose(turned, np.exp(2j * np.pi * shift_hz * 3.7), rtol=1e-9)


def test_the_world_is_a_function_of_seed_and_time():
    bench = bench_with(2, doppler_hz=1.0)
    first, again, other = World(bench, 6), World(bench, 6), World(bench, 7)
    np.testing.assert_array_equal(first.channel("n1", LINE_M, 2.5), again.channel("n1", LINE_M, 2.5))
    assert not np.allclose(first.channel("n1", LINE_M, 2.5), other.channel("n1", LINE_M, 2.5))
    first.noise((1, 10), 9.0)
    np.testing.assert_array_equal(first.noise((3, 100), 2.5), again.noise((3, 100), 2.5))
    assert not np.array_equal(first.noise((3, 100), 2.5), first.noise((3, 100), 2.500000001))
    assert not np.array_equal(first.noise((3, 100), 2.5), other.noise((3, 100), 2.5))


def test_several_channels_are_those_one_by_one():
    world = World(bench_with(3, doppler_hz=1.0), seed=8)
    together = world.channels(("n2", "n0"), LINE_M[:4], np.array([0.0, 1.5]))
    assert together.shape == (2, 4, 2)
    np.testing.assert_allclose(together[1, :, 0], world.channel("n2", LINE_M[:4], 1.5), rtol=1e-12)


def test_noise_is_thermal_circular_and_independent():
    bench = bench_with(noise_figure_db=7.0)
    world = World(bench, seed=9)
    expected_w = 1.380649e-23 * 290.0 * 10**0.7 * 5e6
    assert world.noise_w == pytest.approx(expected_w)
    noise = world.noise((2, 200_000), 1.0)
    assert noise.dtype == np.complex64
    covariance = noise.astype(np.complex128) @ noise.astype(np.complex128).conj().T / 200_000 / expected_w
    np.testing.assert_allclose(covariance, np.eye(2), atol=0.01)
    assert abs(np.mean(noise.astype(np.complex128) ** 2)) < 0.01 * expected_w  # circular
    assert not World(bench_with(temperature_k=0.0), 9).noise((2, 5), 1.0).any()


def test_combined_noise_is_that_of_one_antenna():
    world = World(bench_with(), seed=9)
    noise = world.combined_noise(200_000, 1.0)
    assert noise.dtype == np.complex64
    normal = noise.astype(np.complex128) / np.sqrt(world.noise_w)
    bound = 4 / np.sqrt(200_000)
    assert np.mean(np.abs(normal) ** 2) == pytest.approx(1.0, abs=bound)
    assert abs(np.mean(normal**2)) < bound * np.sqrt(2)
    assert np.mean(np.abs(normal) ** 2 > np.log(2)) == pytest.approx(0.5, abs=bound / 2)
    np.testing.assert_array_equal(noise, World(bench_with(), 9).combined_noise(200_000, 1.0))
    antenna = world.noise((1, 200_000), 1.0)[0] / np.sqrt(world.noise_w)
    for another in (antenna, world.combined_noise(200_000, 2.0) / np.sqrt(world.noise_w)):
        assert abs(np.vdot(another, normal)) / 200_000 < bound
    assert not World(bench_with(temperature_k=0.0), 9).combined_noise(5, 1.0).any()


def test_noise_before_time_zero_is_not_that_after_it():
    world = World(bench_with(), seed=9)
    assert not np.array_equal(world.noise((2, 50), -0.5), world.noise((2, 50), 0.5))
    assert not np.array_equal(world.combined_noise(50, -0.5), world.combined_noise(50, 0.5))


def powers_of(world: World) -> np.ndarray:
    """|h|^2 of every node at the array origin, over its mean."""
    gains = world.channels(tuple(world.paths), np.zeros((1, 2)), np.zeros(1))[0, 0]
    return np.abs(gains) ** 2 / [world.path_gain(node) for node in world.paths]


@pytest.mark.parametrize("model", ["room", "isotropic"])
def test_paths_that_are_all_alike_make_a_rayleigh_channel(model):
    power = powers_of(World(bench_with(4000, model=model, num_paths=6, line_of_sight=False), seed=1))
    # Gaussian gains: exactly exponential, whatever the number of paths
    assert power.mean() == pytest.approx(1.0, abs=4 / np.sqrt(4000))
    assert np.mean(power**2) == pytest.approx(2.0, abs=4 * np.sqrt(20 / 4000))
    for level in (0.1, 0.5, 2.0):
        assert np.mean(power > level) == pytest.approx(np.exp(-level), abs=2 / np.sqrt(4000))


@pytest.mark.parametrize("model", ["room", "isotropic"])
def test_rician_channels_have_the_moments_of_their_factor(model):
    factor = 10**0.6
    power = powers_of(World(bench_with(4000, model=model, num_paths=4, rician_k_db=6.0), seed=2))
    assert power.mean() == pytest.approx(1.0, abs=4 * np.sqrt(0.4 / 4000))
    # E|h|^4 / (E|h|^2)^2 = (K^2 + 4 K + 2) / (K + 1)^2
    expected = (factor**2 + 4 * factor + 2) / (factor + 1) ** 2
    assert np.mean(power**2) == pytest.approx(expected, abs=0.1)


def test_isotropic_waves_decorrelate_as_a_sinc():
    bench = bench_with(4000, model="isotropic", line_of_sight=False)
    world = World(bench, seed=3)
    step_m = np.array([0.0, 0.2, 0.5, 0.7, 1.0, 1.3]) * bench.wavelength_m
    for axis in (0, 1):
        line_m = np.zeros((6, 2))
        line_m[:, axis] = step_m
        gains = world.channels(tuple(world.paths), line_m, np.zeros(1))[0]
        gains = gains / np.sqrt([world.path_gain(node) for node in world.paths])
        correlation = np.mean(gains * gains[:1].conj(), axis=1)
        # a direction cosine of an isotropic wave is uniform on [-1, 1]
        np.testing.assert_allclose(correlation, np.sinc(2 * step_m / bench.wavelength_m), atol=4 / np.sqrt(4000))


def test_isotropic_directions_lie_in_the_half_space_before_the_array():
    world = World(bench_with(500, model="isotropic", num_paths=8), seed=3)
    directions = np.concatenate([paths.directions for paths in world.paths.values()])
    assert np.all(np.linalg.norm(directions, axis=1) <= 1)
    # theta = arccos U[-1, 1]: the second cosine is uniform, and so is the first
    np.testing.assert_allclose(directions.mean(axis=0), 0.0, atol=4 * np.sqrt(1 / 3 / 4000))
    np.testing.assert_allclose(np.mean(directions**2, axis=0), 1 / 3, atol=4 * np.sqrt(4 / 45 / 4000))


def test_one_isotropic_path_carries_everything():
    world = World(bench_with(3, model="isotropic", num_paths=1, rician_k_db=3.0, selective=True), seed=3)
    np.testing.assert_allclose(powers_of(world), 1.0, rtol=1e-12)
    assert all(paths.delays_s.tolist() == [0.0] for paths in world.paths.values())


def test_shadowing_is_log_normal_and_holds_for_every_path():
    bench, spread_db = bench_with(3000), 6.0
    clear, shadowed = World(bench, 4), World(bench_with(3000, shadowing_db=spread_db), 4)
    loss_db = [10 * np.log10(shadowed.path_gain(node) / clear.path_gain(node)) for node in clear.paths]
    assert np.mean(loss_db) == pytest.approx(0.0, abs=4 * spread_db / np.sqrt(3000))
    assert np.std(loss_db) == pytest.approx(spread_db, rel=4 / np.sqrt(6000))
    for node in list(clear.paths)[:5]:
        ratio = np.abs(shadowed.paths[node].gains / clear.paths[node].gains) ** 2
        np.testing.assert_allclose(ratio, shadowed.path_gain(node) / clear.path_gain(node), rtol=1e-9)


@pytest.mark.parametrize("line_of_sight", [False, True])
def test_frequencies_decorrelate_as_the_exponential_delay_profile_tells(line_of_sight):
    num_nodes, spread_s = 4000, 80e-9
    settings = {"num_paths": 5, "line_of_sight": line_of_sight, "delay_spread_s": spread_s, "selective": True}
    world = World(bench_with(num_nodes, model="isotropic", **settings), seed=5)
    offset_hz = np.array([-2.5e6, 0.0, 0.5e6, 1.5e6, 4e6])
    response = world.response(tuple(world.paths), np.zeros((1, 2)), np.zeros(1), offset_hz)[0, :, 0]
    response = response / np.sqrt([world.path_gain(node) for node in world.paths])
    correlation = np.mean(response * response[1].conj(), axis=1)
    first = 1 / 5 if not line_of_sight else 10**0.3 / (1 + 10**0.3)
    mean_s = spread_s / np.sqrt(1 - first**2)
    expected = first + (1 - first) / (1 + 2j * np.pi * offset_hz * mean_s)
    np.testing.assert_allclose(correlation, expected, atol=4 / np.sqrt(num_nodes))
    # rms of the power-weighted delays of all nodes
    delays_s = np.stack([paths.delays_s for paths in world.paths.values()])
    share = np.array([first, *[(1 - first) / 4] * 4])
    second = np.mean(delays_s**2, axis=0) @ share - (np.mean(delays_s, axis=0) @ share) ** 2
    assert np.sqrt(second) == pytest.approx(spread_s, rel=0.06)
    assert np.all(delays_s[:, 0] == 0.0)


def test_the_rooms_delays_are_detours_over_the_line_of_sight():
    bench = bench_with(20, num_paths=6, selective=True)
    world = World(bench, seed=6)
    origin_m = np.array(ARRAY.origin_m)
    for node, paths in world.paths.items():
        straight_m = np.linalg.norm(world.positions_m[node] - origin_m)
        assert paths.delays_s[0] == 0.0
        assert np.all(paths.delays_s[1:] > 0)
        # no point of the room lies farther from either end than its diagonal
        assert np.all(paths.delays_s * 299_792_458.0 <= 2 * np.linalg.norm(bench.room_m) - straight_m)


def test_two_paths_notch_the_band_with_the_period_of_their_delay():
    world = World(bench_with(num_paths=2, rician_k_db=0.0, selective=True), seed=4)
    paths = world.paths["n0"]
    offset_hz = np.linspace(0.0, 1 / paths.delays_s[1], 2001)
    response = world.response(("n0",), np.zeros((1, 2)), np.zeros(1), offset_hz)[0, :, 0, 0]
    strong, weak = np.abs(paths.gains)
    np.testing.assert_allclose(response[0], response[-1], rtol=1e-9)
    assert np.abs(response).max() == pytest.approx(strong + weak, rel=1e-4)
    assert np.abs(response).min() == pytest.approx(abs(strong - weak), rel=1e-2)


@pytest.mark.parametrize("model", ["room", "isotropic"])
@pytest.mark.parametrize("selective", [True, False])
def test_the_response_at_the_carrier_is_the_channel(model, selective):
    world = World(bench_with(3, model=model, selective=selective, doppler_hz=3.0), seed=7)
    assert world.selective is selective
    at_s, offset_hz = np.array([0.0, 1.5]), np.array([-1e6, 0.0, 2e6])
    response = world.response(("n2", "n0"), LINE_M[:4], at_s, offset_hz)
    assert response.shape == (2, 3, 4, 2)
    assert response.dtype == np.complex128
    channels = world.channels(("n2", "n0"), LINE_M[:4], at_s)
    np.testing.assert_allclose(response[:, 1], channels, rtol=1e-12)
    if selective:
        assert not np.any(np.isclose(response[:, 0], response[:, 2], rtol=1e-3))
    else:
        np.testing.assert_array_equal(response, np.stack([channels] * 3, axis=1))


def test_the_world_says_whether_it_moves():
    assert not World(bench_with(), 1).moves
    assert World(bench_with(doppler_hz=1.0), 1).moves
    assert World(bench_with(fading="block"), 1).moves
    assert World(bench_with(fading="jakes", doppler_hz=1.0), 1).moves


def test_block_fading_keeps_directions_and_draws_gains():
    world = World(bench_with(fading="block", coherence_s=0.5, num_paths=1, line_of_sight=False), seed=8)
    now, still, later = (world.channel("n0", LINE_M, at_s) for at_s in (0.1, 0.4, 0.6))
    np.testing.assert_array_equal(now, still)
    ratio = later / now
    assert abs(ratio[0] - 1) > 1e-3
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


@pytest.mark.parametrize("model", ["room", "isotropic"])
@pytest.mark.parametrize("fading", ["static", "block", "jakes"])
def test_every_channel_is_a_function_of_seed_and_time(model, fading):
    bench = bench_with(3, model=model, fading=fading, doppler_hz=5.0, selective=True, shadowing_db=4.0)
    first, again = World(bench, 6), World(bench, 6)
    first.channels(("n0", "n2"), LINE_M[:3], np.array([9.0, 3.0]))
    expected = first.channel("n1", LINE_M[:3], 2.5)
    again.response(("n2",), LINE_M, np.array([7.0]), np.array([1e6]))
    np.testing.assert_array_equal(expected, again.channel("n1", LINE_M[:3], 2.5))
    assert not np.allclose(expected, World(bench, 7).channel("n1", LINE_M[:3], 2.5))
    assert not np.allclose(expected, again.channel("n0", LINE_M[:3], 2.5))
    together = first.channels(("n0", "n1"), LINE_M[:3], np.array([0.0, 2.5]))[1, :, 1]
    np.testing.assert_allclose(expected, together, rtol=1e-12)


def test_new_effects_leave_the_rooms_geometry_alone():
    plain = World(bench_with(4), 11)
    other = World(bench_with(4, fading="block", shadowing_db=3.0, selective=True, coupling=True), 11)
    for node in plain.paths:
        np.testing.assert_array_equal(plain.positions_m[node], other.positions_m[node])
        np.testing.assert_array_equal(plain.paths[node].directions, other.paths[node].directions)


def test_coupling_mixes_the_antennas_of_the_uncoupled_channel():
    settings = {"selective": True, "doppler_hz": 2.0}
    apart, coupled = World(bench_with(2, **settings), 12), World(bench_with(2, coupling=True, **settings), 12)
    positions_m, at_s, offset_hz = LINE_M[:90:30], np.array([0.0, 1.0]), np.array([-1e6, 0.0])
    matrix = coupling_matrix(positions_m, bench_with().wavelength_m)
    expected = np.einsum("nm,tfmk->tfnk", matrix, apart.response(("n0", "n1"), positions_m, at_s, offset_hz))
    np.testing.assert_allclose(coupled.response(("n0", "n1"), positions_m, at_s, offset_hz), expected, rtol=1e-9)
    np.testing.assert_allclose(coupled.channels(("n0", "n1"), positions_m, at_s), expected[:, 1], rtol=1e-9)
    np.testing.assert_allclose(coupled.channel("n0", LINE_M[:1], 0.0), apart.channel("n0", LINE_M[:1], 0.0))


@pytest.mark.parametrize("model", ["room", "isotropic"])
def test_strangers_have_no_channel(model):
    world = World(bench_with(model=model), 1)
    with pytest.raises(KeyError):
        world.channel("stranger", LINE_M, 0.0)
    with pytest.raises(KeyError):
        world.path_gain("stranger")


def test_noise_does_not_depend_on_the_number_of_threads(monkeypatch):
    world = World(bench_with(1), seed=9)
    alone = world.noise((3, 5000), 0.25)
    monkeypatch.setattr(threads, "num_cores", lambda: 4)
    monkeypatch.setattr(threads, "_THREAD", 1)
    np.testing.assert_array_equal(world.noise((3, 5000), 0.25), alone)
