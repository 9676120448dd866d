"""Meters on folders that look like the kernel's, and on a clock turned by hand."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers.energy_sensors import Counter, PowerRail, Sampler, find_hwmon, find_rapl
from drivers.power_meter import BoardMeter
from sim_backend.meter import SimMeter
from testbed.core.bench import NodeSpec
from testbed.core.devices import Meter
from testbed.core.errors import ConfigError, DeviceError, LimitError, ProtocolError
from tests.fake_sysfs import add_chip, add_policy, add_zone, allowed, follow, open_folder, without_privileges


class Watch:
    """A clock turned by hand."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def __call__(self) -> float:
        return self.at_s


def board(**meter: Any) -> NodeSpec:
    return NodeSpec.model_validate({"name": "board", "cpu_hz": 1.5e9, "kappa": 1e-28, "meter": meter})


@pytest.fixture
def meters() -> Iterator[list[BoardMeter]]:
    """Meters that are closed at the end."""
    opened: list[BoardMeter] = []
    yield opened
    for meter in opened:
        meter.close()
        meter.close()


def test_time_is_measured_and_energy_modelled(meters: list[BoardMeter]) -> None:
    watch = Watch()
    meter = BoardMeter(board(), monotonic=watch)
    meters.append(meter)
    assert isinstance(meter, Meter)
    meter.begin(1e9)
    watch.at_s += 3.5
    spent = meter.end(num_tokens=1000, cpu_hz=1e9)
    assert spent.seconds == 3.5
    # nobody slowed the processor down, so it ran as fast as it can
    simulated = SimMeter(board()).end(num_tokens=1000, cpu_hz=None)
    assert spent.joules == pytest.approx(simulated.joules)
    meter.begin()
    watch.at_s += 2.0
    pruned = meter.end(num_tokens=1000, cpu_hz=None, work_share=0.5)
    assert pruned.seconds == 2.0, "measured, whatever was pruned"
    assert pruned.joules == pytest.approx(simulated.joules / 2)
    assert meter.describe() == {
        "seconds": "measured",
        "energy": "model",
        "measured": False,
        "kappa": 1e-28,
        "idle_power": "not modelled",
        "cpu_frequency": "not controlled",
    }


def test_a_constant_power_says_that_it_is_assumed(meters: list[BoardMeter]) -> None:
    watch = Watch()
    meter = BoardMeter(board(energy="constant", power_w=7.0), monotonic=watch)
    meters.append(meter)
    meter.begin()
    watch.at_s += 2.0
    assert meter.end(num_tokens=1, cpu_hz=None).joules == pytest.approx(14.0)
    assert meter.describe()["measured"] is False
    assert meter.describe()["power_w"] == 7.0


def test_the_frequency_is_set_before_work_and_put_back(tmp_path: Path, meters: list[BoardMeter]) -> None:
    folder = add_policy(tmp_path, 0, steps="600000 1000000 1500000")
    follow(folder)
    meter = BoardMeter(board(cpu_frequency=True, sysfs=str(tmp_path)))
    meters.append(meter)
    meter.begin(9.2e8)
    assert allowed(folder) == [1_000_000, 1_000_000]
    spent = meter.end(num_tokens=1000, cpu_hz=9.2e8)
    assert spent.joules == pytest.approx(1e-28 * 1000 * 2e6 * 1e9**2)  # the step it took, not the order
    meter.begin()
    assert allowed(folder) == [1_500_000, 1_500_000]
    assert meter.describe()["cpu_frequency"] == "set"
    meter.close()
    assert allowed(folder) == [600_000, 1_500_000]


@pytest.mark.parametrize("hz", [0.0, -1.0, 1.6e9, float("nan")])
def test_a_frequency_beyond_the_board_is_refused(meters: list[BoardMeter], hz: float) -> None:
    meters.append(BoardMeter(board()))
    with pytest.raises(LimitError, match="board cannot run at"):
        meters[0].begin(hz)
    with pytest.raises(ProtocolError, match="ended before it began"):
        meters[0].end(num_tokens=1, cpu_hz=None)


def test_rapl_counts_packages_and_memory_once(tmp_path: Path, meters: list[BoardMeter]) -> None:
    package = add_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    core = add_zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    memory = add_zone(tmp_path, "intel-rapl:0:1", "dram", 5_000_000)
    other = add_zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000)
    platform = add_zone(tmp_path, "intel-rapl:2", "psys", 1_000_000)
    again = add_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    (tmp_path / "class/powercap/intel-rapl").mkdir()
    meter = BoardMeter(board(energy="rapl", sysfs=str(tmp_path)))
    meters.append(meter)
    assert [name.split()[1] for name in meter.describe()["sensors"]] == ["package-0", "dram", "package-1"]
    assert meter.describe()["measured"] is True
    meter.begin()
    for path, joules in ((package, 30), (core, 20), (memory, 4), (other, 10), (platform, 60), (again, 30)):
        path.write_text(str(int(path.read_text()) + joules * 1_000_000))
    assert meter.end(num_tokens=1, cpu_hz=None).joules == pytest.approx(44.0)


def test_a_counter_that_wraps_around(tmp_path: Path) -> None:
    path = add_zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, range_uj=10_000_000)
    (counter,) = find_rapl(tmp_path)
    counter.start(0.0)
    for count_uj in (9_500_000, 500_000, 9_999_999, 1):
        path.write_text(str(count_uj))
        counter.sample(0.0)
    # 0.5 up to 9.5, 1 over the end, 9.499999, 0.000002 over the end
    assert counter.joules == pytest.approx(0.5 + 1.0 + 9.499999 + 0.000002)


def test_a_counter_that_never_wraps_must_not_run_back(tmp_path: Path) -> None:
    path = tmp_path / "energy1_input"
    path.write_text("500")
    counter = Counter("x", path)
    counter.start(0.0)
    path.write_text("499")
    with pytest.raises(DeviceError, match="ran back from 500 to 499"):
        counter.sample(1.0)


def test_power_is_integrated_by_trapezoids() -> None:
    power_w = [0.0]
    rail = PowerRail("ramp", lambda: power_w[0])
    rail.start(10.0)
    for now_s in (10.5, 11.0, 13.0):
        power_w[0] = 4.0 * (now_s - 10.0)
        rail.sample(now_s)
    assert rail.joules == pytest.approx(4.0 * 3.0**2 / 2)


def test_sensors_are_sampled_while_work_goes_on() -> None:
    seen = threading.Semaphore(0)
    watch = Watch()

    class Seen(PowerRail):
        def sample(self, now_s: float) -> None:
            super().sample(now_s)
            seen.release()

    sampler = Sampler([Seen("x", lambda: 2.0)], watch)
    sampler.begin()
    for _ in range(3):
        assert seen.acquire(timeout=5.0)
    watch.at_s += 4.0
    assert sampler.end() == pytest.approx(8.0)
    sampler.begin()
    assert sampler.end() == 0.0


def test_a_sensor_that_fails_on_the_way(tmp_path: Path, meters: list[BoardMeter]) -> None:
    folder = add_chip(tmp_path, 0, "ina219", power1_input=5_000_000)
    meter = BoardMeter(board(energy="hwmon", sysfs=str(tmp_path)))
    meters.append(meter)
    meter.begin()
    (folder / "power1_input").unlink()
    with pytest.raises(DeviceError, match="cannot be read: No such file"):
        meter.end(num_tokens=1, cpu_hz=None)


def power_w(sysfs: Path, sensor: str | None = None) -> float:
    """What the sensors that are found show together."""
    total = 0.0
    for each in find_hwmon(sysfs, sensor):
        each.start(0.0)
        each.sample(1.0)
        total += each.joules
    return total


def test_a_chip_with_a_power_register(tmp_path: Path) -> None:
    add_chip(tmp_path, 0, "ina226", in0_input=12, in1_input=5000, curr1_input=800, power1_input=4_100_000)
    add_chip(tmp_path, 1, "nvme", temp1_input=40_000)
    assert power_w(tmp_path) == pytest.approx(4.1)


def test_three_rails_of_volts_and_amperes(tmp_path: Path) -> None:
    add_chip(
        tmp_path, 0, "ina3221",
        in1_label="VDD_GPU", in1_input=5000, curr1_input=1000, in1_enable=1,
        in2_label="VDD_CPU", in2_input=5000, curr2_input=400, in2_enable=1,
        in3_label="NC", in3_input=0, curr3_input=0, in3_enable=0,
        in4_input=40, curr4_input=1400,  # a shunt voltage and the sum of the currents: no rail
    )  # fmt: skip
    assert power_w(tmp_path) == pytest.approx(7.0)
    assert power_w(tmp_path, "VDD_CPU") == pytest.approx(2.0)
    assert power_w(tmp_path, "ina3221") == pytest.approx(7.0)


def test_the_rail_that_feeds_the_others_stands_for_all(tmp_path: Path) -> None:
    add_chip(
        tmp_path, 3, "ina3221",
        in1_label="VDD_IN", in1_input=5000, curr1_input=2000,
        in2_label="VDD_CPU_GPU_CV", in2_input=5000, curr2_input=900,
        in3_label="VDD_SOC", in3_input=5000, curr3_input=300,
    )  # fmt: skip
    assert power_w(tmp_path) == pytest.approx(10.0)
    assert power_w(tmp_path, "VDD_SOC") == pytest.approx(1.5)


def test_energy_goes_before_power(tmp_path: Path) -> None:
    folder = add_chip(tmp_path, 0, "ina228", energy1_input=7_000_000, power1_input=1)
    (counter,) = find_hwmon(tmp_path, None)
    counter.start(0.0)
    (folder / "energy1_input").write_text("9500000")
    counter.sample(1.0)
    assert counter.joules == pytest.approx(2.5)


def test_a_sensor_of_another_make_by_name(tmp_path: Path) -> None:
    add_chip(tmp_path, 0, "power_meter", power1_input=90_000_000)
    with pytest.raises(DeviceError, match="no power sensor of the INA families"):
        find_hwmon(tmp_path, None)
    assert power_w(tmp_path, "power_meter") == pytest.approx(90.0)


def test_a_wrong_name_lists_the_right_ones(tmp_path: Path) -> None:
    add_chip(tmp_path, 0, "ina3221", in1_label="VDD_IN", in1_input=5000, curr1_input=2000)
    with pytest.raises(ConfigError, match="'VDD_OUT'; there are: VDD_IN, ina3221"):
        BoardMeter(board(energy="hwmon", sensor="VDD_OUT", sysfs=str(tmp_path)))


def test_no_sensor_at_all(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no RAPL energy counters") as caught:
        BoardMeter(board(energy="rapl", sysfs=str(tmp_path)))
    assert 'meter.energy = "constant"' in str(caught.value)


def test_a_sensor_that_this_user_may_not_read() -> None:
    with open_folder() as sysfs:
        path = add_zone(sysfs, "intel-rapl:0", "package-0", 1)
        path.chmod(0)
        with without_privileges(), pytest.raises(DeviceError, match="may not read the sensor") as caught:
            find_rapl(sysfs)
        assert f"sudo chmod a+r {path}" in str(caught.value)
