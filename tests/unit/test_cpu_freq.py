"""Setting the processor's frequency, on a folder that looks like cpufreq's."""

import subprocess
import sys
from pathlib import Path

import pytest

from drivers.cpu_freq import CpuFrequency, find_policies, is_pinned
from testbed.core.errors import DeviceError, LimitError
from tests.fake_sysfs import add_policy, allowed, follow, open_folder, without_privileges

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = add_policy(tmp_path, 0)
    follow(folder)
    return folder


def test_set_and_put_back(tmp_path: Path, folder: Path) -> None:
    cpu = CpuFrequency(tmp_path)
    assert cpu.range_hz == (6e8, 1.5e9)
    for hz in (8e8, 1.2e9, 6e8, 1.5e9):
        assert cpu.set(hz) == hz
        assert allowed(folder) == [round(hz / 1e3)] * 2
        assert is_pinned(cpu.policies[0])
    cpu.close()
    cpu.close()
    assert allowed(folder) == [600_000, 1_500_000]
    assert not is_pinned(cpu.policies[0])


def test_the_lowest_is_never_above_the_highest(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel demands it, whichever way the frequency goes."""
    write = Path.write_text

    def checked(path: Path, text: str) -> int:
        count = write(path, text)
        low, high = allowed(folder)
        assert low <= high
        return count

    monkeypatch.setattr(Path, "write_text", checked)
    cpu = CpuFrequency(tmp_path)
    for hz in (7e8, 1.4e9, 6e8):
        cpu.set(hz)
    cpu.close()


def test_the_nearest_step(tmp_path: Path) -> None:
    follow(add_policy(tmp_path, 0, steps="1500000 1000000 750000 600000"))
    cpu = CpuFrequency(tmp_path)
    assert cpu.set(8e8) == 7.5e8
    assert cpu.set(1.4e9) == 1.5e9
    cpu.close()


def test_all_cores_or_none(tmp_path: Path) -> None:
    slow, fast = add_policy(tmp_path, 0), add_policy(tmp_path, 4, low=800_000, high=2_400_000)
    follow(slow)
    follow(fast)
    cpu = CpuFrequency(tmp_path)
    assert cpu.range_hz == (8e8, 1.5e9)
    with pytest.raises(LimitError, match="cannot run at 2e\\+09 Hz; its range is 8e\\+08 to 1.5e\\+09 Hz"):
        cpu.set(2e9)
    assert allowed(slow) == [600_000, 1_500_000]
    cpu.set(1e9)
    assert allowed(slow) == allowed(fast) == [1_000_000, 1_000_000]
    cpu.close()
    assert allowed(fast) == [800_000, 2_400_000]


@pytest.mark.parametrize("hz", [0.0, -1e9, 5.9e8, 1.6e9, float("nan"), float("inf")])
def test_what_it_cannot_do_changes_nothing(tmp_path: Path, folder: Path, hz: float) -> None:
    cpu = CpuFrequency(tmp_path)
    with pytest.raises(LimitError):
        cpu.set(hz)
    assert allowed(folder) == [600_000, 1_500_000]
    cpu.close()


def test_a_throttled_processor_is_found_out(tmp_path: Path) -> None:
    folder = add_policy(tmp_path, 0)
    (folder / "scaling_cur_freq").write_text("700000\n")
    seconds = 0.0

    def pause(by_s: float) -> None:
        nonlocal seconds
        seconds += by_s

    cpu = CpuFrequency(tmp_path, monotonic=lambda: seconds, pause=pause)
    with pytest.raises(DeviceError, match="policy0 runs at 7e\\+08 Hz though 1e\\+09 Hz was set"):
        cpu.set(1e9)
    assert 0.5 <= seconds < 0.6
    cpu.close()
    assert allowed(folder) == [600_000, 1_500_000]


def test_no_cpufreq(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cpufreq shows no policy") as caught:
        find_policies(tmp_path)
    assert "meter.cpu_frequency = false" in str(caught.value)


def test_a_file_that_says_nothing(tmp_path: Path, folder: Path) -> None:
    (folder / "cpuinfo_max_freq").write_text("<unknown>\n")
    with pytest.raises(DeviceError, match="cannot read a frequency"):
        CpuFrequency(tmp_path)


def test_no_permission_is_said_before_anything_is_changed() -> None:
    with open_folder() as sysfs:
        folder = add_policy(sysfs, 0)
        (folder / "scaling_min_freq").chmod(0o666)
        (folder / "scaling_max_freq").chmod(0o444)
        with (
            without_privileges(),
            pytest.raises(DeviceError, match="may not set the processor's frequency: Permission denied") as caught,
        ):
            CpuFrequency(sysfs)
        assert "sudo chmod a+w" in str(caught.value)
        assert allowed(folder) == [600_000, 1_500_000]


@pytest.mark.parametrize("ending", ["", "raise RuntimeError('work failed')", "raise SystemExit(3)"])
def test_it_is_put_back_however_the_process_ends(tmp_path: Path, folder: Path, ending: str) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom drivers.cpu_freq import CpuFrequency\n"
        "cpu = CpuFrequency(sys.argv[1])\ncpu.set(8e8)\n"
        f"print((cpu.policies[0].folder / 'scaling_max_freq').read_text())\n{ending}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert ended.stdout.split() == ["800000"], ended.stderr
    assert allowed(folder) == [600_000, 1_500_000]
