"""A bench file names its recording relative to itself."""

from pathlib import Path

import numpy as np

from sim_backend.recorded_channel import save_recording
from sim_backend.world import World
from testbed.engine.config import load_bench

BENCH = """
name = "measured"

[array]
origin_m = [3.0, 2.5, 2.0]
region_m = [[0.0, 0.2], [0.0, 0.2]]
min_spacing_m = 0.06

[[array.antennas]]
home_m = [0.1, 0.1]
stage = { speed_m_s = 0.1 }

[[nodes]]
name = "board"

[world]
model = "recorded"
recording = "room.npz"
"""


def test_a_recording_lies_beside_its_bench_file(tmp_path: Path) -> None:
    points_m = np.array([[0.0, 0.0], [0.2, 0.0], [0.0, 0.2], [0.2, 0.2]])
    channel = 1e-4 * np.array([[1.0], [1.0j], [-1.0], [2.0]])
    save_recording(tmp_path / "room.npz", nodes=["board"], positions_m=points_m, channel=channel)
    (tmp_path / "measured.toml").write_text(BENCH)
    bench = load_bench(str(tmp_path / "measured.toml"))
    assert bench.world.recording == str(tmp_path / "room.npz")
    world = World(bench, seed=0)
    for point_m, heard in zip(points_m, channel, strict=True):
        np.testing.assert_allclose(world.channel("board", point_m[None], 0.0), heard, atol=1e-12)
