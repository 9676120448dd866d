"""Where profiles lie, and which of them a run may use.

<root>/<bench>/<routine>/<id>/  start.json    what was asked, of which devices; without profile.json: unfinished
                                raw/*.npz     what was measured, a file a step
                                profile.json  what came out, also of a fit that failed
                                report.html   figures
                                devices/      logs of node processes and emulators
<root> is $TESTBED_CALIBRATIONS, else testbed/calibrations in the user's data folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from calibration.fingerprint import bench_sha256, validity_of
from calibration.profile import FORMAT, Profile
from testbed.core.backends import backend as backend_of
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError

PROFILE = "profile.json"
START = "start.json"
_LOCK = ".lock"

Kind = Literal[
    "missing", "other bench", "other radio", "other carrier", "other rate", "other gain", "other array", "failed",
    "expired",
]  # fmt: skip
_NEAREST: dict[Kind, int] = {
    "failed": 0, "expired": 0, "other array": 1, "other gain": 2, "other rate": 3, "other carrier": 4,
    "other radio": 5, "other bench": 6, "missing": 7,
}  # fmt: skip
"""Of several profiles that cannot be used the one is told of that comes nearest; of equals the newest."""


@dataclass(frozen=True)
class Reason:
    """Why there is no profile to use.

    Attributes:
        kind: in two words.
        text: one sentence.
        command: renews it.
        id: of the profile that comes nearest, if there is one.
    """

    kind: Kind
    text: str
    command: str
    id: str | None = None

    def error(self) -> ConfigError:
        """As whoever needed the profile says it."""
        return ConfigError(self.text, remedy=f"calibrate: {self.command}")


def calibrations_folder() -> Path:
    """Where profiles lie by default."""
    if named := os.environ.get("TESTBED_CALIBRATIONS"):
        return Path(named).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local/share") / "testbed/calibrations"


def renewal(bench: str, routine: str, *, backend: str, seed: int) -> str:
    """The command that makes such a profile anew."""
    words = ["testbed", "calibrate", routine, "--bench", bench, "--backend", backend]
    words += ["--yes-transmit"] if backend_of(backend).radiates else ["--seed", str(seed)]
    return shlex.join(words)


def unusable(
    profile: Profile,
    bench: BenchSpec,
    *,
    backend: str,
    seed: int,
    serials: Mapping[str, str] | None,
    now: datetime,
    bench_file: str | None = None,
) -> Reason | None:
    """Why a profile does not hold for this bench now; None where it does.

    Args:
        profile: of any bench.
        bench: as it is now.
        backend: who plays its devices; a profile holds for one backend.
        seed: of the simulated world; of no effect where devices are real.
        serials: radio -> serial number of those that answer; None leaves them unchecked.
        now: UTC.
        bench_file: what to write after --bench; the bench's name by default.
    """
    found = (
        _of_others(profile, bench, backend, seed, serials) or _at_other_settings(profile, bench) or _worn(profile, now)
    )
    if found is None:
        return None
    command = renewal(bench_file or bench.name, profile.routine, backend=backend, seed=seed)
    return Reason(found[0], f"the calibration {profile.routine} of {bench.name} {found[1]}", command, profile.id)


def _of_others(
    profile: Profile, bench: BenchSpec, backend: str, seed: int, serials: Mapping[str, str] | None
) -> tuple[Kind, str] | None:
    """Whether it speaks of other devices."""
    if profile.backend != backend:
        return "other bench", f"was made on the backend {profile.backend}"
    if profile.bench_sha256 != bench_sha256(bench, backend):
        return "other bench", "speaks of other radios or another world than the bench file now describes"
    if profile.seed != seed and not backend_of(backend).radiates:
        return "other radio", f"speaks of the radios of seed {profile.seed}, not of seed {seed}"
    there = serials or {}
    swapped = [
        f"{name} was {profile.serials[name]} and is {serial}"
        for name, serial in there.items()
        if profile.serials.get(name, serial) != serial
    ]
    came = [f"{name} came new" for name in there if name not in profile.serials]
    return ("other radio", f"speaks of other radios: {'; '.join(swapped + came)}") if swapped or came else None


def _at_other_settings(profile: Profile, bench: BenchSpec) -> tuple[Kind, str] | None:
    """Whether it holds for another carrier, rate, gain or array."""
    own = profile.validity
    wanted = validity_of([key for key, value in own if value is not None], bench)
    if own.frequency_hz != wanted.frequency_hz:
        return "other carrier", f"holds at {_mhz(own.frequency_hz)}, the bench is at {_mhz(bench.carrier_hz)}"
    if own.sample_rate_hz != wanted.sample_rate_hz:
        return "other rate", f"holds at {_mhz(own.sample_rate_hz)}, the bench samples at {_mhz(bench.sample_rate_hz)}"
    if own.gain != wanted.gain:
        return "other gain", "holds at other receive gains than the bench file's"
    if own.array != wanted.array:
        return "other array", "holds for another place of antennas, stages or nodes"
    return None


def _worn(profile: Profile, now: datetime) -> tuple[Kind, str] | None:
    """Whether it never held, or no longer does."""
    if not profile.passed:
        return "failed", f"failed: {profile.why}"
    if profile.expired(now):
        return "expired", f"expired on {profile.expires:%Y-%m-%d %H:%M} UTC"
    return None


class Store:
    """The profiles of one folder.

    Args:
        root: `calibrations_folder()` by default.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = calibrations_folder() if root is None else root

    def create(self, bench: str, routine: str, now: datetime) -> Path:
        """A new folder, named by a new id. Raises ConfigError where it cannot be made."""
        parent = self.root / _slug(bench) / _slug(routine)
        for attempt in range(1000):
            mark = hashlib.sha256(f"{bench} {routine} {attempt}".encode()).hexdigest()[:4]
            folder = parent / f"{now:%Y%m%d-%H%M%S}-{mark}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigError(
                    f"the folder of the calibration cannot be made: {error.strerror}",
                    file=folder,
                    remedy="let TESTBED_CALIBRATIONS name a writable folder",
                ) from error
            return folder
        raise ConfigError("a thousand calibrations began in this second", file=parent, remedy="wait a second")

    def write(self, folder: Path, name: str, content: str) -> None:
        """Write a file of a calibration, whole or not at all."""
        scratch = folder / f"{name}.{os.getpid()}.partial"
        scratch.write_text(content, encoding="utf-8")
        os.replace(scratch, folder / name)

    def write_profile(self, folder: Path, profile: Profile) -> None:
        """Write what came out: from now on the calibration is complete."""
        self.write(folder, PROFILE, profile.model_dump_json(indent=2) + "\n")

    def read(self, folder: Path) -> Profile:
        """The profile in a folder. Raises ConfigError where there is none, or it is damaged."""
        content = self.read_json(folder, PROFILE)
        try:
            return Profile.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            remedy = "calibrate anew" if content.get("format") == FORMAT else "calibrate anew with this version"
            raise ConfigError(
                f"this is no profile: {first['msg']}", file=folder / PROFILE, key=key, remedy=remedy
            ) from (error)

    def read_json(self, folder: Path, name: str) -> dict[str, Any]:
        """A JSON object of a calibration. Raises ConfigError where there is none, or it is damaged."""
        path = folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError("there is no such file", file=path, remedy="this calibration never began") from error
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the file cannot be read: {error}", file=path, remedy="calibrate anew and remove the folder"
            ) from error
        if not isinstance(content, dict):
            raise ConfigError("not a JSON object", file=path, remedy="calibrate anew and remove the folder")
        return content

    def benches(self) -> tuple[str, ...]:
        """Benches that were calibrated, as their folders are named."""
        return tuple(sorted(path.name for path in self.root.glob("*") if path.is_dir()))

    def profiles(self, bench: str | None = None, routine: str | None = None) -> tuple[Profile, ...]:
        """Complete calibrations, also failed ones, oldest first.

        Args:
            bench: of this bench only, by its name.
            routine: of this routine only.

        Profiles of another format are left out: only the version that wrote them understands them.

        Raises:
            ConfigError: one is damaged.
        """
        pattern = f"{'*' if bench is None else _slug(bench)}/{'*' if routine is None else _slug(routine)}/*/{PROFILE}"
        folders = [path.parent for path in self.root.glob(pattern)]
        found = [self.read(folder) for folder in folders if self.read_json(folder, PROFILE).get("format") == FORMAT]
        return tuple(
            sorted(
                (one for one in found if bench in (None, one.bench) and routine in (None, one.routine)),
                key=lambda one: (one.made, one.id),
            )
        )

    def unfinished(self, bench: str | None = None) -> tuple[Path, ...]:
        """Folders of calibrations that were cut off, or are under way, oldest first."""
        begun = self.root.glob(f"{'*' if bench is None else _slug(bench)}/*/*/{START}")
        return tuple(sorted((path.parent for path in begun if not (path.parent / PROFILE).is_file()), key=_by_id))

    def locate(self, id_: str) -> Path:
        """The folder of a calibration, complete or not.

        Args:
            id_: the id, or as much of its beginning as no other has.

        Raises:
            ConfigError: there is none, or more than one.
        """
        begun = self.root.glob(f"*/*/*/{START}")
        found = [path.parent for path in begun if id_ and path.parent.name.startswith(id_)]
        exact = [folder for folder in found if folder.name == id_]
        if len(exact or found) == 1:
            return (exact or found)[0]
        names = ", ".join(sorted(folder.name for folder in found)[:5])
        raise ConfigError(
            f"several calibrations begin with {id_}: {names}" if found else f"there is no calibration {id_!r}",
            file=self.root,
            remedy="give more of the id" if found else "`testbed calibrate show` lists what there is",
        )

    def find(
        self,
        bench: BenchSpec,
        routine: str,
        *,
        backend: str,
        seed: int,
        serials: Mapping[str, str] | None,
        now: datetime,
        bench_file: str | None = None,
    ) -> Profile | Reason:
        """The newest profile that holds for this bench now, or why there is none; see `unusable`.

        Raises:
            ConfigError: a profile is damaged.
        """
        reasons: list[Reason] = []
        for profile in reversed(self.profiles(bench.name, routine)):
            reason = unusable(
                profile, bench, backend=backend, seed=seed, serials=serials, now=now, bench_file=bench_file
            )
            if reason is None:
                return profile
            reasons.append(reason)
        if reasons:
            return min(reasons, key=lambda one: _NEAREST[one.kind])
        command = renewal(bench_file or bench.name, routine, backend=backend, seed=seed)
        return Reason("missing", f"there is no calibration {routine} of {bench.name}", command)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process works on a calibration at a time. Raises ConfigError where another one does."""
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                "this calibration is under way in another process", file=folder, remedy="wait for it, or end it there"
            ) from error
        yield


def _by_id(folder: Path) -> str:
    return folder.name


def _mhz(frequency_hz: float | None) -> str:
    return "no frequency" if frequency_hz is None else f"{frequency_hz / 1e6:.9g} MHz"


def _slug(name: str) -> str:
    """A name as a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "-"
