"""Many short experiments, fast: whole runs one after the other in a few processes that keep what runs have in common.

    .venv/bin/python -m benchmarks.campaign quickstart quickstart-digital --seeds 0 1 2 --set rounds=10

A cell of a campaign is a label, a preset, overrides and a seed. Each is played by `run_experiment` on the backend sim,
rows and all as `testbed run` would write them, with one difference: the nodes live in a thread of the same process, so
that torch and transformers are imported once in a worker, and base model, tokenizer, data and encoded rows are kept
between runs of the same job. There is one worker process for each core; each uses one thread.

A finished cell is appended to a JSON-lines file under a key that is the hash of its resolved configuration. A campaign
that was cut off goes on where it stopped; a cell whose configuration changed is run anew. A cell that fails is reported
and does not stop the others; it is tried again the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError
from testbed.engine.config import Loaded, config_sha256, load_experiment
from testbed.engine.experiment import run_experiment
from testbed.engine.provenance import commit

if TYPE_CHECKING:
    from nodes.trainer import Trainer
    from testbed.core.specs import JobSpec

KEPT_TRAINERS = 2
"""Trainers a worker remembers; cells with the same seed, model, data and training share one."""


@dataclass(frozen=True)
class Cell:
    """One run of a campaign.

    Attributes:
        label: names it in tables; not part of what decides the run.
        preset: an experiment preset, or a file.
        overrides: `key=value` with dotted keys, as `testbed run --set` takes them.
        seed: of the experiment.
    """

    label: str
    preset: str
    overrides: tuple[str, ...]
    seed: int

    def load(self) -> Loaded:
        """The resolved experiment. Raises ConfigErrors where it cannot be."""
        return load_experiment(self.preset, self.overrides, self.seed)


@dataclass(frozen=True)
class Finished:
    """A cell that was run.

    Attributes:
        key: hash of the resolved configuration.
        rows: of `rounds.jsonl`.
        summary: of `summary.json`.
        took_s: wall clock of the run.
        cpu_s: time of a core that it took.
        commit: of the code that played it.
    """

    cell: Cell
    key: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    took_s: float
    cpu_s: float
    commit: str


# --- one run ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=KEPT_TRAINERS)
def _trainer(job: str) -> Trainer:
    from nodes.trainer import Trainer
    from testbed.core.specs import JobSpec

    return Trainer(JobSpec.model_validate_json(job))


def _load(job: JobSpec) -> Trainer:
    # a job holds a dict, so its text is the key
    return _trainer(job.model_dump_json())


@contextmanager
def _nodes(bench: BenchSpec, address: str) -> Iterator[None]:
    """Nodes of a bench in a thread; they knock until the bench is open, and have gone at the end."""
    from nodes.agent import host

    ends, ended = os.pipe()

    def live() -> None:
        try:
            host(address, bench.node_names, until=ends, load=_load)
        except BenchError as error:  # the controller says what went wrong from its side; this is the other half
            print(f"nodes: {error}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=live, name="nodes")
    thread.start()
    try:
        yield
    finally:
        os.close(ended)
        thread.join()
        os.close(ends)


def play(loaded: Loaded) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run one experiment in this process.

    Returns:
        its rows and its summary, the same as `testbed run` gives.

    Raises:
        BenchError: whatever went wrong.
    """
    address = f"tcp://127.0.0.1:{_free_port()}"
    # where the controller listens decides nothing of what is measured
    bench = loaded.bench.model_copy(update={"link": loaded.bench.link.model_copy(update={"listen": address})})
    with tempfile.TemporaryDirectory(prefix="campaign-") as out, _nodes(bench, address):
        result = run_experiment(loaded.spec, loaded.scheme, bench, backend="sim", out=Path(out), node_processes=0)
    return result.rounds, {**result.summary, "config_sha256": config_sha256(loaded.spec, loaded.bench)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the worker process -----------------------------------------------------------------------------------------------


def work() -> None:
    """Play the cells that come as lines of standard input; a line of standard output for each."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        content = json.loads(line)
        cell = Cell(content["label"], content["preset"], tuple(content["overrides"]), content["seed"])
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        try:
            rows, summary = play(cell.load())
            answer: dict[str, Any] = {"rows": rows, "summary": summary}
        except Exception as error:  # one run's failure is told, and the others go on
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["took_s"] = round(time.perf_counter() - begun_s, 3)
        answer["cpu_s"] = round(time.process_time() - cpu_s, 3)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Worker:
    """A process that plays one cell after the other."""

    def __init__(self) -> None:
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.campaign", "--work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **one_thread, "TRANSFORMERS_VERBOSITY": "error"},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # an interrupt at the keyboard reaches the campaign alone, which then ends it
        )

    def ask(self, cell: Cell) -> dict[str, Any]:
        """Play one cell; the worker's answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asdict(cell)) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        return json.loads(line) if line else {"error": f"the worker process ended ({self._process.wait()})"}

    def end(self) -> None:
        """End it at once, in the middle of a run too; may be repeated."""
        self._process.terminate()

    def close(self) -> None:
        """Let go of it once it has nothing left to do."""
        self._process.communicate()


# --- the campaign -----------------------------------------------------------------------------------------------------


def finished(store: Path) -> dict[str, Finished]:
    """The cells that a campaign's file holds, by key; a last line that was cut off is left out."""
    found: dict[str, Finished] = {}
    if not store.is_file():
        return found
    for line in store.read_text(encoding="utf-8").splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue  # the campaign was cut off while it wrote this line
        cell = content.pop("cell")
        content["cell"] = Cell(cell["label"], cell["preset"], tuple(cell["overrides"]), cell["seed"])
        found[content["key"]] = Finished(**content)
    return found


def run_campaign(
    cells: Sequence[Cell],
    store: Path,
    *,
    workers: int | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> dict[Cell, Finished]:
    """Run what is not yet finished.

    Args:
        cells: what to run; cells of like configuration are run once.
        store: JSON-lines file that keeps finished cells; made if absent.
        workers: processes; one for each core if None.
        say: called with a line of progress.

    Returns:
        the finished ones of these cells; those that failed, or whose configuration is not valid, are absent, and were
        reported.
    """
    keys: dict[Cell, str] = {}
    for cell in cells:
        try:
            loaded = cell.load()
        except BenchError as error:
            say(f"{cell.label}, seed {cell.seed} cannot be run: {error}")
        else:
            keys[cell] = config_sha256(loaded.spec, loaded.bench)
    done, code = finished(store), commit()
    if older := {one.commit for key, one in done.items() if key in keys.values()} - {code}:
        say(f"some cells of {store} were run with {', '.join(sorted(older))}; this is {code}")
    # cells of one job follow one another, so that a worker loads it once
    todo = {key: cell for cell, key in keys.items() if key not in done}
    ordered = sorted(todo.items(), key=lambda item: (item[1].seed, item[1].preset, item[1].overrides))
    if ordered:
        store.parent.mkdir(parents=True, exist_ok=True)
        for key, one in _run(ordered, store, code, workers or _cores(), say):
            done[key] = one
    return {cell: done[key] for cell, key in keys.items() if key in done}


def _run(
    ordered: Sequence[tuple[str, Cell]], store: Path, code: str, workers: int, say: Callable[[str], None]
) -> Iterator[tuple[str, Finished]]:
    waiting: queue.SimpleQueue[tuple[str, Cell]] = queue.SimpleQueue()
    for item in ordered:
        waiting.put(item)
    answers: queue.SimpleQueue[tuple[str, Cell, dict[str, Any]]] = queue.SimpleQueue()

    def keep_busy(worker: _Worker) -> None:
        while True:
            try:
                key, cell = waiting.get_nowait()
            except queue.Empty:
                return
            answers.put((key, cell, worker.ask(cell)))

    crew = [_Worker() for _ in range(min(workers, len(ordered)))]
    threads = [threading.Thread(target=keep_busy, args=(worker,), daemon=True) for worker in crew]
    begun_s, failed = time.perf_counter(), 0
    try:
        for thread in threads:
            thread.start()
        with store.open("a", encoding="utf-8") as file:
            if store.stat().st_size and not store.read_bytes().endswith(b"\n"):
                file.write("\n")  # the line that was cut off stays alone
            for count in range(1, len(ordered) + 1):
                key, cell, answer = answers.get()
                if "error" in answer:
                    failed += 1
                    say(f"{count}/{len(ordered)}  {cell.label}, seed {cell.seed} failed: {answer['error']}")
                    continue
                one = Finished(cell, key, answer["rows"], answer["summary"], answer["took_s"], answer["cpu_s"], code)
                file.write(json.dumps(asdict(one)) + "\n")
                file.flush()
                left_s = (time.perf_counter() - begun_s) / count * (len(ordered) - count)
                after = one.summary["perplexity_after"]
                say(
                    f"{count}/{len(ordered)}  {cell.label}, seed {cell.seed}: perplexity "
                    f"{'-' if after is None else f'{after:.3f}'}, {one.took_s:.1f} s; about {left_s / 60:.1f} min left"
                )
                yield key, one
    except BaseException:
        while not waiting.empty():
            waiting.get_nowait()
        for worker in crew:
            worker.end()
        raise
    finally:
        for worker, thread in zip(crew, threads, strict=True):
            thread.join()
            worker.close()
    if failed:
        say(f"{failed} of {len(ordered)} cells failed; run the campaign again to try them once more")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def main() -> int:
    """Run presets over seeds, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["quickstart", "quickstart-digital"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--store", type=Path, default=Path("runs/campaign.jsonl"), help="keeps what is finished")
    parser.add_argument("--workers", type=int, help="processes; one for each core by default")
    parser.add_argument("--quick", action="store_true", help="one seed and two rounds")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return 0
    seeds = options.seeds[:1] if options.quick else options.seeds
    changes = (*options.changes, *(["rounds=2"] if options.quick else []))
    cells = [Cell(preset, preset, changes, seed) for preset in options.presets for seed in seeds]
    results = run_campaign(cells, options.store, workers=options.workers)
    print(f"{'preset':24}{'seed':>6}{'perplexity':>22}{'latency s':>12}{'energy J':>12}")
    for cell, one in results.items():
        facts: Mapping[str, Any] = one.summary
        fall = f"{facts['perplexity_before']:.3f} -> {facts['perplexity_after']:.3f}"
        print(f"{cell.label:24}{cell.seed:6}{fall:>22}{facts['latency_s']:12.1f}{facts['energy_j']:12.1f}")
    return int(len(results) < len(cells))


if __name__ == "__main__":
    sys.exit(main())
