"""Simulated nodes in a thread of the test's own process, so that a run does not wait for another torch to be imported.

They speak to the controller as a process of nodes does, over the same sockets; what processes are for, that they die,
are killed or come late, is tested with processes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import sim_backend.open
from nodes.agent import host
from testbed.core.devices import Link
from testbed.core.errors import BenchError


class NodeThread:
    """Stands in for `drivers.node_processes.NodeProcesses`: all nodes in one thread, whatever number is asked for."""

    def __init__(self, folder: Path) -> None:
        self._thread: threading.Thread | None = None
        self._ended = -1

    def start(self, names: Sequence[str], address: str, processes: int) -> None:
        """Let the nodes in."""
        ends, self._ended = os.pipe()

        def live() -> None:
            try:
                host(address, names, until=ends)
            except BenchError as error:
                print(f"nodes: {error}", file=sys.stderr)
            finally:
                os.close(ends)

        self._thread = threading.Thread(target=live, name="nodes")
        self._thread.start()

    def wait_for(self, names: Sequence[str], link: Link, *, timeout_s: float) -> None:
        """Wait for them."""
        link.wait_for(names, timeout_s=timeout_s)

    def stop(self) -> None:
        """See them off; may be repeated."""
        if self._thread is not None:
            os.close(self._ended)
            self._thread.join()
            self._thread = None


@contextmanager
def nodes_here() -> Iterator[None]:
    """Simulated benches that are opened meanwhile have their nodes in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sim_backend.open, "NodeProcesses", NodeThread)
        yield
