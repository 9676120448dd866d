"""A whole experiment: live, resumed, replayed. All three play the same rounds; only who answers differs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from testbed.core.adapter import Adapter
from testbed.core.backends import backend as backend_of
from testbed.core.bench import BenchSpec
from testbed.core.corrections import Corrections
from testbed.core.devices import Devices
from testbed.core.errors import BenchError, ConfigError, ReplayDeparture
from testbed.core.fleet import Fleet
from testbed.core.orders import Evaluate, MovedAndTrained, Order, Publish, Reply
from testbed.core.scheme import Scheme
from testbed.core.specs import JobSpec
from testbed.engine.config import ExperimentSpec, build_scheme, config_sha256
from testbed.engine.consent import check_consent
from testbed.engine.crew import Crew
from testbed.engine.keeping import Keeping, from_file
from testbed.engine.limits import check_aligns, check_needs, claimed_capabilities
from testbed.engine.live import Live
from testbed.engine.observe import Observer
from testbed.engine.opening import Opening, corrections_of
from testbed.engine.perform import Answerer, Replay, perform
from testbed.engine.provenance import commit, versions
from testbed.engine.recorder import FORMAT, Recorder, Step, create_folder, read_json, read_rows, read_steps, write_json
from testbed.engine.rounds import round_row, summarise
from testbed.engine.run_adapter import compare_stored, read_start, write_start
from testbed.engine.signals import signals_interrupt, signals_wait
from testbed.lora.peft_folder import save_adapter, save_folds
from testbed.lora.refactor import Stack

_RESIDUALS = "residuals.safetensors"
_OWN = "own.safetensors"
"""What every node has for itself, by node: values outside what was broadcast last, in the order of the layout."""


@dataclass(frozen=True)
class RunResult:
    """A run's folder, its summary and its rows."""

    folder: Path
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]


@dataclass
class _Play:
    """The rounds of one experiment, whoever answers."""

    experiment: ExperimentSpec
    scheme: Scheme[Any]
    adapter: Adapter
    fleet: Fleet
    observer: Observer
    recorder: Recorder | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    vector: np.ndarray = field(init=False)
    state: Any = field(init=False)

    def __post_init__(self) -> None:
        self.vector = self.adapter.initial
        self.state = self.scheme.start(self.fleet, self.adapter)

    def rounds(self, first: int, last: int, answerer: Answerer) -> str:
        """Play rounds `first` to `last`; returns why it ended: done or budget."""
        for index in range(first, last + 1):
            self._round(index, answerer)
            if index > 0 and self.scheme.done(self.state):
                break
            if self._over_budget():
                return "budget"
        return "done"

    def _round(self, index: int, answerer: Answerer) -> None:
        self.observer.round_started(index)
        answerer.round_index = index
        steps: list[Step] = []

        def answer(order: Order) -> Reply:
            self.observer.order_started(order)
            reply = answerer.answer(order)
            clock_s, audit = answerer.now_s(), answerer.last_audit
            if self.recorder is not None:
                step = self.recorder.step(index, clock_s, order, reply, audit)
            else:
                step = Step(len(steps), index, clock_s, order, reply, audit)
            steps.append(step)
            if isinstance(order, Publish):
                self.vector = order.adapter
            self.observer.order_ended(order, reply)
            return reply

        figures: Mapping[str, float | str] = {}
        if index > 0:
            rng = np.random.default_rng([self.experiment.seed, index])
            self.state = perform(self.scheme.round(self.state, rng), answer)
            figures = self.scheme.report(self.state)
        last = index == self.experiment.rounds or (index > 0 and self.scheme.done(self.state))
        if last or index % self.experiment.evaluate_every == 0:
            answer(Evaluate(self.scheme.personal))
        row = round_row(index, steps, figures)
        self.rows.append(row)
        if self.recorder is not None:
            folder = self.recorder.folder / "adapters" / f"round-{index:03d}"
            save_adapter(folder, self.adapter, self.vector)
            folds = {f"fold-{index:03d}-{number:02d}": fold for number, fold in enumerate(_folds(steps))}
            save_folds(folder, self.adapter.layout, folds, self.experiment.lora.alpha / self.experiment.lora.rank)
            if residuals := answerer.residuals():
                save_file(residuals, folder / _RESIDUALS)
            if own := answerer.own_values():
                save_file(own, folder / _OWN)
            self.recorder.round(row)
        self.observer.round_ended(row)

    def _over_budget(self) -> bool:
        budget = self.experiment.budget
        return any(
            limit is not None and sum(row[key] for row in self.rows) > limit
            for key, limit in (("latency_s", budget.latency_s), ("energy_j", budget.energy_j))
        )


def run_experiment(
    experiment: ExperimentSpec,
    scheme: Scheme[Any],
    bench: BenchSpec,
    *,
    backend: str,
    out: Path,
    node_processes: int | None = None,
    capture: bool = False,
    playback: Path | None = None,
    record_wire: bool = False,
    steal_leases: bool = False,
    yes_transmit: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Run an experiment from its start.

    Args:
        backend: who plays the devices, see `testbed.core.backends.BACKENDS`.
        out: the run folder is made inside.
        node_processes: processes that share the simulated nodes; one for each core if None.
        capture: keep every capture of the receiver as SigMF, in `captures` inside the run folder.
        playback: SigMF folder whose captures the receiver hears instead of the air.
        record_wire: keep every byte between drivers and devices, in `wire` inside the run folder.
        steal_leases: take radios, stages and frequencies from whoever holds them.
        yes_transmit: antennas may really move and transmitters may really radiate.

    Returns:
        the finished run, status done or budget.

    Raises:
        BenchError: whatever went wrong; the folder's summary says failed. Everything is still and mute.
        KeyboardInterrupt: after everything is still and mute; the summary says interrupted.
    """
    check_consent(backend, yes_transmit)
    capabilities = claimed_capabilities(bench, derived=backend_of(backend).derived)
    check_needs(experiment.scheme.name, scheme.needs, capabilities, bench, scheme.instead)
    check_aligns(experiment.scheme.name, scheme, experiment.alignment)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = create_folder(out, experiment.name, stamp)
    start: dict[str, Any] = {
        "format": FORMAT,
        "began": stamp,
        "backend": backend,
        "capture": capture,
        "playback": None if playback is None else str(playback.resolve()),
        "record_wire": record_wire,
        "corrections": corrections_of(experiment, bench, backend, yes_transmit),
        "experiment": experiment.model_dump(mode="json"),
        "bench": bench.model_dump(mode="json"),
        "versions": versions(),
        "commit": commit(),
    }
    write_json(folder / "start.json", start)
    opening = Opening(folder, bench, start, experiment.seed, node_processes, steal_leases)
    return _live(folder, experiment, scheme, bench, opening, observer or Observer(), None)


def resume_experiment(
    folder: Path,
    *,
    node_processes: int | None = None,
    steal_leases: bool = False,
    yes_transmit: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Go on with a run that was cut off: replay its complete rounds, then continue live.

    Raises:
        ConfigError: the folder is no run, or the run is complete.
        ReplayDeparture: the code or the scheme changed since.
    """
    start = _read_start(folder)
    if (folder / "summary.json").is_file() and read_json(folder, "summary.json")["status"] in ("done", "budget"):
        raise ConfigError("this run is complete", file=folder, remedy="start a new one, or `testbed show` it")
    experiment, bench, scheme = _recorded(start)
    rows = read_rows(folder)
    last = rows[-1]["round"] if rows else -1
    steps = [step for step in read_steps(folder) if step.round_index <= last]
    backend = start["backend"]
    check_consent(backend, yes_transmit)
    opening = Opening(folder, bench, start, experiment.seed, node_processes, steal_leases)
    return _live(folder, experiment, scheme, bench, opening, observer or Observer(), (last, steps))


def replay_experiment(folder: Path, observer: Observer | None = None) -> RunResult:
    """Think a recorded run through again, without devices and nodes.

    Returns:
        the same summary and rows; nothing is written.

    Raises:
        ReplayDeparture: the scheme decides otherwise than it did, or the rows or the final adapter differ.
        ConfigError: the folder is no run, or no round of it is complete.
    """
    start = _read_start(folder)
    experiment, bench, scheme = _recorded(start)
    recorded = read_rows(folder)
    if not recorded:
        raise ConfigError("no round of this run is complete", file=folder, remedy="run it anew, or `testbed resume` it")
    adapter, fleet = read_start(folder, bench, Corrections.model_validate(start.get("corrections") or {}).fields)
    last = recorded[-1]["round"]
    play = _Play(experiment, scheme, adapter, fleet, observer or Observer())
    play.observer.run_started(folder, experiment.rounds)
    status = play.rounds(0, last, Replay([step for step in read_steps(folder) if step.round_index <= last]))
    if play.rows != recorded:
        different = next(old["round"] for old, new in zip(recorded, play.rows, strict=False) if old != new)
        raise ReplayDeparture(f"the figures of round {different} are not those recorded", file=folder / "rounds.jsonl")
    compare_stored(folder / "adapters" / f"round-{last:03d}", adapter, play.vector)
    complete = (folder / "summary.json").is_file()
    summary = (
        read_json(folder, "summary.json")
        if complete
        else summarise(play.rows, status, _facts(experiment, bench, start["backend"]))
    )
    play.observer.run_ended(summary)
    return RunResult(folder, summary, play.rows)


def _live(
    folder: Path,
    experiment: ExperimentSpec,
    scheme: Scheme[Any],
    bench: BenchSpec,
    opening: Opening,
    observer: Observer,
    done: tuple[int, list[Step]] | None,
) -> RunResult:
    facts = _facts(experiment, bench, opening.backend)
    devices: Devices | None = None
    recorder: Recorder | None = None
    play: _Play | None = None
    status = "failed"
    failure: dict[str, Any] = {}
    try:
        with signals_interrupt():
            observer.phase("opening the bench")
            devices = opening.devices()
            for note in devices.notes:
                observer.warning(note)
            check_needs(experiment.scheme.name, scheme.needs, devices.radio.capabilities, bench, scheme.instead)
            crew = Crew(devices, bench, opening.backend, _job(experiment, bench), observer)
            live = Live(devices, bench, crew, experiment.audit, opening.corrections.fields)
            adapter, fleet = live.prepare()
            opening.ready(devices, crew.serials)
            play = _Play(experiment, scheme, adapter, fleet, observer)
            observer.run_started(folder, experiment.rounds)
            first = 0
            if done is None:
                write_start(folder, adapter, fleet)
                recorder = Recorder(folder)
            else:
                first = done[0] + 1
                recorder = _catch_up(folder, play, live, *done)
            play.recorder = recorder
            status = play.rounds(first, experiment.rounds, live)
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except BenchError as error:
        failure = {"error": str(error)}
        raise
    except Exception as error:
        failure = {"error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        with signals_wait():
            try:
                if devices is not None:
                    devices.close()
            except BenchError as error:
                failure = {"error": str(error)}
                raise
            finally:
                if recorder is not None:
                    recorder.close()
                # the rows on disk: a resumed run that fails before it continues keeps what it had
                rows = read_rows(folder)
                summary = {**summarise(rows, status, facts), **failure}
                if rows:
                    _publish_final(folder, rows[-1]["round"])
                    summary["adapter"] = "adapter"
                write_json(folder / "summary.json", summary)
    observer.run_ended(summary)
    return RunResult(folder, summary, play.rows)


def _catch_up(folder: Path, play: _Play, live: Live, last: int, steps: list[Step]) -> Recorder:
    """Replay the complete rounds, bring bench and nodes to where they were, and append from there."""
    stored, _ = read_start(folder, live.bench) if last >= 0 else (play.adapter, None)
    if not np.array_equal(stored.initial, play.adapter.initial):
        raise ReplayDeparture(
            "the nodes start from another adapter than the recorded run", remedy="the base model changed; run it anew"
        )
    if last >= 0:
        play.rounds(0, last, Replay(steps))
        positions = live.positions_m
        for step in steps:
            reply = step.reply.moved if isinstance(step.reply, MovedAndTrained) else step.reply
            positions = getattr(reply, "positions_m", positions)
        file = folder / "adapters" / f"round-{last:03d}" / _RESIDUALS
        residuals = load_file(file) if file.is_file() else {}
        keeping = Keeping()
        for step in steps:
            keeping.note(step.order, step.reply)
        file = file.with_name(_OWN)
        keeping.stored, keeping.stored_beside = from_file(load_file(file)) if file.is_file() else {}, keeping.shared
        live.restore(play.vector, positions, steps[-1].clock_s, residuals, _folds(steps), keeping)
    else:
        write_start(folder, play.adapter, play.fleet)
    return Recorder(folder, keep_steps=len(steps), keep_rounds=last + 1)


def _folds(steps: list[Step]) -> list[Stack]:
    """All that these steps folded into the base weights, in its order."""
    orders = [step.order for step in steps if isinstance(step.order, Publish)]
    return [Stack(order.fold, order.fold_rank) for order in orders if order.fold is not None]


def _job(experiment: ExperimentSpec, bench: BenchSpec) -> JobSpec:
    return JobSpec(
        seed=experiment.seed,
        nodes=bench.node_names,
        model=experiment.model,
        lora=experiment.lora,
        data=experiment.data,
        training=experiment.training,
        alignment=experiment.alignment,
    )


def _facts(experiment: ExperimentSpec, bench: BenchSpec, backend: str) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "scheme": experiment.scheme.name,
        "backend": backend,
        "seed": experiment.seed,
        "config_sha256": config_sha256(experiment, bench),
    }


def _read_start(folder: Path) -> dict[str, Any]:
    start = read_json(folder, "start.json")
    if start.get("format") != FORMAT:
        raise ConfigError(
            f"the run was recorded in format {start.get('format')}, this version reads {FORMAT}",
            file=folder / "start.json",
            remedy="use the version of the testbed that start.json names",
        )
    return start


def _recorded(start: Mapping[str, Any]) -> tuple[ExperimentSpec, BenchSpec, Scheme[Any]]:
    experiment = ExperimentSpec.model_validate(start["experiment"])
    return experiment, BenchSpec.model_validate(start["bench"]), build_scheme(experiment.scheme)


def _publish_final(folder: Path, last: int) -> None:
    """`adapter/` is a copy of the last complete round's, with what all rounds folded into the base."""
    final = folder / "adapter"
    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(folder / "adapters" / f"round-{last:03d}", final)
    for index in range(last + 1):
        round_folder = folder / "adapters" / f"round-{index:03d}"
        for file in (*round_folder.glob("fold-*.safetensors"), *round_folder.glob("FOLDS.txt")):
            shutil.copy2(file, final)
