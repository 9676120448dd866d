"""The doctor over emulated devices and over everything that can be wrong with a bench."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers import doctor, doctor_packages
from drivers.doctor_devices import trigger_findings
from drivers.doctor_packages import fit_finding, libiio_version, package_findings, port_findings
from drivers.findings import Finding, from_error
from drivers.leases import Leases, bench_resources
from sim_backend.emulators.host import Emulators
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError, ConfigErrors, DeviceError
from tests.addressed import addressed
from tests.benches import small_bench
from tests.fake_iiod import FakeIiod
from tests.fake_sysfs import add_policy, add_zone


@pytest.fixture
def book(tmp_path: Path) -> Leases:
    return Leases(tmp_path / "leases")


@pytest.fixture(scope="module")
def emulators() -> Iterator[Emulators]:
    with Emulators(small_bench(), mode="real") as emulators:
        yield emulators


@pytest.fixture(autouse=True)
def steady_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the doctor says must not depend on how busy the machine is."""
    monkeypatch.setattr(doctor, "_LATE_S", 1.0)


def look(bench: BenchSpec | None, book: Leases) -> list[Finding]:
    """The doctor's findings, in bounded time."""
    began_s = time.monotonic()
    findings = doctor.check(bench, leases=book)
    assert time.monotonic() - began_s < 4.0
    return findings


def saying(findings: list[Finding], text: str) -> Finding:
    """The one finding that says so."""
    found = [each for each in findings if text in each.what]
    assert len(found) == 1, [each.what for each in findings]
    return found[0]


def test_a_machine_without_a_bench(book: Leases) -> None:
    findings = look(None, book)
    assert all(each.status == "ok" for each in findings), findings
    assert saying(findings, "nothing is leased").remedy is None
    assert saying(findings, "pyserial")
    assert saying(findings, "clock: waits end")


def test_a_whole_emulated_bench(emulators: Emulators, book: Leases) -> None:
    before = emulators.state()
    bench = addressed(small_bench(), emulators.addresses)
    findings = look(bench, book)
    assert not [each for each in findings if each.status == "fail"], findings
    assert saying(findings, "serial emulated-node-01, firmware v0.").what.startswith("node-01 at ip:127.0.0.1:")
    assert saying(findings, f"node-01 at {emulators.addresses['radios']['node-01']}: has the transfer trigger")
    assert saying(findings, "stage-1 at ").what.endswith("state Alarm")
    after = emulators.state()
    assert after["radios"] == before["radios"], "nothing was changed"
    assert after["stages"] == before["stages"]


def test_a_stage_that_somebody_uses_is_left_alone(emulators: Emulators, book: Leases) -> None:
    bench = addressed(small_bench(), emulators.addresses)
    lease = book.acquire(bench_resources(bench), bench="small", purpose="run 7")
    findings = look(bench, book)
    lease.close()
    assert saying(findings, "bench small is leased by ").status == "warn"
    assert "not asked, " in saying(findings, "stage-0 at ").what


@pytest.mark.parametrize(
    ("changes", "radio", "text", "remedy"),
    [
        ({}, {"serial": "abc"}, "the serial number is emulated-node-00, the bench file says abc", "check the uri"),
        ({}, {"channels": 2}, "2 channels are wanted, the radio shows 1", "channels = 1"),
        ({"carrier_hz": 5.8e9, "limits": {"frequencies_hz": [[5.7e9, 5.9e9]]}}, {}, "frequency_hz", ""),
        ({"sample_rate_hz": 4e5}, {}, "sample_rate_hz", ""),
    ],
)
def test_a_radio_that_does_not_fit(
    emulators: Emulators, book: Leases, changes: dict[str, Any], radio: dict[str, Any], text: str, remedy: str
) -> None:
    uri = emulators.addresses["radios"]["node-00"]
    bench = small_bench(nodes=[{"name": "board", "radio": {"uri": uri, **radio}}], **changes)
    finding = next(each for each in look(bench, book) if text in each.what)
    assert finding.status == "fail"
    assert remedy in (finding.remedy or "")


def test_radios_that_do_not_answer(book: Leases) -> None:
    with FakeIiod() as stalled, FakeIiod(chip="adxl345") as other:
        stalled.stall()
        bench = small_bench(
            nodes=[
                {"name": "gone", "radio": {"uri": "ip:127.0.0.1:1"}},
                {"name": "stalled", "radio": {"uri": stalled.uri}},
                {"name": "other", "radio": {"uri": other.uri}},
                {"name": "twin", "radio": {"uri": other.uri}},
            ]
        )
        findings = look(bench, book)
    for name, words in (("gone", "connection refused"), ("stalled", "no answer"), ("other", "is this a PlutoSDR?")):
        finding = saying(findings, f"radio {name}: ")
        assert finding.status == "fail"
        assert words in finding.what
        assert finding.remedy
    assert saying(findings, "stands for 2 radios").status == "fail"


def test_a_trigger_that_is_not_there() -> None:
    (missing,) = trigger_findings(small_bench(), "board", False)
    assert missing.status == "fail"
    assert 'set radio.trigger = "network"' in (missing.remedy or "")
    (not_needed,) = trigger_findings(small_bench(radio={"trigger": "network"}), "board", False)
    assert not_needed.status == "ok"


def test_a_bench_file_without_addresses(book: Leases) -> None:
    finding = saying(look(small_bench(), book), "does not say how these are reached")
    assert finding.status == "warn"
    assert finding.what.endswith("the receiver (array.radios), node-00, node-01, node-02, stage-0, stage-1")


def test_a_stage_port_that_is_not_there(book: Leases) -> None:
    antennas = [{**each, "stage": None} for each in small_bench().model_dump()["array"]["antennas"]]
    antennas[0]["stage"] = {"device": {"port": "/dev/ttyNothing"}}
    antennas[1]["stage"] = {"device": {"port": "socket://127.0.0.1:1"}}
    content = small_bench().model_dump()
    bench = BenchSpec.model_validate({**content, "array": {**content["array"], "antennas": antennas}})
    findings = look(bench, book)
    assert saying(findings, "serial port /dev/ttyNothing: there is no such port").status == "fail"
    assert "no such serial port" in saying(findings, "stage-0: ").what
    assert "connection refused" in saying(findings, "stage-1: ").what


def test_leases_that_are_left_over_or_broken(book: Leases) -> None:
    lease = Leases(book.folder, wall_s=lambda: 0.0).acquire([], bench="old", purpose="test")
    (book.folder / "broken.json").write_text("{")
    findings = look(None, book)
    lease.close()
    assert saying(findings, "is left over, its time has passed").status == "ok"
    assert saying(findings, "broken.json").status == "fail"


def test_meters_of_this_machine(book: Leases, tmp_path: Path) -> None:
    add_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    folder = add_policy(tmp_path, 0)
    (folder / "scaling_min_freq").write_text("1500000")
    sysfs = str(tmp_path)
    nodes = [
        {"name": "one", "meter": {"energy": "rapl", "cpu_frequency": True, "sysfs": sysfs}},
        {"name": "two", "meter": {"energy": "hwmon", "sysfs": sysfs}},
        {"name": "three", "meter": {"cpu_frequency": True, "sysfs": "/nowhere"}},
    ]
    findings = look(small_bench(nodes=nodes), book)
    assert saying(findings, "package-0").status == "ok"
    pinned = saying(findings, "the processor's frequency is pinned")
    assert pinned.status == "warn"
    assert "scaling_max_freq" in (pinned.remedy or "")
    assert saying(findings, "no power sensor of the INA families").status == "warn"
    assert saying(findings, "cpufreq shows no policy").status == "warn"


@pytest.mark.parametrize(
    ("versions", "needed", "status", "text"),
    [
        (("0.0.21", "0.25", (0, 24)), True, "ok", "pyadi-iio 0.0.21, pylibiio 0.25, libiio 0.24"),
        (("0.0.21", "1.0", (0, 24)), True, "fail", "this pylibiio does not fit this libiio"),
        (("0.0.21", "1.0", (0, 24)), False, "warn", "this pylibiio does not fit this libiio"),
        (("0.0.21", "0.25", (1, 0)), True, "fail", "a quarter of a cyclic waveform"),
        (("0.0.21", "0.25", None), True, "fail", "libiio missing; driver"),
        ((None, None, None), False, "ok", 'only driver = "pyadi" needs them'),
    ],
)
def test_the_versions_of_pyadi_iio(versions: tuple[Any, Any, Any], needed: bool, status: str, text: str) -> None:
    finding = fit_finding(*versions, needed=needed)
    assert finding.status == status
    assert text in finding.what
    assert (finding.remedy is None) == (status == "ok")


def test_no_libiio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_packages.ctypes.util, "find_library", lambda name: None)
    assert libiio_version(("libnothing.so.0",)) is None


def test_packages_that_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise doctor_packages.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor_packages.importlib.metadata, "version", absent)
    needed = package_findings(["grbl", "zaber", "pyadi"])
    assert [each.status for each in needed] == ["fail", "fail", "fail"]
    assert all("install" in (each.remedy or "") for each in needed)
    assert [each.status for each in package_findings([])] == ["ok", "ok", "ok"]


def test_a_port_that_this_user_may_not_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_packages.os, "access", lambda path, mode: False)
    (tmp_path / "ttyUSB0").touch()
    finding = port_findings([str(tmp_path / "ttyUSB0")])[-1]
    assert finding.status == "fail"
    assert "usermod -aG dialout" in (finding.remedy or "")


def test_how_findings_read() -> None:
    finding = Finding("fail", "it is broken", "mend it")
    assert finding.line() == "fail  it is broken\n      remedy: mend it"
    assert finding.as_dict() == {"status": "fail", "what": "it is broken", "remedy": "mend it"}
    assert replace(finding, status="ok", remedy=None).line() == "ok    it is broken"
    errors = ConfigErrors([ConfigError("one", remedy="a"), ConfigError("two", key="k")])
    assert from_error("x", errors) == [Finding("fail", "x: one", "a"), Finding("fail", "x: k: two")]
    assert from_error("x", DeviceError("y"), status="warn") == [Finding("warn", "x: y")]
    assert from_error("x", TimeoutError("late")) == [Finding("fail", "x: TimeoutError: late")]
