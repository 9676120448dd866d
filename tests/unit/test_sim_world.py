import numpy as np
import pytest

from sim_backend.world import World
from testbed.core.bench import AntennaSpec, ArraySpec, BenchSpec, NodeSpec, WorldSpec

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
