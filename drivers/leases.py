"""Who uses which radio, stage and frequencies: one owner each, known to everybody who shares a folder.

A grant is one JSON file that lists all that one process leased at once, so a bench is leased whole or not at all. Every
change happens under one file lock. A grant ends when it is released, when its time has passed without renewal, or when
its process on this machine has died; while it lasts nothing takes it away but a theft that was asked for, and that is
logged. The folder is $TESTBED_LEASES, else testbed/leases in the user's state folder; on a disk that machines share it
holds between them too (their wall clocks must agree to within a few seconds).
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from drivers.iiod_client import parse_uri
from drivers.liveness import died, machine, started_at
from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError, DeviceError

TTL_S = 30.0
_LOCK_S = 2.0
_POLL_S = 0.02
# addresses that mean another device on every machine: this machine itself, and a PlutoSDR on its USB
_EVERYWHERE = ("127.", "localhost", "::1", "192.168.2.1", "pluto.local")


@dataclass(frozen=True)
class Resource:
    """What can be leased.

    Attributes:
        kind: radio, stage or frequency.
        name: of the device, the same for everybody who means it; of a frequency range, for reading.
        low_hz, high_hz: of a frequency range.
    """

    kind: str
    name: str
    low_hz: float = 0.0
    high_hz: float = 0.0

    def conflicts(self, other: Resource) -> bool:
        """Whether two owners cannot have both."""
        if self.kind != other.kind:
            return False
        if self.kind == "frequency":
            return self.low_hz < other.high_hz and other.low_hz < self.high_hz
        return self.name == other.name


def radio(uri: str) -> Resource:
    """A radio by its uri."""
    host, port = parse_uri(uri)
    return Resource("radio", f"{_scoped(host)}:{port}")


def radio_serial(serial: str) -> Resource:
    """A radio by its serial number."""
    return Resource("radio", f"serial {serial}")


def stage(port: str) -> Resource:
    """A stage by its serial port, whatever link leads to it, or by its URL."""
    if "://" not in port:
        return Resource("stage", f"{socket.gethostname()}:{os.path.realpath(port)}")
    parts = urlsplit(port)
    if parts.hostname is None:
        return Resource("stage", f"{socket.gethostname()}:{port}")
    return Resource("stage", f"{_scoped(parts.hostname)}:{parts.port}")


def frequencies(low_hz: float, high_hz: float) -> Resource:
    """A range of frequencies."""
    return Resource("frequency", f"{low_hz / 1e6:g} to {high_hz / 1e6:g} MHz", low_hz, high_hz)


def bench_resources(bench: BenchSpec) -> tuple[Resource, ...]:
    """All that a run on this bench uses: its radios, its stages, and the band around its carrier."""
    radios = [board.radio for board in bench.boards] + list(bench.array.radios)
    found = [radio(each.uri) for each in radios if each.uri]
    found += [radio_serial(each.serial) for each in radios if each.serial]
    found += [
        stage(antenna.stage.device.port)
        for antenna in bench.array.antennas
        if antenna.stage is not None and antenna.stage.device.port
    ]
    half_hz = bench.sample_rate_hz / 2
    return (*dict.fromkeys(found), frequencies(bench.carrier_hz - half_hz, bench.carrier_hz + half_hz))


@dataclass(frozen=True)
class Grant:
    """What one process has leased.

    Attributes:
        token: names the grant and its file.
        owner: user.
        host: machine, by name.
        machine: the machine's start and the process table that `pid` is in: where both are alike, pids can be compared.
        pid: process.
        started: when the process started, as its machine counts: tells it from a later one of the same pid; None where
            that cannot be seen.
        bench: name of the bench.
        purpose: for people.
        resources: what is leased.
        since_s, until_s: wall clock, seconds since 1970.
        watchdogs: sockets of the dead men that guard it, on the owner's machine.
    """

    token: str
    owner: str
    host: str
    machine: str
    pid: int
    started: str | None
    bench: str
    purpose: str
    resources: tuple[Resource, ...]
    since_s: float
    until_s: float
    watchdogs: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether its process is one of this machine's."""
        return self.machine == machine()

    def who(self, now_s: float) -> str:
        """Owner, host, since and remaining, for messages."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return (
            f"{self.owner} on {self.host} (process {self.pid}, {self.purpose}) since {since}, "
            f"renewed for another {max(self.until_s - now_s, 0):.0f} s"
        )

    def ended(self, now_s: float) -> str | None:
        """Why it holds no more; None while it does."""
        if now_s >= self.until_s:
            return "its time has passed"
        if self.is_here and died(self.pid, self.started):
            return "its process has died"
        return None


def leases_folder() -> Path:
    """Where grants lie by default."""
    if named := os.environ.get("TESTBED_LEASES"):
        return Path(named).expanduser()
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "testbed/leases"


class Leases:
    """The grants of one folder.

    Args:
        folder: `leases_folder()` by default.
        wall_s: the time of day, seconds since 1970.
    """

    def __init__(self, folder: Path | None = None, *, wall_s: Callable[[], float] = time.time) -> None:
        self.folder = leases_folder() if folder is None else folder
        self._wall_s = wall_s

    def known(self, broken: list[DeviceError] | None = None) -> tuple[Grant, ...]:
        """Every grant that is written down, also those that have ended, oldest first.

        Args:
            broken: gets the errors of files that cannot be understood, instead of the first being raised.

        Raises:
            DeviceError: a file of the folder cannot be understood.
        """
        grants: list[Grant] = []
        for path in self.folder.glob("*.json"):
            try:
                grant = _read(path)
            except DeviceError as error:
                if broken is None:
                    raise
                broken.append(error)
            else:
                grants += [] if grant is None else [grant]
        return tuple(sorted(grants, key=lambda each: each.since_s))

    def held(self) -> tuple[Grant, ...]:
        """Grants that hold now, oldest first; errors as `known`."""
        now_s = self._wall_s()
        return tuple(grant for grant in self.known() if not grant.ended(now_s))

    def acquire(
        self,
        resources: Sequence[Resource],
        *,
        bench: str,
        purpose: str,
        ttl_s: float = TTL_S,
        steal: bool = False,
    ) -> Lease:
        """Lease all of them, or none.

        Args:
            resources: what is wanted.
            bench: name of the bench.
            purpose: for whoever finds it taken.
            ttl_s: how long the grant outlives its last renewal; it is renewed three times in that time.
            steal: take what others hold away from them, whole grants at a time.

        Raises:
            DeviceError: somebody holds one of them, or the folder cannot be used.
        """
        with self._locked():
            now_s = self._wall_s()
            for grant in self.known():
                wanted = [each for each in grant.resources if any(each.conflicts(one) for one in resources)]
                ended = grant.ended(now_s)
                if not wanted and not ended:
                    continue
                if not ended and not steal:
                    raise DeviceError(
                        f"{wanted[0].kind} {wanted[0].name} is leased by {grant.who(now_s)}",
                        file=self._file(grant.token),
                        remedy=f"wait, ask {grant.owner} to end it, or take it away: add --steal-leases to the command",
                    )
                self._file(grant.token).unlink(missing_ok=True)
                self._log(now_s, f"cleared, {ended}" if ended else f"stolen by {getpass.getuser()}: {purpose}", grant)
            grant = Grant(
                token=uuid.uuid4().hex,
                owner=getpass.getuser(),
                host=socket.gethostname(),
                machine=machine(),
                pid=os.getpid(),
                started=started_at(os.getpid()),
                bench=bench,
                purpose=purpose,
                resources=tuple(resources),
                since_s=now_s,
                until_s=now_s + ttl_s,
            )
            self._write(grant)
        return Lease(self, grant, ttl_s)

    def rewrite(self, grant: Grant, ttl_s: float) -> bool:
        """Renew a grant, with what has changed in it; false if it is there no more."""
        with self._locked():
            if not self._file(grant.token).exists():
                return False
            self._write(replace(grant, until_s=self._wall_s() + ttl_s))
            return True

    def release(self, grant: Grant) -> None:
        """End a grant; may be repeated."""
        with self._locked():
            self._file(grant.token).unlink(missing_ok=True)

    def _file(self, token: str) -> Path:
        return self.folder / f"{token}.json"

    def _write(self, grant: Grant) -> None:
        part = self.folder / f"{grant.token}.part"
        part.write_text(json.dumps(asdict(grant), indent=1), encoding="utf-8")
        part.replace(self._file(grant.token))

    def _log(self, now_s: float, event: str, grant: Grant) -> None:
        line = json.dumps({"at_s": now_s, "event": event, **asdict(grant)})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in the folder, within bounded time: a process that was stopped here must not stop everybody."""
        path = self.folder / "lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DeviceError(
                f"the folder of the leases cannot be used: {error.strerror}",
                file=path,
                remedy="let this user write there, or name another folder in $TESTBED_LEASES",
            ) from error
        try:
            self._lock(descriptor, path)
            yield
        except OSError as error:
            raise DeviceError(
                f"the folder of the leases cannot be used: {error.strerror}",
                file=error.filename or path,
                remedy="let this user write there, or name another folder in $TESTBED_LEASES",
            ) from error
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, path: Path) -> None:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise DeviceError(
                        f"another process has kept the leases locked for {_LOCK_S:g} s",
                        file=path,
                        remedy=f"see which one: fuser -v {path}; then let it go on, or end it",
                    ) from error
                time.sleep(_POLL_S)


class Lease:
    """What this process has leased, renewed by a thread until it is closed.

    Args:
        leases: where it lies.
        grant: what it says.
        ttl_s: how long it outlives its last renewal.
    """

    def __init__(self, leases: Leases, grant: Grant, ttl_s: float) -> None:
        self.grant = grant
        self._leases = leases
        self._ttl_s = ttl_s
        self._changing = threading.Lock()
        self._lost = False
        self._stops: list[Callable[[], None]] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Whether it still holds, asked now unless the folder cannot be used.

        Raises:
            DeviceError: somebody took it away, or this process was stopped until its time had passed.
        """
        with suppress(BenchError):
            self.renew()
        if self._lost:
            raise DeviceError(
                f"the lease of bench {self.grant.bench} was lost: stolen, or not renewed in time",
                file=self._leases.folder / "log.jsonl",
                remedy="the file's last lines say who took it; resume the run when the bench is free",
            )

    def guard(self, socket_path: str, stop: Callable[[], None] | None = None) -> None:
        """Write down how a dead man that guards these devices is reached.

        Args:
            socket_path: where it takes `stop`.
            stop: mutes and holds these devices; called from a thread when the lease is lost.
        """
        with self._changing:
            self.grant = replace(self.grant, watchdogs=(*self.grant.watchdogs, socket_path))
            self._stops += [] if stop is None else [stop]
        self.renew()

    def renew(self) -> None:
        """Renew it now; what went wrong is told by `check`."""
        with self._changing:
            if self._lost or self._closed.is_set():
                return
            self._lost = not self._leases.rewrite(self.grant, self._ttl_s)
        if self._lost:
            for stop in self._stops:
                with suppress(BenchError):  # what cannot be stopped from here keeps nothing else from being stopped
                    stop()

    def close(self) -> None:
        """Release it; may be repeated."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        if not self._lost:
            self._leases.release(self.grant)

    def _renew(self) -> None:
        while not self._closed.wait(self._ttl_s / 3):
            try:
                self.renew()
            except BenchError:
                continue  # a disk that hiccups gets another two chances before the time has passed


def _read(path: Path) -> Grant | None:
    """A grant's file; None when it has just gone."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        resources = tuple(Resource(**each) for each in content.pop("resources"))
        return Grant(**content | {"resources": resources, "watchdogs": tuple(content["watchdogs"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DeviceError(
            f"this is no lease that can be understood: {error}",
            file=path,
            remedy="find out whose it is; delete the file when nobody uses the bench",
        ) from error


def _scoped(host: str) -> str:
    return f"{socket.gethostname()}:{host}" if host.startswith(_EVERYWHERE) else host
