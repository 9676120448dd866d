"""One calibration from its first step to its profile, on any backend; it can be cut off and go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from calibration.access import Access
from calibration.begun import Begun, Job, job_of, jobs_for, read_begun
from calibration.fingerprint import bench_sha256, validity_of
from calibration.names import ALL
from calibration.pause import Pause
from calibration.profile import Profile, expiry, stored_curves, stored_values, utc_now
from calibration.raw_steps import Facts, checked_raw, plain_step, read_steps, step_files, write_step
from calibration.report import maps_of, render_report
from calibration.routine import Fit, Step
from calibration.store import PROFILE, START, Store, alone
from testbed.core.backends import backend as backend_of
from testbed.core.backends import resolve
from testbed.core.bench import BenchSpec
from testbed.core.devices import Devices
from testbed.core.errors import ConfigError, DeviceError, LimitError, ProtocolError
from testbed.engine.consent import check_consent
from testbed.engine.provenance import commit, versions
from testbed.engine.signals import signals_interrupt, signals_wait

Now = Callable[[], datetime]
_Done = list[tuple[Step, dict[str, np.ndarray]]]


class Watcher:
    """Hears what a calibration does; every method does nothing until it is overridden."""

    def phase(self, text: str) -> None:
        """Something that takes a while begins."""

    def warning(self, text: str) -> None:
        """Something that whoever watches should know."""

    def began(self, routine: str, folder: Path, done: int, total: int) -> None:
        """Devices are ready; so many steps are done, and so many there will be at most."""

    def step_started(self, index: int, step: Mapping[str, Any]) -> None:
        """A measurement begins."""

    def step_ended(self, index: int) -> None:
        """It is on the disk."""

    def paused(self) -> None:
        """Nothing moves or radiates until somebody lets it go on."""

    def goes_on(self) -> None:
        """After a pause."""

    def ended(self, profile: Profile) -> None:
        """The profile is on the disk."""

    def skipped(self, routine: str, why: str) -> None:
        """This bench cannot be calibrated so; the others go on."""


@dataclass(frozen=True)
class Outcome:
    """What came of one calibration, or of all.

    Attributes:
        profiles: in the order in which they were made, failed ones too.
        folders: of each of them.
        skipped: routine -> why this bench or backend cannot have it.
    """

    profiles: tuple[Profile, ...]
    folders: tuple[Path, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every profile may be used."""
        return all(profile.passed for profile in self.profiles)


def calibrate(
    name: str,
    bench: BenchSpec,
    *,
    backend: str = "sim",
    settings: Sequence[str] = (),
    seed: int = 0,
    node_processes: int | None = None,
    steal_leases: bool = False,
    yes_transmit: bool = False,
    store: Store | None = None,
    watcher: Watcher | None = None,
    now: Now = utc_now,
) -> Outcome:
    """Measure, fit, and keep the profile.

    Args:
        name: of a routine, `module:Class` of one of your own, or `all`.
        bench: what is calibrated.
        backend: who plays its devices.
        settings: `option=value`; for `all` `routine.option=value`.
        seed: of the simulated world, and of the choice of steps.
        node_processes: processes that share the simulated nodes; one for each core if None.
        steal_leases: take radios, stages and frequencies from whoever holds them.
        yes_transmit: antennas may really move and transmitters may really radiate.
        store: where the profile goes; the user's by default.
        watcher: hears what happens.
        now: the time of day, UTC.

    Returns:
        the profiles; one that failed says why, and its raw data are kept.

    Raises:
        BenchError: whatever went wrong. Everything is still and mute, and what was measured is kept: a note of the
            error says how to go on.
        KeyboardInterrupt: the same.
    """
    check_consent(backend, yes_transmit)
    jobs = jobs_for(name, settings)
    place = store or Store()
    session = _Session(bench, backend, seed, place, watcher or Watcher(), now, skips=name == ALL)
    return session.run(place.create(bench.name, jobs[0].name, now()), jobs, (), node_processes, steal_leases)


def resume(
    id_: str,
    *,
    name: str | None = None,
    node_processes: int | None = None,
    steal_leases: bool = False,
    yes_transmit: bool = False,
    store: Store | None = None,
    watcher: Watcher | None = None,
    now: Now = utc_now,
) -> Outcome:
    """Go on with a calibration that was cut off, after its last complete step, and with those that were to follow it.

    Args:
        id_: of the calibration, or the beginning of it.
        name: what the caller takes it for; None does not care.

    Raises:
        ConfigError: there is none, it is complete, or its steps are no longer those it would take.
        DeviceError: other radios answer than those it began with.
    """
    place = store or Store()
    folder = place.locate(id_)
    if (folder / PROFILE).is_file():
        raise ConfigError(
            "this calibration is complete", file=folder, remedy=f"`testbed calibrate show {folder.name}`, or begin anew"
        )
    begun, bench = read_begun(place, folder)
    check_consent(begun.backend, yes_transmit)
    jobs = [job_of(begun.target, begun.options), *(job_of(one.target, one.options) for one in begun.then)]
    if name not in (None, ALL, begun.target, jobs[0].name):
        raise ConfigError(
            f"{folder.name} is a calibration {jobs[0].name}, not {name}",
            key="--resume",
            remedy=f"testbed calibrate {jobs[0].name} --resume {folder.name}",
        )
    session = _Session(bench, begun.backend, begun.seed, place, watcher or Watcher(), now, skips=bool(begun.then))
    return session.run(folder, jobs, (begun,), node_processes, steal_leases)


@dataclass
class _Session:
    """The calibrations of one opening of a bench."""

    bench: BenchSpec
    backend: str
    seed: int
    store: Store
    watcher: Watcher
    now: Now
    skips: bool
    """Whether a calibration that this bench cannot have is passed over."""

    def run(
        self,
        folder: Path,
        jobs: Sequence[Job],
        begun: Sequence[Begun],
        node_processes: int | None,
        steal_leases: bool,
    ) -> Outcome:
        """Open the bench, do the jobs, the first in `folder` and perhaps `begun`; leave everything still and mute."""
        devices: Devices | None = None
        profiles: list[Profile] = []
        folders: list[Path] = []
        skipped: dict[str, str] = {}
        with alone(folder):
            try:
                with signals_interrupt(), Pause() as pause:
                    self.watcher.phase("opening the bench")
                    devices = self._open(folder, node_processes, steal_leases)
                    access = Access(self.bench, devices, self.backend)
                    for index, job in enumerate(jobs):
                        here = folder if index == 0 else self.store.create(self.bench.name, job.name, self.now())
                        known = begun[0] if index == 0 and begun else None
                        profile = self._one(access, job, here, known, jobs[index + 1 :], pause, skipped)
                        if profile is not None:
                            profiles.append(profile)
                            folders.append(here)
            finally:
                with signals_wait():
                    if devices is not None:
                        devices.close()
        return Outcome(tuple(profiles), tuple(folders), skipped)

    def _open(self, folder: Path, node_processes: int | None, steal_leases: bool) -> Devices:
        devices: Devices = resolve(backend_of(self.backend).bench)(
            self.bench,
            seed=self.seed,
            folder=folder / "devices",
            node_processes=node_processes,
            record_wire=None,
            steal_leases=steal_leases,
        )
        for note in devices.notes:
            self.watcher.warning(note)
        return devices

    def _one(
        self,
        access: Access,
        job: Job,
        folder: Path,
        begun: Begun | None,
        then: Sequence[Job],
        pause: Pause,
        skipped: dict[str, str],
    ) -> Profile | None:
        """One calibration; None where it is passed over."""
        try:
            # anew for each: what the one before left of gains is gone
            access.open_nodes()
            done = self._prepare(access, job, folder, begun, then)
            self._measure(access, job, folder, done, pause)
            return self._conclude(access, job, folder, done)
        except (ConfigError, LimitError) as refused:
            measured = bool(step_files(folder))
            self._leave(folder, job, refused, worth=measured)
            if measured or not self.skips:
                raise
            skipped[job.name] = refused.message
            self.watcher.skipped(job.name, refused.message)
            return None
        except BaseException as error:
            # in the middle of all, what is to follow is worth as much as raw data
            self._leave(folder, job, error, worth=bool(then) or bool(step_files(folder)))
            raise

    def _prepare(
        self, access: Access, job: Job, folder: Path, begun: Begun | None, then: Sequence[Job]
    ) -> list[tuple[Step, dict[str, np.ndarray]]]:
        """Write down what begins; or bring the bench to where it was, and return the steps that are done."""
        clock = access.devices.clock
        done: _Done = []
        if begun is None:
            begun = Begun(
                id=folder.name,
                target=job.target,
                options=job.plain_options,
                bench=self.bench.model_dump(mode="json"),
                backend=self.backend,
                seed=self.seed,
                serials=access.serials,
                clock_s=clock.now_s(),
                positions_m=access.positions_m.tolist(),
                then=tuple(one.plan for one in then),
                versions=versions(),
                commit=commit(),
            )
            self.store.write(folder, START, begun.model_dump_json(indent=2) + "\n")
        else:
            _check_serials(begun.serials, access.serials)
            steps = read_steps(folder)
            for facts, raw in steps:
                self._check_step(job, done, facts, folder)
                done.append((facts.step, raw))
            access.move(np.array(steps[-1][0].positions_m if steps else begun.positions_m))
            clock.set(steps[-1][0].clock_s if steps else begun.clock_s)
            access.share_time()
        return done

    def _check_step(self, job: Job, done: _Done, facts: Facts, folder: Path) -> None:
        if self._next(job, done) != facts.step:
            raise ConfigError(
                f"step {facts.index} would be another one than was measured: the routine has changed since",
                file=folder,
                remedy="calibrate anew",
            )

    def _measure(self, access: Access, job: Job, folder: Path, done: _Done, pause: Pause) -> None:
        """Carry out the steps that are left; each is on the disk before the next begins."""
        routine, total = job.routine, job.routine.num_steps(self.bench, job.options)
        self.watcher.began(job.name, folder, len(done), total)
        while (step := self._next(job, done)) is not None:
            index = len(done)
            self.watcher.step_started(index, step)
            raw = checked_raw(routine.measure(access, job.options, step))
            facts = Facts(
                index=index,
                step=step,
                clock_s=access.now_s(),
                positions_m=access.positions_m.tolist(),
                taken=self.now().isoformat(),
                calibration_id=folder.name,
                routine=job.name,
            )
            write_step(folder, facts, raw)
            done.append((step, raw))
            self.watcher.step_ended(index)

            def begins() -> None:
                access.devices.radio.mute()
                self.watcher.paused()

            pause.hold(begins, self.watcher.goes_on)

    def _next(self, job: Job, done: _Done) -> dict[str, Any] | None:
        rng = np.random.default_rng([self.seed, len(done)])
        step = job.routine.next_step(self.bench, job.options, tuple(done), rng)
        return None if step is None else plain_step(step)

    def _conclude(self, access: Access, job: Job, folder: Path, done: _Done) -> Profile:
        """Fit, and write profile and report."""
        self.watcher.phase(f"{job.name}: fitting")
        fit = job.routine.fit(self.bench, job.options, tuple(done))
        made = self.now()
        profile = Profile(
            id=folder.name,
            routine=job.name,
            options=job.plain_options,
            bench=self.bench.name,
            bench_sha256=bench_sha256(self.bench, self.backend),
            backend=self.backend,
            seed=self.seed,
            serials=access.serials,
            firmware=access.firmware,
            validity=validity_of(job.routine.validity, self.bench),
            made=made,
            expires=expiry(made, job.routine.lasts_s),
            **_stored(job, fit),
            passed=fit.passed,
            why=fit.why,
            raw=tuple(str(path.relative_to(folder)) for path in step_files(folder)),
            versions=versions(),
            commit=commit(),
        )
        self.store.write_profile(folder, profile)
        self.store.write(folder, "report.html", render_report(profile, maps_of(profile, self.bench)))
        self.watcher.ended(profile)
        return profile

    def _leave(self, folder: Path, job: Job, error: BaseException, *, worth: bool) -> None:
        """Say how to go on where that is worth it; take away what never measured anything."""
        if (folder / PROFILE).is_file():
            return
        if worth and (folder / START).is_file():
            consent = " --yes-transmit" if backend_of(self.backend).radiates else ""
            error.add_note(
                f"raw data  {folder}\nto go on  testbed calibrate {job.name} --resume {folder.name}{consent}"
            )
            return
        (folder / START).unlink(missing_ok=True)
        if not (folder / "devices").is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def _stored(job: Job, fit: Fit) -> dict[str, Any]:
    """Values and figures of a fit as a profile holds them."""
    try:
        return {"values": stored_values(fit), "curves": stored_curves(fit.curves)}
    except ValidationError as error:
        raise ProtocolError(
            f"the fit of {job.name} gives what no profile can hold: {error.errors()[0]['msg']}",
            remedy="let it give numbers, or nested lists of them; the raw data are kept",
        ) from error


def _check_serials(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    changed = [f"{name} was {serial}" for name, serial in before.items() if now.get(name) != serial]
    if changed:
        raise DeviceError(
            f"other radios answer than those that the calibration began with: {', '.join(changed)}",
            remedy="plug the former radios in again, or calibrate anew",
        )
