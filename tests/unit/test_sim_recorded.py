from pathlib import Path

import numpy as np
import pytest

from sim_backend.recorded_channel import RecordedChannel, save_recording
from sim_backend.world import World
from testbed.core.bench import AntennaSpec, ArraySpec, BenchSpec, NodeSpec
from testbed.core.errors import ConfigError, LimitError
from testbed.core.world_specs import WorldSpec
from testbed.phy import array
from testbed.phy.coupling import coupling_matrix

ARRAY = ArraySpec(
    origin_m=(5.0, 0.1, 1.5),
    region_m=((0.0, 0.3), (0.0, 0.2)),
    min_spacing_m=0.0,
    antennas=(AntennaSpec(home_m=(0.1, 0.1)),),
)
NAMES = ("lab-a", "lab-b")


def grid_m(step_m: float) -> np.ndarray:
    """Points on the region, shape [num_points, 2]."""
    first_m, second_m = np.arange(0, 0.3 + 1e-9, step_m), np.arange(0, 0.2 + 1e-9, step_m)
    return np.stack(np.meshgrid(first_m, second_m, indexing="ij"), axis=-1).reshape(-1, 2)


def measured(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 2)) @ np.array([1, 1j])


def bench_with(file: Path, nodes: tuple[str, ...] = NAMES, **world) -> BenchSpec:
    spec = WorldSpec(model="recorded", recording=str(file), **world)
    return BenchSpec(name="lab", array=ARRAY, nodes=tuple(NodeSpec(name=name) for name in nodes), world=spec)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "channels.npz"


def test_recorded_points_come_back_as_they_were(file):
    points_m = grid_m(0.05)
    channel = measured((len(points_m), 2))
    save_recording(file, nodes=NAMES, positions_m=points_m, channel=channel)
    recorded = RecordedChannel(file, NAMES)
    np.testing.assert_array_equal(recorded.channels(NAMES, points_m), channel)
    np.testing.assert_array_equal(recorded.channels(("lab-b",), points_m[[7, 2]]), channel[[7, 2], 1:])
    assert recorded.path_gain("lab-b") == pytest.approx(np.mean(np.abs(channel[:, 1]) ** 2))


def test_a_channel_that_is_linear_in_position_is_interpolated_exactly(file):
    generator = np.random.default_rng(1)
    points_m = np.concatenate([generator.uniform(0, 0.2, (40, 2)), [[0, 0], [0, 0.2], [0.2, 0], [0.2, 0.2]]])
    slope = measured((2, 2), 2)
    save_recording(file, nodes=NAMES, positions_m=points_m, channel=points_m @ slope + 1j)
    asked_m = generator.uniform(0, 0.2, (30, 2))
    np.testing.assert_allclose(RecordedChannel(file, NAMES).channels(NAMES, asked_m), asked_m @ slope + 1j, rtol=1e-9)


def test_a_plane_wave_is_followed_as_closely_as_the_grid_is_fine(file):
    wavelength_m, directions = 0.122, np.array([[0.4, 0.3], [-0.6, 0.2]])
    asked_m = np.random.default_rng(3).uniform(0, 0.2, (200, 2))
    truth = array.channel(asked_m, directions, np.array([1.0, 0.5j]), wavelength_m)
    error = []
    for step_m in (0.02, 0.01):
        points_m = grid_m(step_m)
        channel = array.channel(points_m, directions, np.array([1.0, 0.5j]), wavelength_m)[:, None]
        save_recording(file, nodes=["lab-a"], positions_m=points_m, channel=channel)
        error.append(np.abs(RecordedChannel(file, ["lab-a"]).channels(["lab-a"], asked_m)[:, 0] - truth).max())
    # half the squared radius of the circle around a triangle, step^2 / 4, times the largest curvature
    curvature = np.array([1.0, 0.5]) @ np.sum((2 * np.pi / wavelength_m * directions) ** 2, axis=1)
    assert error[0] < 0.02**2 / 4 * curvature
    assert error[1] == pytest.approx(error[0] / 4, rel=0.4)


def test_frequencies_are_interpolated_and_held_beyond_the_edge(file):
    points_m, frequencies_hz = grid_m(0.1), np.array([-2e6, -1e6, 1e6, 2e6])
    channel = measured((len(points_m), 4, 2))
    save_recording(file, nodes=NAMES, positions_m=points_m, channel=channel, frequencies_hz=frequencies_hz)
    recorded = RecordedChannel(file, NAMES)
    np.testing.assert_array_equal(recorded.response(NAMES, points_m, frequencies_hz), np.moveaxis(channel, 1, 0))
    np.testing.assert_allclose(recorded.channels(NAMES, points_m), (channel[:, 1] + channel[:, 2]) / 2, rtol=1e-12)
    edges = recorded.response(NAMES, points_m[:1], np.array([-2.5e6, 9e6]))[:, 0]
    np.testing.assert_array_equal(edges, channel[0, [0, 3]])


def test_points_on_a_line_serve_that_line_only(file):
    points_m = np.stack([[0.3, 0.0, 0.1], [0.1, 0.1, 0.1]], axis=1)
    save_recording(file, nodes=["lab-a"], positions_m=points_m, channel=np.array([[6.0], [0.0], [1.0j]]))
    recorded = RecordedChannel(file, ["lab-a"])
    halves = recorded.channels(["lab-a"], np.array([[0.05, 0.1], [0.2, 0.1]]))[:, 0]
    np.testing.assert_allclose(halves, [0.5j, 3 + 0.5j], rtol=1e-12)
    for outside_m in ([0.05, 0.11], [0.31, 0.1], [-0.01, 0.1]):
        with pytest.raises(LimitError, match="outside the recorded points"):
            recorded.channels(["lab-a"], np.array([outside_m]))


def test_one_point_serves_an_antenna_that_stands_there(file):
    save_recording(file, nodes=["lab-a"], positions_m=np.array([[0.1, 0.1]]), channel=np.array([[2j]]))
    recorded = RecordedChannel(file, ["lab-a"])
    assert recorded.channels(["lab-a"], np.array([[0.1, 0.1]])) == 2j
    with pytest.raises(LimitError, match="outside the recorded points"):
        recorded.channels(["lab-a"], np.array([[0.1, 0.1001]]))


def test_a_recording_in_space_serves_the_plane_and_space(file):
    points_m = np.random.default_rng(4).uniform(-0.3, 0.3, (60, 3))
    slope = np.array([1.0, 2j, -3.0])
    save_recording(file, nodes=["lab-a"], positions_m=points_m, channel=(points_m @ slope)[:, None])
    recorded = RecordedChannel(file, ["lab-a"])
    np.testing.assert_allclose(recorded.channels(["lab-a"], np.array([[0.1, -0.05]])), [[0.1 - 0.1j]], rtol=1e-9)
    lifted = recorded.channels(["lab-a"], np.array([[0.1, -0.05, 0.02]]))
    np.testing.assert_allclose(lifted, [[0.04 - 0.1j]], rtol=1e-9)


def test_outside_the_recorded_points_an_order_is_refused(file):
    points_m = grid_m(0.05)
    save_recording(file, nodes=NAMES, positions_m=points_m, channel=measured((len(points_m), 2)))
    world = World(bench_with(file), 1)
    with pytest.raises(LimitError, match="the nearest is 0.1 m away") as refused:
        world.channel("lab-a", np.array([[0.1, 0.1], [0.1, 0.3]]), 0.0)
    assert "region_m" in str(refused.value.remedy)
    with pytest.raises(LimitError, match="2 coordinates"):
        world.channel("lab-a", np.array([[0.1, 0.1, 0.0]]), 0.0)


@pytest.mark.parametrize("frequencies", [None, 5])
def test_the_world_answers_with_the_recording(file, frequencies):
    points_m = grid_m(0.05)
    frequencies_hz = None if frequencies is None else np.linspace(-2.5e6, 2.5e6, frequencies)
    shape = (len(points_m), 2) if frequencies is None else (len(points_m), frequencies, 2)
    channel = measured(shape)
    save_recording(file, nodes=NAMES, positions_m=points_m, channel=channel, frequencies_hz=frequencies_hz)
    world = World(bench_with(file, selective=frequencies is not None), 1)
    assert not world.moves
    carrier = channel if frequencies is None else channel[:, 2]
    at_s, offset_hz = np.array([0.0, 5.0]), np.array([-2.5e6, 0.0])
    channels = world.channels(("lab-b", "lab-a"), points_m[:4], at_s)
    np.testing.assert_allclose(channels, np.stack([carrier[:4, ::-1]] * 2), rtol=1e-12)
    response = world.response(NAMES, points_m[:4], at_s, offset_hz)
    assert response.shape == (2, 2, 4, 2)
    np.testing.assert_allclose(response[1, 1], carrier[:4], rtol=1e-12)
    np.testing.assert_allclose(response[1, 0], carrier[:4] if frequencies is None else channel[:4, 0], rtol=1e-12)
    assert world.path_gain("lab-a") == pytest.approx(np.mean(np.abs(channel[..., 0]) ** 2))
    assert world.paths == {}
    assert set(world.positions_m) == set(NAMES)
    with pytest.raises(KeyError):
        world.channel("stranger", points_m, 0.0)


def test_coupling_acts_on_recorded_channels_too(file):
    points_m = grid_m(0.05)
    save_recording(file, nodes=NAMES, positions_m=points_m, channel=measured((len(points_m), 2)))
    bench = bench_with(file, coupling=True)
    expected = coupling_matrix(points_m[:3], bench.wavelength_m) @ World(bench_with(file), 1).channels(
        NAMES, points_m[:3], np.zeros(1)
    )
    np.testing.assert_allclose(World(bench, 1).channels(NAMES, points_m[:3], np.zeros(1)), expected, rtol=1e-9)


def test_a_file_that_is_absent_or_damaged_is_told(file, tmp_path):
    with pytest.raises(ConfigError, match="there is no such recording") as absent:
        World(bench_with(file), 1)
    assert absent.value.file == str(file)
    assert absent.value.key == "world.recording"
    assert "save_recording" in str(absent.value.remedy)
    file.write_text("not an archive")
    with pytest.raises(ConfigError, match="not a recording"):
        World(bench_with(file), 1)
    with pytest.raises(ConfigError, match="not a recording"):
        RecordedChannel(tmp_path, NAMES)
    np.save(tmp_path / "lone.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="not a recording"):
        RecordedChannel(tmp_path / "lone.npy", NAMES)
    np.savez(file, nodes=np.array(["lab-a", None], dtype=object), positions_m=np.zeros((1, 2)), channel=np.ones((1, 2)))
    with pytest.raises(ConfigError, match="not a recording"):  # pickled objects are not read
        RecordedChannel(file, NAMES)


@pytest.mark.parametrize("key", ["nodes", "positions_m", "channel"])
def test_a_key_that_is_absent_is_named(file, key):
    arrays = {"nodes": np.array(NAMES), "positions_m": grid_m(0.1), "channel": np.ones((12, 2))}
    del arrays[key]
    np.savez(file, **arrays)
    with pytest.raises(ConfigError, match="lacks this array") as trouble:
        RecordedChannel(file, NAMES)
    assert trouble.value.key == key
    assert "positions_m: [P, 2 or 3]" in str(trouble.value.remedy)


def test_a_node_that_was_not_recorded_is_named(file):
    save_recording(file, nodes=NAMES, positions_m=grid_m(0.1), channel=measured((len(grid_m(0.1)), 2)))
    with pytest.raises(ConfigError, match="no channel of stranger") as trouble:
        World(bench_with(file, ("lab-a", "stranger")), 1)
    assert "lab-a, lab-b" in str(trouble.value.remedy)


def test_arrays_that_do_not_fit_are_refused_on_writing_and_on_reading(file):
    points_m = grid_m(0.1)
    good = {"nodes": NAMES, "positions_m": points_m, "channel": measured((len(points_m), 2))}
    spoiled = good["channel"].copy()
    spoiled[3, 1] = np.nan
    rising = np.array([0.0, 1.0])
    wrong = [
        ({"channel": spoiled}, "channel", "[3, 1] is not finite"),
        ({"channel": good["channel"][:-1]}, "channel", "the other arrays ask for"),
        ({"channel": good["channel"].astype(str)}, "channel", "an array of"),
        ({"channel": np.repeat(good["channel"][:, None], 3, 1), "frequencies_hz": rising}, "channel", "ask for"),
        ({"channel": np.repeat(good["channel"][:, None], 2, 1), "frequencies_hz": -rising}, "frequencies_hz", "rise"),
        ({"nodes": ("lab-a", "lab-a")}, "nodes", "without repetition"),
        ({"positions_m": points_m[:, :1]}, "positions_m", "the shape is"),
        ({"positions_m": np.zeros_like(points_m)}, "positions_m", "occurs twice"),
        ({"positions_m": np.full_like(points_m, np.inf)}, "positions_m", "not finite"),
    ]
    for change, key, message in wrong:
        arrays = {**good, **change}
        np.savez(file, **arrays)
        for attempt in (lambda: save_recording(file, **arrays), lambda: RecordedChannel(file, NAMES)):  # noqa: B023
            with pytest.raises(ConfigError) as trouble:
                attempt()
            assert trouble.value.key == key
            assert message in str(trouble.value)
            assert trouble.value.remedy


@pytest.mark.parametrize(
    "change", [{"fading": "block"}, {"fading": "jakes", "doppler_hz": 1.0}, {"doppler_hz": 1.0}, {"shadowing_db": 2.0}]
)
def test_what_a_recording_cannot_do_is_refused(file, change):
    save_recording(file, nodes=NAMES, positions_m=grid_m(0.1), channel=measured((len(grid_m(0.1)), 2)))
    with pytest.raises(ConfigError, match="as it was measured"):
        World(bench_with(file, **change), 1)


def test_a_selective_world_needs_a_recording_of_the_whole_band(file):
    points_m = grid_m(0.1)
    save_recording(file, nodes=NAMES, positions_m=points_m, channel=measured((len(points_m), 2)))
    with pytest.raises(ConfigError, match="at one frequency"):
        World(bench_with(file, selective=True), 1)
    channel, narrow_hz = measured((len(points_m), 2, 2)), np.array([-1e6, 1e6])
    save_recording(file, nodes=NAMES, positions_m=points_m, channel=channel, frequencies_hz=narrow_hz)
    with pytest.raises(ConfigError, match="the waveform fills"):
        World(bench_with(file, selective=True), 1)
    assert not World(bench_with(file), 1).selective
