"""Node processes on this machine: real agents that never outlive the controller."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testbed.core.devices import Link
from testbed.core.errors import DeviceError, LinkTimeout

_AGENT = (sys.executable, "-m", "testbed", "node")
_TAIL_BYTES = 2000
_GLANCE_S = 0.2


def num_processes(num_nodes: int) -> int:
    """How many processes host so many nodes: one for each core, and not more than nodes."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, num_nodes))


class NodeProcesses:
    """Processes that host nodes.

    Args:
        folder: gets `nodes-<k>.log`, what each process prints.
        agent: command that hosts nodes.
    """

    def __init__(self, folder: Path, *, agent: Sequence[str] = _AGENT) -> None:
        self._folder = folder
        self._agent = tuple(agent)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, names: Sequence[str], address: str, processes: int) -> None:
        """Deal the nodes over so many processes and start them.

        Each ends when its standard input does, which the operating system sees to where the controller is killed.

        Args:
            names: the nodes.
            address: of the control link.
            processes: how many.

        Raises:
            DeviceError: a process cannot be started.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._folder.mkdir(parents=True, exist_ok=True)
        for index in range(min(processes, len(names))):
            identities = [word for name in names[index::processes] for word in ("--id", name)]
            command = [*self._agent, "--connect", address, *identities, "--exit-with-parent"]
            with self._log(index).open("ab") as log:
                try:
                    # a session of its own: an interrupt at the keyboard reaches the controller alone, which then closes
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise DeviceError(f"cannot start {command[0]}: {error}") from error
            self._processes.append(process)

    def wait_for(self, names: Sequence[str], link: Link, *, timeout_s: float) -> None:
        """Wait for the nodes with an eye on their processes, so that one that ends early is told at once.

        Args:
            names: the nodes.
            link: they connect to.
            timeout_s: wall clock.

        Raises:
            DeviceError: a process ended early.
            LinkTimeout: a node did not connect.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                link.wait_for(names, timeout_s=min(_GLANCE_S, timeout_s))
            except LinkTimeout as silence:
                self.check()
                if time.monotonic() >= deadline:
                    absent = [name for name in names if name not in link.nodes]
                    raise LinkTimeout(
                        f"{len(absent)} nodes did not connect within {timeout_s:g} s: {', '.join(absent[:8])}",
                        remedy=f"look at nodes-*.log in {self._folder}, or raise link.connect_timeout_s",
                    ) from silence
            else:
                return

    def check(self) -> None:
        """Return while every process runs.

        Raises:
            DeviceError: one has ended; with the end of its log.
        """
        for index, process in enumerate(self._processes):
            if (code := process.poll()) is not None:
                text = self._log(index).read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
                raise DeviceError(
                    f"node process {index} ended with exit code {code}; its log ends with:\n{text}",
                    remedy=f"the whole log is {self._log(index)}",
                )

    def stop(self, *, patience_s: float = 3.0) -> None:
        """End every process: close its standard input, then terminate, then kill; may be repeated.

        Args:
            patience_s: how long to wait after each step.
        """
        for process in self._processes:
            if process.stdin is not None:
                try:
                    process.stdin.close()
                except OSError:
                    pass  # it has ended already
        for insist in (subprocess.Popen.terminate, subprocess.Popen.kill):
            for process in self._processes:
                if not _ended(process, patience_s):
                    insist(process)
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def _log(self, index: int) -> Path:
        return self._folder / f"nodes-{index}.log"


def _ended(process: subprocess.Popen[bytes], patience_s: float) -> bool:
    try:
        process.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        return False
    return True
