"""One owner for each radio, stage and band, in a folder and with a time of day that the tests set."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers import leases, liveness
from drivers.leases import (
    Lease,
    Leases,
    Resource,
    bench_resources,
    frequencies,
    leases_folder,
    radio,
    radio_serial,
    stage,
)
from testbed.core.bench import BenchSpec
from testbed.core.errors import DeviceError
from tests.benches import small_bench

ROOT = Path(__file__).parents[2]
ONE, TWO = radio("ip:10.0.0.1"), radio("ip:10.0.0.2")


class Day:
    """The time of day."""

    def __init__(self) -> None:
        self.at_s = 1.8e9

    def __call__(self) -> float:
        return self.at_s


@pytest.fixture
def day() -> Day:
    return Day()


@pytest.fixture
def book(tmp_path: Path, day: Day) -> Leases:
    return Leases(tmp_path / "leases", wall_s=day)


@pytest.fixture
def kept() -> Iterator[list[Lease]]:
    """Leases that are released at the end."""
    taken: list[Lease] = []
    yield taken
    for lease in taken:
        lease.close()
        lease.close()


def take(book: Leases, *resources: Resource, steal: bool = False) -> Lease:
    return book.acquire(resources, bench="table", purpose="run sst2", ttl_s=30.0, steal=steal)


def someone_else(book: Leases, lease: Lease) -> None:
    """Write a lease as that of a living process on another machine."""
    path = book.folder / f"{lease.grant.token}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "machine": "elsewhere", "host": "bench-2", "owner": "mia"}))


def events(book: Leases) -> list[str]:
    path = book.folder / "log.jsonl"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_second_owner_is_told_everything(book: Leases, kept: list[Lease], day: Day) -> None:
    kept.append(take(book, ONE))
    someone_else(book, kept[0])
    day.at_s += 10
    with pytest.raises(DeviceError) as caught:
        take(book, TWO, ONE)
    text = str(caught.value)
    assert (
        f"radio 10.0.0.1:30431 is leased by mia on bench-2 (process {os.getpid()}, run sst2) since 2027-01-15" in text
    )
    assert "renewed for another 20 s" in text
    assert "ask mia to end it, or take it away: add --steal-leases" in text
    assert len(book.held()) == 1, "all or nothing: the free radio was not taken either"
    kept.append(take(book, TWO))
    assert [grant.resources for grant in book.held()] == [(ONE,), (TWO,)]


def test_release_makes_free(book: Leases, kept: list[Lease]) -> None:
    first = take(book, ONE, TWO)
    first.check()
    first.close()
    first.close()
    assert book.held() == ()
    kept.append(take(book, TWO))
    assert events(book) == []


def test_time_runs_out_unless_it_is_renewed(book: Leases, kept: list[Lease], day: Day) -> None:
    kept.append(take(book, ONE))
    someone_else(book, kept[0])
    day.at_s += 29
    with pytest.raises(DeviceError):
        take(book, ONE)
    kept[0].renew()
    someone_else(book, kept[0])
    day.at_s += 29
    with pytest.raises(DeviceError):
        take(book, ONE)
    day.at_s += 1.5
    assert book.held() == ()
    kept.append(take(book, ONE))
    assert events(book) == ["cleared, its time has passed"]
    kept[0].renew()
    with pytest.raises(DeviceError, match="lease of bench table was lost"):
        kept[0].check()
    kept[1].check()


def test_the_thread_renews(tmp_path: Path) -> None:
    """In real time, with a short life."""
    book = Leases(tmp_path)
    lease = book.acquire([ONE], bench="table", purpose="test", ttl_s=0.3)
    first_s = lease.grant.until_s
    deadline = time.monotonic() + 5.0
    while not (held := book.held()) or held[0].until_s <= first_s + 0.3:
        assert time.monotonic() < deadline, "nobody renewed it"
    lease.check()
    lease.close()
    assert book.held() == ()


def test_theft_is_asked_for_and_logged(book: Leases, kept: list[Lease]) -> None:
    kept.append(take(book, ONE, TWO))
    someone_else(book, kept[0])
    kept.append(take(book, ONE, steal=True))
    assert [grant.token for grant in book.held()] == [kept[1].grant.token]
    (event,) = events(book)
    assert event.startswith("stolen by ")
    assert event.endswith(": run sst2")
    kept[0].renew()
    with pytest.raises(DeviceError, match="stolen, or not renewed in time"):
        kept[0].check()
    kept[0].close()
    kept[1].check()
    assert len(book.held()) == 1, "who lost a lease must not release its successor's"


PROGRAM = """
import sys
from pathlib import Path
from drivers.leases import Leases, radio
lease = Leases(Path(sys.argv[1])).acquire([radio("ip:10.0.0.1")], bench="table", purpose="test", ttl_s=1000.0)
print(lease.grant.pid, flush=True)
sys.stdin.read()
"""


def test_a_dead_process_holds_nothing(tmp_path: Path, kept: list[Lease]) -> None:
    book = Leases(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        with pytest.raises(DeviceError, match=f"process {process.pid}"):
            take(book, ONE)
        process.kill()
        process.wait()
    assert book.held() == ()
    kept.append(take(book, ONE))
    assert events(book) == ["cleared, its process has died"]


def test_a_killed_child_that_nobody_buried_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = liveness.started_at(process.pid)
        assert started
        assert not liveness.died(process.pid, started)
        assert liveness.died(process.pid, "123"), "another process of the same number"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert liveness.died(process.pid, started)
    assert liveness.died(process.pid, started)
    assert not liveness.died(1, None), "a process that cannot be looked at lives"


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        (frequencies(1e9, 2e9), frequencies(1.9e9, 3e9), True),
        (frequencies(1e9, 2e9), frequencies(2e9, 3e9), False),
        (frequencies(1e9, 4e9), frequencies(2e9, 3e9), True),
        (radio("ip:10.0.0.1"), radio("ip:10.0.0.1:30431"), True),
        (radio("ip:10.0.0.1"), radio("ip:10.0.0.1:30432"), False),
        (radio("ip:[fe80::1]"), radio("ip:[fe80::1]:30431"), True),
        (radio_serial("abc"), radio_serial("abc"), True),
        (radio_serial("abc"), stage("abc"), False),
        (stage("socket://gantry:4000"), stage("rfc2217://gantry:4000"), True),
        (stage("/dev/ttyUSB0"), stage("/dev/ttyUSB1"), False),
    ],
)
def test_what_conflicts(one: Resource, other: Resource, conflict: bool) -> None:
    assert one.conflicts(other) is other.conflicts(one) is conflict


def test_one_port_by_two_names(tmp_path: Path) -> None:
    (tmp_path / "ttyUSB0").touch()
    (tmp_path / "by-id").symlink_to(tmp_path / "ttyUSB0")
    assert stage(str(tmp_path / "by-id")) == stage(str(tmp_path / "ttyUSB0"))


def test_what_is_local_belongs_to_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [radio("ip:192.168.2.1"), radio("ip:127.0.0.1:50001"), stage("/dev/ttyUSB0"), stage("socket://localhost:1")]
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "another-machine")
    there = [radio("ip:192.168.2.1"), radio("ip:127.0.0.1:50001"), stage("/dev/ttyUSB0"), stage("socket://localhost:1")]
    assert not set(here) & set(there)
    assert radio("ip:10.0.0.1") == ONE


def test_a_whole_bench() -> None:
    small = small_bench().model_dump()
    antennas = [dict(antenna) for antenna in small["array"]["antennas"]]
    antennas[0]["stage"] = {**antennas[0]["stage"], "device": {"port": "/dev/ttyUSB7"}}
    bench = BenchSpec.model_validate(
        {
            **small,
            "nodes": [{"count": 2, "radio": {"uri": "ip:10.0.1.{}"}}],
            "array": {
                **small["array"],
                "antennas": antennas,
                "radios": [{"uri": "ip:10.0.2.1", "serial": "abc", "channels": 2}, {"uri": "ip:10.0.2.2"}],
            },
        }
    )
    found = [f"{each.kind} {each.name}".removesuffix(stage("/dev/ttyUSB7").name) for each in bench_resources(bench)]
    assert found == [
        "radio 10.0.1.0:30431",
        "radio 10.0.1.1:30431",
        "radio 10.0.2.1:30431",
        "radio 10.0.2.2:30431",
        "radio serial abc",
        "stage ",
        "frequency 2447.5 to 2452.5 MHz",
    ]


def test_dead_men_are_written_down(book: Leases, kept: list[Lease]) -> None:
    kept.append(take(book, ONE))
    kept[0].guard("/tmp/one")
    kept[0].guard("/tmp/two")
    assert book.held()[0].watchdogs == ("/tmp/one", "/tmp/two")


def test_who_loses_a_lease_stops(book: Leases, kept: list[Lease]) -> None:
    stopped: list[str] = []
    kept.append(take(book, ONE))
    kept[0].guard("/tmp/one", lambda: stopped.append("one"))
    assert stopped == []
    someone_else(book, kept[0])
    kept.append(take(book, ONE, steal=True))
    kept[0].renew()
    kept[0].renew()
    assert stopped == ["one"]


def test_a_file_that_is_no_lease_blocks(book: Leases, kept: list[Lease]) -> None:
    kept.append(take(book, ONE))
    (book.folder / "broken.json").write_text("{")
    with pytest.raises(DeviceError, match="no lease that can be understood") as caught:
        take(book, TWO)
    assert "broken.json" in str(caught.value)
    (book.folder / "broken.json").unlink()


def test_a_folder_that_somebody_keeps_locked(book: Leases) -> None:
    take(book, ONE).close()
    with (book.folder / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began_s = time.monotonic()
        with pytest.raises(DeviceError, match="kept the leases locked for 2 s") as caught:
            take(book, ONE)
        assert time.monotonic() - began_s < 3.0
    assert "fuser -v" in str(caught.value)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="cannot be used: Not a directory") as caught:
        take(Leases(tmp_path / "file" / "leases"), ONE)
    assert "$TESTBED_LEASES" in str(caught.value)


def test_many_at_once_and_one_wins(tmp_path: Path) -> None:
    """Processes that all want the same radio at the same moment."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom drivers.leases import Leases, radio\n"
        "from testbed.core.errors import DeviceError\nbook = Leases(Path(sys.argv[1]))\nsys.stdin.readline()\n"
        "try:\n    book.acquire([radio('ip:10.0.0.1')], bench='b', purpose='p')\n    print('won', flush=True)\n"
        "except DeviceError:\n    print('lost', flush=True)\nsys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        said.append(process.stdout.readline().strip())
    for process in processes:
        process.communicate("\n", timeout=10)
    assert sorted(said) == ["lost", "lost", "won"]


def test_where_leases_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_LEASES", "/mnt/lab/leases")
    assert leases_folder() == Path("/mnt/lab/leases")
    monkeypatch.delenv("TESTBED_LEASES")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/mia/state")
    assert leases_folder() == Path("/home/mia/state/testbed/leases")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert leases_folder() == Path.home() / ".local/state/testbed/leases"
